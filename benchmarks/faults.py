"""What losses and gradients that are not finite do to a training, for every method.

    python benchmarks/faults.py [--steps 600] [--seeds 5] [--out faults.json]

A small network with three losses trains on fresh batches, with `optax.apply_if_finite` around the
Adam behind each weighting, as the README recommends. At random steps a loss, its gradient or both
become NaN or infinite: in 1 % or 10 % of the steps for each loss, in bursts (all losses, 20 of
every 100 steps), or for one loss for ever (from a quarter of the run on). It looks at the state
after every step, and at what is left of the losses at the end over what is left without faults. It
takes a minute and a half on two cores.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table

import softadapt_optax as sa
from benchmarks import methods

K, BATCH, FEATURES, WIDTH = 3, 32, 8, 16
METHODS: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    **{
        name: functools.partial(methods.make, name, K, eps=0.05)
        for name in (*methods.ON_LOSSES, *methods.ON_GRADIENTS)
    },
    "initial_loss": lambda: sa.initial_loss(K, steps=10),
    "softadapt": lambda: sa.softadapt(K, loss_weighted=True),
    "softadapt, every=5": lambda: sa.softadapt(K, rate="relative", normalized=True, every=5),
    "mgda, every=5": lambda: sa.mgda(K, every=5),
}
PATTERNS = ("none", "1 %", "10 %", "bursts", "one for ever")
KINDS = ("loss", "gradient", "both")
Faults = tuple[np.ndarray, np.ndarray]  # what is added to losses and gradients, [steps, K] each


# The faults.


def faults(pattern: str, kind: str, steps: int, rng: np.random.Generator) -> Faults:
    """Zeros, and where a fault is NaN or an infinity."""
    step, shape = np.arange(steps)[:, None], (steps, K)
    where = {
        "none": np.zeros(shape, dtype=bool),
        "1 %": rng.random(shape) < 0.01,
        "10 %": rng.random(shape) < 0.1,
        "bursts": np.broadcast_to(step % 100 >= 80, shape),
        "one for ever": (np.arange(K) == 0) & (step >= steps // 4),
    }[pattern]
    values = np.where(where, rng.choice([np.nan, np.inf, -np.inf], shape), 0.0).astype(np.float32)
    none = np.zeros_like(values)
    return none if kind == "gradient" else values, none if kind == "loss" else values


@jax.custom_jvp
def with_fault(loss: jax.Array, loss_fault: jax.Array, gradient_fault: jax.Array) -> jax.Array:
    """The loss plus its fault, and its gradient times one plus its fault."""
    del gradient_fault
    return loss + loss_fault


@with_fault.defjvp
def _with_fault_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return with_fault(*primals), (1.0 + primals[2]) * tangents[0]


# The training.


def losses_of(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    y = jnp.tanh(x @ params["first"]) @ params["second"]
    target = jnp.sin(2 * x[:, :2])
    return jnp.stack(
        [
            jnp.mean((y[:, 0] - target[:, 0]) ** 2),
            0.1 * jnp.mean((y[:, 1] - target[:, 1]) ** 2),
            0.5 * jnp.mean((y[:, 0] + y[:, 1] - target[:, 0]) ** 2),
        ]
    )


def first_params(key: jax.Array) -> dict[str, jax.Array]:
    keys = jax.random.split(key)
    return {
        "first": jax.random.normal(keys[0], (FEATURES, WIDTH)) / FEATURES**0.5,
        "second": jax.random.normal(keys[1], (WIDTH, 2)) / WIDTH**0.5,
    }


def is_finite(tree: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def make_train(method: str) -> Callable[[int, Faults], dict[str, jax.Array]]:
    """A function of a seed and the faults, which says what became of the training."""
    steps_without_end = np.iinfo(np.int32).max  # of non-finite gradients that are skipped
    tx = optax.chain(METHODS[method](), optax.apply_if_finite(optax.adam(1e-2), steps_without_end))

    def train(seed: int, given: Faults) -> dict[str, jax.Array]:
        params_key, data_key = jax.random.split(jax.random.key(seed))

        def train_step(carry: Any, inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
            params, opt_state = carry
            index, *fault = inputs
            x = jax.random.normal(jax.random.fold_in(data_key, index), (BATCH, FEATURES))

            def losses_fn(params: Any) -> jax.Array:
                return with_fault(losses_of(params, x), *fault)

            _, grads = sa.value_and_component_grads(losses_fn)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            seen = {
                "state": is_finite(opt_state[0]),
                "params": is_finite(params),
                "losses": losses_of(params, x),
                "weights": sa.loss_weights(opt_state),
            }
            return (params, opt_state), seen

        params = first_params(params_key)
        indices = jnp.arange(len(given[0]))
        _, seen = jax.lax.scan(train_step, (params, tx.init(params)), (indices, *given))
        tail = len(given[0]) // 10
        return {
            "state_is_finite": jnp.all(seen["state"]),
            "params_are_finite": jnp.all(seen["params"]),
            "first_loss": jnp.sum(seen["losses"][0]),
            "last_loss": jnp.mean(jnp.sum(seen["losses"][-tail:], axis=-1)),
            "weights": seen["weights"],
        }

    return train


def train_all(method: str, steps: int, seeds: int) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """By pattern and kind of fault what became of each seed, all in one program."""
    cases = [(pattern, kind) for pattern in PATTERNS for kind in KINDS]
    given = [
        faults(*case, steps, np.random.default_rng(seed)) for case in cases for seed in range(seeds)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *given)
    numbers = jnp.tile(jnp.arange(seeds), len(cases))
    found = jax.device_get(jax.jit(jax.vmap(make_train(method)))(numbers, stacked))
    split = {
        name: values.reshape(len(cases), seeds, *values.shape[1:]) for name, values in found.items()
    }
    return {
        case: {name: values[i] for name, values in split.items()} for i, case in enumerate(cases)
    }


# What came out.


def rows_of(method: str, steps: int, seeds: int) -> list[dict[str, Any]]:
    found = train_all(method, steps, seeds)
    unharmed = found["none", "both"]["last_loss"]
    return [
        {
            "method": method,
            "pattern": pattern,
            "kind": kind,
            "state_is_finite": bool(np.all(result["state_is_finite"])),
            "params_are_finite": bool(np.all(result["params_are_finite"])),
            "loss_ratio": float(np.median(result["last_loss"] / unharmed)),
        }
        for (pattern, kind), result in found.items()
        if pattern != "none"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Training under losses that are not finite.")
    parser.add_argument("--steps", type=int, default=600, help="of each training (600)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind (5)")
    parser.add_argument("--out", type=pathlib.Path, default="faults.json", help="(faults.json)")
    args = parser.parse_args()
    if args.steps < 100 or args.seeds < 1:
        parser.error(
            f"--steps should be at least 100 and --seeds 1, got {args.steps}, {args.seeds}"
        )
    rows = []
    for method in rich.progress.track(METHODS, "Training"):
        rows += rows_of(method, args.steps, args.seeds)
    table = rich.table.Table(title="Summed losses at the end over those without faults")
    columns = [f"{pattern}, {kind}" for pattern in PATTERNS[1:] for kind in KINDS]
    for column in ("method", *columns):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method in METHODS:
        table.add_row(
            method, *(f"{row['loss_ratio']:.2f}" for row in rows if row["method"] == method)
        )
    rich.console.Console(width=180).print(table)
    bad = [row for row in rows if not (row["state_is_finite"] and row["params_are_finite"])]
    print(f"{len(rows)} combinations, {len(bad)} with a state or parameters that became non-finite")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"steps": args.steps, "seeds": args.seeds, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
