"""Constant weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quadratic_losses, quadratic_params, training_step

import softadapt_optax as sa


@pytest.mark.parametrize(
    "weights", [[0.5, 2.0], np.array([0.5, 2.0]), {"b": 2.0, "a": 0.5}, jnp.asarray([0.5, 2.0])]
)
def test_weights_are_used_as_they_are_from_the_first_step(weights):
    tx = sa.fixed_weights(weights)
    np.testing.assert_allclose(sa.loss_weights(tx.init(None)), [0.5, 2.0])
    state = tx.init(None)
    for a, b in ([1.0, 5.0], [np.nan, 1.0], [1e30, 1e-30]):
        losses = {"a": a, "b": b} if isinstance(weights, dict) else jnp.asarray([a, b])
        _, state = tx.update(jnp.zeros(2), state, losses=losses)
        np.testing.assert_allclose(sa.loss_weights(state), [0.5, 2.0])


def test_equal_weights_are_the_plain_sum():
    tx = optax.chain(sa.fixed_weights([1.0] * 3), optax.adam(0.1))
    plain = optax.adam(0.1)
    params = plain_params = quadratic_params()
    opt_state, plain_state = tx.init(params), plain.init(params)
    step = jax.jit(training_step(tx))
    for _ in range(20):
        params, opt_state, _ = step(params, opt_state)
        grads = jax.grad(lambda p: sum(quadratic_losses(p).values()))(plain_params)
        updates, plain_state = plain.update(grads, plain_state)
        plain_params = optax.apply_updates(plain_params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params, plain_params)


def test_vmap_over_the_weights_is_a_grid_search():
    grid = jnp.asarray([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.1, 2.0, 5.0]])

    def end(weights):
        tx = optax.chain(sa.fixed_weights(weights), optax.sgd(0.05))
        params = quadratic_params()
        carry = (params, tx.init(params))
        step = training_step(tx)
        return jax.lax.scan(lambda c, _: (step(*c)[:2], None), carry, None, 30)[0][0]

    together = jax.vmap(end)(grid)
    for index, weights in enumerate(grid):
        one = end(weights)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[index], b, rtol=1e-5),
            together,
            one,
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], "`weights` should be finite and >= 0"),
        ([0.0, 0.0], "`weights` should not all be zero"),
        ([1.0, float("inf")], "`weights` should be finite and >= 0"),
        ([], r"`weights` should be an array of shape \[K\]"),
        (np.ones((2, 2)), r"`weights` should be an array of shape \[K\]"),
        (2, "`weights` should be a number for each loss, got the single number 2. Likely"),
        (0.5, "for one loss alone it is \\[0.5\\]"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        sa.fixed_weights(weights)
