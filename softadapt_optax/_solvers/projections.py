"""Gradients projected off those that they conflict with, from their Gramian."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softadapt_optax._devices import axes_of, spread
from softadapt_optax._reductions import diagonal_of, sum_over

# Up to so many gradients there is no loop, whose turns cost an accelerator more than they compute.
_MOST_WRITTEN_OUT = 8


def projection_weights(
    gramian: Float[Array, "K K"], orders: Int[Array, "K K"], counted: Bool[Array, " K"]
) -> Float[Array, " K"]:
    r"""Weights of the sum of the K projected gradients.

    Row i of C holds the i-th projected gradient as a combination of the given ones, so that
    its inner product with :math:`g_j` is :math:`(C G)_{ij}`; no gradient is touched.
    """
    if gramian.shape[0] <= _MOST_WRITTEN_OUT:
        coefficients = _written_out(gramian, orders, counted)
    else:
        coefficients = _in_a_loop(gramian, orders, counted)
    return sum_over(jnp.where(counted[:, None], coefficients, 0.0).T)


def _written_out(
    gramian: Float[Array, "K K"], orders: Int[Array, "K K"], counted: Bool[Array, " K"]
) -> Float[Array, "K K"]:
    """C, each row in its own order, where all indices are known, so that it is one kernel."""
    indices = jnp.arange(gramian.shape[0])
    ordered = gramian[orders[:, :, None], orders[:, None, :]]  # for each row, steps times steps
    takes_part = counted & (diagonal_of(gramian) > 0)
    takes_part = takes_part[orders] & (orders != indices[:, None])
    products = jnp.take_along_axis(gramian, orders, axis=1)
    shares = []
    for step in range(len(indices)):
        share = _share(takes_part[:, step], products[:, step], ordered[:, step, step])
        products = products + share[:, None] * ordered[:, step]
        shares.append(share)
    is_of = orders[:, None, :] == indices[None, :, None]
    own = jnp.eye(len(indices), dtype=gramian.dtype)
    return own + sum_over(jnp.where(is_of, jnp.stack(shares, axis=1)[:, None, :], 0.0))


def _in_a_loop(
    gramian: Float[Array, "K K"], orders: Int[Array, "K K"], counted: Bool[Array, " K"]
) -> Float[Array, "K K"]:
    size = gramian.shape[0]
    squared_norms = diagonal_of(gramian)
    takes_part = counted & (squared_norms > 0)
    rows = jnp.arange(size)

    def project(
        coefficients: Float[Array, "K K"], j: Int[Array, " K"]
    ) -> tuple[Float[Array, "K K"], None]:
        products = jnp.sum(coefficients * gramian[j], axis=1)
        shares = _share(takes_part[j] & (j != rows), products, squared_norms[j])
        return coefficients + shares[:, None] * jax.nn.one_hot(j, size, dtype=gramian.dtype), None

    start = jnp.diag(counted.astype(gramian.dtype))
    start = spread(start, axes_of((gramian, counted, orders)))
    return jax.lax.scan(project, start, orders.T)[0]


def _share(
    takes_part: Bool[Array, " K"], products: Float[Array, " K"], squared_norms: Float[Array, " K"]
) -> Float[Array, " K"]:
    """How much of a gradient is added to each so that they do not conflict."""
    is_conflict = takes_part & (products < 0)
    return jnp.where(is_conflict, -products / jnp.where(is_conflict, squared_norms, 1.0), 0.0)


def random_orders(key: Array, size: int) -> Int[Array, "K K"]:
    """A random order of ``range(size)`` in each of as many rows, by sorting random bits."""
    bits, indices = jax.random.bits(key, (size, size)), jnp.arange(size)
    if size <= _MOST_WRITTEN_OUT:  # as the sort does it, but without one
        is_before = bits[:, None, :] < bits[:, :, None]
        is_tie = bits[:, None, :] == bits[:, :, None]
        is_before |= is_tie & (indices[None, :] < indices[:, None])[None]
        ranks = sum_over(is_before.astype(jnp.int32))
        is_at = ranks[:, None, :] == indices[None, :, None]
        return sum_over(jnp.where(is_at, indices[None, None, :], 0))
    # Bits that carry their index are sorted several times faster than by `argsort`.
    carried = jnp.broadcast_to(indices, (size, size))
    return jax.lax.sort((bits, carried), num_keys=1)[1]
