"""The direction of equal cosines, against float64 on the same Gramian."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases

from softadapt_optax._solvers.common_cosine import common_cosine

solve = jax.jit(common_cosine, static_argnums=2)


def gramian_of(case, size, seed):
    rows = gradient_cases(size, seed)[case].astype(np.float32)
    return rows @ rows.T


@pytest.mark.parametrize("size", [2, 3, 8, 16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [case for case in gradient_cases(2) if case != "all zero"])
def test_the_solution_is_that_of_float64(case, size):
    """Also of Gramians that are singular but for their rounding, which the ridge makes regular."""
    for seed in range(4):
        gramian = gramian_of(case, size, seed)
        found = solve(gramian, jnp.ones(size, bool), 1e-6)
        a, norms = oracle.unit_solution(gramian.astype(np.float64), 1e-6)
        ours = np.asarray(found.weights, np.float64) * norms / float(found.scale)
        np.testing.assert_allclose(ours, a, rtol=0, atol=1e-5 * np.max(np.abs(a)))
        np.testing.assert_allclose(found.total, a.sum(), rtol=1e-6)
        wanted = np.divide(a, norms, out=np.zeros(size), where=norms > 0) * float(found.scale)
        limit = 1e-6 * abs(wanted.sum()) + 1e-12 * np.abs(wanted).sum()
        np.testing.assert_allclose(found.weights_sum, wanted.sum(), rtol=0, atol=limit)


def test_losses_that_do_not_count_are_left_out():
    gramian = gramian_of("random", 4, 0)
    counted = np.array([True, True, False, True])
    found = solve(gramian, jnp.asarray(counted), 1e-6)
    alone = solve(gramian[np.ix_(counted, counted)], jnp.ones(3, bool), 1e-6)
    np.testing.assert_allclose(found.weights[counted], alone.weights, rtol=1e-6)
    assert found.weights[2] == 0


@pytest.mark.slow
def test_second_derivatives_are_those_of_float64():
    gramian = jnp.asarray(gramian_of("random", 3, 0))

    def total(gramian):
        return common_cosine(gramian, jnp.ones(3, bool), 1e-6).total

    def plain(gramian):
        norms = jnp.sqrt(jnp.diagonal(gramian))
        cosines = gramian / norms[:, None] / norms[None, :] + 1e-6 * jnp.eye(3)
        return jnp.sum(jnp.linalg.solve(cosines, jnp.ones(3)))

    for derivative in (jax.jacrev, lambda f: jax.jacfwd(jax.jacrev(f))):
        ours, wanted = (derivative(f)(gramian) for f in (total, plain))
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4 * jnp.max(jnp.abs(wanted)))
