"""The rows of the evidence: methods with their arguments."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import softadapt_optax as sa
from benchmarks import methods, versions
from benchmarks.problems import TRACES_EVERY, Make, Problem, Setting

PLAIN, FIXED = "plain sum", "best fixed weights"
QUICK = (PLAIN, FIXED, "softadapt, loss weighted", "normalized_gradients")  # what is run then


# The methods.


class Method(NamedTuple):
    """A factory of the library with its arguments; those that are not given are its defaults.

    Arguments that depend on the problem are named in `of_setting`, by what a Setting has; `first`
    is the first argument, where it is not the number of losses. `suites` are those in which the row
    is, None for all.
    """

    factory: str
    options: Mapping[str, Any] = MappingProxyType({})
    of_setting: Mapping[str, str] = MappingProxyType({})
    first: str | None = None
    suites: tuple[str, ...] | None = None

    @property
    def needs_gradients(self) -> bool:
        """Whether a step needs a gradient for each loss."""
        return self.factory not in methods.ON_LOSSES

    @property
    def make(self) -> Make:
        return functools.partial(made, self)

    def applies_to(self, problem: Problem) -> bool:
        return (
            (problem.has_priors or self.factory != "prior_loss")
            and (problem.is_ordered or self.factory != "causal_weights")
            and (self.suites is None or problem.suite in self.suites)
        )


def made(method: Method, setting: Setting) -> Any:
    options = dict(method.options)
    options |= {key: getattr(setting, name) for key, name in method.of_setting.items()}
    if method.first is not None:
        return getattr(sa, method.factory)(getattr(setting, method.first), **options)
    of_problem = {"shared": setting.shared, "reference": setting.reference}
    return methods.make(method.factory, setting.num_losses, **of_problem, **options)


# It wants a target, which is another study: `python -m benchmarks.targets`.
LEFT_OUT = ("hypergradient",)
PHYSICS = ("physics",)


METHODS = {
    PLAIN: Method("fixed_weights", first="ones"),
    FIXED: Method("fixed_weights", first="weights"),
    **{
        name: Method(name)
        for name in methods.ALL
        if name not in ("fixed_weights", *methods.WITH_MORE)
    },
    "prior_loss": Method("prior_loss", first="prior_losses"),
    "learned_weights": Method("learned_weights", of_setting={"temperature": "largest_first_loss"}),
    "softadapt, loss weighted": Method("softadapt", {"loss_weighted": True}),
    "softadapt, rates as in PhysicsNeMo": Method(
        "softadapt", {"beta": 1.0, "history": 2, "rate": "relative"}, suites=PHYSICS
    ),
    "lr_annealing, norms, every=100": Method(
        "lr_annealing", {"statistic": "norm", "every": 100}, suites=PHYSICS
    ),
    "gradnorm, alpha=1": Method("gradnorm", {"alpha": 1.0}, suites=PHYSICS),
    "causal_weights, epsilon=100, first loss 100": Method(
        "causal_weights", {"epsilon": 100.0}, {"priorities": "first_at_100"}, suites=PHYSICS
    ),
    f"ntk_weights, every={TRACES_EVERY}": Method(
        "ntk_weights", {"every": TRACES_EVERY}, suites=PHYSICS
    ),
}


def rows_of(problem: Problem, quick: bool) -> list[str]:
    names = [name for name in METHODS if name in QUICK or not quick]
    return [name for name in names if METHODS[name].applies_to(problem)]


def version_of(problem: Problem, name: str) -> str:
    """Of the code and the settings on which a row's figures rest."""
    method = METHODS[name]
    load = problem.load.func if isinstance(problem.load, functools.partial) else problem.load
    factory = getattr(sa, method.factory).__module__
    modules = (load.__module__, factory, "benchmarks.tuned")
    words = ("setting", "metric", "beside", "written", "is_logarithmic", "load", "suite")
    settings = {key: value for key, value in problem._asdict().items() if key not in words}
    return versions.version_of(modules, (name, method[:-1], settings))
