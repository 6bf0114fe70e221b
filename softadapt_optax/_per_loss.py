"""What has one entry for each loss: an array [K] or a pytree of K scalars, by name or position."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


def as_component_array(
    values: PyTree, name: str, num_losses: int | None = None
) -> Float[Array, " K"]:
    """One number for each component, in ``jax.tree.leaves`` order, as an array [K]."""
    leaves = jax.tree.leaves(values)
    dtypes = [dtype_of(leaf) for leaf in leaves]
    for dtype in dtypes:
        if not is_numeric(dtype) or jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"`{name}` should be real numbers, got dtype {dtype}.")
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if jax.tree_util.all_leaves([values]) and len(shapes[0]) == 1:
        array = jnp.asarray(leaves[0], dtype=float)
    elif leaves and all(shape == () for shape in shapes):
        array = jnp.stack([jnp.asarray(leaf, dtype=float) for leaf in leaves])
    else:
        raise ValueError(
            f"`{name}` should be an array of shape [K] or a pytree of K scalars, one for each "
            f"loss, got leaves of shapes {shapes}."
        )
    if num_losses is not None and array.size != num_losses:
        raise ValueError(
            f"`{name}` should have {num_losses} entries, one for each loss, got {array.size}."
        )
    return array


def component_names(losses: PyTree) -> list[str] | None:
    """The K paths in the losses; None for an array."""
    if jax.tree_util.all_leaves([losses]):
        return None
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(losses)]


def check_names(name: str, values: PyTree, loss_names: list[str] | None) -> None:
    """Raises if ``values`` have names, not mere positions, and they are not the losses'."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(values)]
    keys = [key for path in paths for key in path]
    if loss_names is None or all(isinstance(key, jax.tree_util.SequenceKey) for key in keys):
        return
    names = [jax.tree_util.keystr(path) for path in paths]
    if names != loss_names:
        raise ValueError(
            f"The {name} should have the names of the losses in their order, "
            f"{', '.join(loss_names)}, got {', '.join(names)}."
        )


def dtype_of(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_numeric(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))
