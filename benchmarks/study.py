"""Rows measured on problems, one by one: the command, and JSON, page and pictures it makes.

A row is kept with the version of the code behind it (`versions.py`) as soon as it is measured, so
that a run that is stopped, or told to end after some minutes, is taken up where it was.
"""

import argparse
import contextlib
import datetime
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
Rows = dict[str, dict[str, Any]]


class Study(NamedTuple):
    """What is measured, and how it is shown."""

    name: str  # of its files
    description: str
    problems: Callable[[bool], Mapping[str, Any]]  # of whether the run is quick
    rows: Sequence[str]
    rows_of: Callable[[Any, bool], list[str]]  # of a problem, those before others that need them
    needed: Callable[[str], tuple[str, ...]]  # by a row: those that it is measured from
    base: tuple[str, ...] | None  # rows without which a problem is not shown; None for all
    version_of: Callable[[Any, str], str]  # of a problem and a row
    load: Callable[[Any, rich.progress.Progress], contextlib.AbstractContextManager[Any]]
    measure: Callable[[Any, Any, str, Rows, Callable[[float], None]], dict[str, Any]]
    about: Callable[[Any, Rows], Report]  # of a problem: what the JSON holds beside the rows
    table_of: Callable[[str, Report], common.Table]
    verdict_of: Callable[[Report], str]
    draw: Callable[[Reports], dict[str, matplotlib.figure.Figure]]  # by the pictures' names
    page: Callable[[Reports, Callable[[str], str]], str]  # of reports and a picture's path

    @property
    def json_file(self) -> pathlib.Path:
        return RESULTS / f"{self.name}.json"

    @property
    def page_file(self) -> pathlib.Path:
        return ROOT / "docs" / f"{self.name}.md"

    def missing(self, problem: Any, report: Report) -> list[str]:
        return [n for n in self.rows_of(problem, report["quick"]) if n not in report["rows"]]


def read(path: pathlib.Path) -> Reports:
    return common.restored(json.loads(path.read_text())) if path.exists() else {}


def told(study: Study, reports: Reports) -> Reports:
    """Those of the reports that have enough rows to be shown, in the order of the problems."""
    problems = study.problems(any(report["quick"] for report in reports.values()))

    def has_enough(name: str) -> bool:
        missing = study.missing(problems[name], reports[name])
        return not set(missing) & set(missing if study.base is None else study.base)

    return {name: reports[name] for name in problems if name in reports and has_enough(name)}


def shown(rows: Iterable[str], *reports: Report) -> list[str]:
    """Those of the rows that are in a report, in their order."""
    return [row for row in rows if any(row in report["rows"] for report in reports)]


def not_measured(study: Study, reports: Reports) -> str:
    """Problems that are not shown and rows that are missing; nothing of a quick run."""
    if any(report["quick"] for report in reports.values()):
        return ""
    found, shown_now = [], told(study, reports)
    for name, problem in study.problems(False).items():
        if name not in shown_now:
            found.append(name)
        elif missing := study.missing(problem, reports[name]):
            found.append(f"{name} ({', '.join(missing)})")
    return f"**Not measured yet:** {'; '.join(found)}." if found else ""


def write(study: Study, reports: Reports, out: pathlib.Path | None) -> list[pathlib.Path]:
    """Page and pictures, at their places or in the folder that was asked for."""
    page_file = study.page_file if out is None else out / study.page_file.name
    images = page_file.parent / "images" if out is None else out
    images.mkdir(parents=True, exist_ok=True)
    files = [page_file]
    for name, figure in study.draw(told(study, reports)).items():
        files.append(images / f"{name}.png")
        figure.savefig(files[-1], dpi=110)
        plt.close(figure)
    page_file.write_text(study.page(reports, picture_path("images/" if out is None else "")))
    return files


def picture_path(folder: str) -> Callable[[str], str]:
    return lambda name: f"{folder}{name}.png"


def dates_of(report: Report) -> str:
    """When its rows were measured, which may have been on several days."""
    dates = sorted(row["date"] for row in report["rows"].values())
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def seconds_of(report: Report) -> int:
    return round(sum(row["seconds"] for row in report["rows"].values()))


# Measuring.


def missing_rows(study: Study, problem: Any, quick: bool, rows: Rows) -> list[str]:
    """Those that were never measured, or with other code or settings, or from such rows."""
    found: list[str] = []
    for name in study.rows_of(problem, quick):
        is_old = rows.get(name, {}).get("version") != study.version_of(problem, name)
        if is_old or set(study.needed(name)) & set(found):
            found.append(name)
    return found


def save(study: Study, problem: Any, new: Rows, quick: bool, json_file: pathlib.Path) -> None:
    """Beside what is in the file, where another process may have saved rows since."""
    reports = read(json_file)
    rows = reports.get(problem.name, {}).get("rows", {}) | new
    about = study.about(problem, rows)
    report = {"machine": common.describe_machine(), "quick": quick, **about, "rows": rows}
    reports[problem.name] = report
    store({name: reports[name] for name in study.problems(quick) if name in reports}, json_file)


def store(reports: Reports, json_file: pathlib.Path) -> None:
    written = json_file.with_suffix(".new")
    written.write_text(json.dumps(common.plain(reports), indent=1) + "\n")
    written.replace(json_file)


def measure(
    study: Study,
    chosen: Sequence[str],
    rows: Sequence[str] | None,
    quick: bool,
    json_file: pathlib.Path,
    console: rich.console.Console,
    *,
    anew: bool = False,
    minutes: float = float("inf"),
) -> Reports:
    """All reports, what is missing of the chosen problems and rows measured and saved one by one.

    Rows that are there are measured again if `anew` is true. When the minutes are over no row is
    begun any more.
    """
    json_file.parent.mkdir(parents=True, exist_ok=True)
    reports, problems = read(json_file), study.problems(quick)
    deadline = time.perf_counter() + 60 * minutes
    work: dict[str, list[str]] = {}
    for name in (name for name in problems if name in chosen):
        kept = {} if anew and rows is None else reports.get(name, {}).get("rows", {})
        kept = {row: kept[row] for row in kept if not (anew and rows and row in rows)}
        missing = missing_rows(study, problems[name], quick, kept)
        work[name] = [row for row in missing if rows is None or row in rows]
    with common.progress(console) as progress:
        whole = progress.add_task("rows", total=sum(map(len, work.values())))
        for name, missing in work.items():
            if not missing or time.perf_counter() > deadline:
                continue
            problem = problems[name]
            with study.load(problem, progress) as loaded:
                bar = progress.add_task(name, total=len(missing))
                for row in missing:
                    if time.perf_counter() > deadline:
                        break
                    progress.update(bar, description=f"{name}: {row}")
                    start = time.perf_counter()

                    def advance(share: float, bar: Any = bar) -> None:
                        progress.advance(bar, share)

                    known = read(json_file).get(name, {}).get("rows", {})
                    figures = study.measure(problem, loaded, row, known, advance)
                    figures |= {
                        "seconds": time.perf_counter() - start,
                        "date": datetime.date.today().isoformat(),
                        "version": study.version_of(problem, row),
                    }
                    save(study, problem, {row: figures}, quick, json_file)
                    progress.advance(whole)
                progress.update(bar, description=name)
    return read(json_file)


def accept(study: Study, chosen: Sequence[str], quick: bool, json_file: pathlib.Path) -> None:
    """Gives rows that are there the version of today's code, which has not altered them."""
    problems, reports = study.problems(quick), read(json_file)
    for name in (name for name in chosen if name in reports):
        for row in study.rows_of(problems[name], quick):
            if (figures := reports[name]["rows"].get(row)) is not None:
                figures["version"] = study.version_of(problems[name], row)
    store(reports, json_file)


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
    parser.add_argument("--rows", nargs="+", choices=rows, metavar="ROW", help=", ".join(rows))
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="no row is begun after these (30)"
    )
    parser.add_argument("--anew", action="store_true", help="measure also what is there")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="measure nothing: what is there counts as measured with today's code, which is to be "
        "said only of changes that cannot have altered it",
    )
    parser.add_argument("--draw", action="store_true", help="measure nothing: page and pictures")
    parser.add_argument("--out", type=pathlib.Path, help="folder (benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="two seeds, to see that it runs")
    args = parser.parse_args()
    if not args.minutes > 0:
        parser.error(f"--minutes should be above 0, got {args.minutes:g}")
    json_file = (args.out or RESULTS) / study.json_file.name
    if any(report["quick"] != args.quick for report in read(json_file).values()):
        parser.error(
            f"{json_file} holds figures of a {'full' if args.quick else 'quick'} run: give --out"
        )
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    chosen = [names[name] for name in args.only or names]
    if args.accept:
        accept(study, chosen, args.quick, json_file)
    chosen = [] if args.draw or args.accept else chosen
    only = None if args.rows is None else [rows[row] for row in args.rows]
    reports = measure(
        study, chosen, only, args.quick, json_file, console, anew=args.anew, minutes=args.minutes
    )
    for name, report in told(study, reports).items():
        if name in chosen:
            common.show(study.table_of(name, report), console)
            console.print(study.verdict_of(report).replace("**", ""))
    written = write(study, reports, args.out)
    console.print(f"Wrote {json_file}, {', '.join(map(str, written))}")
    if left := not_measured(study, reports).replace("**", ""):
        console.print(f"{left} The same command goes on with them.")
