"""Sums and inner products of K gradients: memory, precision, sharding."""

import functools
import itertools
import math
import operator
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from softadapt_optax._devices import Axes, axes_of, largest_over, summed_over
from softadapt_optax._reductions import diagonal_of

# Products of gradients are written out one by one for up to so many losses. Beyond, stacks of
# gradients are multiplied: their K (K + 1) / 2 products would take long to compile.
_MOST_UNROLLED = 16

# Bytes of K gradients up to which an accelerator is bound by the number of kernels.
MOST_SMALL = 2**26

# Products of one leaf that are summed in one pass over memory. On a GPU XLA puts those of a matrix
# that is stored by columns into shared memory, of which small GPUs have no room for more; the rest
# it does in the same pass where it can.
_AT_ONCE, _AT_ONCE_ON_ACCELERATOR = 12, 5


def gramian_of(
    rows: Sequence[Sequence[Array]], zeros: Collection[int] = (), on_accelerator: bool = False
) -> Float[Array, "K K"]:
    """The inner products of all pairs of K rows of leaves.

    Args:
      rows: the leaves of each gradient.
      zeros: the `id` of each leaf that is zero whatever the parameters are: of these no product
        is formed, which would take time to compile.
      on_accelerator: whether to multiply as a GPU or TPU does it best: small gradients with the
        fewest kernels, large ones with the fewest bytes to read and write.
    """
    if on_accelerator and _are_small(rows):
        return _products_of_stacks(rows)
    if len(rows) > _MOST_UNROLLED:
        return _matrix_products(rows, zeros)
    pairs = list(itertools.combinations_with_replacement(range(len(rows)), 2))
    found = _inner_products(rows, pairs, zeros, on_accelerator)
    products = dict(zip(pairs, found, strict=True))
    columns = [
        jnp.stack([products[min(i, j), max(i, j)] for i in range(len(rows))])
        for j in range(len(rows))
    ]
    return jnp.stack(columns, axis=1)


def squared_norms_of(
    rows: Sequence[Sequence[Array]], zeros: Collection[int] = (), on_accelerator: bool = False
) -> Float[Array, " K"]:
    """The squared norms of K rows of leaves; the arguments are those of `gramian_of`."""
    if on_accelerator and _are_small(rows):
        return diagonal_of(_products_of_stacks(rows))
    pairs = [(k, k) for k in range(len(rows))]
    return jnp.stack(_inner_products(rows, pairs, zeros, on_accelerator))


def alignments_of(
    rows: Sequence[Sequence[Array]], on_accelerator: bool = False
) -> Float[Array, " K"]:
    """The inner products of K rows of leaves with the last, the K + 1st."""
    last = len(rows) - 1
    pairs = [(k, last) for k in range(last)]
    return jnp.stack(_inner_products(rows, pairs, (), on_accelerator))


def magnitudes_of(leaves: Sequence[Array], axes: Axes) -> Float[Array, "2"]:
    """The largest and the mean absolute value of all entries of the leaves of one gradient.

    Args:
      leaves: of which each device has a piece where they differ over more axes than the losses.
      axes: those over which the losses differ.
    """
    largest, total, count = (jnp.zeros((), dtype=float) for _ in range(3))
    for leaf in leaves:
        if leaf.size == 0:
            continue
        pieces = axes_of(leaf) - axes
        sizes = jnp.atleast_1d(jnp.abs(_at_least_float32(leaf)))
        largest = jnp.maximum(largest, largest_over(pieces, jnp.max(sizes)).astype(float))
        # One axis at a time, as in `_inner_products`.
        total += summed_over(pieces, jnp.sum(jnp.sum(sizes, axis=-1))).astype(float)
        count += summed_over(pieces, jnp.asarray(leaf.size, dtype=float))
    return jnp.stack([largest, total / jnp.maximum(count, 1.0)])


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
    rows: Sequence[Sequence[Array]],
    pairs: Sequence[tuple[int, int]],
    zeros: Collection[int],
    on_accelerator: bool,
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
        found = _leaf_products(wide, present, on_accelerator) if present else []
        for pair, product in zip(present, found, strict=True):
            totals[pair] += product.astype(totals[pair].dtype)
    return list(totals.values())


def _leaf_products(
    leaves: dict[int, Array], pairs: Sequence[tuple[int, int]], on_accelerator: bool
) -> list[Float[Array, ""]]:
    """A sum of several arrays at once reads each leaf once instead of once for each of its pairs.

    But XLA does not partition it: it gathers what is sharded along the axis that is summed. So
    in large leaves that is a part of the last axis, split so that devices can share what is left
    of it; leaves where this cannot be are summed one by one.
    """
    few, small = 16, 4096
    leaf = leaves[pairs[0][0]]
    *outer, length = leaf.shape
    terms = _terms_at_once(length, on_accelerator)
    if _spec(leaf)[-1] is not None:
        is_one_pass = False
    elif terms >= few:
        shape = (*outer, length // terms, terms)
        leaves = {k: leaf.reshape(shape) for k, leaf in leaves.items()}
        is_one_pass = True
    else:
        is_one_pass = leaf.size <= small
    sums_of = _sums_in_one_pass if is_one_pass else _sums
    at_once = _AT_ONCE_ON_ACCELERATOR if on_accelerator else _AT_ONCE
    by_row: list[Array] = []
    for start in range(0, len(pairs), at_once):
        group = pairs[start : start + at_once]
        by_row += sums_of([(leaves[i] * leaves[j].conj()).real for i, j in group])
    if not on_accelerator:
        return [jnp.sum(sums) for sums in by_row]
    stacked = jnp.stack(by_row)  # for a sum of their own each would be a kernel or two
    return list(jnp.unstack(jnp.sum(stacked, axis=tuple(range(1, stacked.ndim)))))


def _terms_at_once(length: int, on_accelerator: bool) -> int:
    """How many entries of an axis are added up in one go; 1 if it cannot be split.

    Whatever number of devices up to 16 shares the axis evenly can share what is left of it. A CPU
    adds the terms up in sequence, for precision few of them, and likes some numbers better. For an
    accelerator, which adds them up in a tree, the more the better: the sums are written and read
    again.
    """
    most, pieces = min(1024 if on_accelerator else 32, length // 16), math.gcd(length, 16)
    candidates = range(most, 1, -1) if on_accelerator else (most, 24, 20, 16)
    found = (terms for terms in candidates if 1 < terms <= most and length % (terms * pieces) == 0)
    return next(found, 1)


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
        # To gather from a row of zeros is sharded by every version of JAX; to scatter is not.
        places = [present.index(k) if k in present else -1 for k in range(len(rows))]
        total += jnp.pad(products, (0, 1))[np.ix_(places, places)]
    return total


def _are_small(rows: Sequence[Sequence[Array]]) -> bool:
    """Whether on an accelerator the number of kernels matters, and no leaf is in pieces."""
    leaves = [leaf for row in rows for leaf in row]
    is_whole = not any(axes_of(leaf) or any(_spec(leaf)) for leaf in leaves)
    return is_whole and sum(leaf.nbytes for leaf in leaves) <= MOST_SMALL


def _products_of_stacks(rows: Sequence[Sequence[Array]]) -> Float[Array, "K K"]:
    """One product of matrices for each leaf: few kernels, but not for sums of millions of terms."""
    total = jnp.zeros((len(rows), len(rows)), dtype=float)
    for leaves in zip(*rows, strict=True):
        stacked = jnp.stack([_at_least_float32(leaf) for leaf in leaves])
        summed = tuple(range(1, stacked.ndim))
        products = jax.lax.dot_general(
            stacked, stacked.conj(), ((summed, summed), ((), ())), precision="highest"
        )
        total += products.real.astype(total.dtype)
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
