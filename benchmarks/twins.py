"""The models in PyTorch and their training steps: plain, with TorchJD, and with SoftAdapt.

This file needs the extra "peers"; `benchmarks/peers.py` compares with it.
"""

import collections
import functools
import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torchjd import aggregation, autogram, autojac

from benchmarks.models import Model

SETTINGS: dict[str, Any] = {
    "autojac": (None, False),  # parallel_chunk_size, optimize_gramian_computation
    "autojac, chunk 1": (1, False),
    "autojac, Gramian by leaf": (None, True),
    "autojac, chunk 1, Gramian by leaf": (1, True),
    "autogram": None,
}
HISTORY, BETA = 5, 0.1  # of SoftAdapt


# The models.


Losses = tuple[list[torch.Tensor], torch.Tensor | None]  # and the features, if there are heads


class Twin(NamedTuple):
    """A model in PyTorch, with one batch."""

    modules: torch.nn.Module
    shared: torch.nn.Module  # the modules that gradient methods look at
    losses_fn: Callable[[], Losses]


def device() -> str:
    """JAX's."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def wait() -> None:
    """For all that the device was given."""
    if device() == "cuda":
        torch.cuda.synchronize()


def match_precision() -> None:
    """Products as in JAX, which on a GPU rounds those of float32 to TF32, unless told otherwise."""
    if device() == "cuda":
        is_exact = jax.config.jax_default_matmul_precision in ("highest", "float32")
        torch.set_float32_matmul_precision("highest" if is_exact else "high")
        torch.backends.cudnn.allow_tf32 = not is_exact


def tensor(array: Any) -> torch.Tensor:
    """On JAX's device, of the array's dtype; NumPy has no bfloat16 that PyTorch would take."""
    dtype = getattr(torch, array.dtype.name)
    return torch.from_numpy(np.array(array, np.float32)).to(device(), dtype)


def with_weight(layer: torch.nn.Module, weight: Any) -> torch.nn.Module:
    layer.weight = torch.nn.Parameter(tensor(weight))
    return layer


def linear(weight: Any) -> torch.nn.Module:
    return with_weight(torch.nn.Linear(*weight.shape, bias=False), weight.T)


def convolution(kernel: Any) -> torch.nn.Module:
    layer = torch.nn.Conv2d(*kernel.shape[2:], kernel.shape[0], padding="same", bias=False)
    return with_weight(layer, kernel.transpose(3, 2, 0, 1))


def dense(layers: Sequence[Any]) -> torch.nn.Module:
    modules = [module for layer in layers for module in (linear(layer), torch.nn.Tanh())]
    return torch.nn.Sequential(*modules[:-1])


def losses_of_output(output: torch.Tensor, num_losses: int) -> list[torch.Tensor]:
    error = 1.0 - output
    levels = [(k + 1) / (num_losses + 1) for k in range(num_losses)]
    return [torch.mean(torch.maximum(level * error, (level - 1.0) * error)) for level in levels]


def dense_twin(model: Model) -> Twin:
    module, x = dense(model.params), tensor(model.batch)
    return Twin(module, module, lambda: (losses_of_output(module(x), model.num_losses), None))


def own_batches_twin(model: Model) -> Twin:
    module, batch = dense(model.params), [tensor(points) for points in model.batch]
    return Twin(module, module, lambda: ([((module(x) - 1.0) ** 2).mean() for x in batch], None))


def heads_twin(model: Model) -> Twin:
    trunk = torch.nn.Sequential(dense(model.params["trunk"]), torch.nn.Tanh())
    heads = torch.nn.ModuleList(dense(head) for head in model.params["heads"])
    x = tensor(model.batch)

    def losses_fn() -> Losses:
        features = trunk(x)
        return [((head(features) - 1.0) ** 2).mean() for head in heads], features

    return Twin(torch.nn.ModuleList([trunk, heads]), trunk, losses_fn)


def convolutions_twin(model: Model) -> Twin:
    kernels = [
        layer
        for kernel in model.params["kernels"]
        for layer in (convolution(kernel), torch.nn.ReLU())
    ]
    pooled = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    module = torch.nn.Sequential(*kernels, *pooled, dense(model.params["dense"]))
    x = tensor(model.batch.transpose(0, 3, 1, 2))
    return Twin(module, module, lambda: (losses_of_output(module(x), model.num_losses), None))


class Block(torch.nn.Module):
    """A block of attention and dense layers."""

    def __init__(self, params: Any, head: int):
        super().__init__()
        width = params["out"].shape[0]
        norms = (with_weight(torch.nn.RMSNorm(width, eps=1e-6), s) for s in params["scales"])
        self.norms = torch.nn.ModuleList(norms)
        self.qkv = torch.nn.ModuleList(linear(matrix) for matrix in params["qkv"])
        self.out = linear(params["out"])
        self.up, self.down = dense(params["up"]), dense(params["down"])
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        by_head = (*x.shape[:2], x.shape[2] // self.head, self.head)
        q, k, v = (layer(y).reshape(by_head).transpose(1, 2) for layer in self.qkv)
        attention = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attention.transpose(1, 2).reshape(x.shape))
        y = torch.nn.functional.gelu(self.up(self.norms[1](x)), approximate="tanh")
        return x + self.down(y)


def transformer_twin(model: Model, head: int = 32) -> Twin:
    modules = torch.nn.Sequential(*(Block(params, head) for params in model.params))
    x = tensor(model.batch)
    return Twin(
        modules, modules, lambda: (losses_of_output(modules(x).float(), model.num_losses), None)
    )


TWINS = {
    "mlp": dense_twin,
    "tiny": dense_twin,
    "heads": heads_twin,
    "convolutions": convolutions_twin,
    "transformer": transformer_twin,
    "own_batches": own_batches_twin,
    "large mlp": dense_twin,
    "large heads": heads_twin,
    "large convolutions": convolutions_twin,
    "large transformer": functools.partial(transformer_twin, head=64),
}


# Training steps, which say how many seconds they took.

Backward = Callable[[Twin], None]  # fills the .grad of the parameters


def their_step(twin: Twin, backward: Backward, adam: str = "fused") -> Callable[[], float]:
    optimizer = torch.optim.Adam(twin.modules.parameters(), 1e-3, **{adam: True})

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        backward(twin)
        optimizer.step()
        wait()
        return time.perf_counter() - start

    return step


def summed(twin: Twin) -> None:
    sum(twin.losses_fn()[0]).backward()


def with_autojac(method: str, chunk: int | None, by_leaf: bool) -> Backward:
    aggregator = getattr(aggregation, method)()

    def backward(twin: Twin) -> None:
        losses, features = twin.losses_fn()
        if features is None:
            autojac.backward(losses, parallel_chunk_size=chunk)
        else:
            autojac.mtl_backward(losses, features=features, parallel_chunk_size=chunk)
        parameters = list(twin.shared.parameters())
        autojac.jac_to_grad(parameters, aggregator, optimize_gramian_computation=by_leaf)

    return backward


def with_autogram(method: str, twin: Twin) -> Backward:
    """Heads get the weights too, which is less work than the plain sum that the others give."""
    engine = autogram.Engine(twin.shared, batch_dim=None)
    weighting = getattr(aggregation, f"{method}Weighting")()

    def backward(twin: Twin) -> None:
        losses = torch.stack(twin.losses_fn()[0])
        losses.backward(weighting(engine.compute_gramian(losses)))

    return backward


def torchjd_backward(twin: Twin, method: str, setting: str) -> Backward:
    arguments = SETTINGS[setting]
    return with_autojac(method, *arguments) if arguments else with_autogram(method, twin)


def torchjd_step(twin: Twin, method: str, setting: str, adam: str = "fused") -> Callable[[], float]:
    return their_step(twin, torchjd_backward(twin, method, setting), adam)


def finite_difference(size: int) -> np.ndarray:
    """Coefficients for the slope at the newest value, that of the polynomial through all."""
    powers = np.vander(np.arange(1 - size, 1), increasing=True).T
    return np.linalg.solve(powers, np.arange(size) == 1)


def host_softadapt(num_losses: int, lean: bool) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """SoftAdapt as in its paper, in PyTorch: every loss goes to the host, the weights come back.

    Each loss has its list of the last n values and its finite difference of the highest order;
    weights are equal until the lists are full. If lean, the difference's coefficients are worked
    out once and not in each step, and the rest is done with numbers of Python: the least that a
    step with its round trip to the host can cost.
    """
    records = [collections.deque(maxlen=HISTORY) for _ in range(num_losses)]
    once = finite_difference(HISTORY).tolist()

    def lean_weights() -> list[float]:
        slopes = [sum(map(operator.mul, once, record)) for record in records]
        exponentials = [math.exp(BETA * (slope - max(slopes))) for slope in slopes]
        return [value / sum(exponentials) for value in exponentials]

    def weights(losses: Sequence[torch.Tensor]) -> torch.Tensor:
        for record, loss in zip(records, losses, strict=True):
            record.append(loss.item())
        if len(records[0]) < HISTORY:
            return torch.full((num_losses,), 1 / num_losses, device=device())
        if lean:
            return torch.tensor(lean_weights(), device=device())
        slopes = [finite_difference(HISTORY) @ np.array(record) for record in records]
        exponentials = np.exp(BETA * (np.array(slopes) - max(slopes)))
        shares = exponentials / exponentials.sum()
        return torch.tensor(shares, dtype=torch.float32, device=device())

    return weights


def softadapt_backward(num_losses: int, lean: bool) -> Backward:
    weights_fn = host_softadapt(num_losses, lean)

    def backward(twin: Twin) -> None:
        losses, _ = twin.losses_fn()
        torch.dot(weights_fn(losses), torch.stack(losses)).backward()

    return backward
