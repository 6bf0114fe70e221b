"""CAGrad, the direction near the mean gradient that is best for the worst loss."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases, made, unchecked, weights_of

import softadapt_optax as sa
from softadapt_optax._solvers.conflict_averse import conflict_averse_weights

CASES = [case for case in gradient_cases(2) if case not in ("zero", "all zero")]
SIZES = [2, 3, 8, 16, pytest.param(64, marks=pytest.mark.slow)]
RIDGE = 1e-6


def h_of(tx, gradients):
    return weights_of(tx, gradients) @ np.asarray(gradients)


def gramian_of(gradients):
    rows = np.asarray(gradients, np.float32)
    return rows @ rows.T


solve = jax.jit(conflict_averse_weights)


def solved(gramian, c, ridge=RIDGE):
    return np.asarray(solve(gramian, jnp.ones(len(gramian), bool), c, ridge), np.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_losses", SIZES)
def test_agrees_with_the_oracle(num_losses, case):
    """Relative to the largest weight, and to the largest part of the direction."""
    tolerance = 1e-5 if num_losses <= 16 else 1e-4
    for seed, c in enumerate((0.25, 0.5, 1.5)):
        gramian = gramian_of(gradient_cases(num_losses, seed)[case])
        found = solved(gramian, c)
        wanted = oracle.cagrad_weights(gramian, c, np.float32(RIDGE))
        for units in (1.0, np.sqrt(np.diag(gramian))):
            assert np.max(np.abs(found - wanted) * units) <= tolerance * np.max(wanted * units)


@pytest.mark.parametrize("num_losses", [2, 8, 16])
@pytest.mark.parametrize("c", [0.2, 0.5, 3.0])
@pytest.mark.usefixtures("x64")
def test_the_conditions_of_the_optimum_hold(num_losses, c):
    gradients = np.random.default_rng(num_losses).normal(size=(num_losses, 24))
    gramian = gradients @ gradients.T
    z = solved(gramian, c, 0.0) - 1 / num_losses
    mean = np.mean(gradients, axis=0)
    assert np.min(z) >= 0
    np.testing.assert_allclose(z @ gramian @ z, c**2 * mean @ mean, rtol=1e-10)
    products = gradients @ (mean + z @ gradients)
    np.testing.assert_allclose(products[z > 0], np.min(products), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_losses", [3, 12])
def test_without_a_ball_it_is_the_mean(num_losses):
    gradients = gradient_cases(num_losses)["random"]
    found = weights_of(made(sa.cagrad, num_losses, 0.0), gradients)
    np.testing.assert_allclose(found, 1 / num_losses, rtol=1e-6)


def test_with_a_large_ball_it_has_the_direction_of_mgda():
    gradients = gradient_cases(4)["random"]
    ours, theirs = (
        h_of(made(sa.cagrad, 4, 1e4, ridge=0.0), gradients),
        h_of(made(sa.mgda, 4), gradients),
    )
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert cosine > 1 - 1e-6


def test_edge_cases():
    np.testing.assert_allclose(weights_of(made(sa.cagrad, 1), [[3.0, 4.0]]), 1.5, rtol=1e-6)
    same = np.tile([[1.0, 2.0]], (2, 1))
    np.testing.assert_allclose(weights_of(made(sa.cagrad, 2), same), 0.75, rtol=1e-5)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(h_of(made(sa.cagrad, 2), opposite), 0.0, atol=1e-6)
    far = np.array([[1.0, 0.0], [-10.0, 0.0]])
    np.testing.assert_allclose(h_of(made(sa.cagrad, 2), far), [-2.25, 0.0], rtol=1e-5)
    parallel = np.array([[1.0, 0.0], [10.0, 0.0]])
    np.testing.assert_allclose(h_of(made(sa.cagrad, 2), parallel), [8.25, 0.0], rtol=1e-5)
    angles = 2 * np.pi * np.arange(3) / 3
    balanced = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(h_of(made(sa.cagrad, 3), balanced), 0.0, atol=1e-5)


@pytest.mark.parametrize("num_losses", [4, 10])
def test_a_gradient_of_zero_counts_in_the_mean_alone(num_losses):
    gradients = gradient_cases(num_losses)["zero"]
    found = weights_of(made(sa.cagrad, num_losses), gradients)
    others = weights_of(made(sa.cagrad, num_losses - 1), gradients[1:])
    np.testing.assert_allclose(found[0], 1 / num_losses, rtol=1e-6)
    np.testing.assert_allclose(found[1:], others * (num_losses - 1) / num_losses, rtol=1e-5)


@pytest.mark.parametrize("num_losses", [4, 10])
def test_dependent_gradients_without_a_ridge_stay_near_the_mean(num_losses):
    gradients = gradient_cases(num_losses)["rank deficient"]
    found = weights_of(made(sa.cagrad, num_losses, ridge=0.0), gradients)
    mean = np.mean(gradients, axis=0)
    distance = np.linalg.norm(found @ gradients - mean)
    np.testing.assert_allclose(distance, 0.5 * np.linalg.norm(mean), rtol=1e-3)


@pytest.mark.parametrize("num_losses", [3, 8])
def test_there_is_no_loop(num_losses):
    weigh = lambda gramian: conflict_averse_weights(gramian, jnp.ones(num_losses, bool), 0.5, RIDGE)
    for function in (weigh, jax.jacrev(weigh)):
        assert "stablehlo.while" not in jax.jit(function).lower(jnp.eye(num_losses)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("num_losses", [2, 8, 10])
@pytest.mark.usefixtures("x64")
def test_derivatives_are_those_of_differences(num_losses):
    gradients = [gradient_cases(num_losses, seed)["random"] for seed in (0, 1)]

    def weights_at(step, c):
        rows = jnp.asarray(gradients[0]) + step * jnp.asarray(gradients[1])
        counted = jnp.ones(num_losses, bool)
        return conflict_averse_weights(rows @ rows.T, counted, c, RIDGE)

    for argument in (0, 1):
        found = jax.jit(jax.jacrev(weights_at, argument))(0.0, 0.5)
        shift = np.eye(2)[argument] * 1e-6
        ahead, behind = (jax.jit(weights_at)(*(np.array([0.0, 0.5]) + s)) for s in (shift, -shift))
        np.testing.assert_allclose(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_derivatives_are_finite_wherever_weights_are():
    counted = jnp.ones(3, bool)
    for rows in gradient_cases(3).values():
        derivative = jax.jacrev(conflict_averse_weights)(gramian_of(rows), counted, 0.5, RIDGE)
        assert jnp.all(jnp.isfinite(derivative))


@pytest.mark.parametrize("option", ["c", "ridge"])
def test_errors_of_options(option):
    with pytest.raises(ValueError, match=f"`{option}` should be finite and >= 0"):
        unchecked(sa.cagrad)(3, **{option: -1.0})
