"""What the state of an optimizer says about the losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from softadapt_optax._losses.softadapt import SoftAdaptState
from softadapt_optax._per_loss import (
    Names,
    are_sorted,
    difference,
    has_no_order,
    names_of,
    order_of,
)
from softadapt_optax._state import BalanceState, loss_names_in, states_in


def loss_weights(opt_state: PyTree, like: PyTree | None = None) -> PyTree:
    """The current loss weights, by name if asked.

    Args:
      opt_state: the state of an optimizer with one :func:`balance` (``softadapt``, ...) in
        it, at any depth; or a batch of such states, with leading axes.
      like: a pytree of K scalars, such as the losses, or an array [K], or a sequence of K names,
        those of a plain dictionary of losses (a named tuple and an ``OrderedDict`` have an order of
        their own: pass the losses). Default: an array.

    Returns:
      The weights, shape [..., K], in the order of the losses (sorted names for a dictionary), or
      in that of the names if the transformation was made with names; with ``like`` in its structure
      and by its names, each of shape [...], a dictionary for a sequence of names. Where they go on
      to ``grads.combine`` or :func:`fixed_weights`, which take an array in the order of the losses,
      pass ``like=losses``. Their sum differs from method to method: divide by it to compare them.
      That of a loss that was absent in the last step is 0.

    Raises:
      TypeError: ``like`` is a set, the keys of a dictionary or a generator.
      ValueError: ``opt_state`` has the state of no weighting or of more than one, or ``like``
        has not K entries, or other names than the transformation, or is a list of names that are
        not sorted and the transformation has none: where the losses are a dictionary they are in
        the order of the sorted names.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = optax.chain(sa.softadapt(num_losses=2), optax.adam(1e-3))
      >>> opt_state = tx.init(jnp.zeros(3))
      >>> print(sa.loss_weights(opt_state))
      [0.5 0.5]
      >>> print(sa.loss_weights(opt_state, like={"mse": 0.1, "sparsity": 2.0})["mse"])
      0.5
    """
    state = _balance_state(opt_state)
    weights = _array_in(state.loss_weights)
    own_names = loss_names_in(state)
    _check_like(like, weights.shape[-1], own_names)
    if like is None or _is_array(like):
        return weights
    entries = [weights[..., k] for k in range(weights.shape[-1])]
    names = _names(like)
    if names is None:
        return jax.tree.unflatten(jax.tree.structure(like), entries)
    if own_names is not None:
        entries = [entries[own_names.index(name)] for name in names]
    if _is_of_strings(like):
        _check_sorted(like, own_names)
        return dict(zip(names, entries, strict=True))
    return jax.tree.unflatten(jax.tree.structure(like), entries)


def diagnostics(opt_state: PyTree, like: PyTree | None = None) -> dict[str, Array]:
    r"""All that the state knows of the losses, as scalars by name, for a logger.

    It reads what the weighting had to compute anyway. For losses named "fit" and "size" the keys
    are

    * ``"weights/fit"``: the weight :math:`\alpha_k` of the last step;
    * ``"losses/fit"``: the loss that the method saw last, the mean of a period with ``every``;
    * ``"slopes/fit"``: the rate of change :math:`s_k` that ``softadapt`` made of the losses,
      after ``units``, ``rate`` and ``normalized``; 0 until ``history`` values of it are recorded;
    * ``"gradient_norms/fit"``: :math:`\|\nabla f_k\|`, for methods that look at gradients;
    * ``"cosines/fit/size"``: the cosine between the gradients of two losses, for ``pcgrad``,
      ``mgda`` and other methods that look at the Gramian; 0 if one of them is zero;
    * ``"alignments/fit"``: the inner product :math:`\langle \nabla f_k, \nabla V \rangle` with the
      gradient of the target, for ``hypergradient``; for a method that looks at norms or the Gramian
      too their cosine, ``"target_cosines/fit"``;
    * ``"conflict_share"``: with the Gramian the share of pairs of losses whose cosine is negative;
    * ``"steps"``: the number of steps that were used; without ``every`` and schedules that of the
      loss which had data in most of them, and at most 2^24.

    Losses and gradients are 0 before the first step, and for losses of priority 0, which no
    method sees. Norms and cosines are those of the parameters under ``shared``. Those of an
    absent loss, or of steps between two of ``every``, are the last that the method saw. A step
    that :func:`balance` drops, for a loss or Gramian that is not finite, changes *nothing* here:
    "steps" stands still then.

    Args:
      opt_state: the state of an optimizer with one :func:`balance` (``softadapt``, ...) in
        it, at any depth; or a batch of such states, with leading axes.
      like: a pytree of K scalars with names, such as the losses; a loss inside of a loss is
        called ``"outer/inner"``. Or a sequence of K names: those of losses without names, in their
        order. Default: the names with which the transformation was made, else "0", "1", ... in the
        order of the losses.

    Returns:
      A dictionary of scalars, or of arrays [...] for a batch of states. It can be made inside
      or outside of ``jit``.

    Raises:
      TypeError: as for :func:`loss_weights`.
      ValueError: as for :func:`loss_weights`, or two scalars would have the same name.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = optax.chain(sa.pcgrad(num_losses=2), optax.sgd(0.1))
      >>> params = jnp.asarray(1.0)
      >>> opt_state = tx.init(params)
      >>> losses_fn = lambda x: {"fit": (x - 3.0) ** 2, "size": x**2}
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params)
      >>> for name, value in sa.diagnostics(opt_state, like=losses).items():
      ...     print(f"{name} {value:.1f}")  # or writer.add_scalar(name, value, step)
      weights/fit 1.5
      weights/size 3.0
      losses/fit 4.0
      losses/size 1.0
      gradient_norms/fit 4.0
      gradient_norms/size 2.0
      cosines/fit/size -1.0
      conflict_share 1.0
      steps 1.0
    """
    state = _balance_state(opt_state)
    weights, records = _array_in(state.loss_weights), _array_in(state.loss_records)
    by_loss = {"weights": weights, "losses": records[..., 0, :]}
    if isinstance(state.weighting_state, SoftAdaptState):
        by_loss["slopes"] = _array_in(state.weighting_state.loss_slopes)
    norms, cosines = _array_in(state.gradient_norms), _array_in(state.gradient_cosines)
    if cosines is not None:
        norms = jnp.diagonal(cosines, axis1=-2, axis2=-1)
    if norms is not None:
        by_loss["gradient_norms"] = norms
    alignments = _array_in(state.target_alignments)
    if alignments is not None:
        by_loss["alignments" if norms is None else "target_cosines"] = alignments

    num_losses, own_names = weights.shape[-1], loss_names_in(state)
    _check_like(like, num_losses, own_names)
    names = _labels(like, own_names, num_losses)
    scalars = [
        (f"{quantity}/{name}", values[..., k])
        for quantity, values in by_loss.items()
        for k, name in enumerate(names)
    ]
    if cosines is not None:
        first, second = np.triu_indices(num_losses, 1)
        of_pairs = jnp.clip(cosines[..., first, second], -1.0, 1.0)  # but for rounding they are
        pairs = [f"cosines/{names[i]}/{names[j]}" for i, j in zip(first, second, strict=True)]
        scalars += [(pair, of_pairs[..., k]) for k, pair in enumerate(pairs)]
        conflicts = jnp.sum(of_pairs < 0, axis=-1) / max(len(pairs), 1)
        scalars.append(("conflict_share", conflicts))
    steps = _array_in(state.step_count)
    scalars.append(("steps", jnp.max(records[..., 1, :], axis=-1) if steps is None else steps))
    by_name = dict(scalars)
    if len(by_name) < len(scalars):
        raise ValueError(f"The names of the losses should not run into each other, got {names}.")
    return by_name


def _balance_state(opt_state: PyTree) -> BalanceState:
    """The one in an optimizer's state."""
    states = states_in(opt_state)
    if len(states) != 1:
        if states and isinstance(opt_state, list):
            cause = (
                "the states of several runs, which are stacked by `jax.tree.map(lambda *leaves: "
                "jnp.stack(leaves), *states)`"
            )
        elif states:
            cause = (
                "the state has several weightings in it, of several optimizers say; pass the part "
                "with one of them"
            )
        else:
            cause = "the arguments are swapped, or the state was restored without a template"
        raise ValueError(
            "`opt_state` should be the state of a chain with one `softadapt`, `balance` or other "
            f"weighting in it, got a {type(opt_state).__name__} with {len(states)}. Likely cause: "
            f"{cause}."
        )
    return states[0]


def _array_in(field: PyTree) -> Any:
    """The array of a field, which Flax's NNX wraps in a variable; None if it has none."""
    leaves = jax.tree.leaves(field)
    return leaves[0] if leaves else None


def _is_array(like: PyTree) -> bool:
    return jax.tree_util.all_leaves([like]) and jnp.ndim(like) > 0


def _check_like(like: PyTree | None, num_losses: int, own_names: Names | None) -> None:
    """Raises unless ``like`` has K entries, with the names of the losses if both have some."""
    if like is None:
        return
    if has_no_order(like):
        raise TypeError(
            "`like` should be the losses, or a list or tuple of their names, got "
            f"{type(like).__name__}."
        )
    names = None if _is_array(like) else _names(like)
    if names is not None and own_names is not None:
        order_of(own_names, names, "`like`")
    elif names is not None and _is_of_strings(like) and len(set(names)) < len(names):
        raise ValueError(
            f"`like` should have a name for each loss, got {', '.join(names)} "
            f"({difference(names, names)})."
        )
    if _is_array(like) and own_names is not None and not are_sorted(own_names):
        raise ValueError(
            "`like` should have the names of the losses beside names that are not sorted, "
            f"{', '.join(own_names)}, got an array: in which order its entries are nobody knows; "
            "`grads.losses` has that of the sorted names. Remedy: pass the losses as the loss "
            "function returned them, by name."
        )
    size = jnp.shape(like)[-1] if _is_array(like) else len(jax.tree.leaves(like))
    if size != num_losses:
        raise ValueError(f"`like` should have {num_losses} entries, one for each loss, got {size}.")


def _is_of_strings(like: PyTree) -> bool:
    leaves = jax.tree.leaves(like)
    return bool(leaves) and all(isinstance(leaf, str) for leaf in leaves)


def _names(like: PyTree) -> Names | None:
    """The names that ``like`` has or lists."""
    return tuple(jax.tree.leaves(like)) if _is_of_strings(like) else names_of(like)


def _labels(like: PyTree | None, own_names: Names | None, num_losses: int) -> Names:
    """What each entry of the state is called."""
    if own_names is not None:
        return own_names
    names = None if like is None or _is_array(like) else _names(like)
    if names is not None and _is_of_strings(like):
        _check_sorted(like, own_names)
    return tuple(map(str, range(num_losses))) if names is None else names


def _check_sorted(like: PyTree, own_names: Names | None) -> None:
    """Raises for a list of names that would be put on the wrong losses of a dictionary."""
    names = jax.tree.leaves(like)
    if own_names is None and not are_sorted(names):
        raise ValueError(
            f"`like` should be the losses, or a list of sorted names, got {names}. Losses in a "
            "plain dictionary are in the order of their sorted names, so that these may be the "
            "wrong way round. Remedy: pass the losses, or make the transformation with the names "
            f"in the place of the number of losses, {names}, whose order is kept then."
        )
