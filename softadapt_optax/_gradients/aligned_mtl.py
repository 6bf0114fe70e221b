"""Gradients whose principal components are made equally long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice
from softadapt_optax._solvers.aligned import aligned_weights
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def aligned_mtl(
    num_losses: int | Sequence[str],
    scale: Literal["min", "median", "rmse"] = "min",
    *,
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Aligns the principal components of the gradients (Aligned-MTL, Senushkin et al. 2023).

    With the eigenvalues :math:`\Lambda` and eigenvectors V of the Gramian of the gradients

    .. math::

      h = \sum_k \alpha_k \nabla f_k, \qquad
      \alpha = \sqrt{\lambda} \, V \Lambda^{-1/2} V^T q, \quad q_k = \frac{1}{K},

    the mean of the rows of the nearest matrix to that of the gradients in which all are orthogonal
    and of the length :math:`\sqrt{\lambda}`; where they are independent :math:`\|h\| =
    \sqrt{\lambda / K}`. Weights may be negative, and h may point against a gradient that is small
    beside the others. Its direction depends on the scales of the losses.

    Eigenvalues that are not larger than K roundings of the largest, :math:`1.2 \cdot 10^{-7} K` of
    it in float32, are left out: gradients of zero, which get weight 0, what a set of dependent
    gradients lacks in rank, and whatever is a few thousand times smaller than the largest gradient.
    The step jumps where an eigenvalue crosses that limit, and with ``scale="min"`` it is tiny above
    it: where two gradients become almost dependent, h is about as long as what tells them apart. Of
    K identical gradients each weight is 1 / K, and of one alone 1; opposite gradients :math:`g, -c
    g` give :math:`h = (1 - c) g / 2`, so that it does not stand still at all Pareto-stationary
    points. If all gradients are zero, so are all weights.

    It helps where gradients are in conflict and one of them dominates, as all components count
    alike. Kurin et al. (2022) and Xin et al. (2022) find that the plain sum with as much tuning, or
    tuned fixed weights, do as well as the methods before it that alter gradients.

    It costs the Gramian and an eigendecomposition in two floats, in a fixed number of rotations:
    little up to 16 losses, on a CPU about a fifth of a second for 64. ``updates`` are those of
    :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      scale: :math:`\lambda`, of the eigenvalues that are kept: ``"min"``, the least, with which no
        component is made longer; ``"median"``, the lower one of an even number; or ``"rmse"``,
        their mean. Static.
      shared: the parameters that all losses share: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. Their
        gradients alone are looked at; the others, such as heads, get the plain sum (times
        ``priorities``). Default: all of them.
      weight_sum: the sum to which the sizes of the weights, :math:`|\alpha_k|`, are scaled, > 0.
        Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). They act after the equation.
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
      Orthogonal gradients become as long as the shortest:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.aligned_mtl(num_losses=2)
      >>> losses_fn = lambda x: (x[0], 4.0 * x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h, sa.loss_weights(state))
      [0.5 0.5] [0.5   0.125]

    References:
      Senushkin, Patakin, Kuznetsov and Konushin, `Independent Component Alignment for Multi-Task
      Learning <https://arxiv.org/abs/2305.19000>`_, 2023, Eqs. 4 to 7 and Algorithm 1. Kurin, De
      Palma, Kostrikov, Whiteson and Kumar, `In Defense of the Unitary Scalarization for Deep
      Multi-Task Learning <https://arxiv.org/abs/2201.04122>`_, 2022. Xin, Ghorbani, Garg, Firat and
      Gilmer, `Do Current Multi-Task Optimization Methods in Deep Learning Even Help?
      <https://arxiv.org/abs/2209.11379>`_, 2022.
    """
    check_choice("scale", scale, ("min", "median", "rmse"))

    def weigh(components: Components) -> Float[Array, " K"]:
        return aligned_weights(components.gramian(), components.counted, scale)

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
