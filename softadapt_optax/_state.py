"""What is kept from step to step, and what a step adds to it."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree


class BalanceState(NamedTuple):
    """State of :func:`balance`.

    Attributes:
      loss_weights: the weights of the last step, shape [K].
      held_weights: what the weighting gave last, before priorities, scale and units, shape [K].
      recorded_losses: the losses of the last record, or of the step that was looked at ahead of
        the first, shape [K]; zeros before.
      record_counts: the number of records of each loss, shape [K], int32.
      step_count: number of steps, int32; those with a loss that is not finite do not count.
        Where int32 ends it repeats its last period.
      period_losses: mean of each loss since the last record, shape [K]; ``()`` without ``every``.
      period_counts: number of losses in each of these means, shape [K], int32; ``()`` likewise.
      unit_losses: the losses that are taken for units, shape [K]; 0 where there is none yet,
        ``()`` if the units are not losses.
      gradient_norms: the norms of the gradients that the weighting saw last, shape [K]; ``()``
        if it looks at losses alone.
      gradient_cosines: the cosines between them, shape [K, K]; ``()`` if it does not look at
        their inner products.
      loss_names: the names of the losses in the order of the entries, if the transformation was
        made with names, as the keys of empty dictionaries: no array; else ``()``.
      weighting_state: state of the weighting.
    """

    loss_weights: Float[Array, " K"]
    held_weights: Float[Array, " K"]
    recorded_losses: Float[Array, " K"]
    record_counts: Int[Array, " K"]
    step_count: Int[Array, ""]
    period_losses: PyTree[Float[Array, " K"]]
    period_counts: PyTree[Int[Array, " K"]]
    unit_losses: PyTree[Float[Array, " K"]]
    gradient_norms: PyTree[Float[Array, " K"]]
    gradient_cosines: PyTree[Float[Array, "K K"]]
    loss_names: tuple[dict[str, tuple[()]], ...]
    weighting_state: PyTree


class Observation(NamedTuple):
    """The losses of a step beside what was known of them.

    Attributes:
      losses: the mean of each loss since the last record, where there was none that of the last
        record, shape [K].
      is_finite: whether all losses of this step are.
      period_counts: the number of losses in each mean, shape [K].
      is_present: which losses have data in this step, shape [K].
      is_new: which losses the method gets news of, shape [K].
      factors: the priorities in this step, shape [K].
      counted: which losses the method weighs, shape [K].
      record_counts: the number of records of each loss, if this is one, shape [K].
      step_count: the number of steps, this one included.
      is_due: whether this step makes a record.
      is_first: whether this is the first step, which looks ahead of the first record.
    """

    losses: Float[Array, " K"]
    is_finite: Bool[Array, ""]
    period_counts: Int[Array, " K"]
    is_present: Bool[Array, " K"]
    is_new: Bool[Array, " K"]
    factors: Float[Array, " K"]
    counted: Bool[Array, " K"]
    record_counts: Int[Array, " K"]
    step_count: Int[Array, ""]
    is_due: Bool[Array, ""]
    is_first: Bool[Array, ""]


def observed(
    state: BalanceState,
    losses: Float[Array, " K"],
    is_present: Bool[Array, " K"],
    factors: Float[Array, " K"],
    every: int,
    needs_gradients: bool,
) -> Observation:
    """What counts in this step.

    A method that looks at losses weighs all losses that have a record, the absent ones by the
    last of them; one that looks at gradients those that are there, as gradients are not kept.
    """
    is_here = is_present & (factors > 0)
    if every == 1:  # a period is this step
        counts = is_here.astype(jnp.int32)
        means = jnp.where(is_here, losses, 0.0)  # whatever the others are
    else:
        counts = state.period_counts + is_here.astype(jnp.int32)
        losses = jnp.where(is_here, losses, state.period_losses)
        means = running_mean(state.period_losses, losses, counts)
    has_mean = counts > 0
    is_new = is_here if needs_gradients else has_mean & (factors > 0)
    is_known = is_new if needs_gradients else is_new | (state.record_counts > 0)
    step_count = _next_count(state.step_count, every)
    return Observation(
        losses=jnp.where(has_mean, means, state.recorded_losses),
        is_finite=jnp.all(jnp.isfinite(means)),
        period_counts=counts,
        is_present=is_present,
        is_new=is_new,
        factors=factors,
        counted=is_known & (factors > 0),
        record_counts=jnp.where(
            is_new, optax.safe_increment(state.record_counts), state.record_counts
        ),
        step_count=step_count,
        is_due=step_count % every == 0,
        is_first=step_count == 1,
    )


def recorded(state: BalanceState, seen: Observation, every: int) -> BalanceState:
    """The state with the losses of this step."""
    is_looked_at = seen.is_new & (seen.is_due | seen.is_first)
    state = state._replace(
        recorded_losses=jnp.where(is_looked_at, seen.losses, state.recorded_losses),
        record_counts=jnp.where(seen.is_due, seen.record_counts, state.record_counts),
        step_count=seen.step_count,
    )
    if every == 1:
        return state
    has_mean = ~seen.is_due & (seen.period_counts > 0)
    return state._replace(
        period_losses=jnp.where(has_mean, seen.losses, 0.0),
        period_counts=jnp.where(seen.is_due, 0, seen.period_counts),
    )


def running_mean(
    mean: Float[Array, " K"], losses: Float[Array, " K"], counts: Int[Array, " K"]
) -> Float[Array, " K"]:
    """The means of ``counts`` losses, from those of all but the last and the last."""
    return mean + (losses - mean) / jnp.maximum(counts, 1).astype(mean.dtype)


def kept_unseen(is_new: Bool[Array, " K"], new: PyTree, old: PyTree) -> PyTree:
    """A method's new state, without news of the losses that it has no news of."""

    def keep(new: Array, old: Array) -> Array:
        is_by_loss = new.shape[-1:] == is_new.shape
        if not is_by_loss or jnp.issubdtype(new.dtype, jnp.unsignedinteger):
            return new
        return jnp.where(jnp.broadcast_to(is_new, new.shape), new, old)

    return jax.tree.map(keep, new, old)


def stays_finite(new: PyTree, old: PyTree) -> Bool[Array, ""]:
    """Whether no finite entry of a state has become infinite or NaN."""
    leaves = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    good = [
        jnp.all(jnp.isfinite(leaf) | ~jnp.isfinite(before))
        for leaf, before in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(operator.and_, good, jnp.ones((), dtype=bool))


def _next_count(count: Int[Array, ""], every: int) -> Int[Array, ""]:
    """The count plus one; where int32 ends, its last period of ``every`` steps once more."""
    last = np.iinfo(np.int32).max // every * every
    return jnp.where(count < last, count, last - every) + 1


def where(condition: bool | Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """One of two states."""
    return jax.tree.map(functools.partial(jnp.where, condition), new, old)
