"""Weights that give each gradient the same norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_eps, check_number
from softadapt_optax._reductions import max_over
from softadapt_optax._scaling import first_seen, inverse_training_rates, mean_of, positive_or
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting

EPS = 1e-12


class NormalizedGradientsState(NamedTuple):
    """State of :func:`normalized_gradients`.

    Attributes:
      initial_losses: the first loss of each component, shape [K]; zero until it is seen.
    """

    initial_losses: Float[Array, " K"]


def normalized_gradients(
    num_losses: int | Sequence[str],
    rate_exponent: ArrayLike = 0.0,
    *,
    common_norm: Literal["one", "mean", "max"] = "one",
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    lean: bool = False,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives each gradient the same norm, or one that grows with its training rate's inverse.

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha_k = \frac{r_k^a}{\|\nabla f_k\|}, \quad
      r_k = \frac{f_k / f_k(x_0)}{\frac{1}{K} \sum_\ell f_\ell / f_\ell(x_0)}

    with a = ``rate_exponent``. It is where :func:`gradnorm` wants to go, reached at once
    instead of by steps: for a = 0 the direction does not change when a loss is rescaled, nor
    when a monotone function is applied to it. The norm of h does not go to zero at a minimum:
    use an optimizer or a schedule that lets the step size fall. With a other than 0 the losses
    are taken for non-negative (of others the size counts, which is no rate).

    The norm that all get is 1 or, by ``common_norm``, the mean or the largest of those that they
    have: the weights are multiplied by it. Two published methods are settings of this one: DB-MTL
    (Lin et al. 2023, without its moving average of gradients) is ``units="current",
    common_norm="max"``, as it acts on the logarithms of the losses, and jaxpi's weights for
    physics-informed networks (Wang et al. 2023) are ``common_norm="mean", smoothing=0.9,
    every=1000``.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      rate_exponent: a; with a > 0 a loss that has fallen less than the others gets more.
      common_norm: the norm of each weighted gradient (times the power of its rate): ``"one"``, as
        in the equation; ``"mean"``, the mean of the norms that are not 0; or ``"max"``, the
        largest. Static.
      shared: the parameters over which the norms are taken, such as the last shared layer: a
        pytree of bools (the parameters' structure or a prefix of it) or a function of the
        parameters that gives one. The weights act on all parameters all the same. Default: all
        of them.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: weight by the mean of this many losses and the norms at the last of them, and hold
        the weights in between. Static.
      eps: > 0; gradients of a norm below it get weights that go to zero with their norm. A
        gradient that vanishes gets weight 0.
      lean: whether to take the form with less memory and more flops, one backward pass more, where
        there is one (see :func:`balance`). Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = optax.chain(sa.normalized_gradients(num_losses=2), optax.sgd(0.1))
      >>> params = jnp.asarray(1.0)
      >>> opt_state = tx.init(params)
      >>> losses_fn = lambda x: {"fit": (x - 3.0) ** 2, "size": x**2}
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params)
      >>> print(sa.loss_weights(opt_state))  # the gradients are -4 and 2
      [0.25 0.5 ]

    References:
      Jianlin Su, *Multi-task learning, part 2: by the gradient* (in Chinese), Scientific
      Spaces (kexue.fm), 2022. The rates are those of Chen et al. 2018, see :func:`gradnorm`. Lin,
      Jiang, Ye, Zhang, Chen, Chen, Liu and Kwok, `Dual-Balancing for Multi-Task Learning
      <https://arxiv.org/abs/2308.12029>`_, 2023, Algorithm 1. Wang, Sankaran, Wang and Perdikaris,
      `An Expert's Guide to Training Physics-informed Neural Networks
      <https://arxiv.org/abs/2308.08468>`_, 2023, for jaxpi.
    """
    check_number("rate_exponent", rate_exponent)
    check_eps(eps)
    check_choice("common_norm", common_norm, ("one", "mean", "max"))

    def init(num_losses: int) -> NormalizedGradientsState:
        return NormalizedGradientsState(initial_losses=jnp.zeros(num_losses, dtype=float))

    def update(
        components: Components, state: NormalizedGradientsState
    ) -> tuple[Float[Array, " K"], NormalizedGradientsState]:
        initial_losses = first_seen(state.initial_losses, components.losses)
        is_counted = components.counted
        rates = inverse_training_rates(components.losses, initial_losses, is_counted)
        squared_norms = components.squared_norms()
        is_zero = squared_norms == 0
        norms = jnp.sqrt(jnp.where(is_zero, 1.0, squared_norms))
        # Its square must not vanish, or a gradient of a tiny norm is divided by zero.
        smallest = jnp.maximum(
            positive_or(eps, EPS, norms.dtype), float(np.finfo(norms.dtype).tiny) ** 0.5
        )
        inverse_norms = jnp.where(is_zero, 0.0, norms / (norms**2 + smallest**2))
        weights = rates ** jnp.asarray(rate_exponent, rates.dtype) * inverse_norms
        has_norm = is_counted & ~is_zero
        if common_norm == "mean":
            weights *= mean_of(norms, has_norm)
        elif common_norm == "max":
            weights *= max_over(jnp.where(has_norm, norms, 0.0))
        return weights, NormalizedGradientsState(initial_losses)

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
    )
