"""A hundred thousand steps, for every method: does anything grow or drift?

    python benchmarks/long_run.py [--steps 100000] [--out long_run.json]

Three noisy losses of ten parameters, whose weights should sum to 3 at every step. It records the
largest deviation of that sum and whether the state stayed finite, in one `scan`; and, over ten
thousand calls of a compiled step from a Python loop, how often the step was traced, how many arrays
are alive more than before, and how much more memory the process holds. It takes a minute on two
cores.
"""

import argparse
import functools
import gc
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.progress
import rich.table

import softadapt_optax as sa
from benchmarks import methods

K, WEIGHT_SUM, WARM_UP = 3, 3.0, 1000
METHODS: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    **{
        name: functools.partial(methods.make, name, K, weight_sum=WEIGHT_SUM)
        for name in (*methods.ON_LOSSES, *methods.ON_GRADIENTS)
    },
    "softadapt": lambda: sa.softadapt(K, loss_weighted=True, weight_sum=WEIGHT_SUM),
    "softadapt, every=7": lambda: sa.softadapt(K, rate="relative", weight_sum=WEIGHT_SUM, every=7),
}


class Training(NamedTuple):
    """What it starts from and its step; the carry holds what is looked for."""

    start: Any
    step: Callable[[Any], Any]


def make_training(method: str) -> Training:
    tx = optax.chain(METHODS[method](), optax.adam(1e-2))
    centers = jax.random.normal(jax.random.key(0), (K, 10))

    def step(carry: Any) -> Any:
        params, opt_state, worst, is_finite = carry
        key = jax.random.fold_in(jax.random.key(1), opt_state[1][0].count)
        noise = 0.1 * jax.random.normal(key, (K, 10))

        def losses_fn(params: jax.Array) -> jax.Array:
            return jnp.mean((params[None] - centers - noise) ** 2, axis=1)

        _, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        weights = sa.loss_weights(opt_state)
        leaves = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.dtype == jnp.float32]
        worst = jnp.maximum(worst, jnp.abs(jnp.sum(weights) / WEIGHT_SUM - 1))
        is_finite &= jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        return optax.apply_updates(params, updates), opt_state, worst, is_finite

    params = jnp.zeros(10)
    return Training((params, tx.init(params), jnp.zeros(()), jnp.ones((), bool)), step)


def resident_bytes() -> int:
    """What the process holds in memory; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_one_scan(training: Training, steps: int) -> dict[str, Any]:
    scan = jax.jit(
        lambda carry: jax.lax.scan(lambda c, _: (training.step(c), None), carry, length=steps)[0]
    )
    _, opt_state, worst, is_finite = jax.block_until_ready(scan(training.start))
    return {
        "steps": int(opt_state[1][0].count),
        "weight_sum_deviation": float(worst),
        "state_is_finite": bool(is_finite),
    }


def in_a_python_loop(training: Training, calls: int) -> dict[str, Any]:
    traces = 0

    def counted(carry: Any) -> Any:
        nonlocal traces
        traces += 1
        return training.step(carry)

    step, carry = jax.jit(counted), training.start
    for call in range(calls + WARM_UP):
        if call == WARM_UP:
            gc.collect()
            arrays, held = len(jax.live_arrays()), resident_bytes()
        carry = jax.block_until_ready(step(carry))
    gc.collect()
    return {
        "calls": calls,
        "traces": traces,
        "more_arrays": len(jax.live_arrays()) - arrays,
        "more_bytes": resident_bytes() - held,
    }


def row_of(method: str, steps: int, calls: int) -> dict[str, Any]:
    training = make_training(method)
    return {"method": method} | in_one_scan(training, steps) | in_a_python_loop(training, calls)


def main() -> None:
    parser = argparse.ArgumentParser(description="A hundred thousand steps, for every method.")
    parser.add_argument("--steps", type=int, default=100_000, help="of each training (100000)")
    parser.add_argument("--out", type=pathlib.Path, default="long_run.json", help="(long_run.json)")
    args = parser.parse_args()
    if args.steps < 10:
        parser.error(f"--steps should be at least 10, got {args.steps}")
    rows = [
        row_of(method, args.steps, args.steps // 10)
        for method in rich.progress.track(METHODS, "Training")
    ]
    table = rich.table.Table(
        title=f"{args.steps} steps in a scan, a tenth of them in a Python loop"
    )
    for column in ("method", "worst weight sum", "finite", "traces", "more arrays", "more memory"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['weight_sum_deviation']:.1e}",
            "yes" if row["state_is_finite"] else "no",
            str(row["traces"]),
            str(row["more_arrays"]),
            f"{row['more_bytes'] / 2**20:.1f} MiB",
        )
    rich.console.Console().print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows": rows}) + "\n")


if __name__ == "__main__":
    main()
