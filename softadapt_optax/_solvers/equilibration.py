"""A Gramian in units in which all gradients are about one long."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from softadapt_optax._reductions import diagonal_of
from softadapt_optax._solvers.matrices import root_powers


class Equilibrated(NamedTuple):
    """A Gramian in units of powers of two, which leave its entries as exact as they are.

    Attributes:
      cosines: the Gramian of the gradients over the scales, with ones on the diagonal for
        gradients without size.
      ridges: what a ridge adds to it.
      scales: the largest powers of two that are not above the norms; 1 without size.
      has_size: which losses count and have a gradient whose squared norm keeps its digits.
    """

    cosines: Float[Array, "K K"]
    ridges: Float[Array, "K K"]
    scales: Float[Array, " K"]
    has_size: Bool[Array, " K"]


def equilibrated(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"], ridge: ArrayLike
) -> Equilibrated:
    """The Gramian in units of the norms; the ridge is relative to each squared norm."""
    squared_norms = jax.lax.stop_gradient(diagonal_of(gramian))
    has_size = counted & (squared_norms >= float(np.finfo(gramian.dtype).tiny))
    scales, inverse = root_powers(jnp.where(has_size, squared_norms, 1.0))
    pairs = has_size[:, None] & has_size[None, :]
    cosines = jnp.where(pairs, gramian, 0.0) * inverse[:, None] * inverse[None, :]
    is_diagonal = jnp.eye(len(gramian), dtype=bool)
    cosines = jnp.where(is_diagonal & ~has_size[:, None], 1.0, cosines)
    ridges = jnp.where(is_diagonal & pairs, jnp.asarray(ridge, cosines.dtype) * cosines, 0.0)
    return Equilibrated(cosines, ridges, scales, has_size)
