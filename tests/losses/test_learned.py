"""Weights that an optimizer inside the state learns: `uncertainty` and `learned_weights`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from helpers import unchecked, weights_along

import softadapt_optax as sa

TRAJECTORY = np.random.default_rng(0).uniform(0.1, 3.0, (12, 3))
STILL = jnp.tile(jnp.asarray([1.0, 0.5, 0.1]), (3000, 1))  # losses that stay as they are


def at_rest(tx):
    return np.asarray(weights_along(tx, STILL)[-1])


@pytest.mark.parametrize("penalty", ["log", "log1p", "imtl_l"])
def test_uncertainty_agrees_with_the_oracle(penalty):
    tx = sa.uncertainty(3, optax.sgd(0.3), penalty=penalty)
    expected = oracle.uncertainty_weights(TRAJECTORY, 0.3, penalty)
    assert np.ptp(expected[:, 0]) > 0.05
    np.testing.assert_allclose(weights_along(tx, TRAJECTORY), expected, rtol=1e-5)


@pytest.mark.parametrize("penalty", ["log", "log1p", "imtl_l"])
def test_uncertainty_minimises_its_objective(penalty):
    weights = at_rest(sa.uncertainty(3, optax.sgd(0.5), penalty=penalty))
    losses = np.asarray(STILL[0])
    wanted = {"log": 1 / (2 * losses), "log1p": 2 / (losses + np.sqrt(losses**2 + 8 * losses))}
    wanted["imtl_l"] = 1 / losses
    np.testing.assert_allclose(weights, wanted[penalty], rtol=1e-4)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 4.0])
def test_learned_weights_agree_with_the_oracle(temperature, maximize):
    priorities = np.array([1.0, 0.5, 3.0])
    tx = sa.learned_weights(
        3, optax.sgd(0.7), temperature=temperature, maximize=maximize, priorities=priorities
    )
    expected = oracle.learned_weights(TRAJECTORY, 0.7, temperature, maximize, priorities)
    np.testing.assert_allclose(weights_along(tx, TRAJECTORY), expected, rtol=1e-5)


def test_learned_weights_collapse_without_the_divergence_and_rest_with_it():
    collapsed = at_rest(sa.learned_weights(3, optax.sgd(0.5), temperature=0.0))
    assert collapsed[2] > 0.999
    for sign, maximize in ((-1, False), (1, True)):
        wanted = np.array([1.0, 2.0, 1.0]) * np.exp(sign * np.asarray(STILL[0]) / 0.3)
        tx = sa.learned_weights(
            3, optax.sgd(0.5), temperature=0.3, maximize=maximize, priorities=[1.0, 2.0, 1.0]
        )
        np.testing.assert_allclose(at_rest(tx), wanted / wanted.sum(), rtol=1e-3)


def test_learned_weights_do_not_move_with_a_common_shift():
    tx = sa.learned_weights(3, optax.sgd(0.5))
    shifted = weights_along(tx, TRAJECTORY + 7.0)
    np.testing.assert_allclose(shifted, weights_along(tx, TRAJECTORY), rtol=1e-4)


def test_a_sweep_over_temperatures_is_one_program():
    weights = jax.vmap(lambda t: weights_along(sa.learned_weights(3, temperature=t), TRAJECTORY))(
        jnp.asarray([0.1, 1.0, 10.0])
    )
    for row, temperature in zip(weights, (0.1, 1.0, 10.0), strict=True):
        one = weights_along(sa.learned_weights(3, temperature=temperature), TRAJECTORY)
        np.testing.assert_allclose(row, one, rtol=1e-5)


@pytest.mark.parametrize("factory", [sa.uncertainty, sa.learned_weights, sa.gradnorm])
def test_the_inner_optimizer_is_the_users(factory):
    """With a learning rate of zero nothing is learned, momentum keeps its own memory."""
    still = weights_along(factory(3, optimizer=optax.sgd(0.0)), TRAJECTORY)
    np.testing.assert_allclose(still, jnp.broadcast_to(still[0], still.shape), rtol=1e-6)
    state = factory(3, optimizer=optax.adam(0.1, b1=0.5)).init(None)
    assert any(leaf.shape == (3,) for leaf in jax.tree.leaves(state.weighting_state[-1]))


@pytest.mark.parametrize("losses", [[1e38, 1.0, 1.0], [1e-38, 1e38, 0.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("factory", [sa.uncertainty, sa.learned_weights])
def test_extreme_losses_never_leave_the_state_broken(factory, losses):
    weights = weights_along(factory(3), [losses] * 20 + [[1.0, 2.0, 3.0]] * 20)
    assert jnp.all(jnp.isfinite(weights))
    assert jnp.all(weights >= 0)


def test_a_loss_that_is_zero_for_long_does_not_stop_the_others():
    tx = sa.uncertainty(2, optax.sgd(1.0))
    weights = weights_along(tx, [[0.0, 2.0]] * 400 + [[1.0, 100.0]] * 400)
    assert jnp.all(jnp.isfinite(weights))
    np.testing.assert_allclose(weights[-1][1], 1 / 200, rtol=1e-3)


@pytest.mark.parametrize(
    ("factory", "options", "error", "message"),
    [
        (sa.uncertainty, {"penalty": "square"}, ValueError, '`penalty` should be one of "log", "l'),
        (sa.uncertainty, {"optimizer": 0.1}, TypeError, "`optimizer` should be an Optax optimizer"),
        (
            sa.learned_weights,
            {"temperature": -1.0},
            ValueError,
            "`temperature` should be finite an",
        ),
        (sa.learned_weights, {"maximize": 1}, TypeError, "`maximize` should be True or False"),
        (sa.learned_weights, {"optimizer": optax.adam}, TypeError, "such as `optax.adam"),
    ],
)
def test_wrong_options_are_named(factory, options, error, message):
    with pytest.raises(error, match=message):
        unchecked(factory)(2, **options)
