"""Constant weights, the baseline."""

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from softadapt_optax._balance import balance, stateless
from softadapt_optax._checks import check_factors
from softadapt_optax._per_loss import as_component_array


def fixed_weights(weights: PyTree) -> optax.GradientTransformationExtraArgs:
    r"""Weights that never change: :math:`h = \sum_k w_k \nabla f_k(x)`.

    The baseline for every other method, in the same training step. Under ``jax.vmap`` over
    ``weights`` a grid search is one compiled program. ``updates`` are those of
    :func:`balance`.

    Args:
      weights: :math:`w`, finite and >= 0: an array of shape [K], traced or not, or a pytree
        of K numbers in the structure of the losses. They are used as they are.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
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
    num_losses = as_component_array(weights, "weights").size
    check_factors("weights", weights, num_losses)

    return balance(
        stateless(lambda components: jnp.ones_like(components.losses)),
        num_losses,
        priorities=weights,
    )
