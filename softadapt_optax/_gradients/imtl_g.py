"""Weights with which the step goes equally far along each gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import sizes_of
from softadapt_optax._solvers.common_cosine import common_cosine
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless

# The least that the weights' sum counts for, as a share of the sum of their sizes.
_LEAST_SUM = 1e-3


def imtl_g(
    num_losses: int | Sequence[str],
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
    r"""Equal projections onto all gradients (IMTL-G, Liu et al. 2021).

    The weights :math:`\alpha_k` of :math:`h = \sum_k \alpha_k \nabla f_k` have the sum 1 and make

    .. math::

      \frac{\langle \nabla f_k, h \rangle}{\|\nabla f_k\|} \quad \text{the same for all } k:
      \qquad \alpha \propto G^{-1} n, \quad n_k = \|\nabla f_k\|,

    with the Gramian G of the gradients. They may be negative. The direction is that of
    :func:`conflict_free`, whatever the scales of the losses, and to first order a step along it
    lowers each loss; :func:`conflict_free` has the better length, and is to be preferred.

    In the paper's equation the sum of :math:`G^{-1} n` may be negative, and h then goes *up* all
    losses. Here it is divided by the size of its sum, so that the sum of the weights is 1 or -1.
    Where that is less than a thousandth of the sum of their sizes, they are divided by the
    thousandth: no weight is larger than 1000. A gradient of zero gets weight 0; if all are zero, so
    are all weights. Of identical gradients each gets 1 / K. Where the projections can be equal only
    if they vanish, as with opposite gradients and at Pareto-stationary points, it is, but for the
    ridge and the rounding of the gradients' products, h = 0. So it is where there are more losses
    than independent gradients.

    It helps where the scales of the losses differ and none of them is to dominate: on QM9 it more
    than halves what the plain sum loses (77.2 against 177.6, Navon et al. 2022), about as much as
    the plain logarithms of the losses do (77.8). It fails where a loss has all but converged: the
    noise of its gradient counts as much as the gradients of the others. Kurin et al. (2022) find
    that the plain sum, with as much tuning and regularisation, does as well as such methods.

    It costs the Gramian and, beside it, about :math:`K^3` operations. ``updates`` are those of
    :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      ridge: the share by which the squared norms of the gradients are raised, >= 0, for gradients
        that depend on one another. It is relative to each. With 0 a gradient that depends on those
        before it gets weight 0.
      shared: the parameters that all losses share: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. Their
        gradients alone are looked at; the others, such as heads, get the plain sum (times
        ``priorities``). Default: all of them.
      weight_sum: the sum to which the sizes of the weights, :math:`|\alpha_k|`, are scaled, > 0.
        Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). They act after the equation, so that with unequal ones
        the projections differ. Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        They change the length of h, not its direction. Default: none.
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
      Gradients (1, 0) and (0, 3): a step along h goes 3 / 4 along each:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.imtl_g(num_losses=2, ridge=0.0)
      >>> losses_fn = lambda x: (x[0], 3.0 * x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h, sa.loss_weights(state))
      [0.75 0.75] [0.75 0.25]

    References:
      Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, `Towards Impartial Multi-task Learning
      <https://openreview.net/forum?id=IMPnRXEWpvr>`_, 2021, Eqs. 1 and 2. Navon et al.,
      `Multi-Task Learning as a Bargaining Game <https://arxiv.org/abs/2202.01017>`_, 2022. Kurin,
      De Palma, Kostrikov, Whiteson and Kumar, `In Defense of the Unitary Scalarization for Deep
      Multi-Task Learning <https://arxiv.org/abs/2201.04122>`_, 2022.
    """
    check_number("ridge", ridge, nonnegative=True)

    def weigh(components: Components) -> Float[Array, " K"]:
        found = common_cosine(components.gramian(), components.counted, ridge)
        least = _LEAST_SUM * sum_over(sizes_of(found.weights))
        size = jnp.maximum(jnp.abs(found.weights_sum), least)
        return found.weights / jnp.where(size > 0, size, 1.0)

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
