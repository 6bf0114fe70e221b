"""Weights from the coefficient of variation of each loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._scaling import EPS, mean_of, ratio_of
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class CoVWeightingState(NamedTuple):
    """State of :func:`cov_weighting`.

    Attributes:
      mean_losses: the running mean of each loss, shape [K].
      mean_ratios: that of each loss over its mean before, shape [K].
      squared_deviations: the sum of those of the ratios from their mean, shape [K].
    """

    mean_losses: Float[Array, " K"]
    mean_ratios: Float[Array, " K"]
    squared_deviations: Float[Array, " K"]


def cov_weighting(
    num_losses: int | Sequence[str],
    decay: ArrayLike | None = None,
    *,
    weight_sum: ArrayLike = 1.0,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights by how much each loss varies over its mean (Groenendijk et al. 2021).

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha_k = \frac{c_k}{\sum_\ell c_\ell}, \quad
      c_k = \frac{\sigma(\ell_k)}{\mu(\ell_k)}, \quad
      \ell_k = \frac{f_k(x_t)}{\mu(f_k)_{t-1}},

    with the running means :math:`\mu` and standard deviation :math:`\sigma` of all records before
    this one. A loss that still moves, over its own mean, gets weight; one that stands still has
    arrived, or is stuck: the method cannot tell. Noise of batches counts as movement. Until a loss
    has two records it counts as much as the others on average. A loss over a mean of zero is at
    most :math:`10^8`, and 1 if it is zero itself.

    The statistics do not depend on the units of the losses, but the weights are on the losses
    themselves: for losses in different units give ``units``.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      decay: the share that running means keep of themselves at each record, in (0, 1), so that
        they forget; the deviations are those of all records, as in the authors' code. Default:
        none, the means of all records.
      weight_sum: the sum of the weights, > 0.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: record the mean of this many consecutive losses, and hold the weights in between.
        Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> tx = sa.cov_weighting(num_losses=2)
      >>> state = tx.init(None)
      >>> for losses in ([4.0, 2.0], [3.0, 2.1], [2.0, 2.0], [1.5, 2.1], [1.0, 2.0]):
      ...     _, state = tx.update(jnp.zeros(2), state, losses=jnp.asarray(losses))
      >>> weights = sa.loss_weights(state)  # the first falls, the second trembles
      >>> bool(weights[0] > 5 * weights[1])
      True

    References:
      Groenendijk, Karaoglu, Gevers and Mensink, `Multi-Loss Weighting with Coefficient of
      Variations <https://arxiv.org/abs/2009.01717>`_, 2021.
    """
    if decay is not None:
        check_number("decay", decay, positive=True, below=1.0)

    def init(num_losses: int) -> CoVWeightingState:
        zeros = jnp.zeros(num_losses, dtype=float)
        return CoVWeightingState(zeros, zeros, zeros)

    def update(
        components: Components, state: CoVWeightingState
    ) -> tuple[Float[Array, " K"], CoVWeightingState]:
        losses = components.losses
        counts = components.record_counts.astype(losses.dtype)  # this record included
        before = jnp.maximum(counts - 1.0, 1.0)
        is_first, is_warm = counts <= 1, counts > 2

        deviations = jnp.sqrt(state.squared_deviations / before + EPS)
        coefficients = deviations / jnp.maximum(jnp.abs(state.mean_ratios), EPS)
        weighed = components.counted & is_warm
        fallback = mean_of(coefficients, weighed)
        coefficients = jnp.where(is_warm, coefficients, jnp.where(fallback > 0, fallback, 1.0))

        kept = 1.0 - 1.0 / jnp.maximum(counts, 1.0) if decay is None else jnp.asarray(decay)
        kept = jnp.where(is_first, 0.0, kept.astype(losses.dtype))
        ratios = jnp.where(is_first, 1.0, ratio_of(losses, state.mean_losses, EPS))
        mean_ratios = kept * state.mean_ratios + (1.0 - kept) * ratios
        products = (ratios - state.mean_ratios) * (ratios - mean_ratios)
        return coefficients, CoVWeightingState(
            mean_losses=kept * state.mean_losses + (1.0 - kept) * losses,
            mean_ratios=mean_ratios,
            squared_deviations=state.squared_deviations + jnp.where(is_first, 0.0, products),
        )

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
