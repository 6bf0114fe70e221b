"""Arithmetic in two floats, compiled, against exact fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softadapt_optax._solvers.double_float import (
    DoubleFloat,
    halves,
    minus_combination,
    minus_product,
    normalized,
    product,
    quotient,
    square_root,
    sum_of,
)


def random_numbers(count, seed, dtype):
    rng = np.random.default_rng(seed)
    high = rng.normal(size=count) * 10.0 ** rng.uniform(-3, 3, size=count)
    low = high * rng.uniform(-0.4, 0.4, size=count) * np.finfo(dtype).eps
    return DoubleFloat(jnp.asarray(high, dtype), jnp.asarray(low, dtype))


def exact(number):
    parts = [np.asarray(part).ravel().tolist() for part in number]
    return [Fraction(high) + Fraction(low) for high, low in zip(*parts, strict=True)]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


def test_sums_and_products_of_halves_are_exact(dtype):
    a, b = random_numbers(200, 0, dtype).high, random_numbers(200, 1, dtype).high
    pairs = list(zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True))
    assert exact(jax.jit(sum_of)(a, b)) == [Fraction(one) + Fraction(other) for one, other in pairs]
    (a_upper, a_lower), (b_upper, _) = jax.jit(lambda a, b: (halves(a), halves(b)))(a, b)
    assert exact(DoubleFloat(a_upper, a_lower)) == [Fraction(one) for one, _ in pairs]
    products = exact(DoubleFloat(a_upper * b_upper, jnp.zeros_like(a)))
    factors = zip(np.asarray(a_upper).tolist(), np.asarray(b_upper).tolist(), strict=True)
    assert products == [Fraction(one) * Fraction(other) for one, other in factors]


def test_products_and_quotients_have_twice_the_digits(dtype):
    a, b, c = (random_numbers(200, seed, dtype) for seed in range(3))
    rounding = Fraction(float(np.finfo(dtype).eps)) ** 2

    # A second product takes away the first, but for what its two floats did not hold.
    @jax.jit
    def left_over(a, b, c):
        product = normalized(minus_product(c, a, b))
        ratio = quotient(product, normalized(b))
        return product, ratio, minus_product(product, normalized(ratio), b)

    product, ratio, rest = (exact(number) for number in left_over(a, b, c))
    for x, y, z, p, q, r in zip(exact(a), exact(b), exact(c), product, ratio, rest, strict=True):
        assert abs(p - (z - x * y)) <= 16 * rounding * (abs(z) + abs(x * y))
        assert abs(q - p / y) <= 16 * rounding * abs(p / y)
        assert abs(r) <= 16 * rounding * abs(p)


def test_roots_have_twice_the_digits(dtype):
    number = random_numbers(200, 0, dtype)
    rounding = Fraction(float(np.finfo(dtype).eps)) ** 2
    square = jax.jit(lambda x: normalized(product(x, x)))(number)
    roots = exact(jax.jit(square_root)(square))
    for root, wanted in zip(roots, exact(number), strict=True):
        assert abs(root - abs(wanted)) <= 32 * rounding * abs(wanted)
    nothing = square_root(DoubleFloat(jnp.asarray([0.0, -1.0], dtype), jnp.zeros(2, dtype)))
    np.testing.assert_array_equal(nothing, 0.0)


def test_combinations_that_cancel_keep_twice_the_digits(dtype):
    matrix = DoubleFloat(*(part.reshape(20, 10) for part in random_numbers(200, 0, dtype)))
    powers = 2.0 ** np.arange(-5, 5)
    found = exact(jax.jit(minus_combination)(matrix, jnp.asarray(powers, dtype)))
    rounding = Fraction(float(np.finfo(dtype).eps)) ** 2
    entries = np.reshape(exact(matrix), (20, 10))
    factors = [Fraction(power) for power in powers.tolist()]
    for row, value in zip(entries, found, strict=True):
        terms = [one * factor for one, factor in zip(row, factors, strict=True)]
        assert abs(value + sum(terms)) <= 64 * rounding * sum(map(abs, terms))
