"""What a step launches and carries on a GPU, counted by compiling for one that is described."""

import pytest

from benchmarks import kernels, methods
from benchmarks.common import ONE_PASS, VMAP

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not kernels.is_installed(), reason="needs the plugin for CUDA"),
]

ON_LOSSES = (*methods.ON_LOSSES, "softadapt, every=10")
ON_GRADIENTS = tuple(methods.ON_GRADIENTS)
# Those with more arithmetic of their own: means, random numbers, an inner optimizer.
LONGER = ("softadapt, every=10", "uncertainty", "learned_weights")
LONGEST = ("cov_weighting", "relobralo", "rlw", "famo")
ADAM_ARRAYS = 3  # count, and two moments of one array


@pytest.fixture(scope="module", params=[(4, kernels.MODELS), (8, ("tiny",))], ids=["K=4", "K=8"])
def counts(request):
    """By model, then by step."""
    found = {}
    for row in kernels.measure(1.0, print, *request.param):
        found.setdefault(row["kind"], {})[row["step"]] = row
    return found


def test_the_state_is_few_arrays(counts):
    wanted = {
        "fixed_weights": 2,
        "prior_loss": 3,
        "causal_weights": 2,
        "realtime_loss": 2,
        "gls": 2,
        "stch": 2,
        "initial_loss": 3,
        "dwa": 3,
        "rlw": 3,
        "softadapt": 4,
        "cov_weighting": 5,
        "relobralo": 6,
        "softadapt, every=10": 7,  # the step, the period, and the weights held in it
        "uncertainty": 3 + ADAM_ARRAYS,
        "learned_weights": 3 + ADAM_ARRAYS,
        "famo": 6 + ADAM_ARRAYS,
        "gradnorm": 6 + ADAM_ARRAYS,
        "normalized_gradients": 5,
        "lr_annealing": 4,
        "pcgrad": 5,
        "mgda": 4,
        "upgrad": 4,
        "dual_proj": 4,
        "cagrad": 4,
        "nash_mtl": 4,
        "fairgrad": 4,
        "imtl_g": 4,
        "conflict_free": 4,
        "aligned_mtl": 4,
        "gradvac": 6,
    }
    assert wanted.keys() == {*ON_LOSSES, *ON_GRADIENTS}
    for steps in counts.values():
        plain = steps["plain"]["arrays"]
        assert {name: steps[name]["arrays"] - plain for name in wanted} == wanted


def test_a_method_on_losses_launches_little_more_than_the_plain_step(counts):
    for steps in counts.values():
        plain = steps["plain"]
        for name in ON_LOSSES:
            fusions, copies = (11, 4) if name in LONGEST else (8, 4) if name in LONGER else (6, 2)
            assert steps[name]["fusion"] <= plain["fusion"] + fusions
            assert steps[name]["copy"] <= plain["copy"] + copies
            assert steps[name]["custom-call"] <= plain["custom-call"]


def test_softadapt_launches_little_more_than_one_pass_by_hand(counts):
    ours, by_hand = counts["tiny"]["softadapt"], counts["tiny"][ONE_PASS]
    assert ours["fusion"] <= by_hand["fusion"] + 3
    assert ours["copy"] <= by_hand["copy"] + 1


def test_the_device_waits_for_nothing(counts):
    """No branch, and no loop but with a fixed number of turns, up to 8 losses."""
    for steps in counts.values():
        for name in (*ON_LOSSES, *ON_GRADIENTS):
            assert steps[name]["while"] == steps[name]["conditional"] == 0


def test_gradients_of_one_output_are_pulled_back_together(counts):
    """Then there are few more kernels than with `vmap` by hand; solvers have their own."""
    steps = counts["tiny"]
    assert steps["normalized_gradients"]["fusion"] <= steps[VMAP]["fusion"] + 6


@pytest.mark.parametrize("num_losses", [2, 4, 8])
def test_large_gradients_are_read_once_for_their_gramian(num_losses):
    """And on a GPU with little shared memory it compiles, however they are stored."""
    for row in kernels.in_a_process(str(num_losses)):
        if not row["is_by_columns"]:
            assert row["kernels"] <= 5
            assert row["traffic"] <= 1.05
