"""Choices that leave the judged seed out, intervals, paired comparisons, ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

RESAMPLES = 10_000
LEVEL = 0.05  # of tests


def choose(metric: np.ndarray) -> np.ndarray:
    """For each seed the configuration that is best over the other seeds, shape [seeds].

    Of a metric of shape [configurations, seeds], the mean of which is to be small.
    """
    seeds = range(metric.shape[1])
    return np.asarray([np.argmin(np.delete(metric, seed, axis=1).mean(axis=1)) for seed in seeds])


def picked(table: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of a table [configurations, seeds] the value of each seed at its configuration."""
    return table[chosen, np.arange(len(chosen))]


def bounded(metric: np.ndarray, worst: float) -> np.ndarray:
    return np.where(np.isfinite(metric), np.minimum(metric, worst), worst)


def resampled(num_seeds: int) -> np.ndarray:
    """Seeds of each resample, shape [resamples, seeds]; always the same."""
    return np.random.default_rng(0).integers(num_seeds, size=(RESAMPLES, num_seeds))


def bootstrap(values: np.ndarray) -> list[float]:
    """The 95 % percentile interval of the mean, by resampling the seeds with a fixed seed."""
    drawn = resampled(len(values))
    return np.percentile(np.asarray(values)[drawn].mean(axis=1), [2.5, 97.5]).tolist()


def coverage(num_seeds: int) -> float:
    """How often that interval holds the mean of a normal variable, roughly.

    Its half width is 1.96 standard errors with n in the place of n - 1.
    """
    width = scipy.stats.norm.ppf(0.975) * np.sqrt((num_seeds - 1) / num_seeds)
    return float(2 * scipy.stats.t.cdf(width, num_seeds - 1) - 1)


def compare(values: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """The paired difference over the seeds, below 0 if the values are better.

    With the two-sided p-value of Student's t-test that it is 0 in the mean.
    """
    differences = np.asarray(values) - np.asarray(reference)
    low, high = bootstrap(differences)
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    p = 1.0
    if np.any(differences != 0):
        t = np.inf if error == 0 else np.abs(differences.mean()) / error
        p = float(2 * scipy.stats.t.sf(t, len(differences) - 1))
    return {
        "difference": float(differences.mean()),
        "interval": [low, high],
        "wins": int(np.sum(differences < 0)),
        "losses": int(np.sum(differences > 0)),
        "verdict": "better" if high < 0 else "worse" if low > 0 else "undecided",
        "p": p,
    }


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which hypotheses Holm's step-down test rejects, the level held for all of them together."""
    order = np.argsort(p_values)
    bounds = LEVEL / np.arange(len(order), 0, -1)
    passed = np.logical_and.accumulate(np.asarray(p_values)[order] <= bounds)
    rejected = np.zeros(len(order), dtype=bool)
    rejected[order] = passed
    return rejected.tolist()


def mean_ranks(problems: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """Of the rows that all problems have, the mean of the ranks that their means have.

    A problem has the values of each row over its seeds. The interval is that of resampling the
    seeds of each problem, all rows alike; the rank 1 is the best.
    """
    names = [name for name in problems[0] if all(name in problem for problem in problems)]
    ranks, drawn = [], []
    for problem in problems:
        values = np.asarray([problem[name] for name in names])
        ranks.append(scipy.stats.rankdata(values.mean(axis=1)))
        means = values[:, resampled(values.shape[1])].mean(axis=-1)
        drawn.append(scipy.stats.rankdata(means, axis=0))
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5], axis=1)
    found = zip(names, np.mean(ranks, axis=0), low, high, strict=True)
    ordered = sorted(found, key=lambda each: each[1])
    return {name: {"rank": float(r), "interval": [float(a), float(b)]} for name, r, a, b in ordered}


def critical_difference(num_rows: int, num_problems: int) -> float:
    """By which mean ranks of two rows differ significantly (Nemenyi; Demsar 2006, section 3.2.2).

    The studentized range is that of infinitely many degrees of freedom.
    """
    quantile = scipy.stats.studentized_range.ppf(1 - LEVEL, num_rows, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_rows * (num_rows + 1) / (6 * num_problems)))
