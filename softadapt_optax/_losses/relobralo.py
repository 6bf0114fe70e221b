"""Weights from each loss over what it was, now and then over what it was at the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree, UInt32

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_eps, check_number, check_seed, size_of
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import EPS, exponentials, positive_or, ratio_of
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class ReLoBRaLoState(NamedTuple):
    """State of :func:`relobralo`.

    Attributes:
      relative_weights: the weights before priorities, shape [K]; those of the losses that count
        sum to the number of them, but for 1 at the first record of a loss.
      initial_losses: the first record of each loss, shape [K].
      previous_losses: the last record of each loss, shape [K].
      lookback_key: data of the random key for the next look back, uint32.
    """

    relative_weights: Float[Array, " K"]
    initial_losses: Float[Array, " K"]
    previous_losses: Float[Array, " K"]
    lookback_key: UInt32[Array, "..."]


def relobralo(
    num_losses: int | Sequence[str],
    seed: ArrayLike = 0,
    *,
    alpha: ArrayLike = 0.999,
    temperature: ArrayLike = 0.1,
    expected_rho: ArrayLike = 0.9999,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""Relative loss balancing with random lookback (Bischof and Kraus 2021).

    Made for physics-informed networks. :math:`h = \sum_k \lambda_k \nabla f_k(x)` with (Eq. 11)

    .. math::

      \lambda(t) = \alpha \bigl(\rho \, \lambda(t-1) + (1 - \rho) \, \hat\lambda(t, 0)\bigr)
      + (1 - \alpha) \, \hat\lambda(t, t-1), \qquad
      \hat\lambda_k(t, t') = K \, \mathrm{softmax}_k\Bigl(\frac{f_k(t)}{T f_k(t')}\Bigr),

    where :math:`\rho` is 1 with probability ``expected_rho``, else 0: a look back to the start.
    A loss that fell less than the others gets more weight. All weights are 1 at first.

    The ratios do not depend on the units. With single batches they are noisy, which is what
    :math:`\alpha` near 1 is for; a loss that is stuck at a constant value does not stand out but
    by the looks back. T, :math:`\alpha` and :math:`\rho` matter; the authors searched for them.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      seed: an integer, Python's or traced, that starts the random numbers.
      alpha: :math:`\alpha` in [0, 1), the share of the past. Default: that of the paper for
        Burgers' and Kirchhoff's equations; 0.99 for Helmholtz'.
      temperature: T > 0; the higher, the nearer to equal weights. In the paper 0.1, 0.01 and
        0.00001.
      expected_rho: the probability in [0, 1] that the past is that of the step before and not of
        the start.
      weight_sum: the sum of the weights, > 0. Default: K, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: record the mean of this many consecutive losses, and hold the weights in between.
        Static.
      eps: ratios are at most 1 / ``eps`` in size, > 0. Of two losses of zero the ratio is 1.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> tx = sa.relobralo(num_losses=2, alpha=0.0, temperature=1.0)  # no memory
      >>> state = tx.init(None)
      >>> for losses in ([4.0, 4.0], [2.0, 4.0]):
      ...     _, state = tx.update(jnp.zeros(2), state, losses=jnp.asarray(losses))
      >>> print([round(float(weight), 3) for weight in sa.loss_weights(state)])  # 2 softmax(0.5, 1)
      [0.755, 1.245]

    References:
      Bischof and Kraus, `Multi-Objective Loss Balancing for Physics-Informed Deep Learning
      <https://arxiv.org/abs/2110.09813>`_, 2021, Eq. 11.
    """
    check_seed("seed", seed)
    check_number("alpha", alpha, nonnegative=True, below=1.0)
    check_number("temperature", temperature, positive=True)
    check_number("expected_rho", expected_rho, nonnegative=True, at_most=1.0)
    check_eps(eps)

    def init(num_losses: int) -> ReLoBRaLoState:
        zeros = jnp.zeros(num_losses, dtype=float)
        key = jax.random.key_data(jax.random.key(seed))
        return ReLoBRaLoState(jnp.ones_like(zeros), zeros, zeros, key)

    def update(
        components: Components, state: ReLoBRaLoState
    ) -> tuple[Float[Array, " K"], ReLoBRaLoState]:
        losses, counted = components.losses, components.counted
        keys = jax.random.split(jax.random.wrap_key_data(state.lookback_key))
        is_first = components.record_counts <= 1
        count = sum_over(counted.astype(losses.dtype))

        def relative_to(reference: Float[Array, " K"]) -> Float[Array, " K"]:
            ratios = ratio_of(losses, reference, positive_or(eps, EPS, losses.dtype))
            logits = jnp.where(is_first, 1.0, ratios) / jnp.asarray(temperature, losses.dtype)
            found = exponentials(jnp.nan_to_num(logits), counted)
            return count * found / jnp.maximum(sum_over(found), 1e-30)

        stays = jax.random.uniform(keys[0], (), losses.dtype) < expected_rho
        past = jnp.where(stays, state.relative_weights, relative_to(state.initial_losses))
        share = jnp.asarray(alpha, losses.dtype)
        weights = share * past + (1.0 - share) * relative_to(state.previous_losses)
        weights = jnp.where(is_first, 1.0, weights)
        return weights, ReLoBRaLoState(
            relative_weights=weights,
            initial_losses=jnp.where(is_first, losses, state.initial_losses),
            previous_losses=losses,
            lookback_key=jax.random.key_data(keys[1]),
        )

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=size_of(num_losses) if weight_sum is None else weight_sum,
        every=every,
    )
