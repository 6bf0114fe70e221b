"""Flax's training states, taking the gradients of several losses.

Imported only where asked for: ``from softadapt_optax.flax import TrainState``. It needs Flax.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

try:
    from flax import nnx
    from flax.training import train_state
except ImportError as error:
    raise ImportError(
        "`softadapt_optax.flax` needs Flax, which is not installed: `pip install flax`."
    ) from error

from softadapt_optax import _components
from softadapt_optax._arguments import check_pair
from softadapt_optax._component_grads import ComponentGrads
from softadapt_optax._updates import refuse_pair


class TrainState(train_state.TrainState):
    """``flax.training.train_state.TrainState``, for a ``tx`` that a weighting heads.

    All but ``apply_gradients`` is Flax's own: ``create``, ``replace``, serialization.

    Examples:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, optax, softadapt_optax as sa
      >>> from softadapt_optax.flax import TrainState
      >>> model, x = nn.Dense(1), jnp.ones((8, 3))
      >>> tx = optax.chain(sa.softadapt(num_losses=2), optax.adam(1e-2))
      >>> params = model.init(jax.random.key(0), x)
      >>> state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
      >>> @jax.jit
      ... def train_step(state, x):
      ...     def losses_fn(params):
      ...         y = state.apply_fn(params, x)
      ...         return {"fit": jnp.mean((y - 1.0) ** 2), "size": jnp.mean(jnp.abs(y))}
      ...     losses, grads = sa.value_and_component_grads(losses_fn)(state.params)
      ...     return state.apply_gradients(grads=grads), losses
      >>> state, losses = train_step(state, x)
      >>> int(state.step), sorted(sa.loss_weights(state.opt_state, like=losses))
      (1, ['fit', 'size'])
    """

    def apply_gradients(
        self,
        *,
        grads: PyTree,
        losses: PyTree | None = None,
        present: PyTree | None = None,
        target: PyTree | Callable[[PyTree], PyTree] | None = None,
        ntk_traces: PyTree | Callable[[PyTree], PyTree] | None = None,
        previous_losses: PyTree | None = None,
        **kwargs: Any,
    ) -> "TrainState":
        r"""One step of ``tx``, with what it needs to know of the losses.

        Args:
          grads: the :class:`ComponentGrads` of :func:`value_and_component_grads`; or stacked
            gradients, each leaf of shape [K, \*parameter shape], with ``losses`` beside them; or,
            for a ``tx`` without a weighting, plain gradients.
          losses: the K losses, an array or a pytree. Default: those of ``ComponentGrads``.
          present: for each loss whether it has data in this step; see :func:`balance`.
          target: the gradient of the loss that the weights follow, like the parameters, or a
            function of them that returns it; see :func:`balance`.
          ntk_traces: K numbers, or a function of the parameters that returns them, for
            :func:`ntk_weights`.
          previous_losses: what the losses of the last batch are at the parameters of now, for
            :func:`famo`.
          **kwargs: attributes to replace, as in Flax.

        Returns:
          The state after the step.

        Raises:
          TypeError: ``tx`` takes no lazy gradients, as it has no weighting.
          ValueError: the gradients are stacked and ``tx`` has no weighting, or ``losses`` are
            missing; what the weighting in ``tx`` raises.
        """
        given = {
            "losses": losses,
            "present": present,
            "target": target,
            "ntk_traces": ntk_traces,
            "previous_losses": previous_losses,
        }
        extra_args = {name: value for name, value in given.items() if value is not None}
        refuse_pair(grads)
        if not _has_lazy(grads) and not extra_args:
            _check_shapes(grads, self.params, "`losses` should be passed with stacked gradients")
            return super().apply_gradients(grads=grads, **kwargs)
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params, **extra_args)
        _check_shapes(updates, self.params, NO_WEIGHTING)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **kwargs)


def value_and_component_grads(
    losses_fn: Callable[..., Any], *, wrt: Any = nnx.Param, has_aux: bool = False
) -> Callable[..., Any]:
    """:func:`softadapt_optax.value_and_component_grads` for a function of an NNX module.

    As ``nnx.value_and_grad`` it differentiates with respect to the variables of the module that
    ``wrt`` selects, and what the function changes in the others (the statistics of a
    normalisation, the counts of random keys) stays changed in the module.

    Args:
      losses_fn: takes the module as its first argument and returns the K losses.
      wrt: an NNX filter, the same as that of the :class:`Optimizer`. Default: ``nnx.Param``.
      has_aux: whether ``losses_fn`` returns a pair ``(losses, aux)``. Default: no.

    Returns:
      A function of the arguments of ``losses_fn`` that returns ``(losses, grads)``, or
      ``((losses, aux), grads)``, with ``grads`` a :class:`ComponentGrads`.

    Raises:
      TypeError: the first argument has no such variables; also the errors of
        :func:`softadapt_optax.value_and_component_grads`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from softadapt_optax.flax import value_and_component_grads
      >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> def losses_fn(model, x):
      ...     return {"fit": jnp.mean((model(x) - 1.0) ** 2), "size": jnp.mean(jnp.abs(model(x)))}
      >>> losses, grads = value_and_component_grads(losses_fn)(model, jnp.ones((8, 3)))
      >>> grads.names
      ['fit', 'size']
    """

    def evaluate(model: Any, *args: Any, **kwargs: Any) -> Any:
        graph, params, rest = nnx.split(model, wrt, ...)
        if not jax.tree.leaves(params):
            raise TypeError(
                "The first argument should be an NNX module with variables that `wrt` selects, "
                f"{wrt}, got {type(model).__name__}. For the parameters of a Flax linen module use "
                "`softadapt_optax.value_and_component_grads`."
            )

        def pure_losses_fn(params: Any) -> Any:
            # Variables can only be changed where they were made: these are made here.
            inner = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))
            result = losses_fn(inner, *args, **kwargs)
            losses, aux = check_pair(result) if has_aux else (result, None)
            return losses, (aux, nnx.split(inner, wrt, ...)[2])

        (losses, (aux, rest_after)), grads = _components.value_and_component_grads(
            pure_losses_fn, has_aux=True
        )(params)
        nnx.update(model, rest_after)
        return ((losses, aux) if has_aux else losses), grads

    return evaluate


class Optimizer(nnx.Optimizer):
    """``flax.nnx.Optimizer``, for a ``tx`` that a weighting heads.

    All but ``update`` is Flax's own. What a method takes as ``shared`` is here a function of the
    state of the parameters; for those of the submodule ``trunk`` it is
    ``lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "trunk",
    params)``.

    Examples:
      >>> import jax.numpy as jnp, optax, softadapt_optax as sa
      >>> from flax import nnx
      >>> from softadapt_optax.flax import Optimizer, value_and_component_grads
      >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> tx = optax.chain(sa.softadapt(num_losses=2), optax.adam(1e-2))
      >>> optimizer = Optimizer(model, tx, wrt=nnx.Param)
      >>> def losses_fn(model, x):
      ...     y = model(x)
      ...     return {"fit": jnp.mean((y - 1.0) ** 2), "size": jnp.mean(jnp.abs(y))}
      >>> @nnx.jit
      ... def train_step(model, optimizer, x):
      ...     losses, grads = value_and_component_grads(losses_fn)(model, x)
      ...     optimizer.update(model, grads)
      ...     return losses
      >>> losses = train_step(model, optimizer, jnp.ones((8, 3)))
      >>> int(optimizer.step[...]), sorted(losses)
      (1, ['fit', 'size'])
    """

    def update(self, model: Any, grads: PyTree, /, **kwargs: Any) -> Any:
        r"""One step of ``tx``, which changes the model's parameters.

        Args:
          model: the NNX module.
          grads: the :class:`ComponentGrads` of :func:`value_and_component_grads` with respect to
            the ``nnx.State`` of the parameters; or stacked gradients of that structure, each leaf
            of shape [K, \*parameter shape], with ``losses`` beside them; or, for a ``tx`` without
            a weighting, plain gradients.
          **kwargs: for ``tx.update``, such as ``losses``, ``present`` or ``previous_losses``. The
            ``target`` of :func:`hypergradient` is the ``nnx.State`` that ``nnx.grad`` of a function
            of the module returns, or a function of the module that returns it, such as
            ``lambda model: nnx.grad(validation_loss)(model, x)``; the ``ntk_traces`` of
            :func:`ntk_weights` may be a function of the module too.

        Returns:
          What ``flax.nnx.Optimizer.update`` returns in this version of Flax.

        Raises:
          TypeError: the arguments are swapped, ``tx`` has no weighting, or ``grads`` are those of
            another function or the pair of losses and gradients.
          ValueError: ``grads`` are those of other variables, or stacked, and ``tx`` has no
            weighting; what the weighting in ``tx`` raises.
        """
        if isinstance(model, ComponentGrads):
            raise TypeError("`update` should get the model first, got `ComponentGrads` there.")
        refuse_pair(grads)
        tx = self.tx  # type: ignore[has-type]
        # Flax would take them apart too.
        of_model = {name: kwargs.pop(name, None) for name in ("target", "ntk_traces")}
        is_lazy = isinstance(grads, ComponentGrads)
        lazy_grads = grads.converted(_pure) if is_lazy else None

        def update(grads: Any, state: Any, params: Any, **extra_args: Any) -> Any:
            grads = lazy_grads if is_lazy else grads
            for name, value in of_model.items():
                if value is not None:
                    extra_args[name] = self._of_params(value, model, is_lazy)
            try:
                updates, state = tx.update(grads, state, params, **extra_args)
            except (TypeError, ValueError) as error:
                if is_lazy:
                    _check_filter(grads, params, error)
                raise
            _check_shapes(updates, params, NO_WEIGHTING)
            return updates, state

        # Flax takes gradients apart before `tx` sees them, which lazy ones forbid: it is given
        # the parameters in their place.
        self.tx = optax.GradientTransformationExtraArgs(tx.init, update)
        try:
            return super().update(model, nnx.state(model, self.wrt) if is_lazy else grads, **kwargs)
        finally:
            self.tx = tx

    def _of_params(self, value: Any, model: Any, is_lazy: bool) -> Any:
        """A target, say, as ``tx`` takes it, for a function of the module one of its parameters.

        Stacked gradients are arrays, lazy ones of variables.
        """

        def converted(found: Any) -> Any:
            return found if is_lazy or not isinstance(found, nnx.State) else _pure(found)

        if isinstance(value, nnx.State) or not callable(value):
            return converted(value)
        graph, *states = nnx.split(model, self.wrt, ...)

        def of_params(params: Any) -> Any:
            # Variables can only be changed where they were made, as in the loss function.
            inner = nnx.merge(graph, *(jax.tree.map(lambda leaf: leaf, state) for state in states))
            return converted(value(inner))

        return of_params


def _has_lazy(grads: PyTree) -> bool:
    """Also in a tree for a ``tx`` of one's own, with a weighting for each group of parameters."""
    leaves = jax.tree.leaves(grads, is_leaf=_is_lazy)
    return any(_is_lazy(leaf) for leaf in leaves)


def _is_lazy(leaf: Any) -> bool:
    return isinstance(leaf, ComponentGrads)


NO_WEIGHTING = "`tx` should have a weighting, such as `softadapt`, first in its chain"


def _check_shapes(updates: PyTree, params: PyTree, remedy: str) -> None:
    """Optax would broadcast the parameters to stacked updates."""
    shapes, expected = ([jnp.shape(leaf) for leaf in jax.tree.leaves(t)] for t in (updates, params))
    if shapes != expected:
        raise ValueError(
            f"{remedy}: the updates should have the shapes of the parameters, {expected}, got "
            f"{shapes}."
        )


def _check_filter(grads: ComponentGrads, params: PyTree, error: Exception) -> None:
    """Raises if lazy gradients are those of other variables than the optimizer's."""
    found = jax.eval_shape(grads.combine, jnp.ones_like(grads.losses))
    structures: list[Any] = [jax.tree.structure(tree) for tree in (found, params)]
    if structures[0] != structures[1]:
        raise ValueError(
            "The gradients should be those of the variables that the optimizer trains, "
            f"{structures[1]}, got {structures[0]}. Likely cause: another `wrt` in "
            "`value_and_component_grads` than in `Optimizer`."
        ) from error


def _pure(state: Any) -> Any:
    """Arrays in the place of Flax's variables, as `tx` sees the parameters."""
    if not isinstance(state, nnx.State):
        raise TypeError(
            "The gradients should be those of `softadapt_optax.flax.value_and_component_grads`, "
            f"got gradients of a {type(state).__name__}. Likely cause: the function of the same "
            "name in `softadapt_optax`, called with a module."
        )
    # Flax's own function for it has had three names.
    return jax.tree.map(lambda variable: variable[...], state, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
