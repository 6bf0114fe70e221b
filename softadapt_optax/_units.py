"""The units in which a method sees the losses."""

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from softadapt_optax._per_loss import Names, ordered_array
from softadapt_optax._state import BalanceState, Observation

Units: TypeAlias = PyTree[Any] | None  # K numbers, or the words "initial" and "current"


def are_losses(units: Units) -> bool:
    """Whether the units are losses, which have to be remembered."""
    return isinstance(units, str)


def new_unit_losses(units: Units, state: BalanceState, seen: Observation) -> PyTree:
    """The losses that are units after this step. A loss that is 0 is none."""
    if not are_losses(units):
        return ()
    sizes = jnp.abs(seen.losses)
    if units == "initial":
        is_set = (state.loss_records[1] > 0) & (state.unit_losses > 0)
        sizes = jnp.where(is_set, state.unit_losses, sizes)
    is_looked_at = seen.is_new & seen.is_looked_at & (sizes > 0)
    return jnp.where(is_looked_at, sizes, state.unit_losses)


def units_of(
    units: Units, unit_losses: PyTree, num_losses: int, names: Names | None
) -> Float[Array, " K"] | None:
    """The units, each a positive number whose inverse, and its square, are finite.

    A loss of 0 is none yet and counts as 1. A number that is not positive, which is known of a
    traced one only here, gives NaN, so that nothing goes on with another unit than was asked for.
    """
    if units is None:
        return None
    if are_losses(units):
        sizes, otherwise = unit_losses, 1.0
    else:
        sizes, otherwise = ordered_array(units, "units", num_losses, names), jnp.nan
    smallest = float(np.finfo(sizes.dtype).tiny) ** 0.5
    return jnp.where(sizes > 0, jnp.maximum(sizes, smallest), otherwise)
