"""The rows of the study against a grid search: what trains, what it costs, how it is measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import softadapt_optax as sa
from benchmarks import evidence_rows, versions
from benchmarks.evidence_rows import FIXED, PLAIN
from benchmarks.problems import Make, Setting
from benchmarks.statistics import bootstrap, bounded, picked
from benchmarks.target_problems import (
    Problem,
    Task,
    drawn_points,
    flops_of,
    judged,
    plain_flops_of,
    points_of,
    train,
)
from benchmarks.tuned import is_at_an_end

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


METHODS = {
    name: Row(method.make, method.needs_gradients)
    for name, method in evidence_rows.METHODS.items()
    if name not in (PLAIN, FIXED) and method.suites is None and name != "causal_weights"
}


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
    PLAIN: Row(evidence_rows.METHODS[PLAIN].make),
    GRID: Row(evidence_rows.METHODS[FIXED].make),
    RANDOM: Row(evidence_rows.METHODS[FIXED].make),
    **METHODS,
    **FOLLOWING,
    **dict.fromkeys(THEN_FIXED, Row(evidence_rows.METHODS[FIXED].make)),
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


class Loaded(NamedTuple):
    """A problem's task, and the flops of a step on the summed loss and of one on a weighted sum."""

    task: Task
    plain_flops: float
    weighted_flops: float


def loaded(problem: Problem) -> Loaded:
    task = problem.load(problem.num_seeds, problem.steps)
    return Loaded(task, plain_flops_of(task), flops_of(task, ROWS[PLAIN].make))


def measure(
    problem: Problem,
    found: Loaded,
    name: str,
    rows: dict[str, dict[str, Any]],
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """What the JSON holds of a row, with its cost; `rows` are those that have been measured."""
    of_run = {
        "runs": 1,
        "evaluations": evaluations_of(ROWS[name], len(problem.losses)),
        "flops": flop_ratio(ROWS[name], *found),
    }
    configs = configurations(name, problem, rows)
    cost = in_all(of_run, runs_of(name, problem), rows.get(THEN_FIXED.get(name, "")))
    return run_row(name, problem, found.task, configs, advance) | cost


def rows_of(problem: Problem, quick: bool) -> list[str]:
    names = [name for name in ROWS if name in QUICK or not quick]
    return [name for name in names if name != "prior_loss" or problem.has_priors]


def needed(name: str) -> tuple[str, ...]:
    return (THEN_FIXED[name],) if name in THEN_FIXED else ()


def version_of(problem: Problem, name: str) -> str:
    """Of the code and the settings on which a row's figures rest."""
    method = evidence_rows.METHODS[name] if name in METHODS else None
    factory = method.factory if method else "hypergradient" if name in FOLLOWING else "balance"
    modules = ("benchmarks.target_problems", __name__, getattr(sa, factory).__module__)
    settings = problem._replace(setting="", load=None)
    about = (name, method and method[:-1], MAIN_FIRST, settings)
    return versions.version_of(modules, about, without=("benchmarks.evidence_rows",))
