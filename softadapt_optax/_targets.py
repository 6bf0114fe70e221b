"""Targets: the gradient of a loss that the weights follow, as `update` is given it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from softadapt_optax._masks import merge
from softadapt_optax._per_loss import dtype_of
from softadapt_optax._shapes import listed, shapes_by_path


def leaves_of_direction(
    direction: PyTree, params: PyTree, mask: PyTree[bool] | None
) -> list[Array]:
    """The leaves by floating-point parameters, checked; zeros where the mask is False."""
    found, wanted = shapes_by_path(direction), shapes_by_path(params)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (direction, params)]
    if structures[0] != structures[1] or list(found.values()) != list(wanted.values()):
        raise ValueError(
            "The target, or direction, should be a gradient like the parameters, with leaves "
            f"{listed(wanted)}, got {type(direction).__name__} with leaves {listed(found)}. "
            f"Likely cause: {_cause(direction, found, wanted)}."
        )
    if mask is not None:
        direction = merge(mask, direction, jax.tree.map(jnp.zeros_like, direction))
    pairs = zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True)
    kinds = [(leaf, dtype_of(leaf), dtype_of(param)) for leaf, param in pairs]
    trained = [kind for kind in kinds if jnp.issubdtype(kind[2], jnp.inexact)]
    for _, dtype, wanted_dtype in trained:
        is_real = not jnp.issubdtype(wanted_dtype, jnp.complexfloating)
        if not jnp.issubdtype(dtype, jnp.floating if is_real else jnp.inexact):
            raise TypeError(
                "The target, or direction, should have floating-point leaves like those of the "
                f"parameters, {wanted_dtype}, got dtype {dtype}."
            )
    return [jnp.asarray(leaf) for leaf, *_ in trained]


def _cause(direction: Any, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if direction is None or isinstance(direction, str):
        return f"{'None' if direction is None else 'a string'} in the place of a gradient"
    if callable(direction) and jax.tree_util.all_leaves([direction]):
        return "a function in the place of what it returns, `jax.grad(loss)(params)`"
    if isinstance(direction, tuple) and len(direction) == 2:
        if _is_number(direction[0]):
            return "the pair of `jax.value_and_grad`, of which the gradient is the second"
        if len(jax.tree.leaves(direction[0])) == len(wanted):
            return "a pair of a gradient and something else, as `jax.grad(..., has_aux=True)` has"
    if list(found.values()) == [()]:
        return "the value of a loss in the place of its gradient, `jax.grad(loss)`"
    if list(found.values()) == list(wanted.values()):
        return (
            "the same leaves in other containers, such as a `FrozenDict` for a dictionary or pure "
            "arrays for the variables of Flax's NNX"
        )
    stacked = [shape[1:] for shape in found.values()]
    if stacked == list(wanted.values()) and all(found.values()):
        return "several stacked gradients; it is the gradient of one loss"
    return (
        "a gradient by other parameters than those that are trained, or without those of integer "
        "dtype, which `jax.grad(..., allow_int=True)` keeps"
    )


def _is_number(leaf: Any) -> bool:
    return jax.tree_util.all_leaves([leaf]) and jnp.ndim(leaf) == 0
