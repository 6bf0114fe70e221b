"""Which method when: all methods on six problems, with honest statistics.

    python -m benchmarks.evidence [--only PROBLEM ...] [--rows ROW ...] [--out FOLDER] [--quick]

Every method of the library with its default arguments, the plain sum and the best fixed weights of
a grid train on the problems of `benchmarks/problems.py`, with equal budgets of gradients,
several seeds and several learning rates. What it finds goes into `evidence.json`, from which page
and picture are made, in docs/ or, with `--out`, beside it. With `--only` the other problems stay as
they are in that file. It takes about 20 minutes on two cores, and a minute and a half with
`--quick`, which shows with few methods that it runs and supports no verdict.

Nothing is chosen on the seed on which it is judged: the learning rate of each method and seed, and
the fixed weights with it, are those that are best in the mean over the other seeds.
"""

import contextlib
import functools
import textwrap
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.figure
import matplotlib.lines
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import rich.console
import rich.progress
import scipy.stats

import softadapt_optax as sa
from benchmarks import methods, study
from benchmarks.problems import Make, Measured, Problem, problems
from benchmarks.study import Report, Study
from examples.paper import common
from examples.paper.rosenbrock import double_precision

RESAMPLES = 10_000

# The methods.

PLAIN, FIXED = "plain sum", "best fixed weights"
# The first are PLAIN and FIXED, the second is for losses that have an order, which no problem has,
# and the others want what not all problems have: a target (`python -m benchmarks.targets`), traces.
LEFT_OUT = ("fixed_weights", "causal_weights", *methods.WITH_MORE)


class Method(NamedTuple):
    """A row of the tables."""

    make: Make
    needs_gradients: bool = False  # one for each loss in each step


def with_defaults(name: str) -> Method:
    make = functools.partial(methods.make, name)
    return Method(lambda s: make(s.num_losses, shared=s.shared), name in methods.ON_GRADIENTS)


METHODS = {
    PLAIN: Method(lambda s: sa.fixed_weights(jnp.ones(s.num_losses))),
    FIXED: Method(lambda s: sa.fixed_weights(s.weights)),
    **{name: with_defaults(name) for name in methods.ALL if name not in LEFT_OUT},
    "prior_loss": Method(lambda s: sa.prior_loss(s.prior_losses)),
    "softadapt, loss weighted": Method(lambda s: sa.softadapt(s.num_losses, loss_weighted=True)),
    "learned_weights": Method(
        lambda s: sa.learned_weights(s.num_losses, temperature=jnp.max(s.first_losses))
    ),
}


# Statistics.


def choose(metric: np.ndarray) -> np.ndarray:
    """For each seed the configuration that is best over the other seeds, shape [seeds].

    Of a metric of shape [configurations, seeds], the mean of which is to be small.
    """
    seeds = range(metric.shape[1])
    return np.asarray([np.argmin(np.delete(metric, seed, axis=1).mean(axis=1)) for seed in seeds])


def bootstrap(values: np.ndarray) -> list[float]:
    """The 95 % percentile interval of the mean, by resampling the seeds with a fixed seed."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return np.percentile(np.asarray(values)[drawn].mean(axis=1), [2.5, 97.5]).tolist()


def coverage(num_seeds: int) -> float:
    """How often that interval holds the mean of a normal variable, roughly.

    Its half width is 1.96 standard errors with n in the place of n - 1.
    """
    width = scipy.stats.norm.ppf(0.975) * np.sqrt((num_seeds - 1) / num_seeds)
    return float(2 * scipy.stats.t.cdf(width, num_seeds - 1) - 1)


def compare(values: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """The paired difference over the seeds, below 0 if the values are better."""
    differences = np.asarray(values) - np.asarray(reference)
    low, high = bootstrap(differences)
    return {
        "difference": float(differences.mean()),
        "interval": [low, high],
        "wins": int(np.sum(differences < 0)),
        "losses": int(np.sum(differences > 0)),
        "verdict": "better" if high < 0 else "worse" if low > 0 else "undecided",
    }


def is_at_an_end(values: np.ndarray, chosen: np.ndarray) -> bool:
    """Whether a choice is the smallest or the largest of all values that there are."""
    return bool(np.any((chosen == np.min(values)) | (chosen == np.max(values))))


def edges(points: np.ndarray, chosen: np.ndarray) -> int:
    """How many of the chosen weights have a pair in the smallest or largest ratio of the grid.

    Both of shape [.., K]; a ratio is the share of one weight in the two.
    """

    def shares(weights: np.ndarray) -> np.ndarray:
        first, second = np.triu_indices(weights.shape[-1], 1)
        both = weights[:, first] + weights[:, second]
        return np.where(both > 0, weights[:, first] / np.where(both > 0, both, 1.0), 0.0)

    grid, found = shares(points), shares(chosen)
    is_end = np.isclose(found, grid.min(axis=0)) | np.isclose(found, grid.max(axis=0))
    return int(np.sum(np.any(is_end, axis=1)))


def picked(table: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of a table [configurations, seeds] the value of each seed at its configuration."""
    return table[chosen, np.arange(len(chosen))]


def bounded(metric: np.ndarray, worst: float) -> np.ndarray:
    return np.where(np.isfinite(metric), np.minimum(metric, worst), worst)


def row_of(measured: list[Measured], configs: np.ndarray, problem: Problem) -> dict[str, Any]:
    """What the JSON holds of a method: figures of each seed, and the mean with its interval."""
    metric = bounded(measured[0].metric, problem.worst)
    chosen = choose(metric)
    rates = configs[chosen, 0]
    row: dict[str, Any] = {
        "values": picked(metric, chosen),
        "learning rates": rates,
        "rate at an end": bool(np.ptp(metric) > 0) and is_at_an_end(problem.rates, rates),
    }
    if len(configs) > len(problem.rates):
        row["weights"] = configs[chosen, 1:]
        row["weights at an end"] = edges(problem.points, configs[chosen, 1:])
    if measured[0].beside is not None:
        row["beside"] = picked(measured[0].beside, chosen)
    row |= {"mean": row["values"].mean(), "interval": bootstrap(row["values"])}
    if len(measured) > 1:
        metric = bounded(measured[1].metric, problem.worst)
        values = picked(metric, choose(metric))
        row["at equal steps"] = {
            "values": values,
            "mean": values.mean(),
            "interval": bootstrap(values),
        }
    return row


def with_comparisons(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows with what stands against the plain sum and against the best fixed weights."""
    result = {}
    for name, row in rows.items():
        against = {
            f"against {reference}": compare(row["values"], rows[reference]["values"])
            for reference in (PLAIN, FIXED)
            if name != reference
        }
        result[name] = row | against
        if (equal := row.get("at equal steps")) is not None:
            found = compare(equal["values"], rows[PLAIN]["values"])
            result[name]["at equal steps"] = equal | {f"against {PLAIN}": found}
    return result


# Running.


def configurations(problem: Problem, name: str) -> np.ndarray:
    """(learning rate, weights), shape [configurations, 1 + K]; equal weights but for the grid."""
    points = problem.points if name == FIXED else np.ones((1, len(problem.losses)))
    return np.asarray([[rate, *point] for point in points for rate in problem.rates])


QUICK = (PLAIN, FIXED, "softadapt, loss weighted", "normalized_gradients")  # what is run then


def run(
    problem: Problem, quick: bool, progress: rich.progress.Progress, kept: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The rows of a problem, by method; those that are kept as they are."""
    names = [name for name in METHODS if name in QUICK or not quick]
    names = [name for name in names if name != "prior_loss" or problem.has_priors]
    task = progress.add_task(f"{problem.name}: data", total=len(names))
    rows = {}
    with double_precision() if problem.is_double else contextlib.nullcontext():
        solver = problem.load(problem, progress)
        for index, name in enumerate(names):
            if name in kept:
                rows[name] = kept[name]
                continue
            method = METHODS[name]
            progress.update(task, completed=index, description=f"{problem.name}: {name}")
            configs = configurations(problem, name)
            cost = problem.gradient_cost if method.needs_gradients else 1

            def advance(share: float) -> None:
                progress.advance(task, share)

            measured = solver.measure(method.make, configs, cost, advance)
            rows[name] = row_of(measured, configs, problem)
    progress.update(task, completed=len(names), description=problem.name)
    return with_comparisons(rows)


def report_of(
    problem: Problem, quick: bool, progress: rich.progress.Progress, kept: dict[str, dict[str, Any]]
) -> Report:
    rows = run(problem, quick, progress, kept)
    return {
        "machine": common.describe_machine(),
        "quick": quick,
        "setting": problem.setting,
        "metric": problem.metric,
        "beside": problem.beside,
        "written": problem.written,
        "logarithmic": problem.is_logarithmic,
        "losses": problem.losses,
        "budget": problem.budget,
        "gradient cost": problem.gradient_cost,
        "rates": problem.rates,
        "points": len(problem.points),
        "seeds": len(rows[PLAIN]["values"]),
        "rows": rows,
    }


# Tables and verdicts; every cell is text.

MARKS = {"better": "▲", "worse": "▼", "undecided": "·"}


def with_interval(mean: float, interval: list[float], written: str) -> str:
    low, high = interval
    return f"{mean:{written}} [{low:{written}}, {high:{written}}]"


def tally(row: dict[str, Any], reference: str) -> str:
    if (found := row.get(f"against {reference}")) is None:
        return ""
    return f"{found['wins']}-{found['losses']} {MARKS[found['verdict']]}"


def table_of(name: str, report: Report) -> common.Table:
    written, rows = report["written"], report["rows"]
    has_steps = any("at equal steps" in row for row in rows.values())
    columns = ["method", report["metric"], "difference to plain sum", "wins-losses, plain sum"]
    columns += ["wins-losses, best fixed"]
    columns += ["at equal steps"] if has_steps else []
    columns += [report["beside"]] if report["beside"] else []
    cells = []
    for method in study.shown(METHODS, report):
        row = rows[method]
        against, equal = row.get(f"against {PLAIN}"), row.get("at equal steps")
        cell = [
            method,
            with_interval(row["mean"], row["interval"], written),
            with_interval(against["difference"], against["interval"], "+" + written)
            if against
            else "",
            tally(row, PLAIN),
            tally(row, FIXED),
        ]
        at_steps = with_interval(equal["mean"], equal["interval"], written) if equal else ""
        cell += [f"{at_steps} {tally(equal, PLAIN)}" if equal else ""] * has_steps
        cell += [f"{np.mean(row['beside']):.3g}"] if report["beside"] else []
        cells.append(tuple(cell))
    return common.Table(f"{name}: {report['metric']}", tuple(columns), cells)


def overall_table(reports: dict[str, Report], reference: str) -> common.Table:
    cells = []
    for method in study.shown(METHODS, *reports.values()):
        if method != reference:
            rows = [report["rows"].get(method) for report in reports.values()]
            cells.append((method, *("-" if row is None else tally(row, reference) for row in rows)))
    title = f"Wins and losses over the seeds against the {reference}"
    return common.Table(title, ("method", *reports), cells)


def methods_that_are(verdict: str, reference: str, report: Report) -> list[str]:
    return [
        name
        for name, row in report["rows"].items()
        if row.get(f"against {reference}", {}).get("verdict") == verdict
    ]


def verdict_of(report: Report) -> str:
    """By rule: an interval of the paired difference that lies wholly on one side of 0."""
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


# The picture.

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
        axes.plot(row["mean"], height, MARKERS.get(verdict, "D"), color=colour, ms=7)
    for method in set(methods) - report["rows"].keys():
        axes.text(
            0.5,
            methods.index(method),
            "does not apply",
            transform=axes.get_yaxis_transform(),
            ha="center",
            va="center",
            color="0.5",
            bbox={"color": "white", "pad": 1},
        )
    axes.set(title=name, xlabel=report["metric"])
    if report["logarithmic"] and min(row["interval"][0] for row in report["rows"].values()) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.tick_params(axis="x", labelsize="small")
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def draw(reports: dict[str, Report]) -> matplotlib.figure.Figure:
    """A panel for each problem: means and intervals, coloured by what they are to the plain sum."""
    columns = min(3, len(reports))
    rows = -(-len(reports) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.5 + 4.5 * columns, 0.8 + 4.4 * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    methods = study.shown(METHODS, *reports.values())
    for ax, (name, report) in zip(axes.flat, reports.items(), strict=False):
        draw_problem(ax, name, report, methods)
    for ax in axes.flat[len(reports) :]:
        ax.set_visible(False)
    handles = [
        matplotlib.lines.Line2D([], [], color=COLOURS[v], marker=MARKERS[v], lw=2, label=label)
        for v, label in (
            ("better", "better than the plain sum"),
            ("undecided", "undecided"),
            ("worse", "worse"),
        )
    ]
    handles += [
        matplotlib.lines.Line2D([], [], color="black", marker="D", label="plain sum"),
        matplotlib.lines.Line2D([], [], color="black", ls="--", label="best fixed weights"),
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=5,
        title="Lower is better; mean over the seeds and its 95 % bootstrap interval",
    )
    return figure


# The page.


def setting_of(report: Report) -> str:
    rates, machine = report["rates"], report["machine"]
    rows = report["rows"]
    names = ", ".join(report["losses"])
    cost = report["gradient cost"]
    step = "as much as a step of plain training" if cost == 1 else f"{cost} evaluations"
    at_ends = [name for name, row in rows.items() if row["rate at an end"]]
    found = rows[FIXED]
    weights = " : ".join(f"{weight:.2g}" for weight in np.median(found["weights"], axis=0))
    return (
        f"{report['setting']} Budget {report['budget']:,} evaluations, of which a step with a "
        f"gradient for each loss takes {step}; {len(rates)} learning rates from {rates[0]:g} to "
        f"{rates[-1]:g}; {report['points']} fixed weights for ({names}), of which "
        f"{weights} were chosen (median; for {found['weights at an end']} of {report['seeds']} "
        "seeds with a ratio at an end of its grid); learning rate chosen at an end of its grid: "
        f"{', '.join(at_ends) or 'none'}. {report['seeds']} seeds. ({machine['cores']} cores of "
        f"{machine['processor']}, {study.dates_of(report)}, jax {machine['jax']}, "
        f"{report['seconds']} seconds.)"
    )


def warnings_of(reports: dict[str, Report]) -> str:
    numbers = sorted({report["seeds"] for report in reports.values()})
    covered = ", ".join(f"{100 * coverage(n):.0f} % for {n}" for n in numbers)
    comparisons = [len(report["rows"]) - 1 for report in reports.values()]
    by_chance = sum(
        number * (1 - coverage(report["seeds"]))
        for number, report in zip(comparisons, reports.values(), strict=True)
    )
    text = (
        "* A percentile bootstrap of few values is too narrow: instead of 95 % it would hold the "
        f"mean of a normal variable in about {covered} seeds. So of {sum(comparisons)} comparisons "
        f"with the plain sum about {by_chance:.0f} would be called by chance if no method made a "
        "difference. Read ▲ and ▼ with the number of wins and the size of the difference, and "
        "trust what repeats across problems. The starting points of Rosenbrock's and Beale's "
        "functions are a fixed grid and no sample: an interval there says how much depends on the "
        "start."
    )
    return textwrap.fill(text, 100, subsequent_indent="  ")


def page(reports: dict[str, Report], picture: str) -> str:
    """The whole of docs/evidence.md; `picture` is its path from there."""
    parts = ["# Which method when: the evidence"]
    if is_quick := any(report["quick"] for report in reports.values()):
        parts.append("**A quick run: it shows that the script works and supports no verdict.**")
    unbeaten = [name for name, report in reports.items() if "**" in verdict_of(report)]
    parts.append(
        f"""\
Written by `python -m benchmarks.evidence`, from its JSON; nothing in it is typed by hand. Lower is
better in every table. A cell has the mean over the seeds and its 95 % percentile interval from
{RESAMPLES:,} bootstrap resamples of the seeds. Wins and losses count seeds; ▲ is better and ▼
worse, where the interval of the paired difference lies wholly on one side of 0, and · is undecided.

* **Defaults.** Every method has its default arguments, but for the temperature of
  `learned_weights` (the largest loss before training, as its documentation asks) and the second
  row of `softadapt`, `loss_weighted=True`, which the README recommends.
* **Equal budgets.** What counts is gradient evaluations. A step of a method that looks at gradients
  (`gradnorm`, `mgda`, ...) takes K of them for K losses, unless each loss has its own batch; so
  these make fewer steps. What they reach in as many steps as the others is in the column "at equal
  steps", with wins and losses against the plain sum, and leaves out their cost.
* **Tuned learning rates.** Weights with another sum are another learning rate, so each row has
  its own. For each seed it is the best in the mean over the *other* seeds; for the best fixed
  weights, weights and rate together. Nothing is chosen on the seed on which it is judged. The
  search for fixed weights trains as many times more models as the grid has points; that cost is
  not counted.
* A result that is not finite counts as the worst. `prior_loss` needs the statistics of labels,
  which only the tasks on digits have; elsewhere it is left out, or has a dash.
{warnings_of(reports)}"""
    )
    if not is_quick:
        found = ", ".join(unbeaten) or "none of the problems"
        parts.append(f"**Nothing beats a tuned fixed weight on: {found}.**")
    parts += filter(None, [study.note_on_the_others(METHODS, *reports.values())])
    parts.append(f"![Mean and interval of each method on each problem]({picture})")
    for reference in (PLAIN, FIXED):
        parts += markdown(overall_table(reports, reference))
    for name, report in reports.items():
        table = common.markdown_table(*table_of(name, report)[1:])
        parts += [f"## {name}", setting_of(report), table]
        parts += [] if report["quick"] else [verdict_of(report)]
    return "\n\n".join(parts) + "\n"


def markdown(table: common.Table) -> list[str]:
    return [f"**{table.title}**", common.markdown_table(table.columns, table.rows)]


STUDY = Study(
    name="evidence",
    description="Which method when: an evidence table.",
    problems=problems,
    rows=tuple(METHODS),
    report_of=report_of,
    table_of=table_of,
    verdict_of=verdict_of,
    overall=lambda reports: [overall_table(reports, name) for name in (PLAIN, FIXED)],
    draw=draw,
    page=page,
)


if __name__ == "__main__":
    study.run(STUDY)
