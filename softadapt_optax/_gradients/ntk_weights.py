"""Weights from the traces of the losses' neural tangent kernels."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softadapt_optax._balance import balance
from softadapt_optax._reductions import sum_over
from softadapt_optax._units import Units
from softadapt_optax._weighting import Components, stateless


def ntk_weights(
    num_losses: int | Sequence[str],
    *,
    weight_sum: ArrayLike | None = None,
    priorities: PyTree | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Levels the rates at which the residuals of a PINN converge (Wang, Yu and Perdikaris 2022).

    Each loss is a mean, or a sum, of squared residuals, and :math:`K_k` the neural tangent kernel
    of these (see :func:`ntk_trace`). Algorithm 1:

    .. math::

      h = \sum_k \alpha_k \nabla f_k(x), \qquad
      \alpha_k = \frac{\sum_\ell \mathrm{tr}\, K_\ell}{\mathrm{tr}\, K_k}.

    Residuals whose kernel has a small trace converge slowly and get more weight. What the residuals
    are *now* does not matter, so that noise of batches hardly does, and the weights stay finite as
    a loss goes to zero. They change slowly: ``every=1000`` with ``smoothing=0.9`` is what jaxpi, a
    framework of the same group, takes.

    ``update`` needs ``ntk_traces``, K numbers, or a function of ``params`` that returns them, which
    is called only where they are due: ``tx.update(grads, opt_state, params, ntk_traces=lambda
    params: {"pde": sa.ntk_trace(residual, params, points), ...})``. They have to be the traces of
    what the losses are made of: for losses that are means divide each by its number of points, as
    jaxpi does; sums are the paper's. Losses themselves and gradients are not looked at. The other
    arguments of ``update`` are those of :func:`balance`.

    The cost is that of the traces, a gradient for each point: with all points in each step more
    than the step itself.

    It helps where the kernels differ by orders of magnitude, as those of derivatives and values do.
    The trace is the sum of the eigenvalues, and a PINN fails by the smallest of them: two losses of
    equal trace can still converge at very different rates. The theory is that of wide networks,
    whose kernels stay as they are; the authors say that those of real ones do not. A loss that is
    not made of squared residuals has no such trace.

    Args:
      num_losses: K, the number of losses, or a sequence of their K names (see :func:`balance`).
        Static.
      weight_sum: the weights are scaled to this sum, > 0. Default: none, as in the equation.
      priorities: factors on the weights, >= 0: K numbers, in order or by name, or functions of
        the step (see :func:`balance`). Default: all 1.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`); the
        traces are divided by them too. Default: none.
      smoothing: the share of the old weights in the new ones, in [0, 1) (see :func:`balance`).
      every: take the traces in one step in this many, and hold the weights in between. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. A loss whose trace is 0 has no gradient: its
      weight is 0. With a trace that is negative, or not finite, a step keeps the weights.

    Raises:
      TypeError: an argument has the wrong type, or ``ntk_traces`` are missing.
      ValueError: an argument is out of its range; also the errors of :func:`balance`.

    Examples:
      >>> import jax, jax.numpy as jnp, softadapt_optax as sa
      >>> u = lambda params, x: params[0] * x + params[1] * x**2
      >>> residual_fns = {"boundary": u, "pde": lambda params, x: jax.grad(u, 1)(params, x) - 1.0}
      >>> points = {"boundary": jnp.asarray([0.0, 1.0]), "pde": jnp.linspace(0.0, 1.0, 3)}
      >>> def losses_fn(params):
      ...     at = lambda name: jax.vmap(lambda x: residual_fns[name](params, x))(points[name])
      ...     return {name: jnp.sum(at(name) ** 2) for name in points}
      >>> def traces(params):
      ...     return {k: sa.ntk_trace(residual_fns[k], params, points[k]) for k in points}
      >>> params = jnp.asarray([0.5, 0.5])
      >>> tx = sa.ntk_weights(2)
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(params)
      >>> _, state = tx.update(grads, tx.init(params), params, ntk_traces=traces)
      >>> print(sa.loss_weights(state))  # the traces are 2 and 8
      [5.   1.25]

    References:
      Wang, Yu and Perdikaris, `When and why PINNs fail to train: A neural tangent kernel
      perspective <https://arxiv.org/abs/2007.14527>`_, 2022, Algorithm 1. Wang, Sankaran, Wang and
      Perdikaris, `An Expert's Guide to Training Physics-informed Neural Networks
      <https://arxiv.org/abs/2308.08468>`_, 2023, for jaxpi.
    """

    def weigh(components: Components) -> Float[Array, " K"]:
        traces = components.ntk_traces()
        traces = jnp.where(traces < 0, jnp.nan, traces)
        is_zero = traces == 0
        return jnp.where(is_zero, 0.0, sum_over(traces) / jnp.where(is_zero, 1.0, traces))

    return balance(
        stateless(weigh),
        num_losses,
        priorities=priorities,
        units=units,
        smoothing=smoothing,
        weight_sum=weight_sum,
        every=every,
    )
