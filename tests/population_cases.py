"""A few small images, and how networks are trained on them."""

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import population
from hyperjax.config import TrainingConfig
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.population.evaluation import Task
from hyperjax.types import Images

SPEC = zoo_cnn_spec(1, "tanh")
TRAINING = TrainingConfig(learning_rate=1e-3, weight_decay=1e-2, batch_size=10)
INIT = "kaiming_uniform"
ROOT = jax.random.key(3)
IDS = np.arange(8)
MEAN, STD = np.float32([0.4]), np.float32([0.3])


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    return Images(pixels, rng.integers(0, 10, count, dtype=np.int32), MEAN, STD)


def random_vectors(count, spec=SPEC, seed=0):
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal((count, spec.num_params))).astype(np.float32)


TRAIN, TEST = random_images(23), random_images(40, seed=1)  # 40: two batches of 32, padded


def make_engine(**kwargs):
    return population.make_engine(SPEC, TRAINING, init=INIT, **kwargs)


def random_task(count, spec=SPEC, **kwargs):
    """The same `count` random images for training, validation and test, on one device."""
    engine = population.make_engine(spec, TrainingConfig(), devices=jax.devices()[:1], **kwargs)
    images = population.place_images(engine, random_images(count))
    return Task(engine, images, images, images)


def train(engine, ids=IDS, *, epochs=2, size=0, images=TRAIN, start=None, training=TRAINING):
    """Train members; their vectors float32[M, D] and the metrics of every epoch."""
    count = len(ids)
    hyper = population.place_members(engine, population.hyper(ids, training), size)
    if start is None:
        state = population.init(engine, ROOT, hyper)
    else:
        state = population.start(engine, population.place_members(engine, start, size), hyper)
    images = population.place_images(engine, images)
    metrics = []
    for epoch in range(epochs):
        state, one = population.train_epoch(engine, state, hyper, images, ROOT, jnp.int32(epoch))
        metrics.append({name: np.asarray(value)[:count] for name, value in one.items()})
    return np.asarray(state.vectors)[:count], metrics
