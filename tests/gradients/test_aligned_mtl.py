"""Aligned-MTL, gradients whose principal components are equally long."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import coarse, gradient_cases, made, unchecked, weights_of

import softadapt_optax as sa

SCALES = ("min", "median", "rmse")


@pytest.mark.parametrize(
    ("num_losses", "scale"),
    [
        (2, "min"),
        (3, "min"),
        (3, "median"),
        (8, "min"),
        (8, "rmse"),
        (16, "min"),
        pytest.param(64, "min", marks=pytest.mark.slow),
    ],
)
def test_agrees_with_the_oracle(num_losses, scale):
    tx = made(sa.aligned_mtl, num_losses, scale)
    for seed in range(3):
        for case, gradients in gradient_cases(num_losses, seed).items():
            rows = coarse(gradients)
            found = weights_of(tx, rows)
            wanted = oracle.aligned_weights(rows @ rows.T, scale)
            limit = (1e-5 if num_losses <= 16 else 1e-4) * np.max(np.abs(wanted))
            assert np.max(np.abs(found - wanted)) <= limit, (case, seed)


@pytest.mark.parametrize("seed", range(4))
def test_the_length_is_that_of_the_shortest_component(seed):
    gradients = gradient_cases(5, seed)["random"]
    h = weights_of(made(sa.aligned_mtl, 5), gradients) @ gradients
    shortest = np.linalg.svd(gradients, compute_uv=False)[-1]
    np.testing.assert_allclose(np.linalg.norm(h), shortest / np.sqrt(5), rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_two_gradients_in_closed_form(ratio):
    gradients = np.array([[1.0, 0.5], [-0.5, 1.5]]) * [[1.0], [ratio]]
    gramian = gradients @ gradients.T
    root, trace = np.sqrt(np.linalg.det(gramian)), np.trace(gramian)
    inverse_root = np.linalg.inv(gramian + root * np.eye(2)) * np.sqrt(trace + 2 * root)
    wanted = 0.5 * np.sqrt(np.linalg.eigvalsh(gramian)[0]) * inverse_root.sum(axis=1)
    np.testing.assert_allclose(weights_of(made(sa.aligned_mtl, 2), gradients), wanted, rtol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_the_weights_do_not_depend_on_a_common_scale(scale):
    gradients = gradient_cases(4)["random"]
    small, large = (weights_of(made(sa.aligned_mtl, 4, scale), s * gradients) for s in (1e-6, 1e6))
    np.testing.assert_allclose(small, large, rtol=1e-4)


def test_edge_cases():
    np.testing.assert_allclose(weights_of(made(sa.aligned_mtl, 1), [[2.0, 0.0]]), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights_of(made(sa.aligned_mtl, 2), np.ones((2, 3))), 0.5, rtol=1e-6)
    with_zero = weights_of(made(sa.aligned_mtl, 3), [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(with_zero, [1 / 3, 0.0, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(weights_of(made(sa.aligned_mtl, 3), np.zeros((3, 2))), 0.0)
    for factor, wanted in ((10.0, 5.5), (-1.0, 0.0), (-10.0, -4.5)):
        gradients = np.array([[1.0, 0.0], [factor, 0.0]])
        h = weights_of(made(sa.aligned_mtl, 2), gradients) @ gradients
        np.testing.assert_allclose(h, [wanted, 0.0], atol=1e-5)
    angles = 2 * np.pi / 3 * np.arange(3)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(weights_of(made(sa.aligned_mtl, 3), around) @ around, 0.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["random", "orthogonal", "identical", "opposite", "all zero"])
def test_derivatives_are_finite_and_right(case):
    """Of orthogonal gradients all eigenvalues are equal; the mean of all has a derivative."""
    tx = made(sa.aligned_mtl, 3, "rmse")
    cases = gradient_cases(3, 1) | {"orthogonal": np.eye(3, 12)}
    point = jnp.asarray(cases[case], jnp.float32)
    direction = jnp.asarray(gradient_cases(3, 2)["random"], jnp.float32)

    def h_of(gradients):
        return tx.update(gradients, tx.init(None), losses=jnp.ones(3))[0]

    _, found = jax.jvp(h_of, (point,), (direction,))
    assert jnp.all(jnp.isfinite(found))
    assert jnp.all(jnp.isfinite(jax.jacrev(h_of)(point)))
    if case in ("random", "orthogonal"):
        step = 1e-3
        wanted = (h_of(point + step * direction) - h_of(point - step * direction)) / (2 * step)
        np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-3)


def test_errors_of_options():
    with pytest.raises(ValueError, match="`scale` should be"):
        unchecked(sa.aligned_mtl)(3, "mean")
