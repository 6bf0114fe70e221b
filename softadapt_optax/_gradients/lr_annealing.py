"""Weights that bring the gradients to the size of that of a reference loss."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_choice, check_losses, check_number
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting


class LRAnnealingState(NamedTuple):
    """State of :func:`lr_annealing`.

    Attributes:
      relative_weights: the moving average of the ratios, shape [K]; that of the reference loss
        is 1.
    """

    relative_weights: Float[Array, " K"]


def lr_annealing(
    num_losses: int | Sequence[str],
    reference: int | str,
    *,
    alpha: ArrayLike = 0.9,
    statistic: Literal["max", "mean", "norm"] = "max",
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Learning rate annealing for physics-informed networks (Wang, Teng and Perdikaris 2021).

    With a reference loss r, that of the differential equation, :math:`h = \sum_k \lambda_k \nabla
    f_k(x)`, :math:`\lambda_r = 1` and, for the losses of the data and the boundary (Eqs. 40 to 42),

    .. math::

      \lambda_k \leftarrow (1 - \alpha) \lambda_k + \alpha \hat\lambda_k, \qquad
      \hat\lambda_k = \frac{\max_i |\partial_i f_r(x)|}{\frac{1}{n} \sum_i |\partial_i f_k(x)|},

    where i goes over the n parameters. All weights start at 1, and a step uses those that it has
    just made, as in Algorithm 1. The weighted gradients do not depend on the units of the losses.

    This is the text of the paper. The authors' code does otherwise: there 0.9 is the share of the
    *old* weight, the mean is that of the gradient that is weighted already, so that the weights
    come to rest at the square root of the ratio, and biases do not count. The text is followed for
    it says what the weights are to be, and the square root is named nowhere; of the code the slower
    average, ``alpha=0.1``, and ``every=10`` are worth a trial, as ratios of single batches are
    noisy.

    It helps where the equation's gradients drown those of the boundary, the failure that the paper
    describes; the authors report errors 50 to 100 times smaller, but together with a new
    architecture. As the largest entry of a gradient is many times the mean one, the weighted
    gradients of the other losses are that much larger than the reference's; with ``"mean"`` and
    ``"norm"`` they are as large.
    Bischof and Kraus 2021 (:func:`relobralo`) report better results at a lower cost by weights made
    of losses alone. As a loss comes near to its minimum its gradient vanishes and its weight grows
    without bound, together with the noise in it. A loss whose gradient is exactly zero keeps its
    weight, and where that of the reference is zero, or the reference is absent, all do.

    It costs the K gradients, K backward passes where the losses share all of the network: with
    ``every=10`` in one of ten steps.

    ``updates`` are those of :func:`balance`.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      reference: r, one of the names in ``num_losses``, or the position from 0 on in the order of
        the losses, which for a dictionary is that of the sorted names unless names are given.
        Static.
      alpha: :math:`\alpha` in (0, 1], the share of the new ratio.
      statistic: of the gradients; ``"max"``, the largest entry of that of the reference over the
        mean one of the others, that of the paper; ``"mean"``, the mean over the mean; ``"norm"``,
        the norm over the norm. Static.
      shared: the parameters over which the statistics are taken: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. A mean is over
        all entries of these, those on which a loss does not depend too. Default: all of them.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`), on
        top of ``alpha``.
      every: take the gradients of one step in this many, and hold the weights in between. Static.
      lean: whether to take the form with less memory and more flops, one backward pass more, where
        there is one (see :func:`balance`). Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> tx = sa.lr_annealing(["boundary", "pde"], "pde", alpha=1.0)
      >>> losses_fn = lambda x: {"boundary": jnp.sum(x), "pde": jnp.sum(x**2)}
      >>> x = jnp.asarray([1.0, 4.0])
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(x)
      >>> _, state = tx.update(grads, tx.init(x), x)
      >>> print(sa.loss_weights(state))  # the gradients are (1, 1) and (2, 8)
      [8. 1.]

    References:
      Wang, Teng and Perdikaris, `Understanding and mitigating gradient pathologies in
      physics-informed neural networks <https://arxiv.org/abs/2001.04536>`_, 2021, Eqs. 40 to 42,
      Algorithm 1.
    """
    index = _position(reference, num_losses)
    check_number("alpha", alpha, positive=True, at_most=1.0)
    check_choice("statistic", statistic, ("max", "mean", "norm"))

    def sizes_of(components: Components) -> tuple[Float[Array, ""], Float[Array, " K"]]:
        """The reference's statistic and those of all losses."""
        if statistic == "norm":
            squared_norms = components.squared_norms()
            is_zero = squared_norms == 0
            norms = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared_norms)))
            return norms[index], norms
        largest, means = jnp.unstack(components.magnitudes())
        return (largest if statistic == "max" else means)[index], means

    def init(num_losses: int) -> LRAnnealingState:
        return LRAnnealingState(jnp.ones(num_losses, dtype=float))

    def update(
        components: Components, state: LRAnnealingState
    ) -> tuple[Float[Array, " K"], LRAnnealingState]:
        old = state.relative_weights
        reference_size, sizes = sizes_of(components)
        has_ratio = (reference_size != 0) & (sizes != 0) & (jnp.arange(sizes.size) != index)
        ratios = reference_size / jnp.where(has_ratio, sizes, 1.0)
        share = jnp.asarray(alpha, old.dtype)
        weights = jnp.where(has_ratio, (1.0 - share) * old + share * ratios, old)
        return weights, LRAnnealingState(weights)

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


def _position(reference: Any, num_losses: Any) -> int:
    """That of the reference loss."""
    size, names, _ = check_losses(num_losses)
    if isinstance(reference, str):
        if names is None:
            raise ValueError(
                f"`reference` should be a position, got the name {reference!r} beside a number of "
                "losses. Remedy: give the names of the losses in its place."
            )
        if reference not in names:
            raise ValueError(
                f"`reference` should be one of the losses, {', '.join(names)}, got {reference!r}."
            )
        return names.index(reference)
    if isinstance(reference, bool) or not isinstance(reference, numbers.Integral):
        raise TypeError(
            "`reference` should be the name or the position of a loss, got "
            f"{type(reference).__name__} {reference!r}."
        )
    position = int(reference)
    if not 0 <= position < size:
        raise ValueError(f"`reference` should be a position from 0 to {size - 1}, got {position}.")
    return position
