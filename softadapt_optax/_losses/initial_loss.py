"""Weights from the value of each loss at the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_eps, check_integer
from softadapt_optax._scaling import EPS, inverse_sizes
from softadapt_optax._state import running_mean
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class InitialLossState(NamedTuple):
    """State of :func:`initial_loss`.

    Attributes:
      initial_losses: mean of the first losses, shape [K].
    """

    initial_losses: Float[Array, " K"]


def initial_loss(
    num_losses: int | Sequence[str],
    steps: int = 1,
    *,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights each loss by the inverse of its initial value.

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha_k = \frac{1}{|\bar f_k|}, \quad
      \bar f_k = \frac{1}{m} \sum_{t=1}^{m} f_k(x_t)

    with m = ``steps``. It takes the units out of the losses: all count the same at the start.
    Until m losses are seen their mean so far is used, afterwards the weights are constant.
    With m = 1 they depend on the first batch alone; where the initial value is known,
    :func:`prior_loss` does without.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      steps: m, the number of steps in the mean (of records with ``every``), at least 1.
        Static.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: record the mean of this many consecutive losses. Static.
      eps: means of smaller size count as if they had this one, > 0.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = optax.chain(sa.initial_loss(num_losses=2), optax.sgd(0.1))
      >>> params = jnp.asarray(1.0)
      >>> opt_state = tx.init(params)
      >>> losses_fn = lambda x: {"fit": (x - 3.0) ** 2, "size": 8.0 * x**2}
      >>> for _ in range(5):
      ...     losses, grads = sa.value_and_component_grads(losses_fn)(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(sa.loss_weights(opt_state))  # 1 / 4 and 1 / 8, those of the first step
      [0.25  0.125]

    References:
      Jianlin Su, *Multi-task learning, part 1: in the name of the loss* (in Chinese),
      Scientific Spaces (kexue.fm), 2022, section on the initial state.
    """
    check_integer("steps", steps, at_least=1)
    check_eps(eps)

    def init(num_losses: int) -> InitialLossState:
        return InitialLossState(initial_losses=jnp.zeros(num_losses, dtype=float))

    def update(
        components: Components, state: InitialLossState
    ) -> tuple[Float[Array, " K"], InitialLossState]:
        counts = components.record_counts
        means = running_mean(
            state.initial_losses, components.losses, counts.astype(components.losses.dtype)
        )
        is_early = components.is_new & (counts <= steps)
        means = jnp.where(is_early, means, state.initial_losses)
        return inverse_sizes(means, eps), InitialLossState(means)

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
