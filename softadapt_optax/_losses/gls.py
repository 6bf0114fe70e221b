"""Descent on the geometric mean of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_eps
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import EPS, bounded_exp, inverse_sizes, mean_of
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def gls(
    num_losses: int | Sequence[str],
    *,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""The gradient of the geometric mean of the losses (GLS, Chennupati et al. 2019).

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x) = \nabla \Bigl(\prod_k f_k(x)\Bigr)^{1 / K}, \qquad
      \alpha_k = \frac{1}{K f_k(x)} \Bigl(\prod_\ell f_\ell(x)\Bigr)^{1 / K}.

    Its direction is that of :func:`realtime_loss`, which does not change when a loss is rescaled;
    its length is that of one loss and falls with them, where that one's grows. It is made for
    positive losses: of others the size counts. The weight of a loss that goes to zero grows without
    bound (a loss below ``eps`` counts as ``eps``), and that of the others falls.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: weight by the mean of this many consecutive losses and hold the weights in
        between. Static.
      eps: losses of smaller size count as if they had this one, > 0.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> tx = sa.gls(num_losses=2)
      >>> losses_fn = lambda x: (2.0 * x[0], 8.0 * x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.ones(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(sa.loss_weights(state), h)  # of the square root of 16 x_1 x_2
      [1.   0.25] [2. 2.]

    References:
      Chennupati, Sistu, Yogamani and Rawashdeh, `MultiNet++: Multi-Stream Feature Aggregation and
      Geometric Loss Strategy for Multi-Task Learning <https://arxiv.org/abs/1904.08492>`_, 2019.
    """
    check_eps(eps)

    def weigh(components: Components) -> Float[Array, " K"]:
        counted = components.counted
        logs = -jnp.log(inverse_sizes(components.losses, eps))
        return bounded_exp(mean_of(logs, counted) - logs) / jnp.maximum(
            sum_over(counted.astype(logs.dtype)), 1.0
        )

    return balance(
        stateless(weigh),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
