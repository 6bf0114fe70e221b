"""The point of smallest norm in the convex hull of vectors, from their Gramian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class _Pivoting(NamedTuple):
    """Where the active-set method stands.

    Attributes:
      tableau: shape [K, K + 1]. Of the free variables' rows the last column is the point where
        they are optimal with the others at zero, of the other rows the negative gradient there.
      point: the current point, >= 0, shape [K].
      is_free: whether a variable may differ from zero, shape [K].
      is_done: whether the point is optimal.
      step_count: the number of steps so far.
    """

    tableau: Float[Array, "K columns"]
    point: Float[Array, " K"]
    is_free: Bool[Array, " K"]
    is_done: Bool[Array, ""]
    step_count: Int[Array, ""]


def _exchange(tableau: Float[Array, "K columns"], index: Int[Array, ""]) -> Array:
    """The tableau with one variable freed, or bound again (a Gauss-Jordan exchange)."""
    is_row = (jnp.arange(tableau.shape[0]) == index)[:, None]
    is_column = (jnp.arange(tableau.shape[1]) == index)[None, :]
    pivot = tableau[index, index]
    row, column = tableau[index][None, :] / pivot, tableau[:, index][:, None]
    others = jnp.where(is_column, -column / pivot, tableau - column * row)
    return jnp.where(is_row, jnp.where(is_column, 1.0 / pivot, row), others)


def _pivot(state: _Pivoting, tolerance: float) -> _Pivoting:
    """One step: to the optimum of the free variables, or as far as they stay >= 0."""
    size = state.point.shape[0]
    solution, pivots = state.tableau[:, -1], jnp.diagonal(state.tableau)
    optimum = jnp.where(state.is_free, solution, 0.0)
    # A free variable whose optimum is not positive binds the step and leaves.
    is_short = state.is_free & (optimum <= 0)
    drop = jnp.where(is_short, state.point - optimum, 1.0)
    shares = jnp.where(is_short, state.point / jnp.where(drop > 0, drop, 1.0), jnp.inf)
    leaving, share = jnp.argmin(shares), jnp.minimum(jnp.min(shares), 1.0)
    is_leaving = jnp.any(is_short)
    point = state.point + share * (optimum - state.point)
    point = jnp.where(is_leaving & (jnp.arange(size) == leaving), 0.0, point)
    # If none leaves, the bound variable enters that lowers the objective most.
    can_enter = ~state.is_free & (solution > tolerance) & (pivots > 0)
    gains = jnp.where(can_enter, solution**2 / jnp.where(can_enter, pivots, 1.0), -1.0)
    is_done = ~is_leaving & ~jnp.any(can_enter)
    index = jnp.where(is_leaving, leaving, jnp.argmax(gains))
    is_changed = (jnp.arange(size) == index) & ~is_done
    return _Pivoting(
        tableau=jnp.where(is_done, state.tableau, _exchange(state.tableau, index)),
        point=jnp.where(state.is_free, jnp.maximum(point, 0.0), 0.0),
        is_free=state.is_free ^ is_changed,
        is_done=is_done,
        step_count=state.step_count + 1,
    )


def active_set_weights(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    r"""Minimises :math:`\alpha^T G \alpha` over the simplex of the losses that count.

    With unit gradients :math:`u_k = g_k / n_k`, their Gramian C and
    :math:`c_k = \min_\ell n_\ell / n_k` the minimiser is proportional to
    :math:`c_k y_k`, where :math:`y \ge 0` minimises :math:`y^T C y + (c^T y - 1)^2`: a
    non-negative least squares problem, solved by the active set method of Lawson and Hanson.
    It is free of the simplex' equation and well scaled however much the norms differ.
    """
    size, dtype = gramian.shape[0], gramian.dtype
    precision = float(np.finfo(dtype).eps)
    norms = jnp.sqrt(jnp.diagonal(gramian))
    # A gradient that vanishes is the minimiser: as if it were tiny and orthogonal to the others.
    norms = jnp.where(norms > 0, norms, float(np.finfo(dtype).tiny) ** 0.5)
    smallest = jnp.min(jnp.where(counted, norms, jnp.inf))
    c = jnp.where(counted, smallest / norms, 0.0)
    cosines = jnp.where(jnp.eye(size, dtype=bool), 1.0, gramian / norms[:, None] / norms[None, :])
    pairs = counted[:, None] & counted[None, :]
    hessian = jnp.where(pairs, cosines + c[:, None] * c[None, :], 0.0)
    # The ridge, of the size of the Gramian's own rounding, keeps nearly parallel gradients apart:
    # without it one that would improve the point by far may look dependent on the others.
    ridge = jnp.diag(jnp.where(counted, 64 * precision, 0.0).astype(dtype))
    start = _Pivoting(
        tableau=jnp.concatenate([hessian + ridge, c[:, None]], axis=1),
        point=jnp.zeros_like(c),
        is_free=jnp.zeros_like(counted),
        is_done=jnp.zeros((), dtype=bool),
        step_count=jnp.zeros((), dtype=jnp.int32),
    )
    limit = 4 * size + 8  # each variable enters once, as a rule
    end = jax.lax.while_loop(
        lambda state: ~state.is_done & (state.step_count < limit),
        lambda state: _pivot(state, 16 * precision),
        start,
    )
    # One refinement takes the ridge and the rounding of the exchanges out. Where gradients are
    # nearly dependent it can fail: then the objective has risen by more than its own rounding.
    residual = jnp.where(end.is_free, c - jnp.sum(hessian * end.point[None, :], axis=1), 0.0)
    inverse = jnp.where(end.is_free[:, None] & end.is_free[None, :], end.tableau[:, :-1], 0.0)
    refined = jnp.maximum(end.point + jnp.sum(inverse * residual[None, :], axis=1), 0.0)
    before, after = _shares(c * end.point), _shares(c * refined)
    rise = _squared_norm(after, gramian) - _squared_norm(before, gramian)
    rounding = 16 * precision * jnp.max(jnp.where(counted, jnp.diagonal(gramian), 0.0))
    return jnp.where(rise <= rounding, after, before)


def _squared_norm(alpha: Float[Array, " K"], gramian: Float[Array, "K K"]) -> Float[Array, ""]:
    return jnp.sum(alpha[:, None] * gramian * alpha[None, :])


def _shares(values: Float[Array, " K"]) -> Float[Array, " K"]:
    """The values over their sum, or zeros."""
    total = jnp.sum(values)
    return values / jnp.where(total > 0, total, 1.0)


def two_gradient_weights(
    gramian: Float[Array, "2 2"], counted: Bool[Array, " 2"]
) -> Float[Array, " 2"]:
    r"""The minimiser for K = 2, :math:`\alpha_1 : \alpha_2 = \|g_2\|^2 - p : \|g_1\|^2 - p`.

    p is the inner product; a negative side of the ratio counts as zero.
    """
    distances = jnp.maximum(jnp.diagonal(gramian)[::-1] - gramian[0, 1], 0.0)
    distances = jnp.where(counted, distances, 0.0)
    distances = jnp.where(jnp.sum(distances) > 0, distances, counted.astype(gramian.dtype))
    return _shares(distances)


def frank_wolfe_weights(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"], max_iterations: int
) -> Float[Array, " K"]:
    """The minimiser by Frank-Wolfe with exact line search, from equal weights."""
    gramian = gramian / jnp.maximum(
        jnp.max(jnp.diagonal(gramian)), float(np.finfo(gramian.dtype).tiny)
    )

    def step(
        carry: tuple[Float[Array, " K"], Array, Array],
    ) -> tuple[Float[Array, " K"], Array, Array]:
        alpha, _, count = carry
        products = jnp.sum(gramian * alpha[None, :], axis=1)
        vertex = jnp.argmin(jnp.where(counted, products, jnp.inf))
        here, there, between = jnp.sum(alpha * products), gramian[vertex, vertex], products[vertex]
        slope, curvature = here - between, here + there - 2.0 * between
        length = jnp.clip(slope / jnp.where(curvature > 0, curvature, 1.0), 0.0, 1.0)
        unit = (jnp.arange(alpha.shape[0]) == vertex).astype(alpha.dtype)
        return alpha + length * (unit - alpha), length, count + 1

    start = counted.astype(gramian.dtype) / jnp.maximum(jnp.sum(counted), 1)
    alpha, _, _ = jax.lax.while_loop(
        lambda carry: (carry[1] >= 1e-3) & (carry[2] < max_iterations),
        step,
        (start, jnp.ones((), gramian.dtype), jnp.zeros((), jnp.int32)),
    )
    return alpha
