"""A question often asked: can the coefficients of the losses not be learned with the rest?

    python -m examples.paper.learned_coefficients [--quick] [--out paper_results]

Descent on sum_k w_k L_k over the parameters and the coefficients w alike has no good minimum. Free
coefficients fall without bound, positive ones go to zero, and those that sum to one run to a vertex
of the simplex, that of the smallest loss. An entropy term cures it. A grid search and SoftAdapt
stand beside them.

The losses are the mean squared errors of three targets, standardised, that share one linear
feature of 13 inputs: whether a wine is of the first, second or third cultivar. No single feature
serves all three. The data, 178 wines, ship inside scikit-learn. As the three count alike here, a
model is judged by the sum of its losses.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.progress
import sklearn.datasets
import sklearn.preprocessing

import softadapt_optax as sa
from examples.paper import common

TARGETS = ("first", "second", "third")  # sorted, as JAX orders dictionaries
LEARNING_RATE = 1e-2


class Settings(NamedTuple):
    """How much is run."""

    num_seeds: int = 5
    steps: int = 5000
    resolution: int = 12  # of the grid, from 0 to 1
    temperature: float = 1.0  # of the entropy term, in the unit of the losses


# The model and its losses.


def load_data() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Inputs of shape [178, 13] and targets of shape [178], all of mean 0 and variance 1."""
    data = sklearn.datasets.load_wine()
    targets = sklearn.preprocessing.scale(data.target[:, None] == np.arange(len(TARGETS)))
    inputs = sklearn.preprocessing.scale(data.data).astype(np.float32)
    return inputs, dict(zip(TARGETS, targets.T.astype(np.float32), strict=True))


INPUTS, OUTPUTS = load_data()


def initial_params(key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 1 + len(TARGETS))
    heads = {name: 0.1 * jax.random.normal(k) for name, k in zip(TARGETS, keys[1:], strict=True)}
    return {"feature": 0.1 * jax.random.normal(keys[0], (INPUTS.shape[1],)), "heads": heads}


def losses_fn(params: dict[str, Any]) -> dict[str, jax.Array]:
    feature = INPUTS @ params["feature"]
    return {
        name: jnp.mean((feature * head - OUTPUTS[name]) ** 2)
        for name, head in params["heads"].items()
    }


def stacked_losses(params: dict[str, Any]) -> jax.Array:
    return jnp.stack([*losses_fn(params).values()])


# Coefficients that are parameters like all others.


LEARNABLE: dict[str, tuple[Callable[[jax.Array], jax.Array], float]] = {
    "free, w": (lambda z: z, 1.0),
    "positive, w = exp(z)": (jnp.exp, 0.0),
    "simplex, w = softmax(z)": (jax.nn.softmax, 0.0),
}  # the coefficients from the learnable numbers z, and where z starts


def train_learnable(
    coefficients: Callable[[jax.Array], jax.Array], start: float, num_steps: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Losses and coefficients at each step, shape [steps, K]."""
    tx = optax.adam(LEARNING_RATE)

    def objective(learned: tuple[Any, jax.Array]) -> jax.Array:
        params, z = learned
        return jnp.sum(coefficients(z) * stacked_losses(params))

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], tuple[jax.Array, ...]]:
        learned, opt_state = carry
        updates, opt_state = tx.update(jax.grad(objective)(learned), opt_state)
        params, z = optax.apply_updates(learned, updates)
        return ((params, z), opt_state), (stacked_losses(params), coefficients(z))

    learned = (initial_params(key), jnp.full(len(TARGETS), start))
    return jax.lax.scan(step, (learned, tx.init(learned)), length=num_steps)[1]


# Coefficients that a weighting sets.


def train_weighting(
    weighting: optax.GradientTransformation, num_steps: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Losses and weights at each step, shape [steps, K]."""
    tx = optax.chain(weighting, optax.adam(LEARNING_RATE))

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], tuple[jax.Array, ...]]:
        params, opt_state = carry
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), (stacked_losses(params), sa.loss_weights(opt_state))

    params = initial_params(key)
    return jax.lax.scan(step, (params, tx.init(params)), length=num_steps)[1]


def train_grid(points: np.ndarray, num_steps: int, keys: jax.Array) -> np.ndarray:
    """The losses at the end, shape [points, seeds, K]."""

    def train(point: jax.Array, key: jax.Array) -> jax.Array:
        return train_weighting(sa.fixed_weights(point), num_steps, key)[0][-1]

    over_seeds = jax.vmap(train, in_axes=(None, 0))
    return np.asarray(jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(jnp.asarray(points), keys))


def simplex_grid(resolution: int) -> np.ndarray:
    """Weights that are positive multiples of 1 / resolution and sum to 1, shape [points, K]."""
    counts = itertools.product(range(1, resolution), repeat=len(TARGETS))
    return np.asarray([c for c in counts if sum(c) == resolution], np.float32) / resolution


def run(settings: Settings, progress: rich.progress.Progress) -> common.Outcome:
    keys = jnp.stack([jax.random.key(seed) for seed in range(settings.num_seeds)])
    num_losses = len(TARGETS)
    weightings = {
        "simplex with entropy": sa.learned_weights(num_losses, temperature=settings.temperature),
        "SoftAdapt, loss weighted": sa.softadapt(num_losses, loss_weighted=True),
        "equal weights": sa.fixed_weights(np.full(num_losses, 1 / num_losses)),
    }
    trainings = {
        name: functools.partial(train_learnable, *pieces, settings.steps)
        for name, pieces in LEARNABLE.items()
    } | {
        name: functools.partial(train_weighting, weighting, settings.steps)
        for name, weighting in weightings.items()
    }
    task = progress.add_task("coefficients", total=len(trainings) + 1)
    ends, arrays = {}, {}
    for name, training in trainings.items():
        progress.update(task, description=name)
        losses, coefficients = jax.device_get(jax.jit(jax.vmap(training))(keys))
        ends[name] = {"losses": losses[:, -1], "coefficients": coefficients[:, -1]}
        arrays[name] = coefficients[0]
        progress.advance(task)

    points = simplex_grid(settings.resolution)
    progress.update(task, description=f"{len(points)} grid points")
    losses = train_grid(points, settings.steps, keys)
    best = int(np.argmin(losses.sum(axis=-1).mean(axis=-1)))
    ends["best grid point"] = {
        "losses": losses[best],
        "coefficients": np.tile(points[best], (len(keys), 1)),
    }
    progress.advance(task)
    figures = {
        "steps": settings.steps,
        "temperature": settings.temperature,
        "grid": losses.sum(axis=-1).mean(axis=-1),
        "ends": ends,
    }
    return common.Outcome(figures, arrays)


# What came out.


def tables(figures: dict[str, Any]) -> list[common.Table]:
    rows = []
    for name, end in figures["ends"].items():
        losses, coefficients = (np.asarray(end[key]) for key in ("losses", "coefficients"))
        total, half = common.interval(losses.sum(axis=-1))
        rows.append(
            (
                name,
                f"{coefficients.max(axis=-1).mean():.3g}",
                *(f"{value:.3g}" for value in coefficients.mean(axis=0)),
                *(f"{value:.3g}" for value in losses.mean(axis=0)),
                f"{total:.4g} ± {half:.1g}",
            )
        )
    return [
        common.Table(
            f"Coefficients and losses after {figures['steps']} steps, mean over the seeds; a loss "
            f"of 1 is that of the mean, and the {len(figures['grid'])} grid points end between "
            f"{min(figures['grid']):.3f} and {max(figures['grid']):.3f}",
            ("coefficients", "largest", *(f"of {n}" for n in TARGETS), *TARGETS, "sum of losses"),
            rows,
        )
    ]


def verdicts(figures: dict[str, Any]) -> list[common.Verdict]:
    coefficients = {name: np.asarray(end["coefficients"]) for name, end in figures["ends"].items()}
    sums = {name: np.sum(end["losses"], axis=-1) for name, end in figures["ends"].items()}
    free, positive, simplex = (coefficients[name] for name in LEARNABLE)
    entropy = coefficients["simplex with entropy"]
    vertices = np.bincount(np.argmax(simplex, axis=-1), minlength=len(TARGETS))
    counts = ", ".join(f"{n} {count}" for n, count in zip(TARGETS, vertices, strict=True))

    def verdict(is_so: bool) -> str:
        return "holds" if is_so else "does not hold"

    gains = sums["simplex, w = softmax(z)"] - sums["simplex with entropy"]
    return [
        common.Verdict(
            "Coefficients that are learned like parameters collapse",
            "not in the paper",
            f"unbounded they end at {np.mean(free):.3g} and fall on; positive ones at "
            f"{np.mean(positive):.1g}, on the mean of the three",
            verdict(bool(np.all(free < 0) and np.all(positive < 0.01))),
        ),
        common.Verdict(
            "Learned coefficients on the simplex run to a vertex",
            "not in the paper",
            f"largest coefficient {np.mean(simplex.max(axis=-1)):.4f}, at a vertex that depends on "
            f"the seed ({counts})",
            verdict(bool(np.all(simplex.max(axis=-1) > 0.99))),
        ),
        common.Verdict(
            "An entropy term holds learned coefficients off the vertex",
            "not in the paper",
            f"largest coefficient {np.mean(entropy.max(axis=-1)):.2f}; the sum of the losses is "
            f"{'' if common.is_above(gains) else 'not clearly '}lower than without, by "
            f"{common.written(gains, digits=3)}",
            verdict(bool(np.all(entropy < 0.9))),
        ),
    ]


# The picture.


def draw(outcome: common.Outcome) -> matplotlib.figure.Figure:
    """Coefficients over the steps, and where the sum of the losses ends."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    shown = [name for name in outcome.arrays if name != "equal weights"]
    for axis, name in zip(axes.flat, shown, strict=False):
        axis.plot(outcome.arrays[name], label=TARGETS)
        axis.set(title=f"{name} (first seed)", xlabel="step", ylabel="coefficient")
        axis.legend(fontsize="small", title="loss")

    ends, grid = outcome.figures["ends"], outcome.figures["grid"]
    last = axes.flat[-1]
    last.axvspan(min(grid), max(grid), color="0.9", label=f"{len(grid)} grid points")
    worst = 0.0
    for position, (name, end) in enumerate(ends.items()):
        total = float(np.mean(np.sum(end["losses"], axis=-1)))
        if name.startswith("free"):
            last.annotate(
                "diverges", (0.98, position), xycoords=("axes fraction", "data"), ha="right"
            )
            continue
        worst = max(worst, total)
        last.plot(total, position, "o", color="tab:blue")
    last.set(
        title="Sum of the losses at the end",
        xlabel="sum of the losses, mean of the seeds",
        xlim=(0.97 * min(grid), 1.03 * worst),
        yticks=range(len(ends)),
        yticklabels=[name.split(", w")[0] for name in ends],
        ylim=(len(ends) - 0.5, -0.5),
    )
    last.legend(fontsize="small", loc="lower right")
    return figure


EXPERIMENT = common.Experiment(
    name="learned_coefficients",
    title="Learnable coefficients (a question often asked)",
    about="""\
Why not learn the coefficients by descent, as the parameters? Three targets, whether a wine is of
the first, second or third cultivar, share one linear feature of 13 inputs; coefficients and
parameters descend together with Adam. "Simplex with entropy" is `sa.learned_weights`, "SoftAdapt"
is loss weighted with beta 0.1, the grid is `sa.fixed_weights` under `vmap`. The figures are
training losses: the point is where the coefficients go. By their sum, which counts the three alike,
equal weights are best by construction.
""",
    full=Settings(),
    quick=Settings(num_seeds=2, steps=300, resolution=4),
    run=run,
    tables=tables,
    verdicts=verdicts,
    draw=draw,
)

if __name__ == "__main__":
    common.main((EXPERIMENT,))
