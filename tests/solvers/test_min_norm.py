"""The weights of the point of smallest norm, from Gramians alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.optimize
from helpers import gradient_cases

from softadapt_optax._solvers.double_float import DoubleFloat
from softadapt_optax._solvers.min_norm import (
    frank_wolfe_weights,
    least_squares_weights,
    min_norm_weights,
    two_gradient_weights,
)
from softadapt_optax._solvers.nonnegative import by_enumeration, by_pivoting

# In units of the largest squared norm; the design asks for ten times as much.
GAP = 1e-6
# The smallest cosine of h and a gradient that the design asks for.
COSINE = -1e-4
SIZES = (2, 3, 4, 6, 8, 12, 16, 24)
BATCH = 100  # of one size, so that few programs are compiled

compiled = jax.jit(jax.vmap(min_norm_weights))


def solved(gramians, counted=None):
    """Our weights in float64, [count, K], of Gramians [count, K, K], in batches."""
    count, num_losses = gramians.shape[:2]
    if counted is None:
        counted = np.ones((count, num_losses), dtype=bool)
    found = []
    for start in range(0, count, BATCH):
        rows = np.arange(start, start + BATCH).clip(max=count - 1)
        found.append(compiled(jnp.asarray(gramians[rows]), jnp.asarray(counted[rows])))
    return np.concatenate(found, dtype=np.float64)[:count]


def weights_of(gradients, dtype=np.float32, counted=None):
    """Our weights in float64, [count, K], of gradients [count, K, dimensions]."""
    return solved((gradients @ gradients.transpose(0, 2, 1)).astype(dtype), counted)


def best_weights(gradients):
    """The best there are, by SciPy on the vectors, in units of their norms."""
    norms = np.linalg.norm(gradients, axis=1)
    if norms.min() == 0:
        return (norms == 0) / np.sum(norms == 0)
    shares = norms.min() / norms
    rows = np.vstack([(gradients / norms[:, None]).T, shares])
    target = np.append(np.zeros(gradients.shape[1]), 1.0)
    weights = shares * scipy.optimize.nnls(rows, target, maxiter=100 * len(norms))[0]
    return weights / weights.sum()


def families(num_losses, count):
    """Gradients by kind, [count, K, dimensions], that give solvers trouble."""
    rng = np.random.default_rng(num_losses)

    def vectors(number, dimensions):
        return rng.normal(size=(count, number, dimensions))

    def unit(array):
        return array / np.linalg.norm(array, axis=-1, keepdims=True)

    def signs(share):
        return np.where(rng.random((count, num_losses, 1)) < share, -1.0, 1.0)

    def spread(decades):
        return 10.0 ** rng.uniform(-decades, decades, size=(count, num_losses, 1))

    def fan(cosine, dimensions):
        axis, others = unit(vectors(1, dimensions)), unit(vectors(num_losses, dimensions))
        return signs(0.5) * (np.sqrt(cosine) * axis + np.sqrt(1 - cosine) * others)

    def stationary(number):
        several = vectors(number, 64)
        shares = rng.dirichlet(np.ones(number), size=(count, 1))
        return several - shares @ several

    found = {}
    few = max(2, num_losses // 2)
    for cosine in (0.9, 0.99, 0.999):
        for dimensions in (few, num_losses, 64):
            found[f"cosines {cosine}, {dimensions} dimensions"] = fan(cosine, dimensions) * spread(
                3
            )
    found["cosines 0.999, equal norms"] = fan(0.999, num_losses)
    found["random"] = vectors(num_losses, 64) * spread(3)
    found["random, 12 dimensions"] = vectors(num_losses, 12) * spread(4)
    plane = vectors(num_losses, 2) @ vectors(2, 12)
    found["in a plane"], found["in a plane, norms far apart"] = plane, plane * spread(3)
    found["stationary"] = stationary(num_losses)
    found["stationary, norms far apart"] = stationary(num_losses) * spread(3)
    if num_losses > 3:
        small = 10.0 ** rng.uniform(-3, -1, size=(count, 1, 1)) * np.eye(65)[None, -1:]
        beside = np.pad(stationary(num_losses - 1), ((0, 0), (0, 0), (0, 1)))
        found["stationary and a small one"] = np.concatenate([beside, small], axis=1)
    two = np.take_along_axis(
        vectors(2, 16), rng.integers(0, 2, size=(count, num_losses, 1)), axis=1
    )
    found["two, repeated"], found["two, and their opposites"] = two, two * signs(0.5)
    found["two, and their opposites, norms far apart"] = two * signs(0.5) * spread(3)
    width = 10.0 ** rng.uniform(-4, -0.5, size=(count, 1, 1))
    nearly_parallel = signs(0.2) * (width * vectors(num_losses, few) + vectors(1, few))
    found["nearly parallel"] = nearly_parallel
    found["nearly parallel, norms far apart"] = nearly_parallel * spread(3)
    return found


@functools.cache
def known(num_losses):
    """Of each family: its gradients, and the best weights there are."""
    return {
        name: (gradients, np.array([best_weights(one) for one in gradients]))
        for name, gradients in families(num_losses, BATCH).items()
    }


def gaps_of(gradients, weights, best):
    """By how much the squared norm of h is above the optimum, by the largest squared norm."""
    points, optima = (np.einsum("nk,nkd->nd", w, gradients) for w in (weights, best))
    largest = (gradients**2).sum(axis=2).max(axis=1)
    return ((points**2).sum(axis=1) - (optima**2).sum(axis=1)) / largest


def cosines_of(gradients, weights, best):
    """The smallest cosine of h and a gradient; 1 where the best point is about zero."""
    points, optima = (np.einsum("nk,nkd->nd", w, gradients) for w in (weights, best))
    norms = np.linalg.norm(gradients, axis=2)
    is_far = np.linalg.norm(optima, axis=1) > 1e-2 * norms.min(axis=1)
    products = np.einsum("nkd,nd->nk", gradients, points) / norms
    lengths = np.where(is_far, np.linalg.norm(points, axis=1), 1.0)
    return np.where(is_far, products.min(axis=1) / lengths, 1.0)


@pytest.mark.parametrize("num_losses", SIZES)
def test_reaches_the_optimum_and_points_uphill_for_none(num_losses):
    cosines = []
    for name, (gradients, best) in known(num_losses).items():
        weights = weights_of(gradients)
        assert (weights >= 0).all(), name
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6, err_msg=name)
        assert gaps_of(gradients, weights, best).max() <= GAP, name
        cosines.append(cosines_of(gradients, weights, best))
        if gradients.shape[2] == 64:
            assert cosines[-1].min() >= COSINE, name
    # Nearly dependent gradients in few dimensions are turned by the rounding of their Gramian.
    cosines = np.concatenate(cosines)
    assert np.sum(cosines < 1) > 800
    assert np.sum(cosines < COSINE) <= 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_losses", [3, 16])
def test_only_the_rounding_of_the_gramian_is_seen(num_losses):
    for name, (gradients, best) in known(num_losses).items():
        exact = weights_of(gradients, np.float64)
        assert np.abs(gaps_of(gradients, exact, best)).max() <= 1e-14, name
        assert cosines_of(gradients, exact, best).min() >= -1e-9, name
        gramians = (gradients @ gradients.transpose(0, 2, 1)).astype(np.float32)
        single, double = solved(gramians), solved(gramians.astype(np.float64))
        cosines, others = (cosines_of(gradients, w, best) for w in (single, double))
        # What is left is the rounding of the weights.
        assert (cosines[others > COSINE / 4] >= 2 * COSINE).all(), name


@pytest.mark.parametrize("num_losses", [1, 2, 3, 4, 6, 8, 16])
def test_reaches_the_optimum_in_each_case(num_losses):
    find = oracle.min_norm_point if num_losses <= 4 else oracle.min_norm_point_of_many
    cases = [list(gradient_cases(num_losses, seed).values()) for seed in range(5)]
    gradients = np.concatenate(cases)
    for vectors, weights in zip(gradients, weights_of(gradients), strict=True):
        point, best = weights @ vectors, find(vectors)
        gap, squared_norms = point @ point - best @ best, (vectors**2).sum(axis=1)
        assert gap <= GAP * squared_norms.max()
        # Far below that where norms differ: in units of the smallest gradient.
        if squared_norms.min() > 0:
            assert gap <= 1e-4 * max(squared_norms.min(), 1e-10 * squared_norms.max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_losses", [3, 16])
def test_the_optimality_conditions_hold(num_losses):
    gradients = np.random.default_rng(0).normal(size=(BATCH, num_losses, 30))
    weights = weights_of(gradients, np.float64)
    points = np.einsum("nk,nkd->nd", weights, gradients)
    products = np.einsum("nkd,nd->nk", gradients, points)
    squared_norms = (points**2).sum(axis=1, keepdims=True)
    assert (products >= squared_norms - 1e-12).all()
    assert np.abs((products - squared_norms)[weights > 0]).max() < 1e-12


@pytest.mark.parametrize("num_losses", [4, 8, 12])
def test_a_small_gradient_beside_stationary_ones_does_not_move_anything(num_losses):
    sizes = np.array([1.0, 0.1, 0.01])
    gradients = np.zeros((3, num_losses, 13))
    gradients[:, :-1, :-1] = gradient_cases(num_losses - 1)["stationary"]
    gradients[:, -1, -1] = sizes
    points = np.einsum("nk,nkd->nd", weights_of(gradients), gradients)
    assert (np.linalg.norm(points, axis=1) <= 2e-2 * sizes).all()


@pytest.mark.parametrize("num_losses", [2, 3, 8, 12])
def test_a_power_of_two_in_all_gradients_changes_no_bit(num_losses):
    for case in ("random", "collinear", "stationary", "norms far apart"):
        gramian = gradient_cases(num_losses)[case] @ gradient_cases(num_losses)[case].T
        gramian = (gramian / gramian.max()).astype(np.float32)
        powers = 2.0 ** np.array([0, -60, -62, 60, 120], np.float32)
        weights = solved(powers[:, None, None] * gramian[None])
        np.testing.assert_array_equal(weights, weights[:1].repeat(len(powers), axis=0))
        assert weights[0].sum() > 0.99


@pytest.mark.parametrize("num_losses", [2, 3, 6, 8, 12])
def test_permuted_losses_have_permuted_weights(num_losses):
    for case in ("random", "collinear", "norms far apart"):
        gradients = gradient_cases(num_losses)[case]
        order = np.random.default_rng(0).permutation(num_losses)
        one, other = weights_of(np.stack([gradients, gradients[order]]))
        np.testing.assert_allclose(other, one[order], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("num_losses", [1, 2, 3, 8, 12])
def test_gradients_that_vanish_are_the_minimiser(num_losses):
    gradients = gradient_cases(num_losses)["random"][None].repeat(3, axis=0)
    gradients[0], gradients[1, 0], gradients[2, ::2] = 0.0, 0.0, 0.0
    norms = np.linalg.norm(gradients, axis=2)
    wanted = (norms == 0) / (norms == 0).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights_of(gradients), wanted, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("num_losses", [2, 4, 12])
def test_losses_that_do_not_count_are_not_in_the_hull(num_losses):
    gradients = gradient_cases(num_losses)["random"]
    is_counted = np.arange(num_losses) != 1
    without = gradients.copy()
    without[1] = np.nan  # what is known of it does not matter
    far_off = gradients.copy()
    far_off[1] *= 1e3  # so far that it is not in the minimiser
    unlike = weights_of(np.stack([gradients, without]), counted=np.stack([is_counted] * 2))
    np.testing.assert_array_equal(unlike[0], unlike[1])
    np.testing.assert_allclose(
        unlike[0] @ gradients,
        best_weights(gradients[is_counted]) @ (gradients[is_counted]),
        atol=1e-5,
    )
    assert unlike[0, 1] == 0.0
    none = weights_of(gradients[None], counted=np.zeros((1, num_losses), dtype=bool))
    np.testing.assert_array_equal(none, 0.0)


def test_the_closed_form_and_the_solver_agree():
    gradients = np.stack([gradient_cases(2, seed)["norms far apart"] for seed in range(30)])
    gramians = jnp.asarray(gradients @ gradients.transpose(0, 2, 1), jnp.float32)
    counted = jnp.ones((30, 2), dtype=bool)
    closed, solved = (
        jax.jit(jax.vmap(solver))(gramians, counted)
        for solver in (two_gradient_weights, least_squares_weights)
    )
    np.testing.assert_allclose(closed, solved, rtol=1e-5)


def test_enumeration_and_pivoting_agree():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 5, 6))
    parts = [rows @ rows.transpose(0, 2, 1), rng.normal(size=(500, 5, 1))]
    tables = jnp.asarray(np.concatenate(parts, axis=2), jnp.float32)
    enumerated, pivoted = (
        jax.jit(jax.vmap(solver))(DoubleFloat(tables, jnp.zeros_like(tables)))
        for solver in (lambda table: by_enumeration(table)[:, 0], by_pivoting)
    )
    scales = np.maximum(np.max(enumerated, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(enumerated / scales, pivoted / scales, atol=1e-5)
    assert len(np.unique(np.asarray(enumerated) > 0, axis=0)) == 32


# Derivatives.


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def derivatives(gramian, change, cotangent):
    """The weights, how a change of the Gramian changes them, and the same by the backward pass."""
    everyone = jnp.ones(gramian.shape[0], dtype=bool)
    weights, push = jax.linearize(lambda gramian: min_norm_weights(gramian, everyone), gramian)
    pulled = jax.linear_transpose(push, gramian)(cotangent)[0]
    return weights, push(change), jnp.sum(pulled * change)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "num_losses", [2, 3, *(pytest.param(k, marks=pytest.mark.slow) for k in (4, 5, 6, 7)), 8, 12]
)
def test_derivatives_are_those_of_finite_differences(num_losses):
    rng = np.random.default_rng(num_losses)
    gradients = rng.normal(size=(4, num_losses, 12)) * 3.0 ** rng.uniform(-1, 1, (4, num_losses, 1))
    changes = gradients @ rng.normal(size=(4, 12, num_losses))
    changes = changes + changes.transpose(0, 2, 1)
    gramians = gradients @ gradients.transpose(0, 2, 1)
    shifted = np.concatenate([gramians + width * changes for width in (-1e-5, 0, 1e-5)])
    cotangent = rng.normal(size=num_losses)
    weights, pushed, pulled = derivatives(shifted, np.tile(changes, (3, 1, 1)), cotangent)
    differences = (weights[8:] - weights[:4]) / 2e-5
    assert np.abs(differences).max() > 0.1
    np.testing.assert_allclose(pushed[4:8], differences, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(pulled, pushed @ cotangent, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_second_derivatives_are_those_of_finite_differences():
    gradients = gradient_cases(3)["random"]
    gramian, everyone = jnp.asarray(gradients @ gradients.T), jnp.ones(3, dtype=bool)
    change = jnp.asarray(gradients @ np.random.default_rng(0).normal(size=(12, 3)))
    change = change + change.T

    def weigh(step):
        return min_norm_weights(gramian + step * change, everyone)

    slopes = jax.jit(lambda step: jax.jvp(weigh, (step,), (1.0,))[1])
    differences = (slopes(1e-5) - slopes(-1e-5)) / 2e-5
    assert np.abs(differences).max() > 0.1
    np.testing.assert_allclose(jax.jit(jax.jacrev(slopes))(0.0), differences, rtol=1e-5)


@pytest.mark.parametrize("num_losses", [1, 2, 8, 12])
def test_derivatives_are_finite_wherever_weights_are(num_losses):
    signs = np.where(np.arange(num_losses) == 0, -1.0, 1.0)
    gradients = gradient_cases(num_losses)
    gramians = [gradients[case] @ gradients[case].T for case in ("zero", "collinear", "stationary")]
    gramians += [np.zeros((num_losses, num_losses)), np.ones((num_losses, num_losses))]
    gramians += [np.outer(signs, signs), 1e-37 * np.outer(signs, signs), 1e37 * np.eye(num_losses)]
    gramians = np.asarray(gramians, np.float32)
    cotangent = np.linspace(1.0, 2.0, num_losses, dtype=np.float32)
    for values in derivatives(gramians, np.ones_like(gramians), cotangent):
        assert np.isfinite(values).all()


@pytest.mark.parametrize("num_losses", [2, 3, 8])
def test_there_is_no_loop(num_losses):
    """One whose number of turns depends on data makes a GPU wait for its host."""
    everyone = jnp.ones(num_losses, dtype=bool)
    weigh = functools.partial(min_norm_weights, counted=everyone)
    for function in (weigh, jax.jacfwd(weigh), jax.jacrev(weigh)):
        program = jax.jit(function).lower(jnp.eye(num_losses)).as_text()
        assert "stablehlo.while" not in program
    beyond = functools.partial(min_norm_weights, counted=jnp.ones(9, dtype=bool))
    assert "stablehlo.while" in jax.jit(beyond).lower(jnp.eye(9)).as_text()


@pytest.mark.parametrize("num_losses", [1, 2, 4, 9])
def test_no_type_is_promoted(num_losses):
    arguments = jnp.eye(num_losses), jnp.ones(num_losses, dtype=bool)
    solvers = (min_norm_weights, functools.partial(frank_wolfe_weights, max_iterations=3))
    with jax.numpy_dtype_promotion("strict"):
        results = [jax.eval_shape(solver, *arguments) for solver in solvers]
        results.append(jax.eval_shape(jax.jacrev(min_norm_weights), *arguments))
    assert {result.dtype for result in results} == {arguments[0].dtype}
