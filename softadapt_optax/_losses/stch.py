"""Smooth Tchebycheff scalarization: descent on a smooth maximum of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_flag, check_number
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import EPS, exponentials, inverse_sizes
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def stch(
    num_losses: int | Sequence[str],
    mu: ArrayLike = 1.0,
    *,
    log: bool = False,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""The gradient of a smooth maximum of the losses (STCH, Lin et al. 2024).

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x) = \nabla \, \mu \log \sum_k e^{f_k(x) / \mu}, \qquad
      \alpha = \mathrm{softmax}(f / \mu).

    The smaller :math:`\mu`, the more the largest loss counts alone: the largest of weighted losses
    (Tchebycheff) reaches every Pareto-optimal point, also where a weighted sum cannot. The
    preferences :math:`\lambda_k` of the paper, :math:`\mu \log \sum_k e^{\lambda_k f_k / \mu}`,
    are ``units`` of :math:`1 / \lambda_k`.

    With ``log`` it is K times the smooth maximum of the logarithms of the losses, :math:`\alpha = K
    \, \mathrm{softmax}(\log(f) / \mu) / f`. With ``units="initial"`` the loss counts most that fell
    least from where it started, as in the authors' code for multi-task learning. Losses should be
    positive, and some stay so: where all of them reach 0 their logarithms have no minimum, the
    gradient grows without bound and training leaves the minimum again.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      mu: :math:`\mu > 0`, in the unit of the losses; with ``log`` without a unit. The paper tries
        0.01 to 1.
      log: whether the maximum is that of the logarithms; losses below 1e-8 count as 1e-8 then.
        Static.
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
      >>> tx = sa.stch(num_losses=2)
      >>> _, state = tx.update(jnp.zeros(2), tx.init(None), losses=jnp.asarray([0.0, jnp.log(3.0)]))
      >>> print([round(float(weight), 3) for weight in sa.loss_weights(state)])
      [0.25, 0.75]

    References:
      Lin, Zhang, Yang, Liu, Wang and Zhang, `Smooth Tchebycheff Scalarization for Multi-Objective
      Optimization <https://arxiv.org/abs/2402.19078>`_, 2024.
    """
    check_number("mu", mu, positive=True)
    check_flag("log", log)

    def weigh(components: Components) -> Float[Array, " K"]:
        losses, counted = components.losses, components.counted
        inverses = inverse_sizes(losses, EPS)
        values = -jnp.log(inverses) if log else losses
        found = exponentials(jnp.nan_to_num(values / jnp.asarray(mu, losses.dtype)), counted)
        shares = found / jnp.maximum(sum_over(found), 1.0)
        count = sum_over(counted.astype(losses.dtype))
        return count * shares * inverses if log else shares

    return balance(
        stateless(weigh),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
