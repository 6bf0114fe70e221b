"""What the state says: the numbers themselves, by name, and without cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import all_factories, each_kind, quadratic_losses, quadratic_params, training_step
from oracle import slope_of

import softadapt_optax as sa

FACTORIES = all_factories()
NAMES = ("far", "near", "small")


@jax.jit
def losses_and_stacked_gradients(params):
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    return grads.losses, grads.stack()


def trained(tx, steps=8):
    """The state after some steps, and before each the losses and the stacked gradients."""
    params = quadratic_params()
    state, step = tx.init(params), jax.jit(training_step(tx))
    losses, gradients = [], []
    for _ in range(steps):
        loss, stacked = losses_and_stacked_gradients(params)
        leaves = [np.asarray(leaf).reshape(3, -1) for leaf in jax.tree.leaves(stacked)]
        losses.append(np.asarray(loss, np.float64))
        gradients.append(np.concatenate(leaves, axis=1, dtype=np.float64))
        params, state, named = step(params, state)
    return state, np.asarray(losses), np.asarray(gradients), named


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@each_kind
def test_weights_and_losses_of_every_method(name):
    state, losses, _, named = trained(optax.chain(FACTORIES[name](), optax.sgd(0.01)))
    scalars = sa.diagnostics(state, like=named)
    every = 2 if "every" in name else 1
    weights = sa.loss_weights(state)
    for k, loss in enumerate(NAMES):
        close(scalars[f"weights/{loss}"], weights[k])
        close(scalars[f"losses/{loss}"], losses[-every:, k].mean())
    assert all(value.shape == () for value in scalars.values())
    assert ("slopes/far" in scalars) == name.startswith("softadapt")


@pytest.mark.parametrize("rate", ["absolute", "relative"])
def test_slopes(rate):
    tx = optax.chain(sa.softadapt(3, history=4, order=2, rate=rate), optax.sgd(0.01))
    state, losses, _, named = trained(tx, steps=3)
    scalars = sa.diagnostics(state, like=named)
    assert [scalars[f"slopes/{loss}"] for loss in NAMES] == [0, 0, 0]  # not yet
    state, losses, _, named = trained(tx, steps=6)
    scalars = sa.diagnostics(state, like=named)
    wanted = [slope_of(list(losses[:, k]), 4, 2, rate, eps=1e-8) for k in range(3)]
    close([scalars[f"slopes/{loss}"] for loss in NAMES], wanted)


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "own gramian method"])
def test_norms_cosines_and_conflicts(name):
    state, _, gradients, named = trained(optax.chain(FACTORIES[name](), optax.sgd(0.01)))
    scalars = sa.diagnostics(state, like=named)
    gramian = gradients[-1] @ gradients[-1].T
    norms = np.sqrt(np.diagonal(gramian))
    cosines = gramian / norms[:, None] / norms[None, :]
    close([scalars[f"gradient_norms/{loss}"] for loss in NAMES], norms)
    close(scalars["cosines/far/near"], cosines[0, 1])
    close(scalars["cosines/far/small"], cosines[0, 2])
    close(scalars["cosines/near/small"], cosines[1, 2])
    close(scalars["conflict_share"], np.mean(cosines[np.triu_indices(3, 1)] < 0))
    assert 0 < scalars["conflict_share"] < 1


@pytest.mark.parametrize("name", ["gradnorm", "normalized_gradients, rates"])
def test_norms_alone(name):
    state, _, gradients, named = trained(optax.chain(FACTORIES[name](), optax.sgd(0.01)))
    scalars = sa.diagnostics(state, like=named)
    norms = np.linalg.norm(gradients[-1], axis=1)
    close([scalars[f"gradient_norms/{loss}"] for loss in NAMES], norms)
    assert not any(key.startswith(("cosines", "conflict")) for key in scalars)


def test_norms_are_those_of_shared_parameters():
    tx = sa.mgda(3, shared={"w": True, "b": False})
    state, _, gradients, named = trained(tx, steps=1)
    scalars = sa.diagnostics(state, like=named)
    wanted = np.linalg.norm(gradients[-1][:, 4:], axis=1)  # "b" has four entries and comes first
    close([scalars[f"gradient_norms/{loss}"] for loss in NAMES], wanted)


def test_an_absent_loss_keeps_what_was_seen_last():
    tx = sa.pcgrad(3)
    params = jnp.asarray([1.0, 2.0])
    losses_fn = lambda scale: lambda x: (scale * x[0], scale * (x[1] - x[0]), scale * x[1])
    state = tx.init(params)

    @jax.jit
    def step(state, scale, present):
        _, grads = sa.value_and_component_grads(losses_fn(scale))(params)
        return tx.update(grads, state, params, present=present)[1]

    for scale, is_here in ((1.0, True), (2.0, False), (jnp.nan, True)):
        state = step(state, scale, jnp.asarray([True, is_here, True]))
    scalars = sa.diagnostics(state)
    close([scalars[f"losses/{k}"] for k in range(3)], [2.0, 1.0, 4.0])
    close([scalars[f"gradient_norms/{k}"] for k in range(3)], [2.0, 2**0.5, 2.0])
    close(scalars["cosines/0/1"], -(0.5**0.5))  # of the first step
    close(scalars["cosines/0/2"], 0.0)
    close(scalars["conflict_share"], 1 / 3)
    assert scalars["steps"] == 2  # the last was dropped


def test_gradients_that_vanish():
    tx = sa.mgda(2)
    _, state = tx.update(jnp.zeros((2, 3)), tx.init(None), losses=[1.0, 2.0])
    scalars = sa.diagnostics(state)
    assert scalars["cosines/0/1"] == scalars["conflict_share"] == 0
    state = sa.pcgrad(1).init(None)
    assert sa.diagnostics(state)["conflict_share"] == 0


def test_rounding_does_not_make_a_cosine_larger_than_one():
    stacked = jnp.outer(jnp.linspace(0.1, 1.3, 40), jax.random.normal(jax.random.key(0), (7,)))
    tx = sa.mgda(40)
    _, state = jax.jit(tx.update)(stacked, tx.init(None), losses=jnp.ones(40))
    assert jnp.max(state.gradient_cosines - jnp.diag(jnp.diagonal(state.gradient_cosines))) > 1
    scalars = sa.diagnostics(state)
    cosines = [value for name, value in scalars.items() if name.startswith("cosines")]
    assert max(cosines) == 1


def test_a_loss_of_priority_zero_is_not_seen():
    tx = sa.pcgrad(2, priorities=[1.0, 0.0])
    _, state = tx.update(jnp.ones((2, 3)), tx.init(None), losses=[1.0, 2.0])
    scalars = sa.diagnostics(state)
    assert scalars["losses/0"] == 1
    assert scalars["losses/1"] == scalars["gradient_norms/1"] == scalars["cosines/0/1"] == 0


def test_names_may_be_given_alone_and_do_not_run_into_each_other():
    state = sa.pcgrad(2).init(None)
    assert "cosines/fit/size" in sa.diagnostics(state, like=["fit", "size"])
    with pytest.raises(ValueError, match="may be the wrong way round"):
        sa.diagnostics(state, like=["size", "fit"])
    with pytest.raises(ValueError, match="run into each other"):
        sa.diagnostics(state, like={"a/b": 1.0, "a": {"b": 2.0}})
    with pytest.raises(ValueError, match="run into each other"):
        sa.diagnostics(sa.pcgrad(4).init(None), like=["a", "a/b", "b/c", "c"])


def test_names():
    state = sa.softadapt(2).init(None)
    assert {"weights/0", "losses/1"} <= sa.diagnostics(state).keys()
    assert {"weights/0", "losses/1"} <= sa.diagnostics(state, like=jnp.ones(2)).keys()
    nested = {"task": {"a": 1.0, "b": 2.0}}
    assert {"weights/task/a", "slopes/task/b"} <= sa.diagnostics(state, like=nested).keys()


def test_inside_jit_and_for_a_batch_of_states():
    tx = optax.chain(sa.pcgrad(3), optax.sgd(0.01))
    step = training_step(tx)

    @jax.jit
    @jax.vmap
    def run(scale):
        params = jax.tree.map(lambda leaf: scale * leaf, quadratic_params())
        _, state, losses = step(params, tx.init(params))
        return state, sa.diagnostics(state, like=losses)

    states, inside = run(jnp.asarray([1.0, 2.0]))
    outside = sa.diagnostics(states, like=dict.fromkeys(NAMES, 0.0))
    assert inside.keys() == outside.keys()
    for name, values in inside.items():
        assert values.shape == (2,)
        close(values, outside[name])
    assert inside["losses/far"][0] != inside["losses/far"][1]


def test_wrong_use():
    state = sa.softadapt(2).init(None)
    with pytest.raises(ValueError, match="`like` should have 2 entries"):
        sa.diagnostics(state, like={"a": 1.0})
    with pytest.raises(ValueError, match="with 0"):
        sa.diagnostics(optax.adam(0.1).init(jnp.zeros(2)))
