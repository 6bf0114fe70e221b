"""`value_and_component_grads` on what real models contain, and the four views of the gradients."""

import functools
import gc
import inspect
import re
import weakref

import flax.linen
import flax.nnx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import JAX_VERSION, PROBLEMS, quadratic_losses, quadratic_params, unchecked

import softadapt_optax as sa

WEIGHTS = np.array([0.2, 1.5, 0.7], np.float32)


def assert_combines(losses_fn, params, *args, rtol=1e-5, atol=1e-6, **options):
    """Whatever the model is, h is the gradient of the weighted sum, in both forms."""
    losses, grads = sa.value_and_component_grads(losses_fn, **options)(params, *args)
    num_losses = grads.losses.size
    weights = jnp.asarray(WEIGHTS[:num_losses])

    def weighted_sum(params):
        leaves = jax.tree.leaves(losses_fn(params, *args))
        array = leaves[0] if leaves[0].ndim else jnp.stack(leaves)
        return jnp.sum(weights * array.astype(jnp.float32))

    expected = jax.grad(weighted_sum, allow_int=True)(params)
    stacked = grads.stack()
    for actual in (
        grads.combine(weights),
        jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), stacked),
    ):
        for ours, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            if wanted.dtype == jax.dtypes.float0:
                wanted = np.zeros(wanted.shape)
            np.testing.assert_allclose(
                np.asarray(ours, np.float64), np.asarray(wanted, np.float64), rtol=rtol, atol=atol
            )
    assert jax.tree.structure(losses) == jax.tree.structure(losses_fn(params, *args))
    rows = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(num_losses, -1) for leaf in jax.tree.leaves(stacked)],
        axis=1,
    )
    np.testing.assert_allclose(grads.gramian(), rows @ rows.T, rtol=max(rtol, 1e-5), atol=atol)
    return losses, grads


X = jnp.linspace(-1.0, 1.0, 20).reshape(5, 4)


def network(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def network_params(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0))
    shapes = {"in": (4, 8), "out": (8, 3)}
    return {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def network_losses(params, x, forward=network):
    y = forward(params, x)
    return {"square": jnp.mean(y**2), "size": jnp.mean(jnp.abs(y - 1)), "mean": jnp.mean(y)}


# What real models contain.


def test_dictionary_of_losses():
    losses, grads = assert_combines(network_losses, network_params(), X)
    assert set(losses) == {"mean", "size", "square"}
    names = ["mean", "size", "square"]  # jax.tree.leaves order: sorted keys
    np.testing.assert_array_equal(grads.losses, [losses[name] for name in names])


@pytest.mark.parametrize(
    "build",
    [
        tuple,
        list,
        jnp.stack,
        lambda parts: {"a": parts[0], "b": parts[1:]},
        lambda parts: parts[:1],
    ],
    ids=["tuple", "list", "array", "nested", "single"],
)
def test_any_structure_of_losses(build):
    def losses_fn(params, x):
        return build(list(network_losses(params, x).values()))

    assert_combines(losses_fn, network_params(), X)


def test_checkpoint():
    assert_combines(
        functools.partial(network_losses, forward=jax.checkpoint(network)), network_params(), X
    )


def test_custom_vjp():
    @jax.custom_vjp
    def steeper(x):
        return x

    steeper.defvjp(lambda x: (x, None), lambda _, g: (3.0 * g,))
    assert_combines(
        functools.partial(network_losses, forward=lambda p, x: steeper(network(p, x))),
        network_params(),
        X,
    )


def test_scan_and_while_inside_the_loss():
    def losses_fn(params, x):
        def body(carry, _):
            return jnp.tanh(carry @ params["square"]), jnp.sum(carry**2)

        end, sizes = jax.lax.scan(body, x, None, 5)
        count = jax.lax.while_loop(lambda c: c < 3.0, lambda c: c + 1.0, 0.0)
        return {"end": jnp.sum(end**2) * count, "path": jnp.mean(sizes)}

    assert_combines(losses_fn, {"square": 0.3 * jnp.eye(4) + 0.1}, X)


def test_none_and_integer_leaves():
    params = network_params() | {"none": None, "steps": jnp.arange(3), "flag": jnp.asarray(True)}
    _, grads = assert_combines(network_losses, params, X)
    h = grads.combine(WEIGHTS)
    assert h["none"] is None
    assert h["steps"].dtype == jnp.int32
    assert not jnp.any(h["steps"])
    assert h["flag"].dtype == jnp.bool_
    assert grads.stack()["steps"].shape == (3, 3)


def test_component_that_does_not_depend_on_the_parameters():
    def losses_fn(params, x):
        return {"fit": jnp.mean(network(params, x) ** 2), "data": jnp.mean(x**2)}

    _, grads = assert_combines(losses_fn, network_params(), X)
    gramian = grads.gramian()
    np.testing.assert_array_equal(gramian[0], 0.0)
    assert gramian[1, 1] > 0


def test_python_number_as_a_loss():
    losses, grads = sa.value_and_component_grads(lambda p: {"fit": p**2, "off": 0.0})(3.0)
    assert losses["off"] == 0.0
    np.testing.assert_allclose(grads.combine([1.0, 5.0]), 6.0)


def test_bfloat16_parameters():
    _, grads = assert_combines(
        network_losses, network_params(jnp.bfloat16), X, rtol=0.05, atol=0.02
    )
    for leaf in jax.tree.leaves(grads.combine(WEIGHTS)):
        assert leaf.dtype == jnp.bfloat16
    assert grads.gramian().dtype == jnp.float32
    assert grads.losses.dtype == jnp.float32


def test_low_precision_losses_are_recorded_in_float32():
    losses, grads = sa.value_and_component_grads(
        lambda p: (p.astype(jnp.bfloat16) ** 2, p.astype(jnp.float16))
    )(jnp.asarray(3.0))
    assert [loss.dtype for loss in losses] == [jnp.bfloat16, jnp.float16]
    assert grads.losses.dtype == jnp.float32
    np.testing.assert_allclose(grads.combine([1.0, 2.0]), 8.0)


# float16 ends at 65504, and a weight may be larger: cotangents have the dtypes of the losses.


def satisfied_hinge(params):
    """The second loss is 0, and so is its gradient."""
    return {"fit": jnp.sum(params**2), "other": jnp.sum(jnp.maximum(params - 1, 0))}


def tiny_loss(params):
    return {
        "fit": jnp.sum((2 * params) ** 2),
        "other": jnp.sum(jnp.abs(params)) * params.dtype.type(5e-6),
    }


HALF_PARAMS = jnp.asarray([-0.501, -0.25, 0.5005], jnp.float16)
METHODS_WITH_LARGE_WEIGHTS = {
    "realtime_loss": lambda: sa.realtime_loss(2),
    "initial_loss": lambda: sa.initial_loss(2),
    "prior_loss": lambda: sa.prior_loss({"fit": 1.0, "other": 1e-5}),
    "fixed_weights": lambda: sa.fixed_weights({"fit": 1.0, "other": 1e5}),
    "fixed_weights, more": lambda: sa.fixed_weights({"fit": 1.0, "other": 1e8}),
    "fixed_weights, less": lambda: sa.fixed_weights({"fit": 3e-5, "other": 1e-7}),
    "uncertainty": lambda: sa.uncertainty(2, optax.sgd(30.0)),
}


@pytest.mark.parametrize("losses_fn", [satisfied_hinge, tiny_loss])
@pytest.mark.parametrize("method", METHODS_WITH_LARGE_WEIGHTS)
def test_weights_that_float16_cannot_hold(method, losses_fn):
    tx = METHODS_WITH_LARGE_WEIGHTS[method]()

    def second_step(is_lazy):
        state = tx.init(HALF_PARAMS)
        for _ in range(2):
            losses, grads = sa.value_and_component_grads(losses_fn)(HALF_PARAMS)
            assert losses["fit"].dtype == losses["other"].dtype == jnp.float16
            updates = grads if is_lazy else grads.stack()
            h, state = tx.update(updates, state, HALF_PARAMS, losses=losses)
        return h, sa.loss_weights(state)

    (lazy, weights), (stacked, _) = jax.jit(lambda: (second_step(True), second_step(False)))()
    assert lazy.dtype == jnp.float16
    assert np.max(weights) > 65504 or np.max(weights) < 1e-4
    if not (method == "fixed_weights, more" and losses_fn is tiny_loss):
        assert np.all(np.isfinite(stacked))  # else there is nothing to hold
    np.testing.assert_allclose(lazy, stacked, rtol=2e-3, atol=1e-6)


@functools.cache
def h_of_losses_of(dtypes):
    def losses_fn(params, slopes):
        total = jnp.sum(jnp.sin(params)).astype(jnp.float32)
        return [(slopes[k] * total).astype(dtype) for k, dtype in enumerate(dtypes)]

    return jax.jit(lambda p, s, w: sa.value_and_component_grads(losses_fn)(p, s)[1].combine(w))


@pytest.mark.parametrize(
    "weights",
    [
        [1.0, 1e8, 2.0],
        [1e5, 2e5, 7e4],
        [2e4, 1.0, 1e-3],
        [65519.0, 65520.0, 1e-3],
        [1e-9, 3e-9, 0.0],
        [1e10, 1e30, 3e38],
        [-1e6, 2e-7, 1e6],
        [0.0, 1e6, 0.0],
        [0.0, 0.0, 0.0],
        [1e-38, 1e-30, 1e-36],
    ],
)
@pytest.mark.parametrize("dtypes", [("float16",) * 3, ("float32", "float16", "bfloat16")])
@pytest.mark.parametrize("params_dtype", [jnp.float16, jnp.float32])
def test_any_weights_of_float16_losses(weights, dtypes, params_dtype):
    """Gradients are small where weights are large, and nothing where h would be too large."""
    slopes = [0.0 if abs(w) > 1e7 else np.clip(1 / (abs(w) + 1e-9), 0.01, 1e3) for w in weights]
    params = jnp.asarray([0.0, 1.0, -0.5], params_dtype)
    h = h_of_losses_of(dtypes)(params, jnp.asarray(slopes, jnp.float32), jnp.asarray(weights))
    assert h.dtype == params_dtype
    factor = np.dot(weights, slopes)
    tolerance = 0.01 * np.dot(np.abs(weights), slopes) + (
        1e-7 if params_dtype == jnp.float16 else 0
    )
    wanted = factor * np.cos(np.asarray(params, np.float64))
    np.testing.assert_allclose(np.asarray(h, np.float64), wanted, rtol=0, atol=tolerance)


def test_what_float16_parameters_cannot_hold_is_infinite():
    _, grads = sa.value_and_component_grads(satisfied_hinge)(HALF_PARAMS)
    assert np.all(np.isinf(grads.combine([1e6, 1.0])))
    assert np.all(np.isnan(grads.combine([np.nan, 1.0])))


def test_only_float16_losses_pay_for_their_range():
    def combined(params, weights):
        return sa.value_and_component_grads(quadratic_losses)(params)[1].combine(weights)

    for dtype, is_narrow in ((jnp.float32, False), (jnp.bfloat16, False), (jnp.float16, True)):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), quadratic_params())
        program = str(jax.make_jaxpr(combined)(params, WEIGHTS))
        assert ("exp2" in program) == is_narrow


def test_float16_is_differentiated_by_the_weights():
    _, grads = sa.value_and_component_grads(satisfied_hinge)(HALF_PARAMS)
    total = lambda weights: jnp.sum(grads.combine(weights).astype(jnp.float32))
    found = jax.grad(total)(jnp.asarray([3.0, 1e6]))
    np.testing.assert_allclose(found, jnp.sum(grads.stack(), axis=1), atol=2e-3)


@pytest.mark.usefixtures("x64")
def test_float64():
    params = {"w": np.linspace(0, 1, 5)}
    losses, grads = sa.value_and_component_grads(
        lambda p: (jnp.sum(p["w"] ** 2), jnp.sum(jnp.sin(p["w"])))
    )(params)
    assert grads.losses.dtype == losses[0].dtype == jnp.float64
    h = grads.combine([0.3, 0.7])["w"]
    np.testing.assert_allclose(h, 0.6 * params["w"] + 0.7 * np.cos(params["w"]), rtol=1e-14)
    assert grads.gramian().dtype == jnp.float64


def test_complex_parameters():
    z = jnp.asarray([1.0 + 2.0j, -1.0 + 0.5j])
    losses_fn = lambda z: (jnp.sum(jnp.abs(z) ** 2), jnp.sum(z.real), jnp.sum(z.imag))
    _, grads = sa.value_and_component_grads(losses_fn)(z)
    wanted = jax.grad(lambda z: jnp.dot(jnp.asarray(WEIGHTS), jnp.stack(losses_fn(z))))(z)
    np.testing.assert_allclose(grads.combine(WEIGHTS), wanted, rtol=1e-6)
    np.testing.assert_allclose(jnp.diagonal(grads.gramian()), [25.0, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(grads.gramian()[1, 2], 0.0, atol=1e-6)


@pytest.mark.slow
def test_linen_module_with_batch_statistics():
    class Net(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            x = flax.linen.Dense(6)(x)
            x = flax.linen.BatchNorm(use_running_average=False)(x)
            return flax.linen.Dense(2)(flax.linen.relu(x))

    variables = Net().init(jax.random.key(0), X)
    statistics = variables["batch_stats"]

    def losses_fn(params, x):
        y, updated = Net().apply(
            {"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"]
        )
        return {"square": jnp.mean(y**2), "mean": jnp.mean(y)}, updated

    assert_combines(lambda p, x: losses_fn(p, x)[0], variables["params"], X, atol=1e-5)
    (losses, updated), grads = sa.value_and_component_grads(losses_fn, has_aux=True)(
        variables["params"], X
    )
    assert set(losses) == {"square", "mean"}
    mean = updated["batch_stats"]["BatchNorm_0"]["mean"]
    assert float(jnp.abs(mean - statistics["BatchNorm_0"]["mean"]).max()) > 0
    assert jax.tree.structure(grads.combine([1.0, 1.0])) == jax.tree.structure(variables["params"])


def test_nnx_module():
    class Net(flax.nnx.Module):
        def __init__(self, rngs):
            self.hidden = flax.nnx.Linear(4, 6, rngs=rngs)
            self.out = flax.nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(flax.nnx.relu(self.hidden(x)))

    graph, params = flax.nnx.split(Net(flax.nnx.Rngs(0)), flax.nnx.Param)

    def losses_fn(params, x):
        y = flax.nnx.merge(graph, params)(x)
        return {"square": jnp.mean(y**2), "mean": jnp.mean(y)}

    _, grads = assert_combines(losses_fn, params, X)
    tx = optax.chain(sa.softadapt(2), optax.adam(1e-2))
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    assert sum(jax.tree.leaves(losses_fn(moved, X))) < sum(jax.tree.leaves(losses_fn(params, X)))


# Arguments.


@pytest.mark.parametrize("argnums", [1, -1, (0, 1), [1], (-1, 0)])
def test_argnums_mirror_jax_grad(argnums):
    def losses_fn(scale, params):
        y = scale * params
        return (jnp.sum(y**2), jnp.sum(y))

    args = (jnp.asarray(2.0), jnp.arange(3.0))
    _, grads = sa.value_and_component_grads(losses_fn, argnums)(*args)
    weighted = lambda *args: 0.3 * losses_fn(*args)[0] + 0.7 * losses_fn(*args)[1]
    ours, wanted = grads.combine([0.3, 0.7]), jax.grad(weighted, argnums)(*args)
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, wanted)


def test_has_aux_and_keyword_arguments():
    def losses_fn(params, *, shift):
        return {"a": (params - shift) ** 2, "b": params}, {"shifted": params - shift, "name": "x"}

    (losses, aux), grads = sa.value_and_component_grads(losses_fn, has_aux=True)(5.0, shift=2.0)
    assert aux["name"] == "x"
    assert (aux["shifted"], losses["a"]) == (3.0, 9.0)
    np.testing.assert_allclose(grads.combine({"a": 1.0, "b": 10.0}), 16.0)


def test_it_keeps_the_name_and_the_documentation_of_the_loss():
    def my_losses(params):
        """Two losses."""
        return (params, params)

    wrapped = inspect.unwrap(sa.value_and_component_grads)(my_losses)
    assert wrapped.__name__ == "my_losses"
    assert wrapped.__doc__ == "Two losses."


def test_neither_form_runs_the_loss_more_than_once():
    calls = []

    def losses_fn(params):
        calls.append(1)
        return (params**2, params)

    _, grads = sa.value_and_component_grads(losses_fn)(1.0)
    grads.combine([1.0, 1.0])
    grads.stack()
    grads.gramian()
    assert len(calls) == 1


# The four views.


def test_combine_takes_an_array_or_the_structure_of_the_losses():
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    named = grads.combine({"near": 1.0, "far": 2.0, "small": 3.0})
    array = grads.combine(jnp.asarray([2.0, 1.0, 3.0]))
    jax.tree.map(np.testing.assert_array_equal, named, array)


def test_gramian_over_a_mask():
    params = quadratic_params()
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(3, -1), grads.stack())
    for mask in ({"w": True, "b": False}, {"w": False, "b": True}, True, False):
        names = [n for n in params if (mask if isinstance(mask, bool) else mask[n])]
        wanted = sum((stacked[n] @ stacked[n].T for n in names), np.zeros((3, 3)))
        np.testing.assert_allclose(grads.gramian(mask), wanted, rtol=1e-6)


MANY = [(1_000_000,), (1000, 1000), (100, 10, 1000), (1_000_000, 1), (250, 4000)]


@pytest.mark.parametrize(
    ("num_losses", "shape"),
    [(2, shape) for shape in MANY]
    + [(17, MANY[0])]
    + [pytest.param(17, shape, marks=pytest.mark.slow) for shape in MANY[1:]],
)
def test_gramian_of_many_parameters_is_accurate(shape, num_losses):
    rows = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    rows = rows[np.arange(num_losses) % 2]
    losses_fn = lambda p: [jnp.sum(jnp.asarray(row) * p) for row in rows]
    _, grads = sa.value_and_component_grads(losses_fn)(jnp.zeros(shape))
    wide = rows.astype(np.float64).reshape(num_losses, -1)
    np.testing.assert_allclose(grads.gramian(), wide @ wide.T, atol=5e-7 * 1_000_000)


PRODUCT_SHAPES = {
    "matrix": (7, 30),
    "long": (5000,),
    "blocks": (3, 640),
    "thin": (640, 1),
    "scalar": (),
    "tensor": (3, 2, 4),
    "none": (0, 3),
}
FEW_SHAPES = ("matrix", "long")


@pytest.mark.parametrize(
    ("num_losses", "kinds"),
    [(1, PRODUCT_SHAPES), (2, PRODUCT_SHAPES), (5, PRODUCT_SHAPES)]
    + [(16, FEW_SHAPES), (17, FEW_SHAPES)]
    + [pytest.param(k, PRODUCT_SHAPES, marks=pytest.mark.slow) for k in (16, 17, 40)],
)
def test_products_of_any_number_of_gradients(num_losses, kinds):
    """They are written out up to 16 losses, 12 at a time, and are matrix products beyond."""
    rng = np.random.default_rng(num_losses)
    shapes = {name: PRODUCT_SHAPES[name] for name in kinds}
    all_but_long = {name: name != "long" for name in kinds}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    targets = {name: rng.normal(size=(num_losses, *shape)) for name, shape in shapes.items()}

    def losses_fn(params):
        # The last loss knows nothing of the long vector.
        names = [
            [n for n in shapes if n != "long" or k < num_losses - 1] for k in range(num_losses)
        ]
        return [
            sum(jnp.sum((params[n] - targets[n][k]) ** 2) for n in names[k])
            for k in range(num_losses)
        ]

    _, grads = jax.jit(
        lambda p: take_apart(sa.value_and_component_grads(losses_fn)(p), all_but_long)
    )(params)
    for mask in (None, all_but_long):
        flat = {n: np.asarray(leaf, np.float64) for n, leaf in grads["stack"].items()}
        kept = [n for n in shapes if mask is None or mask[n]]
        rows = np.concatenate([flat[n].reshape(num_losses, -1) for n in kept], axis=1)
        gramian, norms = grads["all" if mask is None else "masked"]
        np.testing.assert_allclose(gramian, rows @ rows.T, atol=5e-6 * (rows**2).sum(axis=1).max())
        np.testing.assert_allclose(norms, (rows**2).sum(axis=1), rtol=5e-6)
        np.testing.assert_array_equal(gramian, np.transpose(gramian))
    weights = np.linspace(0.0, 1.0, num_losses)
    for name, leaf in flat.items():
        wanted = np.tensordot(weights, leaf, 1)
        np.testing.assert_allclose(grads["reused"][name], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(grads["combined"][name], wanted, rtol=1e-4, atol=1e-5)


def take_apart(losses_and_grads, mask):
    losses, grads = losses_and_grads
    weights = jnp.linspace(0.0, 1.0, grads.losses.size)
    return losses, {
        "stack": grads.stack(),
        "all": (grads.gramian(), grads.squared_norms()),
        "masked": (grads.gramian(mask), grads.squared_norms(mask)),
        "combined": grads.combine(weights),
        "reused": grads.formed().combine(weights),
    }


@pytest.mark.parametrize("num_losses", [16, 17])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64])
def test_products_in_other_dtypes(num_losses, dtype):
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.normal(size=(num_losses, 20, 30)), dtype)
    losses_fn = lambda p: [jnp.sum(jnp.abs(p - target) ** 2) for target in targets]
    weights = np.linspace(0.5, 1.0, num_losses)

    @jax.jit
    def products(params):
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        return grads.stack(), grads.gramian(), grads.formed().combine(weights)

    stacked, gramian, combined = products(jnp.zeros((20, 30), dtype))
    rows = np.asarray(stacked).astype(np.complex128).reshape(num_losses, -1)
    wanted = (rows @ rows.conj().T).real
    assert gramian.dtype == jnp.float32
    np.testing.assert_allclose(gramian, wanted, atol=3e-6 * wanted.max())
    assert combined.dtype == dtype
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        np.asarray(combined).astype(np.complex128).ravel(), weights @ rows, rtol=tolerance, atol=0.1
    )


def test_what_a_component_does_not_touch_is_not_computed():
    """Two losses with a head each: K pullbacks of one head each, not of both."""
    params = {"trunk": jnp.ones((64, 64)), "a": jnp.ones((64, 512)), "b": jnp.ones((64, 512))}
    x = jnp.ones((32, 64))

    def losses_fn(params):
        features = jnp.tanh(x @ params["trunk"])
        return tuple(jnp.mean((features @ params[name]) ** 2) for name in "ab")

    def flops(function):
        return jax.jit(function).lower(params).compile().cost_analysis()["flops"]

    stacked = flops(lambda p: sa.value_and_component_grads(losses_fn)(p)[1].stack())
    plain = flops(jax.grad(lambda p: sum(losses_fn(p))))
    # Forward and backward of both heads once each, and the trunk's backward once more.
    assert stacked < 1.15 * plain


def test_component_grads_show_what_they_are():
    _, grads = sa.value_and_component_grads(lambda p: {"a": p, "b": p})(1.0)
    assert repr(grads) == "ComponentGrads(num_losses=2, names=['a', 'b'])"


def test_component_grads_are_not_a_tree():
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    message = "`ComponentGrads` should go to a weighting"
    for misuse in (
        lambda: jax.tree.leaves(grads),
        lambda: jax.tree.map(jnp.sin, grads),
        lambda: jax.jit(lambda g: 0.0)(grads),
        lambda: jax.jit(sa.value_and_component_grads(quadratic_losses))(quadratic_params()),
        lambda: optax.tree.norm(grads),
        lambda: optax.sgd(0.1).update(grads, optax.sgd(0.1).init(quadratic_params())),
    ):
        with pytest.raises(TypeError, match=message):
            misuse()


def test_nothing_outlives_the_step():
    references = []

    @jax.jit
    def step(params):
        _, grads = sa.value_and_component_grads(quadratic_losses)(params)
        references.append(weakref.ref(grads))
        return grads.combine([1.0, 1.0, 1.0])

    gc.disable()
    try:
        with jax.checking_leaks():
            step(quadratic_params())
        assert references[0]() is None  # freed without the garbage collector: no cycles
    finally:
        gc.enable()


# Wrong use.


@pytest.mark.parametrize(
    ("losses_fn", "args", "options", "error", "message"),
    [
        (lambda p: p["w"], None, {}, ValueError, r"pytree of scalars or one array of shape \[K\]"),
        (
            lambda p: {"a": jnp.sum(p["b"]), "b": p["b"]},
            None,
            {},
            ValueError,
            r"got shape \(4,\) at",
        ),
        (lambda p: ((jnp.sum(p["b"]),), p["w"]), None, {}, ValueError, "without `has_aux=True`"),
        (lambda p: {}, None, {}, ValueError, "at least one loss"),
        (lambda p: {"all": p["b"]}, None, {}, ValueError, r"got shape \(4,\) at \['all'\]"),
        (lambda p: jnp.zeros(0), None, {}, ValueError, r"got shape \(0,\) at the output"),
        (lambda p: (jnp.sum(p["b"]), 3), None, {}, TypeError, r"got int32 at \[1\]. Likely cause"),
        (lambda p: (jnp.sum(p["b"]) + 0j,), None, {}, TypeError, "real floating-point number"),
        (quadratic_losses, (), {}, ValueError, r"got \[0\] for 0 of them; those passed by keyword"),
        (quadratic_losses, None, {"argnums": 1}, ValueError, r"got \[1\] for 1 of them"),
        (quadratic_losses, None, {"argnums": -2}, ValueError, r"got \[-2\] for 1 of them"),
        (quadratic_losses, None, {"argnums": ()}, ValueError, "should name different positional"),
        (quadratic_losses, None, {"argnums": (0, -1)}, ValueError, "should name different"),
        (quadratic_losses, None, {"has_aux": True}, TypeError, r"a pair \(losses, aux\), got dict"),
        (
            lambda p: jnp.ones(2),
            None,
            {"has_aux": True},
            TypeError,
            "`has_aux=True` the loss function",
        ),
        (lambda p: p["w"], ({"w": 1.0, "f": jnp.tanh},), {}, TypeError, "got object at"),
        (lambda p: p["w"], ({"w": 1.0, "name": "x"},), {}, TypeError, "hold numbers, got <U1"),
        (jnp.sum, (jnp.arange(3),), {}, TypeError, "`argnums` points at the data"),
        (
            lambda p: p["w"],
            ({"w": 1.0, "key": jax.random.key(0)},),
            {},
            TypeError,
            r"should hold numbers, got key<fry> at \[0\]\['key'\]",
        ),
    ],
)
def test_wrong_use_is_named(losses_fn, args, options, error, message):
    args = (quadratic_params(),) if args is None else args
    with pytest.raises(error, match=message):
        sa.value_and_component_grads(losses_fn, **options)(*args)


def test_averages_over_an_axis_that_types_do_not_know_are_refused():
    """In tests/many_devices.py there are more of them."""

    def h_of(params, x, average):
        def losses_fn(params):
            losses = network_losses(params, x)
            return losses | {"size": average(losses["size"])}

        return sa.value_and_component_grads(losses_fn)(params)[1].combine(WEIGHTS)

    def mapped(average):
        of_params = functools.partial(h_of, network_params(), average=average)
        return jax.vmap(of_params, axis_name="i")(X[:, None])

    mapped(jnp.sqrt)
    with pytest.raises(ValueError, match="got a mean or a sum over 'i' in the loss size"):
        mapped(lambda loss: jnp.sqrt(jax.lax.pmean(loss, "i")))


def test_wrong_arguments_are_named_at_once():
    with pytest.raises(TypeError, match="`losses_fn` should be a function, got dict"):
        unchecked(sa.value_and_component_grads)({"a": 1.0})
    for argnums in (1.0, None, "p", [0.0]):
        with pytest.raises(TypeError, match="`argnums` should be an integer or a sequence of them"):
            unchecked(sa.value_and_component_grads)(quadratic_losses, argnums)(quadratic_params())


def test_wrong_number_of_weights():
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    with pytest.raises(ValueError, match=r"`weights` should have 3 entries, .* got 2"):
        grads.combine([1.0, 2.0])
    with pytest.raises(ValueError, match=r"shape \[K\] or a pytree of K scalars"):
        grads.combine(jnp.ones((3, 1)))
    with pytest.raises(
        ValueError, match="entries of `weights` should have the names of the losses"
    ):
        grads.combine({"near": 1.0, "far": 2.0, "smal": 3.0})


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda p: {"b": p, "a": p}, ["a", "b"]),
        (lambda p: (p, {"x": p}), ["0", "1/x"]),
        (lambda p: [p, p], None),
        (lambda p: jnp.stack([p, p]), None),
        (lambda p: p, None),
    ],
)
def test_names_of_the_losses(build, names):
    _, grads = sa.value_and_component_grads(build)(1.0)
    assert grads.names == names


# One backward pass or K.


@pytest.mark.parametrize("kind", PROBLEMS)
def test_vectorized_gradients_are_those_of_k_passes(kind):
    losses_fn, params = PROBLEMS[kind](3)

    def gradients(vectorized):
        _, grads = sa.value_and_component_grads(losses_fn, vectorized=vectorized)(params)
        return grads.stack(), grads.gramian(), grads.squared_norms()

    apart, together = jax.jit(lambda: (gradients(False), gradients(True)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), apart, together
    )


@pytest.mark.parametrize(
    ("kind", "is_common"),
    [("shared output", True), ("own batches", False), ("trunk and heads", False)],
)
def test_gradients_are_formed_together_where_nothing_is_computed_in_vain(kind, is_common):
    """On CUDA: the choice is made when the program is lowered, so that it can be seen without."""
    losses_fn, params = PROBLEMS[kind](3)

    def products(vectorized, platform):
        def stacked(params):
            both = sa.value_and_component_grads(losses_fn, vectorized=vectorized)(params)
            return both[1].stack()

        text = jax.export.export(jax.jit(stacked), platforms=[platform])(params).mlir_module()
        return sorted(re.findall(r"stablehlo.dot_general.* : (.* -> \S+)", text))

    apart, together = (products(choice, "cuda") for choice in (False, True))
    assert apart != together
    if JAX_VERSION < (0, 10):
        pytest.skip("both ways stand in the program, of which XLA keeps one")
    assert products(None, "cuda") == (together if is_common else apart)
    assert products(None, "cpu") == apart


def test_large_gradients_are_formed_apart():
    losses_fn, params = PROBLEMS["shared output"](3, width=64, batch=2**16)
    _, grads = sa.value_and_component_grads(losses_fn)(params)
    assert grads._account().is_common
    assert grads._account().is_vectorized is False
