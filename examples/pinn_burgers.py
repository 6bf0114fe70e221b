"""A physics-informed neural network (PINN) for the Burgers equation, by four loss weightings.

    python examples/pinn_burgers.py [--steps 16000] [--seed 0] [--out pinn_burgers.png] [--quick]

A network u(t, x) of a time and a place is trained to solve

    u_t + u u_x = nu u_xx,   u(0, x) = -sin(pi x),   u(t, -1) = u(t, 1) = 0,

for x from -1 to 1, t from 0 to 1 and nu = 0.01 / pi, where a front about as thin as nu forms at
x = 0. It knows nothing of the solution but these equations. Each is a loss, the mean square by
which it fails to hold at random points of its own: "residual", "initial" and "boundary". Such
losses have different units and fall at different rates, so what are their weights? Compared are

- equal weights;
- SoftAdapt, the loss weighted variant, by the size and the slope of the losses;
- GradNorm, which levels the norms of the gradients, every 100 steps;
- Nash-MTL, with which a step lowers the logarithms of all losses fairly, the method that the
  evidence recommends for networks like this one.

All have weights that sum to 3, and the same initial network, points, optimizer and number of steps.
The optimizer and the number of steps were chosen for equal weights on seed 0, and nothing was for
the others. Training is chaotic: one seed tells little, since a change in rounding alone can move an
error by a third. The exact solution, by the Cole-Hopf transformation, only serves to measure the
errors. It prints a table and saves a picture, in a minute and a half on two cores.
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.box
import rich.console
import rich.progress
import rich.table

import softadapt_optax as sa

VISCOSITY = 0.01 / np.pi
LOSSES = ("residual", "initial", "boundary")
BATCH = {"residual": 256, "initial": 64, "boundary": 64}  # points of each step
UNITS = (2, 20, 20, 20, 20, 1)
LEARNING_RATE = 5e-3
CHUNK = 100  # steps in one call of the compiled program
WEIGHTINGS = {
    "equal weights": sa.fixed_weights([1.0, 1.0, 1.0]),
    "SoftAdapt": sa.softadapt(3, loss_weighted=True, weight_sum=3.0),
    "GradNorm": sa.gradnorm(3, every=100),
    "Nash-MTL": sa.nash_mtl(3, weight_sum=3.0),
}
STYLES = (
    {"color": "black"},
    {"color": "0.6"},
    {"color": "C9", "linestyle": "--"},
    {"color": "C3", "linewidth": 2},
)  # of the weightings; colours of the losses come first
SHOWN = "Nash-MTL"  # whose solution the picture has beside the exact one


# The exact solution.


def exact_solution(times: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The solution on the grid of times and places, shape [times, places], in float64.

    The Cole-Hopf transformation turns the equation into the heat equation, whose solution is a
    mean over a Gaussian: a Gauss-Hermite sum, which 100 nodes give to rounding.
    """
    nodes, node_weights = np.polynomial.hermite.hermgauss(100)
    sources = places[:, None] - np.sqrt(4 * VISCOSITY * times)[:, None, None] * nodes
    logarithms = -np.cos(np.pi * sources) / (2 * np.pi * VISCOSITY)
    # They reach +-50 here, and with less viscosity exp would overflow but for this shift.
    parts = node_weights * np.exp(logarithms - logarithms.max(axis=-1, keepdims=True))
    return -np.sum(np.sin(np.pi * sources) * parts, axis=-1) / np.sum(parts, axis=-1)


TIMES, PLACES = np.linspace(0, 1, 101), np.linspace(-1, 1, 257)
EXACT = exact_solution(TIMES, PLACES)


# The network and its losses.

Params = list[dict[str, jax.Array]]


def init_params(key: jax.Array) -> Params:
    keys = jax.random.split(key, len(UNITS) - 1)
    glorot = jax.nn.initializers.glorot_normal()
    return [
        {"weights": glorot(key, shape), "biases": jnp.zeros(shape[1])}
        for key, shape in zip(keys, itertools.pairwise(UNITS), strict=True)
    ]


def u(params: Params, t: jax.Array, x: jax.Array) -> jax.Array:
    """The network at n times and places, each of shape [n]."""
    hidden = jnp.stack([2 * t - 1, x], axis=-1)
    for layer in params[:-1]:
        hidden = jnp.tanh(hidden @ layer["weights"] + layer["biases"])
    return (hidden @ params[-1]["weights"] + params[-1]["biases"])[:, 0]


def residual(params: Params, t: jax.Array, x: jax.Array) -> jax.Array:
    """u_t + u u_x - nu u_xx at n times and places; the compiler merges what the two share."""
    ones = jnp.ones_like(t)

    def u_x(x: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: u(params, t, x), (x,), (ones,))[1]

    value, by_t = jax.jvp(lambda t: u(params, t, x), (t,), (ones,))
    by_x, by_xx = jax.jvp(u_x, (x,), (ones,))
    return by_t + value * by_x - VISCOSITY * by_xx


class Points(NamedTuple):
    """Where each loss is taken; arrays of shape [n], or [steps, n] for several steps."""

    residual_t: np.ndarray
    residual_x: np.ndarray
    initial_x: np.ndarray
    boundary_t: np.ndarray
    boundary_x: np.ndarray


def draw_points(rng: np.random.Generator, steps: int) -> Points:
    def uniform(low: float, loss: str) -> np.ndarray:
        return rng.uniform(low, 1.0, (steps, BATCH[loss])).astype(np.float32)

    return Points(
        residual_t=uniform(0.0, "residual"),
        residual_x=uniform(-1.0, "residual"),
        initial_x=uniform(-1.0, "initial"),
        boundary_t=uniform(0.0, "boundary"),
        boundary_x=np.sign(uniform(-1.0, "boundary")),
    )


def losses_of(params: Params, points: Points) -> dict[str, jax.Array]:
    inside = residual(params, points.residual_t, points.residual_x)
    x = points.initial_x
    at_start = u(params, jnp.zeros_like(x), x) + jnp.sin(jnp.pi * x)
    at_boundary = u(params, points.boundary_t, points.boundary_x)
    return {
        "residual": jnp.mean(inside**2),
        "initial": jnp.mean(at_start**2),
        "boundary": jnp.mean(at_boundary**2),
    }


# Training.


def optimizer(
    weighting: optax.GradientTransformation, steps: int
) -> optax.GradientTransformationExtraArgs:
    # With the default b2 of 0.999 equal weights train more slowly.
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    return optax.chain(weighting, optax.adam(schedule, b2=0.99))


class Records(NamedTuple):
    """By name of the loss: losses and weights, each of shape [steps]."""

    losses: dict[str, jax.Array]
    weights: dict[str, jax.Array]


def make_train_steps(tx: optax.GradientTransformationExtraArgs) -> Callable[..., tuple]:
    def train_step(carry: tuple[Params, Any], points: Points) -> tuple[tuple, Records]:
        params, opt_state = carry
        losses, grads = sa.value_and_component_grads(losses_of)(params, points)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), Records(losses, sa.loss_weights(opt_state, like=losses))

    return jax.jit(lambda carry, points: jax.lax.scan(train_step, carry, points))


@jax.jit
def solution(params: Params) -> jax.Array:
    """The network on the grid of TIMES and PLACES."""
    t, x = jnp.meshgrid(jnp.asarray(TIMES), jnp.asarray(PLACES), indexing="ij")
    return u(params, t.ravel(), x.ravel()).reshape(t.shape)


def relative_error(params: Params) -> float:
    error = np.asarray(solution(params)) - EXACT
    return float(np.linalg.norm(error) / np.linalg.norm(EXACT))


class Curves(NamedTuple):
    """After each chunk of steps: the error, and the means of what the chunk recorded."""

    steps: np.ndarray
    error: np.ndarray
    losses: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


def train(
    weighting: optax.GradientTransformation,
    steps: int,
    seed: int,
    report: Callable[[int, float], None],
) -> tuple[np.ndarray, Curves]:
    """Returns the network's values on the grid, and how it came there."""
    params = init_params(jax.random.key(seed))
    tx = optimizer(weighting, steps)
    carry = params, tx.init(params)
    train_steps = make_train_steps(tx)
    rng = np.random.default_rng(seed)
    done, chunks = 0, []
    while done < steps:
        size = min(CHUNK, steps - done)
        carry, records = train_steps(carry, draw_points(rng, size))
        done += size
        error = relative_error(carry[0])
        chunks.append(Curves(done, error, *jax.tree.map(np.mean, records)))
        report(size, error)
    curves = jax.tree.map(lambda *values: np.asarray(values), *chunks)
    return np.asarray(solution(carry[0])), curves


# What came out.


def make_table(curves: dict[str, Curves]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE)
    table.add_column("weighting")
    for column in ("error", *LOSSES, "mean weights"):
        table.add_column(column, justify="right")
    for name, curve in curves.items():
        losses = [f"{curve.losses[loss][-1]:.1e}" for loss in LOSSES]
        weights = " ".join(f"{curve.weights[loss].mean():.2f}" for loss in LOSSES)
        table.add_row(name, f"{curve.error[-1]:.2%}", *losses, weights)
    mean_of = np.diff(curve.steps, prepend=0)[-1]
    table.caption = (
        f"Error of u, relative in the L2 norm. The three losses: mean of the last {mean_of} steps. "
        f"Their weights, in the same order: mean of all {curve.steps[-1]} steps."
    )
    return table


def draw(solutions: dict[str, np.ndarray], curves: dict[str, Curves], out: pathlib.Path) -> None:
    figure = plt.figure(figsize=(14, 11), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
    top, middle, bottom = figure.subfigures(3, 1)

    axes = top.subplots(1, 3, width_ratios=(1, 1, 2))
    for ax, title, values in (
        (axes[0], "Exact solution", EXACT),
        (axes[1], f"Solution, {SHOWN}", solutions[SHOWN]),
    ):
        image = ax.pcolormesh(TIMES, PLACES, values.T, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set(title=title, xlabel="t", ylabel="x")
    top.colorbar(image, ax=axes[:2], label="u", pad=0.02)
    for (name, curve), style in zip(curves.items(), STYLES, strict=True):
        axes[2].plot(curve.steps, curve.error, label=name, **style)
    axes[2].set(title="Relative error in the L2 norm", xlabel="step", yscale="log")
    axes[2].legend()

    axes = middle.subplots(1, len(curves), sharey=True)
    norm = matplotlib.colors.LogNorm(1e-4, 1)
    for ax, (name, values) in zip(axes, solutions.items(), strict=True):
        error = np.abs(values - EXACT).T
        image = ax.pcolormesh(TIMES, PLACES, error, cmap="magma", norm=norm)
        ax.set(title=f"Error, {name}", xlabel="t")
    axes[0].set(ylabel="x")
    middle.colorbar(image, ax=axes, label="|network - exact|", extend="both", pad=0.02)

    axes = bottom.subplots(1, len(curves), sharey=True)
    for ax, (name, curve) in zip(axes, curves.items(), strict=True):
        for loss, style in zip(LOSSES, ("-", "--", ":"), strict=True):  # lines may coincide
            ax.plot(curve.steps, curve.weights[loss], style, label=loss, linewidth=2)
        ax.set(title=f"Weights, {name}", xlabel="step", ylim=(0, 3))
        ax.locator_params(axis="x", nbins=4)
    axes[0].set(ylabel="weight")
    axes[0].legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A physics-informed neural network for the Burgers equation: four weightings."
    )
    parser.add_argument("--steps", type=int, help="optimizer steps for each weighting (16000)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and the points (0)")
    parser.add_argument(
        "--out", type=pathlib.Path, default="pinn_burgers.png", help="picture (pinn_burgers.png)"
    )
    parser.add_argument("--quick", action="store_true", help="500 steps, to see that it runs")
    args = parser.parse_args()
    steps = args.steps if args.steps is not None else (500 if args.quick else 16000)
    if steps < 1:
        parser.error(f"--steps should be at least 1, got {steps}")
    if args.seed < 0:
        parser.error(f"--seed should be at least 0, got {args.seed}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console()

    solutions, curves = {}, {}
    with rich.progress.Progress(
        "{task.description}",
        rich.progress.BarColumn(16),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=console,
    ) as bar:
        for name, weighting in WEIGHTINGS.items():
            task = bar.add_task(f"{name}, compiling", total=steps)

            def report(size: int, error: float, task: int = task, name: str = name) -> None:
                bar.update(task, advance=size, description=f"{name}, error {error:.2%}")

            solutions[name], curves[name] = train(weighting, steps, args.seed, report)

    console.print(make_table(curves))
    console.print("One seed: an illustration, not a ranking.")
    draw(solutions, curves, args.out)
    console.print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()
