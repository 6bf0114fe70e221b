"""The physics-informed networks of the evidence: equations, solutions, points and training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.progress
import scipy.integrate
from helpers import quick_for

import softadapt_optax as sa
from benchmarks import physics
from benchmarks.problems import train
from examples import pinn_burgers as pinn

pytestmark = pytest.mark.once

EQUATIONS = {
    "Burgers": physics.BURGERS,
    "Allen-Cahn": physics.ALLEN_CAHN,
    "Helmholtz": physics.HELMHOLTZ,
    "Klein-Gordon": physics.KLEIN_GORDON,
    "Burgers, inverse": physics.INVERSE,
}
LOWS = {"Burgers": (0, -1), "Allen-Cahn": (0, -1), "Helmholtz": (-1, -1), "Klein-Gordon": (0, 0)}
EACH = pytest.mark.parametrize("name", EQUATIONS)


def points_of(equation, seed=0, dtype=np.float64):
    """Those of one step."""
    drawn = equation.draw(np.random.default_rng(seed), 1)
    return {loss: jnp.asarray(each[0], dtype) for loss, each in drawn.items()}


def burgers_field(viscosity):
    """The exact solution, differentiable where t > 0."""
    nodes, weights = map(jnp.asarray, np.polynomial.hermite.hermgauss(100))

    def field(t, x):
        sources = x[:, None] - jnp.sqrt(4 * viscosity * t)[:, None] * nodes[None]
        logarithms = -jnp.cos(jnp.pi * sources) / (2 * jnp.pi * viscosity)
        parts = jax.nn.softmax(logarithms + jnp.log(weights)[None], axis=1)
        return -jnp.sum(jnp.sin(jnp.pi * sources) * parts, axis=1)

    return field


# The equations.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Burgers", burgers_field(pinn.VISCOSITY)),
        ("Helmholtz", physics.helmholtz_field),
        ("Klein-Gordon", physics.klein_gordon_field),
    ],
)
def test_a_solution_has_no_losses(name, field):
    """Points are in float32, and so is where boundaries are; the front multiplies rounding."""
    equation = EQUATIONS[name]
    losses = physics.losses_of(equation, field, points_of(equation), None)
    for loss, value in losses.items():
        assert float(value) < 1e-10, loss
    wrong = physics.losses_of(
        equation, lambda a, b: 0.9 * field(a, b) + 0.01, points_of(equation), None
    )
    assert all(float(value) > 1e-5 for value in wrong.values())


@pytest.mark.usefixtures("x64")
def test_the_inverse_problem_is_solved_by_the_true_viscosity_alone():
    field, points = burgers_field(physics.UNKNOWN), points_of(physics.INVERSE)

    def losses(viscosity):
        return physics.losses_of(physics.INVERSE, field, points, jnp.log(viscosity))

    true = losses(physics.UNKNOWN)
    assert max(float(true["conditions"]), float(true["residual"])) < 1e-10
    assert float(true["data"]) == pytest.approx(physics.NOISE**2, rel=0.7)  # of 32 values
    assert min(float(losses(f * physics.UNKNOWN)["residual"]) for f in (0.5, 2.0)) > 1e-3


@pytest.mark.parametrize("viscosity", [pinn.VISCOSITY, physics.UNKNOWN])
def test_the_solution_of_burgers_is_that_of_the_example(viscosity, monkeypatch):
    monkeypatch.setattr(pinn, "VISCOSITY", viscosity)
    times, places = pinn.TIMES[::10], pinn.PLACES[::8]
    found = physics.burgers_solution(*np.meshgrid(times, places, indexing="ij"), viscosity)
    np.testing.assert_allclose(found, pinn.exact_solution(times, places), atol=1e-12)


def test_the_solution_of_allen_cahn_has_converged():
    found = physics.allen_cahn_solution()
    assert found.shape == (len(physics.TIMES), len(physics.PLACES))
    for other in (physics.allen_cahn_solution(4096, 1000), physics.allen_cahn_solution(2048, 2000)):
        assert np.linalg.norm(found - other) < 3e-6 * np.linalg.norm(found)


def test_the_solution_of_allen_cahn_is_that_of_finite_differences():
    """Of second order, whose spacing is a sixth of the width of a front."""
    places = np.linspace(-1, 1, 2048, endpoint=False)
    spacing = places[1] - places[0]

    def slope(t, u):
        del t
        by_xx = (np.roll(u, 1) - 2 * u + np.roll(u, -1)) / spacing**2
        return 1e-4 * by_xx + 3 * u - 3 * u**3

    start = places**2 * np.cos(np.pi * places)
    times = physics.TIMES[::20]
    solved = scipy.integrate.solve_ivp(slope, (0, 1), start, t_eval=times, rtol=1e-6, atol=1e-8)
    expected = solved.y.T[:, :: len(places) // len(physics.PLACES)]
    found = physics.allen_cahn_solution()[::20]
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_the_field_of_allen_cahn_is_periodic():
    params = physics.init_params(physics.ALLEN_CAHN, jax.random.key(0))
    field, t = physics.field_of(physics.ALLEN_CAHN, params), jnp.linspace(0, 1, 5)
    left, right = (physics.bend(lambda x: field(t, x), jnp.full(5, end)) for end in (-1.0, 1.0))
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


# Points.


@EACH
def test_points_lie_in_the_domain_and_differ_from_seed_to_seed(name):
    equation = EQUATIONS[name]
    points, others = (equation.draw(np.random.default_rng(seed), 3) for seed in (0, 1))
    low = LOWS.get(name, (0, -1))
    for loss, each in points.items():
        assert each.dtype == np.float32
        assert np.all(each[..., :2] >= low)
        assert np.all(each[..., :2] <= 1)
        assert not np.any(np.all(each[0] == each[1], axis=-1))
        assert not np.array_equal(each, others[loss])
    inside = sum(each.shape[1] for loss, each in points.items() if loss.startswith("residual"))
    assert inside == physics.INSIDE
    rest = {each.shape[1] for loss, each in points.items() if not loss.startswith("residual")}
    assert rest == {physics.OTHER}
    if "initial" in points:
        assert np.all(points["initial"][..., 0] == 0)
    if "boundary" in points:
        on_a_side = [points["boundary"][..., k] == end for k in (0, 1) for end in (low[k], 1)]
        assert np.all(np.any(on_a_side, axis=0))


def test_windows_of_time_follow_each_other():
    points = physics.draw_allen_cahn(np.random.default_rng(0), 50)
    for index, window in enumerate(physics.WINDOWS):
        times = points[window][..., 0]
        assert (times.min(), times.max()) == pytest.approx((index / 4, (index + 1) / 4), abs=0.01)


def test_what_was_observed_is_the_solution_with_noise():
    data = physics.draw_inverse(np.random.default_rng(0), 200)["data"].reshape(-1, 3)
    data = np.unique(data, axis=0).astype(np.float64)
    assert len(data) == physics.OBSERVED
    errors = data[:, 2] - physics.burgers_solution(data[:, 0], data[:, 1], physics.UNKNOWN)
    assert errors.std() == pytest.approx(physics.NOISE, rel=0.2)


# Training.


@pytest.mark.parametrize("name", quick_for(["Burgers, inverse"], EQUATIONS, pytest.mark.slow))
def test_training_lowers_the_losses(name):
    equation, steps = EQUATIONS[name], 80
    task = physics.task_of(equation, (0, 1), steps, at_once=2)
    num_losses = len(jax.tree.leaves(task.of_seeds.batches))
    configs = np.asarray([[rate, *np.ones(num_losses)] for rate in (1e-2, 3e-2)])

    def make(setting):
        return sa.fixed_weights(setting.weights)

    (params,) = train(task, make, configs, [steps], lambda share: None)
    points = points_of(equation, dtype=np.float32)
    losses = jax.jit(lambda params: sum(jax.tree.leaves(task.losses_fn(params, None, points))))
    start = jax.tree.map(lambda leaf: leaf[1], task.of_seeds.params)
    assert losses(jax.tree.map(lambda leaf: leaf[1, 1], params)) < losses(start)

    measured = task.judge(params)
    assert (measured.beside is None) == (name != "Burgers, inverse")
    for each in (measured.metric, measured.beside):
        if each is not None:
            assert each.shape == (2, 2)
            assert np.all(np.isfinite(each))
    assert len(np.unique(measured.metric)) == 4  # configurations and seeds differ


@EACH
def test_the_solution_has_no_error(name, monkeypatch):
    """On the grid, and the coefficient's is the same for a half and for twice of it."""
    equation = EQUATIONS[name]
    exact = equation.solution()
    assert exact.shape == tuple(map(len, equation.axes))
    monkeypatch.setattr(physics, "field_of", lambda *_: lambda a, b: 1.1 * jnp.ravel(exact))
    seeds = [physics.init_params(equation, jax.random.key(seed)) for seed in range(3)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves)[None], *seeds)
    if equation.coefficient is not None:
        viscosities = equation.coefficient * np.asarray([[0.5, 1.0, 2.0]], np.float32)
        params = params._replace(logarithm=jnp.log(viscosities))
    measured = physics.judge_of(equation)(params)
    field = measured.metric if measured.beside is None else measured.beside
    np.testing.assert_allclose(field, 10.0, rtol=1e-4)
    if equation.coefficient is not None:
        np.testing.assert_allclose(measured.metric, [[100.0, 0.0, 100.0]], atol=1e-3)


@pytest.mark.parametrize("quick", [True, False])
def test_problems_are_what_their_equations_say(quick):
    found = physics.problems(quick)
    assert [problem.name for problem in found] == list(EQUATIONS)
    for problem in found:
        points = EQUATIONS[problem.name].draw(np.random.default_rng(0), 1)
        assert problem.losses == tuple(sorted(points))
        (alone,) = set(problem.losses) - {loss for axis in problem.grid.axes for loss in axis}
        assert alone == problem.main
        assert 0 in problem.grid.exponents  # equal weights are among them


@EACH
def test_the_seeds_of_the_evidence_are_not_those_for_trying_out(name, monkeypatch):
    (problem,) = (each for each in physics.problems(quick=True) if each.name == name)
    monkeypatch.setattr(physics, "solver_of", lambda task: task)
    task = problem.load(problem, rich.progress.Progress())
    for index, seed in enumerate((100, 101)):
        params = physics.init_params(EQUATIONS[name], jax.random.key(seed))
        drawn = EQUATIONS[name].draw(np.random.default_rng(seed), problem.budget)
        expected = params, drawn
        found = task.of_seeds.params, task.of_seeds.batches
        for one, other in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
            np.testing.assert_array_equal(one, other[index])
