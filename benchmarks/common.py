"""What the benchmarks of speed share: training steps, programs that take turns, tables, JSON."""

import concurrent.futures
import contextlib
import datetime
import gc
import importlib.metadata
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker
import optax
import rich.box
import rich.console
import rich.table

import softadapt_optax as sa
from benchmarks.models import Model

ADAM = optax.adam(1e-3)
LINE = (-0.2, -0.1, 0.0, 0.1, 0.2)  # the slope of a line through five losses
BY_HAND = ("by hand: one pass", "by hand: SoftAdapt", "by hand: jacrev", "by hand: vmap, Gramian")
ONE_PASS, SOFTADAPT, JACREV, VMAP = BY_HAND

Step = Callable[[Any, Any], tuple[Any, Any]]  # of a carry and a batch, to a carry and losses
Weigh = Callable[[jax.Array, Any], tuple[jax.Array, Any]]  # of losses and a memory, to weights


class Table(NamedTuple):
    """For the screen and for Markdown; every cell is text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Part(NamedTuple):
    """One part of the benchmarks; `figures` are what goes into its JSON."""

    name: str
    title: str
    about: str  # in Markdown
    measure: Callable[..., Any]  # of a factor on the seconds of all turns and a Report
    tables: Callable[[Any], list[Table]]
    draw: Callable[[matplotlib.figure.SubFigure, Any], None]
    height: Callable[[Any], float]  # of the picture of the figures, in inches


Report = Callable[[str], None]  # says what is being measured


class Unavailable(RuntimeError):  # noqa: N818
    """A part cannot be measured on this machine."""


# Training steps.


def plain_step(model: Model) -> tuple[Step, Any]:
    """On the summed loss, with the losses as auxiliary output; and its first carry."""

    def step(carry: Any, batch: Any) -> tuple[Any, Any]:
        params, opt_state = carry

        def summed(params: Any) -> tuple[jax.Array, Any]:
            losses = model.losses_fn(params, batch)
            return sum(jax.tree.leaves(losses)), losses

        (_, losses), grads = jax.value_and_grad(summed, has_aux=True)(params)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), losses

    return step, (model.params, ADAM.init(model.params))


def weighted_step(model: Model, weighting: optax.GradientTransformation) -> tuple[Step, Any]:
    """With the library, as the README has it; and its first carry.

    Methods that follow a target are given the first loss of another batch of the same size.
    """
    tx = optax.chain(weighting, ADAM)

    def step(carry: Any, batch: Any) -> tuple[Any, Any]:
        params, opt_state = carry
        other = jax.tree.map(lambda leaf: leaf[::-1], batch)  # which XLA does not see through
        target = jax.grad(lambda params: jax.tree.leaves(model.losses_fn(params, other))[0])
        losses, grads = sa.value_and_component_grads(model.losses_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, target=target)
        return (optax.apply_updates(params, updates), opt_state), losses

    return step, (model.params, tx.init(model.params))


def softadapt_by_hand(num_losses: int, stencil: Sequence[float] = LINE) -> tuple[Weigh, Any]:
    """SoftAdapt as short as it can be written, and its first memory: a history and a count."""
    coefficients = jnp.asarray(stencil, jnp.float32)[:, None]

    def weigh(losses: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        history, count = memory
        history, count = jnp.concatenate([history[1:], losses[None]]), count + 1
        weights = jax.nn.softmax(0.1 * jnp.sum(coefficients * history, axis=0))
        return jnp.where(count >= len(stencil), weights, 1.0 / num_losses), (history, count)

    return weigh, (jnp.zeros((len(stencil), num_losses)), jnp.zeros((), jnp.int32))


def softmax_by_hand(losses: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
    return jax.nn.softmax(losses), memory


def weights_of_gramian(stacked: Any) -> jax.Array:
    """All of its entries enter, as in any rule, and nothing else is computed."""
    flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(stacked)]
    gramian = sum(jnp.matmul(leaf, leaf.T, preferred_element_type=jnp.float32) for leaf in flat)
    return 1.0 / jnp.sqrt(jnp.sum(jnp.abs(gramian), axis=0))


def combined(weights: jax.Array, stacked: Any) -> Any:
    return jax.tree.map(lambda g: jnp.tensordot(weights.astype(g.dtype), g, 1), stacked)


def step_by_hand(model: Model, kind: str, stencil: Sequence[float] = LINE) -> tuple[Step, Any]:
    """What one writes without the library, and its first carry.

    Weights from the losses ("one pass") or from their slopes ("SoftAdapt") are the cotangent of one
    backward pass; with "jacrev" those from the losses, and with "vmap, Gramian" those from the
    Gramian, are factors of K gradients. The work is that of any rule of its kind.
    """
    weigh, memory = softmax_by_hand, ()
    if kind == "SoftAdapt":
        weigh, memory = softadapt_by_hand(model.num_losses, stencil)

    def step(carry: Any, batch: Any) -> tuple[Any, Any]:
        params, opt_state, memory = carry

        def losses_fn(params: Any) -> tuple[jax.Array, Any]:
            losses = model.losses_fn(params, batch)
            return jnp.stack(jax.tree.leaves(losses)), losses

        if kind == "jacrev":
            stacked, losses = jax.jacrev(losses_fn, has_aux=True)(params)
            grads = combined(jax.nn.softmax(jnp.stack(jax.tree.leaves(losses))), stacked)
        else:
            values, pullback, losses = jax.vjp(losses_fn, params, has_aux=True)
            if kind == "vmap, Gramian":
                (stacked,) = jax.vmap(pullback)(jnp.eye(values.size))
                grads = combined(weights_of_gramian(stacked), stacked)
            else:
                weights, memory = weigh(values, memory)
                (grads,) = pullback(weights)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, memory), losses

    return step, (model.params, ADAM.init(model.params), memory)


def steps_by_hand(model: Model, *names: str) -> dict[str, tuple[Step, Any]]:
    """By their names in the tables."""
    return {name: step_by_hand(model, name.removeprefix("by hand: ")) for name in names}


# Programs.


class Program:
    """A step, or a scan of steps, that carries its own training state.

    Attributes:
      lower_seconds: the time of tracing and lowering.
      compile_seconds: the time from there to the executable program.
      flops, temp_bytes, kernels: the compiler's counts, for a single step. Kernels are the fused
        loops of the program and what it calls besides, such as matrix products.
    """

    def __init__(self, model: Model, step: Step, carry: Any):
        def run(carry: Any, batch: Any) -> tuple[Any, Any]:
            if model.scan_steps == 1:
                return step(carry, batch)
            return jax.lax.scan(lambda c, _: step(c, batch), carry, None, model.scan_steps)

        self._steps, self._batch = model.scan_steps, model.batch
        self._carry = jax.tree.map(jnp.copy, carry)
        start = time.perf_counter()
        self._lowered = jax.jit(run, donate_argnums=0).lower(self._carry, self._batch)
        self.lower_seconds = time.perf_counter() - start

    def compile(self) -> None:
        start = time.perf_counter()
        self._compiled = self._lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.flops = self._compiled.cost_analysis()["flops"]  # a loop's body counts once
        self.temp_bytes = self._compiled.memory_analysis().temp_size_in_bytes
        self.kernels = count_kernels(self._compiled.as_text())

    def __call__(self) -> float:
        """Seconds a step, of one call."""
        start = time.perf_counter()
        self._carry, losses = self._compiled(self._carry, self._batch)
        jax.block_until_ready((self._carry, losses))
        return (time.perf_counter() - start) / self._steps


def compiled(model: Model, steps: Mapping[str, tuple[Step, Any]]) -> dict[str, Program]:
    """The programs of steps and their first carries, compiled on all cores."""
    programs = {name: Program(model, *step) for name, step in steps.items()}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in pool.map(Program.compile, programs.values()):
            pass
    return programs


def count_kernels(hlo: str) -> int:
    """Kernels in the text of a compiled program, those inside of fusions not counted again."""
    bodies = re.split(r"\n\n", hlo)
    launched = re.compile(
        r"= (?:\(.*?\)|\S+) (?:fusion|dot|convolution|custom-call|reduce|sort|scatter)\("
    )
    return sum(
        len(launched.findall(body))
        for body in bodies
        if not body.lstrip().startswith(("%fused_", "fused_"))
    )


def take_turns(
    programs: Mapping[str, Callable[[], float]],
    seconds: float,
    at_least: int = 7,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Times of the programs, which run alternately until some seconds are over.

    A turn of a program is as many calls as 10 milliseconds have room for, and its time their mean.
    With a pause, in seconds, before each turn, a first call is not counted either: threads of
    another framework, which wait busily for more work, then have gone to sleep.
    """
    calls = {name: calls_of(program) for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    deadline, turn = time.perf_counter() + seconds, 0
    while turn < at_least or time.perf_counter() < deadline:
        for name in list(programs) if turn % 2 else list(reversed(programs)):
            if pause:
                time.sleep(pause)
                programs[name]()
            times[name].append(statistics.fmean(programs[name]() for _ in range(calls[name])))
        turn += 1
    return times


def calls_of(program: Callable[[], float]) -> int:
    """How many calls 10 milliseconds have room for; the first warms up."""
    start = time.perf_counter()
    program()
    if time.perf_counter() - start < 0.5:
        start = time.perf_counter()
        program()
    return max(1, round(0.01 / (time.perf_counter() - start)))


def ratio_to(times: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """Of times of the same turns: medians of ratio, of difference and of time; quartiles."""
    turns = list(zip(times, plain, strict=True))
    ratios = [t / p for t, p in turns]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "time_ratio": statistics.median(ratios),
        "time_ratio_quartiles": [low, high],
        "overhead_microseconds": statistics.median(t - p for t, p in turns) * 1e6,
        "microseconds": statistics.median(times) * 1e6,
        "turns": len(times),
    }


@contextlib.contextmanager
def freed() -> Iterator[None]:
    """Lets go of compiled programs and arrays at its end."""
    try:
        yield
    finally:
        jax.clear_caches()
        gc.collect()


# What is written.


def flop_bound(num_losses: int) -> float:
    """A forward pass is a third of plain training, each of the K backward passes two thirds."""
    return (1 + 2 * num_losses) / 3


def name_of(step: str) -> str:
    """As code, if it is a factory of the library."""
    return step if " " in step else f"`{step}`"


def ratio_cell(row: Mapping[str, Any]) -> str:
    low, high = row["time_ratio_quartiles"]
    return f"{row['time_ratio']:.2f} ({low:.2f} to {high:.2f})"


def overhead_cell(row: Mapping[str, Any]) -> str:
    """Microseconds above plain, with their sign."""
    value = row["overhead_microseconds"]
    digits = 0 if abs(value) >= 9.95 else 1
    return f"{round(value, digits) + 0.0:+,.{digits}f}"  # 0.0 turns -0 into 0


def ratio_and_overhead(row: Mapping[str, Any]) -> str:
    return f"{row['time_ratio']:.2f} ({overhead_cell(row)})"


def machine(*packages: str) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.machine(),
        "cores": cores,
        "device": device.device_kind if device.platform != "cpu" else "cpu",
        "python": platform.python_version(),
    } | {package: importlib.metadata.version(package) for package in ("jax", "optax", *packages)}


def measured_on(machine: Mapping[str, Any]) -> str:
    packages = [name for name in machine if name not in ("date", "processor", "cores", "device")]
    device = "" if machine["device"] == "cpu" else f", {machine['device']}"
    versions = ", ".join(f"{name} {machine[name]}" for name in packages)
    return (
        f"{machine['cores']} cores of {machine['processor']}{device}, {machine['date']}, {versions}"
    )


def show_ratios(axes: Any, names: Sequence[str]) -> None:
    """A logarithmic axis of ratios, and a line for each name from top to bottom."""
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def rich_table(table: Table) -> rich.table.Table:
    drawn = rich.table.Table(title=table.title, caption=table.note, box=rich.box.SIMPLE)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        drawn.add_row(*(cell.replace("`", "").replace("**", "") for cell in row))
    return drawn


def markdown(table: Table) -> str:
    alignment = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.columns, alignment, *table.rows)]
    return "\n\n".join(filter(None, [f"**{table.title}**", "\n".join(lines), table.note]))


def rounded(tree: Any, digits: int = 4) -> Any:
    """For JSON: numbers to some significant digits."""
    if isinstance(tree, dict):
        return {str(key): rounded(value, digits) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [rounded(value, digits) for value in tree]
    return float(f"{tree:.{digits}g}") if isinstance(tree, float) else tree
