"""The direction that a bargain between the losses ends at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number
from softadapt_optax._solvers.fairness import fair_weights, squared_length
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def nash_mtl(
    num_losses: int | Sequence[str],
    max_norm: ArrayLike | None = None,
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
    r"""The direction that the losses agree on in a bargain (Nash-MTL, Navon et al. 2022).

    Among all directions of one length it is the one with the largest product of
    :math:`\langle \nabla f_k, h \rangle`, by how much a step lowers each loss. With the Gramian G
    of the gradients,

    .. math::

      h = \sum_k \alpha_k \nabla f_k, \qquad
      \langle \nabla f_k, h \rangle = (G \alpha)_k = 1 / \alpha_k, \quad \alpha_k > 0,

    so that to first order every loss falls, by shares that do not depend on the scales of the
    losses. The length of h is :math:`\sqrt{K}`, whatever the gradients are: as they vanish h does
    not, and the learning rate has to go down instead.

    It helps where losses are of different scales, which explains most of its published gain: on
    QM9 the plain sum of logarithms of the losses comes close to it (Navon et al., their table).
    The gradient of a loss that has nearly converged counts as much as the others, noise and all.
    Kurin et al. and Xin et al. (both 2022) found no gain of methods like this one over fixed
    weights that are tuned as carefully.

    With K = 1 the weight is :math:`1 / \|\nabla f\|`; two identical gradients give
    :math:`\sqrt{2}` times their unit vector. A gradient of zero, for which there is no solution,
    gets the weight 0 and is left out; if all are zero, so are the weights. Where gradients cancel
    (opposite ones, or any Pareto-stationary point) there is none either: there the ridge bounds the
    weights by :math:`\varepsilon^{-1/2} / \|\nabla f_k\|`, and the part of h that these losses
    make is of the order of :math:`\varepsilon^{1/2}`; losses that take no part in the conflict go
    on falling.

    It costs the K gradients and their products. The equation is solved by Newton's method, 20
    turns of about :math:`K^3` operations up to K = 8 and as many as needed beyond (the published
    code solves a sequence of convex programs, which may stop far from the solution). Weights are
    exact to about 1e-6 for the G that is given, on nearly dependent gradients too, as long as the
    ridge is at least 1e-7. With ``ridge=0`` at a Pareto-stationary point they are finite but no
    solution. As in the published code the weights may be held for some steps by ``every``.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      max_norm: h is made no longer than this, > 0; on the ``shared`` parameters, before priorities,
        and with ``every`` > 1 only in the steps that find weights. 1.0 in the published code, where
        for K > 1 it always binds. Default: no limit.
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
      Orthogonal gradients are made equally long:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.nash_mtl(num_losses=2)
      >>> losses_fn = lambda x: (x[0], 10.0 * x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h.round(3), sa.loss_weights(state).round(3))
      [1. 1.] [1.  0.1]

    References:
      Navon et al., `Multi-Task Learning as a Bargaining Game
      <https://arxiv.org/abs/2202.01017>`_, 2022, Claim 3.1 and Algorithm 1. Against methods like
      this one: Kurin et al., `In Defense of the Unitary Scalarization for Deep Multi-Task Learning
      <https://arxiv.org/abs/2201.04122>`_, 2022; Xin et al., `Do Current Multi-Task Optimization
      Methods in Deep Learning Even Help? <https://arxiv.org/abs/2209.11379>`_, 2022.
    """
    if max_norm is not None:
        check_number("max_norm", max_norm, positive=True)
    check_number("ridge", ridge, nonnegative=True)

    def weigh(components: Components) -> Float[Array, " K"]:
        gramian, counted = components.gramian(), components.counted
        alpha = fair_weights(gramian, counted, 1.0, ridge, max_turns=20)
        if max_norm is None:
            return alpha
        limit = jnp.asarray(max_norm, alpha.dtype)
        return alpha * limit / jnp.maximum(limit, squared_length(gramian, alpha, ridge) ** 0.5)

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
