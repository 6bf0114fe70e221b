"""The models whose training steps are measured, each for any number of losses."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Model(NamedTuple):
    """A model to train: ``losses_fn(params, batch)`` gives the component losses."""

    name: str
    losses_fn: Callable[[Any, Any], Any]
    params: Any
    batch: Any
    num_losses: int
    scan_steps: int = 1  # steps in one compiled call
    shared: Any = None  # the parameters that gradient methods look at; None means all


def dense_layers(key: jax.Array, sizes: list[int]) -> list[jax.Array]:
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = itertools.pairwise(sizes)
    return [
        jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in zip(keys, shapes, strict=True)
    ]


def forward(layers: list[jax.Array], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer)
    return x @ layers[-1]


def losses_of_output(output: jax.Array, num_losses: int) -> list[jax.Array]:
    """Losses that share one output: those of quantile regression, at levels between 0 and 1."""
    error = 1.0 - output
    levels = [(k + 1) / (num_losses + 1) for k in range(num_losses)]
    return [jnp.mean(jnp.maximum(level * error, (level - 1.0) * error)) for level in levels]


def mlp(num_losses: int, width: int = 512, layers: int = 4, batch: int = 256) -> Model:
    """Compute-bound: dense layers whose one output enters all losses."""
    sizes = [width] * (layers + 1)
    params = dense_layers(jax.random.key(0), sizes)
    x = jax.random.normal(jax.random.key(1), (batch, width))

    def losses_fn(params: Any, x: jax.Array) -> list[jax.Array]:
        return losses_of_output(forward(params, x), num_losses)

    return Model(f"MLP {layers} x {width}, batch {batch}", losses_fn, params, x, num_losses)


def heads(num_losses: int, width: int = 512, batch: int = 256) -> Model:
    """Compute-bound: a trunk of two layers, and a head of two layers for each loss."""
    keys = jax.random.split(jax.random.key(0), num_losses + 1)
    params = {
        "trunk": dense_layers(keys[0], [width, width, width]),
        "heads": [dense_layers(key, [width, width // 2, 1]) for key in keys[1:]],
    }

    def losses_fn(params: Any, x: jax.Array) -> list[jax.Array]:
        features = jnp.tanh(forward(params["trunk"], x))
        return [jnp.mean((forward(head, features) - 1.0) ** 2) for head in params["heads"]]

    x = jax.random.normal(jax.random.key(1), (batch, width))
    shared = {"trunk": True, "heads": False}
    name = f"Trunk and K heads, width {width}, batch {batch}"
    return Model(name, losses_fn, params, x, num_losses, shared=shared)


def convolutions(num_losses: int, channels: int = 32, size: int = 16, batch: int = 32) -> Model:
    """Three convolutions and a dense layer, whose one output enters all losses."""
    keys = jax.random.split(jax.random.key(0), 4)
    counts = [3, channels, channels, channels]
    kernels = [
        jax.random.normal(key, (3, 3, *pair)) / (9 * pair[0]) ** 0.5
        for key, pair in zip(keys[:3], itertools.pairwise(counts), strict=True)
    ]
    params = {"kernels": kernels, "dense": dense_layers(keys[3], [channels, 16])}
    x = jax.random.normal(jax.random.key(1), (batch, size, size, 3))

    def losses_fn(params: Any, x: jax.Array) -> list[jax.Array]:
        for kernel in params["kernels"]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        output = forward(params["dense"], jnp.mean(x, axis=(1, 2)))
        return losses_of_output(output, num_losses)

    return Model(f"Conv net, {channels} channels, batch {batch}", losses_fn, params, x, num_losses)


def block(keys: Sequence[jax.Array], width: int, dtype: Any) -> dict[str, Any]:
    """The parameters of attention and of two dense layers."""
    square = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[:4]]
    params = {
        "qkv": square[:3],
        "out": square[3],
        "up": dense_layers(keys[4], [width, 4 * width]),
        "down": dense_layers(keys[5], [4 * width, width]),
        "scales": [jnp.ones(width), jnp.ones(width)],
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def normalized(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def through_block(params: Any, x: jax.Array, head: int) -> jax.Array:
    y = normalized(x, params["scales"][0])
    by_head = (*x.shape[:2], x.shape[-1] // head, head)
    q, k, v = ((y @ matrix).reshape(by_head) for matrix in params["qkv"])
    attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + attended.reshape(x.shape) @ params["out"]
    y = normalized(x, params["scales"][1])
    return x + forward(params["down"], jax.nn.gelu(forward(params["up"], y)))


def transformer(
    num_losses: int,
    width: int = 128,
    length: int = 64,
    batch: int = 8,
    layers: int = 1,
    head: int = 32,
    dtype: Any = jnp.float32,
) -> Model:
    """Blocks of attention and dense layers, whose one output enters all losses, in float32."""
    keys = jax.random.split(jax.random.key(0), 6 * layers)
    params = [block(keys[6 * i : 6 * i + 6], width, dtype) for i in range(layers)]
    x = jax.random.normal(jax.random.key(1), (batch, length, width)).astype(dtype)

    def losses_fn(params: Any, x: jax.Array) -> list[jax.Array]:
        for of_block in params:
            x = through_block(of_block, x, head)
        return losses_of_output(x.astype(jnp.float32), num_losses)

    name = "Transformer block" if layers == 1 else f"GPT {layers} x {width}"
    name += f", batch {batch} x {length}"
    if dtype != jnp.float32:
        name += f", {jnp.dtype(dtype).name}"
    return Model(name, losses_fn, params, x, num_losses)


def tiny(num_losses: int, scan_steps: int = 200) -> Model:
    """Bound by overhead: the size of a PINN, 256 points that all losses share."""
    params = dense_layers(jax.random.key(0), [2, 32, 32, 1])
    x = jax.random.normal(jax.random.key(1), (256, 2))

    def losses_fn(params: Any, x: jax.Array) -> list[jax.Array]:
        return losses_of_output(forward(params, x), num_losses)

    name = "Tiny network, shared batch, scan"
    return Model(name, losses_fn, params, x, num_losses, scan_steps)


def own_batches(num_losses: int, scan_steps: int = 200) -> Model:
    """The same network where each loss has 64 points of its own, as in a PINN."""
    params = dense_layers(jax.random.key(0), [2, 32, 32, 1])
    points = [
        jax.random.normal(key, (64, 2)) for key in jax.random.split(jax.random.key(1), num_losses)
    ]

    def losses_fn(params: Any, batch: list[jax.Array]) -> list[jax.Array]:
        return [jnp.mean((forward(params, points) - 1.0) ** 2) for points in batch]

    name = "Tiny network, a batch per loss, scan"
    return Model(name, losses_fn, params, points, num_losses, scan_steps)


MODELS: dict[str, Callable[[int], Model]] = {
    "mlp": mlp,
    "heads": heads,
    "convolutions": convolutions,
    "transformer": transformer,
    "tiny": tiny,
    "own_batches": own_batches,
}

LARGE: dict[str, Callable[[int], Model]] = {  # they fill a GPU
    "large mlp": functools.partial(mlp, width=4096, batch=4096),
    "large heads": functools.partial(heads, width=2048, batch=4096),
    "large convolutions": functools.partial(convolutions, channels=128, batch=256),
    "large transformer": functools.partial(
        transformer, width=768, length=512, batch=16, layers=4, head=64, dtype=jnp.bfloat16
    ),
}

OTHERWISE: dict[
    str, Callable[[int], Model]
] = {  # what is called is scanned, what is scanned called
    "mlp scan": lambda k: mlp(k)._replace(name="MLP 4 x 512, batch 256, scan", scan_steps=200),
    "tiny called": lambda k: tiny(k, scan_steps=1)._replace(
        name="Tiny network, shared batch, called"
    ),
}

SIZES = {"small": MODELS, "large": LARGE, "otherwise": OTHERWISE}
