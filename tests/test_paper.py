"""The paper's experiments: their mathematics, and that what is written is what came out."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
import scipy.integrate
import scipy.stats

import softadapt_optax as sa

ROOT = pathlib.Path(__file__).parents[1]
PAPER = ROOT / "examples" / "paper"
NAMES = ("rosenbrock", "sparse_autoencoder", "introvae", "learned_coefficients")
OWN_QUESTIONS = ("not compared", "not in the paper", "not claimed")


@pytest.fixture(autouse=True)
def repository_in_path(monkeypatch):
    """`python -m examples.paper` runs in the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))


def load(name):
    return importlib.import_module(f"examples.paper.{name}")


def experiments():
    return [load(name).EXPERIMENT for name in NAMES]


def committed(experiment):
    return load("common").read(experiment, PAPER / "results")


# Barzilai-Borwein steps.


def barzilai_borwein_in_numpy(gradient, params, num_steps, min_step, max_step, first_step, long):
    """The iterates, shape [num_steps, n], after Barzilai and Borwein 1988."""
    iterates, previous = [], None
    for _ in range(num_steps):
        now = gradient(params)
        if previous is None:
            step = first_step
        else:
            s, y = params - previous[0], now - previous[1]
            step = s @ s / abs(s @ y) if long else abs(s @ y) / (y @ y)
            step = min(max(step, min_step), max_step)
        previous = params, now
        params = params - step * now
        iterates.append(params)
    return np.stack(iterates)


def iterates(tx, gradient, params, num_steps):
    state, result = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(num_steps):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        result.append(params)
    return result


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("long", [False, True])
def test_barzilai_borwein_is_the_published_rule(long):
    barzilai_borwein = load("barzilai_borwein").barzilai_borwein
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    hessian = root @ root.T + np.eye(4)
    start = rng.normal(size=4)
    bounds = {"min_step": 0.05, "max_step": 0.4, "first_step": 0.02}
    expected = barzilai_borwein_in_numpy(lambda x: hessian @ x, start, 25, **bounds, long=long)
    got = iterates(
        barzilai_borwein(**bounds, long=long), lambda x: hessian @ x, jnp.asarray(start), 25
    )
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("long", [False, True])
def test_barzilai_borwein_descends_where_the_curvature_is_negative(long):
    """On -2 x^2 both steps are 1/4, and x doubles with each."""
    barzilai_borwein = load("barzilai_borwein").barzilai_borwein
    tx = barzilai_borwein(1e-4, 1.0, first_step=0.25, long=long)
    got = iterates(tx, lambda x: -4 * x, jnp.asarray([1.0]), 4)
    np.testing.assert_allclose(np.ravel(got), [2.0, 4.0, 8.0, 16.0])


def test_barzilai_borwein_takes_the_longest_step_on_a_constant_gradient():
    barzilai_borwein = load("barzilai_borwein").barzilai_borwein
    for long in (False, True):
        tx = barzilai_borwein(1e-4, 0.1, first_step=1e-3, long=long)
        got = iterates(tx, lambda tree: {"x": jnp.ones(2)}, {"x": jnp.zeros(2)}, 3)
        steps = -np.diff([0.0, *(float(tree["x"][0]) for tree in got)])
        np.testing.assert_allclose(steps, [1e-3, 0.1, 0.1], rtol=1e-5)


def test_barzilai_borwein_finds_the_minimum_of_a_quadratic_behind_a_weighting():
    """With equal curvature in all directions the first such step goes all the way."""
    barzilai_borwein = load("barzilai_borwein").barzilai_borwein
    tx = optax.chain(sa.fixed_weights([1.0, 1.0]), barzilai_borwein(1e-4, 1.0))
    params = {"x": jnp.asarray([3.0, -2.0])}
    state = tx.init(params)
    for _ in range(2):
        _, grads = sa.value_and_component_grads(
            lambda p: [jnp.sum((p["x"] - 1) ** 2), jnp.sum((p["x"] + 1) ** 2)]
        )(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["x"], 0.0, atol=1e-4)


def test_barzilai_borwein_says_what_is_wrong():
    barzilai_borwein = load("barzilai_borwein").barzilai_borwein
    with pytest.raises(ValueError, match=r"0 < min_step <= max_step, got 0\.2 and 0\.1"):
        barzilai_borwein(0.2, 0.1)
    with pytest.raises(ValueError, match=r"`first_step` should be positive, got -1"):
        barzilai_borwein(first_step=-1)
    tx = barzilai_borwein()
    with pytest.raises(ValueError, match="`params` should be passed"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


# Rosenbrock's and Beale's functions.


@pytest.mark.parametrize("name", ["ROSENBROCK", "BEALE"])
def test_the_losses_vanish_at_the_minimum_alone(name):
    problem = getattr(load("rosenbrock"), name)
    assert all(abs(loss) < 1e-12 for loss in problem.losses_fn(problem.minimum).values())
    starts = load("rosenbrock").grid(problem, 12)
    assert starts.shape == (144, 2)
    values = sum(np.asarray(loss) for loss in problem.losses_fn(starts.T).values())
    assert np.all(values > 1e-3)


def test_rosenbrock_in_two_terms_is_rosenbrock():
    x, y = 0.3, -0.7
    losses = load("rosenbrock").rosenbrock((x, y))
    assert sum(losses.values()) == pytest.approx((1 - x) ** 2 + 100 * (y - x**2) ** 2)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_loss_weighting_without_beta_is_descent_on_half_the_sum_of_squares():
    rosenbrock = load("rosenbrock")
    problem = rosenbrock.ROSENBROCK
    squares = rosenbrock.half_sum_of_squares(problem)
    params = jnp.asarray([0.3, -0.7])
    tx = sa.softadapt(2, 0.0, history=2, loss_weighted=True, weight_sum=2.0)
    state = tx.init(params)
    for _ in range(2):  # the mean of the recorded losses is then that of the losses here
        _, grads = sa.value_and_component_grads(problem.losses_fn)(params)
        h, state = tx.update(grads, state, params)
    expected = jax.grad(lambda p: squares.losses_fn(p)["squares"])(params)
    np.testing.assert_allclose(h, expected, rtol=1e-12)
    assert not np.allclose(h, grads.combine(np.ones(2)))


@pytest.mark.usefixtures("x64")
def test_counted_steps_are_those_of_a_plain_loop():
    rosenbrock = load("rosenbrock")
    settings = rosenbrock.Settings(tolerances=(1.0, 0.5), limit=2000)
    starts = np.asarray([[-0.5, -0.5], [0.5, 0.5], [30.0, 0.0]])
    got = rosenbrock.count_steps(
        rosenbrock.ROSENBROCK,
        lambda total: optax.chain(rosenbrock.plain(2, total), optax.sgd(1e-3)),
        np.asarray([2.0]),
        starts,
        settings,
    )
    gradient = jax.jit(jax.grad(lambda p: sum(rosenbrock.rosenbrock(p).values())))
    for start, counts in zip(starts[:2], got[0], strict=False):
        params, distances = jnp.asarray(start), []
        for _ in range(int(np.nanmax(counts))):
            params = params - 1e-3 * gradient(params)
            distances.append(float(np.linalg.norm(params - 1.0)))
        for tolerance, count in zip(settings.tolerances, counts, strict=True):
            assert count == 1 + np.argmax(np.asarray(distances) <= tolerance)
    assert np.all(np.isnan(got[0, 2])), "a start that diverges has no number of steps"


def test_a_start_that_fails_counts_as_infinitely_many_steps():
    compare = load("rosenbrock").compare
    summary = compare(np.asarray([[5.0], [np.nan], [20.0]]), np.asarray([[10.0], [10.0], [10.0]]))
    assert summary == {
        "median": [2.0],
        "low": [0.5],
        "high": [np.inf],
        "fewer": [1 / 3],
        "failed": [1 / 3],
    }


# IntroVAE.


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (0.7, -1.0), (-2.0, 0.5)])
def test_the_divergence_is_that_of_two_gaussians(mean, log_variance):
    """Eq. 12 as printed lacks a square and a sign."""
    posterior = scipy.stats.norm(mean, np.exp(log_variance / 2))
    prior = scipy.stats.norm()
    expected, _ = scipy.integrate.quad(
        lambda z: posterior.pdf(z) * (posterior.logpdf(z) - prior.logpdf(z)), -15, 15
    )
    module = load("introvae")
    got = module.divergence(module.Gaussian(jnp.full((5, 3), mean), jnp.full((5, 3), log_variance)))
    np.testing.assert_allclose(got, 3 * expected, rtol=1e-4, atol=1e-6)


# The sparse autoencoder.


def test_what_the_tables_look_up_is_trained():
    module = load("sparse_autoencoder")
    settings = module.Settings()
    trained = module.settings_to_train(settings)
    assert set(trained) == {"fixed", *load("common").VARIANTS}
    for options in trained.values():
        rounded = [tuple(f"{value:.3g}" for value in option) for option in options]
        assert len(rounded) == len(set(rounded)), "trained twice"
    models = [
        {"weighting": weighting, "options": load("common").plain(option._asdict())}
        for weighting, options in trained.items()
        for option in options
    ]
    for reconstruction_scale, sparsity_scale in module.SCALES.values():
        scales = {"reconstruction_scale": reconstruction_scale, "sparsity_scale": sparsity_scale}
        for found in (
            module.find(models, "fixed", sparsity_weight=1e-4, **scales),
            module.find(models, "loss weighted", **scales),
        ):
            assert found["options"]["sparsity_scale"] == pytest.approx(sparsity_scale, rel=1e-4)
    for rate in settings.learning_rates:
        assert module.find(models, "loss weighted", learning_rate=rate)
    with pytest.raises(KeyError, match="no model has the weighting fixed"):
        module.find(models, "fixed", sparsity_weight=0.123)


@pytest.mark.slow
@pytest.mark.once
def test_models_that_train_together_are_those_that_train_alone():
    """And each seed has its own split, of which no part overlaps another."""
    module, common = load("sparse_autoencoder"), load("common")
    with common.progress(rich.console.Console(quiet=True)) as bar:
        data = module.load_data(2, bar)
        options = {"fixed": [module.Options(0.3), module.Options(1.0)]}
        trained = module.train(options, data, 1, bar)
    images = jnp.asarray(data.images)
    params, opt_state = module.start("fixed", module.Options(0.3), jax.random.key(1))
    order = np.random.default_rng(1001).permutation(data.training[1]).reshape(-1, module.BATCH)
    (params, _), _ = jax.jit(
        lambda carry: module.train_steps(
            "fixed", module.Options(0.3), carry, images, jnp.asarray(order)
        )
    )((params, opt_state))
    reconstruction = module.MODEL.apply(params, data.test.images[1])[1]
    mse = np.mean((np.asarray(reconstruction) - data.test.images[1]) ** 2)
    np.testing.assert_allclose(trained[0][0]["test"]["mse"][1], mse, rtol=1e-3)
    accuracy = data.classifiers[1].score(np.asarray(reconstruction), data.test.labels[1])
    assert trained[0][0]["test"]["accuracy"][1] == pytest.approx(accuracy, abs=5e-3)
    for seed in range(2):
        rest = np.concatenate([data.validation.images[seed], data.test.images[seed]])
        every = np.concatenate([data.images[data.training[seed]], rest])
        np.testing.assert_array_equal(
            np.sort(every.sum(axis=-1)), np.sort(data.images.sum(axis=-1))
        )


def test_the_scaled_losses_are_sums_or_means():
    module = load("sparse_autoencoder")
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(6, module.PIXELS)), jnp.float32)
    params = module.MODEL.init(jax.random.key(0), images)
    code, reconstruction = module.MODEL.apply(params, images)
    error = np.asarray(reconstruction - images) ** 2
    sums = module.losses_fn(params, images, module.Options(1.0))
    np.testing.assert_allclose(sums["reconstruction"], error.sum(axis=-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(sums["sparsity"], np.abs(code).sum(axis=-1).mean(), rtol=1e-5)
    options = module.Options(1.0, 0.1, 1e-3, *module.SCALES["both averaged"])
    means = module.losses_fn(params, images, options)
    np.testing.assert_allclose(means["reconstruction"], error.mean(), rtol=1e-5)
    np.testing.assert_allclose(means["sparsity"], np.abs(code).mean(), rtol=1e-5)


def test_fixed_weights_are_compared_at_the_same_sparsity():
    """Accuracies linear in the logarithm of the active share are met exactly in between."""
    module = load("sparse_autoencoder")
    models = [
        {
            "weighting": "fixed",
            "options": module.Options(weight)._asdict(),
            "test": {"active": [share], "accuracy": [np.log(share)]},
        }
        for weight, share in ((1.0, 0.05), (0.1, 0.4), (0.01, 0.8))
    ]
    got = module.at_sparsity({"models": models}, 1e-3, "test", "accuracy", [0.2])
    np.testing.assert_allclose(got, np.log(0.2))
    assert np.all(np.isnan(module.at_sparsity({"models": models}, 1e-3, "test", "accuracy", [0.9])))


# Statistics and files.


def test_the_interval_is_students():
    common = load("common")
    values = [1.0, 2.0, 4.0, 4.5, 3.0]
    mean, half = common.interval(values)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose((mean - half, mean + half), expected)
    assert common.written(values, digits=2) == "2.90 ± 1.78"
    assert common.written([2.5]) == "2.5"
    assert common.is_above(values)
    assert not common.is_above(values, 1.5)


def test_figures_survive_the_json():
    common = load("common")
    figures = {"a": [1.5, float("inf")], "b": {"0.1": float("nan")}, "c": "text", "d": 3}
    again = common.restored(json.loads(json.dumps(common.plain(figures), allow_nan=False)))
    np.testing.assert_equal(again, figures)


def test_the_results_are_written_from_the_committed_figures():
    common = load("common")
    expected = common.results_markdown(experiments(), PAPER / "results")
    assert (PAPER / "RESULTS.md").read_text() == expected
    for experiment in experiments():
        assert not committed(experiment)["quick"]
        assert (PAPER / "results" / f"{experiment.name}.png").exists()


def test_every_verdict_has_the_words_that_the_results_explain():
    pattern = r"(reproduced|holds)( only if .+)?$|not reproduced|does not hold$"
    for experiment in experiments():
        for verdict in experiment.verdicts(committed(experiment)["figures"]):
            assert re.match(pattern, verdict.verdict)
            is_claim = "reproduced" in verdict.verdict
            assert is_claim == (verdict.paper not in OWN_QUESTIONS)


def summary(median, failed=0.0):
    both = {name: [median, median] for name in ("median", "low", "high")}
    return {**both, "fewer": [float(median < 1)] * 2, "failed": [failed] * 2}


@pytest.mark.parametrize(
    ("by_sum", "verdict"),
    [
        ((0.567, 1.13), "reproduced only if the weights sum to 2"),
        ((0.567, 0.57), "reproduced"),
        ((0.9, 1.8), "not reproduced"),
        ((np.inf, np.inf), "not reproduced"),
    ],
)
def test_the_headline_is_judged_by_both_sums(by_sum, verdict):
    both = {"K": summary(by_sum[0]), "1": summary(by_sum[1])}
    found = {"starts": 1, "fixed": {"variants": {"loss weighted": both}}}
    assert load("rosenbrock").headline_verdict(found).verdict == verdict


def test_the_headline_of_starts_that_differ():
    both = {"K": summary(0.567) | {"low": [0.3, 0.4], "high": [0.7, 0.6]}, "1": summary(1.13)}
    found = {"starts": 3, "fixed": {"variants": {"loss weighted": both}}}
    verdict = load("rosenbrock").headline_verdict(found).verdict
    assert verdict.endswith("only if the weights sum to 2 and the median of the starts counts")


@pytest.mark.parametrize(
    ("without_beta", "with_beta", "is_gain_of_beta"),
    [(0.567, 0.567, False), (1.0, 0.567, True), (0.567, 0.6, False), (np.inf, np.inf, False)],
)
def test_the_rates_get_the_gain_only_if_it_is_gone_without_them(
    without_beta, with_beta, is_gain_of_beta
):
    betas = {"0.0": summary(without_beta), "0.1": summary(with_beta)}
    fixed = {"betas": {"loss weighted": betas}, "half the sum of squares": summary(0.567)}
    verdict = load("rosenbrock").rates_verdict({"fixed": fixed}).verdict
    assert (verdict == "reproduced") == is_gain_of_beta


@pytest.mark.parametrize(
    ("actives", "beaten", "verdict"),
    [
        ((0.1, 0.1), ["a", "b"], "reproduced"),
        ((0.1, 0.1), ["a"], "reproduced only if compared with a"),
        ((0.2, 0.1), ["a", "b"], "reproduced only if a less sparse code may count"),
        ((0.2, 0.1), [], "not reproduced"),
    ],
)
def test_accuracy_that_gives_up_sparsity_is_named(actives, beaten, verdict):
    ours, theirs = ({"test": {"active": [a, a + 1e-3, a - 1e-3]}} for a in actives)
    module = load("sparse_autoencoder")
    assert module.verdict_on_baselines(ours, {"a": theirs, "b": theirs}, beaten) == verdict


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (1.13, "reproduced"),
        (1.02, "not reproduced: 2 % more"),
        (2.0, "not reproduced: 100 % more"),
    ],
)
def test_the_overhead_is_reproduced_in_a_band(ratio, verdict):
    figures = {"time ratios": [ratio] * 5}
    assert load("sparse_autoencoder").time_verdict(figures).verdict == verdict


# All of it, as a user runs it.


@pytest.mark.slow
def test_a_quick_run(tmp_path):
    """`.ci/run` runs them all."""
    name = "learned_coefficients"
    command = ("-W", "error:::__main__", "-m", "examples.paper", "--quick", "--only", name)
    result = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "supports no verdict" in result.stdout
    report = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    assert report["quick"]
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000
    assert load(name).EXPERIMENT.title in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("examples/paper", "holds figures of a full run"),
        pytest.param("README.md", "--out should be a folder to write to", marks=pytest.mark.slow),
    ],
)
def test_a_quick_run_overwrites_nothing(out, message):
    result = subprocess.run(
        [sys.executable, "-m", "examples.paper.learned_coefficients", "--quick", "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.slow
def test_the_command_names_its_options():
    result = subprocess.run(
        [sys.executable, "-m", "examples.paper", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("--quick", "--only", "--out", *NAMES):
        assert option in result.stdout
