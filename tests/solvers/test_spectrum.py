"""Eigenvalues and eigenvectors in two floats, against float64 on the same matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gradient_cases

from softadapt_optax._solvers.spectrum import spectrum_of

solve = jax.jit(spectrum_of)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 24, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", gradient_cases(2))
def test_the_eigenvalues_are_those_of_float64(case, size):
    """Relative to each, as far down as the rounding of the largest."""
    for seed in range(3):
        rows = gradient_cases(size, seed)[case].astype(np.float32)
        gramian = rows @ rows.T
        gramian = gramian / np.maximum(np.max(np.abs(gramian)), np.float32(1e-30))
        found = solve(gramian)
        wanted = np.linalg.eigvalsh(gramian.astype(np.float64))
        limit = 1e-6 * np.abs(wanted) + 1e-11 * np.max(np.abs(wanted))
        assert np.all(np.abs(np.sort(found.values) - wanted) <= limit)
        vectors = np.asarray(found.vectors, np.float64)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(size), atol=1e-6)
        back = vectors @ np.diag(found.values) @ vectors.T
        np.testing.assert_allclose(back, gramian, atol=1e-6)


def test_derivatives_are_those_of_jax():
    rows = jnp.asarray(gradient_cases(4)["random"], jnp.float32)
    gramian = rows @ rows.T / 20

    def ours(gramian):
        found = spectrum_of(gramian)
        return jnp.sum(jnp.sin(found.values)) + jnp.sum(found.vectors**4)

    def theirs(gramian):
        values, vectors = jnp.linalg.eigh(gramian)
        return jnp.sum(jnp.sin(values)) + jnp.sum(vectors**4)

    found, wanted = (jax.grad(f)(gramian) for f in (ours, theirs))
    both = [(g + g.T) / 2 for g in (found, wanted)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-3, atol=1e-4)
