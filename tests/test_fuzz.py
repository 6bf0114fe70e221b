"""Random methods, options, shapes, dtypes, trees and extreme values: promises that always hold.

    python -m pytest -n0 tests/test_fuzz.py

`FUZZ_PROFILE=nightly` in the environment runs many more cases, and `FUZZ_REPORT=file.json` writes
how many were run.
"""

import contextlib
import json
import os
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import following, told_traces
from test_properties import SIGNED

import softadapt_optax as sa

EXAMPLES = {"default": 25, "nightly": 300}[os.environ.get("FUZZ_PROFILE", "default")]
fuzzed = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 25,  # the same cases for everyone, new ones each night
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=(hypothesis.Phase.generate,),  # a failing case is small enough as it is
)
cases_run = {"finite": 0, "not finite": 0, "wrong": 0}
updates_run = []


@pytest.fixture(autouse=True, scope="module")
def report():
    yield
    if path := os.environ.get("FUZZ_REPORT"):
        pathlib.Path(path).write_text(json.dumps(cases_run | {"updates": len(updates_run)}) + "\n")


def let_programs_go():
    """Each case compiles its own, and thousands of cases would fill the memory."""
    if sum(cases_run.values()) % 100 == 0:
        jax.clear_caches()


@contextlib.contextmanager
def precision(x64):
    jax.config.update("jax_enable_x64", x64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


# What a case is made of.

sizes = st.integers(1, 5)
positive = st.sampled_from([1e-6, 0.1, 1.0, 3.0, 1e4])
signed = st.sampled_from([-1e3, -1.0, -0.1, 0.0, 0.1, 1.0, 1e3])
every = st.integers(1, 3)
# Squared they stay within float32, as gradient methods ask of norms.
gradient_scales = st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e3, 1e12])
losses = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-38, -1e-38, 1e-20, 1e30, -1e30, 3e38, -3e38, 1.0]),
    st.floats(-10.0, 10.0, width=32),
)
dtypes = st.sampled_from(["float16", "bfloat16", "float32", "float64"])
shapes = st.sampled_from([(), (1,), (3,), (2, 3), (1, 1, 2), (0,), (2, 0), (5,)])
leaves = st.tuples(dtypes, shapes)
trees = st.one_of(
    leaves,
    st.recursive(
        st.one_of(leaves, st.none()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.lists(inner, min_size=1, max_size=2).map(lambda items: ("tuple", *items)),
        ),
        max_leaves=6,
    ),
)


def factors(size):
    """K of them, not all zero, as weights and priorities have to be."""
    values = st.sampled_from([0.0, 1e-3, 1.0, 2.0, 1e3])
    return st.lists(values, min_size=size, max_size=size).filter(any)


def common_options(draw, size, optional=True):
    options = {"priorities": draw(st.none() | factors(size))}
    weight_sum = draw(positive | st.none() if optional else positive)
    return options if weight_sum is None else options | {"weight_sum": weight_sum}


def softadapt(draw, size):
    history = draw(st.integers(2, 6))
    return sa.softadapt(
        size,
        draw(signed),
        history=history,
        order=draw(st.none() | st.integers(1, history - 1)),
        rate=draw(st.sampled_from(["absolute", "relative"])),
        normalized=draw(st.booleans()),
        loss_weighted=draw(st.booleans()),
        every=draw(every),
        eps=draw(st.sampled_from([1e-30, 1e-8, 1.0])),
        **common_options(draw, size, optional=False),
    )


def with_common_options(factory, optional=True, **strategies):
    """A function that draws the options of a method."""

    def make(draw, size):
        own = {name: draw(strategy) for name, strategy in strategies.items()}
        return factory(size, **own, **common_options(draw, size, optional))

    return make


METHODS = {
    "softadapt": softadapt,
    "fixed_weights": lambda draw, size: sa.fixed_weights(draw(factors(size))),
    "prior_loss": lambda draw, size: sa.prior_loss(
        draw(st.lists(positive, min_size=size, max_size=size)), **common_options(draw, size)
    ),
    "initial_loss": with_common_options(sa.initial_loss, steps=st.integers(1, 3), every=every),
    "realtime_loss": with_common_options(sa.realtime_loss, every=every),
    "uncertainty": with_common_options(
        sa.uncertainty, penalty=st.sampled_from(["log", "log1p", "imtl_l"]), every=every
    ),
    "learned_weights": with_common_options(
        sa.learned_weights,
        optional=False,
        temperature=positive,
        maximize=st.booleans(),
        every=every,
    ),
    "dwa": with_common_options(sa.dwa, temperature=positive, window=st.integers(1, 3), every=every),
    "gls": with_common_options(sa.gls, every=every),
    "causal_weights": with_common_options(
        sa.causal_weights, epsilon=st.sampled_from([0.0, 1.0, 1e4]), every=every
    ),
    "cov_weighting": with_common_options(
        sa.cov_weighting,
        optional=False,
        decay=st.none() | st.sampled_from([0.1, 0.99]),
        every=every,
    ),
    "relobralo": with_common_options(
        sa.relobralo,
        alpha=st.sampled_from([0.0, 0.999]),
        temperature=positive,
        expected_rho=st.sampled_from([0.0, 0.5, 1.0]),
        every=every,
    ),
    "rlw": with_common_options(
        sa.rlw,
        optional=False,
        distribution=st.sampled_from(["normal", "dirichlet"]),
        every=every,
    ),
    "famo": with_common_options(
        sa.famo, optional=False, decay=st.sampled_from([0.0, 1e-3]), every=every
    ),
    "stch": with_common_options(sa.stch, mu=positive, log=st.booleans(), every=every),
    "gradnorm": with_common_options(sa.gradnorm, alpha=st.sampled_from([0.0, 1.5]), every=every),
    "normalized_gradients": with_common_options(
        sa.normalized_gradients,
        rate_exponent=st.sampled_from([0.0, 1.0]),
        common_norm=st.sampled_from(["one", "mean", "max"]),
        every=every,
    ),
    "pcgrad": with_common_options(
        sa.pcgrad,
        seed=st.integers(0, 9),
        reduction=st.sampled_from(["sum", "mean"]),
        every=every,
    ),
    "upgrad": with_common_options(sa.upgrad, ridge=st.sampled_from([0.0, 1e-6, 1.0]), every=every),
    "dual_proj": with_common_options(
        sa.dual_proj, ridge=st.sampled_from([0.0, 1e-6, 1.0]), every=every
    ),
    "lr_annealing": with_common_options(
        sa.lr_annealing,
        reference=st.just(0),
        alpha=st.sampled_from([0.1, 1.0]),
        statistic=st.sampled_from(["max", "mean", "norm"]),
        every=every,
    ),
    "cagrad": with_common_options(
        sa.cagrad,
        c=st.sampled_from([0.0, 0.5, 2.0]),
        ridge=st.sampled_from([0.0, 1e-6, 1.0]),
        every=every,
    ),
    "fairgrad": with_common_options(
        sa.fairgrad,
        fairness=st.sampled_from([0.5, 1.0, 2.0]),
        ridge=st.sampled_from([0.0, 1e-6, 1.0]),
        every=every,
    ),
    "nash_mtl": with_common_options(
        sa.nash_mtl,
        max_norm=st.sampled_from([None, 1.0]),
        ridge=st.sampled_from([0.0, 1e-6, 1.0]),
        every=every,
    ),
    "imtl_g": with_common_options(sa.imtl_g, ridge=st.sampled_from([0.0, 1e-6, 1.0]), every=every),
    "conflict_free": with_common_options(
        sa.conflict_free, ridge=st.sampled_from([0.0, 1e-6, 1.0]), every=every
    ),
    "gradvac": with_common_options(
        sa.gradvac,
        beta=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 9),
        reduction=st.sampled_from(["sum", "mean"]),
        every=every,
    ),
    "aligned_mtl": with_common_options(
        sa.aligned_mtl, scale=st.sampled_from(["min", "median", "rmse"]), every=every
    ),
    "mgda": with_common_options(
        sa.mgda,
        normalization=st.sampled_from([None, "norm", "loss", "both"]),
        solver=st.sampled_from(["active_set", "frank_wolfe"]),
        every=every,
    ),
    "ntk_weights": lambda draw, size: told_traces(
        with_common_options(sa.ntk_weights, every=every)(draw, size)
    ),
    "hypergradient": lambda draw, size: following(
        with_common_options(sa.hypergradient, every=every)(draw, size)
    ),
}


def made(tree, make):
    """The parameters, or what belongs to them, of a drawn tree."""
    if isinstance(tree, tuple) and tree and isinstance(tree[0], str) and tree[0] != "tuple":
        return make(jax.dtypes.canonicalize_dtype(tree[0]), tree[1])
    if isinstance(tree, tuple):
        return tuple(made(part, make) for part in tree[1:])
    if isinstance(tree, list):
        return [made(part, make) for part in tree]
    if isinstance(tree, dict):
        return {name: made(part, make) for name, part in tree.items()}
    return tree


def linear_losses(params, stacked, values):
    """Losses of these values whose gradients are these: a sum of products with what is zero."""

    def losses_fn(p):
        offsets = jax.tree.map(lambda a, b: (a - b).astype(float), p, params)
        products = jax.tree.map(
            lambda g, offset: jnp.sum(g.astype(float) * offset[None], axis=range(1, g.ndim)),
            stacked,
            offsets,
        )
        return sum(jax.tree.leaves(products), values)

    return losses_fn


# The promises.


def check_update(h, state, params, is_finite, is_signed):
    """h is like the parameters, the state is finite; returns the weights."""
    assert jax.tree.structure(h) == jax.tree.structure(params)
    for ours, param in zip(jax.tree.leaves(h), jax.tree.leaves(params), strict=True):
        assert (ours.shape, ours.dtype) == (param.shape, param.dtype)
        assert not (is_finite and jnp.any(jnp.isnan(ours)))
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert jnp.all(jnp.isfinite(leaf))
    weights = np.asarray(sa.loss_weights(state))
    assert is_signed or np.all(weights >= 0)
    for value in sa.diagnostics(state).values():
        assert value.shape == ()
        assert jnp.isfinite(value)
    return weights


def check_sum(h, stacked, weights):
    """h against float64, as exact as its dtype and the size of the terms allow."""
    for ours, each in zip(jax.tree.leaves(h), jax.tree.leaves(stacked), strict=True):
        each = np.asarray(each).astype(np.float64)
        terms = weights.astype(np.float64).reshape(-1, *[1] * (each.ndim - 1)) * each
        info = jnp.finfo(ours.dtype)
        limit = 8 * float(info.eps) * np.abs(terms).sum(axis=0)
        limit = limit + 8 * float(info.smallest_normal)
        # Weights that are smaller than any normal float32 may become 0.
        limit = limit + float(np.finfo(np.float32).tiny) * np.abs(each).sum(axis=0)
        error = np.abs(np.asarray(ours).astype(np.float64) - terms.sum(axis=0))
        # Of terms that cancel the rounding alone may be more than the dtype holds.
        fits = np.abs(terms.sum(axis=0)) + limit < 0.9 * float(info.max)
        assert np.all((error <= limit) | ~fits)


def run_case(data, bad_values):
    """Some steps of a random method on random gradients and losses."""
    draw = data.draw
    let_programs_go()
    size, method, x64 = draw(sizes), draw(st.sampled_from(list(METHODS))), draw(st.booleans())
    tree, is_lazy, steps = draw(trees), draw(st.booleans()), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    with precision(x64), np.errstate(all="ignore"):
        tx = METHODS[method](draw, size)
        params = made(tree, lambda dtype, shape: jnp.asarray(rng.normal(size=shape), dtype))
        is_lazy = is_lazy and bool(jax.tree.leaves(params))  # of no parameters: stacked alone
        state = tx.init(params)
        kinds = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)]
        for _ in range(steps):
            scale = np.asarray([draw(gradient_scales) for _ in range(size)])
            values = np.asarray([draw(losses | bad_values) for _ in range(size)])
            present = draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
            bad = draw(st.lists(bad_values | st.just(0.0), min_size=size, max_size=size))
            stacked = made(tree, lambda dtype, shape: gradients(rng, scale, bad, dtype, shape))
            values = jnp.asarray(values, dtype=float)
            if is_lazy:
                losses_fn = linear_losses(params, stacked, values)
                _, grads = sa.value_and_component_grads(losses_fn)(params)
                h, state = tx.update(grads, state, params, present=present)
            else:
                h, state = tx.update(stacked, state, params, losses=values, present=present)
            is_finite = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(stacked))
            weights = check_update(h, state, params, is_finite, method in SIGNED)
            assert present is None or not np.any(weights[~np.asarray(present)])
            if is_finite:
                check_sum(h, stacked, weights)
            found = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)]
            assert found == kinds
            updates_run.append(method)


def gradients(rng, scale, bad, dtype, shape):
    """K of them, as far as the dtype reaches, each plus a number that is zero or not finite."""
    values = rng.normal(size=(len(scale), *shape)) * scale.reshape(-1, *[1] * len(shape))
    limit = float(jnp.finfo(dtype).max) / 1e4
    values = np.clip(values, -limit, limit) + np.reshape(bad, (-1, *[1] * len(shape)))
    return jnp.asarray(values, dtype)


@pytest.mark.slow
@fuzzed
@hypothesis.given(st.data())
def test_finite_losses_and_gradients(data):
    run_case(data, st.nothing())
    cases_run["finite"] += 1


@pytest.mark.slow
@fuzzed
@hypothesis.given(st.data())
def test_losses_and_gradients_that_are_not_finite(data):
    run_case(data, st.sampled_from([np.nan, np.inf, -np.inf]))
    cases_run["not finite"] += 1


@fuzzed
@hypothesis.given(st.data())
def test_wrong_shapes_never_broadcast(data):
    """Another K, or another shape of one leaf, is an error, not another training."""
    draw = data.draw
    size, method = draw(sizes), draw(st.sampled_from(list(METHODS)))
    tx = METHODS[method](draw, size)
    tree = draw(trees.filter(lambda tree: bool(jax.tree.leaves(tree))))
    params = made(tree, lambda dtype, shape: jnp.ones(shape, jnp.float32))
    hypothesis.assume(jax.tree.leaves(params))
    leaves, treedef = jax.tree.flatten(params)
    stacked = [jnp.ones((size, *leaf.shape)) for leaf in leaves]
    k = draw(st.integers(0, len(leaves) - 1))
    wrong = {
        "unstacked": leaves[k],
        "one more loss": jnp.ones((size + 1, *leaves[k].shape)),
        "one more axis": stacked[k][..., None],
        "wider": jnp.ones((size, *leaves[k].shape[:-1], 7)),
    }[draw(st.sampled_from(["unstacked", "one more loss", "one more axis", "wider"]))]
    hypothesis.assume(wrong.shape != stacked[k].shape)
    stacked[k] = wrong
    state = tx.init(params)
    with pytest.raises(ValueError, match="should have"):
        tx.update(treedef.unflatten(stacked), state, params, losses=jnp.ones(size))
    good = treedef.unflatten([jnp.ones((size, *leaf.shape)) for leaf in leaves])
    for number in {size + 1, size - 1} - {0}:
        with pytest.raises(ValueError, match=r"losses, got|entries"):
            tx.update(good, state, params, losses=jnp.ones(number))
    # And the state is as good as new.
    jax.eval_shape(lambda s: tx.update(good, s, params, losses=jnp.ones(size)), state)
    cases_run["wrong"] += 1
