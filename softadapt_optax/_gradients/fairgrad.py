"""Descent that is fair between the losses, by the measure of alpha-fairness."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._solvers.fairness import fair_weights
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def fairgrad(
    num_losses: int | Sequence[str],
    fairness: ArrayLike = 1.0,
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
    r"""Shares the descent between the losses fairly (FairGrad, Ban and Ji 2024).

    The inner product of h with a gradient is by how much a step lowers that loss. With the Gramian
    G of the gradients and a fairness a > 0,

    .. math::

      h = \sum_k \alpha_k \nabla f_k, \qquad
      \langle \nabla f_k, h \rangle = (G \alpha)_k = \alpha_k^{-1/a}, \quad \alpha_k > 0,

    so that to first order every loss falls, and the sum of
    :math:`\langle \nabla f_k, d \rangle^{1 - a} / (1 - a)` over all d of the length of h is largest
    at h. a = 1 is :func:`nash_mtl`; a = 2 cares more for the loss that falls least; for
    :math:`a \to \infty` the least descent is maximised, and for :math:`a \to 0` the weights become
    equal. The published code multiplies the weights by K.

    It helps where losses conflict and one of them lags behind. For large a the step is that of the
    smallest gradient, and stalls with it; but for a = 1 the result depends on the scales of the
    losses, and the length of h goes with their power (1 - a) / (1 + a). Kurin et al. and Xin et al.
    (both 2022) found no gain of methods like this one over fixed weights that are tuned as
    carefully.

    With K = 1 the weight is :math:`\|\nabla f\|^{-2 a / (a + 1)}`, and identical gradients have
    equal weights. A gradient of zero, for which there is no solution, gets the weight 0 and is left
    out; if all are zero, so are the weights. Where gradients cancel (opposite ones, or any
    Pareto-stationary point) there is none either: there the ridge bounds the weights, by
    :math:`\varepsilon^{-1/2} / \|\nabla f_k\|` for a = 1, and the part of h that these losses
    make is of the order of :math:`\varepsilon^{1/2}`; losses that take no part in the conflict go
    on falling.

    It costs the K gradients and their products. The equation is solved by Newton's method, 48
    turns of about :math:`K^3` operations up to K = 8 and as many as needed beyond. For
    :math:`1 \le a \le 2` weights are exact to about 1e-6 for the G that is given, on nearly
    dependent gradients and on norms that are 1e8 apart too, as long as the ridge is at least 1e-7;
    for a up to 5 the same was seen with norms 1e3 apart, but from a = 10 on the weights are wrong
    in their first or second digit where norms are 100 apart. With ``ridge=0`` at a
    Pareto-stationary point weights are finite but no solution.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      fairness: a > 0.
      ridge: the share by which the squared norms of the gradients are raised, >= 0. It is relative
        to each, and bounds the weights where gradients cancel. For many losses the products'
        rounding may take more: unless it is 0 it is K / 4 units in the last place at least (1.9e-6
        for 64 losses in float32).
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
      The smaller of two orthogonal gradients leads to the larger step:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.fairgrad(num_losses=2, fairness=2.0)
      >>> losses_fn = lambda x: (x[0], 8.0 * x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h.round(3), sa.loss_weights(state).round(4))
      [1.  0.5] [1.     0.0625]

    References:
      Ban and Ji, `Fair Resource Allocation in Multi-Task Learning
      <https://arxiv.org/abs/2402.15638>`_, 2024, Eq. 4 and Algorithm 1. Against methods like
      this one: Kurin et al., `In Defense of the Unitary Scalarization for Deep Multi-Task Learning
      <https://arxiv.org/abs/2201.04122>`_, 2022; Xin et al., `Do Current Multi-Task Optimization
      Methods in Deep Learning Even Help? <https://arxiv.org/abs/2209.11379>`_, 2022.
    """
    check_number("fairness", fairness, positive=True)
    check_number("ridge", ridge, nonnegative=True)

    def weigh(components: Components) -> Float[Array, " K"]:
        gramian, counted = components.gramian(), components.counted
        return fair_weights(gramian, counted, fairness, ridge, max_turns=48)

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
