"""Weights from learned uncertainties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_optimizer
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting, repeated


class UncertaintyState(NamedTuple):
    """State of :func:`uncertainty`.

    Attributes:
      log_variances: the learned log sigma_k^2, shape [K].
      variance_optimizer_state: state of the optimizer that learns them.
    """

    log_variances: Float[Array, " K"]
    variance_optimizer_state: PyTree


def uncertainty(
    num_losses: int | Sequence[str],
    optimizer: optax.GradientTransformation | None = None,
    *,
    penalty: Literal["log", "log1p", "imtl_l"] = "log",
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights each loss by its learned uncertainty (Kendall, Gal and Cipolla 2018).

    Minimises, over the standard deviations :math:`\sigma_k` too,

    .. math::

      \sum_{k=1}^K \frac{1}{2 \sigma_k^2} f_k(x) + P(\sigma_k), \qquad
      P(\sigma) = \log \sigma \quad \text{or} \quad \log(1 + \sigma^2),

    so that :math:`h = \sum_k \alpha_k \nabla f_k` with :math:`\alpha_k = 1 / (2 \sigma_k^2)`.
    What is learned, by an optimizer of its own inside the state, is
    :math:`s_k = \log \sigma_k^2`, which keeps the weights positive. It starts at 0, all
    weights at 1/2. With the penalty of the paper it comes to rest where
    :math:`\sigma_k^2 = f_k`, weights :math:`1 / (2 f_k)`: where the losses change slowly it is
    :func:`realtime_loss`, smoothed and halved.

    It is made for non-negative losses, the mean squared error of a Gaussian likelihood above
    all. The weight of a loss that goes to zero grows without bound, with either penalty, and so
    does, exponentially, that of a negative loss.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      optimizer: the Optax optimizer of :math:`s`, one that needs gradients only. Default:
        ``optax.adam(1e-2)``.
      penalty: ``"log"``, :math:`\log \sigma`, that of the paper; or ``"log1p"``,
        :math:`\log(1 + \sigma^2)`, which is never negative, so that the objective is not
        either; its weights rest at :math:`2 / (f_k + \sqrt{f_k^2 + 8 f_k})`, nearer to 1/2; or
        ``"imtl_l"``, IMTL-L, twice the objective with ``"log"``: weights start at 1 and rest at
        :math:`1 / f_k`.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: m, step :math:`s` once in m steps, with the mean of the losses, and then m times, so
        that it learns as fast as with m = 1. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.uncertainty(num_losses=2, optimizer=optax.sgd(1.0))
      >>> state = tx.init(None)
      >>> for _ in range(200):  # losses that stay as they are
      ...     _, state = tx.update(jnp.zeros(2), state, losses=jnp.asarray([2.0, 0.5]))
      >>> print(sa.loss_weights(state))  # 1 / (2 * 2.0) and 1 / (2 * 0.5)
      [0.25 1.  ]

    References:
      Kendall, Gal and Cipolla, `Multi-Task Learning Using Uncertainty to Weigh Losses for
      Scene Geometry and Semantics <https://arxiv.org/abs/1705.07115>`_, 2018, Eq. 7. Liebel and
      Körner, `Auxiliary Tasks in Multi-task Learning <https://arxiv.org/abs/1805.06334>`_,
      2018, for the penalty that is never negative. Liu, Li, Kuang, Xue, Chen, Yang, Liao and
      Zhang, `Towards Impartial Multi-task Learning
      <https://openreview.net/forum?id=IMPnRXEWpvr>`_, 2021, Eq. 6, for IMTL-L.
    """
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    check_optimizer("optimizer", optimizer)
    check_choice("penalty", penalty, ("log", "log1p", "imtl_l"))
    half = 1.0 if penalty == "imtl_l" else 0.5

    def init(num_losses: int) -> UncertaintyState:
        log_variances = jnp.zeros(num_losses, dtype=float)
        return UncertaintyState(log_variances, optimizer.init(log_variances))

    def update(
        components: Components, state: UncertaintyState
    ) -> tuple[Float[Array, " K"], UncertaintyState]:
        s = state.log_variances
        weights = half * jnp.exp(-s)
        penalty_slopes = jax.nn.sigmoid(s) if penalty == "log1p" else half
        slopes = penalty_slopes - weights * components.losses
        slopes = jnp.where(components.counted, slopes, 0.0)
        steps, optimizer_state = optimizer.update(slopes, state.variance_optimizer_state, s)
        # Beyond it the weights of a loss that is zero for long would overflow, and stay there.
        limit = float(np.log(np.finfo(s.dtype).max)) / 2
        s_next = jnp.clip(optax.apply_updates(s, steps), -limit, limit)
        return weights, UncertaintyState(s_next, optimizer_state)

    return balance(
        repeated(Weighting(init, update), every),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
