"""Live weights for losses with several parts, as Optax transformations."""

from softadapt_optax._balance import balance as balance
from softadapt_optax._component_grads import ComponentGrads as ComponentGrads
from softadapt_optax._components import value_and_component_grads as value_and_component_grads
from softadapt_optax._diagnostics import diagnostics as diagnostics
from softadapt_optax._diagnostics import loss_weights as loss_weights
from softadapt_optax._gradients.aligned_mtl import aligned_mtl as aligned_mtl
from softadapt_optax._gradients.cagrad import cagrad as cagrad
from softadapt_optax._gradients.conflict_free import conflict_free as conflict_free
from softadapt_optax._gradients.dual_proj import dual_proj as dual_proj
from softadapt_optax._gradients.fairgrad import fairgrad as fairgrad
from softadapt_optax._gradients.gradnorm import GradNormState as GradNormState
from softadapt_optax._gradients.gradnorm import gradnorm as gradnorm
from softadapt_optax._gradients.gradvac import GradVacState as GradVacState
from softadapt_optax._gradients.gradvac import gradvac as gradvac
from softadapt_optax._gradients.hypergradient import HypergradientState as HypergradientState
from softadapt_optax._gradients.hypergradient import hypergradient as hypergradient
from softadapt_optax._gradients.imtl_g import imtl_g as imtl_g
from softadapt_optax._gradients.lr_annealing import LRAnnealingState as LRAnnealingState
from softadapt_optax._gradients.lr_annealing import lr_annealing as lr_annealing
from softadapt_optax._gradients.mgda import mgda as mgda
from softadapt_optax._gradients.nash_mtl import nash_mtl as nash_mtl
from softadapt_optax._gradients.normalized_gradients import (
    NormalizedGradientsState as NormalizedGradientsState,
)
from softadapt_optax._gradients.normalized_gradients import (
    normalized_gradients as normalized_gradients,
)
from softadapt_optax._gradients.ntk_weights import ntk_weights as ntk_weights
from softadapt_optax._gradients.pcgrad import PCGradState as PCGradState
from softadapt_optax._gradients.pcgrad import pcgrad as pcgrad
from softadapt_optax._gradients.upgrad import upgrad as upgrad
from softadapt_optax._losses.causal_weights import causal_weights as causal_weights
from softadapt_optax._losses.cov_weighting import CoVWeightingState as CoVWeightingState
from softadapt_optax._losses.cov_weighting import cov_weighting as cov_weighting
from softadapt_optax._losses.dwa import DWAState as DWAState
from softadapt_optax._losses.dwa import dwa as dwa
from softadapt_optax._losses.famo import FAMOState as FAMOState
from softadapt_optax._losses.famo import famo as famo
from softadapt_optax._losses.fixed_weights import fixed_weights as fixed_weights
from softadapt_optax._losses.gls import gls as gls
from softadapt_optax._losses.initial_loss import InitialLossState as InitialLossState
from softadapt_optax._losses.initial_loss import initial_loss as initial_loss
from softadapt_optax._losses.learned_weights import LearnedWeightsState as LearnedWeightsState
from softadapt_optax._losses.learned_weights import learned_weights as learned_weights
from softadapt_optax._losses.prior_loss import cross_entropy_prior as cross_entropy_prior
from softadapt_optax._losses.prior_loss import prior_loss as prior_loss
from softadapt_optax._losses.prior_loss import squared_error_prior as squared_error_prior
from softadapt_optax._losses.realtime_loss import realtime_loss as realtime_loss
from softadapt_optax._losses.relobralo import ReLoBRaLoState as ReLoBRaLoState
from softadapt_optax._losses.relobralo import relobralo as relobralo
from softadapt_optax._losses.rlw import RLWState as RLWState
from softadapt_optax._losses.rlw import rlw as rlw
from softadapt_optax._losses.softadapt import SoftAdaptState as SoftAdaptState
from softadapt_optax._losses.softadapt import softadapt as softadapt
from softadapt_optax._losses.stch import stch as stch
from softadapt_optax._losses.uncertainty import UncertaintyState as UncertaintyState
from softadapt_optax._losses.uncertainty import uncertainty as uncertainty
from softadapt_optax._ntk import ntk_trace as ntk_trace
from softadapt_optax._state import BalanceState as BalanceState
from softadapt_optax._weighting import Components as Components
from softadapt_optax._weighting import Weighting as Weighting

__version__ = "0.2.0"

__all__ = [
    "BalanceState",
    "CoVWeightingState",
    "ComponentGrads",
    "Components",
    "DWAState",
    "FAMOState",
    "GradNormState",
    "GradVacState",
    "HypergradientState",
    "InitialLossState",
    "LRAnnealingState",
    "LearnedWeightsState",
    "NormalizedGradientsState",
    "PCGradState",
    "RLWState",
    "ReLoBRaLoState",
    "SoftAdaptState",
    "UncertaintyState",
    "Weighting",
    "aligned_mtl",
    "balance",
    "cagrad",
    "causal_weights",
    "conflict_free",
    "cov_weighting",
    "cross_entropy_prior",
    "diagnostics",
    "dual_proj",
    "dwa",
    "fairgrad",
    "famo",
    "fixed_weights",
    "gls",
    "gradnorm",
    "gradvac",
    "hypergradient",
    "imtl_g",
    "initial_loss",
    "learned_weights",
    "loss_weights",
    "lr_annealing",
    "mgda",
    "nash_mtl",
    "normalized_gradients",
    "ntk_trace",
    "ntk_weights",
    "pcgrad",
    "prior_loss",
    "realtime_loss",
    "relobralo",
    "rlw",
    "softadapt",
    "squared_error_prior",
    "stch",
    "uncertainty",
    "upgrad",
    "value_and_component_grads",
]
