"""The transformation that applies a weighting: both forms of gradients, and the common options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    all_factories,
    each_kind,
    own_gramian_method,
    quadratic_losses,
    quadratic_params,
    training_step,
    unchecked,
    weights_along,
)

import softadapt_optax as sa
from softadapt_optax._scaling import sum_to_one


def losses_squared(num_losses, **options):
    def update(components, state):
        return components.losses**2, state

    return sa.balance(sa.Weighting(lambda num_losses: (), update), num_losses, **options)


def train(tx, steps, losses_fn=quadratic_losses, params=None):
    params = quadratic_params() if params is None else params
    opt_state = tx.init(params)
    step = jax.jit(training_step(tx, losses_fn))
    for _ in range(steps):
        params, opt_state, _ = step(params, opt_state)
    return params, opt_state


# Both forms of gradients.


@each_kind
def test_stacked_and_lazy_gradients_give_the_same_steps(name):
    tx = optax.chain(all_factories()[name](), optax.sgd(0.05))

    @jax.jit
    def step(params, lazy_state, stacked_state):
        losses, grads = sa.value_and_component_grads(quadratic_losses)(params)
        lazy, lazy_state = tx.update(grads, lazy_state, params)
        stacked, stacked_state = tx.update(grads.stack(), stacked_state, params, losses=losses)
        return lazy, lazy_state, stacked, stacked_state

    params = quadratic_params()
    lazy_state = stacked_state = tx.init(params)
    for _ in range(8):
        lazy, lazy_state, stacked, stacked_state = step(params, lazy_state, stacked_state)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            (lazy, lazy_state),
            (stacked, stacked_state),
        )
        params = optax.apply_updates(params, lazy)


def test_h_is_the_weighted_sum_of_the_gradients():
    tx = sa.softadapt(3, 1.0, history=2, loss_weighted=True)
    params, state = quadratic_params(), None
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        _, grads = sa.value_and_component_grads(quadratic_losses)(params)
        h, state = tx.update(grads, state, params)
        return grads.stack(), h, state

    for _ in range(3):
        stacked, h, state = step(params, state)
        weights = np.asarray(sa.loss_weights(state))
        jax.tree.map(
            lambda g, ours: np.testing.assert_allclose(
                ours, np.tensordot(weights, g, 1), rtol=1e-5, atol=1e-7
            ),
            stacked,
            h,
        )
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, h))


def test_losses_take_the_place_of_those_in_component_grads():
    tx = losses_squared(3, weight_sum=1.0)
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    _, state = tx.update(grads, tx.init(None), losses={"small": 0.0, "far": 1.0, "near": 2.0})
    np.testing.assert_allclose(sa.loss_weights(state), [0.2, 0.8, 0.0])
    _, state = tx.update(
        grads, tx.init(None), losses=jnp.asarray([1.0, 2.0, 0.0])
    )  # in their order
    np.testing.assert_allclose(sa.loss_weights(state), [0.2, 0.8, 0.0])


def test_a_gramian_method_looks_at_the_first_step_and_then_once_a_period():
    tx = own_gramian_method(every=3)
    params = quadratic_params()
    state = tx.init(params)

    @jax.jit
    def gramian_and_state(params, state):
        _, grads = sa.value_and_component_grads(quadratic_losses)(params)
        return grads.gramian(), tx.update(grads, state, params)[1]

    expected = []
    for step in range(7):
        gramian, state = gramian_and_state(params, state)
        if step in (0, 2, 5):
            expected.append(1 / jnp.sqrt(jnp.diagonal(gramian) + 1e-12))
        np.testing.assert_allclose(sa.loss_weights(state), expected[-1], rtol=1e-6)
        params = jax.tree.map(lambda leaf: 1.5 * leaf, params)


@pytest.mark.parametrize("as_function", [False, True])
def test_shared_restricts_the_gramian(as_function):
    mask = {"w": True, "b": False}
    shared = (
        (lambda params: {name: params[name].ndim == 2 for name in params}) if as_function else mask
    )
    params = quadratic_params()
    tx = own_gramian_method(shared=shared)
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    _, state = tx.update(grads, tx.init(params), params)
    norms = jnp.sqrt(jnp.diagonal(grads.gramian(mask)) + 1e-12)
    np.testing.assert_allclose(sa.loss_weights(state), 1 / norms, rtol=1e-6)


# The common options.


def test_the_weightings_own_scale_is_kept_without_a_weight_sum():
    weights = weights_along(losses_squared(2, priorities=[1.0, 0.5]), [[3.0, 4.0]])
    np.testing.assert_allclose(weights, [[9.0, 8.0]])


@pytest.mark.parametrize("weight_sum", [0.5, 2, np.float32(3.0)])
def test_weight_sum_scales(weight_sum):
    weights = weights_along(losses_squared(2, weight_sum=weight_sum), [[3.0, 4.0]])
    np.testing.assert_allclose(weights[0], np.array([9.0, 16.0]) / 25 * weight_sum, rtol=1e-6)


def test_priorities_may_have_the_structure_of_the_losses():
    by_name = {"near": 1.0, "far": 2.0, "small": 4.0}
    tx = sa.softadapt(3, priorities=by_name)
    assert sa.loss_weights(tx.init(None), like=by_name) == {
        name: pytest.approx(value / 7) for name, value in by_name.items()
    }


@pytest.mark.parametrize("loss_weighted", [False, True])
def test_a_loss_of_priority_zero_does_not_touch_the_others(loss_weighted):
    """However large its own exponential is."""
    rng = np.random.default_rng(0)
    three = rng.uniform(1.0, 2.0, (8, 3))
    three[:, 1] = 1e6 * np.arange(8)
    options = {"beta": 1.0, "history": 3, "loss_weighted": loss_weighted}
    weights = weights_along(sa.softadapt(3, priorities=[1.0, 0.0, 2.0], **options), three)
    two = weights_along(sa.softadapt(2, priorities=[1.0, 2.0], **options), three[:, [0, 2]])
    np.testing.assert_allclose(weights[:, [0, 2]], two, rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1], 0.0)


def test_priority_zero_leaves_a_loss_out():
    tx = sa.softadapt(3, 50.0, history=2, priorities=[1.0, 0.0, 1.0])
    trajectory = [[1.0, 1.0, 1.0], [1.0, 1e6, 1.0]]  # all the unscaled weight is on the second
    np.testing.assert_allclose(weights_along(tx, trajectory)[-1], [0.5, 0.0, 0.5])


def test_weights_of_any_size_reach_their_sum():
    for scale in (1e-18, 1.0, 1e18):
        weights = weights_along(
            losses_squared(2, weight_sum=2.0, priorities=[1e-20, 1e-20]), [[3 * scale, 4 * scale]]
        )
        np.testing.assert_allclose(weights[0], [0.72, 1.28], rtol=1e-6)


@pytest.mark.parametrize("largest", [1e38, 3e38])
def test_priorities_and_weights_near_the_largest_number(largest):
    tx = losses_squared(2, weight_sum=1.0, priorities=[largest / 3, largest])
    np.testing.assert_allclose(weights_along(tx, [[2.0, 1.0]])[0], [4 / 7, 3 / 7], rtol=1e-6)
    tx = losses_squared(2, weight_sum=1.0)
    weights = weights_along(tx, [[(largest / 3) ** 0.5, largest**0.5]])
    np.testing.assert_allclose(weights[0], [0.25, 0.75], rtol=1e-6)


def test_traced_priorities_that_are_all_zero_leave_all_losses_out():
    def weights(priorities):
        tx = sa.softadapt(2, priorities=priorities, weight_sum=2.0)
        return jnp.stack([sa.loss_weights(tx.init(None)), weights_along(tx, jnp.ones((6, 2)))[-1]])

    rows = jax.vmap(weights)(jnp.asarray([[0.0, 0.0], [1.0, 3.0]]))
    np.testing.assert_allclose(rows, [[[0.0, 0.0]] * 2, [[0.5, 1.5]] * 2])


def test_all_weights_zero_become_the_priorities():
    tx = losses_squared(2, weight_sum=2.0, priorities=[1.0, 3.0])
    np.testing.assert_allclose(weights_along(tx, [[0.0, 0.0]])[0], [0.5, 1.5])


def losses_themselves(num_losses, **options):
    """A method whose weights are signed: each loss is its own weight."""
    weighting = sa.Weighting(lambda k: (), lambda components, state: (components.losses, state))
    return sa.balance(weighting, num_losses, **options)


def test_negative_weights_are_taken_as_they_are():
    trajectory = [[3.0, -1.0], [-2.0, 0.5], [0.0, 0.0]]
    np.testing.assert_array_equal(weights_along(losses_themselves(2), trajectory), trajectory)
    tx = losses_themselves(2, priorities=[1.0, 2.0], units=[2.0, 4.0])
    np.testing.assert_allclose(weights_along(tx, [[3.0, -1.0]])[0], [0.75, -0.125])
    gradients = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    tx = losses_themselves(2)
    h, _ = tx.update(gradients, tx.init(None), losses=jnp.asarray([3.0, -1.0]))
    np.testing.assert_array_equal(h, [3.0, -1.0])


def test_of_negative_weights_the_sizes_have_the_weight_sum():
    trajectory = [[3.0, -1.0], [-1.0, -1.0], [1.0, -1.0], [0.0, -2.0], [0.0, 0.0]]
    wanted = [[1.5, -0.5], [-1.0, -1.0], [1.0, -1.0], [0.0, -2.0], [1.0, 1.0]]
    tx = losses_themselves(2, weight_sum=2.0)
    np.testing.assert_allclose(weights_along(tx, trajectory), wanted, rtol=1e-6)
    tx = losses_themselves(2, weight_sum=2.0, priorities=[1.0, 3.0])
    np.testing.assert_allclose(weights_along(tx, trajectory[:1])[0], [1.0, -1.0], rtol=1e-6)


@pytest.mark.parametrize("weight_sum", [None, 1.0])
def test_negative_weights_are_smoothed_and_held(weight_sum):
    trajectory = [[3.0, -1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, 1.0]]
    scale = 1.0 if weight_sum is None else 0.25
    held = weights_along(losses_themselves(2, every=2, weight_sum=weight_sum), trajectory)
    wanted = np.array([trajectory[0]] * 3 + [trajectory[3]]) * scale
    np.testing.assert_allclose(held, wanted, rtol=1e-6)
    smooth = weights_along(losses_themselves(2, smoothing=0.75, weight_sum=weight_sum), trajectory)
    # A weight sum holds for what was averaged too.
    second = [3.0, -1.0] if weight_sum else [1.5, -0.5]
    np.testing.assert_allclose(smooth[2], np.array(second) * scale, rtol=1e-6)


def test_a_step_whose_signed_weights_are_not_finite_is_none():
    rows = weights_along(losses_themselves(2), [[3.0, -1.0], [jnp.inf, 1.0], [-1.0, 2.0]])
    np.testing.assert_array_equal(rows, [[3.0, -1.0], [3.0, -1.0], [-1.0, 2.0]])


def test_an_absent_loss_leaves_the_shares_of_signed_weights():
    tx = losses_themselves(3, weight_sum=2.0)
    state = tx.init(None)
    for present in ([True, True, True], [True, False, True]):
        losses = jnp.asarray([1.0, -2.0, 1.0])
        update = {"losses": losses, "present": jnp.asarray(present)}
        _, state = tx.update(jnp.zeros((3, 2)), state, **update)
        wanted = np.where(present, [0.5, -1.0, 0.5], 0.0)
        np.testing.assert_allclose(sa.loss_weights(state), wanted, rtol=1e-6)


def test_sums_of_nonnegative_weights_are_those_of_before():
    """Also their derivatives where a weight is 0."""
    weights, factors = jnp.asarray([0.0, 2.0, 6.0]), jnp.asarray([1.0, 0.5, 2.0])

    def plain(weights):
        return weights * factors / jnp.sum(weights * factors)

    np.testing.assert_allclose(sum_to_one(weights, factors), plain(weights), rtol=1e-6)
    ours = jax.jacrev(sum_to_one)(weights, factors)
    np.testing.assert_allclose(ours, jax.jacrev(plain)(weights), rtol=1e-5, atol=1e-7)


def test_every_holds_the_weights_and_records_means():
    trajectory = np.arange(1.0, 15.0).reshape(7, 2)
    weights = weights_along(losses_squared(2, every=3), trajectory)
    first, second = trajectory[:3].mean(axis=0) ** 2, trajectory[3:6].mean(axis=0) ** 2
    ahead = trajectory[0] ** 2  # until the first record, what the first step alone gives
    expected = [ahead] * 2 + [first] * 3 + [second] * 2
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_a_period_mean_forgets_the_period_before():
    weights = weights_along(losses_squared(1, every=2), [[1e15], [1e15], [1.0], [2.0]])
    np.testing.assert_allclose(weights[3], 1.5**2)


# Losses that are not finite.


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("variant", [{}, {"loss_weighted": True, "rate": "relative"}])
def test_a_step_with_a_bad_loss_leaves_no_trace(every, variant):
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.5, 1.5, (16, 2))
    tx = sa.softadapt(2, 1.0, history=3, every=every, **variant)
    places = [0, 1, 6, 9]  # one before anything is recorded, two in a row
    for bad in (np.nan, np.inf, -np.inf):
        dirty = np.insert(clean, places, [[bad, 1.0], [1.0, bad], [bad, bad], [bad, 1.0]], axis=0)
        bad_rows = ~np.isfinite(dirty).all(axis=1)
        weights = np.asarray(weights_along(tx, dirty))
        np.testing.assert_array_equal(weights[~bad_rows], weights_along(tx, clean))
        for row in np.flatnonzero(bad_rows):
            before = weights[row - 1] if row else sa.loss_weights(tx.init(None))
            np.testing.assert_array_equal(weights[row], before)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_not_used(bad):
    def update(components, state):
        return jnp.where(components.losses > 10, bad, components.losses), state + 1

    tx = sa.balance(sa.Weighting(lambda k: jnp.zeros((), jnp.int32), update), 2, weight_sum=1.0)
    state = tx.init(None)
    for losses in ([1.0, 3.0], [11.0, 12.0], [11.0, 3.0]):
        _, state = tx.update(jnp.zeros(2), state, losses=losses)
        np.testing.assert_allclose(sa.loss_weights(state), [0.25, 0.75])
    assert state.weighting_state == 1


# dtypes.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@each_kind
def test_h_has_the_dtype_of_each_parameter_and_the_state_is_float32(name, dtype):
    check_dtypes(all_factories()[name](), dtype, (jnp.float32, jnp.int32, jnp.uint32))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@each_kind
def test_under_x64_the_state_is_float64(name, dtype):
    check_dtypes(all_factories()[name](), dtype, (jnp.float64, jnp.int32, jnp.uint32))


def check_dtypes(tx, dtype, state_dtypes):
    def both_forms(state, params):
        losses, grads = sa.value_and_component_grads(quadratic_losses)(params)
        lazy = tx.update(grads, state, params)
        return lazy, tx.update(grads.stack(), state, params, losses=losses)

    params = quadratic_params(dtype)
    state = tx.init(params)
    for h, new_state in jax.eval_shape(both_forms, state, params):
        assert {leaf.dtype for leaf in jax.tree.leaves(h)} == {jnp.dtype(dtype)}
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True):
            assert (old.dtype, old.shape) == (new.dtype, new.shape)
            assert old.dtype in state_dtypes
            assert not new.weak_type
            assert not old.weak_type


def test_stacked_bfloat16_is_summed_in_float32():
    stacked = jnp.concatenate([jnp.asarray([256.0]), jnp.ones(64)]).astype(jnp.bfloat16)
    h, _ = sa.fixed_weights(np.ones(65)).update(
        stacked, sa.fixed_weights(np.ones(65)).init(None), losses=np.ones(65)
    )
    assert h == 320.0  # summed in bfloat16 it stays at 256
    assert h.dtype == jnp.bfloat16


def test_integer_leaves_get_zero():
    params = {"w": jnp.ones(3), "step": jnp.asarray(4), "none": None}
    tx = optax.chain(sa.softadapt(2), optax.sgd(0.1))
    _, grads = sa.value_and_component_grads(lambda p: (jnp.sum(p["w"]), jnp.sum(p["w"] ** 2)))(
        params
    )
    for updates, losses in ((grads, None), (grads.stack(), grads.losses)):
        h, _ = tx.update(updates, tx.init(params), params, losses=losses)
        assert optax.apply_updates(params, h)["step"] == 4


# Reading the weights.


def test_loss_weights_at_any_depth_and_in_a_batch():
    tx = optax.chain(optax.chain(sa.softadapt(2), optax.sgd(0.1)), optax.scale(0.5))
    state = tx.init(jnp.zeros(3))
    np.testing.assert_allclose(sa.loss_weights(state), [0.5, 0.5])
    like = {"b": 0.0, "a": (0.0,)}
    assert sa.loss_weights(state, like=like) == {"b": 0.5, "a": (0.5,)}
    assert sa.loss_weights(state, like=jnp.zeros(2)).shape == (2,)
    batch = jax.vmap(lambda beta: sa.softadapt(2, beta).init(None))(jnp.ones(7))
    assert sa.loss_weights(batch).shape == (7, 2)
    assert sa.loss_weights(batch, like=like)["b"].shape == (7,)
    assert sa.loss_weights(batch, like=jnp.zeros((7, 2))).shape == (7, 2)
    assert sa.loss_weights(batch, like=jnp.zeros(2)).shape == (7, 2)


def test_a_parameter_may_be_called_loss_weights():
    tx = optax.chain(sa.softadapt(2), optax.adam(0.1))
    state = tx.init({"loss_weights": jnp.zeros(3)})
    np.testing.assert_allclose(sa.loss_weights(state), [0.5, 0.5])
    with pytest.raises(ValueError, match="got a tuple with 0"):
        sa.loss_weights(optax.sgd(0.1, 0.9).init({"loss_weights": jnp.zeros(3)}))


def test_loss_weights_that_cannot_be_read():
    for other in (optax.adam(0.1), optax.chain(sa.softadapt(2), sa.softadapt(2))):
        with pytest.raises(ValueError, match=r"with one `softadapt`, .* got a tuple with [02]"):
            sa.loss_weights(other.init(jnp.zeros(3)))
    state = sa.softadapt(2).init(None)
    with pytest.raises(ValueError, match="`like` should have 2 entries, one for each loss, got 3"):
        sa.loss_weights(state, like={"a": 0.0, "b": 0.0, "c": 0.0})
    with pytest.raises(ValueError, match="`like` should have 2 entries, one for each loss, got 3"):
        sa.loss_weights(state, like=jnp.zeros(3))


# A user's own weighting.


def test_own_weighting_with_careless_types():
    """Weakly typed state and an integer count do not retrace or break the period's `cond`."""

    def init(num_losses):
        return {"level": jnp.full(num_losses, 1.0), "count": 0}

    def update(components, state):
        level = 0.5 * state["level"] + 0.5 * components.losses
        return [level[0], level[1]], {"level": level, "count": state["count"] + 1}

    for every in (1, 2):
        tx = sa.balance(sa.Weighting(init, update), 2, every=every)
        state = tx.init(None)
        traces = []

        @jax.jit
        def step(state, tx=tx, traces=traces):
            traces.append(1)
            return tx.update(jnp.zeros(2), state, losses=jnp.asarray([1.0, 3.0]))[1]

        for _ in range(4):
            state = step(state)
        assert len(traces) == 1
        assert state.weighting_state["count"] == 4 // every


@pytest.mark.parametrize("found", [jnp.ones(2), jnp.ones(3), (jnp.ones(2), (), ())])
def test_own_weighting_that_forgets_its_state(found):
    weighting = sa.Weighting(lambda num_losses: (), lambda components, state: found)
    tx = sa.balance(weighting, 2)
    with pytest.raises(TypeError, match="should return a pair, the weights and the state, got"):
        tx.update(jnp.ones((2, 3)), tx.init(None), losses=[1.0, 2.0])


def test_own_weighting_whose_state_changes():
    for new_state in (jnp.zeros(2), jnp.zeros((), jnp.int32), (), {"a": jnp.zeros(())}):
        weighting = sa.Weighting(
            lambda num_losses: jnp.zeros(()), lambda components, state: (jnp.ones(2), new_state)
        )
        tx = sa.balance(weighting, 2)
        with pytest.raises(ValueError, match="should return a state like the one it was given"):
            tx.update(jnp.zeros(2), tx.init(None), losses=[1.0, 2.0])


def test_own_weighting_with_a_random_key():
    def update(components, key):
        key, now = jax.random.split(key)
        return jax.random.uniform(now, components.losses.shape), key

    tx = sa.balance(sa.Weighting(lambda num_losses: jax.random.key(0), update), 2, weight_sum=1.0)
    state = tx.init(None)
    weights = []
    for losses in ([1.0, 2.0], [jnp.nan, 2.0], [1.0, 2.0]):
        _, state = jax.jit(tx.update)(jnp.zeros(2), state, losses=jnp.asarray(losses))
        weights.append(np.asarray(sa.loss_weights(state)))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert abs(weights[1][0] - weights[2][0]) > 1e-3


def test_own_weighting_that_holds_an_array_survives_donation():
    held = jnp.ones(2)
    tx = sa.balance(sa.Weighting(lambda num_losses: held, lambda c, state: (state, state)), 2)
    step = jax.jit(lambda s, losses: tx.update(jnp.zeros(2), s, losses=losses), donate_argnums=0)
    for _ in range(2):
        _, state = step(tx.init(None), jnp.ones(2))
        np.testing.assert_array_equal(state.weighting_state, held)


def test_own_weighting_of_the_wrong_shape():
    tx = sa.balance(sa.Weighting(lambda k: (), lambda components, state: (jnp.ones(3), state)), 2)
    with pytest.raises(ValueError, match=r"`weights` should have 2 entries, .* got 3"):
        tx.update(jnp.zeros(2), tx.init(None), losses=[1.0, 2.0])


# Wrong use.


@pytest.mark.parametrize(
    ("updates", "losses", "error", "message"),
    [
        (jnp.zeros((2, 3)), None, ValueError, "`losses` should be passed to `update` together"),
        (jnp.zeros((2, 3)), [1.0], ValueError, "made for 2 losses, got 1"),
        (
            jnp.zeros((2, 3)),
            ["1", "2"],
            TypeError,
            "`losses` should be real numbers, got dtype <U1",
        ),
        (jnp.zeros((2, 3)), [1j, 2.0], TypeError, "should be real numbers, got dtype complex128"),
        (jnp.zeros((2, 3)), jnp.ones((2, 1)), ValueError, r"`losses` should be an array of shape"),
        (jnp.zeros(3), [1.0, 2.0], ValueError, r"here \(2, 3\) at the root, got \(3,\). Likely"),
        (jnp.zeros((3, 3)), [1.0, 2.0], ValueError, r"here \(2, 3\) at the root, got \(3, 3\)"),
        (jnp.zeros((2, 1)), [1.0, 2.0], ValueError, r"here \(2, 3\) at the root, got \(2, 1\)"),
        ({"w": jnp.zeros((2, 3))}, [1.0, 2.0], ValueError, "the structure of the parameters"),
        (optax.MaskedNode(), [1.0, 2.0], ValueError, "gradients of all parameters, got masked"),
    ],
)
def test_wrong_updates_are_named(updates, losses, error, message):
    tx = sa.softadapt(2)
    with pytest.raises(error, match=message):
        tx.update(updates, tx.init(None), jnp.zeros(3), losses=losses)


def test_the_pair_of_losses_and_gradients_is_not_updates():
    pair = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    with pytest.raises(TypeError, match=r"is a pair, `losses, grads = ...`"):
        sa.softadapt(3).update(pair, sa.softadapt(3).init(None))


def test_wrong_stacked_gradients_without_parameters():
    tx = sa.softadapt(2)
    for updates in (jnp.zeros((3, 2)), jnp.zeros(())):
        with pytest.raises(ValueError, match="Stacked gradients should have shape"):
            tx.update(updates, tx.init(None), losses=[1.0, 2.0])


@pytest.mark.parametrize("tx", [sa.softadapt(2), sa.fixed_weights([1.0, 2.0])])
def test_wrong_number_of_losses(tx):
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    message = (
        "made for 2 losses, got 3, far, near, small. Likely cause: `num_losses`, or the number "
    )
    message += (
        "of fixed weights, is not the number of losses, or the loss function returns the losses"
    )
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(None))


def test_gradients_in_a_list():
    params = quadratic_params()
    stack = sa.value_and_component_grads(quadratic_losses)(params)[1].stack()
    listed = [jax.tree.map(lambda leaf, k=k: leaf[k], stack) for k in (0, 1)]
    tx = sa.softadapt(2)
    with pytest.raises(ValueError, match="Likely cause: a list of K gradients, which"):
        tx.update(listed, tx.init(params), params, losses=[1.0, 2.0])
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *listed)
    tx.update(stacked, tx.init(params), params, losses=[1.0, 2.0])


def test_shared_as_a_function_needs_the_parameters():
    tx = own_gramian_method(shared=lambda params: {"w": True, "b": False})
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    with pytest.raises(ValueError, match="`params` should be passed to `update` if `shared`"):
        tx.update(grads, tx.init(None))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sa.softadapt(3), r"loss_weights float32\[2\].*got.*loss_weights float32\[3\]"),
        (sa.softadapt(2, history=7), r"loss_history float32\[5, 2\].*loss_history float32\[7, 2\]"),
        (sa.fixed_weights([1.0, 2.0]), "Likely cause: a state made by another method"),
        (optax.adam(0.1), "`opt_state` should be a state of this transformation"),
    ],
)
def test_the_state_of_another_transformation(other, message):
    update = unchecked(sa.softadapt(2).update)
    with pytest.raises(ValueError, match=message):
        update(jnp.zeros(2), other.init(jnp.zeros(2)), losses=[1.0, 2.0])


def test_a_state_may_go_on_with_a_shorter_period():
    long, short = (sa.softadapt(2, 5.0, history=2, every=every) for every in (10, 3))
    state = long.init(None)
    losses = jnp.stack([jnp.arange(16.0), jnp.ones(16)], axis=1)
    for tx, part in ((long, losses[:7]), (short, losses[7:])):
        update = lambda state, row, tx=tx: (tx.update(jnp.zeros(2), state, losses=row)[1], None)
        state, _ = jax.lax.scan(update, state, part)
    assert sa.loss_weights(state)[0] > 0.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_losses": 0}, ValueError, "`num_losses` should be at least 1, got 0"),
        ({"num_losses": 2.0}, TypeError, "`num_losses` should be a Python integer, got float 2.0"),
        ({"num_losses": True}, TypeError, "`num_losses` should be a Python integer, got bool"),
        ({"num_losses": jnp.asarray(2)}, TypeError, "without it in `static_args`"),
        ({"weighting": optax.sgd(0.1)}, TypeError, "should be a `Weighting`, got Gradient"),
        ({"weight_sum": np.ones(2)}, ValueError, r"`weight_sum` should be a scalar, got shape"),
        ({"priorities": [1e-50, 0.0]}, ValueError, "not all be zero in float32"),
        ({"priorities": ["1", "2"]}, TypeError, "`priorities` should be real numbers"),
        ({"every": 1.5}, TypeError, "`every` should be a Python integer, got float"),
        ({"weight_sum": -1.0}, ValueError, "`weight_sum` should be finite and > 0 in float32"),
        ({"weight_sum": True}, TypeError, "`weight_sum` should be a number, got bool True"),
        ({"priorities": [1.0, np.nan]}, ValueError, "`priorities` should be finite and >= 0"),
        (
            {"priorities": {"a": 1.0}},
            ValueError,
            "`priorities` should have 2 entries",
        ),
    ],
)
def test_wrong_options_are_named(options, error, message):
    weighting = sa.Weighting(lambda num_losses: (), lambda components, state: (None, state))
    with pytest.raises(error, match=message):
        unchecked(sa.balance)(**({"weighting": weighting, "num_losses": 2} | options))


# Long runs.


@pytest.mark.parametrize("every", [1, 3, 100])
def test_counts_do_not_overflow(every):
    """Where int32 ends the last period comes again and again, and it goes on recording.

    The counts of records are float32, and stop at 2^24.
    """
    most, most_records = np.iinfo(np.int32).max, 2.0**24
    tx = sa.softadapt(2, beta=optax.linear_schedule(1.0, 2.0, most), history=2, every=every)
    state = tx.init(None)
    start = most // every * every - every
    state = state._replace(
        step_count=jnp.asarray(start, jnp.int32),
        loss_records=jnp.asarray([[0.0, 0.0], [most_records - 1, most_records - 1]]),
    )
    update = jax.jit(lambda state, losses: tx.update(jnp.zeros(2), state, losses=losses)[1])
    records = []
    for step in range(3 * every):
        state = update(state, jnp.asarray([float(step), 0.0]))
        assert 1 < state.step_count <= most
        records.append(float(state.loss_records[0, 0]))
    assert np.all(state.loss_records[1] == most_records)
    # Three periods, three records: the mean of each.
    means = np.arange(3 * every).reshape(3, every).mean(axis=1)
    np.testing.assert_allclose(records[every - 1 :: every], means, rtol=1e-6)
    assert len(set(records)) == 3 + (every > 1)  # and zero before the first
    slope = means[2] - means[1]  # the schedule has ended: beta is 2
    np.testing.assert_allclose(sa.loss_weights(state)[0], 1 / (1 + np.exp(-2 * slope)), rtol=1e-5)


def test_large_weights_and_priorities_may_overflow_each_other_with_a_weight_sum():
    weighting = sa.Weighting(lambda k: (), lambda components, state: (components.losses**2, state))
    tx = sa.balance(weighting, 2, priorities=[1e10, 1e10], weight_sum=1.0)
    _, state = tx.update(jnp.zeros(2), tx.init(None), losses=jnp.asarray([1e15, 2e15]))
    np.testing.assert_allclose(sa.loss_weights(state), [0.2, 0.8], rtol=1e-6)
    assert sa.diagnostics(state)["steps"] == 1


def test_a_step_that_is_only_passed_on_is_counted():
    weighting = sa.Weighting(
        lambda k: jnp.zeros((), jnp.int32), lambda c, s: (jnp.ones_like(c.losses), c.step)
    )
    tx = sa.balance(weighting, 2)
    state = tx.init(None)
    for step in range(3):
        _, state = tx.update(jnp.zeros(2), state, losses=jnp.ones(2))
        assert state.weighting_state == step


def test_a_state_may_have_empty_leaves():
    weighting = sa.Weighting(lambda k: jnp.zeros((2, 0)), lambda c, s: (1 / c.losses, s))
    tx = sa.balance(weighting, 2)
    _, state = tx.update(jnp.zeros(2), tx.init(None), losses=jnp.asarray([2.0, 4.0]))
    np.testing.assert_array_equal(sa.loss_weights(state), [0.5, 0.25])


def test_a_state_that_starts_infinite_may_stay_so():
    """As the best value so far of a method of one's own."""

    def update(components, state):
        best = jnp.minimum(state, components.losses)
        return components.losses / best, best

    tx = sa.balance(sa.Weighting(lambda k: jnp.full(k, jnp.inf), update), 2)
    present = jnp.asarray([True, False])
    _, state = tx.update(jnp.zeros(2), tx.init(None), losses=[2.0, 1.0], present=present)
    np.testing.assert_array_equal(state.weighting_state, [2.0, jnp.inf])
    np.testing.assert_array_equal(sa.loss_weights(state), [1.0, 0.0])
