"""Scales for what goes through a pass in float16: weights as cotangents, directions as tangents."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from softadapt_optax._devices import axes_of, largest_over, spread


def as_cotangents(
    weights: Float[Array, " K"], components: Sequence[Array]
) -> tuple[list[Array], Float[Array, ""] | None]:
    """K weights in the dtypes of their losses, and the power of two that they were scaled by.

    A weight may be more than float16 can hold, which ends at 65504: that of a small loss. All are
    then scaled alike, and the gradient has to be scaled back. None if all dtypes have the range
    of float32, as bfloat16 has.
    """
    dtypes = [component.dtype for component in components]
    is_narrow = np.asarray([_is_narrow(dtype) for dtype in dtypes])
    scale = None
    if is_narrow.any():
        scale = _scale(weights, is_narrow, min(map(_end, dtypes)) - 1)
        weights = weights * scale
    pairs = zip(jnp.unstack(weights), dtypes, strict=True)
    return [weight.astype(dtype) for weight, dtype in pairs], scale


def scaled_back(grads: PyTree, scale: Float[Array, ""] | None) -> PyTree:
    """The gradients over the scale of the cotangents; divided in float32 if they are float16."""
    if scale is None:
        return grads

    def over_scale(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        wide = scale.dtype if _is_narrow(leaf.dtype) else leaf.dtype
        return (leaf.astype(wide) / scale.astype(wide)).astype(leaf.dtype)

    return jax.tree.map(over_scale, grads)


def scale_of_direction(
    direction: Sequence[Array], leaves: Sequence[Array]
) -> Float[Array, ""] | None:
    """The power of two that brings a direction to about 1, for leaves of float16, or None."""
    if not any(_is_narrow(leaf.dtype) for leaf in leaves):
        return None
    axes = axes_of(direction)
    sizes = [jnp.max(jnp.abs(leaf), initial=0.0).astype(float) for leaf in direction]
    largest = largest_over(axes, functools.reduce(jnp.maximum, [spread(s, axes) for s in sizes]))
    power = jnp.where(largest > 0, jnp.frexp(jax.lax.stop_gradient(largest))[1], 0)
    return jnp.exp2(jnp.clip(-power, -_HIGHEST, _HIGHEST).astype(float))


def _scale(
    weights: Float[Array, " K"], is_narrow: Bool[np.ndarray, " K"], limit: int
) -> Float[Array, ""]:
    """The power of two to scale the weights by: 1 if narrow dtypes hold those of their losses.

    If they do not, the largest comes to just below 2**limit, so that the others, those beside a
    loss of 0 without a gradient, say, keep their digits. If all are small, the largest comes to 1.
    """
    sizes = jnp.abs(jax.lax.stop_gradient(weights))
    powers = jnp.where(sizes > 0, jnp.frexp(sizes)[1], -_HIGHEST)  # sizes are below 2**powers
    up = jnp.clip(1 - jnp.max(powers), 0, _HIGHEST)
    down = jnp.minimum(limit - jnp.max(powers[is_narrow]), 0)
    return jnp.exp2((up + down).astype(weights.dtype))


_HIGHEST = 100  # the power of a scale that leaves it finite in float32


def _is_narrow(dtype: Any) -> bool:
    """Whether float32 has numbers that are too large for a dtype."""
    return _end(dtype) < _end(jnp.float32)


def _end(dtype: Any) -> int:
    """The power of two at which a dtype ends."""
    return int(jnp.finfo(dtype).maxexp)  # type: ignore[no-untyped-call]
