"""What several test files use."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softadapt_optax as sa

NAMES = ("far", "near", "small")  # of the losses of `quadratic_losses`, sorted
JAX_VERSION = tuple(int(part) for part in jax.__version__.split(".")[:3])
OPTAX_VERSION = tuple(int(part) for part in optax.__version__.split(".")[:3])

counts_of_a_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu",
    reason="flops and memory are those of programs that are compiled for a CPU",
)

# Laws for methods that are not one of each kind; the gate sees them on one version.
MORE_METHODS = (pytest.mark.slow, pytest.mark.more_methods)

# A function without the type checks that conftest.py puts around it, to see our own errors.
unchecked = inspect.unwrap


@functools.cache  # tests that go on with the same transformation need not compile again
def compiled_weights(tx: optax.GradientTransformationExtraArgs):
    def step(state, values):
        losses, stacked = values
        _, state = tx.update(stacked, state, losses=losses)
        return state, sa.loss_weights(state)

    return jax.jit(lambda state, values: jax.lax.scan(step, state, values)[1])


def weights_of_steps(tx, trajectory, gradients) -> jax.Array:
    """The weights after each step, [steps, K], of losses of that shape and stacked gradients.

    These are of one parameter vector, [steps, K, parameters].
    """
    values = (jnp.asarray(trajectory, dtype=float), jnp.asarray(gradients, dtype=float))
    return compiled_weights(tx)(tx.init(None), values)


def weights_along(tx: optax.GradientTransformationExtraArgs, trajectory) -> jax.Array:
    """The same with gradients that are zero."""
    return weights_of_steps(tx, trajectory, jnp.zeros((*np.shape(trajectory), 1)))


@functools.cache
def made(factory, *args, **options):
    """The transformation, the same one for the same arguments, whose programs are compiled."""
    return factory(*args, **options)


def weights_of(tx: optax.GradientTransformationExtraArgs, gradients) -> np.ndarray:
    """The weights of one step of stacked gradients, [K, parameters], beside losses of 1."""
    gradients = np.asarray(gradients, np.float32)
    return np.asarray(weights_of_steps(tx, np.ones((1, len(gradients))), gradients[None])[0])


def gradient_cases(num_losses: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Gradients in float64, shape [K, 12], of every kind that gives solvers trouble."""
    rng = np.random.default_rng(seed)
    random = rng.normal(size=(num_losses, 12))
    signs = rng.choice([-1.0, 1.0], size=(num_losses, 1))
    collinear = signs * (0.1 * random + rng.normal(size=12))
    far_apart = 10.0 ** rng.uniform(-4, 4, size=(num_losses, 1))
    far_apart[0], far_apart[-1] = 1e-4, 1e4  # all of the range, whatever the seed
    shares = rng.dirichlet(np.ones(num_losses))
    low_rank = rng.normal(size=(num_losses, 2)) @ rng.normal(size=(2, 12))
    return {
        "random": random,
        "rank deficient": low_rank,
        "identical": np.broadcast_to(random[0], random.shape),
        "zero": np.where(np.arange(num_losses)[:, None] == 0, 0.0, random),
        "all zero": np.zeros_like(random),
        "opposite": np.where(np.arange(num_losses)[:, None] == 0, -random[-1:], random),
        "norms far apart": random * far_apart,
        "collinear": collinear,
        "collinear, norms far apart": collinear * far_apart,
        "stationary": random - shares @ random,
    }


def coarse(gradients: np.ndarray) -> np.ndarray:
    """The same to 7 binary digits of the largest of each row, so that float32 knows their products.

    Then a method sees the very Gramian that float64 sees, however it is computed.
    """
    largest = np.max(np.abs(gradients), axis=1, keepdims=True)
    units = 2.0 ** np.floor(np.log2(np.where(largest > 0, largest, 1.0)) - 6)
    return np.round(gradients / units) * units


def loss_only_factories():
    """A transformation of each method that looks at losses alone, for K = 3, by name."""
    return {
        "fixed_weights": lambda: sa.fixed_weights(dict(zip(NAMES, [1.0, 0.5, 2.0], strict=True))),
        "softadapt": lambda: sa.softadapt(3),
        "softadapt, all options": lambda: sa.softadapt(
            3, rate="relative", normalized=True, loss_weighted=True, history=3, order=None
        ),
        "softadapt, every": lambda: sa.softadapt(
            NAMES, every=2, history=2, priorities=[1.0, 2.0, 0.5]
        ),
        "softadapt, schedule": lambda: sa.softadapt(3, beta=optax.linear_schedule(0.0, 1.0, 20)),
        "initial_loss": lambda: sa.initial_loss(3, steps=4),
        "prior_loss": lambda: sa.prior_loss(dict(zip(NAMES, [1.0, 0.5, 2.0], strict=True))),
        "realtime_loss": lambda: sa.realtime_loss(3, eps=0.05),
        "uncertainty": lambda: sa.uncertainty(3),
        "dwa": lambda: sa.dwa(3, 0.5, window=2),
        "gls": lambda: sa.gls(3),
        "causal_weights": lambda: sa.causal_weights(NAMES, optax.linear_schedule(0.0, 0.1, 20)),
        "cov_weighting": lambda: sa.cov_weighting(3, 0.9),
        "relobralo, every": lambda: sa.relobralo(3, every=2),
        "rlw": lambda: sa.rlw(3),
        "famo": lambda: sa.famo(3),
        "famo, every": lambda: sa.famo(NAMES, optax.sgd(0.5), every=2),
        "stch": lambda: sa.stch(3, 0.5, log=True, units="initial"),
        "learned_weights, maximize": lambda: sa.learned_weights(3, optax.sgd(0.01), maximize=True),
    }


def gradient_factories():
    """The same of each method that looks at gradients."""
    return {
        "gradnorm": lambda: sa.gradnorm(3),
        "gradnorm, shared": lambda: sa.gradnorm(3, 0.5, optax.sgd(0.001), shared=largest_leaf),
        "normalized_gradients, rates": lambda: sa.normalized_gradients(3, 1.0, eps=0.05),
        "pcgrad": lambda: sa.pcgrad(3),
        "mgda": lambda: sa.mgda(3),
        "upgrad": lambda: sa.upgrad(3),
        "lr_annealing": lambda: sa.lr_annealing(NAMES, "near"),
        "lr_annealing, shared every": lambda: sa.lr_annealing(
            3, 0, statistic="mean", shared=largest_leaf, every=2
        ),
        "aligned_mtl": lambda: sa.aligned_mtl(3, "rmse"),
        "gradvac": lambda: sa.gradvac(3),
        "imtl_g": lambda: sa.imtl_g(3),
        "conflict_free, shared every": lambda: sa.conflict_free(3, shared=largest_leaf, every=2),
        "dual_proj, shared every": lambda: sa.dual_proj(3, shared=largest_leaf, every=2),
        "cagrad": lambda: sa.cagrad(3),
        "fairgrad": lambda: sa.fairgrad(3),
        "nash_mtl": lambda: sa.nash_mtl(3),
        "mgda, shared every": lambda: sa.mgda(3, "norm", shared=largest_leaf, every=2),
        "own gramian method": own_gramian_method,
        "ntk_weights, every": lambda: told_traces(sa.ntk_weights(3, every=2, smoothing=0.5)),
        "hypergradient": lambda: following(sa.hypergradient(3)),
        "hypergradient, every": lambda: following(sa.hypergradient(3, optax.sgd(0.1), every=2)),
    }


def following(tx: optax.GradientTransformationExtraArgs):
    """The same with a target: the gradient of a small quadratic, or ones without parameters."""

    def update(updates, state, params=None, **extra_args):
        if params is None:
            target = jax.tree.map(lambda leaf: jnp.ones_like(leaf[0]), updates)
        else:
            target = jax.grad(lambda tree: sum(map(quadratic, jax.tree.leaves(tree)), 0.0))
        return tx.update(updates, state, params, target=target, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def told_traces(tx: optax.GradientTransformationExtraArgs):
    """The same with numbers in the place of traces that have their units: sizes of gradients."""

    def update(updates, state, params=None, **extra_args):
        if isinstance(updates, sa.ComponentGrads):
            traces = updates.magnitudes()[1]
            traces = (
                traces if updates.names is None else dict(zip(updates.names, traces, strict=True))
            )
        else:
            traces = jnp.zeros_like(state.loss_weights)
            sizes = [jnp.abs(leaf.astype(float)) for leaf in jax.tree.leaves(updates)]
            for each in sizes:  # of other shapes than [K, ...] the library has to complain
                if each.shape[:1] == traces.shape:
                    traces = traces + jnp.sum(each, axis=range(1, each.ndim))
        return tx.update(updates, state, params, ntk_traces=traces, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def quadratic(leaf):
    return jnp.sum((leaf.astype(float) - 0.5) ** 2)


def all_factories():
    return loss_only_factories() | gradient_factories()


def largest_leaf(params):
    """A mask of the one largest parameter."""
    size = max(leaf.size for leaf in jax.tree.leaves(params))
    return jax.tree.map(lambda leaf: leaf.size == size, params)


def own_gramian_method(num_losses: int = 3, **options) -> optax.GradientTransformationExtraArgs:
    """Weights 1 / ||grad L_k||, as a user would write them."""

    def init(num_losses):
        del num_losses
        return ()

    def update(components, state):
        return 1 / jnp.sqrt(jnp.diagonal(components.gramian()) + 1e-12), state

    return sa.balance(sa.Weighting(init, update), num_losses, **options)


# Stateless, with a state, with an inner optimizer, gradient norms, Gramian, one with a period and
# shared parameters, and one that follows a target. Where all of them would take long, the others
# take the slow run.
ONE_OF_EACH_KIND = (
    "realtime_loss",
    "softadapt",
    "learned_weights, maximize",
    "gradnorm",
    "mgda",
    "mgda, shared every",
    "hypergradient",
)


def quick_for(quick, names, marks=MORE_METHODS):
    """The names as parameters of a test, all but those in `quick` with the marks."""
    return [pytest.param(name, marks=() if name in quick else marks) for name in names]


each_kind = pytest.mark.parametrize("name", quick_for(ONE_OF_EACH_KIND, all_factories()))


def quadratic_losses(params):
    """Three losses of a parameter dictionary that pull in different directions."""
    w, b = params["w"], params["b"]
    return {
        "near": jnp.sum((w - 1.0) ** 2),
        "far": jnp.sum((w + 2.0) ** 2) + jnp.sum(jnp.cosh(b)),
        "small": 0.1 * jnp.sum(b**2),
    }


def quadratic_params(dtype=jnp.float32):
    return {"w": jnp.linspace(0.0, 1.0, 6, dtype=dtype).reshape(2, 3), "b": jnp.ones(4, dtype)}


def training_step(tx, losses_fn=quadratic_losses, stacked=False):
    """One step from (params, opt_state) to the same, and the losses."""

    def step(params, opt_state):
        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        if stacked:
            updates, opt_state = tx.update(grads.stack(), opt_state, params, losses=losses)
        else:
            updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses

    return step


def network(key: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Weight matrices of a small dense network."""
    shapes = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.normal(k, shape) / np.sqrt(shape[0])
        for k, shape in zip(keys, shapes, strict=True)
    ]


def forward(layers: list[jax.Array], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer)
    return x @ layers[-1]


def shared_output_problem(num_losses: int, width: int = 16, batch: int = 64):
    """K losses of one output: (losses_fn, params)."""
    x = jax.random.normal(jax.random.key(1), (batch, width))
    target = jnp.sin(3.0 * x[:, :1])

    def losses_fn(params):
        error = forward(params, x) - target
        return {f"power {k}": jnp.mean(jnp.abs(error) ** (1 + 0.5 * k)) for k in range(num_losses)}

    return losses_fn, network(jax.random.key(0), [width, width, width, 1])


def own_batches_problem(num_losses: int, width: int = 16, batch: int = 64):
    """K losses on batches of their own, as in a PINN."""
    points = jax.random.normal(jax.random.key(1), (num_losses, batch, width))

    def losses_fn(params):
        return tuple(
            jnp.mean((forward(params, x) - jnp.sin(k + x[:, :1])) ** 2)
            for k, x in enumerate(points)
        )

    return losses_fn, network(jax.random.key(0), [width, width, width, 1])


def heads_problem(num_losses: int, width: int = 16, batch: int = 64):
    """K losses with a head of two layers each, on one trunk."""
    x = jax.random.normal(jax.random.key(1), (batch, width))
    key, *keys = jax.random.split(jax.random.key(0), num_losses + 1)

    def losses_fn(params):
        features = jnp.tanh(forward(params["trunk"], x))
        return {
            name: jnp.mean((forward(head, features) - jnp.cos(k * x[:, :1])) ** 2)
            for k, (name, head) in enumerate(params["heads"].items())
        }

    heads = {f"head {k}": network(head_key, [width, width, 1]) for k, head_key in enumerate(keys)}
    return losses_fn, {"trunk": network(key, [width, width, width]), "heads": heads}


PROBLEMS = {
    "shared output": shared_output_problem,
    "own batches": own_batches_problem,
    "trunk and heads": heads_problem,
}


@functools.cache
def trained_gradients(kind: str, num_losses: int, steps: int = 300) -> list[np.ndarray]:
    """Stacked gradients, [K, parameters] in float64, at ten points of a training run."""
    losses_fn, params = PROBLEMS[kind](num_losses)
    step = jax.jit(
        training_step(tx := optax.chain(sa.mgda(num_losses), optax.adam(3e-3)), losses_fn)
    )

    @jax.jit
    def stacked(params):
        return sa.value_and_component_grads(losses_fn)(params)[1].stack()

    carry = (params, tx.init(params))
    found = []
    for index in range(steps):
        if index % (steps // 10) == 0:
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(stacked(carry[0]))]
            flat = [leaf.reshape(num_losses, -1) for leaf in leaves]
            found.append(np.concatenate(flat, axis=1, dtype=np.float64))
        carry = step(*carry)[:2]
    return found
