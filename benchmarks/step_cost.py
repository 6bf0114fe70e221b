"""What does a training step with balanced losses cost, next to the same step on their sum?

    python benchmarks/step_cost.py [--rounds 40] [--out step_cost.json]

It takes about four minutes. The report in the README is `benchmarks/step_cost.json`.

Every case is compiled twice on the summed loss ("plain", and "plain again", which shows the
noise of this machine) and once with each weighting. The programs take turns in one process;
a ratio is the median, over the rounds, of a program's time to that of plain in the same round.
Flops and temporary memory are the compiler's own counts for a single step and do not depend on
the machine's load. All programs include the Adam update and donate their parameters and state.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.progress
import rich.table

import softadapt_optax as sa

ADAM = optax.adam(1e-3)


class Case(NamedTuple):
    """A model to train: ``losses_fn(params, batch)`` gives the component losses."""

    name: str
    losses_fn: Callable[[Any, Any], Any]
    params: Any
    batch: Any
    num_losses: int
    scan_steps: int  # steps in one compiled call
    shared: Any = None  # the parameters that gradient methods look at


def _dense_layers(key: jax.Array, sizes: list[int]) -> list[jax.Array]:
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = itertools.pairwise(sizes)
    return [
        jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in zip(keys, shapes, strict=True)
    ]


def _forward(layers: list[jax.Array], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer)
    return x @ layers[-1]


def mlp_case() -> Case:
    """Compute-bound: four dense layers whose one output enters all four losses."""

    def losses_fn(layers, batch):
        error = _forward(layers, batch) - 1.0
        return {
            "l2": jnp.mean(error**2),
            "l1": jnp.mean(jnp.abs(error)),
            "l4": jnp.mean(error**4),
            "bias": jnp.mean(error) ** 2,
        }

    layers = _dense_layers(jax.random.key(0), [512, 512, 512, 512, 512])
    return Case("MLP 4 x 512, batch 512", losses_fn, layers, jnp.ones((512, 512)), 4, 1)


def heads_case() -> Case:
    """Compute-bound: a trunk of two layers and a head of two layers for each of four losses."""

    def losses_fn(params, batch):
        features = jnp.tanh(_forward(params["trunk"], batch))
        return {
            name: jnp.mean((_forward(head, features) - 1.0) ** 2)
            for name, head in params["heads"].items()
        }

    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "trunk": _dense_layers(keys[0], [512, 512, 512]),
        "heads": {f"head {k}": _dense_layers(keys[k], [512, 256, 1]) for k in range(1, 5)},
    }
    shared = {"trunk": True, "heads": False}
    return Case(
        "Trunk and 4 heads, batch 512", losses_fn, params, jnp.ones((512, 512)), 4, 1, shared
    )


def autoencoder_case() -> Case:
    """The model of `examples/sparse_autoencoder.py`, one batch a step."""

    def losses_fn(layers, batch):
        code = jax.nn.relu(batch @ layers[0])
        error = jax.nn.sigmoid(code @ layers[1]) - batch
        return {
            "reconstruction": jnp.mean(jnp.sum(error**2, axis=-1)),
            "sparsity": jnp.mean(jnp.sum(jnp.abs(code), axis=-1)),
        }

    layers = _dense_layers(jax.random.key(0), [784, 128, 784])
    return Case(
        "Sparse autoencoder, batch 100, scan", losses_fn, layers, jnp.ones((100, 784)), 2, 40
    )


def tiny_case() -> Case:
    """Bound by overhead: about a thousand weights and 256 points, the same for every loss."""

    def losses_fn(layers, batch):
        error = _forward(layers, batch) - 1.0
        return (
            jnp.mean(error**2),
            jnp.mean(jnp.abs(error)),
            jnp.mean(error**4),
            jnp.mean(error) ** 2,
        )

    layers = _dense_layers(jax.random.key(0), [2, 32, 32, 1])
    return Case("Tiny network, shared batch, scan", losses_fn, layers, jnp.ones((256, 2)), 4, 1000)


def own_batches_case() -> Case:
    """The same network where each loss has 64 points of its own, as in a PINN."""

    def losses_fn(layers, batch):
        return tuple(jnp.mean((_forward(layers, points) - 1.0) ** 2) for points in batch)

    layers = _dense_layers(jax.random.key(0), [2, 32, 32, 1])
    batch = tuple(jnp.full((64, 2), float(k)) for k in range(4))
    return Case("Tiny network, a batch per loss, scan", losses_fn, layers, batch, 4, 1000)


def plain_step(case: Case) -> tuple[Callable, Any]:
    def step(carry, batch):
        params, opt_state = carry

        def summed(params):
            losses = case.losses_fn(params, batch)
            return sum(jax.tree.leaves(losses)), losses

        (_, losses), grads = jax.value_and_grad(summed, has_aux=True)(params)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), losses

    return step, ADAM.init(case.params)


def weighted_step(case: Case, weighting: optax.GradientTransformation) -> tuple[Callable, Any]:
    tx = optax.chain(weighting, ADAM)

    def step(carry, batch):
        params, opt_state = carry
        losses, grads = sa.value_and_component_grads(case.losses_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), losses

    return step, tx.init(case.params)


def last_shared_layer(params: Any) -> Any:
    """A mask of the last layer that all losses pass through."""
    mask = jax.tree.map(lambda _: False, params)
    layers = mask["trunk"] if isinstance(mask, dict) else mask
    layers[-1] = True
    return mask


def weightings(k: int, shared: Any) -> dict[str, optax.GradientTransformationExtraArgs]:
    return {
        "fixed_weights": sa.fixed_weights([1.0] * k),
        "softadapt": sa.softadapt(k),
        "softadapt, all options": sa.softadapt(
            k, rate="relative", normalized=True, loss_weighted=True
        ),
        "initial_loss": sa.initial_loss(k),
        "realtime_loss": sa.realtime_loss(k),
        "uncertainty": sa.uncertainty(k),
        "learned_weights": sa.learned_weights(k),
        "gradnorm": sa.gradnorm(k, shared=shared),
        "gradnorm, last layer": sa.gradnorm(k, shared=last_shared_layer),
        "normalized_gradients": sa.normalized_gradients(k, shared=shared),
        "pcgrad": sa.pcgrad(k, shared=shared),
        "mgda": sa.mgda(k, shared=shared),
        "mgda, every=100": sa.mgda(k, shared=shared, every=100),
    }


class Program:
    """A compiled step, or scan of steps, that carries its own training state."""

    def __init__(self, case: Case, step: Callable, opt_state: Any):
        if case.scan_steps == 1:
            run = step
        else:

            def run(carry, batch):
                return jax.lax.scan(lambda c, _: step(c, batch), carry, None, case.scan_steps)

        self._carry = jax.tree.map(jnp.copy, (case.params, opt_state))
        self._batch = case.batch
        self._compiled = jax.jit(run, donate_argnums=0).lower(self._carry, case.batch).compile()
        one_step = jax.jit(step, donate_argnums=0).lower(self._carry, case.batch).compile()
        self.flops = one_step.cost_analysis()["flops"]
        self.temp_bytes = one_step.memory_analysis().temp_size_in_bytes

    def seconds(self, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            self._carry, losses = self._compiled(self._carry, self._batch)
        jax.block_until_ready((self._carry, losses))
        return time.perf_counter() - start


def measure(case: Case, rounds: int, advance: Callable[[], None]) -> list[dict[str, Any]]:
    k = case.num_losses
    steps = {"plain": plain_step(case), "plain again": plain_step(case)}
    for name, weighting in weightings(k, case.shared).items():
        steps[name] = weighted_step(case, weighting)
    programs = {name: Program(case, *step) for name, step in steps.items()}
    calls = max(1, round(0.05 / programs["plain"].seconds(2) * 2))
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(rounds):
        order = list(programs) if turn % 2 else list(reversed(programs))
        for name in order:
            times[name].append(programs[name].seconds(calls))
        advance()
    plain = programs["plain"]
    rows = []
    for name, program in programs.items():
        ratios = [t / p for t, p in zip(times[name], times["plain"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "case": case.name,
                "step": name,
                "num_losses": k,
                "time_ratio": statistics.median(ratios),
                "time_ratio_quartiles": [quartiles[0], quartiles[2]],
                "microseconds": statistics.median(times[name]) / calls / case.scan_steps * 1e6,
                "flop_ratio": program.flops / plain.flops,
                "temp_bytes": program.temp_bytes,
            }
        )
    return rows


def microseconds(step: Callable, state: Any, inputs: Any, rounds: int) -> float:
    """The median time of one step inside a scan over inputs."""
    run = jax.jit(lambda state, inputs: jax.lax.scan(step, state, inputs))
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(state, inputs))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / len(jax.tree.leaves(inputs)[0]) * 1e6  # one compiles


def update_alone(rounds: int, num_losses: int = 4, steps: int = 10_000) -> float:
    """Microseconds for one update of the weights and the state of `softadapt`."""
    tx = sa.softadapt(num_losses, loss_weighted=True)

    def step(state, losses):
        _, state = tx.update(jnp.zeros(num_losses), state, losses=losses)
        return state, sa.loss_weights(state)

    trajectory = 1 + jax.random.uniform(jax.random.key(0), (steps, num_losses))
    return microseconds(step, tx.init(None), trajectory, rounds)


def solvers_alone(rounds: int, steps: int = 2000) -> dict[str, dict[int, float]]:
    """Microseconds for the weights from a Gramian, those of vectors nearly on one line.

    As a method sees it, with state and checks. The gradients have 16 entries, so that the
    Gramian itself adds little.
    """
    found: dict[str, dict[int, float]] = {}
    for name, factory in (("mgda", sa.mgda), ("pcgrad", sa.pcgrad)):
        found[name] = {}
        for k in (2, 4, 8, 16):
            keys = jax.random.split(jax.random.key(k), 3)
            common = jax.random.normal(keys[0], (steps, 1, 16))
            signs = jax.random.rademacher(keys[1], (steps, k, 1), jnp.float32)
            stacked = signs * (common + 0.3 * jax.random.normal(keys[2], (steps, k, 16)))
            tx = factory(k)

            def step(state, stacked, tx=tx, k=k):
                _, state = tx.update(stacked, state, losses=jnp.ones(k))
                return state, sa.loss_weights(state)

            found[name][k] = microseconds(step, tx.init(None), stacked, rounds)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    table = rich.table.Table(title="Cost of a training step, to plain = the summed loss")
    columns = ["case", "step", "time ratio", "quartiles", "us/step", "flop ratio", "temp memory"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("case", "step") else "right")
    previous = None
    for row in rows:
        low, high = row["time_ratio_quartiles"]
        table.add_row(
            row["case"] if row["case"] != previous else "",
            row["step"],
            f"{row['time_ratio']:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{row['microseconds']:.1f}",
            f"{row['flop_ratio']:.4f}",
            f"{row['temp_bytes'] / 1024:.1f} KiB",
            end_section=row["step"].endswith("every=100"),
        )
        previous = row["case"]
    rich.console.Console(width=max(120, rich.console.Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time, flops and memory of a balanced step against the plain summed loss."
    )
    parser.add_argument("--rounds", type=int, default=40, help="turns of each program, > 1 (40)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("step_cost.json"),
        help="the JSON file to write (step_cost.json)",
    )
    parser.add_argument("--only", default="", help="the models with this in their name (all)")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds should be at least 2, got {args.rounds}")
    every_case = [mlp_case(), heads_case(), autoencoder_case(), tiny_case(), own_batches_case()]
    cases = [case for case in every_case if args.only in case.name]
    if not cases:
        names = "; ".join(case.name for case in every_case)
        parser.error(f"--only should be part of one of {names}; got {args.only!r}")
    rows = []
    with rich.progress.Progress() as progress:
        task = progress.add_task("Measuring", total=len(cases) * args.rounds)
        for case in cases:
            progress.update(task, description=case.name)
            rows += measure(case, args.rounds, lambda: progress.advance(task))
    with rich.console.Console().status("The weights alone"):
        update = update_alone(args.rounds)
        solvers = solvers_alone(args.rounds)
    machine = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
    }
    show(rows)
    print(f"Weights and state alone, K=4, in a scan: {update:.2f} microseconds a step")
    for name, by_size in solvers.items():
        figures = ", ".join(f"K={k}: {value:.1f}" for k, value in by_size.items())
        print(f"Weights of {name} alone, microseconds a step: {figures}")
    print(json.dumps(machine))
    report = {
        "machine": machine,
        "rounds": args.rounds,
        "update_microseconds": update,
        "solver_microseconds": solvers,
    }
    args.out.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
