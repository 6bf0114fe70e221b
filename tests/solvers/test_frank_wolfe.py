"""The weights of the point of smallest norm by Frank-Wolfe, which stops before it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from helpers import gradient_cases

from softadapt_optax._solvers.min_norm import frank_wolfe_weights


def test_frank_wolfe_stops_before_the_optimum_and_never_far_off():
    gradients = gradient_cases(4)["random"]
    gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
    everyone = jnp.ones(4, dtype=bool)
    best = oracle.min_norm_point(gradients)
    gaps = []
    for iterations in (1, 10, 1000):
        weigh = jax.jit(functools.partial(frank_wolfe_weights, max_iterations=iterations))
        point = np.asarray(weigh(gramian, everyone)) @ gradients
        gaps.append(point @ point - best @ best)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.05 * np.trace(gradients @ gradients.T)


def test_frank_wolfe_leaves_out_what_does_not_count():
    gradients = gradient_cases(4)["random"]
    gramian = jnp.asarray(gradients @ gradients.T, jnp.float32)
    weigh = jax.jit(functools.partial(frank_wolfe_weights, max_iterations=9))
    weights = weigh(gramian, jnp.arange(4) != 1)
    kept = jnp.array([0, 2, 3])
    assert weights[1] == 0.0
    few = weigh(gramian[kept][:, kept], jnp.ones(3, dtype=bool))
    np.testing.assert_allclose(weights[kept], few, rtol=1e-5)
    np.testing.assert_array_equal(weigh(gramian, jnp.zeros(4, dtype=bool)), 0.0)
