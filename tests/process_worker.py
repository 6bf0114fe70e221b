"""Trains a small model as one of several processes, run by test_processes.py.

    python process_worker.py OUT [PORT PROCESS_ID NUM_PROCESSES]

It trains with each method and writes what it ends with to the NumPy archive OUT.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import softadapt_optax as sa

BATCH, FEATURES, STEPS = 32, 8, 8
METHODS = {
    "softadapt": lambda: sa.softadapt(2, 1.0, history=2, loss_weighted=True),
    "uncertainty": lambda: sa.uncertainty(2),
    "gradnorm": lambda: sa.gradnorm(2),
    "pcgrad": lambda: sa.pcgrad(2),
    "mgda": lambda: sa.mgda(2),
}


def losses_fn(params, batch):
    y = jnp.tanh(batch["x"] @ params["first"]) @ params["second"]
    return {"fit": jnp.mean((y - batch["target"]) ** 2), "opposed": jnp.mean((y + 1.0) ** 2)}


def problem():
    rng = np.random.default_rng(0)
    params = {"first": rng.normal(size=(FEATURES, 16)) / 3, "second": rng.normal(size=(16, 1)) / 4}
    x = rng.normal(size=(BATCH, FEATURES))
    to_float32 = lambda array: array.astype(np.float32)
    return jax.tree.map(to_float32, (params, {"x": x, "target": np.sin(2 * x[:, :1])}))


def this_half(batch, process_id, num_processes):
    size = BATCH // num_processes
    return jax.tree.map(lambda a: a[process_id * size : (process_id + 1) * size], batch)


def train(method, process_id, num_processes):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split, replicated = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    tx = optax.chain(METHODS[method](), optax.adam(1e-2))
    params, batch = problem()
    local = this_half(batch, process_id, num_processes)
    batch = jax.tree.map(lambda a: jax.make_array_from_process_local_data(split, a), local)
    carry = jax.device_put((params, tx.init(params)), replicated)

    @jax.jit
    def step(params, opt_state, batch):
        losses, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses

    weights = []
    for _ in range(STEPS):
        *carry, losses = step(*carry, batch)
        weights.append(np.asarray(sa.loss_weights(carry[1])))
    assert batch["x"].shape == (BATCH, FEATURES)
    assert len(batch["x"].addressable_shards) == len(mesh.devices) // num_processes
    return jax.tree.map(np.asarray, carry[0] | losses) | {"weights": np.stack(weights)}


def main(out, port=None, process_id="0", num_processes="1"):
    if port is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator_address=f"localhost:{port}",
            num_processes=int(num_processes),
            process_id=int(process_id),
            initialization_timeout=60,
        )
    assert jax.process_count() == int(num_processes)
    found = {method: train(method, int(process_id), int(num_processes)) for method in METHODS}
    names = [(method, name) for method, arrays in found.items() for name in arrays]
    np.savez(out, **{f"{method} {name}": found[method][name] for method, name in names})


if __name__ == "__main__":
    main(*sys.argv[1:])
