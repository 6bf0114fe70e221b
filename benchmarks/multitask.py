"""Two multi-task problems of `benchmarks.evidence`: patients in raw units, and a toy.

Three regressions in raw units that share a trunk, and the two losses of two parameters on which
CAGrad and Nash-MTL were shown. What a problem is, and how it is trained: `benchmarks/problems.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress
import scipy.optimize
import sklearn.datasets

import softadapt_optax as sa
from benchmarks.functions import counted
from benchmarks.images import solver_by_skill
from benchmarks.problems import (
    Grid,
    Make,
    Measured,
    OfSeeds,
    Problem,
    Setting,
    Solver,
    Task,
    keys_of,
    stacked,
)

# Three regressions on the patients of scikit-learn, in raw units.

TARGETS = ("blood pressure", "progression", "triglycerides")  # sorted, as JAX orders dictionaries
TRUNK_UNITS = 4
NUM_TRAINING = 300  # the other 142 are for the test
BATCH = 64


class Patients(NamedTuple):
    """Features of mean 0 and variance 1 on the training patients, and what is to be predicted."""

    features: jax.Array  # [n, 8]
    targets: dict[str, jax.Array]  # by task, each [n]


class Splits(NamedTuple):
    """Two sets of patients that share none."""

    training: Patients
    test: Patients


def load_patients(seed: int) -> Splits:
    """A random split of the 442; the targets are as they were measured."""
    data = sklearn.datasets.load_diabetes(scaled=False)
    order = np.random.default_rng(seed).permutation(len(data.data))
    columns = dict(zip(data.feature_names, data.data[order].T, strict=True))
    blood, fat = columns.pop("bp"), columns.pop("s5")
    targets = dict(zip(TARGETS, (blood, data.target[order], fat), strict=True))
    features = np.stack([*columns.values()], axis=-1)
    features -= features[:NUM_TRAINING].mean(axis=0)
    features /= features[:NUM_TRAINING].std(axis=0)

    def part(rows: slice) -> Patients:
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf[rows], jnp.float32), Patients(features, targets)
        )

    return Splits(part(slice(NUM_TRAINING)), part(slice(NUM_TRAINING, None)))


class Network(nn.Module):
    """A small trunk that the tasks share, and a linear head for each."""

    @nn.compact
    def __call__(self, features: jax.Array) -> dict[str, jax.Array]:
        """Returns predictions for each task, each of shape [n], of features of shape [n, 8]."""
        hidden = nn.tanh(nn.Dense(TRUNK_UNITS, name="trunk")(features))
        small = nn.initializers.normal(0.01)
        return {
            task: nn.Dense(1, kernel_init=small, name=task)(hidden).squeeze(-1) for task in TARGETS
        }


NETWORK = Network()


def means_of(patients: Patients) -> dict[str, jax.Array]:
    return {task: jnp.mean(target) for task, target in patients.targets.items()}


def init_params(key: jax.Array, training: Patients) -> Any:
    """A random trunk, and heads that predict the means of the training patients."""
    layers = dict(NETWORK.init(key, training.features[:1])["params"])
    for task, mean in means_of(training).items():
        layers[task] = layers[task] | {"bias": jnp.reshape(mean, 1)}
    return {"params": layers}


def squared_errors(
    outputs: dict[str, jax.Array], targets: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    return {task: jnp.mean((outputs[task] - target) ** 2) for task, target in targets.items()}


def patient_losses(params: Any, patients: Patients, batch: jax.Array) -> dict[str, jax.Array]:
    """Mean squared errors of the patients whose rows `batch` gives."""
    drawn = jax.tree.map(lambda leaf: leaf[batch], patients)
    return squared_errors(NETWORK.apply(params, drawn.features), drawn.targets)


def errors_fn(params: Any, patients: Patients) -> jax.Array:
    """The mean squared error of each task, shape [K]."""
    errors = squared_errors(NETWORK.apply(params, patients.features), patients.targets)
    return jnp.stack([errors[task] for task in TARGETS])


def constant_errors(splits: Splits) -> np.ndarray:
    """The test errors of the means of the training patients, shape [K]."""
    means, targets = means_of(splits.training), splits.test.targets
    return np.stack([np.mean(np.square(targets[task] - means[task])) for task in TARGETS])


def prior_losses(training: Patients) -> np.ndarray:
    """The variances of the targets, shape [K]."""
    return np.stack([sa.squared_error_prior(training.targets[task]) for task in TARGETS])


def trunk(params: Any) -> Any:
    return {"params": {layer: layer == "trunk" for layer in params["params"]}}


def draw_batches(budget: int, seed: int) -> np.ndarray:
    """Rows of training patients, none twice in a batch, shape [budget, BATCH]."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(NUM_TRAINING), (budget, 1)), axis=1)[:, :BATCH]


def load_diabetes(problem: Problem, progress: rich.progress.Progress) -> Solver:
    seeds = range(problem.num_seeds)
    splits = [load_patients(seed) for seed in seeds]
    training, test = stacked([each.training for each in splits]), stacked([s.test for s in splits])
    errors_of_all = jax.jit(jax.vmap(jax.vmap(errors_fn), in_axes=(0, None)))
    task = Task(
        patient_losses,
        lambda rate: optax.adam(optax.cosine_decay_schedule(rate, problem.budget)),
        OfSeeds(
            jax.vmap(init_params)(keys_of(problem.num_seeds), training),
            training,
            jnp.asarray(np.stack([draw_batches(problem.budget, seed) for seed in seeds])),
            jnp.asarray(np.stack([prior_losses(each.training) for each in splits]), jnp.float32),
        ),
        lambda params: Measured(np.asarray(errors_of_all(params, test))),
        at_once=10_000,
        shared=trunk,
    )
    constant = np.stack([constant_errors(each) for each in splits])
    return solver_by_skill(task, constant, problem, progress)


# The two losses on which CAGrad and Nash-MTL were shown, whose Pareto front is known.

SCALE = 0.1  # of the first loss, as Nash-MTL has it; CAGrad has 1
TOLERANCE = 1e-3  # of the distance to the front
LOWEST = 5e-6  # keeps the logarithms finite
STARTS = (
    (-8.5, 7.5),  # the five of Nash-MTL, of which the first and the third are CAGrad's as well
    (0.0, 0.0),
    (9.0, 9.0),
    (-7.5, -0.5),
    (9.0, -1.0),
    (-8.5, -5.0),  # the third of CAGrad
    (-10.0, 2.0),  # and two more
    (9.0, 3.0),
)


def toy_losses(params: jax.Array, scale: float = 1.0) -> dict[str, jax.Array]:
    """Canyons above x_2 = 0, below it bowls with minima at x_1 = 7 and -7."""
    x, y = params
    height = jnp.tanh(y)

    def canyon(offset: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(jnp.abs(offset), LOWEST)) + 6

    def bowl(middle: float) -> jax.Array:
        return ((x - middle) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20

    above, below = (jnp.maximum(jnp.tanh(0.5 * side), 0.0) for side in (y, -y))
    first = above * canyon(height - 0.5 * (x + 7)) + below * bowl(7.0)
    second = above * canyon(3.5 - 0.5 * x - height) + below * bowl(-7.0)
    return {"first": scale * first, "second": second}


def toy_pareto_set(points: int) -> np.ndarray:
    """Points of the plane at which no loss can fall unless the other rises, shape [points, 2].

    Below x_2 = 0 the losses are t(x_2) (bowl_k(x_1) + q(x_2)). Where their gradients are opposite,
    the weights (7 + x_1) / 14 and (7 - x_1) / 14 make the sum stationary in x_1, and x_2 minimises
    t(x_2) ((49 - x_1^2) / 10 - 20 + q(x_2)).
    """

    def depth(x: float) -> float:
        return scipy.optimize.minimize_scalar(
            lambda y: np.tanh(-0.5 * y) * ((49 - x**2) / 10 - 20 + 0.01 * (y + 8) ** 2),
            bounds=(-12.0, -4.0),
            method="bounded",
            options={"xatol": 1e-10},
        ).x

    return np.asarray([(x, depth(x)) for x in np.linspace(-7, 7, points)])


class Front(NamedTuple):
    """Its losses in units in which each goes from 0 to 1, ordered by their difference."""

    lowest: np.ndarray  # of each loss on the front, [2]
    widths: np.ndarray  # [2]
    first: np.ndarray  # [points]
    differences: np.ndarray  # the second loss less the first, [points]


def toy_front(points: int = 513) -> Front:
    losses = np.stack([*jax.vmap(toy_losses)(jnp.asarray(toy_pareto_set(points))).values()])
    lowest, widths = losses.min(axis=1), np.ptp(losses, axis=1)
    first, second = (losses - lowest[:, None]) / widths[:, None]
    return Front(lowest, widths, first, second - first)


def distance_to_front(params: jax.Array, front: Front) -> jax.Array:
    """The larger of the two differences to the nearest point, in units of the front's width.

    That is the point where both losses are lower by the same, or an end of the front.
    """
    losses = jnp.stack([*toy_losses(params).values()])
    first, second = (losses - front.lowest) / front.widths
    difference = second - first
    nearest = jnp.interp(difference, front.differences, front.first)
    between = jnp.interp(difference, front.differences, front.differences)
    return jnp.maximum(first - nearest, second - nearest - between)


def steps_to_front(
    tx: optax.GradientTransformation, start: jax.Array, front: Front, limit: int, scale: float
) -> jax.Array:
    """Steps until the distance to the front is below the tolerance; NaN if it never is."""
    losses_fn = functools.partial(toy_losses, scale=scale)

    def is_near(params: jax.Array) -> jax.Array:
        return distance_to_front(params, front) <= TOLERANCE

    def goes_on(carry: Any) -> jax.Array:
        params, _, steps = carry
        return ~is_near(params) & jnp.all(jnp.isfinite(params)) & (steps < limit)

    def step(carry: Any) -> Any:
        params, opt_state, steps = carry
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, steps + 1

    params, _, steps = jax.lax.while_loop(goes_on, step, (start, tx.init(start), 0))
    return jnp.where(is_near(params), steps, jnp.nan)


def load_toy(problem: Problem, progress: rich.progress.Progress) -> Solver:
    del progress
    starts, front = jnp.asarray(STARTS[: problem.num_seeds]), toy_front()

    def measure(
        make: Make, configs: np.ndarray, stops: list[int], advance: Callable[[float], None]
    ) -> list[Measured]:
        def steps(config: jax.Array, start: jax.Array) -> jax.Array:
            losses = jnp.stack([*toy_losses(start, SCALE).values()])
            weighting = make(Setting(len(losses), config[1:], losses))
            tx = optax.chain(weighting, optax.adam(config[0]))
            return steps_to_front(tx, start, front, problem.budget, SCALE)

        over_starts = jax.vmap(steps, in_axes=(None, 0))
        over_all = jax.jit(jax.vmap(over_starts, in_axes=(0, None)))
        found = np.asarray(over_all(jnp.asarray(configs), starts))
        advance(1.0)
        return [counted(found, problem.budget / stop, problem.budget) for stop in stops]

    return Solver(measure)


# Both of them.


def problems(quick: bool) -> list[Problem]:
    """Quick ones show that all works and support no verdict."""
    return [
        Problem(
            name="Diabetes, raw units",
            suite="multi-task",
            setting=f"A trunk of {TRUNK_UNITS} units (tanh) with three linear heads on the 442 "
            "patients of scikit-learn's diabetes data (Efron et al. 2004), 300 of them for "
            "training: disease progression, blood pressure and the logarithm of triglycerides are "
            "predicted from the other eight columns. Losses are mean squared errors in the units "
            "of the table, with variances of about 5900, 190 and 0.27; the last target nearly "
            "follows from the inputs by Friedewald's formula, the others are noisy. Adam with a "
            f"cosine decay, batches of {BATCH}; heads start at the mean of their target, and "
            "methods that look at gradients look at those of the trunk. The metric is the skill "
            "lost on the 142 test patients, a mean over the tasks: 0 % is the error of a network "
            "trained for the task alone, 100 % that of the best constant. Split, initial network "
            "and batches differ from seed to seed.",
            metric="skill lost, mean of the tasks, %",
            beside=None,
            written=".1f",
            worst=100.0,
            is_logarithmic=False,  # below 0 % where the tasks help each other
            losses=TARGETS,
            main="blood pressure",
            budget=160 if quick else 1_600,
            gradient_cost=3,
            rates=np.asarray([3e-2, 1e-1] if quick else [3e-3, 1e-2, 3e-2, 1e-1, 3e-1]),
            grid=Grid(
                (("progression",), ("triglycerides",)),
                np.asarray([0.0, 3.0]) if quick else np.linspace(-3.0, 6.0, 7),
            ),
            num_seeds=2 if quick else 8,
            has_priors=True,
            is_double=False,
            load=load_diabetes,
        ),
        Problem(
            name="CAGrad toy",
            suite="multi-task",
            setting="Two losses of two parameters, canyons that lead down to a known Pareto front, "
            "with which CAGrad (Liu et al. 2021) and Nash-MTL (Navon et al. 2022) were shown; the "
            f"first loss is scaled by {SCALE:g}, as in the latter. Adam (float64) with the "
            "published rate of 1e-3, in the place of tuned ones because Adam jumps across the "
            "canyons with rates from 1e-2, until the distance to the front is below "
            f"{100 * TOLERANCE:g} % of the front's width; a start that has not arrived, or is no "
            "longer finite, counts as the whole budget, which is the published number of steps for "
            "methods that need a gradient for each loss. Starting points take the place of seeds: "
            "the five of Nash-MTL, another of CAGrad and two more. Any point of the front will do. "
            "The losses are negative near it, for which methods that take their logarithms are not "
            "made.",
            metric="gradient evaluations to the front",
            beside="% that arrive",
            written=",.0f",
            worst=2_000.0 if quick else 70_000.0,
            is_logarithmic=True,
            losses=("first", "second"),
            main="first",
            budget=2_000 if quick else 70_000,
            gradient_cost=2,
            rates=np.asarray([1e-3]),
            grid=Grid((("second",),), np.linspace(-3.0, 3.0, 3 if quick else 13)),
            num_seeds=2 if quick else len(STARTS),
            has_priors=False,
            is_double=True,
            load=load_toy,
        ),
    ]
