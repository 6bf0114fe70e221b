"""FairGrad and Nash-MTL, whose weights are a power of what each loss gains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases, made, unchecked, weights_of

import softadapt_optax as sa
from softadapt_optax._solvers.fairness import fair_weights

CASES = [case for case in gradient_cases(2) if case not in ("zero", "all zero")]
SIZES = [2, 3, 8, 16, pytest.param(64, marks=pytest.mark.slow)]
RIDGE = 1e-6
METHODS = {"nash_mtl": (sa.nash_mtl, 1.0), "fairgrad": (lambda k: sa.fairgrad(k, 2.0), 2.0)}
each_method = pytest.mark.parametrize("method", METHODS)
solve = jax.jit(fair_weights, static_argnums=4)


def gramian_of(gradients):
    rows = np.asarray(gradients, np.float32)
    return rows @ rows.T


def least_ridge(num_losses, ridge=RIDGE):
    """Not less than a Gramian's rounding."""
    return max(ridge, num_losses / 4 * np.finfo(np.float32).eps)


def solved(gramian, fairness, ridge=RIDGE):
    turns = 20 if fairness == 1.0 else 48
    counted = jnp.ones(len(gramian), bool)
    return np.asarray(solve(gramian, counted, fairness, ridge, turns), np.float64)


@pytest.mark.parametrize("fairness", [1.0, 2.0])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_losses", SIZES)
def test_agrees_with_the_oracle(num_losses, case, fairness):
    """Relative to the largest weight, and to the largest part of the direction."""
    for seed in range(3 if num_losses <= 16 else 12):
        gramian = gramian_of(gradient_cases(num_losses, seed)[case])
        found = solved(gramian, fairness)
        wanted = oracle.fairgrad_weights(gramian, fairness, np.float32(least_ridge(num_losses)))
        for units in (1.0, np.sqrt(np.diag(gramian))):
            assert np.max(np.abs(found - wanted) * units) <= 1e-5 * np.max(wanted * units)


@pytest.mark.parametrize("fairness", [0.3, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("num_losses", [2, 8, 16])
@pytest.mark.usefixtures("x64")
def test_each_weight_is_a_power_of_the_gain(num_losses, fairness):
    gradients = np.random.default_rng(num_losses).normal(size=(num_losses, 24))
    gradients *= np.linspace(0.1, 10.0, num_losses)[:, None]
    gramian = gradients @ gradients.T
    alpha = solved(gramian, fairness, 0.0)
    np.testing.assert_allclose((gramian @ alpha) * alpha ** (1 / fairness), 1.0, rtol=1e-9)
    scaled = solved(9.0 * gramian, fairness, 0.0)
    lengths = [np.linalg.norm(weights @ gradients) for weights in (alpha, 3.0 * scaled)]
    ratio = 3.0 ** ((1 - fairness) / (1 + fairness))
    np.testing.assert_allclose(lengths[1] / lengths[0], ratio, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_bargain_of_two_in_closed_form(scale):
    gradients = np.array([[1.0, 0.0], [-0.5, 1.0]]) * [[1.0], [scale]]
    norms = np.linalg.norm(gradients, axis=1)
    cosine = gradients[0] @ gradients[1] / np.prod(norms)
    for tx in (made(sa.nash_mtl, 2, ridge=0.0), made(sa.fairgrad, 2, ridge=0.0)):
        found = weights_of(tx, gradients)
        np.testing.assert_allclose(found * norms, 1 / np.sqrt(1 + cosine), rtol=1e-5)


def test_the_bargain_is_as_long_as_it_may_be_and_does_not_see_scales():
    gradients = gradient_cases(5)["random"]
    h = weights_of(made(sa.nash_mtl, 5), gradients) @ gradients
    np.testing.assert_allclose(np.linalg.norm(h), np.sqrt(5), rtol=1e-4)
    factors = 10.0 ** np.arange(-2, 3)[:, None]
    other = weights_of(made(sa.nash_mtl, 5), factors * gradients) @ (factors * gradients)
    np.testing.assert_allclose(other, h, rtol=1e-4, atol=1e-5)
    short = weights_of(made(sa.nash_mtl, 5, 0.5), gradients) @ gradients
    np.testing.assert_allclose(short, h * 0.5 / np.linalg.norm(h), rtol=1e-4, atol=1e-6)
    long = weights_of(made(sa.nash_mtl, 5, 10.0), gradients) @ gradients
    np.testing.assert_allclose(long, h, rtol=1e-5)


def test_edge_cases():
    for method, single, same in (("nash_mtl", 0.2, np.sqrt(2)), ("fairgrad", 5 ** (-4 / 3), None)):
        make = functools.partial(made, METHODS[method][0])
        np.testing.assert_allclose(weights_of(make(1), [[3.0, 4.0]]), single, rtol=1e-5)
        twice = np.tile([[0.0, 1.0]], (2, 1))
        found = weights_of(make(2), twice)
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
        if same is not None:
            np.testing.assert_allclose(found @ twice, [0.0, same], rtol=1e-5)
    orthogonal = np.diag([1.0, 10.0])
    h = weights_of(made(sa.fairgrad, 2, 2.0), orthogonal) @ orthogonal
    np.testing.assert_allclose(h, [1.0, 0.464], rtol=1e-3)


@each_method
def test_a_gradient_of_zero_is_left_out(method):
    make = functools.partial(made, METHODS[method][0])
    for num_losses in (4, 10):
        gradients = gradient_cases(num_losses)["zero"]
        found = weights_of(make(num_losses), gradients)
        assert found[0] == 0
        np.testing.assert_allclose(found[1:], weights_of(make(num_losses - 1), gradients[1:]), 1e-5)
        nothing = gradient_cases(num_losses)["all zero"]
        np.testing.assert_array_equal(weights_of(make(num_losses), nothing), 0.0)


@each_method
def test_where_gradients_cancel_so_does_h(method):
    make = functools.partial(made, METHODS[method][0])
    angles = 2 * np.pi * np.arange(3) / 3
    for gradients in (
        np.array([[1.0, 0.0], [-1.0, 0.0]]),
        np.array([[1.0, 0.0], [-10.0, 0.0]]),
        np.stack([np.cos(angles), np.sin(angles)], axis=1),
    ):
        alpha = weights_of(make(len(gradients)), gradients)
        assert np.linalg.norm(alpha @ gradients) < 0.01
        assert np.max(alpha * np.linalg.norm(gradients, axis=1)) > 10


@each_method
def test_without_a_ridge_weights_are_finite(method):
    fairness = METHODS[method][1]
    for num_losses in (3, 12):
        for gradients in gradient_cases(num_losses).values():
            assert np.all(np.isfinite(solved(gramian_of(gradients), fairness, 0.0)))


@pytest.mark.slow
@each_method
@pytest.mark.parametrize("num_losses", [2, 8, 10])
@pytest.mark.usefixtures("x64")
def test_derivatives_are_those_of_differences(method, num_losses):
    rows, change = (jnp.asarray(gradient_cases(num_losses, seed)["random"]) for seed in (0, 1))

    def weights_at(step, fairness):
        moved = rows + step * change
        counted = jnp.ones(num_losses, bool)
        return fair_weights(moved @ moved.T, counted, fairness, RIDGE, 48)

    point = np.array([0.0, METHODS[method][1]])
    for argument in (0, 1):
        found = jax.jit(jax.jacrev(weights_at, argument))(*point)
        shift = np.eye(2)[argument] * 1e-6
        ahead, behind = (jax.jit(weights_at)(*(point + s)) for s in (shift, -shift))
        np.testing.assert_allclose(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)


def test_derivatives_are_finite_wherever_weights_are():
    counted = jnp.ones(3, bool)
    derivative = jax.jit(lambda gramian: jax.jacrev(fair_weights)(gramian, counted, 2.0, RIDGE, 48))
    for rows in gradient_cases(3).values():
        assert jnp.all(jnp.isfinite(derivative(gramian_of(rows))))


@pytest.mark.parametrize(
    ("factory", "option"),
    [(sa.fairgrad, "fairness"), (sa.fairgrad, "ridge"), (sa.nash_mtl, "max_norm")],
)
def test_errors_of_options(factory, option):
    with pytest.raises(ValueError, match=f"`{option}` should be finite and >"):
        unchecked(factory)(3, **{option: -1.0})
