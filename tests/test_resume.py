"""Training goes on from a checkpoint as if nothing had happened, or says that it cannot."""

import functools
import gc
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import softadapt_optax as sa

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"


# Killed trainings.


def load_script():
    spec = importlib.util.spec_from_file_location("kill_and_resume", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_killed_training_ends_as_one_that_was_not(tmp_path):
    out = tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "2", "--seed", "11", "--out", out],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows.keys() == {"softadapt", "pcgrad"}
    for row in rows.values():
        assert row["kills"] == 1
        assert row["resumes"] == 1  # the kill of this seed comes after a save
        assert row["bit_for_bit_equal"]
        assert "['losses']" in row["arrays"]
        assert any("loss_weights" in name for name in row["arrays"])
    assert any("projection_key" in name for name in rows["pcgrad"]["arrays"])


def test_the_script_sees_each_bit():
    differences = load_script().differences
    arrays = {"a": np.zeros(2, np.float32), "b": np.ones(1)}
    assert differences(arrays, {name: array.copy() for name, array in arrays.items()}) == []
    assert differences(arrays, arrays | {"a": -arrays["a"]}) == ["a"]
    assert differences(arrays, arrays | {"b": np.ones(1, np.float32)}) == ["b"]
    assert differences(arrays, {"a": arrays["a"]}) == ["b"]


def test_the_script_fails_when_something_differs(tmp_path, monkeypatch):
    script = load_script()
    row = {"method": "pcgrad", "arrays_that_differ": ["['losses']"], "bit_for_bit_equal": False}
    row |= dict.fromkeys(script.NUMBERS, 1)
    monkeypatch.setattr(script, "compare_all", lambda kills, seed: [row])
    monkeypatch.setattr(sys, "argv", ["", "--out", str(tmp_path / "report.json")])
    assert script.main() == 1


# Checkpoints of one transformation, restored for another.


def losses_fn(params):
    return [jnp.sum((params["w"] - 1.0) ** 2), jnp.sum((params["w"] + 2.0) ** 4), params["b"] ** 2]


PARAMS = {"w": np.linspace(0.0, 1.0, 4, dtype=np.float32), "b": np.float32(1.0)}
SAVED = lambda: sa.softadapt(3, 1.0, history=4)
OTHERS = {
    "fewer losses": lambda: sa.softadapt(2, 1.0, history=4),
    "more losses": lambda: sa.softadapt(4, 1.0, history=4),
    "shorter history": lambda: sa.softadapt(3, 1.0, history=3),
    "learned method": lambda: sa.uncertainty(3),
    "method without state": lambda: sa.fixed_weights([1.0, 2.0, 3.0]),
}


def chained(weighting):
    return optax.chain(weighting(), optax.adam(0.05))


def train(tx, params, state, steps):
    @jax.jit  # which takes NumPy's arrays too: Flax restores to them
    def step(params, state):
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@functools.cache
def saved():
    """Parameters and state after some steps."""
    tx = chained(SAVED)
    return train(tx, PARAMS, tx.init(PARAMS), 6)


def as_arrays(tx):
    return tx.init(PARAMS)


def as_shapes(tx):
    """The template of Orbax's documentation, which has to say where the arrays shall lie."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(tx.init, PARAMS),
    )


def with_standard_checkpointer(state, folder, template):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", template)


def with_pytree_checkpointer(state, folder, template):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        return checkpointer.restore(folder / "state", item=template)


def with_flax(state, folder, template):
    del folder
    return flax.serialization.from_bytes(template, flax.serialization.to_bytes(state))


ORBAX_SEES_SHAPES = "not compatible with the stored shape"
WE_SEE_SHAPES = "`opt_state` should be a state of this transformation.*such as the names"
WAYS = {
    "Orbax, arrays": (with_standard_checkpointer, as_arrays, ORBAX_SEES_SHAPES),
    "Orbax, shapes": (with_standard_checkpointer, as_shapes, ORBAX_SEES_SHAPES),
    "Orbax, PyTreeCheckpointer": (with_pytree_checkpointer, as_arrays, WE_SEE_SHAPES),
    "Flax": (with_flax, as_arrays, WE_SEE_SHAPES),
}
each_way = pytest.mark.parametrize("way", WAYS)
# Orbax leaves the reads of the other arrays behind when one raises.
with_loose_ends = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)
with_advice = pytest.mark.filterwarnings("ignore:.*sharding info:UserWarning")


@with_advice
@each_way
def test_a_restored_state_is_the_saved_one(way, tmp_path):
    restore, template, _ = WAYS[way]
    tx = chained(SAVED)
    params, state = saved()
    restored = restore(state, tmp_path, template(tx))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    found, wanted = (jax.tree.leaves(train(tx, params, start, 3)) for start in (restored, state))
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@with_advice
@with_loose_ends
@pytest.mark.parametrize(
    "way",
    [
        *("Orbax, arrays", "Flax"),
        pytest.param("Orbax, shapes", marks=pytest.mark.slow),
        pytest.param("Orbax, PyTreeCheckpointer", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_another_transformation_is_refused(other, way, tmp_path):
    """At once where the restoring side looks at shapes, else by the next `update`."""
    restore, template, message = WAYS[way]
    if "method" in other:
        message = "do(es)? not match|mismatch|Expected dict"
    tx, (_, state) = chained(OTHERS[other]), saved()
    with pytest.raises(ValueError, match=message):
        update_with_any_gradients(tx, restore(state, tmp_path, template(tx)))
    gc.collect()


def update_with_any_gradients(tx, state):
    num_losses = sa.loss_weights(tx.init(PARAMS)).size
    stacked = jax.tree.map(lambda param: jnp.stack([param] * num_losses), PARAMS)
    tx.update(stacked, state, PARAMS, losses=np.ones(num_losses))


@pytest.mark.slow
def test_orbax_cuts_and_pads_if_told_not_to_be_strict(tmp_path):
    """Nobody can tell afterwards: a new loss starts with weight and history 0."""
    tx, (_, state) = chained(OTHERS["more losses"]), saved()
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "state", args=ocp.args.StandardSave(state))
        args = ocp.args.StandardRestore(as_arrays(tx), strict=False)
        restored = checkpointer.restore(tmp_path / "state", args=args)
    np.testing.assert_array_equal(sa.loss_weights(restored)[:3], sa.loss_weights(state))
    assert sa.loss_weights(restored)[3] == 0
    update_with_any_gradients(tx, restored)
