"""Traces of neural tangent kernels, and weights made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import told_traces, unchecked, weights_of_steps

import softadapt_optax as sa

RNG = np.random.default_rng(0)
WIDTH, NUM_POINTS = 5, 7
SHAPES = {"first": (2, WIDTH), "bias": (WIDTH,), "last": (WIDTH, 3)}
PARAMS = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
POINTS = RNG.normal(size=(NUM_POINTS, 2))


def residual(params, point):
    """Three numbers at a point."""
    return jnp.tanh(point @ params["first"] + params["bias"]) @ params["last"]


def flat_residuals(flat):
    """The same at all points, in NumPy, of the parameters as one vector."""
    parts = np.split(flat, np.cumsum([PARAMS[name].size for name in SHAPES])[:-1])
    p = {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}
    return np.tanh(POINTS @ p["first"] + p["bias"]) @ p["last"]


FLAT = np.concatenate([PARAMS[name].ravel() for name in SHAPES])
TRACE = oracle.ntk_trace(flat_residuals, FLAT)


def in_float32():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (PARAMS, POINTS))


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_the_trace_is_that_of_the_jacobian_in_float64(chunk_size):
    trace_of = jax.jit(lambda p, x: sa.ntk_trace(residual, p, x, chunk_size=chunk_size))
    np.testing.assert_allclose(trace_of(*in_float32()), TRACE, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_in_float64_it_is_exact():
    params, points = jax.tree.map(jnp.asarray, (PARAMS, POINTS))
    found = sa.ntk_trace(residual, params, points)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, TRACE, rtol=1e-7)
    estimate = sa.ntk_trace(residual, params, points, num_samples=1)
    assert estimate.dtype == jnp.float64


def test_the_estimate_has_no_bias_and_the_spread_that_is_said():
    samples_of = jax.vmap(lambda s: sa.ntk_trace(residual, *in_float32(), num_samples=2, seed=s))
    found = np.asarray(jax.jit(samples_of)(jnp.arange(4000)), np.float64)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - TRACE) < 4 * error
    jacobian = oracle.jacobian_of(flat_residuals, FLAT)
    kernel = jacobian @ jacobian.T
    spread = np.sqrt(2 * (np.sum(kernel**2) - np.sum(np.diag(kernel) ** 2)) / 2)
    np.testing.assert_allclose(found.std(), spread, rtol=0.1)
    assert spread <= np.sqrt(2 / 2) * TRACE
    np.testing.assert_allclose(
        sa.ntk_trace(residual, *in_float32(), num_samples=2, seed=3), found[3], rtol=1e-5
    )


def test_one_sample_of_one_number_at_one_point_is_exact():
    """There the square of a sign is all that is random."""
    params, points = in_float32()
    first = lambda params, point: residual(params, point)[0]
    exact = sa.ntk_trace(first, params, points[:1])
    np.testing.assert_allclose(
        sa.ntk_trace(first, params, points[:1], num_samples=1), exact, rtol=1e-6
    )


def test_trees_of_points_and_residuals_and_other_dtypes():
    params, points = in_float32()
    params |= {"count": jnp.asarray(3), "half": jnp.full(4, 0.5, jnp.float16)}

    def both(params, point):
        value = residual(params, jnp.stack([point["x"], point["y"]]))
        return {"u": value, "v": jnp.sum(params["half"]) * point["x"].astype(jnp.float16)}

    tree = {"x": points[:, 0], "y": points[:, 1]}
    wanted = TRACE + 4 * np.sum(POINTS[:, 0] ** 2)
    np.testing.assert_allclose(sa.ntk_trace(both, params, tree), wanted, rtol=2e-3)


def test_the_trace_of_a_derivative_in_the_point_can_be_differentiated():
    """As the residuals of differential equations are."""
    u = lambda params, x: jnp.sum(jnp.tanh(params * x))
    equation = lambda params, x: jax.grad(u, 1)(params, x)
    params, points = jnp.asarray([0.3, -0.7]), jnp.linspace(-1.0, 1.0, 5)
    trace_of = lambda params: sa.ntk_trace(equation, params, points, chunk_size=2)

    def in_numpy(flat):
        return np.sum(flat / np.cosh(np.outer(points, flat)) ** 2, axis=1)

    wanted = oracle.ntk_trace(in_numpy, np.asarray(params, np.float64))
    np.testing.assert_allclose(trace_of(params), wanted, rtol=1e-5)
    slope = jax.grad(trace_of)(params)[0]
    ahead, behind = (trace_of(params + jnp.asarray([s, 0.0])) for s in (1e-2, -1e-2))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((3, PARAMS, POINTS), {}, "`residuals_fn` should be a function, got int"),
        ((residual, PARAMS, 1.0), {}, r"`points` should be an array of shape \[N, \.\.\.\]"),
        ((residual, PARAMS, POINTS[:0]), {}, "`points` should be an array"),
        ((residual, PARAMS, [POINTS, POINTS[1:]]), {}, "N the same for all"),
        ((residual, PARAMS, []), {}, "`points` should be an array"),
        ((residual, PARAMS, POINTS), {"chunk_size": 0}, "`chunk_size` should be at least 1"),
        ((residual, PARAMS, POINTS), {"num_samples": 0}, "`num_samples` should be at least 1"),
        ((residual, PARAMS, POINTS), {"seed": 0.5}, "`seed` should be an integer"),
        ((residual, {"n": np.arange(3)}, POINTS), {}, "should have a floating-point leaf"),
        ((lambda p, x: jnp.int32(1), PARAMS, POINTS), {}, "The residual should be a real .*int32"),
        ((lambda p, x: None, PARAMS, POINTS), {}, "The residual should be a real .* got none"),
    ],
)
def test_wrong_arguments_are_named(args, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        unchecked(sa.ntk_trace)(*args, **options)


# The weights.

LOSSES = np.ones((6, 3))
GRADIENTS = RNG.normal(size=(6, 3, 4)) * [[[1.0], [5.0], [0.2]]]
TRACES = np.abs(GRADIENTS).sum(axis=-1)  # as `told_traces` has them


def test_weights_agree_with_the_oracle():
    found = weights_of_steps(told_traces(sa.ntk_weights(3)), LOSSES, GRADIENTS)
    np.testing.assert_allclose(found, [oracle.ntk_weights(t) for t in TRACES], rtol=1e-5)


def test_the_weights_of_jaxpi_are_these_smoothed_over_k():
    tx = told_traces(sa.ntk_weights(3, smoothing=0.9, priorities=[1 / 3] * 3))
    found = weights_of_steps(tx, LOSSES, GRADIENTS)
    wanted = [TRACES[0].mean() / TRACES[0]]
    for traces in TRACES[1:]:
        wanted.append(0.9 * wanted[-1] + 0.1 * traces.mean() / traces)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_weighted_traces_are_level():
    weights = np.asarray(weights_of_steps(told_traces(sa.ntk_weights(3)), LOSSES, GRADIENTS))
    totals = TRACES.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights * TRACES, totals.repeat(3, 1), rtol=1e-5)
    np.testing.assert_allclose((1 / weights).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_common_scale_of_the_traces_does_not_matter(scale):
    tx = sa.ntk_weights(3)
    weights_of = lambda t: sa.loss_weights(
        tx.update(jnp.zeros(3), tx.init(None), losses=jnp.ones(3), ntk_traces=t)[1]
    )
    np.testing.assert_allclose(weights_of(TRACES[0] * scale), weights_of(TRACES[0]), rtol=1e-5)


def losses_fn(params):
    return {"b": jnp.sum((params - 1.0) ** 2), "a": jnp.sum(params**2)}


def test_traces_go_by_name():
    params = jnp.ones(2)
    losses, grads = sa.value_and_component_grads(losses_fn)(params)
    for num_losses in (2, ["b", "a"]):
        tx = sa.ntk_weights(num_losses)
        _, state = tx.update(grads, tx.init(params), params, ntk_traces={"b": 1.0, "a": 3.0})
        weights = sa.loss_weights(state, like=losses)
        np.testing.assert_allclose([weights["b"], weights["a"]], [4.0, 4 / 3], rtol=1e-6)
    tx = sa.ntk_weights(2)
    with pytest.raises(ValueError, match="entries of `ntk_traces` should have the names"):
        tx.update(grads, tx.init(params), params, ntk_traces={"b": 1.0, "c": 3.0})
    with pytest.raises(ValueError, match="`ntk_traces` should go by the names of the losses"):
        tx.update(grads, tx.init(params), params, ntk_traces=[1.0, 3.0])


def test_a_function_of_the_parameters_is_called_where_the_traces_are_due():
    calls = []

    def traces(params):
        jax.debug.callback(lambda: calls.append(1))
        return {"a": jnp.sum(params), "b": jnp.sum(params**2)}

    params = jnp.full(2, 3.0)
    tx = sa.ntk_weights(2, every=4)

    @jax.jit
    def step(state):
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        return tx.update(grads, state, params, ntk_traces=traces)[1]

    state = tx.init(params)
    for _ in range(8):
        state = step(state)
    jax.effects_barrier()
    assert len(calls) == 3  # in the first step, to have weights, and in one of four
    np.testing.assert_allclose(sa.loss_weights(state), [4.0, 4 / 3], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_traces_change_nothing(bad):
    tx = sa.ntk_weights(2)
    update = lambda state, traces: tx.update(
        jnp.zeros(2), state, losses=jnp.ones(2), ntk_traces=jnp.asarray(traces)
    )[1]
    before = update(tx.init(None), [1.0, 3.0])
    after = update(before, [bad, 1.0])
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_edge_cases():
    with_zero = told_traces(sa.ntk_weights(3))
    gradients = GRADIENTS[:1] * [[[1.0], [0.0], [1.0]]]
    found = np.asarray(weights_of_steps(with_zero, LOSSES[:1], gradients))[0]
    kept = TRACES[0][[0, 2]]
    np.testing.assert_allclose(found, [kept.sum() / kept[0], 0.0, kept.sum() / kept[1]], rtol=1e-5)
    one = weights_of_steps(told_traces(sa.ntk_weights(1)), LOSSES[:, :1], GRADIENTS[:, :1])
    np.testing.assert_allclose(one, 1.0)
    zeros = weights_of_steps(told_traces(sa.ntk_weights(3)), LOSSES, 0 * GRADIENTS)
    np.testing.assert_array_equal(zeros, 0.0)


def test_missing_traces_or_parameters_are_named():
    tx = sa.ntk_weights(2)
    given = (jnp.zeros(2), tx.init(None))
    with pytest.raises(TypeError, match=r"`ntk_traces` should be the traces .* got None"):
        tx.update(*given, losses=jnp.ones(2))
    with pytest.raises(ValueError, match="`params` should be passed to `update` if `ntk_traces`"):
        tx.update(*given, losses=jnp.ones(2), ntk_traces=lambda params: [1.0, 1.0])
    with pytest.raises(ValueError, match="`ntk_traces` should have 2 entries"):
        tx.update(*given, losses=jnp.ones(2), ntk_traces=[1.0])
