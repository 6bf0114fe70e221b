"""The point of smallest norm in the hull of the gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases, trained_gradients, unchecked, weights_of_steps

import softadapt_optax as sa

# The design asks for a gap of at most 1e-5 of the largest diagonal entry of the Gramian.
GAP = 1e-5


def test_a_gradient_nearly_parallel_to_others_is_not_left_out():
    angles = np.deg2rad([1.5, 6.5, 0.0])
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    weights = weights_of_steps(sa.mgda(3), np.ones((1, 3)), gradients[None])[0]
    np.testing.assert_allclose(weights, [0.0, 0.5, 0.5], atol=0.02)


@functools.cache
def compiled_h(num_losses):
    tx = sa.mgda(num_losses)
    return jax.jit(
        lambda stacked: tx.update(stacked, tx.init(None), losses=jnp.ones(num_losses))[0]
    )


KINDS = ("shared output", "own batches", "trunk and heads")
QUICK_NETWORKS = ((2, "shared output"), (4, "trunk and heads"))


@pytest.mark.parametrize(
    ("num_losses", "kind"),
    [
        pytest.param(*case, marks=() if case in QUICK_NETWORKS else pytest.mark.slow)
        for case in itertools.product((2, 4, 8), KINDS)
    ],
)
def test_reaches_the_optimum_on_trained_networks(kind, num_losses):
    """Random Gramians mislead: those of networks are nearly collinear or nearly stationary."""
    find = oracle.min_norm_point if num_losses <= 4 else oracle.min_norm_point_of_many
    for gradients in trained_gradients(kind, num_losses):
        h = np.asarray(compiled_h(num_losses)(jnp.asarray(gradients, jnp.float32)), np.float64)
        best = find(gradients)
        assert h @ h - best @ best <= GAP * (gradients**2).sum(axis=1).max()


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


@pytest.mark.parametrize("num_losses", [2, 3, 5, 8])
def test_pareto_stationary_points_stop_it(num_losses):
    gradients = gradient_cases(num_losses)["stationary"]
    h = np.asarray(compiled_h(num_losses)(jnp.asarray(gradients, jnp.float32)))
    assert h @ h <= 1e-9 * (gradients**2).sum(axis=1).max()


@pytest.mark.parametrize("solver", ["active_set", "frank_wolfe"])
def test_the_scale_of_all_gradients_does_not_matter(solver):
    gradients = gradient_cases(4)["random"]
    rows = [
        weights_of_steps(sa.mgda(4, solver=solver), np.ones((1, 4)), scale * gradients[None])[0]
        for scale in (1e-12, 1.0, 1e12)
    ]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3)
    np.testing.assert_allclose(rows[2], rows[1], rtol=1e-3)


@pytest.mark.parametrize("normalization", ["loss", "both"])
@pytest.mark.parametrize("num_losses", [2, 3])
def test_tiny_losses_are_as_good_as_others(normalization, num_losses):
    """Squares of the scales would be out of range."""
    gradients = np.array([[3.0, 0.0], [0.0, 4.0], [5.0, 5.0]])[:num_losses]
    tx = sa.mgda(num_losses, normalization)
    rows = [
        scale * weights_of_steps(tx, np.full((1, num_losses), scale), gradients[None])[0]
        for scale in (1.0, 8e-20, 1e-25)
    ]
    wanted = {"loss": [0.64, 0.36, 0.0], "both": [1 / 6, 1 / 8, 0.0]}[normalization]
    np.testing.assert_allclose(rows, [wanted[:num_losses]] * 3, rtol=1e-5)


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
