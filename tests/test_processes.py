"""Two processes with half of the batch each train as one with all of it."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).with_name("process_worker.py")
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run_workers(argument_lists, timeout=180):
    """Runs the workers side by side; one that fails or hangs takes the others with it."""
    commands = [[sys.executable, WORKER, *map(str, each)] for each in argument_lists]
    logs = [pathlib.Path(each[0]).with_suffix(".log") for each in argument_lists]
    workers = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                worker = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file)
            workers.append(worker)
        codes = codes_at_the_end(workers, time.monotonic() + timeout)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert not any(codes), f"{codes}\n" + "\n".join(log.read_text() for log in logs)
    return [np.load(each[0]) for each in argument_lists]


def codes_at_the_end(workers, deadline):
    """The exit codes, as soon as all have ended or one has failed."""
    while time.monotonic() < deadline:
        codes = [worker.poll() for worker in workers]
        if any(codes) or None not in codes:
            return codes
        time.sleep(0.05)
    return ["timeout"]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    port = free_port()
    first, second = run_workers([(tmp_path / f"{i}.npz", port, i, 2) for i in range(2)])
    (alone,) = run_workers([(tmp_path / "alone.npz",)])
    for method in ("softadapt", "uncertainty", "gradnorm", "mgda", "pcgrad"):
        names = ("weights", "first", "second", "fit", "opposed")
        ours, others, wanted = (
            [run[f"{method} {name}"] for name in names] for run in (first, second, alone)
        )
        assert np.ptp(wanted[0][-1]) > 0.01  # equal weights would hide an error
        for mine, other, single in zip(ours, others, wanted, strict=True):
            assert mine.tobytes() == other.tobytes()
            np.testing.assert_allclose(mine, single, rtol=1e-6, atol=1e-6, err_msg=method)


def test_a_failing_worker_ends_the_others(tmp_path):
    """The first of two waits for a second that is none."""
    port = free_port()
    pair = [(tmp_path / f"{i}.npz", port, i, 2) for i in ("0", "none")]
    with pytest.raises(AssertionError, match=r"(?s)\[None, 1\].*invalid literal for int"):
        run_workers(pair)


def test_a_worker_that_hangs_is_ended(tmp_path):
    """The first of two waits for a second that never comes."""
    with pytest.raises(AssertionError, match="timeout"):
        run_workers([(tmp_path / "0.npz", free_port(), 0, 2)], timeout=5)
