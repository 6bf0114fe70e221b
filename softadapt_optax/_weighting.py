"""The protocol of a method: what it sees of the losses, and the pair of functions that it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from softadapt_optax._devices import axes_of, inner_jaxprs, spread
from softadapt_optax._per_loss import dtype_of


class Components(NamedTuple):
    """What a weighting sees of the losses.

    With ``units`` losses and gradients are those over their units.

    Attributes:
      losses: the losses of this step, or their mean over the last ``every`` steps, shape [K], all
        finite; of a loss without data those of its last record, 0 if it has none.
      priorities: the factors that :func:`balance` puts on the weights, shape [K]; a loss of
        priority 0 is left out: the weights of the others must not depend on it. So are losses
        without a record, and, where the method looks at gradients, losses without data.
      is_new: which losses have data in this step or period, shape [K]. :func:`balance` keeps
        what a state has of the others as it was; a method that makes its weights of the new
        state has to do so itself.
      record_counts: the number of records of each loss, this one included, shape [K], int32.
      is_due: whether this is a record. If not, it is a look ahead, for a loss that is there for the
        first time between two records, and the new state is not kept.
      step: the number of optimizer steps before this one, int32, for schedules.
      gramian: a function without arguments that gives the inner products of the K
        gradients, shape [K, K], zero for losses that are left out. They are computed only for
        methods that call it, then in each update, also if the call is inside of a ``lax.cond``:
        for rare use there is the ``every`` of :func:`balance`. If one is not finite,
        weights and state stay as they were, whatever the method makes of it.
      squared_norms: the same for their squared norms alone, shape [K].
      magnitudes: the same for the largest and the mean absolute value of the entries of each
        gradient, shape [2, K]; NaN in the place of what is not finite.
      alignments: the same for the inner products of the K gradients with the ``target`` of
        ``update``, shape [K].
      ntk_traces: the same for the traces of the losses' neural tangent kernels, ``ntk_traces`` of
        ``update``, shape [K].
      previous_losses: what the losses of the batch before this one are at the parameters of this
        step, ``previous_losses`` of ``update``, over the units of the step before, shape [K]; None
        where ``update`` was not given them. They may be anything where a loss had no data then.
    """

    losses: Float[Array, " K"]
    priorities: Float[Array, " K"]
    is_new: Bool[Array, " K"]
    record_counts: Int[Array, " K"]
    is_due: Bool[Array, ""]
    step: Int[Array, ""]
    gramian: Callable[[], Float[Array, "K K"]]
    squared_norms: Callable[[], Float[Array, " K"]]
    magnitudes: Callable[[], Float[Array, "2 K"]]
    alignments: Callable[[], Float[Array, " K"]]
    ntk_traces: Callable[[], Float[Array, " K"]]
    previous_losses: Float[Array, " K"] | None = None

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
        and weights of shape [K] in any scale; :func:`balance` scales them. Negative ones are
        taken as they are: h then goes up that loss' gradient.
    """

    init: Callable[[int], PyTree]
    update: Callable[[Components, PyTree], tuple[Float[Array, " K"], PyTree]]


def stateless(weigh: Callable[[Components], Float[Array, " K"]]) -> Weighting:
    """A weighting without memory."""
    return Weighting(
        init=lambda num_losses: (), update=lambda components, state: (weigh(components), state)
    )


def equal_weights() -> Weighting:
    """All weights 1: what is left are the priorities."""
    return stateless(lambda components: jnp.ones_like(components.losses))


def repeated(weighting: Weighting, times: int) -> Weighting:
    """One that steps its state ``times`` times in each update, as if called in so many steps.

    For methods that learn their weights, whose rate of learning would otherwise fall with
    ``every``. The weights are those before the last of the steps, as they are for one.
    """
    if times == 1:
        return weighting

    def update(components: Components, state: PyTree) -> tuple[Float[Array, " K"], PyTree]:
        axes = axes_of((components.losses, components.priorities, state))

        def step(_: Any, found: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
            return spread(weighting.update(components, found[1]), axes)

        start = jnp.zeros_like(components.losses), state
        return jax.lax.fori_loop(0, times, step, spread(start, axes))

    return Weighting(weighting.init, update)


class Needs(NamedTuple):
    """What a weighting asks for.

    Attributes:
      products: of gradients, ``"gramian"`` or ``"squared_norms"``; None if it asks for none.
      magnitudes: whether it asks for those of the entries of the gradients.
      target: whether it asks for alignments with a target.
      ntk_traces: whether it asks for those of the losses' neural tangent kernels.
      step: whether it asks for the step.
      loops: whether it has loops or branches, so that it costs more than some arithmetic.
      starts_finite: for each leaf of its state whether all entries are finite at the start, so
        that they are to stay finite.
    """

    products: str | None
    magnitudes: bool
    target: bool
    ntk_traces: bool
    step: bool
    loops: bool
    starts_finite: tuple[bool, ...]

    @property
    def gradients(self) -> bool:
        """Whether it asks for anything that is made of gradients."""
        return self.forms_gradients or self.target or self.ntk_traces

    @property
    def forms_gradients(self) -> bool:
        """Whether it asks for what only the K gradients themselves give."""
        return self.products is not None or self.magnitudes

    @property
    def is_cheap(self) -> bool:
        """Whether an update costs less than a branch around it."""
        return not self.gradients and not self.loops


def needs_of(weighting: Weighting, num_losses: int) -> Needs:
    """What the weighting asks for, by tracing it once.

    To compute products when they are asked for and keep them would not do: a weighting may ask
    inside of its own ``lax.cond``, and they would leak out of it.
    """
    asked = set()

    def zeros(name: str, *shape: int) -> Array:
        asked.add(name)
        return jnp.zeros(shape, dtype=float)

    def update(step: Int[Array, ""]) -> Any:
        ones = jnp.ones(num_losses, dtype=float)
        components = Components(
            losses=ones,
            priorities=ones,
            is_new=jnp.ones(num_losses, dtype=bool),
            record_counts=jnp.ones(num_losses, dtype=jnp.int32),
            is_due=jnp.ones((), dtype=bool),
            step=step,
            gramian=lambda: zeros("gramian", num_losses, num_losses),
            squared_norms=lambda: zeros("squared_norms", num_losses),
            magnitudes=lambda: zeros("magnitudes", 2, num_losses),
            alignments=lambda: zeros("alignments", num_losses),
            ntk_traces=lambda: zeros("ntk_traces", num_losses),
        )
        return weighting.update(components, weighting.init(num_losses))

    jaxpr = jax.make_jaxpr(update)(jnp.zeros((), dtype=jnp.int32)).jaxpr
    operands = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    operands |= set(map(id, jaxpr.outvars))
    return Needs(
        products=next((name for name in ("gramian", "squared_norms") if name in asked), None),
        magnitudes="magnitudes" in asked,
        target="alignments" in asked,
        ntk_traces="ntk_traces" in asked,
        step=id(jaxpr.invars[0]) in operands,
        loops=_has_loops(jaxpr),
        starts_finite=_starts_finite(weighting, num_losses),
    )


def _starts_finite(weighting: Weighting, num_losses: int) -> tuple[bool, ...]:
    """For each leaf of its state whether all entries are known to be finite; integers are."""
    start = jax.make_jaxpr(weighting.init, static_argnums=0)(num_losses)
    if any(isinstance(const, jax.core.Tracer) for const in start.consts):  # of a traced option
        return tuple(not jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in start.out_avals)
    with jax.ensure_compile_time_eval():
        leaves = jax.tree.leaves(weighting.init(num_losses))
    is_inexact = [jnp.issubdtype(dtype_of(leaf), jnp.inexact) for leaf in leaves]
    return tuple(
        not inexact or bool(np.all(np.isfinite(leaf)))
        for leaf, inexact in zip(leaves, is_inexact, strict=True)
    )


def _has_loops(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name in ("while", "scan", "cond")
        or any(map(_has_loops, inner_jaxprs(equation.params)))
        for equation in jaxpr.eqns
    )
