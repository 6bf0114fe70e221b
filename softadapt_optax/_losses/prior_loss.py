"""Weights from the loss that the best constant prediction has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ArrayLike, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_factors, check_flag, check_losses
from softadapt_optax._per_loss import (
    as_component_array,
    at_step,
    count_of,
    is_known,
    names_of,
    ordered_array,
)
from softadapt_optax._updates import refusing_positions
from softadapt_optax._weighting import equal_weights


def prior_loss(
    prior_losses: PyTree,
    *,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights each loss by the inverse of the loss that is had without learning.

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad \alpha_k = \frac{1}{f_k^{\text{prior}}}

    where :math:`f_k^{\text{prior}}` is what a model reaches that knows the targets'
    distribution and nothing of the inputs: see :func:`cross_entropy_prior` and
    :func:`squared_error_prior`. The weights are constant and do not depend on the first batch,
    as those of :func:`initial_loss` do. Any other method sees losses relative to their priors with
    ``units=prior_losses``.

    ``updates`` are those of :func:`balance`.

    Args:
      prior_losses: :math:`f_k^{\text{prior}}` > 0: an array of shape [K], traced or not, in the
        order of the losses (sorted names for a dictionary), or a pytree of K numbers in their
        structure.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: ``prior_losses`` or ``priorities`` are not numbers, or in no order.
      ValueError: ``prior_losses`` are not K finite numbers > 0; also the errors of
        :func:`balance`.

    Examples:
      A head with three classes, of which one holds half of the examples, and a regression:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> targets = jnp.asarray([9.0, 10.0, 12.0, 13.0])
      >>> prior = {
      ...     "class": sa.cross_entropy_prior([50, 25, 25]),
      ...     "height": sa.squared_error_prior(targets),
      ... }
      >>> tx = optax.chain(sa.prior_loss(prior), optax.adam(1e-3))
      >>> print(sa.loss_weights(tx.init(None)))  # 1 / (1.5 log 2) and 1 / 2.5
      [0.9617967 0.4      ]

    References:
      Jianlin Su, *Multi-task learning, part 1: in the name of the loss* (in Chinese),
      Scientific Spaces (kexue.fm), 2022, section on the prior state.
    """
    num_losses, names = count_of(prior_losses), names_of(prior_losses)
    if any(map(callable, jax.tree.leaves(prior_losses))):
        raise TypeError(
            "`prior_losses` should be numbers, got a function. They take no schedule; `priorities` "
            "do."
        )
    check_factors("prior_losses", prior_losses, num_losses, positive=True)
    if priorities is not None:
        check_losses(num_losses, prior_losses=prior_losses, priorities=priorities)
        check_factors("priorities", priorities, num_losses)

    def factors(step: ArrayLike) -> PyTree:
        inverse = 1.0 / as_component_array(prior_losses, "prior_losses")
        if priorities is not None:
            at_hand = at_step(priorities, step)
            inverse = inverse * ordered_array(at_hand, "priorities", num_losses, names)
        if names is None:
            return inverse
        return jax.tree.unflatten(jax.tree.structure(prior_losses), jnp.unstack(inverse))

    if not any(map(callable, jax.tree.leaves(priorities))):
        _check_finite(factors(0), prior_losses)
    tx = balance(equal_weights(), num_losses, priorities=factors, weight_sum=weight_sum)
    return refusing_positions(tx, prior_losses=prior_losses, priorities=priorities)


def _check_finite(weights: PyTree, prior_losses: PyTree) -> None:
    """Raises if a weight that is known has no room in its dtype."""
    if any(is_known(leaf) and not np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(weights)):
        raise ValueError(
            "`prior_losses` should be so large that 1 / `prior_losses`, times `priorities`, is "
            f"finite in {jnp.result_type(float)}, got {prior_losses}."
        )


def cross_entropy_prior(
    class_counts: ArrayLike | Sequence[int | float], *, initial: bool = False
) -> float:
    r"""The cross entropy of a classifier that has learned nothing of its inputs.

    For classes of frequencies :math:`p_c` it is their entropy,

    .. math::

      f^{\text{prior}} = -\sum_{c=1}^{C} p_c \log p_c,

    what the best constant prediction reaches; at the start, when all C classes are predicted
    alike, it is :math:`\log C`.

    Args:
      class_counts: counts or frequencies of the C classes, >= 0, shape [C], in any scale; not
        the labels themselves, of which ``np.bincount(labels)`` gives the counts.
      initial: whether to give the initial value, :math:`\log C`.

    Returns:
      The loss in nats, a number for :func:`prior_loss`, computed by NumPy outside of ``jit``.

    Raises:
      TypeError: ``class_counts`` are not numbers.
      ValueError: ``class_counts`` are not of shape [C], negative, or all zero.

    Examples:
      >>> import softadapt_optax as sa
      >>> print(f"{sa.cross_entropy_prior([90, 10]):.3f}")
      0.325
      >>> print(f"{sa.cross_entropy_prior([90, 10], initial=True):.3f}")  # log 2
      0.693
    """
    check_flag("initial", initial)
    counts = _data("class_counts", class_counts)
    if (
        counts.ndim != 1
        or not np.all((counts >= 0) & np.isfinite(counts))
        or not np.any(counts > 0)
    ):
        raise ValueError(
            "`class_counts` should be counts or frequencies >= 0 of shape [classes], not all "
            f"zero, got {class_counts}."
        )
    if initial:
        return float(np.log(counts.size))
    frequencies = counts[counts > 0] / counts.sum()
    return float(-np.sum(frequencies * np.log(frequencies)))


def squared_error_prior(
    targets: ArrayLike | Sequence[int | float],
    *,
    initial: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
) -> float:
    r"""The squared error of a regression that has learned nothing of its inputs.

    It is the variance of the targets, what the best constant prediction reaches,

    .. math::

      f^{\text{prior}} = \mathbb{E}\, \|y - \mathbb{E}\, y\|^2,

    or at the start, when a model predicts zero, their second moment
    :math:`\mathbb{E}\, \|y\|^2`.

    Args:
      targets: the targets of the training set, shape [samples, ...].
      initial: whether to give the initial value, the second moment.
      reduction: whether your loss is the mean or the sum over the features of a sample, the
        axes after the first; it has to be the same here. Over the samples it is a mean.

    Returns:
      The loss in the square of the targets' unit, a number for :func:`prior_loss`, computed by
      NumPy outside of ``jit``.

    Raises:
      TypeError: ``targets`` are not numbers.
      ValueError: there are no targets, some are not finite, or ``reduction`` is another.

    Examples:
      >>> import softadapt_optax as sa
      >>> print(sa.squared_error_prior([9.0, 10.0, 12.0, 13.0]))
      2.5
      >>> print(sa.squared_error_prior([9.0, 10.0, 12.0, 13.0], initial=True))
      123.5
    """
    check_flag("initial", initial)
    check_choice("reduction", reduction, ("mean", "sum"))
    array = _data("targets", targets)
    if array.ndim == 0 or array.size == 0 or not np.all(np.isfinite(array)):
        raise ValueError(
            "`targets` should be finite numbers of shape [samples, ...], at least one, got shape "
            f"{array.shape} with {np.sum(~np.isfinite(array))} that are not finite."
        )
    errors = array if initial else array - np.mean(array, axis=0)
    by_feature = np.mean(errors**2, axis=0)
    return float(np.mean(by_feature) if reduction == "mean" else np.sum(by_feature))


def _data(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise TypeError(f"`{name}` should be real numbers, got dtype {array.dtype}.")
    return array.astype(np.float64)
