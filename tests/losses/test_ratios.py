"""Methods that look at ratios of losses, at their order or at nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from helpers import unchecked, weights_along

import softadapt_optax as sa


def falling(steps=30, num_losses=3, seed=0):
    """Positive losses that fall at rates of their own, with noise."""
    rng = np.random.default_rng(seed)
    rates = np.linspace(0.85, 0.99, num_losses)
    noise = np.exp(0.1 * rng.normal(size=(steps, num_losses)))
    return rng.uniform(0.5, 2.0, num_losses) * rates ** np.arange(steps)[:, None] * noise


# Dynamic weight average.


@pytest.mark.parametrize(("temperature", "window"), [(2.0, 1), (0.5, 1), (1.0, 4)])
def test_dwa_agrees_with_the_oracle(temperature, window):
    losses = falling()
    found = weights_along(sa.dwa(3, temperature, window=window), losses)
    np.testing.assert_allclose(found, oracle.dwa_weights(losses, temperature, window), rtol=2e-5)


def test_an_epoch_of_dwa_is_a_period():
    losses = falling(30)
    means = losses.reshape(6, 5, 3).mean(axis=1)
    found = weights_along(sa.dwa(3, every=5), losses)[4::5]
    np.testing.assert_allclose(found, oracle.dwa_weights(means), rtol=2e-5)


@pytest.mark.parametrize("method", ["dwa", "relobralo", "cov_weighting"])
def test_ratios_do_not_depend_on_the_units(method):
    losses = falling()
    make = getattr(sa, method)
    wanted = weights_along(make(3), losses)
    for units in ([1e-3, 1.0, 1e4], [1e-20, 1.0, 1e20]):
        np.testing.assert_allclose(weights_along(make(3), losses * units), wanted, rtol=1e-3)


@pytest.mark.parametrize("method", ["dwa", "relobralo", "cov_weighting"])
def test_losses_that_stand_still_count_alike_also_at_zero(method):
    losses = np.broadcast_to([0.0, 1e-12, 2.0], (6, 3))
    weights = weights_along(getattr(sa, method)(3, weight_sum=3.0), losses)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-3)


@pytest.mark.parametrize("method", ["dwa", "relobralo", "cov_weighting"])
def test_a_loss_that_was_zero_has_the_largest_ratio(method):
    losses = np.array([[0.0, 1.0], [0.0, 1.1], [1e-6, 1.0], [1e-6, 1.1]])
    options = {"alpha": 0.0} if method == "relobralo" else {}
    weights = weights_along(getattr(sa, method)(2, weight_sum=1.0, **options), losses)
    assert np.all(np.isfinite(weights))
    assert weights[3 if method == "cov_weighting" else 2][0] > 0.9


# The geometric mean.


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_gls_agrees_with_the_oracle(scale):
    losses = falling() * [scale, 1.0, 1.0]
    np.testing.assert_allclose(
        weights_along(sa.gls(3), losses), oracle.gls_weights(losses), rtol=1e-5
    )


def test_gls_is_the_gradient_of_the_geometric_mean():
    losses_fn = lambda x: (jnp.sum((x - 1.0) ** 2), jnp.sum(x**4) + 0.1, jnp.cosh(x[0]))
    x = jnp.asarray([0.5, -2.0])
    _, grads = sa.value_and_component_grads(losses_fn)(x)
    tx = sa.gls(3)
    h, _ = tx.update(grads, tx.init(x))
    wanted = jax.grad(lambda x: jnp.prod(jnp.stack(losses_fn(x))) ** (1 / 3))(x)
    np.testing.assert_allclose(h, wanted, rtol=1e-5)


def test_gls_of_many_losses_does_not_overflow():
    losses = np.full((1, 64), 1e30)
    np.testing.assert_allclose(weights_along(sa.gls(64), losses), 1 / 64, rtol=1e-5)


# Losses in an order.


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
def test_causal_weights_agree_with_the_oracle(epsilon):
    losses = falling(4, 6)
    found = weights_along(sa.causal_weights(6, epsilon), losses)
    wanted = [oracle.causal_weights(each, epsilon) for each in losses]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_order_is_that_of_the_names():
    tx = sa.causal_weights(["late", "early"])
    losses = {"early": jnp.asarray(5.0), "late": jnp.asarray(1.0)}
    state = tx.init(jnp.zeros(()))
    stacked = jnp.zeros(2)
    _, state = tx.update(stacked, state, losses=losses)
    weights = sa.loss_weights(state, like=losses)
    np.testing.assert_allclose([weights["late"], weights["early"]], [1.0, np.exp(-1.0)], rtol=1e-6)


def test_epsilon_may_be_a_schedule():
    tx = sa.causal_weights(2, optax.linear_schedule(0.0, 2.0, 2))
    found = weights_along(tx, np.ones((4, 2)))
    np.testing.assert_allclose(found[:, 1], np.exp([0.0, -1.0, -2.0, -2.0]), rtol=1e-6)


# A smooth maximum.


@pytest.mark.parametrize("mu", [0.01, 0.5, 10.0])
@pytest.mark.parametrize("log", [False, True])
def test_stch_is_the_gradient_of_the_smooth_maximum(mu, log):
    losses_fn = lambda x: (jnp.sum((x - 1.0) ** 2), jnp.sum(x**4) + 0.1, jnp.cosh(x[0]))
    preferences = jnp.asarray([0.5, 2.0, 1.0])

    def maximum(x):
        losses = jnp.stack(losses_fn(x)) * preferences
        values = jnp.log(losses) if log else losses
        return (3 if log else 1) * mu * jax.nn.logsumexp(values / mu)

    x = jnp.asarray([0.5, -2.0])
    _, grads = sa.value_and_component_grads(losses_fn)(x)
    tx = sa.stch(3, mu, log=log, units=1 / np.asarray(preferences))
    h, _ = tx.update(grads, tx.init(x))
    np.testing.assert_allclose(h, jax.grad(maximum)(x), rtol=1e-4)


def test_stch_of_log_losses_over_their_start_is_that_of_the_authors():
    losses = falling()
    found = weights_along(sa.stch(3, 0.5, log=True, units="initial"), losses)
    np.testing.assert_allclose(found, oracle.stch_weights(losses, 0.5), rtol=1e-4)


# Coefficients of variation.


@pytest.mark.parametrize("decay", [None, 0.9])
def test_cov_weighting_agrees_with_the_oracle(decay):
    losses = falling(40)
    found = weights_along(sa.cov_weighting(3, decay), losses)
    np.testing.assert_allclose(found, oracle.cov_weights(losses, decay), rtol=2e-4)


# Random lookback.


@pytest.mark.parametrize(("alpha", "temperature"), [(0.9, 1.0), (0.5, 0.1)])
@pytest.mark.parametrize("expected_rho", [0.0, 1.0])
def test_relobralo_agrees_with_the_oracle(alpha, temperature, expected_rho):
    losses = falling()
    options = {"alpha": alpha, "temperature": temperature}
    found = weights_along(sa.relobralo(3, expected_rho=expected_rho, **options), losses)
    stays = np.full(len(losses), expected_rho == 1.0)
    np.testing.assert_allclose(found, oracle.relobralo_weights(losses, stays, **options), rtol=2e-4)


def test_relobralo_looks_back_as_often_as_is_said():
    """With alpha near 1 a weight changes much only where the past is that of the start."""
    losses = np.stack([np.ones(400), np.linspace(1.0, 0.1, 400)], axis=1)
    options = {"alpha": 0.999, "temperature": 0.2}
    found = np.asarray(weights_along(sa.relobralo(2, expected_rho=0.75, **options), losses))
    looks = np.abs(found[1:, 0] - found[:-1, 0]) > 0.002
    assert 0.15 < looks[50:].mean() < 0.5
    other = np.asarray(weights_along(sa.relobralo(2, 1, expected_rho=0.75, **options), losses))
    assert np.any(other != found)


# Random weights.


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_random_weights_have_equal_means_and_are_fresh(distribution):
    found = np.asarray(weights_along(sa.rlw(3, distribution=distribution), np.ones((2000, 3))))
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    error = found.std(axis=0) / len(found) ** 0.5
    assert np.all(np.abs(found.mean(axis=0) - 1 / 3) < 4 * error)
    assert len(np.unique(found[:, 0])) > 1990
    correlation = np.corrcoef(found[1:, 0], found[:-1, 0])[0, 1]
    assert abs(correlation) < 0.1
    if distribution == "dirichlet":  # of a weight uniform on the simplex of three: 1 / 18
        np.testing.assert_allclose(found.var(axis=0), 1 / 18, rtol=0.1)


def test_seeds_are_hyperparameters_and_a_sweep_is_one_program():
    weights_of = lambda seed: weights_along(sa.rlw(3, seed), np.ones((2, 3)))
    found = jax.vmap(weights_of)(jnp.arange(4))
    assert len(np.unique(np.asarray(found)[:, 0, 0])) == 4
    np.testing.assert_allclose(found[2], weights_of(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (sa.dwa, {"temperature": 0.0}, "`temperature` should be finite and > 0"),
        (sa.dwa, {"window": 0}, "`window` should be at least 1"),
        (sa.rlw, {"distribution": "uniform"}, "`distribution` should be"),
        (sa.rlw, {"seed": 0.5}, "`seed` should be"),
        (sa.causal_weights, {"epsilon": -1.0}, "`epsilon` should be finite and >= 0"),
        (sa.cov_weighting, {"decay": 1.0}, "`decay` should be finite and > 0 and < 1"),
        (sa.relobralo, {"alpha": 1.0}, "`alpha` should be finite and >= 0 and < 1"),
        (sa.relobralo, {"temperature": -1.0}, "`temperature` should be finite and > 0"),
        (sa.relobralo, {"expected_rho": 1.1}, "`expected_rho` should be finite and >= 0 and <= 1"),
        (sa.gls, {"eps": 0.0}, "`eps` should be finite and > 0"),
    ],
)
def test_errors_of_options(factory, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        unchecked(factory)(2, **options)
