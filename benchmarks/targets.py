"""Against a grid search: weights that follow a target, in one run, beside weights searched for.

    python -m benchmarks.targets [--only PROBLEM ...] [--rows ROW ...] [--out FOLDER] [--quick]

The plain sum, a grid search, a random search, every method of the library and `hypergradient` train
on the problems of `benchmarks/target_problems.py`, as many steps each. What it finds goes into
`targets.json`, from which page and picture are made, in docs/ or, with `--out`, beside it. With
`--only` the other problems stay as they are in that file, with `--rows` the other rows. `--quick`
shows that it runs and supports no verdict.

Nothing is chosen on the digits on which it is judged: learning rate and searched weights are, for
each seed, those that are best on the validation digits at the end of training.
"""

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.figure
import matplotlib.lines
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.progress

import softadapt_optax as sa
from benchmarks import evidence, study
from benchmarks.evidence import (
    COLOURS,
    FIXED,
    MARKERS,
    MARKS,
    PLAIN,
    RESAMPLES,
    bootstrap,
    bounded,
    compare,
    is_at_an_end,
    picked,
    with_interval,
)
from benchmarks.problems import Make, Setting
from benchmarks.study import Report, Study
from benchmarks.target_problems import (
    BATCH,
    FEATURES,
    HIDDEN,
    PIXELS,
    Problem,
    Task,
    drawn_points,
    flops_of,
    judged,
    plain_flops_of,
    points_of,
    problems,
    train,
)
from examples.paper import common

WORST = 10.0  # what a cross entropy that is larger or not finite counts as
MAIN_FIRST = 0.01  # what each further loss starts with, where the first is the main one
AFFORDABLE = 1.5  # the cost of the goal, in plain runs

# The rows.

GRID, RANDOM = "grid search", "random search"


class Row(NamedTuple):
    """What trains."""

    make: Make
    needs_gradients: bool = False  # one for each loss in each step
    every: int | None = None  # steps from one look at the target to the next


METHODS = {name: Row(*row) for name, row in evidence.METHODS.items() if name not in (PLAIN, FIXED)}


def following(every: int, share: float = 1.0) -> Row:
    """`hypergradient` with the first loss at 1 and each other at a share of it to start from."""

    def make(setting: Setting) -> Any:
        priorities = [1.0, *[share] * (setting.num_losses - 1)]
        return sa.hypergradient(setting.num_losses, priorities=priorities, every=every)

    return Row(make, every=every)


FOLLOWING = {
    "hypergradient": following(1),
    "hypergradient, every=10": following(10),
    "hypergradient, main loss first": following(1, MAIN_FIRST),
    "hypergradient, main loss first, every=10": following(10, MAIN_FIRST),
}
THEN_FIXED = {f"{name}, then fixed": name for name in FOLLOWING}  # a new run, at its last weights
ROWS = {
    PLAIN: Row(evidence.METHODS[PLAIN].make),
    GRID: Row(evidence.METHODS[FIXED].make),
    RANDOM: Row(evidence.METHODS[FIXED].make),
    **METHODS,
    **FOLLOWING,
    **dict.fromkeys(THEN_FIXED, Row(evidence.METHODS[FIXED].make)),
}
QUICK = (PLAIN, GRID, RANDOM, "mgda", *FOLLOWING, *THEN_FIXED)  # what is run then


# What they cost.


def evaluations_of(row: Row, num_losses: int) -> float:
    """Of one run, in plain runs: gradients of a batch; a third of one is a forward pass.

    A look at the target is its gradient and one forward-mode pass, and with a period the forward
    pass is made anew for it.
    """
    if row.every is not None:
        return 1 + (1 + 1 / 3 + (row.every > 1) / 3) / row.every
    return float(num_losses) if row.needs_gradients else 1.0


def drawn_runs() -> int:
    """How many runs the random search has: those that one run of `hypergradient` pays for."""
    return max(1, int(evaluations_of(FOLLOWING["hypergradient"], 1)))


def runs_of(name: str, problem: Problem) -> int:
    """Runs at each learning rate."""
    return {GRID: len(points_of(problem.ratios)), RANDOM: drawn_runs()}.get(name, 1)


def flop_ratio(row: Row, task: Task, plain: float, weighted: float) -> float:
    """Of one run: flops of a step over those of a plain one; of a period the mean step.

    `weighted` are those of a step with fixed weights, which a step without a look takes.
    """
    found = flops_of(task, row.make, row.every is not None)
    every = row.every or 1
    return (found + (every - 1) * weighted) / every / plain


def in_all(of_run: dict[str, float], runs: int, before: dict[str, Any] | None) -> dict[str, float]:
    """The cost of a row's runs, and of the run that they need before."""
    return {name: runs * each + (before[name] if before else 0.0) for name, each in of_run.items()}


# Choices.


def configurations(name: str, problem: Problem, rows: dict[str, dict[str, Any]]) -> np.ndarray:
    """(learning rate, weights), shape [configurations, seeds, 1 + K], rate by rate.

    The rows are those that have been run before.
    """
    num_seeds, num_losses = problem.num_seeds, len(problem.losses)
    if name == RANDOM:
        points = drawn_points(problem.ratios, (drawn_runs(), num_seeds), seed=0)
    elif name in THEN_FIXED:
        points = np.asarray(rows[THEN_FIXED[name]]["weights"])[None]
    else:
        found = points_of(problem.ratios) if name == GRID else np.ones((1, num_losses))
        points = np.repeat(found[:, None], num_seeds, axis=1)
    rates = np.repeat(problem.rates, len(points))[:, None, None]
    points = np.tile(points, (len(problem.rates), 1, 1))
    return np.concatenate([np.broadcast_to(rates, (*points.shape[:2], 1)), points], axis=-1)


def choose(validation: np.ndarray) -> np.ndarray:
    """For each seed the configuration that is best on its validation digits, shape [seeds].

    Of their cross entropies, of shape [configurations, seeds].
    """
    return np.argmin(bounded(validation, WORST), axis=0)


def by_rate(validation: np.ndarray, test: np.ndarray, num_rates: int) -> list[float]:
    """The mean cross entropy of test digits at each rate, the weights chosen as ever."""
    shape = (num_rates, -1, test.shape[1])
    pairs = zip(validation.reshape(shape), test.reshape(shape), strict=True)
    return [float(picked(bounded(test, WORST), choose(found)).mean()) for found, test in pairs]


def at_an_end(problem: Problem, weights: np.ndarray) -> int:
    """Of weights [seeds, K], for how many seeds a ratio is the largest of its grid."""
    largest = np.asarray([np.max(values) for values in problem.ratios])
    return int(np.sum(np.any(np.isclose(weights[:, 1:] / weights[:, :1], largest), axis=1)))


# Running.


def run_row(
    name: str, problem: Problem, task: Task, configs: np.ndarray, advance: Callable[[float], None]
) -> dict[str, Any]:
    """What the JSON holds of a row but for its cost: figures of each seed, weights on the way."""
    row = ROWS[name]
    models = train(task, row.make, configs, row.every is not None, advance=advance)
    validation = judged(task, models.params, task.of_seeds.validation).cross_entropy
    test = judged(task, models.params, task.test)
    chosen = choose(validation)
    rates = picked(configs[..., 0], chosen)
    paths = models.weights[chosen, np.arange(problem.num_seeds)]
    values = picked(bounded(test.cross_entropy, WORST), chosen)
    found = {
        "values": values,
        "mean": values.mean(),
        "interval": bootstrap(values),
        "errors": picked(test.errors, chosen),
        "validation": picked(bounded(validation, WORST), chosen),
        "learning rates": rates,
        "rate at an end": is_at_an_end(problem.rates, rates),
        "by rate": by_rate(validation, test.cross_entropy, len(problem.rates)),
        "weights": paths[:, -1],
    }
    return found | ({} if row.every is None else {"path": paths.mean(axis=0)})


def with_comparisons(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows with what stands against the plain sum and the grid search, seed by seed."""
    result = {}
    for name, row in rows.items():
        found = {
            f"against {reference}": compare(row["values"], rows[reference]["values"])
            for reference in (PLAIN, GRID)
            if name != reference
        }
        if name in FOLLOWING:
            found["validation against"] = compare(row["validation"], rows[GRID]["validation"])
        result[name] = row | found
    return result


def run(
    problem: Problem, quick: bool, progress: rich.progress.Progress, kept: dict[str, Any]
) -> dict[str, Any]:
    """The rows of a problem, by name; those that are kept as they are, but for new weights."""
    names = [name for name in ROWS if name in QUICK or not quick]
    names = [name for name in names if name != "prior_loss" or problem.has_priors]
    runs = [runs_of(name, problem) for name in names]
    bar = progress.add_task(f"{problem.name}: data", total=sum(runs))
    task = problem.load(problem.num_seeds, problem.steps)
    plain, weighted = plain_flops_of(task), flops_of(task, ROWS[PLAIN].make)
    rows = {}
    for name, number in zip(names, runs, strict=True):
        progress.update(bar, description=f"{problem.name}: {name}")

        def advance(share: float, number: int = number) -> None:
            progress.advance(bar, number * share)

        if {name, THEN_FIXED.get(name, name)} <= kept.keys():
            rows[name] = kept[name]
            advance(1.0)
            continue
        configs = configurations(name, problem, rows)
        of_run = {
            "runs": 1,
            "evaluations": evaluations_of(ROWS[name], len(problem.losses)),
            "flops": flop_ratio(ROWS[name], task, plain, weighted),
        }
        rows[name] = run_row(name, problem, task, configs, advance)
        rows[name] |= in_all(of_run, number, rows.get(THEN_FIXED.get(name, "")))
    progress.update(bar, description=problem.name)
    return with_comparisons(rows)


def report_of(
    problem: Problem, quick: bool, progress: rich.progress.Progress, kept: dict[str, Any]
) -> Report:
    rows = run(problem, quick, progress, kept)
    return {
        "machine": common.describe_machine(),
        "quick": quick,
        "setting": problem.setting,
        "losses": problem.losses,
        "ratios": problem.ratios,
        "rates": problem.rates,
        "steps": problem.steps,
        "seeds": problem.num_seeds,
        "grid at an end": at_an_end(problem, np.asarray(rows[GRID]["weights"])),
        "rows": rows,
    }


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


def overall_table(reports: dict[str, Report], reference: str) -> common.Table:
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


def goals_of(reports: dict[str, Report]) -> str:
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
    return "\n".join(wrapped(part) for part in parts)


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
    axes.set_yticks(range(len(names)), names, fontsize="small")
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


def draw(reports: dict[str, Report]) -> matplotlib.figure.Figure:
    """For each problem the rows on the left and weights over time on the right."""
    figure, axes = plt.subplots(
        len(reports),
        2,
        figsize=(12.5, 0.8 + 4.4 * len(reports)),
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
    return figure


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
        f"{machine['jax']}, {report['seconds']} seconds.)"
    )


def about(reports: dict[str, Report]) -> str:
    """What holds on all problems, in Markdown."""
    drawn = evaluations_of(FOLLOWING["hypergradient"], 1)
    sparse = evaluations_of(FOLLOWING["hypergradient, every=10"], 1)
    seeds = ", ".join(
        f"{100 * evidence.coverage(number):.0f} % for {number}"
        for number in sorted({report["seeds"] for report in reports.values()})
    )
    items = (
        "**The question.** A grid search sees what is wanted, a loss of validation digits; the "
        "other methods see the training losses only. `hypergradient` sees what the search sees: "
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


def page(reports: dict[str, Report], picture: str) -> str:
    """The whole of docs/targets.md; `picture` is its path from there."""
    parts = ["# Against a grid search"]
    is_quick = any(report["quick"] for report in reports.values())
    if is_quick:
        parts.append("**A quick run: it shows that the script works and supports no verdict.**")
    source = (
        "Written by `python -m benchmarks.targets`, from its JSON; nothing in it is typed by hand. "
        "Lower is better in every table."
    )
    parts += [textwrap.fill(source, 100), about(reports)]
    parts += [] if is_quick else [goals_of(reports)]
    parts += filter(None, [study.note_on_the_others(ROWS, *reports.values())])
    parts.append(f"![Cross entropy of each row, and weights over time]({picture})")
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
    report_of=report_of,
    table_of=table_of,
    verdict_of=verdict_of,
    overall=lambda reports: [],
    draw=draw,
    page=page,
)


if __name__ == "__main__":
    study.run(STUDY)
