r"""The direction near the mean gradient that is best for the loss it is worst for.

With the mean gradient :math:`g_0` it maximises :math:`\min_k \langle g_k, d \rangle` over the ball
:math:`\|d - g_0\| \le c \|g_0\|`, and is :math:`d = g_0 + \sum_k z_k g_k` with :math:`z \ge 0`,
:math:`\|\sum_k z_k g_k\| = c \|g_0\|` and :math:`\langle g_k, d \rangle = \tau` where
:math:`z_k > 0`, at least :math:`\tau` elsewhere. On a set of losses with :math:`z_k > 0` these are
linear equations and a quadratic one for :math:`\tau`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._reductions import max_over, min_over, sum_over
from softadapt_optax._solvers.double_float import (
    DoubleFloat,
    minus_combination,
    minus_product,
    normalized,
    product,
    quotient,
    rounded,
    select,
    square_root,
    sum_of,
)
from softadapt_optax._solvers.equilibration import equilibrated
from softadapt_optax._solvers.matrices import inverse_of
from softadapt_optax._solvers.nonnegative import (
    best_of_all_sets,
    exchanged,
    is_independent,
    over_all_sets,
)


def conflict_averse_weights(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"], c: ArrayLike, ridge: ArrayLike
) -> Float[Array, " K"]:
    r"""The weights :math:`1/K + z_k`, with a ridge relative to each squared norm.

    A gradient of zero has the weight 1 / K, and losses that do not count have none.
    """
    cosines, ridges, scales, has_size = equilibrated(gramian, counted, ridge)
    largest = max_over(jnp.where(has_size, scales, float(np.finfo(scales.dtype).tiny)))
    smallest = min_over(jnp.where(has_size, scales, jnp.inf))
    sizes = jnp.where(has_size, scales / largest, 0.0)
    units = jnp.where(has_size, smallest / scales, 0.0)
    x = _conflict_averse(cosines, ridges, sizes, units, jnp.asarray(c, gramian.dtype))
    z = jnp.where(has_size, x / jnp.where(has_size, sizes, 1.0), 0.0)
    count = jnp.maximum(sum_over(counted.astype(gramian.dtype)), 1.0)
    return jnp.where(counted, (1.0 + z) / count, 0.0)


@jax.custom_jvp
def _conflict_averse(
    cosines: Float[Array, "K K"],
    ridges: Float[Array, "K K"],
    sizes: Float[Array, " K"],
    units: Float[Array, " K"],
    c: Float[Array, ""],
) -> Float[Array, " K"]:
    r"""The x >= 0 that go with gradients of length about one.

    With the ridge in C, :math:`b = C s` for the sizes s and the units e there are x and
    :math:`\tau` so that :math:`x^T C x = c^2 s^T C s` and :math:`C x + b - \tau e` is zero where x
    is positive, and not negative elsewhere. s and e hold powers of two, or zeros for losses without
    a gradient.
    """
    matrix = sum_of(cosines, ridges)
    column = minus_combination(matrix, sizes)
    squared_mean = minus_combination(jax.tree.map(lambda part: part[None], column), sizes)
    exact = DoubleFloat(c, jnp.zeros_like(c))
    squared_radius = product(
        jax.tree.map(lambda part: part[0], squared_mean), normalized(product(exact, exact))
    )
    table = _bordered(matrix, units, column)
    solve = _over_all_sets if len(sizes) <= 8 else _along_the_path
    return jnp.where(sizes > 0, solve(table, squared_radius), 0.0)


@_conflict_averse.defjvp
def _conflict_averse_jvp(
    primals: tuple[Array, Array, Array, Array, Array],
    tangents: tuple[Array, Array, Array, Array, Array],
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    r"""On the support of x both equations stay true, which says how x and :math:`\tau` change."""
    cosines, ridges, _, units, _ = primals
    x = _conflict_averse(*primals)
    support = (x > 0).astype(x.dtype)

    def equations(
        cosines: Array, ridges: Array, sizes: Array, units: Array, c: Array
    ) -> tuple[Array, Array]:
        products = jnp.sum((cosines + ridges) * x[None, :], axis=1)
        means = jnp.sum((cosines + ridges) * sizes[None, :], axis=1)
        squares = jnp.sum(x * products) - c**2 * jnp.sum(sizes * means)
        return products + means, squares / 2.0

    conditions, length = jax.jvp(equations, primals, tangents)[1]
    matrix = (cosines + ridges) * support[:, None] * support[None, :]
    inverse = inverse_of(matrix + jnp.diag(1.0 - support))
    shift = jnp.sum(inverse * (conditions * support)[None, :], axis=1)
    slope = jnp.sum(inverse * (units * support)[None, :], axis=1)
    total = jnp.sum(x * units)
    change = jnp.sum(x * conditions) - length
    change = change / jnp.where(total > 0, total, 1.0)
    return x, (change * slope - shift) * support


def _bordered(matrix: DoubleFloat, units: Float[Array, " K"], column: DoubleFloat) -> DoubleFloat:
    """The table of C, e and -b, with e and -b as rows too.

    Pivots on a set turn the corner into minus the products of e and b by the inverse of C there.
    """
    exact = DoubleFloat(units, jnp.zeros_like(units))

    def part_of(matrix: Array, units: Array, column: Array) -> Array:
        border = jnp.stack([units, column])
        return jnp.block([[matrix, border.T], [border, jnp.zeros((2, 2), matrix.dtype)]])

    return jax.tree.map(part_of, matrix, exact, column)


def _points(columns: DoubleFloat, squared_radius: DoubleFloat) -> DoubleFloat:
    r"""The x on a set of losses, and by how much the conditions on the others are broken.

    ``columns`` are the last two of the table, after pivots on the set, for any number of sets.
    Both are linear in :math:`\tau`, whose quadratic equation has one root with :math:`e^T x > 0`.
    """
    tau = _level(jax.tree.map(lambda part: part[-2:], columns), squared_radius)
    slopes, offsets = (jax.tree.map(lambda part, j=j: part[:-2, j], columns) for j in (0, 1))
    negative = jax.tree.map(jnp.negative, tau)
    return minus_product(offsets, slopes, jax.tree.map(lambda part: part[None], negative))


def _level(corner: DoubleFloat, squared_radius: DoubleFloat) -> DoubleFloat:
    r""":math:`\tau` from the corner of the table.

    It is what :math:`x^T C x` is least at, and what the rest of the squared radius adds.
    """
    corner = normalized(corner)
    curvature, slope, offset = (
        jax.tree.map(lambda part, i=i, j=j: part[i, j], corner) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    curvature = jax.tree.map(jnp.negative, curvature)
    curvature = select(curvature.high > 0, curvature, (1.0, 0.0))
    lowest = normalized(quotient(slope, curvature))
    least = minus_product(offset, slope, jax.tree.map(jnp.negative, lowest))
    high, low = sum_of(least.high, squared_radius.high)
    rest = normalized(DoubleFloat(high, low + least.low + squared_radius.low))
    high, low = sum_of(lowest.high, (root := square_root(quotient(rest, curvature))).high)
    return normalized(DoubleFloat(high, low + lowest.low + root.low))


def _over_all_sets(table: DoubleFloat, squared_radius: DoubleFloat) -> Float[Array, " K"]:
    """The solution, from those on all sets of losses at once."""
    columns = over_all_sets(table, len(table.high) - 2)
    can_move = columns.high[-2, 0] < 0  # not so the empty set, whose x has no length
    return best_of_all_sets(jnp.where(can_move, rounded(_points(columns, squared_radius)), jnp.inf))


class _Path(NamedTuple):
    r"""Where the path of the solutions for growing :math:`\tau` has come to.

    Attributes:
      table: the table after pivots on the free variables, shape [K + 2, K + 2].
      is_free: whether a variable may differ from zero, shape [K].
      is_done: whether the path ends, at its length, before this set changes.
      step_count: the number of steps so far.
    """

    table: DoubleFloat
    is_free: Bool[Array, " K"]
    is_done: Bool[Array, ""]
    step_count: Int[Array, ""]


def _along_the_path(table: DoubleFloat, squared_radius: DoubleFloat) -> Float[Array, " K"]:
    r"""The solution at the end of a path on which x grows from zero, linear in :math:`\tau`.

    One loss enters or leaves at a time, in about K steps.
    """
    size = len(table.high) - 2
    start = _Path(
        table=table,
        is_free=jnp.zeros(size, dtype=bool),
        is_done=jnp.zeros((), dtype=bool),
        step_count=jnp.zeros((), dtype=jnp.int32),
    )
    limit = 8 * size

    def step(path: _Path) -> _Path:
        corner = jax.tree.map(lambda part: part[-2:, -2:], path.table)
        tau = jnp.where(jnp.any(path.is_free), rounded(_level(corner, squared_radius)), jnp.inf)
        changes = _changes(path)
        index = jnp.argmin(changes)
        is_done = ~(changes[index] < tau)
        flipped = ~is_done & (jnp.arange(size) == index)
        table = exchanged(path.table, index)
        return _Path(
            table=select(is_done, path.table, table),
            is_free=path.is_free ^ flipped,
            is_done=is_done,
            step_count=path.step_count + 1,
        )

    end = jax.lax.while_loop(
        lambda path: ~path.is_done & (path.step_count < limit),
        step,
        spread(start, axes_of((table, squared_radius))),
    )
    columns = jax.tree.map(lambda part: part[:, -2:], end.table)
    points = rounded(_points(columns, squared_radius))
    return jnp.where(end.is_free, jnp.maximum(points, 0.0), 0.0)


def _changes(path: _Path) -> Float[Array, " K"]:
    r"""The :math:`\tau` at which each loss enters or leaves; infinite if it does not."""
    slopes, offsets = (
        normalized(jax.tree.map(lambda part, j=j: part[:-2, j], path.table)) for j in (-2, -1)
    )
    diagonal = rounded(jax.tree.map(jnp.diagonal, path.table))[:-2]
    enters = ~path.is_free & (slopes.high > 0) & is_independent(diagonal)
    changes = enters | (path.is_free & (slopes.high < 0))
    found = rounded(quotient(offsets, select(changes, slopes, (1.0, 0.0))))
    return jnp.where(changes, -found, jnp.inf)
