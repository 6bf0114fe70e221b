"""The evidence table: statistics, choices, problems, and that it shows what was found."""

import json
import pathlib
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

import softadapt_optax as sa
from benchmarks import evidence, methods, problems, study

ROOT = pathlib.Path(__file__).parents[1]
NAMES = tuple(problems.problems(quick=True))


# Statistics.


def test_the_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=12)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose(evidence.bootstrap(values), expected, atol=0.03)
    assert evidence.bootstrap(values) == evidence.bootstrap(values)


def test_the_bootstrap_of_two_values_is_known():
    """The mean is either value in a quarter of the resamples, so the ends are the values."""
    assert evidence.bootstrap(np.asarray([1.0, 3.0])) == [1.0, 3.0]
    assert evidence.bootstrap(np.full(6, 2.5)) == [2.5, 2.5]


@pytest.mark.parametrize("num_seeds", [5, 8, 16])
def test_the_coverage_that_the_page_admits_is_what_a_simulation_finds(num_seeds):
    rng = np.random.default_rng(0)
    intervals = [evidence.bootstrap(rng.normal(size=num_seeds)) for _ in range(1000)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert covered == pytest.approx(evidence.coverage(num_seeds), abs=0.03)


def test_a_comparison_counts_wins_and_losses_but_no_ties():
    found = evidence.compare(np.asarray([1.0, 2.0, 3.0, 9.0]), np.asarray([2.0, 2.0, 5.0, 4.0]))
    assert (found["wins"], found["losses"], found["verdict"]) == (2, 1, "undecided")
    assert found["difference"] == pytest.approx((-1 + 0 - 2 + 5) / 4)
    assert evidence.compare([1.0, 1.0], [2.0, 4.0])["verdict"] == "better"
    assert evidence.compare([1.0, 1.0], [2.0, 4.0])["interval"] == [-3.0, -1.0]
    assert evidence.compare([3.0, 9.0], [2.0, 4.0])["verdict"] == "worse"
    assert evidence.compare([3.0, 4.0], [3.0, 4.0])["verdict"] == "undecided"


# Choices.


def test_a_configuration_is_chosen_on_the_other_seeds():
    metric = np.asarray([[1.0, 5.0, 5.0], [4.0, 2.0, 4.0], [3.0, 3.0, 3.0]])
    # Without seed 0 the means are 5, 3, 3; without seed 1 3, 4, 3; without seed 2 3, 3, 3.
    assert evidence.choose(metric).tolist() == [1, 0, 0]
    assert evidence.picked(metric, evidence.choose(metric)).tolist() == [4.0, 5.0, 5.0]


def test_a_seed_has_no_part_in_its_own_choice():
    rng = np.random.default_rng(0)
    metric = rng.uniform(size=(7, 5))
    for seed in range(5):
        changed = metric.copy()
        changed[:, seed] = rng.uniform(size=7)
        assert evidence.choose(changed)[seed] == evidence.choose(metric)[seed]


def test_what_is_not_finite_counts_as_the_worst():
    metric = np.asarray([[np.nan, 2.0], [np.inf, 30.0]])
    assert evidence.bounded(metric, 10.0).tolist() == [[10.0, 2.0], [10.0, 10.0]]


def test_a_choice_at_an_end_of_the_grid_is_seen():
    rates = np.asarray([0.1, 0.2, 0.4])
    assert not evidence.is_at_an_end(rates, np.asarray([0.2, 0.2]))
    assert evidence.is_at_an_end(rates, np.asarray([0.2, 0.4]))
    assert evidence.is_at_an_end(rates, np.asarray([0.1, 0.2]))


def test_weights_at_an_end_of_their_grid_are_seen():
    points = problems.ratios(3, np.asarray([0.1, 1.0, 10.0]))
    ratios = np.asarray([[1.0, 1.0, 1.0], [1.0, 10.0, 1.0], [1.0, 1.0, 0.1], [0.1, 1.0, 0.1]])
    assert evidence.edges(points, 3 * ratios / ratios.sum(axis=1, keepdims=True)) == 3
    assert evidence.edges(points, points[4:5]) == 0
    simplex = np.asarray([[2.0, 0.0], [1.5, 0.5], [1.0, 1.0], [0.0, 2.0]])
    assert evidence.edges(simplex, simplex) == 2


def test_evaluations_of_a_method_that_needs_all_gradients_are_counted_times_k():
    steps = np.asarray([[10.0, 60.0, np.nan]])
    metric, arrived = problems.counted(steps, cost=2, budget=100)
    assert metric.tolist() == [[20.0, 100.0, 100.0]]
    assert arrived.tolist() == [[100.0, 0.0, 0.0]]
    assert problems.counted(steps, cost=1, budget=100).metric.tolist() == [[10.0, 60.0, 100.0]]


def test_a_row_holds_the_seeds_at_the_configurations_chosen_for_them():
    problem = problems.problems(quick=True)["PINN"]._replace(rates=np.asarray([0.1, 0.2]))
    metric = np.asarray([[1.0, 5.0, 5.0], [4.0, 2.0, 2.0]])
    configs = np.asarray([[0.1, 1.0, 1.0, 1.0], [0.2, 1.0, 1.0, 1.0]])
    row = evidence.row_of([problems.Measured(metric, 10 * metric)], configs, problem)
    assert row["learning rates"].tolist() == [0.2, 0.1, 0.1]
    assert row["values"].tolist() == [4.0, 5.0, 5.0]
    assert row["beside"].tolist() == [40.0, 50.0, 50.0]
    assert row["rate at an end"]
    assert row["mean"] == pytest.approx(14 / 3)


def test_every_method_of_the_library_is_found_and_has_a_row():
    promised = "GradientTransformationExtraArgs"
    factories = {name for name in sa.__all__ if promised in (getattr(sa, name).__doc__ or "")}
    assert set(methods.ALL) == factories - {"balance"}
    rows = {name.split(",")[0] for name in evidence.METHODS}
    assert rows - {evidence.PLAIN, evidence.FIXED} == set(methods.ALL) - set(evidence.LEFT_OUT)


@pytest.mark.parametrize("problem", problems.problems(quick=False).values(), ids=NAMES)
def test_the_full_problems_are_large_enough(problem):
    assert problem.num_seeds >= 5
    equal = np.all(np.isclose(problem.points, problem.points[:, :1]), axis=1)
    assert equal.sum() == 1  # the plain sum is one of the fixed weights
    assert problem.points.shape[1] == len(problem.losses)
    np.testing.assert_array_equal(problem.rates, np.sort(problem.rates))
    assert len(problem.rates) >= 3


# The problems.


def test_weights_of_a_grid_sum_to_the_number_of_losses():
    points = problems.ratios(3, np.asarray([0.1, 1.0, 10.0]))
    assert points.shape == (9, 3)
    np.testing.assert_allclose(points.sum(axis=1), 3.0)
    np.testing.assert_allclose(points[1] / points[1, 0], [1.0, 0.1, 1.0])


def balls(first, second):
    return problems.Quadratics(np.stack([np.eye(2), 9 * np.eye(2)]), np.asarray([first, second]))


def test_the_front_of_two_balls_is_the_segment_between_their_minima():
    quadratics = balls([0.0, 0.0], [4.0, 0.0])
    for point, distance in (([1.0, 3.0], 3.0), ([-3.0, 4.0], 5.0), ([2.5, 0.0], 0.0)):
        found = problems.distance_to_front(np.asarray(point), quadratics)
        assert found == pytest.approx(distance / 4, abs=1e-5)


def test_the_worst_share_is_that_of_the_loss_that_is_worse_off():
    quadratics = balls([0.0, 0.0], [4.0, 0.0])
    for point, share in (
        ([0.0, 0.0], 1.0),
        ([4.0, 0.0], 1.0),
        ([2.0, 0.0], 0.25),
        ([1.0, 0.0], 9 / 16),
    ):
        assert problems.worst_share(np.asarray(point), quadratics) == pytest.approx(share)


@pytest.mark.usefixtures("x64")
def test_on_the_front_the_weighted_gradients_cancel():
    quadratics = problems.draw_quadratics(0)
    for share in (0.01, 0.5, 0.999):
        point = jnp.asarray(problems.front(share, quadratics))
        first, second = jax.jacobian(lambda x: jnp.stack(problems.quadratic_losses(x, quadratics)))(
            point
        )
        np.testing.assert_allclose(share * first, -(1 - share) * second, atol=1e-8)
        assert problems.distance_to_front(np.asarray(point), quadratics) < 1e-5


def test_the_distance_to_the_front_is_what_a_search_over_it_finds():
    quadratics = problems.draw_quadratics(3)
    point = np.random.default_rng(5).normal(size=problems.DIMENSIONS)

    def distance(logit):
        share = scipy.special.expit(np.ravel(logit)[0])
        return np.linalg.norm(point - problems.front(share, quadratics))

    expected = distance(scipy.optimize.brute(distance, [(-18, 18)], Ns=2000).item())
    scale = np.linalg.norm(np.subtract(*quadratics.minima))
    assert problems.distance_to_front(point, quadratics) == pytest.approx(
        expected / scale, rel=1e-5
    )


def test_errors_of_models_trained_alone_are_at_the_best_rate_of_each_task():
    errors = np.full((2, 3, 2, 2), 9.0)  # task trained, rate, seed, task
    errors[0, :, :, 0] = [[5.0, 5.0], [1.0, 2.0], [0.0, 4.0]]
    errors[1, :, :, 1] = [[3.0, 4.0], [8.0, 8.0], [8.0, 8.0]]
    assert problems.alone_errors(errors).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def quadratic_task(judge=None):
    pairs = [problems.draw_quadratics(seed) for seed in range(3)]
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(3, problems.DIMENSIONS)))
    judge = judge or (lambda params: problems.Measured(params.sum(axis=-1)))
    of_seeds = problems.OfSeeds(starts, problems.stacked(pairs))
    return problems.Task(problems.quadratic_losses, optax.sgd, of_seeds, judge, at_once=2), pairs


@pytest.mark.usefixtures("x64")
def test_all_that_trains_side_by_side_is_what_trains_alone():
    task, pairs = quadratic_task()
    configs = np.asarray([[1e-3, 1.0, 1.0], [2e-3, 1.5, 0.5], [3e-3, 0.1, 1.9]])
    shares = []
    make = evidence.METHODS[evidence.FIXED].make
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
def test_a_method_that_needs_all_gradients_makes_as_many_steps_less():
    task, _ = quadratic_task()
    configs, make = np.asarray([[1e-3, 1.0, 1.0]]), evidence.METHODS["mgda"].make
    at_equal_budget, at_equal_steps = problems.solver_of(task, 20).measure(
        make, configs, 2, lambda share: None
    )
    (ten,), (twenty,) = (
        problems.solver_of(task, steps).measure(make, configs, 1, lambda share: None)
        for steps in (10, 20)
    )
    np.testing.assert_allclose(at_equal_budget.metric, ten.metric, rtol=1e-9)
    np.testing.assert_allclose(at_equal_steps.metric, twenty.metric, rtol=1e-9)
    assert not np.allclose(ten.metric, twenty.metric)


# Verdicts and pages.


def report(**values):
    """Of rows whose values are given by the method's name, with underscores for its spaces."""
    rows = {
        name.replace("_sum", " sum").replace("best_fixed_weights", "best fixed weights"): {
            "values": np.asarray(row),
            "mean": np.mean(row),
            "interval": evidence.bootstrap(np.asarray(row)),
        }
        for name, row in values.items()
    }
    return {"rows": evidence.with_comparisons(rows)}


def test_a_verdict_follows_from_the_intervals():
    found = report(
        plain_sum=[3.0, 3.1, 3.2],
        best_fixed_weights=[1.0, 1.1, 1.2],
        softadapt=[2.0, 2.1, 2.2],
        mgda=[4.0, 4.1, 4.2],
        pcgrad=[2.0, 4.1, 3.2],
    )
    assert evidence.verdict_of(found) == (
        "Better than the plain sum: softadapt. Worse: mgda. Undecided: pcgrad. The best fixed "
        "weights are better than the plain sum. **Nothing beats a tuned fixed weight here.**"
    )
    found = report(plain_sum=[3.0, 3.1], best_fixed_weights=[3.0, 3.2], softadapt=[2.0, 2.1])
    verdict = evidence.verdict_of(found)
    assert verdict.endswith("Better than the best fixed weights: softadapt.")
    assert "Worse: none." in verdict


COMMITTED = study.read(evidence.STUDY.json_file)


def test_the_page_of_evidence_is_what_was_measured():
    assert evidence.STUDY.page_file.read_text() == evidence.page(COMMITTED, "images/evidence.png")
    assert evidence.STUDY.picture_file.exists()


def test_the_committed_evidence_is_complete():
    assert tuple(COMMITTED) == NAMES
    for name, found in COMMITTED.items():
        assert not found["quick"], name
        assert found["seeds"] >= 5, name
        missing = set(study.shown(evidence.METHODS, *COMMITTED.values())) - set(found["rows"])
        assert missing <= {"prior_loss"}, name
        for row in found["rows"].values():
            assert len(row["values"]) == found["seeds"]
            assert row["mean"] == pytest.approx(np.mean(row["values"]), rel=1e-4)


@pytest.mark.slow
def test_a_quick_run(tmp_path):
    out = tmp_path / "new folder"
    command = [sys.executable, "-m", "benchmarks.evidence", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = study.read(out / "evidence.json")
    assert tuple(reports) == NAMES
    text = (out / "evidence.md").read_text()
    assert text == evidence.page(reports, "evidence.png")
    assert "supports no verdict" in text
    width, height = struct.unpack(">II", (out / "evidence.png").read_bytes()[16:24])
    assert min(width, height) > 600
    again = subprocess.run(
        [sys.executable, "-m", "benchmarks.evidence", "--only", "beale", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 2
    assert "holds figures of a quick run" in again.stderr
    json.loads((out / "evidence.json").read_text())
