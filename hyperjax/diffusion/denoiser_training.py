"""Training of the denoiser, data-parallel: batches, noise levels, the step, and how it is judged.

A whole training is `hyperrep.training.run_steps` with the step of this file.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hyperjax import distributed
from hyperjax.config import DenoiserConfig
from hyperjax.diffusion import wiener as wieners
from hyperjax.diffusion.denoiser import UNKNOWN, Static, denoise_scaled, residual
from hyperjax.diffusion.wiener import Wiener
from hyperjax.hyperrep.optimizer import optimizer
from hyperjax.hyperrep.training import Progress, place
from hyperjax.models.graph import GraphDenoiser, at_once
from hyperjax.rng import copied
from hyperjax.types import Array, Key, Params
from hyperjax.weights import WeightSpec

LEVELS = (0.15, 0.3, 0.6, 1.0, 1.5)  # at which denoisers are compared
_DRAWN = 500  # steps whose members are drawn together


class TrainState(NamedTuple):
    params: Params  # moving average: what is judged, and kept
    trained: Params
    opt_state: Any
    step: Array  # int32
    key: Key


class Trainer(NamedTuple):
    """What is static in a training step. Hashable."""

    config: DenoiserConfig
    spec: WeightSpec
    mesh: Mesh

    @property
    def static(self) -> Static:
        return Static(self.config.graph, self.spec)


class Data(NamedTuple):
    """Train members in K folds, and what denoises the members of each fold linearly: fitted on all
    others, or on all with one fold."""

    vectors: Array  # float32[M, E, D], as they are; they stay on the host, or in a file
    unit: np.ndarray  # float32[D], in which they are denoised
    rows: np.ndarray  # int[K, n], of the M * E vectors those of each fold
    quantiles: np.ndarray  # float32[K, n], of their quality; negative where unknown
    wieners: Wiener  # of arrays [K, ...]


def used_devices(config: DenoiserConfig, devices: Any = None) -> list[jax.Device]:
    """As many, of all devices by default, as divide the batch into parts of at least 8."""
    devices = jax.devices() if devices is None else devices
    size = config.training.batch_size
    return distributed.same_number_of_each(devices, size, least=8, field="denoiser")


def make_trainer(config: DenoiserConfig, spec: WeightSpec, devices: Any = None) -> Trainer:
    """Data-parallel over `used_devices`."""
    used = used_devices(config, devices)
    mesh = Mesh(np.asarray(used), ("batch",), axis_types=(AxisType.Auto,))
    return Trainer(config, spec, mesh)


def whole(
    config: DenoiserConfig,
    spec: WeightSpec,
    vectors: Array,
    unit: np.ndarray,
    rows: np.ndarray | None = None,
) -> Wiener:
    """The Wiener denoiser of the members float32[M, E, D] in `rows` (None: all), in units of
    float32[D]. An equivariant denoiser's commutes with the symmetries as well
    (`wiener.fit_orbits`); for it all members are read into memory."""
    if config.graph.equivariant:
        seen = np.asarray(vectors if rows is None else vectors[rows])
        return wieners.fit_orbits(spec, seen.reshape(-1, spec.num_params) / unit[None])
    return wieners.fit(vectors, None if config.shrink else 0.0, rows=rows, unit=unit)


def folded(
    config: DenoiserConfig,
    spec: WeightSpec,
    vectors: Array,
    unit: np.ndarray,
    quality: np.ndarray,
    seed: int,
) -> Data:
    """Split members float32[M, E, D] into folds, and fit Wiener denoisers in units of float32[D].

    `quality` float[M, E] is NaN where unknown; quantiles are those of ranks, ties in the middle.
    The E vectors of a member stay together.

    With fewer members than weights, a Wiener denoiser knows its own members far better than others:
    a network that adds to it would learn nothing that carries over.
    """
    members, each, size = vectors.shape
    quantiles, count = _quantiles(quality.reshape(-1)), min(config.folds, members // 2)
    if count < 2:
        fitted = Wiener(*(leaf[None] for leaf in whole(config, spec, vectors, unit)))
        return Data(vectors, unit, np.arange(members * each)[None], quantiles[None], fitted)
    parts = np.array_split(np.random.default_rng(seed).permutation(members), count)
    others = (np.delete(np.arange(members), part) for part in parts)
    fitted = (whole(config, spec, vectors, unit, those) for those in others)
    flat = [(part[:, None] * each + np.arange(each)).ravel() for part in parts]
    most = max(len(part) for part in flat)
    rows = np.stack([np.resize(part, most) for part in flat])  # a smaller fold repeats its first
    stacked = _stacked(fitted, count, min(members * each, size))
    return Data(vectors, unit, rows, quantiles[rows], stacked)


def _quantiles(quality: np.ndarray) -> np.ndarray:
    """Quantiles float32[N] in (0, 1); `UNKNOWN` where the quality is NaN."""
    from scipy.stats import rankdata

    known = np.isfinite(quality)
    found = np.full(len(quality), UNKNOWN, np.float32)
    found[known] = (rankdata(quality[known]) - 0.5) / max(known.sum(), 1)
    return found


def _stacked(fitted: Iterator[Wiener], count: int, most: int) -> Wiener:
    """`count` Wiener denoisers as one of arrays [count, ...], the axes of all of them, at `most` so
    many, filled up with axes of zeros, which change nothing. None is kept beside: they are the
    largest arrays of a training."""
    sizes, leaves = [], None
    for number, one in enumerate(fitted):
        if leaves is None:
            shapes = (one.mean.shape, (most, len(one.mean)), (most,), one.rest.shape)
            leaves = Wiener(*(np.zeros((count, *shape), np.float32) for shape in shapes))
        size = len(one.axes)
        leaves.mean[number], leaves.rest[number] = one.mean, one.rest
        leaves.axes[number, :size], leaves.variances[number, :size] = one.axes, one.variances
        sizes.append(size)
        del one
    return leaves._replace(
        axes=leaves.axes[:, : max(sizes)], variances=leaves.variances[:, : max(sizes)]
    )


@functools.partial(jax.jit, static_argnames="trainer")
def init(trainer: Trainer, key: Key) -> TrainState:
    """Fresh parameters and optimiser state, replicated over the mesh."""
    key_init, key_train = jax.random.split(key)
    sample = jnp.zeros((1, 2, trainer.spec.num_params))
    module = GraphDenoiser(trainer.config.graph, trainer.spec)
    params = module.init(key_init, sample, jnp.zeros(1), jnp.zeros(1))["params"]
    opt_state = optimizer(trainer.config.training, trainer.mesh).init(params)
    state = TrainState(params, params, opt_state, jnp.int32(0), key_train)
    return lax.with_sharding_constraint(state, NamedSharding(trainer.mesh, P()))


def begin(trainer: Trainer, key: Key) -> Progress:
    """Before the first step."""
    state = init(trainer, key)
    state = jax.tree.map(jnp.copy, state)  # no two leaves are one buffer: all will be donated
    nothing = {name: np.zeros((), np.float32) for name in ("loss", "grad_norm")}
    start = (np.float32(-math.inf), np.int32(0), nothing)
    return Progress(state, jax.tree.map(jnp.copy, state.params), *place(trainer, start))


class Batch(NamedTuple):
    clean: Array  # float32[B, D]
    noisy: Array  # float32[B, D]
    linear: Array  # float32[B, D], what the Wiener denoiser makes of it
    sigma: Array  # float32[B]
    quantile: Array  # float32[B]


class Drawn(NamedTuple):
    """The members of some steps, on the trainer's devices."""

    fold: Array  # int32[S]
    vectors: Array  # float32[S, B, D], as they are
    quantile: Array  # float32[S, B]


@functools.partial(jax.jit, static_argnames=("size", "folds", "members"))
def _drawn(key: Key, first: Array, size: int, folds: int, members: int) -> tuple[Array, Array]:
    """Folds int32[_DRAWN] and members in them int32[_DRAWN, size] of steps from `first` on."""

    def one(step):
        key_fold, key_rows, *_ = jax.random.split(jax.random.fold_in(key, step), 5)
        fold = jax.random.randint(key_fold, (), 0, folds)
        return fold, jax.random.randint(key_rows, (size,), 0, members)

    return jax.vmap(one)(first + jnp.arange(_DRAWN))


def members_of(trainer: Trainer, key: Key, data: Data) -> Callable[[int, int], Drawn]:
    """`give(step, count)`, the members of so many steps, each of one fold. They depend on the key
    and the step alone. Each process reads of `data.vectors` what its own devices want."""
    key = copied(key)  # a state's is donated
    size, vectors = trainer.config.training.batch_size, np.asarray(data.vectors)
    split = NamedSharding(trainer.mesh, P(None, "batch"))

    @functools.lru_cache(maxsize=2)
    def block(number: int) -> tuple[np.ndarray, np.ndarray]:
        found = _drawn(key, np.int32(number * _DRAWN), size, *data.rows.shape)
        return tuple(np.asarray(leaf) for leaf in found)

    def give(step: int, count: int) -> Drawn:
        places = [divmod(number, _DRAWN) for number in range(step, step + count)]
        fold = np.array([block(number)[0][i] for number, i in places], np.int32)
        members = np.stack([block(number)[1][i] for number, i in places])
        rows, quantile = data.rows[fold[:, None], members], data.quantiles[fold[:, None], members]

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            return vectors[np.divmod(rows[index[:2]], vectors.shape[1])]

        shape = (*rows.shape, vectors.shape[2])
        return Drawn(
            distributed.put(fold, NamedSharding(trainer.mesh, P())),
            jax.make_array_from_callback(shape, split, of_device),
            distributed.put(quantile, split),
        )

    return give


def draw_batch(trainer: Trainer, key: Key, drawn: Drawn, unit: Array, folds: Wiener) -> Batch:
    """The members of one step in units of float32[D], with noise, of levels that are log-uniform
    between the two of the configuration."""
    c = trainer.config
    *_, key_level, key_noise, key_hide = jax.random.split(key, 5)
    clean = drawn.vectors / unit[None]
    low, high = math.log(c.sigma_min), math.log(c.sigma_max)
    sigma = jnp.exp(jax.random.uniform(key_level, clean.shape[:1], minval=low, maxval=high))
    noisy = clean + sigma[:, None] * jax.random.normal(key_noise, clean.shape)
    wiener = jax.tree.map(lambda leaf: leaf[drawn.fold], folds)
    hidden = jax.random.bernoulli(key_hide, c.unconditional, clean.shape[:1])
    quantile = jnp.where(hidden, UNKNOWN, drawn.quantile)
    return Batch(clean, noisy, wieners.denoise(wiener, noisy, sigma), sigma, quantile)


def loss_fn(trainer: Trainer, params: Params, batch: Batch) -> Array:
    """Mean squared error of the denoised members, weighted by (1 + sigma^2) / sigma^2: the error
    of the network, whose targets have about unit variance at every level."""
    norm = lax.rsqrt(1 + batch.sigma**2)[:, None]
    target = (batch.clean - batch.linear) / (batch.sigma[:, None] * norm)
    inputs = batch.noisy * norm, batch.linear, batch.sigma, batch.quantile
    output = residual(trainer.static, params, *inputs)
    return jnp.mean((output - target) ** 2)


def examples_at_once(config: DenoiserConfig, platform: str) -> int:
    """Of a batch, on one device."""
    return config.micro_batch or at_once(platform) or config.training.batch_size


def _grads(trainer: Trainer, params: Params, batch: Batch) -> tuple[Array, Params]:
    """Loss and gradient, each device computing its share of the batch in small parts."""
    size = examples_at_once(trainer.config, trainer.mesh.devices.flat[0].platform)
    value_and_grad = jax.value_and_grad(functools.partial(loss_fn, trainer))

    def local(params, batch):
        count = len(batch.sigma)
        parts = count // size if count % size == 0 else 1
        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)

        def body(total, part):
            return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
        zeros = lax.pcast(zeros, "batch", to="varying")
        params = lax.pcast(params, "batch", to="varying")
        total, _ = lax.scan(body, zeros, batch)
        # one array is summed over the devices, not a hundred: processes on CPUs wait for each
        flat, unravel = ravel_pytree(total)
        return unravel(lax.pmean(flat / parts, "batch"))

    sharded = jax.shard_map(
        local, mesh=trainer.mesh, in_specs=(P(), P("batch")), out_specs=P(), check_vma=True
    )
    return sharded(params, batch)


def _step(
    trainer: Trainer, state: TrainState, drawn: Drawn, unit: Array, folds: Wiener
) -> tuple[TrainState, dict[str, Array]]:
    c = trainer.config
    batch = draw_batch(trainer, jax.random.fold_in(state.key, state.step), drawn, unit, folds)
    loss, grads = _grads(trainer, state.trained, batch)
    update = optimizer(c.training, trainer.mesh).update
    updates, opt_state = update(grads, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    # the average of few steps weighs them equally
    decay = jnp.minimum(c.average, (1 + state.step) / (10 + state.step))
    params = optax.incremental_update(trained, state.params, 1 - decay)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return TrainState(params, trained, opt_state, state.step + 1, state.key), metrics


@functools.partial(jax.jit, static_argnames="trainer", donate_argnames="state")
def train_steps(
    trainer: Trainer, state: TrainState, drawn: Drawn, unit: Array, folds: Wiener, count: Array
) -> tuple[TrainState, dict[str, Array]]:
    """`count` steps, on members drawn for so many or more, with `Data`'s unit and Wiener denoisers
    on the devices; returns the metrics' means. `count` is traced: one compilation serves all.
    `state` is donated."""

    def body(number, carry):
        state, sums = carry
        of_step = jax.tree.map(lambda leaf: leaf[number], drawn)
        state, metrics = _step(trainer, state, of_step, unit, folds)
        return state, jax.tree.map(jnp.add, sums, metrics)

    sums = {"loss": jnp.float32(0), "grad_norm": jnp.float32(0)}
    state, sums = lax.fori_loop(0, count, body, (state, sums))
    # placed as it came, so that no second program is compiled for it
    state = lax.with_sharding_constraint(state, NamedSharding(trainer.mesh, P()))
    return state, jax.tree.map(lambda total: total / count, sums)


# --- how a denoiser is judged ---------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="static")
def _errors(static: Static, params, wiener: Wiener, clean: Array, sigma: Array, key: Key):
    """Squared errors [B] of the denoiser and of the Wiener denoiser alone."""
    noisy = clean + sigma * jax.random.normal(key, clean.shape)
    level = jnp.full(len(clean), sigma)
    unknown = jnp.full(len(clean), UNKNOWN)
    ours = denoise_scaled(static, params, wiener, noisy, level, unknown)
    linear = wieners.denoise(wiener, noisy, level)
    return tuple(jnp.mean((x - clean) ** 2, axis=1) for x in (ours, linear))


def ratios(
    static: Static, params: Params, wiener: Wiener, members: Array, key: Key, size: int = 50
) -> dict[float, tuple[float, float]]:
    """Of members float32[M, D] in units of `scale`, at each of LEVELS: the denoiser's error as a
    share of the Wiener denoiser's, and the latter, a weight. The same key gives the same noise."""
    found = {}
    for number, level in enumerate(LEVELS):
        sums = np.zeros(2)
        for begin in range(0, len(members), size):
            part = np.asarray(members[begin : begin + size])
            padded = np.pad(part, ((0, size - len(part)), (0, 0)))
            of_part = jax.random.fold_in(jax.random.fold_in(key, number), begin)
            errors = _errors(static, params, wiener, padded, jnp.float32(level), of_part)
            sums += [float(np.asarray(e)[: len(part)].sum()) for e in errors]
        found[level] = float(sums[0] / sums[1]), float(sums[1] / len(members))
    return found


def judge(
    trainer: Trainer, wiener: Wiener, train: Array, val: Array
) -> Callable[[Params], dict[str, float]]:
    """What `run` validates by: ratios to the Wiener denoiser that was fitted on all train members,
    on train and on held-out members; the score is the mean over LEVELS of the latter."""
    key = jax.random.key(0)  # the same noise at every validation

    def validate(params: Params) -> dict[str, float]:
        scores = {}
        for part, members in (("train", train[: len(val)]), ("val", val)):
            found = ratios(trainer.static, params, wiener, members, key)
            scores |= {f"{part}_ratio_{level:g}": ratio for level, (ratio, _) in found.items()}
            scores[f"{part}_ratio"] = float(np.mean([ratio for ratio, _ in found.values()]))
        return scores | {"val_loss": scores["val_ratio"]}

    return validate
