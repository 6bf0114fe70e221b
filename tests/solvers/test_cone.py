"""Projections onto dual cones, against float64 on the same Gramian."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases

from softadapt_optax._solvers.cone import cone_weights

CASES = ("random", "collinear", "norms far apart", "collinear, norms far apart", "opposite")
solve = jax.jit(cone_weights, static_argnums=3)


def gramian_of(case, size, seed):
    rows = gradient_cases(size, seed)[case].astype(np.float32)
    return rows @ rows.T


@pytest.mark.parametrize("size", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_float64(case, size):
    """As they enter the direction, relative to the largest."""
    for seed in range(4):
        gramian = gramian_of(case, size, seed)
        masks = np.concatenate([np.eye(size), np.ones((1, size))])
        found = solve(gramian, jnp.asarray(masks, bool), jnp.ones(size, bool), 1e-6)
        norms = np.sqrt(np.diag(gramian))
        for lower, ours in zip(masks, np.asarray(found), strict=True):
            wanted = oracle.cone_weights(gramian, lower, 1e-6)
            assert np.max(np.abs(ours - wanted) * norms) <= 1e-5 * np.max(wanted * norms)


def test_losses_that_do_not_count_are_left_out():
    gramian = gramian_of("random", 4, 0)
    counted = np.array([True, True, False, True])
    found = solve(gramian, jnp.asarray(counted[None]), jnp.asarray(counted), 1e-6)[0]
    kept = gramian[np.ix_(counted, counted)]
    alone = solve(kept, jnp.ones((1, 3), bool), jnp.ones(3, bool), 1e-6)[0]
    np.testing.assert_allclose(found[counted], alone, rtol=1e-6)
    assert found[2] == 0
