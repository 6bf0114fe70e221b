"""Functions as problems of the evidence: two of two parameters, and conflicting quadratics."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress
import scipy.optimize

from benchmarks.problems import (
    Grid,
    Make,
    Measured,
    OfSeeds,
    Problem,
    Setting,
    Solver,
    Task,
    rates_for,
    solver_of,
    stacked,
)
from examples.paper import rosenbrock

# Rosenbrock's and Beale's functions: how soon the minimum is reached.

TOLERANCE = 1e-2


def load_function(
    function: rosenbrock.Problem, problem: Problem, progress: rich.progress.Progress
) -> Solver:
    del progress
    starts = rosenbrock.grid(function, round(problem.num_seeds**0.5))

    def measure(
        make: Make, configs: np.ndarray, stops: list[int], advance: Callable[[float], None]
    ) -> list[Measured]:
        def steps(config: jax.Array, start: jax.Array) -> jax.Array:
            losses = jnp.stack(jax.tree.leaves(function.losses_fn(start)))
            tx = optax.chain(make(Setting(len(losses), config[1:], losses)), optax.sgd(config[0]))
            limit = problem.budget
            return rosenbrock.steps_to_minimum(function, tx, start, (TOLERANCE,), limit)[0]

        over_starts = jax.vmap(steps, in_axes=(None, 0))
        over_all = jax.jit(jax.vmap(over_starts, in_axes=(0, None)))
        found = np.asarray(over_all(jnp.asarray(configs), jnp.asarray(starts)))
        advance(1.0)
        return [counted(found, problem.budget / stop, problem.budget) for stop in stops]

    return Solver(measure)


def counted(steps: np.ndarray, cost: float, budget: int) -> Measured:
    """Gradient evaluations, at most the budget, and the share in % of the starts that arrive."""
    evaluations = np.where(np.isnan(steps), np.inf, cost * steps)
    return Measured(np.minimum(evaluations, budget), 100.0 * (evaluations <= budget))


# Two quadratics that are in conflict, with a known Pareto front.

DIMENSIONS, CONDITION, UNIT = 10, 100.0, 100.0


class Quadratics(NamedTuple):
    """f_k(x) = (x - minimum_k)' hessian_k (x - minimum_k) / 2."""

    hessians: np.ndarray  # [2, n, n]
    minima: np.ndarray  # [2, n]


def draw_quadratics(seed: int) -> Quadratics:
    """Random axes and minima; the second is in another unit."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(2, DIMENSIONS, DIMENSIONS)))[0]
    curvatures = np.geomspace(1 / CONDITION, 1, DIMENSIONS) * np.asarray([[1.0], [UNIT]])
    hessians = np.einsum("kij,kj,klj->kil", axes, curvatures, axes)
    return Quadratics(hessians, rng.normal(size=(2, DIMENSIONS)))


def quadratic_losses(params: Any, quadratics: Quadratics, batch: None = None) -> list[Any]:
    del batch
    return [
        0.5 * (params - minimum) @ hessian @ (params - minimum)
        for hessian, minimum in zip(quadratics.hessians, quadratics.minima, strict=True)
    ]


def worst_share(params: np.ndarray, quadratics: Quadratics) -> float:
    """The larger loss, in units in which 0 is its minimum and 1 what the other's minimum gives."""
    nadir = [quadratic_losses(quadratics.minima[1 - k], quadratics)[k] for k in range(2)]
    return float(np.max(np.asarray(quadratic_losses(params, quadratics)) / nadir))


def front(share: float, quadratics: Quadratics) -> np.ndarray:
    """The minimum of share * f_0 + (1 - share) * f_1, which is a point of the Pareto front."""
    weighted = np.asarray([share, 1 - share])[:, None, None] * quadratics.hessians
    return np.linalg.solve(
        weighted.sum(axis=0), np.einsum("kij,kj->i", weighted, quadratics.minima)
    )


def distance_to_front(params: np.ndarray, quadratics: Quadratics) -> float:
    """The Euclidean one, over the distance of the two minima."""

    def distance(logit: float) -> float:
        share = 1 / (1 + np.exp(-logit))
        return float(np.linalg.norm(params - front(share, quadratics)))

    logits = np.linspace(-20, 20, 81)
    nearest = logits[np.argmin([distance(logit) for logit in logits])]
    found = scipy.optimize.minimize_scalar(
        distance, bounds=(nearest - 0.5, nearest + 0.5), method="bounded", options={"xatol": 1e-6}
    )
    return found.fun / float(np.linalg.norm(np.subtract(*quadratics.minima)))


def load_quadratics(problem: Problem, progress: rich.progress.Progress) -> Solver:
    del progress
    pairs = [draw_quadratics(seed) for seed in range(problem.num_seeds)]
    starts = [np.random.default_rng(1000 + s).normal(size=DIMENSIONS) for s in range(len(pairs))]

    def of_starts(function: Callable[[np.ndarray, Quadratics], float]) -> list[float]:
        return [100 * function(*each) for each in zip(starts, pairs, strict=True)]

    def judge(params: np.ndarray) -> Measured:
        params = np.clip(np.nan_to_num(params, nan=1e6), -1e6, 1e6)  # worse than the start

        def of_all(function: Callable[[np.ndarray, Quadratics], float]) -> np.ndarray:
            rows = [
                [100 * function(*each) for each in zip(row, pairs, strict=True)] for row in params
            ]
            return np.minimum(rows, of_starts(function))

        return Measured(of_all(worst_share), of_all(distance_to_front))

    of_seeds = OfSeeds(jnp.asarray(starts), stacked(pairs))
    task = Task(quadratic_losses, optax.sgd, of_seeds, judge, at_once=10_000)
    return solver_of(task)._replace(time_ratio=None)


# All of them.


def function(found: rosenbrock.Problem, about: str, exponents: np.ndarray, quick: bool) -> Problem:
    losses = tuple(sorted(found.losses_fn((0.0, 0.0))))
    budget = 1_000 if quick else 10_000
    rates = rates_for(len(losses), 2e-5, 1.0)
    return Problem(
        name=found.name,
        suite="functions",
        setting=f"{about} Gradient descent (SGD, float64) from a grid of starting points, which "
        "take the place of seeds, until the distance to the minimum is below "
        f"{TOLERANCE:g}; a start that has not arrived counts as the whole budget.",
        metric="gradient evaluations to the minimum",
        beside="% that arrive",
        written=",.0f",
        worst=float(budget),
        is_logarithmic=True,
        losses=losses,
        main=losses[0],
        budget=budget,
        gradient_cost=len(losses),
        rates=rates[:: len(rates) // 2] if quick else rates,
        grid=Grid(tuple((loss,) for loss in losses[1:]), exponents),
        num_seeds=4 if quick else 16,
        has_priors=False,
        is_double=True,
        load=functools.partial(load_function, found),
    )


def problems(quick: bool) -> list[Problem]:
    """Quick ones show that all works and support no verdict."""
    rates = rates_for(2, 1e-5, 10.0)
    return [
        function(
            rosenbrock.ROSENBROCK,
            "Rosenbrock's function in its two squares, which share their minimum.",
            np.linspace(-3, 3, 3 if quick else 13),
            quick,
        ),
        function(
            rosenbrock.BEALE,
            "Beale's function in its three squares, which share their minimum.",
            np.linspace(-3, 3, 3 if quick else 7),
            quick,
        ),
        Problem(
            name="Conflicting quadratics",
            suite="functions",
            setting=f"Pairs of random quadratics in {DIMENSIONS} dimensions, with other axes and "
            f"other minima for each seed, of condition {CONDITION:g}, the second in a unit that is "
            f"{UNIT:g} times smaller. Gradient descent (SGD, float64) for a fixed number of "
            "evaluations. A loss is 0 % at its own minimum and 100 % at that of the other; the "
            "metric is the larger of the two; what ends worse than it started counts as the start. "
            "Beside it stands the distance to the Pareto front, which is known, in % of the "
            "distance of the two minima.",
            metric="worst normalised loss, %",
            beside="distance to the front, %",
            written=".1f",
            worst=1000.0,
            is_logarithmic=True,
            losses=("first", "second"),
            main="first",
            budget=200 if quick else 1_000,
            gradient_cost=2,
            rates=rates[:: len(rates) // 2] if quick else rates,
            grid=Grid((("second",),), np.linspace(-3, 3, 3 if quick else 13)),
            num_seeds=2 if quick else 16,
            has_priors=False,
            is_double=True,
            load=load_quadratics,
        ),
    ]
