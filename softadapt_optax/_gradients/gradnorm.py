"""Weights that level the gradient norms of the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_number, check_optimizer, size_of
from softadapt_optax._scaling import first_seen, inverse_training_rates, mean_of
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting, repeated

_SMALLEST_WEIGHT = 1e-4


class GradNormState(NamedTuple):
    """State of :func:`gradnorm`.

    Attributes:
      task_weights: the learned weights of the next step, shape [K].
      initial_losses: the first loss of each component, shape [K]; zero until it is seen.
      weight_optimizer_state: state of the optimizer that learns the weights.
    """

    task_weights: Float[Array, " K"]
    initial_losses: Float[Array, " K"]
    weight_optimizer_state: PyTree


def gradnorm(
    num_losses: int | Sequence[str],
    alpha: ArrayLike = 1.5,
    optimizer: optax.GradientTransformation | None = None,
    *,
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Levels the gradient norms of the losses, slow ones above (Chen et al. 2018).

    With :math:`G_k = w_k \|\nabla_W f_k\|`, the norm of the weighted gradient on the
    parameters W, and the relative inverse training rate

    .. math::

      r_k = \frac{f_k / f_k(x_0)}{\frac{1}{K} \sum_\ell f_\ell / f_\ell(x_0)},

    the weights w take one step of an optimizer of their own on

    .. math::

      \sum_k \big| G_k - \bar G \, r_k^\alpha \big|, \qquad
      \bar G = \frac{1}{K} \sum_\ell G_\ell,

    the target :math:`\bar G r_k^\alpha` held constant, and are scaled back to their sum. The
    losses are taken for non-negative (of others the size counts, which is no rate). A
    loss that has fallen less than the others has :math:`r_k > 1` and gets a *larger* gradient
    for :math:`\alpha > 0`. A loss whose gradient is exactly zero, such as a hinge that is
    satisfied, cannot be levelled: it keeps its weight and is left out of the means, which in the
    paper's equation would starve the others. As in the paper a training step uses the weights
    before this update, 1 at the start, on all parameters.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      alpha: the exponent, the strength of the pull towards a common training rate. The paper
        takes 1.5 for tasks that differ much and 0.12 for tasks that are alike; 0 levels the
        norms.
      optimizer: the Optax optimizer of w, one that needs gradients only. Default:
        ``optax.adam(0.025)``. What it makes smaller than 1e-4 is set to that before the weights
        are scaled back.
      shared: W, a pytree of bools (the parameters' structure or a prefix of it) or a function
        of the parameters that gives one; the paper takes the last layer that all losses share,
        which costs K gradients of that layer instead of all. The weights act on all parameters
        all the same. Default: all of them.
      weight_sum: the sum of the weights, > 0. Default: K, as in the paper.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). They act on top of the levelled norms.
        Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: m, step w once in m steps, with the mean of the losses and the gradients of the last
        of them, and then m times, so that it learns as fast as with m = 1. Static.
      lean: whether to take the form with less memory and more flops, one backward pass more, where
        there is one (see :func:`balance`). Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      Two losses that are alike but for their scales end with gradients of equal norm:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> losses_fn = lambda x: (jnp.sum((x - 1.0) ** 2), 9.0 * jnp.sum((x + 1.0) ** 2))
      >>> tx = sa.gradnorm(num_losses=2)
      >>> params = jnp.zeros(3)
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     losses, grads = sa.value_and_component_grads(losses_fn)(params)
      ...     _, state = tx.update(grads, state, params)
      >>> print(f"{sa.loss_weights(state)[0] / sa.loss_weights(state)[1]:.0f}")
      9

    References:
      Chen, Badrinarayanan, Lee and Rabinovich, `GradNorm: Gradient Normalization for Adaptive
      Loss Balancing in Deep Multitask Networks <https://arxiv.org/abs/1711.02257>`_, 2018,
      Eqs. 1 and 2, Algorithm 1.
    """
    optimizer = optax.adam(0.025) if optimizer is None else optimizer
    check_number("alpha", alpha)
    check_optimizer("optimizer", optimizer)

    def init(num_losses: int) -> GradNormState:
        task_weights = jnp.ones(num_losses, dtype=float)
        initial_losses = jnp.zeros(num_losses, dtype=float)
        return GradNormState(task_weights, initial_losses, optimizer.init(task_weights))

    def update(
        components: Components, state: GradNormState
    ) -> tuple[Float[Array, " K"], GradNormState]:
        w = state.task_weights
        squared_norms = components.squared_norms()
        is_counted = components.counted & (squared_norms > 0)
        initial_losses = first_seen(state.initial_losses, components.losses)
        rates = inverse_training_rates(components.losses, initial_losses, is_counted)
        norms = jnp.sqrt(jnp.where(is_counted, squared_norms, 1.0))
        targets = mean_of(w * norms, is_counted) * rates ** jnp.asarray(alpha, w.dtype)
        slopes = jnp.where(is_counted, jnp.sign(w * norms - targets) * norms, 0.0)
        steps, optimizer_state = optimizer.update(slopes, state.weight_optimizer_state, w)
        stepped = jnp.maximum(optax.apply_updates(w, steps), _SMALLEST_WEIGHT)
        scale = mean_of(w, is_counted) / jnp.maximum(mean_of(stepped, is_counted), _SMALLEST_WEIGHT)
        w_next = jnp.where(is_counted, stepped * scale, w)
        return w, GradNormState(w_next, initial_losses, optimizer_state)

    return balance(
        repeated(Weighting(init, update), every),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=size_of(num_losses) if weight_sum is None else weight_sum,
        every=every,
        lean=lean,
        shared=shared,
    )
