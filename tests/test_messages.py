"""What is said of mistakes in the loss function, the state and the arguments of `update`."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import quadratic_losses, quadratic_params

import softadapt_optax as sa


def evaluated(losses_fn):
    return sa.value_and_component_grads(losses_fn)(jnp.ones(3))


@pytest.mark.parametrize(
    ("losses_fn", "error", "message"),
    [
        (lambda x: {"a": jnp.sum(x), "b": 0}, TypeError, "switched off by writing 0; write 0.0"),
        (lambda x: {"a": jnp.sum(x), "b": 3}, TypeError, "a count or an accuracy"),
        (lambda x: {"a": jnp.sum(x), "b": "hello"}, TypeError, r"a number, got 'hello' at \['b'\]"),
        (lambda x: {"a": x}, ValueError, "a loss not averaged over its batch"),
    ],
)
def test_what_a_loss_function_should_return(losses_fn, error, message):
    with pytest.raises(error, match=message):
        evaluated(losses_fn)


def test_losses_and_aux_without_has_aux():
    _, grads = evaluated(lambda x: ({"fit": jnp.sum(x**2), "size": jnp.sum(x)}, jnp.sum(x)))
    with pytest.raises(ValueError, match=r"`\(losses, aux\)` returned without `has_aux=True`"):
        sa.softadapt(2).update(grads, sa.softadapt(2).init(None))


def test_a_state_that_was_cast():
    tx = sa.softadapt(3)
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    cast = optax.tree.cast(tx.init(None), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"dtypes were changed, by `optax\.tree\.cast`"):
        tx.update(grads, cast)


def test_lazy_gradients_as_the_gradient_of_a_line_search():
    tx = optax.chain(sa.softadapt(3), optax.lbfgs())
    params = quadratic_params()
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    with pytest.raises(TypeError, match="`grad` should be arrays like the parameters, got `Compo"):
        tx.update(grads, tx.init(params), params, value=1.0, grad=grads, value_fn=None)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda grads: jax.tree.map(jnp.sum, grads), "a function of trees"),
        (lambda grads: jax.jit(lambda g: g)(grads), "cross the border of `jit`"),
        (lambda grads: jax.vmap(lambda g: g)(grads), "cross the border of `jit`, `vmap`"),
        (lambda grads: jax.lax.scan(lambda c, _: (c, None), grads, None, 2), "cross the border"),
        (lambda grads: optax.scale(0.1).update(grads, optax.EmptyState()), "is missing, or"),
    ],
)
def test_lazy_gradients_where_arrays_are_wanted(use, message):
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    for is_jitted in (False, True):
        with pytest.raises(TypeError, match=message):
            jax.jit(lambda: use(grads))() if is_jitted else use(grads)
