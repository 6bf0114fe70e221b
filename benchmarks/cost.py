"""What does a training step with balanced losses cost, next to the same step on their sum?

Every model is compiled twice on the summed loss ("plain", and "plain again", which shows the noise
of this machine), once with each weighting, and once for each of four ways to do it by hand. The
programs take turns in one process; a ratio is the median, over the turns, of a program's time to
that of plain in the same turn, an overhead that of the difference. Flops, kernels and temporary
memory are the compiler's own counts for a single step and do not depend on the machine's load. All
programs include the Adam update and donate their parameters and state.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.figure
import matplotlib.lines
import optax

import softadapt_optax as sa
from benchmarks.common import (
    BY_HAND,
    Part,
    Report,
    Table,
    compiled,
    flop_bound,
    freed,
    name_of,
    overhead_cell,
    plain_step,
    ratio_cell,
    ratio_to,
    show_ratios,
    steps_by_hand,
    take_turns,
    weighted_step,
)
from benchmarks.models import MODELS, SIZES, Model

NUMBERS_OF_LOSSES = (4,)  # `python -m benchmarks --losses 2 4 8` measures more
ON_ONE_CORE = ("tiny", "own_batches")  # bound by overhead: there two cores share it by chance
SECONDS = 5.0  # for the turns of one model with one number of losses
# All losses see one output.
SHARED_OUTPUT = ("mlp", "mlp scan", "convolutions", "transformer", "tiny", "tiny called")
COLUMNS = 3  # of the picture
LOSSES_ALONE = (
    "fixed_weights",
    "prior_loss",
    "initial_loss",
    "realtime_loss",
    "softadapt",
    "uncertainty",
    "learned_weights",
)  # look at losses alone
GRADIENT_METHODS = ("gradnorm", "normalized_gradients", "pcgrad", "mgda")


# Measurements.


def weightings(model: Model) -> dict[str, optax.GradientTransformationExtraArgs]:
    k, shared = model.num_losses, model.shared
    return {
        "fixed_weights": sa.fixed_weights([1.0] * k),
        "prior_loss": sa.prior_loss([1.0] * k),
        "initial_loss": sa.initial_loss(k),
        "realtime_loss": sa.realtime_loss(k),
        "softadapt": sa.softadapt(k),
        "uncertainty": sa.uncertainty(k),
        "learned_weights": sa.learned_weights(k, temperature=1.0),
        "gradnorm": sa.gradnorm(k, shared=shared),
        "normalized_gradients": sa.normalized_gradients(k, shared=shared),
        "pcgrad": sa.pcgrad(k, shared=shared),
        "mgda": sa.mgda(k, shared=shared),
        "mgda, every=100": sa.mgda(k, shared=shared, every=100),
        "hypergradient": sa.hypergradient(k),
        "hypergradient, every=10": sa.hypergradient(k, every=10),
    }


def measure_model(model: Model, seconds: float) -> list[dict[str, Any]]:
    steps = {"plain": plain_step(model), "plain again": plain_step(model)}
    for name, weighting in weightings(model).items():
        steps[name] = weighted_step(model, weighting)
    programs = compiled(model, steps | steps_by_hand(model, *BY_HAND))
    times = take_turns(programs, seconds)
    plain = programs["plain"]
    return [
        {
            "model": model.name,
            "num_losses": model.num_losses,
            "step": name,
            **ratio_to(times[name], times["plain"]),
            "flop_ratio": program.flops / plain.flops,
            "temp_ratio": program.temp_bytes / plain.temp_bytes,
            "temp_bytes": program.temp_bytes,
            "kernels": program.kernels,
        }
        for name, program in programs.items()
    ]


def measure_on_one_core(kind: str, num_losses: int, seconds: float) -> list[dict[str, Any]]:
    """In a process of its own: how many threads JAX uses is settled when it starts."""
    command = [sys.executable, "-m", "benchmarks.cost", kind, str(num_losses), str(seconds)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout)


def measure(
    effort: float,
    report: Report,
    numbers_of_losses: Sequence[int] = NUMBERS_OF_LOSSES,
    sizes: Sequence[str] = ("small",),
) -> list[dict[str, Any]]:
    rows = []
    makers = {kind: make for size in sizes for kind, make in SIZES[size].items()}
    for (kind, make), num_losses in itertools.product(makers.items(), numbers_of_losses):
        report(f"{kind}, K={num_losses}")
        with freed():
            found = measure_model(make(num_losses), effort * SECONDS)
        rows += [{"kind": kind, **row} for row in found]
    if "small" in sizes and has_cores_to_spare():
        for kind, num_losses in itertools.product(ON_ONE_CORE, numbers_of_losses):
            report(f"{kind}, K={num_losses}, on one core")
            found = measure_on_one_core(kind, num_losses, effort * SECONDS)
            rows += [{"kind": f"{kind} on one core", **row} for row in found]
    return rows


def has_cores_to_spare() -> bool:
    """On a GPU a core does not matter, and its memory is not shared with another process."""
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1


# What is shown.


def by_number_of_losses(
    rows: Sequence[Mapping[str, Any]], kind: str
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The rows of a model, by step and number of losses."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == kind:
            found.setdefault(row["step"], {})[row["num_losses"]] = row
    return found


def name_of_kind(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    name = next(row["model"] for row in rows if row["kind"] == kind)
    return f"{name}, one core" if kind.endswith("on one core") else name


def table_of(rows: Sequence[Mapping[str, Any]], kind: str) -> Table:
    steps = by_number_of_losses(rows, kind)
    numbers = list(steps["plain"])
    columns = ["step", *(f"time, K={k}" for k in numbers)]
    counted = ("microseconds above plain", "flops", "memory")
    columns += [f"{what}, K={', '.join(map(str, numbers))}" for what in counted]
    columns += ["kernels"]
    cells = []
    for step, of in steps.items():
        if step == "plain":
            continue
        cells.append(
            [
                name_of(step),
                *(ratio_cell(of[k]) for k in numbers),
                " / ".join(overhead_cell(of[k]) for k in numbers),
                " / ".join(f"{of[k]['flop_ratio']:.2f}" for k in numbers),
                " / ".join(f"{of[k]['temp_ratio']:.2f}" for k in numbers),
                " / ".join(str(of[k]["kernels"]) for k in numbers),
            ]
        )
    plain = steps["plain"]
    times = " / ".join(f"{plain[k]['microseconds']:.4g}" for k in numbers)
    kernels = " / ".join(str(plain[k]["kernels"]) for k in numbers)
    note = f"Plain step: {times} microseconds, {kernels} kernels."
    if kind.removeprefix("large ") in SHARED_OUTPUT:
        bounds = " / ".join(f"{flop_bound(k):.2f}" for k in numbers)
        note += f" K backward passes: (1 + 2 K) / 3 = {bounds}."
    return Table(name_of_kind(rows, kind), columns, cells, note)


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    return [table_of(rows, kind) for kind in dict.fromkeys(row["kind"] for row in rows)]


def colour_of(step: str) -> str:
    if step.removeprefix("version 0.1: ").split(",")[0] in LOSSES_ALONE:
        return "C0"
    return "C1" if step in BY_HAND else "0.5" if step == "plain again" else "C3"


def draw_model(axes: Any, rows: Sequence[Mapping[str, Any]], kind: str, num_losses: int) -> None:
    steps = by_number_of_losses(rows, kind)
    names = [step for step in dict.fromkeys(row["step"] for row in rows) if step != "plain"]
    for height, step in enumerate(names):
        if step not in steps:
            continue
        row = steps[step][num_losses]
        low, high = row["time_ratio_quartiles"]
        axes.plot([low, high], [height, height], color=colour_of(step), lw=2)
        axes.plot(row["time_ratio"], height, "o", color=colour_of(step))
        axes.plot(row["flop_ratio"], height, "|", color="black", ms=10)
    axes.set(title=name_of_kind(rows, kind), xlabel=f"step / plain step, K={num_losses}")
    show_ratios(axes, names)


def kinds_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that are drawn: not the ones on one core."""
    kinds = [kind for makers in SIZES.values() for kind in makers]
    return [kind for kind in kinds if any(row["kind"] == kind for row in rows)]


def height(rows: Sequence[Mapping[str, Any]]) -> float:
    return 1.0 + 4.0 * math.ceil(len(kinds_of(rows)) / COLUMNS)


def draw(figure: matplotlib.figure.SubFigure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Four losses, if they were measured; the other numbers of them are in the tables."""
    kinds = kinds_of(rows)
    numbers = {row["num_losses"] for row in rows if row["kind"] in kinds}
    num_losses = 4 if 4 in numbers else min(numbers)
    axes = figure.subplots(math.ceil(len(kinds) / COLUMNS), COLUMNS, sharey=True, squeeze=False)
    for ax, kind in itertools.zip_longest(axes.flat, kinds):
        if kind is None:
            ax.axis("off")
        else:
            draw_model(ax, rows, kind, num_losses)
    legend = [("plain again (noise)", "0.5"), ("looks at losses alone", "C0")]
    legend += [("looks at gradients", "C3"), ("by hand", "C1")]
    handles = [
        matplotlib.lines.Line2D([], [], marker="o", lw=2, color=colour, label=label)
        for label, colour in legend
    ]
    flops = matplotlib.lines.Line2D(
        [], [], ls="", marker="|", color="black", ms=10, label="flops / plain"
    )
    figure.legend(handles=[*handles, flops], loc="outside lower center", ncols=5)


ABOUT = """\
A training step with Adam, over the same step on the summed loss ("plain"). Time is the median over
the turns, with its quartiles, of a program's time to that of plain in the same turn, and the
microseconds above plain that of their difference; "plain again" shows the noise of the machine.
Flops, temporary memory and kernels (fused loops, and what is called besides, such as matrix
products) are the compiler's counts for one step; with `every` they hold both branches. The target
of `hypergradient` is a loss of another batch of the same size. By hand: `jax.vjp` with weights as
its cotangent, from the losses ("one pass") or from their slopes ("SoftAdapt", with a history and a
count as state and nothing else); `jax.jacrev` and `tensordot` with the weights of one pass; or
`vmap` of the pullback, the Gramian by matrix products and `tensordot`."""

PART = Part("cost", "Cost of a step", ABOUT, measure, tables, draw, height)


def main() -> None:
    """The process of `measure_on_one_core`."""
    parser = argparse.ArgumentParser(description="One model, measured on one core.")
    parser.add_argument("kind", choices=MODELS)
    parser.add_argument("num_losses", type=int)
    parser.add_argument("seconds", type=float)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(measure_model(MODELS[args.kind](args.num_losses), args.seconds)))


if __name__ == "__main__":
    main()
