"""What does it cost? All benchmarks of speed and memory.

    python -m benchmarks [--only PART ...] [--losses 4] [--size small] [--effort 1.0] [--out FOLDER]

The parts are `cost` (a step with some methods on six models, with `--size small large` on four more
that fill a GPU, with `otherwise` on two of the small ones called instead of scanned or the other
way round), `methods` (a step with every method on two of them), `peers` (against PyTorch, with the
extra "peers"), `growth` (with losses, parameters and history), `alone` (the weights without a
model) and `kernels` (what a step launches on a GPU, counted without one, with the extra "kernels").
It takes about twelve minutes on two cores, on which nothing else should run. The figures go into
`benchmarks.json`, and page and picture that are made from it stand beside it. With `--only` the
other parts stay as they are in that file; without a part behind it nothing is measured, and page
and picture are made again. The page of the repository was made with `--losses 2 4 8 --publish`,
which takes twice as long, and on a GPU with `--only cost alone --size small otherwise --publish`,
which writes another file; the README takes its figures from there by `python -m benchmarks.readme`.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import matplotlib.pyplot as plt
import rich.console
import rich.progress

from benchmarks import alone, cost, every_method, growth, kernels, peers
from benchmarks.common import Part, Unavailable, machine, markdown, measured_on, rich_table, rounded
from benchmarks.models import SIZES

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ON_A_CPU, ON_A_GPU = RESULTS / "benchmarks.json", RESULTS / "gpu.json"
TYPED = RESULTS / "h100.md"  # what was measured on a GPU besides, by hand and of an older version
OUT = pathlib.Path("benchmark_results")
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = {ON_A_CPU: "images/benchmarks.png", ON_A_GPU: "images/benchmarks_gpu.png"}
PARTS: dict[str, Part] = {
    part.PART.name: part.PART for part in (cost, every_method, peers, growth, alone, kernels)
}

Reports = dict[str, dict[str, Any]]  # by name of the part: machine, minutes, figures


def measure(
    part: Part,
    effort: float,
    numbers_of_losses: list[int],
    sizes: list[str],
    console: rich.console.Console,
) -> dict[str, Any]:
    packages = ("torch", "torchjd") if part is peers.PART else ()
    start = time.perf_counter()
    with console.status(part.title) as status:

        def report(what: str) -> None:
            minutes, seconds = divmod(round(time.perf_counter() - start), 60)
            status.update(f"{part.title}, {minutes}:{seconds:02}: {what}")

        options = {
            "cost": {"numbers_of_losses": numbers_of_losses, "sizes": sizes},
            "peers": {"sizes": sizes},
        }
        figures = part.measure(effort, report, **options.get(part.name, {}))
    return {
        "machine": machine(*packages),
        "minutes": (time.perf_counter() - start) / 60,
        "effort": effort,
        "figures": rounded(figures),
    }


ABOUT = (
    "This page is written by `python -m benchmarks`, from its JSON. Programs take turns in one "
    "process, so that what else the machine does meets all of them; ratios are medians over the "
    "turns. "
)


ABOUT_GPU = """\
Columns are those of [the first section](#cost-of-a-step). In a model that is *called* each step is
a call of its own, which costs time to dispatch; in a *scan* many steps are one call, as they are
for the tiny networks above. Turns are fewer than on the CPU (7 to 19). Rows "version 0.1" are that
version's code in the same process. Steps by hand returned the losses as one array, all others one
by one: four arrays instead of one are about 9 microseconds of a call, and some kernels. (They
return them one by one since.) The memory of small products of matrices is a workspace of 32 MiB,
whatever the model. The last section is typed in."""


def page(reports: Reports, picture: str) -> str:
    return "\n\n".join(["# What it costs", ABOUT.strip(), *sections(reports, picture, "##")]) + "\n"


def published_page() -> str:
    """The whole of docs/benchmarks.md."""
    on_cpu, on_gpu = (json.loads(path.read_text()) for path in PICTURES)
    return "\n\n".join(
        [
            "# What it costs",
            ABOUT + "What was measured [on a GPU](#on-a-gpu) comes last. How reliable training is "
            "stands in [reliability.md](reliability.md), which method is good for what in "
            "[evidence.md](evidence.md).",
            *sections(on_cpu, PICTURES[ON_A_CPU], "##"),
            "## On a GPU",
            ABOUT_GPU,
            *sections(on_gpu, PICTURES[ON_A_GPU], "###", is_explained=False),
            TYPED.read_text(),
        ]
    )


def sections(
    reports: Reports, picture: str, level: str, is_explained: bool = True
) -> Iterator[str]:
    yield f"![Ratios of time, and what else was measured]({picture})"
    for name, report in reports.items():
        part = PARTS[name]
        yield f"{level} {part.title}"
        if is_explained:
            yield part.about
        yield f"{measured_on(report['machine'])}, in {report['minutes']:.1f} minutes."
        yield from map(markdown, part.tables(report["figures"]))


def draw(reports: Reports, path: pathlib.Path) -> None:
    parts = [PARTS[name] for name in reports]
    heights = [part.height(reports[part.name]["figures"]) for part in parts]
    figure = plt.figure(figsize=(15, sum(heights)), layout="constrained")
    areas = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False, hspace=0.04)
    for area, part in zip(areas[:, 0], parts, strict=True):
        area.suptitle(part.title, fontsize="x-large")
        part.draw(area, reports[part.name]["figures"])
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="What does it cost? Benchmarks of the library.")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PARTS,
        metavar="PART",
        help=f"{', '.join(PARTS)}; none: page and picture again, without measuring",
    )
    parser.add_argument(
        "--losses",
        nargs="+",
        type=int,
        default=list(cost.NUMBERS_OF_LOSSES),
        metavar="K",
        help="numbers of losses for `cost` (4)",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        choices=SIZES,
        default=["small"],
        help="models for `cost` and `peers` (small); large ones fill a GPU, `otherwise` are called "
        "instead of scanned or the other way round",
    )
    parser.add_argument(
        "--effort", type=float, default=1.0, help="factor on the seconds of all turns (1.0)"
    )
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="folder (benchmark_results)")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write what the repository shows, not --out; on a GPU its part of the page",
    )
    args = parser.parse_args()
    published = ON_A_CPU if jax.default_backend() == "cpu" else ON_A_GPU
    names = list(PARTS) if args.only is None else args.only
    if args.publish and "cost" in names:
        if published is ON_A_CPU and not {2, 4, 8} <= {*args.losses}:
            parser.error("--publish needs 2, 4 and 8 among --losses, which the README shows")
        if "small" not in args.size:
            parser.error("--publish needs small among --size, whose models the README shows")
    if min(args.losses) < 2:
        parser.error(f"--losses should be at least 2, got {args.losses}")
    if not 0 < args.effort < float("inf"):
        parser.error(f"--effort should be positive and finite, got {args.effort}")
    json_file = published if args.publish else args.out / "benchmarks.json"
    json_file.parent.mkdir(parents=True, exist_ok=True)
    page_file = PAGE if args.publish else args.out / "benchmarks.md"
    picture = PICTURES[published] if args.publish else "benchmarks.png"
    reports: Reports = json.loads(json_file.read_text()) if json_file.exists() else {}
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    if not names and not reports:
        parser.error(f"--only without a part draws what {json_file} has, which is nothing")
    for name in names:
        try:
            reports[name] = measure(PARTS[name], args.effort, args.losses, args.size, console)
        except (ModuleNotFoundError, Unavailable) as error:
            if args.only:
                parser.error(str(error))
            console.print(f"{PARTS[name].title} left out: {error}")
            continue
        for table in PARTS[name].tables(reports[name]["figures"]):
            console.print(rich_table(table))
        reports = {known: reports[known] for known in PARTS if known in reports}
        json_file.write_text(json.dumps(reports, indent=1) + "\n")
    draw(reports, page_file.parent / picture)
    page_file.write_text(published_page() if args.publish else page(reports, picture))
    console.print(f"Wrote {json_file}, {page_file}, {page_file.parent / picture}")


if __name__ == "__main__":
    main()
