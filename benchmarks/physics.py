"""Five physics-informed networks for `benchmarks.evidence`, in one program per method each.

Burgers, Allen-Cahn in four windows of time, Helmholtz, Klein-Gordon, and Burgers with an unknown
viscosity. A network learns a field from the equations that it has to satisfy, each of which is a
loss, the mean square by which it fails to hold at random points of its own. It is then compared
with the solution. Fields are functions of two coordinates, (t, x) or (x, y), elementwise.

Seeds 0 and 1 are for trying things out; the evidence is that of the seeds from 100 on.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress

from benchmarks.problems import Grid, Measured, OfSeeds, Problem, Solver, Task, solver_of, stacked
from examples import pinn_burgers as pinn

FIRST_SEED = 100  # of the evidence
INSIDE, OTHER = 128, 32  # points of each step: those of a residual, and of each other loss

Field = Callable[[jax.Array, jax.Array], jax.Array]  # [n] and [n] to [n]
Points = dict[str, Any]  # by loss, shape [n, 2], or [steps, n, 2] for several steps


class Equation(NamedTuple):
    """What a field has to satisfy, and the solution."""

    units: tuple[int, ...]  # of the layers, the first has the features
    features: Callable[[jax.Array, jax.Array], list[jax.Array]]  # of coordinates [n]; each [n]
    draw: Callable[[np.random.Generator, int], Points]  # for so many steps
    # By loss, shape [n] or [m, n]; a loss is the sum of their squares over n.
    misfits_of: Callable[[Field, Points, jax.Array | None], dict[str, jax.Array]]
    axes: tuple[np.ndarray, np.ndarray]  # coordinates of the grid on which errors are measured
    solution: Callable[[], np.ndarray]  # on that grid, float64
    start: float | None = None  # of the coefficient that is not known; its logarithm is trained
    coefficient: float | None = None  # what it is


class Params(NamedTuple):
    """Layers, and the logarithm of the coefficient if it is not known."""

    layers: list[dict[str, jax.Array]]
    logarithm: jax.Array | None = None


# The network.


def init_params(equation: Equation, key: jax.Array) -> Params:
    keys = jax.random.split(key, len(equation.units) - 1)
    glorot = jax.nn.initializers.glorot_normal()
    layers = [
        {"weights": glorot(key, shape), "biases": jnp.zeros(shape[1])}
        for key, shape in zip(keys, itertools.pairwise(equation.units), strict=True)
    ]
    if equation.start is None:
        return Params(layers)
    return Params(layers, jnp.asarray(np.log(equation.start), jnp.float32))


def field_of(equation: Equation, params: Params) -> Field:
    """Points are the last axis, and the last layer is no product of matrices: twice as fast."""

    def field(a: jax.Array, b: jax.Array) -> jax.Array:
        hidden = jnp.stack(equation.features(a, b))
        for layer in params.layers[:-1]:
            hidden = jnp.tanh(layer["weights"].T @ hidden + layer["biases"][:, None])
        last = params.layers[-1]
        return jnp.sum(last["weights"] * hidden, axis=0) + last["biases"]

    return field


def slope(function: Callable[[jax.Array], Any], at: jax.Array) -> tuple[Any, Any]:
    """Value and derivative of an elementwise function."""
    return jax.jvp(function, (at,), (jnp.ones_like(at),))


def bend(function: Callable[[jax.Array], jax.Array], at: jax.Array) -> tuple[jax.Array, ...]:
    """Value, first and second derivative of an elementwise function."""
    (value, first), (_, second) = slope(lambda at: slope(function, at), at)
    return value, first, second


def losses_of(
    equation: Equation, field: Field, points: Points, logarithm: jax.Array | None
) -> dict[str, jax.Array]:
    misfits = equation.misfits_of(field, points, logarithm)
    return {loss: jnp.sum(each**2) / each.shape[-1] for loss, each in misfits.items()}


def uniform(
    rng: np.random.Generator, steps: int, size: int, low: Sequence[float], high: Sequence[float]
) -> np.ndarray:
    """Points of a box, or of a face of it, shape [steps, size, 2]."""
    return rng.uniform(low, high, (steps, size, 2)).astype(np.float32)


# Burgers: u_t + u u_x = nu u_xx, with the viscosity known or not.

UNKNOWN = 0.05 / np.pi  # the viscosity where it is not known
START = 10 * UNKNOWN
OBSERVED, NOISE = 200, 0.01  # values of u that are known, and the deviation of their errors


def burgers_solution(times: np.ndarray, places: np.ndarray, viscosity: float) -> np.ndarray:
    """At times and places of one shape, float64; see `pinn.exact_solution`."""
    nodes, node_weights = np.polynomial.hermite.hermgauss(100)
    sources = places[..., None] - np.sqrt(4 * viscosity * times)[..., None] * nodes
    logarithms = -np.cos(np.pi * sources) / (2 * np.pi * viscosity)
    parts = node_weights * np.exp(logarithms - logarithms.max(axis=-1, keepdims=True))
    return -np.sum(np.sin(np.pi * sources) * parts, axis=-1) / np.sum(parts, axis=-1)


def burgers_residual(u: Field, t: jax.Array, x: jax.Array, viscosity: Any) -> jax.Array:
    _, by_t = slope(lambda t: u(t, x), t)
    value, by_x, by_xx = bend(lambda x: u(t, x), x)
    return by_t + value * by_x - viscosity * by_xx


def initial_misfit(u: Field, points: jax.Array) -> jax.Array:
    t, x = points.T
    return u(t, x) + jnp.sin(jnp.pi * x)


def draw_burgers(rng: np.random.Generator, steps: int) -> Points:
    boundary = uniform(rng, steps, OTHER, (0, -1), (1, 1))
    return {
        "boundary": np.stack([boundary[..., 0], np.sign(boundary[..., 1])], axis=-1),
        "initial": uniform(rng, steps, OTHER, (0, -1), (0, 1)),
        "residual": uniform(rng, steps, INSIDE, (0, -1), (1, 1)),
    }


def burgers_misfits(u: Field, points: Points, logarithm: None = None) -> dict[str, jax.Array]:
    del logarithm
    return {
        "boundary": u(*points["boundary"].T),
        "initial": initial_misfit(u, points["initial"]),
        "residual": burgers_residual(u, *points["residual"].T, pinn.VISCOSITY),
    }


def draw_inverse(rng: np.random.Generator, steps: int) -> Points:
    """Those of the data are drawn from few, and have the value that was observed beside them."""
    observed = rng.uniform((0, -1), (1, 1), (OBSERVED, 2))
    noise = NOISE * rng.normal(size=OBSERVED)  # the largest value of u is 1
    values = burgers_solution(*observed.T, UNKNOWN) + noise
    data = np.column_stack([observed, values]).astype(np.float32)
    points = draw_burgers(rng, steps)
    halves = [points[name][:, : OTHER // 2] for name in ("initial", "boundary")]
    return {
        "data": data[rng.integers(OBSERVED, size=(steps, OTHER))],
        "conditions": np.concatenate(halves, axis=1),
        "residual": points["residual"],
    }


def inverse_misfits(u: Field, points: Points, logarithm: jax.Array) -> dict[str, jax.Array]:
    initial, boundary = jnp.split(points["conditions"], 2)
    t, x, value = points["data"].T
    misfits = [initial_misfit(u, initial), u(*boundary.T)]
    residual = burgers_residual(u, *points["residual"].T, jnp.exp(logarithm))
    return {
        "conditions": jnp.concatenate(misfits),
        "data": u(t, x) - value,
        "residual": residual,
    }


BURGERS = Equation(
    units=(2, 20, 20, 20, 1),
    features=lambda t, x: [2 * t - 1, x],
    draw=draw_burgers,
    misfits_of=burgers_misfits,
    axes=(pinn.TIMES, pinn.PLACES),
    solution=lambda: pinn.EXACT,
)
INVERSE = BURGERS._replace(
    draw=draw_inverse,
    misfits_of=inverse_misfits,
    solution=lambda: burgers_solution(
        *np.meshgrid(pinn.TIMES, pinn.PLACES, indexing="ij"), UNKNOWN
    ),
    start=START,
    coefficient=UNKNOWN,
)

# Allen-Cahn: u_t = 1e-4 u_xx + 3 u - 3 u^3, periodic in x, in windows of time.

DIFFUSION, REACTION = 1e-4, 3.0
WINDOWS = tuple(f"residual {index}" for index in range(1, 5))
TIMES, PLACES = np.linspace(0, 1, 101), np.linspace(-1, 1, 256, endpoint=False)


def allen_cahn_residual(u: Field, t: jax.Array, x: jax.Array) -> jax.Array:
    _, by_t = slope(lambda t: u(t, x), t)
    value, _, by_xx = bend(lambda x: u(t, x), x)
    return by_t - DIFFUSION * by_xx - REACTION * (value - value**3)


def draw_allen_cahn(rng: np.random.Generator, steps: int) -> Points:
    ends = np.linspace(0, 1, len(WINDOWS) + 1)
    return {
        "initial": uniform(rng, steps, OTHER, (0, -1), (0, 1)),
        **{
            window: uniform(rng, steps, INSIDE // len(WINDOWS), (first, -1), (last, 1))
            for window, first, last in zip(WINDOWS, ends[:-1], ends[1:], strict=True)
        },
    }


def allen_cahn_misfits(u: Field, points: Points, logarithm: None = None) -> dict[str, jax.Array]:
    del logarithm
    t, x = points["initial"].T
    return {
        "initial": u(t, x) - x**2 * jnp.cos(jnp.pi * x),
        **{window: allen_cahn_residual(u, *points[window].T) for window in WINDOWS},
    }


def periodic(t: jax.Array, x: jax.Array) -> list[jax.Array]:
    angle = jnp.pi * x
    waves = [wave(k * angle) for k in (1, 2) for wave in (jnp.cos, jnp.sin)]
    return [2 * t - 1, *waves]


@functools.lru_cache
def allen_cahn_solution(num_places: int = 4096, steps: int = 2000) -> np.ndarray:
    """On the grid of TIMES and PLACES, by Strang's splitting, exact in each of the two parts."""
    places = np.linspace(-1, 1, num_places, endpoint=False)
    size = 1 / steps
    numbers = np.pi * np.arange(num_places // 2 + 1)
    half = np.exp(-DIFFUSION * numbers**2 * size / 2)
    growth = np.exp(REACTION * size)

    def diffused(u: np.ndarray, factors: np.ndarray) -> np.ndarray:
        return np.fft.irfft(factors * np.fft.rfft(u), num_places)

    u = places**2 * np.cos(np.pi * places)
    kept = [u]
    per_time = steps // (len(TIMES) - 1)
    for _ in TIMES[1:]:
        u = diffused(u, half)
        for index in range(per_time):
            u = growth * u / np.sqrt(1 + (growth**2 - 1) * u**2)
            u = diffused(u, half if index == per_time - 1 else half**2)
        kept.append(u)
    return np.stack(kept)[:, :: num_places // len(PLACES)]


ALLEN_CAHN = Equation(
    units=(5, 20, 20, 20, 1),
    features=periodic,
    draw=draw_allen_cahn,
    misfits_of=allen_cahn_misfits,
    axes=(TIMES, PLACES),
    solution=allen_cahn_solution,
)

# Helmholtz: u_xx + u_yy + u = q, where u = sin(pi x) sin(4 pi y).


def helmholtz_field(x: Any, y: Any, xp: Any = jnp) -> Any:
    return xp.sin(np.pi * x) * xp.sin(4 * np.pi * y)


def helmholtz_residual(u: Field, x: jax.Array, y: jax.Array) -> jax.Array:
    value, _, by_xx = bend(lambda x: u(x, y), x)
    _, _, by_yy = bend(lambda y: u(x, y), y)
    return by_xx + by_yy + value - (1 - 17 * np.pi**2) * helmholtz_field(x, y)


def draw_helmholtz(rng: np.random.Generator, steps: int) -> Points:
    quarter = OTHER // 4
    sides = [((-1, -1), (-1, 1)), ((1, -1), (1, 1)), ((-1, -1), (1, -1)), ((-1, 1), (1, 1))]
    faces = [uniform(rng, steps, quarter, *side) for side in sides]
    return {
        "boundary": np.concatenate(faces, axis=1),
        "residual": uniform(rng, steps, INSIDE, (-1, -1), (1, 1)),
    }


def helmholtz_misfits(u: Field, points: Points, logarithm: None = None) -> dict[str, jax.Array]:
    del logarithm
    return {
        "boundary": u(*points["boundary"].T),
        "residual": helmholtz_residual(u, *points["residual"].T),
    }


def on_grid(
    field: Callable[[np.ndarray, np.ndarray, Any], np.ndarray], axes: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    return field(*np.meshgrid(*axes, indexing="ij"), np)


SQUARE = (np.linspace(-1, 1, 101), np.linspace(-1, 1, 101))
HELMHOLTZ = Equation(
    units=(2, 20, 20, 20, 1),
    features=lambda x, y: [x, y],
    draw=draw_helmholtz,
    misfits_of=helmholtz_misfits,
    axes=SQUARE,
    solution=lambda: on_grid(helmholtz_field, SQUARE),
)

# Klein-Gordon: u_tt - u_xx + u^3 = f, where u = x cos(5 pi t) + (x t)^3.


def klein_gordon_field(t: Any, x: Any, xp: Any = jnp) -> Any:
    return x * xp.cos(5 * np.pi * t) + (x * t) ** 3


def klein_gordon_residual(u: Field, t: jax.Array, x: jax.Array) -> jax.Array:
    value, _, by_tt = bend(lambda t: u(t, x), t)
    _, _, by_xx = bend(lambda x: u(t, x), x)
    exact = klein_gordon_field(t, x)
    exact_tt = -25 * np.pi**2 * x * jnp.cos(5 * np.pi * t) + 6 * x**3 * t
    exact_xx = 6 * x * t**3
    return by_tt - by_xx + value**3 - (exact_tt - exact_xx + exact**3)


def draw_klein_gordon(rng: np.random.Generator, steps: int) -> Points:
    ends = [uniform(rng, steps, OTHER // 2, (0, x), (1, x)) for x in (0, 1)]
    return {
        "boundary": np.concatenate(ends, axis=1),
        "initial": uniform(rng, steps, OTHER, (0, 0), (0, 1)),
        "residual": uniform(rng, steps, INSIDE, (0, 0), (1, 1)),
    }


def klein_gordon_misfits(u: Field, points: Points, logarithm: None = None) -> dict[str, jax.Array]:
    """The second is that of value and velocity."""
    del logarithm
    boundary, (t, x) = points["boundary"].T, points["initial"].T
    value, by_t = slope(lambda t: u(t, x), t)
    return {
        "boundary": u(*boundary) - klein_gordon_field(*boundary),
        "initial": jnp.stack([value - x, by_t]),
        "residual": klein_gordon_residual(u, *points["residual"].T),
    }


UNIT_SQUARE = (np.linspace(0, 1, 101), np.linspace(0, 1, 101))
KLEIN_GORDON = Equation(
    units=(2, 20, 20, 20, 1),
    features=lambda t, x: [2 * t - 1, 2 * x - 1],
    draw=draw_klein_gordon,
    misfits_of=klein_gordon_misfits,
    axes=UNIT_SQUARE,
    solution=lambda: on_grid(klein_gordon_field, UNIT_SQUARE),
)

# Training.


def judge_of(equation: Equation) -> Callable[[Any], Measured]:
    """Errors in %: of the field, relative in the L2 norm; of the coefficient, if it is unknown.

    That of the coefficient is the same for a half and for twice of it.
    """
    exact = equation.solution()
    a, b = (jnp.asarray(each.ravel()) for each in np.meshgrid(*equation.axes, indexing="ij"))

    @jax.jit
    def fields(params: Params) -> jax.Array:
        of_seeds = jax.vmap(lambda params: field_of(equation, params)(a, b))
        return jax.lax.map(of_seeds, params)  # one configuration after the other: for memory

    def judge(params: Params) -> Measured:
        found = np.asarray(fields(params), np.float64).reshape(-1, *exact.shape)
        errors = 100 * np.linalg.norm(found - exact, axis=(-2, -1)) / np.linalg.norm(exact)
        errors = errors.reshape(params.layers[0]["weights"].shape[:2])
        if params.logarithm is None:
            return Measured(errors)
        factors = np.asarray(params.logarithm, np.float64) - np.log(equation.coefficient)
        return Measured(100 * np.expm1(np.minimum(np.abs(factors), 20.0)), errors)

    return judge


def task_of(
    equation: Equation, seeds: Sequence[int], steps: int, at_once: int, reference: int = 0
) -> Task:
    def losses_fn(params: Params, data: None, points: Points) -> dict[str, jax.Array]:
        return losses_of(equation, field_of(equation, params), points, params.logarithm)

    def traces_fn(params: Params, data: None, points: Points) -> dict[str, jax.Array]:
        """Of the kernel of each loss, over its number of points."""

        def misfits(params: Params) -> dict[str, jax.Array]:
            return equation.misfits_of(field_of(equation, params), points, params.logarithm)

        numbers = {loss: each.shape[-1] for loss, each in jax.eval_shape(misfits, params).items()}
        jacobians = jax.jacrev(misfits)(params)
        return {
            loss: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jacobians[loss])) / number
            for loss, number in numbers.items()
        }

    points = [equation.draw(np.random.default_rng(seed), steps) for seed in seeds]
    params = [init_params(equation, jax.random.key(seed)) for seed in seeds]
    return Task(
        losses_fn,
        lambda rate: optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.99),
        OfSeeds(stacked(params), None, stacked(points)),
        judge_of(equation),
        at_once,
        reference=reference,
        traces_fn=traces_fn,
    )


def load(equation: Equation, problem: Problem, progress: rich.progress.Progress) -> Solver:
    del progress
    seeds = range(FIRST_SEED, FIRST_SEED + problem.num_seeds)
    reference = problem.losses.index(problem.main)
    task = task_of(equation, seeds, problem.budget, len(problem.rates), reference)
    return solver_of(task)


# All of them.


def problems(quick: bool) -> list[Problem]:
    """Quick ones show that all works and support no verdict."""
    common = {
        "suite": "physics",
        "metric": "relative L2 error, %",
        "beside": None,
        "written": ".1f",
        "worst": 1000.0,
        "is_logarithmic": True,
        "main": "residual",
        "budget": 60 if quick else 3_000,
        "gradient_cost": 1,
        "rates": np.asarray([3e-3, 1e-2] if quick else [3e-3, 1e-2, 3e-2, 1e-1, 3e-1]),
        "num_seeds": 2 if quick else 8,
        "has_priors": False,
        "is_double": False,
    }
    network = "A network of 3 layers of 20 units (tanh), Adam with a cosine decay."
    points = (
        f"A residual has {INSIDE} points in each step, another loss {OTHER}, all its own, so that "
        "the gradients of all losses take the flops of the gradient of their sum and count as one "
        "evaluation. Initial network and points differ from seed to seed."
    )

    def grid(*axes: tuple[str, ...]) -> Grid:
        return Grid(axes, np.linspace(-3, 3, 3 if quick else 13 if len(axes) == 1 else 5))

    return [
        Problem(
            name="Burgers",
            setting="The Burgers equation u_t + u u_x = nu u_xx with nu = 0.01 / pi, whose "
            "solution gets a thin front; losses are those of the residual, the initial and the "
            f"boundary values. {network} The solution is exact, by the Cole-Hopf transformation, "
            f"as in the example `pinn_burgers.py`. {points}",
            losses=("boundary", "initial", "residual"),
            grid=grid(("boundary",), ("initial",)),
            load=functools.partial(load, BURGERS),
            **common,
        ),
        Problem(
            name="Allen-Cahn",
            setting=f"The Allen-Cahn equation u_t = {DIFFUSION:.4f} u_xx + {REACTION:g} (u - u^3) "
            "from u = x^2 cos(pi x), periodic in x by the network's inputs (with 5 in the place of "
            f"{REACTION:g}, as published, this network stays at an error of 50 % with any weights "
            "for most seeds); losses are that of the "
            f"initial values and those of the residual in {len(WINDOWS)} windows of time, in their "
            "causal order (Wang, Sankaran and Perdikaris 2022); on the grid of weights the first "
            f"two windows share a weight, and the last two. {network} The solution is a spectral "
            f"one, by a splitting in time, exact to five digits. The {INSIDE} points of the "
            f"residual are those of all windows. {points}",
            losses=("initial", *WINDOWS),
            grid=grid(WINDOWS[:2], WINDOWS[2:]),
            load=functools.partial(load, ALLEN_CAHN),
            is_ordered=True,
            **common | {"main": "initial"},
        ),
        Problem(
            name="Helmholtz",
            setting="The Helmholtz equation u_xx + u_yy + u = q on a square, with q such that "
            "u = sin(pi x) sin(4 pi y) (Wang, Teng and Perdikaris 2021); losses are those of the "
            f"residual and the boundary values. {network} {points}",
            losses=("boundary", "residual"),
            grid=grid(("boundary",)),
            load=functools.partial(load, HELMHOLTZ),
            **common,
        ),
        Problem(
            name="Klein-Gordon",
            setting="The Klein-Gordon equation u_tt - u_xx + u^3 = f, with f such that "
            "u = x cos(5 pi t) + (x t)^3 (Wang, Teng and Perdikaris 2021); losses are those of the "
            "residual, the boundary values, and the initial values with their velocity. "
            f"{network} {points}",
            losses=("boundary", "initial", "residual"),
            grid=grid(("boundary",), ("initial",)),
            load=functools.partial(load, KLEIN_GORDON),
            **common,
        ),
        Problem(
            name="Burgers, inverse",
            setting="The Burgers equation with nu = 0.05 / pi, which is not known: its logarithm "
            f"is trained, from {START / UNKNOWN:g} times nu. Losses are those of the residual, of "
            f"the conditions (initial and boundary values) and of data: {OBSERVED} values of the "
            f"exact solution with an error of {100 * NOISE:g} % of the largest. {network} The "
            "metric is by how much nu is too large or too small, 100 % for twice and for half; "
            f"beside it stands the error of u. {points}",
            losses=("conditions", "data", "residual"),
            grid=grid(("conditions",), ("data",)),
            load=functools.partial(load, INVERSE),
            **common | {"metric": "error of nu, %", "beside": "relative L2 error, %"},
        ),
    ]
