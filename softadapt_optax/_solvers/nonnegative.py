r"""The minimum of :math:`y^T A y - 2 b^T y` over :math:`y \ge 0`, for small positive definite A.

Both solvers are given the table :math:`(A, b)` in two floats each and pivot on the diagonal of A
(Gauss-Jordan). Pivots on the variables S leave in the last column the minimiser over S, in the rows
of S, and the descent :math:`b - A y` there in the other rows. What makes two floats necessary is
that A may be singular but for the rounding of its entries: then the minimiser is still found to
the accuracy that these entries give.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._solvers.double_float import (
    DoubleFloat,
    minus_product,
    normalized,
    quotient,
    rounded,
    select,
)


def is_independent(pivot: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a variable does not depend on those before it, but for the rounding of A.

    The entries of A are about 1.
    """
    return pivot > float(np.finfo(pivot.dtype).eps) / 8


def by_enumeration(table: DoubleFloat) -> Float[Array, "K columns"]:
    """The minimisers, from those over all 2^K sets of variables at once, without a loop.

    One for each column b that stands behind A.
    """
    size, columns = table.high.shape[0], table.high.shape[1] - table.high.shape[0]
    values = rounded(over_all_sets(table, size, columns))
    return jax.vmap(best_of_all_sets, in_axes=1, out_axes=1)(values)


def over_all_sets(table: DoubleFloat, size: int, num_sides: int = 1) -> DoubleFloat:
    """What pivots on each set of the first K variables leave in the columns behind them.

    One variable after the other is pivoted on in half of the tables, and in the other half it is
    left out. The columns of both are not needed any more, so that all sets together take about
    :math:`K 2^{K+1}` multiplications. The sets are the last axis; the bits of their index say which
    variables are free. A set with a variable that depends on others has -1 in the last column.
    """
    tables = jax.tree.map(lambda part: part[None, :, :, None], table)
    for k in range(size):
        left_out = jax.tree.map(lambda part: part[:, :, 1:], tables)
        # The first sixteen tables lie side by side, for vector instructions, the others apart,
        # where joining them is copying whole blocks.
        axis = 3 if k < 4 else 0
        tables = jax.tree.map(
            lambda *parts, axis=axis: jnp.concatenate(parts, axis),
            left_out,
            _freed(tables, k, num_sides),
        )
    rows, columns = table.high.shape[0], table.high.shape[1] - size
    return jax.tree.map(
        lambda part: jnp.moveaxis(part, 0, 2).reshape(rows, columns, 2**size), tables
    )


def best_of_all_sets(values: Float[Array, "K sets"]) -> Float[Array, " K"]:
    """The optimum, from the free variables and the other variables' descents of each set."""
    size = values.shape[0]
    is_free = np.arange(2**size) >> np.arange(size)[:, None] & 1 == 1
    # Of the sets without a negative variable, the one with the least descent left. (Objectives do
    # not tell: where they differ in the last digit, the points differ in the root of that.)
    descents = jnp.where(is_free, jnp.where(values >= 0, -jnp.inf, jnp.inf), values)
    best = jnp.argmin(jnp.max(descents, axis=0))
    return jnp.where(jnp.asarray(is_free)[:, best], values[:, best], 0.0)


def _freed(tables: DoubleFloat, k: int, num_sides: int) -> DoubleFloat:
    """The tables after a pivot on variable k, whose column is the first and drops out."""
    pivot = normalized(jax.tree.map(lambda part: part[:, k : k + 1, :1], tables))
    row = normalized(jax.tree.map(lambda part: part[:, k : k + 1, 1:], tables))
    column = normalized(jax.tree.map(lambda part: part[:, :, :1], tables))
    others = jax.tree.map(lambda part: part[:, :, 1:], tables)
    can_enter = is_independent(pivot.high)
    # A variable that cannot enter is made negative for good, which rules the set out.
    width = row.high.shape[2]
    ruled_out = -(np.arange(width) >= width - num_sides).astype(row.high.dtype)
    row = select(can_enter, row, (jnp.asarray(ruled_out)[None, None, :, None], 0.0))
    row = quotient(row, select(can_enter, pivot, (1.0, 0.0)))
    is_row = (np.arange(tables.high.shape[1]) == k)[None, :, None, None]
    return select(jnp.asarray(is_row), row, minus_product(others, column, row))


class _Pivoting(NamedTuple):
    """Where the active-set method stands.

    Attributes:
      table: the table after pivots on the free variables, shape [K, K + 1].
      point: the current point, >= 0, shape [K].
      is_free: whether a variable may differ from zero, shape [K].
      is_done: whether the point is optimal.
      step_count: the number of steps so far.
    """

    table: DoubleFloat
    point: Float[Array, " K"]
    is_free: Bool[Array, " K"]
    is_done: Bool[Array, ""]
    step_count: Int[Array, ""]


def by_pivoting(table: DoubleFloat) -> Float[Array, " K"]:
    """The minimiser by the active set method of Lawson and Hanson, in about K steps.

    For one column b, shape [K, K + 1].
    """
    size, dtype = table.high.shape[0], table.high.dtype
    start = _Pivoting(
        table=table,
        point=jnp.zeros(size, dtype),
        is_free=jnp.zeros(size, dtype=bool),
        is_done=jnp.zeros((), dtype=bool),
        step_count=jnp.zeros((), dtype=jnp.int32),
    )
    limit = 8 * size  # the most that was seen is 2.5 * size
    return jax.lax.while_loop(
        lambda state: ~state.is_done & (state.step_count < limit),
        _step,
        spread(start, axes_of(table)),
    ).point


def _step(state: _Pivoting) -> _Pivoting:
    """One step: to the optimum of the free variables, or as far as they stay >= 0."""
    indices = jnp.arange(state.point.shape[0])
    solution = rounded(jax.tree.map(lambda part: part[:, -1], state.table))
    optimum = jnp.where(state.is_free, solution, 0.0)
    # A free variable whose optimum is not positive binds the step and leaves, the first first.
    is_short = state.is_free & (optimum <= 0)
    drop = jnp.where(is_short, state.point - optimum, 1.0)
    shares = jnp.where(is_short, state.point / jnp.where(drop > 0, drop, 1.0), 1.0)
    gains = _gains(state, solution)
    # One minimum finds both: who leaves, or else the bound variable that improves most.
    ranks = jnp.where(is_short, shares - 3.0, -gains)
    index = jnp.argmin(ranks)
    is_leaving, is_done = ranks[index] < -1.0, ranks[index] == 0.0
    share = jnp.where(is_leaving, shares[index], 1.0)
    point = state.point + share * (optimum - state.point)
    stays = state.is_free & ~(is_leaving & (indices == index))
    return _Pivoting(
        table=exchanged(state.table, index),
        point=jnp.where(stays, jnp.maximum(point, 0.0), 0.0),
        is_free=state.is_free ^ (indices == index),
        is_done=is_done,
        step_count=state.step_count + 1,
    )


def _gains(state: _Pivoting, solution: Float[Array, " K"]) -> Float[Array, " K"]:
    """By how much freeing a variable would lower the objective, at most 1; 0 if it would not."""
    diagonal = rounded(jax.tree.map(jnp.diagonal, state.table))
    # The tolerance lies between the rounding of a float and that of two.
    is_ascent = solution > float(np.finfo(solution.dtype).eps) ** 1.5
    can_enter = ~state.is_free & is_ascent & is_independent(diagonal)
    gains = solution**2 / jnp.where(can_enter, diagonal, 1.0)
    return jnp.where(can_enter, jnp.minimum(gains, 1.0), 0.0)


def exchanged(table: DoubleFloat, index: Int[Array, ""]) -> DoubleFloat:
    """The table with one variable freed, or bound again (a Gauss-Jordan exchange).

    Rows below those of A take part: what they become are their products with the solution.
    """
    row = normalized(jax.tree.map(lambda part: part[index][None, :], table))
    column = normalized(jax.tree.map(lambda part: part[:, index][:, None], table))
    pivot = normalized(jax.tree.map(lambda part: part[index, index], table))
    is_row = (jnp.arange(table.high.shape[0]) == index)[:, None]
    is_column = (jnp.arange(table.high.shape[1]) == index)[None, :]
    pivot = select(pivot.high != 0, pivot, (1.0, 0.0))
    row = quotient(select(~is_column, row, (1.0, 0.0)), pivot)
    others = minus_product(select(~is_column, table, (0.0, 0.0)), column, row)
    return select(is_row, row, others)
