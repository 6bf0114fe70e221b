"""The examples, as a user runs them."""

import pathlib
import runpy
import struct
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_sparse_autoencoder(tmp_path):
    picture = tmp_path / "new folder" / "picture.png"
    output = run("examples/sparse_autoencoder.py", "--epochs", 2, "--seed", 1, "--out", picture)
    assert "SoftAdapt" in output
    assert "hypergradient" in output
    assert "lambda = 0.0001" in output
    assert "equal" in output
    assert "Better with noise than hypergradient" in output
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width > 800
    assert height > 600


@pytest.mark.slow
def test_sparse_autoencoder_names_its_options():
    output = run("examples/sparse_autoencoder.py", "--help")
    for option in ("--epochs", "--seed", "--out"):
        assert option in output


def picture_size(path):
    return struct.unpack(">II", path.read_bytes()[16:24])


@pytest.mark.slow
@pytest.mark.parametrize("num_losses", [2, pytest.param(3, marks=pytest.mark.once)])
def test_weight_grid_search(tmp_path, num_losses):
    picture = tmp_path / "new folder" / "picture.png"
    script = "examples/weight_grid_search.py"
    # With three losses the equal weights are off the quick grid, with two they are on it.
    options = ("--quick", "--losses", num_losses, "--seed", 1, "--out", picture)
    output = run("-W", "error:::__main__", script, *options)
    names = {line.split("  ")[0].strip() for line in output.splitlines()}
    assert names >= {
        "best grid point",
        "equal weights",
        "softadapt",
        "uncertainty",
        "realtime_loss",
        "initial_loss",
        "prior_loss",
        "learned_weights",
        "gradnorm",
        "normalized_gradients",
        "pcgrad",
        "mgda",
    }
    assert "illustration" in output
    width, height = picture_size(picture)
    assert width > 800
    assert height > 600


@pytest.mark.slow
def test_equinox_loop(tmp_path):
    picture = tmp_path / "new folder" / "picture.png"
    script = "examples/equinox_loop.py"
    output = run("-W", "error:::__main__", script, "--quick", "--seed", 1, "--out", picture)
    assert "SoftAdapt" in output
    assert "fixed weights" in output
    width, height = picture_size(picture)
    assert width > 800
    assert height > 400


@pytest.mark.slow
@pytest.mark.once
def test_pinn_burgers(tmp_path):
    picture = tmp_path / "new folder" / "picture.png"
    script = "examples/pinn_burgers.py"
    output = run("-W", "error:::__main__", script, "--quick", "--seed", 1, "--out", picture)
    for name in ("equal weights", "SoftAdapt", "GradNorm", "Nash-MTL"):
        assert name in output
    width, height = picture_size(picture)
    assert width > 1200
    assert height > 1000


def test_the_reference_solution_of_the_burgers_equation():
    """It solves the equation: by finite differences, away from the front."""
    script = runpy.run_path(str(ROOT / "examples" / "pinn_burgers.py"))
    step, viscosity = 1e-3, 0.01 / np.pi
    t, x = np.asarray([0.3 - step, 0.3, 0.3 + step]), np.linspace(-0.9, 0.9, 1801)
    u = script["exact_solution"](t, x)
    by_t = (u[2] - u[0])[1:-1] / (2 * step)
    by_x = (u[1, 2:] - u[1, :-2]) / (2 * step)
    by_xx = (u[1, 2:] - 2 * u[1, 1:-1] + u[1, :-2]) / step**2
    terms = by_t, u[1, 1:-1] * by_x, -viscosity * by_xx
    assert np.max(np.abs(sum(terms))) < 1e-3 * max(np.max(np.abs(term)) for term in terms)
    np.testing.assert_allclose(
        script["exact_solution"](np.zeros(1), x)[0], -np.sin(np.pi * x), atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.once
def test_multitask_digits(tmp_path):
    picture = tmp_path / "new folder" / "picture.png"
    script = "examples/multitask_digits.py"
    options = ("--quick", "--seed", 1, "--out", picture, "--logdir", tmp_path / "logs")
    output = run("-W", "error:::__main__", script, *options)
    for name in ("equal", "SoftAdapt", "SoftAdapt, units", "uncertainty", "PCGrad", "MGDA"):
        assert name in output
        (log,) = (tmp_path / "logs" / name).iterdir()
        assert (b"cosines/class/parity" in log.read_bytes()) == (name in ("PCGrad", "MGDA"))
    width, height = picture_size(picture)
    assert width > 1200
    assert height > 1000


@pytest.mark.parametrize(
    "script",
    [
        "equinox_loop",
        pytest.param("pinn_burgers", marks=pytest.mark.slow),
        pytest.param("multitask_digits", marks=pytest.mark.slow),
    ],
)
def test_examples_refuse_a_wrong_option(script):
    result = subprocess.run(
        [sys.executable, f"examples/{script}.py", "--seed", "-1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "--seed should be at least 0, got -1" in result.stderr


@pytest.mark.slow
def test_weight_grid_search_names_its_options():
    output = run("examples/weight_grid_search.py", "--help")
    for option in ("--losses", "--resolution", "--epochs", "--seed", "--out", "--quick"):
        assert option in output


@pytest.mark.slow
def test_weight_grid_search_refuses_a_wrong_option():
    result = subprocess.run(
        [sys.executable, "examples/weight_grid_search.py", "--losses", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "--losses should be 2 or 3, got 4" in result.stderr
