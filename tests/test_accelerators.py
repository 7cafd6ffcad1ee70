"""Every hot path is lowered for CUDA and TPU ahead of time, without one: what XLA has no rule for
there, or what needs the host, shows here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoiser_cases import CONFIG, MLP, folded, make_denoiser, vectors_of
from hyperrep_cases import SPEC, TINY
from jax import export

from hyperjax import population
from hyperjax.config import TrainingConfig
from hyperjax.diffusion import denoiser_training, sampling
from hyperjax.hyperrep import training
from hyperjax.hyperrep.model import Statistics
from hyperjax.models.architectures import architecture
from hyperjax.types import Images

PLATFORMS = ("cuda", "tpu")
KEY = jax.random.key(0)


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def train_population(name, size):
    engine, state, hyper, images = of_population(name, size)
    fn = functools.partial(population.train_epoch, engine)
    return fn, (state, hyper, images, KEY, jnp.int32(1))


def evaluate_population(name, size):
    engine, state, _, images = of_population(name, size)
    return functools.partial(population.evaluate, engine), (state.vectors, images)


def of_population(name, size):
    """Four networks, and how accelerators run them: side by side."""
    spec = architecture(name, channels=1, activation="tanh", image_size=(size, size))
    config = TrainingConfig(batch_size=10)
    engine = population.make_engine(spec, config, conv="patches", mapping="vmap")
    hyper = population.hyper(np.arange(4), config)
    pixels, labels = np.zeros((25, size, size, 1), np.uint8), np.zeros(25, np.uint8)
    images = Images(pixels, labels, np.float32([0.1]), np.float32([0.3]))
    return engine, jax.eval_shape(lambda: population.init(engine, KEY, hyper)), hyper, images


def train_autoencoder():
    trainer = training.make_trainer(TINY, SPEC)
    state = jax.eval_shape(lambda: training.init(trainer, KEY))
    layers = jnp.zeros(len(SPEC.layers))
    stats = Statistics(jnp.zeros(SPEC.num_params), layers, layers)
    fn = functools.partial(training.train_steps, trainer)
    vectors = jnp.zeros((3, TINY.training.batch_size, SPEC.num_params))
    return fn, (state, vectors, stats, jnp.int32(3))


def train_denoiser():
    trainer = denoiser_training.make_trainer(CONFIG, MLP)
    state = jax.eval_shape(lambda: denoiser_training.init(trainer, KEY))
    data = folded(vectors_of(MLP, 40), np.ones(40))
    drawn = denoiser_training.members_of(trainer, KEY, data)(0, 3)
    fn = functools.partial(denoiser_training.train_steps, trainer)
    return fn, (state, drawn, data.unit, data.wieners, jnp.int32(3))


def sample(deterministic):
    def fn(denoiser, *rest):
        return sampling._denoised(denoiser, deterministic, 1.5, *rest)

    keys, steps = jax.random.split(KEY, 50), jnp.linspace(1.0, 0.1, 5)
    networks, quantiles = jnp.zeros((50, MLP.num_params)), jnp.full(50, 0.9)
    return fn, (make_denoiser(), jnp.float32(0.7), keys, networks, quantiles, steps)


NETS = {"cnn": 28, "cnn3": 32, "unterthiner": 28, "mlp": 28}
CASES = {
    **{f"train {n}": functools.partial(train_population, n, size) for n, size in NETS.items()},
    **{
        f"evaluate {n}": functools.partial(evaluate_population, n, size) for n, size in NETS.items()
    },
    "autoencoder": train_autoencoder,
    "denoiser": train_denoiser,
    "ancestral sampling": functools.partial(sample, False),
    "deterministic sampling": functools.partial(sample, True),
}


@pytest.mark.parametrize("case", CASES)
def test_lowers_for_accelerators(case):
    fn, args = CASES[case]()
    lowered = export.export(jax.jit(fn), platforms=PLATFORMS)(*shapes(args))
    assert lowered.platforms == PLATFORMS
    assert "callback" not in lowered.mlir_module()  # nothing goes back to the host
