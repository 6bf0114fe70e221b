"""Several losses and, on demand, their gradients."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from softadapt_optax._account import Account, Use, account_of
from softadapt_optax._arguments import as_scalars, check_pair, positions_of, split_trained
from softadapt_optax._component_grads import ComponentGrads, listed_names
from softadapt_optax._devices import axes_of, refuse_averages
from softadapt_optax._passes import Derivatives, Passes, Pushforward
from softadapt_optax._per_loss import as_component_array
from softadapt_optax._targets import leaves_of_direction


def value_and_component_grads(
    losses_fn: Callable[..., PyTree],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    vectorized: bool | None = None,
) -> Callable[..., tuple[PyTree, ComponentGrads]]:
    r"""Evaluates several losses and, lazily, their gradients; mirrors ``jax.value_and_grad``.

    One forward pass gives the losses :math:`f_1, \dots, f_K` and a pullback. Weights
    :math:`\alpha` that are made of the losses can be its cotangent:
    :math:`h = \sum_k \alpha_k \nabla f_k` is one backward pass and the K gradients are
    never formed, unless a method asks for them.

    Args:
      losses_fn: a function that returns K losses: a pytree of real floating-point scalars
        (a dictionary by name, say) or one array of shape [K].
      argnums: the position, or positions, of the arguments to differentiate. Integer and
        boolean leaves in them get zero gradients, ``None`` stays ``None``.
      has_aux: whether ``losses_fn`` returns a pair ``(losses, aux)``.
      vectorized: whether the K gradients, where a method asks for them, come from one backward
        pass under ``jax.vmap`` instead of K passes. Default: on GPU and TPU, where small kernels
        are bound by their number, if all that costs time is on the way to all losses (no heads, no
        batches of their own) and the K gradients with their activations take at most 64 MiB.

    Returns:
      A function with the arguments of ``losses_fn`` that returns ``(losses, grads)``, or
      ``((losses, aux), grads)`` with ``has_aux``: the losses in the structure that
      ``losses_fn`` returned, and their :class:`ComponentGrads`. With a sequence of
      ``argnums`` its results are tuples, as those of ``jax.grad``.

    Raises:
      TypeError: ``losses_fn`` is no function, or returns no pair with ``has_aux``; a loss is not a
        real floating-point number, no differentiated leaf is, or one is not a number at all (a
        random key, a function); ``argnums`` are not integers.
      ValueError: there is no loss, a loss is not a scalar, ``argnums`` does not fit the arguments,
        or a loss is a mean over devices whose gradient JAX would not add up.

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> def losses_fn(params):
      ...     return {"fit": (params - 3.0) ** 2, "size": params**2}
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.asarray(1.0))
      >>> print(losses["fit"], losses["size"])
      4.0 1.0
      >>> print(grads.combine({"fit": 0.5, "size": 2.0}))  # 0.5 * -4 + 2 * 2
      2.0
      >>> print(grads.stack(), grads.gramian())
      [-4.  2.] [[16. -8.]
       [-8.  4.]]
    """
    if not callable(losses_fn):
        raise TypeError(f"`losses_fn` should be a function, got {type(losses_fn).__name__}.")
    is_single = isinstance(argnums, numbers.Integral)

    @functools.wraps(losses_fn)
    def value_and_component_grads_fn(*args: Any, **kwargs: Any) -> tuple[PyTree, ComponentGrads]:
        positions = positions_of([argnums] if is_single else argnums, len(args))
        chosen = tuple(args[position] for position in positions)
        trained, untrained, rebuild = split_trained(chosen)

        def components_fn(trained: list[Array]) -> tuple[list[Array], tuple[PyTree, Any]]:
            new_args = list(args)
            for position, arg in zip(positions, rebuild(trained, untrained), strict=True):
                new_args[position] = arg
            output = losses_fn(*new_args, **kwargs)
            losses, aux = check_pair(output) if has_aux else (output, None)
            return as_scalars(losses), (losses, aux)

        components, pushforward, (losses, aux) = jax.linearize(components_fn, trained, has_aux=True)
        names = listed_names(losses)
        refuse_averages(pushforward, trained, names or [str(k) for k in range(len(components))])

        def as_gradient(leaves: list[Array]) -> PyTree:
            tree = rebuild(leaves, [jnp.zeros_like(leaf) for leaf in untrained])
            return tree[0] if is_single else tree

        passes = Passes(components, trained, as_gradient)

        @functools.cache
        def account() -> Account:
            found = account_of(pushforward, trained)
            unused = Use(counts=(0,) * len(components))
            tree = rebuild(found.uses, [unused] * len(untrained))
            default = None if found.gains_by_vmap and not axes_of(components) else False
            return found._replace(
                uses=jax.tree.leaves(tree),
                is_vectorized=default if vectorized is None else vectorized,
            )

        def derivatives(linearized: Callable[[], Pushforward]) -> Derivatives:
            return Derivatives(
                pull=lambda weights: passes.of_sum(linearized(), weights),
                pull_each=lambda: passes.of_each(linearized(), account().is_vectorized),
                push=lambda direction, mask: passes.along(
                    linearized(),
                    leaves_of_direction(direction, chosen[0] if is_single else chosen, mask),
                ),
            )

        grads = ComponentGrads(
            losses=as_component_array(components, "losses"),
            names=names,
            derivatives=derivatives(lambda: pushforward),
            derivatives_anew=derivatives(
                lambda: jax.linearize(components_fn, trained, has_aux=True)[1]
            ),
            account=account,
        )
        return ((losses, aux) if has_aux else losses), grads

    return value_and_component_grads_fn
