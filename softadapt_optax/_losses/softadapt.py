"""SoftAdapt: weights from how fast each loss changes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree
from numpy.polynomial import legendre

from softadapt_optax._balance import balance
from softadapt_optax._checks import (
    check_choice,
    check_eps,
    check_flag,
    check_integer,
    check_number,
)
from softadapt_optax._reductions import sum_over
from softadapt_optax._scaling import EPS, exponentials, positive_or
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, Weighting

# What a slope may multiply rounding by: of the seven digits of float32 two are left then.
_MOST_NOISE = 3e4


class SoftAdaptState(NamedTuple):
    """State of :func:`softadapt`.

    Attributes:
      loss_history: the last recorded losses, shape [history, K], newest last; zeros where
        nothing is recorded yet.
      loss_slopes: the rates of change that the weights were made of, shape [K]; that of a loss is
        zero until ``history`` values of it are recorded.
    """

    loss_history: Float[Array, "history K"]
    loss_slopes: Float[Array, " K"]


@functools.lru_cache(maxsize=128)
def slope_stencil(history: int, order: int) -> np.ndarray:
    """Coefficients, shape [history], that give the slope at the newest of equispaced values.

    A polynomial of degree ``order`` is fitted by least squares and differentiated at the
    last point (a Savitzky-Golay filter). The Legendre basis keeps the fit well conditioned,
    where ``scipy.signal.savgol_coeffs``, in powers of the position, loses all digits at high
    orders.
    """
    positions = np.linspace(-1.0, 1.0, history)
    orthogonal, triangular = np.linalg.qr(legendre.legvander(positions, order))
    degrees = np.arange(order + 1.0)
    slopes_at_end = degrees * (degrees + 1) / 2  # of the Legendre polynomials
    slopes = orthogonal @ np.linalg.solve(triangular.T, slopes_at_end)
    return slopes * (positions[1] - positions[0])


def _check_order(history: int, order: Any) -> int:
    """The degree of the polynomial, if float32 carries its slope."""
    degree = history - 1 if order is None else order
    check_integer("order", degree, at_least=1)
    if degree > history - 1:
        raise ValueError(
            f"`order` should be at most history - 1 = {history - 1}, the degree of a polynomial "
            f"through {history} points, got {order}."
        )
    # The gain grows with the degree, and large ones take long to compute.
    noise_gain = np.linalg.norm(slope_stencil(history, min(degree, 300)))
    if noise_gain > _MOST_NOISE:
        raise ValueError(
            f"`order` should be lower, got a polynomial of degree {degree} through {history} "
            "points. Its slope multiplies noise, that of rounding in float32 too, by "
            f"{noise_gain:.0e} or more, of which {_MOST_NOISE:.0e} leaves two digits. Remedy: "
            "`order=1`, a line, or `order=None` with a `history` of at most 20."
        )
    return degree


def _rates_of_change(
    loss_history: Float[Array, "history K"],
    counted: Bool[Array, " K"],
    is_warm: Bool[Array, " K"],
    order: int,
    rate: str,
    normalized: bool,
    eps: ArrayLike,
) -> Float[Array, " K"]:
    """The slope of each loss at its newest record; see steps 1 to 3 of :func:`softadapt`."""
    stencil = jnp.asarray(slope_stencil(len(loss_history), order), loss_history.dtype)
    # Not a matrix product: a TPU would round its factors to bfloat16.
    rates = sum_over((stencil[:, None] * loss_history).T)
    eps = positive_or(eps, EPS, rates.dtype)
    if rate == "relative":
        rates = rates / (jnp.abs(loss_history[-2]) + eps)
    # Losses near the largest float overflow here, and would for as long as they are recorded.
    rates = jnp.where(is_warm, jnp.nan_to_num(rates), 0.0)
    if normalized:
        rates = rates / (sum_over(jnp.abs(jnp.where(counted, rates, 0.0))) + eps)
    return rates


def _mean_losses(
    loss_history: Float[Array, "history K"], counts: Int[Array, " K"]
) -> Float[Array, " K"]:
    """The mean of the records that there are; those that there are not yet are zeros."""
    counts = jnp.clip(counts, 1, len(loss_history)).astype(loss_history.dtype)
    return sum_over((loss_history / counts[None, :]).T)


def _exponential_weights(
    rates: Float[Array, " K"],
    beta: ArrayLike,
    mean_losses: Float[Array, " K"] | None,
    counted: Bool[Array, " K"],
) -> Float[Array, " K"]:
    """``exp(beta * rates)``, times ``|mean_losses|`` if given, over the largest that counts."""
    limit = float(np.finfo(rates.dtype).max) / 2  # finite, and so is the difference of two
    logits = jnp.clip(jnp.asarray(beta, rates.dtype) * rates, -limit, limit)
    if mean_losses is not None:
        # Added as logarithms: the product of the two factors can underflow for every k.
        sizes = jnp.abs(mean_losses)
        has_size = sizes > 0
        logits = logits + jnp.where(has_size, jnp.log(jnp.where(has_size, sizes, 1.0)), -jnp.inf)
    return exponentials(logits, counted)


def softadapt(
    num_losses: int | Sequence[str],
    beta: ArrayLike | optax.Schedule = 0.1,
    *,
    history: int = 5,
    order: int | None = 1,
    rate: Literal["absolute", "relative"] = "absolute",
    normalized: bool = False,
    loss_weighted: bool = False,
    weight_sum: ArrayLike = 1.0,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    eps: ArrayLike = EPS,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights each loss by how fast it changes (Heydari, Thompson and Mehmood 2019).

    Emits :math:`h = \sum_k \alpha_k \nabla f_k(x)` (Eq. 2) with (Eq. 3, Algorithm 1)

    .. math::

      \alpha_k = \frac{|\bar f_k| e^{\beta s_k}}{\sum_{\ell=1}^K |\bar f_\ell| e^{\beta s_\ell}}
      \cdot \text{weight_sum},

    where :math:`f_k` is the k-th loss, :math:`s_k` its rate of change at the newest of the
    last n = ``history`` recorded losses and :math:`\bar f_k` their mean if
    ``loss_weighted``, else 1. In this order:

    1. :math:`s_k` is the derivative, at the newest record, of the polynomial of degree
       ``order`` that fits the n records best, with one record as the unit of time.
    2. ``rate="relative"`` divides it by :math:`|f_k| + \epsilon` at the record before.
    3. ``normalized`` divides it by :math:`\sum_\ell |s_\ell| + \epsilon`.
    4. The exponentials are multiplied by :math:`|\bar f_k|` if ``loss_weighted`` and by
       ``priorities``, and scaled to ``weight_sum``. If all are zero the weights are equal.

    Until n values of a loss are recorded its slope counts as 0 and its mean is over those that
    there are; the others do not wait for it. A step with a loss that is not finite is not recorded
    and keeps the weights of the step before.

    ``updates`` has to be the :class:`ComponentGrads` of :func:`value_and_component_grads`,
    or stacked gradients of shape [K, \*parameter shape] with ``losses=`` beside them, so
    that SoftAdapt comes first in its chain; see :func:`balance`.

    .. warning::
      The weights sum to 1, as in the paper, where an unweighted sum of K losses has weights
      that sum to K. Under plain SGD this divides the step by K: pass ``weight_sum=K`` where
      the transformation replaces a plain sum. Adam does not see the scale.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      beta: :math:`\beta`, a number, a traced array, or an Optax schedule, which is given
        the number of optimizer steps before this one (steps with a loss that is not finite
        left out). With beta > 0 the loss that falls slowest (or grows fastest) gets the
        largest weight, with beta < 0 the smallest; 0 gives equal weights, or weights
        proportional to the mean losses if ``loss_weighted``. Its unit is the inverse of
        that of the rates.
      history: n, the number of recorded losses, at least 2. Static.
      order: the degree of the fitted polynomial, from 1 (least-squares line, the robust
        choice for mini-batch losses) to n - 1. ``None`` is n - 1, the paper's finite
        difference of highest accuracy; ``history=2`` is the plain difference. The highest
        order multiplies noise, that of rounding too: by 6 for n = 5, by 20,000 for n = 20; what
        multiplies it by more than 30,000 is refused. Static.
      rate: ``"absolute"``, in units of the losses, or ``"relative"``, which does not
        change when a loss is rescaled. Static.
      normalized: the paper's normalized variant, for rates of any size. Static.
      loss_weighted: the paper's loss weighted variant, for non-negative losses on one
        scale. Static.
      weight_sum: the sum of the weights, > 0.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: record the mean of this many consecutive steps and hold the weights in
        between; ``every=steps_per_epoch`` adapts once an epoch. Rates are then those over m
        steps, larger than over one: a ``beta`` that suits one of them need not suit the other.
        Static.
      eps: :math:`\epsilon` > 0, keeps the divisions of steps 2 and 3 finite.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its state holds the weights as
      ``loss_weights``; read them with :func:`loss_weights`.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> def losses_fn(params):
      ...     x, y = params
      ...     return {"valley": 100 * (y - x**2) ** 2, "floor": (1 - x) ** 2}
      >>> tx = optax.chain(
      ...     sa.softadapt(num_losses=2, loss_weighted=True, weight_sum=2.0), optax.sgd(1e-3)
      ... )
      >>> params = jnp.asarray([-0.5, -0.5])
      >>> opt_state = tx.init(params)
      >>> for _ in range(6):
      ...     losses, grads = sa.value_and_component_grads(losses_fn)(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> weights = sa.loss_weights(opt_state, like=losses)
      >>> print(f"{weights['valley']:.2f} {weights['floor']:.2f}")
      1.11 0.89

    References:
      Heydari, Thompson and Mehmood, `SoftAdapt: Techniques for Adaptive Loss Weighting of
      Neural Networks with Multi-Part Loss Functions <https://arxiv.org/abs/1912.12355>`_,
      2019, Eqs. 2 and 3, Algorithm 1.
    """
    check_integer("history", history, at_least=2)
    degree = _check_order(history, order)
    check_choice("rate", rate, ("absolute", "relative"))
    check_flag("normalized", normalized)
    check_flag("loss_weighted", loss_weighted)
    if not callable(beta):
        check_number("beta", beta)
    check_number("weight_sum", weight_sum, positive=True)
    check_eps(eps)

    def init(num_losses: int) -> SoftAdaptState:
        return SoftAdaptState(
            loss_history=jnp.zeros((history, num_losses), dtype=float),
            loss_slopes=jnp.zeros(num_losses, dtype=float),
        )

    def update(
        components: Components, state: SoftAdaptState
    ) -> tuple[Float[Array, " K"], SoftAdaptState]:
        shifted = jnp.concatenate([state.loss_history[1:], components.losses[None]])
        loss_history = jnp.where(components.is_new[None, :], shifted, state.loss_history)
        counts, is_counted = components.record_counts, components.counted
        is_warm = counts >= history
        rates = _rates_of_change(loss_history, is_counted, is_warm, degree, rate, normalized, eps)
        weights = _exponential_weights(
            rates,
            beta=jnp.nan_to_num(beta(components.step), posinf=0.0, neginf=0.0)
            if callable(beta)
            else beta,
            mean_losses=_mean_losses(loss_history, counts) if loss_weighted else None,
            counted=is_counted,
        )
        return weights, SoftAdaptState(loss_history, rates)

    return balance(
        Weighting(init, update),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
