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


@pytest.mark.slow
def test_benchmark(tmp_path):
    out = tmp_path / "step_cost.json"
    output = run("benchmarks/step_cost.py", "--rounds", 2, "--out", out)
    assert "time ratio" in output
    rows = json.loads(out.read_text())["rows"]
    assert {row["step"] for row in rows} >= {"plain", "plain again", "softadapt"}
    for row in rows:
        assert row["flop_ratio"] == pytest.approx(1.0, abs=0.01)
