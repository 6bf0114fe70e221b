"""Weights for losses in an order: each waits for those before it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import bounded_exp
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def causal_weights(
    num_losses: int | Sequence[str],
    epsilon: ArrayLike | optax.Schedule = 1.0,
    *,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights by which each loss waits for those before it (Wang et al. 2022).

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha_k = \exp\Bigl(-\varepsilon \sum_{j < k} f_j(x)\Bigr).

    Made for the residuals of a differential equation on pieces of time, each a loss of its own: a
    network should solve the equation at a time only when it has solved it before. Losses that are
    small have weight 1. Training has ended well when the last weight is near 1. Losses should not
    be negative; the exponent counts as -80 where it is lower.

    The order is that of the losses: of an array or a list as they come, of a dictionary that of the
    names given as ``num_losses``, else of the sorted names.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names in the order of time (see
        :func:`balance`). Static.
      epsilon: :math:`\varepsilon \ge 0`, a number, a traced array, or an Optax schedule. Its unit
        is the inverse of that of the losses. Large values hold later losses back for long; the
        authors raise it from 0.01 to 100.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: weight by the mean of this many consecutive losses and hold the weights in
        between. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> tx = sa.causal_weights(num_losses=3, epsilon=1.0)
      >>> losses = jnp.asarray([0.0, 1.0, 5.0])
      >>> _, state = tx.update(jnp.zeros(3), tx.init(None), losses=losses)
      >>> print(sa.loss_weights(state))  # e^0, e^0, e^-1
      [1.         1.         0.36787945]

    References:
      Wang, Sankaran and Perdikaris, `Respecting causality is all you need for training
      physics-informed neural networks <https://arxiv.org/abs/2203.07404>`_, 2022.
    """
    if not callable(epsilon):
        check_number("epsilon", epsilon, nonnegative=True)

    def weigh(components: Components) -> Float[Array, " K"]:
        losses = jnp.where(components.counted, components.losses, 0.0)
        value = epsilon(components.step) if callable(epsilon) else epsilon
        is_before = jnp.tri(len(losses), k=-1, dtype=bool)
        before = sum_over(jnp.where(is_before, losses[None], 0.0))
        return bounded_exp(-jnp.asarray(value, losses.dtype) * before)

    return balance(
        stateless(weigh),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
