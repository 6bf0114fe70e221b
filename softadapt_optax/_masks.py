"""Masks of parameters: pytrees of bools with the parameters' structure or a prefix of it."""

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from softadapt_optax._shapes import listed, shapes_by_path


def merge(mask: PyTree[bool], under: PyTree, outside: PyTree) -> PyTree:
    """The leaves of ``under`` where the mask is True, elsewhere those of ``outside``."""
    return _map_mask(lambda keep, first, second: first if keep else second, mask, under, outside)


def select(mask: PyTree[bool] | None, tree: PyTree) -> PyTree:
    if mask is None:
        return tree
    return _map_mask(lambda keep, subtree: subtree if keep else None, mask, tree)


def _map_mask(function: Callable[..., PyTree], mask: PyTree[bool], *trees: PyTree) -> PyTree:
    try:
        return jax.tree.map(function, mask, *trees)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "A mask of parameters, such as `shared`, should be a pytree of bools with the "
            "structure of the parameters or a prefix of it, whose branches are all there. The "
            f"parameters have leaves at {listed(shapes_by_path(trees[0]).keys())}, got a mask at "
            f"{listed(shapes_by_path(mask).keys())}. Likely cause: a branch that is False was left "
            'out, or a level such as Flax\'s "params"; a function of the parameters that calls '
            "`jax.tree_util.tree_map_with_path` fits any structure."
        ) from error
