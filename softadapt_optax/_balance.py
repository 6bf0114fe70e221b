"""The one transformation that applies a method of weighting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from softadapt_optax._checks import (
    check_factors,
    check_flag,
    check_integer,
    check_losses,
    check_number,
    check_units,
)
from softadapt_optax._component_grads import ComponentGrads
from softadapt_optax._devices import cond
from softadapt_optax._look import Given, Gradients, Look, look_of, looked
from softadapt_optax._masks import merge
from softadapt_optax._options import Options
from softadapt_optax._scaling import sum_to_one
from softadapt_optax._state import (
    BalanceState,
    Observation,
    all_true,
    are_finite,
    observed,
    recorded,
    where,
)
from softadapt_optax._units import Units, are_losses, new_unit_losses
from softadapt_optax._updates import (
    check_combined,
    check_like,
    in_order,
    ntk_traces_fn_of,
    presence,
    refuse_lazy_arguments,
    shared_mask,
    taken,
    target_fn_of,
)
from softadapt_optax._weighting import Needs, Weighting, needs_of


def balance(
    weighting: Weighting,
    num_losses: int | Sequence[str],
    *,
    priorities: PyTree | Callable[[ArrayLike], PyTree] | None = None,
    weight_sum: ArrayLike | None = None,
    units: Units = None,
    smoothing: ArrayLike = 0.0,
    every: int = 1,
    shared: PyTree[bool] | Callable[[PyTree], PyTree[bool]] | None = None,
    sum_outside: bool = False,
    lean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns a weighting into an Optax transformation.

    It emits :math:`h = \sum_k \alpha_k \nabla f_k(x)` (Heydari et al. 2019, Eq. 2), with
    weights :math:`\alpha` from the weighting, ready for any optimizer behind it. It has to
    come first in the chain: what it takes is not shaped like the parameters.

    ``update(updates, state, params=None, *, losses=None, present=None, target=None,
    ntk_traces=None, previous_losses=None)`` takes as ``updates`` either the :class:`ComponentGrads`
    of :func:`value_and_component_grads` or stacked gradients with leaves of shape [K, \*parameter
    shape]. ``losses``, an array [K] or a pytree of K scalars, is required with stacked gradients;
    with ``ComponentGrads`` it takes the place of theirs (validation losses, say). With ``params``
    the shapes of stacked gradients can be checked in full. Other keyword arguments are ignored, but
    for a misspelt ``losses``, ``present`` or ``target``.

    ``present``, K bools that may be traced, says which losses have data in this batch. A loss that
    is absent changes nothing but itself: it gets weight 0 in this step, whatever its value is, and
    its entries of the state stay as they are. The others get the weights that they would have
    beside it, by its last record; methods that look at gradients, of which none is remembered,
    weigh those present. Under a weight sum its share is kept for it, so that the sum is less in
    this step. The *gradient* of an absent loss still has to be finite: divide by
    ``max(count, 1)``, not by a count of zero.

    ``target`` is the gradient of one more loss, a pytree like the parameters, for methods that ask
    for ``Components.alignments``, the inner products of the K gradients with it
    (:func:`hypergradient`); or a function of ``params`` that returns it, called with ``every=m`` in
    the first step and then in one of m only. ``ntk_traces`` are K numbers, those of
    :func:`ntk_trace`, or a function of ``params`` in the same way, for methods that ask for
    ``Components.ntk_traces`` (:func:`ntk_weights`). ``previous_losses`` are what the losses of the
    *last* batch are at the parameters of now, one forward pass more, for methods that look at
    ``Components.previous_losses`` (:func:`famo`). Other methods take no notice of what they hold.

    A step whose losses, or what the method makes of them and of the gradients, are not all
    finite keeps the weights and the weighting's state of the step before. A gradient that is
    not finite passes through all the same: put ``optax.apply_if_finite`` around the optimizer
    behind. Squared gradient norms are float32, so that methods which look at gradients want
    norms between 1e-18 and 1e18.

    Whatever has an entry for each loss may be an array or a sequence, or have the names of the
    losses, a dictionary say; names on both sides have to be the same. By position the order is that
    of the names in ``num_losses``. Without them it is the ``jax.tree.leaves`` order of the losses,
    where the names of a plain dictionary are sorted: beside losses with names a list is refused,
    unless its entries are equal, and an array is taken in that order. Where the names in
    ``num_losses`` are not sorted, ``losses=`` have to go by name, as two orders are possible then:
    that of the names and that of ``ComponentGrads.losses`` and ``stack()``. Stacked gradients are
    in the latter: beside losses with names their rows are in the order of the *sorted* names,
    whatever that of ``num_losses``.

    Args:
      weighting: the method, a :class:`Weighting`.
      num_losses: K, at least 1; or a sequence of K names, strings that are those of the losses
        (``"outer/inner"`` for a loss inside of a loss). :func:`loss_weights` and
        :func:`diagnostics` have the order and the names of it. Static.
      priorities: factors on the weights, >= 0: an array [K] or a pytree of K numbers in
        the structure of the losses. They, or some of their entries, may be functions of the
        number of optimizer steps before this one, such as Optax schedules; a loss is left out
        while its one gives no positive number. Default: all 1.
      weight_sum: the weights are scaled to this sum; if all of them are zero they become
        equal (times ``priorities``). Where a method gives negative weights it is the sum of their
        sizes :math:`|\alpha_k|`, so that no sign changes. Default: the weighting's own scale.
      units: :math:`u_k > 0`; the method sees losses :math:`f_k / u_k` and their gradients,
        and its weights are divided by the units, so that all is as if the loss function had
        divided its losses: :math:`\alpha_k = w_k / u_k`, and it is the sum of the w that is
        ``weight_sum``. K numbers, an array [K] or a pytree of K numbers; ``"initial"``, each loss
        at its first record; or ``"current"``, the size of the loss itself, so that the method acts
        on the logarithms of positive losses (rates of change vanish then). A loss of 0 is no unit:
        the last one before it is kept, at first 1. Units below 1e-19 count as that. Default: none.
      smoothing: s in [0, 1); the method's weights are s times the old ones plus 1 - s times the
        new ones of each record, the first as it is (with a weight sum, of shares of it). Priorities
        and units act behind. Under a weight sum that of an absent loss moves with the shares of
        the others. Default: 0, none.
      every: the weighting sees the mean of each ``every`` consecutive losses and the
        weights are held in between; until the first record of a loss its weight is the one that
        the first step gives in which it is there. Gradients are those of the last step of each
        period, and losses absent then are not recorded by methods that look at gradients. Steps
        with a non-finite loss do not count. Static.
      shared: the parameters over which ``Components.gramian``, ``squared_norms`` and
        ``magnitudes`` are taken, those that all losses share: a pytree of bools (the parameters'
        structure or a prefix of it) or a function of the parameters that gives one. Parameters that
        an optimizer behind leaves frozen count all the same, unless ``shared`` leaves them out.
        Default: all of them.
      sum_outside: whether parameters that are not ``shared``, such as the heads of tasks, get
        the plain sum of the gradients (times ``priorities``, over the units) instead of the
        weighted one.
      lean: whether to take the form with less memory. Then h comes from one backward pass more, for
        up to (3 + 2K) / (1 + 2K) of the flops, so that the K gradients, if the weighting asks for
        their products, need not be kept until the weights are known: in a deep network that takes
        a fraction of the memory. Where that pass would hold more than it frees, counted while the
        step is traced (stacked layers in a scan, a matrix used several times, activations larger
        than the K gradients), they are kept. With ``every`` > 1 it always does. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with :class:`BalanceState`.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of its range (traced arrays are not looked at; a traced unit
        that is not positive gives NaN); ``update`` gets updates that are neither
        ``ComponentGrads`` of K losses nor K stacked gradients with ``losses``, or a state made with
        other options.

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
    check_integer("every", every, at_least=1)
    check_flag("sum_outside", sum_outside)
    check_flag("lean", lean)
    if weight_sum is not None:
        check_number("weight_sum", weight_sum, positive=True)
    check_number("smoothing", smoothing, nonnegative=True, below=1.0)
    size, names, is_ordered = check_losses(num_losses, priorities=priorities, units=units)
    if priorities is not None:
        check_factors("priorities", priorities, size)
    check_units(units, size)
    asked: list[Needs] = []  # what the weighting asks for, once it was traced

    def options() -> Options:
        if not asked:
            asked.append(needs_of(weighting, size))
        return Options(
            weighting=weighting,
            num_losses=size,
            names=names,
            is_ordered=is_ordered,
            priorities=priorities,
            weight_sum=weight_sum,
            units=units,
            smoothing=smoothing,
            every=every,
            shared=shared,
            sum_outside=sum_outside,
            lean=lean,
            needs=asked[0],
        )

    def init_fn(params: PyTree) -> BalanceState:
        del params
        return _first_state(options())

    def update_fn(
        updates: ComponentGrads | PyTree,
        state: BalanceState,
        params: PyTree | None = None,
        *,
        losses: PyTree | None = None,
        present: PyTree | None = None,
        target: PyTree | Callable[[PyTree], PyTree] | None = None,
        ntk_traces: PyTree | Callable[[PyTree], PyTree] | None = None,
        previous_losses: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, BalanceState]:
        refuse_lazy_arguments(state, extra_args)
        check_like(state, jax.eval_shape(init_fn, None), _OTHER_STATE)
        grads = taken(updates, losses, params, size, names, is_ordered)
        is_present = presence(present, grads, names, is_ordered)
        needs = options().needs
        given = Given(
            target_fn=target_fn_of(target, params, needs.target, extra_args),
            ntk_traces_fn=ntk_traces_fn_of(
                ntk_traces, params, needs.ntk_traces, grads, names, is_ordered
            ),
            previous_losses=None
            if previous_losses is None
            else in_order(previous_losses, "previous_losses", grads, names, is_ordered),
        )
        h, state = _step(options(), grads, is_present, state, params, given)
        check_combined(h, params)
        return h, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _step(
    options: Options,
    grads: ComponentGrads,
    is_present: Bool[Array, " K"],
    state: BalanceState,
    params: PyTree | None,
    given: Given,
) -> tuple[PyTree, BalanceState]:
    """One step, from what came to h and the state."""
    options.check_names(grads)
    mask = shared_mask(options.shared, params)
    grads = _prepared(options, grads, mask)

    factors = options.factors(state.step_count)
    seen = observed(
        state,
        grads.losses,
        is_present,
        factors,
        options.every,
        needs_gradients=options.needs.gradients,
    )
    unit_losses = new_unit_losses(options.units, state, seen)
    units = options.units_in(unit_losses)

    def look() -> Look:
        return looked(options, state, seen, units, Gradients(grads, mask, given))

    if options.every == 1:
        found = look()
    elif options.needs.is_cheap:
        found = where(seen.is_looked_at, look(), look_of(state))
    else:
        found = cond(seen.is_looked_at, look, lambda: look_of(state))

    state = _kept(options, state, seen, unit_losses, units, found)
    weights = jnp.where(is_present, state.loss_weights, 0.0)
    units = options.units_in(state.unit_losses)
    outside = jnp.where(is_present, factors if units is None else factors / units, 0.0)
    h = _combined(options, grads, mask, weights, outside)
    return h, state._replace(loss_weights=weights)


_OTHER_STATE = (
    "`opt_state` should be a state of this transformation. Likely cause: a state made by another "
    "method, by another version of this package, or with other options, such as the names of the "
    "losses, `num_losses`, `history` or `every`."
)


def _first_state(options: Options) -> BalanceState:
    num_losses, products = options.num_losses, options.needs.products

    def zeros(*shape: int, dtype: Any = float) -> Array:
        return jnp.zeros(shape, dtype=dtype)

    held = jnp.ones(num_losses, dtype=float)
    unit_losses = zeros(num_losses) if are_losses(options.units) else ()
    factors, units = options.factors(()), options.units_in(unit_losses)
    return BalanceState(
        loss_weights=_scaled(options, held, factors, units),
        loss_records=zeros(2, num_losses),
        step_count=zeros(dtype=jnp.int32) if options.counts_steps else (),
        period_records=zeros(2, num_losses) if options.every > 1 else (),
        held_weights=held if options.holds_weights else (),
        unit_losses=unit_losses,
        gradient_norms=zeros(num_losses) if products == "squared_norms" else (),
        gradient_cosines=zeros(num_losses, num_losses) if products == "gramian" else (),
        target_alignments=zeros(num_losses) if options.needs.target else (),
        loss_names=tuple({name: ()} for name in options.names or ()),
        weighting_state=jax.tree.map(_own_typed_array, options.weighting.init(num_losses)),
    )


def _own_typed_array(leaf: ArrayLike) -> Array:
    # A weakly typed leaf, such as `jnp.full(K, 1.0)`, would retrace on the second step, and an
    # array that the weighting holds would be gone after the state's buffers are donated.
    copy = jnp.array(leaf)
    return jax.lax.convert_element_type(copy, copy.dtype)


def _prepared(options: Options, grads: ComponentGrads, mask: PyTree[bool] | None) -> ComponentGrads:
    """The gradients in the form in which they are cheapest."""
    if options.needs.gradients and options.every > 1:
        return grads.formed_anew()
    if options.needs.forms_gradients:
        return grads.formed(mask, options.lean)
    return grads


def _kept(
    options: Options,
    old: BalanceState,
    seen: Observation,
    unit_losses: PyTree,
    units: Float[Array, " K"] | None,
    look: Look,
) -> BalanceState:
    """The state after the step, or the old one if something is not finite."""
    new = recorded(old, seen, options.every)._replace(unit_losses=unit_losses, **look._asdict())
    weights = _scaled(options, look.held_weights, seen.factors, units)
    if not options.holds_weights:
        new = new._replace(held_weights=())
    # Scaled to a sum they are finite if they were before, and nothing waits for the sum.
    is_scaled = options.weight_sum is not None and options.units is None
    checked = look.held_weights if is_scaled else weights
    rows = [seen.are_finite, jnp.isfinite(checked)]
    rows += are_finite(new.weighting_state, old.weighting_state, options.needs.starts_finite)
    products = (new.gradient_norms, new.gradient_cosines, new.target_alignments)
    rows += are_finite(products, products, [True] * len(jax.tree.leaves(products)))
    is_good = all_true(rows, new.weighting_state)
    return where(is_good, new._replace(loss_weights=weights), old)


def _scaled(
    options: Options,
    held: Float[Array, " K"],
    factors: Float[Array, " K"],
    units: Float[Array, " K"] | None,
) -> Float[Array, " K"]:
    """The weights on the gradients, from those that the weighting gave."""
    if options.weight_sum is None:
        weights = held * factors
    else:
        weights = jnp.asarray(options.weight_sum, dtype=float) * sum_to_one(held, factors)
    return weights if units is None else weights / units


def _combined(
    options: Options,
    grads: ComponentGrads,
    mask: PyTree[bool] | None,
    weights: Float[Array, " K"],
    outside: Float[Array, " K"],
) -> PyTree:
    """h; outside of what is shared it may be the sum by other weights."""
    h = grads.combine(weights)
    if options.sum_outside and mask is not None:
        return merge(mask, h, grads.combine(outside))
    return h
