"""One row on one problem: learning rate tuned, weights searched for, judged on each seed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.problems import Make, Measured, Problem, Solver
from benchmarks.statistics import bootstrap, bounded, choose, picked

NOTICED = 1.05  # a step that takes so many times as long as a plain one gets fewer in equal time


def stops_of(problem: Problem, needs_gradients: bool, ratio: float | None) -> dict[str, int]:
    """Steps until the budget is spent, in evaluations and in seconds, and as many as plain's."""
    evaluations = problem.budget // (problem.gradient_cost if needs_gradients else 1)
    stops = {"evaluations": evaluations}
    if ratio is not None and ratio > NOTICED:
        stops["seconds"] = max(1, int(problem.budget / ratio))
    if evaluations < problem.budget:
        stops["steps"] = problem.budget
    return stops


def searched(
    problem: Problem, solver: Solver, make: Make, stops: list[int], advance: Callable[[float], None]
) -> tuple[list[Measured], np.ndarray]:
    """Of all points of the grid, and of those around the best, what was measured and where.

    The best is that of all seeds, so that the search is the better for it, not the worse.
    """
    coarse = problem.grid.points()
    every = problem.configurations(coarse)
    share = len(coarse) / (len(coarse) + 3 ** len(problem.grid.axes) - 1)
    before = solver.measure(make, every, stops, lambda done: advance(share * done))
    means = bounded(before[0].metric, problem.worst).mean(axis=1)
    best = coarse[np.argmin(means) // len(problem.rates)]
    around = problem.configurations(problem.grid.finer(best))
    after = solver.measure(make, around, stops, lambda done: advance((1 - share) * done))
    both = [joined(*pair) for pair in zip(before, after, strict=True)]
    return both, np.concatenate([every, around])


def joined(first: Measured, second: Measured) -> Measured:
    """Of the configurations of both."""
    if first.beside is None or second.beside is None:
        return Measured(np.concatenate([first.metric, second.metric]))
    return Measured(*map(np.concatenate, zip(first, second, strict=True)))


def figures_of(
    measured: Measured, configs: np.ndarray, problem: Problem, is_searched: bool
) -> dict[str, Any]:
    """Figures of each seed at the configuration that is best on the others, and their mean."""
    metric = bounded(measured.metric, problem.worst)
    chosen = choose(metric)
    rates = configs[chosen, 0]
    values = picked(metric, chosen)
    found: dict[str, Any] = {
        "values": values,
        "mean": values.mean(),
        "interval": bootstrap(values),
        "learning rates": rates,
        "rate at an end": bool(np.ptp(metric) > 0) and is_at_an_end(problem.rates, rates),
    }
    if is_searched:
        found["weights"] = configs[chosen, 1:]
        found["weights at an end"] = edges(configs[:, 1:], configs[chosen, 1:])
    if measured.beside is not None:
        found["beside"] = picked(measured.beside, chosen)
    return found


def measure(
    problem: Problem,
    solver: Solver,
    make: Make,
    advance: Callable[[float], None],
    *,
    needs_gradients: bool,
    is_timed: bool,
    is_searched: bool,
) -> dict[str, Any]:
    """What the JSON holds of a row: at equal evaluations, and at equal seconds and steps.

    With the weights of the problem's grid if they are searched for, else with equal ones, which a
    method that has its own does not look at.
    """
    ratio = solver.time_ratio(make) if is_timed and solver.time_ratio is not None else None
    stops = stops_of(problem, needs_gradients, ratio)
    if is_searched:
        measured, configs = searched(problem, solver, make, [*stops.values()], advance)
    else:
        configs = problem.configurations(np.zeros((1, len(problem.grid.axes))))
        measured = solver.measure(make, configs, [*stops.values()], advance)
    row, *others = (figures_of(each, configs, problem, is_searched) for each in measured)
    for budget, other in zip(list(stops)[1:], others, strict=True):
        row[f"at equal {budget}"] = {key: other[key] for key in ("values", "mean", "interval")}
    return row | ({} if ratio is None else {"time ratio": ratio})


def is_at_an_end(values: np.ndarray, chosen: np.ndarray) -> bool:
    """Whether a choice is the smallest or the largest of all values that there are."""
    return bool(np.any((chosen == np.min(values)) | (chosen == np.max(values))))


def edges(points: np.ndarray, chosen: np.ndarray) -> int:
    """How many of the chosen weights have a pair in the smallest or largest ratio of the grid.

    Both of shape [.., K]; a ratio is the share of one weight in the two.
    """

    def shares(weights: np.ndarray) -> np.ndarray:
        first, second = np.triu_indices(weights.shape[-1], 1)
        return weights[:, first] / (weights[:, first] + weights[:, second])

    grid, found = shares(points), shares(chosen)
    varies = np.ptp(grid, axis=0) > 1e-9
    is_end = np.isclose(found, grid.min(axis=0)) | np.isclose(found, grid.max(axis=0))
    return int(np.sum(np.any(is_end & varies, axis=1)))
