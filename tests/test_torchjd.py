"""Agreement with TorchJD, a well-kept PyTorch implementation of the same methods."""

import functools
import importlib.util
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import scipy.stats
from helpers import coarse, gradient_cases, trained_gradients, weights_along, weights_of_steps

import softadapt_optax as sa
from softadapt_optax._solvers.projections import random_orders

NEEDED = "PyTorch and TorchJD are not installed: pip install torch torchjd"
torch = pytest.importorskip("torch", reason=NEEDED)
aggregation = pytest.importorskip("torchjd.aggregation", reason=NEEDED)
scalarization = pytest.importorskip("torchjd.scalarization", reason=NEEDED)
needs_cvxpy = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("cvxpy", "clarabel", "ecos"))),
    reason='TorchJD solves it with CVXPY: pip install "torchjd[cagrad,nash-mtl]"',
)
# That Nash-MTL's programs are not of the kind that it solves fast, nor always solved well.
ignores_cvxpy = pytest.mark.filterwarnings(
    "ignore:You are solving a parameterized problem", "ignore:Solution may be inaccurate"
)


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
    are nearly parallel it matters too: there ours are compared with the oracle (below, and in
    tests/gradients/test_upgrad.py).
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


class Peer(NamedTuple):
    """One method of both, with the same options, and its weights by the oracle."""

    options: dict
    theirs: Callable[[int], Callable]
    oracle: Callable[[np.ndarray], np.ndarray]


def bargain_of_unit_length(gramian):
    weights = oracle.fairgrad_weights(gramian, 1.0)
    return weights / np.sqrt(weights @ gramian @ weights)


PEERS = {
    "aligned_mtl, min": Peer(
        {"scale": "min"}, lambda _: aggregation.AlignedMTL(), oracle.aligned_weights
    ),
    "aligned_mtl, median": Peer(
        {"scale": "median"},
        lambda _: aggregation.AlignedMTL(scale_mode="median"),
        functools.partial(oracle.aligned_weights, scale="median"),
    ),
    "aligned_mtl, rmse": Peer(
        {"scale": "rmse"},
        lambda _: aggregation.AlignedMTL(scale_mode="rmse"),
        functools.partial(oracle.aligned_weights, scale="rmse"),
    ),
    "cagrad": Peer(
        {"c": 0.5, "ridge": 0.0},
        lambda _: aggregation.CAGrad(0.5),
        functools.partial(oracle.cagrad_weights, c=0.5),
    ),
    "conflict_free": Peer(
        {"ridge": 0.0}, lambda _: aggregation.ConFIG(), oracle.conflict_free_weights
    ),
    "dual_proj": Peer({"ridge": 0.0}, lambda _: aggregation.DualProj(), oracle.dual_proj_weights),
    "fairgrad, 0.5": Peer(
        {"fairness": 0.5, "ridge": 0.0},
        lambda _: aggregation.FairGrad(0.5),
        functools.partial(oracle.fairgrad_weights, fairness=0.5),
    ),
    "fairgrad, 2": Peer(
        {"fairness": 2.0, "ridge": 0.0},
        lambda _: aggregation.FairGrad(2.0),
        functools.partial(oracle.fairgrad_weights, fairness=2.0),
    ),
    "imtl_g": Peer({"ridge": 0.0}, lambda _: aggregation.IMTLG(), oracle.imtl_g_weights),
    "nash_mtl": Peer({"max_norm": 1.0, "ridge": 0.0}, aggregation.NashMTL, bargain_of_unit_length),
    "upgrad": Peer({"ridge": 0.0}, lambda _: aggregation.UPGrad(), oracle.upgrad_weights),
}


def peers_and_cases(cases_of):
    marks = (needs_cvxpy, ignores_cvxpy)
    return [
        pytest.param(name, case, marks=marks if name in ("cagrad", "nash_mtl") else ())
        for name, cases in cases_of.items()
        for case in cases
    ]


def directions(name, gradients):
    """Ours, and theirs in the type of the gradients."""
    peer, num_losses = PEERS[name], len(gradients)
    weights = ours(make(name.split(",")[0], num_losses, **peer.options), gradients)
    found = peer.theirs(num_losses)(torch.tensor(gradients)).numpy()
    return weights @ np.asarray(gradients, np.float64), found


def errors(name, gradients):
    """Of ours and of theirs, over the length of the oracle's direction."""
    exact = np.asarray(gradients, np.float64)
    wanted = PEERS[name].oracle(exact @ exact.T) @ exact
    return [distance(found, wanted) for found in directions(name, gradients)]


def distance(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


SIZABLE = ("random", "collinear", "identical")
WITH_ZERO = (*SIZABLE, "zero")


@pytest.mark.parametrize("num_losses", [2, 3, 5])
@pytest.mark.parametrize(
    ("name", "case"),
    peers_and_cases(
        {
            "aligned_mtl, min": WITH_ZERO,
            "aligned_mtl, median": WITH_ZERO,
            "aligned_mtl, rmse": WITH_ZERO,
            "cagrad": SIZABLE,
            "conflict_free": (*WITH_ZERO, "norms far apart"),
            "fairgrad, 0.5": SIZABLE,
            "fairgrad, 2": SIZABLE,
            "imtl_g": WITH_ZERO,
            "nash_mtl": ("random",),
        }
    ),
)
def test_the_direction_is_theirs(name, case, num_losses):
    """To a few roundings, as float32 knows these Gramians; but CAGrad to what CLARABEL reaches."""
    for seed in range(4):
        found, wanted = directions(name, coarse(gradient_cases(num_losses, seed)[case]))
        assert distance(found, wanted) <= (5e-4 if name == "cagrad" else 5e-6)


@pytest.mark.parametrize(
    ("name", "case"),
    peers_and_cases(
        {
            "cagrad": ("small", "norms far apart"),
            "dual_proj": ("small", "norms far apart"),
            "fairgrad, 2": ("small", "norms far apart"),
            "imtl_g": ("norms far apart",),
            "nash_mtl": ("small", "norms far apart"),
            "upgrad": ("small", "norms far apart"),
        }
    ),
)
def test_where_theirs_is_off_ours_is_the_direction_of_the_oracle(name, case):
    """Theirs is off by more than a fifth of its length, for one of a few seeds at least.

    Where the norm of all gradients is below 0.01, CAGrad's weights are 0 and those of UPGrad and
    DualProj equal. Where norms are far apart, CAGrad's are 0 too, as some combination is below 1e-4
    of that norm; the ridge of UPGrad and DualProj, 1e-4 of the trace, is more than small gradients
    are; and the pseudo-inverse in IMTL-G leaves these out. FairGrad's least squares and Nash-MTL's
    programs start at equal weights and stop on the way. Nash-MTL's weights are those of the Gramian
    over its norm, so that small gradients make a small step.
    """
    pairs = []
    for seed in range(4):
        cases = gradient_cases(8, seed)
        gradients = coarse(1e-6 * cases["random"] if case == "small" else cases[case])
        pairs.append(errors(name, gradients))
    our_error, their_error = np.max(pairs, axis=0)
    assert our_error < 2e-6
    assert their_error > 0.2


def test_in_float32_aligned_mtl_is_closer_to_the_oracle_than_theirs():
    """Their eigensolver knows an eigenvalue to the rounding of the largest, ours to its own."""
    pairs = []
    for scale, seed in itertools.product(("min", "median", "rmse"), range(4)):
        gradients = coarse(gradient_cases(8, seed)["collinear"]).astype(np.float32)
        pairs.append(errors(f"aligned_mtl, {scale}", gradients))
    our_error, their_error = np.max(pairs, axis=0)
    assert our_error < 5e-6
    assert their_error > 2e-5


def test_where_their_imtl_g_raises_all_losses_ours_takes_the_opposite_step():
    """There the weights that the paper's equation gives have a negative sum before it is made 1."""
    gradients = np.array([[0.2, 0.0, 0.1], [1.0, 2.0, 0.0], [1.0, -2.0, 0.0]])
    found, peers = directions("imtl_g", gradients)
    assert np.all(gradients @ peers < 0)
    np.testing.assert_allclose(found, -peers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_losses", [3, 5])
def test_at_pareto_stationary_points_their_conflict_free_step_raises_some_loss(num_losses):
    """Theirs is one of least squares, for no step has the same positive cosine with all; ours 0."""
    for seed in range(4):
        gradients = gradient_cases(num_losses, seed)["stationary"]
        found = ours(make("conflict_free", num_losses), gradients) @ gradients
        step = aggregation.ConFIG()(torch.tensor(gradients)).numpy()
        cosines = gradients @ step / np.linalg.norm(gradients, axis=1) / np.linalg.norm(step)
        assert np.min(cosines) < -0.05
        assert np.linalg.norm(found) < 1e-4 * np.linalg.norm(step)


@needs_cvxpy
@ignores_cvxpy
def test_nash_mtl_holds_its_weights_as_theirs_does():
    """Up to a factor: they shorten the step of held weights anew, by the gradients of each step.

    Ours are found at the end of a period, which is where theirs starts.
    """
    gradients = np.array([coarse(gradient_cases(3, seed)["random"]) for seed in range(9)])
    aggregator = aggregation.NashMTL(3, update_weights_every=3)
    tx = sa.nash_mtl(3, 1.0, ridge=0.0, every=3)
    rows = np.asarray(weights_of_steps(tx, np.ones((9, 3)), gradients))
    for weights, matrix in zip(rows[2:], gradients[2:], strict=True):
        step = weights @ matrix
        found = aggregator(torch.tensor(matrix)).numpy()
        np.testing.assert_allclose(step / np.linalg.norm(step), found, atol=2e-6)


@pytest.mark.parametrize("num_losses", [2, 3, 5])
@pytest.mark.parametrize("method", ["pcgrad", "gradvac"])
def test_with_our_orders_their_turns_are_ours(method, num_losses, monkeypatch):
    key_name, weighting = {
        "pcgrad": ("projection_key", aggregation.PCGradWeighting()),
        "gradvac": ("turning_key", aggregation.GradVacWeighting()),
    }[method]
    tx = make(method, num_losses)
    state = tx.init(None)
    for step in range(6):
        key = jax.random.wrap_key_data(getattr(state.weighting_state, key_name))
        orders = np.asarray(random_orders(jax.random.split(key)[0], num_losses))
        if method == "gradvac":  # they draw an order of the others alone
            orders = [[j - (j > i) for j in row if j != i] for i, row in enumerate(orders)]
        drawn = iter(torch.tensor(np.array(orders)))
        monkeypatch.setattr(torch, "randperm", lambda _, drawn=drawn: next(drawn))
        gradients = coarse(gradient_cases(num_losses, step % 2)["random"])
        _, state = tx.update(jnp.asarray(gradients, float), state, losses=jnp.ones(num_losses))
        np.testing.assert_allclose(
            sa.loss_weights(state), theirs(weighting, gradients), rtol=1e-5, err_msg=f"{step}"
        )


def test_gradvac_turns_small_gradients_as_large_ones():
    """Theirs adds 1e-8 to the product of two norms, beside which these are nothing."""
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    small = 1e-6 * gradients
    turned = theirs(aggregation.GradVacWeighting(), gradients)
    np.testing.assert_allclose(turned, [2.0, 1.5], rtol=1e-6)
    np.testing.assert_allclose(ours(make("gradvac", 2), small), turned, rtol=1e-5)
    np.testing.assert_allclose(theirs(aggregation.GradVacWeighting(), small), 1.0, atol=0.01)


def test_smoothed_weights_are_those_of_cr_mogm():
    gradients = np.array([gradient_cases(2, seed)["random"] for seed in range(6)])
    weighting = aggregation.CRMOGMWeighting(aggregation.PCGradWeighting(), alpha=0.7)
    wanted = [theirs(weighting, matrix) for matrix in gradients]
    weights = weights_of_steps(sa.pcgrad(2, smoothing=0.7), np.ones((6, 2)), gradients)
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_dwa_is_theirs_from_one_epoch_to_the_next(temperature):
    """Their weights of an epoch are those that ours have from the last step of the one before."""
    trajectory = np.random.default_rng(0).uniform(0.1, 3.0, (24, 3))
    scalarizer, wanted = scalarization.DWA(temperature), []
    for epoch in np.split(trajectory, 6):
        wanted.extend(their_gradients(scalarizer, epoch))
        scalarizer.step()
    weights = weights_along(sa.dwa(3, temperature, every=4), trajectory)
    np.testing.assert_allclose(weights[:-1], wanted[1:], rtol=1e-5)


def weights_of_famo(before, after):
    """Ours and theirs, of losses before and after each step, on the same batch."""
    scalarizer, rows, tx = scalarization.FAMO(3).double(), [], sa.famo(3)
    state, previous = tx.init(None), np.full(3, np.nan)
    for losses, left in zip(before, after, strict=True):
        values = jnp.asarray(losses, float), jnp.asarray(previous, float)
        _, state = tx.update(jnp.zeros(3), state, losses=values[0], previous_losses=values[1])
        rows.append((sa.loss_weights(state), their_gradients(scalarizer, [losses])[0]))
        scalarizer.update(torch.tensor(left))
        previous = left
    return np.array(rows).swapaxes(0, 1)


def test_famo_follows_their_training():
    """In any unit: theirs adds 1e-8 to each loss, which for small ones is all that it sees."""
    rng = np.random.default_rng(0)
    before = rng.uniform(0.5, 2.0, (15, 3)) * [0.1, 1.0, 50.0]
    after = before * rng.uniform(0.8, 1.0, (15, 3)) * [1.0, 0.95, 0.9]
    found, wanted = weights_of_famo(before, after)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    found_of_small, theirs_of_small = weights_of_famo(1e-10 * before, 1e-10 * after)
    np.testing.assert_allclose(found_of_small, wanted, rtol=1e-4)
    assert np.max(np.abs(theirs_of_small - wanted)) > 0.2


def test_rlw_draws_from_their_distribution():
    """By the smallest weights of many steps, which do tell a Dirichlet distribution from it."""
    torch.manual_seed(0)
    trajectory = np.ones((3000, 3))
    wanted = np.min(their_gradients(scalarization.Random(), trajectory), axis=1)

    def p_value(distribution):
        weights = weights_along(sa.rlw(3, distribution=distribution), trajectory)
        return scipy.stats.ks_2samp(np.min(weights, axis=1), wanted).pvalue

    assert p_value("normal") > 0.01
    assert p_value("dirichlet") < 1e-6
