"""The weights of SoftAdapt: against the oracle, and their laws."""

import functools
import itertools
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
from helpers import unchecked, weights_along
from oracle import softadapt_weights

import softadapt_optax as sa
from softadapt_optax._losses.softadapt import slope_stencil

VARIANTS = {
    "original": {},
    "loss weighted": {"loss_weighted": True},
    "normalized": {"normalized": True},
    "both": {"normalized": True, "loss_weighted": True},
}


def random_trajectory(num_losses: int, seed: int = 0, steps: int = 12) -> np.ndarray:
    """Losses that fall with noise, of sizes around 1."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-rng.uniform(0.0, 0.3, num_losses) * np.arange(steps)[:, None])
    return decay * rng.uniform(0.5, 2.0, (steps, num_losses))


BETAS = np.array([0.1, 2.0, -3.0])
# History 2 to 6, lowest and highest order; one of each for what does not hang on the window.
SLOPES = [(2, 1), *itertools.product(range(3, 7), [1, None])]
FEW_SLOPES = [(2, 1), (5, None)]


def check_against_the_oracle(num_losses, variant, rates, slopes, **tolerance):
    """Beta of both signs, three trajectories; the rates of an even and of an odd history."""
    trajectories = np.stack([random_trajectory(num_losses, seed) for seed in range(len(BETAS))])
    table = [
        {"history": history, "order": order, "rate": rates[history % 2], **VARIANTS[variant]}
        for history, order in slopes
    ]

    @jax.jit
    @jax.vmap
    def weights_of(beta, trajectory):
        return [
            weights_along(sa.softadapt(num_losses, beta, **options), trajectory)
            for options in table
        ]

    found = weights_of(jnp.asarray(BETAS, dtype=float), jnp.asarray(trajectories))
    for options, ours in zip(table, found, strict=True):
        assert ours.dtype == jnp.result_type(float)
        for weights, beta, trajectory in zip(ours, BETAS, trajectories, strict=True):
            expected = softadapt_weights(trajectory, beta=beta, **options)
            np.testing.assert_allclose(weights, expected, err_msg=str(options), **tolerance)


def quick_and_slow(quick, slow):
    """Pairs of K and slopes."""
    name = lambda num_losses, slopes: f"{num_losses}-{'few' if slopes is FEW_SLOPES else 'all'}"
    return pytest.mark.parametrize(
        ("num_losses", "slopes"),
        [pytest.param(*case, id=name(*case)) for case in quick]
        + [pytest.param(*case, id=name(*case), marks=pytest.mark.slow) for case in slow],
    )


@pytest.mark.parametrize("variant", VARIANTS)
@quick_and_slow(
    quick=[(1, FEW_SLOPES), (2, FEW_SLOPES), (16, FEW_SLOPES)],
    slow=[(3, SLOPES), (16, SLOPES)],
)
def test_agrees_with_the_oracle_in_float32(num_losses, slopes, variant):
    rates = ["absolute", "relative"]
    check_against_the_oracle(num_losses, variant, rates, slopes, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", VARIANTS)
@quick_and_slow(quick=[(3, FEW_SLOPES)], slow=[(3, SLOPES)])
def test_agrees_with_the_oracle_in_float64(num_losses, slopes, variant):
    rates = ["relative", "absolute"]
    check_against_the_oracle(num_losses, variant, rates, slopes, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("priorities", [None, [3.0, 0.0, 1.0]])
def test_common_options_agree_with_the_oracle(every, priorities):
    trajectory = random_trajectory(3, seed=7, steps=24)
    options = {"every": every, "priorities": priorities, "weight_sum": 3.0, "beta": 2.0}
    ours = weights_along(sa.softadapt(3, loss_weighted=True, **options), trajectory)
    expected = softadapt_weights(trajectory, loss_weighted=True, **options)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


# The slope.


def exact_stencil(history: int, degree: int) -> np.ndarray:
    """The least-squares derivative at the last point, by rational arithmetic."""
    time = [Fraction(i - (history - 1)) for i in range(history)]
    powers = [[t**p for p in range(degree + 1)] for t in time]
    normal = [
        [sum(row[p] * row[q] for row in powers) for q in range(degree + 1)] + [Fraction(p == 1)]
        for p in range(degree + 1)
    ]
    for column in range(degree + 1):
        pivot = next(r for r in range(column, degree + 1) if normal[r][column] != 0)
        normal[column], normal[pivot] = normal[pivot], normal[column]
        normal[column] = [x / normal[column][column] for x in normal[column]]
        for r in range(degree + 1):
            if r != column:
                factor = normal[r][column]
                normal[r] = [a - factor * b for a, b in zip(normal[r], normal[column], strict=True)]
    coefficients = [row[-1] for row in normal]
    return np.array(
        [float(sum(c * x for c, x in zip(coefficients, r, strict=True))) for r in powers]
    )


@pytest.mark.parametrize(
    ("history", "order"),
    [(2, 1), (3, 1), (3, 2), (5, 1), (5, 4), (6, 3), (10, 9), (15, 14), (20, 19), (50, 1), (60, 5)],
)
def test_stencil_is_exact_where_scipy_loses_digits(history, order):
    exact = exact_stencil(history, order)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(slope_stencil(history, order), exact, atol=1e-12 * scale)
    if history <= 10:
        scipys = scipy.signal.savgol_coeffs(history, order, deriv=1, pos=history - 1, use="dot")
        np.testing.assert_allclose(slope_stencil(history, order), scipys, atol=1e-9 * scale)


def test_slope_belongs_to_the_newest_point():
    assert slope_stencil(5, 4) @ np.arange(5.0) ** 2 == pytest.approx(8.0)
    np.testing.assert_allclose(slope_stencil(2, 1), [-1.0, 1.0])
    np.testing.assert_allclose(slope_stencil(5, 4), [1 / 4, -4 / 3, 3, -4, 25 / 12])


def test_noise_gains_of_the_design():
    assert np.linalg.norm(slope_stencil(5, 4)) == pytest.approx(5.6, abs=0.02)
    assert np.linalg.norm(slope_stencil(5, 1)) == pytest.approx(0.32, abs=0.005)


# The laws of the weights.


def losses_of_any_size(num_losses: int, steps: int):
    exponents = st.floats(-30.0, 30.0)
    one = st.tuples(exponents, st.sampled_from([-1.0, 0.0, 1.0, 1.0, 1.0]))
    count = num_losses * steps
    return st.lists(one, min_size=count, max_size=count).map(
        lambda pairs: np.array([sign * 10.0**exponent for exponent, sign in pairs]).reshape(
            steps, num_losses
        )
    )


@functools.cache
def compiled_run(weight_sum, options):
    def run(beta, trajectory):
        tx = sa.softadapt(3, beta, history=3, order=2, weight_sum=weight_sum, **dict(options))
        return weights_along(tx, trajectory)

    return jax.jit(run)


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
    trajectory=losses_of_any_size(3, 4),
    beta=st.floats(-50.0, 50.0),
    options=st.fixed_dictionaries(
        {
            "normalized": st.booleans(),
            "loss_weighted": st.booleans(),
            "rate": st.sampled_from(["absolute", "relative"]),
        }
    ),
    weight_sum=st.sampled_from([1.0, 3.0]),
)
def test_weights_are_not_negative_and_keep_their_sum(trajectory, beta, options, weight_sum):
    run = compiled_run(weight_sum, tuple(options.items()))
    weights = np.asarray(run(jnp.float32(beta), jnp.asarray(trajectory, jnp.float32)))
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=1), weight_sum, rtol=1e-6)


@pytest.mark.parametrize("variant", ["loss weighted", "both"])
def test_loss_weighted_weights_do_not_depend_on_a_common_unit(variant):
    # beta times the slope would depend on it: beta = 0 leaves the loss weighting alone.
    trajectory = random_trajectory(3)
    tx = sa.softadapt(3, 0.0, **VARIANTS[variant])
    expected = softadapt_weights(trajectory, beta=0.0, **VARIANTS[variant])
    for scale in (1e-30, 1e-10, 1.0, 1e10, 1e30):
        ours = weights_along(tx, trajectory * scale)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, err_msg=f"{scale:g}")


@pytest.mark.parametrize("beta", [-50.0, 50.0])
def test_huge_slopes_give_the_whole_weight_to_one(beta):
    trajectory = np.array([[1e30, 1.0], [2e30, 1.0]])  # the first grows
    weights = weights_along(sa.softadapt(2, beta, history=2), trajectory)
    np.testing.assert_array_equal(weights[-1], [1.0, 0.0] if beta > 0 else [0.0, 1.0])


def test_factors_that_underflow_together_still_have_an_order():
    # exp(-100) * 1e30 beats exp(0) * 1e-30, though in float32 both products vanish when
    # each factor is divided by its largest.
    trajectory = np.array([[1e-30, 1e30], [1e-30, 1e30]])
    trajectory[1, 0] += 1e-30
    weights = weights_along(
        sa.softadapt(2, 100.0, history=2, rate="relative", eps=1e-38, loss_weighted=True),
        trajectory,
    )
    np.testing.assert_allclose(weights[-1], [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("options", [*VARIANTS.values(), {"rate": "relative"}])
def test_losses_near_the_largest_float_do_not_lock_the_weights(options):
    huge = np.array([[3e38, 1.0], [-3e38, 1.0]] * 4)
    after = random_trajectory(2)
    for every in (1, 2):
        tx = sa.softadapt(2, 1.0, order=None, every=every, **options)
        weights = np.asarray(weights_along(tx, np.concatenate([huge, after])))
        assert np.all(np.isfinite(weights))
        clean = softadapt_weights(after, beta=1.0, order=None, **options)
        if every == 1:
            np.testing.assert_allclose(weights[-1], clean[-1], rtol=1e-5)


def test_zero_losses_give_equal_weights():
    for options in VARIANTS.values():
        weights = weights_along(sa.softadapt(3, weight_sum=3.0, **options), np.zeros((8, 3)))
        np.testing.assert_allclose(weights, 1.0)


def test_negative_losses_do_not_turn_descent_into_ascent():
    trajectory = np.array([[-1.0, 2.0]] * 6)
    weights = weights_along(sa.softadapt(2, loss_weighted=True), trajectory)
    np.testing.assert_allclose(weights[-1], [1 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rate", ["absolute", "relative"])
def test_permuting_the_losses_permutes_the_weights(variant, rate):
    trajectory = random_trajectory(3)
    for order in itertools.permutations(range(3)):
        tx = sa.softadapt(3, 2.0, rate=rate, priorities=[1.0, 2.0, 3.0], **VARIANTS[variant])
        permuted = sa.softadapt(
            3, 2.0, rate=rate, priorities=[[1.0, 2.0, 3.0][k] for k in order], **VARIANTS[variant]
        )
        np.testing.assert_allclose(
            weights_along(permuted, trajectory[:, order]),
            weights_along(tx, trajectory)[:, np.array(order)],
            rtol=2e-6,
        )


@pytest.mark.parametrize("normalized", [False, True])
def test_relative_rates_do_not_change_when_a_loss_is_rescaled(normalized):
    trajectory = random_trajectory(3)
    tx = sa.softadapt(3, 2.0, rate="relative", normalized=normalized)
    rescaled = weights_along(tx, trajectory * np.array([1e3, 1.0, 1e-3]))
    np.testing.assert_allclose(rescaled, weights_along(tx, trajectory), rtol=1e-4)
    absolute = sa.softadapt(3, 2.0, normalized=normalized)
    changed = weights_along(absolute, trajectory * np.array([1e3, 1.0, 1e-3]))
    assert np.abs(changed - weights_along(absolute, trajectory)).max() > 0.1


def test_adding_a_constant_to_a_loss_changes_no_absolute_rate():
    trajectory = random_trajectory(3)
    tx = sa.softadapt(3, 2.0)
    np.testing.assert_allclose(
        weights_along(tx, trajectory + np.array([0.0, 5.0, -3.0])),
        weights_along(tx, trajectory),
        rtol=2e-5,
    )


def test_the_sign_of_beta_picks_the_worst_or_the_best():
    trajectory = np.array([[5.0 - 0.5 * i, 5.0 - 0.1 * i] for i in range(6)])  # the second is slow
    worst = weights_along(sa.softadapt(2, 1.0), trajectory)[-1]
    best = weights_along(sa.softadapt(2, -1.0), trajectory)[-1]
    assert worst[1] > 0.5 > best[1]
    np.testing.assert_allclose(worst, best[::-1], rtol=1e-5)
    np.testing.assert_allclose(weights_along(sa.softadapt(2, 0.0), trajectory), 0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_loss_has_the_whole_weight(variant):
    weights = weights_along(
        sa.softadapt(1, weight_sum=0.7, **VARIANTS[variant]), random_trajectory(1)
    )
    np.testing.assert_allclose(weights, 0.7, rtol=1e-6)


def test_weights_are_equal_until_the_history_is_full():
    trajectory = random_trajectory(2)
    weights = weights_along(sa.softadapt(2, 5.0, history=4, priorities=[1.0, 3.0]), trajectory)
    np.testing.assert_allclose(weights[:3], [[0.25, 0.75]] * 3)
    assert abs(weights[3, 0] - 0.25) > 1e-3


def test_the_ratio_form_is_a_relative_rate_with_beta_one():
    trajectory = random_trajectory(3)
    ours = weights_along(
        sa.softadapt(3, 1.0, history=2, rate="relative", weight_sum=3.0, eps=1e-30), trajectory
    )
    ratios = trajectory[1:] / trajectory[:-1]
    expected = 3 * np.exp(ratios) / np.exp(ratios).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours[1:], expected, rtol=1e-5)


# beta.


def test_numbers_may_be_numpy_scalars_or_arrays_without_axes():
    trajectory = random_trajectory(2)
    tx = sa.softadapt(2, np.array(2.0), weight_sum=np.float64(2.0), eps=np.array(1e-8))
    wanted = weights_along(sa.softadapt(2, 2.0, weight_sum=2.0), trajectory)
    np.testing.assert_array_equal(weights_along(tx, trajectory), wanted)


def test_beta_may_be_a_number_a_traced_array_or_a_schedule():
    trajectory = random_trajectory(2, steps=20)
    constant = weights_along(sa.softadapt(2, 2.0), trajectory)
    scheduled = weights_along(sa.softadapt(2, optax.constant_schedule(2.0)), trajectory)
    traced = jax.jit(lambda beta: weights_along(sa.softadapt(2, beta), trajectory))(2.0)
    np.testing.assert_allclose(scheduled, constant, rtol=1e-6)
    np.testing.assert_allclose(traced, constant, rtol=1e-6)


@pytest.mark.parametrize("every", [1, 4])
def test_a_schedule_counts_optimizer_steps(every):
    trajectory = random_trajectory(2, steps=24)
    switch = 16  # beta changes sign at the step with this index, a multiple of `every`
    beta = lambda step: jnp.where(step < switch, 3.0, -3.0)
    weights = weights_along(sa.softadapt(2, beta, history=2, every=every), trajectory)
    before = weights_along(sa.softadapt(2, 3.0, history=2, every=every), trajectory)
    after = weights_along(sa.softadapt(2, -3.0, history=2, every=every), trajectory)
    first_after = switch + every - 1  # the first record at or after the switch
    np.testing.assert_allclose(weights[:first_after], before[:first_after], rtol=1e-6)
    np.testing.assert_allclose(weights[first_after:], after[first_after:], rtol=1e-6)


def test_vmap_over_beta_is_a_loop_over_beta():
    trajectory = random_trajectory(3)
    betas = jnp.array([-2.0, 0.0, 0.1, 5.0])
    together = jax.vmap(lambda beta: weights_along(sa.softadapt(3, beta), trajectory))(betas)
    for beta, weights in zip(betas, together, strict=True):
        one = weights_along(sa.softadapt(3, float(beta)), trajectory)
        np.testing.assert_allclose(weights, one, rtol=1e-6)


# Wrong options.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_losses": 0}, ValueError, "`num_losses` should be at least 1, got 0"),
        ({"history": 1}, ValueError, "`history` should be at least 2, got 1"),
        ({"history": 2.5}, TypeError, "`history` should be a Python integer"),
        ({"history": jnp.asarray(5)}, TypeError, "`optax.inject_hyperparams` without it in"),
        ({"order": 0}, ValueError, "`order` should be at least 1, got 0"),
        ({"order": 5}, ValueError, "`order` should be at most history - 1 = 4"),
        ({"order": "2"}, TypeError, "`order` should be a Python integer, got str '2'"),
        (
            {"rate": "log"},
            ValueError,
            '`rate` should be one of "absolute", "relative", got \'log\'',
        ),
        ({"every": 0}, ValueError, "`every` should be at least 1, got 0"),
        ({"eps": 0.0}, ValueError, "`eps` should be finite and > 0 in float32, got 0.0"),
        ({"beta": float("nan")}, ValueError, "`beta` should be finite in float32, got nan"),
        ({"eps": 1e-50}, ValueError, "`eps` should be finite and > 0 in float32, got 1e-50"),
        ({"normalized": "False"}, TypeError, "`normalized` should be True or False, got str"),
        ({"loss_weighted": 1}, TypeError, "`loss_weighted` should be True or False, got int 1"),
        ({"beta": "0.1"}, TypeError, "`beta` should be a number, got str '0.1'"),
        ({"beta": jnp.ones(2)}, ValueError, r"`beta` should be a scalar, got shape \(2,\)"),
        (
            {"weight_sum": 0.0},
            ValueError,
            "`weight_sum` should be finite and > 0 in",
        ),
        ({"weight_sum": None}, TypeError, "`weight_sum` should be a number, got NoneType None"),
        ({"priorities": [1.0]}, ValueError, "`priorities` should have 2 entries"),
        ({"priorities": [1.0, -1.0]}, ValueError, "`priorities` should be finite and >= 0"),
        ({"priorities": [0.0, 0.0]}, ValueError, "`priorities` should not all be zero"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        unchecked(sa.softadapt)(**({"num_losses": 2} | options))


@pytest.mark.parametrize("options", [{"history": 25}, {"history": 200}, {"history": 1000}])
def test_a_slope_that_is_rounding_alone_is_refused(options):
    with pytest.raises(ValueError, match="multiplies noise, that of rounding in float32 too, by"):
        sa.softadapt(2, order=None, **options)
    sa.softadapt(2, order=3, **options)
    sa.softadapt(2, order=None, history=20)
