"""Each gradient turned towards those to which it is less alike than usual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree, UInt32

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_number, check_seed
from softadapt_optax._reductions import sum_over
from softadapt_optax._solvers.projections import random_orders
from softadapt_optax._solvers.vaccine import vaccinated
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class GradVacState(NamedTuple):
    """State of :func:`gradvac`.

    Attributes:
      target_cosines: moving averages of the cosines, of each turned gradient with each of the
        others, shape [K, K]; 0 at the start.
      turning_key: data of the random key for the next order of turns, uint32.
    """

    target_cosines: Float[Array, "K K"]
    turning_key: UInt32[Array, "..."]


def gradvac(
    num_losses: int | Sequence[str],
    beta: ArrayLike = 0.5,
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
    r"""Turns gradients towards each other (Gradient Vaccine, Wang et al. 2021).

    Each :math:`g_i`, at first :math:`\nabla f_i`, meets the other gradients in a random order. If
    its cosine :math:`\phi` with :math:`\nabla f_j` is less than the target
    :math:`\hat\phi_{ij}`, it is turned until it has that,

    .. math::

      g_i \leftarrow g_i + \frac{\|g_i\| \big(\hat\phi_{ij} \sqrt{1 - \phi^2} -
      \phi \sqrt{1 - \hat\phi_{ij}^2}\big)}{\|\nabla f_j\| \sqrt{1 - \hat\phi_{ij}^2}}
      \, \nabla f_j, \qquad h = \sum_i g_i,

    and then the target follows the cosine that was met, :math:`\hat\phi_{ij} \leftarrow
    (1 - \beta) \hat\phi_{ij} + \beta \phi`. The targets are 0 at the start, so that the first step
    is that of :func:`pcgrad`, which does the same with targets that stay 0. The weights of
    :math:`h = \sum_k \alpha_k \nabla f_k` follow from the Gramian, and are at least 1.

    Targets count for .9999 at most, where rounding would decide on the turn. A gradient of zero is
    neither turned nor turned to, and its weight is 1; so is that of a loss alone, and those of
    identical gradients. Opposite gradients take each other to zero in the first step: h = 0. Later,
    with targets below 0, they are left as they are, and so h need not be zero at Pareto-stationary
    points.

    It helps, by the paper, where tasks are many and some are akin, as in translation between many
    languages. It fails as :func:`pcgrad` does: with three losses or more h may still point against
    one of them, the more so as targets may be negative. Its targets follow the noise of
    mini-batches. Kurin et al. (2022) and Xin et al. (2022) find that the plain sum with as much
    tuning, or tuned fixed weights, do as well as such methods.

    It costs the Gramian and, beside it, about :math:`K^3` operations in K steps one after the
    other. (This is the form for whole models. The paper turns the gradients of each part of a model
    apart, as one transformation for each part does.) ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      beta: how fast the targets follow the cosines, in [0, 1).
      seed: an integer, Python's or traced, that starts the random orders: a fresh one for each
        gradient and step, from a key in the state.
      reduction: ``"sum"`` of the turned gradients, or their ``"mean"``.
      shared: the parameters that all losses share: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. The
        turns look at them alone; the others, such as heads, get the plain sum (times
        ``priorities``). Default: all of them.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). They act after the turns. Default:
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
      Gradients (1, 0) and (-1, 1) conflict. In the second step their targets are half of the
      cosine they have, so that they are turned less:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = sa.gradvac(num_losses=2)
      >>> losses_fn = lambda x: (x[0], x[1] - x[0])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(2))
      >>> state = tx.init(None)
      >>> for _ in range(2):
      ...     h, state = tx.update(grads, state)
      ...     print(*(f"{weight:.3f}" for weight in sa.loss_weights(state)))
      2.000 1.500
      1.622 1.311

    References:
      Wang, Tsvetkov, Firat and Cao, `Gradient Vaccine: Investigating and Improving Multi-task
      Optimization in Massively Multilingual Models <https://arxiv.org/abs/2010.05874>`_, 2021.
      Kurin, De Palma, Kostrikov, Whiteson and Kumar, `In Defense of the Unitary Scalarization for
      Deep Multi-Task Learning <https://arxiv.org/abs/2201.04122>`_, 2022. Xin, Ghorbani, Garg,
      Firat and Gilmer, `Do Current Multi-Task Optimization Methods in Deep Learning Even Help?
      <https://arxiv.org/abs/2209.11379>`_, 2022.
    """
    check_number("beta", beta, nonnegative=True, below=1.0)
    check_seed("seed", seed)
    check_choice("reduction", reduction, ("sum", "mean"))

    def init(num_losses: int) -> GradVacState:
        targets = jnp.zeros((num_losses, num_losses), dtype=float)
        return GradVacState(targets, jax.random.key_data(jax.random.key(seed)))

    def update(
        components: Components, state: GradVacState
    ) -> tuple[Float[Array, " K"], GradVacState]:
        keys = jax.random.split(jax.random.wrap_key_data(state.turning_key))
        counted = components.counted
        orders = random_orders(keys[0], len(counted))
        weights, targets = vaccinated(
            components.gramian(), orders, counted, state.target_cosines, beta
        )
        if reduction == "mean":
            weights = weights / jnp.maximum(sum_over(counted.astype(weights.dtype)), 1.0)
        return weights, GradVacState(targets, jax.random.key_data(keys[1]))

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
