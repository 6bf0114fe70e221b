"""Checks of the factories' options, which have one message style in common.

They look at all values but those of traced arrays, which are known only when the step runs.
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from softadapt_optax._per_loss import (
    Names,
    at_step,
    by_name,
    check_component_shapes,
    check_position,
    dtype_of,
    has_no_order,
    is_known,
    is_numeric,
    names_of,
    order_of,
    shapes_at_step,
)


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raises unless ``value``, which gives an array its shape, is a Python integer >= a bound."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` should be a Python integer, got {type(value).__name__} {value!r}."
            + _cause_of_array(value)
        )
    if value < at_least:
        raise ValueError(f"`{name}` should be at least {at_least}, got {value}.")


def _cause_of_array(value: Any) -> str:
    """What is said where an option that is static came as an array."""
    if not isinstance(value, jax.Array):
        return ""
    return (
        " It is static. Likely cause: `jax.vmap` or `jax.jit` over it, where a loop over its "
        "values is wanted, or `optax.inject_hyperparams` without it in `static_args`."
    )


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
        raise TypeError(
            f"`{name}` should be True or False, got {type(value).__name__} {value!r}."
            + _cause_of_array(value)
        )


def check_number(
    name: str,
    value: Any,
    *,
    positive: bool = False,
    nonnegative: bool = False,
    below: float = np.inf,
    at_most: float = np.inf,
) -> None:
    """Raises unless ``value`` is a finite number, also as a float32, within the given bounds."""
    is_array = isinstance(value, jax.Array | np.ndarray)
    if is_array and value.shape != ():
        raise ValueError(f"`{name}` should be a scalar, got shape {value.shape}.")
    if not _is_real_array(value) if is_array else not _is_real_number(value):
        raise TypeError(f"`{name}` should be a number, got {type(value).__name__} {value!r}.")
    if not is_known(value):
        return
    rounded = _rounded(value)
    is_low = (positive and rounded <= 0) or (nonnegative and rounded < 0)
    is_high = rounded >= below or rounded > at_most
    if not np.isfinite(rounded) or is_low or is_high:
        bound = " and > 0" if positive else " and >= 0" if nonnegative else ""
        bound += f" and < {below:g}" if np.isfinite(below) else ""
        bound += f" and <= {at_most:g}" if np.isfinite(at_most) else ""
        dtype, cause = (dtype_of(value), _INJECTED) if _is_narrow(value) else (rounded.dtype, "")
        raise ValueError(f"`{name}` should be finite{bound} in {dtype}, got {value}.{cause}")


_INJECTED = (
    " Likely cause: `optax.inject_hyperparams` has rounded it to the dtype of the parameters; give "
    "it another one by its `hyperparam_dtype`."
)


def check_eps(eps: Any) -> None:
    """Raises unless ``eps`` is > 0; what float16 has rounded to 0 is replaced where it is used."""
    check_number("eps", eps, positive=not _is_narrow(eps), nonnegative=True)


def _is_narrow(value: Any) -> bool:
    """Whether it is an array of a floating-point dtype below float32."""
    return isinstance(value, jax.Array) and bool(
        jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4
    )


def _is_real_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_real_array(value: Any) -> bool:
    return is_numeric(value.dtype) and not jnp.issubdtype(value.dtype, jnp.complexfloating)


def check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """Raises unless ``value`` is one of a few."""
    if isinstance(value, jax.Array | np.ndarray) or value not in choices:
        listed = ", ".join(f'"{choice}"' if choice else "None" for choice in choices)
        raise ValueError(
            f"`{name}` should be one of {listed}, got {value!r}." + _cause_of_array(value)
        )


def check_optimizer(name: str, value: Any) -> None:
    """Raises unless ``value`` is an Optax transformation that takes a step from gradients alone."""
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` should be an Optax optimizer, such as `optax.adam(1e-2)`, got "
            f"{type(value).__name__} {value!r}."
        )
    try:
        jax.eval_shape(lambda x: value.update(x, value.init(x), x), jnp.ones(2))
    except TypeError as error:
        raise TypeError(
            f"`{name}` should be an Optax optimizer that needs gradients only, such as "
            f"`optax.adam(1e-2)`: it is given no loss function, as a line search asks for. {error}"
        ) from error


def check_losses(num_losses: Any, **by_loss: PyTree) -> tuple[int, Names | None, bool]:
    """K, the names of the losses, and whether the user has given their order.

    The names are those of the first argument, else those of an option that has some.
    """
    if isinstance(num_losses, str):
        raise TypeError(
            "`num_losses` should be the number of losses or a sequence of their names, got the "
            f"string {num_losses!r}."
        )
    if has_no_order(num_losses) or isinstance(num_losses, Mapping):
        cause = (
            "A set has no order."
            if isinstance(num_losses, set | frozenset)
            else "Remedy: make a list of it."
        )
        raise TypeError(
            "`num_losses` should be an integer, or a list or tuple of names, got "
            f"{type(num_losses).__name__} {num_losses!r}. {cause}"
        )
    options = {
        name: shapes_at_step(values)
        for name, values in by_loss.items()
        if values is not None and not isinstance(values, str)
    }
    given = {name: names for name, option in options.items() if (names := names_of(option))}
    if isinstance(num_losses, Sequence) or (isinstance(num_losses, np.ndarray) and num_losses.ndim):
        names = _checked_names(list(num_losses))
        _check_same_names(names, "the losses", given)
        return len(names), names, True
    check_integer("num_losses", num_losses, at_least=1)
    if not given:
        return int(num_losses), None, False
    first, first_names = next(iter(given.items()))
    _check_same_names(first_names, f"`{first}`", given)
    for name, values in options.items():
        check_position(values, name, first_names, None)
    return int(num_losses), first_names, False


def _check_same_names(wanted: Names, whose: str, given: Mapping[str, Names]) -> None:
    for option, names in given.items():
        order_of(wanted, names, f"The entries of `{option}`", whose)


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
        check_choice("units", units, (None, *_UNIT_WORDS))
        return
    if units is None:
        return
    leaves = jax.tree.leaves(units)
    if any(map(callable, leaves)):
        raise TypeError(
            "`units` should be numbers, or one of the words for losses, got a function. Units take "
            "no schedule; `priorities` do."
        )
    if any(isinstance(leaf, str) and leaf in _UNIT_WORDS for leaf in leaves):
        raise ValueError(
            "`units` should be a number for each loss, or one word for all of them, such as "
            f'"initial", got {units}. A mix of words and numbers is not possible.'
        )
    check_factors("units", units, num_losses, positive=True)


_UNIT_WORDS = ("initial", "current")


def check_factors(name: str, values: PyTree, num_losses: int, *, positive: bool = False) -> None:
    """Raises unless ``values`` are K finite numbers >= 0, or > 0, not all zero, as float32.

    Of functions of the step only the number of their results is looked at.
    """
    shapes = shapes_at_step(values)
    is_scalar = jax.tree_util.all_leaves([shapes]) and np.ndim(shapes) == 0
    if is_scalar and callable(values):
        raise ValueError(
            f"`{name}` should be a number for each loss, got a function that returns the single "
            f"number {at_step(values, 0)} in the first step. Remedy: let it return them all, "
            f"{by_name(['pde'])[:-1]}, ...}}, or put it in the place of one of them."
        )
    if is_scalar and is_numeric(dtype_of(shapes)):
        raise ValueError(
            f"`{name}` should be a number for each loss, got the single number {values}. Likely "
            f"cause: the number of losses in their place; for one loss alone it is [{values}]."
        )
    check_component_shapes(name, shapes, num_losses)
    leaves = [leaf for leaf in jax.tree.leaves(values) if is_known(leaf)]
    known = np.concatenate([np.ravel(_rounded(leaf)) for leaf in [*leaves, []]])
    if not np.all(np.isfinite(known) & (known > 0 if positive else known >= 0)):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"`{name}` should be finite and {bound} in {known.dtype}, got {values}.")
    if known.size == num_losses and not np.any(known > 0):
        raise ValueError(f"`{name}` should not all be zero in {known.dtype}, got {values}.")


def _rounded(value: Any) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(value, dtype=np.float64).astype(jnp.result_type(float))
