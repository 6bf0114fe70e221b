"""A weighting's look at the losses: what it sees, and what comes of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from softadapt_optax._component_grads import ComponentGrads
from softadapt_optax._options import Options
from softadapt_optax._per_loss import as_component_array
from softadapt_optax._reductions import diagonal_of
from softadapt_optax._scaling import carried_over, mean_of, sizes_of, sum_to_one
from softadapt_optax._state import BalanceState, Observation, is_kept, kept_unseen, where
from softadapt_optax._updates import check_like
from softadapt_optax._weighting import Components, Needs, Weighting


class Look(NamedTuple):
    """The part of the state that changes when the weighting looks at the losses."""

    held_weights: Float[Array, " K"]
    gradient_norms: PyTree[Float[Array, " K"]]
    gradient_cosines: PyTree[Float[Array, "K K"]]
    target_alignments: PyTree[Float[Array, " K"]]
    weighting_state: PyTree


def look_of(state: BalanceState) -> Look:
    return Look(*(getattr(state, name) for name in Look._fields))


class Given(NamedTuple):
    """What `update` was given beside the gradients, for methods that ask for it.

    Attributes:
      target_fn: gives the gradient of the target; None: the weighting asks for none.
      ntk_traces_fn: gives the traces of the losses' kernels; None: the weighting asks for none.
      previous_losses: the losses of the batch before at the parameters of now; None: not given.
    """

    target_fn: Callable[[], PyTree] | None
    ntk_traces_fn: Callable[[], Float[Array, " K"]] | None
    previous_losses: Float[Array, " K"] | None


class Gradients(NamedTuple):
    """What the weighting may ask about.

    Attributes:
      grads: the gradients.
      mask: the parameters that count; None: all.
      given: what `update` was given beside them.
    """

    grads: ComponentGrads
    mask: PyTree[bool] | None
    given: Given


class Products(NamedTuple):
    """Those of the gradients that count, as far as the weighting asks for them; else ``()``.

    Attributes:
      gramian: the inner products of all pairs, shape [K, K].
      squared_norms: shape [K].
      magnitudes: the largest and the mean absolute value of the entries of each, shape [2, K].
      alignments: the inner products with the target, shape [K].
      squared_target_norm: that of the target, if there are norms too.
      ntk_traces: those of the losses' neural tangent kernels, shape [K].
    """

    gramian: PyTree[Float[Array, "K K"]]
    squared_norms: PyTree[Float[Array, " K"]]
    magnitudes: PyTree[Float[Array, "2 K"]]
    alignments: PyTree[Float[Array, " K"]]
    squared_target_norm: PyTree[Float[Array, ""]]
    ntk_traces: PyTree[Float[Array, " K"]]

    def in_units(self, units: Float[Array, " K"]) -> "Products":
        inverse = 1.0 / units
        return Products(
            jax.tree.map(
                lambda gramian: gramian * inverse[:, None] * inverse[None, :], self.gramian
            ),
            jax.tree.map(lambda norms: norms * inverse * inverse, self.squared_norms),
            jax.tree.map(lambda magnitudes: magnitudes * inverse[None, :], self.magnitudes),
            jax.tree.map(lambda alignments: alignments * inverse, self.alignments),
            self.squared_target_norm,
            jax.tree.map(lambda traces: traces * inverse, self.ntk_traces),
        )


def looked(
    options: Options,
    state: BalanceState,
    seen: Observation,
    units: Float[Array, " K"] | None,
    gradients: Gradients,
) -> Look:
    """What the weighting makes of losses and gradients."""
    products = _products(options.needs, gradients, seen.counted)
    previous_losses = gradients.given.previous_losses
    units_before = options.units_in(state.unit_losses)
    if previous_losses is not None and units_before is not None:
        previous_losses = previous_losses / units_before
    components = _components(state, seen, units, products, previous_losses)
    weights, weighting_state = _called(options.weighting, components, state.weighting_state)
    weights = _smoothed(options, state, seen.counted, weights)
    weighting_state = kept_unseen(seen.is_new, weighting_state, state.weighting_state)
    if options.every > 1:  # the first only looks ahead: its weights hold until the first record
        weighting_state = where(seen.is_due, weighting_state, state.weighting_state)
    return Look(
        _held(options, state, seen, weights),
        *_norms_and_cosines(options.needs.products, state, seen.counted, products),
        _alignments(state, seen.counted, products),
        weighting_state,
    )


def _products(needs: Needs, gradients: Gradients, counted: Bool[Array, " K"]) -> Products:
    grads, mask, given = gradients
    gramian: PyTree = ()
    squared_norms: PyTree = ()
    magnitudes: PyTree = ()
    alignments: PyTree = ()
    squared_target_norm: PyTree = ()
    ntk_traces: PyTree = ()
    if needs.products == "gramian":
        gramian = jnp.where(_pairs(counted), grads.gramian(mask), 0.0)
        squared_norms = diagonal_of(gramian)
    elif needs.products == "squared_norms":
        squared_norms = jnp.where(counted, grads.squared_norms(mask), 0.0)
    if needs.magnitudes:
        magnitudes = grads.magnitudes(mask)
        magnitudes = jnp.where(jnp.isfinite(magnitudes), magnitudes, jnp.nan)
        magnitudes = jnp.where(counted[None, :], magnitudes, 0.0)
    if given.target_fn is not None:
        target = given.target_fn()
        alignments = jnp.where(counted, grads.alignments(target, mask), 0.0)
        if needs.products is not None:
            squared_target_norm = grads.squared_norm(target, mask)
    if given.ntk_traces_fn is not None:
        ntk_traces = jnp.where(counted, given.ntk_traces_fn(), 0.0)
    return Products(gramian, squared_norms, magnitudes, alignments, squared_target_norm, ntk_traces)


def _components(
    state: BalanceState,
    seen: Observation,
    units: Float[Array, " K"] | None,
    products: Products,
    previous_losses: Float[Array, " K"] | None,
) -> Components:
    """What the weighting sees."""
    losses = seen.losses
    if units is not None:
        losses, products = losses / units, products.in_units(units)
    return Components(
        losses=losses,
        priorities=jnp.where(seen.counted, seen.factors, 0.0),
        is_new=seen.is_new,
        record_counts=seen.record_counts.astype(jnp.int32),
        is_due=seen.is_due,
        step=state.step_count if is_kept(state.step_count) else jnp.zeros((), dtype=jnp.int32),
        gramian=lambda: products.gramian,
        squared_norms=lambda: products.squared_norms,
        magnitudes=lambda: products.magnitudes,
        alignments=lambda: products.alignments,
        ntk_traces=lambda: products.ntk_traces,
        previous_losses=previous_losses,
    )


def _called(
    weighting: Weighting, components: Components, state: PyTree
) -> tuple[Float[Array, " K"], PyTree]:
    """What the weighting gives, checked."""
    found = weighting.update(components, state)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(
            "The `update` of a `Weighting` should return a pair, the weights and the "
            f"state, got {type(found).__name__}."
        )
    weights, new_state = found
    check_like(
        jax.eval_shape(lambda: new_state),
        state,
        "The weighting's `update` should return a state like the one it was given.",
    )
    return as_component_array(weights, "weights", components.losses.size), new_state


def _smoothed(
    options: Options,
    state: BalanceState,
    counted: Bool[Array, " K"],
    weights: Float[Array, " K"],
) -> Float[Array, " K"]:
    """The weights, averaged with those held; the first of each loss as they are."""
    if not options.is_smoothed:
        return weights
    if options.weight_sum is not None:  # where they have no scale of their own
        weights = sum_to_one(weights, counted.astype(weights.dtype))
    smoothing = jnp.clip(jnp.asarray(options.smoothing, weights.dtype), 0.0, 1.0)
    share = jnp.where(state.loss_records[1] > 0, smoothing, 0.0)
    return share * state.held_weights + (1.0 - share) * weights


def _held(
    options: Options, state: BalanceState, seen: Observation, weights: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The weights, with those of losses that do not count beside them."""
    if not is_kept(state.held_weights):  # of which none was seen yet: their share is an equal one
        return jnp.where(seen.counted, weights, mean_of(sizes_of(weights), seen.counted))
    # With a weight sum only ratios have a meaning, and so has what is held at the start.
    keeps_share = seen.is_start if options.weight_sum is None else True
    held = carried_over(seen.counted, weights, state.held_weights, keeps_share)
    if options.is_smoothed and options.weight_sum is not None:  # the new ones will be shares
        held = sum_to_one(held, jnp.ones_like(held))
    return held


def _norms_and_cosines(
    needed: str | None, state: BalanceState, counted: Bool[Array, " K"], products: Products
) -> tuple[PyTree, PyTree]:
    """What is kept of the gradients for :func:`diagnostics`; no weight depends on it."""
    if not needed:
        return (), ()
    gramian, squared_norms = jax.lax.stop_gradient((products.gramian, products.squared_norms))
    norms = jnp.sqrt(squared_norms)
    if needed == "squared_norms":
        return jnp.where(counted, norms, state.gradient_norms), ()
    inverse = _inverse(norms)
    cosines = gramian * inverse[:, None] * inverse[None, :]
    is_own = jnp.eye(norms.size, dtype=bool)
    cosines = jnp.where(is_own, norms[:, None], cosines)
    return (), jnp.where(_pairs(counted), cosines, state.gradient_cosines)


def _alignments(
    state: BalanceState, counted: Bool[Array, " K"], products: Products
) -> PyTree[Float[Array, " K"]]:
    """The same for those with the target."""
    if not is_kept(products.alignments):
        return ()
    products = jax.lax.stop_gradient(products)
    found = products.alignments
    if is_kept(products.squared_target_norm):
        norms = jnp.sqrt(products.squared_norms), jnp.sqrt(products.squared_target_norm)
        found = found * _inverse(norms[0]) * _inverse(norms[1])
    return jnp.where(counted, found, state.target_alignments)


def _inverse(norms: Float[Array, "*K"]) -> Float[Array, "*K"]:
    """Their inverse; the cosines of a zero vector are zero."""
    return jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)


def _pairs(counted: Bool[Array, " K"]) -> Bool[Array, "K K"]:
    return counted[:, None] & counted[None, :]
