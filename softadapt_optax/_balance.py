"""The protocol of every method, and the one transformation that applies it."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from softadapt_optax._checks import check_factors, check_flag, check_integer, check_number
from softadapt_optax._components import ComponentGrads, from_stacked, refuse_pair
from softadapt_optax._masks import merge
from softadapt_optax._per_loss import as_component_array, check_names


class Components(NamedTuple):
    """What a weighting sees of the losses.

    Attributes:
      losses: the losses of this step, or their mean over the last ``every`` steps, shape
        [K], all finite.
      priorities: the factors that :func:`balance` puts on the weights, shape [K]; a loss of
        priority 0, which absent ones have, is left out: the weights of the others must not
        depend on it.
      gramian: a function without arguments that gives the inner products of the K
        gradients, shape [K, K], zero for losses of priority 0. They are computed only for
        methods that call it, then in each update, also if the call is inside of a ``lax.cond``:
        for rare use there is the ``every`` of :func:`balance`. If one is not finite,
        weights and state stay as they were, whatever the method makes of it.
      squared_norms: the same for their squared norms alone, shape [K].
    """

    losses: Float[Array, " K"]
    priorities: Float[Array, " K"]
    gramian: Callable[[], Float[Array, "K K"]]
    squared_norms: Callable[[], Float[Array, " K"]]

    @property
    def counted(self) -> Bool[Array, " K"]:
        """Which losses are not left out."""
        return self.priorities > 0


class Weighting(NamedTuple):
    """A method of weighting losses: a pair of pure functions.

    Attributes:
      init: ``init(num_losses) -> state``, a pytree of arrays; it has to be traceable. Leaves
        whose last axis has K entries are taken to hold one for each loss, which is kept while
        the loss is absent (unsigned integers, as of random keys, aside).
      update: ``update(components, state) -> (weights, state)``, with :class:`Components`
        and weights >= 0 of shape [K] in any scale; :func:`balance` scales them.
    """

    init: Callable[[int], PyTree]
    update: Callable[[Components, PyTree], tuple[Float[Array, " K"], PyTree]]


def stateless(weigh: Callable[[Components], Float[Array, " K"]]) -> Weighting:
    """A weighting without memory."""
    return Weighting(
        init=lambda num_losses: (), update=lambda components, state: (weigh(components), state)
    )


class BalanceState(NamedTuple):
    """State of :func:`balance`.

    Attributes:
      loss_weights: the weights of the last step, shape [K].
      held_weights: what the weighting gave last, before priorities and scale, shape [K].
      period_losses: mean of each loss since the last record, shape [K].
      period_counts: number of losses in each of these means, shape [K], int32.
      step_count: number of steps, int32; those with a loss that is not finite do not count.
        Where int32 ends it repeats its last period.
      recorded_losses: the losses that the weighting saw last, shape [K]; zeros before.
      gradient_norms: the norms of the gradients that the weighting saw last, shape [K]; ``()``
        if it looks at losses alone.
      gradient_cosines: the cosines between them, shape [K, K]; ``()`` if it does not look at
        their inner products.
      weighting_state: state of the weighting.
    """

    loss_weights: Float[Array, " K"]
    held_weights: Float[Array, " K"]
    period_losses: Float[Array, " K"]
    period_counts: Int[Array, " K"]
    step_count: Int[Array, ""]
    recorded_losses: Float[Array, " K"]
    gradient_norms: PyTree[Float[Array, " K"]]
    gradient_cosines: PyTree[Float[Array, "K K"]]
    weighting_state: PyTree


def _sum_to_one(weights: Float[Array, " K"], factors: Float[Array, " K"]) -> Float[Array, " K"]:
    """``weights * factors`` over their sum; if all are zero the factors, or else equal ones."""
    weights = jnp.where(factors > 0, weights, 0.0)
    factors = _over_largest(jnp.where(jnp.all(factors == 0), 1.0, factors))
    product = _over_largest(jnp.where(jnp.all(weights == 0), 1.0, weights)) * factors
    product = jnp.where(jnp.all(product == 0), factors, product)
    return product / jnp.sum(product)


def _over_largest(values: Float[Array, " K"]) -> Float[Array, " K"]:
    # The inverse of the largest number would be subnormal, for which some devices take 0.
    values = jnp.where(jnp.max(values) > 1, values / 16, values)
    return values / jnp.max(values)


def running_mean(
    mean: Float[Array, " K"], losses: Float[Array, " K"], counts: Int[Array, " K"]
) -> Float[Array, " K"]:
    """The means of ``counts`` losses, from those of all but the last and the last."""
    return mean + (losses - mean) / jnp.maximum(counts, 1).astype(mean.dtype)


def _needed_products(weighting: Weighting, num_losses: int) -> str | None:
    """Whether the weighting calls ``gramian``, else ``squared_norms``, by tracing it once.

    To compute them when they are asked for and keep them would not do: a weighting may ask
    inside of its own ``lax.cond``, and they would leak out of it.
    """
    asked = set()

    def zeros(name: str, *shape: int) -> Array:
        asked.add(name)
        return jnp.zeros(shape, dtype=float)

    def update() -> Any:
        components = Components(
            losses=jnp.ones(num_losses, dtype=float),
            priorities=jnp.ones(num_losses, dtype=float),
            gramian=lambda: zeros("gramian", num_losses, num_losses),
            squared_norms=lambda: zeros("squared_norms", num_losses),
        )
        return weighting.update(components, weighting.init(num_losses))

    jax.eval_shape(update)
    return "gramian" if "gramian" in asked else next(iter(asked), None)


def _view(
    needed: str | None,
    grads: ComponentGrads,
    mask: PyTree[bool] | None,
    losses: Float[Array, " K"],
    priorities: Float[Array, " K"],
) -> Components:
    """What the weighting sees."""
    counted = priorities > 0
    gramian = squared_norms = jnp.zeros(())
    if needed == "gramian":
        gramian = jnp.where(_pairs(counted), grads.gramian(mask), 0.0)
        squared_norms = jnp.diagonal(gramian)
    elif needed == "squared_norms":
        squared_norms = jnp.where(counted, grads.squared_norms(mask), 0.0)
    return Components(losses, priorities, lambda: gramian, lambda: squared_norms)


def _remember(state: BalanceState, needed: str | None, components: Components) -> BalanceState:
    """The state with what the weighting sees of the gradients, for :func:`diagnostics`."""
    if not needed:
        return state
    seen = components.counted
    norms = jnp.sqrt(components.squared_norms())
    state = state._replace(gradient_norms=jnp.where(seen, norms, state.gradient_norms))
    if needed == "squared_norms":
        return state
    # Those of a zero vector are zero.
    inverse = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)
    cosines = components.gramian() * inverse[:, None] * inverse[None, :]
    cosines = jnp.where(_pairs(seen), cosines, state.gradient_cosines)
    return state._replace(gradient_cosines=cosines)


def _pairs(counted: Bool[Array, " K"]) -> Bool[Array, "K K"]:
    return counted[:, None] & counted[None, :]


def _keep_unseen(seen: Bool[Array, " K"], new: Array, old: Array) -> Array:
    """A leaf of a state, without news of the losses that were not seen."""
    is_by_loss = new.shape[-1:] == seen.shape
    if not is_by_loss or jnp.issubdtype(new.dtype, jnp.unsignedinteger):
        return new
    return jnp.where(jnp.broadcast_to(seen, new.shape), new, old)


def _carry_over(
    seen: Bool[Array, " K"],
    new: Float[Array, " K"],
    old: Float[Array, " K"],
    rescale: bool | Bool[Array, ""],
) -> Float[Array, " K"]:
    """The new weights; those of losses that were not seen keep their share, or their value."""
    new_sum, old_sum = (jnp.sum(jnp.where(seen, weights, 0.0)) for weights in (new, old))
    has_share = rescale & (new_sum > 0) & (old_sum > 0)
    ratio = jnp.where(has_share, new_sum / jnp.where(has_share, old_sum, 1.0), 1.0)
    return jnp.where(seen, new, ratio * old)


def _where(condition: bool | Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(functools.partial(jnp.where, condition), new, old)


def _derived_entries(state: BalanceState) -> PyTree:
    """What can become infinite or NaN though the losses are finite."""
    return state.gradient_norms, state.gradient_cosines, state.weighting_state


def _stays_finite(new: PyTree, old: PyTree) -> Bool[Array, ""]:
    """Whether no finite entry of a state has become infinite or NaN."""
    leaves = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    good = [
        jnp.all(jnp.isfinite(leaf) | ~jnp.isfinite(before))
        for leaf, before in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(operator.and_, good, jnp.ones((), dtype=bool))


def _next_count(count: Int[Array, ""], every: int) -> Int[Array, ""]:
    """The count plus one; where int32 ends, its last period of ``every`` steps once more."""
    last = np.iinfo(np.int32).max // every * every
    return jnp.where(count < last, count, last - every) + 1


def _own_typed_array(leaf: ArrayLike) -> Array:
    # A weakly typed leaf, such as `jnp.full(K, 1.0)`, would retrace on the second step, and an
    # array that the weighting holds would be gone after the state's buffers are donated.
    copy = jnp.array(leaf)
    return jax.lax.convert_element_type(copy, copy.dtype)


def _as_component_grads(
    updates: ComponentGrads | PyTree,
    losses: PyTree | None,
    params: PyTree | None,
    num_losses: int,
) -> ComponentGrads:
    """Both forms of ``updates`` as one, checked, with the losses to be used."""
    refuse_pair(updates)
    if isinstance(updates, ComponentGrads):
        grads = updates if losses is None else updates.with_losses(losses)
    elif losses is None:
        raise ValueError(
            "`losses` should be passed to `update` together with stacked gradients, got None. "
            "Likely cause: the weighting is not first in its chain, or `updates` are the plain "
            "gradients of `jax.grad`; take those of `value_and_component_grads`, which carry "
            "their losses."
        )
    else:
        _check_stacked(updates, params, num_losses)
        grads = from_stacked(updates, losses)
    if grads.losses.size != num_losses:
        raise ValueError(
            f"The weighting is made for {num_losses} losses, got {grads.losses.size}. Likely "
            "cause: `num_losses`, or the number of fixed weights, is not the number of losses, or "
            "the loss function returns the losses of examples instead of their mean."
        )
    return grads


def _as_mask_of_losses(present: PyTree | None, grads: ComponentGrads) -> Bool[Array, " K"]:
    """``present`` as an array; default all True."""
    if present is None:
        return jnp.ones(grads.losses.size, dtype=bool)
    check_names("entries of `present`", present, grads.names)
    return as_component_array(present, "present", grads.losses.size) != 0


def _check_like(state: PyTree, expected: PyTree, message: str) -> None:
    """Raises unless a state has the structure, shapes and dtypes of another."""
    structures: list[Any] = [jax.tree.structure(state), jax.tree.structure(expected)]
    if structures[0] != structures[1] or _describe(state) != _describe(expected):
        raise ValueError(
            f"{message} Expected {type(expected).__name__} with {_describe(expected)}, got "
            f"{type(state).__name__} with {_describe(state)}."
        )


def _describe(tree: PyTree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves]


def _check_stacked(updates: PyTree, params: PyTree | None, num_losses: int) -> None:
    """Raises unless each leaf of ``updates`` has shape [K, *parameter shape]."""
    leaves = jax.tree_util.tree_leaves_with_path(updates, is_leaf=_is_masked_node)
    if any(_is_masked_node(leaf) for _, leaf in leaves):
        raise ValueError(
            "A weighting should see the gradients of all parameters, got masked ones: behind "
            "`masked` or `partition` the others would stay stacked and broadcast the parameters. "
            "Put the weighting first in the chain and mask what comes after it."
        )
    names = [jax.tree_util.keystr(path) or "the root" for path, _ in leaves]
    shapes = [jnp.shape(leaf) for _, leaf in leaves]
    if params is None:
        expected = [(num_losses, *shape[1:]) for shape in shapes]
    else:
        param_leaves = jax.tree_util.tree_leaves_with_path(params)
        param_names = [jax.tree_util.keystr(path) or "the root" for path, _ in param_leaves]
        if names != param_names:
            raise ValueError(
                "Stacked gradients should have the structure of the parameters, with leaves at "
                f"{param_names}, got leaves at {names}. Likely cause: a list of K gradients, which "
                "`jax.tree.map(lambda *g: jnp.stack(g), *gradients)` stacks."
            )
        expected = [(num_losses, *jnp.shape(leaf)) for _, leaf in param_leaves]
    for name, shape, wanted in zip(names, shapes, expected, strict=True):
        if shape != wanted:
            raise ValueError(
                f"Stacked gradients should have shape [K, *parameter shape], here {wanted} at "
                f"{name}, got {shape}. Likely cause: the weighting is not first in its chain or "
                "is wrapped in `MultiSteps` (wrap the optimizer behind it instead), `updates` are "
                "the gradients of a summed loss, or `num_losses`, or the number of fixed weights, "
                "is not the number of losses."
            )


def _is_masked_node(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _shared_mask(shared: Any, params: PyTree | None) -> PyTree[bool] | None:
    """The mask that ``shared`` is or gives."""
    if shared is None:
        return None
    if callable(shared) and params is None:
        raise ValueError("`params` should be passed to `update` if `shared` is a function.")
    mask = shared(params) if callable(shared) else shared
    leaves = jax.tree.leaves(mask)
    if mask is None or not all(isinstance(leaf, bool | np.bool_) for leaf in leaves):
        raise TypeError(
            "`shared` should be True or False for each parameter or each part of the tree of "
            f"parameters, or a function of them that gives it, got {mask!r}."
        )
    if not any(leaves):
        raise ValueError(
            f"`shared` should select at least one parameter, got {mask}. Likely cause: a function "
            "that looks for a name that no parameter has."
        )
    return mask


def balance(
    weighting: Weighting,
    num_losses: int,
    *,
    priorities: PyTree | None = None,
    weight_sum: ArrayLike | None = None,
    every: int = 1,
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    sum_outside: bool = False,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns a weighting into an Optax transformation.

    It emits :math:`h = \sum_k \alpha_k \nabla f_k(x)` (Heydari et al. 2019, Eq. 2), with
    weights :math:`\alpha` from the weighting, ready for any optimizer behind it. It has to
    come first in the chain: what it takes is not shaped like the parameters.

    ``update(updates, state, params=None, *, losses=None, present=None)`` takes as ``updates``
    either the :class:`ComponentGrads` of :func:`value_and_component_grads` or stacked gradients
    with leaves of shape [K, \*parameter shape]. ``losses``, an array [K] or a pytree of K
    scalars, is required with stacked gradients; with ``ComponentGrads`` it takes the place
    of theirs (validation losses, say). With ``params`` the shapes of stacked gradients can be
    checked in full. ``present``, K bools that may be traced, says which losses have data in
    this batch: an absent one gets weight 0 in this step, whatever its value is, and its entries
    of the state stay as they are; the others share the weight sum. Its *gradient* still has to
    be finite: divide by ``max(count, 1)``, not by a count of zero. Other keyword arguments are
    ignored.

    A step whose losses, or what the method makes of them and of the gradients, are not all
    finite keeps the weights and the weighting's state of the step before. A gradient that is
    not finite passes through all the same: put ``optax.apply_if_finite`` around the optimizer
    behind. Squared gradient norms are float32, so that methods which look at gradients want
    norms between 1e-18 and 1e18.

    Whatever has an entry for each loss may be an array or a sequence, in
    ``jax.tree.leaves`` order of the losses (dictionary keys sorted), or have their structure;
    names on both sides have to be the same.

    Args:
      weighting: the method, a :class:`Weighting`.
      num_losses: K, at least 1. Static.
      priorities: factors on the weights, >= 0: an array [K] or a pytree of K scalars in
        the structure of the losses. Default: all 1.
      weight_sum: the weights are scaled to this sum; if all of them are zero they become
        equal (times ``priorities``). Default: the weighting's own scale.
      every: the weighting sees the mean of each ``every`` consecutive losses and the
        weights are held in between; until the first record they are those that the losses
        of the first step give. Gradients are those of the last step of each period, and losses
        absent then are not recorded by methods that look at gradients. Steps with a non-finite
        loss do not count. Static.
      shared: the parameters over which ``Components.gramian`` and ``squared_norms`` are
        taken, those that all losses share: a pytree of bools (the parameters' structure or a
        prefix of it) or a function of the parameters that gives one. Default: all of them.
      sum_outside: whether parameters that are not ``shared``, such as the heads of tasks, get
        the plain sum of the gradients (times ``priorities``) instead of the weighted one.
      lean: whether h comes from one backward pass more. The K gradients, if the weighting asks
        for their products, need not be kept until the weights are known then: in a deep network
        that takes a fraction of the memory, for up to (3 + 2K) / (1 + 2K) of the flops. With
        ``every`` > 1 it always does. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with :class:`BalanceState`.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range (Python and NumPy values are looked at, JAX
        arrays are not); ``update`` gets updates that are neither ``ComponentGrads`` of K losses
        nor K stacked gradients with ``losses``, or a state made with other options.

    Examples:
      A method of one's own, weights proportional to the square of each loss:

      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> def squared_losses(num_losses):
      ...     def init(num_losses):
      ...         return ()
      ...     def update(components, state):
      ...         return components.losses**2, state
      ...     return sa.balance(sa.Weighting(init, update), num_losses, weight_sum=1.0)
      >>> tx = optax.chain(squared_losses(2), optax.sgd(0.1))
      >>> params = jnp.asarray(1.0)
      >>> opt_state = tx.init(params)
      >>> losses_fn = lambda x: ((x - 3.0) ** 2, x**2)
      >>> losses, grads = sa.value_and_component_grads(losses_fn)(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params)
      >>> print(sa.loss_weights(opt_state))
      [0.9411765  0.05882353]
    """
    if not isinstance(weighting, Weighting):
        raise TypeError(f"`weighting` should be a `Weighting`, got {type(weighting).__name__}.")
    check_integer("num_losses", num_losses, at_least=1)
    check_integer("every", every, at_least=1)
    check_flag("sum_outside", sum_outside)
    check_flag("lean", lean)
    if weight_sum is not None:
        check_number("weight_sum", weight_sum, positive=True)
    if priorities is not None:
        check_factors("priorities", priorities, num_losses)

    def factors(present: Bool[Array, " K"]) -> Float[Array, " K"]:
        if priorities is None:
            return jnp.where(present, jnp.ones(num_losses, dtype=float), 0.0)
        return jnp.where(present, as_component_array(priorities, "priorities", num_losses), 0.0)

    def scaled(weights: Float[Array, " K"], present: Bool[Array, " K"]) -> Float[Array, " K"]:
        if weight_sum is None:
            return weights * factors(present)
        shares = _sum_to_one(weights, factors(present))
        return jnp.where(present, jnp.asarray(weight_sum, dtype=float) * shares, 0.0)

    needed_products = functools.cache(lambda: _needed_products(weighting, num_losses))

    def init_fn(params: PyTree) -> BalanceState:
        del params
        equal = jnp.ones(num_losses, dtype=float)
        needed = needed_products()
        cosines = jnp.zeros((num_losses, num_losses), dtype=float) if needed == "gramian" else ()
        return BalanceState(
            loss_weights=scaled(equal, jnp.ones(num_losses, dtype=bool)),
            held_weights=equal,
            period_losses=jnp.zeros(num_losses, dtype=float),
            period_counts=jnp.zeros(num_losses, dtype=jnp.int32),
            step_count=jnp.zeros((), dtype=jnp.int32),
            recorded_losses=jnp.zeros(num_losses, dtype=float),
            gradient_norms=jnp.zeros(num_losses, dtype=float) if needed else (),
            gradient_cosines=cosines,
            weighting_state=jax.tree.map(_own_typed_array, weighting.init(num_losses)),
        )

    def update_fn(
        updates: ComponentGrads | PyTree,
        state: BalanceState,
        params: PyTree | None = None,
        *,
        losses: PyTree | None = None,
        present: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, BalanceState]:
        del extra_args
        if isinstance(state, ComponentGrads):
            raise TypeError("`state` should be an optimizer's state, got `ComponentGrads`.")
        grads = _as_component_grads(updates, losses, params, num_losses)
        check_names("weights or priorities", priorities, grads.names)
        _check_like(
            state,
            jax.eval_shape(init_fn, None),
            "`opt_state` should be a state of this transformation. Likely cause: a state made "
            "by another method or with other options, such as `num_losses` or `history`.",
        )
        mask = _shared_mask(shared, params)
        is_present = _as_mask_of_losses(present, grads)
        needed = needed_products()
        if needed and every > 1:
            grads = grads.formed_anew()
        elif needed and not lean:
            grads = grads.formed(mask)

        is_counted = factors(is_present) > 0
        if every == 1:  # a period is this step
            counts = is_counted.astype(jnp.int32)
            means = jnp.where(is_counted, grads.losses, 0.0)  # whatever the others are
            advanced = state
        else:
            counts = state.period_counts + is_counted.astype(jnp.int32)
            losses_of_step = jnp.where(is_counted, grads.losses, state.period_losses)
            means = running_mean(state.period_losses, losses_of_step, counts)
            advanced = state._replace(period_losses=means, period_counts=counts)
        advanced = advanced._replace(step_count=_next_count(state.step_count, every))
        is_first = advanced.step_count == 1
        is_due = advanced.step_count % every == 0
        # The gradients are those of this step, the losses those of the period.
        is_seen = is_counted if needed else counts > 0

        def reweighted() -> BalanceState:
            """The state after the weighting has seen the means of the period."""
            components = _view(needed, grads, mask, means, factors(is_seen))
            found = weighting.update(components, state.weighting_state)
            if not (isinstance(found, tuple) and len(found) == 2):
                raise TypeError(
                    "The `update` of a `Weighting` should return a pair, the weights and the "
                    f"state, got {type(found).__name__}."
                )
            weights, weighting_state = found
            _check_like(
                jax.eval_shape(lambda: weighting_state),
                state.weighting_state,
                "The weighting's `update` should return a state like the one it was given.",
            )
            weights = as_component_array(weights, "weights", num_losses)
            # With a weight sum only ratios have a meaning, and so has what is held at the start.
            is_ratio = is_first if weight_sum is None else True
            ahead = _remember(advanced, needed, components)._replace(
                held_weights=_carry_over(is_seen, weights, state.held_weights, is_ratio)
            )
            keep = functools.partial(_keep_unseen, is_seen)
            recorded = ahead._replace(
                weighting_state=jax.tree.map(keep, weighting_state, state.weighting_state)
            )
            if every == 1:
                return recorded
            recorded = recorded._replace(
                period_losses=jnp.zeros_like(means), period_counts=jnp.zeros_like(counts)
            )
            # The first step only looks ahead: its weights hold until the first record.
            return _where(is_due, recorded, ahead)

        if every == 1:
            new_state = reweighted()
        else:
            new_state = jax.lax.cond(is_due | is_first, reweighted, lambda: advanced)
        # Outside of the `cond`, whose results all take memory of their own.
        is_recorded = is_seen & (is_due | is_first)
        recorded_losses = jnp.where(is_recorded, means, state.recorded_losses)
        new_state = new_state._replace(recorded_losses=recorded_losses)
        is_good = jnp.all(jnp.isfinite(means))
        # Scaled to a sum they are finite if they were before; else factors can be too large.
        largest = factors(is_present) if weight_sum is None else jnp.ones(num_losses, dtype=float)
        is_good &= jnp.all(jnp.isfinite(new_state.held_weights * largest))
        is_good &= _stays_finite(*(_derived_entries(s) for s in (new_state, state)))
        state = _where(is_good, new_state, state)
        state = state._replace(loss_weights=scaled(state.held_weights, is_present))

        h = grads.combine(state.loss_weights)
        if sum_outside and mask is not None:
            h = merge(mask, h, grads.combine(factors(is_present)))
        return h, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
