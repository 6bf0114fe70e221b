"""Checks of stacked gradients: each leaf of shape [K, *parameter shape]."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def check_stacked(
    updates: PyTree, losses: PyTree | None, params: PyTree | None, num_losses: int
) -> None:
    """Raises unless there are losses, and each leaf of ``updates`` has shape [K, *its own]."""
    _refuse_masked(updates)
    leaves = _shapes_by_name(updates)
    if params is None:
        expected = {name: (num_losses, *shape[1:]) for name, shape in leaves.items()}
    else:
        own = _shapes_by_name(params)
        if list(leaves) != list(own):
            raise ValueError(
                "Stacked gradients should have the structure of the parameters, with leaves at "
                f"{list(own)}, got leaves at {list(leaves)}. Likely cause: a list of K gradients, "
                "which `jax.tree.map(lambda *g: jnp.stack(g), *gradients)` stacks."
            )
        expected = {name: (num_losses, *shape) for name, shape in own.items()}
        if leaves == own and (losses is None or leaves != expected):
            _refuse_combined(losses, leaves, expected)
    if losses is None:
        raise ValueError(
            "`losses` should be passed to `update` together with stacked gradients, got None. "
            "Likely cause: the weighting is not first in its chain, or `updates` are the plain "
            "gradients of `jax.grad`; take those of `value_and_component_grads`, which carry "
            "their losses."
        )
    for name, shape in leaves.items():
        if shape != expected[name]:
            raise ValueError(
                f"Stacked gradients should have shape [K, *parameter shape], here {expected[name]} "
                f"at {name}, got {shape}. Likely cause: the weighting is not first in its chain or "
                "is wrapped in `MultiSteps` (wrap the optimizer behind it instead), `updates` are "
                "the gradients of a summed loss, or `num_losses`, or the number of fixed weights, "
                "is not the number of losses."
            )


def _refuse_combined(losses: PyTree | None, leaves: Any, expected: Any) -> None:
    """Raises for gradients of one loss, which have the shapes of the parameters."""
    name = next((name for name in leaves if leaves[name] != expected[name]), None)
    if name is None:
        return
    given = "without `losses`" if losses is None else "beside `losses`"
    raise ValueError(
        f"Stacked gradients should have shape [K, *parameter shape], here {expected[name]} at "
        f"{name}, got {leaves[name]}. Likely cause: `updates`, {given}, are gradients that are "
        "combined already, those of `jax.grad` of a summed loss, or what another weighting "
        "before this one in the chain has made of them (a chain takes one weighting), or the "
        "weighting is wrapped in `MultiSteps` (wrap the optimizer behind it instead)."
    )


def _refuse_masked(updates: PyTree) -> None:
    leaves = jax.tree.leaves(updates, is_leaf=_is_masked_node)
    if any(_is_masked_node(leaf) for leaf in leaves):
        raise ValueError(
            "A weighting should see the gradients of all parameters, got masked ones: behind "
            "`masked` or `partition` the others would stay stacked and broadcast the parameters. "
            "Put the weighting first in the chain and mask what comes after it."
        )


def _is_masked_node(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _shapes_by_name(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path) or "the root": jnp.shape(leaf) for path, leaf in leaves}
