"""The evidence table: its rows and problems, verdicts, and that it shows what was found."""

import json
import pathlib
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE_OF_EACH_KIND, quick_for

import softadapt_optax as sa
from benchmarks import evidence, evidence_rows, methods, problems, study, tuned
from benchmarks.evidence_rows import FIXED, METHODS, PLAIN

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[1]
PROBLEMS = evidence.problems(quick=False)
NAMES = tuple(PROBLEMS)


# Rows.


def test_every_method_of_the_library_is_found_and_has_a_row():
    promised = "GradientTransformationExtraArgs"
    factories = {name for name in sa.__all__ if promised in (getattr(sa, name).__doc__ or "")}
    assert set(methods.ALL) == factories - {"balance"}
    rows = {method.factory for method in METHODS.values()}
    assert rows == set(methods.ALL) - set(evidence_rows.LEFT_OUT)


def a_setting(num_losses=3):
    losses = jnp.arange(1.0, num_losses + 1)
    return problems.Setting(num_losses, losses / 2, losses, losses, reference=1)


@pytest.mark.parametrize("name", quick_for(ONE_OF_EACH_KIND, METHODS))
def test_every_row_trains_beside_losses_by_name(name):
    tx, x = METHODS[name].make(a_setting()), jnp.asarray([1.0, 2.0])

    def losses_fn(x):
        return {"a": jnp.sum(x**2), "b": jnp.sum((x - 3) ** 4), "c": jnp.sum((x + 1) ** 2)}

    _, grads = sa.value_and_component_grads(losses_fn)(x)
    updates, state = tx.update(grads, tx.init(x), x, ntk_traces=jnp.ones(3))
    assert np.all(np.isfinite(updates))
    assert sa.loss_weights(state).shape == (3,)


def test_arguments_come_from_the_problem():
    weights = sa.loss_weights(METHODS[FIXED].make(a_setting()).init(jnp.zeros(2)))
    np.testing.assert_allclose(weights, [0.5, 1.0, 1.5])
    assert a_setting().largest_first_loss == 3.0
    assert a_setting().first_at_100.tolist() == [100.0, 1.0, 1.0]


def test_methods_are_where_they_apply():
    found = {name: evidence_rows.rows_of(problem, False) for name, problem in PROBLEMS.items()}
    for name, rows in found.items():
        problem = PROBLEMS[name]
        assert rows[:2] == [PLAIN, FIXED]
        assert ("prior_loss" in rows) == problem.has_priors
        assert ("causal_weights" in rows) == problem.is_ordered
        assert ("gradnorm, alpha=1" in rows) == (problem.suite == "physics")
    assert sum(problem.is_ordered for problem in PROBLEMS.values()) == 1
    assert {METHODS[row].factory for rows in found.values() for row in rows} == {
        method.factory for method in METHODS.values()
    }


def test_a_version_is_that_of_code_and_settings():
    problem = PROBLEMS["Beale"]
    version = evidence_rows.version_of(problem, "dwa")
    assert version == evidence_rows.version_of(problem._replace(setting="In other words."), "dwa")
    others = {
        version,
        evidence_rows.version_of(problem._replace(num_seeds=9), "dwa"),
        evidence_rows.version_of(problem._replace(rates=problem.rates[1:]), "dwa"),
        evidence_rows.version_of(PROBLEMS["Rosenbrock"], "dwa"),
        evidence_rows.version_of(problem, "softadapt"),
        evidence_rows.version_of(problem, "softadapt, loss weighted"),
    }
    assert len(others) == 6


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=NAMES)
def test_the_full_problems_are_large_enough(problem):
    assert problem.num_seeds >= 8
    points = problem.grid.points()
    assert len(points) >= (25 if len(problem.grid.axes) > 1 else 7)
    assert np.ptp(problem.grid.exponents) >= 6  # decades
    weights = problem.grid.weights(problem.losses, points)
    equal = np.all(np.isclose(weights, 1.0), axis=1)
    assert equal.sum() == 1  # the plain sum is one of the fixed weights
    assert weights.shape[1] == len(problem.losses)
    assert problem.main in problem.losses
    assert problem.losses == tuple(sorted(problem.losses))
    np.testing.assert_array_equal(problem.rates, np.sort(problem.rates))
    assert problem.suite in evidence.SUITES


# Choices.


def test_a_choice_at_an_end_of_the_grid_is_seen():
    rates = np.asarray([0.1, 0.2, 0.4])
    assert not tuned.is_at_an_end(rates, np.asarray([0.2, 0.2]))
    assert tuned.is_at_an_end(rates, np.asarray([0.2, 0.4]))
    assert tuned.is_at_an_end(rates, np.asarray([0.1, 0.2]))


def test_weights_at_an_end_of_their_grid_are_seen():
    grid = problems.Grid((("b",), ("c",)), np.asarray([-1.0, 0.0, 1.0]))
    points = grid.weights(("a", "b", "c"), grid.points())
    ratios = np.asarray([[1.0, 1.0, 1.0], [1.0, 10.0, 1.0], [1.0, 1.0, 0.1], [0.1, 1.0, 0.1]])
    assert tuned.edges(points, 3 * ratios / ratios.sum(axis=1, keepdims=True)) == 3
    assert tuned.edges(points, points[4:5]) == 0
    shared = problems.Grid((("b", "c"),), np.asarray([-1.0, 0.0, 1.0]))
    points = shared.weights(("a", "b", "c"), shared.points())
    assert tuned.edges(points, points) == 2  # b and c, which have one ratio, are at no end


def test_budgets_are_counted_in_evaluations_seconds_and_steps():
    problem = PROBLEMS["Three tasks on digits"]._replace(budget=1200, gradient_cost=3)
    assert tuned.stops_of(problem, True, 1.5) == {"evaluations": 400, "seconds": 800, "steps": 1200}
    assert tuned.stops_of(problem, True, None) == {"evaluations": 400, "steps": 1200}
    assert tuned.stops_of(problem, False, 1.2) == {"evaluations": 1200, "seconds": 1000}
    assert tuned.stops_of(problem, False, 1.04) == {"evaluations": 1200}
    own_batches = problem._replace(gradient_cost=1)
    assert tuned.stops_of(own_batches, True, 1.2) == {"evaluations": 1200, "seconds": 1000}


def bowl(problem):
    """A solver that does not train: the metric has its minimum at exponents (0.6, -1.4)."""

    def measure(make, configs, stops, advance):
        del make
        advance(1.0)
        exponents = np.log10(configs[:, 2:] / configs[:, 1:2])
        metric = np.sum((exponents - [0.6, -1.4]) ** 2, axis=1) + configs[:, 0]
        every = np.repeat(metric[:, None], problem.num_seeds, axis=1)
        return [problems.Measured(every / stop, 10 * every) for stop in stops]

    return problems.Solver(measure, lambda make: 2.0)


def bowl_problem():
    return PROBLEMS["Burgers"]._replace(
        rates=np.asarray([0.1, 0.2]),
        losses=("a", "b", "c"),
        grid=problems.Grid((("b",), ("c",)), np.linspace(-3, 3, 7)),
        budget=100,
    )


def measured(**options):
    problem, shares = bowl_problem(), []
    options = {"needs_gradients": False, "is_timed": False, "is_searched": False} | options
    return tuned.measure(problem, bowl(problem), None, shares.append, **options), sum(shares)


def test_weights_are_searched_for_and_then_more_finely():
    """The nearest of the coarse points is (1, -1), that of the fine ones (0.5, -1.5)."""
    row, share = measured(is_searched=True)
    assert share == pytest.approx(1.0)
    weights = np.asarray(row["weights"])[0]
    np.testing.assert_allclose(np.log10(weights[1:] / weights[0]), [0.5, -1.5], atol=1e-6)
    assert weights.sum() == pytest.approx(3.0)
    assert row["weights at an end"] == 0
    assert row["mean"] == pytest.approx((0.02 + 0.1) / 100)
    assert row["rate at an end"]
    assert row["beside"][0] == pytest.approx(10 * 0.12)


def test_a_method_is_measured_at_equal_weights_and_at_all_budgets():
    row, share = measured(needs_gradients=True, is_timed=True)
    assert share == pytest.approx(1.0)
    assert "weights" not in row
    assert row["time ratio"] == 2.0
    metric = 0.6**2 + 1.4**2 + 0.1
    assert row["mean"] == pytest.approx(metric / 100)  # own batches: a step costs one evaluation
    assert row["at equal seconds"]["mean"] == pytest.approx(metric / 50)
    assert "at equal steps" not in row


def test_a_row_holds_the_seeds_at_the_configurations_chosen_for_them():
    problem = bowl_problem()
    metric = np.asarray([[1.0, 5.0, 5.0], [4.0, 2.0, 2.0]])
    configs = np.asarray([[0.1, 1.0, 1.0, 1.0], [0.2, 1.0, 1.0, 1.0]])
    row = tuned.figures_of(problems.Measured(metric, 10 * metric), configs, problem, False)
    assert row["learning rates"].tolist() == [0.2, 0.1, 0.1]
    assert row["values"].tolist() == [4.0, 5.0, 5.0]
    assert row["beside"].tolist() == [40.0, 50.0, 50.0]
    assert row["rate at an end"]
    assert row["mean"] == pytest.approx(14 / 3)


# Verdicts and pages.


def report(suite="physics", **values):
    """Of rows whose values are given by the method's name, with underscores for its spaces."""
    rows = {
        name.replace("_sum", " sum").replace("best_fixed_weights", "best fixed weights"): {
            "values": np.asarray(row),
            "mean": np.mean(row),
            "interval": [min(row), max(row)],
        }
        for name, row in values.items()
    }
    return {"suite": suite, "rows": rows}


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


def test_what_is_certain_is_what_a_correction_for_all_comparisons_leaves():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=8)
    reports = {
        "one": report(
            plain_sum=plain,
            best_fixed_weights=plain - 5 + 0.1 * rng.normal(size=8),
            dwa=plain - 0.5 + 0.55 * rng.normal(size=8),
        ),
        "two": report(plain_sum=plain, best_fixed_weights=plain, dwa=rng.normal(size=8)),
    }
    found = evidence.corrected(reports)["one"]["rows"]
    assert found[FIXED][f"against {PLAIN}"]["certain"]
    against = found["dwa"][f"against {PLAIN}"]
    assert 0.05 / 4 < against["p"] < 0.1
    assert not against["certain"]
    assert evidence.tally(found[FIXED], PLAIN) == "8-0 ▲*"
    assert "*" not in evidence.tally(found["dwa"], PLAIN)


def test_the_headline_says_whether_anything_beats_the_search():
    beaten = report(
        plain_sum=[3.0, 3.1, 3.2],
        best_fixed_weights=[2.0, 2.1, 2.2],
        rlw=[9.0, 9, 9],
        dwa=[1.0] * 3,
    )
    (text,) = evidence.headline(evidence.corrected({"Burgers": beaten}))
    text = " ".join(text.split())
    assert "are beaten on 1 of 1 problems (Burgers: dwa*)" in text
    assert "they are 2nd of 4 rows, the plain sum 3rd and random weights (`rlw`) 4th" in text
    assert [evidence.ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 101, 111)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "101st", "111th")
    ]


def test_the_advice_counts_on_how_many_problems():
    reports = {
        name: report(
            plain_sum=[3.0, 3.1, 3.2],
            best_fixed_weights=[2.0, 2.1, 2.2],
            nash_mtl=np.asarray([1.0, 1.1, 1.2]) + shift,
        )
        for name, shift in (("one", 0.0), ("two", 1.5), ("three", 5.0))
    }
    text = " ".join(evidence.advice(evidence.corrected(reports)).split())
    assert "ahead of the plain sum on 2 of 3 problems and behind on 1," in text
    assert "ahead of searched weights on 1 and behind on 2." in text
    assert text.startswith("* **A physics-informed network**: `nash_mtl`")


COMMITTED = study.read(evidence.STUDY.json_file)


@pytest.mark.parametrize("suite", evidence.SUITES)
def test_what_is_advised_is_among_the_best(suite):
    found = evidence.of_suite(suite, study.told(evidence.STUDY, COMMITTED))
    ranks = list(evidence.ranks_of(found))
    _, row, _ = evidence.ADVICE[suite]
    best = evidence.best_methods(ranks)
    if row == PLAIN:
        assert ranks.index(PLAIN) < ranks.index(best[0])
    else:
        assert row in best


def text_of(page):
    """In one line; of a notebook that of its cells."""
    text = (ROOT / page).read_text()
    if page.endswith(".ipynb"):
        text = "".join(line for cell in json.loads(text)["cells"] for line in cell["source"])
    return " ".join(text.split())


def test_the_pages_have_the_number_of_problems():
    assert len(PROBLEMS) == 12
    pages = ("README.md", "docs/index.md", "notebooks/choose_a_method.ipynb")
    for page in (*pages, "notebooks/quickstart.ipynb"):
        assert "twelve problems" in text_of(page)


def test_what_the_pages_say_of_searched_weights_and_of_relobralo():
    found = evidence.reports_to_tell()
    verdicts = {
        name: [row.get(f"against {FIXED}", {}).get("verdict") for row in report["rows"].values()]
        for name, report in found.items()
    }
    assert sum("better" not in each for each in verdicts.values()) == 10
    assert "on ten of the twelve problems" in text_of("notebooks/choose_a_method.ipynb")
    physics_reports = evidence.of_suite("physics", found).values()
    against = [report["rows"]["relobralo"][f"against {PLAIN}"] for report in physics_reports]
    assert "better" not in [each["verdict"] for each in against]
    assert "`relobralo`, made for them and here no better than the sum" in text_of("README.md")


def test_the_page_of_evidence_is_what_was_measured():
    page = evidence.page(COMMITTED, study.picture_path("images/"))
    assert evidence.STUDY.page_file.read_text() == page
    for name in evidence.draw_names(study.told(evidence.STUDY, COMMITTED)):
        assert evidence.STUDY.page_file.with_name("images").joinpath(f"{name}.png").exists()


def test_the_committed_evidence_is_of_full_runs():
    for name, found in COMMITTED.items():
        assert not found["quick"], name
        for row in found["rows"].values():
            assert len(row["values"]) == found["seeds"] >= 8
            assert row["mean"] == pytest.approx(np.mean(row["values"]), rel=1e-4)


@pytest.mark.slow
def test_a_quick_run(tmp_path):
    """Of one problem of each suite; it goes on with the next, and does not mix with a full run."""
    out = tmp_path / "new folder"
    command = [sys.executable, "-m", "benchmarks.evidence", "--out", str(out)]

    def run(*options):
        return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)

    done = run("--quick", "--only", "beale", "cagrad-toy")
    assert done.returncode == 0, done.stderr
    before = study.read(out / "evidence.json")
    assert list(before) == ["CAGrad toy", "Beale"]
    done = run("--quick", "--only", "helmholtz", "beale")
    assert done.returncode == 0, done.stderr
    reports = study.read(out / "evidence.json")
    assert list(reports) == ["Helmholtz", "CAGrad toy", "Beale"]
    assert reports["Beale"] == before["Beale"]  # as it was, to the seconds
    text = (out / "evidence.md").read_text()
    assert text == evidence.page(reports, study.picture_path(""))
    assert "supports no verdict" in text
    for name in evidence.draw_names(reports):
        width, height = struct.unpack(">II", (out / f"{name}.png").read_bytes()[16:24])
        assert min(width, height) > 200
    again = run("--only", "beale")
    assert again.returncode == 2
    assert "holds figures of a quick run" in again.stderr
    json.loads((out / "evidence.json").read_text())
