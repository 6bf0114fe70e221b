"""Names, units, smoothing and schedules: options that every method has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from helpers import training_step, unchecked, weights_along, weights_of_steps
from test_properties import (
    METHODS,
    STEPS,
    each_kind,
    history_of,
    make,
    presence_of,
)

import softadapt_optax as sa
from softadapt_optax._checks import check_losses

PDE = ["pde", "bc", "ic"]  # not in the order of a dictionary, which is bc, ic, pde
TRAJECTORY = np.exp(np.random.default_rng(0).normal(size=(12, 3)))


def named(values, names=PDE):
    return dict(zip(names, values, strict=True))


def pde_losses(params):
    return {name: (k + 1.0) * jnp.sum((params - k) ** 2) for k, name in enumerate(PDE)}


# Names.


@each_kind
def test_names_are_positions_by_another_name(method):
    """Losses by name, whatever the order of the names, train as losses by position."""
    by_name, by_position = METHODS[method](PDE), METHODS[method](3)
    positional = lambda params: [pde_losses(params)[name] for name in PDE]
    params = jnp.linspace(-1.0, 1.0, 4)
    for stacked in (False, True) if method == "softadapt" else (False,):
        carries = [(params, optax.chain(tx, optax.sgd(0.01))) for tx in (by_name, by_position)]
        ends = []
        for (start, tx), losses_fn in zip(carries, (pde_losses, positional), strict=True):
            step = jax.jit(training_step(tx, losses_fn, stacked))
            end, state = start, tx.init(start)
            for _ in range(5):
                end, state, _ = step(end, state)
            ends.append((end, sa.loss_weights(state)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), *ends)


def test_lists_are_in_the_order_of_the_names():
    tx = sa.softadapt(PDE, priorities=[10.0, 1.0, 2.0], units=[1.0, 2.0, 4.0])
    state = tx.init(None)
    wanted = {"pde": 10 / 13, "bc": 0.5 / 13, "ic": 0.5 / 13}
    assert sa.loss_weights(state, like=named([0.0] * 3)) == pytest.approx(wanted)
    _, grads = sa.value_and_component_grads(pde_losses)(jnp.ones(2))
    for updates, losses in ((grads, None), (grads.stack(), pde_losses(jnp.ones(2)))):
        h, state = tx.update(updates, state, losses=losses)
        assert sa.loss_weights(state, like=PDE) == pytest.approx(wanted)
        np.testing.assert_allclose(sa.loss_weights(state), list(wanted.values()), rtol=1e-6)
        np.testing.assert_allclose(h, grads.combine(wanted), rtol=1e-6)
    _, state = tx.update(grads, state, present=[True, False, True])
    assert sa.loss_weights(state, like=["bc", "pde", "ic"])["bc"] == 0


def test_the_names_are_those_of_the_diagnostics():
    tx = optax.chain(sa.pcgrad(PDE), optax.sgd(0.1))
    _, grads = sa.value_and_component_grads(pde_losses)(jnp.ones(2))
    _, state = tx.update(grads, tx.init(jnp.ones(2)), jnp.ones(2))
    scalars = sa.diagnostics(state)
    assert scalars.keys() == sa.diagnostics(state, like=pde_losses(jnp.ones(2))).keys()
    for name, loss in pde_losses(jnp.ones(2)).items():
        np.testing.assert_allclose(scalars[f"losses/{name}"], loss)
    assert "cosines/pde/bc" in scalars
    with pytest.raises(ValueError, match="`like` should have the names of the losses"):
        sa.diagnostics(state, like=["a", "b", "c"])
    weights = sa.fixed_weights({"pde": 2.0, "bc": 1.0, "ic": 0.5})
    assert sa.diagnostics(weights.init(None))["weights/pde"] == 2.0


def test_names_are_no_arrays_in_the_state_and_pass_everywhere():
    tx = optax.chain(sa.softadapt(PDE), optax.adam(0.1))
    state = tx.init(jnp.ones(2))
    arrays = len(jax.tree.leaves(optax.chain(sa.softadapt(3), optax.adam(0.1)).init(jnp.ones(2))))
    assert len(jax.tree.leaves(state)) == arrays
    step = training_step(tx, pde_losses)
    carry = jax.lax.scan(lambda c, _: (step(*c)[:2], None), (jnp.ones(2), state), None, 3)[0]
    assert sa.loss_weights(carry[1], like=PDE).keys() == set(PDE)
    doubled = optax.tree.map_params(tx, lambda leaf: 2 * leaf, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)


@pytest.mark.parametrize("make_tx", [sa.fixed_weights, lambda w: sa.softadapt(3, priorities=w)])
@pytest.mark.parametrize("values", [[10.0, 1.0, 2.0], (10.0, 1.0, 2.0)])
def test_a_plain_list_beside_named_losses_names_the_remedy(make_tx, values):
    tx = make_tx(values)
    losses = pde_losses(jnp.ones(2))
    _, grads = sa.value_and_component_grads(pde_losses)(jnp.ones(2))
    message = r"should go by the names of the losses, {\"bc\": ..., \"ic\": ..., \"pde\": ...}, got"
    for updates, given in ((grads, None), (grads.stack(), losses)):
        with pytest.raises(ValueError, match=message):
            tx.update(updates, tx.init(None), losses=given)
    tx.update(jnp.ones((3, 2)), tx.init(None), losses=[1.0, 2.0, 3.0])
    equal = make_tx([1.0] * 3)  # of which the order does not matter
    equal.update(grads, equal.init(None))
    array = make_tx(jnp.asarray(values))  # in the order of the losses
    _, state = array.update(grads, array.init(None))
    assert sa.loss_weights(state, like=losses)["bc"] > sa.loss_weights(state, like=losses)["pde"]


def test_losses_without_names_beside_weights_with_names_name_the_remedy():
    tx = sa.fixed_weights(named([10.0, 1.0, 2.0]))
    for losses in ([1.0, 2.0, 3.0], jnp.ones(3)):
        with pytest.raises(ValueError, match="The losses should have the names of the weights"):
            tx.update(jnp.ones((3, 2)), tx.init(None), losses=losses)


@pytest.mark.parametrize(
    ("num_losses", "losses", "message"),
    [
        (
            PDE,
            {"pde": 1.0, "bc": 2.0},
            r"losses, pde, bc, ic, got 2, bc, pde \(missing: ic\). .*`present={name: F",
        ),
        (3, {"pde": 1.0, "bc": 2.0}, "made for 3 losses, got 2, bc, pde. .*`present={name: False"),
        (PDE, {"pde": 1.0, "bc": 2.0, "data": 3.0}, "a loss has another name"),
        (2, ({"pde": 1.0, "bc": 2.0}, 3.0), r"got 3, 0/bc, 0/pde, 1. .*`\(losses, aux\)` returned"),
        (2, {"pde": 1.0, "bc": 2.0, "ic": 3.0}, "got 3, bc, ic, pde. Likely cause: `num_losses`"),
    ],
)
def test_losses_that_are_not_those_of_the_transformation(num_losses, losses, message):
    tx = sa.softadapt(num_losses)
    stacked = jnp.zeros((3 if num_losses == PDE else num_losses, 2))
    _, grads = sa.value_and_component_grads(
        lambda x: jax.tree.map(lambda v: v + jnp.sum(x), losses)
    )(jnp.zeros(2))
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(None))
    with pytest.raises(ValueError, match=message):
        tx.update(stacked, tx.init(None), losses=losses)


@pytest.mark.parametrize(
    ("num_losses", "error", "message"),
    [
        ("ab", TypeError, "or a sequence of their names, got the string 'ab'"),
        ([], TypeError, r"which are strings, got \[\]"),
        (["a", 1], TypeError, "which are strings, got"),
        (["a", "a"], ValueError, "names of the losses should differ"),
    ],
)
def test_wrong_names(num_losses, error, message):
    with pytest.raises(error, match=message):
        unchecked(check_losses)(num_losses)
    with pytest.raises(ValueError, match="names of the losses, a, b, got a, c"):
        sa.softadapt(["a", "b"], priorities={"a": 1.0, "c": 2.0}).init(None)


# Units.


@each_kind
@pytest.mark.parametrize("every", [1, 3])
def test_units_are_a_division_of_the_losses(method, every):
    """h is that of losses that were divided; so the weights are theirs over the units."""
    losses, gradients = history_of(3)
    units = np.array([1e-3, 1.0, 50.0])
    tx = make(method, 3, every=every, units=tuple(units))
    ours = weights_of_steps(tx, losses, gradients)
    inverse = 1 / units[None, :]
    plain = make(method, 3, every=every)
    divided = weights_of_steps(plain, losses * inverse, gradients * inverse[..., None])
    # Frank-Wolfe turns the rounding of products, other on a GPU, into that of small weights.
    smallest = 1e-7 if "frank_wolfe" in method else 1e-9
    np.testing.assert_allclose(ours, divided * inverse, rtol=1e-3, atol=smallest)


@each_kind
@pytest.mark.parametrize("every", [1, 3])
def test_initial_units_are_the_first_record(method, every):
    losses, gradients = history_of(3)
    losses = losses * np.array([1e-3, 1.0, 50.0])
    first = tuple(losses[:every].mean(axis=0).tolist())
    ours = weights_of_steps(make(method, 3, every=every, units="initial"), losses, gradients)
    fixed = weights_of_steps(make(method, 3, every=every, units=first), losses, gradients)
    start = every - 1  # the look ahead of it is in the units of the first loss
    # Adam, whose first steps have the sign of a slope alone, may see a zero that is not quite one.
    tolerance = 0.1 if "adam" in method or method == "learned_weights" else 1e-3
    np.testing.assert_allclose(ours[start:], fixed[start:], rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("variant", [{}, {"loss_weighted": True}, {"normalized": True}])
def test_softadapt_in_units_agrees_with_the_oracle(every, variant):
    units = np.array([1e-2, 3.0, 700.0])
    options = {"beta": 0.7, "history": 3, "every": every, "weight_sum": 3.0, **variant}
    present = np.random.default_rng(1).random(TRAJECTORY.shape) < 0.7
    tx = sa.softadapt(3, units=units, **options)
    zeros = np.zeros((*TRAJECTORY.shape, 1))
    ours, _ = presence_of(tx, TRAJECTORY * units, zeros, present)
    wanted = oracle.softadapt_weights(TRAJECTORY, present=present, **options) / units
    np.testing.assert_allclose(ours, wanted, rtol=2e-5)


def test_current_units_act_on_log_losses():
    """Whatever the units of the losses are, h is that of the same method on their logarithms."""
    losses, gradients = history_of(3)
    logarithms = gradients / losses[..., None]
    for method in ("mgda", "normalized_gradients", "pcgrad", "fixed_weights"):
        ours = weights_of_steps(make(method, 3, units="current"), losses, gradients)
        ones = np.ones_like(losses)
        wanted = weights_of_steps(make(method, 3), ones, logarithms) / losses
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-6)
        scale = np.array([1e-3, 1.0, 1e3])
        scaled = weights_of_steps(
            make(method, 3, units="current"), losses * scale, gradients * scale[:, None]
        )
        np.testing.assert_allclose(scaled * scale[None, :], ours, rtol=1e-3, atol=1e-6)


@each_kind
@pytest.mark.parametrize("units", ["initial", "current"])
def test_a_loss_of_zero_is_no_unit(method, units):
    losses, gradients = history_of(3)
    losses[:, 0] = 0.0
    losses[2:5, 1] = 0.0
    tx = make(method, 3, units=units)
    weights = np.asarray(weights_of_steps(tx, losses, gradients))
    assert np.isfinite(weights).all()
    assert weights.max() < 1e9
    _, state = presence_of(tx, losses, gradients, np.ones((STEPS, 3), dtype=bool))
    if units == "current":
        np.testing.assert_allclose(state.unit_losses, [0.0, losses[-1, 1], losses[-1, 2]])
    else:
        np.testing.assert_allclose(state.unit_losses, [0.0, *losses[0, 1:]], rtol=1e-6)
    for value in sa.diagnostics(state).values():
        assert jnp.isfinite(value)


def test_a_traced_unit_that_is_not_positive_is_not_a_number():
    """And no other unit in its place; a tiny one gives no infinity."""

    def end(units):
        tx = sa.softadapt(2, units=units)
        h, state = tx.update(jnp.ones((2, 3)), tx.init(None), losses=[1.0, 2.0])
        return h, sa.loss_weights(state), state.loss_records[1]

    units = jnp.asarray([[0.0, 2.0], [-1.0, 2.0], [jnp.nan, 2.0], [1e-30, 2.0]])
    h, weights, counts = jax.vmap(end)(units)
    is_good = [False, False, False, True]
    np.testing.assert_array_equal(jnp.all(jnp.isfinite(h), axis=1), is_good)
    np.testing.assert_array_equal(jnp.all(jnp.isfinite(weights), axis=1), is_good)
    np.testing.assert_array_equal(counts[:, 0], is_good)  # the step was dropped


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([1.0, 0.0], "`units` should be finite and > 0"),
        ([1.0, -1.0], "`units` should be finite and > 0"),
        ("first", '`units` should be one of None, "initial", "current", got \'first\''),
        (2.0, "`units` should be a number for each loss, got the single number 2.0"),
        ([1.0, 2.0, 3.0], "`units` should have 2 entries"),
    ],
)
def test_wrong_units_are_named(units, message):
    with pytest.raises(ValueError, match=message):
        sa.softadapt(2, units=units)


BAD_NUMBERS = {
    "units": [[0.0, 1.0], [-1.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]],
    "priorities": [[-1.0, 1.0], [np.nan, 1.0], [0.0, 0.0]],
    "smoothing": [1.0, -0.1, np.nan],
    "weight_sum": [0.0, -1.0, np.inf],
    "beta": [np.nan, np.inf],
    "eps": [0.0, np.nan],
}


@pytest.mark.parametrize("option", BAD_NUMBERS)
@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray, lambda value: value])
def test_the_range_of_all_but_traced_values_is_checked(option, convert):
    for value in BAD_NUMBERS[option]:
        with pytest.raises(ValueError, match=f"`{option}` should "):
            sa.softadapt(2, **{option: convert(value)})
        jax.make_jaxpr(lambda value: sa.softadapt(2, **{option: value}).init(None))(
            jnp.asarray(value)
        )


@pytest.mark.parametrize("values", [[0.0, 1.0], [jnp.nan, 1.0]])
def test_the_range_of_prior_losses_and_weights_is_checked(values):
    with pytest.raises(ValueError, match="`prior_losses` should be finite and > 0"):
        sa.prior_loss(jnp.asarray(values))
    with pytest.raises(ValueError, match="`weights` should be finite and >= 0"):
        sa.fixed_weights({"a": -jnp.asarray(values[1]), "b": jnp.asarray(2.0)})


STATIC = ("num_losses", "history", "order", "every")


def test_what_a_narrow_dtype_has_rounded_is_named():
    tx = optax.inject_hyperparams(sa.softadapt, static_args=STATIC)
    params = jnp.zeros(3, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"`smoothing` .* < 1 in bfloat16, got 1.* `hyperparam_"):
        tx(2, smoothing=0.999).init(params)
    tx(2, smoothing=0.99).init(jnp.zeros(3, jnp.float16))  # whose 1e-8 is an eps of 0


# Smoothing.


@each_kind
@pytest.mark.parametrize("every", [1, 2])
def test_smoothing_averages_the_weights(method, every):
    losses, gradients = history_of(3)
    if "gradnorm" in method or "learned" in method:
        options = {"weight_sum": 1.0}
    else:
        options = {"weight_sum": 1.0} if "softadapt" in method else {}
    plain = np.asarray(weights_of_steps(make(method, 3, every=every, **options), losses, gradients))
    tx = make(method, 3, every=every, smoothing=0.75, **options)
    smooth = np.asarray(weights_of_steps(tx, losses, gradients))
    wanted, is_recorded = plain[0], False
    for step in range(STEPS):
        if (step + 1) % every == 0:
            wanted = 0.75 * wanted + 0.25 * plain[step] if is_recorded else plain[step]
            is_recorded = True
        np.testing.assert_allclose(smooth[step], wanted, rtol=2e-4, atol=1e-7)


def test_smoothing_may_be_traced_and_priorities_act_behind_it():
    losses = np.array([[1.0, 1.0], [1.0, 4.0], [1.0, 4.0]])

    def weights(smoothing):
        tx = sa.realtime_loss(2, smoothing=smoothing, priorities=[1.0, 2.0])
        return weights_along(tx, losses)[-1]

    found = jax.vmap(weights)(jnp.asarray([0.0, 0.5]))
    np.testing.assert_allclose(found, [[1.0, 0.5], [1.0, 2 * 0.4375]], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [1.0, -0.1, np.nan])
def test_wrong_smoothing_is_named(smoothing):
    with pytest.raises(ValueError, match="`smoothing` should be finite and >= 0 and < 1"):
        sa.softadapt(2, smoothing=smoothing)


# Schedules.


@pytest.mark.parametrize(
    "weights",
    [
        lambda step: jnp.stack([1.0, 0.1 * step]),
        lambda step: [1.0, 0.1 * step],
        [1.0, optax.linear_schedule(0.0, 1.0, 10)],
    ],
)
def test_weights_and_priorities_may_follow_the_step(weights):
    wanted = np.stack([np.ones(5), 0.1 * np.arange(5)], axis=1)
    found = weights_along(sa.fixed_weights(weights), np.ones((5, 2)))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    tx = sa.realtime_loss(2, priorities=weights)
    np.testing.assert_allclose(weights_along(tx, 2 * np.ones((5, 2))), wanted / 2, rtol=1e-6)
    tx = sa.softadapt(2, weight_sum=3.0, priorities=weights)
    shares = 3 * wanted / wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights_along(tx, np.ones((5, 2))), shares, rtol=1e-6)


def test_a_schedule_by_name_and_one_among_numbers():
    annealed = {"reconstruction": 1.0, "kl": optax.linear_schedule(0.0, 1.0, 4)}
    for tx in (
        sa.fixed_weights(annealed),
        sa.prior_loss({"reconstruction": 1.0, "kl": 1.0}, priorities=annealed),
    ):
        state, found = tx.init(None), []
        for _ in range(4):
            _, state = jax.jit(tx.update)(
                jnp.zeros(2), state, losses={"kl": 2.0, "reconstruction": 1.0}
            )
            found.append(sa.loss_weights(state, like=annealed)["kl"])
        np.testing.assert_allclose(found, [0.0, 0.25, 0.5, 0.75])


def test_a_constant_schedule_is_a_number():
    losses, gradients = history_of(3)
    for method in ("softadapt", "mgda", "learned_weights"):
        constant = make(method, 3, priorities=(1.0, 0.5, 2.0))
        schedule = METHODS[method](3, priorities=lambda step: [1.0, 0.5, 2.0])
        found, wanted = (weights_of_steps(tx, losses, gradients) for tx in (schedule, constant))
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_step_that_is_dropped_keeps_the_weights_and_does_not_count_for_a_schedule():
    tx = sa.fixed_weights([1.0, optax.linear_schedule(0.0, 1.0, 10)])
    trajectory = np.array([[1.0, 1.0], [1.0, np.nan], [1.0, 1.0]])
    np.testing.assert_allclose(weights_along(tx, trajectory)[:, 1], [0.0, 0.0, 0.1], rtol=1e-6)


@each_kind
@pytest.mark.parametrize("weight_sum", [None, 3.0])
def test_a_loss_is_left_out_while_its_schedule_gives_no_positive_number(method, weight_sum):
    """Whatever it gives, the step counts, and the schedule goes on."""
    values = jnp.asarray([np.nan, np.inf, -1.0, 0.0, 1.0, 1.0])
    schedule = lambda step: values[step]
    others = lambda step: jnp.where(step == 3, 0.0, 1.0)  # once all are left out
    options = {} if weight_sum is None else {"weight_sum": weight_sum}
    losses, gradients = history_of(3)
    tx = METHODS[method](3, priorities=[others, schedule, others], **options)
    weights = weights_of_steps(tx, losses[:6], gradients[:6])
    assert jnp.all(jnp.isfinite(weights))
    np.testing.assert_array_equal(weights[:4, 1], 0.0)
    np.testing.assert_array_equal(weights[3], 0.0)
    assert not np.signbit(weights).any()
    assert jnp.all(jnp.sum(weights[jnp.asarray([0, 1, 2, 4, 5])], axis=1) > 0)
    if not method.startswith("mgda"):  # which may give a weight of zero
        assert jnp.all(weights[4:, 1] > 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_beta_that_is_not_finite_gives_equal_weights_in_its_step(value):
    tx = sa.softadapt(2, lambda step: jnp.where(step < 2, value, 1.0), history=2)
    weights = weights_along(tx, np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0], [8.0, 1.0]]))
    np.testing.assert_allclose(weights[:2], 0.5)
    np.testing.assert_allclose(weights[2, 0], 1 / (1 + np.exp(-2.0)), rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda step: [1.0, 2.0, 3.0], "`priorities` should have 2 entries"),
        (optax.linear_schedule(0.0, 1.0, 10), "`priorities` should be a number for each loss, got"),
        ([-1.0, optax.linear_schedule(0.0, 1.0, 10)], "`priorities` should be finite and >= 0"),
    ],
)
def test_wrong_schedules_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        sa.softadapt(2, priorities=weights)


# Inner optimizers and the period.


@pytest.mark.parametrize("method", ["gradnorm", "uncertainty", "learned_weights"])
def test_a_period_of_inner_steps_is_worth_its_length(method):
    """Losses and gradients that stay as they are: the weights are those of every=1."""
    losses, gradients = (np.repeat(part[:1], 40, axis=0) for part in history_of(3))
    each, every = (
        np.asarray(weights_of_steps(make(method, 3, every=m), losses, gradients)) for m in (1, 10)
    )
    assert np.abs(each[-1] - each[0]).max() > 0.05
    np.testing.assert_allclose(every[9::10], each[9::10], rtol=1e-4)


# Warm-up.


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"loss_weighted": True},
        {"rate": "relative", "normalized": True},
        {"loss_weighted": True, "order": None, "priorities": (1.0, 0.5, 2.0)},
    ],
)
@pytest.mark.usefixtures("x64")
def test_absent_losses_and_warm_up_agree_with_the_oracle(every, variant):
    """One loss is often absent, one comes late."""
    present = np.random.default_rng(2).random((24, 3)) < 0.6
    present[:9, 1] = False
    trajectory = np.exp(np.random.default_rng(3).normal(size=(24, 3)))
    options = {"beta": 0.5, "history": 4, "every": every, "weight_sum": 3.0, **variant}
    tx = sa.softadapt(3, **options)
    ours, _ = presence_of(tx, trajectory, np.zeros((24, 3, 1)), present)
    wanted = oracle.softadapt_weights(trajectory, present=present, **options)
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)


def test_a_rare_loss_does_not_reset_the_weights_of_the_others():
    tx = sa.softadapt(3, loss_weighted=True, weight_sum=3)
    state = tx.init(None)
    for i in range(26):
        present = jnp.asarray([True, True, i % 4 == 0])
        _, state = tx.update(jnp.zeros(3), state, losses=[1.0, 100.0, 1.0], present=present)
        wanted = np.array([1.0, 100.0, 1.0]) / 102 * 3 * np.asarray(present)
        np.testing.assert_allclose(sa.loss_weights(state), wanted, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 3])
def test_loss_weighting_is_right_from_the_first_step(every):
    tx = sa.softadapt(2, loss_weighted=True, every=every, units=[1.0, 100.0])
    weights = weights_along(tx, [[1.0, 100.0]] * 20)
    np.testing.assert_allclose(weights[:, 1] / weights[:, 0], 0.01, rtol=1e-5)
