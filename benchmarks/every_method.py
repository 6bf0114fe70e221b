"""What does a training step cost with each method of the library, two models, four losses?

All of them take turns with the plain step in one process. The methods that look at gradients are
set against `mgda` too: the K gradients cost what they cost, and a method's own part should not be
seen beside them.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import matplotlib.lines

from benchmarks import methods
from benchmarks.common import (
    Part,
    Report,
    Table,
    compiled,
    freed,
    overhead_cell,
    plain_step,
    ratio_cell,
    ratio_to,
    show_ratios,
    take_turns,
    weighted_step,
)
from benchmarks.models import MODELS

SECONDS = 10.0  # for the turns of one model
NUM_LOSSES = 4
KINDS = ("tiny", "mlp")
# `ntk_weights` looks at losses alone but for the traces, which are the user's own and rarely made.
NAMES = [name for name in methods.ALL if name != "ntk_weights"]


def measure_model(kind: str, seconds: float) -> dict[str, dict[str, Any]]:
    model = MODELS[kind](NUM_LOSSES)
    steps = {"plain": plain_step(model), "plain again": plain_step(model)}
    for name in NAMES:
        steps[name] = weighted_step(
            model, methods.make(name, NUM_LOSSES, shared=model.shared, temperature=1.0)
        )
    times = take_turns(compiled(model, steps), seconds)
    rows = {name: ratio_to(times[name], times["plain"]) for name in steps if name != "plain"}
    for name in rows.keys() & set(methods.ON_GRADIENTS):
        rows[name]["over_mgda"] = ratio_to(times[name], times["mgda"])["time_ratio"]
    return rows


def measure(effort: float, report: Report) -> dict[str, Any]:
    found = {}
    for kind in KINDS:
        report(f"every method, {kind}")
        with freed():
            model = MODELS[kind](NUM_LOSSES).name
            found[model] = measure_model(kind, effort * SECONDS)
    return found


def tables(figures: Mapping[str, Any]) -> list[Table]:
    columns = ["method"]
    for model in figures:
        columns += [f"{model}: time", "microseconds above plain", "over `mgda`"]
    cells = []
    for name in next(iter(figures.values())):
        cell = [name if " " in name else f"`{name}`"]
        for rows in figures.values():
            row = rows[name]
            over = f"{row['over_mgda']:.2f}" if "over_mgda" in row else ""
            cell += [ratio_cell(row), overhead_cell(row), over]
        cells.append(cell)
    return [Table(f"A step of every method over the plain step, K={NUM_LOSSES}", columns, cells)]


COLOURS = {"plain again (noise)": "0.5", "looks at losses alone": "C0", "looks at gradients": "C3"}


def colour_of(name: str) -> str:
    return "0.5" if " " in name else "C0" if name in methods.ON_LOSSES else "C3"


def draw(figure: matplotlib.figure.SubFigure, figures: Mapping[str, Any]) -> None:
    axes = figure.subplots(1, len(figures), sharey=True, squeeze=False)
    for ax, (model, rows) in zip(axes[0], figures.items(), strict=True):
        for height, (name, row) in enumerate(rows.items()):
            low, high = row["time_ratio_quartiles"]
            ax.plot([low, high], [height, height], color=colour_of(name), lw=2)
            ax.plot(row["time_ratio"], height, "o", color=colour_of(name))
        ax.set(title=model, xlabel=f"step / plain step, K={NUM_LOSSES}")
        show_ratios(ax, list(rows))
    handles = [
        matplotlib.lines.Line2D([], [], marker="o", lw=2, color=colour, label=label)
        for label, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


ABOUT = """\
All methods with their defaults, in the smallest of the models above and in the dense one. Those
that look at gradients stand against `mgda` too, whose time is that of the K gradients, their
products and the sum. In the tiny network two cores share that work or not, by chance, which makes a
difference of a third."""

PART = Part(
    "methods",
    "A step of every method",
    ABOUT,
    measure,
    tables,
    draw,
    lambda figures: 1.6 + 0.24 * len(next(iter(figures.values()))),
)
