"""A tiny architecture, models of it, and small autoencoders."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import hyperrep
from hyperjax.config import (
    ArchitectureConfig,
    AugmentConfig,
    AutoencoderConfig,
    OptimizationConfig,
    WeightDataConfig,
)
from hyperjax.hyperrep import HyperRep, training
from hyperjax.weights import LayerSpec, WeightSpec

SPEC = WeightSpec(
    (
        LayerSpec("c", "conv", (3, 1, 2, 2), pool="max"),
        LayerSpec("d", "dense", (4, 12)),
        LayerSpec("e", "dense", (2, 4)),
    ),
    "tanh",
)  # 77 parameters
SIZES, DIM = [15, 52, 10], 77
PLAIN = AugmentConfig(permute=False, mix=0.0, noise=0.0, erase=0.0)
TINY = AutoencoderConfig(
    architecture=ArchitectureConfig(
        dim=16, heads=2, mlp_dim=24, blocks=1, latent=8, dropout=0.1, linear_path=False,
        projection_layers=1, projection_hidden=6, projection_dim=4,
    ),
    data=WeightDataConfig(augment=AugmentConfig(mix=0.2, noise=0.05, erase=0.5)),
    training=OptimizationConfig(
        steps=11, batch_size=32, learning_rate=3e-3, warmup_steps=5, schedule="constant",
        eval_every=6,
    ),
)  # fmt: skip


def changed(config, **parts):
    """A configuration with some fields of its parts replaced: changed(TINY, loss={"beta": 1.0})."""
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **f) for name, f in parts.items()},
    )


EXACT = changed(TINY, architecture={"dropout": 0.0}, data={"augment": PLAIN}, loss={"beta": 1.0})
LINEAR = changed(TINY, architecture={"linear_path": True})
KEY = jax.random.key(0)


def make_vectors(count=100):
    """Models of three latent factors, with layers of very different mean and scale."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, 3)) @ rng.normal(size=(3, DIM))
    values += 0.1 * rng.normal(size=(count, DIM))
    return np.float32(values * np.repeat([0.1, 1, 20], SIZES) + np.repeat([0.5, -1, 30], SIZES))


VECTORS = make_vectors()
STATS = hyperrep.statistics(TINY.data, SPEC, VECTORS)


def placed(trainer):
    return training.place(trainer, STATS)


def trained(count, trainer, state=None):
    state = training.init(trainer, KEY) if state is None else state
    return after_steps(trainer, state, VECTORS, placed(trainer), count)


def after_steps(trainer, state, vectors, stats, count):
    """The state after so many steps, and the metrics' means."""
    give, step, total = training.batches(trainer, state.key, vectors), int(state.step), None
    for done in range(0, count, 10):
        some = min(10, count - done)
        state, means = training.train_steps(
            trainer, state, give(step + done, 10), stats, jnp.int32(some)
        )
        part = jax.tree.map(lambda mean, some=some: mean * some / count, means)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return state, total


def updates_of(trainer, params):
    """What the first step adds to parameters."""

    @jax.jit
    def update(params, vectors):
        grads = jax.grad(lambda p: training.loss_fn(trainer, p, STATS, vectors, KEY)[0])(params)
        tx = training.optimizer(trainer.config.training)
        return tx.update(grads, tx.init(params), params)[0]

    return update(params, VECTORS)


@functools.cache
def trained_model():
    state, _ = trained(50, training.make_trainer(TINY, SPEC))
    return HyperRep(TINY, SPEC, jax.tree.map(np.asarray, state.params), STATS, VECTORS[0])


def assert_trees_equal(ours, theirs, **tolerance):
    def check(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, **({"rtol": 0, "atol": 0} | tolerance))

    jax.tree.map(check, ours, theirs)
