"""Weights that make the principal components of the gradients equally long."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from softadapt_optax._reductions import diagonal_of, max_over, sum_over
from softadapt_optax._solvers.matrices import root_powers
from softadapt_optax._solvers.spectrum import in_basis, spectrum_of

Scale = Literal["min", "median", "rmse"]


def aligned_weights(
    gramian: Float[Array, "K K"], counted: Bool[Array, " K"], scale: Scale
) -> Float[Array, " K"]:
    r"""The weights :math:`\sqrt{\lambda} \, V \Lambda^{-1/2} V^T q` for equal q of sum 1.

    Of the eigenvalues :math:`\Lambda` of the Gramian those above K times the rounding of the
    largest, K the losses that count; :math:`\lambda` is the least of them, the lower of their
    medians, or their mean.
    """
    shares = counted.astype(gramian.dtype)
    shares = shares / jnp.maximum(sum_over(shares), 1.0)
    masked = jnp.where(counted[:, None] & counted[None, :], gramian, 0.0)
    largest = jax.lax.stop_gradient(max_over(diagonal_of(masked)))
    is_normal = largest >= float(np.finfo(gramian.dtype).tiny)
    _, inverse = root_powers(jnp.where(is_normal, largest, 1.0))
    return _aligned(scale, masked * inverse * inverse, shares)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _aligned(
    scale: Scale, gramian: Float[Array, "K K"], shares: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The weights; ``shares`` are q, 0 for losses that do not count."""
    values, vectors = spectrum_of(gramian)
    is_kept = _is_kept(values, shares)
    roots = jnp.sqrt(jnp.where(is_kept, values, 1.0))
    length = jnp.sqrt(jnp.sum(_choice(scale, values, is_kept) * jnp.where(is_kept, values, 0.0)))
    along = jnp.sum(vectors * shares[:, None], axis=0)
    return jnp.sum(vectors * jnp.where(is_kept, length / roots * along, 0.0)[None, :], axis=1)


@_aligned.defjvp
def _aligned_jvp(
    scale: Scale, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """By divided differences of the inverse root, which equal eigenvalues have too."""
    weights = _aligned(scale, *primals)
    gramian, shares = primals
    values, vectors = spectrum_of(gramian)
    is_kept = _is_kept(values, shares)
    change = in_basis(tangents[0], vectors)
    choice = _choice(scale, values, is_kept)
    square = jnp.sum(choice * jnp.where(is_kept, values, 0.0))
    square = jnp.where(square > 0, square, 1.0)
    along = jnp.sum(vectors * shares[:, None], axis=0)
    differences = _divided_differences(values, is_kept)
    turned = jnp.sum(differences * change * along[None, :], axis=1)
    own = jnp.sqrt(square) * jnp.sum(vectors * turned[None, :], axis=1)
    return weights, own + 0.5 * jnp.sum(choice * diagonal_of(change)) / square * weights


def _is_kept(values: Float[Array, " K"], shares: Float[Array, " K"]) -> Bool[Array, " K"]:
    """Which eigenvalues are told apart from zero."""
    count = sum_over((shares > 0).astype(values.dtype))
    return values > max_over(values) * count * float(np.finfo(values.dtype).eps)


def _choice(
    scale: Scale, values: Float[Array, " K"], is_kept: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """The shares of the eigenvalues in the one that all become; zeros if none is kept."""
    rank = jnp.maximum(sum_over(is_kept.astype(values.dtype)), 1.0)
    if scale == "rmse":
        return is_kept.astype(values.dtype) / rank
    place = 0.0 if scale == "min" else jnp.floor((rank - 1.0) / 2.0)
    indices = jnp.arange(len(values))
    is_before = values[None, :] < values[:, None]
    is_before |= (values[None, :] == values[:, None]) & (indices[None, :] < indices[:, None])
    ranks = sum_over((is_before & is_kept[None, :]).astype(values.dtype))
    return (is_kept & (ranks == place)).astype(values.dtype)


def _divided_differences(
    values: Float[Array, " K"], is_kept: Bool[Array, " K"]
) -> Float[Array, "K K"]:
    """Those of the inverse root, which is zero for eigenvalues that are not kept."""
    roots = jnp.sqrt(jnp.where(is_kept, values, 1.0))
    both = -1.0 / (roots[:, None] * roots[None, :] * (roots[:, None] + roots[None, :]))
    gaps = values[:, None] - values[None, :]
    floor = float(np.finfo(values.dtype).eps) * max_over(values)
    sizes = jnp.maximum(jnp.abs(gaps), floor)
    inverse = jnp.where(is_kept[:, None], 1.0 / roots[:, None], 1.0 / roots[None, :])
    one = inverse / jnp.where(sizes > 0, sizes, 1.0)
    is_pair, is_one = is_kept[:, None] & is_kept[None, :], is_kept[:, None] ^ is_kept[None, :]
    return jnp.where(is_pair, both, jnp.where(is_one, one, 0.0))
