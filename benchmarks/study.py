"""Rows measured on problems, one by one: the command, and JSON, page and picture it makes."""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import matplotlib.pyplot as plt
import rich.console
import rich.progress

from examples.paper import common

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Report = dict[str, Any]  # of one problem, as the JSON holds it
Reports = dict[str, Report]


class Study(NamedTuple):
    """What is measured, and how it is shown."""

    name: str  # of its files
    description: str
    problems: Callable[[bool], Mapping[str, Any]]  # of whether the run is quick
    rows: Sequence[str]
    report_of: Callable[[Any, bool, rich.progress.Progress, dict[str, Any]], Report]
    table_of: Callable[[str, Report], common.Table]
    verdict_of: Callable[[Report], str]
    overall: Callable[[Reports], list[common.Table]]  # shown at the end
    draw: Callable[[Reports], matplotlib.figure.Figure]
    page: Callable[[Reports, str], str]  # of the reports and the picture's path from there

    @property
    def json_file(self) -> pathlib.Path:
        return RESULTS / f"{self.name}.json"

    @property
    def page_file(self) -> pathlib.Path:
        return ROOT / "docs" / f"{self.name}.md"

    @property
    def picture_file(self) -> pathlib.Path:
        return ROOT / "docs" / "images" / f"{self.name}.png"


def read(path: pathlib.Path) -> Reports:
    return common.restored(json.loads(path.read_text())) if path.exists() else {}


def shown(rows: Iterable[str], *reports: Report) -> list[str]:
    """Those of the rows that are in a report, in their order."""
    return [row for row in rows if any(row in report["rows"] for report in reports)]


def note_on_the_others(rows: Iterable[str], *reports: Report) -> str:
    """Which rows are in no report yet; nothing of a quick run, which has few."""
    others = [row for row in rows if row not in shown(rows, *reports)]
    if not others or any(report["quick"] for report in reports):
        return ""
    return f"**Not measured yet** (`--rows` measures them alone): {', '.join(others)}."


def write(study: Study, reports: Reports, out: pathlib.Path | None) -> list[pathlib.Path]:
    """Page and picture, at their places or in the folder that was asked for."""
    page_file, picture_file = study.page_file, study.picture_file
    if out is not None:
        page_file, picture_file = out / page_file.name, out / picture_file.name
    picture_file.parent.mkdir(parents=True, exist_ok=True)
    figure = study.draw(reports)
    figure.savefig(picture_file, dpi=110)
    plt.close(figure)
    path = picture_file.relative_to(page_file.parent).as_posix()
    page_file.write_text(study.page(reports, path))
    return [page_file, picture_file]


def dates_of(report: Report) -> str:
    """When its rows were measured, which may have been on several days."""
    dates = sorted(row.get("date", report["machine"]["date"]) for row in report["rows"].values())
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def measure(
    study: Study,
    chosen: list[str],
    rows: list[str] | None,
    quick: bool,
    json_file: pathlib.Path,
    console: rich.console.Console,
) -> Reports:
    """All reports, the new ones among the old; saved after each problem.

    Of the problems that are chosen all rows are measured, or those named in `rows` and those that
    are missing.
    """
    json_file.parent.mkdir(parents=True, exist_ok=True)
    reports, problems = read(json_file), study.problems(quick)
    for name in (name for name in problems if name in chosen):
        old = reports.get(name)
        kept = {} if rows is None or old is None else dict(old["rows"])
        for row in kept.values():
            row.setdefault("date", old["machine"]["date"])
        for row in rows or ():
            kept.pop(row, None)
        start = time.perf_counter()
        with common.progress(console) as progress:
            report = study.report_of(problems[name], quick, progress, kept)
        seconds = time.perf_counter() - start
        for row in report["rows"].values():
            row.setdefault("date", report["machine"]["date"])
        report["seconds"] = round(seconds + (old["seconds"] if kept else 0))
        reports[name] = common.restored(common.plain(report))
        common.show(study.table_of(name, reports[name]), console)
        console.print(study.verdict_of(reports[name]).replace("**", ""))
        reports = {known: reports[known] for known in problems if known in reports}
        json_file.write_text(json.dumps(common.plain(reports), indent=1) + "\n")
    return reports


def named(names: Iterable[str]) -> dict[str, str]:
    """By what is typed for them."""
    return {name.lower().replace(", ", "-").replace(" ", "-"): name for name in names}


def run(study: Study) -> None:
    """The command."""
    names, rows = named(study.problems(True)), named(study.rows)
    parser = argparse.ArgumentParser(description=study.description)
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="PROBLEM", help=", ".join(names)
    )
    parser.add_argument(
        "--rows", nargs="+", choices=rows, metavar="ROW", help=f"keep the others; {', '.join(rows)}"
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder (benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="two seeds, to see that it runs")
    args = parser.parse_args()
    json_file = (args.out or RESULTS) / study.json_file.name
    if any(report["quick"] != args.quick for report in read(json_file).values()):
        parser.error(
            f"{json_file} holds figures of a {'full' if args.quick else 'quick'} run: give --out"
        )
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    chosen = [names[name] for name in args.only or names]
    anew = None if args.rows is None else [rows[row] for row in args.rows]
    reports = measure(study, chosen, anew, args.quick, json_file, console)
    for table in study.overall(reports):
        common.show(table, console)
    written = write(study, reports, args.out)
    console.print(f"Wrote {json_file}, {', '.join(map(str, written))}")
