"""Passes: backward for a weighted sum of the losses or for each loss, forward along a direction."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from softadapt_optax._cotangents import as_cotangents, scale_of_direction, scaled_back
from softadapt_optax._devices import Axes, axes_of, one_of, spread, summed_over

Pushforward = Callable[[list[Array]], list[Array]]  # from tangents of leaves to those of K losses


class Derivatives(NamedTuple):
    """What can be asked of K losses at the parameters.

    Attributes:
      pull: from K weights to the gradient of the weighted sum.
      pull_each: to the K gradients.
      push: from a direction like the parameters and a mask of them, or None, to the inner products
        of the K gradients with it.
    """

    pull: Callable[[Float[Array, " K"]], PyTree]
    pull_each: Callable[[], list[PyTree]]
    push: Callable[[PyTree, PyTree[bool] | None], Float[Array, " K"]]


class Passes(NamedTuple):
    """Of K losses.

    Attributes:
      losses: K scalars.
      leaves: what they are differentiated by.
      rebuild: from such leaves to a gradient as the user has it.
    """

    losses: list[Array]
    leaves: list[Array]
    rebuild: Callable[[list[Array]], PyTree]

    def of_sum(self, pushforward: Pushforward, weights: Float[Array, " K"]) -> PyTree:
        """The gradient of the sum by these weights."""
        cotangents, scale = as_cotangents(weights, self.losses)
        axes = axes_of((self.losses, cotangents))
        grads = self._transposed(
            lambda tangents: spread(pushforward(tangents), axes), spread(cotangents, axes)
        )
        return scaled_back(grads, scale)

    def of_each(self, pushforward: Pushforward, is_vectorized: bool | None) -> list[PyTree]:
        """The K gradients, together or apart; None: together on GPU and TPU alone."""
        together = functools.partial(self._together, pushforward)
        apart = functools.partial(self._apart, pushforward)
        return one_of(is_vectorized, together, apart, self.losses)

    def along(self, pushforward: Pushforward, direction: list[Array]) -> Float[Array, " K"]:
        """The inner products of the K gradients with a direction, in one forward pass."""
        scale = scale_of_direction(direction, self.leaves)
        tangents = [_tangent(*pair, scale) for pair in zip(self.leaves, direction, strict=True)]
        # Losses that differ between devices are added up over these, as their gradients are.
        axes = [axes_of(self.losses) - axes_of(leaf) for leaf in self.leaves]

        def part(over: Axes) -> Float[Array, " K"]:
            pairs = zip(tangents, axes, strict=True)
            kept = [t if own == over else jnp.zeros_like(t) for t, own in pairs]
            # XLA on a CPU makes garbage, under `vmap` inside `scan`, of directions that are zeros
            # whatever the parameters are; an optimization barrier does not help.
            kept = [t + 0 * leaf for t, leaf in zip(kept, self.leaves, strict=True)]
            found = pushforward(kept)
            return summed_over(over, jnp.stack([one.astype(float) for one in found]))

        total = functools.reduce(operator.add, map(part, dict.fromkeys(axes)))
        return total if scale is None else total / scale

    def _apart(self, pushforward: Pushforward) -> list[PyTree]:
        # Inside `shard_map` losses that differ between devices, and then all of them, are added
        # up over these, as in a sum of the losses, which differs if one of them does.
        axes = axes_of(self.losses)

        def of_one(k: int) -> PyTree:
            # Transposing one output alone makes the other cotangents symbolic zeros.
            return self._transposed(
                lambda tangents: spread(pushforward(tangents)[k], axes),
                spread(jnp.ones_like(self.losses[k]), axes),
            )

        return [of_one(k) for k in range(len(self.losses))]

    def _together(self, pushforward: Pushforward) -> list[PyTree]:
        axes, ones = axes_of(self.losses), jnp.eye(len(self.losses))
        cotangents = [ones[:, k].astype(loss.dtype) for k, loss in enumerate(self.losses)]
        stacked = jax.vmap(
            lambda cotangents: self._transposed(
                lambda tangents: spread(pushforward(tangents), axes), cotangents
            )
        )(spread(cotangents, axes))
        return [jax.tree.map(operator.itemgetter(k), stacked) for k in range(len(self.losses))]

    def _transposed(self, linear: Callable[[list[Array]], PyTree], cotangents: Any) -> PyTree:
        return self.rebuild(jax.linear_transpose(linear, self.leaves)(cotangents)[0])


def _tangent(leaf: Array, direction: Array, scale: Float[Array, ""] | None) -> Array:
    """The direction of a leaf, typed as the leaf is."""
    tangent = direction.conj()  # for JAX's gradients by complex numbers are conjugates
    if scale is not None:
        tangent = tangent.astype(jnp.promote_types(tangent.dtype, scale.dtype)) * scale
    return spread(tangent.astype(leaf.dtype), axes_of(leaf))
