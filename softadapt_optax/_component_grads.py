"""The component losses beside their gradients, none of them formed until asked for."""

import copy
import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from softadapt_optax._account import Account, Use, frees_memory
from softadapt_optax._devices import axes_of, one_of, summed_over_pieces
from softadapt_optax._masks import merge, select
from softadapt_optax._misuse import refuse_to_flatten
from softadapt_optax._passes import Derivatives
from softadapt_optax._per_loss import as_component_array, names_of, ordered_array, permuted
from softadapt_optax._products import (
    alignments_of,
    gramian_of,
    magnitudes_of,
    squared_norms_of,
    weighted_sum,
)
from softadapt_optax._targets import leaves_of_direction


class ComponentGrads:
    r"""The gradients of K component losses, none of them formed until asked for.

    Made by :func:`value_and_component_grads` and taken by a weighting (``softadapt``,
    ``balance``) in the place of ``updates``. It holds the values of the losses and the
    pullback of the one forward pass that computed them:

    * ``combine(weights)`` is :math:`\sum_k \alpha_k \nabla f_k` at the price of *one*
      backward pass, whatever K is;
    * ``alignments(direction)`` are the inner products of the K gradients with a direction at the
      price of one *forward* pass, whatever K is;
    * ``stack()``, ``gramian()``, ``squared_norms()`` and ``magnitudes()`` form the K gradients,
      each pulled back on its own, so that what a component does not touch (another task's head,
      another loss's batch) is not computed for it.

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

    Examples:
      >>> import jax.numpy as jnp, softadapt_optax as sa
      >>> losses_fn = lambda x: {"fit": jnp.sum((x - 3.0) ** 2), "size": jnp.sum(x**2)}
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(jnp.asarray([1.0, 2.0]))
      >>> grads
      ComponentGrads(num_losses=2, names=['fit', 'size'])
      >>> print(grads.combine([1.0, 0.5]), grads.squared_norms())  # (-4, -2) + (1, 2)
      [-3.  0.] [20. 20.]
    """

    losses: Float[Array, " K"]
    names: list[str] | None

    def __init__(
        self,
        losses: Float[Array, " K"],
        names: list[str] | None,
        derivatives: Derivatives,
        derivatives_anew: Derivatives | None = None,
        account: Callable[[], Account] | None = None,
    ):
        self.losses = losses
        self.names = names
        self._derivatives = derivatives
        self._anew = derivatives if derivatives_anew is None else derivatives_anew
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
        return self._derivatives.pull(self._ordered(weights, "weights"))

    def stack(self) -> PyTree:
        r"""The K gradients in the order of ``losses``, each leaf [K, \*parameter shape]."""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self._derivatives.pull_each())

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
        r"""The squared norms :math:`\|\nabla f_k\|^2`, the diagonal of ``gramian(mask)`` alone.

        Args:
          mask: as for :meth:`gramian`.

        Returns:
          An array of shape [K], float32, or float64 under x64.
        """
        return self._products(squared_norms_of, mask)

    def magnitudes(self, mask: PyTree[bool] | None = None) -> Float[Array, "2 K"]:
        r"""The largest and the mean absolute value of the entries of each gradient.

        Args:
          mask: a pytree of bools, the parameters' structure or a prefix of it; only
            parameters under ``True`` count, all entries of them, whether a loss depends on them
            or not. Default: all of them.

        Returns:
          An array of shape [2, K], float32, or float64 under x64.
        """
        rows = [floating_leaves(select(mask, grads)) for grads in self._derivatives.pull_each()]
        return jnp.stack([magnitudes_of(row, axes_of(self.losses)) for row in rows], axis=1)

    def alignments(self, direction: PyTree, mask: PyTree[bool] | None = None) -> Float[Array, " K"]:
        r"""The inner products :math:`\langle \nabla f_k, v \rangle` with a direction v.

        They are the derivatives of the K losses along it, one forward pass. With the gradient of
        another loss V as the direction, that is how fast a step along each :math:`\nabla f_k`
        lowers V.

        Args:
          direction: v, a pytree like the parameters, such as a gradient; leaves by parameters of
            integer dtype are ignored.
          mask: a pytree of bools, the parameters' structure or a prefix of it; only
            parameters under ``True`` count. Default: all of them.

        Returns:
          An array of shape [K], float32, or float64 under x64.

        Raises:
          ValueError: the direction has another structure or other shapes than the parameters.
        """
        return self._derivatives.push(direction, mask)

    def squared_norm(self, direction: PyTree, mask: PyTree[bool] | None = None) -> Float[Array, ""]:
        r"""The squared norm :math:`\|v\|^2` of a direction v, as those of the gradients are made.

        Args:
          direction: v, a pytree like the parameters.
          mask: as for :meth:`gramian`.

        Returns:
          A number, float32, or float64 under x64.
        """
        leaves = floating_leaves(select(mask, direction))
        return _products(squared_norms_of, [leaves], self.losses)[0]

    def _products(self, products_of: Callable[..., Array], mask: PyTree[bool] | None) -> Array:
        each = self._derivatives.pull_each()
        rows = [jax.tree.leaves(select(mask, grads)) for grads in each]
        columns = zip(*rows, strict=True)
        zeros = {
            id(leaf)
            for leaves, use in zip(columns, self._uses(each[0], mask), strict=False)
            for leaf, count in zip(leaves, use.counts, strict=True)
            if count == 0
        }

        return _products(functools.partial(products_of, zeros=zeros), rows, self.losses)

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
        each = self._derivatives.pull_each()

        def pull(weights: Float[Array, " K"]) -> PyTree:
            # Gradients that were added up over devices cannot be weighted by each of them.
            is_own = jax.tree.map(lambda leaf: axes_of(weights) <= axes_of(leaf), each[0])
            reused = weighted_sum(weights, each)
            if mask is None and all(jax.tree.leaves(is_own)):
                return reused
            pulled = self._derivatives.pull(weights)
            reused = merge(is_own, reused, pulled)
            return reused if mask is None else merge(mask, reused, pulled)

        is_lean = lean and self._frees_memory(each[0], mask)
        combine = self._derivatives.pull if is_lean else pull
        return self._with(self._derivatives._replace(pull=combine, pull_each=lambda: each))

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
        return self._with(self._anew._replace(pull=self._derivatives.pull))

    def converted(self, convert: Callable[[PyTree], PyTree]) -> "ComponentGrads":
        """The same in another structure: ``convert`` is applied to each gradient that is formed."""

        def of(old: Derivatives) -> Derivatives:
            return Derivatives(
                pull=lambda weights: convert(old.pull(weights)),
                pull_each=lambda: [convert(grads) for grads in old.pull_each()],
                push=old.push,
            )

        return self._with(of(self._derivatives), of(self._anew))

    def with_losses(self, losses: PyTree) -> "ComponentGrads":
        """The same gradients beside other values of the losses, [K] or a pytree of K scalars."""
        changed = copy.copy(self)
        changed.losses = self._ordered(losses, "losses")
        return changed

    def reordered(self, order: Sequence[int]) -> "ComponentGrads":
        """The same losses in another order, that of a permutation of ``range(K)``."""
        back, account = [order.index(k) for k in range(len(order))], self._account

        def of(old: Derivatives) -> Derivatives:
            return Derivatives(
                pull=lambda weights: old.pull(permuted(weights, back)),
                pull_each=lambda: [each[k] for each in [old.pull_each()] for k in order],
                push=lambda direction, mask: permuted(old.push(direction, mask), order),
            )

        return ComponentGrads(
            permuted(self.losses, order),
            None if self.names is None else [self.names[k] for k in order],
            of(self._derivatives),
            of(self._anew),
            None if account is None else lambda: account().reordered(order),
        )

    def _with(self, derivatives: Derivatives, anew: Derivatives | None = None) -> "ComponentGrads":
        return ComponentGrads(self.losses, self.names, derivatives, anew, self._account)

    def _ordered(self, values: PyTree, name: str) -> Float[Array, " K"]:
        names = None if self.names is None else tuple(self.names)
        return ordered_array(values, name, self.losses.size, names)

    def __repr__(self) -> str:
        return f"ComponentGrads(num_losses={self.losses.size}, names={self.names})"


# As an unknown type it would be a leaf, and whatever maps over the leaves of its updates
# (clipping placed before the weighting, say) would fail later with a riddle, or not at all.
jax.tree_util.register_pytree_node(ComponentGrads, refuse_to_flatten, refuse_to_flatten)


def from_stacked(stacked: PyTree, losses: PyTree) -> ComponentGrads:
    """Gradients that exist already, each leaf of shape [K, *parameter shape], and their losses."""
    array = as_component_array(losses, "losses")
    stacked = jax.tree.map(jnp.asarray, stacked)

    def pull_each() -> list[PyTree]:
        return [jax.tree.map(operator.itemgetter(k), stacked) for k in range(array.size)]

    def push(direction: PyTree, mask: PyTree[bool] | None) -> Float[Array, " K"]:
        each = pull_each()
        rows = [leaves_of_direction(grads, each[0], mask) for grads in (*each, direction)]
        return _products(alignments_of, rows, array)

    derivatives = Derivatives(lambda weights: weighted_sum(weights, pull_each()), pull_each, push)
    return ComponentGrads(array, listed_names(losses), derivatives)


def _products(
    products_of: Callable[..., Array], rows: list[list[Array]], losses: Array
) -> Float[Array, "..."]:
    """Those of rows of leaves, as the device multiplies best on which they are."""

    def on_device(rows: list[list[Array]]) -> Array:
        elsewhere = functools.partial(products_of, rows)
        return one_of(None, functools.partial(elsewhere, on_accelerator=True), elsewhere, rows[0])

    return summed_over_pieces(on_device, rows, losses)


def floating_leaves(tree: PyTree) -> list[Array]:
    """The leaves that are gradients; those by parameters of integer dtype are not."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def listed_names(losses: PyTree) -> list[str] | None:
    """The names of the losses, None where they go by position."""
    names = names_of(losses)
    return None if names is None else list(names)
