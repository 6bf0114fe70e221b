"""An Equinox training loop: an autoencoder of digits that classifies them too.

    python examples/equinox_loop.py [--epochs 60] [--seed 0] [--out equinox_loop.png] [--quick]

The model has three losses: the cross entropy of the digit's class, the squared error of the
reconstruction and the L1 norm of the code. Equinox models hold arrays and other things (here
activation functions) side by side: `eqx.partition` takes the arrays out, which leaves None in the
place of the rest, the losses are a function of the arrays, and SoftAdapt heads the optimizer's
chain. All else is an ordinary loop under `eqx.filter_jit`.

It trains with SoftAdapt and with fixed weights, both with the priority 0.1 for the L1 norm, prints
a table and saves a picture. The data, 1797 digits of 8 x 8 pixels, ship inside scikit-learn.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table
import sklearn.datasets
import sklearn.model_selection

import softadapt_optax as sa

BATCH = 64
LOSSES = ("class", "reconstruction", "sparsity")
PRIORITIES = {"class": 1.0, "reconstruction": 1.0, "sparsity": 0.1}  # factors of our own
WEIGHTINGS = {
    "SoftAdapt": sa.softadapt(num_losses=3, loss_weighted=True, priorities=PRIORITIES),
    "fixed weights": sa.fixed_weights(PRIORITIES),
}


# The model and its losses.


class Model(eqx.Module):
    """64 pixels to a code of 32 rectified units, and from there to the class and back."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.Linear
    classifier: eqx.nn.Linear
    rectify: Callable[[jax.Array], jax.Array]

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(64, 32, width_size=64, depth=1, key=keys[0])
        self.decoder = eqx.nn.Linear(32, 64, key=keys[1])
        self.classifier = eqx.nn.Linear(32, 10, key=keys[2])
        self.rectify = jax.nn.relu

    def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the code, the reconstruction and the logits of one image of shape [64]."""
        code = self.rectify(self.encoder(image))
        return code, self.decoder(code), self.classifier(code)


class Digits(NamedTuple):
    """Images of shape [n, 64] with pixels from 0 to 1, and labels of shape [n]."""

    images: np.ndarray
    labels: np.ndarray


def losses_of(model: Model, digits: Digits) -> dict[str, jax.Array]:
    code, reconstruction, logits = jax.vmap(model)(digits.images)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, digits.labels)
    return {
        "class": jnp.mean(cross_entropy),
        "reconstruction": jnp.mean(jnp.sum((reconstruction - digits.images) ** 2, axis=-1)),
        "sparsity": jnp.mean(jnp.sum(jnp.abs(code), axis=-1)),
    }


# Training.


def optimizer(weighting: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    return optax.chain(weighting, optax.adam(3e-3))


def make_train_step(tx: optax.GradientTransformationExtraArgs) -> Callable[..., tuple]:
    @eqx.filter_jit
    def train_step(model: Model, opt_state: optax.OptState, digits: Digits) -> tuple:
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def losses_fn(params: Model) -> dict[str, jax.Array]:
            return losses_of(eqx.combine(params, static), digits)

        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), opt_state, losses

    return train_step


class Curves(NamedTuple):
    """Losses of the test digits and weights after each epoch, shape [epochs, K]."""

    losses: np.ndarray
    weights: np.ndarray


def train(
    weighting: optax.GradientTransformation,
    training: Digits,
    test: Digits,
    epochs: int,
    seed: int,
    report: Callable[[dict[str, float]], None],
) -> tuple[Model, Curves]:
    model = Model(jax.random.key(seed))
    tx = optimizer(weighting)
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    train_step = make_train_step(tx)
    test_losses = eqx.filter_jit(losses_of)
    rng = np.random.default_rng(seed)
    losses, weights = [], []
    for _ in range(epochs):
        order = rng.permutation(len(training.labels))
        for rows in np.split(order, range(BATCH, len(order), BATCH))[:-1]:  # full batches alone
            batch = Digits(training.images[rows], training.labels[rows])
            model, opt_state, _ = train_step(model, opt_state, batch)
        now = jax.device_get(test_losses(model, test))
        losses.append([now[name] for name in LOSSES])
        weights.append(np.asarray(sa.loss_weights(opt_state)))
        report(now)
    return model, Curves(np.asarray(losses), np.asarray(weights))


# What came out.


def figures(model: Model, digits: Digits) -> tuple[float, float, float]:
    """Share of right classes, squared error per pixel and share of active code units."""
    code, reconstruction, logits = jax.vmap(model)(digits.images)
    right = jnp.argmax(logits, axis=-1) == digits.labels
    error = (reconstruction - digits.images) ** 2
    return float(jnp.mean(right)), float(jnp.mean(error)), float(jnp.mean(code > 0))


def draw(curves: dict[str, Curves], out: pathlib.Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for (name, curve), style in zip(curves.items(), ("-", ":"), strict=True):
        epochs = 1 + np.arange(len(curve.losses))
        shares = curve.weights / curve.weights.sum(axis=-1, keepdims=True)  # all that Adam sees
        for k, loss in enumerate(LOSSES):
            axes[0].plot(epochs, curve.losses[:, k], style, color=f"C{k}", label=f"{loss}, {name}")
            axes[1].plot(epochs, shares[:, k], style, color=f"C{k}")
    axes[0].set(title="Losses of the test digits", xlabel="epoch", ylabel="loss", yscale="log")
    axes[1].set(title="Weights over their sum", xlabel="epoch", ylabel="weight", ylim=(0, 1))
    figure.legend(loc="outside right center", fontsize="small")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="An Equinox training loop with three losses: SoftAdapt and fixed weights."
    )
    parser.add_argument("--epochs", type=int, help="passes over the 1347 training digits (60)")
    parser.add_argument("--seed", type=int, default=0, help="of split, order and model (0)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("equinox_loop.png"),
        help="the picture (equinox_loop.png)",
    )
    parser.add_argument("--quick", action="store_true", help="3 epochs, to see that it runs")
    args = parser.parse_args()
    epochs = args.epochs if args.epochs is not None else (3 if args.quick else 60)
    if epochs < 1:
        parser.error(f"--epochs should be at least 1, got {epochs}")
    if args.seed < 0:
        parser.error(f"--seed should be at least 0, got {args.seed}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console()

    data = sklearn.datasets.load_digits()
    images = (data.data / 16.0).astype(np.float32)
    parts = sklearn.model_selection.train_test_split(images, data.target, random_state=args.seed)
    training, test = Digits(parts[0], parts[2]), Digits(parts[1], parts[3])
    columns = (
        "{task.description}",
        rich.progress.BarColumn(16),
        rich.progress.MofNCompleteColumn(),
    )
    models, curves = {}, {}
    with rich.progress.Progress(
        *columns, rich.progress.TimeElapsedColumn(), console=console
    ) as bar:
        for name, weighting in WEIGHTINGS.items():
            task = bar.add_task(f"{name}, compiling", total=epochs)

            def report(losses: dict[str, float], task: int = task, name: str = name) -> None:
                parts = ", ".join(f"{loss} {losses[loss]:.2f}" for loss in LOSSES)
                bar.update(task, advance=1, description=f"{name}: {parts}")

            models[name], curves[name] = train(weighting, training, test, epochs, args.seed, report)

    table = rich.table.Table(title=f"{len(test.labels)} test digits")
    for column in ("weights", "right class", "error per pixel", "active units"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for name, model in models.items():
        right, error, active = figures(model, test)
        table.add_row(name, f"{right:.1%}", f"{error:.4f}", f"{active:.0%}")
    console.print(table)
    console.print("One seed and one split: an illustration, not a ranking.")
    draw(curves, args.out)
    console.print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()
