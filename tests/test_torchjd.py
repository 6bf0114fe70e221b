"""Agreement with TorchJD, a well-kept PyTorch implementation of the same methods."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gradient_cases, trained_gradients, weights_along, weights_of_steps

import softadapt_optax as sa

NEEDED = "PyTorch and TorchJD are not installed: pip install torch torchjd"
torch = pytest.importorskip("torch", reason=NEEDED)
aggregation = pytest.importorskip("torchjd.aggregation", reason=NEEDED)
scalarization = pytest.importorskip("torchjd.scalarization", reason=NEEDED)


@functools.cache
def make(method, num_losses, **options):
    return getattr(sa, method)(num_losses, **options)


def ours(tx, gradients):
    return np.asarray(weights_of_steps(tx, np.ones((1, len(gradients))), gradients[None])[0])


def theirs(weighting, gradients):
    return weighting(torch.tensor(gradients @ gradients.T)).numpy()


@pytest.mark.parametrize("case", ["random", "collinear", "rank deficient", "stationary"])
@pytest.mark.parametrize("num_losses", [2, 3, 5])
def test_frank_wolfe_gives_their_weights(case, num_losses):
    for seed in range(4):
        gradients = gradient_cases(num_losses, seed)[case]
        weights = ours(make("mgda", num_losses, solver="frank_wolfe"), gradients)
        np.testing.assert_allclose(
            weights, theirs(aggregation.MGDAWeighting(), gradients), atol=2e-3
        )


def test_the_active_set_gives_the_weights_that_theirs_approach():
    weighting = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=20_000)
    for gradients in [gradient_cases(4, seed)["random"] for seed in range(3)]:
        np.testing.assert_allclose(
            ours(make("mgda", 4), gradients), theirs(weighting, gradients), atol=2e-3
        )


@pytest.mark.slow
def test_on_trained_networks_our_norm_is_never_larger():
    weighting = aggregation.MGDAWeighting()
    excess = []
    for kind in ("shared output", "own batches", "trunk and heads"):
        for gradients in trained_gradients(kind, 8):
            our_norm = np.linalg.norm(ours(make("mgda", 8), gradients) @ gradients)
            their_norm = np.linalg.norm(theirs(weighting, gradients) @ gradients)
            assert our_norm <= their_norm * (1 + 1e-3)
            excess.append(their_norm / our_norm - 1)
    assert max(excess) > 0.01


@pytest.mark.parametrize("case", ["random", "collinear", "norms far apart", "opposite"])
def test_pcgrad_of_two_losses(case):
    for seed in range(4):
        gradients = gradient_cases(2, seed)[case]
        wanted = theirs(aggregation.PCGradWeighting(), gradients)
        np.testing.assert_allclose(ours(make("pcgrad", 2), gradients), wanted, rtol=1e-4, atol=1e-6)


def test_pcgrad_of_three_losses_in_expectation():
    torch.manual_seed(0)
    gradients = next(
        gradient_cases(3, seed)["random"]
        for seed in itertools.count()
        if np.sum(
            np.triu(gradient_cases(3, seed)["random"] @ gradient_cases(3, seed)["random"].T, 1) < 0
        )
        > 1
    )
    weights = jax.vmap(lambda seed: jnp.asarray(weights_of(seed, gradients)))(jnp.arange(3000))
    their_weights = [theirs(aggregation.PCGradWeighting(), gradients) for _ in range(3000)]
    assert np.std(np.asarray(weights), axis=0).max() > 1e-3  # the order matters here
    np.testing.assert_allclose(
        np.mean(np.asarray(weights), axis=0), np.mean(their_weights, axis=0), rtol=0.02
    )


def weights_of(seed, gradients):
    return weights_of_steps(sa.pcgrad(3, seed), np.ones((1, 3)), gradients[None])[0]


def test_uncertainty_follows_their_training():
    """Both learn the log variances by gradient descent with the same rate."""
    trajectory = np.random.default_rng(0).uniform(0.1, 3.0, (15, 3))
    scalarizer = scalarization.UW(3)
    optimizer = torch.optim.SGD(scalarizer.parameters(), lr=0.3)
    their_weights = []
    for losses in trajectory:
        values = torch.tensor(losses, dtype=torch.float32, requires_grad=True)
        optimizer.zero_grad()
        scalarizer(values).backward()
        their_weights.append(values.grad.numpy().copy())
        optimizer.step()
    weights = weights_along(sa.uncertainty(3, optax.sgd(0.3)), trajectory)
    np.testing.assert_allclose(weights, their_weights, rtol=1e-5)


@pytest.mark.parametrize("name", ["UPGrad", "DualProj"])
@pytest.mark.parametrize("num_losses", [2, 3, 8])
def test_projections_onto_the_cone(name, num_losses):
    """Their ridge is one for all gradients, a share of the trace, and larger.

    Where norms are far apart it is all that counts for the smaller gradients, and where gradients
    are nearly parallel it matters too: there the weights are compared with those of the oracle
    alone (tests/gradients/test_upgrad.py).
    """
    method = {"UPGrad": "upgrad", "DualProj": "dual_proj"}[name]
    weighting = getattr(aggregation, f"{name}Weighting")()
    for seed in range(3):
        gradients = gradient_cases(num_losses, seed)["random"]
        wanted = theirs(weighting, gradients) @ gradients
        h = ours(make(method, num_losses), gradients) @ gradients
        np.testing.assert_allclose(h, wanted, atol=2e-3 * np.linalg.norm(wanted))


def their_gradients(scalarizer, trajectory):
    """Those of a scalarizer by the losses, step by step."""
    found = []
    for losses in trajectory:
        values = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
        scalarizer(values).backward()
        found.append(values.grad.numpy())
    return np.asarray(found)


def test_one_number_of_all_losses():
    trajectory = np.random.default_rng(0).uniform(0.1, 3.0, (15, 3))
    units, mu = np.array([0.5, 1.0, 4.0]), 0.3
    preferences = torch.tensor(1 / units, dtype=torch.float64)
    for tx, scalarizer in (
        (sa.gls(3), scalarization.GeometricMean()),
        (sa.stch(3, mu, units=tuple(units)), scalarization.STCH(mu, weights=preferences)),
    ):
        wanted = their_gradients(scalarizer, trajectory)
        np.testing.assert_allclose(weights_along(tx, trajectory), wanted, rtol=1e-5)


def test_imtl_l_follows_their_training():
    trajectory = np.random.default_rng(0).uniform(0.1, 3.0, (15, 3))
    scalarizer = scalarization.IMTLL(3)
    optimizer = torch.optim.SGD(scalarizer.parameters(), lr=0.1)
    their_weights = []
    for losses in trajectory:
        values = torch.tensor(losses, dtype=torch.float32, requires_grad=True)
        optimizer.zero_grad()
        scalarizer(values).backward()
        their_weights.append(values.grad.numpy().copy())
        optimizer.step()
    tx = sa.uncertainty(3, optax.sgd(0.1), penalty="imtl_l")
    np.testing.assert_allclose(weights_along(tx, trajectory), their_weights, rtol=1e-5)
