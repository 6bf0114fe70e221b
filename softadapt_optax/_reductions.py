"""Reductions of K numbers, written out for small K.

On an accelerator each reduction is a kernel of its own, and what is made of its result another one;
written out it is arithmetic on single numbers, which is compiled into one kernel with what is
around it.
"""

import functools
import operator
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

_MOST_UNROLLED = 16


def sum_over(values: Num[Array, "*rows K"]) -> Num[Array, "*rows"]:
    """The sum over the last axis."""
    return _over(values, operator.add, jnp.sum)


def max_over(values: Float[Array, "*rows K"]) -> Float[Array, "*rows"]:
    """The largest along the last axis."""
    return _over(values, jnp.maximum, jnp.max)


def min_over(values: Float[Array, "*rows K"]) -> Float[Array, "*rows"]:
    """The smallest along the last axis."""
    return _over(values, jnp.minimum, jnp.min)


def all_over(values: Bool[Array, "*rows K"]) -> Bool[Array, "*rows"]:
    """Whether all along the last axis are true."""
    return _over(values, operator.and_, jnp.all)


def diagonal_of(matrix: Float[Array, "K K"]) -> Float[Array, " K"]:
    """As ``jnp.diagonal``, which is a gather with indices that are computed."""
    if len(matrix) > _MOST_UNROLLED:
        return jnp.diagonal(matrix)
    return sum_over(jnp.where(jnp.eye(len(matrix), dtype=bool), matrix, 0.0))


def product_of(a: Float[Array, "K K"], b: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Of two matrices, without a device's lower precision for products."""
    return jnp.sum(a[:, :, None] * b[None, :, :], axis=1)


def _over(values: Array, join: Callable[..., Array], reduce: Callable[..., Array]) -> Array:
    if not 0 < values.shape[-1] <= _MOST_UNROLLED:
        return reduce(values, axis=-1)
    return functools.reduce(join, jnp.unstack(values, axis=-1))
