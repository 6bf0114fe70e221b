"""`softadapt_optax.flax`: Flax's training states, over lazy and stacked gradients."""

import subprocess
import sys

import flax.linen as nn
import flax.serialization
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import softadapt_optax as sa
from softadapt_optax.flax import Optimizer, TrainState, value_and_component_grads

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
FACTORIES = {
    "softadapt": lambda: sa.softadapt(2, 0.5, history=2, loss_weighted=True),
    "mgda": lambda: sa.mgda(2),
    "gradnorm, every=2": lambda: sa.gradnorm(2, every=2),
}


# Each method and each form once; the other pairs take the slow run.
QUICK = [("softadapt", "lazy"), ("mgda", "lazy"), ("gradnorm, every=2", "stacked")]
each_form = pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=() if (name, form) in QUICK else pytest.mark.slow)
        for name in FACTORIES
        for form in ("lazy", "stacked")
    ],
)


def chain(name):
    return optax.chain(FACTORIES[name](), optax.clip_by_global_norm(1.0), optax.adam(0.1))


def losses_of(y):
    return {"fit": jnp.mean((y - 1.0) ** 2), "size": jnp.mean(jnp.abs(y))}


def plain_loop(tx, params, losses_fn, num_steps):
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state):
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(num_steps):
        params, opt_state = step(params, opt_state)
    return params, opt_state


def assert_trees_close(got, expected):
    for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2e-5, atol=1e-6)


# Linen.


def linen_state(tx, cls=TrainState):
    model = nn.Dense(2)
    return cls.create(apply_fn=model.apply, params=model.init(jax.random.key(0), X), tx=tx)


def linen_losses(state):
    return lambda params: losses_of(state.apply_fn(params, X))


@each_form
def test_train_state_steps_as_a_plain_loop(name, form):
    @jax.jit
    def step(state):
        losses, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
        if form == "stacked":
            return state.apply_gradients(grads=grads.stack(), losses=losses)
        return state.apply_gradients(grads=grads)

    state = linen_state(chain(name))
    params, opt_state = plain_loop(chain(name), state.params, linen_losses(state), 5)
    for _ in range(5):
        state = step(state)
    assert step._cache_size() == 2  # Flax's own: the step is a Python number at first
    assert int(state.step) == 5
    assert_trees_close(state.params, params)
    assert_trees_close(sa.loss_weights(state.opt_state), sa.loss_weights(opt_state))


def test_train_state_replaces_what_it_is_given():
    class WithStatistics(TrainState):
        statistics: float = 0.0

    state = linen_state(optax.chain(sa.softadapt(2), optax.sgd(0.1)), WithStatistics)
    _, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
    state = state.apply_gradients(grads=grads, statistics=3.0)
    assert isinstance(state, WithStatistics)
    assert state.statistics == 3.0
    assert state.replace(step=7).step == 7


def test_train_state_passes_on_who_is_present():
    state = linen_state(optax.chain(sa.softadapt(2), optax.sgd(0.1)))
    losses, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
    present = {"fit": True, "size": False}
    state = state.apply_gradients(grads=grads, present=present)
    assert sa.loss_weights(state.opt_state, like=losses) == {"fit": 0.5, "size": 0.0}


@pytest.mark.parametrize("form", ["lazy", "stacked"])
def test_train_state_passes_on_the_target(form):
    """As a function of the parameters or as its gradient."""
    state = linen_state(optax.chain(sa.hypergradient(2, optax.sgd(1.0)), optax.sgd(0.1)))
    losses, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
    function = jax.grad(lambda params: linen_losses(state)(params)["size"])
    _, wanted = state.tx.update(grads, state.opt_state, state.params, target=function(state.params))
    for target in (function, function(state.params)):
        given = {"grads": grads} if form == "lazy" else {"grads": grads.stack(), "losses": losses}
        after = state.apply_gradients(**given, target=target)
        weights = sa.loss_weights(after.opt_state)
        np.testing.assert_allclose(weights, sa.loss_weights(wanted), rtol=1e-4)
        assert np.ptp(weights) > 0.01


def test_train_state_is_flaxs_own_without_a_weighting():
    state = linen_state(optax.adam(0.1))
    original = linen_state(optax.adam(0.1), flax.training.train_state.TrainState)
    gradient = jax.grad(lambda params: losses_of(state.apply_fn(params, X))["fit"])(state.params)
    assert_trees_close(
        state.apply_gradients(grads=gradient).params,
        original.apply_gradients(grads=gradient).params,
    )


def test_train_state_is_saved_and_restored():
    state = linen_state(chain("softadapt"))
    for _ in range(3):
        _, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
        state = state.apply_gradients(grads=grads)
    saved = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(linen_state(chain("softadapt")), saved)
    assert int(restored.step) == 3
    for part in ("params", "opt_state"):
        got, expected = getattr(restored, part), getattr(state, part)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_train_state_says_what_is_missing():
    state = linen_state(optax.chain(sa.softadapt(2), optax.sgd(0.1)))
    _, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
    with pytest.raises(ValueError, match="`losses` should be passed"):
        state.apply_gradients(grads=grads.stack())
    with pytest.raises(TypeError, match="`ComponentGrads` should go to a weighting"):
        linen_state(optax.adam(0.1)).apply_gradients(grads=grads)


def test_train_state_refuses_stacked_gradients_without_a_weighting():
    """Optax would broadcast the parameters."""
    state = linen_state(optax.adam(0.1))
    losses, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
    refused = pytest.raises(ValueError, match="`tx` should have a weighting")
    with jax.numpy_rank_promotion("allow"), refused:  # as users have it
        state.apply_gradients(grads=grads.stack(), losses=losses)
    with pytest.raises(ValueError, match="`losses` should be passed"):
        state.apply_gradients(grads=grads.stack())


def test_train_state_takes_a_transformation_with_several_weightings():
    """One of the user's own, over a tree of lazy gradients."""
    tx = optax.chain(sa.softadapt(2), optax.sgd(0.1))

    def update(grads, state, params=None):
        found = {name: tx.update(grads[name], state[name], params[name]) for name in params}
        return tuple({name: pair[part] for name, pair in found.items()} for part in (0, 1))

    both = optax.GradientTransformationExtraArgs(lambda p: {k: tx.init(p[k]) for k in p}, update)
    params = {"first": jnp.ones(3), "second": jnp.full(2, 2.0)}
    grads = {
        name: sa.value_and_component_grads(losses_of)(value)[1] for name, value in params.items()
    }
    state = TrainState.create(apply_fn=None, params=params, tx=both).apply_gradients(grads=grads)
    for name, value in params.items():
        updates, _ = tx.update(grads[name], tx.init(value), value)
        np.testing.assert_allclose(state.params[name], value + updates, rtol=1e-6)


# NNX.


class Network(nnx.Module):
    """A layer, normalisation with statistics that are no parameters, and a layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(3, 4, use_bias=False, rngs=rngs)  # the norm would hide it
        self.norm = nnx.BatchNorm(4, use_running_average=False, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(self.hidden(x)))


def nnx_losses(model):
    return losses_of(model(X))


@each_form
def test_optimizer_steps_as_a_plain_loop(name, form):
    def train(model, num_steps):
        optimizer = Optimizer(model, chain(name), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            losses, grads = value_and_component_grads(nnx_losses)(model)
            if form == "stacked":
                optimizer.update(model, grads.stack(), losses=losses)
            else:
                optimizer.update(model, grads)

        for _ in range(num_steps):
            step(model, optimizer)
        return optimizer

    model = Network()
    optimizer = train(model, 5)
    assert int(optimizer.step[...]) == 5
    expected = Network()
    tx = chain(name)
    opt_state = tx.init(nnx.state(expected, nnx.Param))

    @nnx.jit
    def plain_step(model, opt_state):
        _, grads = value_and_component_grads(nnx_losses)(model)
        params = nnx.state(model, nnx.Param)
        updates, opt_state = tx.update(grads, opt_state, params)
        nnx.update(model, optax.apply_updates(params, updates))
        return opt_state

    for _ in range(5):
        opt_state = plain_step(expected, opt_state)
    assert_trees_close(nnx.state(model), nnx.state(expected))


def test_nnx_gradients_and_statistics_are_those_of_nnx():
    ours, theirs = Network(), Network()
    losses, grads = value_and_component_grads(nnx_losses)(ours)
    total, expected = nnx.value_and_grad(lambda model: sum(nnx_losses(model).values()))(theirs)
    np.testing.assert_allclose(sum(losses.values()), total, rtol=1e-6)
    assert_trees_close(grads.combine([1.0, 1.0]), expected)
    statistics = nnx.state(ours, nnx.BatchStat)
    assert_trees_close(statistics, nnx.state(theirs, nnx.BatchStat))
    assert not np.allclose(jax.tree.leaves(statistics)[0], 0.0), "the statistics have moved"


def test_nnx_auxiliary_output():
    (losses, aux), grads = value_and_component_grads(
        lambda model, shift: (losses_of(model(X) + shift), shift), has_aux=True
    )(Network(), 2.0)
    assert aux == 2.0
    np.testing.assert_allclose(grads.losses, [losses["fit"], losses["size"]])


def test_two_losses_are_no_pair_of_losses_and_aux():
    """An array of two would unpack like one."""
    for losses_fn, got in (
        (lambda model: jnp.stack([jnp.mean(model(X)), jnp.mean(model(X) ** 2)]), "an array of sh"),
        (lambda model: losses_of(model(X)), "dict"),
    ):
        with pytest.raises(TypeError, match=f"should return a pair .* got {got}"):
            value_and_component_grads(losses_fn, has_aux=True)(Network())


def test_train_state_passes_on_the_traces():
    state = linen_state(optax.chain(sa.ntk_weights(2), optax.sgd(0.1)))
    losses, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
    given = {"fit": 1.0, "size": 3.0}
    for traces in (given, lambda params: given):
        after = state.apply_gradients(grads=grads, ntk_traces=traces)
        weights = sa.loss_weights(after.opt_state, like=losses)
        np.testing.assert_allclose([weights["fit"], weights["size"]], [4.0, 4 / 3], rtol=1e-6)


def test_train_state_passes_on_the_previous_losses():
    state = linen_state(optax.chain(sa.famo(2, optax.sgd(1.0)), optax.sgd(0.1)))
    for _ in range(2):
        losses, grads = sa.value_and_component_grads(linen_losses(state))(state.params)
        previous = {"fit": losses["fit"], "size": losses["size"] / 2}
        state = state.apply_gradients(grads=grads, previous_losses=previous)
    logits = state.opt_state[0].weighting_state.logits
    assert logits[0] > 0.05 > -0.05 > logits[1]


def test_optimizer_passes_on_the_previous_losses():
    model = Network()
    tx = optax.chain(sa.famo(2, optax.sgd(1.0)), optax.sgd(0.01))
    optimizer = Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        losses, grads = value_and_component_grads(nnx_losses)(model)
        previous = {"fit": losses["fit"], "size": losses["size"] / 2}
        optimizer.update(model, grads, previous_losses=previous)

    for _ in range(2):
        step(model, optimizer)
    logits = optimizer.opt_state[0].weighting_state.logits
    assert logits[0] > 0.05 > -0.05 > logits[1]


@pytest.mark.parametrize("form", ["numbers", "function"])
def test_optimizer_passes_on_the_traces(form):
    model = Network()
    optimizer = Optimizer(model, optax.chain(sa.ntk_weights(2), optax.sgd(0.01)), wrt=nnx.Param)

    def traces(model):
        first = jax.tree.leaves(nnx.state(model, nnx.Param))[0]
        return {"fit": jnp.ones(()), "size": 3.0 + 0 * jnp.sum(first)}

    @nnx.jit
    def step(model, optimizer):
        losses, grads = value_and_component_grads(nnx_losses)(model)
        given = traces if form == "function" else traces(model)
        optimizer.update(model, grads, ntk_traces=given)
        return losses

    losses = step(model, optimizer)
    weights = sa.loss_weights(optimizer.opt_state, like=losses)
    np.testing.assert_allclose([weights["fit"], weights["size"]], [4.0, 4 / 3], rtol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("form", ["lazy", "stacked"])
def test_optimizer_passes_on_the_target(form, every):
    """As a function of the module, which may have statistics, or as its gradient."""

    def weights_after(target_of):
        model = Network()
        tx = optax.chain(sa.hypergradient(2, optax.sgd(0.3), every=every), optax.sgd(0.01))
        optimizer = Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            losses, grads = value_and_component_grads(nnx_losses)(model)
            given = (grads, {}) if form == "lazy" else (grads.stack(), {"losses": losses})
            optimizer.update(model, given[0], target=target_of(model), **given[1])

        for _ in range(3):
            step(model, optimizer)
        return sa.loss_weights(optimizer.opt_state)

    target = nnx.grad(lambda model: nnx_losses(model)["size"])
    by_function = weights_after(lambda model: target)
    assert np.ptp(by_function) > 0.05
    np.testing.assert_allclose(weights_after(target), by_function, rtol=1e-4)


def test_optimizer_is_flaxs_own_without_a_weighting():
    models = Network(), Network()
    for model, cls in zip(models, (Optimizer, nnx.Optimizer), strict=True):
        optimizer = cls(model, optax.adam(0.1), wrt=nnx.Param)
        optimizer.update(model, nnx.grad(lambda model: nnx_losses(model)["fit"])(model))
    assert_trees_close(*(nnx.state(model, nnx.Param) for model in models))


def test_optimizer_refuses_stacked_gradients_without_a_weighting():
    model = Network()
    optimizer = Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    _, grads = value_and_component_grads(nnx_losses)(model)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    refused = pytest.raises(ValueError, match="`tx` should have a weighting")
    with jax.numpy_rank_promotion("allow"), refused:
        optimizer.update(model, grads.stack())
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)


def test_nnx_gradients_are_those_of_a_module():
    params = linen_state(optax.sgd(0.1)).params
    with pytest.raises(TypeError, match=r"`softadapt_optax\.value_and_component_grads`"):
        value_and_component_grads(losses_of)(params)


def test_slips_are_named():
    model = Network()
    tx = optax.chain(sa.softadapt(2), optax.sgd(0.1))
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    losses, grads = value_and_component_grads(nnx_losses)(model)
    with pytest.raises(TypeError, match="the model first"):
        optimizer.update(grads, model)
    with pytest.raises(TypeError, match=r"is a pair, `losses, grads = "):
        optimizer.update(model, (losses, grads))
    state = linen_state(tx)
    pair = sa.value_and_component_grads(losses_of)(jnp.ones(3))
    with pytest.raises(TypeError, match=r"is a pair, `losses, grads = "):
        state.apply_gradients(grads=pair)
    with pytest.raises(TypeError, match=r"those of `softadapt_optax\.flax` take them"):
        nnx.Optimizer(model, tx, wrt=nnx.Param).update(model, grads)


def test_gradients_of_a_module_by_the_wrong_function_say_so():
    model = Network()
    optimizer = Optimizer(model, optax.chain(sa.softadapt(2), optax.sgd(0.1)), wrt=nnx.Param)
    _, grads = sa.value_and_component_grads(nnx_losses)(model)
    with pytest.raises(TypeError, match=r"`softadapt_optax\.flax\.value_and_component_grads`"):
        optimizer.update(model, grads)
    with pytest.raises(TypeError, match=r"`softadapt_optax\.flax\.value_and_component_grads`"):
        sa.value_and_component_grads(nnx_losses)(nnx.Dropout(0.1, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("factory", [sa.softadapt, sa.pcgrad])
def test_weights_and_diagnostics_of_an_optimizer(factory):
    """Flax keeps the state in variables; what is read from it are arrays."""
    model = Network()
    optimizer = Optimizer(model, optax.chain(factory(2), optax.sgd(0.1)), wrt=nnx.Param)
    losses, grads = value_and_component_grads(nnx_losses)(model)
    optimizer.update(model, grads)
    scalars = sa.diagnostics(optimizer.opt_state, like=losses)
    assert ("cosines/fit/size" in scalars) == (factory is sa.pcgrad)
    assert ("slopes/fit" in scalars) == (factory is sa.softadapt)
    np.testing.assert_allclose(scalars["losses/fit"], losses["fit"], rtol=1e-6)
    values = (*scalars.values(), sa.loss_weights(optimizer.opt_state))
    assert {type(value) for value in values} == {type(jnp.zeros(2))}


def test_optimizer_is_whole_after_an_error():
    model = Network()
    optimizer = Optimizer(model, optax.chain(sa.softadapt(3), optax.sgd(0.1)), wrt=nnx.Param)
    tx = optimizer.tx
    _, grads = value_and_component_grads(nnx_losses)(model)
    with pytest.raises(ValueError, match="num_losses"):
        optimizer.update(model, grads)
    assert optimizer.tx is tx
    assert int(optimizer.step[...]) == 0


def test_gradients_of_other_variables_than_the_optimizers_name_the_filter():
    model = Network()
    optimizer = Optimizer(model, optax.chain(sa.softadapt(2), optax.adam(0.1)), wrt=nnx.Param)
    only_kernels = lambda path, variable: isinstance(variable, nnx.Param) and "kernel" in path
    _, grads = value_and_component_grads(nnx_losses, wrt=only_kernels)(model)
    with pytest.raises(ValueError, match="another `wrt` in `value_and_component_grads`"):
        optimizer.update(model, grads)
    assert int(optimizer.step[...]) == 0


def test_the_package_does_not_import_flax():
    code = (
        "import sys, softadapt_optax; assert 'flax' not in sys.modules; "
        "import softadapt_optax.flax; assert 'flax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    without = "import sys; sys.modules['flax'] = None; import softadapt_optax.flax"
    found = subprocess.run(
        [sys.executable, "-c", without], capture_output=True, text=True, check=False
    )
    assert "`softadapt_optax.flax` needs Flax" in found.stderr
