"""Weights that are learned themselves, kept from collapsing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_flag, check_number, check_optimizer
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import exponentials
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting, repeated


class LearnedWeightsState(NamedTuple):
    """State of :func:`learned_weights`.

    Attributes:
      logits: the learned z, shape [K].
      logit_optimizer_state: state of the optimizer that learns them.
    """

    logits: Float[Array, " K"]
    logit_optimizer_state: PyTree


def learned_weights(
    num_losses: int | Sequence[str],
    optimizer: optax.GradientTransformation | None = None,
    *,
    temperature: ArrayLike = 1.0,
    maximize: bool = False,
    weight_sum: ArrayLike = 1.0,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights that are learned along with the model, on the simplex, near their priorities.

    "Let gradient descent find the coefficients" fails: free coefficients all fall to zero, and
    coefficients that sum to one run to the smallest loss, which is then trained alone. The
    cure is a term that ties them to a prior q. With

    .. math::

      \alpha_k = \frac{q_k e^{z_k}}{\sum_\ell q_\ell e^{z_\ell}}, \qquad
      \min_z \; \sum_k \alpha_k f_k + \tau \, \mathrm{KL}(\alpha \,\|\, q),

    and q the ``priorities`` (equal ones make the term the negative entropy, up to a constant),
    the weights come to rest at :math:`\alpha_k \propto q_k e^{-f_k / \tau}`. With ``maximize``
    they are learned against the model,

    .. math::

      \min_x \max_\alpha \; \sum_k \alpha_k f_k - \tau \, \mathrm{KL}(\alpha \,\|\, q),
      \qquad \alpha_k \propto q_k e^{f_k / \tau},

    so that the worst loss gets the largest weight, as in distributionally robust optimisation.
    :math:`\tau \to \infty` gives the priorities, :math:`\tau = 0` the collapse. z starts at 0
    and is stepped by an optimizer of its own inside the state.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      optimizer: the Optax optimizer of :math:`z`, one that needs gradients only; it minimises,
        also with ``maximize``. Default: ``optax.adam(1e-2)``.
      temperature: :math:`\tau` >= 0, the strength of the KL term, in units of the losses. Start
        with the size of the largest loss before training (or of its prior, see
        :func:`prior_loss`): far below it the weights collapse, far above they stay where they
        are.
      maximize: whether the weights favour the large losses instead of the small ones.
      weight_sum: the sum of the weights, > 0. Pass K where a plain sum is replaced.
      priorities: q in any scale, >= 0: K numbers, in order or by name, or functions of the step
        (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: m, step :math:`z` once in m steps, with the mean of the losses, and then m times, so
        that it learns as fast as with m = 1. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      The collapse and its cure, on losses that stay as they are:

      >>> import jax, jax.numpy as jnp, optax, softadapt_optax as sa
      >>> losses = jnp.tile(jnp.asarray([1.0, 0.5, 0.1]), (3000, 1))
      >>> def weights_at_rest(**options):
      ...     tx = sa.learned_weights(3, optax.sgd(1.0), **options)
      ...     step = lambda state, losses: (tx.update(jnp.zeros(3), state, losses=losses)[1], None)
      ...     weights = sa.loss_weights(jax.lax.scan(step, tx.init(None), losses)[0])
      ...     return [round(float(weight), 2) for weight in weights]
      >>> print(weights_at_rest(temperature=0.0))  # the smallest loss alone
      [0.0, 0.0, 1.0]
      >>> print(weights_at_rest(temperature=1.0))
      [0.2, 0.32, 0.48]
      >>> print(weights_at_rest(temperature=1.0, maximize=True))
      [0.5, 0.3, 0.2]

    References:
      Gibbs' variational principle gives the resting points. For ``maximize``: Sagawa, Koh,
      Hashimoto and Liang, `Distributionally Robust Neural Networks for Group Shifts
      <https://arxiv.org/abs/1911.08731>`_, 2020, Algorithm 1, which steps the weights by an
      exponentiated gradient and has no KL term.
    """
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    check_optimizer("optimizer", optimizer)
    check_number("temperature", temperature, nonnegative=True)
    check_flag("maximize", maximize)
    check_number("weight_sum", weight_sum, positive=True)

    def init(num_losses: int) -> LearnedWeightsState:
        logits = jnp.zeros(num_losses, dtype=float)
        return LearnedWeightsState(logits, optimizer.init(logits))

    def update(
        components: Components, state: LearnedWeightsState
    ) -> tuple[Float[Array, " K"], LearnedWeightsState]:
        z = state.logits
        is_counted = components.counted
        weights = exponentials(z, is_counted)
        alpha = weights * components.priorities
        alpha = alpha / jnp.maximum(sum_over(alpha), float(np.finfo(alpha.dtype).tiny))
        costs = jnp.asarray(temperature, z.dtype) * z
        costs = costs - components.losses if maximize else costs + components.losses
        slopes = alpha * (costs - sum_over(alpha * costs))
        steps, optimizer_state = optimizer.update(slopes, state.logit_optimizer_state, z)
        return weights, LearnedWeightsState(optax.apply_updates(z, steps), optimizer_state)

    return balance(
        repeated(Weighting(init, update), every),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
