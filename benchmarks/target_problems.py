"""The four problems of `benchmarks.targets`, on scikit-learn's digits, and how they are trained.

Each has a few labels and losses of several kinds, of which one or none is what is wanted. What is
wanted is the target: the cross entropy of validation digits. A problem trains a row with many
configurations (a learning rate and weights, which most methods ignore) and all seeds side by side,
by two levels of `vmap`. Training sees the training digits, and the validation digits if a row
follows the target; the test digits are seen by `judged` alone.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets

import softadapt_optax as sa
from benchmarks.problems import Make, Setting, keys_of, stacked

PIXELS, CLASSES = 64, 10
HIDDEN, FEATURES = 64, 32  # of the encoder's two layers
BATCH = 50
SEEDS, STEPS = 8, 1500
RATES = np.asarray([3e-4, 1e-3, 3e-3])
RECORDS = 50  # how often a run's weights are kept

# What a problem is.


class Digits(NamedTuple):
    """Images of shape [n, 64] with pixels from 0 to 1, and their labels, [n]."""

    images: Any
    labels: Any


class OfSeed(NamedTuple):
    """What training sees of a seed; leaves of all seeds have a leading axis [seeds]."""

    params: Any
    training: Any
    batches: Any  # indices, leaves of shape [steps, ...]
    validation: Digits
    target_batches: Any  # indices, shape [steps, BATCH]
    priors: Any = None  # losses of the best constant prediction, shape [K], where all have one


class Task(NamedTuple):
    """What is trained, and how it is judged."""

    losses_fn: Callable[[Any, Any, Any], list[jax.Array]]  # of parameters, training data, batch
    logits: Callable[[Any, jax.Array], jax.Array]  # of parameters and images
    of_seeds: OfSeed
    test: Digits  # of all seeds
    steps: int
    shared: Callable[[Any], Any] | None = None  # the mask of the trunk, where there are heads


class Problem(NamedTuple):
    """How it is called, how large it is and how it is loaded."""

    name: str
    setting: str  # some sentences in Markdown
    losses: tuple[str, ...]  # the first is the one to which ratios are
    ratios: tuple[np.ndarray, ...]  # of each other loss to the first, the grid's values
    has_priors: bool  # whether `prior_loss` applies
    load: Callable[[int, int], Task]  # of the numbers of seeds and steps
    rates: np.ndarray = RATES  # learning rates
    steps: int = STEPS
    num_seeds: int = SEEDS


class Trained(NamedTuple):
    """Models after training, and their weights on the way."""

    params: Any  # leaves [configurations, seeds, ...]
    weights: np.ndarray  # [configurations, seeds, records, K]


class Judged(NamedTuple):
    """Cross entropy and errors in %, each of shape [configurations, seeds]."""

    cross_entropy: np.ndarray
    errors: np.ndarray


def points_of(ratios: tuple[np.ndarray, ...]) -> np.ndarray:
    """All weights of a grid, shape [points, K]; they sum to K."""
    points = np.asarray([[1.0, *others] for others in itertools.product(*ratios)])
    return points.shape[1] * points / points.sum(axis=1, keepdims=True)


def drawn_points(ratios: tuple[np.ndarray, ...], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random weights, shape [*shape, K]: log-uniform ratios between the grid's ends but for 0."""
    rng = np.random.default_rng(seed)
    ends = [np.log([values[values > 0].min(), values.max()]) for values in ratios]
    others = [np.exp(rng.uniform(*end, size=shape)) for end in ends]
    points = np.stack([np.ones(shape), *others], axis=-1)
    return points.shape[-1] * points / points.sum(axis=-1, keepdims=True)


# Training.


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def at(index: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def chain_of(
    task: Task, make: Make, config: jax.Array, of_seed: OfSeed
) -> optax.GradientTransformationExtraArgs:
    """The weighting and Adam, whose rate decays by a cosine; the configuration is [1 + K]."""
    first = jnp.stack(task.losses_fn(of_seed.params, of_seed.training, at(0, of_seed.batches)))
    setting = Setting(len(first), config[1:], first, of_seed.priors, task.shared)
    schedule = optax.cosine_decay_schedule(config[0], task.steps)
    return optax.chain(make(setting), optax.adam(schedule))


def step_of(
    task: Task, tx: optax.GradientTransformationExtraArgs, of_seed: OfSeed, follows_target: bool
) -> Callable[[jax.Array, tuple[Any, Any]], tuple[Any, Any]]:
    """A training step, of its index and a carry."""

    def target_loss(params: Any, index: jax.Array) -> jax.Array:
        found = at(of_seed.target_batches[index], of_seed.validation)
        return cross_entropy(task.logits(params, found.images), found.labels)

    def step(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, opt_state = carry
        extra = {"target": jax.grad(lambda p: target_loss(p, index))} if follows_target else {}
        losses_and_grads = sa.value_and_component_grads(task.losses_fn)
        _, grads = losses_and_grads(params, of_seed.training, at(index, of_seed.batches))
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    return step


def train(
    task: Task,
    make: Make,
    configs: np.ndarray,
    follows_target: bool = False,
    at_once: int = 9,
    advance: Callable[[float], None] = lambda share: None,
) -> Trained:
    """All configurations, of shape [configurations, seeds, 1 + K], as many at once as is said."""

    def run(config: jax.Array, of_seed: OfSeed) -> tuple[Any, jax.Array]:
        tx = chain_of(task, make, config, of_seed)
        step = step_of(task, tx, of_seed, follows_target)
        length = max(1, task.steps // RECORDS)

        def record(carry: tuple[Any, Any], first: jax.Array) -> tuple[tuple[Any, Any], Any]:
            last = jnp.minimum(first + length, task.steps)
            carry = jax.lax.fori_loop(first, last, step, carry)
            return carry, sa.loss_weights(carry[1])

        start = (of_seed.params, tx.init(of_seed.params))
        (params, _), weights = jax.lax.scan(record, start, jnp.arange(0, task.steps, length))
        return params, weights

    run_all = jax.jit(jax.vmap(jax.vmap(run), in_axes=(0, None)))
    at_once, found = min(at_once, len(configs)), []
    for first in range(0, len(configs), at_once):
        chosen = np.minimum(np.arange(first, first + at_once), len(configs) - 1)
        part = jax.device_get(run_all(jnp.asarray(configs[chosen]), task.of_seeds))
        found.append(at(slice(0, min(at_once, len(configs) - first)), part))
        advance(len(found[-1][1]) / len(configs))
    return Trained(*jax.tree.map(lambda *leaves: np.concatenate(leaves), *found))


def judged(task: Task, params: Any, digits: Digits) -> Judged:
    def of_model(params: Any, digits: Digits) -> tuple[jax.Array, jax.Array]:
        logits = task.logits(params, digits.images)
        wrong = jnp.argmax(logits, axis=-1) != digits.labels
        return cross_entropy(logits, digits.labels), 100 * jnp.mean(wrong)

    of_all = jax.jit(jax.vmap(jax.vmap(of_model), in_axes=(0, None)))
    parts = [of_all(at(slice(i, i + 8), params), digits) for i in range(0, num_of(params), 8)]
    return Judged(*(np.concatenate([part[k] for part in parts]) for k in range(2)))


def num_of(tree: Any) -> int:
    return len(jax.tree.leaves(tree)[0])


# Cost.


def flops_of(task: Task, make: Make, follows_target: bool = False) -> float:
    """The compiler's count for one step of one model; of a branch it counts the dearer side."""
    of_seed = at(0, task.of_seeds)
    losses = jax.eval_shape(task.losses_fn, *of_seed[:2], at(0, of_seed.batches))
    tx = chain_of(task, make, jnp.ones(1 + len(losses)), of_seed)

    def step(carry: Any, of_seed: OfSeed) -> Any:
        return step_of(task, tx, of_seed, follows_target)(jnp.asarray(0), carry)

    return flops_in(step, (of_seed.params, tx.init(of_seed.params)), of_seed)


def plain_flops_of(task: Task) -> float:
    """The same of a step without the library, on the summed loss."""
    adam = optax.adam(optax.cosine_decay_schedule(1.0, task.steps))

    def step(carry: Any, of_seed: OfSeed) -> Any:
        params, opt_state = carry
        batch = at(0, of_seed.batches)
        grads = jax.grad(lambda p: sum(task.losses_fn(p, of_seed.training, batch)))(params)
        updates, opt_state = adam.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    of_seed = at(0, task.of_seeds)
    return flops_in(step, (of_seed.params, adam.init(of_seed.params)), of_seed)


def flops_in(function: Callable[..., Any], *args: Any) -> float:
    return float(jax.jit(function).lower(*args).compile().cost_analysis()["flops"])


# Networks.


def layer(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """He's initialisation."""
    kernel = jax.random.normal(key, (inputs, outputs)) * jnp.sqrt(2.0 / inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def network(heads: dict[str, int], key: jax.Array) -> dict[str, Any]:
    """A trunk of two layers, and a linear layer for each head."""
    keys = jax.random.split(key, 2 + len(heads))
    trunk = [layer(keys[0], PIXELS, HIDDEN), layer(keys[1], HIDDEN, FEATURES)]
    of_heads = {
        name: layer(key, FEATURES, outputs)
        for key, (name, outputs) in zip(keys[2:], heads.items(), strict=True)
    }
    return {"trunk": trunk, **of_heads}


def dense(params: Any, inputs: jax.Array) -> jax.Array:
    return inputs @ params["kernel"] + params["bias"][None]


def features(params: Any, images: jax.Array) -> jax.Array:
    """Of the trunk, not negative, shape [n, FEATURES]."""
    for each in params["trunk"]:
        images = jax.nn.relu(dense(each, images))
    return images


def logits_of(params: Any, images: jax.Array) -> jax.Array:
    return dense(params["digit"], features(params, images))


def trunk_of(params: Any) -> Any:
    """The mask of what the losses share."""
    none = jax.tree.map(lambda leaf: False, params)
    return none | {"trunk": jax.tree.map(lambda leaf: True, params["trunk"])}


def squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """Summed over the pixels, mean over the digits."""
    return jnp.mean(jnp.sum((output - target) ** 2, axis=-1))


# Data.


@functools.cache
def all_digits() -> Digits:
    data = sklearn.datasets.load_digits()
    return Digits((data.data / 16.0).astype(np.float32), data.target)


def parts_of(seed: int, *sizes: int) -> list[Digits]:
    """Sets of digits that share none; after those of the sizes the rest."""
    order = np.random.default_rng(seed).permutation(len(all_digits().labels))
    images, labels = (np.split(leaf[order], np.cumsum(sizes)) for leaf in all_digits())
    pairs = zip(images, labels, strict=True)
    return [Digits(*pair) for pair in pairs]


def batches_of(rng: np.random.Generator, size: int, *shape: int) -> np.ndarray:
    """Indices of digits, drawn with replacement."""
    return rng.integers(size, size=shape)


def prior_of(labels: np.ndarray) -> float:
    return float(sa.cross_entropy_prior(np.bincount(labels, minlength=CLASSES)))


class Drawn(NamedTuple):
    """What `load` of a problem draws for a seed."""

    training: Any
    batches: Any
    validation: Digits
    test: Digits
    priors: Any = None


def task_of(
    draw: Callable[[int, int], Drawn],
    heads: dict[str, int],
    losses_fn: Callable[[Any, Any, Any], list[jax.Array]],
    shared: Callable[[Any], Any] | None,
    num_seeds: int,
    steps: int,
) -> Task:
    drawn = [draw(seed, steps) for seed in range(num_seeds)]
    target_batches = [
        batches_of(np.random.default_rng([1, seed]), len(each.validation.labels), steps, BATCH)
        for seed, each in enumerate(drawn)
    ]
    of_all = stacked(drawn)
    params = jax.vmap(functools.partial(network, heads))(keys_of(num_seeds))
    of_seeds = OfSeed(
        params,
        of_all.training,
        of_all.batches,
        of_all.validation,
        jnp.asarray(np.stack(target_batches)),
        of_all.priors,
    )
    return Task(losses_fn, logits_of, of_seeds, of_all.test, steps, shared)


# Few labels and two penalties.

FEW = 150


def draw_few_labels(seed: int, steps: int) -> Drawn:
    training, validation, test = parts_of(seed, FEW, FEW)
    batches = batches_of(np.random.default_rng([0, seed]), FEW, steps, BATCH)
    return Drawn(training, batches, validation, test)


def losses_of_few_labels(params: Any, training: Digits, batch: jax.Array) -> list[jax.Array]:
    logits = logits_of(params, training.images[batch])
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    shares = jax.nn.softmax(logits)
    confidence = jnp.sum(shares * jax.nn.log_softmax(logits), axis=-1) + jnp.log(CLASSES)
    return [
        cross_entropy(logits, training.labels[batch]),
        0.5 * sum(jnp.sum(kernel**2) for kernel in kernels),
        jnp.mean(confidence),
    ]


# A main task with two that may help and one that harms.

LABELLED, UNLABELLED = 100, 400


class Auxiliary(NamedTuple):
    """Training digits and what is to be predicted from them."""

    labelled: Digits
    random_labels: Any  # of the labelled digits
    images: Any  # of all training digits
    mass: Any  # of theirs, with mean 0 and variance 1


def draw_auxiliary(seed: int, steps: int) -> Drawn:
    labelled, unlabelled, validation, test = parts_of(seed, LABELLED, UNLABELLED, LABELLED)
    rng = np.random.default_rng([0, seed])
    images = np.concatenate([labelled.images, unlabelled.images])
    mass = images.sum(axis=-1, keepdims=True)
    mass = (mass - mass.mean()) / mass.std()
    random_labels = rng.integers(CLASSES, size=LABELLED)
    batches = [batches_of(rng, size, steps, BATCH) for size in (LABELLED, len(images))]
    of_labels = [prior_of(each) for each in (labelled.labels, random_labels)]
    priors = np.asarray([of_labels[0], images.var(axis=0).sum(), 1.0, of_labels[1]])
    training = Auxiliary(labelled, random_labels, images, mass)
    return Drawn(training, batches, validation, test, priors)


def losses_of_auxiliary(params: Any, training: Auxiliary, batch: Any) -> list[jax.Array]:
    of_labels, of_images = batch
    found = features(params, training.labelled.images[of_labels])
    images = training.images[of_images]
    others = features(params, images)
    return [
        cross_entropy(dense(params["digit"], found), training.labelled.labels[of_labels]),
        squared_error(dense(params["image"], others), images),
        squared_error(dense(params["mass"], others), training.mass[of_images]),
        cross_entropy(dense(params["random"], found), training.random_labels[of_labels]),
    ]


# Training data of four sources, of which one is right.

CLEAN, PER_SOURCE, IN_BATCH = 100, 250, 25
WRONG, NOISE = 0.4, 0.5  # the share of wrong labels, the noise's standard deviation


def draw_sources(seed: int, steps: int) -> Drawn:
    clean, *others, validation, test = parts_of(seed, CLEAN, *[PER_SOURCE] * 3, CLEAN)
    rng = np.random.default_rng([0, seed])
    wrong, permuted, noisy = others
    is_wrong = rng.uniform(size=PER_SOURCE) < WRONG
    shifts = rng.integers(1, CLASSES, size=PER_SOURCE)
    wrong = wrong._replace(labels=(wrong.labels + is_wrong * shifts) % CLASSES)
    permuted = permuted._replace(labels=derangement(rng)[permuted.labels])
    noise = NOISE * rng.normal(size=noisy.images.shape).astype(np.float32)
    noisy = noisy._replace(images=noisy.images + noise)
    sources = [clean, wrong, permuted, noisy]
    batches = [batches_of(rng, len(each.labels), steps, IN_BATCH) for each in sources]
    priors = np.asarray([prior_of(each.labels) for each in sources])
    return Drawn(sources, batches, validation, test, priors)


def derangement(rng: np.random.Generator) -> np.ndarray:
    """A permutation of the classes that leaves none in its place."""
    order = rng.permutation(CLASSES)
    result = np.empty_like(order)
    result[order] = np.roll(order, 1)
    return result


def losses_of_sources(params: Any, sources: list[Digits], batches: Any) -> list[jax.Array]:
    drawn = [at(batch, source) for source, batch in zip(sources, batches, strict=True)]
    return [cross_entropy(logits_of(params, each.images), each.labels) for each in drawn]


# A sparse autoencoder whose code a linear classifier reads.


def draw_autoencoder(seed: int, steps: int) -> Drawn:
    labelled, unlabelled, validation, test = parts_of(seed, LABELLED, UNLABELLED, LABELLED)
    rng = np.random.default_rng([0, seed])
    images = np.concatenate([labelled.images, unlabelled.images])
    batches = [batches_of(rng, size, steps, BATCH) for size in (LABELLED, len(images))]
    return Drawn((labelled, images), batches, validation, test)


def losses_of_autoencoder(params: Any, training: Any, batch: Any) -> list[jax.Array]:
    labelled, images = training[0], training[1][batch[1]]
    code = features(params, images)
    logits = logits_of(params, labelled.images[batch[0]])
    return [
        cross_entropy(logits, labelled.labels[batch[0]]),
        squared_error(dense(params["image"], code), images),
        jnp.mean(jnp.sum(code, axis=-1)),
    ]


# All of them.


def decades(low: int, high: int) -> np.ndarray:
    """0 and the powers of ten between the ends."""
    return np.concatenate([[0.0], 10.0 ** np.arange(low, high + 1)])


def few_labels() -> Problem:
    return Problem(
        name="Few labels",
        setting=f"A classifier of {FEW} labelled digits with two penalties: half the squared sum "
        "of its kernels (L2), and how far the entropy of its predictions is below that of a guess "
        f"(confidence). {FEW} validation digits.",
        losses=("cross entropy", "L2", "confidence"),
        ratios=(decades(-4, 0), decades(-3, 1)),
        has_priors=False,
        load=functools.partial(
            task_of, draw_few_labels, {"digit": CLASSES}, losses_of_few_labels, None
        ),
    )


def auxiliary_tasks() -> Problem:
    heads = {"digit": CLASSES, "image": PIXELS, "mass": 1, "random": CLASSES}
    return Problem(
        name="Auxiliary tasks",
        setting=f"A classifier of {LABELLED} labelled digits, whose trunk also serves the "
        f"reconstruction of these and of {UNLABELLED} unlabelled digits (squared error), their "
        f"stroke mass (squared error) and random labels (cross entropy), each with a head of its "
        f"own. {LABELLED} validation digits; methods that look at gradients look at the trunk's.",
        losses=("digit", "image", "mass", "random labels"),
        ratios=(decades(-2, 0),) * 3,
        has_priors=True,
        load=functools.partial(task_of, draw_auxiliary, heads, losses_of_auxiliary, trunk_of),
    )


def sources() -> Problem:
    return Problem(
        name="Wrong labels",
        setting=f"A classifier of digits from four sources: {CLEAN} digits as they are and "
        f"{PER_SOURCE} each with {100 * WRONG:.0f} % wrong labels, with permuted classes and with "
        f"noise on the images (standard deviation {NOISE:g}). Each source is a loss, of "
        f"{IN_BATCH} digits in each step. {CLEAN} validation digits, all right.",
        losses=("clean", "wrong labels", "permuted", "noisy"),
        ratios=(decades(-1, 1),) * 3,
        has_priors=True,
        load=functools.partial(task_of, draw_sources, {"digit": CLASSES}, losses_of_sources, None),
    )


def autoencoder() -> Problem:
    heads = {"digit": CLASSES, "image": PIXELS}
    return Problem(
        name="Sparse autoencoder",
        setting=f"A sparse autoencoder of {LABELLED} labelled and {UNLABELLED} unlabelled digits, "
        "whose code, of the L1 norm that is the sparsity, is read by a decoder (squared error) and "
        f"by a linear classifier of the labelled ones. {LABELLED} validation digits; methods that "
        "look at gradients look at the encoder's.",
        losses=("classifier", "reconstruction", "sparsity"),
        ratios=(decades(-3, 1), decades(-4, 0)),
        has_priors=False,
        load=functools.partial(task_of, draw_autoencoder, heads, losses_of_autoencoder, trunk_of),
    )


def problems(quick: bool) -> dict[str, Problem]:
    """By name. Quick ones show that all works and support no verdict."""
    found = [few_labels(), auxiliary_tasks(), sources(), autoencoder()]
    return {each.name: reduced(each) if quick else each for each in found}


def reduced(problem: Problem) -> Problem:
    """Of each grid the ends, two seeds and few steps."""
    ratios = tuple(values[[0, -1]] for values in problem.ratios)
    return problem._replace(ratios=ratios, rates=problem.rates[1:], steps=100, num_seeds=2)
