"""From the weights that a method gives to weights of a given sum."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float


def sum_to_one(weights: Float[Array, " K"], factors: Float[Array, " K"]) -> Float[Array, " K"]:
    """``weights * factors`` over their sum; if all are zero the factors, or else equal ones."""
    weights = jnp.where(factors > 0, weights, 0.0)
    factors = over_largest(jnp.where(jnp.all(factors == 0), 1.0, factors))
    product = over_largest(jnp.where(jnp.all(weights == 0), 1.0, weights)) * factors
    product = jnp.where(jnp.all(product == 0), factors, product)
    return product / jnp.sum(product)


def over_largest(values: Float[Array, " K"]) -> Float[Array, " K"]:
    """The values over the largest of them, whatever their size."""
    # The inverse of the largest number would be subnormal, for which some devices take 0.
    values = jnp.where(jnp.max(values) > 1, values / 16, values)
    return values / jnp.max(values)


def mean_of(values: Float[Array, " K"], counted: Bool[Array, " K"]) -> Float[Array, ""]:
    """The mean over the losses that count; 0 if none does."""
    count = jnp.sum(counted, dtype=values.dtype)
    return jnp.sum(jnp.where(counted, values, 0.0)) / jnp.maximum(count, 1.0)


def carried_over(
    counted: Bool[Array, " K"],
    new: Float[Array, " K"],
    old: Float[Array, " K"],
    keeps_share: bool | Bool[Array, ""],
) -> Float[Array, " K"]:
    """The new weights; those of losses that do not count keep their share, or their value."""
    new_sum, old_sum = (jnp.sum(jnp.where(counted, weights, 0.0)) for weights in (new, old))
    has_share = keeps_share & (new_sum > 0) & (old_sum > 0)
    ratio = jnp.where(has_share, new_sum, 1.0) / jnp.where(has_share, old_sum, 1.0)
    return jnp.where(counted, new, ratio * old)


def positive_or(value: ArrayLike, default: float, dtype: jnp.dtype) -> Float[Array, ""]:
    """The value, or the default where it is 0.

    ``optax.inject_hyperparams`` gives options the dtype of the parameters, and 1e-8 is 0 in
    float16.
    """
    value = jnp.asarray(value, dtype)
    return jnp.where(value > 0, value, jnp.asarray(default, dtype))
