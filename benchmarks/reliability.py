"""The figures of docs/reliability.md: kills, faults, random cases, long runs.

    python -m benchmarks.reliability [--only PART] [--out benchmarks/reliability.json]

It takes four minutes on two cores, and half an hour more for the random cases. What it finds goes
into a JSON file, from which `docs/reliability.md` is written (beside it if `--out` is given). With
`--only` the other parts stay as they are in that file.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import rich.progress

from benchmarks import faults, kill_and_resume, long_run

ROOT = pathlib.Path(__file__).parents[1]
JSON_FILE = ROOT / "benchmarks" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"

# What is measured.


def measure_kills() -> dict[str, Any]:
    return {"rows": kill_and_resume.compare_all(kills=20, seed=0)}


def measure_faults() -> dict[str, Any]:
    steps, seeds = 600, 5
    tracked = rich.progress.track(faults.METHODS, "Faults")
    rows = [row for method in tracked for row in faults.rows_of(method, steps, seeds)]
    return {"steps": steps, "seeds": seeds, "rows": rows}


def measure_long_run() -> dict[str, Any]:
    tracked = rich.progress.track(long_run.METHODS, "Long run")
    return {"rows": [long_run.row_of(method, 100_000, 10_000) for method in tracked]}


def measure_fuzz() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        counts = pathlib.Path(folder) / "counts.json"
        profile = {"FUZZ_PROFILE": "nightly", "FUZZ_REPORT": str(counts)}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n0",
            "-m",
            "slow or not slow",
            "tests/test_fuzz.py",
        ]
        subprocess.run(command, cwd=ROOT, env=os.environ | profile, check=True)
        return json.loads(counts.read_text())


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "kills": measure_kills,
    "faults": measure_faults,
    "long run": measure_long_run,
    "fuzz": measure_fuzz,
}


# The page.

FOR_EVER = ("one for ever", "loss")


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_on(part: dict[str, Any]) -> str:
    machine = part["machine"]
    return (
        f"{machine['cores']} cores of {machine['processor']}, {machine['date']}, "
        f"jax {machine['jax']}, optax {machine['optax']}"
    )


def kills_table(part: dict[str, Any]) -> str:
    columns = ["method", "steps", "kills", "of these while saving", "steps done again", "same bits"]
    names = ("steps", "kills", "kills_in_saves", "steps_repeated")
    return table(
        columns,
        [
            [
                f"`{row['method']}`",
                *(str(row[name]) for name in names),
                yes(row["bit_for_bit_equal"]),
            ]
            for row in part["rows"]
        ],
    )


def yes(value: bool) -> str:
    return "yes" if value else "no"


def faults_table(part: dict[str, Any]) -> str:
    shown = {
        "losses, 10 %": ("10 %", "loss"),
        "both, 1 %": ("1 %", "both"),
        "both, 10 %": ("10 %", "both"),
        "both, bursts": ("bursts", "both"),
        "one loss for ever": FOR_EVER,
        "one loss and its gradient for ever": ("one for ever", "both"),
    }
    by_method = collections.defaultdict(dict)
    for row in part["rows"]:
        by_method[row["method"]][row["pattern"], row["kind"]] = f"{row['loss_ratio']:.2f}"
    rows = [[f"`{name}`", *(found[c] for c in shown.values())] for name, found in by_method.items()]
    return table(["method", *shown], rows)


def long_run_table(part: dict[str, Any]) -> str:
    columns = [
        "method",
        "sum of the weights off by at most",
        "state finite",
        "traces",
        "more arrays",
        "more memory",
    ]
    return table(
        columns,
        [
            [
                f"`{row['method']}`",
                f"{row['weight_sum_deviation']:.0e}",
                yes(row["state_is_finite"]),
                str(row["traces"]),
                str(row["more_arrays"]),
                f"{row['more_bytes'] / 2**20:.1f} MiB",
            ]
            for row in part["rows"]
        ],
    )


def page(report: dict[str, Any]) -> str:
    """The whole of docs/reliability.md."""
    kills, injected, long, fuzz = (report[name] for name in PARTS)
    combinations = len(injected["rows"])
    finite = sum(row["state_is_finite"] and row["params_are_finite"] for row in injected["rows"])
    cases = fuzz["finite"] + fuzz["not finite"] + fuzz["wrong"]
    worst = max(
        (row for row in injected["rows"] if (row["pattern"], row["kind"]) == FOR_EVER),
        key=lambda row: row["loss_ratio"],
    )
    return f"""# Reliability

Written by `python -m benchmarks.reliability`, which anyone can run again.

## Killed and resumed

A process trains a small network and saves parameters, optimizer state and losses with Orbax
every {kill_and_resume.SAVE_EVERY} steps, in the background. It is killed (SIGKILL) at random
moments, {sum(row["kills"] for row in kills["rows"])} times in all; another process goes on from
the newest checkpoint. At the end parameters, Adam's moments, weights, histories, the random key
of PCGrad and the losses of every step are compared with those of a run that nobody disturbed.

{kills_table(kills)}

({measured_on(kills)}.) Restoring into a chain with another number of losses or another `history`
raises an error that says what was expected: Orbax's own where its template is compared with the
checkpoint, else ours from the first `update`. There are exceptions, which have to be asked for:
Orbax's `StandardRestore(strict=False)` cuts arrays or pads them with zeros, and its
`partial_restore=True` takes arrays whose losses have other names; nobody can tell afterwards. And a
checkpoint of another method whose state looks alike, as those of
`fixed_weights`, `prior_loss` and `realtime_loss` do, restores without a word.
[The tests](../tests/test_resume.py) show each way.

## Losses and gradients that are not finite

Random NaN and infinities in losses, gradients or both, with `optax.apply_if_finite` around the
optimizer behind the weighting ([the script](../benchmarks/faults.py)): {combinations}
combinations of method, kind and frequency, {injected["seeds"]} seeds of {injected["steps"]}
steps each. State and parameters stayed finite in {finite} of them, in every step. The table has
what is left of the losses at the end over what is left without faults (1.00: no harm; medians):

{faults_table(injected)}

"Bursts" hit all losses in 20 of every 100 steps. ({measured_on(injected)}.)

What happens in such a step:

* A loss that is not finite: weights and memory of the weighting stay those of the step before.
  The gradient is still weighted with them and goes on, since its own loss may be all that is
  broken. What that costs is in the first column: for `mgda`, whose weights belong to one point,
  more than skipping the step does.
* A gradient that is not finite: it passes through, and `apply_if_finite` skips the step. Methods
  that look at gradients keep their weights as well.
* One loss that is never finite again: the weights stay as they are for ever, which costs up to
  {worst["loss_ratio"] - 1:.0%} here (`{worst["method"]}`). If its gradient is broken too, no step
  is taken any more (the last column: training ended at a quarter of the run). Then leave the loss
  out: make its gradient finite, by `jnp.where` around its *input*, and say so by `present`.

## Random cases

[The fuzz tests](../tests/test_fuzz.py) draw the method, its options, the number of losses, the
tree of parameters (empty, nested, scalars, None, a single array, empty arrays), dtypes (float16,
bfloat16, float32, float64), lazy or stacked gradients, absent losses, losses from 1e-38 to 3e38
and gradients from 1e-12 to 1e12 (as far as the dtype reaches). They look for wrong shapes or
dtypes, silent broadcasts, an h that is not the weighted sum (against float64), weights that are
negative where a method's may not be, NaN from finite input, a state that changes its shape or
becomes non-finite. Last run with `FUZZ_PROFILE=nightly`:
{cases:,} cases, of which {fuzz["not finite"]:,} with losses or gradients that are not finite and
{fuzz["wrong"]:,} with gradients of wrong shapes that have to raise; {fuzz["updates"]:,} updates;
none failed. ({measured_on(fuzz)}.)

## Long runs

{long["rows"][0]["steps"]:,} steps in one `lax.scan`, for weights and state; and
{long["rows"][0]["calls"]:,} calls of a compiled step from a Python loop, after a warm-up, for how
often the step was traced, how many arrays are alive more than before and how much more memory the
process holds:

{long_run_table(long)}

({measured_on(long)}.) The counts are int32 and never overflow: where they end, after two billion
steps, they repeat their last period, so that `every` goes on
([the test](../tests/test_balance.py)).

## Many devices

Tests, not figures: [on eight devices](../tests/many_devices.py) with a split batch, with
`shard_map` and with fully sharded parameters the weights are the same bits on every device and
those of one device to 1e-6; methods that look at losses alone send the same arrays as plain
training does, in at most one message more, since the losses come before the backward pass; the
parameters' sharding survives. [Two processes](../tests/test_processes.py) with half of the batch
each train as one. Several GPUs were not to be had: the tests lower every method for CUDA and TPU.
On one H100 (2026-11-26, jax 0.11.2) 1,814 of 1,829 quick tests passed. The others count flops of a
CPU's program, ask for an installed package, or compared exact products with PyTorch's in TF32; the
tests know that since.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what docs/reliability.md says.")
    parser.add_argument("--only", choices=PARTS, help="one part alone (all)")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file (benchmarks/reliability.json)")
    args = parser.parse_args()
    out = args.out or JSON_FILE
    report = json.loads(out.read_text()) if out.exists() else {}
    for name in [args.only] if args.only else PARTS:
        print(f"{name} ...", flush=True)
        report[name] = PARTS[name]() | {"machine": kill_and_resume.machine()}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    if all(name in report for name in PARTS):
        target = PAGE if args.out is None else out.with_suffix(".md")
        target.write_text(page(report))
        print(f"Wrote {target}")


if __name__ == "__main__":
    main()
