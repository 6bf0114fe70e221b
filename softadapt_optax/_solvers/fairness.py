r"""Weights with :math:`G \alpha = \alpha^{-1/a}`, powers of what each loss gains.

They minimise a convex function, :math:`\alpha^T G \alpha / 2` minus a sum of powers of
:math:`\alpha` (of logarithms for a = 1).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._reductions import diagonal_of, max_over, sum_over
from softadapt_optax._solvers.double_float import DoubleFloat, product, rounded, sum_of, total
from softadapt_optax._solvers.equilibration import equilibrated
from softadapt_optax._solvers.matrices import inverse_of

# The logarithm of a weight changes by so much at most in one turn.
_LONGEST_STEP = 1.5


def fair_weights(
    gramian: Float[Array, "K K"],
    counted: Bool[Array, " K"],
    fairness: ArrayLike,
    ridge: ArrayLike,
    max_turns: int,
) -> Float[Array, " K"]:
    r"""The weights :math:`\alpha > 0`, with a ridge relative to each squared norm.

    They are zero for a gradient of zero and for losses that do not count.
    """
    cosines, ridges, scales, has_size = equilibrated(gramian, counted, _ridge(gramian, ridge))
    power = 1.0 / jnp.asarray(fairness, gramian.dtype)
    largest = max_over(jnp.where(has_size, scales, float(np.finfo(scales.dtype).tiny)))
    sizes = jnp.where(has_size, scales / largest, 1.0)
    units = sizes ** ((power - 1.0) / (power + 1.0))
    y = _fair(cosines, ridges, units, power, max_turns)
    return jnp.where(has_size, y / sizes * largest ** (-2.0 / (power + 1.0)), 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _fair(
    cosines: Float[Array, "K K"],
    ridges: Float[Array, "K K"],
    units: Float[Array, " K"],
    power: Float[Array, ""],
    max_turns: int,
) -> Float[Array, " K"]:
    r"""The y > 0 with :math:`C y = u (y / u)^{-p}`, where C has the ridge.

    By Newton's method for the convex function, on the logarithms of y. It is in floats but for
    :math:`C y`, which cancels where gradients conflict.
    """
    matrix = sum_of(cosines, ridges)

    def turn(y: Float[Array, " K"]) -> tuple[Float[Array, " K"], Float[Array, ""]]:
        exact = DoubleFloat(y[None, :], jnp.zeros_like(y)[None, :])
        inverse, roots, sides = _newton(rounded(matrix), y, units, power)
        rest = sides * rounded(total(product(matrix, exact))) - roots
        change = -jnp.sum(inverse * rest[None, :], axis=1) / roots
        change = jnp.where(jnp.isfinite(change), change, 0.0)
        longest = max_over(jnp.abs(change))
        share = _LONGEST_STEP / jnp.maximum(longest, _LONGEST_STEP)
        ratios = jnp.clip(y / units * jnp.exp(share * change), 1.0 / bound, bound)
        return units * ratios, longest

    # Without a ridge there may be no solution, and y grow for ever.
    bound = (32.0 / float(np.finfo(units.dtype).eps)) ** (2.0 / (1.0 + power))
    start = units * diagonal_of(rounded(matrix)) ** (-1.0 / (1.0 + power))
    axes = axes_of((cosines, ridges, units, power))
    if len(units) <= 8:
        return jax.lax.fori_loop(0, max_turns, lambda _, y: turn(y)[0], spread(start, axes))

    def next_turn(
        state: tuple[Array, Array, Int[Array, ""]],
    ) -> tuple[Array, Array, Int[Array, ""]]:
        return *turn(state[0]), state[2] + 1

    tolerance = 16 * float(np.finfo(start.dtype).eps)
    first = start, jnp.full((), jnp.inf, start.dtype), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(
        lambda state: (state[1] > tolerance) & (state[2] < 8 * max_turns),
        next_turn,
        spread(first, axes),
    )[0]


@_fair.defjvp
def _fair_jvp(
    max_turns: int,
    primals: tuple[Array, Array, Array, Array],
    tangents: tuple[Array, Array, Array, Array],
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """The equations stay true, which says how y changes."""
    y = _fair(*primals, max_turns)
    cosines, ridges, units, power = primals

    def equations(cosines: Array, ridges: Array, units: Array, power: Array) -> Float[Array, " K"]:
        products = jnp.sum((cosines + ridges) * y[None, :], axis=1)
        return products - units * (y / units) ** -power

    change = jax.jvp(equations, primals, tangents)[1]
    inverse, _, sides = _newton(cosines + ridges, y, units, power)
    return y, -sides * jnp.sum(inverse * (sides * change)[None, :], axis=1)


def _newton(
    matrix: Float[Array, "K K"],
    y: Float[Array, " K"],
    units: Float[Array, " K"],
    power: Float[Array, ""],
) -> tuple[Float[Array, "K K"], Float[Array, " K"], Float[Array, " K"]]:
    r"""The inverse of the function's second derivative, scaled from both sides.

    With :math:`w = u (y / u)^{(1 - p) / 2}` that is :math:`D C D + p`, D being y / w.
    """
    ratios = y / units
    roots, sides = units * ratios ** ((1.0 - power) / 2.0), ratios ** ((1.0 + power) / 2.0)
    hessian = matrix * sides[:, None] * sides[None, :] + power * jnp.eye(len(y), dtype=y.dtype)
    scales = 1.0 / jnp.sqrt(diagonal_of(hessian))
    pairs = scales[:, None] * scales[None, :]
    return inverse_of(hessian * pairs) * pairs, roots, sides


def squared_length(
    gramian: Float[Array, "K K"], alpha: Float[Array, " K"], ridge: ArrayLike
) -> Float[Array, ""]:
    r"""That of h for a = 1, where :math:`\alpha_k (G \alpha)_k = 1` but for the ridge's part."""
    ridges = _ridge(gramian, ridge) * (alpha * (alpha * diagonal_of(gramian)))
    return jnp.maximum(sum_over(jnp.where(alpha > 0, 1.0 - ridges, 0.0)), 0.0)


def _ridge(gramian: Float[Array, "K K"], ridge: ArrayLike) -> Float[Array, ""]:
    """If there is one, not less than what rounding may take from a Gramian's smallest eigenvalue.

    Without it the function need not be convex for many losses, and Newton's method ends anywhere.
    """
    ridge, rounding = jnp.asarray(ridge, gramian.dtype), float(np.finfo(gramian.dtype).eps)
    return jnp.where(ridge > 0, jnp.maximum(ridge, len(gramian) / 4 * rounding), 0.0)
