"""Checks of the factories' options, which have one message style in common."""

import math
import numbers
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from softadapt_optax._components import as_component_array


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raises unless ``value``, which gives an array its shape, is a Python integer >= a bound."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        cause = (
            " Likely cause: `optax.inject_hyperparams` without it in `static_args`."
            if isinstance(value, jax.Array)
            else ""
        )
        raise TypeError(
            f"`{name}` should be a Python integer, got {type(value).__name__} {value}.{cause}"
        )
    if value < at_least:
        raise ValueError(f"`{name}` should be at least {at_least}, got {value}.")


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """Raises if ``value`` is a Python number that is not finite, or not > 0 if asked.

    An array, traced or not, passes: its value may be known only when the step runs.
    """
    if isinstance(value, jax.Array):
        if value.shape != ():
            raise ValueError(f"`{name}` should be a scalar, got shape {value.shape}.")
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` should be a number, got {type(value).__name__} {value!r}.")
    if not math.isfinite(value) or (positive and value <= 0):
        kind = "finite and > 0" if positive else "finite"
        raise ValueError(f"`{name}` should be {kind}, got {value}.")


def check_factors(name: str, values: PyTree, num_losses: int) -> None:
    """Raises unless ``values`` are K numbers; if none is a JAX array, >= 0 and not all zero."""
    as_component_array(values, name, num_losses)
    leaves = jax.tree.leaves(values)
    if any(isinstance(leaf, jax.Array) for leaf in leaves):
        return
    numbers = np.concatenate([np.ravel(leaf) for leaf in leaves])
    if not np.all(np.isfinite(numbers) & (numbers >= 0)):
        raise ValueError(f"`{name}` should be finite and >= 0, got {values}.")
    if not np.any(numbers > 0):
        raise ValueError(f"`{name}` should not all be zero, got {values}.")
