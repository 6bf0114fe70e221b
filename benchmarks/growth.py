"""How do time, memory and compilation grow with losses, parameters and history?

Steps of `benchmarks/cost.py`, of networks that are made larger along one axis at a time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import matplotlib.figure
import matplotlib.ticker

import softadapt_optax as sa
from benchmarks import models
from benchmarks.common import (
    SOFTADAPT,
    VMAP,
    Part,
    Program,
    Report,
    Table,
    freed,
    name_of,
    overhead_cell,
    plain_step,
    ratio_and_overhead,
    ratio_to,
    steps_by_hand,
    take_turns,
    weighted_step,
)
from benchmarks.models import Model

SECONDS = 1.0  # of turns, for each model
NUMBERS_OF_LOSSES = {
    "one output": (2, 4, 8, 16, 64),
    "trunk and heads": (2, 8, 64),
    "a batch per loss": (2, 8, 64),
}
NUMBERS_OF_PARAMETERS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
HISTORIES = (2, 5, 20, 100, 1000)
LAYERS, BATCH = 12, 32  # of the network that gets more parameters
BY_HAND = (SOFTADAPT, VMAP)


# Measurements.


MAKE: dict[str, Callable[[int], Model]] = {
    "one output": lambda k: models.mlp(k, width=128, batch=128),
    "trunk and heads": lambda k: models.heads(k, width=128, batch=128),
    "a batch per loss": lambda k: models.own_batches(k, scan_steps=20),
}


def rows_of(model: Model, steps: Mapping[str, Any], seconds: float) -> list[dict[str, Any]]:
    """Compiled one after the other, since that is timed, and then in turns."""
    programs = {name: Program(model, *step) for name, step in steps.items()}
    for program in programs.values():
        program.compile()
    # With a call that is not counted: the program before may have left little in the caches.
    times = take_turns(programs, seconds, at_least=5, pause=1e-3)
    return [
        {
            "step": name,
            **ratio_to(times[name], times["plain"]),
            "flop_ratio": program.flops / programs["plain"].flops,
            "temp_bytes": program.temp_bytes,
            "temp_ratio": program.temp_bytes / programs["plain"].temp_bytes,
            "compile_seconds": program.lower_seconds + program.compile_seconds,
        }
        for name, program in programs.items()
    ]


def measure_losses(effort: float, report: Report) -> list[dict[str, Any]]:
    rows = []
    for name, numbers in NUMBERS_OF_LOSSES.items():
        for num_losses in numbers:
            report(f"{num_losses} losses, {name}")
            model = MAKE[name](num_losses)
            steps = {
                "plain": plain_step(model),
                "softadapt": weighted_step(model, sa.softadapt(num_losses)),
                "mgda": weighted_step(model, sa.mgda(num_losses, shared=model.shared)),
                **steps_by_hand(model, *BY_HAND),
            }
            with freed():
                found = rows_of(model, steps, effort * SECONDS)
            rows += [{"model": name, "num_losses": num_losses, **row} for row in found]
    return rows


def deep_model(num_parameters: int, num_losses: int = 4) -> Model:
    """Twelve dense layers and one output for each loss, so that the losses themselves are small."""
    width = round((num_parameters / LAYERS) ** 0.5)
    model = models.mlp(num_losses, width, LAYERS, BATCH)

    def losses_fn(params: Any, x: jax.Array) -> list[jax.Array]:
        output = models.forward(params, x)
        return [((output[:, k] - 1.0) ** 2).mean() for k in range(num_losses)]

    return model._replace(losses_fn=losses_fn)


def free_bytes() -> float:
    """Of the device's memory, as far as that is known."""
    if stats := jax.devices()[0].memory_stats():  # a CPU has none
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def measure_parameters(effort: float, report: Report) -> list[dict[str, Any]]:
    rows = []
    for number in NUMBERS_OF_PARAMETERS:
        report(f"{number:,} parameters")
        # Six programs that keep parameters and Adam's state, and the largest one's gradients.
        if 45 * 4 * number > free_bytes():
            continue
        model = deep_model(number)
        steps = {
            "plain": plain_step(model),
            "softadapt": weighted_step(model, sa.softadapt(4)),
            "mgda": weighted_step(model, sa.mgda(4)),
            "mgda, lean": weighted_step(model, sa.mgda(4, lean=True)),
            **steps_by_hand(model, *BY_HAND),
        }
        with freed():
            found = rows_of(model, steps, effort * SECONDS)
        rows += [{"parameters": number, **row} for row in found]
    return rows


def measure_history(effort: float, report: Report) -> list[dict[str, Any]]:
    """In the tiny network under `scan`, where the weights are the largest part of a step."""
    report("History")
    model = models.tiny(4)
    steps = {"plain": plain_step(model)}
    for history in HISTORIES:
        steps[f"history {history}"] = weighted_step(model, sa.softadapt(4, history=history))
    with freed():
        found = rows_of(model, steps, 2 * effort * SECONDS)
    return [{"history": h, **row} for h, row in zip((0, *HISTORIES), found, strict=True)]


def measure(effort: float, report: Report) -> dict[str, Any]:
    return {
        "losses": measure_losses(effort, report),
        "parameters": measure_parameters(effort, report),
        "history": measure_history(effort, report),
    }


# What is shown.


def memory(number: float) -> str:
    return f"{number / 2**20:.3g} MiB" if number >= 2**20 else f"{number / 2**10:.3g} KiB"


def losses_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    steps = ("softadapt", SOFTADAPT, "mgda", VMAP)
    columns = ["model", "K", *map(name_of, steps), "flops of `mgda`"]
    columns += [f"compile {name_of(step)}" for step in steps]
    cells = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        for k in dict.fromkeys(row["num_losses"] for row in of_model):
            of = {row["step"]: row for row in of_model if row["num_losses"] == k}
            cells.append(
                [
                    model,
                    str(k),
                    *(ratio_and_overhead(of[step]) for step in steps),
                    f"{of['mgda']['flop_ratio']:.2f}",
                    *(f"{of[step]['compile_seconds']:.1f} s" for step in steps),
                ]
            )
    note = (
        "Time per step over plain (microseconds above it), and seconds to trace and compile. "
        "Products of gradients are written out up to 16 losses, beyond which the library "
        "multiplies stacks of gradients."
    )
    return Table("Number of losses", columns, cells, note)


def parameters_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    steps = {"softadapt": "`softadapt`", SOFTADAPT: SOFTADAPT}
    steps |= {"mgda": "`mgda`", "mgda, lean": "`mgda(lean=True)`", VMAP: VMAP}
    cells = []
    for number in dict.fromkeys(row["parameters"] for row in rows):
        of = {row["step"]: row for row in rows if row["parameters"] == number}
        times = [ratio_and_overhead(of[step]) for step in steps]
        temps = [f"{of[step]['temp_ratio']:.2f}" for step in steps]
        plain = [f"{of['plain']['microseconds'] / 1000:.3g} ms", memory(of["plain"]["temp_bytes"])]
        cells.append([f"{number:,}", *times, *temps, *plain])
    columns = ["parameters", *steps.values(), *(f"memory {name}" for name in steps.values())]
    note = (
        f"{LAYERS} dense layers, batch {BATCH}, K=4: time per step over plain (microseconds above "
        "it), and temporary memory over plain."
    )
    return Table("Number of parameters", [*columns, "plain", "memory plain"], cells, note)


def history_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["history", "time ratio", "microseconds above plain", "microseconds a step"]
    cells = [
        [
            str(row["history"]),
            f"{row['time_ratio']:.2f}",
            overhead_cell(row),
            f"{row['microseconds']:.1f}",
        ]
        for row in rows[1:]
    ]
    note = "`softadapt` in the tiny network, shared batch, scan, K=4."
    return Table("History", columns, cells, note)


def tables(figures: Mapping[str, Any]) -> list[Table]:
    return [
        losses_table(figures["losses"]),
        parameters_table(figures["parameters"]),
        history_table(figures["history"]),
    ]


STYLES = {
    "plain": ("0.5", "--"),
    "softadapt": ("C0", "o-"),
    "mgda": ("C3", "s-"),
    "mgda, lean": ("C4", "D-"),
    SOFTADAPT: ("C2", "v-"),
    VMAP: ("C1", "^-"),
}


def draw_lines(
    axes: Any, rows: Sequence[Mapping[str, Any]], x: str, y: str, steps: Sequence[str]
) -> None:
    for step in steps:
        chosen = [row for row in rows if row["step"] == step]
        colour, style = STYLES[step]
        axes.plot([r[x] for r in chosen], [r[y] for r in chosen], style, color=colour, label=step)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.grid(color="0.92")


def draw(figure: matplotlib.figure.SubFigure, figures: Mapping[str, Any]) -> None:
    top, bottom = figure.subplots(2, 4)
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for row in figures["losses"]:
        by_model.setdefault(row["model"], []).append(row)
    steps = ("softadapt", SOFTADAPT, "mgda", VMAP)
    for ax, (name, rows) in zip(top, by_model.items(), strict=False):
        draw_lines(ax, rows, "num_losses", "time_ratio", steps)
        ax.set(title=name.capitalize(), xlabel="losses K", ylabel="time / plain")
    draw_lines(top[3], by_model["one output"], "num_losses", "compile_seconds", ("plain", *steps))
    top[3].set(title="Compilation, one output", xlabel="losses K", ylabel="seconds")
    rows = figures["parameters"]
    steps = ("softadapt", SOFTADAPT, "mgda", "mgda, lean", VMAP)
    draw_lines(bottom[0], rows, "parameters", "time_ratio", steps)
    bottom[0].set(title="12 layers, K=4", xlabel="parameters", ylabel="time / plain")
    draw_lines(bottom[1], rows, "parameters", "temp_ratio", steps)
    bottom[1].set(title="12 layers, K=4", xlabel="parameters", ylabel="memory / plain")
    history = figures["history"][1:]
    bottom[2].plot(
        [row["history"] for row in history], [row["time_ratio"] for row in history], "o-"
    )
    bottom[2].set(title="softadapt, tiny network", xlabel="history", ylabel="time / plain")
    bottom[2].set(xscale="log", ylim=(0, 1.2 * max(row["time_ratio"] for row in history)))
    bottom[2].grid(color="0.92")
    for ax in (*top, *bottom[:2]):
        ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
    for ax in top:
        ax.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    bottom[3].axis("off")
    handles, labels = bottom[0].get_legend_handles_labels()
    plain = top[3].get_lines()[0]
    bottom[3].legend([*handles, plain], [*labels, "plain"], loc="center")


ABOUT = """\
One model made larger along one axis: the number of losses (networks with one output, with heads,
and with a batch for each loss), the number of parameters, and the history of SoftAdapt.
`mgda(lean=True)` takes one backward pass more instead of keeping the K gradients. By hand:
SoftAdapt with a history and a count as state; and `vmap` of the pullback with a Gramian."""

PART = Part("growth", "Growth", ABOUT, measure, tables, draw, lambda _: 7.0)
