"""IMTL-G and ConFIG, the direction that has the same cosine with all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import coarse, gradient_cases, made, unchecked, weights_of

import softadapt_optax as sa

METHODS = {"imtl_g": oracle.imtl_g_weights, "conflict_free": oracle.conflict_free_weights}
each_method = pytest.mark.parametrize("method", METHODS)
SIZES = (2, 3, 8, 16, pytest.param(64, marks=pytest.mark.slow))


@each_method
@pytest.mark.parametrize("num_losses", SIZES)
def test_agrees_with_the_oracle(method, num_losses):
    tx = made(getattr(sa, method), num_losses)
    for seed in range(3):
        for case, gradients in gradient_cases(num_losses, seed).items():
            rows = coarse(gradients)
            found = weights_of(tx, rows)
            wanted = METHODS[method](rows @ rows.T, ridge=1e-6)
            norms = np.linalg.norm(rows, axis=1)
            for scales in (np.ones(num_losses), norms):  # as they are, and as they enter h
                limit = 1e-5 * np.max(np.abs(wanted * scales))
                assert np.max(np.abs(found - wanted) * scales) <= limit, (case, seed)


@each_method
@pytest.mark.parametrize("num_losses", [2, 5, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["random", "norms far apart"])
def test_cosines_are_equal_and_positive(method, num_losses, case):
    for seed in range(4):
        gradients = gradient_cases(num_losses, seed)[case].astype(np.float32).astype(np.float64)
        alpha = weights_of(made(getattr(sa, method), num_losses), gradients).astype(np.float64)
        h, norms = alpha @ gradients, np.linalg.norm(gradients, axis=1)
        shares = gradients @ h / norms
        assert shares[0] > 0
        np.testing.assert_allclose(shares, shares.mean(), rtol=1e-3)
        if method == "imtl_g":
            np.testing.assert_allclose(abs(alpha.sum()), 1.0, rtol=1e-5)
        else:
            length = np.linalg.norm(h)
            np.testing.assert_allclose(np.sum(gradients @ h) / length, length, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_two_gradients_in_closed_form(scale):
    gradients = np.array([[1.0, 0.5], [-0.5, 1.5]]) * [[1.0], [scale]]
    norms = np.linalg.norm(gradients, axis=1)
    found = weights_of(made(sa.imtl_g, 2), gradients)
    np.testing.assert_allclose(found, norms[::-1] / norms.sum(), rtol=1e-6)
    found = weights_of(made(sa.conflict_free, 2), gradients)
    np.testing.assert_allclose(found, 0.5 * norms.sum() / norms, rtol=1e-6)


@pytest.mark.parametrize("num_losses", [3, 6])
def test_it_is_the_pseudo_inverse_of_the_paper(num_losses):
    for seed in range(4):
        gradients = gradient_cases(num_losses, seed)["random"]
        h = weights_of(made(sa.conflict_free, num_losses), gradients) @ gradients
        wanted = oracle.conflict_free_direction(gradients)
        np.testing.assert_allclose(h, wanted, atol=3e-5 * np.linalg.norm(wanted))


@each_method
def test_the_direction_does_not_depend_on_scales_of_losses(method):
    gradients = gradient_cases(4)["random"]
    directions = []
    for scales in ([1.0, 1.0, 1.0, 1.0], [1e-3, 1.0, 30.0, 1e4]):
        rows = gradients * np.array(scales)[:, None]
        h = weights_of(made(getattr(sa, method), 4), rows) @ rows
        directions.append(h / np.linalg.norm(h))
    np.testing.assert_allclose(directions[1], directions[0], atol=2e-5)


@each_method
def test_the_weights_follow_a_common_scale(method):
    gradients = gradient_cases(4)["random"]
    small, large = (weights_of(made(getattr(sa, method), 4), s * gradients) for s in (1e-6, 1e6))
    np.testing.assert_allclose(small, large, rtol=1e-4)


def test_imtl_g_descends_where_the_sum_of_the_equation_is_negative():
    found = [
        (np.linalg.solve(g @ g.T, np.linalg.norm(g, axis=1)).sum(), g)
        for seed in range(60)
        for g in [gradient_cases(6, seed)["random"] * 10.0 ** np.linspace(-1, 1, 6)[:, None]]
    ]
    total, gradients = min(found, key=lambda pair: pair[0])
    assert total < 0
    alpha = weights_of(made(sa.imtl_g, 6), gradients)
    np.testing.assert_allclose(alpha.sum(), -1.0, rtol=1e-4)
    assert np.all(gradients @ (alpha @ gradients) > 0)


def test_imtl_g_weights_are_bounded_where_their_sum_vanishes():
    """The norms are such that it does."""
    cosines = np.array([[1.0, 0.8, 0.8], [0.8, 1.0, 0.4], [0.8, 0.4, 1.0]])
    a = np.linalg.solve(cosines, np.ones(3))
    norms = np.array([1.0, -2.0 * a[1] / a[0], -2.0 * a[1] / a[0]])
    gradients = norms[:, None] * np.linalg.cholesky(cosines)
    assert a[0] < 0 < norms[1]
    alpha = weights_of(made(sa.imtl_g, 3), gradients)
    np.testing.assert_allclose(np.abs(alpha).sum(), 1000.0, rtol=1e-3)


@each_method
def test_edge_cases(method):
    make = functools.partial(made, getattr(sa, method))
    of_two = {"imtl_g": 0.5, "conflict_free": 1.0}[method]
    np.testing.assert_allclose(weights_of(make(1), [[2.0, 0.0]]), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights_of(make(2), np.ones((2, 3))), of_two, rtol=1e-6)
    with_zero = weights_of(make(3), [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(with_zero, [of_two, 0.0, of_two], rtol=1e-6)
    np.testing.assert_array_equal(weights_of(make(3), np.zeros((3, 2))), 0.0)
    parallel = np.array([[1.0, 0.0], [10.0, 0.0]])
    length = {"imtl_g": 20 / 11, "conflict_free": 11.0}[method]
    h = weights_of(make(2), parallel) @ parallel
    np.testing.assert_allclose(h, [length, 0.0], rtol=1e-6)


@each_method
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_it_stands_still_where_no_loss_can_fall_without_another_rising(method, scale):
    """Opposite gradients, and three that balance each other."""
    opposite = np.array([[1.0, 0.0], [-scale, 0.0]])
    h = weights_of(made(getattr(sa, method), 2), opposite) @ opposite
    np.testing.assert_allclose(h, 0.0, atol=1e-5)
    angles = 2 * np.pi / 3 * np.arange(3)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1.0], [scale], [1.0]]
    h = weights_of(made(getattr(sa, method), 3), around) @ around
    np.testing.assert_allclose(h, 0.0, atol=1e-5 * scale)


@pytest.mark.slow
@each_method
@pytest.mark.parametrize("case", ["random", "identical", "opposite", "zero", "all zero"])
def test_derivatives_are_finite_and_right_where_gradients_are_independent(method, case):
    tx = made(getattr(sa, method), 3)
    point = jnp.asarray(gradient_cases(3, 1)[case], jnp.float32)
    direction = jnp.asarray(gradient_cases(3, 2)["random"], jnp.float32)

    def h_of(gradients):
        return tx.update(gradients, tx.init(None), losses=jnp.ones(3))[0]

    _, found = jax.jvp(h_of, (point,), (direction,))
    assert jnp.all(jnp.isfinite(found))
    assert jnp.all(jnp.isfinite(jax.jacrev(h_of)(point)))
    if case == "random":
        step = 1e-3
        wanted = (h_of(point + step * direction) - h_of(point - step * direction)) / (2 * step)
        np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-3)


@each_method
def test_without_a_ridge_a_dependent_gradient_is_left_out(method):
    gradients = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = weights_of(made(getattr(sa, method), 3, ridge=0.0), gradients)
    assert found[2] == 0
    np.testing.assert_allclose(found[0], found[1])


@each_method
def test_errors_of_options(method):
    with pytest.raises(ValueError, match="`ridge` should be finite and >= 0"):
        unchecked(getattr(sa, method))(3, ridge=-1.0)
