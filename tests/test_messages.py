"""What is said of mistakes in the loss function, the state and the arguments of `update`."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import quadratic_losses, quadratic_params, unchecked

import softadapt_optax as sa
from softadapt_optax._checks import check_factors, check_losses, check_units


def evaluated(losses_fn):
    return sa.value_and_component_grads(losses_fn)(jnp.ones(3))


@pytest.mark.parametrize(
    ("losses_fn", "error", "message"),
    [
        (lambda x: {"a": jnp.sum(x), "b": 0}, TypeError, "switched off by writing 0; write 0.0"),
        (lambda x: {"a": jnp.sum(x), "b": 3}, TypeError, "a count or an accuracy"),
        (lambda x: {"a": jnp.sum(x), "b": "hello"}, TypeError, r"a number, got 'hello' at \['b'\]"),
        (lambda x: {"a": x}, ValueError, "a loss not averaged over its batch"),
    ],
)
def test_what_a_loss_function_should_return(losses_fn, error, message):
    with pytest.raises(error, match=message):
        evaluated(losses_fn)


@pytest.mark.parametrize(
    "factory",
    [sa.famo, sa.gradnorm, sa.hypergradient, sa.learned_weights, sa.uncertainty],
    ids=lambda factory: factory.__name__,
)
def test_an_optimizer_of_the_weights_that_asks_for_a_loss_function(factory):
    with pytest.raises(TypeError, match=r"that needs gradients only.*'value_fn'"):
        factory(2, optimizer=optax.lbfgs())


def test_losses_and_aux_without_has_aux():
    _, grads = evaluated(lambda x: ({"fit": jnp.sum(x**2), "size": jnp.sum(x)}, jnp.sum(x)))
    with pytest.raises(ValueError, match=r"`\(losses, aux\)` returned without `has_aux=True`"):
        sa.softadapt(2).update(grads, sa.softadapt(2).init(None))


def test_losses_that_are_summed_or_beside_more_than_aux():
    tx = sa.softadapt(2)
    _, grads = evaluated(lambda x: jnp.sum(x) + jnp.sum(x**2))
    with pytest.raises(ValueError, match=r"got 1\. Likely cause: .* returns the sum of its losses"):
        tx.update(grads, tx.init(None))
    three = sa.value_and_component_grads(lambda x: (x[0], x[1], x[2]), has_aux=True)
    with pytest.raises(TypeError, match=r"a pair \(losses, aux\), got a tuple of 3"):
        three(jnp.ones(3))


def test_a_state_that_was_cast():
    tx = sa.softadapt(3)
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    cast = optax.tree.cast(tx.init(None), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"dtypes were changed, by `optax\.tree\.cast`"):
        tx.update(grads, cast)


@pytest.mark.parametrize(
    ("factory", "option", "value"),
    [
        (sa.softadapt, "history", 5),
        (sa.softadapt, "loss_weighted", True),
        (sa.softadapt, "rate", 5),
        (sa.mgda, "max_iterations", 5),
    ],
)
def test_an_option_that_is_static_is_mapped(factory, option, value):
    with pytest.raises((TypeError, ValueError), match=r"It is static.*`jax\.vmap` or `jax\.jit`"):
        jax.vmap(lambda v: unchecked(factory)(3, **{option: v}).init(None))(
            jnp.asarray([value, value])
        )


def test_states_of_several_runs_or_of_a_chain():
    tx = sa.softadapt(3)
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    with pytest.raises(ValueError, match=r"a batch of states, of shape \(4,\), as `jax\.vmap`"):
        tx.update(grads, jax.vmap(lambda _: tx.init(None))(jnp.arange(4)))
    with pytest.raises(ValueError, match="the state of a whole chain; pass the weighting's"):
        unchecked(tx.update)(grads, optax.chain(tx, optax.adam(0.1)).init(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"several runs, which are stacked by `jax\.tree\.map"):
        sa.loss_weights([tx.init(None), tx.init(None)])


def two_models(generator, critic):
    return {"a": jnp.sum(generator["w"] ** 2), "b": jnp.sum(critic["w"] ** 2)}


@pytest.mark.parametrize("argnums", [1, (0, 1)])
@pytest.mark.parametrize("factory", [sa.softadapt, sa.mgda])
def test_lazy_gradients_of_another_model(factory, argnums):
    """Optax would broadcast the parameters to them."""
    generator, critic = {"w": jnp.ones((4, 2))}, {"w": jnp.ones((4, 1))}
    _, grads = sa.value_and_component_grads(two_models, argnums)(generator, critic)
    tx = factory(2)
    with pytest.raises(ValueError, match=r"shapes of `params`.*\(4, 2\).*\(4, 1\).*`argnums`"):
        tx.update(grads, tx.init(generator), generator)


@pytest.mark.parametrize("factory", [sa.fixed_weights, lambda p: sa.softadapt(2, priorities=p)])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda step: min(1.0, step / 200),
        lambda step: np.minimum(1.0, step / 200),
        lambda step: math.tanh(step / 200),
        lambda step, total: step / total,
    ],
)
def test_a_schedule_that_cannot_be_traced(factory, schedule):
    with pytest.raises(TypeError, match=r"a function of the step at \['kl'\] .*`jnp\.minimum`"):
        factory({"fit": 1.0, "kl": schedule})


@pytest.mark.parametrize("jitted", [eqx.filter_jit, nnx.jit, jax.jit])
def test_lazy_gradients_at_the_border_of_each_jit(jitted):
    with pytest.raises(TypeError, match=r"they cross the border of `(filter_)?jit`"):
        jitted(sa.value_and_component_grads(quadratic_losses))(quadratic_params())


def test_aux_by_name_without_has_aux():
    tx = sa.softadapt(["fit", "size"])
    _, grads = evaluated(lambda x: ({"fit": x[0], "size": x[1]}, {"accuracy": x[2]}))
    with pytest.raises(ValueError, match="returned without `has_aux=True`"):
        tx.update(grads, tx.init(None))


def test_presence_of_examples_and_by_another_name():
    tx = sa.softadapt(3)
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    masks = jax.tree.map(lambda _: jnp.ones(8, bool), quadratic_losses(quadratic_params()))
    with pytest.raises(ValueError, match=r"masks of examples; take `jnp\.any\(mask\)`"):
        tx.update(grads, tx.init(None), present=masks)
    with pytest.raises(TypeError, match="Did you mean `present`"):
        tx.update(grads, tx.init(None), is_present=True)


def test_an_array_as_the_order_of_names_that_are_not_sorted():
    """`grads.losses` are sorted; weights in the names' order would go to other losses."""
    tx = sa.softadapt(["real", "fake"])
    losses, grads = evaluated(lambda x: {"real": x[0], "fake": x[1]})
    _, state = tx.update(grads, tx.init(None))
    with pytest.raises(ValueError, match="names that are not sorted, real, fake, got an array"):
        sa.loss_weights(state, like=grads.losses)
    assert set(sa.loss_weights(state, like=losses)) == {"real", "fake"}


LARGE = {f"layer{k:03}": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)} for k in range(60)}


@pytest.mark.parametrize(
    ("gradients", "cause"),
    [
        ({"a": LARGE, "b": LARGE}, "K gradients by the name of the loss"),
        ([LARGE, LARGE], "a list of K gradients"),
        ({"a": 1.0, "b": 2.0}, "the losses in the place of their gradients"),
    ],
    ids=["a dictionary", "a list", "losses"],
)
def test_gradients_that_are_not_stacked(gradients, cause):
    """Of a large model not all leaves are listed."""
    tx = sa.softadapt(2)
    with pytest.raises(ValueError, match=f"and 108 more, got.*{cause}") as caught:
        tx.update(gradients, tx.init(LARGE), LARGE, losses=[1.0, 2.0])
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("shared", "error", "message"),
    [
        ({"layer000": True}, ValueError, "a branch that is False was left out"),
        (
            lambda params: jax.tree.map(lambda leaf: leaf > 0, params),
            TypeError,
            "not masks of single entries",
        ),
    ],
    ids=["a part", "arrays"],
)
def test_masks_of_large_models(shared, error, message):
    tx = sa.mgda(2, shared=shared)
    total = lambda params: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
    _, grads = sa.value_and_component_grads(lambda p: (total(p), total(p) ** 2))(LARGE)
    with pytest.raises(error, match=message) as caught:
        tx.update(grads, tx.init(LARGE), LARGE)
    assert len(str(caught.value)) < 1500


def test_lazy_gradients_as_the_gradient_of_a_line_search():
    tx = optax.chain(sa.softadapt(3), optax.lbfgs())
    params = quadratic_params()
    _, grads = sa.value_and_component_grads(quadratic_losses)(params)
    with pytest.raises(TypeError, match="`grad` should be arrays like the parameters, got `Compo"):
        tx.update(grads, tx.init(params), params, value=1.0, grad=grads, value_fn=None)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda grads: jax.tree.map(jnp.sum, grads), "a function of trees"),
        (lambda grads: jax.jit(lambda g: g)(grads), "cross the border of `jit`"),
        (lambda grads: jax.vmap(lambda g: g)(grads), "cross the border of `jit`, `vmap`"),
        (lambda grads: jax.lax.scan(lambda c, _: (c, None), grads, None, 2), "cross the border"),
        (lambda grads: optax.scale(0.1).update(grads, optax.EmptyState()), "is missing, or"),
    ],
)
def test_lazy_gradients_where_arrays_are_wanted(use, message):
    _, grads = sa.value_and_component_grads(quadratic_losses)(quadratic_params())
    for is_jitted in (False, True):
        with pytest.raises(TypeError, match=message):
            jax.jit(lambda: use(grads))() if is_jitted else use(grads)


# Names.

PDE = ["pde", "bc", "ic"]  # not in the order of a dictionary, which is bc, ic, pde
MANY = [f"L{k}" for k in range(20)]


def losses_of(names):
    return lambda x: {name: (k + 1.0) * jnp.sum(x**2) for k, name in enumerate(names)}


def updated(tx, names=PDE, is_stacked=False, **extra_args):
    _, grads = sa.value_and_component_grads(losses_of(names))(jnp.ones(2))
    updates = grads.stack() if is_stacked else grads
    return tx.update(updates, tx.init(None), **extra_args)[0]


BY_NAME = (
    r"`losses` should go by name .* sorted, pde, bc, ic, .*`losses={\"pde\": ..., \"bc\": \.\.\."
)


@pytest.mark.parametrize("is_stacked", [False, True])
@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0], jnp.asarray([1.0, 2.0, 3.0])])
def test_losses_by_position_where_two_orders_are_possible(losses, is_stacked):
    with pytest.raises(ValueError, match=BY_NAME):
        updated(sa.softadapt(PDE), is_stacked=is_stacked, losses=losses)


def test_losses_by_position_where_one_order_is_possible():
    """Sorted names; losses without names from lazy gradients; and all of them by name."""
    values = jnp.asarray([1.0, 2.0, 3.0])
    for is_stacked in (False, True):
        updated(sa.softadapt(sorted(PDE)), is_stacked=is_stacked, losses=values)
        by_name = dict(zip(PDE, values, strict=True))
        h = updated(sa.softadapt(PDE, priorities=[1.0, 0.0, 0.0]), PDE, is_stacked, losses=by_name)
        assert jnp.allclose(h, jax.grad(lambda x: losses_of(PDE)(x)["pde"])(jnp.ones(2)))
    _, grads = sa.value_and_component_grads(lambda x: (x, 2 * x, 3 * x))(jnp.ones(()))
    tx = sa.softadapt(PDE)
    for losses in (None, values, [1.0, 2.0, 3.0]):
        _, state = tx.update(grads, tx.init(None), losses=losses)
        assert sa.diagnostics(state)["losses/pde"] == 1.0
    sa.softadapt(["a/z", "b"]).update(
        jnp.ones((2, 1)), sa.softadapt(["a/z", "b"]).init(None), losses=[1.0, 2.0]
    )
    nested = sa.softadapt(["a-b", "a/z"])  # sorted as strings, not as dictionaries in another
    with pytest.raises(ValueError, match="might be in the order"):
        nested.update(jnp.ones((2, 1)), nested.init(None), losses=[1.0, 2.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sa.softadapt(3), "`losses` should go by .* Remedy: give them by name.$"),
        (lambda: sa.softadapt(sorted(PDE)), "`losses` should go by .* Remedy: give them by name.$"),
    ],
)
def test_a_list_of_losses_beside_lazy_gradients(make, message):
    with pytest.raises(ValueError, match=message):
        updated(make(), losses=[1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sa.fixed_weights([1.0, 2.0, 3.0]), "^`weights` should go .* by name.$"),
        (lambda: sa.fixed_weights([1.0, lambda step: 1.0, 1.0]), "^`weights` should go .* name.$"),
        (
            lambda: sa.fixed_weights(jnp.ones(3), units=[1.0, 2.0, 3.0]),
            "^`units` should go .* by name.$",
        ),
        (
            lambda: sa.softadapt(3, priorities=[1.0, 2.0, 3.0]),
            r"priorities` should go .* by name, or, .* number of losses, give .* \[\"bc\", \"ic\",",
        ),
    ],
)
def test_the_remedy_for_a_list_is_one_of_the_factory(make, message):
    with pytest.raises(ValueError, match=message):
        updated(make())


ONE_OTHER = ["L0", "L1", "L2", "L3", "L4", "L5", "L6", "l7", *MANY[8:]]
DIFFERENCE = r"\(missing: L7; unexpected: l7\)"


@pytest.mark.parametrize("names", [MANY, MANY[5:9]])
def test_names_that_differ_are_listed_alone(names):
    other = [name.replace("L7", "l7") for name in names]
    values = dict.fromkeys(other, 1.0)
    with pytest.raises(ValueError, match=rf"got {len(names)}, .* {DIFFERENCE}"):
        updated(sa.softadapt(names), other)
    for option in ("priorities", "units"):
        with pytest.raises(ValueError, match=rf"The entries of `{option}` .* {DIFFERENCE}"):
            sa.softadapt(names, **{option: values})
        fewer = {name: 1.0 for name in names if name != "L7"}
        with pytest.raises(ValueError, match=rf"The entries of `{option}` .* \(missing: L7\)"):
            sa.softadapt(names, **{option: fewer})
    with pytest.raises(ValueError, match=rf"The entries of `present` .* {DIFFERENCE}"):
        updated(sa.softadapt(names), names, present=dict.fromkeys(other, True))
    with pytest.raises(ValueError, match=rf"The entries of `losses` .* {DIFFERENCE}"):
        updated(sa.softadapt(names), names, losses=values)
    with pytest.raises(
        ValueError, match=rf"The entries of `units` .* of `priorities`.*{DIFFERENCE}"
    ):
        sa.softadapt(len(names), priorities=dict.fromkeys(names, 1.0), units=values)


@pytest.mark.parametrize(
    ("make", "names", "message"),
    [
        (
            lambda: sa.softadapt(["pde", "bc"]),
            PDE,
            r"\(unexpected: ic\). .* made without ic, which the loss function returns",
        ),
        (lambda: sa.softadapt(PDE), ["pde", "ic"], r"\(missing: bc\). .* left out"),
        (
            lambda: sa.softadapt(3, units={"pde": 1.0, "bc": 1.0, "data": 1.0}),
            PDE,
            r"\(missing: data; unexpected: ic\). .* another name than in `units`",
        ),
        (
            lambda: sa.softadapt(["pde", "bc", "data"]),
            PDE,
            "another name than in the transformation",
        ),
    ],
)
def test_the_cause_of_other_names(make, names, message):
    with pytest.raises(ValueError, match=message):
        updated(make(), names)


def test_two_losses_with_the_same_path():
    losses_fn = lambda x: {"a/b": jnp.sum(x**2), "a": {"b": jnp.sum(x)}}
    tx = sa.softadapt(["a/b", "c"])
    _, grads = sa.value_and_component_grads(losses_fn)(jnp.ones(2))
    with pytest.raises(ValueError, match="two losses with the same path, a/b; give"):
        tx.update(grads, tx.init(None))


@pytest.mark.parametrize(
    "num_losses",
    [{"pde": 1.0}.keys(), {"pde", "bc"}, {"pde": 1.0}, (name for name in PDE)],
)
def test_names_in_something_that_is_no_list(num_losses):
    message = "`num_losses` should be an integer, or a list or tuple of names, got "
    with pytest.raises(TypeError, match=message + type(num_losses).__name__):
        unchecked(check_losses)(num_losses)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PDE, r"names without numbers; .* {\"pde\": 1.0, ...}"),
        (set(PDE), r"a set, which has no order; give numbers by name, such as {\"pde\": 1.0"),
    ],
)
@pytest.mark.parametrize("name", ["weights", "prior_losses", "priorities", "units"])
def test_names_in_the_place_of_numbers(name, values, message):
    with pytest.raises(TypeError, match=f"`{name}` should be real numbers, got .*{message}"):
        unchecked(check_factors)(name, values, 3)


def test_names_in_the_place_of_weights():
    for factory in (sa.fixed_weights, sa.prior_loss):
        with pytest.raises(TypeError, match=r"such as {\"a\": 1.0, ...}"):
            factory(["a", "b"])


@pytest.mark.parametrize(
    ("priorities", "message"),
    [
        (lambda step: 2.0, r"a function that returns the single number 2\.0 in the first step"),
        (optax.constant_schedule(0.5), r"a function that returns the single number 0\.5 in"),
        (2.0, r"got the single number 2\.0. Likely cause: the number of losses"),
    ],
)
def test_one_number_in_the_place_of_all(priorities, message):
    with pytest.raises(ValueError, match=message):
        sa.softadapt(2, priorities=priorities)


@pytest.mark.parametrize(
    ("units", "error", "message"),
    [
        (lambda step: [1.0, 2.0], TypeError, "got a function. Units take no schedule"),
        ([1.0, lambda step: 2.0], TypeError, "got a function. Units take no schedule"),
        ({"a": "initial", "b": 1.0}, ValueError, "A mix of words and numbers is not possible"),
        (["initial", "current"], ValueError, "one word for all of them"),
    ],
)
def test_units_that_are_no_numbers(units, error, message):
    with pytest.raises(error, match=message):
        unchecked(check_units)(units, 2)
    with pytest.raises(error, match=message):
        sa.softadapt(2, units=units)


def test_prior_losses_take_no_schedule():
    with pytest.raises(TypeError, match="They take no schedule; `priorities` do"):
        sa.prior_loss([1.0, lambda step: 2.0])


@pytest.mark.parametrize("present", [["pde", "bc"], {"pde", "bc"}, [1.0, 0.0, 1.0], "pde"])
def test_presence_asks_for_true_or_false_by_name(present):
    message = r"`present` should be True or False for each loss, {\"bc\": True, \"ic\": True, \"pde"
    with pytest.raises(TypeError, match=message):
        updated(sa.softadapt(3), present=present)


# The arguments of `update`, and what reads the state.


@pytest.mark.parametrize("name", ["presents", "Present", "presence", "loss", "loses", "Losses"])
def test_a_misspelt_argument_of_update(name):
    wanted = "losses" if name.lower().startswith("l") else "present"
    with pytest.raises(TypeError, match=f"got `{name}`. Did you mean `{wanted}`?"):
        updated(sa.softadapt(PDE), **{name: None})


@pytest.mark.parametrize("name", ["value", "grad", "value_fn", "losses_fn", "key", "step", "batch"])
def test_arguments_of_others_are_ignored(name):
    updated(sa.softadapt(PDE), **{name: None})


@pytest.mark.parametrize(
    ("names", "like", "message"),
    [
        (
            PDE,
            ["pde", "bc", "data"],
            r"of the losses, pde, bc, ic, got pde, bc, data \(missing: ic;",
        ),
        (PDE, ["ic", "bc", "bc"], r"got ic, bc, bc \(missing: pde; more than once: bc\)"),
        (PDE, ["ic", "bc"], r"got ic, bc \(missing: pde\)"),
        (2, ["bc", "bc"], r"a name for each loss, got bc, bc \(more than once: bc\)"),
        (PDE, dict.fromkeys(["pde", "bc", "data"], 0.0), "missing: ic; unexpected: data"),
    ],
)
def test_like_that_has_other_names(names, like, message):
    for read in (sa.loss_weights, sa.diagnostics):
        with pytest.raises(ValueError, match=f"`like` should have .*{message}"):
            read(sa.softadapt(names).init(None), like=like)


@pytest.mark.parametrize("like", [set(PDE), dict.fromkeys(PDE).keys(), (name for name in PDE)])
def test_like_that_has_no_order(like):
    for read in (sa.loss_weights, sa.diagnostics):
        with pytest.raises(TypeError, match="a list or tuple of their names, got"):
            read(sa.softadapt(PDE).init(None), like=like)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            PDE,
            ["pde", "bc", "data"],
            r"\(missing: ic; unexpected: data\): expected pde, bc, ic, got",
        ),
        (PDE, ["bc", "pde", "ic"], r"\(in another order\): expected pde, bc, ic, got bc, pde, ic"),
        (PDE, 3, "expected pde, bc, ic, got no names"),
        (3, PDE, "expected no names, got pde, bc, ic"),
    ],
)
def test_a_state_of_other_names(ours, theirs, message):
    tx = sa.softadapt(ours)
    with pytest.raises(ValueError, match=f"losses with other names .*{message}"):
        tx.update(jnp.ones((3, 2)), sa.softadapt(theirs).init(None), losses=jnp.ones(3))


def test_a_state_of_another_structure_with_the_same_shapes():
    weighting = sa.Weighting(
        lambda num_losses: [()], lambda components, state: (components.losses, ((),))
    )
    tx = sa.balance(weighting, 2)
    with pytest.raises(
        ValueError, match=r"Expected PyTreeDef\(\[\(\)\]\), got PyTreeDef\(\(\(\),\)\)"
    ):
        tx.update(jnp.ones((2, 1)), tx.init(None), losses=[1.0, 2.0])


def test_a_state_with_two_weightings():
    states = (sa.softadapt(2).init(None), sa.softadapt(2).init(None))
    for read in (sa.loss_weights, sa.diagnostics):
        with pytest.raises(
            ValueError, match=r"with 2. Likely cause: .* several weightings .* pass"
        ):
            read(states)
        with pytest.raises(ValueError, match=r"with 0. Likely cause: the arguments are swapped"):
            read(())
