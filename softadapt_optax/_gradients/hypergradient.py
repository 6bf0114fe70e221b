"""Weights that follow a target: a loss that the training losses are to lower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_optimizer, size_of
from softadapt_optax._reductions import max_over
from softadapt_optax._scaling import exponentials, mean_of
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class HypergradientState(NamedTuple):
    """State of :func:`hypergradient`.

    Attributes:
      logits: the learned z, shape [K]; each step has a mean of 0 over the losses present.
      logit_optimizer_state: state of the optimizer that learns them.
      alignment_scale: the largest alignment of the first record that has one, 0 before.
    """

    logits: Float[Array, " K"]
    logit_optimizer_state: PyTree
    alignment_scale: Float[Array, ""]


def hypergradient(
    num_losses: int | Sequence[str],
    optimizer: optax.GradientTransformation | None = None,
    *,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | Callable[[ArrayLike], PyTree] | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights that follow a target V, such as the loss on validation data: one run for a search.

    A step from :math:`x` to :math:`x' = x - \eta \sum_k \alpha_k \nabla f_k(x)` changes the target
    by

    .. math::

      \frac{\partial V(x')}{\partial \alpha_k} = -\eta \, a_k + O(\eta^2), \qquad
      a_k = \langle \nabla f_k(x), \nabla V(x) \rangle.

    With :math:`\alpha_k \propto q_k e^{z_k}` and q the ``priorities`` an optimizer of its own
    inside the state steps z, which starts at 0, with the gradient :math:`-a`, before the weights of
    the step are made: an exponentiated gradient. Off each step goes its mean over the losses that
    are present, which changes no weight. With the default, Adam, each loss is measured by its own
    alignments so far: a loss whose gradient points along that of the target more steadily than
    those of the others gains weight, and one whose gradient points against it loses weight. (The
    gradient by z itself, :math:`-p_k (a_k - \sum_\ell p_\ell a_\ell)` with the shares p of the
    weights, does worse: it takes from losses whose gradients are small, since they make the step
    shorter, and losses whose shares have become small do not come back.)

    ``update`` needs ``target``, :math:`\nabla V(x)`, a pytree like the parameters, or a function
    of ``params`` that returns it, which is called only where it is due:
    ``tx.update(grads, opt_state, params, target=jax.grad(validation_loss))``. V should be what
    is wanted in the end: a loss of data that the training losses do not see, in batches, or, where
    there are none, the training loss that matters, on another batch. Whatever K is, the
    K numbers :math:`a_k` are one forward-mode pass (inner products where gradients are stacked);
    with the target's own gradient that is about as much as the step again, and with ``every=10``
    about a seventh. The other arguments of ``update`` are those of :func:`balance`.

    It sees one step ahead: a learning rate far too large cannot be mended by weights, and a loss
    that pays off late looks useless.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      optimizer: the Optax optimizer of z, one that needs gradients only. Default:
        ``optax.adam(0.02)``. The alignments it sees are over the largest of the first record, so
        that the scale of the losses does not matter.
      weight_sum: the sum of the weights, > 0. Default: K, that of a plain sum of losses.
      priorities: q in any scale, >= 0, the weights to start from: K numbers, in order or by name,
        or functions of the step (see :func:`balance`). Where one loss is the main one and the
        others are penalties or auxiliary tasks, 1 and 0.01 often serve better than the default:
        all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: m, step z once in m steps, with the gradients and the target of the last of them, and
        m times as far, so that it learns as fast as with m = 1. Until the first of these steps the
        weights are the priorities. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type, or ``target`` is missing.
      ValueError: an argument is out of its range, or the target is not like the parameters; also
        the errors of :func:`balance`.

    Examples:
      A loss that helps the target, one that has nothing to do with it and one that harms it:

      >>> import jax, jax.numpy as jnp, optax, softadapt_optax as sa
      >>> def losses_fn(x):
      ...     return {"help": (x[0] - 1.0) ** 2, "none": x[1] ** 2, "harm": (x[0] + 1.0) ** 2}
      >>> target_loss = lambda x: (x[0] - 0.9) ** 2
      >>> tx = optax.chain(sa.hypergradient(3), optax.sgd(0.01))
      >>> params = jnp.zeros(2)
      >>> opt_state = tx.init(params)
      >>> @jax.jit
      ... def train_step(params, opt_state):
      ...     losses, grads = sa.value_and_component_grads(losses_fn)(params)
      ...     target = jax.grad(target_loss)
      ...     updates, opt_state = tx.update(grads, opt_state, params, target=target)
      ...     return optax.apply_updates(params, updates), opt_state, losses
      >>> for _ in range(1000):
      ...     params, opt_state, losses = train_step(params, opt_state)
      >>> print(f"{params[0]:.2f}")
      0.90
      >>> weights = sa.loss_weights(opt_state, like=losses)
      >>> bool(weights["help"] > weights["none"] > weights["harm"])
      True

    References:
      The gradient of the loss after a step by what weighs its parts: Baydin, Cornish, Martinez
      Rubio, Schmidt and Wood, `Online Learning Rate Adaptation with Hypergradient Descent
      <https://arxiv.org/abs/1703.04782>`_, 2018, for the learning rate; Ren, Zeng, Yang and
      Urtasun, `Learning to Reweight Examples for Robust Deep Learning
      <https://arxiv.org/abs/1803.09050>`_, 2018, for examples; Lin, Baweja, Kantor and Held,
      `Adaptive Auxiliary Task Weighting for Reinforcement Learning
      <https://proceedings.neurips.cc/paper/2019/hash/0e900ad84f63618452210ab8baae0218-Abstract.html>`_,
      2019, and Liu, James, Davison and Johns, `Auto-Lambda: Disentangling Dynamic Task
      Relationships <https://arxiv.org/abs/2202.03091>`_, 2022, for tasks.
    """
    optimizer = optax.adam(0.02) if optimizer is None else optimizer
    check_optimizer("optimizer", optimizer)

    def init(num_losses: int) -> HypergradientState:
        logits = jnp.zeros(num_losses, dtype=float)
        return HypergradientState(logits, optimizer.init(logits), jnp.zeros((), dtype=float))

    def update(
        components: Components, state: HypergradientState
    ) -> tuple[Float[Array, " K"], HypergradientState]:
        z, is_counted = state.logits, components.counted
        alignments = components.alignments()
        scale = state.alignment_scale
        scale = jnp.where(scale > 0, scale, max_over(jnp.abs(alignments)))
        slopes = -alignments / jnp.where(scale > 0, scale, 1.0)
        steps, optimizer_state = optimizer.update(slopes, state.logit_optimizer_state, z)
        # What the steps have in common changes no weight, but those of losses that are absent.
        steps = every * (steps - mean_of(steps, is_counted))
        z = optax.apply_updates(z, jnp.where(is_counted & components.is_due, steps, 0.0))
        return exponentials(z, is_counted), HypergradientState(z, optimizer_state, scale)

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=size_of(num_losses) if weight_sum is None else weight_sum,
        every=every,
    )
