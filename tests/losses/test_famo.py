"""FAMO: weights learned from how far each loss fell in a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from helpers import unchecked, weights_along

import softadapt_optax as sa

STEPS = 20
RNG = np.random.default_rng(0)
BEFORE = RNG.uniform(0.5, 2.0, (STEPS, 3)) * [1e-3, 1.0, 50.0]
AFTER = BEFORE * RNG.uniform(0.8, 1.0, (STEPS, 3)) * [1.0, 0.95, 0.9]
FALLING = np.cumprod(RNG.uniform(0.85, 1.0, (STEPS, 3)) * [1.0, 0.95, 0.9], axis=0)
NONE = np.full((1, 3), np.nan)
PREVIOUS = np.concatenate([NONE, AFTER[:-1]])


def run(tx, losses, previous, present=None, num_losses=3):
    """The weights of each step and the last state, told the losses of the batch before."""
    present = np.ones(np.shape(losses), dtype=bool) if present is None else present

    def step(state, values):
        f, last, here = values
        stacked = jnp.zeros((num_losses, 1))
        _, state = tx.update(stacked, state, losses=f, previous_losses=last, present=here)
        return state, sa.loss_weights(state)

    values = jnp.asarray(losses, float), jnp.asarray(previous, float), jnp.asarray(present)
    state, rows = jax.jit(lambda values: jax.lax.scan(step, tx.init(None), values))(values)
    return np.asarray(rows), state


@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.1])
def test_told_the_losses_after_the_step_it_agrees_with_the_oracle(decay):
    found, _ = run(sa.famo(3, decay=decay), BEFORE, PREVIOUS)
    wanted = oracle.famo_weights(BEFORE, AFTER, 0.025, decay)
    np.testing.assert_allclose(found, wanted, rtol=2e-4)


@pytest.mark.parametrize("is_adam", [True, False])
def test_without_them_the_next_losses_stand_in(is_adam):
    rate = 0.025 if is_adam else 0.5
    tx = sa.famo(3, optax.adam(rate) if is_adam else optax.sgd(rate), decay=0.01)
    wanted = oracle.famo_weights(FALLING[:-1], FALLING[1:], rate, 0.01, is_adam)
    np.testing.assert_allclose(weights_along(tx, FALLING)[:-1], wanted, rtol=2e-4)


def test_both_ways_are_one_where_all_steps_see_the_same_data():
    previous = np.concatenate([NONE, FALLING[1:]])
    found, _ = run(sa.famo(3), FALLING, previous)
    np.testing.assert_allclose(found, weights_along(sa.famo(3), FALLING), rtol=1e-5)


def test_a_period_compares_means_and_steps_as_far():
    means = FALLING.reshape(4, 5, 3).mean(axis=1)
    found = weights_along(sa.famo(3, optax.sgd(0.1), decay=0.0, every=5), FALLING)[4::5]
    wanted = weights_along(sa.famo(3, optax.sgd(0.5), decay=0.0), means)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def batches_and_losses():
    batches = jax.random.normal(jax.random.key(0), (STEPS, 8))
    losses_fn = lambda x, b: [jnp.mean((x[0] - b) ** 2), 10 * jnp.mean((x[1] + b) ** 4) + 1.0]
    return batches, losses_fn


def test_a_training_loop_is_the_algorithm_of_the_paper():
    batches, losses_fn = batches_and_losses()
    tx = sa.famo(2, optax.sgd(0.5), decay=1e-2)
    params, last = jnp.asarray([3.0, 1.0]), batches[0]
    state, before, after, found = tx.init(params), [], [], []

    @jax.jit
    def step(params, state, batch, last):
        losses, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        h, state = tx.update(grads, state, params, previous_losses=losses_fn(params, last))
        params = params - 0.01 * h
        return params, state, jnp.stack(losses), jnp.stack(losses_fn(params, batch))

    for batch in batches:
        params, state, old, new = step(params, state, batch, last)
        last = batch
        before.append(old), after.append(new), found.append(sa.loss_weights(state))
    wanted = oracle.famo_weights(before, after, 0.5, 1e-2, is_adam=False)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


# Laws.


@pytest.mark.parametrize("units", [None, "initial", "current", [1e-3, 2.0, 1e3]])
def test_the_scale_of_a_loss_changes_its_weight_alone(units):
    """Whatever units it is seen in: what it is told of is in those of the step before."""
    wanted, state = run(sa.famo(3), BEFORE, PREVIOUS)
    found, scaled = run(
        sa.famo(3, units=units), BEFORE * [1e3, 1.0, 1e-4], PREVIOUS * [1e3, 1, 1e-4]
    )
    logits = [s.weighting_state.logits for s in (state, scaled)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-3, atol=1e-5)
    shares = [w / w.sum(axis=1, keepdims=True) for w in (found * [1e3, 1.0, 1e-4], wanted)]
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-3)


def test_weights_sum_to_one_and_equal_falls_change_nothing():
    previous = np.concatenate([NONE, 0.9 * BEFORE[:-1]])
    found, state = run(sa.famo(3, optax.sgd(1.0)), BEFORE, previous)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(state.weighting_state.logits, 0.0, atol=1e-5)


def test_logits_keep_their_mean_without_decay():
    _, state = run(sa.famo(3, optax.sgd(1.0), decay=0.0), BEFORE, PREVIOUS)
    logits = state.weighting_state.logits
    assert np.ptp(logits) > 0.05
    np.testing.assert_allclose(jnp.sum(logits), 0.0, atol=1e-5)


def test_the_loss_that_falls_most_slowly_gains():
    losses = np.stack([0.99 ** np.arange(50), 0.9 ** np.arange(50)], axis=1)
    weights = np.asarray(weights_along(sa.famo(2), losses)) * losses
    assert weights[-1, 0] > 1.5 * weights[-1, 1]


# Losses without data, and values that are none.


@pytest.mark.parametrize("other", [0.0, 1e6, np.nan])
def test_a_loss_that_was_absent_has_nothing_to_be_told_of(other):
    present = np.ones((STEPS, 3), dtype=bool)
    present[4:6, 1] = False
    present[10, 0] = False
    previous = PREVIOUS.copy()
    previous[1:][~present[:-1]] = other
    previous[~present] = other
    losses = np.where(present, BEFORE, other)
    found, state = run(sa.famo(3), losses, previous, present)
    wanted, clean = run(sa.famo(3), BEFORE, PREVIOUS, present)
    np.testing.assert_array_equal(found, wanted)
    jax.tree.map(np.testing.assert_array_equal, state, clean)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_teaches_nothing(bad):
    previous = PREVIOUS[:5].copy()
    previous[3, 1] = bad
    _, before = run(sa.famo(3), BEFORE[:3], previous[:3])
    weights, state = run(sa.famo(3), BEFORE[:4], previous[:4])
    logits = [s.weighting_state.logits for s in (before, state)]
    assert logits[1][1] == logits[0][1]
    assert logits[1][0] != logits[0][0]
    weights, state = run(sa.famo(3), BEFORE[:5], previous)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    assert np.all(np.isfinite(weights))


def test_nothing_is_learned_of_the_batch_of_a_step_that_left_no_trace():
    """Without the NaN its losses would be set against those of the batch before it."""
    losses = np.ones((3, 3))
    losses[1] = np.nan, 5.0, 1.0
    previous = np.stack([losses[0], losses[0], np.full(3, np.nan)])
    _, state = run(sa.famo(3, decay=0.0), losses, previous)
    np.testing.assert_array_equal(state.weighting_state.logits, 0.0)


def test_losses_of_zero():
    """From the start, later, and for good."""
    losses = np.ones((8, 3))
    losses[:4, 0] = 0.0
    losses[4:, 1] = 0.0
    found = np.asarray(weights_along(sa.famo(3), losses))
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found[0], 1 / 3, rtol=1e-6)
    assert found[-1, 1] > 0.99
    bounded = np.asarray(weights_along(sa.famo(3, eps=0.1), losses))
    np.testing.assert_allclose(bounded[-1], [1 / 12, 10 / 12, 1 / 12], rtol=0.1)
    zeros = weights_along(sa.famo(3), np.zeros((4, 3)))
    np.testing.assert_allclose(zeros, 1 / 3, rtol=1e-6)


def test_one_loss_alone_has_all_the_weight():
    found, state = run(sa.famo(1), BEFORE[:, :1], PREVIOUS[:, :1], num_losses=1)
    np.testing.assert_allclose(found, 1.0)
    np.testing.assert_array_equal(state.weighting_state.logits, 0.0)


def test_previous_losses_go_by_name():
    tx = sa.famo(["b", "a"], optax.sgd(1.0))
    state = tx.init(None)
    losses = {"a": jnp.asarray(1.0), "b": jnp.asarray(1.0)}
    stacked = jnp.zeros((2, 1))
    _, state = tx.update(stacked, state, losses=losses)
    _, told = tx.update(stacked, state, losses=losses, previous_losses={"a": 0.5, "b": 1.0})
    weights = sa.loss_weights(told, like=losses)
    assert weights["b"] > weights["a"]
    with pytest.raises(ValueError, match="entries of `previous_losses` should have the names"):
        tx.update(stacked, state, losses=losses, previous_losses={"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match="`previous_losses` should have 2 entries"):
        tx.update(stacked, state, losses=losses, previous_losses=[1.0])
    with pytest.raises(TypeError, match="Did you mean `previous_losses`"):
        tx.update(stacked, state, losses=losses, previous_loss=losses)


def test_other_methods_ignore_previous_losses():
    tx = sa.softadapt(2)
    given = (jnp.zeros((2, 1)), tx.init(None))
    _, state = tx.update(*given, losses=jnp.ones(2), previous_losses=jnp.ones(2))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(None))


def test_a_period_takes_no_previous_losses():
    tx = sa.famo(2, every=2)
    with pytest.raises(ValueError, match="`previous_losses` should not be given with `every` > 1"):
        tx.update(jnp.zeros((2, 1)), tx.init(None), losses=jnp.ones(2), previous_losses=jnp.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": 3}, "`optimizer` should be an Optax optimizer"),
        ({"decay": -1.0}, "`decay` should be finite and >= 0"),
        ({"weight_sum": 0.0}, "`weight_sum` should be finite and > 0"),
        ({"eps": 0.0}, "`eps` should be finite and > 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        unchecked(sa.famo)(2, **options)
