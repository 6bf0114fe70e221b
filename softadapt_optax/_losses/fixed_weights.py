"""Constant weights, the baseline."""

from __future__ import annotations

import optax
from jaxtyping import PyTree

from softadapt_optax._balance import balance
from softadapt_optax._checks import check_factors
from softadapt_optax._per_loss import count_of
from softadapt_optax._units import Units
from softadapt_optax._updates import refusing_positions
from softadapt_optax._weighting import equal_weights


def fixed_weights(weights: PyTree, *, units: Units = None) -> optax.GradientTransformationExtraArgs:
    r"""Weights that you give: :math:`h = \sum_k w_k \nabla f_k(x)`.

    The baseline for every other method, in the same training step. Under ``jax.vmap`` over
    ``weights`` a grid search is one compiled program. ``updates`` are those of
    :func:`balance`.

    Args:
      weights: :math:`w`, finite and >= 0: a pytree of K numbers with the names of the losses, or,
        for losses without names, a sequence or an array of shape [K], traced or not. They are used
        as they are. They, or some of their entries, may be functions of the number of optimizer
        steps before this one, such as Optax schedules (the annealing of a KL term, a curriculum).
        An array goes in the order of the losses (sorted names for a dictionary). To freeze what a
        method has found, pass ``loss_weights(opt_state, like=losses)``, which goes by name. By name
        the state, and so :func:`loss_weights`, has the order of the sorted names, whatever the
        order in which you have written them.
      units: of the losses, K numbers > 0, ``"initial"`` or ``"current"`` (see :func:`balance`).
        Default: none.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: ``weights`` are not numbers, or in no order, as in a set.
      ValueError: ``weights`` are not K finite numbers >= 0, or all are zero; also the errors
        of :func:`balance`.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> tx = optax.chain(sa.fixed_weights({"fit": 1.0, "size": 0.5}), optax.sgd(0.1))
      >>> params = jnp.asarray(1.0)
      >>> opt_state = tx.init(params)
      >>> losses_fn = lambda x: {"fit": (x - 3.0) ** 2, "size": x**2}
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params)
      >>> print(updates)  # -0.1 * (1 * -4 + 0.5 * 2)
      0.3
    """
    num_losses = count_of(weights)
    check_factors("weights", weights, num_losses)
    tx = balance(equal_weights(), num_losses, priorities=weights, units=units)
    return refusing_positions(tx, weights=weights, units=units)
