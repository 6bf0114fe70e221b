"""What is known of K gradients before there are any, and whether to form them one at a time."""

import collections
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from softadapt_optax._products import MOST_SMALL


@dataclasses.dataclass(frozen=True)
class Use:
    """How K losses use a leaf of the parameters.

    Attributes:
      counts: how often each loss does: of so many terms its gradient is the sum, and of none it
        is zero whatever the parameters are.
      places: the equations that do; what a loop uses has its gradients when the loop has ended.
      nbytes: of the gradient.
      term_nbytes: of one term, in the dtype in which it is computed.
    """

    counts: tuple[int, ...]
    places: frozenset[int] = frozenset()
    nbytes: int = 0
    term_nbytes: int = 0


class Account(NamedTuple):
    """What is known of K gradients before there are any.

    Attributes:
      uses: of each leaf.
      residual_nbytes: what the backward passes take from the forward pass, parameters aside.
      is_common: whether what costs time, products of matrices, convolutions and loops, is all on
        the way to all losses.
      is_vectorized: whether they are formed together, by one backward pass under ``jax.vmap``;
        None for on GPU and TPU alone.
    """

    uses: list[Use]
    residual_nbytes: int
    is_common: bool
    is_vectorized: bool | None = False

    @property
    def gains_by_vmap(self) -> bool:
        """Whether K backward passes in one do nothing in vain, and each is small."""
        num_losses = len(self.uses[0].counts)
        nbytes = num_losses * (self.residual_nbytes + sum(use.nbytes for use in self.uses))
        return self.is_common and nbytes <= MOST_SMALL

    def reordered(self, order: Sequence[int]) -> "Account":
        """That of the same losses in another order."""
        counts = [tuple(use.counts[k] for k in order) for use in self.uses]
        pairs = zip(self.uses, counts, strict=True)
        return self._replace(uses=[dataclasses.replace(use, counts=c) for use, c in pairs])


def account_of(pushforward: Callable[[list[Array]], list[Array]], leaves: list[Array]) -> Account:
    """The account of K gradients, from the program that takes tangents of leaves to K numbers."""
    closed = jax.make_jaxpr(pushforward)(leaves)
    jaxpr, own = closed.jaxpr, set(map(id, leaves))
    bits = [1 << k for k in range(len(jaxpr.outvars))]
    all_uses: list[tuple[int, Any]] = []
    found = _uses(jaxpr, bits, all_uses)
    dear = [bits for bits, equation in all_uses if equation.primitive.name in _DEAR]
    uses = [
        Use(
            counts=tuple(sum(results & bit > 0 for results, _ in of_leaf) for bit in bits),
            places=frozenset(id(equation) for _, equation in of_leaf),
            nbytes=leaf.nbytes,
            term_nbytes=max((_term_nbytes(leaf, equation) for _, equation in of_leaf), default=0),
        )
        for leaf, of_leaf in zip(leaves, found, strict=True)
    ]
    consts = zip(jaxpr.constvars, closed.consts, strict=True)
    residuals = sum(_nbytes(variable) for variable, const in consts if id(const) not in own)
    recomputed = _recomputed_nbytes(jaxpr, [True] * len(leaves))
    return Account(uses, residuals + len(bits) * recomputed, set(dear) <= {0, sum(bits)})


# What their results depend on is asked of the program within.
_CHECKPOINTS = frozenset({"checkpoint", "remat2"})
_CALLS = _CHECKPOINTS | {"jit", "pjit", "closed_call", "core_call", "shard_map"}
_DEAR = frozenset({"dot_general", "conv_general_dilated", "scan", "while", "cond"})


def _uses(
    jaxpr: Any, results: Sequence[int], all_uses: list[tuple[int, Any]]
) -> list[list[tuple[int, Any]]]:
    """Each use of each argument: the results that depend on it, as bits, and the equation.

    Those of all other variables are added to ``all_uses``.
    """
    uses: dict[int, list[tuple[int, Any]]] = collections.defaultdict(list)
    for variable, bits in zip(jaxpr.outvars, results, strict=True):
        uses[id(variable)].append((bits, None))
    for equation in reversed(jaxpr.eqns):
        ends = [
            functools.reduce(operator.or_, [bits for bits, _ in uses[id(variable)]], 0)
            for variable in equation.outvars
        ]
        if equation.primitive.name in _CALLS:
            found = _uses(_inner(equation), ends, all_uses)
        else:
            use = (functools.reduce(operator.or_, ends, 0), equation)
            found = [[use]] * len(equation.invars)
            all_uses.append(use)
        for variable, of_operand in zip(equation.invars, found, strict=True):
            uses[id(variable)] += [use for use in of_operand if use[0]]
    return [uses[id(variable)] for variable in jaxpr.invars]


def _recomputed_nbytes(jaxpr: Any, is_linear: Sequence[bool]) -> int:
    """What the largest checkpoint computes again for its backward pass.

    Args:
      jaxpr: a program that is linear in some of its arguments.
      is_linear: in which.
    """
    linear = {id(v) for v, flag in zip(jaxpr.invars, is_linear, strict=True) if flag}
    largest = 0
    for equation in jaxpr.eqns:
        flags = [id(variable) in linear for variable in equation.invars]
        if not any(flags):
            continue
        linear.update(map(id, equation.outvars))
        name = equation.primitive.name
        if name in _CALLS:
            nbytes = _nbytes_for_linear if name in _CHECKPOINTS else _recomputed_nbytes
            largest = max(largest, nbytes(_inner(equation), flags))
    return largest


def _nbytes_for_linear(jaxpr: Any, is_linear: Sequence[bool]) -> int:
    """What such a program computes from its other arguments for what is linear."""
    linear = {id(v) for v, flag in zip(jaxpr.invars, is_linear, strict=True) if flag}
    sizes: dict[int, int] = {}
    taken: set[int] = set()
    for equation in jaxpr.eqns:
        operands = set(map(id, equation.invars))
        if operands & linear:
            linear.update(map(id, equation.outvars))
            taken |= operands
        else:
            sizes |= {id(variable): _nbytes(variable) for variable in equation.outvars}
    return sum(sizes.get(operand, 0) for operand in taken)


def _inner(equation: Any) -> Any:
    jaxpr = equation.params["jaxpr"]
    return getattr(jaxpr, "jaxpr", jaxpr)


def _nbytes(variable: Any) -> int:
    return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize


def _term_nbytes(leaf: Array, equation: Any) -> int:
    """Of what comes from where a leaf is used: that is smaller where it is cast."""
    if equation is not None and equation.primitive.name == "convert_element_type":
        return min(leaf.nbytes, _nbytes(equation.outvars[0]))
    return leaf.nbytes


def frees_memory(uses: Sequence[Use], residual_nbytes: int) -> bool:
    """Whether to let go of K gradients frees more than another backward pass takes.

    In their place it holds what the forward pass left, h, the gradients that come from one place,
    and all terms of those that are sums: to form products XLA may wait for the last term.
    """
    kept = sum(use.term_nbytes * sum(map(bool, use.counts)) for use in uses)
    h = sum(use.nbytes * max(use.counts) for use in uses)
    of_sums = 0
    of_place: dict[int, int] = collections.defaultdict(int)
    for use in uses:
        terms = use.term_nbytes * sum(use.counts)
        of_sums += terms if max(use.counts) > 1 else 0
        for place in use.places:
            of_place[place] += terms
    return kept > residual_nbytes + h + of_sums + max(of_place.values(), default=0)
