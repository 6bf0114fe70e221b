"""UPGrad and DualProj, projections onto the dual cone of the gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases, made, unchecked, weights_of

import softadapt_optax as sa

METHODS = {"upgrad": oracle.upgrad_weights, "dual_proj": oracle.dual_proj_weights}
each_method = pytest.mark.parametrize("method", METHODS)


def gramian_of(gradients):
    rows = np.asarray(gradients, np.float32).astype(np.float64)
    return rows @ rows.T


@each_method
@pytest.mark.parametrize("num_losses", [3, 8])
def test_agrees_with_the_oracle(method, num_losses):
    gradients = gradient_cases(num_losses)["random"]
    found = weights_of(made(getattr(sa, method), num_losses), gradients)
    wanted = METHODS[method](gramian_of(gradients), ridge=1e-6)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@each_method
@pytest.mark.parametrize("seed", range(5))
def test_no_loss_rises(method, seed):
    gradients = gradient_cases(6, seed)["random"]
    h = weights_of(made(getattr(sa, method), 6), gradients) @ gradients
    cosines = gradients @ h / np.linalg.norm(gradients, axis=1) / np.linalg.norm(h)
    assert np.min(cosines) > -1e-3


@each_method
def test_without_conflict_they_are_the_mean(method):
    gradients = np.abs(gradient_cases(4)["random"])
    np.testing.assert_allclose(weights_of(made(getattr(sa, method), 4), gradients), 0.25, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_two_gradients_in_closed_form(scale):
    gradients = np.array([[1.0, 0.0], [-0.5, 1.0]]) * [[1.0], [scale]]
    conflict = 0.5 * scale
    wanted = 0.5 * (1 + conflict / np.sum(gradients**2, axis=1))
    found = weights_of(made(sa.upgrad, 2, ridge=0.0), gradients)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@each_method
def test_edge_cases(method):
    make = functools.partial(made, getattr(sa, method))
    np.testing.assert_allclose(weights_of(make(1), [[2.0, 0.0]]), 1.0, rtol=1e-6)
    with_zero = weights_of(make(3), [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(with_zero, 1 / 3, rtol=1e-6)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    h = weights_of(make(2), opposite) @ opposite
    np.testing.assert_allclose(h, 0.0, atol=1e-5)


@pytest.mark.slow
@each_method
def test_derivatives_in_the_gradients(method):
    tx = made(getattr(sa, method), 3)
    point = jnp.asarray(gradient_cases(3, 1)["random"], jnp.float32)
    direction = jnp.asarray(gradient_cases(3, 2)["random"], jnp.float32)

    def h_of(gradients):
        return tx.update(gradients, tx.init(None), losses=jnp.ones(3))[0]

    _, found = jax.jvp(h_of, (point,), (direction,))
    step = 1e-3
    wanted = (h_of(point + step * direction) - h_of(point - step * direction)) / (2 * step)
    np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-3)


@each_method
def test_errors_of_options(method):
    with pytest.raises(ValueError, match="`ridge` should be finite and >= 0"):
        unchecked(getattr(sa, method))(3, ridge=-1.0)
