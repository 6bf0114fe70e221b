"""Which settings make `hypergradient` good? Tried on problems that judge nothing else.

    python -m benchmarks.hypergradient_settings [--seeds 16] [--steps 1000] [--out FILE]

Small networks on the diabetes, breast cancer and wine data of scikit-learn and on teachers that are
drawn at random, each with further losses whose best weights are not known. For each setting the
loss on test data is compared, seed by seed, with that of a grid of fixed weights that was chosen on
the validation data which the setting follows. The table goes into FILE (default: the screen alone).
"""

import argparse
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress
import sklearn.datasets

import softadapt_optax as sa
from benchmarks.common import Table, machine, markdown, measured_on, rich_table

RATES = (1e-3, 3e-3)  # of Adam for the network
RATIOS = (0.0, 1e-2, 1e-1, 1.0, 10.0)  # of each further loss to the first, in the grid
BATCH = 32


class Split(NamedTuple):
    """Inputs and labels of one seed, each a tuple for training, validation and test."""

    x: tuple[np.ndarray, ...]
    y: tuple[np.ndarray, ...]


class Task(NamedTuple):
    """``losses_fn(params, (x, y))`` gives the losses, of which the first is the target's too."""

    num_losses: int
    sizes: tuple[int, ...]  # of the layers of the network
    split: Callable[[int], Split]
    losses_fn: Callable[[Any, Any], list[jax.Array]]

    def target_fn(self, params: Any, batch: Any) -> jax.Array:
        return self.losses_fn(params, batch)[0]


# The problems.


def network(rng: np.random.Generator, sizes: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    return [
        {"w": rng.normal(size=(a, b)).astype(np.float32) / a**0.5, "b": np.zeros(b, np.float32)}
        for a, b in itertools.pairwise(sizes)
    ]


def output(params: Any, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def squares(params: Any) -> jax.Array:
    return sum(jnp.mean(layer["w"] ** 2) for layer in params)


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def entropy(logits: jax.Array) -> jax.Array:
    return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1).mean()


def parts(x: np.ndarray, y: np.ndarray, train: int, valid: int, seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(x))
    bounds = [train, train + valid]
    return Split(*(tuple(np.split(values[order], bounds)) for values in (x, y)))


def scaled(data: Any) -> tuple[np.ndarray, np.ndarray]:
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    return x.astype(np.float32), data.target


def diabetes() -> Task:
    """Regression with penalties on weights, on outputs and on their change under noise."""
    x, y = scaled(sklearn.datasets.load_diabetes())
    y = ((y - y.mean()) / y.std()).astype(np.float32)[:, None]

    def losses_fn(params: Any, batch: Any) -> list[jax.Array]:
        x, y = batch
        found = output(params, x)
        moved = output(params, x + 0.3 * jnp.sin(37.0 * x))  # noise without a key
        errors = jnp.mean((found - y) ** 2)
        return [errors, squares(params), jnp.mean(found**2), jnp.mean((found - moved) ** 2)]

    split = functools.partial(parts, x, y, 100, 100)
    return Task(4, (10, 32, 32, 1), split, losses_fn)


def cancer() -> Task:
    """Classification of few examples with penalties on weights and on certainty."""
    x, y = scaled(sklearn.datasets.load_breast_cancer())

    def losses_fn(params: Any, batch: Any) -> list[jax.Array]:
        logits = output(params, batch[0])
        return [cross_entropy(logits, batch[1]), squares(params), -entropy(logits)]

    split = functools.partial(parts, x, y, 50, 50)
    return Task(3, (30, 32, 2), split, losses_fn)


def wine() -> Task:
    """Three sources of labels: right ones, half wrong ones, and all wrong ones."""
    x, y = scaled(sklearn.datasets.load_wine())

    def split(seed: int) -> Split:
        rng = np.random.default_rng(seed)
        found = parts(x, y, 60, 40, seed)
        labels = found.y[0]
        half = np.where(rng.random(60) < 0.5, rng.permutation(labels), labels)
        y_train = np.stack([labels, half, (labels + 1) % 3], axis=1)
        y_clean = [np.stack([labels] * 3, axis=1) for labels in found.y[1:]]
        return found._replace(y=(y_train, *y_clean))

    def losses_fn(params: Any, batch: Any) -> list[jax.Array]:
        logits = output(params, batch[0])
        return [cross_entropy(logits, batch[1][:, source]) for source in range(3)]

    return Task(3, (13, 32, 3), split, losses_fn)


def teachers() -> Task:
    """A regression of 60 examples with a related, an unrelated and a noisy one beside it."""

    def split(seed: int) -> Split:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(1060, 16)).astype(np.float32)
        first, second = (network(rng, (16, 16, 1)) for _ in range(2))
        outputs = [np.tanh(x @ t[0]["w"] * 2) @ t[1]["w"] for t in (first, second)]
        related = np.tanh(outputs[0] + 0.3 * outputs[1])
        columns = [outputs[0], related, outputs[1], rng.normal(size=(1060, 1))]
        y = np.concatenate(columns, axis=1).astype(np.float32)
        return parts(x, y, 60, 60, seed)

    def losses_fn(params: Any, batch: Any) -> list[jax.Array]:
        return list(jnp.mean((output(params, batch[0]) - batch[1]) ** 2, axis=0))

    return Task(4, (16, 32, 32, 4), split, losses_fn)


TASKS = {"diabetes": diabetes, "cancer": cancer, "wine": wine, "teachers": teachers}


# The settings.


class Setting(NamedTuple):
    """How the weights follow the target."""

    rate: float = 2e-2
    every: int = 1
    b1: float = 0.9
    b2: float = 0.999
    sgd: bool = False  # on alignments over their largest size, in the place of Adam
    momentum: float = 0.0  # of the target's gradient
    batch: int | None = BATCH  # of the validation data; None: all of them
    is_preconditioned: bool = False  # the target's gradient, by the root mean squares of Adam
    floor: float = 0.0  # of the shares of the weights
    start: float = 1.0  # of each further loss, where the first starts at 1
    falls: bool = False  # the rate, with the root of the steps
    rule: str = "exponentiated"
    on_training: bool = False  # the target is the training loss on another batch


SETTINGS: dict[str, Setting] = {
    "default": Setting(),
    "rate 0.003": Setting(rate=3e-3),
    "rate 0.01": Setting(rate=1e-2),
    "rate 0.05": Setting(rate=5e-2),
    "rate 0.1": Setting(rate=0.1),
    "every=10": Setting(every=10),
    "every=10, no faster steps": Setting(every=10, rate=2e-3),
    "every=50": Setting(every=50),
    "main loss first": Setting(start=0.01),
    "main loss first, every=10": Setting(start=0.01, every=10),
    "rate falls, 0.8 over the root": Setting(rate=0.8, falls=True),
    "main loss first, rate falls": Setting(start=0.01, rate=0.8, falls=True),
    "b1=0": Setting(b1=0.0),
    "b1=0.99": Setting(b1=0.99),
    "b2=0.99": Setting(b2=0.99),
    "gradient descent, rate 0.1": Setting(sgd=True, rate=0.1),
    "target averaged, 0.9": Setting(momentum=0.9),
    "target averaged, 0.99": Setting(momentum=0.99),
    "all validation data": Setting(batch=None),
    "validation batches of 8": Setting(batch=8),
    "preconditioned target": Setting(is_preconditioned=True),
    "floor of 1 %": Setting(floor=0.01),
    "at a constant sum": Setting(rule="constant sum"),
    "at a constant sum, rate 0.1": Setting(rule="constant sum", rate=0.1),
    "by the logarithms": Setting(rule="by logarithm"),
    "off the direction of the step": Setting(rule="projected"),
    "first weight 1, others free": Setting(rule="free"),
    "training loss as target": Setting(on_training=True),
}


def slopes_of(rule: str, components: Any, weights: jax.Array) -> jax.Array:
    """What the optimizer of z is given.

    "constant sum" is the gradient of the target after a step of gradient descent, "projected" that
    after a step of a given length, as far as it goes along the combined gradient.
    """
    a, shares = components.alignments(), weights / jnp.sum(weights)
    if rule == "exponentiated":
        return -a
    if rule == "constant sum":
        return -shares * (a - jnp.sum(shares * a))
    if rule == "projected":
        along = components.gramian() @ weights  # the inner products with the combined gradient
        length = jnp.sum(weights * a) / (jnp.sum(weights * along) + 1e-30)
        return -shares * (a - length * along)
    if rule == "free":
        return jnp.where(jnp.arange(len(a)) == 0, 0.0, -weights * a)
    return -shares * a


def weighting(setting: Setting, num_losses: int) -> optax.GradientTransformationExtraArgs:
    """`sa.hypergradient`, or as much of it as a setting leaves."""
    rate, every, floor = setting.rate, setting.every, setting.floor

    def falling(count: jax.Array) -> jax.Array:
        return rate / jnp.sqrt(every * count + 1.0)

    adam = optax.adam(falling if setting.falls else rate, b1=setting.b1, b2=setting.b2, eps=1e-15)
    inner = optax.sgd(rate) if setting.sgd else adam
    if not (setting.sgd or floor or setting.rule != "exponentiated"):
        priorities = [1.0, *[setting.start] * (num_losses - 1)]
        return sa.hypergradient(num_losses, adam, priorities=priorities, every=every)

    def weigh(z: jax.Array) -> jax.Array:
        if setting.rule == "free":
            return jnp.exp(z - z[0])
        return num_losses * ((1 - num_losses * floor) * jax.nn.softmax(z) + floor)

    def update(components: Any, state: Any) -> Any:
        z, inner_state = state
        slopes = slopes_of(setting.rule, components, weigh(z))
        if setting.sgd:
            slopes = slopes / (jnp.max(jnp.abs(slopes)) + 1e-30)
        steps, inner_state = inner.update(slopes, inner_state, z)
        z = optax.apply_updates(z, every * steps)
        return weigh(z), (z, inner_state)

    def init(k: int) -> Any:
        return jnp.zeros(k), inner.init(jnp.zeros(k))

    return sa.balance(sa.Weighting(init, update), num_losses, every=every)


# Training.


def trained(
    task: Task,
    steps: int,
    tx: optax.GradientTransformationExtraArgs,
    setting: Setting | None,
    rate: jax.Array,
    data: Split,
    params: Any,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The target loss on all validation and on all test data at the end."""
    optimizer = optax.chain(tx, optax.adam(optax.cosine_decay_schedule(rate, steps)))

    def batch_of(key: jax.Array, part: int, size: int | None) -> Any:
        if size is None:
            return data.x[part], data.y[part]
        rows = jax.random.randint(key, (size,), 0, len(data.x[part]))
        return data.x[part][rows], data.y[part][rows]

    def target_of(params: Any, opt_state: Any, mean: Any, key: jax.Array) -> tuple[Any, Any]:
        if setting.on_training:
            v = jax.grad(lambda p: task.losses_fn(p, batch_of(key, 0, BATCH))[0])(params)
        else:
            v = jax.grad(task.target_fn)(params, batch_of(key, 1, setting.batch))
        m = setting.momentum
        mean = jax.tree.map(lambda a, b: m * a + (1 - m) * b, mean, v)
        if setting.is_preconditioned:
            count, _, nu = opt_state[1][0]
            grown = jax.tree.map(lambda n, g: 0.999 * n + 0.001 * g**2, nu, v)
            correction = 1 - 0.999 ** (count + 1.0)
            return jax.tree.map(
                lambda g, n: g / (jnp.sqrt(n / correction) + 1e-8), mean, grown
            ), mean
        return mean, mean

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, opt_state, mean = carry
        keys = jax.random.split(key)
        extra = {}
        if setting is not None:
            extra["target"], mean = target_of(params, opt_state, mean, keys[1])
        _, grads = sa.value_and_component_grads(task.losses_fn)(params, batch_of(keys[0], 0, BATCH))
        updates, opt_state = optimizer.update(grads, opt_state, params, **extra)
        return (optax.apply_updates(params, updates), opt_state, mean), None

    carry = params, optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    (params, *_), _ = jax.lax.scan(step, carry, jax.random.split(key, steps))
    return tuple(task.target_fn(params, (data.x[part], data.y[part])) for part in (1, 2))


class Runs:
    """All seeds of a task, as compiled programs."""

    def __init__(self, task: Task, seeds: int, steps: int):
        self.task, self.steps = task, steps
        splits = [task.split(seed) for seed in range(seeds)]
        starts = [network(np.random.default_rng(seed), task.sizes) for seed in range(seeds)]
        stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *t) for t in (splits, starts)]
        self.args = *stacked, jax.random.split(jax.random.key(0), seeds)

    def fixed(self, weights: np.ndarray) -> np.ndarray:
        """Validation and test losses, shape [2, weights, seeds], at the better rate of each."""

        def run(weights: jax.Array, rate: jax.Array, *args: Any) -> Any:
            tx = sa.fixed_weights(weights)
            return trained(self.task, self.steps, tx, None, rate, *args)

        over = jax.vmap(run, in_axes=(None, None, 0, 0, 0))
        over = jax.jit(jax.vmap(over, in_axes=(0, None, None, None, None)))
        found = [over(jnp.asarray(weights), rate, *self.args) for rate in jnp.asarray(RATES)]
        return best_rate(np.asarray(found))

    def setting(self, setting: Setting) -> np.ndarray:
        """The same for a setting, shape [2, 1, seeds]."""
        tx = weighting(setting, self.task.num_losses)

        def run(rate: jax.Array, *args: Any) -> Any:
            return trained(self.task, self.steps, tx, setting, rate, *args)

        over = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, 0)))
        found = [over(rate, *self.args) for rate in jnp.asarray(RATES)]
        return best_rate(np.asarray(found)[:, :, None])


def best_rate(losses: np.ndarray) -> np.ndarray:
    """From [rates, 2, weights, seeds] to [2, weights, seeds], chosen on the validation data."""
    losses = np.where(np.isfinite(losses), losses, 1e3)
    chosen = np.argmin(losses[:, 0], axis=0)
    return np.take_along_axis(losses, chosen[None, None], axis=0)[0]


def searched(losses: np.ndarray) -> np.ndarray:
    """The test loss of each seed for the weights that are best on its validation data."""
    chosen = np.argmin(losses[0], axis=0)
    return np.take_along_axis(losses[1], chosen[None], axis=0)[0]


def measure(seeds: int, steps: int, progress: rich.progress.Progress) -> dict[str, Any]:
    """Test losses of the seeds, by task and row."""
    bar = progress.add_task("", total=len(TASKS) * (len(SETTINGS) + 1))
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, make in TASKS.items():
        task = make()
        runs = Runs(task, seeds, steps)
        progress.update(bar, description=f"{name}: grid")
        further = itertools.product(RATIOS, repeat=task.num_losses - 1)
        grid = np.asarray([(1.0, *ratios) for ratios in further])
        rows = {"plain sum": runs.fixed(np.ones((1, task.num_losses)))[1, 0]}
        rows[f"grid search ({len(grid)} weights)"] = searched(runs.fixed(grid))
        progress.advance(bar)
        for label, setting in SETTINGS.items():
            progress.update(bar, description=f"{name}: {label}")
            rows[label] = runs.setting(setting)[1, 0]
            progress.advance(bar)
        found[name] = rows
    return found


def table_of(found: Mapping[str, Mapping[str, np.ndarray]], seeds: int) -> Table:
    """Mean test losses, with the paired difference to the grid search and twice its error."""
    cells: dict[str, list[str]] = {}
    for rows in found.values():
        (grid,) = [values for row, values in rows.items() if row.startswith("grid search")]
        for row, values in rows.items():
            label = "grid search" if row.startswith("grid search") else row
            difference = values - grid
            error = 2 * difference.std(ddof=1) / len(values) ** 0.5
            against = "" if label == "grid search" else f" ({difference.mean():+.3f} ± {error:.3f})"
            cells.setdefault(label, []).append(f"{values.mean():.3f}{against}")
    note = f"Test loss, mean of {seeds} seeds; in brackets the difference to the grid search."
    return Table("Settings", ["row", *found], [[k, *v] for k, v in cells.items()], note)


def main() -> None:
    parser = argparse.ArgumentParser(description="Settings of `hypergradient`, tried.")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    console = rich.console.Console(width=140)
    with rich.progress.Progress(console=console) as progress:
        found = measure(args.seeds, args.steps, progress)
    table = table_of(found, args.seeds)
    console.print(rich_table(table))
    if args.out is not None:
        args.out.write_text(f"{measured_on(machine())}.\n\n{markdown(table)}\n")


if __name__ == "__main__":
    main()
