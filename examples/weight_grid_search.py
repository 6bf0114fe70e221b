"""Grid search over loss weights, the other answer to "which coefficients?".

    python examples/weight_grid_search.py [--losses 3] [--resolution 12] [--epochs 200] [--seed 0]
                                          [--out weight_grid_search.png] [--quick]

One model for each point of a grid on the simplex of weights (w >= 0, sum 1) is trained in a single
compiled program: `jax.vmap` over `sa.fixed_weights(weights)`. The methods that set the weights by
themselves then train one model each, in the same training step, with another weighting in it.

The network has a trunk of 8 units and a linear head for each task. The losses, of different units,
compete for the trunk:

- digit: the cross entropy of the ten classes, in nats;
- image: the squared error of the image's reconstruction, summed over the pixels;
- mass: the squared error of the stroke's mass, which is the sum of the pixels.

They start within about a factor of ten of each other. Of losses that are orders of magnitude apart
the best weights would hide in a corner of the grid: divide each by its prior loss before.

Models are compared by the skill they lose, a figure that does not depend on the weights. A task's
error (the share of wrong digits, the two squared errors) is placed between two references: 0% is
the error of the model trained for that task alone, which is a corner of the grid; 100% is that of
the best constant prediction, which ignores the input. All tasks count alike: the figure is the
mean over them, lower is better, and below 0% the tasks help each other. The best grid point is
chosen on validation digits; the test digits have no part in the choice.

Split, batch order, initialisation and learning rate are the same for all. The optimizer is Adam,
to which the scale of the weights does not matter; the mean weights of a method are therefore taken
of each step's weights over their sum. For the same reason the heads hardly feel the weights, as
each has a loss of its own, but a head with weight 0 is never trained: the sides of the triangle.
Methods that look at gradients look at those of the trunk (`shared`). All have their default options
but for SoftAdapt's `loss_weighted` and the temperature of the learned weights, the largest prior
loss.

It prints a table and saves a picture. The data, 1797 digits of 8 x 8 pixels, ship inside
scikit-learn.
"""

import argparse
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.collections
import matplotlib.patches
import matplotlib.patheffects
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import optax
import rich.box
import rich.console
import rich.progress
import rich.table
import sklearn.datasets

import softadapt_optax as sa

TASKS = ("digit", "image", "mass")  # sorted, as JAX orders dictionaries
TRUNK_UNITS = 8
NUM_TRAINING = 1024
NUM_VALIDATION = 386  # the other 387 are for the test
BATCH = 64
LEARNING_RATE = 3e-3


# The data, the model and its losses.


class Digits(NamedTuple):
    """Images of shape [n, 64] with pixels from 0 to 1, and what is to be predicted from them."""

    images: jax.Array
    targets: dict[str, jax.Array]  # by task


class Splits(NamedTuple):
    """Three sets of digits that share none."""

    training: Digits
    validation: Digits
    test: Digits


class Network(nn.Module):
    """A small trunk that the tasks share, and a linear head for each."""

    tasks: tuple[str, ...]

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the output for each task of images of shape [n, 64]."""
        features = nn.tanh(nn.Dense(TRUNK_UNITS, name="trunk")(images))
        sizes = {"digit": 10, "image": 64, "mass": 1}
        return {task: nn.Dense(sizes[task], name=task)(features) for task in self.tasks}


def squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """Summed over the features of each digit."""
    return jnp.sum((output - target) ** 2, axis=-1)


def is_wrong(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1) != labels


Measure = Callable[[jax.Array, jax.Array], jax.Array]  # of outputs and targets, for each digit
LOSSES: dict[str, Measure] = {
    "digit": optax.softmax_cross_entropy_with_integer_labels,
    "image": squared_error,
    "mass": squared_error,
}
ERRORS: dict[str, Measure] = {"digit": is_wrong, "image": squared_error, "mass": squared_error}
ERROR_NAMES = {"digit": "share wrong", "image": "squared", "mass": "squared"}


def load_digits(tasks: tuple[str, ...], seed: int) -> Splits:
    data = sklearn.datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(data.data))
    images = (data.data[order] / 16.0).astype(np.float32)
    mass = images.sum(axis=-1, keepdims=True)
    mass -= mass[:NUM_TRAINING].mean()  # spares the head learning the mean
    targets = {"digit": data.target[order], "image": images, "mass": mass}
    bounds = (0, NUM_TRAINING, NUM_TRAINING + NUM_VALIDATION, len(images))
    return Splits(
        *(
            Digits(
                jnp.asarray(images[first:last]),
                {task: jnp.asarray(targets[task][first:last]) for task in tasks},
            )
            for first, last in itertools.pairwise(bounds)
        )
    )


def means(
    measures: dict[str, Measure], outputs: dict[str, jax.Array], targets: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    return {task: jnp.mean(measures[task](outputs[task], targets[task])) for task in targets}


def network(digits: Digits) -> Network:
    return Network(tuple(digits.targets))


def losses_fn(params: Any, digits: Digits) -> dict[str, jax.Array]:
    return means(LOSSES, network(digits).apply(params, digits.images), digits.targets)


def errors_fn(params: Any, digits: Digits) -> jax.Array:
    """The error of each task, shape [K]."""
    errors = means(ERRORS, network(digits).apply(params, digits.images), digits.targets)
    return jnp.stack(list(errors.values()))


errors_of_grid = jax.jit(jax.vmap(errors_fn, in_axes=(0, None)))


# What a model is compared with.


def constant_errors(training: Digits, digits: Digits) -> np.ndarray:
    """The errors of the best constant prediction that the training digits give, shape [K]."""
    constants = {
        task: jnp.bincount(target) if task == "digit" else jnp.mean(target, axis=0)
        for task, target in training.targets.items()
    }
    num_digits = len(digits.images)
    outputs = {task: jnp.tile(constant, (num_digits, 1)) for task, constant in constants.items()}
    return np.stack([*means(ERRORS, outputs, digits.targets).values()])


def prior_losses(training: Digits) -> dict[str, float]:
    """The training losses of the best constant prediction."""
    return {
        task: sa.cross_entropy_prior(np.bincount(target))
        if task == "digit"
        else sa.squared_error_prior(target, reduction="sum")
        for task, target in training.targets.items()
    }


class References(NamedTuple):
    """The errors between which a model's errors are placed, each of shape [K]."""

    alone: np.ndarray
    constant: np.ndarray


def skill_lost(errors: np.ndarray, references: References) -> np.ndarray:
    """0 for the error of a model trained for the task alone, 1 for that of a constant."""
    return (errors - references.alone) / (references.constant - references.alone)


def alone_errors(errors: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Of errors of shape [points, K] those of each task at its own corner, shape [K]."""
    return np.diagonal(errors[np.argmax(points, axis=0)])


def references_of(
    grid_errors: np.ndarray, points: np.ndarray, training: Digits, digits: Digits
) -> References:
    return References(alone_errors(grid_errors, points), constant_errors(training, digits))


def are_apart(references: References) -> bool:
    """Whether each model trained for one task has learned something of it."""
    return bool(np.all(references.alone < references.constant))


# Training.


def methods(training: Digits, seed: int) -> dict[str, optax.GradientTransformation]:
    """The weightings that need no search."""
    num_losses, priors = len(training.targets), prior_losses(training)

    def trunk(params: Any) -> Any:
        return {"params": {layer: layer == "trunk" for layer in params["params"]}}

    return {
        "softadapt": sa.softadapt(num_losses, loss_weighted=True),
        "uncertainty": sa.uncertainty(num_losses),
        "realtime_loss": sa.realtime_loss(num_losses),
        "initial_loss": sa.initial_loss(num_losses),
        "prior_loss": sa.prior_loss(priors),
        "learned_weights": sa.learned_weights(num_losses, temperature=max(priors.values())),
        "gradnorm": sa.gradnorm(num_losses, shared=trunk),
        "normalized_gradients": sa.normalized_gradients(num_losses, shared=trunk),
        "pcgrad": sa.pcgrad(num_losses, seed, shared=trunk),
        "mgda": sa.mgda(num_losses, shared=trunk),
    }


def optimizer(weighting: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    return optax.chain(weighting, optax.adam(LEARNING_RATE))


def train_epoch(
    weighting: optax.GradientTransformation,
    carry: tuple[Any, Any],
    digits: Digits,
    batches: jax.Array,
) -> tuple[tuple[Any, Any], jax.Array]:
    """One step for each of the batches, which are indices of digits, shape [steps, batch].

    Returns parameters and optimizer state, and the mean weights, shape [K].
    """
    tx = optimizer(weighting)

    def train_step(carry: tuple[Any, Any], batch: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = carry
        batch_digits = jax.tree.map(lambda leaf: leaf[batch], digits)
        _, grads = sa.value_and_component_grads(losses_fn)(params, batch_digits)
        updates, opt_state = tx.update(grads, opt_state, params)
        weights = sa.loss_weights(opt_state)
        return (optax.apply_updates(params, updates), opt_state), weights / jnp.sum(weights)

    carry, weights = jax.lax.scan(train_step, carry, batches)
    return carry, jnp.mean(weights, axis=0)


def train(
    epoch: Callable[..., tuple[tuple[Any, Any], jax.Array]],
    carry: tuple[Any, Any],
    digits: Digits,
    epochs: list[np.ndarray],
    report: Callable[[Any, jax.Array], None],
) -> tuple[Any, np.ndarray]:
    """Returns the trained parameters and the mean weights, shape [..., K]."""
    means_by_epoch = []
    for batches in epochs:
        carry, weights = epoch(carry, digits, batches)
        means_by_epoch.append(weights)
        report(carry[0], weights)
    return carry[0], np.mean(jax.device_get(means_by_epoch), axis=0)


def train_grid(
    points: np.ndarray,
    params: Any,
    splits: Splits,
    epochs: list[np.ndarray],
    bar: rich.progress.Progress,
) -> Any:
    """One model for each point of shape [K], all in one program."""
    carry = jax.vmap(lambda point: (params, optimizer(sa.fixed_weights(point)).init(params)))(
        jnp.asarray(points)
    )
    epoch = jax.jit(
        jax.vmap(
            lambda point, *rest: train_epoch(sa.fixed_weights(point), *rest),
            in_axes=(0, 0, None, None),
        ),
        donate_argnums=1,
    )
    bar_task = bar.add_task(f"compiling {len(points)} grid points", total=len(epochs))

    def report(params: Any, weights: jax.Array) -> None:
        del weights
        errors = np.asarray(errors_of_grid(params, splits.validation))
        references = references_of(errors, points, splits.training, splits.validation)
        live = "not all tasks learned yet"
        if are_apart(references):
            losts = skill_lost(errors, references).mean(axis=-1)
            live = f"best {losts.min():.1%} at {written(points[np.argmin(losts)])}"
        bar.update(bar_task, advance=1, description=f"{len(points)} grid points, {live}")

    params, _ = train(
        functools.partial(epoch, points), carry, splits.training, epochs, report=report
    )
    return params


def train_methods(
    weightings: dict[str, optax.GradientTransformation],
    params: Any,
    digits: Digits,
    epochs: list[np.ndarray],
    bar: rich.progress.Progress,
) -> dict[str, tuple[Any, np.ndarray]]:
    """Parameters and mean weights by method."""
    bar_task = bar.add_task("methods", total=len(weightings) * len(epochs))

    def report(name: str, params: Any, weights: jax.Array) -> None:
        del params
        bar.update(bar_task, advance=1, description=f"{name}, weights {written(weights)}")

    trained = {}
    for name, weighting in weightings.items():
        bar.update(bar_task, description=f"compiling {name}")
        epoch = jax.jit(functools.partial(train_epoch, weighting))
        carry = (params, optimizer(weighting).init(params))
        trained[name] = train(epoch, carry, digits, epochs, report=functools.partial(report, name))
    bar.update(bar_task, description=f"{len(weightings)} methods")
    return trained


def simplex_grid(num_losses: int, resolution: int) -> np.ndarray:
    """All weights that are multiples of 1 / resolution and sum to 1, shape [points, K]."""
    counts = itertools.product(range(resolution + 1), repeat=num_losses)
    points = [point for point in counts if sum(point) == resolution]
    return np.asarray(points, dtype=np.float32) / resolution


def are_equal(points: np.ndarray) -> np.ndarray:
    """Whether the weights of each point are equal, shape [points]."""
    return np.all(np.isclose(points, 1 / points.shape[-1]), axis=-1)


def epochs_of_batches(num_epochs: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(NUM_TRAINING).reshape(-1, BATCH) for _ in range(num_epochs)]


# What came out.


class Result(NamedTuple):
    """A trained model: its mean weights and the skill it lost, each of shape [K]."""

    name: str
    weights: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def results_of_grid(points: np.ndarray, validation: np.ndarray, test: np.ndarray) -> list[Result]:
    """The best point on validation and, if it is on the grid, that of equal weights."""
    chosen = {"best grid point": np.argmin(validation.mean(axis=-1))}
    if np.any(are_equal(points)):
        chosen["equal weights"] = np.argmax(are_equal(points))
    return [Result(name, points[i], validation[i], test[i]) for name, i in chosen.items()]


def result_of_method(
    name: str,
    params: Any,
    weights: np.ndarray,
    held_out: Sequence[Digits],
    references: Sequence[References],
) -> Result:
    validation, test = (
        skill_lost(np.asarray(errors_fn(params, digits)), reference)
        for digits, reference in zip(held_out, references, strict=True)
    )
    return Result(name, weights, validation, test)


def written(weights: np.ndarray) -> str:
    return " ".join(f"{weight:.2f}" for weight in weights)


def new_table(title: str) -> rich.table.Table:
    return rich.table.Table(
        title=title, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )


def show_skill(
    results: list[Result], tasks: tuple[str, ...], console: rich.console.Console
) -> None:
    table = new_table("Skill lost: the mean over the tasks, and each on the test digits")
    for column in ("weighting", "mean weights", "validation", "test", *tasks):
        table.add_column(column, justify="left" if column == "weighting" else "right")
    for result in results:
        figures = (result.validation.mean(), result.test.mean(), *result.test)
        percentages = [f"{figure:.1%}" for figure in figures]
        table.add_row(result.name, written(result.weights), *percentages)
    console.print(table)


def show_scale(
    references: References, tasks: tuple[str, ...], console: rich.console.Console
) -> None:
    table = new_table("The scale: errors on the test digits")
    table.add_column()
    for task in tasks:
        table.add_column(f"{task} ({ERROR_NAMES[task]})", justify="right")
    rows = {"0%: trained alone": references.alone, "100%: best constant": references.constant}
    for name, errors in rows.items():
        table.add_row(name, *(f"{error:.2g}" for error in errors))
    console.print(table)


def show_comparison(
    best: Result, others: list[Result], num_points: int, console: rich.console.Console
) -> None:
    better = [r.name for r in others if r.test.mean() < best.test.mean()]
    not_better = [r.name for r in others if r.test.mean() >= best.test.mean()]
    console.print(f"Better on the test than the best grid point: {', '.join(better) or 'none'}.")
    console.print(f"Not better: {', '.join(not_better) or 'none'}.")
    console.print(f"The search trained {num_points} models, each method one.")
    console.print("One seed and one split: an illustration, not a ranking.")


# The picture.

MARKERS = ("*", "o", "s", "^", "v", "<", ">", "D", "P", "X", "p", "d")  # the star is the best
METRIC_LABEL = "skill lost on the validation digits, mean over the tasks (lower is better)"
CORNERS = np.asarray([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
HALO = (
    matplotlib.patheffects.Stroke(linewidth=4, foreground="white"),
    matplotlib.patheffects.Normal(),
)


def mark(
    axes: plt.Axes, position: Sequence[float], marker: str, colour: Any, result: Result
) -> None:
    axes.scatter(
        *position,
        s=450 if marker == "*" else 90,
        marker=marker,
        color=colour,
        edgecolors="black",
        linewidths=1.2,
        path_effects=HALO,
        label=f"{result.name}: {result.validation.mean():.1%}, {result.test.mean():.1%}",
        zorder=4,
    )


def draw_sides(axes: plt.Axes, tasks: tuple[str, ...]) -> None:
    """Scales on the sides of the triangle; that of a weight ends at its corner."""
    axes.add_patch(plt.Polygon(CORNERS, fill=False, lw=1, zorder=3))
    turns = (0, -60, 60)
    arrows = ("← {}", "{} →", "{} →")
    for k, (task, turn, arrow) in enumerate(zip(tasks, turns, arrows, strict=True)):
        before, after = CORNERS[(k + 1) % 3], CORNERS[(k + 2) % 3]
        for weight in (0.2, 0.4, 0.6, 0.8):
            start = before + weight * (CORNERS[k] - before)
            end = after + weight * (CORNERS[k] - after)
            outwards = (start - end) / np.linalg.norm(start - end)
            axes.plot(*zip(start, end, strict=True), color="white", lw=0.6, alpha=0.6, zorder=2)
            axes.plot(*zip(start, start + 0.02 * outwards, strict=True), color="black", lw=0.8)
            axes.text(*(start + 0.045 * outwards), f"{weight:g}", ha="center", va="center")
        middle = (before + CORNERS[k]) / 2
        outwards = (middle - after) / np.linalg.norm(middle - after)
        axes.text(
            *(middle + 0.11 * outwards),
            arrow.format(f"weight of the {task} loss"),
            ha="center",
            va="center",
            rotation=turn,
            rotation_mode="anchor",
        )
        centre = CORNERS.mean(axis=0)
        axes.text(
            *(CORNERS[k] + 0.03 * (CORNERS[k] - centre) / np.linalg.norm(CORNERS[k] - centre)),
            f"{task}\nalone",
            ha="center",
            va="bottom" if k == 2 else "top",
            fontweight="bold",
        )


def draw_triangle(
    results: list[Result],
    points: np.ndarray,
    losts: np.ndarray,
    tasks: tuple[str, ...],
    resolution: int,
) -> plt.Figure:
    """One cell for each grid point, coloured as the methods' markers are."""
    figure, axes = plt.subplots(figsize=(11, 8), layout="constrained")
    lowest = min(result.validation.mean() for result in results)
    colours = plt.Normalize(lowest, losts[np.all(points > 0, axis=-1)].max())
    colormap = plt.get_cmap("viridis_r")
    angles = np.radians(30 + 60 * np.arange(6))
    hexagon = np.stack([np.cos(angles), np.sin(angles)], axis=-1) / (resolution * 3**0.5)
    cells = matplotlib.collections.PolyCollection(
        (points @ CORNERS)[:, None] + hexagon,
        array=losts,
        cmap=colormap,
        norm=colours,
        lw=0.4,
        edgecolors="face",
    )
    axes.add_collection(cells)
    cells.set_clip_path(matplotlib.patches.Polygon(CORNERS, transform=axes.transData))
    draw_sides(axes, tasks)
    for result, marker in zip(results, MARKERS, strict=True):
        colour = colormap(colours(result.validation.mean()))
        mark(axes, result.weights @ CORNERS, marker, colour, result)
    axes.set(
        xlim=(-0.1, 1.1),
        ylim=(-0.14, 0.99),
        aspect="equal",
        title="Cells: models with fixed weights.\n"
        "Markers: methods at their mean weights, in the colour of their own result.",
    )
    axes.set_axis_off()
    figure.colorbar(
        cells, extend="max", location="bottom", shrink=0.8, format="{x:.1%}", label=METRIC_LABEL
    )
    return figure


def draw_curve(
    results: list[Result], points: np.ndarray, losts: np.ndarray, tasks: tuple[str, ...]
) -> plt.Figure:
    """The same for two losses: the skill lost over the weight of the first."""
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    weights, is_inside = points[:, 0], np.all(points > 0, axis=-1)
    axes.plot(
        weights[is_inside], losts[is_inside], ".-", color="grey", label="grid, without its ends"
    )
    colours = ("gold", "white", *plt.get_cmap("tab10").colors)
    for result, marker, colour in zip(results, MARKERS, colours, strict=True):
        position = (result.weights[0], result.validation.mean())
        mark(axes, position, marker, colour, result)
    axes.set(
        xlim=(0, 1),
        xlabel=f"weight of the {tasks[0]} loss; that of the {tasks[1]} loss is the rest",
        ylabel=METRIC_LABEL,
        title="Line: models with fixed weights. Markers: methods at their mean weights.",
    )
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    return figure


def draw(
    results: list[Result],
    points: np.ndarray,
    losts: np.ndarray,
    tasks: tuple[str, ...],
    resolution: int,
    out: pathlib.Path,
) -> None:
    if len(tasks) == 3:
        figure = draw_triangle(results, points, losts, tasks, resolution)
    else:
        figure = draw_curve(results, points, losts, tasks)
    figure.legend(
        loc="outside right center", title="skill lost: validation, test", labelspacing=0.9
    )
    figure.savefig(out, dpi=120)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Grid search over loss weights in one program, beside the methods that adapt."
    )
    parser.add_argument("--losses", type=int, default=3, help="3 (default) or 2 losses")
    parser.add_argument(
        "--resolution", type=int, help="steps of the grid from 0 to 1 (12, for two losses 24)"
    )
    parser.add_argument("--epochs", type=int, help="passes over the 1024 training digits (200)")
    parser.add_argument("--seed", type=int, default=0, help="of split, order and model (0)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("weight_grid_search.png"),
        help="the picture (weight_grid_search.png)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a coarse grid and few epochs, to see that it runs"
    )
    args = parser.parse_args()
    if args.losses not in (2, 3):
        parser.error(f"--losses should be 2 or 3, got {args.losses}")
    if args.resolution is None:
        args.resolution = 4 if args.quick else {2: 24, 3: 12}[args.losses]
    if args.epochs is None:
        args.epochs = 20 if args.quick else 200
    if args.resolution < 4:
        parser.error(f"--resolution should be at least 4, got {args.resolution}")
    if args.epochs < 1:
        parser.error(f"--epochs should be at least 1, got {args.epochs}")
    if args.seed < 0:
        parser.error(f"--seed should be at least 0, got {args.seed}")
    return args


def main() -> None:
    args = parse_arguments()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console()

    tasks = TASKS[: args.losses]
    splits = load_digits(tasks, args.seed)
    points = simplex_grid(args.losses, args.resolution)
    weightings = methods(splits.training, args.seed)
    if not np.any(are_equal(points)):
        equal = sa.fixed_weights(np.full(args.losses, 1 / args.losses))
        weightings = {"equal weights": equal, **weightings}
    epochs = epochs_of_batches(args.epochs, args.seed)
    params = jax.jit(network(splits.training).init)(
        jax.random.key(args.seed), splits.training.images[:1]
    )

    console.print(f"Weights in the order {', '.join(tasks)}; the grid trains first.")
    columns = (
        "{task.description}",
        rich.progress.BarColumn(10),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        grid_params = train_grid(points, params, splits, epochs, bar)
        held_out = (splits.validation, splits.test)
        grid_errors = [np.asarray(errors_of_grid(grid_params, digits)) for digits in held_out]
        references = [
            references_of(errors, points, splits.training, digits)
            for errors, digits in zip(grid_errors, held_out, strict=True)
        ]
        if not all(map(are_apart, references)):
            raise SystemExit(
                f"--epochs {args.epochs} is too few: a model trained for one task alone is no "
                "better than a constant, which leaves nothing to compare with."
            )
        trained = train_methods(weightings, params, splits.training, epochs, bar)

    validation, test = (
        skill_lost(errors, reference)
        for errors, reference in zip(grid_errors, references, strict=True)
    )
    results = results_of_grid(points, validation, test)
    for name, (model, weights) in trained.items():
        results.append(result_of_method(name, model, weights, held_out, references))

    show_skill(results, tasks, console)
    show_scale(references[1], tasks, console)
    show_comparison(results[0], results[1:], len(points), console)
    draw(results, points, validation.mean(axis=-1), tasks, args.resolution, args.out)
    console.print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()
