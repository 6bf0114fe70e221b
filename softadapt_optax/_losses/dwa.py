"""Weights from how much each loss fell from one epoch to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_eps, check_integer, check_number, size_of
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import EPS, exponentials, positive_or, ratio_of
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class DWAState(NamedTuple):
    """State of :func:`dwa`.

    Attributes:
      loss_history: the last recorded losses, shape [2 window, K], newest last; zeros where
        nothing is recorded yet.
    """

    loss_history: Float[Array, "records K"]


def dwa(
    num_losses: int | Sequence[str],
    temperature: ArrayLike = 2.0,
    *,
    window: int = 1,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""Dynamic weight average: weights from the ratio of two mean losses (Liu et al. 2019).

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha_k = K \, \frac{e^{r_k / T}}{\sum_\ell e^{r_\ell / T}}, \quad
      r_k = \frac{\bar f_k(t)}{\bar f_k(t - 1)},

    where :math:`\bar f_k(t)` is the mean of the loss over the last ``window`` records and
    :math:`\bar f_k(t - 1)` that over as many before. In the paper a record is the mean of an
    epoch: ``every=steps_per_epoch`` with ``window=1``. Other implementations take the mean of the
    last 25 steps over that of the 25 before: ``window=25``. Until ``2 window`` values of a loss
    are recorded its ratio counts as 1.

    The ratios do not depend on the units. They are close to 1 wherever training is slow, and the
    weights of T = 2 then as close: the method does little. With single batches as records they are
    mostly noise, and a loss that is stuck looks like one that has arrived.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      temperature: T > 0; the higher, the nearer to equal weights.
      window: the number of records in each of the two means, at least 1. Static.
      weight_sum: the sum of the weights, > 0. Default: K, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: record the mean of this many consecutive losses, and hold the weights in between.
        Static.
      eps: ratios are at most 1 / ``eps``, > 0. Of two means of zero the ratio is 1.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> tx = sa.dwa(num_losses=2, temperature=1.0)
      >>> state = tx.init(None)
      >>> for losses in ([4.0, 4.0], [2.0, 4.0]):  # the first falls to a half
      ...     _, state = tx.update(jnp.zeros(2), state, losses=jnp.asarray(losses))
      >>> print([round(float(weight), 3) for weight in sa.loss_weights(state)])  # 2 softmax(0.5, 1)
      [0.755, 1.245]

    References:
      Liu, Johns and Davison, `End-to-End Multi-Task Learning with Attention
      <https://arxiv.org/abs/1803.10704>`_, 2019, Eq. 7.
    """
    check_number("temperature", temperature, positive=True)
    check_integer("window", window, at_least=1)
    check_eps(eps)

    def init(num_losses: int) -> DWAState:
        return DWAState(jnp.zeros((2 * window, num_losses), dtype=float))

    def update(components: Components, state: DWAState) -> tuple[Float[Array, " K"], DWAState]:
        losses, counts = components.losses, components.record_counts
        history = jnp.concatenate([state.loss_history[1:], losses[None]])
        history = jnp.where(components.is_new[None], history, state.loss_history)
        before, now = (jnp.abs(sum_over(part.T)) / window for part in jnp.split(history, 2))
        ratios = ratio_of(now, before, positive_or(eps, EPS, losses.dtype))
        ratios = jnp.where(counts >= 2 * window, jnp.nan_to_num(ratios), 1.0)
        logits = ratios / jnp.asarray(temperature, losses.dtype)
        return exponentials(jnp.nan_to_num(logits), components.counted), DWAState(history)

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=size_of(num_losses) if weight_sum is None else weight_sum,
        every=every,
    )
