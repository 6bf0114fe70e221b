"""Gradients projected off those that they conflict with, from their Gramian."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softadapt_optax._devices import axes_of, spread


def projection_weights(
    gramian: Float[Array, "K K"], orders: Int[Array, "K K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    r"""Weights of the sum of the K projected gradients.

    Row i of C holds the i-th projected gradient as a combination of the given ones, so that
    its inner product with :math:`g_j` is :math:`(C G)_{ij}`; no gradient is touched.
    """
    size = gramian.shape[0]
    squared_norms = jnp.diagonal(gramian)
    takes_part = counted & (squared_norms > 0)
    rows = jnp.arange(size)

    def project(
        coefficients: Float[Array, "K K"], j: Int[Array, " K"]
    ) -> tuple[Float[Array, "K K"], None]:
        products = jnp.sum(coefficients * gramian[j], axis=1)
        is_conflict = takes_part[j] & (j != rows) & (products < 0)
        shares = jnp.where(
            is_conflict, -products / jnp.where(is_conflict, squared_norms[j], 1.0), 0.0
        )
        return coefficients + shares[:, None] * jax.nn.one_hot(j, size, dtype=gramian.dtype), None

    start = jnp.diag(counted.astype(gramian.dtype))
    start = spread(start, axes_of((gramian, counted, orders)))
    coefficients, _ = jax.lax.scan(project, start, orders.T)
    return jnp.sum(jnp.where(counted[:, None], coefficients, 0.0), axis=0)


def random_orders(key: Array, size: int) -> Int[Array, "K K"]:
    """A random order of ``range(size)`` in each of as many rows."""
    # Sorting bits that carry their index is several times faster than `argsort`.
    indices = jnp.broadcast_to(jnp.arange(size), (size, size))
    return jax.lax.sort((jax.random.bits(key, (size, size)), indices), num_keys=1)[1]
