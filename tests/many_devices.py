"""Training on a mesh of eight devices: pytest runs this file from test_many_devices.py."""

import functools
import math
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import following
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import softadapt_optax as sa
from benchmarks import methods
from softadapt_optax import _products
from softadapt_optax._component_grads import from_stacked

BATCH, FEATURES, WIDTH, STEPS = 64, 16, 32, 8
ADAM = optax.adam(1e-2)
LOSS_ONLY = {
    "softadapt": lambda: sa.softadapt(3, 1.0, history=2, loss_weighted=True),
    "uncertainty": lambda: sa.uncertainty(3),
}
WITH_GRADIENTS = {
    "gradnorm": lambda: sa.gradnorm(3),
    "mgda": lambda: sa.mgda(3),
    "pcgrad": lambda: sa.pcgrad(3),
    "lr_annealing": lambda: sa.lr_annealing(3, 0),
}
METHODS = LOSS_ONLY | WITH_GRADIENTS | {"hypergradient": lambda: following(sa.hypergradient(3))}
METHODS |= {"mgda, every": lambda: sa.mgda(3, every=3)}
ALL_OTHERS = [name for name in (*methods.ON_LOSSES, *methods.ON_GRADIENTS) if name not in METHODS]
each_method = pytest.mark.parametrize("method", METHODS)
needs_shard_map = pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="jax.shard_map is newer")
each_layout = pytest.mark.parametrize("layout", ["data parallel", "fully sharded"])


def losses_fn(params, batch):
    y = jnp.tanh(batch["x"] @ params["first"]) @ params["second"]
    return {
        "fit": jnp.mean((y - batch["target"]) ** 2),
        "opposed": jnp.mean((y + batch["target"][:, ::-1]) ** 2),
        "size": jnp.mean(jnp.abs(y)),
    }


def penalized_losses_fn(params, batch):
    """Two losses of the batch beside one that is the same on all devices."""
    penalty = sum(jnp.sum(param**2) for param in params.values()) / 100
    return losses_fn(params, batch) | {"size": penalty}


def averaged_losses_fn(params, batch):
    return jax.lax.pmean(losses_fn(params, batch), "data")


def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": jax.random.normal(keys[0], (FEATURES, WIDTH)) / FEATURES**0.5,
        "second": jax.random.normal(keys[1], (WIDTH, 8)) / WIDTH**0.5,
    }
    x = jax.random.normal(keys[2], (BATCH, FEATURES))
    return params, {"x": x, "target": jnp.sin(2 * x[:, :8])}


def chained(method):
    return optax.chain(METHODS[method](), ADAM)


def balanced_step(tx, losses_fn=losses_fn):
    """From parameters, state and batch to the new ones and the losses."""

    def step(params, opt_state, batch):
        losses, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses

    return step


def plain_step(params, opt_state, batch):
    def summed(params):
        losses = losses_fn(params, batch)
        return sum(jax.tree.leaves(losses)), losses

    (_, losses), grads = jax.value_and_grad(summed, has_aux=True)(params)
    updates, opt_state = ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


def train(step, params, opt_state, batch):
    """The parameters, the state and the weights of each step."""
    weights = []
    for _ in range(STEPS):
        params, opt_state, _ = step(params, opt_state, batch)
        weights.append(sa.loss_weights(opt_state))
    return params, opt_state, weights


@functools.cache
def trained_on_one_device(method):
    params, batch = problem()
    tx = chained(method)
    return train(jax.jit(balanced_step(tx)), params, tx.init(params), batch)


def the_mesh(**options):
    assert jax.device_count() == 8
    return Mesh(np.asarray(jax.devices()), ("data",), **options)


def placed(layout, tx, mesh=None):
    """Parameters, state and batch; what an optimizer keeps for a parameter lies where that does."""
    mesh = the_mesh() if mesh is None else mesh
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    on_mesh = lambda leaf: leaf if leaf.committed else jax.device_put(leaf, replicated)
    params, batch = problem()
    params = jax.device_put(params, split if layout == "fully sharded" else replicated)
    return params, jax.tree.map(on_mesh, tx.init(params)), jax.device_put(batch, split)


@functools.cache
def compiled(method, layout):
    """The compiled step, without a word on the shardings of its results."""
    if method == "plain":
        return jax.jit(plain_step).lower(*placed(layout, ADAM)).compile()
    tx = chained(method)
    return jax.jit(balanced_step(tx)).lower(*placed(layout, tx)).compile()


def assert_same_training(found, method):
    """To what float32 allows: added up over devices in another order, the last bits differ."""
    wanted = trained_on_one_device(method)
    assert np.ptp(wanted[2][-1]) > 1e-3  # equal weights would hide an error
    for ours, theirs in zip(found[2], wanted[2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        assert_same_bits_everywhere(ours)
    for name, param in wanted[0].items():
        np.testing.assert_allclose(found[0][name], param, rtol=0, atol=1e-6)


def assert_same_bits_everywhere(array):
    shards = [np.asarray(shard.data) for shard in array.addressable_shards]
    assert len(shards) == 8
    assert {shard.shape for shard in shards} == {array.shape}
    assert len({shard.tobytes() for shard in shards}) == 1


def assert_sharded_alike(tree, params):
    for name, param in params.items():
        assert tree[name].sharding.is_equivalent_to(param.sharding, param.ndim)


def mapped(function, **specs):
    """By `shard_map`, compiled; by default from parameters and a batch to what is on all alike."""
    specs = {"in_specs": (P(), P("data")), "out_specs": P()} | specs
    return jax.jit(jax.shard_map(function, mesh=the_mesh(), **specs))


def one_for_each_device(array):
    return array.reshape(8, -1, *array.shape[1:])


def one_more_axis(tree):
    return jax.tree.map(lambda leaf: leaf[None], tree)


def assert_same_on_one_device(found, wanted):
    for ours, theirs in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


@each_layout
@each_method
def test_a_split_batch_trains_as_on_one_device(method, layout):
    args = placed(layout, chained(method))
    params, opt_state, weights = train(compiled(method, layout), *args)
    assert_same_training((params, opt_state, weights), method)
    balance_state, (adam_state, *_) = opt_state
    assert params["first"].sharding.is_fully_replicated == (layout == "data parallel")
    for tree in (params, adam_state.mu, adam_state.nu):
        assert_sharded_alike(tree, args[0])
    for leaf in jax.tree.leaves(balance_state):
        assert_same_bits_everywhere(leaf)


@pytest.mark.parametrize("method", ALL_OTHERS)
def test_all_other_methods_train_sharded_parameters_as_on_one_device(method):
    tx = optax.chain(methods.make(method, 3), ADAM)
    step = jax.jit(balanced_step(tx))
    found = train(step, *placed("fully sharded", tx))
    params, batch = problem()
    wanted = train(step, params, tx.init(params), batch)
    assert_same_on_one_device((found[0], found[2]), (wanted[0], wanted[2]))


@pytest.mark.parametrize("method", ["softadapt", "mgda"])
def test_updates_of_sharded_parameters_are_sharded(method):
    tx = chained(method)
    params, opt_state, batch = placed("fully sharded", tx)

    @jax.jit
    def updates_of(params, opt_state, batch):
        _, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        return tx.update(grads, opt_state, params)[0]

    assert_sharded_alike(updates_of(params, opt_state, batch), params)


def test_combined_gradients_are_sharded_as_those_of_the_sum():
    """Alone, without an optimizer's state beside them, they are where XLA leaves them."""
    params, _, batch = placed("fully sharded", ADAM)
    combine = lambda *args: sa.value_and_component_grads(losses_fn)(*args)[1].combine([1, 1, 1])
    summed = lambda *args: sum(jax.tree.leaves(losses_fn(*args)))
    combined, wanted = (jax.jit(f)(params, batch) for f in (combine, jax.grad(summed)))
    assert_sharded_alike(combined, wanted)
    np.testing.assert_allclose(combined["first"], wanted["first"], atol=1e-6)


@needs_shard_map
@each_method
def test_shard_map_with_averaged_losses_trains_as_on_one_device(method):
    tx = chained(method)
    step = jax.shard_map(
        balanced_step(tx, averaged_losses_fn),
        mesh=the_mesh(),
        in_specs=(P(), P(), P("data")),
        out_specs=P(),
    )
    assert_same_training(train(jax.jit(step), *placed("data parallel", tx)), method)


@needs_shard_map
@pytest.mark.parametrize("losses_fn", [losses_fn, penalized_losses_fn])
@each_method
def test_shard_map_adds_up_the_gradients_of_local_losses(method, losses_fn):
    """With averaged losses beside them the weights are right, and h is that of eight batches.

    A loss that is the same on all devices counts as often as the others.
    """
    tx = METHODS[method]()
    params, batch = problem()

    def h_of(params, batch, scale=1.0, average=lambda losses: losses):
        losses, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        h, state = tx.update(grads, tx.init(params), params, losses=average(losses))
        return jax.tree.map(lambda leaf: scale * leaf, h), sa.loss_weights(state)

    def local_h_of(params, batch):
        return h_of(params, batch, 1 / 8, lambda losses: jax.lax.pmean(losses, "data"))

    assert_same_on_one_device(mapped(local_h_of)(params, batch), h_of(params, batch))


@needs_shard_map
@pytest.mark.parametrize("losses_fn", [losses_fn, penalized_losses_fn])
@pytest.mark.parametrize("method", [*METHODS, "normalized_gradients"])
def test_shard_map_with_stacked_gradients_over_their_number(method, losses_fn):
    """Also for a method whose weights depend on the size of the gradients."""
    tx = (METHODS | {"normalized_gradients": lambda: sa.normalized_gradients(3)})[method]()
    params, batch = problem()

    def h_of(params, batch, number=1, average=lambda losses: losses):
        losses, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        stacked = jax.tree.map(lambda leaf: leaf / number, grads.stack())
        h, state = tx.update(stacked, tx.init(params), params, losses=average(losses))
        return h, sa.loss_weights(state)

    def local_h_of(params, batch):
        return h_of(params, batch, 8, lambda losses: jax.lax.pmean(losses, "data"))

    assert_same_on_one_device(mapped(local_h_of)(params, batch), h_of(params, batch))


@needs_shard_map
@pytest.mark.parametrize("losses_fn", [losses_fn, penalized_losses_fn])
@pytest.mark.parametrize(
    "options", [{}, {"lean": True}, {"every": 2}, {"shared": {"first": True, "second": False}}]
)
def test_shard_map_with_weights_of_each_device(options, losses_fn):
    """Without averages each device weights the losses of its own batch, and h is their sum.

    The products are those of the gradients of all devices, whichever form they come in.
    """

    def update(components, state):
        return components.losses / jnp.sqrt(components.squared_norms()), state

    tx = sa.balance(sa.Weighting(lambda num_losses: (), update), 3, **options)
    params, batch = problem()

    def h_of(params, batch):
        _, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        h, state = tx.update(grads, tx.init(params), params)
        return h, sa.loss_weights(state)[None]

    def stacked_of(batch):
        _, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        return grads.losses, grads.stack()

    losses, stacked = jax.vmap(stacked_of)(jax.tree.map(one_for_each_device, batch))
    masked = [stacked["first"]] if "shared" in options else jax.tree.leaves(stacked)
    sums = [jnp.sum(leaf, axis=0).reshape(3, -1) for leaf in masked]
    weights = losses / np.linalg.norm(np.concatenate(sums, axis=1), axis=1)[None, :]
    assert np.ptp(weights, axis=0).max() > 1e-2  # they differ between devices
    wanted = {name: jnp.tensordot(weights, leaf, 2) for name, leaf in stacked.items()}
    found = mapped(h_of, out_specs=(P(), P("data")))(params, batch)
    assert_same_on_one_device(found, (wanted, weights))


@needs_shard_map
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("method", ["mgda", "pcgrad", "normalized_gradients"])
def test_shard_map_adds_up_the_products_of_pieces(method, lean):
    """Where devices have pieces of a parameter, what they multiply are pieces of the gradients."""
    tx = {
        "mgda": lambda: sa.mgda(3, lean=lean),
        "pcgrad": lambda: sa.pcgrad(3, lean=lean),
        "normalized_gradients": lambda: sa.normalized_gradients(3, lean=lean),
    }[method]()
    params, batch = problem()

    def h_of(params, batch, losses_fn=losses_fn):
        _, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        h, state = tx.update(grads, tx.init(params), params)
        mask = {"first": True, "second": False}
        norms = grads.squared_norms(), grads.squared_norms(mask)
        along = [g.alignments(jax.tree.map(jnp.cos, params)) for g in (grads, grads.formed())]
        return h, (sa.loss_weights(state), grads.gramian(), *norms, *along)

    def gathered_losses_fn(params, batch):
        first = jax.lax.all_gather(params["first"], "data", tiled=True)
        return averaged_losses_fn(params | {"first": first}, batch)

    specs = {"first": P("data"), "second": P()}
    in_pieces = mapped(
        lambda *args: h_of(*args, gathered_losses_fn),
        in_specs=(specs, P("data")),
        out_specs=(specs, P()),
    )
    assert_same_on_one_device(in_pieces(params, batch), h_of(params, batch))


@needs_shard_map
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("method", [*METHODS, "uncertainty, every"])
def test_shard_map_of_one_model_per_device(method, constant):
    """Each trains as it does alone, beside a loss that is the same for all of them too.

    The state is at first the same on all devices.
    """
    if constant and method.startswith("mgda"):
        pytest.skip("its point of smallest norm is that loss alone, whose gradient is zero")
    tx = (METHODS | {"uncertainty, every": lambda: sa.uncertainty(3, every=3)})[method]()

    def member_losses_fn(params, batch):
        losses = losses_fn(params, batch)
        return losses | {"size": jnp.float32(0.25)} if constant else losses

    def trained(params, batch):
        state = tx.init(params)
        for _ in range(4):
            _, grads = sa.value_and_component_grads(member_losses_fn)(params, batch)
            h, state = tx.update(grads, state, params)
            params = jax.tree.map(lambda param, leaf: param - 0.1 * leaf, params, h)
        return params, sa.loss_weights(state)

    def trained_here(*args):
        first = jax.tree.map(lambda leaf: leaf[0], args)
        return jax.tree.map(lambda leaf: leaf[None], trained(*first))

    params, batch = problem()
    scales = jnp.linspace(0.5, 1.5, 8).reshape(8, 1, 1)
    params = jax.tree.map(lambda param: scales * param[None], params)
    args = params, jax.tree.map(one_for_each_device, batch)
    wanted = jax.jit(jax.vmap(trained))(*args)
    assert np.ptp(wanted[1], axis=0).max() > 1e-3
    found = mapped(trained_here, in_specs=P("data"), out_specs=P("data"))(*args)
    assert_same_on_one_device(found, wanted)


# Without types that say what differs between devices.

MAPS = {
    "pmap": lambda f: jax.pmap(f, axis_name="data", in_axes=(None, 0)),
    "vmap": lambda f: jax.vmap(f, axis_name="data", in_axes=(None, 0)),
}
if hasattr(jax, "shard_map"):
    MAPS["shard_map, check_vma=False"] = lambda f: jax.shard_map(
        lambda params, batch: one_more_axis(f(params, jax.tree.map(lambda leaf: leaf[0], batch))),
        mesh=the_mesh(),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        check_vma=False,
    )
each_map = pytest.mark.parametrize("mapping", MAPS)


def scalar(losses):
    return losses["fit"], losses["size"]


def batch_sums(params, batch):
    fits = jnp.mean((batch["x"] @ params["first"])[:, :8] - batch["target"], axis=1) ** 2
    is_counted = batch["x"][:, 0] > 0
    return jnp.sum(jnp.where(is_counted, fits, 0.0)), jnp.sum(is_counted)


def scanned_average(params, batch):
    def add(total, example):
        one = jax.tree.map(lambda leaf: leaf[None], example)
        return total + jax.lax.pmean(losses_fn(params, one)["fit"], "data"), None

    total, _ = jax.lax.scan(add, jnp.zeros(()), batch)
    return [total, losses_fn(params, batch)["size"]]


def chosen_average(params, batch):
    losses = losses_fn(params, batch)
    average = lambda: jax.lax.pmean(losses["fit"], "data")
    return [jax.lax.cond(losses["fit"] > 0, average, lambda: losses["fit"]), losses["size"]]


AVERAGED = {
    "all": averaged_losses_fn,
    "one": lambda params, batch: (
        losses_fn(params, batch) | {"fit": jax.lax.pmean(losses_fn(params, batch)["fit"], "data")}
    ),
    "array": lambda *args: jax.lax.pmean(jnp.stack(scalar(losses_fn(*args))), "data"),
    "in jit": jax.jit(averaged_losses_fn),
    "in checkpoint": jax.checkpoint(averaged_losses_fn),
    "in scan": scanned_average,
    "in cond": chosen_average,
    "logarithm": lambda *args: jax.tree.map(jnp.log, averaged_losses_fn(*args)),
    "beside a penalty": lambda params, batch: (
        averaged_losses_fn(params, batch)["fit"] + jnp.sum(params["first"] ** 2)
    ),
    "sum over number": lambda *args: jnp.divide(*jax.lax.psum(batch_sums(*args), "data")),
}


def normalized_losses_fn(params, batch):
    """With statistics of all devices, as in batch normalization, of features and of one number."""
    y = batch["x"] @ params["first"]
    y = y - jax.lax.pmean(jnp.mean(y, axis=0, keepdims=True), "data")
    y = y / jnp.sqrt(jax.lax.pmean(jnp.mean(y**2), "data"))
    return losses_fn({"first": jnp.eye(WIDTH), "second": params["second"]}, batch | {"x": y})


def relative_losses_fn(params, batch):
    losses = losses_fn(params, batch)
    averages = jax.lax.stop_gradient(jax.lax.pmean(losses, "data"))
    return jax.tree.map(jnp.divide, losses, averages)


@each_map
@pytest.mark.parametrize("losses_fn", AVERAGED)
def test_averages_of_which_types_tell_nothing_are_refused(losses_fn, mapping):
    """The replicas would go apart: each gets the gradient of its own share of the average."""

    def h_of(params, batch):
        return sa.value_and_component_grads(AVERAGED[losses_fn])(params, batch)[1].stack()

    params, batch = problem()
    message = r"each device's own losses, got a mean or a sum over 'data' in the loss "
    remedies = r"losses=jax.lax.pmean\(losses, 'data'\)\)`.* pmean\(grads.stack\(\), 'data'\)"
    with pytest.raises(ValueError, match=f"(?s){message}.*{remedies.replace(' ', '.*')}"):
        jax.eval_shape(MAPS[mapping](h_of), params, jax.tree.map(one_for_each_device, batch))


@each_map
@pytest.mark.parametrize("losses_fn", [losses_fn, normalized_losses_fn, relative_losses_fn])
def test_averages_on_the_way_to_local_losses_are_not_refused(losses_fn, mapping):
    def h_of(params, batch):
        _, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        return jax.lax.pmean(grads.combine(jnp.asarray([1.0, 2.0, 3.0])), "data")

    def wanted_of(params, batch):
        total = lambda params: sum(map(operator.mul, losses_fn(params, batch).values(), (1, 2, 3)))
        return jax.lax.pmean(jax.grad(total)(params), "data")

    params, batch = problem()
    batch = jax.tree.map(one_for_each_device, batch)
    found, wanted = (MAPS[mapping](f)(params, batch) for f in (h_of, wanted_of))
    assert_same_on_one_device(found, wanted)


@each_method
def test_pmap_with_averages_beside_local_losses_trains_as_on_one_device(method):
    """Methods that look at gradients want the average of those; for the others h will do."""
    average = lambda tree: jax.lax.pmean(tree, "data")
    behind = optax.stateless(lambda updates, params: average(updates))
    is_stacked = method not in LOSS_ONLY
    tx = optax.chain(METHODS[method](), optax.identity() if is_stacked else behind, ADAM)

    def step(params, opt_state, batch):
        losses, grads = sa.value_and_component_grads(losses_fn)(params, batch)
        updates = average(grads.stack()) if is_stacked else grads
        updates, opt_state = tx.update(updates, opt_state, params, losses=average(losses))
        return optax.apply_updates(params, updates), opt_state, losses

    params, batch = problem()
    replicas = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), (params, tx.init(params)))
    batch = jax.tree.map(one_for_each_device, batch)
    found = train(jax.pmap(step, axis_name="data"), *replicas, batch)
    wanted = trained_on_one_device(method)
    assert np.ptp(wanted[2][-1]) > 1e-3
    for ours, theirs in zip((found[0], found[2]), (wanted[0], wanted[2]), strict=True):
        for leaf, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            assert np.all(np.asarray(leaf) == np.asarray(leaf)[:1])
            np.testing.assert_allclose(leaf[0], other, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="jax.set_mesh is newer")
@each_method
def test_shardings_in_types_train_as_on_one_device(method):
    mesh = the_mesh(axis_types=(jax.sharding.AxisType.Explicit,))
    tx = chained(method)
    with jax.set_mesh(mesh):
        args = placed("data parallel", tx, mesh)
        assert_same_training(train(jax.jit(balanced_step(tx)), *args), method)


@pytest.mark.skipif(not hasattr(jax.sharding, "reshard"), reason="jax.sharding.reshard is newer")
@each_method
def test_sharded_parameters_with_shardings_in_types(method):
    def gathered_losses_fn(params, batch):
        return losses_fn(jax.tree.map(lambda p: jax.sharding.reshard(p, P()), params), batch)

    mesh = the_mesh(axis_types=(jax.sharding.AxisType.Explicit,))
    tx = chained(method)
    with jax.set_mesh(mesh):
        args = placed("fully sharded", tx, mesh)
        found = train(jax.jit(balanced_step(tx, gathered_losses_fn)), *args)
        assert_same_training(found, method)
        assert_sharded_alike(found[0], args[0])


# Collectives, in the compiled program.

COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|"
    r"collective-broadcast|ragged-all-to-all|all-to-all)(?P<start>-start)?\("
)


def collectives(method, layout):
    """The kind and the shapes of the results of each, as in ("all-reduce", [(), (2, 3)])."""
    lines = compiled(method, layout).as_text().splitlines()
    found = [match for line in lines if (match := COLLECTIVE.search(line))]
    assert not any(match["start"] for match in found)  # its results would hold its inputs too
    return [(match["kind"], shapes_in(match["shapes"])) for match in found]


def shapes_in(text):
    types = re.findall(r"(\w+)\[([\d,]*)\]", text)
    assert {dtype for dtype, _ in types} == {"f32"}
    return [tuple(int(n) for n in sizes.split(",") if n) for _, sizes in types]


def arrays_of(found):
    """Each array on its own, whether or not the compiler lets them travel together."""
    return sorted((kind, shape) for kind, shapes in found for shape in shapes)


def floats_in(found):
    return sum(math.prod(shape) for _, shapes in found for shape in shapes)


@each_layout
@pytest.mark.parametrize("method", LOSS_ONLY)
def test_loss_only_methods_send_what_plain_training_sends(method, layout):
    """The same arrays; at most one message more, since the losses come before the backward pass."""
    plain, found = collectives("plain", layout), collectives(method, layout)
    assert arrays_of(found) == arrays_of(plain)
    assert ("all-reduce", ()) in arrays_of(found)
    assert ("all-gather" in dict(found)) == (layout == "fully sharded")
    assert len(plain) <= len(found) <= len(plain) + 1


@each_layout
@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_gradient_methods_send_the_gradients_of_each_loss(method, layout):
    """And for sharded parameters the inner products, which have a term from every device."""
    params, _ = problem()
    size = sum(param.size for param in params.values())
    products = {"gradnorm": 3}.get(method, 6) * len(params) if layout == "fully sharded" else 0
    extra = floats_in(collectives(method, layout)) - floats_in(collectives("plain", layout))
    assert extra == 2 * size + products


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
@pytest.mark.parametrize("num_losses", [3, 17])
@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 512), P(None, "data")),
        ((64, 512), P("data", None)),
        ((32, 256), P(None, "data")),
        ((16, 1000), P(None, "data")),  # no whole blocks
        ((2, 8000), P(None, "data")),  # blocks of 32 would be shared by two devices
        ((8192,), P("data")),
        ((1024, 8), P(None, "data")),
        ((2, 16, 64, 32), P(None, "data", None, None)),
    ],
)
def test_products_gather_no_gradient(shape, spec, num_losses, axis_type):
    """Whichever axis the parameters are sharded along: only sums travel."""
    mesh = the_mesh(axis_types=(getattr(jax.sharding.AxisType, axis_type),))
    on_mesh = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
    tx = sa.normalized_gradients(num_losses)
    gradient = np.random.default_rng(0).normal(size=(num_losses, *shape)).astype(np.float32)
    gradient *= np.arange(1.0, num_losses + 1).reshape(-1, *([1] * len(shape)))
    losses = np.linspace(1.0, 2.0, num_losses)

    def outputs(gradient, state, params):
        grads = from_stacked(gradient, losses)
        h, state = tx.update(grads, state, params)
        return h, sa.loss_weights(state), grads.gramian(), grads.squared_norms()

    wanted = jax.jit(outputs)(gradient, tx.init(gradient[0]), gradient[0])
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
        args = (
            on_mesh(gradient, P(None, *spec)),
            jax.tree.map(lambda leaf: on_mesh(leaf, P()), tx.init(gradient[0])),
            on_mesh(gradient[0], spec),
        )
        program = jax.jit(outputs).lower(*args).compile()
        found = program(*args)
    kinds = {match["kind"] for match in COLLECTIVE.finditer(program.as_text())}
    assert kinds == {"all-reduce"}
    assert found[0].sharding.is_equivalent_to(args[2].sharding, len(shape))
    for ours, alone in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-5, atol=1e-5 * np.max(np.abs(alone)))


@pytest.mark.parametrize("length", [256, 768, 1000, 3000, 8000, 51200])
def test_products_of_an_accelerator_gather_no_gradient(length, monkeypatch):
    """Its form of them, compiled for the CPU: axes are split into more than blocks of 32."""
    sharding = NamedSharding(the_mesh(), P(None, "data"))
    values = np.random.default_rng(0).normal(size=(4, 4, length)).astype(np.float32)
    rows = [[jax.device_put(value, sharding)] for value in values]
    monkeypatch.setattr(_products, "MOST_SMALL", 0)  # as gradients that are large are multiplied
    program = jax.jit(lambda rows: _products.gramian_of(rows, on_accelerator=True))
    compiled = program.lower(rows).compile()
    assert {match["kind"] for match in COLLECTIVE.finditer(compiled.as_text())} == {"all-reduce"}
    flat = values.reshape(4, -1).astype(np.float64)
    np.testing.assert_allclose(compiled(rows), flat @ flat.T, rtol=1e-5, atol=1e-2)
