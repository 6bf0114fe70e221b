"""Gradient Vaccine, turns towards other gradients, as weights."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases, unchecked, weights_of_steps

import softadapt_optax as sa
from softadapt_optax._solvers.vaccine import vaccinated

turn = jax.jit(vaccinated, static_argnums=4)


def orders_of(num_losses, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(num_losses) for _ in range(num_losses)])


@pytest.mark.parametrize("num_losses", [2, 3, 8, 16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", gradient_cases(2))
def test_agrees_with_turns_of_the_vectors(case, num_losses):
    """Over steps with the targets of each; the first step is PCGrad's."""
    counted = jnp.ones(num_losses, dtype=bool)
    ours, theirs = jnp.zeros((num_losses, num_losses)), np.zeros((num_losses, num_losses))
    for step in range(4):
        gradients = gradient_cases(num_losses, step)[case].astype(np.float32).astype(np.float64)
        orders = orders_of(num_losses, step)
        gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
        weights, ours = turn(gramian, jnp.asarray(orders), counted, ours, 0.5)
        assert np.all(weights >= 1)
        turned, theirs = oracle.vaccinated_gradients(gradients, orders, theirs, 0.5)
        if step == 0:
            np.testing.assert_allclose(
                turned,
                oracle.projected_gradients(gradients, orders),
                atol=1e-3 * np.abs(gradients).max(),
            )
        sizes = np.asarray(weights, np.float64) @ np.linalg.norm(gradients, axis=1)
        error = np.linalg.norm(np.asarray(weights, np.float64) @ gradients - turned.sum(axis=0))
        # Where turns take a gradient to zero, what is left of it is of the root of rounding.
        assert error <= (4e-3 if case == "rank deficient" else 1e-4) * sizes


def test_each_turned_gradient_has_at_least_the_target_with_the_last_it_met():
    gradients = gradient_cases(5)["random"]
    targets = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 5))
    orders = orders_of(5)
    turned, _ = oracle.vaccinated_gradients(gradients, orders, targets, 0.5)
    for i in range(5):
        last = [j for j in orders[i] if j != i][-1]
        lengths = np.linalg.norm(turned[i]) * np.linalg.norm(gradients[last])
        assert turned[i] @ gradients[last] / lengths >= targets[i, last] - 1e-9


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_first_step_is_that_of_pcgrad(reduction):
    gradients = gradient_cases(4)["random"][None]
    ours, theirs = (
        weights_of_steps(make(4, seed=3, reduction=reduction), np.ones((1, 4)), gradients)
        for make in (sa.gradvac, sa.pcgrad)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_with_targets_that_stay_it_is_pcgrad():
    gradients = np.stack([gradient_cases(4, seed)["random"] for seed in range(5)])
    ours = weights_of_steps(sa.gradvac(4, 0.0), np.ones((5, 4)), gradients)
    theirs = weights_of_steps(sa.pcgrad(4), np.ones((5, 4)), gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_edge_cases():
    one = weights_of_steps(sa.gradvac(1), np.ones((3, 1)), np.ones((3, 1, 2)))
    np.testing.assert_array_equal(one, 1.0)
    identical = np.broadcast_to(gradient_cases(3)["random"][0], (40, 3, 12))
    weights = weights_of_steps(sa.gradvac(3), np.ones((40, 3)), identical)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-5)
    nothing = weights_of_steps(sa.gradvac(3), np.ones((3, 3)), np.zeros((3, 3, 2)))
    np.testing.assert_array_equal(nothing, 1.0)
    opposite = np.broadcast_to([[1.0, 0.0], [-1.0, 0.0]], (1, 2, 2))
    h = weights_of_steps(sa.gradvac(2), np.ones((1, 2)), opposite)[0] @ opposite[0]
    np.testing.assert_allclose(h, 0.0, atol=1e-6)


def test_targets_of_absent_losses_stay():
    tx, gradients = sa.gradvac(3), jnp.asarray(gradient_cases(3)["random"], jnp.float32)
    _, before = tx.update(gradients, tx.init(None), losses=jnp.ones(3))
    present = jnp.asarray([True, False, True])
    _, after = tx.update(gradients, before, losses=jnp.ones(3), present=present)
    old, new = (state.weighting_state.target_cosines for state in (before, after))
    np.testing.assert_array_equal(new[1], old[1])
    np.testing.assert_array_equal(new[:, 1], old[:, 1])
    assert new[0, 2] != old[0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["random", "identical", "opposite", "zero", "all zero"])
def test_derivatives_are_finite(case):
    tx = sa.gradvac(3)
    point = jnp.asarray(gradient_cases(3, 1)[case], jnp.float32)

    @jax.jacrev
    def derivative(gradients):
        state = tx.init(None)
        for _ in range(2):
            h, state = tx.update(gradients, state, losses=jnp.ones(3))
        return h

    assert jnp.all(jnp.isfinite(jax.jit(derivative)(point)))


def test_errors_of_options():
    with pytest.raises(ValueError, match="`beta` should be finite and >= 0 and < 1"):
        unchecked(sa.gradvac)(3, beta=1.0)
    with pytest.raises(ValueError, match="`reduction` should be"):
        unchecked(sa.gradvac)(3, reduction="max")
