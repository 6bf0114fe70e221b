"""Counts of the compiled step: they are the same on every machine, so they can be tests."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import training_step

import softadapt_optax as sa

WIDTH, BATCH = 256, 512


def mlp_losses(params):
    y = jnp.ones((BATCH, WIDTH))
    for layer in params:
        y = jnp.tanh(y @ layer)
    return {"square": jnp.mean(y**2), "size": jnp.mean(jnp.abs(y)), "mean": jnp.mean(y) ** 2}


def mlp_losses_as_an_array(params):
    return jnp.stack(jax.tree.leaves(mlp_losses(params)))


def mlp_params():
    return [jnp.eye(WIDTH) for _ in range(3)]


def compiled(step, *args):
    return jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()


def plain_step(params, opt_state):
    def summed(params):
        losses = mlp_losses(params)
        return sum(jax.tree.leaves(losses)), losses

    (_, losses), grads = jax.value_and_grad(summed, has_aux=True)(params)
    updates, opt_state = optax.adam(1e-3).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


OPTIONS = {
    "default": {},
    "all": {"rate": "relative", "normalized": True, "loss_weighted": True, "history": 50},
    "every": {"every": 10, "priorities": [1.0, 2.0, 3.0]},
}


@pytest.mark.parametrize("losses_fn", [mlp_losses, mlp_losses_as_an_array])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_has_the_flops_and_the_memory_of_the_plain_step(name, losses_fn):
    params = mlp_params()
    plain = compiled(plain_step, params, optax.adam(1e-3).init(params))
    tx = optax.chain(sa.softadapt(3, **OPTIONS[name]), optax.adam(1e-3))
    ours = compiled(training_step(tx, losses_fn), params, tx.init(params))
    assert ours.cost_analysis()["flops"] <= 1.01 * plain.cost_analysis()["flops"]
    # The plain step has no weights: theirs are a few vectors of K numbers.
    few_vectors = 1024
    plain_bytes = plain.memory_analysis().temp_size_in_bytes
    assert plain_bytes > 100 * few_vectors
    assert ours.memory_analysis().temp_size_in_bytes <= plain_bytes + few_vectors


def test_stacked_gradients_cost_more_so_the_count_above_can_fail():
    params = mlp_params()
    plain = compiled(plain_step, params, optax.adam(1e-3).init(params))
    tx = optax.chain(sa.softadapt(3), optax.adam(1e-3))

    def stacked_step(params, opt_state):
        losses, grads = sa.value_and_component_grads(mlp_losses)(params)
        updates, opt_state = tx.update(grads.stack(), opt_state, params, losses=losses)
        return optax.apply_updates(params, updates), opt_state, losses

    stacked = compiled(stacked_step, params, tx.init(params))
    assert stacked.cost_analysis()["flops"] > 1.5 * plain.cost_analysis()["flops"]
