"""Weights from the values of the losses: at the start, as known beforehand, and now."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import training_step, unchecked, weights_along
from oracle import initial_loss_weights

import softadapt_optax as sa

RNG = np.random.default_rng(0)
TRAJECTORY = RNG.uniform(0.1, 3.0, (9, 3))


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_initial_loss_agrees_with_the_oracle(steps):
    weights = weights_along(sa.initial_loss(3, steps), TRAJECTORY)
    np.testing.assert_allclose(weights, initial_loss_weights(TRAJECTORY, steps), rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_initial_loss_agrees_with_the_oracle_in_float64():
    weights = weights_along(sa.initial_loss(3, 4), TRAJECTORY)
    np.testing.assert_allclose(weights, initial_loss_weights(TRAJECTORY, 4), rtol=1e-13)


def test_initial_loss_of_periods():
    """Two records of two steps; before the first the first step is looked at alone."""
    weights = weights_along(sa.initial_loss(3, 2, every=2), TRAJECTORY)
    means = TRAJECTORY[:8].reshape(4, 2, 3).mean(axis=1)
    np.testing.assert_allclose(weights[0], 1 / TRAJECTORY[0], rtol=1e-6)
    np.testing.assert_allclose(weights[1], 1 / means[0], rtol=1e-6)
    np.testing.assert_allclose(weights[3:], [1 / means[:2].mean(axis=0)] * 6, rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_realtime_loss_is_the_inverse_of_the_current_loss(sign):
    weights = weights_along(sa.realtime_loss(3), sign * TRAJECTORY)
    np.testing.assert_allclose(weights, 1 / TRAJECTORY, rtol=1e-6)


def test_realtime_loss_descends_the_sum_of_logarithms():
    losses_fn = lambda x: (jnp.sum((x - 1) ** 2), 5.0 * jnp.sum((x + 1) ** 2))
    x = jnp.asarray([0.3, -0.2, 2.0])
    _, grads = sa.value_and_component_grads(losses_fn)(x)
    h, _ = sa.realtime_loss(2).update(grads, sa.realtime_loss(2).init(x))
    wanted = jax.grad(lambda x: sum(jnp.log(loss) for loss in losses_fn(x)))(x)
    np.testing.assert_allclose(h, wanted, rtol=1e-5)


@pytest.mark.parametrize("scales", [[1e-3, 1.0, 1e4]])
def test_the_steps_do_not_change_when_a_loss_is_rescaled(scales):
    def end(scales, tx):
        losses_fn = lambda x: tuple(
            s * jnp.sum((x - c) ** 2 + 1) for s, c in zip(scales, (0.0, 1.0, 3.0), strict=True)
        )
        carry = (jnp.zeros(2), tx.init(None))
        step = jax.jit(training_step(tx, losses_fn))
        for _ in range(5):
            carry = step(*carry)[:2]
        return carry[0]

    for weighting in (sa.realtime_loss(3), sa.initial_loss(3, 2)):
        tx = optax.chain(weighting, optax.sgd(0.05))
        np.testing.assert_allclose(end(scales, tx), end([1.0] * 3, tx), rtol=1e-4)


@pytest.mark.parametrize("factory", [sa.realtime_loss, sa.initial_loss])
def test_a_loss_of_zero_gets_the_largest_weight_there_is(factory):
    np.testing.assert_allclose(
        weights_along(factory(2, eps=0.01), [[0.0, 2.0]]), [[100.0, 0.5]], rtol=1e-6
    )
    shares = weights_along(factory(2, weight_sum=1.0), [[0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(shares, 0.5)


# Prior losses.


def test_prior_loss_is_the_inverse_from_the_start():
    prior = {"b": 4.0, "a": 0.5}
    tx = sa.prior_loss(prior)
    np.testing.assert_allclose(sa.loss_weights(tx.init(None)), [2.0, 0.25])
    _, state = tx.update(jnp.zeros(2), tx.init(None), losses={"a": 1.0, "b": 7.0})
    np.testing.assert_allclose(sa.loss_weights(state), [2.0, 0.25])
    weighted = sa.prior_loss(prior, priorities={"a": 3.0, "b": 1.0}, weight_sum=1.0)
    np.testing.assert_allclose(sa.loss_weights(weighted.init(None)), [0.96, 0.04], rtol=1e-6)


def test_prior_losses_may_be_traced():
    def weights(prior):
        return sa.loss_weights(sa.prior_loss(prior).init(None))

    grid = jnp.asarray([[1.0, 2.0], [4.0, 0.5]])
    np.testing.assert_allclose(jax.jit(jax.vmap(weights))(grid), 1 / grid)


def test_priorities_of_prior_losses_may_be_schedules():
    tx = sa.prior_loss([1.0, 2.0], priorities=[optax.linear_schedule(1.0, 3.0, 2), 1.0])
    state = tx.init(None)
    for factor in (1.0, 2.0, 3.0):
        _, state = tx.update(jnp.zeros(2), state, losses=jnp.ones(2))
        np.testing.assert_allclose(sa.loss_weights(state), [factor, 0.5], rtol=1e-6)


def test_targets_may_be_of_any_floating_point_dtype():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.int8):
        assert sa.squared_error_prior(jnp.asarray([1, 2], dtype)) == 0.25


def test_names_of_prior_losses_have_to_be_those_of_the_losses():
    tx = sa.prior_loss({"fit": 1.0, "size": 2.0})
    with pytest.raises(ValueError, match="made for 2 losses, fit, size, got 2, fit, sizes"):
        tx.update(jnp.zeros(2), tx.init(None), losses={"fit": 1.0, "sizes": 2.0})
    with pytest.raises(ValueError, match="names of `prior_losses`, fit, size, got a, b"):
        sa.prior_loss({"fit": 1.0, "size": 2.0}, priorities={"a": 1.0, "b": 2.0})


@pytest.mark.parametrize(
    ("prior", "priorities", "name"),
    [([1.0, 2.0], None, "prior_losses"), (jnp.asarray([1.0, 2.0]), [1.0, 2.0], "priorities")],
)
def test_a_list_beside_losses_with_names_is_refused(prior, priorities, name):
    tx = sa.prior_loss(prior, priorities=priorities)
    with pytest.raises(ValueError, match=f"`{name}` should go by .* by name.$"):
        tx.update(jnp.zeros(2), tx.init(None), losses={"fit": 1.0, "size": 2.0})
    tx.update(jnp.zeros(2), tx.init(None), losses=[1.0, 2.0])


def test_cross_entropy_prior_is_that_of_the_best_constant_prediction():
    labels = np.repeat([0, 1, 2, 3], [5, 1, 10, 4])
    counts = np.bincount(labels, minlength=5)  # the last class is empty
    prior = sa.cross_entropy_prior(counts)
    loss = lambda logits: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            jnp.broadcast_to(logits, (len(labels), 5)), jnp.asarray(labels)
        )
    )
    best = jnp.log(jnp.asarray(counts / counts.sum()) + 1e-12)
    np.testing.assert_allclose(loss(best), prior, rtol=1e-5)
    assert loss(best + 0.1 * jnp.arange(5.0)) > prior
    np.testing.assert_allclose(loss(jnp.zeros(5)), sa.cross_entropy_prior(counts, initial=True))
    np.testing.assert_allclose(sa.cross_entropy_prior(counts / 7.0), prior, rtol=1e-12)
    np.testing.assert_allclose(sa.cross_entropy_prior(jnp.ones(8)), np.log(8))


@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 2, 4)])
def test_squared_error_prior_is_that_of_the_best_constant_prediction(shape):
    targets = np.random.default_rng(0).normal(3.0, 2.0, shape)
    for reduction, reduce in (("mean", np.mean), ("sum", np.sum)):

        def loss(prediction, reduce=reduce):
            return np.mean([reduce((prediction - target) ** 2) for target in targets])

        prior = sa.squared_error_prior(targets, reduction=reduction)
        np.testing.assert_allclose(prior, loss(targets.mean(axis=0)))
        np.testing.assert_allclose(
            sa.squared_error_prior(targets, reduction=reduction, initial=True), loss(0.0)
        )


# Wrong use.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: unchecked(sa.initial_loss)(2, 0), ValueError, "`steps` should be at least 1"),
        (lambda: unchecked(sa.initial_loss)(2, eps=0.0), ValueError, "`eps` should be finite and"),
        (lambda: unchecked(sa.realtime_loss)(2, eps=-1.0), ValueError, "`eps` should be finite an"),
        (lambda: sa.prior_loss([1.0, 0.0]), ValueError, "`prior_losses` should be finite and > 0"),
        (lambda: sa.prior_loss([1e-39, 1.0]), ValueError, "1 / `prior_losses`.* finite in float32"),
        (
            lambda: sa.prior_loss([1e-30, 1.0], priorities=[1e30, 1.0]),
            ValueError,
            "`prior_losses` should be so large that .* times `priorities`, is finite",
        ),
        (
            lambda: sa.prior_loss(np.ones((2, 1))),
            ValueError,
            "`prior_losses` should be an array of",
        ),
        (lambda: sa.prior_loss([1.0], priorities=[-1.0]), ValueError, "`priorities` should be fin"),
        (lambda: sa.cross_entropy_prior([0, 0]), ValueError, "`class_counts` should be counts or"),
        (lambda: sa.cross_entropy_prior([2, -1]), ValueError, "`class_counts` should be counts or"),
        (lambda: sa.cross_entropy_prior([1, np.nan]), ValueError, "`class_counts` should be count"),
        (
            lambda: sa.cross_entropy_prior(np.ones((2, 2))),
            ValueError,
            "of shape .classes., not all",
        ),
        (lambda: sa.squared_error_prior([]), ValueError, "at least one, got shape"),
        (lambda: sa.squared_error_prior([1.0, np.inf]), ValueError, "`targets` should be finite"),
        (lambda: unchecked(sa.squared_error_prior)(["a"]), TypeError, "`targets` should be real"),
        (
            lambda: unchecked(sa.squared_error_prior)([1.0, 2.0], reduction="max"),
            ValueError,
            '`reduction` should be one of "mean", "sum", got \'max\'',
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
