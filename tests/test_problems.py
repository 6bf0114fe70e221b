"""Problems of the evidence: their training, the functions, and what the images are judged by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.special

from benchmarks import functions, images, problems
from benchmarks.evidence_rows import FIXED, METHODS

pytestmark = pytest.mark.once

GRID = problems.Grid((("b",), ("c",)), np.asarray([-1.0, 0.0, 1.0]))


# Grids of fixed weights.


def test_weights_of_a_grid_sum_to_the_number_of_losses():
    weights = GRID.weights(("a", "b", "c"), GRID.points())
    assert weights.shape == (9, 3)
    np.testing.assert_allclose(weights.sum(axis=1), 3.0)
    np.testing.assert_allclose(weights[1] / weights[1, 0], [1.0, 0.1, 1.0])


def test_losses_of_an_axis_share_its_weight():
    grid = problems.Grid((("b", "d"),), np.asarray([-2.0, 0.0, 2.0]))
    weights = grid.weights(("a", "b", "c", "d"), grid.points())
    np.testing.assert_allclose(weights[0] / weights[0, 0], [1.0, 1e-2, 1.0, 1e-2])
    np.testing.assert_allclose(weights[1], 1.0)


def test_the_finer_points_are_halfway_to_the_neighbours():
    finer = GRID.finer(np.asarray([1.0, 0.0]))
    assert finer.shape == (8, 2)
    assert np.unique(finer, axis=0).shape == (8, 2)
    assert np.max(np.abs(finer - [1.0, 0.0]), axis=0).tolist() == [0.5, 0.5]
    assert not np.any(np.all(finer == [1.0, 0.0], axis=1))


# Functions.


def test_evaluations_of_a_method_that_needs_all_gradients_are_counted_times_k():
    steps = np.asarray([[10.0, 60.0, np.nan]])
    metric, arrived = functions.counted(steps, cost=2, budget=100)
    assert metric.tolist() == [[20.0, 100.0, 100.0]]
    assert arrived.tolist() == [[100.0, 0.0, 0.0]]
    assert functions.counted(steps, cost=1, budget=100).metric.tolist() == [[10.0, 60.0, 100.0]]


def balls(first, second):
    return functions.Quadratics(np.stack([np.eye(2), 9 * np.eye(2)]), np.asarray([first, second]))


def test_the_front_of_two_balls_is_the_segment_between_their_minima():
    quadratics = balls([0.0, 0.0], [4.0, 0.0])
    for point, distance in (([1.0, 3.0], 3.0), ([-3.0, 4.0], 5.0), ([2.5, 0.0], 0.0)):
        found = functions.distance_to_front(np.asarray(point), quadratics)
        assert found == pytest.approx(distance / 4, abs=1e-5)


def test_the_worst_share_is_that_of_the_loss_that_is_worse_off():
    quadratics = balls([0.0, 0.0], [4.0, 0.0])
    for point, share in (
        ([0.0, 0.0], 1.0),
        ([4.0, 0.0], 1.0),
        ([2.0, 0.0], 0.25),
        ([1.0, 0.0], 9 / 16),
    ):
        assert functions.worst_share(np.asarray(point), quadratics) == pytest.approx(share)


@pytest.mark.usefixtures("x64")
def test_on_the_front_the_weighted_gradients_cancel():
    quadratics = functions.draw_quadratics(0)
    for share in (0.01, 0.5, 0.999):
        point = jnp.asarray(functions.front(share, quadratics))
        first, second = jax.jacobian(
            lambda x: jnp.stack(functions.quadratic_losses(x, quadratics))
        )(point)
        np.testing.assert_allclose(share * first, -(1 - share) * second, atol=1e-8)
        assert functions.distance_to_front(np.asarray(point), quadratics) < 1e-5


def test_the_distance_to_the_front_is_what_a_search_over_it_finds():
    quadratics = functions.draw_quadratics(3)
    point = np.random.default_rng(5).normal(size=functions.DIMENSIONS)

    def distance(logit):
        share = scipy.special.expit(np.ravel(logit)[0])
        return np.linalg.norm(point - functions.front(share, quadratics))

    expected = distance(scipy.optimize.brute(distance, [(-18, 18)], Ns=2000).item())
    scale = np.linalg.norm(np.subtract(*quadratics.minima))
    assert functions.distance_to_front(point, quadratics) == pytest.approx(
        expected / scale, rel=1e-5
    )


def test_errors_of_models_trained_alone_are_at_the_best_rate_of_each_task():
    errors = np.full((2, 3, 2, 2), 9.0)  # task trained, rate, seed, task
    errors[0, :, :, 0] = [[5.0, 5.0], [1.0, 2.0], [0.0, 4.0]]
    errors[1, :, :, 1] = [[3.0, 4.0], [8.0, 8.0], [8.0, 8.0]]
    assert images.alone_errors(errors).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def quadratic_task(judge=None):
    pairs = [functions.draw_quadratics(seed) for seed in range(3)]
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(3, functions.DIMENSIONS)))
    judge = judge or (lambda params: problems.Measured(params.sum(axis=-1)))
    of_seeds = problems.OfSeeds(starts, problems.stacked(pairs))
    return problems.Task(functions.quadratic_losses, optax.sgd, of_seeds, judge, at_once=2), pairs


@pytest.mark.usefixtures("x64")
def test_all_that_trains_side_by_side_is_what_trains_alone():
    task, pairs = quadratic_task()
    configs = np.asarray([[1e-3, 1.0, 1.0], [2e-3, 1.5, 0.5], [3e-3, 0.1, 1.9]])
    shares = []
    make = METHODS[FIXED].make
    halfway, last = problems.train(task, make, configs, [7, 20], shares.append)
    assert sum(shares) == pytest.approx(1)
    for index, (rate, *weights) in enumerate(configs):
        for seed, quadratics in enumerate(pairs):
            x = np.asarray(task.of_seeds.params[seed])
            for step in range(20):
                gradients = np.einsum("kij,kj->ki", quadratics.hessians, x - quadratics.minima)
                x = x - rate * np.asarray(weights) @ gradients
                if step == 6:
                    np.testing.assert_allclose(halfway[index, seed], x, rtol=1e-9)
            np.testing.assert_allclose(last[index, seed], x, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_the_traces_reach_the_method_that_wants_them():
    """As often as it refreshes its weights; between its refreshes it holds them."""
    task, _ = quadratic_task()
    every = problems.TRACES_EVERY

    def traces_fn(params, quadratics, batch):
        return [1.0 + 0 * jnp.sum(params), 3.0 + 0 * jnp.sum(params)]

    method = METHODS[f"ntk_weights, every={every}"]
    configs = np.asarray([[1e-3, 1.0, 1.0]])
    (found,) = problems.train(
        task._replace(traces_fn=traces_fn), method.make, configs, [every + 5], lambda share: None
    )
    # 4 over each trace: 4 and 4 / 3.
    weights = np.asarray([[1e-3, 4.0, 4.0 / 3.0]])
    (expected,) = problems.train(
        task, METHODS[FIXED].make, weights, [every + 5], lambda share: None
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_time_of_a_step_is_above_nothing_and_of_one_model():
    task, _ = quadratic_task()
    ratio = problems.time_ratio(task, METHODS["mgda"].make)
    assert 0.1 < ratio < 1000
