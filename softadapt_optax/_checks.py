"""Checks of the factories' options, which have one message style in common.

They look at Python and NumPy values. JAX arrays pass, traced or not: what is in them may be known
only when the step runs, and looking would wait for the device.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from softadapt_optax._per_loss import as_component_array


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raises unless ``value``, which gives an array its shape, is a Python integer >= a bound."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        cause = (
            " Likely cause: `optax.inject_hyperparams` without it in `static_args`."
            if isinstance(value, jax.Array)
            else ""
        )
        raise TypeError(
            f"`{name}` should be a Python integer, got {type(value).__name__} {value!r}.{cause}"
        )
    if value < at_least:
        raise ValueError(f"`{name}` should be at least {at_least}, got {value}.")


def check_seed(name: str, value: Any) -> None:
    """Raises unless ``value`` is an integer, which may be a JAX array."""
    is_array = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer)
    if not (is_array and value.shape == ()) and (
        isinstance(value, bool) or not isinstance(value, numbers.Integral)
    ):
        raise TypeError(
            f"`{name}` should be an integer, got {type(value).__name__} {value!r}. Random keys are "
            "made from it."
        )


def check_flag(name: str, value: Any) -> None:
    """Raises unless ``value`` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` should be True or False, got {type(value).__name__} {value!r}.")


def check_number(
    name: str, value: Any, *, positive: bool = False, nonnegative: bool = False
) -> None:
    """Raises unless ``value`` is a finite number, and > 0 or >= 0 if asked, also as a float32."""
    if isinstance(value, jax.Array | np.ndarray) and value.shape != ():
        raise ValueError(f"`{name}` should be a scalar, got shape {value.shape}.")
    if isinstance(value, jax.Array):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.ndarray):
        raise TypeError(f"`{name}` should be a number, got {type(value).__name__} {value!r}.")
    rounded = _rounded(value)
    is_low = (positive and rounded <= 0) or (nonnegative and rounded < 0)
    if not np.isfinite(rounded) or is_low:
        bound = " and > 0" if positive else " and >= 0" if nonnegative else ""
        raise ValueError(f"`{name}` should be finite{bound} in {rounded.dtype}, got {value}.")


def check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """Raises unless ``value`` is one of a few."""
    if value not in choices:
        listed = ", ".join(f'"{choice}"' if choice else "None" for choice in choices)
        raise ValueError(f"`{name}` should be one of {listed}, got {value!r}.")


def check_optimizer(name: str, value: Any) -> None:
    """Raises unless ``value`` is an Optax transformation."""
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` should be an Optax optimizer, such as `optax.adam(1e-2)`, got "
            f"{type(value).__name__} {value!r}."
        )


def check_factors(name: str, values: PyTree, num_losses: int, *, positive: bool = False) -> None:
    """Raises unless ``values`` are K finite numbers >= 0, or > 0, not all zero, as float32."""
    as_component_array(values, name, num_losses)
    leaves = [leaf for leaf in jax.tree.leaves(values) if not isinstance(leaf, jax.Array)]
    known = np.concatenate([np.ravel(_rounded(leaf)) for leaf in [*leaves, []]])
    if not np.all(np.isfinite(known) & (known > 0 if positive else known >= 0)):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"`{name}` should be finite and {bound} in {known.dtype}, got {values}.")
    if known.size == num_losses and not np.any(known > 0):
        raise ValueError(f"`{name}` should not all be zero in {known.dtype}, got {values}.")


def _rounded(value: Any) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(value, dtype=np.float64).astype(jnp.result_type(float))
