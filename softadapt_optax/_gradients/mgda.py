"""The point of smallest norm in the convex hull of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_integer
from softadapt_optax._reductions import diagonal_of, min_over
from softadapt_optax._solvers.min_norm import frank_wolfe_weights, min_norm_weights
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def mgda(
    num_losses: int | Sequence[str],
    normalization: Literal["norm", "loss", "both"] | None = None,
    *,
    solver: Literal["active_set", "frank_wolfe"] = "active_set",
    max_iterations: int = 100,
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Descends in all losses at once, or stands still (MGDA, Désidéri 2012).

    Emits the point of smallest norm in the convex hull of the gradients,

    .. math::

      h = \sum_k \alpha_k \nabla f_k, \qquad
      \alpha = \arg\min_\alpha \Big\| \sum_k \alpha_k \nabla f_k \Big\|^2, \quad
      \alpha_k \ge 0, \; \sum_k \alpha_k = 1,

    which descends in every loss alike, :math:`\langle \nabla f_k, h \rangle \ge \|h\|^2`, and
    is zero just where no direction does (at a Pareto-stationary point). It therefore leans
    towards the smallest gradients: a loss that has converged stops the others too.

    ``normalization`` takes the hull of :math:`\nabla f_k / s_k` instead, with
    :math:`s_k = \|\nabla f_k\|`, :math:`|f_k|` or their product, so that the weights are
    :math:`\alpha_k / s_k` and :math:`\langle \nabla f_k, h \rangle \ge s_k \|h\|^2`. (The code
    published with Sener and Koltun's paper puts :math:`\alpha` on the gradients as they
    are, which need not descend.)

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      normalization: ``"norm"``, ``"loss"``, ``"both"`` or None.
      solver: ``"active_set"`` reaches the optimum, as far as the rounding of the inner products
        lets it be known: for K = 2 in closed form, up to K = 8 from all sets of losses at once,
        beyond by pivoting; ``"frank_wolfe"``, that of Sener and Koltun, stops well before it
        where gradients are of different norms or nearly parallel. Static.
      max_iterations: the most steps of ``"frank_wolfe"``. It also stops at a step below 1e-3.
        Static.
      shared: the parameters that all losses share: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. The hull
        is that of their gradients alone; the others, such as heads, get the plain sum (times
        ``priorities``). Default: all of them.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). They act on the minimiser; with unequal
        ones h need not descend in every loss. Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: find the weights once in this many steps, with the gradients of that step, and
        hold them in between, where h need not descend in every loss; nor does it in a step that
        joins weights found at different steps, after a loss was absent. Static.
      lean: whether to take the form with less memory and more flops, one backward pass more, where
        there is one (see :func:`balance`). Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      The hull of (2, 0) and (0, 1) is nearest to the origin at (0.4, 0.8):

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.mgda(num_losses=2)
      >>> losses_fn = lambda x: (2.0 * x[0], x[1])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h, sa.loss_weights(state))
      [0.4 0.8] [0.2 0.8]

    References:
      Désidéri, `Multiple-gradient descent algorithm (MGDA) for multiobjective optimization
      <https://doi.org/10.1016/j.crma.2012.03.014>`_, 2012. Sener and Koltun, `Multi-Task
      Learning as Multi-Objective Optimization <https://arxiv.org/abs/1810.04650>`_, 2018, for
      deep networks, Frank-Wolfe and normalisation. Lawson and Hanson, *Solving Least Squares
      Problems*, 1974, chapter 23, for the active set method.
    """
    check_choice("normalization", normalization, (None, "norm", "loss", "both"))
    check_choice("solver", solver, ("active_set", "frank_wolfe"))
    check_integer("max_iterations", max_iterations, at_least=1)

    def weigh(components: Components) -> Float[Array, " K"]:
        gramian, is_counted = components.gramian(), components.counted
        scales = jnp.ones_like(components.losses)
        if normalization in ("norm", "both"):
            squared_norms = diagonal_of(gramian)
            scales = jnp.sqrt(jnp.where(squared_norms > 0, squared_norms, 1.0))
        if normalization in ("loss", "both"):
            scales = scales * jnp.abs(components.losses)
        scales = jnp.where(scales > 0, scales, 1.0)
        if normalization is not None:
            # Only their ratios matter to alpha, and squares of small ones would be out of range.
            smallest = min_over(jnp.where(is_counted, scales, jnp.inf))
            ratios = jnp.where(is_counted, scales / smallest, 1.0)
            gramian = gramian / ratios[:, None] / ratios[None, :]
        if solver == "frank_wolfe":
            alpha = frank_wolfe_weights(gramian, is_counted, max_iterations)
        else:
            alpha = min_norm_weights(gramian, is_counted)
        return alpha / scales

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
