"""What Optax asks of every transformation, as one table over all factories."""

import functools
import inspect

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    NAMES,
    ONE_OF_EACH_KIND,
    OPTAX_VERSION,
    all_factories,
    each_kind,
    quadratic_losses,
    quadratic_params,
    quick_for,
    training_step,
    unchecked,
)

import softadapt_optax as sa
from benchmarks import methods

FACTORIES = all_factories()
each_factory = pytest.mark.parametrize("name", FACTORIES)


def chained(name, optimizer=None):
    return optax.chain(FACTORIES[name](), optimizer or optax.adam(0.05))


@functools.cache
def compiled_step(name):
    """The transformation, its step for all tests that have no need of another, and its traces."""
    tx, traces = chained(name), []
    step = training_step(tx)

    @jax.jit
    def traced(params, opt_state):
        traces.append(name)
        return step(params, opt_state)

    return tx, traced, traces


def assert_close(first, second, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def python_loop(tx, steps, stacked=False, step=None):
    params = quadratic_params()
    opt_state = tx.init(params)
    step = step or jax.jit(training_step(tx, stacked=stacked))
    for _ in range(steps):
        params, opt_state, losses = step(params, opt_state)
    return params, opt_state, losses


# One step, however it is run.


@each_kind
def test_jit_and_eager_agree(name):
    tx, jitted_step, _ = compiled_step(name)
    step = training_step(tx)
    params = quadratic_params()
    eager = jitted = (params, tx.init(params))
    for _ in range(3):
        eager, jitted = step(*eager)[:2], jitted_step(*jitted)[:2]
    assert_close(eager, jitted)
    for leaf in jax.tree.leaves(eager[1][0]):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type


@each_kind
def test_numpy_arrays_serve_outside_of_jit(name):
    """As gradients, losses and parameters."""
    tx = FACTORIES[name]()
    params = jax.tree.map(np.asarray, quadratic_params())
    losses, grads = sa.value_and_component_grads(quadratic_losses)(params)
    stacked, losses = jax.tree.map(np.asarray, (grads.stack(), losses))
    h, state = tx.update(stacked, tx.init(params), params, losses=losses)
    wanted, lazy_state = tx.update(grads, tx.init(params), params)
    assert_close((h, sa.loss_weights(state)), (wanted, sa.loss_weights(lazy_state)))


class AllVariants(chex.TestCase):
    @chex.all_variants(with_pmap=False)
    def test_the_weights(self):
        tx = sa.softadapt(2, 2.0, history=2, loss_weighted=True)
        _, state = tx.update(jnp.zeros(2), tx.init(None), losses=jnp.asarray([1.0, 3.0]))
        update = self.variant(lambda losses: tx.update(jnp.ones(2), state, losses=losses))
        h, state = update(jnp.asarray([2.0, 1.0]))
        wanted = np.exp([2.0 * 1.0, 2.0 * -2.0]) * [1.5, 2.0]
        np.testing.assert_allclose(sa.loss_weights(state), wanted / wanted.sum(), rtol=1e-5)
        np.testing.assert_allclose(h, 1.0, rtol=1e-6)


@each_kind
def test_a_scan_of_100_steps_is_a_loop_of_100_steps(name):
    tx, jitted_step, _ = compiled_step(name)
    params = quadratic_params()
    step = training_step(tx)
    scan = jax.jit(
        lambda carry: jax.lax.scan(lambda c, _: (step(*c)[:2], None), carry, None, 100)[0]
    )
    loop = python_loop(tx, 100, step=jitted_step)[:2]
    # Means of gradients of order 1 that cancel show rounding, another one on each machine.
    assert_close(scan((params, tx.init(params))), loop, rtol=1e-4, atol=1e-5)


@each_kind
def test_vmap_over_seeds_is_a_loop_over_seeds(name):
    tx = chained(name)
    scales = jnp.asarray([0.5, 1.0, 2.0])

    def train(scale):
        params = jax.tree.map(lambda leaf: scale * leaf, quadratic_params())
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda c, _: (training_step(tx)(*c)[:2], None), carry, None, 12)[0]

    alone, together = jax.jit(train), jax.jit(jax.vmap(train))(scales)
    for index, scale in enumerate(scales):
        one = jax.tree.map(lambda leaf: leaf[index], together)
        # Signed weights cancel, which shows rounding.
        assert_close(one, alone(scale), rtol=1e-2 if name in methods.SIGNED else 1e-4, atol=1e-5)


@each_kind
def test_it_converges_where_the_losses_agree(name):
    def losses_fn(params):
        error = params - jnp.asarray([1.0, -2.0])
        quartic = jnp.sum(error**2 + error**4)
        bowl = jnp.sum(jnp.cosh(error)) - 2
        losses = {"near": jnp.sum(error**2), "far": 0.1 * quartic, "small": bowl}
        return {name: 0.1 + loss for name, loss in losses.items()}  # some take their logarithms

    tx = chained(name, optax.adam(0.05))
    carry = (jnp.zeros(2), tx.init(jnp.zeros(2)))
    step = jax.jit(training_step(tx, losses_fn))
    for _ in range(300):
        carry = step(*carry)[:2]
    np.testing.assert_allclose(carry[0], [1.0, -2.0], atol=0.05)


# Tracing and compiling.


@each_kind
def test_one_trace_over_many_steps(name):
    tx, step, traces = compiled_step(name)
    python_loop(tx, 5, step=step)
    assert traces == [name]


@each_kind
def test_it_lowers_for_every_platform(name):
    tx = chained(name)
    params = quadratic_params()
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(training_step(tx)), platforms=platforms)(
        params, tx.init(params)
    )
    assert exported.platforms == platforms
    assert len(exported.mlir_module_serialized) > 0


@each_kind
def test_no_transfer_no_leak_no_nan(name):
    tx = chained(name)
    params = quadratic_params()
    carry = (params, tx.init(params))
    step = jax.jit(training_step(tx))
    with jax.checking_leaks(), jax.debug_nans(True):
        for _ in range(8):  # longer than any history here
            carry = step(*carry)[:2]
    with jax.transfer_guard("disallow"):
        carry = step(*carry)[:2]
    chex.assert_tree_all_finite(carry)


@each_kind
def test_buffers_can_be_donated(name):
    tx, jitted_step, _ = compiled_step(name)
    params = quadratic_params()
    state = tx.init(params)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(set(buffers)) == len(buffers)
    step = jax.jit(training_step(tx), donate_argnums=(0, 1))
    carry = step(params, state)[:2]
    carry = step(*carry)[:2]
    # A second start from the same transformation: nothing that was donated is held by it.
    assert_close(carry, python_loop(tx, 2, step=jitted_step)[:2])


# The state.


@each_factory
def test_init_needs_no_parameters(name):
    tx = FACTORIES[name]()
    params = quadratic_params()
    concrete = tx.init(params)
    shapes = jax.eval_shape(tx.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(concrete, shapes)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for other in (structs, {}, None, ()):
        chex.assert_trees_all_equal(concrete, tx.init(other))


@each_kind
def test_state_is_arrays_of_stable_type(name):
    tx, step, _ = compiled_step(name)
    params = quadratic_params()
    opt_state = tx.init(params)
    state = opt_state[0]
    for _ in range(3):
        params, opt_state, _ = step(params, opt_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, opt_state[0])
    for leaf in jax.tree.leaves((state, opt_state[0])):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type


@each_factory
def test_state_passes_through_cond(name):
    tx = FACTORIES[name]()

    def maybe(go, state, losses):
        update = lambda: tx.update(jnp.zeros(3), state, jnp.zeros(()), losses=losses)[1]
        return jax.lax.cond(go, update, lambda: state)

    state = tx.init(None)
    found = jax.eval_shape(maybe, True, state, {"far": 1.0, "near": 2.0, "small": 3.0})
    chex.assert_trees_all_equal_shapes_and_dtypes(state, found)


@each_factory
def test_tree_map_params_leaves_the_state_alone(name):
    tx = FACTORIES[name]()
    state = tx.init(quadratic_params())
    chex.assert_trees_all_equal(state, optax.tree.map_params(tx, lambda leaf: leaf + 1, state))


def test_the_history_never_grows():
    tx = sa.softadapt(2, history=7)
    state = tx.init(None)
    for step in range(20):
        _, state = tx.update(jnp.zeros(2), state, losses=[float(step), -float(step)])
        assert state.weighting_state.loss_history.shape == (7, 2)
    np.testing.assert_array_equal(
        state.weighting_state.loss_history[:, 0], np.arange(13.0, 20.0)
    )  # the oldest entry is overwritten, the newest comes last


# Arguments of update.


@each_kind
def test_unexpected_extra_arguments_are_ignored(name):
    tx = chained(name)
    params = quadratic_params()
    extra = {"value": 1.0, "grad": None, "value_fn": None, "unknown": "x"}

    def program(**extra):
        def update(params, state):
            _, grads = sa.value_and_component_grads(quadratic_losses)(params)
            return tx.update(grads, state, params, **extra)

        return jax.jit(update).lower(params, tx.init(params)).as_text()

    assert program() == program(**extra)


# inject_hyperparams.

STATIC = ("num_losses", "history", "order", "every")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 2.0, "loss_weighted": True, "weight_sum": 3.0},
        {
            "rate": "relative",
            "normalized": True,
            "every": 2,
            "num_losses": NAMES,
            "priorities": [1.0, 2.0, 0.5],
        },
        {"history": 3, "order": None},
    ],
)
def test_inject_hyperparams_changes_nothing(options):
    options = {"num_losses": 3} | options
    injected = optax.inject_hyperparams(sa.softadapt, static_args=STATIC)(**options)
    plain = optax.chain(sa.softadapt(**options), optax.adam(0.05))
    tx = optax.chain(injected, optax.adam(0.05))
    params, state, _ = python_loop(tx, 12, stacked=OPTAX_VERSION < (0, 2, 8))
    expected_params, expected_state, _ = python_loop(plain, 12)
    assert_close(params, expected_params)
    np.testing.assert_allclose(sa.loss_weights(state), sa.loss_weights(expected_state), rtol=1e-5)
    assert "beta" in state[0].hyperparams


@pytest.mark.parametrize(
    ("factory", "options", "injected"),
    [
        (sa.initial_loss, {"num_losses": 3, "steps": 2}, "eps"),
        (sa.realtime_loss, {"num_losses": 3}, "eps"),
        (sa.uncertainty, {"num_losses": 3, "weight_sum": 2.0}, "weight_sum"),
        (sa.learned_weights, {"num_losses": 3, "temperature": 0.5}, "temperature"),
        (sa.gradnorm, {"num_losses": 3, "alpha": 0.5}, "alpha"),
        (sa.normalized_gradients, {"num_losses": 3, "rate_exponent": 1.0}, "rate_exponent"),
        (sa.pcgrad, {"num_losses": 3, "seed": 5}, "seed"),
        (sa.mgda, {"num_losses": 3, "weight_sum": 3.0}, "weight_sum"),
    ],
)
def test_inject_hyperparams_changes_nothing_for_any_method(factory, options, injected):
    shape_giving = ("num_losses", "every", "steps", "max_iterations")
    static = [name for name in shape_giving if name in inspect.signature(factory).parameters]
    tx, plain = optax.inject_hyperparams(factory, static_args=static)(**options), factory(**options)
    params = quadratic_params()
    state, plain_state = tx.init(params), plain.init(params)
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    stacked = grads.stack()
    update, plain_update = jax.jit(tx.update), jax.jit(plain.update)
    for scale in (1.0, 0.5, 0.7):
        losses = scale * grads.losses
        h, state = update(stacked, state, params, losses=losses)
        wanted, plain_state = plain_update(stacked, plain_state, params, losses=losses)
        assert_close(h, wanted)
    assert injected in state.hyperparams


def test_injected_beta_can_be_set_and_scheduled():
    injected = optax.inject_hyperparams(sa.softadapt, static_args=STATIC)
    tx = injected(num_losses=2, beta=0.0, history=2)
    state = tx.init({"w": jnp.zeros(3)})
    for losses in ([1.0, 1.0], [2.0, 1.0]):
        state.hyperparams["beta"] = jnp.asarray(5.0)
        _, state = tx.update({"w": jnp.zeros((2, 3))}, state, {"w": jnp.zeros(3)}, losses=losses)
    np.testing.assert_allclose(sa.loss_weights(state)[0], 1 / (1 + np.exp(-5.0)), rtol=1e-5)
    scheduled = injected(num_losses=2, beta=optax.linear_schedule(0.0, 1.0, 5))
    params = {"w": jnp.zeros(3)}
    state = scheduled.init(params)
    _, state = scheduled.update({"w": jnp.zeros((2, 3))}, state, params, losses=[1.0, 2.0])
    assert "beta" in state.hyperparams


def test_inject_hyperparams_without_static_args_names_the_cause():
    tx = optax.inject_hyperparams(sa.fixed_weights)(weights=jnp.asarray([1.0, 2.0]))
    state = tx.init({"w": jnp.zeros(3)})
    np.testing.assert_allclose(sa.loss_weights(state), [1.0, 2.0])
    with pytest.raises(TypeError, match=r"`optax.inject_hyperparams` without it in `static_args`"):
        optax.inject_hyperparams(unchecked(sa.softadapt))(num_losses=2).init({"w": jnp.zeros(3)})


# Own pure functions, under the strictest promotion.


@pytest.mark.parametrize("rate", ["absolute", "relative"])
def test_weights_need_no_implicit_promotion(rate):
    tx = sa.softadapt(
        2, jnp.asarray(0.5, jnp.bfloat16), rate=rate, normalized=True, loss_weighted=True, every=2
    )
    with jax.numpy_dtype_promotion("strict"):
        state = tx.init(None)
        update = jax.jit(lambda h, state, losses: tx.update(h, state, losses=losses))
        for _ in range(12):
            h, state = update(
                jnp.ones(2, jnp.bfloat16), state, jnp.asarray([1.0, 2.0], jnp.bfloat16)
            )
    assert h.dtype == jnp.bfloat16


# Optax's own schedules and Adam promote.
PROMOTED_BY_OPTAX = ("softadapt, schedule", "uncertainty", "famo", "gradnorm", "hypergradient")


@pytest.mark.parametrize(
    "name",
    quick_for(
        ONE_OF_EACH_KIND,
        [
            *(name for name in FACTORIES if name not in PROMOTED_BY_OPTAX),
            *("uncertainty, sgd", "pcgrad, mean", "mgda, both", "mgda, frank_wolfe"),
        ],
    ),
)
def test_no_method_needs_implicit_promotion(name):
    others = {
        "uncertainty, sgd": lambda: sa.uncertainty(3, optax.sgd(0.1)),
        "pcgrad, mean": lambda: sa.pcgrad(3, reduction="mean"),
        "mgda, both": lambda: sa.mgda(3, "both"),
        "mgda, frank_wolfe": lambda: sa.mgda(3, solver="frank_wolfe"),
    }
    tx = (FACTORIES | others)[name]()
    params = quadratic_params()
    losses, grads = sa.value_and_component_grads(quadratic_losses)(params)
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda s: tx.update(grads.stack(), s, params, losses=losses), tx.init(None))


@pytest.mark.parametrize(
    ("factory", "options", "losses", "wanted"),
    [
        (sa.realtime_loss, {}, [0.0, 4.0], [1e8, 0.25]),
        (sa.initial_loss, {}, [0.0, 4.0], [1e8, 0.25]),
        (sa.normalized_gradients, {}, [1.0, 1.0], [0.0, 0.5]),
        (sa.softadapt, {"rate": "relative", "normalized": True}, [0.0, 0.0], [0.5, 0.5]),
    ],
)
def test_an_injected_eps_that_float16_makes_zero_is_the_default(factory, options, losses, wanted):
    """`inject_hyperparams` gives hyperparameters the dtype of the parameters."""
    static = [*STATIC, "steps"]
    static = [name for name in static if name in inspect.signature(factory).parameters]
    tx = optax.inject_hyperparams(factory, static_args=static)(num_losses=2, **options)
    params = jnp.ones(4, jnp.float16)
    state = tx.init(params)
    stacked = jnp.stack([jnp.zeros(4, jnp.float16), jnp.ones(4, jnp.float16)])
    for _ in range(6):
        _, state = tx.update(stacked, state, params, losses=jnp.asarray(losses))
    assert state.hyperparams["eps"] == 0
    np.testing.assert_allclose(sa.loss_weights(state), wanted, rtol=1e-6)
