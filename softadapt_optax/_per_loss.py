"""What has one entry for each loss: an array [K] or a pytree of K scalars, by name or position."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

Names = tuple[str, ...]


def names_of(values: PyTree) -> Names | None:
    """The paths of the entries, such as ``"fit"`` or ``"outer/inner"``.

    None if they go by position, as in an array, a list or a tuple.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(values)]
    if all(isinstance(key, jax.tree_util.SequenceKey) for path in paths for key in path):
        return None
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path in paths)


def order_of(wanted: Names, given: Names, what: str) -> list[int]:
    """Where each of the wanted names stands among the given ones, which have to be the same."""
    if sorted(wanted) != sorted(given):
        raise ValueError(
            f"The {what} should have the names of the losses, {', '.join(wanted)}, got "
            f"{', '.join(given)}."
        )
    return [given.index(name) for name in wanted]


def is_list(values: PyTree) -> bool:
    """Whether the values are several by position, not one array and not by name."""
    return not jax.tree_util.all_leaves([values]) and names_of(values) is None


def as_component_array(
    values: PyTree, name: str, num_losses: int | None = None
) -> Float[Array, " K"]:
    """One number for each component, in ``jax.tree.leaves`` order, as an array [K]."""
    check_component_shapes(name, values, num_losses)
    leaves = jax.tree.leaves(values)
    if np.ndim(leaves[0]) == 1:
        return jnp.asarray(leaves[0], dtype=float)
    return jnp.stack([jnp.asarray(leaf, dtype=float) for leaf in leaves])


def check_component_shapes(name: str, values: PyTree, num_losses: int | None = None) -> None:
    """Raises unless the values are an array [K] of real numbers or a pytree of K of them."""
    leaves = jax.tree.leaves(values)
    dtypes = [dtype_of(leaf) for leaf in leaves]
    for dtype in dtypes:
        if not is_numeric(dtype) or jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"`{name}` should be real numbers, got dtype {dtype}.")
    shapes = [np.shape(leaf) for leaf in leaves]
    is_array = jax.tree_util.all_leaves([values]) and len(shapes[0]) == 1
    if not is_array and not (leaves and all(shape == () for shape in shapes)):
        raise ValueError(
            f"`{name}` should be an array of shape [K] or a pytree of K scalars, one for each "
            f"loss, got leaves of shapes {shapes}."
        )
    size = shapes[0][0] if is_array else len(leaves)
    if num_losses is not None and size != num_losses:
        raise ValueError(
            f"`{name}` should have {num_losses} entries, one for each loss, got {size}."
        )


def ordered_array(
    values: PyTree, name: str, num_losses: int, names: Names | None
) -> Float[Array, " K"]:
    """The same in the order of the names, if both have some."""
    array = as_component_array(values, name, num_losses)
    given = names_of(values)
    if names is None or given is None or given == names:
        return array
    return permuted(array, order_of(names, given, f"entries of `{name}`"))


def permuted(array: Array, order: Sequence[int]) -> Array:
    """The entries of an array [K] in a static order."""
    return jnp.stack([array[index] for index in order])


def check_position(
    values: PyTree, name: str, loss_names: Names | None, names: Names | None
) -> None:
    """Raises for a list beside losses whose order the user has not given.

    Losses in a dictionary are sorted by their names, which is seldom the order of a list. An array,
    as in a sweep, is taken to be in the order of the losses.
    """
    if loss_names is None or names is not None or len(loss_names) == 1:
        return
    if is_list(values) and not _are_equal(values):
        example = ", ".join(f'"{loss}": ...' for loss in loss_names)
        listed = ", ".join(f'"{loss}"' for loss in loss_names)
        raise ValueError(
            f"`{name}` should go by the names of the losses, {{{example}}}, got "
            f"{type(values).__name__} without names. Their order is that of the sorted names, "
            "seldom that of a list. Remedy: give them by name, or give the names in your order in "
            f"the place of the number of losses, [{listed}], and lists are in that order."
        )


def _are_equal(values: PyTree) -> bool:
    """Whether all entries are known and the same, so that their order does not matter."""
    leaves = jax.tree.leaves(values)
    is_known = not any(isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) for leaf in leaves)
    return is_known and len({float(entry) for leaf in leaves for entry in np.ravel(leaf)}) == 1


def count_of(values: PyTree) -> int:
    """K, the number of entries of an array [K] or a pytree of K scalars."""
    shapes = jax.tree.leaves(shapes_at_step(values))
    return int(np.shape(shapes[0])[0]) if [np.ndim(s) for s in shapes] == [1] else len(shapes)


def dtype_of(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_numeric(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))


def at_step(values: PyTree, step: ArrayLike) -> PyTree:
    """The values in a step, where they, or some of their entries, are functions of it."""
    if callable(values):
        return values(step)
    return jax.tree.map(lambda leaf: leaf(step) if callable(leaf) else leaf, values)


def shapes_at_step(values: PyTree) -> PyTree:
    """Their structure, shapes and dtypes, without evaluating a function."""
    if not any(callable(leaf) for leaf in jax.tree.leaves(values)):
        return values
    return jax.eval_shape(lambda step: at_step(values, step), np.zeros((), dtype=np.int32))
