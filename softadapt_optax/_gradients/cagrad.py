"""The direction near the mean gradient that is best for the loss it is worst for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._solvers.conflict_averse import conflict_averse_weights
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def cagrad(
    num_losses: int | Sequence[str],
    c: ArrayLike = 0.5,
    *,
    ridge: ArrayLike = 1e-6,
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Stays near the mean gradient and cares for the worst loss (CAGrad, Liu et al. 2021).

    With the mean :math:`g_0` of the K gradients,

    .. math::

      h = \arg\max_d \min_k \langle \nabla f_k, d \rangle
      \;\text{ over }\; \|d - g_0\| \le c \, \|g_0\|, \qquad
      \alpha_k = \frac{1}{K} + z_k, \quad z \ge 0, \; z^T G z = c^2 \|g_0\|^2,

    with the Gramian G of the gradients. ``c = 0`` is the mean; for c < 1 a training that converges
    does so where the mean of the losses is stationary, and a large c leads to the direction of
    :func:`mgda`. The published code divides the weights by 1 + c\ :sup:`2` or 1 + c, which is a
    matter of the learning rate.

    It helps where some loss is sacrificed to the mean. A loss with large gradients still dominates,
    as the mean and the ball around it are its own: bring the losses to one scale first. Kurin
    et al. and Xin et al. (both 2022) found no gain of methods like this one over fixed weights that
    are tuned as carefully. For c < 1 it goes on at a Pareto-stationary point whose mean gradient is
    not zero, where it has to raise a loss. With c >= 1 the optimum there is not unique; the ridge
    picks one.

    With K = 1 the weight is 1 + c. Identical gradients share theirs equally, so that h is
    (1 + c) times the gradient; two gradients that are opposite and equally long give h = 0. A loss
    whose gradient is zero has the weight 1 / K and is left out of the minimum (with it the
    optimum would be any direction that raises none).

    It costs the K gradients and their products. The weights take about :math:`K^2 2^{K+1}`
    operations without a loop up to K = 8, and about K pivots beyond; both are in two floats, and
    exact to about 1e-6 for the G that is given, on nearly dependent gradients too, as long as
    the ridge is at least 1e-7. With ``ridge=0`` and dependent gradients the best solution on
    independent ones is taken. Derivatives are those at a fixed set of losses with z > 0, one-sided
    where it changes, and zero where :math:`g_0` is.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      c: the radius of the ball, in lengths of the mean gradient, >= 0.
      ridge: the share by which the squared norms of the gradients are raised, >= 0, for gradients
        that depend on one another. It is relative to each.
      shared: the parameters that all losses share: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. The
        method looks at them alone; the others, such as heads, get the plain sum (times
        ``priorities``). Default: all of them.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). They act on the weights that were found.
        Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: find the weights once in this many steps, with the gradients of that step, and
        hold them in between. Static.
      lean: whether to take the form with less memory and more flops, one backward pass more, where
        there is one (see :func:`balance`). Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      Gradients (1, 0) and (0, 10): half of the mean's length is spent on the small one.

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.cagrad(num_losses=2, c=0.5)
      >>> losses_fn = lambda x: (x[0], 10.0 * x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h.round(3))
      [3.012 5.   ]

    References:
      Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
      <https://arxiv.org/abs/2110.14048>`_, 2021, Eq. 3 and Algorithm 1. Against it: Kurin et al.,
      `In Defense of the Unitary Scalarization for Deep Multi-Task Learning
      <https://arxiv.org/abs/2201.04122>`_, 2022; Xin et al., `Do Current Multi-Task Optimization
      Methods in Deep Learning Even Help? <https://arxiv.org/abs/2209.11379>`_, 2022.
    """
    check_number("c", c, nonnegative=True)
    check_number("ridge", ridge, nonnegative=True)

    def weigh(components: Components) -> Float[Array, " K"]:
        return conflict_averse_weights(components.gramian(), components.counted, c, ridge)

    return balance(
        stateless(weigh),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
        lean=lean,
        shared=shared,
        sum_outside=True,
    )
