"""Figure 2 and the supplement: two functions of two parameters, split in their squares.

    python -m examples.paper.rosenbrock [--quick] [--out paper_results]

Rosenbrock's function is the sum of two losses (Eq. 7), Beale's of three. Gradient descent on the
sum is compared with SoftAdapt in its four variants, by the number of steps until the distance to
the minimum is below a tolerance, from a grid of starting points in one `vmap`; with a fixed step,
and with the steps of Barzilai and Borwein.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import optax
import rich.progress

import softadapt_optax as sa
from examples.paper import common
from examples.paper.barzilai_borwein import barzilai_borwein

STEP = 1e-3  # the paper's fixed step
BETA = 0.1


class Settings(NamedTuple):
    """How much is run."""

    starts_per_side: int = 12
    tolerances: tuple[float, ...] = (1e-2, 1e-3)  # distances to the minimum
    limit: int = 100_000  # steps before a start counts as failed
    betas: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.1, 0.5, 1.0, 10.0, 100.0)
    adaptive_betas: tuple[float, ...] = (-1.0, -0.5, -0.1, 0.1, 0.5, 1.0)
    steps: tuple[float, ...] = tuple(float(f"{step:.3g}") for step in np.geomspace(5e-4, 2e-2, 48))


# The two functions.


class Problem(NamedTuple):
    """A function that is a sum of losses."""

    name: str
    losses_fn: Callable[[jax.Array], dict[str, jax.Array]]
    minimum: tuple[float, float]
    corners: tuple[tuple[float, float], tuple[float, float]]  # of the grid of starting points
    start: tuple[float, float]  # of the trajectories that are drawn

    @property
    def num_losses(self) -> int:
        return len(self.losses_fn(jnp.zeros(2)))


def rosenbrock(params: jax.Array) -> dict[str, jax.Array]:
    x, y = params
    return {"valley": 100 * (y - x**2) ** 2, "floor": (1 - x) ** 2}


def beale(params: jax.Array) -> dict[str, jax.Array]:
    x, y = params
    return {
        "first": (1.5 - x + x * y) ** 2,
        "second": (2.25 - x + x * y**2) ** 2,
        "third": (2.625 - x + x * y**3) ** 2,
    }


ROSENBROCK = Problem("Rosenbrock", rosenbrock, (1.0, 1.0), ((-1.5, -0.5), (1.5, 1.5)), (-0.5, -0.5))
BEALE = Problem("Beale", beale, (3.0, 0.5), ((0.5, -1.0), (4.0, 0.75)), (1.0, -0.8))


def half_sum_of_squares(problem: Problem) -> Problem:
    """Half the sum of the squared losses, over their mean, which is held constant.

    Its gradient is that of the sum weighted by the losses, with weights that sum to K.
    """

    def losses_fn(params: jax.Array) -> dict[str, jax.Array]:
        losses = jnp.stack([*problem.losses_fn(params).values()])
        return {"squares": 0.5 * jnp.sum(losses**2) / jax.lax.stop_gradient(jnp.mean(losses))}

    return problem._replace(losses_fn=losses_fn)


def grid(problem: Problem, starts_per_side: int) -> np.ndarray:
    """Starting points, shape [starts_per_side**2, 2]."""
    sides = [
        np.linspace(low, high, starts_per_side) for low, high in zip(*problem.corners, strict=True)
    ]
    return np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)


# Descent.


def plain(num_losses: int, weight_sum: jax.Array) -> optax.GradientTransformation:
    """Gradient descent on the sum, or on a multiple of it."""
    return sa.fixed_weights(jnp.full(num_losses, weight_sum / num_losses))


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """In float32 steps of 1e-3 are lost in the rounding of the parameters near a minimum."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def descent_step(
    problem: Problem, tx: optax.GradientTransformation, params: jax.Array, opt_state: Any
) -> tuple[jax.Array, Any]:
    _, grads = sa.value_and_component_grads(problem.losses_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def steps_to_minimum(
    problem: Problem,
    tx: optax.GradientTransformation,
    start: jax.Array,
    tolerances: tuple[float, ...],
    limit: int,
) -> jax.Array:
    """Steps until the distance is below each tolerance, shape [tolerances]; NaN if it never is."""
    tolerances = jnp.asarray(tolerances)
    minimum = jnp.asarray(problem.minimum)

    def goes_on(carry: Any) -> jax.Array:
        params, _, steps, reached = carry
        return jnp.any(jnp.isnan(reached)) & jnp.all(jnp.isfinite(params)) & (steps < limit)

    def step(carry: Any) -> Any:
        params, opt_state, steps, reached = carry
        params, opt_state = descent_step(problem, tx, params, opt_state)
        steps = steps + 1
        is_near = jnp.linalg.norm(params - minimum) <= tolerances
        reached = jnp.where(jnp.isnan(reached) & is_near, steps, reached)
        return params, opt_state, steps, reached

    carry = (start, tx.init(start), 0, jnp.full(tolerances.shape, jnp.nan))
    return jax.lax.while_loop(goes_on, step, carry)[-1]


def count_steps(
    problem: Problem,
    tx_of: Callable[[jax.Array], optax.GradientTransformation],
    values: np.ndarray,
    starts: np.ndarray,
    settings: Settings,
) -> np.ndarray:
    """Steps to each tolerance, shape [values, starts, tolerances]; NaN where a start fails.

    `tx_of` makes a chain, with a weighting at its head, of each of the values, shape [values], of
    an option; starts have shape [starts, 2]. Of the settings the tolerances and the limit are used.
    In float32, outside of `double_precision`, short steps near a minimum are lost.
    """

    def one(value: jax.Array, start: jax.Array) -> jax.Array:
        return steps_to_minimum(problem, tx_of(value), start, settings.tolerances, settings.limit)

    over_starts = jax.vmap(one, in_axes=(None, 0))
    return np.asarray(
        jax.jit(jax.vmap(over_starts, in_axes=(0, None)))(jnp.asarray(values), jnp.asarray(starts))
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def trajectory(
    problem: Problem, tx: optax.GradientTransformation, start: jax.Array, num_steps: int
) -> jax.Array:
    """The parameters after each step, shape [num_steps, 2]."""

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        carry = descent_step(problem, tx, *carry)
        return carry, carry[0]

    return jax.lax.scan(step, (start, tx.init(start)), length=num_steps)[1]


# The comparisons.


def compare(steps: np.ndarray, reference: np.ndarray) -> dict[str, list[float]]:
    """The ratio of steps of shape [starts, tolerances] over the starts, for each tolerance.

    A start that does not arrive counts as infinitely many steps; starts from which the reference
    does not arrive are left out.
    """
    columns = []
    for ours, theirs in zip(steps.T, reference.T, strict=True):
        counted = ~np.isnan(theirs)
        ratios = np.where(np.isnan(ours), np.inf, ours)[counted] / theirs[counted]
        if len(ratios) == 0:
            ratios = np.asarray([np.nan])
        low, median, high = np.percentile(ratios, [5, 50, 95], method="nearest")
        columns.append([median, low, high, np.mean(ratios < 1), np.mean(np.isinf(ratios))])
    names = ("median", "low", "high", "fewer", "failed")
    return dict(zip(names, np.asarray(columns).T.tolist(), strict=True))


def median_steps(steps: np.ndarray) -> np.ndarray:
    """Over the starts of steps of shape [..., starts, tolerances]."""
    return np.median(np.where(np.isnan(steps), np.inf, steps), axis=-2)


def fixed_steps(
    problem: Problem, settings: Settings, starts: np.ndarray, advance: Callable[[str], None]
) -> dict[str, Any]:
    """All variants with the step 1e-3, for both weight sums; and what beta does."""
    num_losses = problem.num_losses
    sums = np.asarray([num_losses, 1.0])
    sgd = optax.sgd(STEP)

    def count(weighting: Callable[[jax.Array], Any], values: np.ndarray, of: Problem = problem):
        return count_steps(
            of, lambda value: optax.chain(weighting(value), sgd), values, starts, settings
        )

    advance("gradient descent")
    descent = count(lambda total: plain(num_losses, total), sums)
    squares = count(lambda total: plain(1, total), np.ones(1), of=half_sum_of_squares(problem))
    variants = {"gradient descent": {"1": compare(descent[1], descent[0])}}
    betas = {}
    for name, options in common.VARIANTS.items():
        advance(f"{name}, fixed step")
        steps = count(
            lambda total, o=options: sa.softadapt(num_losses, BETA, weight_sum=total, **o), sums
        )
        variants[name] = {
            "K": compare(steps[0], descent[0]),
            "1": compare(steps[1], descent[0]),
        }
        steps = count(
            lambda beta, o=options: sa.softadapt(num_losses, beta, weight_sum=num_losses, **o),
            np.asarray(settings.betas),
        )
        betas[name] = {
            str(beta): compare(row, descent[0])
            for beta, row in zip(settings.betas, steps, strict=True)
        }
    return {
        "median steps": median_steps(descent[0]),
        "variants": variants,
        "betas": betas,
        "half the sum of squares": compare(squares[0], descent[0]),
    }


def best_steps(
    problem: Problem, settings: Settings, starts: np.ndarray, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Each fixed step, for gradient descent and the loss weighted variant, to the last tolerance.

    The best step is one for all starts, from which it arrives, or each start's own.
    """
    num_losses = problem.num_losses
    weightings = {
        "gradient descent": sa.fixed_weights(np.ones(num_losses)),
        "loss weighted": sa.softadapt(num_losses, BETA, weight_sum=num_losses, loss_weighted=True),
    }
    result, own_best = {}, {}
    for name, weighting in weightings.items():
        advance(f"{name}, other fixed steps")
        steps = count_steps(
            problem,
            lambda step, w=weighting: optax.chain(w, optax.sgd(step)),
            np.asarray(settings.steps),
            starts,
            settings,
        )[..., -1]
        steps = np.where(np.isnan(steps), np.inf, steps)
        for_all = np.where(np.all(np.isfinite(steps), axis=1), np.median(steps, axis=1), np.inf)
        best = int(np.argmin(for_all))
        own_best[name] = np.min(steps, axis=0)
        result[name] = {
            "medians": np.median(steps, axis=1),
            "arrived": np.mean(np.isfinite(steps), axis=1),
            "best step": settings.steps[best],
            "best median": for_all[best],
            "own best median": np.median(own_best[name]),
        }
    ratios = own_best["loss weighted"] / own_best["gradient descent"]
    low, median, high = np.percentile(ratios, [5, 50, 95], method="nearest")
    result["loss weighted"]["own ratio"] = {"median": median, "low": low, "high": high}
    return result


def adaptive_steps(
    problem: Problem, settings: Settings, starts: np.ndarray, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Barzilai-Borwein steps, short and long, behind each variant, against the same behind none."""
    num_losses = problem.num_losses
    result = {}
    for rule, is_long in {"short": False, "long": True}.items():
        steps_after = barzilai_borwein(long=is_long)

        def count(weighting: Callable[[jax.Array], Any], values: Any, end: Any = steps_after):
            return count_steps(
                problem,
                lambda value: optax.chain(weighting(value), end),
                np.asarray(values),
                starts,
                settings,
            )

        descent = count(lambda total: plain(num_losses, total), [float(num_losses)])[0]
        result[rule] = {
            "arrived": np.mean(~np.isnan(descent[:, -1])),
            "variants": {},
        }
        for name, options in common.VARIANTS.items():
            advance(f"{name}, {rule} adaptive steps")
            steps = count(
                lambda beta, o=options: sa.softadapt(num_losses, beta, weight_sum=num_losses, **o),
                settings.adaptive_betas,
            )
            result[rule]["variants"][name] = {
                str(beta): compare(row, descent)
                for beta, row in zip(settings.adaptive_betas, steps, strict=True)
            }
    return result


def trajectories(problem: Problem, num_steps: int) -> dict[str, np.ndarray]:
    """Parameters after each step from the problem's starting point, by name of the descent."""
    num_losses = problem.num_losses

    def chain(weighting: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(weighting, optax.sgd(STEP))

    equal = chain(sa.fixed_weights(np.ones(num_losses)))
    runs = {
        "gradient descent": (problem, equal),
        "SoftAdapt, original": (
            problem,
            chain(sa.softadapt(num_losses, BETA, weight_sum=num_losses)),
        ),
        "SoftAdapt, loss weighted": (
            problem,
            chain(sa.softadapt(num_losses, BETA, weight_sum=num_losses, loss_weighted=True)),
        ),
        "the same, weights sum to 1": (
            problem,
            chain(sa.softadapt(num_losses, BETA, loss_weighted=True)),
        ),
        "descent on the squares": (
            half_sum_of_squares(problem),
            chain(sa.fixed_weights(np.ones(1))),
        ),
    }
    start = jnp.asarray(problem.start)
    return {
        name: np.concatenate([start[None], trajectory(of, tx, start, num_steps)])
        for name, (of, tx) in runs.items()
    }


def run(settings: Settings, progress: rich.progress.Progress) -> common.Outcome:
    problems = (ROSENBROCK, BEALE)
    pieces = 1 + len(common.VARIANTS) + 2 + 2 * len(common.VARIANTS)
    task = progress.add_task("Rosenbrock", total=pieces * len(problems))
    figures, arrays = {}, {}
    with double_precision():
        for problem in problems:
            starts = grid(problem, settings.starts_per_side)

            def advance(description: str, name: str = problem.name) -> None:
                progress.update(task, advance=1, description=f"{name}: {description}")

            figures[problem.name] = {
                "starts": len(starts),
                "tolerances": settings.tolerances,
                "steps": settings.steps,
                "fixed": fixed_steps(problem, settings, starts, advance),
                "best": best_steps(problem, settings, starts, advance),
                "adaptive": adaptive_steps(problem, settings, starts, advance),
            }
            arrays[problem.name] = trajectories(problem, min(20_000, settings.limit))
    return common.Outcome(figures, arrays)


# What came out.


def percent(ratio: float) -> str:
    """A ratio of steps as `43.2 % fewer`."""
    if np.isinf(ratio):
        return "does not arrive"
    if abs(1 - ratio) < 5e-4:
        return "equally many"
    return f"{100 * abs(1 - ratio):.1f} % {'fewer' if ratio < 1 else 'more'}"


def percents(first: float, last: float) -> str:
    """Two ratios of steps as `43.0 to 43.5 % fewer`."""
    words, last_words = percent(first), percent(last)
    if words == last_words:
        return words
    number, unit = words.split(" ", 1)
    return f"{number if last_words.endswith(unit) else words} to {last_words}"


def spreads(summary: dict[str, list[float]]) -> list[str]:
    """Median and middle 90 % of the starts of a ratio, for each tolerance."""
    rows = zip(summary["median"], summary["low"], summary["high"], strict=True)
    return [f"{median:.3f} ({low:.3f} to {high:.3f})" for median, low, high in rows]


def fixed_table(name: str, found: dict[str, Any]) -> common.Table:
    fixed = found["fixed"]
    wanted = [f"{tolerance:g}" for tolerance in found["tolerances"]]
    steps = ", ".join(f"{count:,.0f}" for count in fixed["median steps"])
    summaries = {
        (variant, total): summary
        for variant, by_sum in fixed["variants"].items()
        for total, summary in by_sum.items()
    }
    summaries["gradient descent on the squares", "K"] = fixed["half the sum of squares"]
    return common.Table(
        f"{name}, fixed step {STEP:g}, beta {BETA:g}: steps over those of gradient descent "
        f"({steps} to a distance of {', '.join(wanted)}, median of {found['starts']} starts); "
        "median and middle 90 % of the starts",
        ("descent", "weights sum to", *(f"to {w}" for w in wanted), "starts with fewer steps"),
        [
            (variant, total, *spreads(summary), f"{100 * summary['fewer'][-1]:.0f} %")
            for (variant, total), summary in summaries.items()
        ],
    )


def median_and_failed(summary: dict[str, list[float]]) -> str:
    """The median ratio at the smallest tolerance, and the share of starts that do not arrive."""
    failed = summary["failed"][-1]
    return f"{summary['median'][-1]:.3f}" + (f" ({100 * failed:.0f} % fail)" if failed else "")


def table_by_beta(title: str, rows: dict[str, dict[str, dict[str, list[float]]]]) -> common.Table:
    """The median ratio at the smallest tolerance, of rows that hold a summary for each beta."""
    betas = next(iter(rows.values()))
    return common.Table(
        title,
        ("variant; beta", *(f"{float(beta):g}" for beta in betas)),
        [(name, *map(median_and_failed, by_beta.values())) for name, by_beta in rows.items()],
    )


def best_table(name: str, found: dict[str, Any]) -> common.Table:
    return common.Table(
        f"{name}: steps to a distance of {found['tolerances'][-1]:g} (weights sum to K), median of "
        "the starts: at the paper's fixed step, at the best one that arrives from every start, and "
        f"at each start's own best; of {len(found['steps'])} steps from {found['steps'][0]:g} to "
        f"{found['steps'][-1]:g}",
        ("descent", f"step {STEP:g}", "best step", "steps there", "at each start's own"),
        [
            (
                method,
                f"{steps_at_paper(found, method):,.0f}",
                f"{best['best step']:g}",
                f"{best['best median']:,.0f}",
                f"{best['own best median']:,.0f}",
            )
            for method, best in found["best"].items()
        ],
    )


def steps_at_paper(found: dict[str, Any], method: str) -> float:
    """Steps to the smallest tolerance at the paper's fixed step, weights that sum to K."""
    steps = found["fixed"]["median steps"][-1]
    if method == "gradient descent":
        return steps
    return steps * found["fixed"]["variants"][method]["K"]["median"][-1]


def arrived(found: dict[str, Any]) -> str:
    shares = [
        f"{100 * of_rule['arrived']:.0f} % with the {rule} step"
        for rule, of_rule in found["adaptive"].items()
    ]
    return ", ".join(shares)


def tables(figures: dict[str, Any]) -> list[common.Table]:
    result = []
    for name, found in figures.items():
        to = f"to a distance of {found['tolerances'][-1]:g}"
        adaptive = {
            f"{variant}, {rule} step": by_beta
            for rule, of_rule in found["adaptive"].items()
            for variant, by_beta in of_rule["variants"].items()
        }
        result += [
            fixed_table(name, found),
            table_by_beta(
                f"{name}, fixed step, weights sum to K: median ratio of steps {to}",
                found["fixed"]["betas"],
            ),
            best_table(name, found),
            table_by_beta(
                f"{name}, Barzilai-Borwein steps: median ratio to gradient descent's {to}, from "
                f"the starts from which that arrives ({arrived(found)})",
                adaptive,
            ),
        ]
    return result


def headline_verdict(found: dict[str, Any]) -> common.Verdict:
    weighted = found["fixed"]["variants"]["loss weighted"]
    low, high = min(weighted["K"]["low"]), max(weighted["K"]["high"])
    middle, by_one = weighted["K"]["median"], weighted["1"]["median"][-1]
    conditions = [] if by_one < 0.58 else ["the weights sum to 2"]
    if not (low > 0.56 and high < 0.58):
        conditions.append("the median of the starts counts")
    if not (min(middle) > 0.56 and max(middle) < 0.58):
        verdict = "not reproduced"
    else:
        verdict = "reproduced" + (f" only if {' and '.join(conditions)}" if conditions else "")
    return common.Verdict(
        "Rosenbrock: loss weighted SoftAdapt needs fewer steps than gradient descent (fixed step "
        "1e-3, beta 0.1)",
        "43.31 % fewer",
        f"{percents(max(middle), min(middle))} (median of {found['starts']} starts; their middle "
        f"90 %: {percents(high, low)}) if the weights sum to 2; "
        f"{percent(by_one)} if they sum to 1, as in Eq. 3",
        verdict,
    )


def rates_verdict(found: dict[str, Any]) -> common.Verdict:
    medians = {
        float(beta): summary["median"][-1]
        for beta, summary in found["fixed"]["betas"]["loss weighted"].items()
    }
    squares = found["fixed"]["half the sum of squares"]["median"][-1]
    is_gain_of_beta = medians[0.0] > 0.9 and medians[BETA] < 0.9
    return common.Verdict(
        "Rosenbrock: that gain comes from the rates of change",
        "the rates set the weights (Eq. 3)",
        f"beta from {min(medians):g} to {max(medians):g}: "
        f"{percents(max(medians.values()), min(medians.values()))}; beta 0, which ignores the "
        f"rates: {percent(medians[0.0])}; gradient descent on half the sum of squares: "
        f"{percent(squares)}",
        "reproduced"
        if is_gain_of_beta
        else "not reproduced: it comes from weighting by the loss values",
    )


def variants_verdict(found: dict[str, Any]) -> common.Verdict:
    medians = {
        name: found["fixed"]["variants"][name]["K"]["median"][-1]
        for name in ("original", "normalized")
    }
    return common.Verdict(
        "Rosenbrock: the original and the normalized variant need fewer steps too",
        "not claimed",
        "; ".join(f"{name} {percent(median)}" for name, median in medians.items()),
        "holds" if max(medians.values()) < 0.99 else "does not hold",
    )


def tuned_step_verdict(name: str, found: dict[str, Any]) -> common.Verdict:
    descent, weighted = (found["best"][method] for method in ("gradient descent", "loss weighted"))
    for_all = weighted["best median"] / descent["best median"]
    own = weighted["own ratio"]
    kept = 0.05 + found["fixed"]["variants"]["loss weighted"]["K"]["median"][-1]
    if for_all < kept:
        verdict = "holds"
    else:
        is_own = own["median"] < kept
        verdict = "holds only if each start has its own step" if is_own else "does not hold"
    return common.Verdict(
        f"{name}: the gain stays as large when both have their best fixed step",
        "not compared",
        f"the best step that arrives from every start (gradient descent "
        f"{descent['best step']:g}, loss weighted {weighted['best step']:g}): {percent(for_all)}; "
        "each start's own best step: "
        f"{percent(own['median'])}, for the middle 90 % of the starts "
        f"{percents(own['low'], own['high'])}",
        verdict,
    )


def adaptive_cases(found: dict[str, Any]) -> dict[str, dict[float, float]]:
    """Median ratios of the loss weighted variant by beta, for both rules and all tolerances."""
    return {
        f"{rule} step, to a distance of {tolerance:g}": {
            float(beta): summary["median"][index]
            for beta, summary in of_rule["variants"]["loss weighted"].items()
        }
        for rule, of_rule in found["adaptive"].items()
        for index, tolerance in enumerate(found["tolerances"])
    }


def verdict_of_cases(held: list[str], num_cases: int) -> str:
    if len(held) == num_cases:
        return "reproduced"
    return f"reproduced only if {' or '.join(held)}" if held else "not reproduced"


def adaptive_verdict(found: dict[str, Any]) -> common.Verdict:
    ratios = {case: by_beta[BETA] for case, by_beta in adaptive_cases(found).items()}
    slower = [case for case, ratio in ratios.items() if ratio > 1.02]
    return common.Verdict(
        "Rosenbrock: with Barzilai-Borwein steps the loss weighted variant is worse than gradient "
        "descent",
        "it underperforms",
        "; ".join(f"{case}: {percent(ratio)}" for case, ratio in ratios.items()),
        verdict_of_cases(slower, len(ratios)),
    )


def negative_beta_verdict(found: dict[str, Any]) -> common.Verdict:
    gains = {
        case: min(ratio for beta, ratio in by_beta.items() if beta < 0) / by_beta[BETA]
        for case, by_beta in adaptive_cases(found).items()
    }
    helped = [case for case, gain in gains.items() if gain < 0.9]
    return common.Verdict(
        "Rosenbrock: with those steps beta < 0 helps",
        "it improves the loss weighted variant",
        "best beta < 0 against 0.1: "
        + "; ".join(f"{case}: {percent(gain)}" for case, gain in gains.items()),
        verdict_of_cases(helped, len(gains)),
    )


def beale_verdict(found: dict[str, Any]) -> common.Verdict:
    variants = found["fixed"]["variants"]
    original = variants["original"]["K"]["median"][-1]
    by_three, by_one = (variants["loss weighted"][total]["median"][-1] for total in ("K", "1"))
    conditions = [
        *(["loss weighted"] if original > 0.95 else []),
        *(["the weights sum to 3"] if by_one > 0.95 else []),
    ]
    only_if = f"reproduced only if {' and '.join(conditions)}" if conditions else "reproduced"
    return common.Verdict(
        "Beale: SoftAdapt needs fewer steps too (fixed step)",
        "shown in the supplement",
        f"loss weighted {percent(by_three)} if the weights sum to 3, {percent(by_one)} if they sum "
        f"to 1; original {percent(original)}",
        only_if if by_three < 0.9 else "not reproduced",
    )


def verdicts(figures: dict[str, Any]) -> list[common.Verdict]:
    found, beale_found = figures["Rosenbrock"], figures["Beale"]
    return [
        headline_verdict(found),
        rates_verdict(found),
        variants_verdict(found),
        tuned_step_verdict("Rosenbrock", found),
        adaptive_verdict(found),
        negative_beta_verdict(found),
        beale_verdict(beale_found),
        tuned_step_verdict("Beale", beale_found),
    ]


# The picture.


def draw_contours(
    axes: plt.Axes, problem: Problem, paths: dict[str, np.ndarray], shown: dict[str, str]
) -> None:
    (left, bottom), (right, top) = problem.corners
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    values = sum(np.asarray(loss) for loss in problem.losses_fn((x, y)).values())
    levels = np.geomspace(max(values.min(), 1e-3), values.max(), 14)
    axes.contour(x, y, values, levels=levels, colors="0.75", linewidths=0.6)
    for name, colour in shown.items():
        path = paths[name]
        axes.plot(*path.T, color=colour, lw=1.2, label=name)
        axes.plot(*path[::1000].T, ".", color=colour, ms=7)
    axes.plot(*problem.minimum, "k*", ms=11, label="minimum")
    axes.set(
        title=f"{problem.name}: a dot every 1000 steps",
        xlabel="x",
        ylabel="y",
        xlim=(left, right),
        ylim=(bottom, top),
    )
    axes.legend(fontsize="small", loc="upper left" if problem is ROSENBROCK else "lower right")


def draw_distances(
    axes: plt.Axes, problem: Problem, paths: dict[str, np.ndarray], colours: dict[str, Any]
) -> None:
    for name, path in paths.items():
        distance = np.linalg.norm(path - np.asarray(problem.minimum), axis=-1)
        style = ":" if name == "descent on the squares" else "-"
        width = {"gradient descent": 4, "descent on the squares": 2}.get(name, 1.3)
        axes.plot(distance, style, color=colours[name], lw=width, label=name)
    axes.set(
        title=f"{problem.name}: distance to the minimum",
        xlabel=f"steps of {STEP:g}",
        ylabel="distance",
        yscale="log",
        ylim=(1e-4, None),
    )
    axes.locator_params(axis="x", nbins=5)
    axes.legend(fontsize="small")


def draw(outcome: common.Outcome) -> matplotlib.figure.Figure:
    """Trajectories and distances of both functions; other steps and betas on Rosenbrock's."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 9), layout="constrained")
    cycle = ("tab:gray", "tab:green", "tab:blue", "tab:cyan", "black")
    for row, problem in zip(axes, (ROSENBROCK, BEALE), strict=True):
        paths = outcome.arrays[problem.name]
        colours = dict(zip(paths, cycle, strict=True))
        shown = ("gradient descent", "SoftAdapt, loss weighted")
        draw_contours(row[0], problem, paths, {name: colours[name] for name in shown})
        draw_distances(row[1], problem, paths, colours)

    found = outcome.figures["Rosenbrock"]
    for (name, best), colour in zip(found["best"].items(), ("tab:gray", "tab:blue"), strict=True):
        steps, medians, shares = (
            np.asarray(each) for each in (found["steps"], best["medians"], best["arrived"])
        )
        axes[0, 2].plot(steps, medians, "-", color=colour, lw=1)
        for arrives, fill, label in ((shares == 1, colour, name), (shares < 1, "none", None)):
            shown = arrives & np.isfinite(medians)
            axes[0, 2].plot(steps[shown], medians[shown], "o", color=colour, mfc=fill, label=label)
    axes[0, 2].axvline(STEP, color="black", ls=":", lw=1, label="the paper's step")
    axes[0, 2].set(
        title="Rosenbrock: other fixed steps (hollow: not every start\narrives, at most half fail)",
        xlabel="step",
        ylabel=f"median steps to {found['tolerances'][-1]:g}",
        xscale="log",
        yscale="log",
    )
    axes[0, 2].xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes[0, 2].xaxis.set_major_formatter("{x:g}")
    axes[0, 2].xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes[0, 2].legend(fontsize="small")

    positions = np.arange(len(common.VARIANTS))
    for offset, (rule, of_rule) in zip((-0.15, 0.15), found["adaptive"].items(), strict=True):
        summaries = [by[str(BETA)] for by in of_rule["variants"].values()]
        middle, low, high = (
            np.asarray([summary[key][-1] for summary in summaries])
            for key in ("median", "low", "high")
        )
        axes[1, 2].errorbar(
            positions + offset,
            middle,
            yerr=[middle - low, np.where(np.isinf(high), 2 * middle, high - middle)],
            lolims=np.isinf(high),
            fmt="o",
            capsize=4,
            label=f"{rule} step",
        )
    axes[1, 2].axhline(1, color="black", ls=":", lw=1, label="gradient descent")
    axes[1, 2].set(
        title="Rosenbrock, Barzilai-Borwein steps: median and\n"
        "middle 90 % of the starts (arrow: some fail)",
        ylabel=f"steps to {found['tolerances'][-1]:g} over gradient descent's",
        yscale="log",
        xticks=positions,
        xticklabels=[name.replace(", ", ",\n") for name in common.VARIANTS],
    )
    axes[1, 2].legend(fontsize="small")
    return figure


EXPERIMENT = common.Experiment(
    name="rosenbrock",
    title="Rosenbrock's and Beale's functions (Figure 2, supplement)",
    about="""\
Rosenbrock's function in its two terms (Eq. 7) and Beale's in its three squares, from a grid of
starting points, in float64. Steps are counted until the distance to the minimum is below a
tolerance; a start that has not arrived in 100,000 steps fails and counts as infinitely many.
SoftAdapt has its default history of 5 and slope of order 1. "Weights sum to K" is what a plain sum
of K losses has, "to 1" is Eq. 3. Barzilai-Borwein steps, both kinds, are clipped to
[1e-4, 0.1], with the absolute value where the curvature is negative. Gradient descent on the
squares is that on half the sum of the squared losses, rescaled; it differs from the loss weighted
variant with beta 0 by the first steps and the mean over 5 losses, which decide where some starts
land in the valley.
""",
    full=Settings(),
    quick=Settings(
        starts_per_side=3,
        limit=30_000,
        betas=(-1.0, 0.1),
        adaptive_betas=(-1.0, 0.1),
        steps=(5e-4, 1e-3, 2e-3),
    ),
    run=run,
    tables=tables,
    verdicts=verdicts,
    draw=draw,
)

if __name__ == "__main__":
    common.main((EXPERIMENT,))
