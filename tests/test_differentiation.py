"""Derivatives of training steps, for every method, against finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MORE_METHODS
from test_properties import METHODS

import softadapt_optax as sa
from benchmarks import methods

K, STEPS = 3, 3
WITH_GRADIENTS = (*methods.ON_GRADIENTS, *methods.WITH_MORE)
STACKED_TOO = ("softadapt", "gradnorm", "mgda")  # one of each kind
QUICK = ("softadapt", "learned_weights", "gradnorm")
QUICK_PERIODS = ("mgda",)


def losses_fn(params):
    """Each head belongs to one loss, and the bias is left out of the last."""
    heads = jnp.unstack(params["heads"])
    fits = [jnp.sum((params["trunk"] * (k + 1) - heads[k]) ** 2) + params["bias"] for k in (0, 1)]
    return [*fits, jnp.sum(jnp.cosh(params["trunk"])) + heads[2] ** 2]


def end_of_training(tx, is_stacked, is_unrolled):
    """The losses' sum after some steps, as a function of how far the start is moved."""
    tx = optax.chain(tx, optax.sgd(0.02, momentum=0.5))

    def step(carry, _):
        params, state = carry
        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, losses = (grads.stack(), losses) if is_stacked else (grads, None)
        updates, state = tx.update(updates, state, params, losses=losses)
        return (optax.apply_updates(params, updates), state), None

    def end(shift):
        params = {
            "trunk": jnp.linspace(0.5, 1.5, 3) + shift * jnp.arange(3.0),
            "heads": jnp.linspace(-1.0, 1.0, 3) - shift,
            "bias": 0.3 + shift,
        }
        carry = (params, tx.init(params))
        carry, _ = jax.lax.scan(step, carry, None, STEPS, unroll=STEPS if is_unrolled else 1)
        return sum(losses_fn(carry[0]))

    return end


def slow_but_for(names, cases):
    return [case if case[0] in names else pytest.param(*case, marks=MORE_METHODS) for case in cases]


@pytest.mark.parametrize(
    ("method", "every", "is_unrolled"),
    slow_but_for(QUICK, [(name, 1, False) for name in METHODS if "frank" not in name])
    + slow_but_for(QUICK_PERIODS, [(name, 2, False) for name in WITH_GRADIENTS])
    + slow_but_for((), [(name, 1, True) for name in ("softadapt", "mgda")]),
)
@pytest.mark.usefixtures("x64")
def test_training_steps_can_be_differentiated(method, every, is_unrolled):
    tx = METHODS[method](K, every=every)
    forms = (False, True) if method in STACKED_TOO else (False,)
    ends = [end_of_training(tx, is_stacked, is_unrolled) for is_stacked in forms]
    both = lambda shift: jnp.stack([end(shift) for end in ends])
    width = 1e-5

    @jax.jit  # one program for all of it
    def derivatives(shift):
        ahead, behind = jax.lax.map(both, shift + jnp.asarray([width, -width]))
        return (ahead - behind) / (2 * width), jax.jacfwd(both)(shift), jax.jacrev(both)(shift)

    wanted, forward, backward = derivatives(jnp.zeros(()))
    np.testing.assert_allclose(forward, wanted, rtol=1e-5)
    np.testing.assert_allclose(backward, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        name if name in ("gradnorm", "mgda", "pcgrad") else pytest.param(name, marks=MORE_METHODS)
        for name in WITH_GRADIENTS
    ],
)
def test_derivatives_at_gradients_of_zero_are_finite(method):
    """A loss without a gradient, and one that is satisfied."""
    tx = METHODS[method](K)

    def h_of(x):
        losses = lambda x: [jnp.sum((x - 1) ** 2), jnp.sum(jnp.maximum(x - 5, 0)), jnp.sum(x**2)]
        _, grads = sa.value_and_component_grads(losses)(x)
        return jnp.sum(tx.update(grads, tx.init(x), x)[0])

    x = jnp.asarray([0.5, 2.0])
    for derivative in (jax.grad, jax.jacfwd):
        assert jnp.all(jnp.isfinite(jax.jit(derivative(h_of))(x)))


@pytest.mark.parametrize(
    "factory",
    [
        sa.uncertainty,
        *(
            pytest.param(f, marks=pytest.mark.slow)
            for f in (sa.learned_weights, sa.gradnorm, sa.famo)
        ),
    ],
)
@pytest.mark.parametrize(
    ("optimizer", "is_finite"),
    [
        (optax.adam(1e-2), False),
        (optax.adam(1e-2, eps_root=1e-12), True),
        (optax.sgd(1e-2), True),
    ],
)
def test_derivatives_where_the_inner_gradient_is_zero(factory, optimizer, is_finite):
    """Equal losses of 1: the page about compositions names the remedy."""
    tx = factory(2, optimizer=optimizer)

    def end(x):
        state = tx.init(x)
        for _ in range(3):
            _, grads = sa.value_and_component_grads(lambda x: list(x**2))(x)
            h, state = tx.update(grads, state, x)
            x = x - 0.1 * h
        return jnp.sum(x**2)

    assert jnp.isfinite(end(jnp.ones(2)))
    assert jnp.all(jnp.isfinite(jax.grad(end)(jnp.ones(2)))) == is_finite
