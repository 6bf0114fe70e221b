"""Targets: the gradient of a loss that the weights follow, as `update` is given it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from softadapt_optax._per_loss import dtype_of


def leaves_of_direction(direction: PyTree, params: PyTree) -> list[Array]:
    """The leaves by floating-point parameters, checked."""
    found, wanted = _shapes(direction), _shapes(params)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (direction, params)]
    if structures[0] != structures[1] or list(found.values()) != list(wanted.values()):
        raise ValueError(
            f"The target should be a gradient like the parameters, with leaves {_listed(wanted)}, "
            f"got {type(direction).__name__} with leaves {_listed(found)}. Likely cause: "
            f"{_cause(direction, found, wanted)}."
        )
    pairs = zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True)
    return [
        jnp.asarray(leaf) for leaf, param in pairs if jnp.issubdtype(dtype_of(param), jnp.inexact)
    ]


def _cause(direction: PyTree, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if isinstance(direction, tuple) and len(direction) == 2 and jnp.ndim(direction[0]) == 0:
        return "the pair of `jax.value_and_grad`, of which the gradient is the second"
    if list(found.values()) == [()]:
        return "the value of a loss in the place of its gradient, `jax.grad(loss)`"
    if list(found) == list(wanted) and len({shape[:1] for shape in found.values()}) == 1:
        return "several stacked gradients; it is the gradient of one loss"
    return "a gradient by other parameters than those that are trained"


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name or 'the root'} {shape}" for name, shape in shapes.items()) or "none"
