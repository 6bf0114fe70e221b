"""Arithmetic of K weights and K losses that methods share: sums, shares, ratios, inverses."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from softadapt_optax._reductions import max_over, sum_over

EPS = 1e-8  # below it losses count as if they had this size, unless a method is told otherwise


def sum_to_one(weights: Float[Array, " K"], factors: Float[Array, " K"]) -> Float[Array, " K"]:
    """``weights * factors`` over the sum of their sizes; the factors over theirs if that is zero.

    The sum of weights of both signs would tell nothing of how large they are.
    """
    shares = over_largest(factors)
    product = over_largest(jnp.where(factors > 0, weights, 0.0)) * shares
    total = sum_over(sizes_of(product))
    product = jnp.where(
        total == 0, shares / sum_over(shares), product / jnp.where(total == 0, 1.0, total)
    )
    return jnp.where(factors > 0, product, 0.0)


def over_largest(values: Float[Array, " K"]) -> Float[Array, " K"]:
    """The values over the largest of their sizes, whatever that is; ones if all are zero."""
    largest = max_over(sizes_of(values))
    # The inverse of the largest number would be subnormal, for which some devices take 0.
    values, largest = (jnp.where(largest > 1, part / 16, part) for part in (values, largest))
    return jnp.where(largest == 0, 1.0, values / jnp.where(largest == 0, 1.0, largest))


def sizes_of(values: Float[Array, " K"]) -> Float[Array, " K"]:
    """The absolute values; the derivative at 0 is 1, that of weights which are not negative."""
    return jnp.where(values < 0, -values, values)


def exponentials(logits: Float[Array, " K"], counted: Bool[Array, " K"]) -> Float[Array, " K"]:
    """Those of the losses that count, over the largest; of the others 0."""
    logits = jnp.where(counted, logits, -jnp.inf)
    largest = max_over(logits)
    return jnp.exp(logits - jnp.where(jnp.isneginf(largest), 0.0, largest))


def bounded_exp(exponents: Float[Array, " K"]) -> Float[Array, " K"]:
    """The exponentials, no more and no less than float32 can hold."""
    return jnp.exp(jnp.clip(exponents, -80.0, 80.0))


def mean_of(values: Float[Array, " K"], counted: Bool[Array, " K"]) -> Float[Array, ""]:
    """The mean over the losses that count; 0 if none does."""
    count = sum_over(counted.astype(values.dtype))
    return sum_over(jnp.where(counted, values, 0.0)) / jnp.maximum(count, 1.0)


def carried_over(
    counted: Bool[Array, " K"],
    new: Float[Array, " K"],
    old: Float[Array, " K"],
    keeps_share: bool | Bool[Array, ""],
) -> Float[Array, " K"]:
    """The new weights; those of losses that do not count keep their share, or their value."""
    new_sum, old_sum = (
        sum_over(sizes_of(jnp.where(counted, weights, 0.0))) for weights in (new, old)
    )
    has_share = keeps_share & (new_sum > 0) & (old_sum > 0)
    ratio = jnp.where(has_share, new_sum, 1.0) / jnp.where(has_share, old_sum, 1.0)
    return jnp.where(counted, new, ratio * old)


def ratio_of(
    values: Float[Array, " K"], references: Float[Array, " K"], share: ArrayLike
) -> Float[Array, " K"]:
    """Values over references, in whatever unit both are; 1 where both are zero.

    A reference that is smaller than that share of the value counts as the share.
    """
    sizes = jnp.maximum(jnp.abs(references), share * jnp.abs(values))
    is_zero = sizes == 0
    signed = jnp.where(references < 0, -sizes, sizes)
    return jnp.where(is_zero, 1.0, values / jnp.where(is_zero, 1.0, signed))


def inverse_sizes(losses: Float[Array, " K"], eps: ArrayLike) -> Float[Array, " K"]:
    """``1 / |losses|``, of losses below ``eps`` as if they were ``eps``."""
    return 1.0 / jnp.maximum(jnp.abs(losses), positive_or(eps, EPS, losses.dtype))


def inverse_training_rates(
    losses: Float[Array, " K"], initial_losses: Float[Array, " K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """The share of each loss that is left, over the mean share: above 1 for a slow loss.

    1 for losses that do not count.
    """
    tiny = float(np.finfo(losses.dtype).tiny)
    is_zero = initial_losses == 0
    left = jnp.abs(losses) / jnp.maximum(jnp.abs(jnp.where(is_zero, 1.0, initial_losses)), tiny)
    left = jnp.where(is_zero, 1.0, left)
    return jnp.where(counted, left, 1.0) / jnp.where(
        counted, jnp.maximum(mean_of(left, counted), tiny), 1.0
    )


def first_seen(
    initial_losses: Float[Array, " K"], losses: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The initial losses, those not seen before taken from ``losses``."""
    return jnp.where(initial_losses == 0, losses, initial_losses)


def positive_or(value: ArrayLike, default: float, dtype: jnp.dtype) -> Float[Array, ""]:
    """The value, or the default where it is 0.

    ``optax.inject_hyperparams`` gives options the dtype of the parameters, and 1e-8 is 0 in
    float16.
    """
    value = jnp.asarray(value, dtype)
    return jnp.where(value > 0, value, jnp.asarray(default, dtype))
