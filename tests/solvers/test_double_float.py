"""Arithmetic in two floats, compiled, against exact fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softadapt_optax._solvers.double_float import (
    DoubleFloat,
    halves,
    minus_product,
    normalized,
    quotient,
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
