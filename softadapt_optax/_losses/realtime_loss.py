"""Weights from the current value of each loss."""

from __future__ import annotations

from collections.abc import Sequence

import optax
from jaxtyping import ArrayLike, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_eps
from softadapt_optax._scaling import EPS, inverse_sizes
from softadapt_optax._units import Units
from softadapt_optax._weighting import stateless


def realtime_loss(
    num_losses: int | Sequence[str],
    *,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights each loss by the inverse of its current value.

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad \alpha_k = \frac{1}{|f_k(x_t)|},

    with the weight held constant in the differentiation, so that for positive losses
    :math:`h = \sum_k \nabla \log f_k`: descent on their geometric mean. Its direction does
    not change when a loss is rescaled; it does when a constant is added to one. A loss that
    can come close to zero takes over, as its weight has no bound but 1 / ``eps``.

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
      eps: losses of smaller size are weighted as if they had this one, > 0.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = optax.chain(sa.realtime_loss(num_losses=2), optax.sgd(0.1))
      >>> params = jnp.asarray(1.0)
      >>> opt_state = tx.init(params)
      >>> losses_fn = lambda x: {"fit": (x - 3.0) ** 2, "size": 8.0 * x**2}
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params)
      >>> print(sa.loss_weights(opt_state))  # 1 / 4 and 1 / 8
      [0.25  0.125]

    References:
      Jianlin Su, *Multi-task learning, part 1: in the name of the loss* (in Chinese),
      Scientific Spaces (kexue.fm), 2022, section on the real-time state.
    """
    check_eps(eps)

    return balance(
        stateless(lambda components: inverse_sizes(components.losses, eps)),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
