"""Projections onto the cone of directions that no gradient points against, from the Gramian."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from softadapt_optax._reductions import max_over
from softadapt_optax._solvers.double_float import DoubleFloat, minus_combination, sum_of
from softadapt_optax._solvers.equilibration import equilibrated
from softadapt_optax._solvers.matrices import inverse_of
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
    found = _cone_minimizers(cosines, ridges, scaled / largest)
    return lower + jnp.where(has_size[None], found * largest / scales[None], 0.0)


@jax.custom_jvp
def _cone_minimizers(
    cosines: Float[Array, "K K"], ridges: Float[Array, "K K"], lower: Float[Array, "rows K"]
) -> Float[Array, "rows K"]:
    r"""The z >= 0 that minimise :math:`(l + z)^T (C + R) (l + z)`; l holds powers of two."""
    matrix = sum_of(cosines, ridges)
    vectors = jax.vmap(minus_combination, (None, 0), 1)(matrix, lower)

    def beside(columns: DoubleFloat) -> DoubleFloat:
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), matrix, columns)

    if len(cosines) <= 8:
        return by_enumeration(beside(vectors)).T

    def solution_for(vector: DoubleFloat) -> Float[Array, " K"]:
        return by_pivoting(beside(jax.tree.map(_as_column, vector)))

    return jax.vmap(solution_for, 1)(vectors)


def _as_column(vector: Float[Array, " K"]) -> Float[Array, "K 1"]:
    return vector[:, None]


@_cone_minimizers.defjvp
def _cone_minimizers_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Float[Array, "rows K"], Float[Array, "rows K"]]:
    """On the support of z, (C + R) (l + z) stays zero, which says how z changes."""
    cosines, ridges, lower = primals
    found = _cone_minimizers(*primals)

    def change_of(
        z: Float[Array, " K"], lower: Float[Array, " K"], lower_change: Float[Array, " K"]
    ) -> Float[Array, " K"]:
        support = (z > 0).astype(z.dtype)

        def gradient(cosines: Array, ridges: Array, lower: Array) -> Float[Array, " K"]:
            return jnp.sum((cosines + ridges) * (lower + z)[None, :], axis=1)

        change = jax.jvp(gradient, (cosines, ridges, lower), (*tangents[:2], lower_change))[1]
        matrix = (cosines + ridges) * support[:, None] * support[None, :]
        inverse = inverse_of(matrix + jnp.diag(1.0 - support))
        return -jnp.sum(inverse * (change * support)[None, :], axis=1) * support

    return found, jax.vmap(change_of)(found, lower, tangents[2])
