"""Counts of the compiled step: they are the same on every machine, so they can be tests."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import JAX_VERSION, PROBLEMS, counts_of_a_cpu, training_step

import softadapt_optax as sa
from benchmarks import methods

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


@functools.cache
def compiled_plain_step():
    params = mlp_params()
    return compiled(plain_step, params, optax.adam(1e-3).init(params))


OPTIONS = {
    "default": {},
    "all": {"rate": "relative", "normalized": True, "loss_weighted": True, "history": 50},
    "every": {"every": 10, "priorities": jnp.asarray([1.0, 2.0, 3.0])},
}


@counts_of_a_cpu
@pytest.mark.parametrize("losses_fn", [mlp_losses, mlp_losses_as_an_array])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_has_the_flops_and_the_memory_of_the_plain_step(name, losses_fn):
    params, plain = mlp_params(), compiled_plain_step()
    tx = optax.chain(sa.softadapt(3, **OPTIONS[name]), optax.adam(1e-3))
    ours = compiled(training_step(tx, losses_fn), params, tx.init(params))
    assert ours.cost_analysis()["flops"] <= 1.01 * plain.cost_analysis()["flops"]
    # The plain step has no weights: theirs are a few vectors of K numbers.
    few_vectors = 1024
    plain_bytes = plain.memory_analysis().temp_size_in_bytes
    assert plain_bytes > 100 * few_vectors
    assert ours.memory_analysis().temp_size_in_bytes <= plain_bytes + few_vectors


@counts_of_a_cpu
def test_stacked_gradients_cost_more_so_the_count_above_can_fail():
    params, plain = mlp_params(), compiled_plain_step()
    tx = optax.chain(sa.softadapt(3), optax.adam(1e-3))

    def stacked_step(params, opt_state):
        losses, grads = sa.value_and_component_grads(mlp_losses)(params)
        updates, opt_state = tx.update(grads.stack(), opt_state, params, losses=losses)
        return optax.apply_updates(params, updates), opt_state, losses

    stacked = compiled(stacked_step, params, tx.init(params))
    assert stacked.cost_analysis()["flops"] > 1.5 * plain.cost_analysis()["flops"]


# Methods that look at gradients.

K = 4
TRUNK = {"trunk": True, "heads": False}
GRADIENT_METHODS = {name: functools.partial(methods.make, name) for name in methods.ON_GRADIENTS}
# One that asks for norms and one that asks for the Gramian; the others ask for the same.
each_gradient_method = pytest.mark.parametrize(
    "method",
    [
        name
        if name in ("normalized_gradients", "mgda")
        else pytest.param(name, marks=(pytest.mark.slow, pytest.mark.once))
        for name in GRADIENT_METHODS
    ],
)


@functools.cache
def plain_flops(kind):
    losses_fn, params = PROBLEMS[kind](K, width=WIDTH, batch=BATCH)

    def plain_step(params, opt_state):
        summed = lambda params: sum(jax.tree.leaves(losses_fn(params)))
        loss, grads = jax.value_and_grad(summed)(params)
        updates, opt_state = optax.adam(1e-3).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    plain = compiled(plain_step, params, optax.adam(1e-3).init(params))
    return plain.cost_analysis()["flops"]


def flop_ratio(kind, weighting):
    losses_fn, params = PROBLEMS[kind](K, width=WIDTH, batch=BATCH)
    tx = optax.chain(weighting, optax.adam(1e-3))
    ours = compiled(training_step(tx, losses_fn), params, tx.init(params))
    return ours.cost_analysis()["flops"] / plain_flops(kind)


@counts_of_a_cpu
@each_gradient_method
def test_flops_of_losses_with_one_output(method):
    """One forward pass and K backward passes; their gradients are formed once."""
    ratio = flop_ratio("shared output", GRADIENT_METHODS[method](K))
    assert 0.8 * (1 + 2 * K) / 3 < ratio <= 1.05 * (1 + 2 * K) / 3


@counts_of_a_cpu
@each_gradient_method
def test_flops_of_losses_with_batches_of_their_own(method):
    """Plain training's: no gradient of one loss passes through the batch of another."""
    assert flop_ratio("own batches", GRADIENT_METHODS[method](K)) <= 1.02


@counts_of_a_cpu
@each_gradient_method
def test_flops_of_a_trunk_with_heads(method):
    """The trunk's backward pass K times and each head's once.

    In units of one product of a batch with a square matrix: two in the trunk, of which the first
    has no gradient with respect to its input, and one in each head.
    """
    forward, trunk_backward, heads_backward = 2 + K, 3, 2 * K
    plain = forward + trunk_backward + heads_backward
    bound = (forward + K * trunk_backward + heads_backward) / plain
    ratio = flop_ratio("trunk and heads", GRADIENT_METHODS[method](K, shared=TRUNK))
    assert 0.98 * bound <= ratio <= 1.02 * bound


@counts_of_a_cpu
def test_norms_on_the_last_shared_layer_are_almost_free():
    last = [False, False, True]
    assert flop_ratio("shared output", sa.gradnorm(K, shared=last)) <= 1.02


# The lean form, and many losses.


def deep_losses(num_losses, layers=12, width=256, batch=128):
    keys = jax.random.split(jax.random.key(0), layers)
    params = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys]

    def losses_fn(params):
        y = jnp.ones((batch, width))
        for layer in params:
            y = jnp.tanh(y @ layer)
        return [jnp.mean((y[:, k] - 1.0) ** 2) for k in range(num_losses)]

    return losses_fn, params


def step_of(losses_fn, weighting):
    return training_step(optax.chain(weighting, optax.adam(1e-3)), losses_fn)


def laid_out(layout, layers=12, width=256, batch=128):
    """The same network with its matrices in one array, or one matrix in the place of all."""
    _, matrices = deep_losses(K, layers, width)
    params = matrices[0] if layout == "one matrix" else jnp.stack(matrices)

    def losses_fn(params):
        y = jnp.ones((batch, width))
        if layout == "scanned":
            y, _ = jax.lax.scan(lambda y, layer: (jnp.tanh(y @ layer), None), y, params)
        else:
            for index in range(layers):
                y = jnp.tanh(y @ (params[index] if layout == "indexed" else params))
        return [jnp.mean((y[:, k] - 1.0) ** 2) for k in range(K)]

    return losses_fn, params


def bytes_of_steps(weightings, problem=None):
    losses_fn, params = deep_losses(K) if problem is None else problem
    found = []
    for weighting in weightings:
        opt_state = optax.chain(weighting, optax.adam(1e-3)).init(params)
        program = compiled(step_of(losses_fn, weighting), params, opt_state)
        found.append(program.memory_analysis().temp_size_in_bytes)
    return found


@functools.cache
def plain_bytes():
    (plain,) = bytes_of_steps([sa.fixed_weights([1.0] * K)])
    return plain


@counts_of_a_cpu
@each_gradient_method
def test_the_lean_form_of_a_deep_network_takes_little_memory(method):
    make = GRADIENT_METHODS[method]
    lean, kept = bytes_of_steps([make(K, lean=True), make(K)])
    # The XLA of newer versions keeps 1 - tanh^2 of each layer for all passes, which older ones
    # compute again in each: half of the parameters' memory here, where plain takes 0.7 of it.
    # Elementwise results behind a checkpoint, computed again by each pass, make 2.24 of the 2.56.
    most, share = (2, 0.4) if JAX_VERSION < (0, 11) else (2.6, 0.45)
    if method == "lr_annealing" and not (0, 7) < JAX_VERSION < (0, 11):
        most += 0.2  # sizes of entries are arrays of their own there, of some layers at a time
    assert lean <= most * plain_bytes()
    assert lean < share * kept


LAYOUTS = {
    "scanned": lambda: laid_out("scanned"),
    "indexed": lambda: laid_out("indexed"),
    "one matrix": lambda: laid_out("one matrix"),
    "large batch": lambda: deep_losses(K, batch=1024),
}


@counts_of_a_cpu
@pytest.mark.parametrize(
    "layout",
    [
        "scanned",
        *(pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS if name != "scanned"),
    ],
)
def test_the_lean_form_takes_no_more_memory_than_the_other(layout):
    """Where another backward pass would take more than it frees the gradients are kept."""
    lean, kept = bytes_of_steps([sa.mgda(K, lean=True), sa.mgda(K)], LAYOUTS[layout]())
    assert lean <= kept


def test_the_program_grows_with_the_losses_and_not_with_their_pairs():
    def length(num_losses):
        losses_fn, params = deep_losses(num_losses, layers=2, width=8, batch=8)
        tx = optax.chain(sa.mgda(num_losses), optax.adam(1e-3))
        lowered = jax.jit(training_step(tx, losses_fn)).lower(params, tx.init(params))
        return len(lowered.as_text().splitlines())

    assert length(48) < 2.5 * length(24)
