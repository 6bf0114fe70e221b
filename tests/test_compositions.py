"""The table of docs/how_to/compositions.md: what works is right, what cannot work says why."""

import equinox as eqx
import flax.nnx
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import OPTAX_VERSION, quadratic_losses, quadratic_params, training_step

import softadapt_optax as sa


def weighting(**options):
    return sa.softadapt(3, 1.0, history=2, loss_weighted=True, **options)


def run(tx, steps=6, stacked=False, params=None):
    params = quadratic_params() if params is None else params
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        _, grads = sa.value_and_component_grads(quadratic_losses)(params)
        if stacked:
            updates, state = tx.update(grads.stack(), state, params, losses=grads.losses)
        else:
            updates, state = tx.update(grads, state, params)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def by_hand(optimizer, steps=6):
    """The same steps with our weights, but h formed and passed on by hand."""
    weights_of, params = weighting(), quadratic_params()
    weights_state, state = weights_of.init(params), optimizer.init(params)

    @jax.jit
    def step(params, weights_state, state):
        _, grads = sa.value_and_component_grads(quadratic_losses)(params)
        _, weights_state = weights_of.update(grads, weights_state, params)
        weights = sa.loss_weights(weights_state)
        h = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), grads.stack())
        updates, state = optimizer.update(h, state, params)
        return optax.apply_updates(params, updates), weights_state, state

    for _ in range(steps):
        params, weights_state, state = step(params, weights_state, state)
    return params


WORKS_BEHIND = {
    "adam": lambda: optax.adam(0.05),
    "clipping": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5)),
    "weight decay": lambda: optax.adamw(0.05, weight_decay=0.1),
    "masked": lambda: optax.masked(optax.adam(0.05), {"w": True, "b": False}),
    "partition": lambda: optax.partition(
        {"fast": optax.sgd(0.1), "frozen": optax.set_to_zero()}, {"w": "fast", "b": "frozen"}
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.05), 3),
    "lbfgs without line search": lambda: optax.lbfgs(0.05, linesearch=None),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation(),
    "MultiSteps with extra arguments": lambda: with_extra_args(
        optax.MultiSteps(optax.adam(0.05), 2)
    ),
}


def with_extra_args(steps):
    """What `gradient_transformation` of `MultiSteps` drops reaches the optimizer in it this way."""
    return optax.GradientTransformationExtraArgs(steps.init, steps.update)


@pytest.mark.parametrize("name", WORKS_BEHIND)
def test_what_works_behind_a_weighting(name):
    optimizer = WORKS_BEHIND[name]()
    wanted = by_hand(optimizer)
    for stacked in (False, True):
        params, _ = run(optax.chain(weighting(), optimizer), stacked=stacked)
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6),
            params,
            wanted,
        )


@pytest.mark.parametrize("stacked", [False, True])
def test_schedule_free_around_a_chain(stacked):
    tx = optax.contrib.schedule_free(optax.chain(weighting(), optax.sgd(0.05)), 0.05)
    params, _ = run(tx, steps=40, stacked=stacked)
    assert sum(jax.tree.leaves(quadratic_losses(params))) < sum(
        jax.tree.leaves(quadratic_losses(quadratic_params()))
    )


def test_lookahead_around_a_chain_takes_component_grads_alone():
    """Of its fast parameters. It does not forward `losses`, which stacked gradients need."""
    inner = optax.chain(weighting(), optax.sgd(0.05))
    tx = optax.lookahead(inner, sync_period=100, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(quadratic_params())
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        _, grads = sa.value_and_component_grads(quadratic_losses)(params.fast)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(6):
        params, state = step(params, state)
    _, grads = sa.value_and_component_grads(quadratic_losses)(params.fast)
    wanted = by_hand(optax.sgd(0.05))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params.fast, wanted)
    with pytest.raises(TypeError, match="losses"):
        tx.update(grads.stack(), state, params, losses=grads.losses)


def test_line_search_behind_component_grads():
    """The losses travel inside `ComponentGrads`, so that the search's own arguments are free."""
    tx = optax.chain(weighting(weight_sum=3.0), optax.lbfgs())
    params = quadratic_params()
    state = tx.init(params)
    value_fn = lambda p: sum(jax.tree.leaves(quadratic_losses(p)))
    values = []

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        _, grads = sa.value_and_component_grads(quadratic_losses)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value

    for _ in range(5):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < values[0]


@pytest.mark.parametrize("search", [optax.lbfgs, optax.scale_by_backtracking_linesearch])
def test_line_searches_refuse_losses_beside_stacked_gradients(search):
    """They hand each argument that they do not know to the function that they lower."""
    options = {} if search is optax.lbfgs else {"max_backtracking_steps": 5}
    tx = optax.chain(weighting(), search(**options))
    params = quadratic_params()
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    value_fn = lambda p: sum(jax.tree.leaves(quadratic_losses(p)))
    value, grad = jax.value_and_grad(value_fn)(params)
    search_args = {"value": value, "grad": grad, "value_fn": value_fn}
    with pytest.raises(TypeError, match="losses"):
        tx.update(grads.stack(), tx.init(params), params, losses=grads.losses, **search_args)
    jax.eval_shape(lambda state: tx.update(grads, state, params, **search_args), tx.init(params))


def two_bowls(x):
    """Two losses in conflict, none of which falls to zero."""
    curvatures = jnp.asarray([1.0, 3.0, 10.0, 30.0])
    return {
        "fit": 0.5 * jnp.sum(curvatures * (x - 1.0) ** 2),
        "size": 0.5 * jnp.sum((x + 0.5) ** 2) + 0.1,
    }


def lbfgs_run(weighting, steps=30):
    """How many steps go uphill for the weights of the step, and the losses' sum along the run."""
    tx = optax.chain(weighting, optax.lbfgs(0.3, linesearch=None))

    def step(carry, _):
        x, state = carry
        losses, grads = sa.value_and_component_grads(two_bowls)(x)
        updates, state = tx.update(grads, state, x)
        h = grads.combine(sa.loss_weights(state, like=losses))
        found = jnp.vdot(h, updates) > 1e-6 * jnp.vdot(h, h), sum(losses.values())
        return (x + updates, state), found

    x = jnp.linspace(-1.0, 2.0, 4)
    _, found = jax.jit(lambda: jax.lax.scan(step, (x, tx.init(x)), length=steps))()
    return int(jnp.sum(found[0])), found[1]


def frozen_weights():
    """The remedy: the weights that a method has found, and a memory of their own behind them."""
    losses, grads = sa.value_and_component_grads(two_bowls)(jnp.linspace(-1.0, 2.0, 4))
    tx = sa.realtime_loss(2)
    _, state = tx.update(grads, tx.init(None))
    return sa.fixed_weights(sa.loss_weights(state, like=losses))


@pytest.mark.parametrize(
    ("make", "goes_uphill"),
    [
        (lambda: sa.realtime_loss(2), True),
        (lambda: sa.mgda(2, "norm", every=2), True),
        (lambda: sa.softadapt(2), False),
        (frozen_weights, False),
        *(
            pytest.param(make, False, marks=pytest.mark.slow)
            for make in (
                lambda: sa.fixed_weights([1.0, 1.0]),
                lambda: sa.initial_loss(2),
                lambda: sa.prior_loss({"fit": 20.0, "size": 2.0}),
                lambda: sa.uncertainty(2),
                lambda: sa.learned_weights(2),
                lambda: sa.gradnorm(2),
            )
        ),
    ],
)
def test_lbfgs_goes_uphill_where_the_weights_change_fast(make, goes_uphill):
    """The page warns of it: differences of h are then no curvature."""
    uphill, sums = lbfgs_run(make())
    if goes_uphill:
        assert uphill >= 3
        assert sums[-1] > 1000 * sums[0]
    else:
        assert uphill <= 4  # where the weights still move a little, at the minimum
        assert sums[-1] < 0.5 * sums[0]
        assert jnp.max(sums) <= sums[0]


def test_apply_if_finite_behind_catches_a_bad_gradient():
    """A finite loss with a gradient that is not: weights go on, the step is skipped."""
    losses_fn = lambda p: (jnp.sqrt(p), p)
    tx = optax.chain(sa.softadapt(2, history=2), optax.apply_if_finite(optax.sgd(0.1), 5))
    params = jnp.asarray(0.0)
    state = tx.init(params)
    updates, state = tx.update(sa.value_and_component_grads(losses_fn)(params)[1], state, params)
    assert updates == 0.0
    assert state[0].loss_records[1, 0] == 1


def test_microbatch_accumulates_losses_and_stacked_gradients():
    x = jnp.arange(8.0).reshape(8, 1)
    params = {"w": jnp.ones(3), "b": jnp.ones(())}

    def losses_fn(params, x):
        y = jnp.tanh(x * params["w"][None] + params["b"])
        return {"square": jnp.mean(y**2), "mean": jnp.mean(y)}

    def losses_and_stack(params, x):
        losses, grads = sa.value_and_component_grads(losses_fn)(params, x)
        return losses, grads.stack()

    accumulated = optax.microbatching.microbatch(
        losses_and_stack,
        argnums=1,
        microbatch_size=2,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )
    losses, stacked = accumulated(params, x)
    tx = sa.softadapt(2)
    h, _ = tx.update(stacked, tx.init(params), params, losses=losses)
    wanted, _ = tx.update(sa.value_and_component_grads(losses_fn)(params, x)[1], tx.init(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), h, wanted)


def test_linen_train_state_does_not_take_component_grads():
    tx = optax.chain(weighting(), optax.sgd(0.1))
    state = flax.training.train_state.TrainState.create(
        apply_fn=None, params=quadratic_params(), tx=tx
    )
    losses, grads = sa.value_and_component_grads(quadratic_losses)(state.params)
    with pytest.raises(TypeError, match="ComponentGrads"):
        state.apply_gradients(grads=grads)
    with pytest.raises(ValueError, match="`losses` should be passed"):  # it keeps them to itself
        state.apply_gradients(grads=grads.stack(), losses=losses)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)  # the way around
    params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    assert sa.loss_weights(state.opt_state, like=losses).keys() == losses.keys()


def test_nnx_optimizer_takes_stacked_gradients():
    model = flax.nnx.Linear(3, 2, rngs=flax.nnx.Rngs(0))
    tx = optax.chain(sa.softadapt(2), optax.sgd(0.1))
    optimizer = flax.nnx.Optimizer(model, tx, wrt=flax.nnx.Param)
    graph, params = flax.nnx.split(model, flax.nnx.Param)

    def losses_fn(params):
        y = flax.nnx.merge(graph, params)(jnp.ones((4, 3)))
        return {"square": jnp.mean(y**2), "mean": jnp.mean(y)}

    losses, grads = sa.value_and_component_grads(losses_fn)(params)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    h = jax.tree.leaves(grads.combine([0.5, 0.5]))
    optimizer.update(model, grads.stack(), losses=losses)
    after = jax.tree.leaves(flax.nnx.state(model, flax.nnx.Param))
    for old, new, step in zip(before, after, h, strict=True):
        np.testing.assert_allclose(new, old - 0.1 * step, rtol=1e-5, atol=1e-7)


def test_equinox_models_under_filter_jit():
    """Activation functions and other static leaves stay out of it: None takes their place."""
    model = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    x = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)
    tx = optax.chain(sa.softadapt(3), optax.sgd(0.1))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def losses_of(model, x):
        y = jax.vmap(model)(x)
        return {"fit": jnp.mean((y - 1) ** 2), "size": jnp.mean(y**2), "slope": jnp.mean(y)}

    @eqx.filter_jit
    def step(model, state, x):
        params, static = eqx.partition(model, eqx.is_inexact_array)
        losses_fn = lambda params: losses_of(eqx.combine(params, static), x)
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, updates

    trained, _, updates = step(model, tx.init(params), x)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert trained.activation is model.activation
    mean = lambda p: sum(losses_of(eqx.combine(p, static), x).values()) / 3
    for new, old, slope in zip(
        *map(jax.tree.leaves, (eqx.filter(trained, eqx.is_inexact_array), params)),
        jax.tree.leaves(jax.grad(mean)(params)),
        strict=True,
    ):
        np.testing.assert_allclose(new, old - 0.1 * slope, rtol=1e-5, atol=1e-6)


def test_equinox_style_models_with_none_in_them():
    params = {"w": jnp.ones(3), "static": None}
    tx = optax.chain(sa.softadapt(2), optax.adam(0.1))
    _, grads = sa.value_and_component_grads(lambda p: (jnp.sum(p["w"]), jnp.sum(p["w"] ** 2)))(
        params
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["static"] is None


# What cannot work.

WRAPPERS = {
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 2),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "masked": lambda inner: optax.masked(inner, {"w": True, "b": False}),
    "partition": lambda inner: optax.partition(
        {"ours": inner, "plain": optax.sgd(0.1)}, {"w": "ours", "b": "plain"}
    ),
    "flatten": optax.flatten,
    "conditionally_transform": lambda inner: optax.conditionally_transform(
        inner, lambda step: step >= 0
    ),
    "mechanize": optax.contrib.mechanize,
}

WHERE = {
    "MultiSteps": "the weighting is inside `MultiSteps`; put it first",
    "apply_if_finite": "inside `apply_if_finite` or",
    "masked": "inside `masked` or",
    "partition": "inside `masked` or `partition`",
    "flatten": "inside `flatten`",
    "conditionally_transform": "or `conditionally_transform`",
    "mechanize": "inside a wrapper of `optax.contrib`",
}

BEFORE = {
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
    "clip": lambda: optax.clip(1.0),
    "adam": lambda: optax.adam(0.1),
    "ema": lambda: optax.ema(0.9),
    "scale": lambda: optax.scale(0.1),
    "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
    "zero_nans": optax.zero_nans,
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", [*WRAPPERS, *BEFORE, "nothing"])
def test_component_grads_in_the_wrong_place_say_so(name, jit):
    if name in WRAPPERS:
        tx = WRAPPERS[name](optax.chain(weighting(), optax.sgd(0.1)))
    elif name in BEFORE:
        tx = optax.chain(BEFORE[name](), weighting(), optax.sgd(0.1))
    else:
        tx = optax.adam(0.1)
    params = quadratic_params()
    step = training_step(tx)
    with pytest.raises(
        TypeError, match=WHERE.get(name, "is missing, or is not first in its chain")
    ):
        (jax.jit(step) if jit else step)(params, tx.init(params))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MultiSteps", "is wrapped in `MultiSteps`"),
        ("masked", "gradients of all parameters, got masked ones"),
        ("partition", "gradients of all parameters, got masked ones"),
        ("flatten", "Stacked gradients should have shape"),
    ],
)
def test_stacked_gradients_in_the_wrong_place_say_so(name, message):
    if name == "MultiSteps" and OPTAX_VERSION < (0, 2, 8):
        message = "could not be broadcast|should have shape"  # it broke before it reached us
    with pytest.raises(ValueError, match=message):
        run(WRAPPERS[name](optax.chain(weighting(), optax.sgd(0.1))), stacked=True)


@pytest.mark.parametrize("name", ["apply_if_finite", "conditionally_transform", "mechanize"])
def test_stacked_gradients_break_where_we_cannot_see_them(name):
    with pytest.raises((TypeError, ValueError)):
        run(WRAPPERS[name](optax.chain(weighting(), optax.sgd(0.1))), stacked=True)


@pytest.mark.parametrize("name", ["adam", "ema"])
def test_what_cannot_be_seen_of_stacked_gradients_before_a_weighting(name):
    """The page warns of it: the K gradients are well shaped when they come, the state grew."""
    tx = optax.chain(BEFORE[name](), weighting())
    params = quadratic_params()
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    with jax.numpy_rank_promotion("allow"):  # as it is outside of these tests
        _, state = jax.eval_shape(
            lambda state: tx.update(grads.stack(), state, params, losses=grads.losses),
            tx.init(params),
        )
    grown = {jnp.shape(leaf) for leaf in jax.tree.leaves(state)} - {
        jnp.shape(leaf) for leaf in jax.tree.leaves(tx.init(params))
    }
    assert grown == {(3, *leaf.shape) for leaf in jax.tree.leaves(params)}


def test_two_weightings_in_one_chain_say_so():
    tx = optax.chain(weighting(), weighting(), optax.sgd(0.1))
    with pytest.raises(
        ValueError, match="what another weighting before this one in the chain has made"
    ):
        run(tx)
    with pytest.raises(
        ValueError, match="what another weighting before this one in the chain has made"
    ):
        run(tx, stacked=True)
