"""What a loss function is given and what it returns, checked."""

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from softadapt_optax._per_loss import dtype_of, is_numeric


def positions_of(argnums: Any, num_args: int) -> list[int]:
    """``argnums`` as distinct positions from 0 on."""
    if not isinstance(argnums, Sequence) or not all(
        isinstance(argnum, numbers.Integral) for argnum in argnums
    ):
        raise TypeError(f"`argnums` should be an integer or a sequence of them, got {argnums!r}.")
    positions = [int(argnum) + (num_args if argnum < 0 else 0) for argnum in argnums]
    if (
        not positions
        or len(set(positions)) < len(positions)
        or not (all(0 <= position < num_args for position in positions))
    ):
        raise ValueError(
            "`argnums` should name different positional arguments of the loss function, got "
            f"{argnums} for {num_args} of them; those passed by keyword do not count."
        )
    return positions


def check_pair(output: Any) -> tuple[PyTree, Any]:
    if not isinstance(output, tuple) or len(output) != 2:
        raise TypeError(
            "With `has_aux=True` the loss function should return a pair (losses, aux), got "
            f"{_kind_of(output)}."
        )
    return output


def _kind_of(output: Any) -> str:
    if isinstance(output, jax.Array):
        return f"an array of shape {output.shape}"
    return f"a tuple of {len(output)}" if isinstance(output, tuple) else type(output).__name__


def split_trained(
    tree: PyTree,
) -> tuple[list[Array], list[Any], Callable[[Iterable[Any], Iterable[Any]], PyTree]]:
    """The floating-point leaves, the other leaves, and the way back."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    dtypes = [dtype_of(leaf) for _, leaf in paths]
    for (path, _), dtype in zip(paths, dtypes, strict=True):
        if not is_numeric(dtype):
            raise TypeError(
                f"The differentiated arguments should hold numbers, got {dtype} at "
                f"{jax.tree_util.keystr(path)}. Likely cause: random keys or functions beside "
                "the parameters; pass the parameters alone (`equinox.partition(model, "
                "equinox.is_inexact_array)`), or, for a Flax NNX module, use "
                "`softadapt_optax.flax.value_and_component_grads`."
            )
    is_trained = [jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes]
    if not any(is_trained):
        raise TypeError(
            "The differentiated arguments should have a floating-point leaf, got dtypes "
            f"{[str(dtype) for dtype in dtypes]}. Likely cause: `argnums` points at the data "
            "instead of the parameters."
        )

    def rebuild(trained: Iterable[Any], untrained: Iterable[Any]) -> PyTree:
        sources = {True: iter(trained), False: iter(untrained)}
        return jax.tree.unflatten(treedef, [next(sources[flag]) for flag in is_trained])

    leaves = [leaf for _, leaf in paths]
    trained = [jnp.asarray(leaf) for leaf, flag in zip(leaves, is_trained, strict=True) if flag]
    untrained = [leaf for leaf, flag in zip(leaves, is_trained, strict=True) if not flag]
    return trained, untrained, rebuild


def as_scalars(losses: PyTree) -> list[Array]:
    """The K losses, checked, each one apart: stacked they would hide which of them is zero."""
    paths, _ = jax.tree_util.tree_flatten_with_path(losses)
    if not paths:
        raise ValueError(f"The loss function should return at least one loss, got {losses}.")
    for path, leaf in paths:
        _check_loss(leaf, path)
    leaves = [jnp.asarray(leaf) for _, leaf in paths]
    return list(jnp.unstack(leaves[0])) if leaves[0].ndim else leaves


def _check_loss(loss: Any, path: Sequence[Any]) -> None:
    """Raises unless a loss is a real floating-point scalar, or all of them an array [K]."""
    where = jax.tree_util.keystr(tuple(path)) or "the output"
    shape, dtype = np.shape(loss), dtype_of(loss)
    if not is_numeric(dtype):
        raise TypeError(f"Each loss should be a number, got {loss!r} at {where}.")
    if shape != () and (path or len(shape) != 1 or shape[0] == 0):
        raise ValueError(
            "The loss function should return a pytree of scalars or one array of shape [K], "
            f"got shape {shape} at {where}. Likely cause: a loss not averaged over its batch, "
            "or `(losses, aux)` returned without `has_aux=True`."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        cause = "a count or an accuracy among the losses; return it as `aux` with `has_aux=True`"
        if isinstance(loss, int) and loss == 0:
            cause = (
                "a term that is switched off by writing 0; write 0.0, give it the priority 0, or, "
                "where it comes and goes, say so by `present` in `update`"
            )
        raise TypeError(
            "Each loss should be a real floating-point number, got "
            f"{jnp.result_type(loss)} at {where}. Likely "
            f"cause: {cause}."
        )
