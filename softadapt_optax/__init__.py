"""Live weights for losses with several parts, as Optax transformations."""

from softadapt_optax._balance import BalanceState as BalanceState
from softadapt_optax._balance import Components as Components
from softadapt_optax._balance import Weighting as Weighting
from softadapt_optax._balance import balance as balance
from softadapt_optax._balance import loss_weights as loss_weights
from softadapt_optax._components import ComponentGrads as ComponentGrads
from softadapt_optax._components import value_and_component_grads as value_and_component_grads
from softadapt_optax._fixed_weights import fixed_weights as fixed_weights
from softadapt_optax._softadapt import SoftAdaptState as SoftAdaptState
from softadapt_optax._softadapt import softadapt as softadapt

__version__ = "0.1.0"

__all__ = [
    "BalanceState",
    "ComponentGrads",
    "Components",
    "SoftAdaptState",
    "Weighting",
    "balance",
    "fixed_weights",
    "loss_weights",
    "softadapt",
    "value_and_component_grads",
]
