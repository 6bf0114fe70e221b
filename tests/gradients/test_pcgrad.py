"""Projections of conflicting gradients, as weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import gradient_cases, unchecked, weights_of_steps

import softadapt_optax as sa
from softadapt_optax._solvers.projections import projection_weights, random_orders

compiled_weights = jax.jit(projection_weights)


def orders_of(num_losses, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(num_losses) for _ in range(num_losses)])


@pytest.mark.parametrize("num_losses", [1, 2, 3, 8])
@pytest.mark.parametrize("case", gradient_cases(2))
def test_agrees_with_projections_of_the_vectors(case, num_losses):
    for seed in range(5):
        gradients = gradient_cases(num_losses, seed)[case]
        orders = orders_of(num_losses, seed)
        gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
        counted = jnp.ones(num_losses, dtype=bool)
        weights = np.asarray(compiled_weights(gramian, jnp.asarray(orders), counted), np.float64)
        assert (weights >= 0).all()
        wanted = oracle.projected_gradients(gradients, orders)
        scale = np.linalg.norm(gradients, axis=1).max()
        np.testing.assert_allclose(weights @ gradients, wanted.sum(axis=0), atol=1e-4 * scale)


def test_without_a_conflict_it_is_the_plain_sum():
    gradients = np.abs(np.random.default_rng(0).normal(size=(1, 4, 9)))
    weights = weights_of_steps(sa.pcgrad(4), np.ones((1, 4)), gradients)
    np.testing.assert_array_equal(weights, 1.0)
    means = weights_of_steps(sa.pcgrad(4, reduction="mean"), np.ones((1, 4)), gradients)
    np.testing.assert_array_equal(means, 0.25)


def test_each_projected_gradient_is_off_the_last_it_met():
    gradients = gradient_cases(5)["random"]
    for seed in range(10):
        orders = orders_of(5, seed)
        projected = oracle.projected_gradients(gradients, orders)
        for i in range(5):
            last = [j for j in orders[i] if j != i][-1]
            assert projected[i] @ gradients[last] >= -1e-9


def test_orders_are_permutations_and_uniform():
    keys = jax.random.split(jax.random.key(0), 3000)
    orders = np.asarray(jax.vmap(lambda key: random_orders(key, 3))(keys))
    np.testing.assert_array_equal(
        np.sort(orders, axis=-1), np.broadcast_to(np.arange(3), orders.shape)
    )
    for row in range(3):
        for order in itertools.permutations(range(3)):
            share = np.mean((orders[:, row] == order).all(axis=-1))
            assert abs(share - 1 / 6) < 5 * np.sqrt(1 / 6 * 5 / 6 / 3000)
    assert abs(np.mean((orders[:, 0] == orders[:, 1]).all(axis=-1)) - 1 / 6) < 0.04


def test_a_fresh_order_each_step_and_the_same_for_the_same_seed():
    gradients = np.broadcast_to(gradient_cases(3)["random"], (40, 3, 12))
    losses = np.ones((40, 3))
    first, again, other = (
        np.asarray(weights_of_steps(sa.pcgrad(3, seed), losses, gradients)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # With three gradients there are 2^3 outcomes, one for each set of orders.
    outcomes = oracle.projected_sums(gradients[0])
    met = set()
    for weights in first:
        distances = np.linalg.norm(weights @ gradients[0] - outcomes, axis=1)
        assert distances.min() < 1e-4
        met.add(int(np.argmin(distances)))
    assert len(met) >= 6


def test_seeds_may_be_traced():
    gradients, losses = gradient_cases(3)["random"][None], np.ones((1, 3))
    weights = jax.jit(
        jax.vmap(lambda seed: weights_of_steps(sa.pcgrad(3, seed), losses, gradients))
    )(jnp.arange(5))
    for seed in (0, 4):
        np.testing.assert_allclose(
            weights[seed], weights_of_steps(sa.pcgrad(3, seed), losses, gradients), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": 0.5}, TypeError, "`seed` should be an integer, got float 0.5"),
        ({"seed": jax.random.key(0)}, TypeError, "`seed` should be an integer, got"),
        (
            {"reduction": "max"},
            ValueError,
            '`reduction` should be one of "sum", "mean", got \'max\'',
        ),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        unchecked(sa.pcgrad)(2, **options)
