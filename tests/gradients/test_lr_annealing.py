"""Learning rate annealing: gradients brought to the size of that of a reference loss."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import quadratic_losses, quadratic_params, unchecked, weights_of_steps

import softadapt_optax as sa

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(10, 3, 6)) * [[[1.0], [5.0], [0.2]]]
LOSSES = np.ones((10, 3))
each_statistic = pytest.mark.parametrize("statistic", ["max", "mean", "norm"])


@each_statistic
@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("reference", [0, 2])
def test_agrees_with_the_oracle(reference, alpha, statistic):
    tx = sa.lr_annealing(3, reference, alpha=alpha, statistic=statistic)
    wanted = oracle.lr_annealing_weights(GRADIENTS, reference, alpha, statistic)
    np.testing.assert_allclose(weights_of_steps(tx, LOSSES, GRADIENTS), wanted, rtol=1e-5)


def test_with_a_period_the_gradients_are_those_of_its_last_step():
    found = weights_of_steps(sa.lr_annealing(3, 1, every=5), LOSSES, GRADIENTS)
    wanted = oracle.lr_annealing_weights(GRADIENTS[4::5], 1)
    np.testing.assert_allclose(found[4::5], wanted, rtol=1e-5)


@each_statistic
def test_weighted_gradients_do_not_depend_on_the_units(statistic):
    units = np.array([1e-3, 1.0, 1e4])
    tx = sa.lr_annealing(3, 1, alpha=1.0, statistic=statistic)
    wanted = np.asarray(weights_of_steps(tx, LOSSES, GRADIENTS))
    found = np.asarray(weights_of_steps(tx, LOSSES, GRADIENTS * units[:, None]))
    np.testing.assert_allclose(found * units, wanted, rtol=1e-5)
    given = sa.lr_annealing(3, 1, alpha=0.5, statistic=statistic, units=units)
    found = np.asarray(weights_of_steps(given, LOSSES, GRADIENTS * units[:, None]))
    plain = sa.lr_annealing(3, 1, alpha=0.5, statistic=statistic)
    np.testing.assert_allclose(found * units, weights_of_steps(plain, LOSSES, GRADIENTS), rtol=1e-5)


@pytest.mark.parametrize("statistic", ["mean", "norm"])
def test_the_sizes_are_level_at_once(statistic):
    """Without an average what was asked for is there after one step."""
    tx = sa.lr_annealing(3, 2, alpha=1.0, statistic=statistic)
    weighted = np.asarray(weights_of_steps(tx, LOSSES, GRADIENTS))[..., None] * GRADIENTS
    size = {"mean": lambda g: np.abs(g).mean(-1), "norm": lambda g: np.linalg.norm(g, axis=-1)}
    sizes = size[statistic](weighted)
    np.testing.assert_allclose(sizes, sizes[:, 2:].repeat(3, axis=1), rtol=1e-5)


def test_the_other_losses_may_be_in_any_order():
    order = np.array([2, 0, 1])
    wanted = np.asarray(weights_of_steps(sa.lr_annealing(3, 1), LOSSES, GRADIENTS))
    found = weights_of_steps(sa.lr_annealing(3, 2), LOSSES, GRADIENTS[:, order])
    np.testing.assert_allclose(found, wanted[:, order], rtol=1e-6)


def test_the_reference_by_name_is_that_of_the_names():
    params = quadratic_params()
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    names = ["small", "far", "near"]
    rows = []
    for reference in ("far", 1):
        tx = sa.lr_annealing(names, reference)
        _, state = tx.update(grads, tx.init(params), params)
        rows.append(sa.loss_weights(state, like=quadratic_losses(params)))
    assert rows[0] == rows[1]
    assert rows[0]["far"] == 1.0


@pytest.mark.parametrize("is_stacked", [False, True])
@pytest.mark.parametrize("mask", [None, {"w": True, "b": False}])
def test_magnitudes_are_those_of_the_entries(mask, is_stacked):
    """Of parameters of all shapes and dtypes, masked or not."""
    params = quadratic_params() | {"c": jnp.zeros(()), "n": jnp.zeros(2, jnp.int32)}
    params["h"] = jnp.ones(3, jnp.float16)
    losses_fn = lambda p: [*quadratic_losses(p).values(), jnp.sum(p["h"] * 3).astype(float)]
    if mask is not None:
        mask = mask | {"c": False, "n": False, "h": False}
    losses, grads = sa.value_and_component_grads(losses_fn)(params)
    stacked = grads.stack()
    kept = [name for name in params if name != "n" and (mask is None or mask[name])]
    flat = np.concatenate([np.asarray(stacked[k], np.float64).reshape(4, -1) for k in kept], 1)
    if is_stacked:
        tx = sa.lr_annealing(4, 0, alpha=1.0, shared=mask)
        _, state = tx.update(stacked, tx.init(params), params, losses=losses)
        means = np.abs(flat).mean(axis=1)
        wanted = np.where(means > 0, np.abs(flat[0]).max() / np.where(means > 0, means, 1.0), 1.0)
        np.testing.assert_allclose(sa.loss_weights(state), [1.0, *wanted[1:]], rtol=1e-5)
    else:
        found = grads.magnitudes(mask)
        np.testing.assert_allclose(found[0], np.abs(flat).max(axis=1), rtol=1e-5)
        np.testing.assert_allclose(found[1], np.abs(flat).mean(axis=1), rtol=1e-5)


# Edge cases.


@each_statistic
def test_a_gradient_of_zero_keeps_the_weight(statistic):
    tx = sa.lr_annealing(3, 0, alpha=0.5, statistic=statistic)
    gradients = GRADIENTS.copy()
    gradients[3, 1] = 0.0
    gradients[5, 0] = 0.0
    weights = np.asarray(weights_of_steps(tx, LOSSES, gradients))
    assert weights[3, 1] == weights[2, 1]
    assert weights[3, 2] != weights[2, 2]
    np.testing.assert_array_equal(weights[5], weights[4])
    zeros = weights_of_steps(tx, LOSSES, np.zeros_like(GRADIENTS))
    np.testing.assert_array_equal(zeros, 1.0)


@each_statistic
def test_one_loss_is_its_own_reference(statistic):
    tx = sa.lr_annealing(1, 0, statistic=statistic)
    np.testing.assert_array_equal(weights_of_steps(tx, LOSSES[:, :1], GRADIENTS[:, :1]), 1.0)


def test_where_the_reference_is_absent_all_weights_wait():
    tx = sa.lr_annealing(3, 0)
    state = tx.init(None)
    update = jax.jit(lambda s, g, p: tx.update(g, s, losses=jnp.ones(3), present=p)[1])
    rows = []
    for step, present in enumerate(([True] * 3, [False, True, True], [True, False, True])):
        state = update(state, jnp.asarray(GRADIENTS[step], float), jnp.asarray(present))
        rows.append(np.asarray(state.weighting_state.relative_weights))
    np.testing.assert_array_equal(rows[1], rows[0])
    assert rows[2][1] == rows[0][1]
    assert rows[2][2] != rows[0][2]


@each_statistic
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("k", [0, 1])
def test_a_bad_gradient_changes_nothing(k, bad, statistic):
    tx = sa.lr_annealing(3, 0, statistic=statistic)
    gradients = GRADIENTS[:3].copy()
    gradients[1, k, 2] = bad
    weights = np.asarray(weights_of_steps(tx, LOSSES[:3], gradients))
    np.testing.assert_array_equal(weights[1], weights[0])
    wanted = oracle.lr_annealing_weights(GRADIENTS[[0, 2]], 0, statistic=statistic)
    np.testing.assert_allclose(weights[[0, 2]], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_losses", "options", "message"),
    [
        (2, {"reference": 2}, "`reference` should be a position from 0 to 1, got 2"),
        (2, {"reference": "pde"}, "`reference` should be a position, got the name 'pde'"),
        (["a", "b"], {"reference": "pde"}, "`reference` should be one of the losses, a, b"),
        (2, {"reference": 0.5}, "`reference` should be the name or the position of a loss"),
        (2, {"reference": 0, "alpha": 0.0}, "`alpha` should be finite and > 0"),
        (2, {"reference": 0, "alpha": 1.5}, "`alpha` should be finite and > 0 and <= 1"),
        (2, {"reference": 0, "statistic": "std"}, "`statistic` should be one of"),
    ],
)
def test_wrong_options_are_named(num_losses, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        unchecked(sa.lr_annealing)(num_losses, **options)
