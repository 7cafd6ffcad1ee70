"""A GAN on latents, S_GAN (paper section 3.2.4).

    frame = make_frame(anchors)
    data = standardise(frame, anchors)
    state = init(trainer, key)
    state = train_steps(trainer, state, data, jnp.int32(1000))  # as often as it takes
    fitted = finish(trainer, state, frame, anchors)

The paper gives the size of the noise, 16, and leaves all else to an appendix that is not
public. What is done here was chosen by measurement on mixtures and on latents: the
non-saturating loss of Goodfellow et al. (2014) with a gradient penalty on the anchors (R1,
Mescheder et al., 2018), a faster discriminator (Heusel et al., 2017), learning rates that
decay to zero, and the moving average of the generator.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from hyperjax.config import GanConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models.gan_networks import make_discriminator, make_generator
from hyperjax.samplers.base import Sampler, at_least_two, draw, make, tanh_bound
from hyperjax.types import Array, Key, Params

_JUDGED = 2000  # anchors, at most, of which all pairs are compared
_NEIGHBOUR = 5  # whose distance is the radius around an anchor within which it counts as covered


class Trainer(NamedTuple):
    """What training depends on beside arrays; hashable."""

    config: GanConfig
    size: int  # Z


class TrainState(NamedTuple):
    """All that a leg of training hands on: a pytree of arrays."""

    generator: Params
    discriminator: Params
    average: Params  # of the generator
    opt_generator: Any
    opt_discriminator: Any
    step: Array  # int32[]
    key: Key


class Frame(NamedTuple):
    """Where the anchors lie: the networks see them standardised, and without their bound."""

    mean: Array  # f32[Z]
    std: Array  # f32[Z]
    bounded: Array  # f32[], 1: latents are the tanh of what mean and std describe; 0: they are it


class Gan(NamedTuple):
    """A trained generator."""

    params: Params
    frame: Frame
    metrics: dict[str, Array]  # f32[] each, see `collapse`


def gan(config: GanConfig | None = None) -> Sampler:
    """S_GAN: a generator R^16 -> R^Z of Gaussian noise, trained against a discriminator.

    Its output goes through a tanh if the anchors are within that range (`tanh_bound`). Samples
    lie on a surface of `config.noise` dimensions, whatever the anchors do. `report` tells
    whether the generator has collapsed, see `collapse`. Fitting raises HyperJaxError for
    fewer than 2 anchors, and if all are equal.

    >>> sampler = hj.samplers.gan(config.samplers.gan)
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    config = config or GanConfig()
    return make(
        functools.partial(_fit, config=config),
        functools.partial(_sample, config=config),
        "latent",
        f"generator of a GAN on the anchors, from {config.noise} Gaussian numbers",
        lambda state, samples: {name: float(x) for name, x in state.metrics.items()},
    )


def _fit(key, anchors, quality, config):
    at_least_two(anchors)
    if np.ptp(anchors, axis=0).max() == 0:
        raise HyperJaxError(f"all {len(anchors)} anchors are equal; expected two that differ")
    trainer = Trainer(config, anchors.shape[1])
    frame = make_frame(anchors)
    state = init(trainer, key)
    state = train_steps(trainer, state, standardise(frame, anchors), jnp.int32(config.steps))
    return finish(trainer, state, frame, anchors)


def make_frame(anchors: np.ndarray) -> Frame:
    """Mean and standard deviation of anchors float32[N, Z], or of their arctanh."""
    bounded = np.float32(np.isfinite(tanh_bound(anchors)))
    inside = _inverse_tanh(anchors.astype(np.float64)) if bounded else anchors.astype(np.float64)
    # A latent that never changes still has to be divided by something.
    std = np.maximum(inside.std(axis=0), 1e-6)
    return Frame(*(jnp.asarray(x, jnp.float32) for x in (inside.mean(axis=0), std, bounded)))


def _inverse_tanh(latents):
    return np.arctanh(np.clip(latents, -1 + 1e-6, 1 - 1e-6))


def standardise(frame: Frame, anchors: np.ndarray) -> Array:
    """Anchors float32[N, Z] as the networks see them, float32[N, Z]."""
    inside = _inverse_tanh(anchors) if frame.bounded else anchors
    return jnp.asarray((inside - frame.mean[None, :]) / frame.std[None, :])


def _optimizers(config: GanConfig) -> tuple[optax.GradientTransformation, ...]:
    # No momentum: it carries the players past their equilibrium.
    return tuple(
        optax.adam(optax.cosine_decay_schedule(rate, config.steps), b1=0.0, b2=0.99)
        for rate in (config.generator_rate, config.discriminator_rate)
    )


@functools.partial(jax.jit, static_argnames="trainer")
def init(trainer: Trainer, key: Key) -> TrainState:
    """Fresh networks and optimisers."""
    c = trainer.config
    generator_key, discriminator_key, train_key = jax.random.split(key, 3)
    generator = make_generator(c, trainer.size).init(generator_key, jnp.zeros((1, c.noise)))
    discriminator = make_discriminator(c).init(discriminator_key, jnp.zeros((1, trainer.size)))
    opt_generator, opt_discriminator = _optimizers(c)
    return TrainState(
        generator, discriminator, generator,
        opt_generator.init(generator), opt_discriminator.init(discriminator),
        jnp.int32(0), train_key,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="trainer")
def train_steps(trainer: Trainer, state: TrainState, data: Array, count: Array) -> TrainState:
    """`count` (int32[]) further steps on standardised anchors `data` float32[N, Z].

    Batches and noise depend on (key, step) alone, so that legs make one training. `count` is
    traced: one compilation serves all. Beyond `config.steps` the learning rates are zero.
    """
    return lax.fori_loop(0, count, lambda _, state: _step(trainer, state, data), state)


def _step(trainer: Trainer, state: TrainState, data: Array) -> TrainState:
    c, size = trainer.config, trainer.size
    generate, discriminate = make_generator(c, size).apply, make_discriminator(c).apply
    opt_generator, opt_discriminator = _optimizers(c)
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
    real = draw(keys[0], data, c.batch_size)
    noises = (jax.random.normal(key, (c.batch_size, c.noise)) for key in keys[1:])
    fake = generate(state.generator, next(noises))

    def discriminator_loss(params):
        def logit(x):
            return discriminate(params, x[None, :])[0, 0]

        logits, slopes = jax.vmap(jax.value_and_grad(logit))(real)
        # Distances grow like sqrt(Z), slopes shrink like it: hence the factor Z.
        penalty = c.penalty * size / 2 * jnp.mean(jnp.sum(jnp.square(slopes), axis=1))
        wrong = jax.nn.softplus(-logits) + jax.nn.softplus(discriminate(params, fake)[:, 0])
        return jnp.mean(wrong) + penalty

    grads = jax.grad(discriminator_loss)(state.discriminator)
    updates, opt_d = opt_discriminator.update(grads, state.opt_discriminator)
    discriminator = optax.apply_updates(state.discriminator, updates)
    noise = next(noises)

    def generator_loss(params):
        return jnp.mean(jax.nn.softplus(-discriminate(discriminator, generate(params, noise))))

    updates, opt_g = opt_generator.update(
        jax.grad(generator_loss)(state.generator), state.opt_generator
    )
    generator = optax.apply_updates(state.generator, updates)
    # At first the average is over a few steps only, so that it forgets the initial weights.
    keep = jnp.minimum(c.average, (1 + state.step) / (10 + state.step))
    average = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.average, generator)
    return TrainState(generator, discriminator, average, opt_g, opt_d, state.step + 1, state.key)


def finish(trainer: Trainer, state: TrainState, frame: Frame, anchors: Array) -> Gan:
    """The averaged generator, with its metrics: on at most `_JUDGED` anchors, evenly spaced, and as
    many samples."""
    fitted = Gan(state.average, frame, {})
    # No other number of this key is in use: steps are not negative.
    key = jax.random.fold_in(state.key, 2**32 - 1)
    rows = np.linspace(0, len(anchors) - 1, min(len(anchors), _JUDGED)).round().astype(int)
    samples = _sample(key, fitted, len(rows), trainer.config)
    return fitted._replace(metrics=collapse(jnp.asarray(anchors)[rows], samples))


@functools.partial(jax.jit, static_argnames=("n", "config"))
def _sample(key: Key, state: Gan, n: int, config: GanConfig) -> Array:
    frame = state.frame
    noise = jax.random.normal(key, (n, config.noise))
    out = make_generator(config, len(frame.mean)).apply(state.params, noise)
    inside = frame.mean[None, :] + frame.std[None, :] * out
    return jnp.where(frame.bounded > 0, jnp.tanh(inside), inside)


@jax.jit
def collapse(anchors: Array, samples: Array) -> dict[str, Array]:
    """What a generator leaves out, from float32[N, Z] and float32[M, Z], at least 2 each.

    coverage: the share of anchors that have a sample nearer than their fifth nearest other
    anchor (Naeem et al., 2020); near 1 if no mode is missed. Blind where all distances are
    alike, as among independent dimensions: there a sample at the mean covers all.
    spread: mean distance between two samples over that between two anchors; 0 if all samples
    are one, near 1 if they vary like the anchors.
    """
    count = len(anchors)
    among = _distances(anchors, anchors)
    others = jnp.where(jnp.eye(count, dtype=bool), jnp.inf, among)
    radius = jnp.sort(others, axis=1)[:, min(_NEIGHBOUR, count - 1) - 1]
    nearest = jnp.min(_distances(anchors, samples), axis=1)
    spread = _mean_of_pairs(_distances(samples, samples)) / _mean_of_pairs(among)
    return {"coverage": jnp.mean(nearest <= radius), "spread": spread}


def _distances(a: Array, b: Array) -> Array:
    """float32[N, Z], float32[M, Z] -> float32[N, M]; one row at a time, for memory's sake."""
    return lax.map(lambda row: jnp.sqrt(jnp.sum(jnp.square(b - row[None, :]), axis=1)), a)


def _mean_of_pairs(distances: Array) -> Array:
    count = len(distances)
    return jnp.sum(distances) / (count * (count - 1))
