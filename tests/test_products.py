"""Products of gradients: derivatives, gradients that are zero, compilation, memory."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import counts_of_a_cpu
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import softadapt_optax as sa
from softadapt_optax import _products
from softadapt_optax._account import Use, account_of, frees_memory
from softadapt_optax._component_grads import from_stacked

# Derivatives.


def three_losses(params):
    """Constant, missing and moving gradients in every combination."""
    a, b, c = params["a"], params["b"], params["c"]
    return (
        jnp.sum(a**3) + jnp.sum(c),
        jnp.sum(b**3) * jnp.sum(a) / 100,
        2.0 * jnp.sum(c) + 3.0 * jnp.sum(a),
    )


PARAMS = {"a": (2, 256), "b": (30,), "c": (5000,)}
MASK = {"a": True, "b": False, "c": True}


def flat_params():
    params = {name: np.linspace(-1.0, 1.5, np.prod(shape)) for name, shape in PARAMS.items()}
    return ravel_pytree({name: jnp.reshape(params[name], PARAMS[name]) for name in PARAMS})


def views(form):
    """All that is made of products or sums of gradients, as a function of a vector."""
    _, unravel = flat_params()

    def function(vector):
        losses, grads = sa.value_and_component_grads(three_losses)(unravel(vector))
        if form == "stacked":
            grads = from_stacked(grads.stack(), losses)
        elif form != "lazy":
            grads = grads.formed(lean=form == "lean")
        h = grads.combine(1.0 / jnp.sqrt(grads.squared_norms()))
        parts = (grads.gramian(), grads.squared_norms(), grads.gramian(MASK), h)
        return ravel_pytree(parts)[0] / 1000

    return function


def assert_close(found, wanted, tolerance):
    scale = np.max(np.abs(wanted))
    assert scale > 0
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    "form",
    [
        "lazy",
        *(pytest.param(form, marks=pytest.mark.slow) for form in ("lean", "stacked", "formed")),
    ],
)
@pytest.mark.usefixtures("x64")
def test_derivatives_are_those_of_finite_differences(form):
    point, _ = flat_params()
    rng = np.random.default_rng(0)
    direction = jnp.asarray(rng.normal(size=point.shape))
    step = 1e-5

    def difference(function):
        ahead, behind = function(point + step * direction), function(point - step * direction)
        return (ahead - behind) / (2 * step)

    def along(function):
        return jax.jvp(function, (point,), (direction,))

    function = jax.jit(views(form))
    values, tangents = along(function)
    assert_close(tangents, difference(function), 1e-8)
    cotangent = jnp.asarray(rng.normal(size=values.shape))
    gradient = jax.jit(jax.grad(lambda x: jnp.vdot(cotangent, jnp.sin(function(x)))))
    wanted = jnp.vdot(cotangent, jnp.cos(values) * tangents)
    assert_close(jnp.vdot(gradient(point), direction), wanted, 1e-12)
    # Second derivatives, forward over reverse and reverse over reverse.
    forward = along(gradient)[1]
    assert_close(forward, difference(gradient), 1e-6)
    reverse = jax.jit(jax.grad(lambda x: jnp.vdot(gradient(x), direction)))(point)
    assert_close(reverse, forward, 1e-12)


@pytest.mark.parametrize("num_losses", [2, pytest.param(17, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("x64")
def test_derivatives_where_each_loss_has_a_parameter_of_its_own(num_losses):
    losses_fn = lambda rows: tuple(jnp.sum(row**2) for row in rows)
    gramian = lambda rows: sa.value_and_component_grads(losses_fn)(rows)[1].gramian()
    rows = [jnp.full(3, k + 1.0) for k in range(num_losses)]
    value, tangent = jax.jit(lambda rows: jax.jvp(gramian, (rows,), (rows,)))(rows)
    np.testing.assert_allclose(value, np.diag(12.0 * np.arange(1, num_losses + 1) ** 2))
    np.testing.assert_allclose(tangent, 2 * value)
    gradient = jax.jit(jax.grad(lambda rows: jnp.sum(gramian(rows))))(rows)
    for found, row in zip(gradient, rows, strict=True):
        np.testing.assert_allclose(found, 8 * row)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_derivatives_inside_scan_and_vmap():
    function = views("lazy")
    point, _ = flat_params()
    points = jnp.stack([point, 0.5 * point])
    sums = lambda x: jnp.sum(function(x))
    gradient = jax.jit(jax.grad(sums))
    wanted = jnp.stack([gradient(x) for x in points])
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(sums)))(points), wanted, rtol=1e-12)

    def scanned(scale):
        step = lambda total, x: (total + sums(scale * x), None)
        return jax.lax.scan(step, jnp.zeros(()), points)[0]

    total = sum(jnp.vdot(gradient, x) for gradient, x in zip(wanted, points, strict=True))
    np.testing.assert_allclose(jax.jit(jax.grad(scanned))(1.0), total, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(scanned))(1.0), total, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="jax.set_mesh is newer")
@pytest.mark.parametrize("kind", ["shard_map", "in types"])
@pytest.mark.usefixtures("x64")
def test_derivatives_on_a_mesh(kind):
    function, (point, _) = views("lazy"), flat_params()
    tangents = lambda x: jax.jvp(function, (x,), (x,))
    gradient = jax.grad(lambda x: jnp.sum(function(x)))
    both = lambda x: (*tangents(x), gradient(x))
    wanted = jax.jit(both)(point)
    kinds = {"axis_types": (jax.sharding.AxisType.Explicit,)} if kind == "in types" else {}
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",), **kinds)
    if kind == "shard_map":
        found = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(
            point
        )
    else:
        with jax.set_mesh(mesh):
            found = jax.jit(both)(jax.device_put(point, NamedSharding(mesh, P())))
    for ours, alone in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-12, atol=1e-12)


# Dtypes.


@pytest.mark.parametrize("num_losses", [3, 17])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "complex64"])
@pytest.mark.usefixtures("x64")
def test_no_dtype_is_promoted_unasked(dtype, num_losses):
    params = {"long": jnp.ones((2, 512), dtype), "short": jnp.ones(3, dtype)}

    def losses_fn(params):
        sums = [jnp.sum(jnp.abs(leaf)) for leaf in params.values()]
        return [sum(sums).astype(jnp.float32) * jnp.float32(k + 1) for k in range(num_losses)]

    @jax.jit
    def products(params):
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        h = grads.formed().combine(jnp.ones(num_losses))
        return grads.gramian(), grads.squared_norms(), h

    with jax.numpy_dtype_promotion("strict"):
        gramian, norms, h = products(params)
    factors = np.arange(1.0, num_losses + 1)
    np.testing.assert_allclose(gramian, 1027 * np.outer(factors, factors), rtol=1e-6)
    np.testing.assert_allclose(norms, 1027 * factors**2, rtol=1e-6)
    assert gramian.dtype == jnp.float64
    assert h["long"].dtype == params["long"].dtype


# Gradients that are zero whatever the parameters are.


def heads_problem(num_losses, size=(16, 256)):
    """A trunk, and a head for each loss."""
    rng = np.random.default_rng(0)
    params = {
        "trunk": jnp.asarray(rng.normal(size=(16, size[0])), jnp.float32),
        "heads": [jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(num_losses)],
    }

    def losses_fn(params):
        y = jnp.tanh(jnp.ones((4, 16)) @ params["trunk"] / 4)
        return [jnp.mean((y @ head - 1.0) ** 2) for head in params["heads"]]

    return losses_fn, params


def frozen_problem(num_losses, size=(16, 256)):
    """A backbone that is not trained."""
    params = {"backbone": jnp.ones(size), "head": jnp.ones((size[1], num_losses)) / size[1]}

    def losses_fn(params):
        backbone = jax.lax.stop_gradient(params["backbone"])
        y = jnp.tanh(jnp.ones((4, size[0])) @ backbone / size[0]) @ params["head"]
        return [jnp.mean((y[:, k] - k) ** 2) for k in range(num_losses)]

    return losses_fn, params


def table_problem(num_losses, size=(16, 256)):
    """A table of integers beside the parameters."""
    losses_fn, params = frozen_problem(num_losses)
    table = {"table": jnp.ones(size, jnp.int8)}
    return lambda params: losses_fn(params["rest"]), {"rest": params, **table}


ZEROS = {"heads": heads_problem, "frozen": frozen_problem, "table": table_problem}


@counts_of_a_cpu
@pytest.mark.parametrize(
    ("num_losses", "nested"),
    [
        (3, True),
        (16, False),
        *(pytest.param(k, k > 3, marks=pytest.mark.slow) for k in (3, 16, 17)),
        pytest.param(17, False, marks=pytest.mark.slow),
    ],
)
def test_products_with_a_zero_gradient_are_not_formed(num_losses, nested):
    """Of the heads only the squared norms are: two operations for each entry."""
    losses_fn, params = heads_problem(num_losses)
    losses_fn = jax.jit(losses_fn) if nested else losses_fn
    heads = {"trunk": False, "heads": True}

    def flops(*views):
        program = jax.jit(
            lambda p: [v(sa.value_and_component_grads(losses_fn)(p)[1]) for v in views]
        )
        return program.lower(params).compile().cost_analysis()["flops"]

    stack = lambda grads: grads.stack()
    entries = num_losses * params["heads"][0].size
    extra = flops(stack, lambda grads: grads.gramian(heads)) - flops(stack)
    assert entries < extra < 2.5 * entries


@pytest.mark.parametrize("problem", ZEROS)
@pytest.mark.parametrize("num_losses", [3, 17])
def test_products_beside_zero_gradients(problem, num_losses):
    losses_fn, params = ZEROS[problem](num_losses)
    order = tuple(reversed(range(num_losses)))

    @jax.jit
    def take_apart(params):
        _, grads = sa.value_and_component_grads(losses_fn, argnums=(0,))(params)
        turned = grads.reordered(order).gramian()
        return grads.stack(), grads.gramian(), grads.squared_norms(), turned

    stacked, gramian, norms, turned = take_apart(params)
    flat = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(stacked)]
    rows = np.concatenate([leaf.reshape(num_losses, -1) for leaf in flat], axis=1)
    wanted = rows @ rows.T
    tolerance = 5e-6 * np.max(wanted)
    np.testing.assert_allclose(gramian, wanted, atol=tolerance)
    np.testing.assert_allclose(norms, np.diag(wanted), atol=tolerance)
    np.testing.assert_allclose(turned, wanted[::-1, ::-1], atol=tolerance)


# Time to compile.


def seconds_to_compile(losses_fn, params, weighting, stacked):
    def update(params, state):
        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        if stacked:
            return weighting.update(grads.stack(), state, params, losses=losses)
        return weighting.update(grads, state, params)

    start = time.process_time()
    jax.jit(update).lower(params, weighting.init(params)).compile()
    return time.process_time() - start


@pytest.mark.parametrize(
    ("problem", "method", "num_losses", "stacked"),
    [
        ("frozen", sa.mgda, 4, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("heads", sa.pcgrad, 6, False),
                ("frozen", functools.partial(sa.mgda, lean=True), 4, False),
                ("frozen", functools.partial(sa.gradnorm, every=3), 4, False),
                ("frozen", sa.pcgrad, 8, False),
                ("table", sa.mgda, 3, False),
                ("frozen", sa.mgda, 4, True),
            ]
        ),
    ],
)
def test_sums_of_zeros_are_not_computed_by_the_compiler(
    problem, method, num_losses, stacked, monkeypatch
):
    """A step compiles about as fast as one in which each product is summed by itself.

    XLA takes seconds to minutes for several sums of constants at once.
    """
    arguments = (*ZEROS[problem](num_losses, (512, 1024)), method(num_losses), stacked)
    seconds = functools.partial(seconds_to_compile, *arguments)

    def one_by_one():
        with monkeypatch.context() as patch:
            patch.setattr(_products, "_sums_in_one_pass", _products._sums)
            return seconds()

    seconds()  # the first has to load things
    pairs = [(one_by_one(), seconds()) for _ in range(2)]
    ratio = min(ours for _, ours in pairs) / min(alone for alone, _ in pairs)
    assert ratio <= 1.5, f"{ratio:.2f} times as long: {pairs}"


# What is known before there are gradients.


def counts_of(losses_fn, *leaves):
    leaves = list(leaves)
    pushforward = jax.linearize(lambda leaves: losses_fn(*leaves), leaves)[1]
    return account_of(pushforward, leaves)


W, B, X = jnp.ones((8, 8)), jnp.ones((4, 8)), jnp.ones((4, 8))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_uses_of_the_parameters(wrap):
    @wrap
    def losses_fn(w, b, unused):
        del unused
        y = jnp.tanh(X @ w + b)
        return [jnp.sum(y), jnp.sum(y @ w), jnp.sum(b)]

    uses = counts_of(losses_fn, W, B, B).uses
    assert [use.counts for use in uses] == [(1, 2, 0), (1, 1, 1), (0, 0, 0)]


def test_a_loop_is_one_place():
    def losses_fn(w, stack):
        y, _ = jax.lax.scan(lambda y, layer: (jnp.tanh(y @ layer @ w), None), X, stack)
        return [jnp.sum(y), jnp.sum(y**2)]

    uses = counts_of(losses_fn, W, jnp.stack([W, W])).uses
    assert [use.counts for use in uses] == [(1, 1), (1, 1)]
    assert uses[0].places == uses[1].places
    assert len(uses[0].places) == 1


def test_bytes_that_the_backward_pass_takes():
    """The layer's output and the factor of its derivative; not the parameters."""
    layer = lambda y, w: jnp.sin(y @ w)
    losses_fn = lambda w, v: [jnp.sum(layer(layer(X, w), v))]
    account = counts_of(losses_fn, W, W)
    assert [use.nbytes for use in account.uses] == [256, 256]
    assert account.residual_nbytes == 4 * X.nbytes  # X, two derivatives, one output
    again = lambda w, v: [jnp.sum(jax.checkpoint(layer)(layer(X, w), v))]
    assert 0 < counts_of(again, W, W).residual_nbytes <= account.residual_nbytes


def test_gradients_are_counted_in_the_dtype_in_which_they_are_computed():
    losses_fn = lambda w: [jnp.sum(X.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16))]
    (use,) = counts_of(losses_fn, W).uses
    assert (use.nbytes, use.term_nbytes) == (256, 128)


def test_random_keys_and_constants_among_the_residuals():
    def losses_fn(w, key):
        keep = jax.random.bernoulli(key, 0.5, W.shape)
        return [jnp.sum(jnp.where(keep, w, 0.0) ** 2), jnp.sum(w * np.ones((8, 8), np.float32))]

    @jax.jit
    def gramian(w, key):
        step = jax.checkpoint(losses_fn)
        return sa.value_and_component_grads(step)(w, key)[1].formed(lean=True).gramian()

    assert gramian(W, jax.random.key(0)).shape == (2, 2)


def test_when_it_pays_to_let_go_of_the_gradients():
    place = iter(range(1000))
    layer = lambda counts=(1, 1, 1, 1), where=None: Use(
        counts, frozenset({next(place) if where is None else where}), 100, 100
    )
    layers = [layer() for _ in range(12)]
    # Kept are 4800 bytes, instead of them 1200 of h and 400 of one layer.
    assert frees_memory(layers, 3199)
    assert not frees_memory(layers, 3200)
    assert not frees_memory([layer(where=0) for _ in range(12)], 0)  # all from one loop
    assert not frees_memory([layer((2, 2, 2, 2)) for _ in range(12)], 0)  # each layer twice
    assert not frees_memory([layer()], 0)
    heads = [layer(tuple(int(k == n) for k in range(4))) for n in range(4)]
    assert not frees_memory(heads, 0)  # each has one gradient, as h has


@pytest.mark.parametrize("lean", [False, True])
def test_the_forms_of_the_gradients_give_the_same(lean):
    losses_fn, params = heads_problem(4)
    _, grads = sa.value_and_component_grads(losses_fn)(params)
    weights = jnp.asarray([0.1, 0.2, 0.3, 0.4])
    for mask in (None, {"trunk": True, "heads": False}):
        found, wanted = grads.formed(mask, lean), grads
        np.testing.assert_allclose(found.gramian(mask), wanted.gramian(mask), rtol=1e-6)
        ours, theirs = (ravel_pytree(form.combine(weights))[0] for form in (found, wanted))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)
