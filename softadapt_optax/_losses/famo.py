"""Weights that let all losses fall at the same relative rate, learned from what a step did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, UInt32

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_eps, check_number, check_optimizer
from softadapt_optax._reductions import all_over, sum_over
from softadapt_optax._scaling import EPS, exponentials, first_seen, positive_or
from softadapt_optax._state import where
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class FAMOState(NamedTuple):
    """State of :func:`famo`.

    Attributes:
      logits: the learned xi, shape [K].
      logit_optimizer_state: state of the optimizer that learns them.
      last_losses: the last record of each loss, shape [K].
      initial_losses: the first record of each that is not 0, shape [K]; 0 until then.
      was_present: 1 for losses that had data in the last step, else 0, shape [K].
    """

    logits: Float[Array, " K"]
    logit_optimizer_state: PyTree
    last_losses: Float[Array, " K"]
    initial_losses: Float[Array, " K"]
    was_present: UInt32[Array, " K"]


def famo(
    num_losses: int | Sequence[str],
    optimizer: optax.GradientTransformation | None = None,
    *,
    decay: ArrayLike = 1e-3,
    weight_sum: ArrayLike = 1.0,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""Fast adaptive multitask optimization (FAMO, Liu, Feng, Stone and Liu 2023).

    With :math:`z = \mathrm{softmax}(\xi)` it descends on the logarithms of the losses (Eqs. 10 to
    12, Algorithm 1)

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x_t), \qquad
      \alpha_k = c \, \frac{z_k}{f_k(x_t)}, \quad \sum_k \alpha_k = 1,

    and then steps :math:`\xi`, which starts at 0, by an optimizer of its own along

    .. math::

      \delta + \gamma \xi, \qquad
      \delta_k = z_k \Bigl( d_k - \sum_\ell z_\ell d_\ell \Bigr), \quad
      d_k = \log f_k(x_t) - \log f_k(x_{t+1}),

    so that a loss which fell less than the others, over itself, gets more weight: :func:`mgda` on
    the logarithms, one step at a time, without the K gradients.

    The two losses in :math:`d_k` are those of *one* batch before and after the step. There are two
    ways to them:

    * ``update(..., previous_losses=...)``, the paper's: the losses of the last batch at the
      parameters of now, ``losses_fn(params, last_batch)``, which is one forward pass more, a third
      of a step. In the first step, for which there is no last batch, leave it out or pass anything.
      After a step with a loss that was not finite, which left no trace, pass NaN: there are no
      losses of that batch before the step.
    * Without it the next batch's losses stand in for them, at no cost. :math:`d_k` then has the
      noise of two batches in it, which is no rate: it will do where all steps see the same data, as
      with the fixed points of a PINN, where batches are large, or with ``every``, over whose means
      the noise falls; not where the losses of two batches differ by more than a step changes them.

    The authors report results as good as those of the methods that form K gradients, at a cost that
    does not grow with K. What :func:`mgda` is said of holds here too: the loss that falls most
    slowly, over itself, sets the pace, so that one which *cannot* fall, for it has reached the
    noise of its labels, takes ever more weight; the decay :math:`\gamma` is what holds it. A loss
    that comes near to 0 takes the weight of the others too, as 1 / f does. Kurin et al. 2022 and
    Xin et al. 2022, before this method, found none of its kind better than well-tuned fixed
    weights. Since the weights sum to 1 the step is smaller than that of a plain sum by a factor of
    K or so. Losses should be positive, with a bound at 0: subtract a known lower bound in the loss
    function; of negative losses the size counts.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      optimizer: the Optax optimizer of :math:`\xi`, one that needs gradients only. Default:
        ``optax.adam(0.025)``, as in the authors' code.
      decay: :math:`\gamma` >= 0, the pull back to equal z. The authors' programs have 1e-5 to 1e-2.
      weight_sum: the sum of the weights, > 0.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        They hardly matter here, but for the sum of the weights. Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: m, step :math:`\xi` once in m steps, from mean to mean of the losses, and m times as
        far, so that it learns as fast as with m = 1. Not with ``previous_losses``. Static.
      eps: > 0; a loss below this share of its first record counts as if it were this share. One
        that has been 0 from the start counts as 1.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range, or ``previous_losses`` are given with ``every``;
        also the errors of :func:`balance`.

    Examples:
      Of two losses the second falls more slowly, over itself, and gains:

      >>> import jax, jax.numpy as jnp, optax, softadapt_optax as sa
      >>> losses_fn = lambda x, batch: jnp.stack([jnp.mean((x[0] - batch) ** 2),
      ...                                         jnp.mean((0.1 * x[1] - batch) ** 2)])
      >>> tx = optax.chain(sa.famo(num_losses=2), optax.sgd(0.1))
      >>> @jax.jit
      ... def train_step(params, opt_state, batch, last_batch):
      ...     losses, grads = sa.value_and_component_grads(losses_fn)(params, batch)
      ...     previous = losses_fn(params, last_batch)
      ...     updates, opt_state = tx.update(grads, opt_state, params, previous_losses=previous)
      ...     return optax.apply_updates(params, updates), opt_state
      >>> params, batches = jnp.full(2, 3.0), jax.random.normal(jax.random.key(0), (20, 4))
      >>> opt_state, last_batch = tx.init(params), batches[0]
      >>> for batch in batches:
      ...     params, opt_state = train_step(params, opt_state, batch, last_batch)
      ...     last_batch = batch
      >>> logits = opt_state[0].weighting_state.logits
      >>> bool(logits[1] > logits[0])
      True

    References:
      Liu, Feng, Stone and Liu, `FAMO: Fast Adaptive Multitask Optimization
      <https://arxiv.org/abs/2306.03792>`_, 2023, Algorithm 1. Kurin, De Palma, Kostrikov, Whiteson
      and Kumar, `In Defense of the Unitary Scalarization for Deep Multi-Task Learning
      <https://arxiv.org/abs/2201.04122>`_, 2022. Xin, Ghorbani, Gilmer, Garg and Firat, `Do Current
      Multi-Task Optimization Methods in Deep Learning Even Help?
      <https://arxiv.org/abs/2209.11379>`_, 2022.
    """
    optimizer = optax.adam(0.025) if optimizer is None else optimizer
    check_optimizer("optimizer", optimizer)
    check_number("decay", decay, nonnegative=True)
    check_number("weight_sum", weight_sum, positive=True)
    check_eps(eps)

    def init(num_losses: int) -> FAMOState:
        zeros = jnp.zeros(num_losses, dtype=float)
        was_present = jnp.zeros(num_losses, dtype=jnp.uint32)
        return FAMOState(zeros, optimizer.init(zeros), zeros, zeros, was_present)

    def stepped(
        components: Components, state: FAMOState, initial_losses: Float[Array, " K"]
    ) -> tuple[Float[Array, " K"], PyTree]:
        """The logits, and their optimizer's state, after the step of the last weights."""
        xi, previous_losses = state.logits, components.previous_losses
        is_known = components.counted & components.is_new & (state.initial_losses != 0)
        if previous_losses is None:
            previous_losses = components.losses
        elif every > 1:
            raise ValueError(
                "`previous_losses` should not be given with `every` > 1: what is compared then are "
                "the means of two periods."
            )
        else:
            is_known = is_known & (state.was_present > 0) & jnp.isfinite(previous_losses)
            previous_losses = jnp.where(is_known, previous_losses, state.last_losses)
        before, after = (
            _sizes(losses, initial_losses, eps) for losses in (state.last_losses, previous_losses)
        )
        info = np.finfo(before.dtype)
        falls = jnp.log(jnp.clip(before / after, float(info.tiny), float(info.max)))
        slopes = _slopes(xi, falls, is_known) + jnp.asarray(decay, xi.dtype) * xi
        slopes = jnp.where(is_known, slopes, 0.0)
        steps, optimizer_state = optimizer.update(slopes, state.logit_optimizer_state, xi)
        xi = optax.apply_updates(xi, jnp.where(is_known, every * steps, 0.0))
        # A step from which nothing is learned, as the first, is none to an optimizer that counts.
        is_none = all_over(~is_known)
        return xi, where(is_none, state.logit_optimizer_state, optimizer_state)

    def update(components: Components, state: FAMOState) -> tuple[Float[Array, " K"], FAMOState]:
        losses = components.losses
        initial_losses = first_seen(state.initial_losses, losses)
        xi, optimizer_state = stepped(components, state, initial_losses)
        sizes = _sizes(losses, initial_losses, eps)
        weights = exponentials(xi - jnp.log(sizes), components.counted)
        was_present = components.is_new.astype(jnp.uint32)
        return weights, FAMOState(xi, optimizer_state, losses, initial_losses, was_present)

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )


def _sizes(
    losses: Float[Array, " K"], initial_losses: Float[Array, " K"], eps: ArrayLike
) -> Float[Array, " K"]:
    """Those of the losses, none far below its start; 1 of losses that have always been 0."""
    smallest = positive_or(eps, EPS, losses.dtype) * jnp.abs(initial_losses)
    smallest = jnp.maximum(smallest, float(np.finfo(losses.dtype).tiny))
    return jnp.where(initial_losses == 0, 1.0, jnp.maximum(jnp.abs(losses), smallest))


def _slopes(
    xi: Float[Array, " K"], falls: Float[Array, " K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """The product of the falls with the derivative of the softmax, over the losses that count."""
    shares = exponentials(xi, counted)
    shares = shares / jnp.maximum(sum_over(shares), 1.0)
    falls = jnp.where(counted, falls, 0.0)
    return shares * (falls - sum_over(shares * falls))
