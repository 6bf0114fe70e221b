"""Two losses of two parameters, and what each family of methods makes of them.

    python docs/toy_problem.py [--families fixed losses ...] [--out docs/images]

The losses are the squared errors of two tasks that share a linear model with two weights w:

    f_k(w) = u_k^2 ((w - w_k)^T C_k (w - w_k) + 0.05),

where w_k is the task's own solution, C_k the covariance of its features, u_k the scale of its
targets and 0.05 the share of noise. The second task has its steep direction where the first one has
its flat one, and a scale that makes its loss 25 times smaller. The model w = 0 predicts the mean
whatever the features are, so that f_k(0) is the prior loss.

All methods start at the same points and take the same number of gradient steps of the same length
factor; all weights are scaled to sum to 2, those of the plain sum. For each family the script draws

* the paths of the parameters, on the contours of both losses and the Pareto front, where no loss
  can fall without the other rising;
* the weight of the second loss over that of the first, step by step, with a gap where a weight is
  negative;
* where the losses end, 0 % at the loss's own minimum and 100 % at that of the other,

and it prints the ends. A family of many methods has two rows of these. It takes half a minute on
two CPU cores. It needs matplotlib and rich, which come with the extra "examples".
"""

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.axes
import matplotlib.figure
import matplotlib.lines
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table

import softadapt_optax as sa

LEARNING_RATE = 0.1
STEPS = 3000
NOISE = 0.05
STARTS = {"A": (-0.4, 1.7), "B": (1.6, -1.3)}
OPTIMA = np.array([[-1.0, -0.5], [1.0, 0.6]])
UNITS = np.array([1.0, 0.2])

# Colours that the colour-blind tell apart (Okabe and Ito); the plain sum is black in each picture.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
FONT_SIZE = 11


def covariance(degrees: float) -> np.ndarray:
    """Variances 2 and 0.2, the first along an axis that is turned by an angle."""
    angle = np.deg2rad(degrees)
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return axes @ np.diag([2.0, 0.2]) @ axes.T


COVARIANCES = np.stack([covariance(20.0), covariance(100.0)])


# The problem.


def losses_fn(w: jax.Array) -> dict[str, jax.Array]:
    """Both losses at w, shape [2]."""
    offsets = w - jnp.asarray(OPTIMA)
    errors = [offsets[k] @ jnp.asarray(COVARIANCES[k]) @ offsets[k] + NOISE for k in range(2)]
    return {"first": UNITS[0] ** 2 * errors[0], "second": UNITS[1] ** 2 * errors[1]}


def losses_at(points: np.ndarray) -> np.ndarray:
    """Both losses, shape [..., 2], at points of shape [..., 2], in float64."""
    offsets = points[..., None, :] - OPTIMA
    return UNITS**2 * (np.einsum("...ki,kij,...kj->...k", offsets, COVARIANCES, offsets) + NOISE)


def shares_left(points: np.ndarray) -> np.ndarray:
    """Both losses in %: 0 at a loss's own minimum and 100 at that of the other."""
    best, at_other = UNITS**2 * NOISE, np.diagonal(losses_at(OPTIMA)[::-1])
    return 100 * (losses_at(points) - best) / (at_other - best)


def pareto_front(count: int = 201) -> np.ndarray:
    """Points [count, 2] where no loss can fall without the other rising."""
    points = []
    for share in 1 / (1 + np.exp(-np.linspace(-12, 12, count))):
        matrices = np.array([1 - share, share])[:, None, None] * COVARIANCES
        target = np.einsum("kij,kj->i", matrices, OPTIMA)
        points.append(np.linalg.solve(matrices.sum(axis=0), target))
    return np.array(points)


def prior_losses() -> dict[str, float]:
    """The losses of the model that predicts the mean."""
    first, second = losses_at(np.zeros(2))
    return {"first": float(first), "second": float(second)}


# The methods.


class Method(NamedTuple):
    """A line in the picture; `factors` are put on the losses before the method sees them."""

    name: str
    weighting: optax.GradientTransformationExtraArgs
    factors: tuple[float, float] = (1.0, 1.0)
    target: Callable[[jax.Array], jax.Array] | None = None  # that the weights follow


def shares_of(w: jax.Array) -> jax.Array:
    """Both losses in %, shape [2], to differentiate."""
    best, at_other = UNITS**2 * NOISE, np.diagonal(losses_at(OPTIMA)[::-1])
    losses = losses_fn(w)
    scales = jnp.asarray(100 / (at_other - best))
    return (jnp.stack([losses["first"], losses["second"]]) - jnp.asarray(best)) * scales


def fixed(ratio: float) -> optax.GradientTransformationExtraArgs:
    """Weights 1 : ratio that sum to 2."""
    return sa.fixed_weights({"first": 2 / (1 + ratio), "second": 2 * ratio / (1 + ratio)})


def following(name: str, target: Callable[[jax.Array], jax.Array]) -> Method:
    """Weights that follow this target."""
    return Method(f"target: {name}", sa.hypergradient(2), target=target)


def families() -> dict[str, list[Method]]:
    """The methods of each picture; the plain sum is the first of each row."""
    prior = prior_losses()
    largest = max(prior.values())
    inverses = np.array([1 / prior["first"], 1 / prior["second"]])
    by_prior = tuple(2 * inverses / inverses.sum())
    unit_prior = 2 / inverses.sum()  # what both losses have then
    plain = Method("plain sum", fixed(1.0))
    return {
        "fixed": [
            plain,
            Method("1 : 5", fixed(5.0)),
            Method("1 : 25", fixed(25.0)),
            Method("1 : 125", fixed(125.0)),
        ],
        "losses": [
            plain,
            Method("initial_loss", sa.initial_loss(2, weight_sum=2.0)),
            Method("prior_loss", sa.prior_loss(prior, weight_sum=2.0)),
            Method("realtime_loss", sa.realtime_loss(2, weight_sum=2.0)),
            Method("gls", sa.gls(2, weight_sum=2.0)),
            Method(
                "stch, losses over priors", sa.stch(2, 0.3 * unit_prior, weight_sum=2.0), by_prior
            ),
        ],
        "ratios": [
            plain,
            Method("dwa", sa.dwa(2, weight_sum=2.0)),
            Method("relobralo", sa.relobralo(2, weight_sum=2.0)),
            Method("cov_weighting", sa.cov_weighting(2, weight_sum=2.0)),
            Method("rlw", sa.rlw(2, weight_sum=2.0)),
        ],
        "softadapt": [
            plain,
            Method("original", sa.softadapt(2, weight_sum=2.0)),
            Method("loss weighted", sa.softadapt(2, loss_weighted=True, weight_sum=2.0)),
            Method("normalized", sa.softadapt(2, normalized=True, weight_sum=2.0)),
            Method(
                "normalized, loss weighted",
                sa.softadapt(2, normalized=True, loss_weighted=True, weight_sum=2.0),
            ),
            Method(
                "loss weighted, losses over priors",
                sa.softadapt(2, loss_weighted=True, weight_sum=2.0),
                by_prior,
            ),
        ],
        "learned": [
            plain,
            Method("uncertainty", sa.uncertainty(2, weight_sum=2.0)),
            Method("learned_weights", sa.learned_weights(2, temperature=largest, weight_sum=2.0)),
            Method(
                "maximize, losses over priors",
                sa.learned_weights(2, temperature=unit_prior, maximize=True, weight_sum=2.0),
                by_prior,
            ),
            Method(
                "learned_weights, temperature=0",
                sa.learned_weights(2, temperature=0.0, weight_sum=2.0),
            ),
            Method("gradnorm", sa.gradnorm(2)),
        ],
        "gradients": [
            plain,
            Method("normalized_gradients", sa.normalized_gradients(2, weight_sum=2.0)),
            Method(
                "the same, rate_exponent=1.5",
                sa.normalized_gradients(2, 1.5, weight_sum=2.0),
            ),
            Method("pcgrad", sa.pcgrad(2, weight_sum=2.0)),
            Method("mgda", sa.mgda(2, weight_sum=2.0)),
            Method('mgda, normalization="loss"', sa.mgda(2, "loss", weight_sum=2.0)),
        ],
        "conflicts": [
            plain,
            Method("upgrad", sa.upgrad(2, weight_sum=2.0)),
            Method("dual_proj", sa.dual_proj(2, weight_sum=2.0)),
            Method("upgrad, losses over priors", sa.upgrad(2, weight_sum=2.0), by_prior),
            Method("cagrad", sa.cagrad(2, weight_sum=2.0)),
            Method("gradvac", sa.gradvac(2, weight_sum=2.0)),
            plain,
            Method("nash_mtl", sa.nash_mtl(2, weight_sum=2.0)),
            Method("imtl_g", sa.imtl_g(2, weight_sum=2.0)),
            Method("conflict_free", sa.conflict_free(2, weight_sum=2.0)),
            Method("fairgrad, fairness=2", sa.fairgrad(2, 2.0, weight_sum=2.0)),
            Method("aligned_mtl", sa.aligned_mtl(2, weight_sum=2.0)),
        ],
        "target": [
            plain,
            following("the sum of both in %", lambda w: jnp.sum(shares_of(w))),
            following("the larger of both in %", lambda w: jnp.max(shares_of(w))),
            following("the first loss", lambda w: shares_of(w)[0]),
        ],
    }


# Training.


def path_from(
    start: jax.Array,
    weighting: optax.GradientTransformationExtraArgs,
    factors: tuple[float, float] = (1.0, 1.0),
    target: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The parameters before each step and the weights in it, both of shape [STEPS, 2]."""
    tx = optax.chain(weighting, optax.sgd(LEARNING_RATE))

    def scaled_losses_fn(w: jax.Array) -> dict[str, jax.Array]:
        losses = losses_fn(w)
        return {"first": factors[0] * losses["first"], "second": factors[1] * losses["second"]}

    def step(
        carry: tuple[jax.Array, optax.OptState], _: None
    ) -> tuple[tuple[jax.Array, optax.OptState], tuple[jax.Array, jax.Array]]:
        w, opt_state = carry
        _, grads = sa.value_and_component_grads(scaled_losses_fn)(w)
        extra = {} if target is None else {"target": jax.grad(target)}
        updates, opt_state = tx.update(grads, opt_state, w, **extra)
        weights = sa.loss_weights(opt_state) * jnp.asarray(factors)
        return (optax.apply_updates(w, updates), opt_state), (w, weights)

    return jax.lax.scan(step, (start, tx.init(start)), length=STEPS)[1]


@functools.partial(jax.jit, static_argnames=("method",))
def paths(starts: jax.Array, method: Method) -> tuple[jax.Array, jax.Array]:
    """Those of each start, shape [starts, STEPS, 2]."""
    _, weighting, factors, target = method
    return jax.vmap(lambda start: path_from(start, weighting, factors, target))(starts)


@jax.jit
def ends_of_grid(start: jax.Array, ratios: jax.Array) -> jax.Array:
    """Where models with fixed weights 1 : ratio end, shape [ratios, 2]: a grid search."""
    weights = 2 * jnp.stack([1 / (1 + ratios), ratios / (1 + ratios)], axis=-1)
    return jax.vmap(lambda w: path_from(start, sa.fixed_weights(w))[0][-1])(weights)


# The pictures.

# A method, its parameters and its weights, both of shape [starts, STEPS, 2].
Line = tuple[Method, np.ndarray, np.ndarray]


def draw_plane(axis: matplotlib.axes.Axes) -> None:
    """Contours of the losses, each loss's minimum, the front and the starts."""
    x, y = np.meshgrid(np.linspace(-1.9, 2.1, 201), np.linspace(-1.8, 2.1, 201))
    values = shares_left(np.stack([x, y], axis=-1))
    levels = np.array([3, 12, 30, 60, 110, 180, 280])
    for k, line in enumerate(("solid", "dashed")):
        axis.contour(
            x, y, values[..., k], levels, colors="#9a9a9a", linewidths=0.8, linestyles=line
        )
    front = pareto_front()
    axis.plot(*front.T, color="#F0E442", lw=9, solid_capstyle="round", zorder=1.5)
    for name, optimum, offset in zip(("first", "second"), OPTIMA, ((6, -18), (0, 10)), strict=True):
        axis.plot(*optimum, "*", color="black", ms=13, zorder=6, mec="white", mew=0.7)
        axis.annotate(
            f"minimum of the {name}",
            optimum,
            offset,
            textcoords="offset points",
            ha="center",
            fontsize=FONT_SIZE - 1,
            zorder=7,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
        )
    for name, start in STARTS.items():
        axis.plot(*start, "o", color="white", mec="black", ms=15, zorder=6)
        axis.annotate(name, start, ha="center", va="center", zorder=7, fontsize=FONT_SIZE)
    axis.set(xlabel="first parameter", ylabel="second parameter", aspect="equal")
    axis.set_title("Parameters", fontsize=FONT_SIZE + 1)


def draw_family(name: str, lines: list[Line], grid: np.ndarray | None) -> matplotlib.figure.Figure:
    """The picture of a family; `grid` holds the end points of a grid of fixed weights."""
    plt.rcParams.update({"font.size": FONT_SIZE})
    rows = [lines[first : first + len(COLOURS)] for first in range(0, len(lines), len(COLOURS))]
    figure = plt.figure(figsize=(9.8, 7.2 * len(rows)), layout="constrained")
    for part, row in zip(figure.subfigures(len(rows), squeeze=False)[:, 0], rows, strict=True):
        draw_row(part, row, grid)
    figure.suptitle(f"{name}: two losses of two parameters", fontsize=FONT_SIZE + 2)
    return figure


def draw_row(
    figure: matplotlib.figure.SubFigure, lines: list[Line], grid: np.ndarray | None
) -> None:
    """Paths, weights and ends of as many methods as there are colours, with their legend."""
    axes = figure.subplot_mosaic([["plane", "weights"], ["plane", "losses"]], width_ratios=(1.4, 1))
    draw_plane(axes["plane"])
    axes["losses"].plot(*shares_left(pareto_front()).T, color="#F0E442", lw=9, zorder=1)
    if grid is not None:
        axes["plane"].plot(*grid.T, ".", color="black", ms=5, zorder=4)
        axes["losses"].plot(*shares_left(grid).T, ".", color="black", ms=5, zorder=4)

    steps = np.arange(1, STEPS + 1)
    for i, (_, points, weights) in enumerate(lines):
        style: dict[str, Any] = {
            "color": COLOURS[i],
            "ls": LINES[i],
            "lw": 2.6 - 0.25 * i,
            "zorder": 3 + 0.1 * i,
        }
        for s, path in enumerate(points):
            axes["plane"].plot(*path.T, **style)
            end: dict[str, Any] = {
                "color": COLOURS[i],
                "marker": MARKERS[i],
                "ls": "",
                "zorder": 5 + 0.1 * i,
            }
            end |= {"ms": 6} if s == 0 else {"ms": 11, "mfc": "none", "mew": 1.8}
            axes["plane"].plot(*path[-1], **end)
            axes["losses"].plot(*shares_left(path[-1]), **end)
            is_negative = weights[s].min(axis=-1) < 0  # no ratio to draw: a gap
            ratios = np.clip(weights[s, :, 1] / np.maximum(weights[s, :, 0], 1e-30), 1e-9, 1e9)
            ratios = np.where(is_negative, np.nan, ratios)
            axes["weights"].plot(steps, ratios, **(style | {"alpha": 1.0 if s == 0 else 0.45}))

    axes["weights"].set(xscale="log", yscale="log", xlim=(1, STEPS))
    lowest, highest = axes["weights"].get_ylim()
    axes["weights"].set_ylim(np.clip(lowest, 1e-3, 0.1), np.clip(highest, 1e2, 1e4))
    axes["weights"].set(xlabel="step", ylabel="weight of second / first")
    axes["weights"].set_title("Weights (B paler)", fontsize=FONT_SIZE + 1)
    axes["losses"].set(xlabel="first loss, %", ylabel="second loss, %")
    axes["losses"].set(xlim=(-6, 108), ylim=(-6, 108))
    axes["losses"].set_title("Where the losses end", fontsize=FONT_SIZE + 1)
    for key in ("weights", "losses"):
        axes[key].grid(color="#dddddd", lw=0.6)

    handles = [
        matplotlib.lines.Line2D(
            [],
            [],
            color=COLOURS[i],
            ls=LINES[i],
            lw=2.2,
            marker=MARKERS[i],
            ms=8,
            label=method.name,
        )
        for i, (method, _, _) in enumerate(lines)
    ]
    add = functools.partial(matplotlib.lines.Line2D, [], [])
    handles.append(add(color="#F0E442", lw=9, label="Pareto front"))
    handles.append(add(color="#9a9a9a", lw=1, label="first loss"))
    handles.append(add(color="#9a9a9a", lw=1, ls="--", label="second loss"))
    if grid is not None:
        label = f"ends of {len(grid)} other fixed weights"
        handles.append(add(color="black", ls="", marker=".", ms=7, label=label))
    handles.append(add(color="black", ls="", marker="o", ms=6, label="end from A"))
    handles.append(
        add(color="black", ls="", marker="o", ms=11, mfc="none", mew=1.8, label="end from B")
    )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, handlelength=3
    )


TITLES = {
    "fixed": "Fixed weights",
    "losses": "Weights from loss values",
    "softadapt": "SoftAdapt",
    "learned": "Learned weights",
    "gradients": "Weights from gradients",
    "ratios": "Weights from how losses move",
    "conflicts": "Weights that settle conflicts",
    "target": "Weights that follow a target",
}


def main() -> None:
    """Draws the pictures and prints where each method ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=TITLES, default=list(TITLES))
    here = pathlib.Path(__file__).parent
    parser.add_argument("--out", type=pathlib.Path, default=here / "images", help="folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    console = rich.console.Console()
    starts = jnp.asarray(list(STARTS.values()))
    chosen = {family: families()[family] for family in arguments.families}
    table = rich.table.Table(title=f"Losses in % after {STEPS} steps (first, second)")
    for column in (
        "family",
        "method",
        *(f"from {name}" for name in STARTS),
        "last weights, from A",
    ):
        table.add_column(column, overflow="fold")
    with rich.progress.Progress(console=console) as progress:
        bar = progress.add_task("", total=sum(len(methods) for methods in chosen.values()))
        for family, methods in chosen.items():
            lines = []
            for method in methods:
                progress.update(bar, description=f"{family}: {method.name}")
                points, weights = paths(starts, method)
                lines.append((method, np.asarray(points), np.asarray(weights)))
                progress.advance(bar)
                ends = [f"{x:.1f}, {y:.1f}" for x, y in shares_left(np.asarray(points[:, -1]))]
                last = " : ".join(f"{weight:.3g}" for weight in weights[0, -1])
                table.add_row(family, method.name, *ends, last)
            grid = None
            if family == "fixed":
                grid = np.asarray(ends_of_grid(starts[0], jnp.geomspace(0.2, 3e3, 25)))
            figure = draw_family(TITLES[family], lines, grid)
            figure.savefig(arguments.out / f"toy_{family}.png", dpi=110)
            plt.close(figure)
    console.print(table)


if __name__ == "__main__":
    main()
