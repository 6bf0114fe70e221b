"""What a problem of the evidence is, and how its models train, in a few compiled programs.

A problem trains a method with many configurations (a learning rate and fixed weights, which most
methods ignore) and all seeds side by side, by two levels of `vmap`, and measures each model. Lower
is better everywhere. The problems are in `functions.py`, `images.py`, `multitask.py` and
`physics.py`.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress

import softadapt_optax as sa

# What a problem is.


class Setting(NamedTuple):
    """What a method may ask for; K losses in the order of `jax.tree.leaves`."""

    num_losses: int
    weights: jax.Array  # those of the configuration, shape [K]
    first_losses: jax.Array  # before training, shape [K]
    prior_losses: jax.Array | None = None  # of the best constant prediction, shape [K]
    shared: Callable[[Any], Any] | None = None  # the mask of the trunk, where there are heads
    reference: int = 0  # the position of the main loss

    @property
    def largest_first_loss(self) -> jax.Array:
        return jnp.max(self.first_losses)

    @property
    def ones(self) -> list[float]:
        return [1.0] * self.num_losses

    @property
    def first_at_100(self) -> jax.Array:
        return jnp.ones(self.num_losses).at[0].set(100.0)


Make = Callable[[Setting], optax.GradientTransformationExtraArgs]  # a weighting


class Measured(NamedTuple):
    """The metric and what is shown beside it, each of shape [configurations, seeds]."""

    metric: np.ndarray
    beside: np.ndarray | None = None


class Solver(NamedTuple):
    """A problem whose data are loaded.

    `measure` trains a method with each configuration, (learning rate, K weights) of shape
    [configurations, 1 + K], and returns what was measured after each of some numbers of steps.
    `time_ratio` is the time of a step with a method over that of a step on the summed loss, of one
    model, where it is worth a measurement.
    """

    measure: Callable[[Make, np.ndarray, list[int], Callable[[float], None]], list[Measured]]
    time_ratio: Callable[[Make], float] | None = None


class Grid(NamedTuple):
    """Fixed weights to be searched through: powers of ten on some axes.

    The losses of an axis share its weight, those on no axis have 1.
    """

    axes: tuple[tuple[str, ...], ...]
    exponents: np.ndarray  # evenly spaced; the same for each axis

    def points(self) -> np.ndarray:
        """All combinations of the exponents, shape [points, axes]."""
        every = np.meshgrid(*[self.exponents] * len(self.axes), indexing="ij")
        return np.stack([np.ravel(each) for each in every], axis=-1)

    def finer(self, point: np.ndarray) -> np.ndarray:
        """The points half a step around one, without it: shape [3**axes - 1, axes]."""
        half = (self.exponents[1] - self.exponents[0]) / 2
        moves = np.asarray(list(itertools.product((-half, 0.0, half), repeat=len(self.axes))))
        return point + moves[np.any(moves != 0, axis=1)]

    def weights(self, losses: tuple[str, ...], points: np.ndarray) -> np.ndarray:
        """Of points of shape [.., axes] the weights, which sum to K, shape [.., K]."""
        on_axis = [[loss in axis for loss in losses] for axis in self.axes]
        weights = 10.0 ** (points @ np.asarray(on_axis, dtype=float))
        return len(losses) * weights / weights.sum(axis=-1, keepdims=True)


class Problem(NamedTuple):
    """How it is called, how large it is and how it is loaded."""

    name: str
    suite: str
    setting: str  # two or three sentences in Markdown
    metric: str
    beside: str | None  # what is shown beside the metric
    written: str  # the format of the metric
    worst: float  # what a metric that is larger or not finite counts as
    is_logarithmic: bool  # whether the picture's axis is
    losses: tuple[str, ...]  # in the order of the weights
    main: str  # the loss that those methods that have a reference refer to
    budget: int  # gradient evaluations
    gradient_cost: int  # evaluations of a step that needs a gradient for each loss
    rates: np.ndarray  # learning rates
    grid: Grid  # of fixed weights
    num_seeds: int
    has_priors: bool
    is_double: bool  # whether it needs float64
    load: Callable[["Problem", rich.progress.Progress], Solver]
    is_ordered: bool = False  # whether each loss is to fall before the next

    def configurations(self, points: np.ndarray) -> np.ndarray:
        """(learning rate, weights) of each rate at points of the grid, [configurations, 1 + K]."""
        weights = self.grid.weights(self.losses, points)
        return np.asarray([[rate, *each] for each in weights for rate in self.rates])


def rates_for(num_losses: int, low: float, high: float) -> np.ndarray:
    """A geometric grid in which, with each rate, its multiple and its part by K is (to the ends).

    So that weights with sum 1 and weights with sum K find the same product of rate and weights.
    """
    per_factor = round(5 * np.log2(num_losses))
    steps = np.arange(np.floor(per_factor * np.log(high / low) / np.log(num_losses)) + 1)
    return low * num_losses ** (steps / per_factor)


# Training, for all problems that have a fixed number of steps.


class OfSeeds(NamedTuple):
    """What differs from seed to seed; leaves have a leading axis [seeds]."""

    params: Any
    data: Any = None
    batches: Any = None  # leaves of shape [seeds, steps, ...]
    prior_losses: jax.Array | None = None


class Task(NamedTuple):
    """What is trained, and how it is judged."""

    losses_fn: Callable[[Any, Any, Any], Any]  # of parameters, data and batch
    optimizer: Callable[[jax.Array], optax.GradientTransformation]  # of the learning rate
    of_seeds: OfSeeds
    judge: Callable[[Any], Measured]  # of parameters, leaves [configurations, seeds, ...]
    at_once: int  # configurations in one call of a program
    shared: Callable[[Any], Any] | None = None
    reference: int = 0
    # Traces of the losses' kernels, of parameters, data and batch, for `ntk_weights`.
    traces_fn: Callable[[Any, Any, Any], Any] | None = None


TRACES_EVERY = 100  # steps, as `ntk_weights` with this period looks at them; others get zeros


def first_batch(of_seed: OfSeeds) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], of_seed.batches)


def chain_of(task: Task, make: Make, config: jax.Array, of_seed: OfSeeds) -> Any:
    """The optimizer of one model of a configuration, shape [1 + K]."""
    losses = task.losses_fn(of_seed.params, of_seed.data, first_batch(of_seed))
    first_losses = jnp.stack(jax.tree.leaves(losses))
    of_problem = (of_seed.prior_losses, task.shared, task.reference)
    setting = Setting(len(first_losses), config[1:], first_losses, *of_problem)
    return optax.chain(make(setting), task.optimizer(config[0]))


def train_step(
    task: Task, tx: Any, of_seed: OfSeeds, index: jax.Array, carry: tuple[Any, Any]
) -> tuple[Any, Any]:
    """One step of one model, whose carry is its parameters and the optimizer's state."""
    params, opt_state = carry
    batch = jax.tree.map(lambda leaf: leaf[index], of_seed.batches)
    more = {}
    if task.traces_fn is not None:
        zeros = jnp.zeros(len(jax.tree.leaves(task.losses_fn(params, of_seed.data, batch))))
        more["ntk_traces"] = jax.lax.cond(
            (index == 0) | ((index + 1) % TRACES_EVERY == 0),
            lambda: jnp.stack(jax.tree.leaves(task.traces_fn(params, of_seed.data, batch))),
            lambda: zeros,
        )
    _, grads = sa.value_and_component_grads(task.losses_fn)(params, of_seed.data, batch)
    updates, opt_state = tx.update(grads, opt_state, params, **more)
    return optax.apply_updates(params, updates), opt_state


def train(
    task: Task, make: Make, configs: np.ndarray, stops: list[int], advance: Callable[[float], None]
) -> list[Any]:
    """Parameters after each number of steps in `stops`, leaves [stops][configurations, seeds].

    All configurations and seeds train side by side, as many configurations as `at_once` says.
    """

    def start(config: jax.Array, of_seed: OfSeeds) -> tuple[Any, Any]:
        return of_seed.params, chain_of(task, make, config, of_seed).init(of_seed.params)

    def steps(
        config: jax.Array, of_seed: OfSeeds, carry: tuple[Any, Any], first: int, last: int
    ) -> tuple[Any, Any]:
        tx = chain_of(task, make, config, of_seed)

        def step(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            return train_step(task, tx, of_seed, index, carry)

        return jax.lax.fori_loop(first, last, step, carry)

    def over_all(function: Callable[..., Any], *rest: Any) -> Any:
        """Over configurations and seeds; of what follows the first axes, carries have both."""
        by_seed = jax.vmap(function, in_axes=(None, 0, *rest))
        return jax.vmap(by_seed, in_axes=(0, None, *rest))

    start_all = jax.jit(over_all(start))
    steps_all = jax.jit(over_all(steps, 0, None, None), donate_argnums=2)
    found: list[list[Any]] = [[] for _ in stops]
    last = max(stops)
    bounds = sorted({*stops, *np.linspace(0, last, 6, dtype=int).tolist()})
    calls = -(-len(configs) // task.at_once)
    for first in range(0, len(configs), task.at_once):
        part = jnp.asarray(configs[first : first + task.at_once])
        carry = start_all(part, task.of_seeds)
        for before, after in itertools.pairwise(bounds):
            carry = steps_all(part, task.of_seeds, carry, before, after)
            for parts, stop in zip(found, stops, strict=True):
                if stop == after:
                    parts.append(jax.device_get(carry[0]))
            jax.block_until_ready(carry)
            advance((after - before) / last / calls)
    return [jax.tree.map(lambda *leaves: np.concatenate(leaves), *each) for each in found]


def solver_of(task: Task) -> Solver:
    def measure(
        make: Make, configs: np.ndarray, stops: list[int], advance: Callable[[float], None]
    ) -> list[Measured]:
        return [task.judge(params) for params in train(task, make, configs, stops, advance)]

    return Solver(measure, lambda make: time_ratio(task, make))


# The time of a step.

STEPS_IN_A_CALL, TURNS = TRACES_EVERY, 15


def time_ratio(task: Task, make: Make) -> float:
    """Of a step over one on the summed loss without the library, one model of the first seed.

    The median of the ratios of turns, in which the two programs run one after the other. They are
    loops, so that what a call costs does not count, over one period of methods that have one.
    """
    of_seed = jax.tree.map(lambda leaf: leaf[0], task.of_seeds)
    config = jnp.full(1 + of_losses(task, of_seed), 1e-3)
    tx = chain_of(task, make, config.at[1:].set(1.0), of_seed)
    optimizer = task.optimizer(config[0])

    def weighted(index: jax.Array, carry: Any) -> Any:
        return train_step(task, tx, of_seed, index, carry)

    def plain(index: jax.Array, carry: Any) -> Any:
        params, opt_state = carry
        batch = jax.tree.map(lambda leaf: leaf[index], of_seed.batches)
        grads = jax.grad(lambda p: sum(jax.tree.leaves(task.losses_fn(p, of_seed.data, batch))))(
            params
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def call_of(step: Callable[..., Any], opt_state: Any) -> Callable[[], float]:
        program = jax.jit(
            lambda carry, first: jax.lax.fori_loop(first, first + STEPS_IN_A_CALL, step, carry)
        )
        carry = program((of_seed.params, opt_state), 0)

        def call() -> float:
            start = time.perf_counter()
            jax.block_until_ready(program(carry, STEPS_IN_A_CALL))
            return time.perf_counter() - start

        return call

    calls = (
        call_of(weighted, tx.init(of_seed.params)),
        call_of(plain, optimizer.init(of_seed.params)),
    )
    turns = [[call() for call in calls] for _ in range(TURNS)]
    return statistics.median(ours / theirs for ours, theirs in turns)


def of_losses(task: Task, of_seed: OfSeeds) -> int:
    losses = jax.eval_shape(task.losses_fn, of_seed.params, of_seed.data, first_batch(of_seed))
    return len(jax.tree.leaves(losses))


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def keys_of(num_seeds: int) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in range(num_seeds)])
