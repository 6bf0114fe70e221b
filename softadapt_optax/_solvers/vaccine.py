"""Gradients turned towards each other until their cosines are as large as wanted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._reductions import diagonal_of, sum_over

# The largest size of a cosine that is aimed at: of closer ones rounding says too little.
_LARGEST_TARGET = 0.9999


class _Turned(NamedTuple):
    """The turned gradients, in units of the norm of each as it was, shapes [K, K] and [K].

    Attributes:
      coefficients: of the unit gradients.
      products: inner products with the unit gradients.
      squared_norms: their own.
      targets: the cosines to be reached.
    """

    coefficients: Float[Array, "K K"]
    products: Float[Array, "K K"]
    squared_norms: Float[Array, " K"]
    targets: Float[Array, "K K"]


def vaccinated(
    gramian: Float[Array, "K K"],
    orders: Int[Array, "K K"],
    counted: Bool[Array, " K"],
    targets: Float[Array, "K K"],
    beta: ArrayLike,
) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """Weights of the sum of the K turned gradients, and the targets moved by ``beta``.

    Each row meets the others in its own order. Pairs with a gradient of zero stay as they are, and
    so does one that other turns have taken to zero, but for the root of rounding.
    """
    size = len(gramian)
    squared_norms = diagonal_of(gramian)
    has_size = counted & (squared_norms > 0)
    norms = jnp.sqrt(jnp.where(has_size, squared_norms, 1.0))
    pairs = has_size[:, None] & has_size[None, :] & ~np.eye(size, dtype=bool)
    own = jnp.eye(size, dtype=gramian.dtype)
    cosines = jnp.where(pairs, gramian / norms[:, None] / norms[None, :], own)
    rows = jnp.arange(size)
    rate = jnp.asarray(beta, gramian.dtype)

    def turn(turned: _Turned, partner: Int[Array, " K"]) -> tuple[_Turned, None]:
        coefficients, products, squared, targets = turned
        is_partner = partner[:, None] == rows[None, :]
        vanishes = squared <= float(np.finfo(gramian.dtype).eps)
        takes_part = has_size & has_size[partner] & (partner != rows) & ~vanishes
        length = jnp.sqrt(jnp.where(vanishes, 1.0, squared))
        product = products[rows, partner]
        cosine = jnp.clip(product / length, -1.0, 1.0)
        target = jnp.clip(targets[rows, partner], -_LARGEST_TARGET, _LARGEST_TARGET)
        sine = jnp.sqrt(1.0 - target**2)
        share = length * (target * _sine_of(cosine) - cosine * sine) / sine
        share = jnp.where(takes_part & (cosine < target), share, 0.0)
        moved = (1.0 - rate) * targets + rate * cosine[:, None]
        squared = squared + share * (2.0 * product + share)
        return _Turned(
            coefficients + jnp.where(is_partner, share[:, None], 0.0),
            products + share[:, None] * cosines[partner],
            jnp.maximum(squared, 0.0),
            jnp.where(is_partner & takes_part[:, None], moved, targets),
        ), None

    start = _Turned(own, cosines, jnp.ones_like(norms), targets)
    start = spread(start, axes_of((gramian, counted, orders, targets)))
    turned, _ = jax.lax.scan(turn, start, orders.T, unroll=size if size <= 8 else 1)
    ratios = jnp.where(pairs, norms[:, None] / norms[None, :], own)
    weights = sum_over(jnp.where(counted[:, None], turned.coefficients * ratios, 0.0).T)
    return weights, turned.targets


def _sine_of(cosine: Float[Array, " K"]) -> Float[Array, " K"]:
    """With a derivative that is finite at 1 and -1, too."""
    square = (1.0 - cosine) * (1.0 + cosine)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
