"""Sums and products in two floats, which carry twice the digits of one.

A number is ``high + low``, where low is of the size of high's rounding, or larger where high has
cancelled. Compilers may contract a product and a sum into one operation, which rounds once (XLA's
do, on CPUs and GPUs), and differently in each place where a value is needed. What is done here
comes out the same with and without: products that enter a sum whose rounding matters are of halves
of floats, and so exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class DoubleFloat(NamedTuple):
    """The number ``high + low``.

    Attributes:
      high: the float nearest to it, but for a few units in the last place, or for cancellation.
      low: what it differs from the number.
    """

    high: Float[Array, "..."]
    low: Float[Array, "..."]


def rounded(number: DoubleFloat) -> Float[Array, "..."]:
    """The float nearest to a number."""
    return number.high + number.low


def normalized(number: DoubleFloat) -> DoubleFloat:
    """The same number with its nearest float as high."""
    high = rounded(number)
    return DoubleFloat(high, number.low - (high - number.high))


def select(
    mask: Bool[Array, "..."],
    number: DoubleFloat,
    other: DoubleFloat | tuple[Array | float, float],
) -> DoubleFloat:
    """The number where the mask is true, the other elsewhere."""
    return DoubleFloat(*(jnp.where(mask, *parts) for parts in zip(number, other, strict=True)))


def sum_of(a: Float[Array, "..."], b: Float[Array, "..."]) -> DoubleFloat:
    """The exact sum of two floats (Knuth's two-sum)."""
    high = a + b
    share = high - a
    return DoubleFloat(high, (a - (high - share)) + (b - share))


def truncated(number: Float[Array, "..."], count: int) -> Float[Array, "..."]:
    """The float without its last binary digits."""
    bits = np.dtype(f"uint{8 * number.dtype.itemsize}")
    mask = bits.type(np.iinfo(bits).max - (2**count - 1))
    masked = jax.lax.bitcast_convert_type(number, bits) & mask
    return jax.lax.bitcast_convert_type(masked, number.dtype)


def halves(number: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Two floats of half the digits that add up to one; the product of two such is exact.

    Veltkamp's splitting, which multiplies, would fail where it is contracted.
    """
    upper = truncated(number, (np.finfo(number.dtype).nmant + 2) // 2)
    return upper, number - upper


def minus_product(number: DoubleFloat, a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """``number - a * b``, but for the square of a float's relative rounding."""
    (a_upper, a_lower), (b_upper, b_lower) = halves(a.high), halves(b.high)
    first, second, third = a_upper * b_upper, a_upper * b_lower, a_lower * b_upper
    product = (first + second) + third
    error = (((first - product) + second) + third) + a_lower * b_lower
    rest = a.high * b.low + a.low * (b.high + b.low)
    high, low = sum_of(number.high, -product)
    return DoubleFloat(high, (low + number.low) - (error + rest))


def quotient(number: DoubleFloat, divisor: DoubleFloat) -> DoubleFloat:
    """``number / divisor``, just as accurate; the divisor should be normalized."""
    # XLA may turn the quotient into a product with an inverse. Without its last digit it is none
    # that could be contracted; what is missing is in the remainder.
    high = truncated(number.high / divisor.high, 1)
    remainder = minus_product(number, DoubleFloat(high, jnp.zeros_like(high)), divisor)
    return DoubleFloat(high, rounded(remainder) / divisor.high)


def product(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    """``a * b``, but for the square of a float's relative rounding."""
    zero = jnp.zeros_like(a.high * b.high)
    return minus_product(DoubleFloat(zero, zero), DoubleFloat(-a.high, -a.low), b)


def square_root(number: DoubleFloat) -> DoubleFloat:
    """The root of a number, just as accurate; that of one that is not positive is zero."""
    is_positive = rounded(number) > 0
    number = select(is_positive, number, (1.0, 0.0))
    root = jnp.sqrt(rounded(number))
    exact = DoubleFloat(root, jnp.zeros_like(root))
    rest = rounded(minus_product(number, exact, exact)) / (2.0 * root)
    return select(is_positive, normalized(DoubleFloat(root, rest)), (0.0, 0.0))


def minus_combination(matrix: DoubleFloat, powers: Float[Array, " K"]) -> DoubleFloat:
    """Minus the product of a matrix and a vector of powers of two and zeros."""
    total = jnp.zeros_like(matrix.high[:, 0])
    vector = DoubleFloat(total, total)
    for k in range(len(powers)):  # in two floats, as the sum of what cancels may be small
        high, low = sum_of(vector.high, -matrix.high[:, k] * powers[k])
        vector = DoubleFloat(high, low + vector.low - matrix.low[:, k] * powers[k])
    return vector


def total(number: DoubleFloat) -> DoubleFloat:
    """The sum over the last axis, in pairs."""
    while (size := number.high.shape[-1]) > 1:
        half = (size + 1) // 2
        widths = [(0, 0)] * (number.high.ndim - 1) + [(0, 2 * half - size)]
        number = jax.tree.map(lambda part, widths=widths: jnp.pad(part, widths), number)
        first, second = (
            jax.tree.map(lambda part, at=at: part[..., at], number)
            for at in (slice(half), slice(half, None))
        )
        high, low = sum_of(first.high, second.high)
        number = DoubleFloat(high, low + first.low + second.low)
    return jax.tree.map(lambda part: part[..., 0], number)
