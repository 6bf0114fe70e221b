"""Which mistake has brought lazy gradients to where arrays are wanted."""

import itertools
import pathlib
import traceback
from typing import NoReturn

# What a part of a file's path on the call stack says of it, the first that is found.
_WRAPPERS = {
    "optax/transforms/_accumulation.py:update:": "inside `MultiSteps`",
    "optax/transforms/_conditionality.py": "inside `apply_if_finite` or `conditionally_transform`",
    "optax/transforms/_masking.py": "inside `masked` or `partition`",
    "optax/transforms/_layouts.py": "inside `flatten`",
    "optax/contrib/": "inside a wrapper of `optax.contrib`",
}
_BORDERS = {
    "equinox/_jit.py": "`filter_jit`",
    "equinox/_vmap_pmap.py": "`filter_vmap`",
    "jax/_src/pjit.py": "`jit`",
    "jax/_src/api.py": "`jit`, `vmap` or `pmap`",
    "jax/_src/lax/control_flow/": "`scan`, `cond` or a loop",
    "jax/_src/shard_map.py": "`shard_map`",
    "jax/experimental/shard_map.py": "`shard_map`",
}
_FLAX = ("flax/training/train_state.py", "flax/nnx/training/")
_LIBRARIES = ("/jax/", "/optax/", "/flax/", "/equinox/")


def refuse_to_flatten(*args: object) -> NoReturn:
    """Raises for lazy gradients that are used as a tree of arrays."""
    del args
    raise TypeError(
        "`ComponentGrads` should go to a weighting, such as `softadapt` or `balance`, got a use "
        f"of them as a tree of arrays. Likely cause: {_cause(_calls_of_libraries())}"
    )


def _calls_of_libraries() -> list[str]:
    """Files and functions on the stack, from the innermost to what called into a library."""
    frames = reversed(traceback.extract_stack())
    calls = [f"{pathlib.PurePath(frame.filename).as_posix()}:{frame.name}:" for frame in frames]
    of_others = itertools.dropwhile(_is_own, calls)
    return list(itertools.takewhile(_is_library, of_others))


def _is_own(call: str) -> bool:
    """Whether it is a call in this file, or of a decorator around one."""
    return call.startswith("<") or any(part in call for part in ("_misuse.py", "/jaxtyping/"))


def _is_library(call: str) -> bool:
    return any(part in call for part in _LIBRARIES)


def _cause(calls: list[str]) -> str:
    if any(part in call for call in calls for part in _FLAX):
        return (
            "they are given to Flax's own `TrainState` or `nnx.Optimizer`; those of "
            "`softadapt_optax.flax` take them."
        )
    for part, where in _WRAPPERS.items():
        if any(part in call for call in calls):
            return (
                f"the weighting is {where}; put it first in the chain and wrap the optimizer "
                "behind it instead. Two weightings for two groups of parameters are two "
                "transformations, called one after the other."
            )
    if any("/optax/" in call for call in calls):
        return (
            "the weighting is missing, or is not first in its chain: a transformation of Optax "
            "that wants the gradients of one loss, such as clipping or an optimizer, got them "
            "first."
        )
    for part, border in _BORDERS.items():
        if any(part in call for call in calls):
            return (
                f"they cross the border of {border}; keep `value_and_component_grads` and "
                "`update` in the same function, or let `.stack()` cross it, which gives arrays."
            )
    if not calls:
        return (
            "they cross the border of `jit`; keep `value_and_component_grads` and `update` in the "
            "same function, or let `.stack()` cross it, which gives arrays."
        )
    return (
        "a function of trees, such as `jax.tree.map`, is called with them; `.stack()` gives the K "
        "gradients as arrays, `.combine(weights)` their weighted sum."
    )
