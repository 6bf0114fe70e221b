"""The multi-task problems: data, losses, the known Pareto front, and what was published of it."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.progress
import scipy.optimize
import sklearn.datasets

import softadapt_optax as sa
from benchmarks import multitask
from examples import weight_grid_search as digits

pytestmark = pytest.mark.once

PLAIN = lambda setting: sa.fixed_weights(jnp.ones(setting.num_losses))
EMPTY = rich.progress.Progress(disable=True)


def small(**changes):
    settings = {"num_seeds": 2, "budget": 12, "rates": np.asarray([1e-2, 1e-1])}
    return types.SimpleNamespace(**settings | changes)


# Patients.


@pytest.fixture(scope="module")
def splits():
    return multitask.load_patients(3)


@pytest.fixture(scope="module")
def start(splits):
    return multitask.init_params(jax.random.key(3), splits.training)


def test_the_splits_share_no_patient_and_have_all(splits):
    rows = [np.column_stack([*part.targets.values()]) for part in splits]
    assert [len(part) for part in rows] == [multitask.NUM_TRAINING, 142]
    data = sklearn.datasets.load_diabetes(scaled=False)
    columns = [data.data[:, 3], data.target, data.data[:, 8]]  # in raw units
    expected = np.column_stack(columns).astype(np.float32)
    found = np.concatenate(rows)
    np.testing.assert_array_equal(
        found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], strict=True
    )


def test_another_seed_is_another_split(splits):
    others = multitask.load_patients(4)
    assert np.any(others.training.features != splits.training.features)


def test_features_are_standardised_by_the_training_patients(splits):
    features = np.asarray(splits.training.features)
    assert features.shape == (multitask.NUM_TRAINING, 8)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-5)
    assert np.abs(np.mean(splits.test.features, axis=0)).max() > 1e-2


def test_no_target_is_among_the_features(splits):
    """Each correlates with the features, but is none of them."""
    features = np.asarray(splits.training.features)
    for target in splits.training.targets.values():
        others = [abs(np.corrcoef(column, target)[0, 1]) for column in features.T]
        assert 0.2 < max(others) < 0.9


def test_the_start_is_the_best_constant(splits, start):
    """Up to what kernels of a standard deviation of 0.01 add."""
    losses = np.asarray(multitask.errors_fn(start, splits.training))
    np.testing.assert_allclose(losses, multitask.prior_losses(splits.training), rtol=2e-2)
    constant = multitask.constant_errors(splits)
    errors = np.asarray(multitask.errors_fn(start, splits.test))
    np.testing.assert_allclose(errors, constant, rtol=2e-2)
    references = digits.References(0 * constant, constant)
    np.testing.assert_allclose(digits.skill_lost(errors, references), 1, rtol=2e-2)


def test_prior_losses_are_variances_orders_of_magnitude_apart(splits):
    variances = [np.var(splits.training.targets[task]) for task in multitask.TARGETS]
    np.testing.assert_allclose(multitask.prior_losses(splits.training), variances, rtol=1e-5)
    pressure, progression, triglycerides = variances
    assert progression > 20 * pressure > 1e4 * triglycerides


def test_losses_come_in_the_order_of_the_errors(splits, start):
    everyone = jnp.arange(multitask.NUM_TRAINING)
    losses = multitask.patient_losses(start, splits.training, everyone)
    assert tuple(losses) == tuple(sorted(losses)) == multitask.TARGETS
    errors = multitask.errors_fn(start, splits.training)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(losses)), errors, rtol=1e-6)


def test_losses_are_those_of_numpy(splits, start):
    batch, layers = np.asarray([5, 80, 299]), jax.device_get(start)["params"]
    features = np.asarray(splits.training.features, np.float64)[batch]
    hidden = np.tanh(features @ layers["trunk"]["kernel"] + layers["trunk"]["bias"])
    for task, loss in multitask.patient_losses(start, splits.training, batch).items():
        output = hidden @ layers[task]["kernel"][:, 0] + layers[task]["bias"]
        expected = np.mean((output - np.asarray(splits.training.targets[task])[batch]) ** 2)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_each_task_pulls_at_the_trunk_from_the_start(splits, start):
    """Heads of zero would give methods that look at the trunk's gradients nothing to look at."""
    everyone = jnp.arange(multitask.NUM_TRAINING)
    of_tasks = jax.jacrev(multitask.patient_losses)(start, splits.training, everyone)
    for of_task in of_tasks.values():
        assert np.linalg.norm(of_task["params"]["trunk"]["kernel"]) > 0


def test_the_shared_part_is_the_trunk(start):
    is_shared = multitask.trunk(start)["params"]
    assert [layer for layer in is_shared if is_shared[layer]] == ["trunk"]


def test_batches_hold_no_patient_twice_and_differ_from_seed_to_seed():
    batches = multitask.draw_batches(20, seed=0)
    assert batches.shape == (20, multitask.BATCH)
    assert all(len(set(batch)) == multitask.BATCH for batch in batches)
    assert batches.min() >= 0
    assert batches.max() < multitask.NUM_TRAINING
    assert np.any(batches != multitask.draw_batches(20, seed=1))
    assert np.any(batches[0] != batches[1])


def test_diabetes_is_measured_for_all_configurations_and_seeds():
    solver = multitask.load_diabetes(small(), EMPTY)
    configs = np.asarray([(rate, 1.0, 0.1, 100.0) for rate in (0.0, 1e-3, 3e-2)])
    weighted = lambda setting: sa.fixed_weights(setting.weights)
    early, late = solver.measure(weighted, configs, [4, 12], lambda share: None)
    assert early.metric.shape == late.metric.shape == (3, 2)
    assert np.isfinite([early.metric, late.metric]).all()
    np.testing.assert_allclose(early.metric[0], late.metric[0])  # without a step
    assert (late.metric[0] > 50).all()


@pytest.mark.slow
def test_equal_weights_lose_the_task_of_small_unit_and_priors_find_it():
    solver = multitask.load_diabetes(small(num_seeds=8, budget=1600), EMPTY)
    configs = np.asarray([(3e-2, 1.0, 1.0, 1.0)])
    plain, prior = (
        solver.measure(make, configs, [1600], lambda share: None)[0].metric.mean()
        for make in (PLAIN, lambda setting: sa.prior_loss(setting.prior_losses))
    )
    assert plain > 20
    assert prior < plain - 15


# The toy.


def toy(params):
    """Both losses of points of shape [..., 2], from the papers."""
    x, y = np.moveaxis(np.asarray(params, np.float64), -1, 0)
    f_1 = np.log(np.maximum(np.abs(0.5 * (-x - 7) - np.tanh(-y)), 5e-6)) + 6
    f_2 = np.log(np.maximum(np.abs(0.5 * (-x + 3) + np.tanh(-y) + 2), 5e-6)) + 6
    g_1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    g_2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    c_1, c_2 = np.maximum(np.tanh(0.5 * y), 0), np.maximum(np.tanh(-0.5 * y), 0)
    return np.stack([c_1 * f_1 + c_2 * g_1, c_1 * f_2 + c_2 * g_2], axis=-1)


def points(number):
    return np.random.default_rng(0).uniform(-10, 10, (number, 2))


def test_toy_losses_are_those_of_the_papers(x64):
    where = np.concatenate([points(200), multitask.STARTS])
    first, second = jax.vmap(multitask.toy_losses)(where).values()
    np.testing.assert_allclose(np.stack([first, second], axis=-1), toy(where), rtol=1e-12)
    scaled = multitask.toy_losses(where[0], 0.1)
    np.testing.assert_allclose([*scaled.values()], [0.1, 1] * toy(where[0]), rtol=1e-12)
    assert [*scaled] == ["first", "second"]


def test_toy_gradients_are_those_of_differences(x64):
    found = jax.vmap(jax.jacfwd(multitask.toy_losses))(points(100))
    steps = 1e-6 * np.eye(2)
    slopes = [(toy(points(100) + step) - toy(points(100) - step)) / 2e-6 for step in steps]
    expected = np.stack(slopes, axis=-1)  # [points, losses, parameters]
    found = np.stack([*found.values()], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_starts_are_distinct_and_away_from_the_front(x64):
    assert len(set(multitask.STARTS)) == len(multitask.STARTS) == 8
    front = multitask.toy_front()
    distance = functools.partial(multitask.distance_to_front, front=front)
    assert jnp.all(jax.vmap(distance)(jnp.asarray(multitask.STARTS)) > 5 * multitask.TOLERANCE)


def test_no_point_of_the_plane_dominates_the_front():
    sides = np.linspace(-12, 12, 481)
    plane = toy(np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2))
    front = toy(multitask.toy_pareto_set(57))
    for losses in front:
        assert not np.any(np.all(plane < losses - 1e-9, axis=1))
    assert np.all(np.diff(front[:, 0]) < 0)
    assert np.all(np.diff(front[:, 1]) > 0)


def test_a_finer_search_around_the_front_finds_nothing_better():
    for place in multitask.toy_pareto_set(15):
        weights = np.asarray([7 + place[0], 7 - place[0]]) / 14
        found = scipy.optimize.minimize(
            lambda params, weights=weights: toy(params) @ weights, place, method="Nelder-Mead"
        )
        assert found.fun >= toy(place) @ weights - 1e-8


def test_the_front_is_where_the_published_picture_has_it():
    """It is drawn at x_2 = -8.3552 from x_1 = -7 to 7."""
    middle = multitask.toy_pareto_set(3)[1]
    np.testing.assert_allclose(middle, [0, -8.3552], atol=1e-4)


def test_the_distance_is_that_to_the_nearest_point_of_the_front(x64):
    front, units = multitask.toy_front(), np.ptp(toy(multitask.toy_pareto_set(3)), axis=0)
    dense = toy(multitask.toy_pareto_set(4001))
    where = np.concatenate([points(50), 3 * points(50), [(0.0, -6.0), (20.0, -8.0)]])
    expected = np.abs((toy(where)[:, None] - dense) / units).max(axis=-1).min(axis=-1)
    found = jax.vmap(functools.partial(multitask.distance_to_front, front=front))(where)
    np.testing.assert_allclose(found, expected, atol=5e-4)


def test_the_distance_is_zero_on_the_front(x64):
    distance = functools.partial(multitask.distance_to_front, front=multitask.toy_front())
    np.testing.assert_allclose(jax.vmap(distance)(multitask.toy_pareto_set(40)), 0, atol=1e-5)


def test_the_toy_is_measured_for_all_configurations_and_starts(x64):
    solver = multitask.load_toy(small(num_seeds=6, budget=300), EMPTY)
    configs = np.asarray([(rate, 1.0, weight) for rate in (1e-3, 0.3) for weight in (0.1, 1.0)])
    weighted = lambda setting: sa.fixed_weights(setting.weights)
    found = solver.measure(weighted, configs, [150, 300], lambda share: None)
    assert [each.metric.shape for each in found] == [(4, 6)] * 2
    assert [each.beside.shape for each in found] == [(4, 6)] * 2
    twice, once = (each.metric for each in found)
    assert (twice[:2] == 300).all()  # short steps
    np.testing.assert_array_equal(twice[2:], np.minimum(2 * once[2:], 300))
    assert (once[2:] < 300).all()
    assert (found[0].beside == 100 * (twice < 300)).all()


def test_what_is_not_finite_does_not_arrive(x64):
    solver = multitask.load_toy(small(budget=50), EMPTY)
    (found,) = solver.measure(
        lambda s: optax.chain(PLAIN(s), optax.scale(jnp.nan)),
        np.asarray([(0.3, 1.0, 1.0)]),
        [50],
        lambda share: None,
    )
    np.testing.assert_array_equal(found.metric, [[50, 50]])


# What was published.


def arrives(weighting, starts, limit, scale):
    """Whether Adam with a rate of 1e-3 reaches the front from each of the starts."""
    tx, front = optax.chain(weighting, optax.adam(1e-3)), multitask.toy_front()
    steps = functools.partial(multitask.steps_to_front, tx, front=front, limit=limit, scale=scale)
    return np.isfinite(jax.jit(jax.vmap(steps))(jnp.asarray(starts))).tolist()


METHODS = {
    "plain": lambda: sa.fixed_weights([1.0, 1.0]),
    "mgda": lambda: sa.mgda(2),
    "pcgrad": lambda: sa.pcgrad(2),
    "cagrad": lambda: sa.cagrad(2, c=0.5),
    "nash_mtl": lambda: sa.nash_mtl(2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "mgda", "pcgrad", "cagrad"])
def test_adam_gets_stuck_on_two_of_the_three_starts_of_cagrad(name, x64):
    """Figure 1 of Liu et al. (2021): 100,000 steps with losses of equal scale."""
    starts = [(-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)]
    expected = [False, True, False] if name == "plain" else [True] * 3
    assert arrives(METHODS[name](), starts, 100_000, scale=1.0) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_with_losses_of_other_scales_three_methods_miss_the_front(name, x64):
    """Figure 1 of Navon et al. (2022): 35,000 steps, the first loss scaled by 0.1.

    The plain sum, PCGrad and CAGrad do not converge from the rightmost start of the loss space.
    """
    starts = multitask.STARTS[:5]
    rightmost = int(np.argmax(toy(starts)[:, 0]))
    found = arrives(METHODS[name](), starts, 35_000, multitask.SCALE)
    assert found[rightmost] == (name in ("mgda", "nash_mtl"))
    if name in ("mgda", "nash_mtl"):
        assert all(found)
