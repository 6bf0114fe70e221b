"""The benchmarks of speed: what they count, what they compare, and that the pages are theirs."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from helpers import weights_along

import softadapt_optax as sa
from benchmarks import __main__ as main
from benchmarks import alone, common, cost, every_method, growth, kernels, readme
from benchmarks.models import LARGE, MODELS, transformer

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[1]
REPORTS = json.loads((ROOT / "benchmarks" / "results" / "benchmarks.json").read_text())


@pytest.mark.parametrize("num_losses", [5, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", MODELS)
def test_models_have_the_losses_that_they_say(kind, num_losses):
    model = MODELS[kind](num_losses)
    with jax.numpy_rank_promotion("allow"):
        losses = jax.tree.leaves(jax.jit(model.losses_fn)(model.params, model.batch))
    assert len(losses) == model.num_losses == num_losses
    assert np.all(np.isfinite(losses))
    assert len({float(loss) for loss in losses}) == num_losses


@pytest.mark.parametrize("kind", LARGE)
def test_large_models_have_scalar_losses_of_float32(kind):
    """Without their parameters, which would take gigabytes."""

    def losses():
        model = LARGE[kind](4)
        assert model.num_losses == 4
        return model.params, model.losses_fn(model.params, model.batch)

    with jax.numpy_rank_promotion("allow"):
        params, found = jax.eval_shape(losses)
    assert [(loss.shape, loss.dtype) for loss in found] == 4 * [((), jnp.float32)]
    dtype = jnp.bfloat16 if kind == "large transformer" else jnp.float32
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["plain", "softadapt", "mgda", *common.BY_HAND])
def test_steps_of_bfloat16_give_what_they_take(name):
    """A program is called with what it returned."""

    def first_carry_and_next():
        dtype = jnp.bfloat16
        model = transformer(2, width=64, length=8, batch=2, layers=2, dtype=dtype)
        if name == "plain":
            step, carry = common.plain_step(model)
        elif name in common.BY_HAND:
            step, carry = common.steps_by_hand(model, name)[name]
        else:
            step, carry = common.weighted_step(model, getattr(sa, name)(2))
        return carry, step(carry, model.batch)[0]

    with jax.numpy_rank_promotion("allow"):
        first, following = jax.eval_shape(first_carry_and_next)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), following
    )


@pytest.mark.parametrize("kinds", [["tiny"], [*MODELS, "tiny on one core"], [*MODELS, *LARGE]])
def test_the_picture_of_the_costs_has_a_panel_for_each_model(kinds):
    row = {"model": "a", "num_losses": 4, "time_ratio": 1.1, "flop_ratio": 1.0}
    row["time_ratio_quartiles"] = [1.0, 1.2]
    rows = [{**row, "kind": kind, "step": step} for kind in kinds for step in ("plain", "mgda")]
    figure = plt.figure(figsize=(15, cost.height(rows)))
    cost.draw(figure.subfigures(1, 1), rows)
    panels = [axes for axes in figure.axes if axes.axison]
    plt.close(figure)
    assert len(panels) == len([kind for kind in kinds if "core" not in kind])


def next_params(step_and_carry, batch):
    step, carry = step_and_carry
    (params, *_), losses = jax.jit(step)(carry, batch)
    return params, losses


@pytest.mark.parametrize("kind", [pytest.param("heads", marks=pytest.mark.slow), "tiny"])
def test_all_steps_do_the_same_work(kind, monkeypatch):
    """By hand and with the library; with weights 1 also the plain step."""
    monkeypatch.setattr(common, "ADAM", optax.sgd(1.0))  # Adam makes much of a rounding error
    model = MODELS[kind](3)

    def assert_alike(first, second):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, second)

    plain, losses = next_params(common.plain_step(model), model.batch)
    ones, _ = next_params(common.weighted_step(model, sa.fixed_weights([1.0] * 3)), model.batch)
    assert_alike(plain, ones)

    weights = np.asarray(jax.nn.softmax(jnp.stack(losses)))
    fixed, _ = next_params(common.weighted_step(model, sa.fixed_weights(weights)), model.batch)
    for gradients in ("one pass", "jacrev"):
        by_hand, _ = next_params(common.step_by_hand(model, gradients), model.batch)
        assert_alike(by_hand, fixed)

    def shortened(components, state):
        return 1.0 / jnp.sqrt(jnp.sum(jnp.abs(components.gramian()), axis=0)), state

    weighting = sa.balance(sa.Weighting(lambda k: (), shortened), 3)
    by_hand, _ = next_params(common.step_by_hand(model, "vmap, Gramian"), model.batch)
    ours, _ = next_params(common.weighted_step(model, weighting), model.batch)
    assert_alike(by_hand, ours)


@pytest.mark.parametrize("stencil", [common.LINE, (0.0, -1.0, 1.0)])
def test_softadapt_by_hand_has_the_weights_of_the_library(stencil):
    trajectory = np.random.default_rng(0).uniform(0.5, 3.0, (8, 4)).astype(np.float32)
    weigh, memory = common.softadapt_by_hand(4, stencil)
    by_hand = []
    for losses in trajectory:
        weights, memory = weigh(jnp.asarray(losses), memory)
        by_hand.append(weights)
    length = len(stencil)
    wanted = [0.25 * np.ones(4)] * (length - 1)
    for step in range(length, len(trajectory) + 1):
        wanted.append(jax.nn.softmax(0.1 * np.asarray(stencil) @ trajectory[step - length : step]))
    np.testing.assert_allclose(by_hand, wanted, rtol=1e-5)
    if stencil == common.LINE:
        np.testing.assert_allclose(by_hand, weights_along(sa.softadapt(4), trajectory), rtol=1e-5)


def test_kernels_are_counted_once():
    def compiled_text(function):
        return jax.jit(function).lower(jnp.ones((64, 64))).compile().as_text()

    assert common.count_kernels(compiled_text(lambda x: x)) == 0
    assert common.count_kernels(compiled_text(lambda x: jnp.tanh(x) * 2 + 1)) == 1
    loop = compiled_text(lambda x: jax.lax.fori_loop(0, 9, lambda _, x: jnp.tanh(x @ x), x))
    assert 1 <= common.count_kernels(loop) <= 6
    product = compiled_text(lambda x: jnp.tanh(jnp.tanh(x) @ x))
    assert 1 <= common.count_kernels(product) <= 4


def test_programs_take_turns_from_both_ends(monkeypatch):
    calls = []
    monkeypatch.setattr(common, "calls_of", lambda program: 2)
    programs = {name: lambda name=name: calls.append(name) or 0.25 for name in "abc"}
    times = common.take_turns(programs, seconds=0.0, at_least=2)
    assert "".join(calls) == "ccbbaa" + "aabbcc"
    assert times == {name: [0.25, 0.25] for name in "abc"}


def test_ratios_are_taken_within_a_turn():
    found = common.ratio_to([2.0, 30.0, 400.0], [1.0, 10.0, 100.0])
    assert found["time_ratio"] == 3.0
    assert found["time_ratio_quartiles"] == [2.0, 4.0]
    assert found["overhead_microseconds"] == 20e6
    assert found["microseconds"] == 30e6
    assert found["turns"] == 3


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(2.06, "+2.1"), (-0.04, "+0.0"), (-3.0, "-3.0"), (9.96, "+10"), (12345.6, "+12,346")],
)
def test_an_overhead_has_a_sign(microseconds, text):
    assert common.overhead_cell({"overhead_microseconds": microseconds}) == text


@pytest.mark.slow
def test_rows_of_one_model():
    rows = cost.measure_model(MODELS["own_batches"](2)._replace(scan_steps=3), seconds=0.0)
    rows = [{"kind": "own_batches", **row} for row in rows]
    assert {row["step"] for row in rows} > {"plain", "plain again", *cost.GRADIENT_METHODS}
    for row in rows:
        # There the K gradients cost no more than the plain ones; `every` counts both branches.
        others = ("mgda, every=100", common.JACREV, common.VMAP)
        if row["step"] not in others and "hypergradient" not in row["step"]:
            assert row["flop_ratio"] == pytest.approx(1.0, abs=0.03)
    (table,) = cost.tables(rows)
    assert len(table.rows) == len(rows) - 1


@pytest.mark.slow
@pytest.mark.parametrize("part", [alone, every_method, growth])
def test_small_runs(part, monkeypatch):
    monkeypatch.setattr(alone, "SIZES", (2, 3))
    monkeypatch.setattr(every_method, "KINDS", ("tiny",))
    monkeypatch.setattr(every_method, "NAMES", ["softadapt", "mgda", "pcgrad"])
    bandwidth = alone.bandwidth
    monkeypatch.setattr(alone, "bandwidth", lambda effort: bandwidth(effort, entries=1000))
    monkeypatch.setattr(growth, "NUMBERS_OF_LOSSES", dict.fromkeys(growth.MAKE, (2, 3)))
    monkeypatch.setattr(growth, "NUMBERS_OF_PARAMETERS", (1000, 2000))
    monkeypatch.setattr(growth, "HISTORIES", (2, 3))
    seen = []
    figures = common.rounded(part.measure(1e-3, seen.append))
    assert seen
    for table in part.tables(figures):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    figure = plt.figure()
    part.draw(figure.subfigures(1, 1), json.loads(json.dumps(figures)))
    plt.close(figure)


def test_a_bandwidth_is_bytes_over_time(monkeypatch):
    monkeypatch.setattr(alone, "NUMBERS", (3,))
    found = alone.bandwidth(1e-3, entries=1000)["rows"]
    assert list(found) == ["copy", "sum, K=3", "Gramian, K=3"]
    for row, arrays in zip(found.values(), (2, 4, 3), strict=True):
        wanted = arrays * 4 * 1000 / (row["microseconds"] * 1e-6) / 1e9
        assert row["gigabytes_a_second"] == pytest.approx(wanted, rel=1e-6)


def test_the_page_is_what_was_measured():
    assert list(REPORTS) == list(main.PARTS)
    assert (ROOT / "docs" / "benchmarks.md").read_text() == main.published_page()


def test_a_page_of_one_part():
    text = main.page({"kernels": REPORTS["kernels"]}, "a.png")
    assert text.count("\n## ") == 1
    assert kernels.PART.about in text


def test_the_figures_were_measured_in_full():
    assert all(report["effort"] >= 1.0 for report in REPORTS.values())
    rows = REPORTS["cost"]["figures"]
    wanted = itertools.product(MODELS, (2, 4, 8))
    assert {*wanted} < {(row["kind"], row["num_losses"]) for row in rows}


def test_the_readme_has_the_figures():
    text = (ROOT / "README.md").read_text()
    assert readme.filled(text) == text
