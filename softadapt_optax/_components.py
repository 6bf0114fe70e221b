"""The component losses and, on demand, their gradients."""

import functools
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from softadapt_optax._account import Account, Use, account_of, frees_memory
from softadapt_optax._arguments import as_scalars, check_pair, positions_of, split_trained
from softadapt_optax._devices import (
    axes_of,
    one_of,
    refuse_averages,
    summed_over_pieces,
)
from softadapt_optax._masks import merge, select
from softadapt_optax._misuse import refuse_to_flatten
from softadapt_optax._passes import BackwardPasses
from softadapt_optax._per_loss import (
    as_component_array,
    names_of,
    ordered_array,
    permuted,
)
from softadapt_optax._products import are_small, gramian_of, squared_norms_of, weighted_sum


class ComponentGrads:
    r"""The gradients of K component losses, none of them formed until asked for.

    Made by :func:`value_and_component_grads` and taken by a weighting (``softadapt``,
    ``balance``) in the place of ``updates``. It holds the values of the losses and the
    pullback of the one forward pass that computed them:

    * ``combine(weights)`` is :math:`\sum_k \alpha_k \nabla f_k` at the price of *one*
      backward pass, whatever K is;
    * ``stack()`` and ``gramian()`` form the K gradients, each pulled back on its own, so
      that what a component does not touch (another task's head, another loss's batch) is
      not computed for it.

    It lives inside one training step and is deliberately not a pytree of arrays: whatever
    maps over it, such as clipping placed before the weighting, raises a ``TypeError``. To
    take gradients out of ``jit`` use ``stack()``.

    Attributes:
      losses: the K component losses, shape [K], in ``jax.tree.leaves`` order of what the
        loss function returned (dictionary keys sorted), float32, or float64 under x64. Names that
        a transformation was made with do not change it: beside stacked gradients pass to
        ``update`` the losses by name, as the loss function returned them.
      names: their K paths in what the loss function returned, such as ``"mse"`` or
        ``"outer/inner"``; None where they go by position, as in an array, a list or a tuple.
    """

    losses: Float[Array, " K"]
    names: list[str] | None

    def __init__(
        self,
        losses: Float[Array, " K"],
        names: list[str] | None,
        pull: Callable[[Float[Array, " K"]], PyTree],
        pull_each: Callable[[], list[PyTree]],
        pull_each_anew: Callable[[], list[PyTree]] | None = None,
        account: Callable[[], Account] | None = None,
    ):
        self.losses = losses
        self.names = names
        self._pull = pull
        self._pull_each = pull_each
        self._pull_each_anew = pull_each if pull_each_anew is None else pull_each_anew
        self._account = account

    def combine(self, weights: PyTree) -> PyTree:
        r"""The combined gradient :math:`h = \sum_k \alpha_k \nabla f_k`.

        Args:
          weights: :math:`\alpha`, an array or a sequence of K numbers in the order of
            ``losses`` (sorted names for a dictionary), or a pytree of K scalars in their
            structure, such as ``loss_weights(opt_state, like=losses)``. Each is rounded to the
            dtype of its loss, behind a common scale where float16 cannot hold it.

        Returns:
          A pytree like the parameters, with each parameter's shape and dtype; zeros for
          parameters of integer dtype.
        """
        return self._pull(self._ordered(weights, "weights"))

    def stack(self) -> PyTree:
        r"""The K gradients in the order of ``losses``, each leaf [K, \*parameter shape]."""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self._pull_each())

    def gramian(self, mask: PyTree[bool] | None = None) -> Float[Array, "K K"]:
        r"""The inner products :math:`G_{ij} = \langle \nabla f_i, \nabla f_j \rangle`.

        Args:
          mask: a pytree of bools, the parameters' structure or a prefix of it; only
            parameters under ``True`` count. Default: all of them.

        Returns:
          An array of shape [K, K], float32, or float64 under x64; float64 parameters are
          multiplied and added in float64, all others in float32.
        """
        return self._products(gramian_of, mask)

    def squared_norms(self, mask: PyTree[bool] | None = None) -> Float[Array, " K"]:
        r"""The squared norms :math:`\|\nabla f_k\|^2`, the diagonal of ``gramian(mask)`` alone."""
        return self._products(squared_norms_of, mask)

    def _products(self, products_of: Callable[..., Array], mask: PyTree[bool] | None) -> Array:
        each = self._pull_each()
        rows = [jax.tree.leaves(select(mask, grads)) for grads in each]
        columns = zip(*rows, strict=True)
        zeros = {
            id(leaf)
            for leaves, use in zip(columns, self._uses(each[0], mask), strict=False)
            for leaf, count in zip(leaves, use.counts, strict=True)
            if count == 0
        }

        def products(in_matrices: bool) -> Array:
            of_rows = functools.partial(products_of, zeros=zeros, in_matrices=in_matrices)
            return summed_over_pieces(of_rows, rows, self.losses)

        are_few_kernels = None if are_small(rows) else False
        return one_of(are_few_kernels, lambda: products(True), lambda: products(False), rows[0])

    def _uses(self, grads: PyTree, mask: PyTree[bool] | None) -> list[Use]:
        """How the losses use the parameters under the mask; none where that is not known."""
        if self._account is None:
            return []
        tree = jax.tree.unflatten(jax.tree.structure(grads), self._account().uses)
        return jax.tree.leaves(select(mask, tree))

    def formed(self, mask: PyTree[bool] | None = None, lean: bool = False) -> "ComponentGrads":
        """The same with the K gradients formed at once, for whoever needs them more than once.

        ``gramian`` and ``squared_norms`` of the result use them, and so does ``combine`` for
        the parameters under ``mask`` (default: all); the others still come from one pullback.
        Under ``jit`` what nobody uses is not computed. With ``lean`` all of ``combine`` comes
        from one pullback where that takes less memory.
        """
        each = self._pull_each()

        def pull(weights: Float[Array, " K"]) -> PyTree:
            # Gradients that were added up over devices cannot be weighted by each of them.
            is_own = jax.tree.map(lambda leaf: axes_of(weights) <= axes_of(leaf), each[0])
            reused = weighted_sum(weights, each)
            if mask is None and all(jax.tree.leaves(is_own)):
                return reused
            pulled = self._pull(weights)
            reused = merge(is_own, reused, pulled)
            return reused if mask is None else merge(mask, reused, pulled)

        combine = self._pull if lean and self._frees_memory(each[0], mask) else pull
        return ComponentGrads(self.losses, self.names, combine, lambda: each, account=self._account)

    def _frees_memory(self, grads: PyTree, mask: PyTree[bool] | None) -> bool:
        """Whether not to keep the gradients until the weights are known takes less memory."""
        if self._account is None:
            return False
        return frees_memory(self._uses(grads, mask), self._account().residual_nbytes)

    def formed_anew(self) -> "ComponentGrads":
        """The same; whoever needs the K gradients has the forward pass computed again.

        For a branch that is seldom taken: it then takes parameters and data instead of all that
        the forward pass leaves for the backward pass, which would have to be written to memory
        in each step.
        """
        return ComponentGrads(
            self.losses, self.names, self._pull, self._pull_each_anew, account=self._account
        )

    def converted(self, convert: Callable[[PyTree], PyTree]) -> "ComponentGrads":
        """The same in another structure: ``convert`` is applied to each gradient that is formed."""
        return ComponentGrads(
            self.losses,
            self.names,
            lambda weights: convert(self._pull(weights)),
            lambda: [convert(grads) for grads in self._pull_each()],
            lambda: [convert(grads) for grads in self._pull_each_anew()],
            self._account,
        )

    def with_losses(self, losses: PyTree) -> "ComponentGrads":
        """The same gradients beside other values of the losses, [K] or a pytree of K scalars."""
        losses = self._ordered(losses, "losses")
        return ComponentGrads(
            losses,
            self.names,
            self._pull,
            self._pull_each,
            self._pull_each_anew,
            self._account,
        )

    def reordered(self, order: Sequence[int]) -> "ComponentGrads":
        """The same losses in another order, that of a permutation of ``range(K)``."""
        back, account = [order.index(k) for k in range(len(order))], self._account

        def pick(pull_each: Callable[[], list[PyTree]]) -> Callable[[], list[PyTree]]:
            return lambda: [each[k] for each in [pull_each()] for k in order]

        return ComponentGrads(
            permuted(self.losses, order),
            None if self.names is None else [self.names[k] for k in order],
            lambda weights: self._pull(permuted(weights, back)),
            pick(self._pull_each),
            pick(self._pull_each_anew),
            None if account is None else lambda: account().reordered(order),
        )

    def _ordered(self, values: PyTree, name: str) -> Float[Array, " K"]:
        names = None if self.names is None else tuple(self.names)
        return ordered_array(values, name, self.losses.size, names)

    def __repr__(self) -> str:
        return f"ComponentGrads(num_losses={self.losses.size}, names={self.names})"


# As an unknown type it would be a leaf, and whatever maps over the leaves of its updates
# (clipping placed before the weighting, say) would fail later with a riddle, or not at all.
jax.tree_util.register_pytree_node(ComponentGrads, refuse_to_flatten, refuse_to_flatten)


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
      TypeError: a loss is not a real floating-point number, no differentiated leaf is, or one
        is not a number at all (a random key, a function).
      ValueError: a loss is not a scalar, or ``argnums`` does not fit the arguments.

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
        names = _listed_names(losses)
        refuse_averages(pushforward, trained, names or [str(k) for k in range(len(components))])

        def as_gradient(leaves: list[Array]) -> PyTree:
            tree = rebuild(leaves, [jnp.zeros_like(leaf) for leaf in untrained])
            return tree[0] if is_single else tree

        passes = BackwardPasses(components, trained, as_gradient)

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

        def pull_each() -> list[PyTree]:
            return passes.of_each(pushforward, account().is_vectorized)

        def pull_each_anew() -> list[PyTree]:
            anew = jax.linearize(components_fn, trained, has_aux=True)[1]
            return passes.of_each(anew, account().is_vectorized)

        grads = ComponentGrads(
            losses=as_component_array(components, "losses"),
            names=names,
            pull=functools.partial(passes.of_sum, pushforward),
            pull_each=pull_each,
            pull_each_anew=pull_each_anew,
            account=account,
        )
        return ((losses, aux) if has_aux else losses), grads

    return value_and_component_grads_fn


def from_stacked(stacked: PyTree, losses: PyTree) -> ComponentGrads:
    """Gradients that exist already, each leaf of shape [K, *parameter shape], and their losses."""
    array = as_component_array(losses, "losses")

    def pull_each() -> list[PyTree]:
        return [jax.tree.map(operator.itemgetter(k), stacked) for k in range(array.size)]

    return ComponentGrads(
        losses=array,
        names=_listed_names(losses),
        pull=lambda weights: weighted_sum(weights, pull_each()),
        pull_each=pull_each,
    )


def _listed_names(losses: PyTree) -> list[str] | None:
    names = names_of(losses)
    return None if names is None else list(names)
