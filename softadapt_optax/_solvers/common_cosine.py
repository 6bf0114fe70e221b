"""The direction that has the same cosine with all gradients, from their Gramian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._reductions import diagonal_of, min_over, product_of
from softadapt_optax._solvers.double_float import (
    DoubleFloat,
    minus_product,
    rounded,
    select,
    sum_of,
)
from softadapt_optax._solvers.equilibration import equilibrated
from softadapt_optax._solvers.nonnegative import exchanged, is_independent


class CommonCosine(NamedTuple):
    r"""The solution of :math:`(C + \varepsilon I) \, a = 1`, C the cosines of the gradients.

    Attributes:
      weights: :math:`s \, a_k / \|g_k\|`, shape [K]; zero for gradients of zero and for losses that
        do not count.
      weights_sum: their sum.
      total: the sum of a, > 0, or 0 if there is no gradient.
      scale: s, the largest power of two that is not above any norm; infinite without a gradient.
    """

    weights: Float[Array, " K"]
    weights_sum: Float[Array, ""]
    total: Float[Array, ""]
    scale: Float[Array, ""]


def common_cosine(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"], ridge: ArrayLike
) -> CommonCosine:
    r"""Weights of which :math:`\sum_k w_k g_k` has the same cosine with all gradients.

    But for the ridge, which is relative to each squared norm. Sums are those of two floats, as
    their terms may cancel.
    """
    cosines, ridges, scales, has_size = equilibrated(gramian, counted, ridge)
    scale = min_over(jnp.where(has_size, scales, jnp.inf))
    shares = jnp.where(has_size, scale / scales, 0.0)
    found = _solved(cosines, ridges, shares)
    return CommonCosine(shares * found.point, found.shares_sum, found.norms_sum, scale)


class _Solution(NamedTuple):
    r"""Of :math:`(C + R) \, y = n`, :math:`n_k` the root of :math:`C_{kk}`, or 0 for shares of 0.

    Attributes:
      point: y, shape [K].
      shares_sum: the sum of y times the shares.
      norms_sum: the sum of y times n.
      inverse: of :math:`C + R`, with zeros for what is left out, shape [K, K].
    """

    point: Float[Array, " K"]
    shares_sum: Float[Array, ""]
    norms_sum: Float[Array, ""]
    inverse: Float[Array, "K K"]


@jax.custom_jvp
def _solved(
    cosines: Float[Array, "K K"], ridges: Float[Array, "K K"], shares: Float[Array, " K"]
) -> _Solution:
    """The solution by pivots on the diagonal; the shares are powers of two, or 0."""
    size, has_size = len(shares), shares > 0
    norms = select(has_size, _root_of(diagonal_of(cosines)), (0.0, 0.0))
    exact_shares = DoubleFloat(shares, jnp.zeros_like(shares))
    table = jax.tree.map(_bordered, sum_of(cosines, ridges), norms, exact_shares)

    def enter(
        index: Int[Array, ""], carry: tuple[DoubleFloat, Bool[Array, " K"]]
    ) -> tuple[DoubleFloat, Bool[Array, " K"]]:
        table, is_free = carry
        # A gradient that depends on those before it is left out: that happens without a ridge.
        can_enter = is_independent(table.high[index, index])
        is_index = jnp.arange(size) == index
        return select(can_enter, exchanged(table, index), table), is_free | (is_index & can_enter)

    start = (table, jnp.zeros_like(has_size))
    start = spread(start, axes_of((cosines, ridges, shares)))
    table, is_free = jax.lax.fori_loop(0, size, enter, start, unroll=size <= 8)
    values = rounded(table)
    is_free_pair = is_free[:, None] & is_free[None, :]
    return _Solution(
        point=jnp.where(is_free, values[:size, size], 0.0),
        shares_sum=-values[size, size],
        norms_sum=-values[size + 1, size],
        inverse=jnp.where(is_free_pair, values[:size, :size], 0.0),
    )


@_solved.defjvp
def _solved_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[_Solution, _Solution]:
    """From the derivatives of the equation."""
    cosines, _, shares = primals
    has_size = shares > 0
    found = _solved(*primals)
    change = tangents[0] + tangents[1]
    roots = jnp.sqrt(diagonal_of(cosines))
    norms = jnp.where(has_size, roots, 0.0)
    norms_change = jnp.where(has_size, 0.5 * diagonal_of(tangents[0]) / roots, 0.0)
    residual = norms_change - jnp.sum(change * found.point[None, :], axis=1)
    point_change = jnp.sum(found.inverse * residual[None, :], axis=1)
    shares_sum = jnp.sum(shares * point_change) + jnp.sum(tangents[2] * found.point)
    norms_sum = jnp.sum(norms * point_change) + jnp.sum(norms_change * found.point)
    inverse = -product_of(product_of(found.inverse, change), found.inverse)
    return found, _Solution(point_change, shares_sum, norms_sum, inverse)


def _bordered(
    matrix: Float[Array, "K K"], norms: Float[Array, " K"], shares: Float[Array, " K"]
) -> Float[Array, "rows columns"]:
    """The matrix beside the norms, above rows that are to be multiplied with the solution."""
    rows = jnp.concatenate([matrix, shares[None], norms[None]])
    return jnp.concatenate([rows, jnp.pad(norms, (0, 2))[:, None]], axis=1)


def _root_of(squares: Float[Array, " K"]) -> DoubleFloat:
    """The roots of positive numbers, by a step of Newton's method on those of floats."""
    root = jnp.sqrt(squares)
    exact, squared = (DoubleFloat(part, jnp.zeros_like(part)) for part in (root, squares))
    return DoubleFloat(root, rounded(minus_product(squared, exact, exact)) / (2.0 * root))
