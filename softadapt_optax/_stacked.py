"""Checks of stacked gradients: each leaf of shape [K, *parameter shape]."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from softadapt_optax._shapes import listed, shapes_by_path


def check_stacked(
    updates: PyTree, losses: PyTree | None, params: PyTree | None, num_losses: int
) -> None:
    """Raises unless there are losses, and each leaf of ``updates`` has shape [K, *its own]."""
    _refuse_masked(updates)
    leaves = shapes_by_path(updates)
    if params is None:
        expected = {name: (num_losses, *shape[1:]) for name, shape in leaves.items()}
    else:
        own = shapes_by_path(params)
        if list(leaves) != list(own):
            raise ValueError(
                "Stacked gradients should have the structure of the parameters, with leaves at "
                f"{listed(own.keys())}, got {type(updates).__name__} with leaves at "
                f"{listed(leaves.keys())}. Likely cause: {_cause_of_structure(updates)}."
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


def _cause_of_structure(updates: PyTree) -> str:
    if all(jnp.shape(leaf) == () for leaf in jax.tree.leaves(updates)):
        return "the losses in the place of their gradients"
    if isinstance(updates, dict):
        return (
            "K gradients by the name of the loss, which `jax.tree.map(lambda *g: jnp.stack(g), "
            "*gradients.values())` stacks, or gradients of other parameters"
        )
    return (
        "a list of K gradients, which `jax.tree.map(lambda *g: jnp.stack(g), *gradients)` stacks, "
        "or gradients of other parameters"
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
