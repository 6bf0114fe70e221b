"""Against a grid search: weights that follow a target, in one run, beside weights searched for.

    python -m benchmarks.targets [--only PROBLEM ...] [--rows ROW ...] [--minutes 30] [--anew]
                                 [--accept] [--draw] [--out FOLDER] [--quick]

The plain sum, a grid search, a random search, the methods that apply and `hypergradient` train on
the problems of `benchmarks/target_problems.py`, as many steps each. What it finds goes into
`targets.json`, row by row, from which page and picture are made, in docs/ or, with `--out`, beside
it. Rows are kept until the code or the settings behind them change, so that the same command goes
on where it stopped. `--quick` shows that it runs and supports no verdict.

Nothing is chosen on the digits on which it is judged: learning rate and searched weights are, for
each seed, those that are best on the validation digits at the end of training.
"""

import contextlib
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.figure
import matplotlib.lines
import matplotlib.pyplot as plt
import numpy as np
import rich.progress

from benchmarks import evidence, statistics, study
from benchmarks.evidence import COLOURS, MARKERS, MARKS, with_interval
from benchmarks.evidence_rows import PLAIN
from benchmarks.statistics import RESAMPLES, compare
from benchmarks.study import Report, Reports, Rows, Study
from benchmarks.target_problems import BATCH, FEATURES, HIDDEN, PIXELS, Problem, problems
from benchmarks.target_rows import (
    AFFORDABLE,
    FOLLOWING,
    GRID,
    MAIN_FIRST,
    METHODS,
    RANDOM,
    ROWS,
    THEN_FIXED,
    WORST,
    Loaded,
    at_an_end,
    drawn_runs,
    evaluations_of,
    loaded,
    measure,
    needed,
    rows_of,
    version_of,
)
from examples.paper import common

# Comparisons.


def compared(report: Report) -> Report:
    """With what stands against the plain sum and the grid search, seed by seed."""
    rows, result = report["rows"], {}
    for name, row in rows.items():
        found = {
            f"against {reference}": compare(row["values"], rows[reference]["values"])
            for reference in (PLAIN, GRID)
            if name != reference
        }
        if name in FOLLOWING:
            found["validation against"] = compare(row["validation"], rows[GRID]["validation"])
        result[name] = row | found
    return report | {"rows": result}


def about_problem(problem: Problem, rows: Rows) -> Report:
    """What the JSON holds of a problem beside its rows."""
    of_problem = problem._asdict()
    found = {key: of_problem[key] for key in ("setting", "losses", "ratios", "rates", "steps")}
    at_ends = at_an_end(problem, np.asarray(rows[GRID]["weights"])) if GRID in rows else None
    return found | {"seeds": problem.num_seeds, "grid at an end": at_ends}


@contextlib.contextmanager
def load(problem: Problem, progress: rich.progress.Progress) -> Iterator[Loaded]:
    del progress
    yield loaded(problem)


# Tables and verdicts; every cell is text.


def tally(row: dict[str, Any], reference: str) -> str:
    if (found := row.get(f"against {reference}")) is None:
        return ""
    return f"{found['wins']}-{found['losses']} {MARKS[found['verdict']]}"


def written_weights(weights: Any) -> str:
    return " : ".join(f"{weight:.2g}" for weight in np.mean(weights, axis=0))


def cells_of(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    against = row.get(f"against {GRID}")
    return (
        name,
        with_interval(row["mean"], row["interval"], ".3f"),
        f"{np.mean(row['errors']):.1f}",
        written(against) if against else "",
        tally(row, GRID),
        tally(row, PLAIN),
        f"{row['runs']:.0f}",
        f"{row['evaluations']:.3g}",
        f"{row['flops']:.3g}",
        written_weights(row["weights"]),
    )


def table_of(name: str, report: Report) -> common.Table:
    """Of a report with or without comparisons."""
    report = compared(report)
    columns = ("row", "test cross entropy", "error, %", "difference to grid search")
    columns += ("wins-losses, grid search", "wins-losses, plain sum", "runs")
    columns += ("cost, evaluations", "cost, flops", f"weights ({', '.join(report['losses'])})")
    cells = [cells_of(method, report["rows"][method]) for method in study.shown(ROWS, report)]
    return common.Table(f"{name}: test cross entropy", columns, cells)


def rates_table(report: Report) -> common.Table:
    """Of the rows that matter, what each learning rate gives."""
    columns = ("row", *(f"{rate:g}" for rate in report["rates"]))
    names = (PLAIN, GRID, RANDOM, *FOLLOWING, *THEN_FIXED)
    cells = [(name, *(f"{v:.3f}" for v in report["rows"][name]["by rate"])) for name in names]
    return common.Table("Test cross entropy by learning rate", columns, cells)


def overall_table(reports: Reports, reference: str) -> common.Table:
    cells = []
    for name in study.shown(ROWS, *reports.values()):
        if name != reference:
            rows = [report["rows"].get(name) for report in reports.values()]
            cells.append((name, *("-" if row is None else tally(row, reference) for row in rows)))
    title = f"Wins and losses over the seeds against the {reference}"
    return common.Table(title, ("row", *reports), cells)


def is_as_good(row: dict[str, Any]) -> bool:
    """The interval of the paired difference to the grid search contains 0 or lies below."""
    return row[f"against {GRID}"]["verdict"] != "worse"


def is_affordable(row: dict[str, Any]) -> bool:
    """By both counts."""
    return max(row["evaluations"], row["flops"]) <= AFFORDABLE


def reason(name: str, rows: dict[str, dict[str, Any]]) -> str:
    """Where a row is worse than the search: whether its last weights are, or how they came."""
    then = next(rows[new] for new, old in THEN_FIXED.items() if old == name)
    found, validation = then[f"against {GRID}"], rows[name]["validation against"]
    beside = (
        f"on the validation digits, where the best of many runs looks better than it is, the "
        f"difference is {written(validation)}"
    )
    if is_as_good(then):
        why = (
            f"A new run with its last weights is not worse ({written(found)}): the weights are as "
            "good as those of the search, but come too late"
        )
    else:
        why = (
            f"A new run with its last weights is worse too ({written(found)}): a look one step "
            "ahead does not find these weights"
        )
    return f"{why}; {beside}."


def written(found: dict[str, Any]) -> str:
    return with_interval(found["difference"], found["interval"], "+.3f")


def verdict_of(report: Report) -> str:
    """By rule, of each row that follows the target."""
    report = compared(report)
    grid, parts = report["rows"][GRID], []
    for name in FOLLOWING:
        row = report["rows"][name]
        against, is_good = row[f"against {GRID}"], is_as_good(row)
        goal = "reached" if is_good and is_affordable(row) else "not reached"
        quality = "not worse than" if is_good else "worse than"
        quality = "better than" if against["verdict"] == "better" else quality
        parts.append(
            f"**{name}: goal {goal}.** It is {quality} the grid search ({written(against)}), at "
            f"{row['flops']:.2f} plain runs where the search takes {grid['flops']:.0f}"
            + ("." if is_affordable(row) else f", more than the {AFFORDABLE:g} of the goal.")
            + ("" if is_good else f" {reason(name, report['rows'])}")
        )
    return " ".join(parts)


def goals_of(reports: Reports) -> str:
    """One sentence for each row that follows the target."""
    parts = []
    for name in FOLLOWING:
        rows = {problem: report["rows"][name] for problem, report in reports.items()}
        good = [problem for problem, row in rows.items() if is_as_good(row)]
        reached = [problem for problem in good if is_affordable(rows[problem])]
        parts.append(
            f"* **{name}**: not worse than the grid search on {len(good)} of {len(reports)} "
            f"problems ({', '.join(good) or 'none'}); the goal, that at no more than "
            f"{AFFORDABLE:g} plain runs, is reached on {len(reached)}."
        )
    parts += filter(None, [blind_ones_of(reports)])
    return "\n".join(wrapped(part) for part in parts)


def blind_ones_of(reports: Reports) -> str:
    """One sentence on the methods that see the training data only, if any was measured."""
    found = {
        name: {
            problem: report["rows"][name]
            for problem, report in reports.items()
            if name in report["rows"]
        }
        for name in METHODS
    }
    if not any(found.values()):
        return ""
    as_good = {
        name: [problem for problem, row in rows.items() if is_as_good(row)]
        for name, rows in found.items()
    }
    parts = [
        f"`{name}` on {len(problems)} ({', '.join(problems)})"
        for name, problems in sorted(as_good.items(), key=lambda item: -len(item[1]))
        if problems
    ]
    return (
        "* **Of the methods that see the training data only**, not worse than the grid search: "
        f"{', '.join(parts) or 'none'}. Each of the others is worse wherever it was measured."
    )


def wrapped(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False)


# The picture.


def draw_rows(axes: plt.Axes, name: str, report: Report) -> None:
    """Means and intervals, coloured by what they are to the grid search."""
    names = study.shown(ROWS, report)
    for reference, style in ((PLAIN, "-"), (GRID, "--")):
        axes.axvline(report["rows"][reference]["mean"], color="black", ls=style, lw=1)
    for method, row in report["rows"].items():
        verdict = row.get(f"against {GRID}", {}).get("verdict")
        colour, height = COLOURS.get(verdict, "black"), names.index(method)
        axes.plot(row["interval"], [height, height], color=colour, lw=2)
        axes.plot(row["mean"], height, MARKERS.get(verdict, "D"), color=colour, ms=6)
    axes.set(title=name, xlabel="test cross entropy", xscale="log")
    axes.xaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(plt.matplotlib.ticker.NullLocator())
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize="small")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def draw_weights(axes: plt.Axes, report: Report) -> None:
    """Those of `hypergradient` over the steps, the mean of the seeds, and those of the grid."""
    styles = {"hypergradient": "-", "hypergradient, main loss first": ":"}
    for index, loss in enumerate(report["losses"]):
        colour = f"C{index}"
        for name, style in styles.items():
            path = np.asarray(report["rows"][name]["path"])[:, index]
            steps = np.linspace(report["steps"] / len(path), report["steps"], len(path))
            label = loss if name == "hypergradient" else None
            axes.plot(steps, path, style, color=colour, label=label)
        chosen = np.mean(report["rows"][GRID]["weights"], axis=0)[index]
        axes.axhline(chosen, color=colour, ls="--", lw=1)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(bottom=0.0)
    axes.set(xlabel="step", ylabel="weight", title="weights")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw(reports: Reports) -> dict[str, matplotlib.figure.Figure]:
    """For each problem the rows on the left and weights over time on the right."""
    if not reports:
        return {}
    reports = {name: compared(report) for name, report in reports.items()}
    num_rows = max(len(report["rows"]) for report in reports.values())
    figure, axes = plt.subplots(
        len(reports),
        2,
        figsize=(12.5, 0.8 + max(4.4, 0.9 + 0.15 * num_rows) * len(reports)),
        squeeze=False,
        layout="constrained",
        width_ratios=(1.0, 1.1),
    )
    for (left, right), (name, report) in zip(axes, reports.items(), strict=True):
        draw_rows(left, name, report)
        draw_weights(right, report)
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], color=COLOURS[verdict], marker=MARKERS[verdict], lw=2, label=label)
        for verdict, label in (
            ("better", "better than the grid search"),
            ("undecided", "undecided"),
            ("worse", "worse"),
        )
    ]
    handles += [
        line([], [], color="black", marker="D", label="plain sum; weights of hypergradient"),
        line([], [], color="black", ls=":", label="weights with the main loss first"),
        line([], [], color="black", ls="--", label="grid search; the weights it chose"),
    ]
    title = "Lower is better; mean over the seeds and its 95 % bootstrap interval"
    figure.legend(handles=handles, loc="outside upper center", ncols=3, title=title)
    return {"targets": figure}


# The page.


def setting_of(report: Report) -> str:
    rates, machine, rows = report["rates"], report["machine"], report["rows"]
    at_ends = [name for name, row in rows.items() if row["rate at an end"]]
    ratios = "; ".join(
        f"{loss} {', '.join(f'{value:g}' for value in values)}"
        for loss, values in zip(report["losses"][1:], report["ratios"], strict=True)
    )
    return (
        f"{report['setting']} The grid has the ratios to {report['losses'][0]}: {ratios}; for "
        f"{report['grid at an end']} of {report['seeds']} seeds the largest of some loss was "
        f"chosen. {report['steps']:,} steps, learning rates "
        f"{', '.join(f'{rate:g}' for rate in rates)}, of which the smallest or the largest was "
        f"chosen for some seed in {len(at_ends)} of {len(rows)} rows. {report['seeds']} seeds. "
        f"({machine['cores']} cores of {machine['processor']}, {study.dates_of(report)}, jax "
        f"{machine['jax']}, {study.seconds_of(report)} seconds.)"
    )


def about(reports: Reports) -> str:
    """What holds on all problems, in Markdown."""
    drawn = evaluations_of(FOLLOWING["hypergradient"], 1)
    sparse = evaluations_of(FOLLOWING["hypergradient, every=10"], 1)
    seeds = ", ".join(
        f"{100 * statistics.coverage(number):.0f} % for {number}"
        for number in sorted({report["seeds"] for report in reports.values()})
    )
    items = (
        "**The question.** A grid search sees what is wanted, a loss of validation digits; the "
        "other methods see the training data only. `hypergradient` sees what the search sees: "
        "the same validation digits, in batches. Is one run of it as good as the search?",
        "**Nothing is chosen on test digits.** For each row and seed the learning rate, for the "
        "searches rate and weights together, are those with the least cross entropy of the "
        "validation digits at the end of training. The test digits are all that are left. "
        "`hypergradient` has its defaults. They were chosen on the other data of "
        "`benchmarks.hypergradient_settings`, after its first rule had fallen behind the search "
        "there, and in a short look on these problems too.",
        "**Main loss first** are rows that start near the first loss: `priorities` of 1 for it and "
        f"{MAIN_FIRST:g} for each other. They came when the figures of the defaults were known, "
        "after shares of 0.1 and rates that fall with the steps had been tried here as well: their "
        "verdicts are worth less than those of the defaults. That there is a main loss, beside "
        "penalties and auxiliary tasks, is known before training; of four sources of data none is.",
        f"**Data and training.** Scikit-learn's digits, 8 x 8 pixels. A trunk {PIXELS}-{HIDDEN}-"
        f"{FEATURES} (ReLU) with a linear layer for each output; Adam with a cosine decay, batches "
        f"of {BATCH} drawn with replacement unless it says otherwise, of the validation digits "
        "too. Split, initial network and batches differ from seed to seed. Every row makes as many "
        "steps. Weights sum to K, the number of losses. What is not finite counts as "
        f"{WORST:g}; `prior_loss` applies where all losses have a best constant prediction.",
        "**Cost** is that of a row at one learning rate, in plain runs, which is also what the "
        "sum of all rates costs over that of a plain sum tuned alike. *Evaluations* are those of "
        "theory: a step of a method that needs the gradients of K losses counts as K, one of "
        f"`hypergradient` as {drawn:.2f} (the target's gradient, and a third for the forward-mode "
        f"pass), with `every=10` as {sparse:.2f}. *Flops* are what the compiler counts in a step "
        "of one model over those of a step on the summed loss without the library; of a period "
        "the mean step.",
        "**Then fixed** is a new run with the weights that a run ended with, and shows whether it "
        "is they that are good or bad; it costs both runs.",
        f"**The random search** has the {drawn_runs()} runs that one run of `hypergradient` pays "
        "for, with log-uniform ratios between the ends of the grid's; with what `every=10` costs "
        "it would have one.",
        f"**Intervals** are 95 % percentile intervals of the mean from {RESAMPLES:,} bootstrap "
        "resamples of the seeds, differences are paired by seed; ▲ is better and ▼ worse, where "
        "the interval of the difference lies wholly on one side of 0, and · is undecided. They are "
        f"too narrow: instead of 95 % they hold the mean of a normal variable in about {seeds} "
        "seeds. Not worse means not shown to be "
        "worse: the interval says what a difference may be.",
    )
    return "\n".join(wrapped(f"* {item}") for item in items)


def page(reports: Reports, picture: Callable[[str], str]) -> str:
    """The whole of docs/targets.md; `picture` gives a picture's path from there."""
    parts = ["# Against a grid search"]
    is_quick = any(report["quick"] for report in reports.values())
    waiting = study.not_measured(STUDY, reports)
    reports = {name: compared(of) for name, of in study.told(STUDY, reports).items()}
    if is_quick:
        parts.append("**A quick run: it shows that the script works and supports no verdict.**")
    source = (
        "Written by `python -m benchmarks.targets`, from its JSON; nothing in it is typed by hand. "
        "Lower is better in every table."
    )
    parts += [textwrap.fill(source, 100), about(reports)]
    parts += [] if is_quick else [goals_of(reports)]
    parts += filter(None, [waiting])
    parts.append(f"![Cross entropy of each row, and weights over time]({picture('targets')})")
    for reference in (GRID, PLAIN):
        parts += evidence.markdown(overall_table(reports, reference))
    for name, report in reports.items():
        parts += [f"## {name}", setting_of(report)]
        parts.append(common.markdown_table(*table_of(name, report)[1:]))
        parts += [] if report["quick"] else [verdict_of(report)]
        parts += evidence.markdown(rates_table(report))
    return "\n\n".join(parts) + "\n"


# The command line.


STUDY = Study(
    name="targets",
    description="Weights that follow a target: an evidence table.",
    problems=problems,
    rows=tuple(ROWS),
    rows_of=rows_of,
    needed=needed,
    base=(PLAIN, GRID, *FOLLOWING, *THEN_FIXED),
    version_of=version_of,
    load=load,
    measure=measure,
    about=about_problem,
    table_of=table_of,
    verdict_of=verdict_of,
    draw=draw,
    page=page,
)


if __name__ == "__main__":
    study.run(STUDY)
