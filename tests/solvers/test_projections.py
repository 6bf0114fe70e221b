"""The weights of projected gradients, from Gramians alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gradient_cases

from softadapt_optax._solvers.projections import projection_weights


def orders_of(num_losses):
    rng = np.random.default_rng(num_losses)
    return jnp.asarray([rng.permutation(num_losses) for _ in range(num_losses)])


@pytest.mark.usefixtures("x64")
def test_derivatives_are_those_of_finite_differences():
    gradients = gradient_cases(4)["random"]
    change = gradients @ np.random.default_rng(0).normal(size=(12, 4))
    gramian, change = jnp.asarray(gradients @ gradients.T), jnp.asarray(change + change.T)
    everyone = jnp.ones(4, dtype=bool)
    weigh = jax.jit(lambda gramian: projection_weights(gramian, orders_of(4), everyone))
    differences = (weigh(gramian + 1e-6 * change) - weigh(gramian - 1e-6 * change)) / 2e-6
    assert np.abs(differences).max() > 0.1
    forward = jax.jvp(weigh, (gramian,), (change,))[1]
    backward = jnp.sum(jax.jacrev(weigh)(gramian) * change[None], axis=(1, 2))
    np.testing.assert_allclose(forward, differences, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(backward, forward, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_losses", [1, 3])
def test_derivatives_are_finite_and_no_type_is_promoted(num_losses):
    everyone = jnp.ones(num_losses, dtype=bool)
    weigh = functools.partial(projection_weights, orders=orders_of(num_losses), counted=everyone)
    with jax.numpy_dtype_promotion("strict"):
        slopes = jax.jit(jax.jacrev(weigh))
        for case in ("random", "zero", "all zero", "identical", "opposite"):
            gradients = gradient_cases(num_losses)[case]
            gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
            assert np.isfinite(slopes(gramian)).all()
