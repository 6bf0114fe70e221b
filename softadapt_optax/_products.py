"""Sums and inner products of K gradients: memory, precision, sharding."""

import collections
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

# Products of gradients are written out one by one for up to so many losses. Beyond, stacks of
# gradients are multiplied: their K (K + 1) / 2 products would take long to compile.
_MOST_UNROLLED = 16

# Those of one leaf that are summed in one pass over memory.
_AT_ONCE = 12


def gramian_of(rows: Sequence[Sequence[Array]], zeros: Collection[int] = ()) -> Float[Array, "K K"]:
    """The inner products of all pairs of K rows of leaves.

    Args:
      rows: the leaves of each gradient.
      zeros: the `id` of each leaf that is zero whatever the parameters are: of these no product
        is formed, which would take time to compile.
    """
    if len(rows) > _MOST_UNROLLED:
        return _matrix_products(rows, zeros)
    pairs = list(itertools.combinations_with_replacement(range(len(rows)), 2))
    products = dict(zip(pairs, _inner_products(rows, pairs, zeros), strict=True))
    columns = [
        jnp.stack([products[min(i, j), max(i, j)] for i in range(len(rows))])
        for j in range(len(rows))
    ]
    return jnp.stack(columns, axis=1)


def squared_norms_of(
    rows: Sequence[Sequence[Array]], zeros: Collection[int] = ()
) -> Float[Array, " K"]:
    """The squared norms of K rows of leaves; the arguments are those of `gramian_of`."""
    return jnp.stack(_inner_products(rows, [(k, k) for k in range(len(rows))], zeros))


def weighted_sum(weights: Float[Array, " K"], each: Sequence[PyTree]) -> PyTree:
    def leaf_sum(*leaves: Array) -> Array:
        wide = [_at_least_float32(leaf) for leaf in leaves]
        factors = weights.astype(wide[0].dtype)
        if len(wide) > _MOST_UNROLLED:
            total = jnp.tensordot(factors, jnp.stack(wide), 1, precision="highest")
        else:
            # Written out over k it fuses into the optimizer behind; `tensordot` does not.
            pairs = zip(jnp.unstack(factors), wide, strict=True)
            total = functools.reduce(operator.add, [factor * leaf for factor, leaf in pairs])
        return total.astype(leaves[0].dtype)

    return jax.tree.map(leaf_sum, *each)


def _inner_products(
    rows: Sequence[Sequence[Array]], pairs: Sequence[tuple[int, int]], zeros: Collection[int]
) -> list[Float[Array, ""]]:
    """The inner products of pairs of rows of leaves, several of them in one pass over memory.

    A sum over all axes at once can add millions of float32 terms in sequence on the CPU and lose
    half of the digits: here it is one axis at a time.
    """
    totals = {pair: jnp.zeros((), dtype=float) for pair in pairs}
    for leaves in zip(*rows, strict=True):
        wide = {
            k: jnp.atleast_1d(_at_least_float32(leaf))
            for k, leaf in enumerate(leaves)
            if id(leaf) not in zeros
        }
        present = [(i, j) for i, j in pairs if i in wide and j in wide]
        for start in range(0, len(present), _AT_ONCE):
            group = present[start : start + _AT_ONCE]
            for pair, product in zip(group, _leaf_products(wide, group), strict=True):
                totals[pair] += product.astype(totals[pair].dtype)
    return list(totals.values())


def _leaf_products(leaves: dict[int, Array], pairs: Sequence[tuple[int, int]]) -> list[Array]:
    """A sum of several arrays at once reads each leaf once instead of once for each of its pairs.

    But XLA does not partition it: it gathers what is sharded along the axis that is summed. So
    in large leaves that is an axis of 16 to 32, split from the last one so that 16 devices can
    share what is left of it; leaves where this cannot be are summed one by one.
    """
    long, small = 256, 4096
    leaf = leaves[pairs[0][0]]
    *outer, length = leaf.shape
    at_once = max(1, min(32, length // 16))
    if _spec(leaf)[-1] is not None:
        is_one_pass = False
    elif length >= long and length % at_once == 0:
        shape = (*outer, length // at_once, at_once)
        leaves = {k: leaf.reshape(shape) for k, leaf in leaves.items()}
        is_one_pass = True
    else:
        is_one_pass = leaf.size <= small
    products = [(leaves[i] * leaves[j].conj()).real for i, j in pairs]
    by_row = _sums_in_one_pass(products) if is_one_pass else _sums(products)
    return [jnp.sum(sums) for sums in by_row]


def _sums(products: Sequence[Array]) -> list[Array]:
    return [jnp.sum(product, axis=-1) for product in products]


@jax.custom_jvp
def _sums_in_one_pass(products: list[Array]) -> list[Array]:
    """The same sums; JAX cannot differentiate this form where one product has no tangent."""
    # XLA would compute sums of constants, as zeros are, while it compiles, which can take minutes:
    # it must not know with what they begin.
    zeros = jax.lax.optimization_barrier(  # type: ignore[no-untyped-call]
        [jnp.zeros((), product.dtype) for product in products]
    )
    return list(jax.lax.reduce(products, zeros, _add_each, (products[0].ndim - 1,)))


@_sums_in_one_pass.defjvp
def _sums_in_one_pass_jvp(
    primals: tuple[list[Array]], tangents: tuple[list[Array]]
) -> tuple[list[Array], list[Array]]:
    return _sums_in_one_pass(*primals), _sums(*tangents)


def _add_each(first: Sequence[Array], second: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(map(operator.add, first, second))


def _matrix_products(
    rows: Sequence[Sequence[Array]], zeros: Collection[int]
) -> Float[Array, "K K"]:
    """The inner products of all pairs of rows of leaves, as products of matrices."""
    sums: dict[tuple[int, ...], Array] = {}  # by the rows in which a leaf is not zero
    for leaves in zip(*rows, strict=True):
        present = tuple(k for k, leaf in enumerate(leaves) if id(leaf) not in zeros)
        if present:
            products = _leaf_matrix_products([leaves[k] for k in present]).astype(float)
            sums[present] = sums[present] + products if present in sums else products
    total = jnp.zeros((len(rows), len(rows)), dtype=float)
    for present, products in sums.items():
        total = total.at[np.ix_(present, present)].add(products)
    return total


def _leaf_matrix_products(leaves: Sequence[Array]) -> Float[Array, "K K"]:
    """One for each entry of the first axis, or for each block of it, and their sum.

    Blocks where the entry is less than a row of the result; XLA partitions a sum over axes of the
    leaf, and no flattened ones.
    """
    stacked = jnp.stack([jnp.atleast_1d(_at_least_float32(leaf)) for leaf in leaves])
    num_rows, length, *inner = stacked.shape
    block = 1
    if math.prod(inner) < num_rows:
        block = math.gcd(length, 4096) if _spec(stacked)[1] is None else length
    if block * math.prod(inner) < num_rows:
        block = max(length, 1)
    blocks = stacked.reshape(num_rows, length // block, block, *inner)
    summed = tuple(range(2, blocks.ndim))
    products = jax.lax.dot_general(
        blocks,
        blocks.conj(),
        ((summed, summed), ((1,), (1,))),
        precision="highest",
        out_sharding=_sharding_of_batch(blocks, axis=1),
    )
    return jnp.sum(products.real, axis=0)


def _spec(array: Array) -> tuple[Any, ...]:
    """How each axis is sharded, as far as the type tells: on a mesh with explicit axes."""
    return tuple(jax.typeof(array).sharding.spec)


def _sharding_of_batch(array: Array, axis: int) -> jax.sharding.NamedSharding | None:
    """For products over the other axes, which on a mesh with explicit axes have to be told."""
    if not any(_spec(array)):
        return None
    spec = jax.sharding.PartitionSpec(_spec(array)[axis], None, None)  # type: ignore[no-untyped-call]
    return jax.sharding.NamedSharding(jax.typeof(array).sharding.mesh, spec)


def _at_least_float32(array: Array) -> Array:
    is_wide = jnp.issubdtype(array.dtype, jnp.inexact) and array.dtype.itemsize >= 4
    return array if is_wide else array.astype(jnp.float32)


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
    """

    uses: list[Use]
    residual_nbytes: int

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
    uses = [
        Use(
            counts=tuple(sum(results & bit > 0 for results, _ in of_leaf) for bit in bits),
            places=frozenset(id(equation) for _, equation in of_leaf),
            nbytes=leaf.nbytes,
            term_nbytes=max((_term_nbytes(leaf, equation) for _, equation in of_leaf), default=0),
        )
        for leaf, of_leaf in zip(leaves, _uses(jaxpr, bits), strict=True)
    ]
    consts = zip(jaxpr.constvars, closed.consts, strict=True)
    residuals = sum(_nbytes(variable) for variable, const in consts if id(const) not in own)
    recomputed = _recomputed_nbytes(jaxpr, [True] * len(leaves))
    return Account(uses, residuals + len(bits) * recomputed)


# What their results depend on is asked of the program within.
_CHECKPOINTS = frozenset({"checkpoint", "remat2"})
_CALLS = _CHECKPOINTS | {"jit", "pjit", "closed_call", "core_call", "shard_map"}


def _uses(jaxpr: Any, results: Sequence[int]) -> list[list[tuple[int, Any]]]:
    """Each use of each argument: the results that depend on it, as bits, and the equation."""
    uses: dict[int, list[tuple[int, Any]]] = collections.defaultdict(list)
    for variable, bits in zip(jaxpr.outvars, results, strict=True):
        uses[id(variable)].append((bits, None))
    for equation in reversed(jaxpr.eqns):
        ends = [
            functools.reduce(operator.or_, [bits for bits, _ in uses[id(variable)]], 0)
            for variable in equation.outvars
        ]
        if equation.primitive.name in _CALLS:
            found = _uses(_inner(equation), ends)
        else:
            found = [[(functools.reduce(operator.or_, ends, 0), equation)]] * len(equation.invars)
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
