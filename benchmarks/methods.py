"""The methods of the library, found in its rooms: what goes through all goes through new ones."""

import inspect
import pkgutil
from types import ModuleType
from typing import Any

import optax

import softadapt_optax as sa
from softadapt_optax import _gradients, _losses


def _in(room: ModuleType) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(room.__path__)]


# Each is a module with a factory of its name. The last two want more than losses and gradients.
WITH_MORE = ("hypergradient", "ntk_weights")
ON_LOSSES = _in(_losses)
ON_GRADIENTS = [name for name in _in(_gradients) if name not in WITH_MORE]
ON_NORMS = ("gradnorm", "lr_annealing", "normalized_gradients")  # of gradients or their entries
ON_GRAMIAN = [name for name in ON_GRADIENTS if name not in ON_NORMS]
ALL = [*ON_LOSSES, *ON_GRADIENTS, *WITH_MORE]
# Those whose weights may be negative.
SIGNED = ("aligned_mtl", "conflict_free", "imtl_g")


def make(name: str, num_losses: int, **options: Any) -> optax.GradientTransformationExtraArgs:
    """The method with its defaults but for those options that it has.

    Where it cannot do without, weights and prior losses are 1, and the first loss is the reference.
    """
    factory = getattr(sa, name)
    parameters = list(inspect.signature(factory).parameters)
    first = num_losses if parameters[0] == "num_losses" else [1.0] * num_losses
    options = {"reference": 0} | options
    return factory(first, **{key: options[key] for key in parameters if key in options})
