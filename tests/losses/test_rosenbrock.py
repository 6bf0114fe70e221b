"""The paper's first experiment: the fastest proof that the whole chain is right.

Rosenbrock's function in its two terms (Eq. 7), gradient descent with step 1e-3 against SoftAdapt
with beta 0.1. The paper reports 43.31 % fewer steps for the loss weighted variant; it appears when
the weights sum to 2, as those of the plain sum do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softadapt_optax as sa

STARTS = np.array([[-0.5, -0.5], [-1.0, 1.0], [0.0, 0.0], [-1.2, 1.0]])


def losses_fn(params):
    x, y = params
    return {"valley": 100 * (y - x**2) ** 2, "floor": (1 - x) ** 2}


def steps_to_tolerance(weighting, tolerance=1e-2, limit=40_000):
    """Steps from each start until the distance to the minimum (1, 1) is below a tolerance."""
    tx = optax.chain(weighting, optax.sgd(1e-3))

    def one_start(start):
        def far(carry):
            params, _, steps = carry
            return (jnp.linalg.norm(params - 1.0) > tolerance) & (steps < limit)

        def step(carry):
            params, opt_state, steps = carry
            _, grads = sa.value_and_component_grads(losses_fn)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, steps + 1

        return jax.lax.while_loop(far, step, (start, tx.init(start), 0))[2]

    steps = np.asarray(jax.jit(jax.vmap(one_start))(jnp.asarray(STARTS, dtype=float)))
    assert np.all(steps < limit)
    return steps


def test_43_percent_fewer_steps_with_weights_that_sum_to_two():
    plain = steps_to_tolerance(sa.fixed_weights([1.0, 1.0]))
    assert plain[0] == pytest.approx(10_636, abs=30)
    ours = steps_to_tolerance(sa.softadapt(2, 0.1, loss_weighted=True, weight_sum=2.0))
    assert np.all((ours / plain > 0.565) & (ours / plain < 0.572))


def test_with_weights_that_sum_to_one_it_is_slower():
    plain = steps_to_tolerance(sa.fixed_weights([1.0, 1.0]))
    ours = steps_to_tolerance(sa.softadapt(2, 0.1, loss_weighted=True))
    assert ours[0] / plain[0] == pytest.approx(1.14, abs=0.01)
    assert np.all(ours / plain > 1.13)


def test_the_gain_is_the_loss_weighting_and_not_beta():
    with_beta = steps_to_tolerance(sa.softadapt(2, 0.1, loss_weighted=True, weight_sum=2.0))
    without = steps_to_tolerance(sa.softadapt(2, 0.0, loss_weighted=True, weight_sum=2.0))
    np.testing.assert_allclose(with_beta, without, rtol=0.005)
    plain = steps_to_tolerance(sa.fixed_weights([1.0, 1.0]))
    original = steps_to_tolerance(sa.softadapt(2, 0.1, weight_sum=2.0))
    np.testing.assert_allclose(original, plain, rtol=0.005)
