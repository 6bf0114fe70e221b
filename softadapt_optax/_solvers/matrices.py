"""What several solvers ask of small matrices: an inverse, and scales that are powers of two."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def inverse_of(matrix: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """The inverse of a positive definite matrix, finite also where it is singular."""
    size = matrix.shape[0]
    indices = jnp.arange(size)
    floor = float(np.finfo(matrix.dtype).eps)

    def exchange(index: Int[Array, ""] | int, matrix: Float[Array, "K K"]) -> Float[Array, "K K"]:
        is_row, is_column = (indices == index)[:, None], (indices == index)[None, :]
        pivot = jnp.maximum(matrix[index, index], floor)
        row = jnp.where(is_column, 1.0, matrix[index][None, :]) / pivot
        others = jnp.where(is_column, 0.0, matrix) - matrix[:, index][:, None] * row
        return jnp.where(is_row, row, others)

    return jax.lax.fori_loop(0, size, exchange, matrix, unroll=size <= 8)


def root_powers(
    squares: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The largest powers of two that are not above the roots of positive numbers, and 1 over them.

    Found by halving exponents: on a CPU roots and quotients of so few numbers cost more.
    """
    info = np.finfo(squares.dtype)
    bits, digits, bias = np.dtype(f"uint{info.bits}"), info.nmant, info.maxexp - 1
    exponents = ((jax.lax.bitcast_convert_type(squares, bits) >> digits) + bias) >> 1
    power = jax.lax.bitcast_convert_type(exponents << digits, squares.dtype)
    inverse = jax.lax.bitcast_convert_type((2 * bias - exponents) << digits, squares.dtype)
    return power, inverse
