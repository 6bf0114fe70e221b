"""Weights that follow a target: alignments, weights against an oracle, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import PROBLEMS, heads_problem, unchecked

import softadapt_optax as sa

K = 3


def flat(tree):
    """All numbers of a pytree in float64."""
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )


def direction_like(params, seed=7):
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda leaf, key: jax.random.normal(key, leaf.shape), params, keys)


# The inner products.


@pytest.mark.parametrize("kind", PROBLEMS)
def test_alignments_are_inner_products(kind):
    losses_fn, params = PROBLEMS[kind](K)
    direction = direction_like(params)

    @jax.jit
    def found(params):
        _, grads = sa.value_and_component_grads(losses_fn)(params)
        mask = jax.tree.map(lambda leaf: leaf.shape[-1] > 1, params)
        forms = (grads, grads.formed(), grads.formed_anew(), grads.reordered([2, 0, 1]))
        return (
            grads.stack(),
            mask,
            [form.alignments(direction) for form in forms],
            [form.alignments(direction, mask) for form in forms],
        )

    stacked, mask, products, masked = found(params)
    rows = [flat(jax.tree.map(lambda leaf, k=k: leaf[k], stacked)) for k in range(K)]
    kept = flat(jax.tree.map(lambda leaf, keep: jnp.full(leaf.shape, keep), params, mask))
    for wanted, forms in (
        (np.array(rows) @ flat(direction), products),
        (np.array(rows) @ (kept * flat(direction)), masked),
    ):
        size = np.linalg.norm(rows, axis=1).max() * np.linalg.norm(flat(direction))
        *own_order, reordered = forms
        for form in own_order:
            np.testing.assert_allclose(form, wanted, atol=2e-6 * size)
        np.testing.assert_allclose(reordered, wanted[[2, 0, 1]], atol=2e-6 * size)


@pytest.mark.usefixtures("x64")
def test_alignments_are_what_a_step_along_each_gradient_lowers():
    """In float64, by central differences of the target over real steps."""
    losses_fn, params = heads_problem(K)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    target_loss = lambda params: jnp.sin(losses_fn(params)["head 1"]) + losses_fn(params)["head 0"]
    _, grads = sa.value_and_component_grads(losses_fn)(params)
    alignments = grads.alignments(jax.grad(target_loss)(params))
    stacked = grads.stack()
    for k in range(K):
        along = lambda size, k=k: target_loss(
            jax.tree.map(lambda leaf, rows: leaf - size * rows[k], params, stacked)
        )
        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(-slope, alignments[k], rtol=1e-7)


def test_stacked_gradients_have_the_same_alignments():
    losses_fn, params = heads_problem(20)  # more than are written out
    direction = direction_like(params)
    losses, grads = jax.jit(
        lambda params: (lambda losses, grads: (losses, grads.stack()))(
            *sa.value_and_component_grads(losses_fn)(params)
        )
    )(params)
    tx = sa.hypergradient(20, optax.sgd(1.0))
    _, state = tx.update(grads, tx.init(params), params, losses=losses, target=direction)
    rows = [flat(jax.tree.map(lambda leaf, k=k: leaf[k], grads)) for k in range(20)]
    np.testing.assert_allclose(
        state.target_alignments, np.array(rows) @ flat(direction), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.complex64])
def test_alignments_of_other_dtypes(dtype):
    """Of float16 in any scale of the direction, and of complex numbers as of pairs."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(3, 2, 8)) + 1j * rng.normal(size=(3, 2, 8))
    values = jnp.asarray(raw if dtype == jnp.complex64 else raw.real, dtype)
    params, constant, direction = {"w": values[0]}, values[1], {"w": values[2]}

    def losses_fn(params):
        w = params["w"]
        return (jnp.mean(jnp.abs(w - constant) ** 2), jnp.mean((w * constant).real))

    _, grads = sa.value_and_component_grads(losses_fn)(params)
    pairs = np.asarray(grads.stack()["w"], np.complex128)
    wanted = np.sum((pairs * np.conj(np.asarray(values[2], np.complex128))).real, axis=(1, 2))
    for scale in (1.0, 1e-12, 1e12) if dtype == jnp.float16 else (1.0,):
        wide = jnp.promote_types(dtype, jnp.float32)
        scaled = jax.tree.map(lambda leaf, s=scale, t=wide: leaf.astype(t) * s, direction)
        found = grads.alignments(scaled)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found / scale, wanted, rtol=0.02, atol=0.02)


def classifier(key):
    """A trunk with four heads, of which the target touches one."""
    keys = jax.random.split(key, 7)
    layer = lambda key, a, b: {"w": jax.random.normal(key, (a, b)) / a**0.5, "b": jnp.zeros(b)}
    return {
        "trunk": [layer(keys[0], 64, 128), layer(keys[1], 128, 64)],
        "classes": layer(keys[2], 64, 10),
        "decoder": [layer(keys[3], 64, 128), layer(keys[4], 128, 64)],
        "mass": layer(keys[5], 64, 1),
    }


def classifier_losses(params, batch):
    x, y = batch
    dense = lambda layer, x: x @ layer["w"] + layer["b"][None, :]
    features = x
    for layer in params["trunk"]:
        features = jnp.tanh(dense(layer, features))
    decoded = dense(params["decoder"][1], jnp.tanh(dense(params["decoder"][0], features)))
    logits = dense(params["classes"], features)
    return {
        "classes": optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(),
        "decoded": jnp.mean((decoded - x) ** 2),
        "mass": jnp.mean((dense(params["mass"], features)[:, 0] - x.sum(axis=1)) ** 2),
    }


def test_heads_that_the_target_does_not_touch_under_vmap_and_scan():
    """Zeros that are known to be zeros: of them XLA makes garbage on the CPU (1e21, NaN)."""
    keys = jax.random.split(jax.random.key(1), 2)
    x, y = jax.random.normal(keys[0], (200, 64)), jax.random.randint(keys[1], (200,), 0, 10)
    target_loss = lambda params, batch: classifier_losses(params, batch)["classes"]

    def step(params, key):
        batches = [
            (x[rows], y[rows])
            for rows in (jax.random.randint(key, (2, 32), 0, 200)[i] for i in range(2))
        ]
        target = jax.grad(target_loss)(params, batches[1])
        _, grads = sa.value_and_component_grads(classifier_losses)(params, batches[0])
        stacked = grads.stack()
        products = jax.tree.map(
            lambda rows, leaf: jnp.sum((rows * leaf[None]).reshape(3, -1), axis=1), stacked, target
        )
        params = jax.tree.map(lambda leaf, rows: leaf - 1e-3 * rows.sum(0), params, stacked)
        return params, (grads.alignments(target), sum(jax.tree.leaves(products)))

    def run(key):
        return jax.lax.scan(step, classifier(key), jax.random.split(key, 4))[1]

    found, wanted = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(wanted).max() > 1


# The weights.


def adam_steps(slopes, rate, memory, every):
    """One step of Adam in NumPy, every-fold; the memory is changed."""
    m, v, count = memory.get("m", 0.0), memory.get("v", 0.0), memory.get("count", 0) + 1
    m, v = 0.9 * m + 0.1 * slopes, 0.999 * v + 0.001 * slopes**2
    memory.update(m=m, v=v, count=count)
    scaled = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
    return -rate * every * (scaled - scaled.mean())


def weights_by_hand(alignments, q, rate, every, weight_sum):
    """The weights after each step of alignments [steps, K], in float64."""
    z, memory, found, scale = np.zeros(len(q)), {}, [], None
    shares_of = lambda z: q * np.exp(z) / np.sum(q * np.exp(z))
    for step, a in enumerate(alignments):
        if (step + 1) % every == 0:
            scale = scale or np.abs(a).max()
            z = z + adam_steps(-a / scale, rate, memory, every)
        found.append(weight_sum * shares_of(z))
    return np.array(found)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("in_units", [False, True])
def test_weights_are_those_of_the_oracle(every, in_units):
    rng = np.random.default_rng(every)
    gradients, target = rng.normal(size=(12, K, 5)), rng.normal(size=(12, 5))
    units = np.array([0.5, 20.0, 3.0]) if in_units else np.ones(K)
    q = np.array([1.0, 3.0, 0.5])
    tx = sa.hypergradient(
        K, priorities=list(q), weight_sum=2.0, units=list(units) if in_units else None, every=every
    )

    def step(state, values):
        stacked, target = values
        h, state = tx.update(stacked, state, losses=jnp.ones(K), target=target)
        return state, (sa.loss_weights(state), h)

    values = jnp.asarray(gradients, jnp.float32), jnp.asarray(target, jnp.float32)
    _, (weights, h) = jax.jit(lambda: jax.lax.scan(step, tx.init(None), values))()
    alignments = np.einsum("skp,sp->sk", gradients, target) / units
    wanted = weights_by_hand(alignments, q, 0.02, every, 2.0) / units
    np.testing.assert_allclose(weights, wanted, rtol=2e-5)
    np.testing.assert_allclose(h, np.einsum("sk,skp->sp", wanted, gradients), rtol=1e-4, atol=1e-5)


def weights_of(alignments, tx=None, present=None):
    """The weights after each step of alignments [steps, K]."""
    alignments = jnp.asarray(alignments, jnp.float32)
    steps, num_losses = alignments.shape
    tx = sa.hypergradient(num_losses) if tx is None else tx
    present = np.ones((steps, num_losses), bool) if present is None else present

    def step(state, values):
        stacked, is_present = values[0][:, None], values[1]
        _, state = tx.update(
            stacked,
            state,
            losses=jnp.ones(num_losses),
            target=jnp.ones(1),
            present=is_present,
        )
        return state, sa.loss_weights(state)

    run = jax.jit(lambda: jax.lax.scan(step, tx.init(None), (alignments, jnp.asarray(present))))
    return np.asarray(run()[1])


def test_losses_that_help_alike_keep_like_weights():
    """Whatever their scales are; a rule with their shares in it would let one take all."""
    weights = weights_of(np.tile([1.0, 100.0, 1.0], (2000, 1)))
    np.testing.assert_allclose(weights, 1.0, atol=1e-2)
    noisy = 1 + 0.5 * np.random.default_rng(0).normal(size=(2000, 3))
    assert np.all(np.abs(np.log(weights_of(noisy))) < 1.5)


def test_a_loss_comes_back_when_it_helps_and_the_others_no_longer_do():
    noise = np.random.default_rng(0).normal(size=800)
    alignments = np.stack([noise, np.ones(800)], axis=1)
    alignments[:100] = [1.0, -1.0]
    weights = weights_of(alignments)
    assert weights[99, 1] < 0.1
    assert weights[-1, 1] > 1.0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_losses_and_target_does_not_matter(scale):
    alignments = np.random.default_rng(0).normal([0.5, 0.0, -0.5], size=(50, 3))
    wanted = weights_of(alignments)
    np.testing.assert_allclose(weights_of(scale * alignments), wanted, rtol=1e-3)
    assert np.ptp(wanted[-1]) > 0.5


def test_until_the_first_record_the_weights_are_the_priorities():
    tx = sa.hypergradient(2, priorities=[3.0, 1.0], every=20)
    weights = weights_of(np.tile([1.0, -1.0], (40, 1)), tx)
    np.testing.assert_allclose(weights[:19], np.tile([1.5, 0.5], (19, 1)))
    assert np.all(weights[19:, 0] > 1.6)
    late = np.ones((40, 2), bool)
    late[:25, 1] = False  # looked at between two records, which changes nothing for the other
    weights = weights_of(np.tile([1.0, -1.0], (40, 1)), tx, late)
    np.testing.assert_allclose(weights[:39, 0], 1.5)
    np.testing.assert_allclose(weights[25:39, 1], 0.5)


def test_the_sum_of_the_weights_is_the_number_of_losses():
    for num_losses in (K, ("a", "b", "c")):
        tx = sa.hypergradient(num_losses)
        np.testing.assert_allclose(sa.loss_weights(tx.init(None)), np.ones(K))


def quadratics(params):
    return {"helps": jnp.sum((params - 1.0) ** 2), "harms": jnp.sum((params + 1.0) ** 2)}


def trained(target_of, steps=20, **options):
    tx = optax.chain(sa.hypergradient(2, optax.sgd(0.03), **options), optax.sgd(1e-2))

    def step(carry, step):
        params, state = carry
        _, grads = sa.value_and_component_grads(quadratics)(params)
        updates, state = tx.update(grads, state, params, target=target_of(params, step))
        return (optax.apply_updates(params, updates), state), sa.loss_weights(state)

    params = jnp.zeros(3)
    carry = (params, tx.init(params))
    return jax.jit(lambda: jax.lax.scan(step, carry, jnp.arange(steps)))()


TARGET = jax.grad(lambda params: jnp.sum((params - 0.9) ** 2))


def test_a_function_is_as_good_as_its_gradient():
    for every in (1, 3):
        (_, state), weights = trained(lambda params, step: TARGET, every=every)
        (_, other), wanted = trained(lambda params, step: TARGET(params), every=every)
        np.testing.assert_array_equal(weights, wanted)
        assert weights[-1, 1] > 1.1 > 0.9 > weights[-1, 0]  # sorted: harms, helps
        jax.tree.map(np.testing.assert_array_equal, state, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_target_that_is_not_finite_changes_nothing(bad):
    target = lambda params, step: TARGET(params) * jnp.where(step == 5, bad, 1.0)
    (params, state), weights = trained(target)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((params, state)))
    np.testing.assert_array_equal(weights[5], weights[4])
    assert np.all(weights[6] != weights[5])


def test_in_the_place_of_a_search():
    """It ends where the target is lowest, which the plain sum of the losses never reaches."""
    (params, _), _ = trained(lambda params, step: TARGET, steps=3000)
    np.testing.assert_allclose(params, 0.9, atol=0.01)


def test_a_target_that_does_not_fit_is_named_beside_a_mask_too():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    losses_fn = lambda p: (jnp.sum(p["a"] ** 2), jnp.sum(p["b"] ** 2))
    _, grads = sa.value_and_component_grads(losses_fn)(params)
    mask = {"a": True, "b": False}
    for wrong in ({"a": jnp.ones(2)}, "gradient", None):
        with pytest.raises(ValueError, match="The target, or direction, should be a gradient"):
            grads.alignments(wrong, mask)
    with pytest.raises(ValueError, match="A mask of parameters, such as `shared`"):
        grads.alignments(params, {"a": True})


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_alignments_of_empty_parameters_are_zero(dtype):
    params = {"a": jnp.zeros((0,), dtype), "b": jnp.zeros((2, 0))}
    losses_fn = lambda p: [jnp.sum(leaf.astype(float)) for leaf in p.values()]
    _, grads = sa.value_and_component_grads(losses_fn)(params)
    np.testing.assert_array_equal(grads.alignments(params), [0.0, 0.0])


def test_any_method_may_ask_for_alignments():
    """Beside norms or inner products they are kept as cosines."""
    target = jnp.asarray([1.0, 1.0])
    stacked = jnp.asarray([[3.0, 0.0], [2.0, 2.0], [0.0, 0.0]])

    def kept(*asked):
        def update(components, state):
            for name in asked:
                getattr(components, name)()
            return jnp.maximum(components.alignments(), 0.0), state

        tx = sa.balance(sa.Weighting(lambda k: (), update), 3)
        _, state = tx.update(stacked, tx.init(None), losses=jnp.ones(3), target=target)
        np.testing.assert_allclose(sa.loss_weights(state), [3.0, 4.0, 0.0])
        return sa.diagnostics(state, like=["a", "b", "c"])

    assert [float(kept()[f"alignments/{name}"]) for name in "abc"] == [3.0, 4.0, 0.0]
    for asked in (["gramian"], ["squared_norms"], ["gramian", "squared_norms"]):
        cosines = [float(kept(*asked)[f"target_cosines/{name}"]) for name in "abc"]
        np.testing.assert_allclose(cosines, [0.5**0.5, 1.0, 0.0], rtol=1e-6)


# What it costs.


def flops_of_a_step(tx, **targets):
    losses_fn, params = PROBLEMS["shared output"](4, width=128, batch=256)

    def step(params, state):
        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        updates, state = tx.update(
            grads, state, params, **{name: make(losses_fn) for name, make in targets.items()}
        )
        return optax.apply_updates(params, updates), state, losses

    compiled = jax.jit(step).lower(params, tx.init(params)).compile()
    return compiled.cost_analysis()["flops"]


def test_a_step_has_one_gradient_and_one_forward_derivative_more():
    """Whatever K is: of a plain step's three passes the gradient is three, the derivative one."""
    target = lambda losses_fn: jax.grad(lambda params: 0.9 * losses_fn(params)["power 0"] ** 2)
    plain = flops_of_a_step(optax.chain(sa.fixed_weights([1.0] * 4), optax.sgd(0.1)))
    one = optax.chain(sa.hypergradient(4), optax.sgd(0.1))
    assert flops_of_a_step(one, target=target) <= (1 + 4 / 3) * 1.02 * plain


# What is refused.


def test_a_wrong_target_is_refused():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    losses_fn = lambda p: (jnp.sum(p["w"] ** 2), jnp.sum(p["b"] ** 2))
    tx = sa.hypergradient(2)
    state = tx.init(params)
    losses, grads = sa.value_and_component_grads(losses_fn)(params)
    update = functools.partial(unchecked(tx.update), grads, state, params)
    summed = lambda params: sum(losses_fn(params))
    gradient = jax.grad(summed)(params)
    for target, message in (
        (None, "target=jax.grad"),
        (grads, "target=jax.grad"),
        ({"w": gradient["w"]}, "other parameters"),
        (gradient | {"b": jnp.ones(4)}, r"\['b'\] \(4,\)"),
        (jax.value_and_grad(summed)(params), "`jax.value_and_grad`"),
        (jax.value_and_grad(summed), "`jax.value_and_grad`"),
        (summed, "the value of a loss"),
        (grads.stack(), "stacked"),
        (lambda params: grads, "`ComponentGrads`"),
        (lambda params: None, "None in the place"),
        ("validation", "a string"),
        (jax.tree.map(lambda leaf: leaf + 1j, gradient), "dtype complex64"),
        (jax.tree.map(lambda leaf: leaf > 0, gradient), "dtype bool"),
        (jax.grad(lambda p: (summed(p), 0.0), has_aux=True), "has_aux"),
        (list(gradient.values()), "other containers|other parameters"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            update(target=target)
    with pytest.raises(TypeError, match="Did you mean `target`"):
        update(targets=gradient)
    with pytest.raises(TypeError, match="Did you mean `target` by `target_fn`"):
        update(target_fn=gradient)
    with pytest.raises(TypeError, match="passed as `params`"):
        unchecked(tx.update)(grads, state, jax.grad(summed))
    with pytest.raises(ValueError, match="a function in the place"):
        unchecked(sa.ComponentGrads.alignments)(grads, jax.grad(summed))
    with pytest.raises(ValueError, match="`params` should be passed"):
        unchecked(tx.update)(grads, state, target=jax.grad(summed))
    stacked = functools.partial(unchecked(tx.update), grads.stack(), state, params, losses=losses)
    with pytest.raises(ValueError, match="other parameters"):
        stacked(target={"w": gradient["w"]})


def test_methods_without_a_target_ignore_it():
    params = jnp.ones(3)
    tx = sa.softadapt(2)
    _, grads = sa.value_and_component_grads(quadratics)(params)
    h, _ = tx.update(grads, tx.init(params), params, target="anything")
    assert h.shape == (3,)
