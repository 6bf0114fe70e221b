"""Shapes of the leaves of trees, as messages say them."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Shapes = dict[str, tuple[int, ...]]

_MOST = 12  # so many leaves tell two trees apart; a large model has hundreds


def shapes_by_path(tree: PyTree) -> Shapes:
    """Those of all leaves, () for what has none."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path) or "the root": () if _has_none(leaf) else jnp.shape(leaf)
        for path, leaf in leaves
    }


def _has_none(leaf: Any) -> bool:
    return isinstance(leaf, str) or callable(leaf)


def listed(items: Shapes | Iterable[str]) -> str:
    """The first of some paths, with their shapes where they are known, and how many there are."""
    if isinstance(items, dict):
        items = [f"{path} {shape}" for path, shape in items.items()]
    items = list(items)
    rest = f" and {len(items) - _MOST} more" if len(items) > _MOST else ""
    return (", ".join(items[:_MOST]) or "none") + rest
