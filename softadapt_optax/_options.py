"""The options that all methods share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from softadapt_optax._component_grads import ComponentGrads
from softadapt_optax._per_loss import (
    Names,
    at_step,
    check_position,
    ordered_array,
    shapes_at_step,
)
from softadapt_optax._state import is_kept
from softadapt_optax._units import Units, units_of
from softadapt_optax._weighting import Needs, Weighting


class Options(NamedTuple):
    """The arguments of :func:`balance`, and what follows from them."""

    weighting: Weighting
    num_losses: int
    names: Names | None
    is_ordered: bool  # by the user, so that lists are in the order of the names
    priorities: PyTree | Callable[[ArrayLike], PyTree]
    weight_sum: ArrayLike | None
    units: Units
    smoothing: ArrayLike
    every: int
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None
    sum_outside: bool
    lean: bool
    needs: Needs  # what the weighting asks for

    @property
    def counts_steps(self) -> bool:
        """Whether the state has to count them."""
        return self.every > 1 or self.has_schedule or self.needs.step

    @property
    def has_schedule(self) -> bool:
        return any(map(callable, jax.tree.leaves(self.priorities)))

    @property
    def holds_weights(self) -> bool:
        """Whether the state has to keep them as the weighting gave them."""
        return self.every > 1 or self.is_smoothed or self.needs.gradients

    @property
    def is_smoothed(self) -> bool:
        return isinstance(self.smoothing, Array) or bool(np.any(self.smoothing != 0))

    def factors(self, step_count: PyTree[Int[Array, ""]]) -> Float[Array, " K"]:
        """The priorities in a step; in the first if steps are not counted."""
        if self.priorities is None:
            return jnp.ones(self.num_losses, dtype=float)
        step = step_count if is_kept(step_count) else jnp.zeros((), dtype=jnp.int32)
        values = at_step(self.priorities, step)
        factors = ordered_array(values, "priorities", self.num_losses, self.names)
        if not self.has_schedule:
            return factors
        # What a schedule gives cannot be refused: it leaves the loss out.
        return jnp.where(jnp.isfinite(factors) & (factors > 0), factors, 0.0)

    def units_in(self, unit_losses: PyTree) -> Float[Array, " K"] | None:
        return units_of(self.units, unit_losses, self.num_losses, self.names)

    def check_names(self, grads: ComponentGrads) -> None:
        """Raises if the losses have names and an option goes by position."""
        loss_names = None if grads.names is None else tuple(grads.names)
        names = self.names if self.is_ordered else None
        given = {"priorities": self.priorities, "units": self.units}
        for name, values in given.items():
            if values is not None and not isinstance(values, str):
                check_position(shapes_at_step(values), name, loss_names, names)
