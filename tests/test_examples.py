"""The examples and the benchmark, as a user runs them."""

import json
import pathlib
import struct
import subprocess
import sys

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
    assert "lambda = 0.0001" in output
    assert "equal" in output
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width > 800
    assert height > 600


def test_sparse_autoencoder_names_its_options():
    output = run("examples/sparse_autoencoder.py", "--help")
    for option in ("--epochs", "--seed", "--out"):
        assert option in output


def picture_size(path):
    return struct.unpack(">II", path.read_bytes()[16:24])


@pytest.mark.slow
@pytest.mark.parametrize("num_losses", [2, 3])
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


def test_weight_grid_search_names_its_options():
    output = run("examples/weight_grid_search.py", "--help")
    for option in ("--losses", "--resolution", "--epochs", "--seed", "--out", "--quick"):
        assert option in output


def test_weight_grid_search_refuses_a_wrong_option():
    result = subprocess.run(
        [sys.executable, "examples/weight_grid_search.py", "--losses", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "--losses should be 2 or 3, got 4" in result.stderr


@pytest.mark.slow
def test_benchmark(tmp_path):
    out = tmp_path / "step_cost.json"
    case = ("--only", "a batch per loss")
    output = run("benchmarks/step_cost.py", "--rounds", 2, "--out", out, *case)
    assert "time ratio" in output
    rows = json.loads(out.read_text())["rows"]
    assert {row["step"] for row in rows} >= {"plain", "plain again", "softadapt"}
    for row in rows:
        # There the K gradients cost no more than the plain ones; `every` counts both branches.
        if "every" not in row["step"]:
            assert row["flop_ratio"] == pytest.approx(1.0, abs=0.02)
