"""The direction that has the same angle with all gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._reductions import diagonal_of, sum_over
from softadapt_optax._solvers.common_cosine import common_cosine
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def conflict_free(
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
    r"""The same angle with all gradients (ConFIG, Liu et al. 2025).

    With the unit gradients :math:`u_k = \nabla f_k / \|\nabla f_k\|` and their cosines C

    .. math::

      h = \sum_k \alpha_k \nabla f_k = \frac{\sum_k \langle \nabla f_k, x \rangle}{\|x\|^2} \, x,
      \qquad x = \sum_k a_k u_k, \quad C a = 1,

    so that :math:`\langle u_k, h \rangle` is the same, and positive, for all k: to first order a
    step along h lowers each loss by the same share of its steepest descent. h is as long as the
    sum of the projections of the gradients onto it. Its direction does not depend on the scales of
    the losses. Weights may be negative. For two losses it is the bisector of the two gradients.

    The equation is taken with a ridge, :math:`(C + \varepsilon I) \, a = 1`, and
    :math:`\alpha_k = a_k \sum_\ell \|\nabla f_\ell\| / (\|\nabla f_k\| \sum_\ell a_\ell)`, which is
    the same where the gradients are independent. A gradient of zero gets weight 0; if all are zero,
    so are all weights. K identical gradients get weight 1 each, and so does a single one. Where
    the angles can be equal only at 90 degrees, as with opposite gradients, at Pareto-stationary
    points and in general with more losses than independent gradients, h = 0, but for the ridge and
    the rounding of the gradients' products. (The pseudo-inverse of the published code takes a
    direction of least squares there, along which losses may rise, and which jumps where gradients
    become dependent.)

    It helps where losses conflict and their scales differ, as the residuals and boundary
    conditions of a PINN do, for which it was made. It fails where a loss has all but converged:
    the noise of its gradient then counts as much as the gradients of the others. And Kurin et al.
    (2022) and Xin et al. (2022) find that tuned fixed weights do as well as the methods of their
    time that alter gradients.

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
        the angles differ. Default: all 1.
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
      The bisector of (1, 0) and (0, 3), as long as both projections onto it together:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.conflict_free(num_losses=2, ridge=0.0)
      >>> losses_fn = lambda x: (x[0], 3.0 * x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h, sa.loss_weights(state))
      [2. 2.] [2.        0.6666667]

    References:
      Liu, Chu and Thuerey, `ConFIG: Towards Conflict-free Training of Physics Informed Neural
      Networks <https://arxiv.org/abs/2408.11104>`_, 2025, Eq. 2. Kurin, De Palma, Kostrikov,
      Whiteson and Kumar, `In Defense of the Unitary Scalarization for Deep Multi-Task Learning
      <https://arxiv.org/abs/2201.04122>`_, 2022. Xin, Ghorbani, Garg, Firat and Gilmer, `Do Current
      Multi-Task Optimization Methods in Deep Learning Even Help?
      <https://arxiv.org/abs/2209.11379>`_, 2022.
    """
    check_number("ridge", ridge, nonnegative=True)

    def weigh(components: Components) -> Float[Array, " K"]:
        gramian, counted = components.gramian(), components.counted
        found = common_cosine(gramian, counted, ridge)
        squared_norms = diagonal_of(gramian)
        has_size = counted & (squared_norms > 0)
        norms = jnp.where(has_size, jnp.sqrt(jnp.where(has_size, squared_norms, 1.0)), 0.0)
        length = sum_over(norms) / found.scale
        return found.weights * length / jnp.where(found.total > 0, found.total, 1.0)

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
