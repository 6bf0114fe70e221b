"""What is kept from step to step, and what a step adds to it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from softadapt_optax._per_loss import Names
from softadapt_optax._reductions import all_over


class BalanceState(NamedTuple):
    """State of :func:`balance`. What an option that is not used would need is ``()``.

    Attributes:
      loss_weights: the weights of the last step, shape [K].
      loss_records: shape [2, K], the losses of the last record, or of the step that was looked at
        ahead of the first, and the number of records of each, which stops at 2^24 in float32;
        zeros before.
      step_count: number of steps, int32, with ``every`` or where something is a function of the
        step; those with a loss that is not finite do not count. Where int32 ends it repeats its
        last period.
      period_records: with ``every``, shape [2, K]: the mean of each loss since the last record,
        and the number of losses in it.
      held_weights: what the weighting gave last, before priorities, scale and units, shape [K];
        with ``every`` or ``smoothing``, and for methods that look at gradients.
      unit_losses: the losses that are taken for units, shape [K]; 0 where there is none yet.
      gradient_norms: the norms of the gradients that the weighting saw last, shape [K]; if it
        looks at nothing else of them.
      gradient_cosines: with inner products the cosines between the gradients, shape [K, K], and
        in the place of the ones on the diagonal the norms.
      target_alignments: the inner products of the gradients with the target that the weighting saw
        last, shape [K]; their cosines if it looks at gradient norms or inner products too.
      loss_names: the names of the losses in the order of the entries, if the transformation was
        made with names, as the keys of empty dictionaries: no array.
      weighting_state: state of the weighting.
    """

    loss_weights: Float[Array, " K"]
    loss_records: Float[Array, "2 K"]
    step_count: PyTree[Int[Array, ""]]
    period_records: PyTree[Float[Array, "2 K"]]
    held_weights: PyTree[Float[Array, " K"]]
    unit_losses: PyTree[Float[Array, " K"]]
    gradient_norms: PyTree[Float[Array, " K"]]
    gradient_cosines: PyTree[Float[Array, "K K"]]
    target_alignments: PyTree[Float[Array, " K"]]
    loss_names: tuple[dict[str, tuple[()]], ...]
    weighting_state: PyTree


class Observation(NamedTuple):
    """The losses of a step beside what was known of them.

    Attributes:
      losses: what the method sees, shape [K]: of losses of which it gets news their mean since the
        last record, of the others that of the last record.
      are_finite: whether each loss of this step is, shape [K].
      period_records: the mean of each loss since the last record and the number of losses in it,
        shape [2, K]; ``()`` without ``every``.
      is_new: which losses the method gets news of, shape [K].
      factors: the priorities in this step, shape [K].
      counted: which losses the method weighs, shape [K].
      record_counts: the number of records of each loss, if this is one, shape [K].
      step_count: the number of steps, this one included, if it is counted.
      is_due: whether this step makes a record.
      is_looked_at: whether the method looks at it, for a record or because a loss is there for the
        first time.
      is_start: whether no loss was there before.
    """

    losses: Float[Array, " K"]
    are_finite: Bool[Array, " K"]
    period_records: PyTree[Float[Array, "2 K"]]
    is_new: Bool[Array, " K"]
    factors: Float[Array, " K"]
    counted: Bool[Array, " K"]
    record_counts: Float[Array, " K"]
    step_count: PyTree[Int[Array, ""]]
    is_due: Bool[Array, ""]
    is_looked_at: Bool[Array, ""]
    is_start: Bool[Array, ""]


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

    With ``every`` a loss that is there for the first time is looked at ahead of its first record,
    as it has no weight and no unit before.
    """
    recorded_losses, record_counts = jnp.unstack(state.loss_records)
    is_here = is_present & (factors > 0)
    if every == 1:  # a period is this step
        counts_before = jnp.zeros_like(losses)
        means = jnp.where(is_here, losses, 0.0)  # whatever the others are
        is_new, is_due, is_looked_at = is_here, jnp.ones((), dtype=bool), jnp.ones((), dtype=bool)
        step_count = _next_count(state.step_count, 1) if is_kept(state.step_count) else ()
        period_records: PyTree = ()
    else:
        means_before, counts_before = jnp.unstack(state.period_records)
        counts = counts_before + is_here.astype(losses.dtype)
        means = running_mean(means_before, jnp.where(is_here, losses, means_before), counts)
        is_first = is_here & (record_counts == 0) & (counts_before == 0)
        step_count = _next_count(state.step_count, every)
        is_due = step_count % every == 0
        is_looked_at = is_due | ~all_over(~is_first)
        has_news = is_here if needs_gradients else (counts > 0) & (factors > 0)
        is_new = has_news & (is_due | (record_counts == 0))
        period_records = paired(means, counts)
    is_known = is_here if needs_gradients else is_new | (record_counts > 0)
    return Observation(
        losses=jnp.where(is_new, means, recorded_losses),
        are_finite=jnp.isfinite(means),
        period_records=period_records,
        is_new=is_new,
        factors=factors,
        counted=is_known & (factors > 0),
        record_counts=record_counts + is_new.astype(record_counts.dtype),
        step_count=step_count,
        is_due=is_due,
        is_looked_at=is_looked_at,
        is_start=all_over((record_counts == 0) & (counts_before == 0)),
    )


def recorded(state: BalanceState, seen: Observation, every: int) -> BalanceState:
    """The state with the losses of this step."""
    recorded_losses, record_counts = jnp.unstack(state.loss_records)
    recorded_losses = jnp.where(seen.is_looked_at, seen.losses, recorded_losses)
    record_counts = jnp.where(seen.is_due, seen.record_counts, record_counts)
    state = state._replace(
        loss_records=paired(recorded_losses, record_counts), step_count=seen.step_count
    )
    if every == 1:
        return state
    return state._replace(period_records=jnp.where(seen.is_due, 0.0, seen.period_records))


def paired(first: Float[Array, " K"], second: Float[Array, " K"]) -> Float[Array, "2 K"]:
    """Both as one array; a concatenation would be a kernel of its own."""
    is_first = jnp.asarray([[True], [False]])
    return jnp.where(is_first, first[None, :], second[None, :])


def running_mean(
    mean: Float[Array, " K"], losses: Float[Array, " K"], counts: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The means of ``counts`` losses, from those of all but the last and the last."""
    return mean + (losses - mean) / jnp.maximum(counts, 1.0)


def kept_unseen(is_new: Bool[Array, " K"], new: PyTree, old: PyTree) -> PyTree:
    """A method's new state, without news of the losses that it has no news of."""

    def keep(new: Array, old: Array) -> Array:
        is_by_loss = new.shape[-1:] == is_new.shape
        if not is_by_loss or jnp.issubdtype(new.dtype, jnp.unsignedinteger):
            return new
        return jnp.where(jnp.broadcast_to(is_new, new.shape), new, old)

    return jax.tree.map(keep, new, old)


def are_finite(new: PyTree, old: PyTree, starts_finite: Sequence[bool]) -> list[Bool[Array, "_"]]:
    """Whether entries of a state that were finite are still, joined along all axes but the last.

    Of leaves that are finite from the start the old entries need not be looked at.
    """
    leaves = zip(jax.tree.leaves(new), jax.tree.leaves(old), starts_finite, strict=True)
    rows = []
    for leaf, before, is_finite in leaves:
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.inexact):
            good = jnp.isfinite(leaf) if is_finite else jnp.isfinite(leaf) | ~jnp.isfinite(before)
            good = jnp.atleast_1d(good)
            rows.append(all_over(good.reshape(-1, good.shape[-1]).T))
    return rows


def all_true(rows: Sequence[Bool[Array, "_"]], weighting_state: PyTree) -> Bool[Array, ""]:
    """Whether all entries of all rows are, most of which are of one size.

    Not written out where an optimizer counts its steps in the state of a method: its powers and
    roots would be computed again for each entry and each use.
    """
    leaves = jax.tree.leaves(weighting_state)
    is_dear = any(jnp.issubdtype(leaf.dtype, jnp.signedinteger) for leaf in leaves)
    by_size: dict[int, Array] = {}
    for row in rows:
        by_size[row.size] = by_size[row.size] & row if row.size in by_size else row
    return functools.reduce(operator.and_, map(jnp.all if is_dear else all_over, by_size.values()))


def _next_count(count: Int[Array, ""], every: int) -> Int[Array, ""]:
    """The count plus one; where int32 ends, its last period of ``every`` steps once more."""
    last = np.iinfo(np.int32).max // every * every
    return jnp.where(count < last, count, last - every) + 1


def loss_names_in(state: BalanceState) -> Names | None:
    """The names with which the transformation was made."""
    return tuple(name for names in state.loss_names for name in names) or None


def states_in(tree: PyTree) -> list[BalanceState]:
    """The states of weightings in that of an optimizer, at any depth."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_state)
    return [leaf for leaf in leaves if _is_state(leaf)]


def _is_state(leaf: PyTree) -> bool:
    return isinstance(leaf, BalanceState)


def is_kept(field: PyTree) -> bool:
    """Whether a field of the state is an array, not ``()``."""
    return bool(jax.tree.leaves(field))


def where(condition: bool | Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """One of two states."""
    return jax.tree.map(functools.partial(jnp.where, condition), new, old)
