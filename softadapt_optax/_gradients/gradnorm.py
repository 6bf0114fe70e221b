"""Weights that level the gradient norms of the losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from softadapt_optax._balance import Components, Weighting, balance
from softadapt_optax._checks import check_number, check_optimizer

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


def mean_of(values: Float[Array, " K"], counted: Bool[Array, " K"]) -> Float[Array, ""]:
    """The mean over the losses that count."""
    return jnp.sum(jnp.where(counted, values, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


def inverse_training_rates(
    losses: Float[Array, " K"], initial_losses: Float[Array, " K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """The share of each loss that is left, over the mean share: above 1 for a slow loss.

    1 for losses that do not count.
    """
    tiny = float(np.finfo(losses.dtype).tiny)
    left = jnp.abs(losses) / jnp.maximum(jnp.abs(initial_losses), tiny)
    left = jnp.where(initial_losses == 0, 1.0, left)
    return jnp.where(counted, left, 1.0) / jnp.where(
        counted, jnp.maximum(mean_of(left, counted), tiny), 1.0
    )


def first_seen(
    initial_losses: Float[Array, " K"], losses: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The initial losses, those not seen before taken from ``losses``."""
    return jnp.where(initial_losses == 0, losses, initial_losses)


def gradnorm(
    num_losses: int,
    alpha: ArrayLike = 1.5,
    optimizer: optax.GradientTransformation | None = None,
    *,
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
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
    for :math:`\alpha > 0`. As in the paper a training step uses the weights before this
    update, 1 at the start, on all parameters.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, at least 1. Static.
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
      priorities: factors on the weights, >= 0: an array [K] or a pytree of K scalars in the
        structure of the losses (see :func:`balance`). They act on top of the levelled norms.
        Default: all 1.
      every: step w once in this many steps, with the mean of the losses and the gradients of
        the last of them. Static.
      lean: whether h comes from one backward pass more, which spares keeping the K gradients until
        the weights are known: less memory, more flops (see :func:`balance`). Static.

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
        is_counted = components.counted
        initial_losses = first_seen(state.initial_losses, components.losses)
        rates = inverse_training_rates(components.losses, initial_losses, is_counted)
        norms = jnp.sqrt(components.squared_norms())
        targets = mean_of(w * norms, is_counted) * rates ** jnp.asarray(alpha, w.dtype)
        slopes = jnp.where(is_counted, jnp.sign(w * norms - targets) * norms, 0.0)
        steps, optimizer_state = optimizer.update(slopes, state.weight_optimizer_state, w)
        stepped = jnp.maximum(optax.apply_updates(w, steps), _SMALLEST_WEIGHT)
        scale = mean_of(w, is_counted) / jnp.maximum(mean_of(stepped, is_counted), _SMALLEST_WEIGHT)
        w_next = jnp.where(is_counted, stepped * scale, w)
        return w, GradNormState(w_next, initial_losses, optimizer_state)

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        weight_sum=num_losses if weight_sum is None else weight_sum,
        every=every,
        lean=lean,
        shared=shared,
    )
