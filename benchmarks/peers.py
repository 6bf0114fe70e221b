"""Does a gradient method cost more here than in PyTorch, each against its own plain step?

Models of `benchmarks/models.py` and their twins in PyTorch, of `benchmarks/twins.py`, take turns in
one process, on one device. PyTorch and TorchJD are the extra "peers" of this package.
"""

import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.lines
import matplotlib.ticker

import softadapt_optax as sa
from benchmarks import models
from benchmarks.common import (
    SOFTADAPT,
    Part,
    Report,
    Table,
    Unavailable,
    compiled,
    flop_bound,
    freed,
    overhead_cell,
    plain_step,
    ratio_cell,
    ratio_to,
    step_by_hand,
    take_turns,
    weighted_step,
)
from benchmarks.models import Model

SECONDS = {"settings": 2.0, "methods": 8.0, "softadapt": 3.0, "alone": 2.0}  # of turns
PAUSE = 0.02  # seconds, before each of them
METHODS = {"MGDA": "mgda", "PCGrad": "pcgrad", "UPGrad": "mgda"}  # theirs, and our nearest
SHARED_OUTPUT = ("mlp", "convolutions", "transformer")  # all losses see one output
HOST_SOFTADAPT = {"as in the paper": False, "leanest": True}


class Case(NamedTuple):
    """A model, called step by step, as PyTorch is, and perhaps in a scan besides."""

    kind: str
    model: Model
    scanned: Model | None = None

    @property
    def name(self) -> str:
        return f"{self.model.name.removesuffix(', scan')}, K={self.model.num_losses}"

    def twin(self) -> Any:
        from benchmarks import twins  # here, as it needs PyTorch

        return twins.TWINS[self.kind](self.model)


def cases_of_methods(sizes: Sequence[str]) -> Iterator[Case]:
    """One after the other, as large models take much memory."""
    if "small" in sizes:
        yield Case("mlp", models.mlp(4))
        yield Case("mlp", models.mlp(8))
        yield Case("heads", models.heads(4))
        yield Case("convolutions", models.convolutions(4))
        yield Case("transformer", models.transformer(4))
        yield Case("own_batches", models.own_batches(4, scan_steps=1), models.own_batches(4))
    if "large" in sizes:
        yield from (Case(kind, make(4)) for kind, make in models.LARGE.items())


def cases_of_softadapt(sizes: Sequence[str]) -> Iterator[Case]:
    if "small" in sizes:
        yield Case("tiny", models.tiny(4, scan_steps=1), models.tiny(4))
        yield Case("mlp", models.mlp(4))
    if "large" in sizes:
        yield from (Case(kind, make(4)) for kind, make in models.LARGE.items())


# Measurements.


def check_installed() -> None:
    for package in ("torch", "torchjd"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f'{package} is not installed: pip install "softadapt-optax[peers]"', name=package
            )


def check_device() -> None:
    """PyTorch should compute where JAX does, or the ratios compare devices."""
    import torch

    backend, kind = jax.default_backend(), jax.devices()[0].device_kind
    if backend == "cpu" or (backend == "gpu" and torch.cuda.is_available()):
        return
    if backend == "gpu":
        remedy = "a PyTorch with CUDA (https://pytorch.org/get-started), or"
    else:
        remedy = "leave `peers` out by `--only`, or"
    raise Unavailable(
        f"PyTorch should run on JAX's device, {kind} ({backend}), got PyTorch {torch.__version__} "
        f"without such a device. Remedy: {remedy} JAX_PLATFORMS=cpu, which puts both on the CPU."
    )


def their_methods() -> list[str]:
    """TorchJD's, of which UPGrad needs a solver that is an extra of TorchJD's own."""
    has_solver = all(map(importlib.util.find_spec, ("qpsolvers", "quadprog")))
    return [method for method in METHODS if has_solver or method != "UPGrad"]


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


class Steps(NamedTuple):
    """Theirs that run, and what the others say: a solver without bfloat16, or too little memory."""

    run: dict[str, Callable[[], float]]
    failures: dict[str, str]


def tried(steps: Mapping[str, Callable[[], float]]) -> Steps:
    found = Steps({}, {})
    for name, step in steps.items():
        try:
            step()
            found.run[name] = step
        except (RuntimeError, TypeError) as error:
            found.failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return found


def choose(case: Case, seconds: float) -> tuple[str, dict[str, float], dict[str, str]]:
    """The faster Adam, and seconds of MGDA by setting: that does not depend on the method."""
    from benchmarks import twins

    adams = ("fused", "foreach")
    steps = {adam: twins.their_step(case.twin(), twins.summed, adam) for adam in adams}
    settings = tried({s: twins.torchjd_step(case.twin(), "MGDA", s) for s in twins.SETTINGS})
    found = medians(take_turns(steps | settings.run, seconds, at_least=3, pause=PAUSE))
    seconds_of = {name: found[name] for name in settings.run}
    return min(adams, key=found.__getitem__), seconds_of, settings.failures


def our_steps(case: Case, weightings: Mapping[str, Any]) -> dict[str, Callable[[], float]]:
    """Plain and weighted steps; those of the scan have it in their name."""
    programs: dict[str, Callable[[], float]] = {}
    for label, model in (("", case.model), ("scan: ", case.scanned)):
        if model is not None:
            steps = {name: weighted_step(model, tx) for name, tx in weightings.items()}
            steps["plain"] = plain_step(model)
            programs |= {label + name: step for name, step in compiled(model, steps).items()}
    return programs


def comparison(
    case: Case, times: Mapping[str, Sequence[float]], ours: str, theirs: str
) -> dict[str, Any]:
    """What all rows have: both ratios to the plain step of the same framework."""
    found = medians(times)
    row = {
        "case": case.name,
        "kind": case.kind,
        "num_losses": case.model.num_losses,
        "ours": ratio_to(times[ours], times["plain"]),
        "theirs": ratio_to(times[theirs], times["their plain"]),
        "our_plain_microseconds": found["plain"] * 1e6,
        "their_plain_microseconds": found["their plain"] * 1e6,
    }
    if case.scanned is not None:
        row["scan"] = ratio_to(times[f"scan: {ours}"], times["scan: plain"])
        row["scan_plain_microseconds"] = found["scan: plain"] * 1e6
    return row


def measure_methods(case: Case, effort: float) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Our methods and TorchJD's, these in the two settings that were best for MGDA; failures."""
    from benchmarks import twins

    adam, settings, failures = choose(case, effort * SECONDS["settings"])
    best_two = sorted(settings, key=settings.__getitem__)[:2]
    names = {m: {f"{m}, {setting}": setting for setting in best_two} for m in their_methods()}
    theirs = tried(
        {
            name: twins.torchjd_step(case.twin(), method, setting, adam)
            for method, setting_of in names.items()
            for name, setting in setting_of.items()
        }
    )
    times = turns_of_methods(case, adam, theirs.run, effort)
    found = medians(times)
    rows = []
    for method, setting_of in names.items():
        running = [name for name in setting_of if name in theirs.run]
        if not running:
            continue
        best, ours = min(running, key=found.__getitem__), METHODS[method]
        row = {"method": method, "our_method": ours, "setting": setting_of[best], "adam": adam}
        row["mgda_microseconds"] = {name: t * 1e6 for name, t in settings.items()}
        rows.append(row | comparison(case, times, ours, best))
    failures = {f"MGDA, {name}": text for name, text in failures.items()} | theirs.failures
    said = [{"case": case.name, "step": step, "error": text} for step, text in failures.items()]
    return rows, said


def turns_of_methods(
    case: Case, adam: str, theirs: Mapping[str, Callable[[], float]], effort: float
) -> dict[str, list[float]]:
    from benchmarks import twins

    k, shared = case.model.num_losses, case.model.shared
    steps = our_steps(
        case, {"mgda": sa.mgda(k, shared=shared), "pcgrad": sa.pcgrad(k, shared=shared)}
    )
    steps["their plain"] = twins.their_step(case.twin(), twins.summed, adam)
    return take_turns(steps | theirs, effort * SECONDS["methods"], pause=PAUSE)


def measure_softadapt(case: Case, effort: float) -> list[dict[str, Any]]:
    """The whole step, with the paper's slope on both sides."""
    from benchmarks import twins

    k = case.model.num_losses
    weighting = sa.softadapt(k, twins.BETA, history=twins.HISTORY, order=None)
    steps = our_steps(case, {"softadapt": weighting})
    by_hand = step_by_hand(case.model, "SoftAdapt", twins.finite_difference(twins.HISTORY))
    steps |= compiled(case.model, {SOFTADAPT: by_hand})
    steps["their plain"] = twins.their_step(case.twin(), twins.summed)
    for variant, lean in HOST_SOFTADAPT.items():
        steps[variant] = twins.their_step(case.twin(), twins.softadapt_backward(k, lean))
    times = take_turns(steps, effort * SECONDS["softadapt"], pause=PAUSE)
    return [
        {
            "variant": variant,
            **comparison(case, times, "softadapt", variant),
            "by_hand": ratio_to(times[SOFTADAPT], times["plain"]),
        }
        for variant in HOST_SOFTADAPT
    ]


def weights_alone(effort: float, num_losses: int = 4, steps: int = 10_000) -> dict[str, Any]:
    """Microseconds a step from losses to weights: ours in a scan, theirs on the host."""
    from benchmarks import twins

    tx = sa.softadapt(num_losses, twins.BETA, history=twins.HISTORY, order=None)
    losses = 1 + jax.random.uniform(jax.random.key(0), (steps, num_losses))
    their_losses = twins.tensor(losses[0]).unbind()

    @jax.jit
    def run(losses: jax.Array) -> jax.Array:
        def step(state: Any, losses: jax.Array) -> tuple[Any, jax.Array]:
            _, state = tx.update(jnp.zeros(num_losses), state, losses=losses)
            return state, sa.loss_weights(state)

        return jax.lax.scan(step, tx.init(None), losses)[1]

    def ours() -> float:
        start = time.perf_counter()
        run(losses).block_until_ready()
        return (time.perf_counter() - start) / steps

    def theirs(lean: bool) -> Callable[[], float]:
        weights_fn = twins.host_softadapt(num_losses, lean)

        def call() -> float:
            start = time.perf_counter()
            for _ in range(50):
                weights_fn(their_losses)
            twins.wait()
            return (time.perf_counter() - start) / 50

        return call

    programs = {variant: theirs(lean) for variant, lean in HOST_SOFTADAPT.items()}
    times = take_turns({"ours": ours} | programs, effort * SECONDS["alone"])
    return {name: ratio_to(values, times["ours"]) for name, values in times.items()}


def measure(effort: float, report: Report, sizes: Sequence[str] = ("small",)) -> dict[str, Any]:
    check_installed()
    check_device()
    from benchmarks import twins

    twins.match_precision()
    methods, failures, softadapt = [], [], []
    with warnings.catch_warnings():  # PyTorch has no batching rule for attention on a CPU
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        for case in cases_of_methods(sizes):
            report(f"{case.name}, gradient methods")
            with freed():
                rows, failed = measure_methods(case, effort)
            methods, failures = methods + rows, failures + failed
        for case in cases_of_softadapt(sizes):
            report(f"{case.name}, SoftAdapt")
            with freed():
                softadapt += measure_softadapt(case, effort)
    report("The weights of SoftAdapt alone")
    found = {"methods": methods, "failures": failures, "softadapt": softadapt}
    return found | {"weights_alone": weights_alone(effort)}


# What is shown.


def milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1000:.3g} ms"


def shared_cells(row: Mapping[str, Any]) -> list[str]:
    sides = [row[side]["microseconds"] for side in ("ours", "theirs")]
    plains = [row[f"{side}_plain_microseconds"] for side in ("our", "their")]
    in_scan = milliseconds(row["scan"]["microseconds"]) if "scan" in row else ""
    return [milliseconds(value) for value in (*sides, *plains)] + [in_scan]


def overheads(row: Mapping[str, Any], *sides: str) -> str:
    return " / ".join(overhead_cell(row[side]) for side in sides)


TIMES = ("ours", "theirs", "our plain", "their plain", "ours in a scan")


def method_table(figures: Mapping[str, Any]) -> Table:
    columns = ["model", "method", "our ratio", "TorchJD's ratio"]
    columns += ["microseconds above plain: ours / TorchJD's", "its setting", *TIMES]
    cells = []
    for row in figures["methods"]:
        differs = row["our_method"] != row["method"].lower()
        ours = ratio_cell(row["ours"]) + (f", `{row['our_method']}`" if differs else "")
        names = [row["case"], row["method"], ours, ratio_cell(row["theirs"])]
        names += [overheads(row, "ours", "theirs"), row["setting"]]
        cells.append([*names, *shared_cells(row)])
    note = (
        "Ratios are to the plain step of the same framework, median and quartiles over the turns. "
        "UPGrad solves K quadratic programs; beside it stands `mgda`, which solves one of the same "
        "size. `upgrad` was not timed here."
    )
    tried_methods = {row["method"] for row in figures["methods"]}
    tried_methods |= {failure["step"].split(",")[0] for failure in figures["failures"]}
    if "UPGrad" not in tried_methods:
        note += ' UPGrad was left out: it needs `pip install "torchjd[quadprog-projector]"`.'
    for failure in figures["failures"]:
        note += f" {failure['step']} did not run for {failure['case']} ({failure['error']})."
    return Table("Gradient methods, here and in TorchJD", columns, cells, note)


def softadapt_table(figures: Mapping[str, Any]) -> Table:
    sides = ("ours", "by_hand", "theirs")
    columns = ["model", "in PyTorch", "our ratio", SOFTADAPT, "PyTorch's ratio"]
    columns += ["microseconds above plain: ours / by hand / PyTorch's", *TIMES]
    cells = []
    for row in figures["softadapt"]:
        ratios = [ratio_cell(row[side]) for side in sides]
        names = [row["case"], row["variant"], *ratios, overheads(row, *sides)]
        cells.append([*names, *shared_cells(row)])
    alone = figures["weights_alone"]
    theirs = " and ".join(
        f"{alone[name]['microseconds']:.3g} ({name}), {alone[name]['time_ratio']:.3g} times as much"
        for name in HOST_SOFTADAPT
    )
    note = (
        f"The weights alone, K=4, in microseconds a step: {alone['ours']['microseconds']:.3g} in a "
        f"scan here; in PyTorch {theirs}."
    )
    return Table("SoftAdapt, here and in PyTorch", columns, cells, note)


def tables(figures: Mapping[str, Any]) -> list[Table]:
    return [method_table(figures), softadapt_table(figures)]


def with_log_axis(axes: Any, label: str, ticks: Sequence[float]) -> None:
    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def draw_methods(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Two markers joined by a line for each model and method, below the name of the model."""
    heights, labels, previous = [], [], None
    height = 0.0
    for row in rows:
        if row["case"] != previous:
            axes.text(0.01, height, row["case"], transform=axes.get_yaxis_transform(), va="center")
            previous, height = row["case"], height + 1
        ours, theirs = row["ours"]["time_ratio"], row["theirs"]["time_ratio"]
        axes.plot([ours, theirs], [height, height], color="0.6", lw=2, zorder=1)
        axes.plot(theirs, height, "s", color="C1", ms=7)
        axes.plot(ours, height, "o", color="C0", ms=7)
        if row["kind"].removeprefix("large ") in SHARED_OUTPUT:
            axes.plot(flop_bound(row["num_losses"]), height, "|", color="black", ms=14)
        differs = row["our_method"] != row["method"].lower()
        labels.append(f"{row['method']} ({row['our_method']})" if differs else row["method"])
        heights.append(height)
        height += 1
    axes.set_yticks(heights, labels)
    axes.set_ylim(height - 0.5, -0.8)
    ticks = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    with_log_axis(axes, "step / plain step of the same framework", ticks)


def draw_weights(axes: Any, alone: Mapping[str, Any]) -> None:
    labels = {"ours": "this library"} | {name: f"PyTorch,\n{name}" for name in HOST_SOFTADAPT}
    for height, name in enumerate(labels):
        value = alone[name]["microseconds"]
        marker, colour = ("o", "C0") if name == "ours" else ("s", "C1")
        axes.plot(value, height, marker, color=colour, ms=9)
        place = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{value:.3g}", (value, height), **place)
    axes.set_yticks(range(len(labels)), labels.values())
    axes.set_ylim(len(labels) - 0.5, -0.5)
    with_log_axis(axes, "microseconds a step", (1.0,))
    axes.margins(x=0.2)


def draw(figure: matplotlib.figure.SubFigure, figures: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 1))
    draw_methods(left, figures["methods"])
    left.set_title("Gradient methods, each against its own plain step")
    handles = [
        matplotlib.lines.Line2D([], [], ls="", marker=marker, color=colour, ms=size, label=label)
        for marker, colour, size, label in (
            ("o", "C0", 7, "this library"),
            ("s", "C1", 7, "TorchJD, its best setting"),
            ("|", "black", 14, "flop bound, (1 + 2 K) / 3"),
        )
    ]
    left.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3)
    draw_weights(right, figures["weights_alone"])
    right.set_title("Weights of SoftAdapt alone, K=4")


def height(figures: Mapping[str, Any]) -> float:
    rows = figures["methods"]
    return 1.7 + 0.2 * (len(rows) + len({row["case"] for row in rows}))


ABOUT = """\
Ratios of a training step with a gradient method to the plain step on the summed loss, each in its
own framework, on the same models from the same numbers. The steps take turns in one process; a
ratio is the median over the turns. PyTorch runs eagerly, with its faster Adam, and TorchJD in the
fastest of its settings: `autojac` with the K gradients at once or one by one, its Gramian at once
or leaf by leaf, and `autogram`. Here each step is one call of a compiled program, as in PyTorch;
the last column has a step of a scan, which PyTorch lacks. SoftAdapt in PyTorch is written from its
paper: each loss goes to the host by `.item()`, where the slopes and the weights are worked out;
the coefficients of the finite difference in each step, or in its leanest form once. Before each
turn there is a pause and a call that is not counted, since PyTorch's threads wait busily for more
work and slow down what comes next. By hand: SoftAdapt in JAX with the same slopes, a history and a
count as state and nothing else. Both frameworks compute on one device; on a GPU each step waits for
it, and products of float32 are rounded to TF32 on both sides."""

PART = Part("peers", "Against PyTorch", ABOUT, measure, tables, draw, height)
