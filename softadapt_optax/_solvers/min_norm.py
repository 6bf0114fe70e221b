"""The point of smallest norm in the convex hull of vectors, from their Gramian."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._reductions import diagonal_of, max_over, min_over, sum_over
from softadapt_optax._solvers.double_float import sum_of
from softadapt_optax._solvers.matrices import inverse_of, root_powers
from softadapt_optax._solvers.nonnegative import by_enumeration, by_pivoting


def min_norm_weights(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    r"""Minimises :math:`\alpha^T G \alpha` over the simplex of the losses that count.

    If one of their gradients is zero, so is the point: the weights are equal on those that are.
    If none counts, the weights are zeros. They can be differentiated in the Gramian any number of
    times, forwards and backwards, where the minimiser is unique and no weight just about to
    become positive; elsewhere the derivative is one-sided, and finite.
    """
    if gramian.shape[0] == 2:
        return two_gradient_weights(gramian, counted)
    return least_squares_weights(gramian, counted)


def two_gradient_weights(
    gramian: Float[Array, "2 2"], counted: Bool[Array, " 2"]
) -> Float[Array, " 2"]:
    r"""The minimiser for K = 2, :math:`\alpha_1 : \alpha_2 = \|g_2\|^2 - p : \|g_1\|^2 - p`.

    p is the inner product; a negative side of the ratio counts as zero.
    """
    gramian = jnp.where(counted[:, None] & counted[None, :], gramian, 0.0)
    largest = jax.lax.stop_gradient(max_over(diagonal_of(gramian)))
    is_normal = largest >= float(np.finfo(gramian.dtype).tiny)
    _, inverse = root_powers(jnp.where(is_normal, largest, 1.0))
    gramian = gramian * inverse * inverse
    distances = jnp.maximum(diagonal_of(gramian)[::-1] - gramian[0, 1], 0.0)
    distances = jnp.where(counted, distances, 0.0)
    distances = jnp.where(sum_over(distances) > 0, distances, counted.astype(gramian.dtype))
    return _shares(distances)


def least_squares_weights(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    r"""The minimiser for any K.

    With :math:`u_k = g_k / s_k`, where :math:`s_k` is the power of two just below the norm of
    :math:`g_k`, their Gramian C and :math:`c_k = \min_\ell s_\ell / s_k` it is proportional to
    :math:`c_k y_k`, where :math:`y \ge 0` minimises :math:`y^T C y + (c^T y - 1)^2`. That is free
    of the simplex' equation, well scaled however much the norms differ, and C and c are exact.
    """
    size, tiny = gramian.shape[0], float(np.finfo(gramian.dtype).tiny)
    # A gradient that vanishes is the minimiser: as if it were tiny and orthogonal to the others.
    gramian = jnp.where(jnp.eye(size, dtype=bool), jnp.maximum(gramian, tiny), gramian)
    squared_norms = jax.lax.stop_gradient(diagonal_of(gramian))
    scales, inverse = root_powers(jnp.where(counted, squared_norms, 1.0))
    smallest = min_over(jnp.where(counted, scales, jnp.inf))
    c = jnp.where(counted, smallest * inverse, 0.0)
    pairs = counted[:, None] & counted[None, :]
    cosines = jnp.where(pairs, gramian, 0.0) * inverse[:, None] * inverse[None, :]
    return _shares(c * _least_squares(cosines, c))


@jax.custom_jvp
def _least_squares(cosines: Float[Array, "K K"], c: Float[Array, " K"]) -> Float[Array, " K"]:
    r"""The y >= 0 that minimises :math:`y^T C y + (c^T y - 1)^2`; c holds powers of two."""
    # The matrix C + c c^T beside c is C beside zeros plus c (c, 1)^T.
    row = jnp.pad(c, (0, 1), constant_values=1.0)
    table = sum_of(jnp.pad(cosines, ((0, 0), (0, 1))), c[:, None] * row[None, :])
    return by_enumeration(table)[:, 0] if c.shape[0] <= 8 else by_pivoting(table)


@_least_squares.defjvp
def _least_squares_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """On the support of y, C y + c (c^T y - 1) stays zero, which says how y changes."""
    y = _least_squares(*primals)
    support = (y > 0).astype(y.dtype)

    def gradient(cosines: Float[Array, "K K"], c: Float[Array, " K"]) -> Float[Array, " K"]:
        return jnp.sum(cosines * y[None, :], axis=1) + c * (jnp.sum(c * y) - 1.0)

    change = jax.jvp(gradient, primals, tangents)[1] * support
    cosines, c = primals
    matrix = (cosines + c[:, None] * c[None, :]) * support[:, None] * support[None, :]
    inverse = inverse_of(matrix + jnp.diag(1.0 - support))
    return y, -jnp.sum(inverse * change[None, :], axis=1) * support


def _shares(values: Float[Array, " K"]) -> Float[Array, " K"]:
    """The values over their sum, or zeros."""
    total = sum_over(values)
    return values / jnp.where(total > 0, total, 1.0)


def frank_wolfe_weights(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"], max_iterations: int
) -> Float[Array, " K"]:
    """The minimiser by Frank-Wolfe with exact line search, from equal weights."""
    gramian = gramian / jnp.maximum(
        max_over(diagonal_of(gramian)), float(np.finfo(gramian.dtype).tiny)
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

    start = _shares(counted.astype(gramian.dtype))
    first = (start, jnp.ones((), gramian.dtype), jnp.zeros((), jnp.int32))
    alpha, _, _ = jax.lax.while_loop(
        lambda carry: (carry[1] >= 1e-3) & (carry[2] < max_iterations),
        step,
        spread(first, axes_of((gramian, counted))),
    )
    return alpha
