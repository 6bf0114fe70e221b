"""What has one entry for each loss: an array [K] or a pytree of K scalars, by name or position."""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
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


def order_of(wanted: Names, given: Names, what: str, whose: str = "the losses") -> list[int]:
    """Where each of the wanted names stands among the given ones, which have to be the same."""
    if sorted(wanted) != sorted(given):
        raise ValueError(
            f"{what} should have the names of {whose}, {', '.join(wanted)}, got "
            f"{', '.join(given)} ({difference(wanted, given)})."
        )
    return [given.index(name) for name in wanted]


def difference(wanted: Names, given: Names) -> str:
    """In what the given names differ from those that are wanted, one way or the other."""
    counts = Counter(given)
    parts = {
        "missing": [name for name in wanted if name not in counts],
        "unexpected": [name for name in counts if name not in wanted],
        "more than once": [name for name, count in counts.items() if count > 1],
    }
    return "; ".join(f"{part}: {', '.join(names)}" for part, names in parts.items() if names)


def are_sorted(names: Sequence[str]) -> bool:
    """Whether a dictionary of losses has these names in this order, nested or not."""
    by_part = sorted(names, key=lambda name: name.split("/"))
    return list(names) == sorted(names) == by_part


def by_name(names: Sequence[str], value: str = "...") -> str:
    """What to write for values by name."""
    return "{" + ", ".join(f'"{name}": {value}' for name in names) + "}"


def has_no_order(values: Any) -> bool:
    """Whether it is a set, the keys of a dictionary or a generator, which JAX takes as one leaf."""
    return isinstance(values, Set | Iterator)


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
    for leaf in leaves:
        dtype = dtype_of(leaf)
        if not is_numeric(dtype) or jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"`{name}` should be real numbers, got dtype {dtype}.{_cause_of_no_number(values)}"
            )
    shapes = [np.shape(leaf) for leaf in leaves]
    is_array = jax.tree_util.all_leaves([values]) and len(shapes[0]) == 1
    if not is_array and not (leaves and all(shape == () for shape in shapes)):
        cause = (
            " Likely cause: masks of examples; take `jnp.any(mask)`." if name == "present" else ""
        )
        raise ValueError(
            f"`{name}` should be an array of shape [K] or a pytree of K scalars, one for each "
            f"loss, got leaves of shapes {shapes}.{cause}"
        )
    size = shapes[0][0] if is_array else len(leaves)
    if num_losses is not None and size != num_losses:
        raise ValueError(
            f"`{name}` should have {num_losses} entries, one for each loss, got {size}."
        )


def _cause_of_no_number(values: PyTree) -> str:
    if has_no_order(values):
        return (
            f" Likely cause: a {type(values).__name__}, which has no order; give numbers by name, "
            'such as {"pde": 1.0, ...}.'
        )
    leaves = jax.tree.leaves(values)
    strings = [str(name) for leaf in leaves for name in np.ravel(leaf) if isinstance(name, str)]
    if len(strings) >= len(leaves) and names_of(values) is None and not isinstance(values, str):
        return (
            " Likely cause: names without numbers; give numbers by name, such as "
            f'{{"{strings[0]}": 1.0, ...}}.'
        )
    return ""


def ordered_array(
    values: PyTree, name: str, num_losses: int, names: Names | None
) -> Float[Array, " K"]:
    """The same in the order of the names, if both have some."""
    given = names_of(values)
    order = None
    if names is not None and given is not None and given != names:
        order = order_of(names, given, f"The entries of `{name}`")
    array = as_component_array(values, name, num_losses)
    return array if order is None else permuted(array, order)


def permuted(array: Array, order: Sequence[int]) -> Array:
    """The entries of an array [K] in a static order."""
    return jnp.stack([array[index] for index in order])


def check_position(
    values: PyTree,
    name: str,
    loss_names: Names | None,
    names: Names | None,
    takes_names: bool = True,
) -> None:
    """Raises for a list beside losses whose order the user has not given.

    Losses in a dictionary are sorted by their names, which is seldom the order of a list. An array,
    as in a sweep, is taken to be in the order of the losses. With ``takes_names`` names may be
    given in the place of the number of losses.
    """
    if loss_names is None or names is not None or len(loss_names) == 1:
        return
    if is_list(values) and not _are_equal(values):
        listed = ", ".join(f'"{loss}"' for loss in loss_names)
        order = f"{listed}, maybe not that of the list"
        if are_sorted(loss_names):
            order = "that of the sorted names, seldom that of a list"
        other = (
            ", or, where the transformation is made with the number of losses, give the names in "
            f"your order in its place, [{listed}], and lists are in that order"
        )
        raise ValueError(
            f"`{name}` should go by the names of the losses, {by_name(loss_names)}, got "
            f"{type(values).__name__} without names. Their order is {order}. "
            f"Remedy: give them by name{other if takes_names else ''}."
        )


def _are_equal(values: PyTree) -> bool:
    """Whether all entries are known and the same, so that their order does not matter."""
    leaves = jax.tree.leaves(values)
    are_known = all(
        is_numeric(dtype_of(leaf)) and not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        for leaf in leaves
    )
    return are_known and len({float(entry) for leaf in leaves for entry in np.ravel(leaf)}) == 1


def count_of(values: PyTree) -> int:
    """K, the number of entries of an array [K] or a pytree of K scalars."""
    shapes = jax.tree.leaves(shapes_at_step(values))
    return int(np.shape(shapes[0])[0]) if [np.ndim(s) for s in shapes] == [1] else len(shapes)


def dtype_of(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_numeric(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))


def is_known(leaf: Any) -> bool:
    """Whether its value can be looked at: it is not traced, and this process has all of it."""
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) or callable(leaf):
        return False
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def at_step(values: PyTree, step: ArrayLike) -> PyTree:
    """The values in a step, where they, or some of their entries, are functions of it."""
    if callable(values):
        return _called(values, step, ())
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _called(leaf, step, path) if callable(leaf) else leaf, values
    )


def _called(schedule: Any, step: ArrayLike, path: Sequence[Any]) -> PyTree:
    try:
        return schedule(step)
    except TypeError as error:  # those of tracers are, too
        where = f" at {jax.tree_util.keystr(tuple(path))}" if path else ""
        raise TypeError(
            f"An option that is a function of the step{where} should take one argument, the step, "
            f"an integer array that JAX may trace, got {type(error).__name__} from it. Likely "
            "cause: `min`, `math` or `numpy` in the place of `jnp.minimum`, `jnp.where` and the "
            "like; schedules of Optax do. It said: " + str(error).partition("\n")[0]
        ) from error


def shapes_at_step(values: PyTree) -> PyTree:
    """Their structure, shapes and dtypes, without evaluating a function."""
    if not any(callable(leaf) for leaf in jax.tree.leaves(values)):
        return values
    return jax.eval_shape(lambda step: at_step(values, step), np.zeros((), dtype=np.int32))
