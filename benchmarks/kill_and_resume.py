"""Is a training that is killed again and again, and resumed each time, the same training?

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0] [--out kill_and_resume.json]

It takes about two minutes on two cores. For a chain of `softadapt` and Adam, and one of `pcgrad`,
whose state has a random key, a process trains a small network and saves it with Orbax every few
steps, in the background. It is killed (SIGKILL) at random moments, half of the kills for each
chain; another process goes on from the newest checkpoint. What a run without kills ends with has to
be found bit for bit: parameters, optimizer's state with weights and key, and the losses of every
step. If it is not, or if a kill comes too late, the exit status is 1.
"""

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import rich.console
import rich.progress
import rich.table

import softadapt_optax as sa

METHODS = ("softadapt", "pcgrad")
SAVE_EVERY = 8  # the records of `softadapt` below are three steps apart: saves fall in between
LONGEST_LIFE = 24  # steps from a start to a kill
PAUSE = 0.02  # seconds a step, so that kills hit the training as well as the saves
TIME_LIMIT = 120  # seconds for one process, and one more for each step


def num_steps(kills: int) -> int:
    """More than all lives together, with the steps between the order to kill and the end."""
    return kills * (LONGEST_LIFE + 2 * SAVE_EVERY)


# The training process.


def transformation(method: str) -> Any:
    weightings = {
        "softadapt": lambda: sa.softadapt(3, 1.0, loss_weighted=True, every=3),
        "pcgrad": lambda: sa.pcgrad(3),
    }
    return optax.chain(weightings[method](), optax.adam(1e-2))


def first_carry(method: str, steps: int) -> dict[str, Any]:
    """All that a checkpoint holds."""
    keys = jax.random.split(jax.random.key(0))
    params = {
        "first": jax.random.normal(keys[0], (16, 32)) / 4,
        "second": jax.random.normal(keys[1], (32, 4)) / 6,
    }
    opt_state = transformation(method).init(params)
    return {"params": params, "opt_state": opt_state, "losses": jnp.zeros((steps, 3))}


def compiled_step(method: str) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    tx = transformation(method)

    def losses_fn(params: Any, x: Any) -> tuple[Any, ...]:
        y = jnp.tanh(x @ params["first"]) @ params["second"]
        target = jnp.sin(2 * x[:, :4])
        return jnp.mean((y - target) ** 2), jnp.mean((y + target) ** 2), jnp.mean(jnp.abs(y))

    @jax.jit
    def step(carry: dict[str, Any], index: int) -> dict[str, Any]:
        x = jax.random.normal(jax.random.fold_in(jax.random.key(1), index), (64, 16))
        params = carry["params"]
        losses, grads = sa.value_and_component_grads(losses_fn)(params, x)
        updates, opt_state = tx.update(grads, carry["opt_state"], params)
        return {
            "params": optax.apply_updates(params, updates),
            "opt_state": opt_state,
            "losses": carry["losses"].at[index].set(jnp.stack(losses)),
        }

    return step


def work(method: str, steps: int, folder: pathlib.Path) -> None:
    """Trains from the newest checkpoint on, and tells the number of each step that is done."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    carry, step = first_carry(method, steps), compiled_step(method)
    with ocp.CheckpointManager((folder / "checkpoints").resolve(), options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            carry = manager.restore(done, args=ocp.args.StandardRestore(carry))
        print(done, flush=True)
        while done < steps:
            carry = jax.block_until_ready(step(carry, done))
            done += 1
            print(done, flush=True)
            if done % SAVE_EVERY == 0 or done == steps:
                manager.save(done, args=ocp.args.StandardSave(carry))
            time.sleep(PAUSE)
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    np.savez(folder / "end.npz", **arrays)


# The process that starts and kills it.


class Run:
    """A training in its folder, from process to process, and what happened to it."""

    def __init__(self, method: str, kills: int, folder: pathlib.Path):
        self.method, self.steps, self.folder = method, num_steps(kills), folder
        self.kills = self.kills_in_saves = self.resumes = self.steps_repeated = self.last_step = 0
        self.folder.mkdir()

    def live(self, rng: random.Random | None) -> None:
        """One process: with a generator until a random moment, else to the end."""
        command = [sys.executable, __file__, "--worker", self.method]
        command += ["--steps", str(self.steps), "--folder", str(self.folder)]
        saves_before = self._unfinished_saves()
        with (self.folder / "errors.txt").open("w") as errors:
            worker = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
        watchdog = threading.Timer(TIME_LIMIT + self.steps, worker.kill)
        watchdog.start()
        try:
            is_killed = self._follow(worker, rng)
        finally:
            watchdog.cancel()
            worker.kill()
            worker.wait()
        self.kills += is_killed
        self.kills_in_saves += is_killed and bool(self._unfinished_saves() - saves_before)

    def _follow(self, worker: subprocess.Popen[str], rng: random.Random | None) -> bool:
        """Whether it was killed by us."""
        first, is_ours = int(self._line(worker) or -1), False
        if first < 0:
            raise RuntimeError((self.folder / "errors.txt").read_text())
        self.resumes += first > 0
        self.steps_repeated += self.last_step - first
        self.last_step = first
        target = first + rng.randint(1, LONGEST_LIFE) if rng else self.steps + 1
        while line := self._line(worker):
            self.last_step = int(line)
            if rng and not is_ours and self.last_step >= target:
                time.sleep(rng.uniform(0, SAVE_EVERY / 2 * PAUSE))
                worker.send_signal(signal.SIGKILL)
                is_ours = True  # what it told before comes in the lines that are left
        if rng and not is_ours:
            raise RuntimeError(f"The training ended at step {self.last_step}, before its kill.")
        code = worker.wait()
        if code != (-signal.SIGKILL if is_ours else 0):
            errors = (self.folder / "errors.txt").read_text()
            raise RuntimeError(f"The training ended with status {code}.\n{errors}")
        return is_ours

    @staticmethod
    def _line(worker: subprocess.Popen[str]) -> str:
        assert worker.stdout is not None
        return worker.stdout.readline().strip()

    def _unfinished_saves(self) -> set[tuple[str, int]]:
        found = (self.folder / "checkpoints").glob("*orbax-checkpoint-tmp*")
        return {(path.name, path.stat().st_ctime_ns) for path in found}

    def end(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "end.npz") as arrays:
            return dict(arrays)


def differences(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> list[str]:
    """The names of the arrays that are not the same bits."""

    def bits(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}

    first, second = bits(found), bits(wanted)
    names = sorted(first.keys() | second.keys())
    return [name for name in names if first.get(name) != second.get(name)]


def compare(
    method: str, kills: int, seed: int, folder: pathlib.Path, advance: Callable[[], None]
) -> dict[str, Any]:
    rng = random.Random(f"{seed} {method}")
    whole = Run(method, kills, folder / f"{method} whole")
    whole.live(None)
    advance()
    killed = Run(method, kills, folder / f"{method} killed")
    for _ in range(kills):
        killed.live(rng)
        advance()
    killed.live(None)
    advance()
    differing = differences(killed.end(), whole.end())
    return {
        "method": method,
        "steps": whole.steps,
        "kills": killed.kills,
        "kills_in_training": killed.kills - killed.kills_in_saves,
        "kills_in_saves": killed.kills_in_saves,
        "resumes": killed.resumes,
        "steps_repeated": killed.steps_repeated,
        "arrays": sorted(whole.end()),
        "arrays_that_differ": differing,
        "bit_for_bit_equal": not differing and bool(np.all(whole.end()["['losses']"] > 0)),
    }


def compare_all(kills: int, seed: int) -> list[dict[str, Any]]:
    shares = {method: kills // 2 + (i < kills % 2) for i, method in enumerate(METHODS)}
    with (
        tempfile.TemporaryDirectory() as folder,
        rich.progress.Progress() as progress,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        bars = {m: progress.add_task(m, total=share + 2) for m, share in shares.items()}
        futures = [
            pool.submit(
                compare, m, share, seed, pathlib.Path(folder), lambda m=m: progress.advance(bars[m])
            )
            for m, share in shares.items()
        ]
        return [future.result() for future in futures]


NUMBERS = ("steps", "kills", "kills_in_training", "kills_in_saves", "resumes", "steps_repeated")


def show(rows: list[dict[str, Any]]) -> None:
    table = rich.table.Table(title="Killed and resumed, next to a run without kills")
    columns = ["method", "steps", "kills", "in training", "in a save", "from a checkpoint"]
    for column in [*columns, "steps repeated", "bit for bit equal"]:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        numbers = [str(row[name]) for name in NUMBERS]
        table.add_row(row["method"], *numbers, "yes" if row["bit_for_bit_equal"] else "no")
    rich.console.Console(width=max(120, rich.console.Console().width)).print(table)
    for row in rows:
        if row["arrays_that_differ"]:
            print(f"{row['method']}: {', '.join(row['arrays_that_differ'])} differ")


def machine() -> dict[str, Any]:
    packages = ("jax", "optax", "orbax-checkpoint")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "python": platform.python_version(),
    } | {package: importlib.metadata.version(package) for package in packages}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kills and resumes trainings; they should end as if nothing had happened."
    )
    parser.add_argument("--kills", type=int, default=20, help="for both methods together (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (0)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("kill_and_resume.json"),
        help="the JSON file to write (kill_and_resume.json)",
    )
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.steps, args.folder)
        return 0
    if args.kills < 2:
        parser.error(f"--kills should be at least 2, one for each method, got {args.kills}")
    start = time.monotonic()
    rows = compare_all(args.kills, args.seed)
    show(rows)
    report = {"machine": machine(), "seed": args.seed, "seconds": time.monotonic() - start}
    args.out.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")
    print(f"Wrote {args.out}")
    return 0 if all(row["bit_for_bit_equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
