"""Steps of Barzilai and Borwein, as an Optax transformation that ends a chain."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class BarzilaiBorweinState(NamedTuple):
    """What the next step needs of the one before.

    Attributes:
      step_count: the number of steps taken, int32.
      params: the parameters before the last step.
      gradient: the gradient there.
    """

    step_count: jax.Array
    params: optax.Params
    gradient: optax.Updates


def barzilai_borwein(
    min_step: float = 1e-4, max_step: float = 1e-1, *, first_step: float = 1e-3, long: bool = False
) -> optax.GradientTransformation:
    r"""Gradient descent whose step follows the curvature along the last step.

    With :math:`s = x_i - x_{i-1}` and :math:`y = g_i - g_{i-1}`, the updates are
    :math:`-\eta_i g_i` with (Barzilai and Borwein 1988, Eqs. 6 and 5)

    .. math::

      \eta_i = \frac{|s^T y|}{y^T y} \quad\text{or, if } \texttt{long},\quad
      \eta_i = \frac{s^T s}{|s^T y|},

    clipped to [``min_step``, ``max_step``]. The absolute value keeps the step positive where the
    curvature is negative. Where the gradient does not change at all the step is ``max_step``.

    ``updates`` are gradients; behind a weighting, those of the weighted sum, so that a change of
    the weights enters y as curvature does. ``params`` has to be passed.

    Args:
      min_step: the shortest step, > 0.
      max_step: the longest step, at least ``min_step``.
      first_step: the step before there are differences, > 0; it is not clipped.
      long: the longer of the two steps.

    Returns:
      An ``optax.GradientTransformation``.

    Raises:
      ValueError: a step is not positive, the bounds are reversed, or ``params`` is missing.
    """
    if not 0 < min_step <= max_step:
        raise ValueError(
            f"`min_step` and `max_step` should be 0 < min_step <= max_step, got {min_step} and "
            f"{max_step}."
        )

    if not first_step > 0:
        raise ValueError(f"`first_step` should be positive, got {first_step}.")

    def init(params: optax.Params) -> BarzilaiBorweinState:
        zeros = optax.tree.zeros_like  # and not `params`, whose buffers may be donated
        return BarzilaiBorweinState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(
        updates: optax.Updates, state: BarzilaiBorweinState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, BarzilaiBorweinState]:
        if params is None:
            raise ValueError("`params` should be passed to `update`: the step depends on them.")
        s = optax.tree.sub(params, state.params)
        y = optax.tree.sub(updates, state.gradient)
        curvature = jnp.abs(optax.tree.vdot(s, y))
        if long:
            length, divisor = optax.tree.vdot(s, s), curvature
        else:
            length, divisor = curvature, optax.tree.vdot(y, y)
        has_changed = divisor > 0
        step = jnp.where(has_changed, length / jnp.where(has_changed, divisor, 1.0), max_step)
        step = jnp.clip(step, min_step, max_step)
        step = jnp.where(state.step_count == 0, first_step, step)
        new_state = BarzilaiBorweinState(optax.safe_increment(state.step_count), params, updates)
        return optax.tree.scale(-step, updates), new_state

    return optax.GradientTransformation(init, update)
