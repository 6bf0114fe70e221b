"""Laws that hold for every method, as one table over all factories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    MORE_METHODS,
    following,
    gradient_cases,
    made,
    quick_for,
    told_traces,
    weights_of_steps,
)

import softadapt_optax as sa
from benchmarks import methods

STEPS = 8

# Each method as a function of K and of the common options, from the second step on away from
# equal weights.
METHODS = {
    "fixed_weights": lambda k, **options: sa.balance(
        sa.Weighting(lambda n: (), lambda c, s: (jnp.ones_like(c.losses), s)), k, **options
    ),
    "softadapt": lambda k, **options: sa.softadapt(
        k, 2.0, history=2, loss_weighted=True, **options
    ),
    "softadapt, normalized": lambda k, **options: sa.softadapt(
        k, 2.0, history=3, rate="relative", normalized=True, **options
    ),
    "initial_loss": lambda k, **options: sa.initial_loss(k, 3, **options),
    "realtime_loss": sa.realtime_loss,
    "uncertainty": lambda k, **options: sa.uncertainty(k, optax.sgd(0.2), **options),
    "uncertainty, adam": lambda k, **options: sa.uncertainty(k, penalty="log1p", **options),
    "learned_weights": lambda k, **options: sa.learned_weights(k, optax.adam(0.1), **options),
    "learned_weights, maximize": lambda k, **options: sa.learned_weights(
        k, optax.sgd(0.5), maximize=True, **options
    ),
    "dwa": lambda k, **options: sa.dwa(k, 0.5, **options),
    "gls": sa.gls,
    "causal_weights": lambda k, **options: sa.causal_weights(k, 0.3, **options),
    "cov_weighting": sa.cov_weighting,
    "relobralo": lambda k, **options: sa.relobralo(
        k, alpha=0.5, temperature=1.0, expected_rho=0.5, **options
    ),
    "rlw": sa.rlw,
    "famo": lambda k, **options: sa.famo(k, optax.adam(0.1), **options),
    "famo, sgd": lambda k, **options: sa.famo(k, optax.sgd(2.0), decay=0.1, **options),
    "stch": sa.stch,
    "stch, log": lambda k, **options: sa.stch(k, 0.5, log=True, **options),
    "gradnorm": sa.gradnorm,
    "normalized_gradients": lambda k, **options: sa.normalized_gradients(k, 0.5, **options),
    "normalized_gradients, mean": lambda k, **options: sa.normalized_gradients(
        k, common_norm="mean", **options
    ),
    "pcgrad": sa.pcgrad,
    "mgda": sa.mgda,
    "upgrad": sa.upgrad,
    "dual_proj": sa.dual_proj,
    "lr_annealing": lambda k, **options: sa.lr_annealing(k, 0, alpha=0.5, **options),
    "lr_annealing, norm": lambda k, **options: sa.lr_annealing(
        k, 0, alpha=0.5, statistic="norm", **options
    ),
    "nash_mtl": sa.nash_mtl,
    "fairgrad": sa.fairgrad,
    "cagrad": sa.cagrad,
    "gradvac": sa.gradvac,
    "imtl_g": sa.imtl_g,
    "conflict_free": sa.conflict_free,
    "aligned_mtl": sa.aligned_mtl,
    "aligned_mtl, median": lambda k, **options: sa.aligned_mtl(k, "median", **options),
    "mgda, both": lambda k, **options: sa.mgda(k, "both", **options),
    "mgda, frank_wolfe": lambda k, **options: sa.mgda(k, solver="frank_wolfe", **options),
    "ntk_weights": lambda k, **options: told_traces(sa.ntk_weights(k, **options)),
    "hypergradient": lambda k, **options: following(
        sa.hypergradient(k, optax.sgd(0.05), **options)
    ),
}


def test_the_laws_are_those_of_every_method():
    named = {name.split(",")[0] for name in METHODS}
    assert named == set(methods.ALL) - {"prior_loss"}  # fixed weights by another name


def make(method, num_losses, **options):
    return made(METHODS[method], num_losses, **options)


STATELESS = (
    "fixed_weights",
    "realtime_loss",
    "gls",
    "causal_weights",
    "ntk_weights",
    "imtl_g",
    "conflict_free",
    "aligned_mtl",
    "mgda",
    "mgda, both",
    "mgda, frank_wolfe",
)
# Those in which the weight of a loss depends on the others by the weight sum alone.
UNCOUPLED = (
    "fixed_weights",
    "softadapt",
    "softadapt, normalized",
    "initial_loss",
    "realtime_loss",
    "uncertainty",
    "uncertainty, adam",
    "normalized_gradients",
)
# Those whose weights may be negative: it is their sizes that have the weight sum.
SIGNED = (*methods.SIGNED, "aligned_mtl, median")
# Second forms of a method: the laws hold for them too, which the slow run sees.
SECOND_FORMS = (
    "stch, log",
    "famo, sgd",
    "softadapt, normalized",
    "uncertainty, adam",
    "learned_weights, maximize",
    "aligned_mtl, median",
    "mgda, both",
    "mgda, frank_wolfe",
    "lr_annealing, norm",
    "normalized_gradients, mean",
)


# Stateless, with a state, with an inner optimizer, gradient norms, Gramian. Where a law is not
# `of_methods`, the others take the slow run.
ONE_OF_EACH_KIND = ("realtime_loss", "softadapt", "learned_weights", "gradnorm", "mgda")


def of_methods(names):
    return pytest.mark.parametrize("method", quick_for(METHODS.keys() - SECOND_FORMS, names))


def each_kind_and_period(*periods):
    return pytest.mark.parametrize(
        ("method", "every"),
        [
            pytest.param(name, every, marks=() if name in ONE_OF_EACH_KIND else MORE_METHODS)
            for name in METHODS
            for every in periods
        ],
    )


each_method = of_methods(METHODS)
each_kind = pytest.mark.parametrize("method", quick_for(ONE_OF_EACH_KIND, METHODS))


def history_of(num_losses, case="random", seed=0):
    """Losses [steps, K] that fall with noise and gradients [steps, K, 12]."""
    rng = np.random.default_rng(seed)
    losses = 0.9 ** np.arange(STEPS)[:, None] * rng.uniform(0.5, 2.0, (STEPS, num_losses))
    gradients = [gradient_cases(num_losses, seed + step)[case] for step in range(STEPS)]
    return losses, np.array(gradients)


@functools.cache
def compiled_update(tx):
    return jax.jit(lambda s, g, f, p: tx.update(g, s, losses=f, present=p)[1])


def presence_of(tx, losses, gradients, present):
    """The weights of each step and the last state, with a mask for each step."""
    state, rows = tx.init(None), []
    update = compiled_update(tx)
    for values in zip(gradients, losses, present, strict=True):
        state = update(state, *map(jnp.asarray, values))
        rows.append(np.asarray(sa.loss_weights(state)))
    return np.array(rows), state


@each_method
@pytest.mark.parametrize("case", gradient_cases(2))
def test_weights_are_finite_and_not_negative_but_for_signed_methods(method, case):
    losses, gradients = history_of(4, case)
    weights = np.asarray(weights_of_steps(make(method, 4), losses, gradients))
    assert np.isfinite(weights).all()
    assert (weights >= 0).all() or method in SIGNED
    summed = np.asarray(weights_of_steps(make(method, 4, weight_sum=2.5), losses, gradients))
    np.testing.assert_allclose(np.abs(summed).sum(axis=1), 2.5, rtol=1e-5)
    sizes = np.abs(weights).sum(axis=1, keepdims=True)
    ratios = weights / np.maximum(sizes, 1e-30)
    if sizes.min() > 0:
        np.testing.assert_allclose(summed / 2.5, ratios, rtol=1e-4, atol=1e-6)


@of_methods(
    [
        name
        for name in METHODS
        # In an order, random, and with a loss that is singled out.
        if name not in ("causal_weights", "rlw", "lr_annealing", "lr_annealing, norm")
    ]
)
def test_the_order_of_the_losses_does_not_matter(method):
    losses, gradients = history_of(4)
    order = np.array([2, 0, 3, 1])
    tx = make(method, 4)
    weights = np.asarray(weights_of_steps(tx, losses, gradients))
    permuted = np.asarray(weights_of_steps(tx, losses[:, order], gradients[:, order]))
    if method in ("pcgrad", "gradvac"):  # equal in distribution: means over seeds
        seeds = jnp.arange(2000)
        first_weights = lambda seed, g: weights_of_steps(
            METHODS[method](4, seed=seed), losses[:1], g
        )[0]
        of_seeds = jax.jit(jax.vmap(first_weights, (0, None)))
        mean = lambda g: jnp.mean(of_seeds(seeds, jnp.asarray(g[:1])), axis=0)
        np.testing.assert_allclose(mean(gradients[:, order]), mean(gradients)[order], rtol=0.03)
    else:
        np.testing.assert_allclose(permuted, weights[:, order], rtol=2e-4, atol=1e-6)


@each_kind
def test_one_loss_alone(method):
    losses, gradients = history_of(1)
    weights = np.asarray(weights_of_steps(make(method, 1, weight_sum=1.0), losses, gradients))
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


@each_kind_and_period(1, 2)
def test_a_step_with_a_bad_loss_or_gradient_keeps_the_weights(method, every):
    bad = np.nan if every == 1 else np.inf
    losses, gradients = history_of(3)
    for broken in ("loss", "gradient"):
        f, g = losses.copy(), gradients.copy()
        if broken == "loss":
            f[4, 1] = bad
        else:
            g[4, 1, 0] = bad
        weights = np.asarray(weights_of_steps(make(method, 3, every=every), f, g))
        assert np.isfinite(weights).all()
        if broken == "loss":
            kept = np.delete(np.arange(STEPS), 4)
            # The last step again only keeps the shapes, so that nothing is compiled twice.
            again = np.append(kept, STEPS - 1)
            clean = weights_of_steps(make(method, 3, every=every), f[again], g[again])
            np.testing.assert_allclose(weights[kept], clean[:-1], rtol=1e-6)
            np.testing.assert_array_equal(weights[4], weights[3])


@each_kind
def test_priorities_multiply(method):
    losses, gradients = history_of(3)
    plain = np.asarray(weights_of_steps(make(method, 3, weight_sum=1.0), losses, gradients))
    factors = (1.0, 0.5, 3.0)
    tx = make(method, 3, weight_sum=1.0, priorities=factors)
    weighted = np.asarray(weights_of_steps(tx, losses, gradients))
    wanted = plain * np.array(factors)
    wanted = wanted / np.abs(wanted).sum(axis=1, keepdims=True)
    if "learned" in method:  # there the priorities are the prior that the logits are tied to
        np.testing.assert_allclose(weighted[0], wanted[0], rtol=1e-5)
    else:
        np.testing.assert_allclose(weighted, wanted, rtol=1e-4, atol=1e-6)


@each_kind
@pytest.mark.parametrize("case", ["random", "norms far apart", "stationary"])
def test_a_loss_of_priority_zero_is_left_out(method, case):
    losses, gradients = history_of(4, case)
    kept = [0, 1, 3]
    tx = make(method, 4, priorities=(1.0, 1.0, 0.0, 1.0), weight_sum=1.0)
    weights = np.asarray(weights_of_steps(tx, losses, gradients))
    np.testing.assert_array_equal(weights[:, 2], 0.0)
    if method not in ("pcgrad", "gradvac", "rlw"):  # which draw other numbers for another K
        three = weights_of_steps(
            make(method, 3, weight_sum=1.0), losses[:, kept], gradients[:, kept]
        )
        np.testing.assert_allclose(weights[:, kept], three, rtol=1e-3, atol=1e-6)


# Losses without data in a batch.


@each_kind_and_period(1, 3)
def test_everyone_present_is_no_mask(method, every):
    losses, gradients = history_of(3)
    tx = make(method, 3, every=every)
    masked, _ = presence_of(tx, losses, gradients, np.ones((STEPS, 3), dtype=bool))
    np.testing.assert_allclose(
        masked, weights_of_steps(tx, losses, gradients), rtol=1e-5, atol=1e-7
    )


@each_kind_and_period(1, 3)
def test_an_absent_loss_gets_no_weight_and_its_share_is_kept_for_it(method, every):
    losses, gradients = history_of(3)
    present = np.random.default_rng(1).random((STEPS, 3)) < 0.6
    present[3] = True, False, False
    present[5] = False
    present[6] = True
    losses = np.where(present, losses, np.nan)  # whatever an absent loss is
    gradients = np.where(present[:, :, None], gradients, 0.0)
    tx = make(method, 3, weight_sum=2.0, every=every)
    weights, state = presence_of(tx, losses, gradients, present)
    np.testing.assert_array_equal(weights[~present], 0.0)
    sums = np.abs(weights).sum(axis=1)
    np.testing.assert_allclose(sums[present.all(axis=1)], 2.0, rtol=1e-6)
    assert (sums[~present.all(axis=1)] < 2.0).all()
    for leaf in jax.tree.leaves(state):
        assert jnp.all(jnp.isfinite(leaf))


@of_methods(UNCOUPLED)
@pytest.mark.parametrize(
    ("every", "is_lazy"),
    [
        (1, True),
        (3, False),
        pytest.param(1, False, marks=MORE_METHODS),
        pytest.param(3, True, marks=MORE_METHODS),
    ],
)
def test_an_absent_loss_changes_nothing_but_itself(method, every, is_lazy):
    """Losses and gradients that stay as they are, under a weight sum that binds them together."""
    params = jnp.arange(1.0, 5.0)
    factors = jnp.asarray([[1.0], [1e-2], [30.0]])
    losses_fn = lambda p: [jnp.sum((p - k) ** 2) * factors[k, 0] for k in range(3)]
    present = np.ones((STEPS, 3), dtype=bool)
    present[3:6, 1] = False
    present[7, 1:] = False
    tx = make(method, 3, weight_sum=2.0, every=every)

    @jax.jit
    def step(state, present):
        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        stacked = grads.stack()
        given = (grads, None) if is_lazy else (stacked, losses)
        _, state = tx.update(given[0], state, params, losses=given[1], present=present)
        return state, sa.loss_weights(state)

    rows = [
        np.asarray(jax.lax.scan(step, tx.init(params), p)[1]) for p in (present | True, present)
    ]
    if "uncertainty" in method:  # its own weight waits, and with it its share of the sum
        rows = [weights / weights[:, :1] for weights in rows]
        present[:, 1] = False
        rows[1][:, 1] = 0.0
    np.testing.assert_allclose(rows[1], np.where(present, rows[0], 0.0), rtol=1e-5)


@each_kind
def test_an_absent_loss_leaves_no_trace(method):
    """The state after a step is the same whatever the absent loss and its gradient are."""
    losses, gradients = history_of(3)
    present = np.ones((STEPS, 3), dtype=bool)
    present[2:5, 1] = False
    other_losses, other_gradients = losses.copy(), gradients.copy()
    other_losses[2:5, 1] = 1e6
    other_gradients[2:5, 1] *= -100.0
    tx = make(method, 3)
    first, state = presence_of(tx, losses, gradients, present)
    second, other_state = presence_of(tx, other_losses, other_gradients, present)
    np.testing.assert_array_equal(first, second)
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


@pytest.mark.parametrize("method", ["softadapt", "initial_loss", "uncertainty", "learned_weights"])
def test_the_memory_of_an_absent_loss_waits(method):
    """With inner optimizers and histories: its entries are those of before the absence."""
    losses, gradients = history_of(3)
    present = np.ones((4, 3), dtype=bool)
    present[3, 1] = False
    tx = make(method, 3)
    _, before = presence_of(tx, losses[:3], gradients[:3], present[:3])
    _, after = presence_of(tx, losses[:4], gradients[:4], present)
    changed = False
    pairs = zip(
        jax.tree.leaves(before.weighting_state), jax.tree.leaves(after.weighting_state), strict=True
    )
    for old, new in pairs:
        if old.shape[-1:] == (3,):
            np.testing.assert_array_equal(new[..., 1], old[..., 1])
            changed |= not np.array_equal(new[..., 0], old[..., 0])
    assert changed or method == "initial_loss"


@of_methods(STATELESS)
def test_those_present_are_weighted_as_if_they_were_alone(method):
    losses, gradients = history_of(4)
    kept = np.array([0, 2, 3])
    present = np.isin(np.arange(4), kept) & np.ones((STEPS, 1), dtype=bool)
    weights, _ = presence_of(make(method, 4), losses, gradients, present)
    alone = weights_of_steps(make(method, 3), losses[:, kept], gradients[:, kept])
    np.testing.assert_allclose(weights[:, kept], alone, rtol=1e-4, atol=1e-6)


def test_a_period_means_the_losses_that_were_there():
    tx = sa.realtime_loss(2, every=4)
    losses = np.array([[1.0, 2.0], [2.0, np.nan], [3.0, 4.0], [6.0, np.nan]])
    present = np.isfinite(losses)
    weights, state = presence_of(tx, losses, np.zeros((4, 2, 1)), present)
    np.testing.assert_allclose(state.held_weights, [1 / 3.0, 1 / 3.0])
    np.testing.assert_allclose(weights, [[1.0, 0.5], [1.0, 0.0], [1.0, 0.5], [1 / 3, 0.0]])
    # Absent for a whole period: the weight from before is held.
    update = compiled_update(tx)
    for _ in range(4):
        state = update(
            state, jnp.zeros((2, 1)), jnp.asarray([1.0, jnp.nan]), jnp.asarray([True, False])
        )
    np.testing.assert_allclose(state.held_weights, [1.0, 1 / 3.0])
    np.testing.assert_array_equal(state.period_records, 0)


@pytest.mark.parametrize("method", ["gradnorm", "normalized_gradients", "pcgrad", "mgda"])
def test_a_loss_that_is_absent_when_the_gradients_are_looked_at(method):
    """It was there before in the period; its gradient of now is no news of it."""
    losses, gradients = history_of(3)
    present = np.ones((4, 3), dtype=bool)
    present[3, 2] = False
    gradients[3, 2] = 0.0
    tx = make(method, 3, every=2)
    _, before = presence_of(tx, losses[:3], gradients[:3], present[:3])
    weights, after = presence_of(tx, losses[:4], gradients[:4], present)
    assert weights[3, 2] == 0.0
    assert (weights[3, :2] > 0).any()
    # GradNorm's weights have a sum: what is held there is a share.
    tolerance = 0.05 if method == "gradnorm" else 1e-6
    np.testing.assert_allclose(after.held_weights[2], before.held_weights[2], rtol=tolerance)


def test_held_weights_keep_their_share_where_only_ratios_count():
    tx = make("softadapt", 3, weight_sum=1.0, every=2)
    losses = np.broadcast_to([1e-3, 1.0, 1e3], (8, 3))
    everyone = np.ones((8, 3), dtype=bool)
    partly = everyone.copy()
    partly[4:6, 2] = False  # a whole period
    zeros = np.zeros((8, 3, 1))
    full, _ = presence_of(tx, losses, zeros, everyone)
    some, _ = presence_of(tx, losses, zeros, partly)
    assert full[3, 2] > 0.99
    np.testing.assert_allclose(some[6, 2], full[3, 2], atol=0.01)


def test_a_loss_that_comes_between_two_records_is_looked_at_at_once():
    tx = make("realtime_loss", 3, every=10)
    losses = np.array([[1e-3, 2e-3, 5.0], [1e-3, 2e-3, 5.0]])
    weights, _ = presence_of(tx, losses, np.zeros((2, 3, 1)), np.array([[1, 1, 0], [1, 1, 1]]))
    np.testing.assert_allclose(weights, [[1000.0, 500.0, 0.0], [1000.0, 500.0, 0.2]])


@pytest.mark.parametrize(
    ("method", "units"),
    [
        pytest.param(name, "initial", marks=() if name in ONE_OF_EACH_KIND else MORE_METHODS)
        for name in METHODS
    ]
    + [("realtime_loss", "current")],
)
def test_a_loss_that_comes_between_two_records_has_its_unit_at_once(method, units):
    """Without it the step would be larger by the size of the loss."""
    losses = np.broadcast_to([1e6, 1.0, 2.0], (10, 3))
    gradients = np.eye(3)[None] * losses[:, :, None]
    late, together = np.ones((2, 10, 3), dtype=bool)
    late[:7, 0] = False
    late[:2, 1] = False  # and one in the first period
    tx = make(method, 3, units=units, every=5)
    weights, _ = presence_of(tx, losses, gradients, late)
    wanted, _ = presence_of(tx, losses, gradients, together)
    assert (weights[late] * np.broadcast_to(losses, late.shape)[late]).max() < 20
    assert (wanted * losses).max() < 20
    np.testing.assert_array_equal(weights[~late], 0.0)


def test_nothing_present_in_the_first_step_does_not_spend_the_look_ahead():
    present = np.ones((3, 2), dtype=bool)
    present[0] = False
    losses = np.broadcast_to([1e6, 1.0], (3, 2))
    tx = make("realtime_loss", 2, every=5)
    weights, _ = presence_of(tx, losses, np.zeros((3, 2, 1)), present)
    np.testing.assert_allclose(weights, [[0.0, 0.0], [1e-6, 1.0], [1e-6, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("method", ["normalized_gradients", "mgda", "gradnorm"])
def test_an_absent_loss_does_not_slow_down_smoothing(method):
    """Under a weight sum what is averaged are shares, before an absence and after it."""
    tx = make(method, 2, smoothing=0.9, weight_sum=1.0)
    gradients = np.broadcast_to(np.diag([1.0, 1e3]), (3, 2, 2))
    present = np.array([[True, True], [False, True], [True, True]])
    weights, state = presence_of(tx, np.ones((3, 2)), gradients, present)
    np.testing.assert_allclose(jnp.sum(state.held_weights), 1.0, rtol=1e-5)
    everyone, _ = presence_of(tx, np.ones((2, 2)), gradients[:2], np.ones((2, 2), dtype=bool))
    np.testing.assert_allclose(weights[2], everyone[1], rtol=0.02)


@each_kind
def test_nothing_present_is_no_division_by_zero(method):
    tx = make(method, 3)
    with jax.debug_nans(True):
        h, state = jax.jit(tx.update)(
            jnp.ones((3, 2)), tx.init(None), losses=jnp.ones(3), present=jnp.zeros(3, dtype=bool)
        )
    np.testing.assert_array_equal(h, 0.0)
    jax.tree.map(
        lambda old, new: (
            np.testing.assert_array_equal(old, new)
            if jnp.ndim(old) and old.shape[-1] == 3
            else None
        ),
        tx.init(None).weighting_state,
        state.weighting_state,
    )


@each_kind
def test_a_loss_of_priority_zero_may_be_anything(method):
    losses, gradients = history_of(3)
    losses[2:4, 1] = np.nan
    tx = make(method, 3, priorities=(1.0, 0.0, 2.0), weight_sum=1.0)
    rows = np.asarray(weights_of_steps(tx, losses, gradients))
    clean, _ = history_of(3)
    np.testing.assert_array_equal(rows, weights_of_steps(tx, clean, gradients))


def test_present_by_name_and_lazily_inside_jit():
    def losses_fn(x, seen):
        count = jnp.sum(seen)
        return {"a": jnp.sum(x**2), "b": jnp.sum(seen * (x - 1) ** 2) / jnp.maximum(count, 1)}

    tx = optax.chain(sa.softadapt(2, loss_weighted=True), optax.adam(0.1))

    @jax.jit
    def step(x, opt_state, seen):
        _, grads = sa.value_and_component_grads(losses_fn)(x, seen)
        present = {"a": True, "b": jnp.any(seen)}
        updates, opt_state = tx.update(grads, opt_state, x, present=present)
        return optax.apply_updates(x, updates), opt_state

    x, opt_state = jnp.full(3, 2.0), tx.init(jnp.zeros(3))
    for seen in ([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]):
        x, opt_state = step(x, opt_state, jnp.asarray(seen))
        assert (sa.loss_weights(opt_state)[1] > 0) == any(seen)
        assert jnp.all(jnp.isfinite(x))
    np.testing.assert_array_equal(opt_state[0].loss_records[1], [3, 2])


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([True], "`present` should have 2 entries, one for each loss, got 1"),
        (np.ones((2, 2), dtype=bool), r"`present` should be an array of shape \[K\]"),
        ({"a": True, "c": False}, "entries of `present` should have the names of the losses, a, b"),
        (
            [True, False],
            r"`present` should go by the names of the losses, {\"a\": ..., \"b\": ...}",
        ),
        (
            {"a": 1.0, "b": 0.3},
            "`present` should be True or False for each loss, .*got dtype float",
        ),
    ],
)
def test_a_wrong_mask_of_present_losses_is_named(present, message):
    tx = sa.realtime_loss(2)
    with pytest.raises((TypeError, ValueError), match=message):
        tx.update(jnp.zeros(2), tx.init(None), losses={"a": 1.0, "b": 2.0}, present=present)
