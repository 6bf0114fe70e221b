"""What ``update`` is given: checked, and brought to one form and one order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PyTree

from softadapt_optax._components import ComponentGrads, from_stacked
from softadapt_optax._per_loss import (
    Names,
    as_component_array,
    check_position,
    dtype_of,
    is_list,
    names_of,
    order_of,
    permuted,
)


def taken(
    updates: ComponentGrads | PyTree,
    losses: PyTree | None,
    params: PyTree | None,
    num_losses: int,
    names: Names | None,
    is_ordered: bool,
) -> ComponentGrads:
    """Both forms of ``updates`` as one, with the losses to be used, in the order of the names."""
    refuse_pair(updates)
    if isinstance(updates, ComponentGrads):
        grads = updates if losses is None else _with_losses(updates, losses)
    else:
        _check_stacked(updates, losses, params, num_losses)
        grads = from_stacked(updates, losses)
    _check_number(grads, num_losses, names)
    if names is None or tuple(grads.names or ()) == names:
        return grads
    if grads.names is None:
        if is_ordered or num_losses == 1:
            return grads
        raise ValueError(
            f"The losses should have the names of the weights, priorities or units, "
            f"{', '.join(names)}, got losses without names, whose order may be another. Remedy: "
            "return the losses as a dictionary by name, and beside stacked gradients pass it as "
            "`losses`, or give the names in the order of the losses in the place of their number."
        )
    return grads.reordered(order_of(names, tuple(grads.names), "losses"))


def presence(
    present: PyTree | None, grads: ComponentGrads, names: Names | None, is_ordered: bool
) -> Bool[Array, " K"]:
    """``present`` as an array in the order of the gradients; default all True."""
    num_losses = grads.losses.size
    if present is None:
        return jnp.ones(num_losses, dtype=bool)
    for leaf in jax.tree.leaves(present):
        if jnp.issubdtype(dtype_of(leaf), jnp.inexact):
            raise TypeError(
                f"`present` should be True or False for each loss, got dtype {dtype_of(leaf)}. "
                "Likely cause: a weight or a share of the batch in its place; `present` says "
                "whether a loss has data at all, `priorities` weigh it."
            )
    array = as_component_array(present, "present", num_losses) != 0
    own_names = None if grads.names is None else tuple(grads.names)
    check_position(present, "present", own_names, names if is_ordered else None)
    given, wanted = names_of(present), names if own_names is None else own_names
    if given is None or wanted is None or given == wanted:
        return array
    return permuted(array, order_of(wanted, given, "entries of `present`"))


def refuse_pair(updates: Any) -> None:
    """Raises for what `value_and_component_grads` returns, losses and gradients together."""
    if isinstance(updates, tuple | list) and any(isinstance(u, ComponentGrads) for u in updates):
        raise TypeError(
            "The gradients should be `ComponentGrads`, got a sequence with them in it. Likely "
            "cause: the result of `value_and_component_grads` is a pair, `losses, grads = ...`."
        )


def refuse_lazy_arguments(state: Any, extra_args: dict[str, Any]) -> None:
    """Raises for ``ComponentGrads`` in the place of a state or of another argument."""
    if isinstance(state, ComponentGrads):
        raise TypeError("`state` should be an optimizer's state, got `ComponentGrads`.")
    for name, value in extra_args.items():
        if isinstance(value, ComponentGrads):
            raise TypeError(
                f"`{name}` should be arrays like the parameters, got `ComponentGrads`. Likely "
                "cause: a line search behind the weighting, which wants the gradient of the one "
                "function that it lowers, such as `jax.grad` of the summed losses or "
                "`grads.combine(weights)`."
            )


def check_like(state: PyTree, expected: PyTree, message: str) -> None:
    """Raises unless a state has the structure, shapes and dtypes of another."""
    structures: list[Any] = [jax.tree.structure(state), jax.tree.structure(expected)]
    found, wanted = _describe(state), _describe(expected)
    if structures[0] == structures[1] and found == wanted:
        return
    if structures[0] == structures[1] and _describe(state, dtypes=False) == _describe(
        expected, dtypes=False
    ):
        message = message.split(" Likely cause:")[0] + (
            " Likely cause: the dtypes were changed, by `optax.tree.cast` or a change of "
            "`jax_enable_x64`; statistics of losses want float32 or more, so cast the parameters "
            "alone."
        )
    raise ValueError(
        f"{message} Expected {type(expected).__name__} with {wanted}, got {type(state).__name__} "
        f"with {found}."
    )


def shared_mask(shared: Any, params: PyTree | None) -> PyTree[bool] | None:
    """The mask that ``shared`` is or gives."""
    if shared is None:
        return None
    if callable(shared) and params is None:
        raise ValueError("`params` should be passed to `update` if `shared` is a function.")
    mask = shared(params) if callable(shared) else shared
    leaves = jax.tree.leaves(mask)
    if mask is None or not all(isinstance(leaf, bool | np.bool_) for leaf in leaves):
        raise TypeError(
            "`shared` should be True or False for each parameter or each part of the tree of "
            f"parameters, or a function of them that gives it, got {mask!r}."
        )
    if not any(leaves):
        raise ValueError(
            f"`shared` should select at least one parameter, got {mask}. Likely cause: a function "
            "that looks for a name that no parameter has."
        )
    return mask


def _with_losses(grads: ComponentGrads, losses: PyTree) -> ComponentGrads:
    """Other losses beside lazy gradients: an array in their order, or by their names."""
    if grads.names is not None and is_list(losses):
        check_position(losses, "losses", tuple(grads.names), None)
    return grads.with_losses(losses)


def _check_number(grads: ComponentGrads, num_losses: int, names: Names | None) -> None:
    """Raises unless there are K losses, of the names that were given."""
    found = grads.names
    is_missing_some = bool(names and found and set(found) < set(names))
    if grads.losses.size == num_losses and not (names and found and set(found) != set(names)):
        return
    of_names = "" if names is None else f", {', '.join(names)}"
    got = str(grads.losses.size) + ("" if found is None else f", {', '.join(found)}")
    causes = [
        "`num_losses`, or the number of fixed weights, is not the number of losses",
        "the loss function returns the losses of examples instead of their mean",
    ]
    if found is not None and len(found) == 1 + num_losses and found[-1] == "1":
        causes = ["`(losses, aux)` returned without `has_aux=True`"]
    elif is_missing_some or (found is not None and grads.losses.size < num_losses):
        causes = [] if is_missing_some else causes[:1]
        causes += [
            "a loss that has no data in this batch was left out; return it all the same, as 0.0, "
            "and say `present={name: False, ...}` in `update`"
        ]
    elif names is not None and found is not None and grads.losses.size == num_losses:
        causes = ["a loss has another name than in the transformation"]
    raise ValueError(
        f"The weighting is made for {num_losses} losses{of_names}, got {got}. Likely cause: "
        f"{', or '.join(causes)}."
    )


def _describe(tree: PyTree, dtypes: bool = True) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        f"{jax.tree_util.keystr(path)} {leaf.dtype if dtypes else ''}{list(leaf.shape)}"
        for path, leaf in leaves
    ]


def _check_stacked(
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
