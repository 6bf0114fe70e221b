"""Gradient surgery: each gradient projected off those it conflicts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree, UInt32

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_seed
from softadapt_optax._reductions import sum_over
from softadapt_optax._solvers.projections import projection_weights, random_orders
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class PCGradState(NamedTuple):
    """State of :func:`pcgrad`.

    Attributes:
      projection_key: data of the random key for the next order of projections, uint32.
    """

    projection_key: UInt32[Array, "..."]


def pcgrad(
    num_losses: int | Sequence[str],
    seed: ArrayLike = 0,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Projects each gradient off those it conflicts with (PCGrad, Yu et al. 2020).

    For each i, :math:`g_i = \nabla f_i` goes through the other gradients in a random order
    and loses what points against them,

    .. math::

      g_i \leftarrow g_i - \frac{\min(\langle g_i, g_j \rangle, 0)}{\|g_j\|^2} \, g_j,
      \qquad h = \sum_i g_i.

    The result is a combination :math:`h = \sum_k \alpha_k \nabla f_k` whose weights follow
    from the Gramian, so that no projected gradient is ever formed. Without a conflict all
    weights are 1: the plain sum.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      seed: an integer, Python's or traced, that starts the random orders: a fresh one for each
        gradient and step, from a key in the state.
      reduction: ``"sum"`` of the projected gradients, as in the paper, or their ``"mean"``.
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
      Gradients (1, 0) and (-1, 1) conflict; projected they are (1/2, 1/2) and (0, 1):

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.pcgrad(num_losses=2)
      >>> losses_fn = lambda x: (x[0], x[1] - x[0])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> h, state = tx.update(grads, tx.init(None))
      >>> print(h, sa.loss_weights(state))
      [0.5 1.5] [2.  1.5]

    References:
      Yu, Kumar, Gupta, Levine, Hausman and Finn, `Gradient Surgery for Multi-Task Learning
      <https://arxiv.org/abs/2001.06782>`_, 2020, Algorithm 1.
    """
    check_seed("seed", seed)
    check_choice("reduction", reduction, ("sum", "mean"))

    def init(num_losses: int) -> PCGradState:
        del num_losses
        return PCGradState(jax.random.key_data(jax.random.key(seed)))

    def update(
        components: Components, state: PCGradState
    ) -> tuple[Float[Array, " K"], PCGradState]:
        keys = jax.random.split(jax.random.wrap_key_data(state.projection_key))
        is_counted = components.counted
        orders = random_orders(keys[0], len(is_counted))
        weights = projection_weights(components.gramian(), orders, is_counted)
        if reduction == "mean":
            weights = weights / jnp.maximum(sum_over(is_counted.astype(weights.dtype)), 1.0)
        return weights, PCGradState(jax.random.key_data(keys[1]))

    return balance(
        Weighting(init, update),
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
