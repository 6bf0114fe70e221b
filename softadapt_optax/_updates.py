"""What ``update`` is given: checked, and brought to one form and one order."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from softadapt_optax._component_grads import ComponentGrads, from_stacked
from softadapt_optax._per_loss import (
    Names,
    are_sorted,
    by_name,
    check_position,
    count_of,
    difference,
    dtype_of,
    is_list,
    is_numeric,
    names_of,
    order_of,
    ordered_array,
    shapes_at_step,
)
from softadapt_optax._shapes import listed, shapes_by_path
from softadapt_optax._stacked import check_stacked
from softadapt_optax._state import BalanceState, loss_names_in, states_in


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
    order = names if is_ordered else None
    if isinstance(updates, ComponentGrads):
        grads = updates if losses is None else _with_losses(updates, losses, order)
    else:
        check_stacked(updates, losses, params, num_losses)
        if order is not None and not are_sorted(order):
            _refuse_unnamed(losses, order)
        grads = from_stacked(updates, losses)
    _check_number(grads, num_losses, names, is_ordered)
    if names is None or tuple(grads.names or ()) == names:
        return grads
    if grads.names is None:
        if is_ordered or num_losses == 1:
            return grads
        raise ValueError(
            f"The losses should have the names of the weights, priorities or units, "
            f"{', '.join(names)}, got losses without names, whose order may be another. Remedy: "
            "return the losses as a dictionary by name, and beside stacked gradients pass it as "
            "`losses`, or, where the transformation is made with the number of losses, give the "
            "names in the order of the losses in its place."
        )
    return grads.reordered(order_of(names, tuple(grads.names), "The losses"))


def check_combined(h: PyTree, params: PyTree | None) -> None:
    """Raises unless h has the shapes of the parameters, to which Optax would broadcast it."""
    if params is None:
        return
    found = [np.shape(leaf) for leaf in jax.tree.leaves(h)]
    wanted = [np.shape(leaf) for leaf in jax.tree.leaves(params) if is_numeric(dtype_of(leaf))]
    if found != wanted:
        raise ValueError(
            f"The gradients should have the shapes of `params`, {listed(shapes_by_path(params))}, "
            f"got {listed(shapes_by_path(h))}. Likely cause: they are those of other parameters, "
            "such as another model's, or of other `argnums` in `value_and_component_grads`."
        )


def presence(
    present: PyTree | None, grads: ComponentGrads, names: Names | None, is_ordered: bool
) -> Bool[Array, " K"]:
    """``present`` as an array in the order of the gradients; default all True."""
    if present is None:
        return jnp.ones(grads.losses.size, dtype=bool)
    wanted = names if grads.names is None else tuple(grads.names)
    for leaf in jax.tree.leaves(present):
        if not any(jnp.issubdtype(dtype_of(leaf), kind) for kind in (jnp.bool_, jnp.integer)):
            _refuse_presence(leaf, wanted)
    return in_order(present, "present", grads, names, is_ordered) != 0


def in_order(
    values: PyTree, name: str, grads: ComponentGrads, names: Names | None, is_ordered: bool
) -> Float[Array, " K"]:
    """K numbers in the order of the gradients."""
    own_names = None if grads.names is None else tuple(grads.names)
    wanted = names if own_names is None else own_names
    array = ordered_array(values, name, grads.losses.size, wanted)
    check_position(values, name, own_names, names if is_ordered else None)
    return array


def _refuse_presence(leaf: Any, names: Names | None) -> NoReturn:
    """Raises for what is neither True nor False."""
    example = "" if names is None else f", {by_name(names, 'True')}"
    if jnp.issubdtype(dtype_of(leaf), jnp.inexact):
        got = f"dtype {dtype_of(leaf)}"
        cause = (
            "a weight or a share of the batch in its place; `present` says whether a loss has data "
            "at all, `priorities` weigh it"
        )
    else:
        got = f"{type(leaf).__name__} {leaf!r}"
        cause = "only the names of the losses that have data; say it of each loss"
    raise TypeError(
        f"`present` should be True or False for each loss{example}, got {got}. Likely cause: "
        f"{cause}."
    )


def target_fn_of(
    target: Any, params: PyTree | None, is_needed: bool, others: Iterable[str]
) -> Callable[[], PyTree] | None:
    """The target's gradient, as a function that is called only where the gradient is due.

    Args:
      target: what `update` was given.
      params: the parameters, if it was given them.
      is_needed: whether the weighting asks for it.
      others: the names of what else it was given, for the message.
    """
    if not is_needed:
        return None
    if target is None:
        similar = [name for name in others if "target" in name]
        cause = f" Did you mean `target` by `{similar[0]}`?" if similar else ""
        if callable(params) and jax.tree_util.all_leaves([params]):
            cause = " Likely cause: it was passed as `params`, which is a function."
        raise TypeError(f"{_WANTED_TARGET}, got None.{cause}")
    found_fn = _as_function(target, "target", params)
    return lambda: _no_lazy(found_fn())


def ntk_traces_fn_of(
    ntk_traces: Any,
    params: PyTree | None,
    is_needed: bool,
    grads: ComponentGrads,
    names: Names | None,
    is_ordered: bool,
) -> Callable[[], Float[Array, " K"]] | None:
    """The traces in the order of the gradients, in the same way."""
    if not is_needed:
        return None
    if ntk_traces is None:
        raise TypeError(
            "`ntk_traces` should be the traces of the losses' neural tangent kernels, K numbers, "
            "or a function of the parameters that returns them, such as `update(grads, opt_state, "
            'params, ntk_traces=lambda params: {"pde": ntk_trace(residual, params, points), '
            "...})`, got None."
        )
    found_fn = _as_function(ntk_traces, "ntk_traces", params)
    return lambda: in_order(found_fn(), "ntk_traces", grads, names, is_ordered)


def _as_function(value: Any, name: str, params: PyTree | None) -> Callable[[], PyTree]:
    """What an argument is, or returns where it is a function of the parameters."""
    is_function = isinstance(value, jax.tree_util.Partial) or jax.tree_util.all_leaves([value])
    if not (callable(value) and is_function):  # the gradient of a module may be callable too
        return lambda: value
    if params is None:
        raise ValueError(
            f"`params` should be passed to `update` if `{name}` is a function of them."
        )
    return lambda: value(params)


_WANTED_TARGET = (
    "`target` should be the gradient of the loss that the weights follow, a pytree like the "
    "parameters, or a function of the parameters that returns it, such as `update(grads, "
    "opt_state, params, target=jax.grad(validation_loss))`"
)


def _no_lazy(target: Any) -> Any:
    if isinstance(target, ComponentGrads):
        raise TypeError(f"{_WANTED_TARGET}, got `ComponentGrads`, which are those of K losses.")
    return target


def refuse_pair(updates: Any) -> None:
    """Raises for what `value_and_component_grads` returns, losses and gradients together."""
    if isinstance(updates, tuple | list) and any(isinstance(u, ComponentGrads) for u in updates):
        raise TypeError(
            "The gradients should be `ComponentGrads`, got a sequence with them in it. Likely "
            "cause: the result of `value_and_component_grads` is a pair, `losses, grads = ...`."
        )


def refuse_lazy_arguments(state: Any, extra_args: dict[str, Any]) -> None:
    """Raises for ``ComponentGrads`` in the place of a state or of another argument.

    And for a name that is all but one of ours: what has it would be ignored.
    """
    _refuse_misspelt(extra_args)
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


def _refuse_misspelt(extra_args: dict[str, Any]) -> None:
    for name in extra_args:
        # `losses_fn` may be another's.
        own = ("ntk_traces", "previous_losses") if "_" in name else ("losses", "present", "target")
        matches = difflib.get_close_matches(name, own, n=1, cutoff=0.8)
        if name in ("is_present", "are_present", "missing", "absent"):
            own, matches = ("losses", "present", "target"), ["present"]
        for own_name in matches:
            wanted = ", ".join(f"`{each}`" for each in own[:-1]) + f" or `{own[-1]}`"
            raise TypeError(
                f"`update` should get {wanted}, got `{name}`. Did you mean `{own_name}`? What it "
                "does not know is ignored, for transformations behind it."
            )


def check_like(state: PyTree, expected: PyTree, message: str) -> None:
    """Raises unless a state has the structure, shapes and dtypes of another."""
    structures: list[Any] = [jax.tree.structure(state), jax.tree.structure(expected)]
    found, wanted = _describe(state), _describe(expected)
    if structures[0] == structures[1] and found == wanted:
        return
    head = message.split(" Likely cause:")[0]
    of_names = _other_names(state, expected) if found == wanted else ""
    if of_names:
        raise ValueError(f"{head} {of_names}")
    cause = _cause_of_state(state, expected, structures[0] == structures[1])
    if cause:
        message = f"{head} Likely cause: {cause}."
    if found == wanted:
        raise ValueError(f"{message} Expected {structures[1]}, got {structures[0]}.")
    raise ValueError(
        f"{message} Expected {type(expected).__name__} with {listed(wanted)}, got "
        f"{type(state).__name__} with {listed(found)}."
    )


def _cause_of_state(state: PyTree, expected: PyTree, has_its_structure: bool) -> str:
    """Why a state is not the one expected, where that can be seen."""
    if not has_its_structure:
        if states_in(state) and not isinstance(state, BalanceState):
            return "the state of a whole chain; pass the weighting's, its first member"
        return ""
    if _describe(state, dtypes=False) == _describe(expected, dtypes=False):
        return (
            "the dtypes were changed, by `optax.tree.cast` or a change of `jax_enable_x64`; "
            "statistics of losses want float32 or more, so cast the parameters alone"
        )
    if batch := _batch_of(state, expected):
        return (
            f"a batch of states, of shape {batch}, as `jax.vmap` makes one; map `update` over it "
            "too"
        )
    return ""


def _batch_of(state: PyTree, expected: PyTree) -> tuple[int, ...]:
    """The axes that all leaves of a state have in front of those expected; () if there are none."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
    shapes = [(np.shape(leaf), leaf_expected.shape) for leaf, leaf_expected in pairs]
    batches = {shape[: len(shape) - len(wanted)] for shape, wanted in shapes}
    batch = batches.pop() if len(batches) == 1 else ()
    return batch if all(shape == batch + wanted for shape, wanted in shapes) else ()


def _other_names(state: PyTree, expected: PyTree) -> str:
    """What is said of the names of the losses in a state, if they are not those expected."""
    if not (isinstance(state, BalanceState) and isinstance(expected, BalanceState)):
        return ""
    found, wanted = loss_names_in(state), loss_names_in(expected)
    if found == wanted:
        return ""
    if found is None or wanted is None:
        differ = "made with names the one, without the other"
    else:
        differ = difference(wanted, found) or "in another order"
    return (
        f"It is of losses with other names ({differ}): expected {_names(wanted)}, got "
        f"{_names(found)}. Likely cause: the names were changed after the state was made or saved."
    )


def _names(names: Names | None) -> str:
    return "no names" if names is None else ", ".join(names)


def shared_mask(shared: Any, params: PyTree | None) -> PyTree[bool] | None:
    """The mask that ``shared`` is or gives."""
    if shared is None:
        return None
    if callable(shared) and params is None:
        raise ValueError("`params` should be passed to `update` if `shared` is a function.")
    mask = shared(params) if callable(shared) else shared
    leaves = jax.tree.leaves(mask)
    if mask is None or not all(isinstance(leaf, bool | np.bool_) for leaf in leaves):
        kinds = listed(sorted({type(leaf).__name__ for leaf in leaves}))
        raise TypeError(
            "`shared` should be True or False for each parameter or each part of the tree of "
            "parameters, or a function of them that gives it, got "
            f"{type(mask).__name__} with leaves of type {kinds}. Bools of Python are meant, not "
            "masks of single entries."
        )
    if not any(leaves):
        raise ValueError(
            f"`shared` should select at least one parameter, got {mask}. Likely cause: a function "
            "that looks for a name that no parameter has."
        )
    return mask


def _with_losses(grads: ComponentGrads, losses: PyTree, order: Names | None) -> ComponentGrads:
    """Other losses beside lazy gradients, by their names or in their order.

    An array is in the order of the losses, if this is that of the names that the user has given.
    """
    if grads.names is not None:
        own_names = tuple(grads.names)
        if order is not None and set(own_names) == set(order) and own_names != order:
            _refuse_unnamed(losses, order)
        if is_list(losses):
            check_position(losses, "losses", own_names, None, takes_names=False)
    return grads.with_losses(losses)


def _refuse_unnamed(losses: PyTree, names: Names) -> None:
    """Raises for losses by position where two orders are possible."""
    if names_of(losses) is None and jax.tree.leaves(losses):
        got = "an array" if jax.tree_util.all_leaves([losses]) else f"a {type(losses).__name__}"
        raise ValueError(
            f"`losses` should go by name beside names that are not sorted, {', '.join(names)}, got "
            f"{got} without names. It might be in the order of these names or in "
            "that of the losses in a dictionary, which is sorted, as `grads.losses` is. Remedy: "
            f"pass them by name, `losses={by_name(names)}`."
        )


def refusing_positions(
    tx: optax.GradientTransformationExtraArgs, **by_loss: PyTree
) -> optax.GradientTransformationExtraArgs:
    """The same for a factory that has no number of losses: a list beside names is refused."""

    def update_fn(
        updates: ComponentGrads | PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        losses: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        _refuse_position(updates, losses, by_loss)
        return tx.update(updates, state, params, losses=losses, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)


def _refuse_position(updates: Any, losses: PyTree | None, by_loss: dict[str, PyTree]) -> None:
    lazy_names = updates.names if isinstance(updates, ComponentGrads) else None
    names = names_of(losses) if lazy_names is None else tuple(lazy_names)
    for name, values in by_loss.items():
        if values is not None and names is not None and count_of(values) == len(names):
            check_position(shapes_at_step(values), name, names, None, takes_names=False)


def _check_number(
    grads: ComponentGrads, num_losses: int, names: Names | None, is_ordered: bool
) -> None:
    """Raises unless there are K losses, of the names that were given."""
    found = None if grads.names is None else tuple(grads.names)
    differ = names is not None and found is not None and set(found) != set(names)
    if grads.losses.size == num_losses and not differ:
        return
    of_names = "" if names is None else f", {', '.join(names)}"
    got = str(grads.losses.size) + ("" if found is None else f", {', '.join(found)}")
    if names is not None and found is not None and differ:
        got += f" ({difference(names, found)})"
    causes = _causes_of_number(grads.losses.size, num_losses, found, names, is_ordered)
    raise ValueError(
        f"The weighting is made for {num_losses} losses{of_names}, got {got}. Likely cause: "
        f"{', or '.join(causes)}."
    )


def _causes_of_number(
    size: int, num_losses: int, found: Names | None, names: Names | None, is_ordered: bool
) -> list[str]:
    """Why there may be other losses than the transformation is made for."""
    other_number = "`num_losses`, or the number of fixed weights, is not the number of losses"
    examples = "the loss function returns the losses of examples instead of their mean"
    if size == 1:
        examples = "the loss function returns the sum of its losses, or one of them beside aux"
    left_out = (
        "a loss that has no data in this batch was left out; return it all the same, as 0.0, and "
        "say `present={name: False, ...}` in `update`"
    )
    if found is None:
        return [other_number, examples]
    if len(found) == 1 + num_losses and found[-1] == "1":
        return ["`(losses, aux)` returned without `has_aux=True`"]
    if {name.split("/")[0] for name in found} == {"0", "1"} and names is not None:
        return [
            "a tuple of two: `(losses, aux)` returned without `has_aux=True`, or two groups of "
            'losses, whose names are "0/..." and "1/..."'
        ]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        return [f"two losses with the same path, {twice}; give one of them another name"]
    if names is not None and set(found) < set(names):
        return [left_out]
    if names is not None and set(names) < set(found):
        without = ", ".join(name for name in found if name not in names)
        return [f"the transformation was made without {without}, which the loss function returns"]
    if names is not None:
        where = "" if is_ordered else "`units`, `priorities` or the weights of "
        return [f"a loss has another name than in {where}the transformation"]
    return [other_number, left_out] if size < num_losses else [other_number, examples]


def _describe(tree: PyTree, dtypes: bool = True) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        f"{jax.tree_util.keystr(path)} {dtype_of(leaf) if dtypes else ''}{list(np.shape(leaf))}"
        for path, leaf in leaves
    ]
