"""The point of smallest norm in the hull of the gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases, trained_gradients, unchecked, weights_of_steps

import softadapt_optax as sa
from softadapt_optax._solvers.min_norm import (
    active_set_weights,
    frank_wolfe_weights,
    two_gradient_weights,
)

# The design asks for a gap of at most 1e-5 of the largest diagonal entry of the Gramian.
GAP = 1e-5


def solver_of(num_losses):
    return two_gradient_weights if num_losses == 2 else active_set_weights


@functools.cache
def compiled_solver(num_losses):
    solver = solver_of(num_losses)
    return jax.jit(lambda gramian: solver(gramian, jnp.ones(num_losses, dtype=bool)))


def squared_norm_and_optimum(gradients):
    """Of our point, from a float32 Gramian, and of the best point, both in float64."""
    num_losses = len(gradients)
    gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
    weights = np.asarray(compiled_solver(num_losses)(gramian), np.float64)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
    point = weights @ gradients
    find = oracle.min_norm_point if num_losses <= 6 else oracle.min_norm_point_of_many
    best = find(gradients)
    return point @ point, best @ best


@pytest.mark.parametrize("num_losses", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("case", gradient_cases(2))
def test_reaches_the_optimum(case, num_losses):
    for seed in range(20 if num_losses < 6 else 5):
        gradients = gradient_cases(num_losses, seed)[case]
        ours, optimum = squared_norm_and_optimum(gradients)
        largest = (gradients**2).sum(axis=1).max()
        assert ours - optimum <= GAP * largest
        # Far below that where norms differ: in units of the smallest gradient.
        smallest = (gradients**2).sum(axis=1).min()
        if smallest > 0:
            assert ours - optimum <= 10 * GAP * max(smallest, 1e-10 * largest)


def fans(num_losses, dimensions, count=400):
    """Gradients a small angle apart, some turned round: nearly dependent, yet each matters."""
    rng = np.random.default_rng(num_losses * dimensions)
    width = 10.0 ** rng.uniform(-4, -0.5, size=(count, 1, 1))
    apart = width * rng.normal(size=(count, num_losses, dimensions))
    signs = np.where(rng.random((count, num_losses, 1)) < 0.2, -1.0, 1.0)
    return signs * (apart + rng.normal(size=(count, 1, dimensions)))


@pytest.mark.parametrize(
    ("num_losses", "dimensions"), [(3, 2), (4, 3), (8, 3), (8, 4), (16, 3), (32, 5)]
)
def test_reaches_the_optimum_on_fans(num_losses, dimensions):
    for gradients in fans(num_losses, dimensions):
        ours, optimum = squared_norm_and_optimum(gradients)
        assert ours - optimum <= GAP * (gradients**2).sum(axis=1).max()


def test_a_gradient_nearly_parallel_to_others_is_not_left_out():
    angles = np.deg2rad([1.5, 6.5, 0.0])
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    weights = weights_of_steps(sa.mgda(3), np.ones((1, 3)), gradients[None])[0]
    np.testing.assert_allclose(weights, [0.0, 0.5, 0.5], atol=0.02)


@pytest.mark.parametrize("kind", ["shared output", "own batches", "trunk and heads"])
@pytest.mark.parametrize("num_losses", [2, 4, 8])
def test_reaches_the_optimum_on_trained_networks(kind, num_losses):
    """Random Gramians mislead: those of networks are nearly collinear or nearly stationary."""
    for gradients in trained_gradients(kind, num_losses):
        ours, optimum = squared_norm_and_optimum(gradients)
        assert ours - optimum <= GAP * (gradients**2).sum(axis=1).max()


def test_the_trained_gradients_are_hard():
    cosines, ratios = [], []
    for gradients in trained_gradients("shared output", 4):
        norms = np.linalg.norm(gradients, axis=1)
        cosine = gradients @ gradients.T / norms[:, None] / norms[None, :]
        cosines += list(np.abs(cosine[np.triu_indices(4, 1)]))
        ratios.append(norms.max() / norms.min())
    assert max(cosines) > 0.99
    assert max(ratios) > 10


@pytest.mark.parametrize("normalization", [None, "norm", "loss", "both"])
@pytest.mark.parametrize("num_losses", [2, 3, 5])
def test_h_descends_in_every_loss(normalization, num_losses):
    tx = sa.mgda(num_losses, normalization)
    update = jax.jit(lambda stacked, losses: tx.update(stacked, tx.init(None), losses=losses)[0])
    for seed in range(10):
        losses = np.random.default_rng(seed).uniform(0.1, 5.0, num_losses)
        for case in ("random", "collinear", "norms far apart", "identical"):
            gradients = gradient_cases(num_losses, seed)[case]
            h = np.asarray(
                update(jnp.asarray(gradients, jnp.float32), jnp.asarray(losses)), np.float64
            )
            norms = np.linalg.norm(gradients, axis=1)
            scales = {None: 1.0, "norm": norms, "loss": losses, "both": norms * losses}
            products = (gradients @ h) / scales[normalization]
            size = np.linalg.norm(h)
            longest = np.max(norms / scales[normalization])
            assert (products >= h @ h - 1e-5 * size * longest - 1e-10).all()


def test_pareto_stationary_points_stop_it():
    for num_losses in (2, 3, 5, 8):
        gradients = gradient_cases(num_losses)["stationary"]
        ours, _ = squared_norm_and_optimum(gradients)
        assert ours <= 1e-9 * (gradients**2).sum(axis=1).max()


def test_the_closed_form_and_the_solver_agree():
    both = jnp.ones(2, dtype=bool)
    for seed in range(30):
        gradients = gradient_cases(2, seed)["norms far apart"]
        gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
        np.testing.assert_allclose(
            two_gradient_weights(gramian, both), active_set_weights(gramian, both), rtol=1e-4
        )


@pytest.mark.parametrize("num_losses", [2, 3, 5])
def test_losses_that_do_not_count_are_not_in_the_hull(num_losses):
    gradients = gradient_cases(num_losses)["random"]
    gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
    counted = jnp.arange(num_losses) != 1
    kept = [k for k in range(num_losses) if k != 1]
    few = gramian[jnp.asarray(kept)][:, jnp.asarray(kept)]
    for solver in (solver_of(num_losses), functools.partial(frank_wolfe_weights, max_iterations=9)):
        weights = solver(gramian, counted)
        assert weights[1] == 0.0
        alone = solver if solver is not two_gradient_weights else active_set_weights
        np.testing.assert_allclose(
            weights[jnp.asarray(kept)], alone(few, jnp.ones(len(kept), dtype=bool)), rtol=1e-5
        )


def test_frank_wolfe_stops_before_the_optimum_and_never_far_off():
    gradients = gradient_cases(4)["random"]
    gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
    everyone = jnp.ones(4, dtype=bool)
    best = oracle.min_norm_point(gradients)
    gaps = []
    for iterations in (1, 10, 1000):
        point = np.asarray(frank_wolfe_weights(gramian, everyone, iterations)) @ gradients
        gaps.append(point @ point - best @ best)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.05 * np.trace(gradients @ gradients.T)


@pytest.mark.parametrize("solver", ["active_set", "frank_wolfe"])
def test_the_scale_of_all_gradients_does_not_matter(solver):
    gradients = gradient_cases(4)["random"]
    rows = [
        weights_of_steps(sa.mgda(4, solver=solver), np.ones((1, 4)), scale * gradients[None])[0]
        for scale in (1e-12, 1.0, 1e12)
    ]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3)
    np.testing.assert_allclose(rows[2], rows[1], rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_float64_reaches_further():
    gradients = gradient_cases(4)["random"]
    weights = active_set_weights(jnp.asarray(gradients @ gradients.T), jnp.ones(4, dtype=bool))
    assert weights.dtype == jnp.float64
    point, best = np.asarray(weights) @ gradients, oracle.min_norm_point(gradients)
    np.testing.assert_allclose(point, best, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "l2"}, '`normalization` should be one of None, "norm", "loss", "both"'),
        ({"solver": "qp"}, '`solver` should be one of "active_set", "frank_wolfe", got \'qp\''),
        ({"max_iterations": 0}, "`max_iterations` should be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(sa.mgda)(3, **options)
