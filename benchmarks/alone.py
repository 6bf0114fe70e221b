"""What do the weights cost without a model? And how fast are K gradients added and multiplied?

Updates of losses that come from an array, in a `scan`; the weights from a Gramian of K small
gradients, nearly on one line; and the sum and the Gramian of K large gradients against the copy of
an array.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker

import softadapt_optax as sa
from benchmarks import methods
from benchmarks.common import (
    SOFTADAPT,
    Part,
    Report,
    Table,
    count_kernels,
    name_of,
    ratio_to,
    softadapt_by_hand,
    take_turns,
)
from softadapt_optax._component_grads import from_stacked

SECONDS = 3.0
NUM_LOSSES = 4
SIZES = (2, 4, 8, 16, 32, 64)
NUMBERS = (2, 4, 8)  # of large gradients
UPDATES = {
    "fixed_weights": sa.fixed_weights([1.0] * NUM_LOSSES),
    "prior_loss": sa.prior_loss([1.0] * NUM_LOSSES),
    "initial_loss": sa.initial_loss(NUM_LOSSES),
    "realtime_loss": sa.realtime_loss(NUM_LOSSES),
    "softadapt": sa.softadapt(NUM_LOSSES),
    "softadapt, loss weighted": sa.softadapt(NUM_LOSSES, loss_weighted=True),
    "uncertainty": sa.uncertainty(NUM_LOSSES),
    "learned_weights": sa.learned_weights(NUM_LOSSES, temperature=1.0),
}


# Measurements.


class Loop:
    """A compiled scan of a step over inputs; called, it says how many seconds one step took."""

    def __init__(self, step: Callable, state: Any, inputs: Any):
        self._steps = len(jax.tree.leaves(inputs)[0])
        self._args = state, inputs
        run = jax.jit(lambda state, inputs: jax.lax.scan(step, state, inputs))
        self._compiled = run.lower(*self._args).compile()
        self.kernels = count_kernels(self._compiled.as_text())

    def __call__(self) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self._compiled(*self._args))
        return (time.perf_counter() - start) / self._steps


def some_losses(steps: int) -> jax.Array:
    return 1 + jax.random.uniform(jax.random.key(0), (steps, NUM_LOSSES))


def loop_by_hand(steps: int) -> Loop:
    weigh, memory = softadapt_by_hand(NUM_LOSSES)
    return Loop(lambda memory, losses: weigh(losses, memory)[::-1], memory, some_losses(steps))


def loop_of_updates(tx: Any, steps: int) -> Loop:
    def step(state: Any, losses: jax.Array) -> tuple[Any, jax.Array]:
        _, state = tx.update(jnp.zeros(NUM_LOSSES), state, losses=losses)
        return state, sa.loss_weights(state)

    return Loop(step, tx.init(None), some_losses(steps))


def loop_of_solutions(tx: Any, num_losses: int, steps: int) -> Loop:
    """As a method sees it, with state, checks and the Gramian of gradients of 64 entries."""
    keys = jax.random.split(jax.random.key(num_losses), 3)
    common = jax.random.normal(keys[0], (steps, 1, 64))
    signs = jax.random.rademacher(keys[1], (steps, num_losses, 1), jnp.float32)
    stacked = signs * (common + 0.3 * jax.random.normal(keys[2], (steps, num_losses, 64)))

    def step(state: Any, stacked: jax.Array) -> tuple[Any, jax.Array]:
        _, state = tx.update(stacked, state, losses=jnp.ones(num_losses))
        return state, sa.loss_weights(state)

    return Loop(step, tx.init(None), stacked)


def timed(function: Callable, *args: Any) -> Callable[[], float]:
    """Seconds of a call; on a GPU one of several in a row, so that it waits for no host."""
    calls = 1 if jax.default_backend() == "cpu" else 20

    def call() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    return call


def sum_and_gramian(stacked: jax.Array) -> dict[str, Callable[[], float]]:
    """Of K stacked gradients, as the library forms them."""
    losses = jnp.arange(1.0, len(stacked) + 1)
    tx = sa.softadapt(len(stacked))
    combine = jax.jit(lambda stacked, state: tx.update(stacked, state, losses=losses))
    gramian = jax.jit(lambda stacked: from_stacked(stacked, losses).gramian())
    state = tx.init(jnp.zeros(stacked.shape[1:]))
    return {"sum": timed(combine, stacked, state), "Gramian": timed(gramian, stacked)}


def bandwidth(effort: float, entries: int | None = None) -> dict[str, Any]:
    """Bytes a second: of h = sum_k alpha_k g_k, of the Gramian, and of the copy of a g_k.

    Counted are the bytes that have to be read and written: each gradient once, and h.
    """
    if entries is None:
        entries = 2**24 if jax.default_backend() == "cpu" else 2**27
    most = jax.random.normal(jax.random.key(0), (max(NUMBERS), entries))
    copy = jax.jit(lambda array: array + 1.0)  # as large as h; a plain copy might be elided
    programs, arrays = {"copy": timed(copy, most[0])}, {"copy": 2}
    for k in NUMBERS:
        for what, program in sum_and_gramian(most[:k]).items():
            programs[f"{what}, K={k}"] = program
            arrays[f"{what}, K={k}"] = k + (what == "sum")
    times = take_turns(programs, effort * SECONDS)
    found = {name: ratio_to(times[name], times["copy"]) for name in programs}
    for name, row in found.items():
        row["gigabytes_a_second"] = 4e-3 * entries * arrays[name] / row["microseconds"]
    return {"mebibytes": 4 * entries / 2**20, "rows": found}


def measure(effort: float, report: Report) -> dict[str, Any]:
    report("Updates alone")
    updates = {name: loop_of_updates(tx, 5000) for name, tx in UPDATES.items()}
    updates[SOFTADAPT] = loop_by_hand(5000)
    times = take_turns(updates, effort * SECONDS)
    found: dict[str, Any] = {
        "updates": {
            name: ratio_to(times[name], times["fixed_weights"]) | {"kernels": loop.kernels}
            for name, loop in updates.items()
        },
        "solvers": {},
    }
    for k in SIZES:
        report(f"From a Gramian to weights, K={k}")
        steps = max(20, 1000 // k)
        loops = {
            name: loop_of_solutions(methods.make(name, k), k, steps)
            for name in ("gradnorm", *methods.ON_GRAMIAN)
        }
        times = take_turns(loops, effort * SECONDS)
        for name in methods.ON_GRAMIAN:
            row = ratio_to(times[name], times["gradnorm"]) | {"kernels": loops[name].kernels}
            found["solvers"].setdefault(name, {})[str(k)] = row
    report("Sum and Gramian of large gradients")
    found["bandwidth"] = bandwidth(effort)
    return found


# What is shown.


def three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def bandwidth_table(found: Mapping[str, Any]) -> Table:
    rows = found["rows"]
    speeds = {name: row["gigabytes_a_second"] for name, row in rows.items()}
    cells = [
        [
            name,
            three_digits(speed),
            f"{speed / speeds['copy']:.2f}",
            three_digits(rows[name]["microseconds"] / 1000),
        ]
        for name, speed in speeds.items()
    ]
    return Table(
        f"Sum and Gramian of K stacked gradients of {found['mebibytes']:.3g} MiB, against a copy "
        "of one",
        ["", "GB/s", "over the copy's", "milliseconds"],
        cells,
        "Bytes that have to be read and written, gradients and sum once each, over the time.",
    )


def tables(figures: Mapping[str, Any]) -> list[Table]:
    updates = [
        [name_of(name), f"{row['microseconds']:.2f}", str(row["kernels"])]
        for name, row in figures["updates"].items()
    ]
    solvers = [
        [f"`{name}`", *(three_digits(row["microseconds"]) for row in by_size.values())]
        for name, by_size in figures["solvers"].items()
    ]
    found = [
        Table(
            f"Weights and state alone, K={NUM_LOSSES}, in a scan",
            ["method", "microseconds a step", "kernels"],
            updates,
        ),
        Table(
            "From K gradients of 64 entries to weights, microseconds a step in a scan",
            ["method", *(f"K={k}" for k in SIZES)],
            solvers,
        ),
    ]
    return found + ([bandwidth_table(figures["bandwidth"])] if "bandwidth" in figures else [])


def draw(figure: matplotlib.figure.SubFigure, figures: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    updates = figures["updates"]
    values = [row["microseconds"] for row in updates.values()]
    colours = ["C1" if name == SOFTADAPT else "C0" for name in updates]
    left.barh(range(len(values)), values, color=colours)
    for height, (value, row) in enumerate(zip(values, updates.values(), strict=True)):
        left.text(value, height, f" {value:.2f} ({row['kernels']} kernels)", va="center")
    left.set_yticks(range(len(values)), updates)
    left.invert_yaxis()
    left.set(title=f"Weights and state alone, K={NUM_LOSSES}", xlabel="microseconds a step")
    left.set_xlim(0, 1.5 * max(values))
    for index, (name, by_size) in enumerate(figures["solvers"].items()):
        points = [row["microseconds"] for row in by_size.values()]
        style = f"{'os^Dv'[index % 5]}{'-' if index < 5 else '--'}"
        colour = f"C{index}" if index < 10 else "black"
        right.plot([int(k) for k in by_size], points, style, color=colour, ms=4, label=name)
    right.set(xscale="log", yscale="log", xlabel="losses K", ylabel="microseconds a step")
    right.set_title("From K small gradients to weights")
    right.set_xticks(SIZES, [str(k) for k in SIZES])
    for axis in (right.xaxis, right.yaxis):
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    right.yaxis.set_major_formatter("{x:g}")
    right.grid(color="0.92")
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


ABOUT = """\
Without a model: the update of weights and state for losses that come from an array, and the way
from K small gradients to weights (with state, checks and Gramian), both inside a `scan`. SoftAdapt
by hand has a history and a count as state and checks nothing. Kernels are counted in the compiled
program of the whole scan."""

PART = Part("alone", "The weights alone", ABOUT, measure, tables, draw, lambda _: 3.6)
