"""The training step of the hyper-representation, data-parallel, and what trains it for good."""

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

from hyperjax import config_rules, cost, distributed
from hyperjax.config import AutoencoderConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import augment, linear, losses
from hyperjax.hyperrep.model import Statistics, to_inputs
from hyperjax.hyperrep.optimizer import optimizer
from hyperjax.models import graph
from hyperjax.models.autoencoder import Autoencoder
from hyperjax.rng import copied
from hyperjax.types import Array, Key, Params
from hyperjax.weights import WeightSpec

_LARGE = 10_000_000  # weights of an autoencoder
STEPS_PER_CALL = 10  # between two signs of life


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


class Progress(NamedTuple):
    """All that a resumed run needs."""

    state: TrainState
    best: Params
    best_score: Array  # float32
    best_step: Array  # int32
    sums: dict[str, Array]  # float32, of the metrics of all steps since the last validation


def make_trainer(config: AutoencoderConfig, spec: WeightSpec, devices: Any = None) -> Trainer:
    """Data-parallel over as many devices as divide the batch into parts of at least 8.

    On CPU, unless `devices` are given, a large autoencoder uses one device of each process: its
    products occupy all cores anyway, and weights and optimiser exist once (docs/performance.md).
    """
    used = np.asarray(used_devices(config, spec) if devices is None else _dividing(config, devices))
    mesh = Mesh(used, ("batch",), axis_types=(AxisType.Auto,))
    return Trainer(config, spec, Autoencoder(config.architecture, spec), mesh)


def used_devices(config: AutoencoderConfig, spec: WeightSpec) -> list[jax.Device]:
    """Those of all devices that `make_trainer` uses."""
    devices = jax.devices()
    large = cost.autoencoder_params(config.architecture, spec) > _LARGE
    if devices[0].platform == "cpu" and large:
        first = {device.process_index: device for device in reversed(devices)}
        devices = [first[process] for process in sorted(first)]
    return _dividing(config, devices)


def _dividing(config: AutoencoderConfig, devices: Any) -> list[jax.Device]:
    size = config.training.batch_size
    return distributed.same_number_of_each(devices, size, least=8, field="autoencoder")


@functools.partial(jax.jit, static_argnames="trainer")
def init(trainer: Trainer, key: Key) -> TrainState:
    """Fresh parameters and optimiser state, replicated over the mesh."""
    key_init, key_train = jax.random.split(key)
    sample = jnp.zeros((1, trainer.spec.num_params))
    params = trainer.module.init(key_init, sample, train=False)["params"]
    opt_state = optimizer(trainer.config.training, trainer.mesh).init(params)
    state = TrainState(params, opt_state, jnp.int32(0), key_train)
    return lax.with_sharding_constraint(state, NamedSharding(trainer.mesh, P()))


def loss_fn(
    trainer: Trainer, params: Params, stats: Statistics, vectors: Array, key: Key
) -> tuple[Array, dict[str, Array]]:
    """beta * reconstruction + (1 - beta) * contrast of two augmented views of [B, D].

    Of a VAE, `losses.kl_penalty` joins the reconstruction, which is of samples of the posterior.
    """
    # the first three are what a split in three gives
    key_views, key_corrupt, key_dropout, key_latent = jax.random.split(key, 4)
    inputs, target = _views(trainer, stats, vectors, key_views, key_corrupt)
    latents, outputs, projections = trainer.module.apply(
        {"params": params}, inputs, train=True, rngs={"dropout": key_dropout, "latent": key_latent}
    )
    return _objective(trainer, stats, latents, outputs, projections, target)


def _views(
    trainer: Trainer, stats: Statistics, vectors: Array, key_views: Key, key_corrupt: Key
) -> tuple[Array, Array]:
    """Of networks [B, D]: two augmented views each, [2 B, D], and what they should become."""
    c, spec = trainer.config, trainer.spec
    views = [
        augment.networks(k, spec, c.data.augment, vectors) for k in jax.random.split(key_views)
    ]
    # a network's views beside each other: they stay on its device
    pairs = jnp.stack(views, axis=1).reshape(-1, spec.num_params)
    clean = to_inputs(spec, stats, pairs)
    inputs = augment.corrupt(key_corrupt, c.data.augment, clean)
    return inputs, clean if c.loss.target == "original" else inputs


def _objective(
    trainer: Trainer, stats: Statistics, latents: Any, outputs: Array, projections: Array, target
) -> tuple[Array, dict[str, Array]]:
    """The loss, and its parts by name. Projections may be those of more networks."""
    c, spec = trainer.config, trainer.spec
    loss, _ = losses.reconstruction(spec, outputs, target, losses.loss_scale(c.loss, stats))
    metrics = {"reconstruction": loss}
    if c.architecture.variational:
        metrics["kl"] = losses.gaussian_kl(*latents).sum(-1).mean()
        loss = loss + losses.kl_penalty(c.loss.kl, spec, metrics["kl"])
    if c.loss.beta < 1:
        contrast = losses.nt_xent(projections[::2], projections[1::2], c.loss.temperature)
        metrics["contrast"] = contrast
        loss = c.loss.beta * loss + (1 - c.loss.beta) * contrast
    return loss, metrics | {"loss": loss}


def _grads(
    trainer: Trainer, params: Params, stats: Statistics, vectors: Array, key: Key
) -> tuple[Params, dict[str, Array]]:
    """The gradient of `loss_fn`, and its parts. Each device computes its share of the batch, a
    graph network in small parts, forward again before backward, and one array is summed over the
    devices, not one for every parameter: processes on CPUs wait for each."""
    if config_rules.draws(trainer.config.architecture) or len(vectors) % trainer.mesh.size:
        of_all = jax.grad(loss_fn, argnums=1, has_aux=True)
        return of_all(trainer, params, stats, vectors, key)

    def local(params, stats, inputs, target):
        params, stats = lax.pcast((params, stats), "batch", to="varying")

        def loss(params):
            latents, outputs, projections = _in_parts(trainer, params, inputs)
            projections = lax.all_gather(projections, "batch", tiled=True)
            return _objective(trainer, stats, latents, outputs, projections, target)

        flat, unravel = ravel_pytree(jax.grad(loss, has_aux=True)(params))
        return unravel(lax.pmean(flat, "batch"))

    key_views, key_corrupt, *_ = jax.random.split(key, 4)
    views = _views(trainer, stats, vectors, key_views, key_corrupt)
    split = jax.shard_map(
        local, mesh=trainer.mesh, in_specs=(P(), P(), P("batch"), P("batch")), out_specs=P()
    )
    return split(params, stats, *views)


def _in_parts(trainer: Trainer, params: Params, inputs: Array) -> tuple[Array, Array, Array]:
    """The autoencoder's outputs of a device's inputs [N, D], so many of them at once that
    activations stay in its cache: those of a part are computed again for the backward pass."""

    def apply(inputs):
        return trainer.module.apply({"params": params}, inputs, train=True)

    size = examples_at_once(trainer.config, trainer.mesh.devices.flat[0].platform)
    return graph.in_parts(jax.checkpoint(apply) if size else apply, size, inputs)


def examples_at_once(config: AutoencoderConfig, platform: str) -> int:
    """Views that a device computes at once; 0: all."""
    c = config.architecture
    if config_rules.draws(c):  # for a whole batch
        return 0
    return config.micro_batch or (graph.at_once(platform) if c.network == "graph" else 0)


@functools.partial(jax.jit, static_argnames="count")
def _order(key: Key, epoch: Array, count: int) -> Array:
    key = jax.random.fold_in(jax.random.fold_in(key, 0), epoch)
    return jax.random.permutation(key, count)


def batches(trainer: Trainer, key: Key, data: Array) -> Callable[[int, int], Array]:
    """Of train vectors float32[N, D]: `give(step, count)`, the batches float32[count, B, D] of so
    many steps, on the trainer's devices. They depend on the key and the step alone; of an epoch
    none is seen twice.

    `data` stays on the host, and may be the memory map of a file that is larger than memory: each
    process reads what its own devices want.
    """
    size, data = trainer.config.training.batch_size, np.asarray(data)
    batch, per_epoch = min(size, len(data)), max(1, len(data) // size)
    key = copied(key)  # a state's is donated
    sharding = NamedSharding(trainer.mesh, P(None, "batch" if batch == size else None))

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> np.ndarray:
        return np.asarray(_order(key, np.int32(epoch), len(data)))

    def give(step: int, count: int) -> Array:
        begins = [divmod(number, per_epoch) for number in range(step, step + count)]
        rows = np.stack([order(epoch)[i * batch : (i + 1) * batch] for epoch, i in begins])
        shape = (*rows.shape, data.shape[1])
        return jax.make_array_from_callback(shape, sharding, lambda index: data[rows[index[:2]]])

    return give


def _step(trainer: Trainer, state: TrainState, vectors: Array, stats: Statistics):
    key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
    grads, metrics = _grads(trainer, state.params, stats, vectors, key)
    update = optimizer(trainer.config.training, trainer.mesh).update
    updates, opt_state = update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(params, opt_state, state.step + 1, state.key), metrics


@functools.partial(jax.jit, static_argnames="trainer", donate_argnames="state")
def train_steps(
    trainer: Trainer, state: TrainState, vectors: Array, stats: Statistics, count: Array
) -> tuple[TrainState, dict[str, Array]]:
    """`count` steps, each on one of `batches` float32[count or more, B, D]; returns the metrics'
    means.

    `count` is traced: one compilation serves all. `state` is donated.
    """
    shapes = jax.eval_shape(lambda s: _step(trainer, s, vectors[0], stats)[1], state)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(number, carry):
        state, sums = carry
        state, metrics = _step(trainer, state, vectors[number], stats)
        return state, jax.tree.map(jnp.add, sums, metrics)

    state, sums = lax.fori_loop(0, count, body, (state, sums))
    # placed as it came, so that no second program is compiled for it
    state = lax.with_sharding_constraint(state, NamedSharding(trainer.mesh, P()))
    return state, jax.tree.map(lambda total: total / count, sums)


# --- a whole training ---------------------------------------------------------------------


def place(trainer: Trainer, tree: Any) -> Any:
    """Arrays of the host on all devices of the trainer, once for all steps; never donated."""
    return distributed.share(tree, trainer.mesh)


def begin(trainer: Trainer, key: Key, stats: Statistics) -> Progress:
    """Before the first step, with placed `stats`; a linear path is not fitted yet."""
    state = init(trainer, key)
    copy = jax.tree.map(jnp.copy, state.params)  # the state itself is donated step by step
    shape = (trainer.config.training.batch_size, trainer.spec.num_params)
    shapes = jax.eval_shape(
        lambda s, vectors: _step(trainer, s, vectors, stats)[1],
        state, jax.ShapeDtypeStruct(shape, jnp.float32),
    )  # fmt: skip
    nothing = {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.items()}
    start = (np.float32(-math.inf), np.int32(0), nothing)
    return Progress(state, copy, *place(trainer, start))


def fit_linear(
    trainer: Trainer, progress: Progress, stats: Statistics, vectors: np.ndarray
) -> Progress:
    """Set the linear path, where there is one, to what train vectors float32[N, D] determine."""
    if not trainer.config.architecture.linear_path:
        return progress
    params = linear.principal_components(
        trainer.config, trainer.spec, progress.state.params, stats, vectors
    )
    params = jax.device_put(params, NamedSharding(trainer.mesh, P()))
    best = jax.tree.map(jnp.copy, params)
    return progress._replace(state=progress.state._replace(params=params), best=best)


def run(
    trainer: Trainer,
    progress: Progress,
    data: Array,
    stats: Statistics,
    validate: Callable[[Params], dict[str, float]],
) -> Iterator[tuple[Progress, int, dict[str, float] | None]]:
    """Train on to the last step, on train vectors float32[N, D] and with placed `stats`; see
    `run_steps`."""
    give = batches(trainer, progress.state.key, data)

    def some(state: TrainState, step: int, count: int):
        return train_steps(trainer, state, give(step, STEPS_PER_CALL), stats, jnp.int32(count))

    yield from run_steps(trainer, progress, some, validate, "autoencoder")


def run_steps(
    trainer: Any,
    progress: Progress,
    train: Callable[[Any, int, int], tuple[Any, dict[str, Array]]],
    validate: Callable[[Params], dict[str, float]],
    field: str,
) -> Iterator[tuple[Progress, int, dict[str, float] | None]]:
    """Train on to the last step. Yields, after every few steps: the progress, the number of steps
    done now, and, where it was validated, what came out (`validate` has to give "val_loss").

    What is yielded may be saved, and is gone once the next is asked for.

    Args:
      trainer: with a `mesh`, and an `OptimizationConfig` as `config.training`.
      train: `train(state, step, count)` gives the state, of so many steps, after `count` more, at
        most STEPS_PER_CALL, and the metrics' means; of states, `params` are validated and kept.
      field: of the configuration, that the optimisation is part of.

    Raises HyperJaxError if the loss is no number any more.
    """
    c, done = trainer.config.training, int(progress.state.step)
    if not done:  # a linear path may be best as it starts
        scores = validate(progress.state.params)
        progress = _keep_best(trainer, progress, scores)
        yield progress, 0, {"step": 0} | scores
    while done < c.steps:
        begin = done // c.eval_every * c.eval_every
        until = min(begin + c.eval_every, c.steps)
        count = min(STEPS_PER_CALL, until - done)
        state, means = train(progress.state, done, count)
        jax.block_until_ready(progress.sums)  # the devices are one call ahead, not more
        sums = {name: total + count * means[name] for name, total in progress.sums.items()}
        progress, done = progress._replace(state=state, sums=sums), done + count
        record = None
        if done == until:
            means = {f"train_{k}": float(v) / (done - begin) for k, v in progress.sums.items()}
            if not math.isfinite(means["train_loss"]):
                raise HyperJaxError(
                    f"training diverged before step {done}: the loss is {means['train_loss']}; "
                    f"lower config field {field}.training.learning_rate or set its clip_norm"
                )
            scores = validate(progress.state.params)
            progress = _keep_best(trainer, progress, scores)
            nothing = jax.tree.map(np.zeros_like, distributed.fetch(progress.sums))
            progress = progress._replace(sums=place(trainer, nothing))
            record = {"step": done} | means | scores
        yield progress, count, record


def _keep_best(trainer: Trainer, progress: Progress, scores: dict[str, float]) -> Progress:
    state, by_loss = progress.state, trainer.config.training.select == "loss"
    score = -scores["val_loss"] if by_loss else float(state.step)
    if not score > float(progress.best_score):
        return progress
    best = jax.tree.map(jnp.copy, state.params)
    placed = place(trainer, np.float32(score))
    return progress._replace(best=best, best_score=placed, best_step=jnp.copy(state.step))
