"""Checks of the factories' options, which have one message style in common.

They look at Python and NumPy values. JAX arrays pass, traced or not: what is in them may be known
only when the step runs, and looking would wait for the device.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from softadapt_optax._per_loss import (
    Names,
    check_component_shapes,
    check_position,
    names_of,
    shapes_at_step,
)


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
    name: str,
    value: Any,
    *,
    positive: bool = False,
    nonnegative: bool = False,
    below: float = np.inf,
) -> None:
    """Raises unless ``value`` is a finite number, also as a float32, within the given bounds."""
    if isinstance(value, jax.Array | np.ndarray) and value.shape != ():
        raise ValueError(f"`{name}` should be a scalar, got shape {value.shape}.")
    if isinstance(value, jax.Array):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.ndarray):
        raise TypeError(f"`{name}` should be a number, got {type(value).__name__} {value!r}.")
    rounded = _rounded(value)
    is_low = (positive and rounded <= 0) or (nonnegative and rounded < 0)
    if not np.isfinite(rounded) or is_low or rounded >= below:
        bound = " and > 0" if positive else " and >= 0" if nonnegative else ""
        bound += f" and < {below:g}" if np.isfinite(below) else ""
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


def check_losses(num_losses: Any, **by_loss: PyTree) -> tuple[int, Names | None, bool]:
    """K, the names of the losses, and whether the user has given their order.

    The names are those of the first argument, else those of an option that has some.
    """
    if isinstance(num_losses, str):
        raise TypeError(
            "`num_losses` should be the number of losses or a sequence of their names, got the "
            f"string {num_losses!r}."
        )
    options = {
        name: shapes_at_step(values)
        for name, values in by_loss.items()
        if values is not None and not isinstance(values, str)
    }
    if isinstance(num_losses, Sequence | np.ndarray):
        return len(num_losses), _checked_names(list(num_losses)), True
    check_integer("num_losses", num_losses, at_least=1)
    names = next((n for n in map(names_of, options.values()) if n is not None), None)
    for name, values in options.items():
        check_position(values, name, names, None)
    return int(num_losses), names, False


def size_of(num_losses: Any) -> int:
    """K, of a number or of names."""
    return check_losses(num_losses)[0]


def _checked_names(names: Sequence[Any]) -> Names:
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "`num_losses` should be the number of losses or a sequence of their names, which are "
            f"strings, got {names!r}."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"The names of the losses should differ, got {list(names)}.")
    return tuple(names)


def check_units(units: Any, num_losses: int) -> None:
    """Raises unless ``units`` are K positive numbers or one of the words for losses."""
    if isinstance(units, str):
        check_choice("units", units, (None, "initial", "current"))
    elif units is not None:
        check_factors("units", units, num_losses, positive=True)


def check_factors(name: str, values: PyTree, num_losses: int, *, positive: bool = False) -> None:
    """Raises unless ``values`` are K finite numbers >= 0, or > 0, not all zero, as float32.

    Of functions of the step only the number of their results is looked at.
    """
    shapes = shapes_at_step(values)
    if jax.tree_util.all_leaves([shapes]) and np.ndim(shapes) == 0 and not isinstance(shapes, str):
        raise ValueError(
            f"`{name}` should be a number for each loss, got the single number {values}. Likely "
            f"cause: the number of losses in their place; for one loss alone it is [{values}]."
        )
    check_component_shapes(name, shapes, num_losses)
    leaves = [
        leaf
        for leaf in jax.tree.leaves(values)
        if not isinstance(leaf, jax.Array) and not callable(leaf)
    ]
    known = np.concatenate([np.ravel(_rounded(leaf)) for leaf in [*leaves, []]])
    if not np.all(np.isfinite(known) & (known > 0 if positive else known >= 0)):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"`{name}` should be finite and {bound} in {known.dtype}, got {values}.")
    if known.size == num_losses and not np.any(known > 0):
        raise ValueError(f"`{name}` should not all be zero in {known.dtype}, got {values}.")


def _rounded(value: Any) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(value, dtype=np.float64).astype(jnp.result_type(float))
