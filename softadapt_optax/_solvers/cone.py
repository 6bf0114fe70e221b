"""Projections onto the cone of directions that no gradient points against, from the Gramian."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from softadapt_optax._reductions import max_over
from softadapt_optax._solvers.double_float import minus_combination, sum_of
from softadapt_optax._solvers.equilibration import equilibrated
from softadapt_optax._solvers.min_norm import inverse_of
from softadapt_optax._solvers.nonnegative import by_enumeration, by_pivoting


def cone_weights(
    gramian: Float[Array, "K K"],
    is_projected: Bool[Array, "rows K"],
    counted: Bool[Array, " K"],
    ridge: ArrayLike,
) -> Float[Array, "rows K"]:
    r"""The :math:`v \ge l` that minimises :math:`v^T (G + \varepsilon \, \mathrm{diag}(G)) v`.

    Then :math:`\sum_k v_k g_k` is the projection of :math:`\sum_k l_k g_k` onto the dual cone of
    the gradients, :math:`\langle d, g_k \rangle \ge 0`, but for the ridge. One for each row of l,
    of zeros and ones, which is zero for losses that do not count. A gradient of zero keeps its l.
    """
    lower = is_projected.astype(gramian.dtype)
    cosines, ridges, scales, has_size = equilibrated(gramian, counted, ridge)
    scaled = jnp.where(has_size[None] & is_projected, scales[None], 0.0)
    largest = jnp.maximum(max_over(scaled), float(np.finfo(scaled.dtype).tiny))[:, None]
    found = jax.vmap(_cone_minimizer, (None, None, 0))(cosines, ridges, scaled / largest)
    return lower + jnp.where(has_size[None], found * largest / scales[None], 0.0)


@jax.custom_jvp
def _cone_minimizer(
    cosines: Float[Array, "K K"], ridges: Float[Array, "K K"], lower: Float[Array, " K"]
) -> Float[Array, " K"]:
    r"""The z >= 0 that minimises :math:`(l + z)^T (C + R) (l + z)`; l holds powers of two."""
    matrix = sum_of(cosines, ridges)
    vector = minus_combination(matrix, lower)
    table = jax.tree.map(lambda m, v: jnp.concatenate([m, v[:, None]], axis=1), matrix, vector)
    return by_enumeration(table) if len(lower) <= 8 else by_pivoting(table)


@_cone_minimizer.defjvp
def _cone_minimizer_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """On the support of z, (C + R) (l + z) stays zero, which says how z changes."""
    z = _cone_minimizer(*primals)
    support = (z > 0).astype(z.dtype)

    def gradient(cosines: Array, ridges: Array, lower: Array) -> Float[Array, " K"]:
        return jnp.sum((cosines + ridges) * (lower + z)[None, :], axis=1)

    change = jax.jvp(gradient, primals, tangents)[1] * support
    matrix = (primals[0] + primals[1]) * support[:, None] * support[None, :]
    inverse = inverse_of(matrix + jnp.diag(1.0 - support))
    return z, -jnp.sum(inverse * change[None, :], axis=1) * support
