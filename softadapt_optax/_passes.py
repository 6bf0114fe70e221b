"""Backward passes: one for a weighted sum of the losses, or one for each loss."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from softadapt_optax._cotangents import as_cotangents, scaled_back
from softadapt_optax._devices import axes_of, one_of, spread

Pushforward = Callable[[list[Array]], list[Array]]  # from tangents of leaves to those of K losses


class BackwardPasses(NamedTuple):
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
