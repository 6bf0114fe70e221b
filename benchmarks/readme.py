"""Writes what the README has from the JSON of the benchmarks, a table and some sentences.

    python -m benchmarks.readme

Each stands between two comments, `<!-- cost -->` and `<!-- end -->`, say. A test compares
them with the JSON.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import cost, evidence, study
from benchmarks.common import ONE_PASS, SOFTADAPT, VMAP, Table, markdown, measured_on, overhead_cell
from benchmarks.models import MODELS, OTHERWISE

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
NUM_LOSSES = 4


def steps_of(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Mapping[str, Any]]:
    found = cost.by_number_of_losses(rows, kind)
    return {step: of[NUM_LOSSES] for step, of in found.items()}


def cost_of_a_step(reports: Mapping[str, Any]) -> Table:
    rows = reports["cost"]["figures"]
    cells = []
    for kind in dict.fromkeys(row["kind"] for row in rows if "core" not in row["kind"]):
        steps = steps_of(rows, kind)
        ratios = {name: step["time_ratio"] for name, step in steps.items()}
        others = [ratios[name] for name in cost.LOSSES_ALONE if name != "softadapt"]
        cells.append(
            [
                cost.name_of_kind(rows, kind),
                f"{ratios['plain again']:.2f}",
                f"{ratios['softadapt']:.2f}, {overhead_cell(steps['softadapt'])} us",
                f"{min(others):.2f} to {max(others):.2f}",
                f"{ratios[ONE_PASS]:.2f}",
                f"{ratios['mgda']:.2f}",
                f"{ratios['mgda, every=100']:.2f}",
                f"{ratios[VMAP]:.2f}",
                f"{ratios['hypergradient, every=10']:.2f}",
            ]
        )
    columns = ["model", "the sum again (noise)", "`softadapt`", "the six others on losses"]
    columns += ["by hand: one pass", "`mgda`", "`mgda`, `every=100`", "by hand: `vmap`"]
    columns += ["`hypergradient`, `every=10`"]
    return Table("Time of a step over that on the summed loss", columns, cells)


def gpu_sentence(reports: Mapping[str, Any]) -> str:
    """What was timed on a GPU, of the small models in which all of it was."""
    rows, page = reports["cost"]["figures"], "docs/benchmarks.md#on-a-gpu"
    of_old = "version 0.1: softadapt"
    names = [name for name in ("softadapt", of_old, SOFTADAPT) if name in {r["step"] for r in rows}]
    overheads: dict[bool, dict[str, list[float]]] = {True: {}, False: {}}
    for kind, make in (MODELS | OTHERWISE).items():
        steps = steps_of(rows, kind)
        for name in names if steps.keys() >= set(names) else ():
            is_called = make(NUM_LOSSES).scan_steps == 1
            overhead = steps[name]["overhead_microseconds"]
            overheads[is_called].setdefault(name, []).append(overhead)

    def sentence(name: str) -> str:
        scanned, called = (
            " to ".join(
                dict.fromkeys(f"{end(overheads[is_called][name]):.0f}" for end in (min, max))
            )
            for is_called in (False, True)
        )
        return f"{scanned} microseconds a step in a scan and {called} a call"

    earlier = f"version 0.1: {sentence(of_old)}; " if of_old in names else ""
    return (
        f"On an H100 the step of a small model takes with `softadapt` [{sentence('softadapt')}]"
        f"({page}) longer than plain ({earlier}SoftAdapt by hand: {sentence(SOFTADAPT)}, with its "
        "losses in one array, which saves some 9 a call), and steps of 2 milliseconds and more "
        "1.02 to 1.03 times as long as plain."
    )


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


def losses_alone_sentence(reports: Mapping[str, Any]) -> str:
    """The flops of all, and the time where two cores make a difference: many losses."""
    rows = reports["cost"]["figures"]
    flops = [row["flop_ratio"] for row in rows if row["step"] in cost.LOSSES_ALONE]
    most = max(row["num_losses"] for row in rows)

    def times(kind: str, names: Sequence[str]) -> str:
        found = cost.by_number_of_losses(rows, kind)
        ratios = [found[name][most]["time_ratio"] for name in names]
        low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
        return low if low == high else f"{low} to {high}"

    two, one = "own_batches", "own_batches on one core"
    return (
        f"With 2 to {most} losses all of these methods take {min(flops):.3f} to {max(flops):.3f} "
        f"times the flops of plain. With a batch for each of {most} losses they take "
        f"{times(two, cost.LOSSES_ALONE)} times as long on two cores, where the pass by hand takes "
        f"{times(two, [ONE_PASS])} (all forward passes have to end before the weights are "
        f"known), and {times(one, cost.LOSSES_ALONE)} times on one core (by hand "
        f"{times(one, [ONE_PASS])})."
    )


def evidence_list(reports: Mapping[str, Any]) -> str:
    """For each suite whether anything beats the weights that were searched for."""
    found = evidence.corrected(study.told(evidence.STUDY, reports))
    return "\n".join(evidence.headline(found))


def blocks() -> dict[str, str]:
    """By name, what stands between the comments."""
    results = ROOT / "benchmarks" / "results"
    speed, on_gpu = (
        json.loads((results / name).read_text()) for name in ("benchmarks.json", "gpu.json")
    )
    found = study.read(evidence.STUDY.json_file)
    return {
        "machine": measured_on(speed["cost"]["machine"]) + ".",
        "cost": markdown(cost_of_a_step(speed)),
        "on a GPU": gpu_sentence(on_gpu),
        "losses alone": losses_alone_sentence(speed),
        "against TorchJD": torchjd_sentence(speed),
        "evidence": evidence_list(found),
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
