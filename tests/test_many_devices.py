"""Runs many_devices.py where there are eight devices: their number is fixed when JAX starts."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("many_devices.py")
# Compilation takes all the time; without LLVM's own optimizations half of it.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# A plugin for benchmarks, where one is installed, takes xdist around this for its own.
OPTIONS = ("-q", "-o", "addopts=", "-p", "no:benchmark")


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests",
    [
        pytest.param("all_other_methods", marks=pytest.mark.once),
        "not (all_other_methods or shard_map or in_types)",
        "shard_map",
        "in_types",
    ],
)
def test_training_on_eight_devices(tests):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, PROGRAM, "-k", tests],
        env=os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
