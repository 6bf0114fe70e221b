"""The comparison with PyTorch: both sides do the same work, and the part runs."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import oracle
import pytest
from helpers import weights_along

import softadapt_optax as sa
from benchmarks import common, models, peers

NEEDED = "PyTorch and TorchJD are not installed: pip install torch torchjd"
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("torchjd", reason=NEEDED)
twins = pytest.importorskip("benchmarks.twins")

SMALL = {
    "mlp": functools.partial(models.mlp, width=32, batch=16),
    "heads": functools.partial(models.heads, width=32, batch=16),
    "convolutions": functools.partial(models.convolutions, channels=4, size=8, batch=4),
    "transformer": functools.partial(models.transformer, width=64, length=8, batch=2),
    "large transformer": functools.partial(
        models.transformer, width=128, length=8, batch=2, layers=2, head=64
    ),
    "tiny": functools.partial(models.tiny, scan_steps=1),
    "own_batches": functools.partial(models.own_batches, scan_steps=1),
}
SETTINGS = tuple(twins.SETTINGS)
if twins.device() == "cuda" and not torch.cuda.is_available():
    pytest.skip("PyTorch has no CUDA, JAX has", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def products_are_as_exact_as_those_of_jax():
    twins.match_precision()


@pytest.fixture(autouse=True)
def models_may_broadcast():
    with jax.numpy_rank_promotion("allow"):
        yield


def their_gradients(twin, backward):
    backward(twin)
    return {name: leaf.grad.cpu().numpy() for name, leaf in twin.modules.named_parameters()}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("num_losses", [2, 4])
def test_twins_have_the_losses_of_the_models(kind, num_losses):
    model = SMALL[kind](num_losses)
    losses, _ = twins.TWINS[kind](model).losses_fn()
    theirs = [loss.item() for loss in losses]
    np.testing.assert_allclose(theirs, model.losses_fn(model.params, model.batch), atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_twins_train_as_the_models_do(kind):
    """After some steps of Adam on the sum, the losses still agree."""
    model = SMALL[kind](4)
    step, carry = common.plain_step(model)
    step = jax.jit(step)
    twin = twins.TWINS[kind](model)
    their_step = twins.their_step(twin, twins.summed)
    for _ in range(5):
        carry, _ = step(carry, model.batch)
        their_step()
    theirs = [loss.item() for loss in twin.losses_fn()[0]]
    np.testing.assert_allclose(theirs, model.losses_fn(carry[0], model.batch), rtol=2e-3)


@pytest.mark.parametrize("setting", SETTINGS[1:])
@pytest.mark.parametrize("kind", ["mlp", "heads", "own_batches"])
def test_all_settings_of_torchjd_give_one_gradient(kind, setting):
    def gradients(setting):
        twin = twins.TWINS[kind](SMALL[kind](3))
        return their_gradients(twin, twins.torchjd_backward(twin, "PCGrad", setting))

    torch.manual_seed(0)
    wanted = gradients(SETTINGS[0])
    torch.manual_seed(0)
    found = gradients(setting)
    shared = [name for name in wanted if kind != "heads" or name.startswith("0.")]
    for name in shared:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-5)


def test_softadapt_in_pytorch_gives_the_weights_of_the_paper():
    trajectory = np.random.default_rng(0).uniform(0.5, 3.0, (12, 4)).astype(np.float32)
    wanted = oracle.softadapt_weights(trajectory, history=twins.HISTORY, order=None)
    ours = weights_along(sa.softadapt(4, twins.BETA, history=twins.HISTORY, order=None), trajectory)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4)
    for lean in peers.HOST_SOFTADAPT.values():
        weights_fn = twins.host_softadapt(4, lean)
        theirs = [weights_fn(torch.tensor(losses).unbind()).tolist() for losses in trajectory]
        np.testing.assert_allclose(theirs, wanted, rtol=1e-4)
        assert np.ptp(wanted[-1]) > 0.01


@pytest.mark.slow
def test_the_part_measures_tabulates_and_draws():
    case = peers.Case("own_batches", SMALL["own_batches"](2), models.own_batches(2, 3))
    tiny = peers.Case("tiny", SMALL["tiny"](2))
    rows, failures = peers.measure_methods(case, 0.0)
    assert not failures
    figures = {
        "methods": rows,
        "failures": failures,
        "softadapt": peers.measure_softadapt(tiny, 0.0),
        "weights_alone": peers.weights_alone(0.0, steps=100),
    }
    figures = common.rounded(figures)
    for row in figures["methods"]:
        assert set(row["mgda_microseconds"]) == set(SETTINGS)
        assert row["ours"]["time_ratio"] > 0
        assert row["setting"] in SETTINGS
        assert "scan" in row
    methods, softadapt = peers.tables(figures)
    assert len(methods.rows) == len(peers.their_methods())
    assert len(softadapt.rows) == len(peers.HOST_SOFTADAPT)
    assert all(
        len(row) == len(table.columns) for table in (methods, softadapt) for row in table.rows
    )
    has_solver = importlib.util.find_spec("quadprog") is not None
    assert ("quadprog-projector" in methods.note) != has_solver
    figure = plt.figure()
    peers.draw(figure.subfigures(1, 1), figures)
    figure.draw_without_rendering()
    plt.close(figure)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_steps_that_fail_are_left_out_and_said():
    """UPGrad's solver has no bfloat16."""
    model = models.transformer(
        2, width=64, length=8, batch=2, layers=2, head=64, dtype=jnp.bfloat16
    )
    case = peers.Case("large transformer", model)
    rows, failures = peers.measure_methods(case, 0.0)
    assert {row["method"] for row in rows} == {"MGDA", "PCGrad"}
    if "UPGrad" in peers.their_methods():
        assert all(failure["step"].startswith("UPGrad, ") for failure in failures)
        assert all(failure["error"].startswith("TypeError: ") for failure in failures)
        figures = common.rounded({"methods": rows, "failures": failures})
        assert (
            f"{failures[0]['step']} did not run for {case.name}" in peers.method_table(figures).note
        )


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_pytorch_that_lacks_the_device_of_jax_is_said(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(common.Unavailable, match=r"JAX's device.*got PyTorch .*Remedy: .*CPU"):
        peers.measure(1.0, print)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"softadapt-optax\[peers\]"):
        peers.measure(1.0, print)
