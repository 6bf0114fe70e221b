"""Statistics of the studies: choices, intervals, comparisons, corrections and ranks."""

import numpy as np
import pytest
import scipy.stats

from benchmarks import statistics

pytestmark = pytest.mark.once


def test_the_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=12)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose(statistics.bootstrap(values), expected, atol=0.03)
    assert statistics.bootstrap(values) == statistics.bootstrap(values)


def test_the_bootstrap_of_two_values_is_known():
    """The mean is either value in a quarter of the resamples, so the ends are the values."""
    assert statistics.bootstrap(np.asarray([1.0, 3.0])) == [1.0, 3.0]
    assert statistics.bootstrap(np.full(6, 2.5)) == [2.5, 2.5]


@pytest.mark.parametrize("num_seeds", [5, 8, 16])
def test_the_coverage_that_the_page_admits_is_what_a_simulation_finds(num_seeds):
    rng = np.random.default_rng(0)
    intervals = [statistics.bootstrap(rng.normal(size=num_seeds)) for _ in range(1000)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert covered == pytest.approx(statistics.coverage(num_seeds), abs=0.03)


def test_a_comparison_counts_wins_and_losses_but_no_ties():
    found = statistics.compare(np.asarray([1.0, 2.0, 3.0, 9.0]), np.asarray([2.0, 2.0, 5.0, 4.0]))
    assert (found["wins"], found["losses"], found["verdict"]) == (2, 1, "undecided")
    assert found["difference"] == pytest.approx((-1 + 0 - 2 + 5) / 4)
    assert statistics.compare([1.0, 1.0], [2.0, 4.0])["verdict"] == "better"
    assert statistics.compare([1.0, 1.0], [2.0, 4.0])["interval"] == [-3.0, -1.0]
    assert statistics.compare([3.0, 9.0], [2.0, 4.0])["verdict"] == "worse"
    assert statistics.compare([3.0, 4.0], [3.0, 4.0])["verdict"] == "undecided"


def test_a_configuration_is_chosen_on_the_other_seeds():
    metric = np.asarray([[1.0, 5.0, 5.0], [4.0, 2.0, 4.0], [3.0, 3.0, 3.0]])
    # Without seed 0 the means are 5, 3, 3; without seed 1 3, 4, 3; without seed 2 3, 3, 3.
    assert statistics.choose(metric).tolist() == [1, 0, 0]
    assert statistics.picked(metric, statistics.choose(metric)).tolist() == [4.0, 5.0, 5.0]


def test_a_seed_has_no_part_in_its_own_choice():
    rng = np.random.default_rng(0)
    metric = rng.uniform(size=(7, 5))
    for seed in range(5):
        changed = metric.copy()
        changed[:, seed] = rng.uniform(size=7)
        assert statistics.choose(changed)[seed] == statistics.choose(metric)[seed]


def test_what_is_not_finite_counts_as_the_worst():
    metric = np.asarray([[np.nan, 2.0], [np.inf, 30.0]])
    assert statistics.bounded(metric, 10.0).tolist() == [[10.0, 2.0], [10.0, 10.0]]


def test_the_p_value_of_a_comparison_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    values, reference = rng.normal(size=(2, 9))
    expected = scipy.stats.ttest_rel(values, reference).pvalue
    assert statistics.compare(values, reference)["p"] == pytest.approx(expected)
    assert statistics.compare([1.0, 2.0], [1.0, 2.0])["p"] == 1.0
    assert statistics.compare([1.0, 2.0], [2.0, 3.0])["p"] == 0.0


def test_holm_rejects_step_by_step():
    """0.05 over 4, 3, 2 and 1: the third is too large, so the fourth is not looked at."""
    assert statistics.holm([0.012, 0.03, 0.016, 0.04]) == [True, False, True, False]
    assert statistics.holm([0.9, 0.8]) == [False, False]
    assert statistics.holm([0.049]) == [True]


def test_holm_holds_the_level_for_all_together():
    p_values = np.random.default_rng(0).uniform(size=(2000, 20))
    wrong = np.mean([any(statistics.holm(row)) for row in p_values])
    assert wrong == pytest.approx(0.05, abs=0.015)


def test_ranks_are_of_the_means_and_of_rows_that_all_have():
    problems = [
        {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0], "alone": [0.0, 0.0]},
        {"a": [5.0, 5.0], "b": [4.0, 4.0], "c": [5.0, 5.0]},
    ]
    ranks = statistics.mean_ranks(problems)
    assert list(ranks) == ["b", "a", "c"]
    assert [row["rank"] for row in ranks.values()] == [1.5, 1.75, 2.75]
    assert [row["interval"] for row in ranks.values()] == [[1.5, 1.5], [1.75, 1.75], [2.75, 2.75]]


def test_the_interval_of_a_rank_holds_what_the_seeds_leave_open():
    problem = {"good": [0.0, 1.0, 0.1] * 3, "also": [1.0, 0.1, 0.0] * 3, "bad": [8.0, 9.0, 7.0] * 3}
    ranks = statistics.mean_ranks([problem])
    assert ranks["bad"]["interval"] == [3.0, 3.0]
    assert ranks["good"]["interval"] == ranks["also"]["interval"] == [1.0, 2.0]


def test_the_critical_difference_is_the_published_one():
    """Demsar 2006, Table 5 (a): 2.728 and 3.164 for 5 and 10 classifiers."""
    assert statistics.critical_difference(5, 30) == pytest.approx(2.728 * (30 / 180) ** 0.5, 1e-3)
    assert statistics.critical_difference(10, 14) == pytest.approx(3.164 * (110 / 84) ** 0.5, 1e-3)
