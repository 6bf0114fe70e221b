"""Losses and gradients that are not finite, at random, for every method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quick_for

import softadapt_optax as sa
from benchmarks import faults, methods

STEPS, SEEDS = 200, 2
ONE_OF_EACH_KIND = (
    "realtime_loss",
    "softadapt",
    "softadapt, every=5",
    "learned_weights",
    "gradnorm",
    "mgda",
    "mgda, every=5",
)


def test_those_of_each_kind_are_there():
    assert set(ONE_OF_EACH_KIND) < set(faults.METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("method", quick_for(ONE_OF_EACH_KIND, faults.METHODS))
def test_the_state_stays_finite_and_training_recovers(method):
    found = faults.train_all(method, STEPS, SEEDS)
    unharmed = found["none", "both"]["last_loss"]
    for case, result in found.items():
        assert np.all(result["state_is_finite"]), case
        assert np.all(result["params_are_finite"]), case
        assert np.all(result["weights"] >= 0) or method in methods.SIGNED, case
        assert np.all(result["last_loss"] < result["first_loss"]), case
        if case[0] in ("none", "1 %"):
            assert np.all(result["last_loss"] < 1.25 * unharmed), case


@pytest.mark.parametrize("pattern", faults.PATTERNS)
@pytest.mark.parametrize("kind", faults.KINDS)
def test_the_faults_are_where_they_should_be(pattern, kind):
    """A test of the tests: without faults in them they would show nothing."""
    given = faults.faults(pattern, kind, 1000, np.random.default_rng(0))
    shares = [np.mean(~np.isfinite(part), axis=0) for part in given]
    wanted = {
        "none": [0, 0, 0],
        "1 %": [0.01] * 3,
        "10 %": [0.1] * 3,
        "bursts": [0.2] * 3,
        "one for ever": [0.75, 0, 0],
    }[pattern]
    for share, kinds in zip(shares, (("loss", "both"), ("gradient", "both")), strict=True):
        np.testing.assert_allclose(share, np.asarray(wanted) * (kind in kinds), atol=0.02)


def test_a_fault_reaches_the_loss_or_its_gradient():
    fault = jax.grad(lambda x, f, g: faults.with_fault(x**2, f, g))
    assert fault(1.0, 0.0, 0.0) == 2.0
    assert fault(1.0, jnp.nan, 0.0) == 2.0
    assert jnp.isnan(fault(1.0, 0.0, jnp.nan))
    assert jnp.isnan(faults.with_fault(1.0, jnp.nan, 0.0))


QUICK = ("realtime_loss", "softadapt", "uncertainty", "gradnorm", "mgda", "aligned_mtl")


@pytest.mark.parametrize("method", quick_for(QUICK, faults.METHODS))
def test_a_loss_that_is_broken_for_ever_can_be_left_out(method):
    """By `present`, and a loss function whose gradient is finite, the others train on."""
    tx = faults.METHODS[method]()
    losses_fn = lambda broken: (
        lambda x: jnp.stack(
            [jnp.where(broken, 0.0 * x[0], x[0] ** 2), (x[1] - 1.0) ** 2, (x[1] + 1.0) ** 2]
        )
    )

    @jax.jit
    def step(params, state, broken):
        _, grads = sa.value_and_component_grads(losses_fn(broken))(params)
        losses = jnp.where(jnp.asarray([broken, False, False]), jnp.nan, grads.losses)
        present = jnp.isfinite(losses)
        h, state = tx.update(grads, state, params, losses=losses, present=present)
        return optax.apply_updates(params, jax.tree.map(lambda g: -0.05 * g, h)), state

    params = jnp.asarray([1.0, 2.0])
    state = tx.init(params)
    for index in range(60):
        params, state = step(params, state, index >= 20)
    weights = sa.loss_weights(state)
    assert weights[0] == 0
    assert jnp.all(weights[1:] > 0) or method.startswith(("mgda", "pcgrad", *methods.SIGNED))
    assert abs(params[1]) < 1.05  # between the two minima, or at the nearer one
    assert jnp.all(jnp.isfinite(params))


@functools.cache
def start_and_update(factory):
    tx = factory(2)
    return tx.init(None), jax.jit(lambda g, state, f: tx.update(g, state, losses=f)[1])


@pytest.mark.parametrize("factory", [sa.gradnorm, sa.normalized_gradients, sa.pcgrad, sa.mgda])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_bad_gradient_of_a_good_loss_keeps_the_weights(factory, bad):
    """NaN, infinity and a norm whose square is none: what was seen last stays."""
    start, update = start_and_update(factory)
    good = jnp.asarray([[1.0, 2.0], [0.5, -1.0]])
    state = update(good, start, jnp.asarray([1.0, 2.0]))
    after = update(good.at[0, 0].set(bad), state, jnp.asarray([1.5, 1.0]))
    jax.tree.map(np.testing.assert_array_equal, after, state)
    later = update(good, after, jnp.asarray([1.5, 1.0]))
    np.testing.assert_array_equal(later.loss_records[1], [2, 2])
