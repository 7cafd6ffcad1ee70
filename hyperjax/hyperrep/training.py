"""The hyper-representation: training step, encoding and decoding.

Weights enter the autoencoder centred and scaled, `x = (w - mean) / scale` (both optional),
and leave it the same way, so that an untrained decoder yields the train members' mean.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hyperjax import cost, distributed, weights
from hyperjax.config import AutoencoderConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import augment, losses
from hyperjax.models.autoencoder import Autoencoder, Posterior, make_autoencoder
from hyperjax.types import Array, Key, Params
from hyperjax.weights import WeightSpec

_LARGE = 10_000_000  # weights of an autoencoder
_LATENT_STD = 0.4  # of a principal component's latent before the tanh


class Statistics(NamedTuple):
    """What is known of the train members before training."""

    mean: Array  # float32[D]: subtracted from inputs, added to outputs; zeros if not centred
    scale: Array  # float32[layers]: inputs are divided by it; ones if not scaled
    layer_std: Array  # float32[layers]: the coefficients of LWLN (paper section 3.1)


class HyperRep(NamedTuple):
    """A trained hyper-representation."""

    config: AutoencoderConfig
    spec: WeightSpec
    params: Params
    statistics: Statistics
    reference: np.ndarray  # float32[D]: the network that all members are aligned to


class TrainState(NamedTuple):
    params: Params
    opt_state: Any
    step: Array  # int32
    key: Key


class Trainer(NamedTuple):
    """What is static in a training step. Hashable."""

    config: AutoencoderConfig
    spec: WeightSpec
    module: Autoencoder
    mesh: Mesh


def make_trainer(config: AutoencoderConfig, spec: WeightSpec, devices: Any = None) -> Trainer:
    """Data-parallel over as many devices as divide the batch into parts of at least 8.

    On CPU, unless `devices` are given, a large autoencoder uses one device of each process: its
    products occupy all cores anyway, and weights and optimiser exist once (docs/performance.md).
    """
    if devices is None:
        devices = jax.devices()
        large = cost.autoencoder_params(config, spec) > _LARGE
        if devices[0].platform == "cpu" and large:
            first = {device.process_index: device for device in reversed(devices)}
            devices = [first[process] for process in sorted(first)]
    used = distributed.same_number_of_each(devices, config.batch_size, least=8)
    mesh = Mesh(np.asarray(used), ("batch",), axis_types=(AxisType.Auto,))
    return Trainer(config, spec, make_autoencoder(config, spec), mesh)


def statistics(config: AutoencoderConfig, spec: WeightSpec, vectors: Array) -> Statistics:
    """Mean and scales of the train vectors float32[N, D]."""
    std = weights.layer_std(spec, vectors)
    mean = np.asarray(vectors).mean(0, dtype=np.float64).astype(np.float32)
    return Statistics(
        mean=mean if config.center else np.zeros_like(mean),
        scale=std if config.scale else np.ones_like(std),
        layer_std=std,
    )


def to_inputs(spec: WeightSpec, stats: Statistics, vectors: Array) -> Array:
    return (vectors - stats.mean[None]) / losses.slot_scale(spec, stats.scale)[None]


def from_outputs(spec: WeightSpec, stats: Statistics, outputs: Array) -> Array:
    return outputs * losses.slot_scale(spec, stats.scale)[None] + stats.mean[None]


def optimizer(config: AutoencoderConfig) -> optax.GradientTransformation:
    """AdamW with linear warm-up, then constant or cosine decay; gradient norm clipped."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        # a run shorter than its warm-up never comes to the decay, which optax wants all the same
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(config.steps, warmup + 1))
    else:
        rate = optax.linear_schedule(0.0 if warmup else peak, peak, max(warmup, 1))
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optax.adamw(rate, weight_decay=config.weight_decay, mask=_trained))


def _trained(params: Params) -> Params:
    """Which parameters are trained, and decay: all but the linear path."""
    return jax.tree.map_with_path(
        lambda path, _: "linear" not in (entry.key for entry in path), params
    )


@functools.partial(jax.jit, static_argnames="trainer")
def init(trainer: Trainer, key: Key) -> TrainState:
    """Fresh parameters and optimiser state, replicated over the mesh."""
    key_init, key_train = jax.random.split(key)
    sample = jnp.zeros((1, trainer.spec.num_params))
    params = trainer.module.init(key_init, sample, train=False)["params"]
    state = TrainState(params, optimizer(trainer.config).init(params), jnp.int32(0), key_train)
    return lax.with_sharding_constraint(state, NamedSharding(trainer.mesh, P()))


def principal_components(
    trainer: Trainer, state: TrainState, stats: Statistics, vectors: Array
) -> TrainState:
    """Set the linear path to the train vectors' principal components (`linear_path`).

    Components are those of the reconstruction loss's metric, so that LWLN decides which count.
    Latents are whitened, and small enough for the tanh to be nearly linear; the decoder is the
    least-squares inverse.

    A VAE's path is the linear VAE of the least loss, which is known too: probabilistic principal
    components with the noise variance s^2 = `kl` (Lucas et al., "Don't blame the ELBO", 2019). A
    component of variance v gets a posterior of mean variance 1 - s^2 / v and variance s^2 / v, so
    that the latents of all train vectors have variance 1, and the decoder's gain sqrt(v - s^2);
    with v <= s^2 it is left out, and its latent is the prior.
    """
    c, spec = trainer.config, trainer.spec
    inputs = np.asarray(to_inputs(spec, stats, np.asarray(vectors)), np.float64)
    metric = np.asarray(losses.slot_scale(spec, loss_scale(c, stats)), np.float64)
    _, singular, components = np.linalg.svd(inputs / metric, full_matrices=False)
    rank = min(c.latent, int(np.sum(singular > 1e-6 * singular[0])))
    std = singular[:rank] / np.sqrt(len(inputs))
    known = np.maximum(1 - c.kl / std**2, 0)  # share of each latent's variance; without `kl`, all
    gain = _LATENT_STD if c.tanh else np.sqrt(known)
    encoder = np.zeros((spec.num_params, c.latent))
    encoder[:, :rank] = gain * components[:rank].T / std / metric[:, None]
    params = jax.tree.map(lambda leaf: leaf, state.params)  # a copy of the dictionaries
    if c.kl:
        decoder = np.zeros(encoder.T.shape)
        decoder[:rank] = (gain * std)[:, None] * components[:rank] * metric
        log_variance = np.zeros(c.latent)
        log_variance[:rank] = np.log1p(-known)
        params["encoder"]["log_variance"]["bias"] = jnp.asarray(log_variance, jnp.float32)
    else:
        latents = inputs @ encoder
        latents = np.tanh(latents) if c.tanh else latents
        decoder = np.linalg.lstsq(latents, inputs, rcond=1e-6)[0]
    params["encoder"]["linear"]["kernel"] = jnp.asarray(encoder, jnp.float32)
    params["decoder"]["linear"]["kernel"] = jnp.asarray(decoder, jnp.float32)
    return jax.device_put(state._replace(params=params), NamedSharding(trainer.mesh, P()))


def loss_scale(config: AutoencoderConfig, stats: Statistics) -> Array:
    """What the loss divides the autoencoder's outputs by, float32[layers].

    In raw weights it divides by LWLN's coefficients or by one; outputs are in units of `scale`.
    """
    coefficients = stats.layer_std if config.lwln else jnp.ones_like(stats.layer_std)
    return coefficients / stats.scale


def loss_fn(
    trainer: Trainer,
    params: Params,
    stats: Statistics,
    vectors: Array,
    key: Key,
    step: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """beta * reconstruction + (1 - beta) * contrast of two augmented views of [B, D].

    With `kl`, `kl_penalty` joins the reconstruction, which is then of samples of the posterior.
    `step` matters to its warm-up only; None: that is over.
    """
    c, spec = trainer.config, trainer.spec
    key_views, key_corrupt, key_dropout = jax.random.split(key, 3)
    both = [augment.networks(k, spec, c.augment, vectors) for k in jax.random.split(key_views)]
    clean = to_inputs(spec, stats, jnp.concatenate(both))
    inputs = augment.corrupt(key_corrupt, c.augment, clean)
    rngs = {"dropout": key_dropout}
    if c.kl:
        rngs["latent"] = jax.random.fold_in(key, 3)  # the fourth, after the three above
    latents, outputs, projections = trainer.module.apply(
        {"params": params}, inputs, train=True, rngs=rngs
    )
    target = clean if c.target == "original" else inputs
    reconstruction, _ = losses.reconstruction(spec, outputs, target, loss_scale(c, stats))
    metrics = {"reconstruction": reconstruction}
    loss = reconstruction
    if c.kl:
        metrics["kl"] = losses.gaussian_kl(*latents).sum(-1).mean()
        warm = step is None or not c.kl_warmup
        share = 1.0 if warm else jnp.minimum(step / c.kl_warmup, 1.0)
        loss = loss + share * kl_penalty(c, spec, metrics["kl"])
    if c.beta < 1:
        contrast = losses.nt_xent(*jnp.split(projections, 2), c.temperature)
        metrics["contrast"] = contrast
        loss = c.beta * loss + (1 - c.beta) * contrast
    return loss, metrics | {"loss": loss}


def kl_penalty(config: AutoencoderConfig, spec: WeightSpec, nats: float | Array) -> float | Array:
    """What a mean KL divergence of so many nats a network adds to the reconstruction's loss.

    With Gaussian decoder noise of variance s^2 = `kl` on each of the D weights, in the loss's
    units (with LWLN, a layer's variance is 1), the negative evidence lower bound is

        D / (2 s^2) * reconstruction + KL + a constant,

    so reconstruction + 2 s^2 / D * KL is the same up to a factor. Every `kl` is thus the true
    bound of some noise: a larger one explains more of the weights as noise.
    """
    return 2 * config.kl / spec.num_params * nats


def _step(trainer: Trainer, state: TrainState, data: Array, stats: Statistics):
    c = trainer.config
    batch, per_epoch = min(c.batch_size, len(data)), max(1, len(data) // c.batch_size)
    key_order = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step // per_epoch)
    order = jax.random.permutation(key_order, len(data))
    index = lax.dynamic_slice(order, (state.step % per_epoch * batch,), (batch,))
    vectors = lax.with_sharding_constraint(
        data[index], NamedSharding(trainer.mesh, P("batch" if batch == c.batch_size else None))
    )
    key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
    grad_fn = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
    (_, metrics), grads = grad_fn(trainer, state.params, stats, vectors, key, state.step)
    updates, opt_state = optimizer(c).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(params, opt_state, state.step + 1, state.key), metrics


@functools.partial(jax.jit, static_argnames="trainer", donate_argnames="state")
def train_steps(
    trainer: Trainer, state: TrainState, data: Array, stats: Statistics, count: Array
) -> tuple[TrainState, dict[str, Array]]:
    """`count` steps on train vectors `data` float32[N, D]; returns the metrics' means.

    Batches depend on (key, step) alone. `count` is traced: one compilation serves all.
    `state` is donated.
    """
    shapes = jax.eval_shape(lambda s: _step(trainer, s, data, stats)[1], state)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(_, carry):
        state, sums = carry
        state, metrics = _step(trainer, state, data, stats)
        return state, jax.tree.map(jnp.add, sums, metrics)

    state, sums = lax.fori_loop(0, count, body, (state, sums))
    return state, jax.tree.map(lambda total: total / count, sums)


@functools.partial(jax.jit, static_argnames=("module", "spec"))
def _encode(module: Autoencoder, spec: WeightSpec, params, stats, vectors):
    return module.apply({"params": params}, to_inputs(spec, stats, vectors), method="encode")


@functools.partial(jax.jit, static_argnames=("module", "spec"))
def _posterior(module: Autoencoder, spec: WeightSpec, params, stats, vectors):
    return module.apply({"params": params}, to_inputs(spec, stats, vectors), method="posterior")


@functools.partial(jax.jit, static_argnames=("module", "spec"))
def _decode(module: Autoencoder, spec: WeightSpec, params, stats, latents):
    return from_outputs(spec, stats, module.apply({"params": params}, latents, method="decode"))


def encode(hyperrep: HyperRep, vectors: Array, *, batch: int = 256) -> np.ndarray:
    """Aligned weight vectors float32[N, D] -> latents float32[N, latent]; of a VAE, their means."""
    _check(vectors, hyperrep.spec.num_params, "weight vectors")
    return _batched(_encode, hyperrep, vectors, batch)


def posterior(hyperrep: HyperRep, vectors: Array, *, batch: int = 256) -> Posterior:
    """Aligned weight vectors float32[N, D] -> means and log-variances float32[N, latent] of a VAE.

    Raises HyperJaxError if it is none.
    """
    if not hyperrep.config.kl:
        raise HyperJaxError("this hyper-representation is no VAE: its autoencoder.kl is 0")
    _check(vectors, hyperrep.spec.num_params, "weight vectors")
    return _batched(_posterior, hyperrep, vectors, batch)


def decode(hyperrep: HyperRep, latents: Array, *, batch: int = 256) -> np.ndarray:
    """Latents float32[N, latent] -> weight vectors float32[N, D], one forward pass."""
    _check(latents, hyperrep.config.latent, "latents")
    return _batched(_decode, hyperrep, latents, batch)


def reconstruct(hyperrep: HyperRep, vectors: Array) -> np.ndarray:
    """Encode and decode aligned weight vectors float32[N, D]."""
    return decode(hyperrep, encode(hyperrep, vectors))


class Bound(NamedTuple):
    """The evidence lower bound of a VAE on some networks."""

    loss: float  # reconstruction of a sample of each posterior + `kl_penalty`
    reconstruction: float
    nats: np.ndarray  # float32[latent]: KL divergence of each latent, mean over networks


def bound(hyperrep: HyperRep, vectors: Array, key: Key) -> Bound:
    """Aligned weight vectors float32[N, D] -> their bound, in the units of the loss.

    Raises HyperJaxError if the hyper-representation is no VAE.
    """
    c, spec, stats = hyperrep.config, hyperrep.spec, hyperrep.statistics
    mean, log_variance = posterior(hyperrep, vectors)
    noise = np.asarray(jax.random.normal(key, mean.shape))
    outputs = decode(hyperrep, mean + np.exp(log_variance / 2) * noise)
    scale = stats.layer_std if c.lwln else np.ones_like(stats.layer_std)
    reconstruction = float(losses.reconstruction(spec, outputs, vectors, scale)[0])
    nats = np.asarray(losses.gaussian_kl(mean, log_variance).mean(0))
    loss = reconstruction + kl_penalty(c, spec, float(nats.sum()))
    return Bound(loss, reconstruction, nats)


def _check(array: Array, width: int, what: str) -> None:
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise HyperJaxError(
            f"{what} of shape {array.shape}: this hyper-representation takes [N, {width}], N > 0"
        )
    if not np.isfinite(array).all():
        raise HyperJaxError(f"{what}: expected finite values, got NaN or infinity")


def _batched(fn, hyperrep: HyperRep, array: Array, batch: int) -> Any:
    """Apply in batches of one shape, so that any N compiles once; the last batch is padded."""
    module = make_autoencoder(hyperrep.config, hyperrep.spec)
    array = np.asarray(array, np.float32)
    parts = []
    for start in range(0, len(array), batch):
        rows = array[start : start + batch]
        full = np.pad(rows, ((0, batch - len(rows)), (0, 0)))
        out = fn(module, hyperrep.spec, hyperrep.params, hyperrep.statistics, full)
        parts.append(out)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(array)], *parts)
