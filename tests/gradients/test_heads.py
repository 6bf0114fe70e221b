"""A trunk with heads, and losses on batches of their own: gradients that vanish in places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from helpers import heads_problem, own_batches_problem, training_step, unchecked

import softadapt_optax as sa

K = 3
TRUNK = {"trunk": True, "heads": False}

# The weights of the first step from the gradients of the trunk alone, [K, parameters].
TRUNK_WEIGHTS = {
    "gradnorm": lambda gradients: np.ones(K),
    "normalized_gradients": lambda gradients: 1 / np.linalg.norm(gradients, axis=1),
}


@functools.cache
def both_forms(method, lean=False, as_function=False):
    losses_fn, params = heads_problem(K)
    _, grads = sa.value_and_component_grads(losses_fn)(params)
    shared = (lambda params: TRUNK) if as_function else TRUNK
    tx = getattr(sa, method)(K, shared=shared, lean=lean)

    @jax.jit
    def steps(params, state):
        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        lazy = tx.update(grads, state, params)
        return lazy, tx.update(grads.stack(), state, params, losses=losses)

    (lazy, state), (stacked, _) = steps(params, tx.init(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), lazy, stacked)
    return grads, lazy, state


def lazily(losses_fn, params):
    return sa.value_and_component_grads(losses_fn)(params)[1]


def flat_trunk(grads):
    leaves = jax.tree.leaves(grads.stack()["trunk"])
    return np.concatenate([np.asarray(leaf, np.float64).reshape(K, -1) for leaf in leaves], axis=1)


def assert_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), first, second)


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("method", [pytest.param("pcgrad", marks=pytest.mark.slow), "mgda"])
def test_heads_get_the_plain_sum_and_the_trunk_the_weighted_one(method, as_function):
    grads, h, state = both_forms(method, as_function=as_function)
    assert_close(h["heads"], grads.combine(np.ones(K))["heads"])
    assert_close(h["trunk"], grads.combine(sa.loss_weights(state))["trunk"])
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(h["trunk"])])
    if method == "mgda":
        np.testing.assert_allclose(flat, oracle.min_norm_point(flat_trunk(grads)), atol=1e-5)
    else:
        outcomes = oracle.projected_sums(flat_trunk(grads))
        assert np.abs(flat - outcomes).max(axis=1).min() < 1e-5


@pytest.mark.parametrize("method", TRUNK_WEIGHTS)
def test_methods_that_weight_the_losses_weight_their_heads_too(method):
    grads, h, state = both_forms(method)
    wanted = TRUNK_WEIGHTS[method](flat_trunk(grads))
    np.testing.assert_allclose(sa.loss_weights(state), wanted, rtol=1e-4)
    assert_close(h, grads.combine(wanted))


def test_heads_of_absent_losses_and_priorities():
    losses_fn, params = heads_problem(K)
    _, grads = sa.value_and_component_grads(losses_fn)(params)
    for every in (1, 2):
        tx = sa.mgda(K, shared=TRUNK, priorities=jnp.asarray([1.0, 2.0, 0.5]), every=every)
        present = {"head 0": True, "head 1": False, "head 2": True}
        h, state = jax.jit(
            lambda params, state, tx=tx: tx.update(
                lazily(losses_fn, params), state, params, present=present
            )
        )(params, tx.init(params))
        assert_close(h["heads"], grads.combine([1.0, 0.0, 0.5])["heads"])
        assert_close(h["trunk"], grads.combine(sa.loss_weights(state))["trunk"])
        assert sa.loss_weights(state)[1] == 0.0


def test_gradients_that_vanish_outside_of_their_part():
    losses_fn, params = heads_problem(K)
    stacked = lazily(losses_fn, params).stack()["heads"]
    for k, name in enumerate(sorted(stacked)):
        for leaf in jax.tree.leaves(stacked[name]):
            others = [j for j in range(K) if j != k]
            np.testing.assert_array_equal(leaf[jnp.asarray(others)], 0.0)
            assert jnp.any(leaf[k] != 0)


@pytest.mark.parametrize(
    ("problem", "every"),
    [
        (heads_problem, 4),
        (own_batches_problem, 1),
        pytest.param(heads_problem, 1, marks=pytest.mark.slow),
        pytest.param(own_batches_problem, 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("method", ["gradnorm", "normalized_gradients", "pcgrad", "mgda"])
def test_every_method_trains(method, problem, every):
    losses_fn, params = problem(K)
    shared = TRUNK if problem is heads_problem else None
    tx = optax.chain(getattr(sa, method)(K, shared=shared, every=every), optax.adam(3e-3))
    step = training_step(tx, losses_fn)

    @jax.jit
    def train(carry):
        def body(carry, _):
            *carry, losses = step(*carry)
            return tuple(carry), jnp.stack(jax.tree.leaves(losses))

        return jax.lax.scan(body, carry, length=150)[1]

    losses = train((params, tx.init(params)))
    assert jnp.all(jnp.isfinite(losses))
    assert losses[-1].sum() < 0.8 * losses[0].sum()


@pytest.mark.parametrize("mask", [{"trunk": True}, {"trunk": True, "head": False}, [True, False]])
def test_a_mask_of_another_structure_is_named(mask):
    losses_fn, params = heads_problem(K)
    tx = sa.mgda(K, shared=mask)
    with pytest.raises(ValueError, match="such as `shared`, should be a pytree of bools with the"):
        tx.update(lazily(losses_fn, params), tx.init(params), params)


def test_a_mask_of_nothing_is_named():
    losses_fn, params = heads_problem(K)
    tx = sa.mgda(K, shared={"trunk": False, "heads": False})
    with pytest.raises(ValueError, match="`shared` should select at least one parameter, got"):
        tx.update(lazily(losses_fn, params), tx.init(params), params)


@pytest.mark.parametrize(
    "mask",
    [
        "trunk",
        {"trunk": "yes", "heads": "no"},
        {"trunk": np.ones(2, dtype=bool), "heads": False},
        1,
        lambda params: None,
        lambda params: params["trunk"],
    ],
)
def test_a_mask_of_something_else_is_named(mask):
    losses_fn, params = heads_problem(K)
    tx = unchecked(sa.balance)(
        sa.Weighting(lambda k: (), lambda c, s: (jnp.diagonal(c.gramian()), s)), K, shared=mask
    )
    with pytest.raises(TypeError, match="`shared` should be True or False for each parameter or"):
        tx.update(lazily(losses_fn, params), tx.init(params), params)


@pytest.mark.parametrize("method", ["gradnorm", "normalized_gradients", "pcgrad", "mgda"])
def test_the_lean_form_gives_the_same(method):
    _, kept, kept_state = both_forms(method)
    _, lean, lean_state = both_forms(method, lean=True)
    assert_close(kept, lean)
    np.testing.assert_allclose(
        sa.loss_weights(kept_state), sa.loss_weights(lean_state), rtol=1e-4, atol=1e-6
    )
