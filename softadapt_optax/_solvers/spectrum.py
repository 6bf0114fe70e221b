"""Eigenvalues and eigenvectors of small symmetric matrices, in two floats."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._reductions import diagonal_of, max_over, product_of
from softadapt_optax._solvers.double_float import (
    DoubleFloat,
    minus_product,
    normalized,
    rounded,
    sum_of,
)

# Rounds in which each pair of rows meets once, by the number of rows up to which they suffice.
_SWEEPS, _MANY_SWEEPS = {2: 2, 4: 5, 8: 7, 16: 8}, 11


class Spectrum(NamedTuple):
    """Of a symmetric matrix.

    Attributes:
      values: the eigenvalues, in no order, shape [K].
      vectors: the eigenvectors as columns, shape [K, K].
    """

    values: Float[Array, " K"]
    vectors: Float[Array, "K K"]


class _Rotated(NamedTuple):
    """The matrix in the basis of the vectors, and these."""

    matrix: DoubleFloat
    vectors: DoubleFloat


@jax.custom_jvp
def spectrum_of(matrix: Float[Array, "K K"]) -> Spectrum:
    """By Jacobi's rotations, those of disjoint pairs at once, in a fixed number of rounds.

    Small eigenvalues come out as exact as the entries of the matrix give them, which the
    eigensolvers in one float do not. Entries should be about 1, or smaller.
    """
    size = len(matrix)
    rounds = jnp.asarray(_partners(size))
    zeros = jnp.zeros_like(matrix)
    identity = DoubleFloat(jnp.eye(size, dtype=matrix.dtype), zeros)
    start = spread(_Rotated(DoubleFloat(matrix, zeros), identity), axes_of(matrix))

    def turn(index: Int[Array, ""], rotated: _Rotated) -> _Rotated:
        return _turned(rotated, rounds[index % len(rounds)])

    sweeps = next((count for most, count in _SWEEPS.items() if size <= most), _MANY_SWEEPS)
    found = jax.lax.fori_loop(0, sweeps * len(rounds), turn, start)
    return Spectrum(diagonal_of(rounded(found.matrix)), rounded(found.vectors))


@spectrum_of.defjvp
def _spectrum_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Spectrum, Spectrum]:
    """Between eigenvalues that are equal, which have no derivative, eigenvectors do not turn."""
    found = spectrum_of(*primals)
    change = in_basis(tangents[0], found.vectors)
    gaps = found.values[None, :] - found.values[:, None]
    largest = max_over(jnp.abs(found.values))
    is_gap = jnp.abs(gaps) > float(np.finfo(gaps.dtype).eps) * largest
    turns = jnp.where(is_gap, change / jnp.where(is_gap, gaps, 1.0), 0.0)
    return found, Spectrum(diagonal_of(change), product_of(found.vectors, turns))


def in_basis(matrix: Float[Array, "K K"], vectors: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """The matrix in the basis of orthogonal vectors, the columns."""
    return product_of(product_of(vectors.T, matrix), vectors)


def _partners(size: int) -> np.ndarray:
    """Who meets whom in each round of a tournament; one that has nobody meets itself."""
    even = size + size % 2
    ring = list(range(even))
    rounds = []
    for _ in range(max(even - 1, 1)):
        partner = np.arange(size)
        for one, other in zip(ring[: even // 2], ring[even // 2 :][::-1], strict=True):
            if max(one, other) < size:
                partner[one], partner[other] = other, one
        rounds.append(partner)
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return np.array(rounds)


def _turned(rotated: _Rotated, partner: Int[Array, " K"]) -> _Rotated:
    """After the rotations that make the entries of the pairs zero."""
    cosine, sine = _rotations(rotated.matrix, partner)

    def turned(matrix: DoubleFloat) -> DoubleFloat:
        zeros = DoubleFloat(*(jnp.zeros_like(part) for part in matrix))
        first = minus_product(zeros, jax.tree.map(jnp.negative, cosine), matrix)
        return normalized(minus_product(first, sine, jax.tree.map(lambda m: m[:, partner], matrix)))

    half = jax.tree.map(jnp.transpose, turned(rotated.matrix))
    return _Rotated(turned(half), turned(rotated.vectors))


def _rotations(matrix: DoubleFloat, partner: Int[Array, " K"]) -> tuple[DoubleFloat, DoubleFloat]:
    """Cosines and sines, shape [1, K], of each index as the first of its pair.

    The angles are those of one float: what they leave, the next sweep finds. But the rotations
    have to be orthogonal to two.
    """
    indices = jnp.arange(len(partner))
    diagonal = jax.tree.map(diagonal_of, matrix)
    gap = sum_of(diagonal.high[partner], -diagonal.high)
    gaps = gap.high + (gap.low + (diagonal.low[partner] - diagonal.low))
    twice = jnp.where(partner == indices, 0.0, 2.0 * rounded(matrix)[indices, partner])
    # Over the larger of both: squares of tiny entries are 0 in some places and not in others.
    larger = jnp.maximum(jnp.abs(gaps), jnp.abs(twice))
    is_any = larger > float(np.finfo(larger.dtype).tiny)
    divisor = jnp.where(is_any, larger, 1.0)
    gap_part, twice_part = (jnp.where(is_any, part / divisor, 0.0) for part in (gaps, twice))
    length = jnp.abs(gap_part) + jnp.sqrt(gap_part**2 + twice_part**2)
    ratio = jnp.where(is_any, twice_part / jnp.where(is_any, length, 1.0), 0.0)
    tangent = jnp.where(gaps >= 0, ratio, -ratio)
    # Of both the same, whatever rounding has left between the halves of the matrix.
    tangent = jnp.where(indices < partner, tangent, -tangent[partner])
    cosine = 1.0 / jnp.sqrt(1.0 + tangent**2)
    sine = tangent * cosine
    exact = [DoubleFloat(part, jnp.zeros_like(part)) for part in (cosine, sine)]
    missing = DoubleFloat(jnp.ones_like(cosine), jnp.zeros_like(cosine))
    for part in exact:
        missing = minus_product(missing, part, part)
    share = 0.5 * rounded(missing)
    return (
        DoubleFloat(cosine[None], (share * cosine)[None]),
        DoubleFloat(sine[None], (share * sine)[None]),
    )
