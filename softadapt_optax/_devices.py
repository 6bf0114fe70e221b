"""Named axes of devices: over which of them arrays differ, and over which losses were averaged.

Inside `jax.shard_map` the type of an array says over which axes of devices it differs, and JAX
adds up the gradients of what differs for parameters that do not. `jax.pmap`,
`shard_map(check_vma=False)` and `vmap(axis_name=...)` have named axes too, but no such types.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core
from jaxtyping import Array, ArrayLike, Bool, PyTree

Axes = frozenset[Hashable]


def axes_of(tree: PyTree) -> Axes:
    """The axes of devices over which arrays differ, as far as their types tell."""
    axes: Axes = frozenset()
    for leaf in jax.tree.leaves(tree):
        array_type = jax.typeof(leaf)
        if hasattr(array_type, "mat"):  # since JAX 0.10
            axes |= array_type.mat.varying
        else:
            axes |= getattr(array_type, "vma", frozenset())
    return axes


def spread(tree: PyTree, axes: Axes) -> PyTree:
    """The same arrays, typed as if they differed over these axes too.

    Its transpose, in the backward pass, adds up what the devices have.
    """

    def spread_leaf(leaf: ArrayLike) -> ArrayLike:
        missing = _listed(axes - axes_of(leaf))
        if not missing:
            return leaf
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(leaf, missing, to="varying")
        return jax.lax.pvary(leaf, missing)  # type: ignore[attr-defined]

    return jax.tree.map(spread_leaf, tree)


def summed_over_pieces(
    products_of: Callable[[list[list[Array]]], Array], rows: list[list[Array]], losses: Array
) -> Array:
    """Products of K gradients, each the sum over its leaves.

    Where a leaf differs between devices and the losses do not, each device has a piece of it: its
    products are the sum over them.
    """
    missing = [axes_of(leaves) - axes_of(losses) for leaves in zip(*rows, strict=True)]
    if not any(missing):
        return products_of(rows)

    def part(axes: Axes) -> Array:
        kept = [over == axes for over in missing]
        return summed_over(axes, products_of([list(itertools.compress(row, kept)) for row in rows]))

    return functools.reduce(operator.add, map(part, dict.fromkeys(missing)))


def summed_over(axes: Axes, array: Array) -> Array:
    """The sum of what the devices have along these axes."""
    if not axes:
        return array
    return jax.lax.psum(spread(array, axes), _listed(axes))  # type: ignore[no-untyped-call]


def largest_over(axes: Axes, array: Array) -> Array:
    """The largest of what the devices have along these axes."""
    return jax.lax.pmax(array, _listed(axes)) if axes else array  # type: ignore[no-untyped-call]


def cond(
    condition: Bool[Array, ""], true_fn: Callable[[], PyTree], false_fn: Callable[[], PyTree]
) -> PyTree:
    """`jax.lax.cond` of branches whose results may differ over different axes of devices."""
    if not any(_is_typed(axis) for axis in _named_axes()):
        return jax.lax.cond(condition, true_fn, false_fn)
    pairs = zip(_axes_of_result(true_fn), _axes_of_result(false_fn), strict=True)
    axes = [axes_of(condition).union(*pair) for pair in pairs]

    def spread_result(branch: Callable[[], PyTree]) -> PyTree:
        leaves, structure = jax.tree.flatten(branch())
        return jax.tree.unflatten(structure, map(spread, leaves, axes))

    return jax.lax.cond(condition, lambda: spread_result(true_fn), lambda: spread_result(false_fn))


def one_of(
    is_true: bool | None,
    true_fn: Callable[[], PyTree],
    false_fn: Callable[[], PyTree],
    arrays: Sequence[Array],
) -> PyTree:
    """The result of one of two functions; if it is None, of the first on GPU and TPU alone.

    The arrays say where that is. While they are traced it is decided when the program is lowered.
    """
    if is_true is not None:
        return true_fn() if is_true else false_fn()
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return jax.lax.platform_dependent(cuda=true_fn, rocm=true_fn, tpu=true_fn, default=false_fn)
    platforms = {device.platform for array in arrays for device in array.devices()}
    return true_fn() if platforms & {"gpu", "tpu"} else false_fn()


def _axes_of_result(function: Callable[[], PyTree]) -> list[Axes]:
    """The axes over which each array of the result differs, by tracing the function once."""
    axes: list[Axes] = []

    def noted() -> PyTree:
        result = function()
        axes.extend(axes_of(leaf) for leaf in jax.tree.leaves(result))
        return result

    jax.eval_shape(noted)
    return axes


def refuse_averages(
    pushforward: Callable[[list[Array]], list[Array]], params: list[Array], names: Sequence[str]
) -> None:
    """Raises if losses were averaged over an axis of which types tell nothing.

    There the gradient of an average is that of each device's own share, on each device another
    one. Nothing tells whether the devices train one model or one each, so that it cannot be
    mended here.

    Args:
      pushforward: from tangents of the parameters to those of the K losses.
      params: the differentiated leaves.
      names: K names of the losses, for the message.
    """
    axes = frozenset(axis for axis in _named_axes() if not _is_typed(axis))
    if not axes:
        return
    jaxpr = jax.make_jaxpr(pushforward)(params).jaxpr
    averaged = _averaged(jaxpr, axes, len(names), [frozenset()] * len(params))
    for name, over in zip(names, averaged, strict=True):
        if over:
            axis = ", ".join(map(repr, _listed(over)))
            raise ValueError(
                "Where types do not say what differs between devices (`jax.pmap`, "
                "`vmap(axis_name=...)`, `shard_map(check_vma=False)`) the loss function should "
                f"return each device's own losses, got a mean or a sum over {axis} in the loss "
                f"{name}. Likely cause: `jax.lax.pmean` in it, of which each device would get "
                "another gradient, that of its own share. Average what it returns, `update(grads, "
                f"..., losses=jax.lax.pmean(losses, {axis}))`, and, if the devices train one "
                "model, the updates behind the weighting, `optax.stateless(lambda updates, params: "
                f"jax.lax.pmean(updates, {axis}))`; for a method that looks at gradients those in "
                f"front of it, `update(jax.lax.pmean(grads.stack(), {axis}), ...)`. Or use "
                "`jax.shard_map` with `check_vma` on, as it is by default."
            )


def _averaged(jaxpr: Any, axes: Axes, num_losses: int, inputs: Sequence[Axes]) -> list[Axes]:
    """Over which of the axes each result is a mean or a sum, or is made of single ones.

    Only of numbers, one or one for each loss, is it asked whether they are averages: statistics
    that are averaged on the way to a device's own losses, as in batch normalization, are vectors,
    or are combined with vectors of its own examples before they are added up.
    """
    over: dict[int, Axes] = dict(zip(map(id, jaxpr.invars), inputs, strict=True))
    for equation in jaxpr.eqns:
        operands = [over.get(id(variable), frozenset()) for variable in equation.invars]
        results = [frozenset().union(*operands)] * len(equation.outvars)
        for inner in inner_jaxprs(equation.params):
            own = operands[len(operands) - len(inner.invars) :]  # behind the index of a `cond`
            if len(own) == len(inner.invars) and len(inner.outvars) == len(results):
                found = _averaged(inner, axes, num_losses, own)
                results = [one | other for one, other in zip(results, found, strict=True)]
        if equation.primitive.name == "psum":
            results = [axes.intersection(equation.params["axes"])] * len(results)
        for variable, axes_of_result in zip(equation.outvars, results, strict=True):
            shape = variable.aval.shape
            if shape == () or (len(shape) == 1 and shape[0] <= num_losses):
                over[id(variable)] = axes_of_result
    return [over.get(id(variable), frozenset()) for variable in jaxpr.outvars]


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Those of a nested `jit`, `scan`, `cond` or checkpoint."""
    for param in params.values():
        for one in param if isinstance(param, tuple | list) else [param]:
            jaxpr = getattr(one, "jaxpr", one)
            if hasattr(jaxpr, "eqns") and hasattr(jaxpr, "invars"):
                yield jaxpr


def _listed(axes: Axes) -> tuple[Hashable, ...]:
    return tuple(sorted(axes, key=str))


def _is_typed(axis: Hashable) -> bool:
    return axis in axes_of(jax.lax.axis_index(axis))


def _named_axes() -> list[Hashable]:
    """The axes bound by `shard_map`, `pmap` or `vmap`; none where JAX does not tell."""
    for module in (jax.extend.core, jax.core):  # the latter until JAX 0.9
        names = getattr(module, "unsafe_get_axis_names_DO_NOT_USE", None)
        if names is not None:
            return list(names())
    return []
