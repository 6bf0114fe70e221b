"""Each gradient projected onto the cone of directions that nobody is against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._reductions import sum_over
from softadapt_optax._solvers.cone import cone_weights
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def upgrad(
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
    r"""The mean of the projected gradients (UPGrad, Quinton and Rey 2024).

    Each gradient is projected onto the dual cone of all, the directions that no gradient points
    against, and

    .. math::

      h = \frac{1}{K} \sum_i \pi(g_i) = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha = \sum_i \operatorname*{arg\,min}_{v \ge e_i / K} v^T G v,

    with the Gramian G of the gradients. To first order a step along h raises no loss, and unlike
    the direction of :func:`mgda` h grows with each gradient. Without a conflict the weights are
    1 / K.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      ridge: the share by which the squared norms of the gradients are raised, >= 0, for gradients
        that depend on one another. It is relative to each, so that a loss with a small gradient
        keeps the promise too.
      shared: the parameters that all losses share: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. The
        projections look at them alone; the others, such as heads, get the plain sum (times
        ``priorities``). Default: all of them.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). They act after the projections. Default:
        all 1.
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
      Gradients (1, 0) and (-1, 1) conflict:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.upgrad(num_losses=2, ridge=0.0)
      >>> losses_fn = lambda x: (x[0], x[1] - x[0])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h, sa.loss_weights(state))
      [0.25 0.75] [1.   0.75]

    References:
      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
      <https://arxiv.org/abs/2406.16232>`_, 2024, Eq. 3 and Proposition 1.
    """
    check_number("ridge", ridge, nonnegative=True)

    def weigh(components: Components) -> Float[Array, " K"]:
        counted = components.counted
        size = jnp.maximum(sum_over(counted.astype(components.losses.dtype)), 1.0)
        is_projected = jnp.eye(len(counted), dtype=bool) & counted[None]
        found = cone_weights(components.gramian(), is_projected, counted, ridge)
        return sum_over(found.T) / size

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
