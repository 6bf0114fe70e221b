"""Weights from gradient norms: `gradnorm` and `normalized_gradients`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from helpers import training_step, unchecked, weights_of_steps

import softadapt_optax as sa

RNG = np.random.default_rng(0)
TRAJECTORY = RNG.uniform(0.5, 2.0, (10, 3))
GRADIENTS = RNG.normal(size=(10, 3, 6)) * [[[1.0], [5.0], [0.2]]]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm_agrees_with_the_oracle(alpha):
    tx = sa.gradnorm(3, alpha, optax.sgd(0.008))
    expected = oracle.gradnorm_weights(TRAJECTORY, GRADIENTS, 0.008, alpha)
    assert np.ptp(expected, axis=0).min() > 0.05
    np.testing.assert_allclose(weights_of_steps(tx, TRAJECTORY, GRADIENTS), expected, rtol=1e-4)


def test_gradnorm_levels_the_norms():
    steps = 600
    gradients = np.broadcast_to(GRADIENTS[0], (steps, 3, 6))
    losses = np.ones((steps, 3))
    weights = np.asarray(weights_of_steps(sa.gradnorm(3), losses, gradients))
    norms = weights[-1] * np.linalg.norm(GRADIENTS[0], axis=1)
    np.testing.assert_allclose(norms / norms.mean(), 1.0, atol=0.1)
    np.testing.assert_allclose(weights.sum(axis=1), 3.0, rtol=1e-5)
    assert (weights > 0).all()


def test_a_slow_loss_gets_a_larger_gradient():
    """The sign of the exponent: the first loss stays, the second falls."""
    steps = 150
    losses = np.stack([np.ones(steps), 0.995 ** np.arange(steps)], axis=1)
    gradients = np.broadcast_to(np.eye(2), (steps, 2, 2))
    weights = weights_of_steps(sa.gradnorm(2, 1.5), losses, gradients)
    left = losses[-1] / losses[-1].mean()
    np.testing.assert_allclose(
        weights[-1][0] / weights[-1][1], (left[0] / left[1]) ** 1.5, rtol=0.1
    )
    against = weights_of_steps(sa.normalized_gradients(2, 1.5), losses, gradients)
    np.testing.assert_allclose(against[-1], left**1.5, rtol=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 1.0, -0.5])
def test_normalized_gradients_agree_with_the_oracle(exponent):
    weights = weights_of_steps(sa.normalized_gradients(3, exponent), TRAJECTORY, GRADIENTS)
    rates = [oracle.inverse_training_rates(losses, TRAJECTORY[0]) for losses in TRAJECTORY]
    wanted = np.array(rates) ** exponent / np.linalg.norm(GRADIENTS, axis=-1)
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_normalized_gradients_of_norms_far_apart(scale):
    gradients = GRADIENTS * [[[scale], [1.0], [1 / scale]]]
    tx = sa.normalized_gradients(3)
    update = jax.jit(lambda stacked, losses: tx.update(stacked, tx.init(None), losses=losses)[0])
    for losses, vectors in zip(TRAJECTORY[:3], gradients[:3], strict=True):
        combined = update(jnp.asarray(vectors, jnp.float32), jnp.asarray(losses))
        wanted = (vectors / np.linalg.norm(vectors, axis=1)[:, None]).sum(axis=0)
        np.testing.assert_allclose(combined, wanted, rtol=1e-4, atol=1e-5)


def test_db_mtl_is_a_setting_of_normalized_gradients():
    tx = sa.normalized_gradients(3, units="current", common_norm="max")
    for losses, vectors in zip(TRAJECTORY[:3], GRADIENTS[:3], strict=True):
        h, _ = tx.update(
            jnp.asarray(vectors, float), tx.init(None), losses=jnp.asarray(losses, float)
        )
        wanted = oracle.db_mtl_direction(losses, vectors)
        np.testing.assert_allclose(h, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("every", [1, 5])
def test_jaxpi_is_a_setting_of_normalized_gradients(every):
    tx = sa.normalized_gradients(3, common_norm="mean", smoothing=0.9, every=every)
    found = weights_of_steps(tx, TRAJECTORY, GRADIENTS)[every - 1 :: every]
    wanted = oracle.jaxpi_weights(GRADIENTS[every - 1 :: every], 0.9)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(("common_norm", "norm_of"), [("mean", np.mean), ("max", np.max)])
def test_the_common_norm_is_of_the_gradients_that_have_one(common_norm, norm_of):
    gradients = GRADIENTS * [[[1.0], [0.0], [1.0]]]
    tx = sa.normalized_gradients(3, common_norm=common_norm)
    weights = np.asarray(weights_of_steps(tx, TRAJECTORY, gradients))
    norms = np.linalg.norm(gradients, axis=-1)
    level = norm_of(norms[:, [0, 2]], axis=1, keepdims=True)
    np.testing.assert_allclose(weights * norms, level * (norms > 0), rtol=1e-5)
    zeros = weights_of_steps(tx, TRAJECTORY, np.zeros_like(GRADIENTS))
    np.testing.assert_array_equal(zeros, 0.0)


def test_a_gradient_that_vanishes_takes_no_weight_from_the_others():
    gradients = GRADIENTS[:2].copy()
    gradients[:, 1] = 0.0
    weights = np.asarray(
        weights_of_steps(sa.normalized_gradients(3, weight_sum=1.0), TRAJECTORY[:2], gradients)
    )
    np.testing.assert_array_equal(weights[:, 1], 0.0)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)
    levelled = weights_of_steps(sa.gradnorm(3), TRAJECTORY[:2], gradients)
    assert jnp.all(jnp.isfinite(levelled))
    assert jnp.all(levelled > 0)


def test_the_smallest_eps_is_not_squared_away():
    tx = sa.normalized_gradients(2, eps=1e-30)
    weights = weights_of_steps(tx, np.ones((1, 2)), np.array([[[0.0, 0.0], [3.0, 4.0]]]))
    np.testing.assert_allclose(weights, [[0.0, 0.2]])


@pytest.mark.parametrize("factory", [sa.gradnorm, sa.normalized_gradients])
def test_a_loss_that_starts_at_zero(factory):
    losses = np.array([[0.0, 1.0], [0.0, 1.0], [0.5, 0.9], [0.4, 0.8]])
    weights = weights_of_steps(factory(2, 1.0), losses, np.broadcast_to(np.eye(2), (4, 2, 2)))
    assert jnp.all(jnp.isfinite(weights))
    assert jnp.all(weights >= 0)


@pytest.mark.parametrize(
    ("factory", "options", "error", "message"),
    [
        (sa.gradnorm, {"alpha": float("nan")}, ValueError, "`alpha` should be finite in float32"),
        (sa.gradnorm, {"optimizer": 3}, TypeError, "`optimizer` should be an Optax optimizer"),
        (sa.gradnorm, {"shared": {"w": False}}, ValueError, "`shared` should select at least one"),
        (sa.normalized_gradients, {"rate_exponent": "1"}, TypeError, "`rate_exponent` should be a"),
        (sa.normalized_gradients, {"common_norm": "two"}, ValueError, "`common_norm` should be"),
        (sa.normalized_gradients, {"eps": 0}, ValueError, "`eps` should be finite and > 0"),
    ],
)
def test_wrong_options_are_named(factory, options, error, message):
    def use():
        tx = unchecked(factory)(2, **options)
        tx.update(jnp.zeros((2, 3)), tx.init(None), losses=[1.0, 2.0])

    with pytest.raises(error, match=message):
        use()


@pytest.mark.parametrize("every", [1, 10])
def test_a_loss_whose_gradient_is_zero_does_not_starve_the_others(every):
    """A hinge that is satisfied cannot be levelled: training goes on as by the plain sum."""
    losses_fn = lambda x: {"fit": jnp.sum((x - 1) ** 2), "hinge": jnp.sum(jnp.maximum(x - 5, 0))}
    ends = []
    for weighting in (sa.gradnorm(2, every=every), sa.fixed_weights([1.0, 1.0])):
        tx = optax.chain(weighting, optax.sgd(1e-3))
        step = training_step(tx, losses_fn)
        carry = (jnp.zeros(3), tx.init(jnp.zeros(3)))
        carry = jax.lax.fori_loop(0, 500, lambda _, c, step=step: step(*c)[:2], carry)
        np.testing.assert_allclose(sa.loss_weights(carry[1]), 1.0, rtol=1e-5)
        ends.append(carry[0])
    np.testing.assert_allclose(*ends, rtol=1e-5)
