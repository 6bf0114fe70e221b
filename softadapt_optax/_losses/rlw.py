"""Random weights: what a method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree, UInt32

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_seed
from softadapt_optax._scaling import exponentials
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class RLWState(NamedTuple):
    """State of :func:`rlw`.

    Attributes:
      weight_key: data of the random key for the next weights, uint32.
    """

    weight_key: UInt32[Array, "..."]


def rlw(
    num_losses: int | Sequence[str],
    seed: ArrayLike = 0,
    *,
    distribution: Literal["normal", "dirichlet"] = "normal",
    weight_sum: ArrayLike = 1.0,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights that are drawn anew in each step (RLW, Lin et al. 2022).

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha = \mathrm{softmax}(\xi), \quad \xi \sim N(0, I),

    so that the mean of each weight is 1 / K: equal weights with noise. It looks at nothing, and
    that is its use: a method that does no better than random weights does not help.

    The weights sum to 1, as in the paper, K times less than a plain sum of losses: under plain
    SGD pass ``weight_sum=K`` to compare.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      seed: an integer, Python's or traced, that starts the random numbers: fresh ones for each
        step, from a key in the state.
      distribution: ``"normal"``, the equation; or ``"dirichlet"``, uniform on all weights >= 0
        that sum to 1, which are farther from equal.
      weight_sum: the sum of the weights, > 0.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: draw once in this many steps and hold the weights in between. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> tx = sa.rlw(num_losses=3)
      >>> state = tx.init(None)
      >>> total = jnp.zeros(3)
      >>> for _ in range(300):
      ...     _, state = tx.update(jnp.zeros(3), state, losses=jnp.ones(3))
      ...     total += sa.loss_weights(state)
      >>> print(jnp.round(total / 300, 1))
      [0.3 0.3 0.3]

    References:
      Lin, Ye, Zhang and Tsang, `Reasonable Effectiveness of Random Weighting: A Litmus Test for
      Multi-Task Learning <https://arxiv.org/abs/2111.10603>`_, 2022, Algorithm 1.
    """
    check_seed("seed", seed)
    check_choice("distribution", distribution, ("normal", "dirichlet"))

    def init(num_losses: int) -> RLWState:
        del num_losses
        return RLWState(jax.random.key_data(jax.random.key(seed)))

    def update(components: Components, state: RLWState) -> tuple[Float[Array, " K"], RLWState]:
        keys = jax.random.split(jax.random.wrap_key_data(state.weight_key))
        shape, dtype = components.losses.shape, components.losses.dtype
        if distribution == "normal":
            logits = jax.random.normal(keys[0], shape, dtype)
            weights = exponentials(logits, components.counted)
        else:
            weights = jax.random.exponential(keys[0], shape, dtype)
        return weights, RLWState(jax.random.key_data(keys[1]))

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
