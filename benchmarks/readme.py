"""Writes what the README has from the JSON of the benchmarks: table, sentences and picture.

    python -m benchmarks.readme

Each stands between two comments, `<!-- cost -->` and `<!-- end -->`, say. A test compares
them with the JSON.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.pyplot as plt
import matplotlib.ticker

from benchmarks import cost, evidence, study, targets
from benchmarks.common import VMAP, Table, markdown, measured_on, overhead_cell
from benchmarks.target_rows import GRID, PLAIN, RANDOM, drawn_runs

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "runs.png"
NUM_LOSSES = 4


def steps_of(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Mapping[str, Any]]:
    found = cost.by_number_of_losses(rows, kind)
    return {step: of[NUM_LOSSES] for step, of in found.items()}


def cost_of_a_step(reports: Mapping[str, Any], on_gpu: Mapping[str, Any]) -> Table:
    """Of the small models; on a GPU of those that were measured there in the same form."""
    rows, gpu_rows = (each["cost"]["figures"] for each in (reports, on_gpu))
    cells = []
    for kind in dict.fromkeys(row["kind"] for row in rows if "core" not in row["kind"]):
        steps, gpu_steps = steps_of(rows, kind), steps_of(gpu_rows, kind)
        ratios = {name: step["time_ratio"] for name, step in steps.items()}
        others = [ratios[name] for name in cost.LOSSES_ALONE if name != "softadapt"]
        cells.append(
            [
                cost.name_of_kind(rows, kind),
                ratio_and_microseconds(steps["softadapt"]),
                f"{min(others):.2f} to {max(others):.2f}",
                f"{ratios['hypergradient, every=10']:.2f}",
                f"{ratios['mgda']:.2f}",
                f"{ratios['mgda, every=100']:.2f}",
                f"{ratios[VMAP]:.2f}",
                *(
                    ratio_and_microseconds(gpu_steps[name]) if gpu_steps else "-"
                    for name in ("softadapt", "mgda")
                ),
            ]
        )
    columns = ["model", "`softadapt`, CPU", "six others on losses, CPU"]
    columns += ["`hypergradient`, `every=10`, CPU", "`mgda`, CPU", "`mgda`, `every=100`, CPU"]
    columns += ["`vmap` and Gramian by hand, CPU", "`softadapt`, H100", "`mgda`, H100"]
    return Table("Time of a step over that on the summed loss", columns, cells)


def ratio_and_microseconds(step: Mapping[str, Any]) -> str:
    return f"{step['time_ratio']:.2f}, {overhead_cell(step)} us"


def torchjd_sentence(reports: Mapping[str, Any]) -> str:
    rows = [row for row in reports["peers"]["figures"]["methods"] if row["method"] != "UPGrad"]

    def ratios(row: Mapping[str, Any]) -> str:
        ours, theirs = (row[side]["time_ratio"] for side in ("ours", "theirs"))
        return f"{row['method']} {ours:.2f} against {theirs:.2f}"

    higher: dict[str, list[str]] = {}
    for row in rows:
        if row["ours"]["time_ratio"] >= row["theirs"]["time_ratio"]:
            higher.setdefault(row["case"], []).append(ratios(row))
    exceptions = "; ".join(f"{case} ({', '.join(found)})" for case, found in higher.items())
    heads = next(row for row in rows if row["kind"] == "heads")
    text = (
        "Against [TorchJD](https://torchjd.org), the PyTorch library of the same methods, in its "
        "fastest setting, each over the plain step of its own framework: our ratio is lower for "
        f"{len(rows) - sum(map(len, higher.values()))} of {len(rows)} pairs of model and method, "
        f"as for the trunk with heads ({ratios(heads)})"
    )
    return text + (f", and higher for {exceptions}." if exceptions else ".")


# The picture: what it costs to be how good.

FOLLOWING = "hypergradient"
SHOWN = {
    PLAIN: ("plain sum", "D", "black"),
    RANDOM: (f"random search, {drawn_runs()} runs", "^", "0.45"),
    GRID: ("grid search", "s", "#D55E00"),
    FOLLOWING: ("hypergradient, every=10, told the main loss where there is one", "o", "#0072B2"),
}


def advised(problem: str) -> str:
    """The row of `hypergradient` that is advised: where no loss is the main one it is not told."""
    has_main = problem != "Wrong labels"
    return f"hypergradient{', main loss first' if has_main else ''}, every=10"


def draw(reports: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """For each problem the test loss of a few rows, over what they cost in runs."""
    figure, axes = plt.subplots(1, len(reports), figsize=(11, 3.4), layout="constrained")
    for ax, (problem, report) in zip(axes, reports.items(), strict=True):
        for name, (label, marker, colour) in SHOWN.items():
            row = report["rows"][advised(problem) if name == FOLLOWING else name]
            runs = max(row["flops"], row["evaluations"])
            ax.plot([runs, runs], row["interval"], color=colour, lw=2)
            ax.plot(runs, row["mean"], marker, color=colour, ms=9, label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(0.7, 130)
        ax.set_title(problem)
        ax.xaxis.set_major_locator(matplotlib.ticker.FixedLocator([1, 2, 10, 36, 64]))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
    figure.supxlabel("cost, in plain training runs")
    axes[0].set_ylabel("test cross entropy")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(SHOWN), frameon=False)
    return figure


def blocks() -> dict[str, str]:
    """By name, what stands between the comments."""
    speed, on_gpu = (
        json.loads((study.RESULTS / name).read_text()) for name in ("benchmarks.json", "gpu.json")
    )
    found = evidence.reports_to_tell()
    machines = [measured_on(each["cost"]["machine"]) for each in (speed, on_gpu)]
    return {
        "machine": f"CPU: {machines[0]}. GPU: {machines[1]}.",
        "cost": markdown(cost_of_a_step(speed, on_gpu)),
        "against TorchJD": torchjd_sentence(speed),
        "evidence": "\n".join(evidence.headline(found)),
        "defaults": evidence.advice(found),
    }


def filled(text: str) -> str:
    for name, block in blocks().items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(
            pattern, lambda match, b=block: match[1] + b + match[2], text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"README.md should have `<!-- {name} -->` once, got {count}.")
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
    draw(study.read(targets.STUDY.json_file)).savefig(PICTURE, dpi=110)
