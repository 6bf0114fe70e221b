"""Which method when: all methods on three suites of problems, with honest statistics.

    python -m benchmarks.evidence [--only PROBLEM ...] [--rows ROW ...] [--minutes 30] [--anew]
                                  [--accept] [--draw] [--out FOLDER] [--quick]

Every method of the library with its default arguments, some with arguments that papers give, the
plain sum and the best fixed weights of a grid train on the problems of `functions.py`, `images.py`,
`multitask.py` and `physics.py`, with equal budgets of gradients, several seeds and several learning
rates. What it finds goes row by row into `evidence.json`, from which page and pictures are made, in
docs/ or, with `--out`, beside it. Rows are kept until the code or the settings behind them change:
when the minutes are over, or it was stopped, the same command goes on. All of it takes some hours
on two cores (two processes with other problems each may write into the same file), and a few
minutes with `--quick`, which shows with few methods that it runs and supports no verdict.

Nothing is chosen on the seed on which it is judged: the learning rate of each method and seed, and
the fixed weights with it, are those that are best in the mean over the other seeds.
"""

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.lines
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import rich.progress

from benchmarks import functions, images, multitask, physics, statistics, study, tuned
from benchmarks.evidence_rows import FIXED, METHODS, PLAIN, rows_of, version_of
from benchmarks.problems import Problem, Solver
from benchmarks.statistics import RESAMPLES, compare, coverage
from benchmarks.study import Report, Reports, Rows, Study
from benchmarks.tuned import NOTICED
from examples.paper import common
from examples.paper.rosenbrock import double_precision

REFERENCES = (PLAIN, FIXED)
SUITES = {
    "physics": "Physics-informed networks",
    "multi-task": "Several tasks and penalties",
    "functions": "Functions",
}


# Running.


def problems(quick: bool) -> dict[str, Problem]:
    """By name, in the order of the suites."""
    found = [
        *physics.problems(quick),
        *images.problems(quick),
        *multitask.problems(quick),
        *functions.problems(quick),
    ]
    return {problem.name: problem for problem in found}


@contextlib.contextmanager
def load(problem: Problem, progress: rich.progress.Progress) -> Iterator[Solver]:
    with double_precision() if problem.is_double else contextlib.nullcontext():
        yield problem.load(problem, progress)


def measure(
    problem: Problem, solver: Solver, name: str, rows: Rows, advance: Callable[[float], None]
) -> dict[str, Any]:
    del rows
    method = METHODS[name]
    return tuned.measure(
        problem,
        solver,
        method.make,
        advance,
        needs_gradients=method.needs_gradients,
        is_timed=name not in REFERENCES,
        is_searched=name == FIXED,
    )


def about(problem: Problem, rows: Rows) -> Report:
    """What the JSON holds of a problem beside its rows."""
    of_problem = problem._asdict()
    words = ("suite", "setting", "metric", "beside", "written", "losses", "main", "budget", "rates")
    return {word: of_problem[word] for word in words} | {
        "logarithmic": problem.is_logarithmic,
        "gradient cost": problem.gradient_cost,
        "exponents": problem.grid.exponents,
        "axes": problem.grid.axes,
        "points": len(problem.grid.points()) + 3 ** len(problem.grid.axes) - 1,
        "seeds": problem.num_seeds,
    }


# Comparisons.


def compared(report: Report) -> Report:
    """With what stands against the plain sum and the best fixed weights, seed by seed."""
    rows = report["rows"]

    def against(values: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
        return {f"against {name}": compare(values, rows[name]["values"]) for name in names}

    found = {}
    for name, row in rows.items():
        found[name] = row | against(row["values"], [each for each in REFERENCES if each != name])
        for budget in ("seconds", "steps"):
            if (equal := row.get(f"at equal {budget}")) is not None:
                at_equal = equal | against(equal["values"], REFERENCES)
                found[name][f"at equal {budget}"] = at_equal
    return report | {"rows": found}


def corrected(reports: Reports) -> Reports:
    """Compared, and with those differences marked that Holm's correction leaves.

    It is made over all comparisons of these reports with the plain sum, and over all with the best
    fixed weights.
    """
    found = {name: compared(report) for name, report in reports.items()}
    for reference in REFERENCES:
        comparisons = [
            row[f"against {reference}"]
            for report in found.values()
            for row in report["rows"].values()
            if f"against {reference}" in row
        ]
        rejected = statistics.holm([each["p"] for each in comparisons]) if comparisons else []
        for comparison, is_certain in zip(comparisons, rejected, strict=True):
            comparison["certain"] = is_certain
    return found


def reports_to_tell() -> Reports:
    """Those that are stored and complete, corrected: what other pages take their words from."""
    return corrected(study.told(STUDY, study.read(STUDY.json_file)))


def of_suite(suite: str, reports: Reports) -> Reports:
    return {name: report for name, report in reports.items() if report["suite"] == suite}


def ranks_of(reports: Reports) -> dict[str, dict[str, Any]]:
    """Mean ranks of those rows that all of these problems have."""
    return statistics.mean_ranks(
        [
            {name: row["values"] for name, row in report["rows"].items()}
            for report in reports.values()
        ]
    )


# Tables and verdicts; every cell is text.

MARKS = {"better": "▲", "worse": "▼", "undecided": "·"}


def with_interval(mean: float, interval: Sequence[float], written: str) -> str:
    low, high = interval
    return f"{mean:{written}} [{low:{written}}, {high:{written}}]"


def difference_of(against: dict[str, Any], written: str) -> str:
    return with_interval(against["difference"], against["interval"], "+" + written)


def tally(row: dict[str, Any], reference: str) -> str:
    if (found := row.get(f"against {reference}")) is None:
        return ""
    certain = "*" if found.get("certain") else ""
    return f"{found['wins']}-{found['losses']} {MARKS[found['verdict']]}{certain}"


def table_of(name: str, report: Report) -> common.Table:
    """Of a report with or without comparisons."""
    report = report if "against " + PLAIN in report["rows"][FIXED] else compared(report)
    written, rows = report["written"], report["rows"]
    budgets = [b for b in ("seconds", "steps") if any(f"at equal {b}" in r for r in rows.values())]
    has_times = any("time ratio" in row for row in rows.values())
    columns = ["method", report["metric"], "difference to plain sum", "wins-losses, plain sum"]
    columns += ["wins-losses, best fixed"]
    columns += ["time of a step"] if has_times else []
    columns += [f"at equal {budget}" for budget in budgets]
    columns += [report["beside"]] if report["beside"] else []
    cells = []
    for method in study.shown(METHODS, report):
        row = rows[method]
        against = row.get(f"against {PLAIN}")
        cell = [method, with_interval(row["mean"], row["interval"], written)]
        cell.append(difference_of(against, written) if against else "")
        cell += [tally(row, PLAIN), tally(row, FIXED)]
        if has_times:
            cell.append(f"{row['time ratio']:.2f}" if "time ratio" in row else "1")
        for budget in budgets:
            equal = row.get(f"at equal {budget}")
            cell.append(f"{equal['mean']:{written}} {tally(equal, PLAIN)}" if equal else "")
        cell += [f"{np.mean(row['beside']):.3g}"] if report["beside"] else []
        cells.append(tuple(cell))
    return common.Table(f"{name}: {report['metric']}", tuple(columns), cells)


def overall_table(reports: Reports, reference: str) -> common.Table:
    cells = []
    for method in study.shown(METHODS, *reports.values()):
        if method != reference:
            rows = [report["rows"].get(method) for report in reports.values()]
            cells.append((method, *("-" if row is None else tally(row, reference) for row in rows)))
    title = f"Wins and losses over the seeds against the {reference}"
    return common.Table(title, ("method", *reports), cells)


def ranks_table(reports: Reports) -> common.Table:
    ranks = ranks_of(reports)
    cells = [
        (name, with_interval(found["rank"], found["interval"], ".1f"))
        for name, found in ranks.items()
    ]
    difference = statistics.critical_difference(len(ranks), len(reports))
    title = (
        f"Mean rank of {len(ranks)} rows on {len(reports)} problems (1 is the best; by Nemenyi's "
        f"test ranks differ significantly from {difference:.1f} on)"
    )
    return common.Table(title, ("method", "mean rank"), cells)


def methods_that_are(verdict: str, reference: str, report: Report) -> list[str]:
    return [
        name
        for name, row in report["rows"].items()
        if (found := row.get(f"against {reference}")) is not None and found["verdict"] == verdict
    ]


def verdict_of(report: Report) -> str:
    """By rule: an interval of the paired difference that lies wholly on one side of 0."""
    report = report if "against " + PLAIN in report["rows"][FIXED] else compared(report)
    better, worse, undecided = (
        [name for name in methods_that_are(verdict, PLAIN, report) if name != FIXED]
        for verdict in MARKS
    )
    beat = [name for name in methods_that_are("better", FIXED, report) if name != PLAIN]
    is_tuned = report["rows"][FIXED][f"against {PLAIN}"]["verdict"]
    parts = [
        f"Better than the plain sum: {', '.join(better) or 'none'}.",
        f"Worse: {', '.join(worse) or 'none'}.",
        f"Undecided: {', '.join(undecided) or 'none'}.",
        f"The best fixed weights are {is_tuned} than the plain sum."
        if is_tuned != "undecided"
        else "Whether the best fixed weights beat the plain sum is undecided.",
        f"Better than the best fixed weights: {', '.join(beat)}."
        if beat
        else "**Nothing beats a tuned fixed weight here.**",
    ]
    return " ".join(parts)


# The pictures.

COLOURS = {"better": "#0072B2", "worse": "#D55E00", "undecided": "0.45"}
MARKERS = {"better": "o", "worse": "^", "undecided": "s"}


def draw_problem(axes: plt.Axes, name: str, report: Report, methods: list[str]) -> None:
    for reference, style in ((PLAIN, "-"), (FIXED, "--")):
        axes.axvline(report["rows"][reference]["mean"], color="black", ls=style, lw=1)
    for method, row in report["rows"].items():
        verdict = row.get(f"against {PLAIN}", {}).get("verdict")
        low, high = row["interval"]
        height = methods.index(method)
        colour = COLOURS.get(verdict, "black")
        axes.plot([low, high], [height, height], color=colour, lw=2)
        axes.plot(row["mean"], height, MARKERS.get(verdict, "D"), color=colour, ms=6)
    for method in set(methods) - report["rows"].keys():
        axes.text(
            0.5,
            methods.index(method),
            "does not apply",
            transform=axes.get_yaxis_transform(),
            ha="center",
            va="center",
            fontsize="small",
            color="0.4",
            bbox={"color": "white", "pad": 0.5},
        )
    axes.set(title=name, xlabel=report["metric"])
    ends = [end for row in report["rows"].values() for end in row["interval"]]
    if report["logarithmic"] and 0 < min(ends) < max(ends):
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        parts = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=parts))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.tick_params(axis="x", labelsize="small")
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def draw_suite(reports: Reports) -> matplotlib.figure.Figure:
    """A panel for each problem: means and intervals, coloured by what they are to the plain sum."""
    columns = min(3, len(reports))
    rows = -(-len(reports) // columns)
    methods = study.shown(METHODS, *reports.values())
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.2 + 3.6 * columns, 1.0 + (0.9 + 0.19 * len(methods)) * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, (name, report) in zip(axes.flat, reports.items(), strict=False):
        draw_problem(ax, name, report, methods)
    for ax in axes.flat[len(reports) :]:
        ax.set_visible(False)
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], color=COLOURS[v], marker=MARKERS[v], lw=2, label=label)
        for v, label in (
            ("better", "better than the plain sum"),
            ("undecided", "undecided"),
            ("worse", "worse"),
        )
    ]
    handles += [
        line([], [], color="black", marker="D", label="plain sum"),
        line([], [], color="black", ls="--", label="best fixed weights"),
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=3,
        title="Lower is better; mean over the seeds and its 95 % bootstrap interval",
    )
    return figure


def draw_ranks(reports: Reports) -> matplotlib.figure.Figure:
    """For each suite the mean ranks, and how far apart they have to be."""
    suites = [suite for suite in SUITES if of_suite(suite, reports)]
    most = max(len(ranks_of(of_suite(suite, reports))) for suite in suites)
    size = (1.0 + 4.6 * len(suites), 1.4 + 0.2 * most)
    figure, axes = plt.subplots(1, len(suites), figsize=size, squeeze=False, layout="constrained")
    for ax, suite in zip(axes.flat, suites, strict=True):
        found = of_suite(suite, reports)
        ranks = ranks_of(found)
        for height, (name, row) in enumerate(ranks.items()):
            special = {PLAIN: ("black", "D"), FIXED: ("black", "s"), "rlw": ("#D55E00", "^")}
            colour, marker = special.get(name, ("#0072B2", "o"))
            ax.plot(row["interval"], [height, height], color=colour, lw=2)
            ax.plot(row["rank"], height, marker, color=colour, ms=6)
        difference = statistics.critical_difference(len(ranks), len(found))
        best = next(iter(ranks.values()))["rank"]
        ax.axvspan(best, best + difference, color="0.93", zorder=0)
        ax.set_yticks(range(len(ranks)), list(ranks))
        ax.set_ylim(len(ranks) - 0.5, -0.5)
        ax.set_xlim(0, len(ranks) + 1)
        ax.set(title=f"{SUITES[suite]}\n({len(found)} problems)", xlabel="mean rank")
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], color="#0072B2", marker="o", lw=2, label="methods"),
        line([], [], color="black", marker="s", lw=2, label="best fixed weights"),
        line([], [], color="black", marker="D", lw=2, label="plain sum"),
        line([], [], color="#D55E00", marker="^", lw=2, label="random weights"),
        plt.Rectangle((0, 0), 1, 1, color="0.9", label="not told from the best (Nemenyi)"),
    ]
    title = "1 is the best; the line is the 95 % bootstrap interval"
    figure.legend(handles=handles, loc="outside upper center", ncols=3, title=title)
    return figure


def draw(reports: Reports) -> dict[str, matplotlib.figure.Figure]:
    found = corrected(reports)
    suites = {picture_of(suite): of_suite(suite, found) for suite in SUITES}
    return {
        name: draw_suite(suites[name]) if name in suites else draw_ranks(found)
        for name in draw_names(reports)
    }


def draw_names(reports: Reports) -> list[str]:
    """Of the pictures: all ranks, and one for each suite that has a problem."""
    suites = [picture_of(suite) for suite in SUITES if of_suite(suite, reports)]
    return ["evidence", *suites] if suites else []


def picture_of(suite: str) -> str:
    return f"evidence_{suite.replace('-', '_')}"


# The page.


def setting_of(report: Report) -> str:
    rates, machine = report["rates"], report["machine"]
    rows, found = report["rows"], report["rows"][FIXED]
    names = ", ".join(report["losses"])
    cost = report["gradient cost"]
    step = "as much as a step of plain training" if cost == 1 else f"{cost} evaluations"
    at_ends = [name for name, row in rows.items() if row["rate at an end"]]
    weights = " : ".join(f"{weight:.2g}" for weight in np.median(found["weights"], axis=0))
    low, high = (10.0 ** report["exponents"][end] for end in (0, -1))
    return (
        f"{report['setting']} Budget {report['budget']:,} evaluations, of which a step with a "
        f"gradient for each loss takes {step}; {len(rates)} learning rates from {rates[0]:g} to "
        f"{rates[-1]:g}; {report['points']} fixed weights with ratios from {low:g} to {high:g}, of "
        f"which {weights} for ({names}) were chosen (median; for {found['weights at an end']} of "
        f"{report['seeds']} seeds with a ratio at an end of its grid); learning rate chosen at an "
        f"end of its grid: {', '.join(at_ends) or 'none'}. {report['seeds']} seeds. "
        f"({machine['cores']} cores of {machine['processor']}, {study.dates_of(report)}, jax "
        f"{machine['jax']}, {study.seconds_of(report)} seconds.)"
    )


def warnings_of(reports: Reports) -> str:
    numbers = sorted({report["seeds"] for report in reports.values()})
    covered = ", ".join(f"{100 * coverage(n):.0f} % for {n}" for n in numbers)
    comparisons = [len(report["rows"]) - 1 for report in reports.values()]
    by_chance = sum(
        number * (1 - coverage(report["seeds"]))
        for number, report in zip(comparisons, reports.values(), strict=True)
    )
    return wrapped(
        "**Many comparisons.** A percentile bootstrap of few values is too narrow: instead of 95 % "
        f"it would hold the mean of a normal variable in about {covered} seeds. So of "
        f"{sum(comparisons)} comparisons with the plain sum about {by_chance:.0f} would be called "
        "by chance if no method made a difference. An asterisk has what is left when all of them "
        "are held to 5 % together, by Student's paired t-test and Holm's correction; so with the "
        "comparisons with the best fixed weights. The starting points of Rosenbrock's and Beale's "
        "functions are a fixed grid and no sample: an interval there says how much depends on the "
        "start."
    )


def wrapped(text: str) -> str:
    return textwrap.fill(f"* {text}", 100, subsequent_indent="  ", break_on_hyphens=False)


def headline(reports: Reports) -> list[str]:
    """For each suite of compared reports, whether anything beats the weights searched for."""
    parts = []
    for suite, title in SUITES.items():
        if not (found := of_suite(suite, reports)):
            continue
        beaten = {
            name: [
                each + "*" * report["rows"][each][f"against {FIXED}"]["certain"]
                for each in methods_that_are("better", FIXED, report)
                if each != PLAIN
            ]
            for name, report in found.items()
        }
        better = "; ".join(f"{name}: {', '.join(by)}" for name, by in beaten.items() if by)
        ranks = list(ranks_of(found))
        places = {name: ordinal(ranks.index(name) + 1) for name in (FIXED, PLAIN, "rlw")}
        parts.append(
            wrapped(
                f"**{title}**: fixed weights that were searched for are beaten on "
                f"{sum(map(bool, beaten.values()))} of {len(found)} problems"
                + (f" ({better})" if better else "")
                + f". By mean rank they are {places[FIXED]} of {len(ranks)} rows, the plain sum "
                f"{places[PLAIN]} and random weights (`rlw`) {places['rlw']}; the best methods are "
                f"{', '.join(f'`{name}`' for name in best_methods(ranks))}."
            )
        )
    return ["\n".join(parts)] if parts else []


def ordinal(number: int) -> str:
    is_teen = number // 10 % 10 == 1
    return f"{number}{'th' if is_teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


# What follows from it: for each suite a kind of problem, a row, and the honest alternative.
ADVICE = {
    "physics": (
        "A physics-informed network",
        "nash_mtl",
        "Where some dozens of runs can be paid for, search through fixed weights: on most of these "
        "problems they are better still.",
    ),
    "multi-task": (
        "Several tasks or penalties",
        PLAIN,
        "Where losses are in different units give these (`prior_loss`, or `units`), and where one "
        "is the main one search, or follow it with `hypergradient`.",
    ),
    "functions": (
        "Few parameters and exact gradients",
        "fairgrad",
        "With noisy gradients it is another matter, as the tasks show.",
    ),
}


def advice(reports: Reports) -> str:
    """Of compared reports: a default for each kind of problem, in Markdown."""
    parts = []
    for suite, (kind, row, alternative) in ADVICE.items():
        if found := of_suite(suite, reports):
            reason = reason_to_sum(found) if row == PLAIN else reason_for(row, found)
            parts.append(wrapped(f"**{kind}**: {reason} {alternative}"))
    return "\n".join(parts)


def reason_to_sum(reports: Reports) -> str:
    ranks = list(ranks_of(reports))
    plain, random = (ordinal(ranks.index(name) + 1) for name in (PLAIN, "rlw"))
    return (
        f"sum them and tune the learning rate, which is {plain} of {len(ranks)} rows by mean rank; "
        f"random weights (`rlw`) are {random}."
    )


def reason_for(method: str, reports: Reports) -> str:
    def on(verdict: str, reference: str) -> int:
        found = (methods_that_are(verdict, reference, report) for report in reports.values())
        return sum(method in methods for methods in found)

    return (
        f"`{method}`, ahead of the plain sum on {on('better', PLAIN)} of {len(reports)} problems "
        f"and behind on {on('worse', PLAIN)}, ahead of searched weights on {on('better', FIXED)} "
        f"and behind on {on('worse', FIXED)}."
    )


def best_methods(ranks: Sequence[str], number: int = 3) -> list[str]:
    return [name for name in ranks if name not in REFERENCES][:number]


def page(reports: Reports, picture: Callable[[str], str]) -> str:
    """The whole of docs/evidence.md; `picture` gives a picture's path from there."""
    parts = ["# Which method when: the evidence"]
    found = corrected(study.told(STUDY, reports))
    if is_quick := any(report["quick"] for report in reports.values()):
        parts.append("**A quick run: it shows that the script works and supports no verdict.**")
    parts.append(
        f"""\
Written by `python -m benchmarks.evidence`, from its JSON; nothing in it is typed by hand. Lower is
better in every table. A cell has the mean over the seeds and its 95 % percentile interval from
{RESAMPLES:,} bootstrap resamples of the seeds. Wins and losses count seeds; ▲ is better and ▼
worse, where the interval of the paired difference lies wholly on one side of 0, and · is undecided.
An asterisk is beside what is left after a correction for the number of comparisons.

* **Defaults.** Every method has its default arguments, but for the temperature of
  `learned_weights` (the largest loss before training, as its documentation asks), the second
  row of `softadapt`, `loss_weighted=True`, which the README recommends, and rows for
  physics-informed networks whose arguments are those of papers and frameworks.
* **Equal budgets.** What counts is gradient evaluations. A step of a method that looks at gradients
  (`gradnorm`, `mgda`, ...) takes K of them for K losses, unless each loss has its own batch; so
  these make fewer steps. What they reach in as many steps as the others is in the column "at equal
  steps", with wins and losses against the plain sum, and leaves out their cost. "Time of a step" is
  that of one model over that of a step on the summed loss without the library, measured in turns
  (weights that are constants cost nothing, and functions of a few parameters are not timed); where
  it is more than {NOTICED:g}, "at equal seconds" has what is reached in the plain sum's time.
* **Tuned learning rates.** Weights with another sum are another learning rate, so each row has
  its own. For each seed it is the best in the mean over the *other* seeds; for the best fixed
  weights, weights and rate together. Nothing is chosen on the seed on which it is judged, but for
  the finer points of the grid of fixed weights, which are around the best of all seeds. The
  search trains as many times more models as the grid has points; that cost is not counted.
* A result that is not finite counts as the worst. `prior_loss` needs the statistics of labels and
  `causal_weights` losses that have an order; elsewhere they are left out, or have a dash.
  `hypergradient`, which needs a target, is on [another page](targets.md).
* **Ranks** are those of the means on each problem, of the rows that all problems of a suite have;
  their intervals come from resampling the seeds, the problems held fixed.
{warnings_of(found)}"""
    )
    parts += [] if is_quick else headline(found)
    parts += filter(None, [study.not_measured(STUDY, reports)])
    if not found:
        return "\n\n".join(parts) + "\n"
    parts.append(f"![Mean rank of each method in each suite of problems]({picture('evidence')})")
    for suite, title in SUITES.items():
        if not (members := of_suite(suite, found)):
            continue
        path = picture(picture_of(suite))
        parts += [f"## {title}", f"![Mean and interval of each method on each problem]({path})"]
        parts += markdown(ranks_table(members))
        for reference in REFERENCES:
            parts += markdown(overall_table(members, reference))
        for name, report in members.items():
            table = common.markdown_table(*table_of(name, report)[1:])
            parts += [f"### {name}", setting_of(report), table]
            parts += [] if report["quick"] else [verdict_of(report)]
    return "\n\n".join(parts) + "\n"


def markdown(table: common.Table) -> list[str]:
    return [f"**{table.title}**", common.markdown_table(table.columns, table.rows)]


STUDY = Study(
    name="evidence",
    description="Which method when: an evidence table.",
    problems=problems,
    rows=tuple(METHODS),
    rows_of=rows_of,
    needed=lambda row: (),
    base=None,
    version_of=version_of,
    load=load,
    measure=measure,
    about=about,
    table_of=table_of,
    verdict_of=verdict_of,
    draw=draw,
    page=page,
)


if __name__ == "__main__":
    study.run(STUDY)
