"""How many kernels does a training step launch on a GPU, and how many arrays does it carry?

Counted on any machine: programs are compiled for an H100 that is described in `h100.txtpb`, and
none of them runs. That takes JAX's plugin for CUDA, of the same version, without CUDA itself: the
extra "kernels", or

    pip install jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION

It matters for small steps: each kernel costs about a microsecond, each array of the state about
three of a call, and a loop or branch that depends on data 15 to 36 a turn.
"""

import collections
import importlib.util
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.patches
import optax

import softadapt_optax as sa
from benchmarks import methods, models
from benchmarks.common import (
    ONE_PASS,
    SOFTADAPT,
    VMAP,
    Part,
    Report,
    Step,
    Table,
    count_kernels,
    name_of,
    plain_step,
    steps_by_hand,
    weighted_step,
)
from benchmarks.models import Model
from softadapt_optax._component_grads import from_stacked

DEVICE = pathlib.Path(__file__).with_name("h100.txtpb")
PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
DTYPES = {"f32": "float32", "s32": "int32", "pred": "bool"}
LAUNCHES = ("fusion", "custom-call", "copy", "while", "conditional")
BY_HAND = (ONE_PASS, SOFTADAPT, VMAP)
K = 4
MODELS = ("tiny", "own_batches")


def is_installed() -> bool:
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(plugin) is not None for plugin in PLUGINS
    )


def weightings(k: int) -> dict[str, optax.GradientTransformationExtraArgs]:
    return {
        **{name: methods.make(name, k) for name in (*methods.ON_LOSSES, *methods.ON_GRADIENTS)},
        "softadapt, every=10": sa.softadapt(k, every=10),
        "mgda, every=100": sa.mgda(k, every=100),
    }


def steps_of(model: Model) -> dict[str, tuple[Step, Any]]:
    library = {
        name: weighted_step(model, weighting)
        for name, weighting in weightings(model.num_losses).items()
    }
    return {"plain": plain_step(model), **steps_by_hand(model, *BY_HAND), **library}


def counts(model: Model, step: Step, carry: Any, device: Any) -> dict[str, int]:
    sharding = jax.sharding.SingleDeviceSharding(device)

    def described(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    lowered = jax.jit(step, donate_argnums=0).lower(*jax.tree.map(described, (carry, model.batch)))
    hlo = lowered.compile().as_text()
    launched = collections.Counter(re.findall(rf" ({'|'.join(LAUNCHES)})\(", hlo))
    # The device waits for none of the loops whose turns are counted.
    turns = [int(count) for count in re.findall(r' while\(.*"known_trip_count":{"n":"(\d+)"', hlo)]
    launched["while"] -= len(turns)
    arrays = len(jax.tree.leaves(carry))
    return {
        "arrays": arrays,
        **{launch: launched[launch] for launch in LAUNCHES},
        "turns": sum(turns),
    }


def described_device(is_small: bool = False) -> Any:
    """An H100, or the same chip with the shared memory of a T4."""
    from jax.experimental import topologies

    description = DEVICE.read_text()
    if is_small:
        description = re.sub("(per_core|optin): 23[0-9]+", r"\1: 65536", description)
        description = description.replace("{ major: 9 minor: 0 }", "{ major: 7 minor: 5 }")
    return topologies.get_topology_desc(
        platform="cuda", target_config=description, topology="1x1x1"
    ).devices[0]


def count_all(num_losses: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """For the described device; `measure` has it done in a process of its own."""
    device = described_device()
    rows = []
    for kind in kinds:
        model = models.MODELS[kind](num_losses)
        for name, (step, carry) in steps_of(model).items():
            row = {"model": model.name, "kind": kind, "step": name, "num_losses": num_losses}
            rows.append({**row, **counts(model, step, carry, device)})
    return rows


def count_gramians(num_losses: int) -> list[dict[str, Any]]:
    """Kernels, and bytes read and written over those of the gradients, 128 MiB each.

    They are stored by rows or by columns; where a leaf is stored by columns XLA sums in shared
    memory, of which some chips have little.
    """
    rows = []
    for is_small, is_by_columns in itertools.product((False, True), (False, True)):

        def gramian(*each: jax.Array, is_by_columns: bool = is_by_columns) -> jax.Array:
            if is_by_columns:
                each = tuple(jnp.sin(one).T for one in each)
            return from_stacked(jnp.stack(each), jnp.ones(len(each))).gramian()

        sharding = jax.sharding.SingleDeviceSharding(described_device(is_small))
        one = jax.ShapeDtypeStruct((8192, 4096), jnp.float32, sharding=sharding)
        hlo = jax.jit(gramian).lower(*[one] * num_losses).compile().as_text()
        row = {"is_small": is_small, "is_by_columns": is_by_columns, "kernels": count_kernels(hlo)}
        rows.append({**row, "traffic": traffic(hlo) / (num_losses * 4 * one.size)})
    return rows


def traffic(hlo: str) -> int:
    """Bytes that the kernels of a compiled program read and write."""
    entry = hlo[hlo.index("\nENTRY") :]
    found = re.findall(r"%(\S+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)\)", entry)
    sizes = {
        name: sum(
            math.prod(map(int, filter(None, shape.split(",")))) * jnp.dtype(DTYPES[dtype]).itemsize
            for dtype, shape in re.findall(rf"({'|'.join(DTYPES)})\[([\d,]*)\]", result)
        )
        for name, result, *_ in found
    }
    return sum(
        sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", operands))
        for name, _, kind, operands in found
        if kind in LAUNCHES
    )


def measure(
    effort: float, report: Report, num_losses: int = K, kinds: Sequence[str] = MODELS
) -> list[dict[str, Any]]:
    del effort  # counts are what they are
    report(f"compiling {', '.join(kinds)} for an H100, K={num_losses}")
    return in_a_process(str(num_losses), *kinds)


def in_a_process(*arguments: str) -> list[dict[str, Any]]:
    """The rows of `python -m benchmarks.kernels` with these arguments."""
    if not is_installed():
        raise ModuleNotFoundError(
            "The counts of kernels need JAX's plugin for CUDA, `pip install jax-cuda12-plugin"
            f"=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}`."
        )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "benchmarks.kernels", *arguments]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(found.stdout)


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    columns = ["step", "arrays", "fusions and calls", "copies", "loops", "conditionals", "turns"]
    found = []
    for name in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == name]
        cells = [
            [
                name_of(row["step"]),
                str(row["arrays"]),
                str(row["fusion"] + row["custom-call"]),
                *(str(row[count]) for count in (*LAUNCHES[2:], "turns")),
            ]
            for row in of_model
        ]
        found.append(Table(f"{name}, K={of_model[0]['num_losses']}", columns, cells))
    return found


def draw(area: matplotlib.figure.SubFigure, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["model"] for row in rows))
    for axes, name in zip(area.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        of_model = [row for row in rows if row["model"] == name]
        labels = [row["step"] for row in of_model]
        kernels = [row["fusion"] + row["custom-call"] for row in of_model]
        copies = [row["copy"] for row in of_model]
        colours = ["0.5" if label == "plain" or "by hand" in label else "C0" for label in labels]
        axes.barh(labels, kernels, color=colours)
        axes.barh(labels, copies, left=kernels, color="C1")
        axes.invert_yaxis()
        axes.set_title(name)
        axes.set_xlabel("kernels of a step")
    patches = {"plain and by hand": "0.5", "library": "C0", "copies": "C1"}
    handles = [matplotlib.patches.Patch(color=c, label=label) for label, c in patches.items()]
    axes.legend(handles=handles, loc="upper right")


PART = Part(
    "kernels",
    "Kernels on a GPU",
    "What a step launches and carries when it is compiled for an H100, counted without one: "
    "arrays of parameters and state, fused loops and calls, copies, the loops and conditionals "
    "for which the device waits, and the turns of loops that have a fixed number of them, of which "
    "each launches some of these kernels anew. They are what small steps cost on a GPU: on an "
    "H100 about one microsecond a kernel, three for each array of a state that is handed over "
    "in a call, and 15 to 36 for a turn of a loop or a branch that depends on data. By hand: a "
    'softmax of the losses as weights ("one pass"); SoftAdapt with a history and a count as '
    "state; `vmap` of the pullback and a Gramian. All steps return the losses one by one.",
    measure,
    tables,
    draw,
    lambda rows: 1.0 + 0.2 * len({row["step"] for row in rows}),
)


if __name__ == "__main__":
    num_losses, kinds = int(sys.argv[1]), sys.argv[2:]
    print(json.dumps(count_all(num_losses, kinds) if kinds else count_gramians(num_losses)))
