"""Problems of the evidence on images of digits: a sparse autoencoder and three tasks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress

import softadapt_optax as sa
from benchmarks.problems import (
    Grid,
    Measured,
    OfSeeds,
    Problem,
    Solver,
    Task,
    keys_of,
    solver_of,
    stacked,
    train,
)
from examples import sparse_autoencoder as autoencoder
from examples import weight_grid_search as digits
from examples.paper import sparse_autoencoder as judged_autoencoder

# The sparse autoencoder on MNIST digits.

AUTOENCODER_DIGITS = 2400


def load_autoencoder(problem: Problem, progress: rich.progress.Progress) -> Solver:
    data = judged_autoencoder.load_data(problem.num_seeds, progress)
    rows = data.training[:, :AUTOENCODER_DIGITS]
    epochs = -(-problem.budget * autoencoder.BATCH // AUTOENCODER_DIGITS)
    batches = [
        np.concatenate(autoencoder.epochs_of_batches(AUTOENCODER_DIGITS, epochs, seed))
        for seed in range(problem.num_seeds)
    ]
    blank = jnp.zeros((1, judged_autoencoder.PIXELS))
    params = jax.vmap(lambda key: autoencoder.MODEL.init(key, blank))(keys_of(problem.num_seeds))

    def losses_fn(params: Any, images: jax.Array, batch: jax.Array) -> dict[str, jax.Array]:
        return autoencoder.losses_fn(params, images[batch])

    def judge(params: Any) -> Measured:
        errors, active = [], []
        for index in range(len(jax.tree.leaves(params)[0])):
            of_config = autoencoder.at(index, params)
            images, shares = judged_autoencoder.reconstruct(of_config, data.test.images)
            accuracy = judged_autoencoder.accuracies(data, data.test, np.asarray(images))
            errors.append(100 * (1 - np.asarray(accuracy)))
            active.append(100 * np.asarray(shares))
        return Measured(np.stack(errors), np.stack(active))

    def encoder(params: Any) -> Any:
        return {"params": {layer: layer == "Dense_0" for layer in params["params"]}}

    of_seeds = OfSeeds(params, jnp.asarray(data.images[rows]), jnp.asarray(np.stack(batches)))
    task = Task(losses_fn, optax.adam, of_seeds, judge, len(problem.rates), encoder)
    return solver_of(task)


# Three tasks on the digits of scikit-learn.


def load_digits(problem: Problem, progress: rich.progress.Progress) -> Solver:
    splits = [digits.load_digits(digits.TASKS, seed) for seed in range(problem.num_seeds)]
    epochs = -(-problem.budget * digits.BATCH // digits.NUM_TRAINING)
    batches = [
        np.concatenate(digits.epochs_of_batches(epochs, seed)) for seed in range(len(splits))
    ]
    training, test = (
        stacked([getattr(each, part) for each in splits]) for part in ("training", "test")
    )
    model = digits.network(splits[0].training)
    blank = splits[0].training.images[:1]
    priors = [list(digits.prior_losses(each.training).values()) for each in splits]
    constant = np.stack([digits.constant_errors(each.training, each.test) for each in splits])

    def losses_fn(params: Any, data: digits.Digits, batch: jax.Array) -> dict[str, jax.Array]:
        return digits.losses_fn(params, jax.tree.map(lambda leaf: leaf[batch], data))

    def trunk(params: Any) -> Any:
        return {"params": {layer: layer == "trunk" for layer in params["params"]}}

    errors_of_all = jax.jit(jax.vmap(jax.vmap(digits.errors_fn), in_axes=(0, None)))
    task = Task(
        losses_fn,
        optax.adam,
        OfSeeds(
            jax.vmap(lambda key: model.init(key, blank))(keys_of(len(splits))),
            training,
            jnp.asarray(np.stack(batches)),
            jnp.asarray(priors),
        ),
        lambda params: Measured(np.asarray(errors_of_all(params, test))),
        at_once=10_000,
        shared=trunk,
    )
    return solver_by_skill(task, constant, problem, progress)


def solver_by_skill(
    task: Task, constant: np.ndarray, problem: Problem, progress: rich.progress.Progress
) -> Solver:
    """Of a task judged by the errors of its K tasks, [configurations, seeds, K], the skill lost.

    In %, the mean of the tasks: 0 is the error of a model that is trained for the task alone, and
    100 that of the best constant, shape [seeds, K].
    """
    num_seeds, num_tasks = constant.shape
    bar = progress.add_task("models for one task alone", total=1)
    corners = np.eye(num_tasks)
    (models,) = train(
        task,
        lambda setting: sa.fixed_weights(setting.weights),
        np.asarray([[rate, *corner] for corner in corners for rate in problem.rates]),
        [problem.budget],
        functools.partial(progress.advance, bar),
    )
    errors = task.judge(models).metric.reshape(num_tasks, len(problem.rates), num_seeds, num_tasks)
    references = digits.References(alone_errors(errors), constant)

    def judge(params: Any) -> Measured:
        errors = task.judge(params).metric
        return Measured(100 * digits.skill_lost(errors, references).mean(axis=-1))

    return solver_of(task._replace(judge=judge))


def alone_errors(errors: np.ndarray) -> np.ndarray:
    """Of errors [task trained, rates, seeds, task] those of each task trained alone, [seeds, K].

    At the learning rate that is best for the task in the mean over the seeds.
    """
    columns = [errors[task, :, :, task] for task in range(len(errors))]
    return np.stack([each[np.argmin(each.mean(axis=1))] for each in columns], axis=-1)


# Both of them.


def problems(quick: bool) -> list[Problem]:
    """Quick ones show that all works and support no verdict."""
    return [
        Problem(
            name="Sparse autoencoder",
            suite="multi-task",
            setting=f"A sparse autoencoder (784-128-784) on {AUTOENCODER_DIGITS} MNIST digits: "
            "squared error of the reconstruction and L1 norm of the code, Adam, batches of "
            f"{autoencoder.BATCH}. A classifier that was trained on the original digits reads the "
            "reconstructions of 1000 test digits. That metric alone rewards all weight on the "
            "reconstruction: a sparse code, which the second loss is for, stands beside it as the "
            "share of active code units. Split, initial network and batches differ from seed to "
            "seed; the encoder counts as the shared part.",
            metric="reconstructions read wrongly, %",
            beside="active units, %",
            written=".1f",
            worst=100.0,
            is_logarithmic=True,
            losses=("reconstruction", "sparsity"),
            main="reconstruction",
            budget=10 if quick else 240,
            gradient_cost=2,
            rates=np.asarray([1e-3, 3e-3] if quick else [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
            grid=Grid((("sparsity",),), np.linspace(-3, 3, 3 if quick else 7)),
            num_seeds=2 if quick else 8,
            has_priors=False,
            is_double=False,
            load=load_autoencoder,
        ),
        Problem(
            name="Three tasks on digits",
            suite="multi-task",
            setting="A trunk of 8 units with three heads on 1024 of scikit-learn's digits: class, "
            "reconstruction and stroke mass (the example `weight_grid_search.py`), Adam, batches "
            f"of {digits.BATCH}. The metric is the skill lost on 387 test digits, a mean over the "
            "tasks: 0 % is the error of a model trained for the task alone, 100 % that of the best "
            "constant. Split, initial network and batches differ from seed to seed; methods that "
            "look at gradients look at those of the trunk.",
            metric="skill lost, mean of the tasks, %",
            beside=None,
            written=".2f",
            worst=100.0,
            is_logarithmic=True,
            losses=digits.TASKS,
            main="digit",
            budget=160 if quick else 1_600,
            gradient_cost=3,
            rates=np.asarray([3e-3, 1e-2] if quick else [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
            grid=Grid((("image",), ("mass",)), np.linspace(-3, 3, 3 if quick else 5)),
            num_seeds=2 if quick else 8,
            has_priors=True,
            is_double=False,
            load=load_digits,
        ),
    ]
