"""What several test files use."""

import inspect

import jax
import jax.numpy as jnp
import optax

import softadapt_optax as sa

OPTAX_VERSION = tuple(int(part) for part in optax.__version__.split(".")[:3])

# A function without the type checks that conftest.py puts around it, to see our own errors.
unchecked = inspect.unwrap


def weights_along(tx: optax.GradientTransformationExtraArgs, trajectory) -> jax.Array:
    """The weights after each step of a trajectory of losses, both of shape [steps, K]."""
    trajectory = jnp.asarray(trajectory, dtype=float)
    no_gradients = jnp.zeros(trajectory.shape[1])  # K stacked gradients of one scalar parameter

    def step(state, losses):
        _, state = tx.update(no_gradients, state, losses=losses)
        return state, sa.loss_weights(state)

    return jax.jit(lambda state: jax.lax.scan(step, state, trajectory)[1])(tx.init(None))


def all_factories():
    """A transformation of each kind for K = 3 losses, by name."""
    return {
        "fixed_weights": lambda: sa.fixed_weights([1.0, 0.5, 2.0]),
        "original": lambda: sa.softadapt(3),
        "loss weighted": lambda: sa.softadapt(3, loss_weighted=True),
        "normalized": lambda: sa.softadapt(3, normalized=True),
        "normalized and loss weighted": lambda: sa.softadapt(
            3, normalized=True, loss_weighted=True
        ),
        "relative": lambda: sa.softadapt(3, rate="relative", history=3, order=None),
        "every": lambda: sa.softadapt(3, every=2, history=2, priorities=[1.0, 2.0, 0.5]),
        "schedule": lambda: sa.softadapt(3, beta=optax.linear_schedule(0.0, 1.0, 20)),
        "own gramian method": own_gramian_method,
    }


def own_gramian_method(num_losses: int = 3, **options) -> optax.GradientTransformationExtraArgs:
    """Weights 1 / ||grad L_k||, as a user would write them."""

    def init(num_losses):
        del num_losses
        return ()

    def update(components, state):
        return 1 / jnp.sqrt(jnp.diagonal(components.gramian()) + 1e-12), state

    return sa.balance(sa.Weighting(init, update), num_losses, **options)


def quadratic_losses(params):
    """Three losses of a parameter dictionary that pull in different directions."""
    w, b = params["w"], params["b"]
    return {
        "near": jnp.sum((w - 1.0) ** 2),
        "far": jnp.sum((w + 2.0) ** 2) + jnp.sum(jnp.cosh(b)),
        "small": 0.1 * jnp.sum(b**2),
    }


def quadratic_params(dtype=jnp.float32):
    return {"w": jnp.linspace(0.0, 1.0, 6, dtype=dtype).reshape(2, 3), "b": jnp.ones(4, dtype)}


def training_step(tx, losses_fn=quadratic_losses, stacked=False):
    """One step from (params, opt_state) to the same, and the losses."""

    def step(params, opt_state):
        losses, grads = sa.value_and_component_grads(losses_fn)(params)
        if stacked:
            updates, opt_state = tx.update(grads.stack(), opt_state, params, losses=losses)
        else:
            updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses

    return step
