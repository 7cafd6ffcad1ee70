"""Populations of small CNNs, trained and evaluated in lock step.

Everything is written for ONE member and mapped over the population: `lax.map` (one member after
another inside one compiled epoch, so that a member's activations stay in the CPU's cache) or `vmap`
(all at once, for accelerators), and members split over all devices (`placement`). Members never
communicate. Evaluation is mapped inside its batches, which all members share.

Member i draws its initial weights and its batches from (seed, member id, epoch) alone: it is the
same whatever the population's size and chunks, and but for rounding on any number of devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from hyperjax import distributed, weights
from hyperjax.config import TrainingConfig
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.models.conv import FORMS, default_form
from hyperjax.models.initialise import init_vector
from hyperjax.models.sequential import Sequential
from hyperjax.population import placement
from hyperjax.types import Array, Images, Key
from hyperjax.weights import WeightSpec

_INIT, _SHUFFLE = 0, 1  # streams of random numbers of one member
_NO_CLASS = 65_535  # the prediction of a diverged network
_LEAST_SHARE = 16  # images of a batch on each of the devices that share a member
# One after another, a member's activations should stay in a core's cache.
_MICRO_BATCH = {"map": 32, "vmap": 128}


class Members(NamedTuple):
    """State of a population; every leaf has a leading member axis."""

    vectors: Array  # float32[M, D]: flat weights
    opt_state: Any


class Hyper(NamedTuple):
    """What members may differ in, one entry per member."""

    ids: Array  # int32[M], with the seed the source of all of a member's randomness
    learning_rate: Array  # float32[M]
    weight_decay: Array  # float32[M]


class Evaluation(NamedTuple):
    loss: Array  # float32[M], mean cross entropy
    accuracy: Array  # float32[M], in [0, 1]
    predictions: Array  # uint16[M, N]; 65,535 where the network's output is not finite


@dataclasses.dataclass(frozen=True)
class Engine:
    """How a population is computed. Hashable, hence static under `jit`."""

    model: Any  # linen module of images float32[N, H, W, C] -> logits float32[N, classes]
    spec: WeightSpec
    initializer: str
    draw: Callable[[WeightSpec, str, Key], Array]  # initial weights of one member, float32[D]
    optimizer: str
    batch_size: int
    micro_batch: int  # images that pass through a network at once; larger batches are summed up
    mapping: str  # of members: "map" or "vmap"
    mesh: Mesh  # see `placement`


def make_engine(
    spec: WeightSpec,
    training: TrainingConfig,
    *,
    init: str = "uniform",
    conv: str = "auto",
    mapping: str = "auto",
    devices: Any = None,
    model: Callable[[WeightSpec, str], Any] = Sequential,
    draw: Callable[[WeightSpec, str, Key], Array] = init_vector,
) -> Engine:
    """Engine for networks of `spec`, on all devices of all processes unless some are given.

    They are what `model(spec, form of convolution)` makes (a linen module that takes the parameters
    of `spec`), initialised by `draw(spec, init, key)`, a function of a module: an engine is static
    under `jit`, and equal functions must be the same one.
    """
    devices = jax.devices() if devices is None else devices
    on_cpu = devices[0].platform == "cpu"
    if mapping == "auto":
        mapping = "map" if on_cpu else "vmap"
    if mapping not in ("map", "vmap"):
        raise unknown("mapping of members", mapping, ("auto", "map", "vmap"))
    form = default_form(devices[0].platform) if conv == "auto" else conv
    if form not in FORMS:
        raise unknown("form of convolution", form, ("auto", *FORMS))
    return Engine(
        model=model(spec, form),
        spec=spec,
        initializer=init,
        draw=draw,
        optimizer=training.optimizer,
        batch_size=training.batch_size,
        micro_batch=_MICRO_BATCH[mapping],
        mapping=mapping,
        mesh=placement.make_mesh(devices, len(devices)),
    )


def hyper(ids: Array, training: TrainingConfig) -> Hyper:
    """The same learning rate and weight decay for every member; replace fields to vary them."""
    ids = jnp.asarray(ids, jnp.int32)
    rate = jnp.full(ids.shape, training.learning_rate, jnp.float32)
    decay = jnp.full(ids.shape, training.weight_decay, jnp.float32)
    return Hyper(ids=ids, learning_rate=rate, weight_decay=decay)


# --- one member -------------------------------------------------------------------------


def optimizer(name: str, learning_rate: Array, weight_decay: Array) -> optax.GradientTransformation:
    """PyTorch's Adam (L2 in the gradient), AdamW (decoupled) or SGD (momentum 0.9, L2)."""
    decay, step = optax.add_decayed_weights(weight_decay), optax.scale(-learning_rate)
    if name == "adam":
        return optax.chain(decay, optax.scale_by_adam(), step)
    if name == "adamw":
        return optax.chain(optax.scale_by_adam(), decay, step)
    if name == "sgd":
        return optax.chain(decay, optax.trace(0.9), step)
    raise unknown("optimiser", name, ("adam", "adamw", "sgd"))


def normalize(images: Images, index: Array) -> Array:
    """Gather and normalise: uint8 pixels -> float32[len(index), H, W, C]."""
    scale, shift = 1 / (255 * images.std), -images.mean / images.std
    count, *shape = images.pixels.shape
    # gathered from a matrix: XLA's CPU backend takes whole rows then, not pixel by pixel
    pixels = images.pixels.reshape(count, -1)[index].reshape(-1, *shape)
    return pixels * scale[None, None, None] + shift[None, None, None]


def member_key(root: Key, stream: int, member_id: Array) -> Key:
    return jax.random.fold_in(jax.random.fold_in(root, stream), member_id)


def init_member(engine: Engine, root: Key, member: Hyper) -> Members:
    vector = engine.draw(engine.spec, engine.initializer, member_key(root, _INIT, member.ids))
    return start_member(engine, vector, member)


def start_member(engine: Engine, vector: Array, member: Hyper) -> Members:
    """Given weights float32[D] with a fresh optimiser state."""
    tx = optimizer(engine.optimizer, member.learning_rate, member.weight_decay)
    return Members(vector, tx.init(vector))


def outputs_member(engine: Engine, vector: Array, pixels: Array) -> Array:
    """Logits float32[n, classes] of the network `vector` on normalised images."""
    params = weights.unflatten(engine.spec, vector)
    return engine.model.apply({"params": params}, pixels)


def apply_member(engine: Engine, vector: Array, pixels: Array, labels: Array):
    """Losses float32[n] and predictions int32[n] of the network `vector` on normalised images."""
    logits = outputs_member(engine, vector, pixels)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    # NaN logits would be argmax-ed to class 0
    return losses, jnp.where(jnp.isfinite(losses), logits.argmax(-1), _NO_CLASS)


def gradient(engine: Engine, vector: Array, images: Images, index: Array) -> tuple[Array, Array]:
    """Summed over a batch: gradient float32[D] of the loss, and [loss, correct predictions]."""

    def total(vector, index):
        labels = images.labels[index]
        losses, predictions = apply_member(engine, vector, normalize(images, index), labels)
        correct = jnp.sum(predictions == labels, dtype=jnp.float32)
        return losses.sum(), jnp.stack([losses.sum(), correct])

    grad_fn, size = jax.grad(total, has_aux=True), engine.micro_batch
    whole = len(index) // size * size
    if len(index) <= size:
        return grad_fn(vector, index)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, grad_fn(vector, part)), None

    sums, _ = lax.scan(add, (jnp.zeros_like(vector), jnp.zeros(2)), index[:whole].reshape(-1, size))
    return add(sums, index[whole:])[0] if whole < len(index) else sums


def shared_gradient(
    engine: Engine, vector: Array, images: Images, index: Array
) -> tuple[Array, Array]:
    """`gradient`, of which each device that shares the member computes a part of the batch, unless
    that is too little to be worth it."""
    devices = placement.sharers(engine.mesh)
    if devices == 1 or len(index) % devices or len(index) // devices < _LEAST_SHARE:
        return gradient(engine, vector, images, index)
    part = placement.part_of(engine.mesh, index)
    return placement.summed(engine.mesh, gradient(engine, vector, images, part))


def train_member(
    engine: Engine, state: Members, member: Hyper, images: Images, root: Key, epoch: Array
) -> tuple[Members, dict[str, Array]]:
    """One epoch over all images in a fresh order; the last, shorter batch is kept.

    Returns the new state and the epoch's running mean of loss and accuracy.
    """
    tx = optimizer(engine.optimizer, member.learning_rate, member.weight_decay)
    count, batch = len(images.labels), min(engine.batch_size, len(images.labels))
    key = jax.random.fold_in(member_key(root, _SHUFFLE, member.ids), epoch)
    order, kept = jax.random.permutation(key, count), _running_statistics(engine.spec)

    def step(state, index):
        total, sums = shared_gradient(engine, state.vectors, images, index)
        updates, opt_state = tx.update(total / len(index), state.opt_state, state.vectors)
        if kept is not None:
            updates = jnp.where(kept, 0, updates)
        return Members(optax.apply_updates(state.vectors, updates), opt_state), sums

    whole = count // batch * batch
    state, sums = lax.scan(step, state, order[:whole].reshape(-1, batch))
    total = sums.sum(0)
    if whole < count:
        state, last = step(state, order[whole:])
        total = total + last
    return state, {"loss": total[0] / count, "accuracy": total[1] / count}


def _running_statistics(spec: WeightSpec) -> np.ndarray | None:
    """Which weights are statistics, bool[D], that weight decay must not touch; None: none is."""
    found = weights.running_statistics(spec)
    return found if found.any() else None


# --- the population ---------------------------------------------------------------------


def _mapped(engine: Engine, fn: Callable, per_member: Any) -> Any:
    """`fn` of every member, one after another or all at once."""
    return jax.vmap(fn)(per_member) if engine.mapping == "vmap" else lax.map(fn, per_member)


def _over_devices(engine: Engine, fn: Callable, per_member: Any, *shared: Any) -> Any:
    """`fn(engine, members, *shared)` of the members on every device of the mesh."""
    mesh = placement.mesh_for(engine.mesh, len(jax.tree.leaves(per_member)[0]))
    engine = dataclasses.replace(engine, mesh=mesh)
    specs = (P("member"), *([P()] * len(shared)))
    local = functools.partial(fn, engine)
    # check_vma: scans start from constants, which do not vary over the members' axis
    spread = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("member"), check_vma=False)
    return spread(per_member, *shared)


def _over_members(engine: Engine, fn: Callable, per_member: Any, *shared: Any) -> Any:
    """`fn(engine, member, *shared)` of every member."""

    def local(engine, per_member, *shared):
        return _mapped(engine, lambda member: fn(engine, member, *shared), per_member)

    return _over_devices(engine, local, per_member, *shared)


@functools.partial(jax.jit, static_argnames="engine")
def init(engine: Engine, root: Key, hyper: Hyper) -> Members:
    """Initial weights of the members `hyper.ids`."""

    def one(engine, member, root):
        return init_member(engine, root, member)

    return _over_members(engine, one, hyper, root)


@functools.partial(jax.jit, static_argnames="engine")
def start(engine: Engine, vectors: Array, hyper: Hyper) -> Members:
    """Members that start from given flat vectors float32[M, D], with fresh optimiser states."""

    def one(engine, member):
        return start_member(engine, *member)

    return _over_members(engine, one, (vectors, hyper))


@functools.partial(jax.jit, static_argnames="engine", donate_argnames="state")
def train_epoch(
    engine: Engine, state: Members, hyper: Hyper, images: Images, root: Key, epoch: Array
) -> tuple[Members, dict[str, Array]]:
    """Train every member for one epoch. `state` is donated."""

    def one(engine, member, *shared):
        return train_member(engine, *member, *shared)

    return _over_members(engine, one, (state, hyper), images, root, epoch)


def _evaluate(engine: Engine, vectors: Array, images: Images) -> Evaluation:
    """In batches that fit the cache: what is made of their images alone (patches of a first
    convolution, say) is made once for all members."""
    count = len(images.labels)
    index = placement.batches(engine.mesh, min(engine.micro_batch, count), count)

    def step(sums, index):
        real, index = index < count, jnp.minimum(index, count - 1)  # the last batches are padded
        pixels, labels = normalize(images, index), images.labels[index]

        def one(vector):
            losses, predictions = apply_member(engine, vector, pixels, labels)
            correct = (predictions == labels) & real
            of_batch = jnp.stack([jnp.where(real, losses, 0).sum(), correct.sum()])
            return of_batch, predictions.astype(jnp.uint16)

        of_batch, predictions = _mapped(engine, one, vectors)
        return sums + of_batch, predictions.T

    sums, predictions = lax.scan(step, jnp.zeros((len(vectors), 2)), index)
    loss, accuracy = placement.summed(engine.mesh, sums).T / count
    return Evaluation(loss, accuracy, placement.joined(engine.mesh, predictions, count).T)


def _logits(engine: Engine, vectors: Array, images: Images) -> Array:
    count = len(images.labels)
    index = placement.batches(engine.mesh, min(engine.micro_batch, count), count)

    def batch(index):
        pixels = normalize(images, jnp.minimum(index, count - 1))
        return _mapped(engine, lambda v: outputs_member(engine, v, pixels), vectors).swapaxes(0, 1)

    return placement.joined(engine.mesh, lax.map(batch, index), count).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnames="engine")
def evaluate(engine: Engine, vectors: Array, images: Images) -> Evaluation:
    """Evaluate flat vectors float32[M, D] on `images`."""
    return _over_devices(engine, _evaluate, vectors, images)


@functools.partial(jax.jit, static_argnames="engine")
def logits(engine: Engine, vectors: Array, images: Images) -> Array:
    """Outputs float32[M, N, classes] of flat vectors float32[M, D] on `images`."""
    return _over_devices(engine, _logits, vectors, images)


def second_moments(engine: Engine, state: Members) -> Array:
    """Adam's second moments float32[M, D], as they are: not divided by 1 - beta2^steps. Zero for
    running statistics, which are no parameters.

    Raises HyperJaxError for an optimiser that has none.
    """
    found = optax.tree_utils.tree_get(state.opt_state, "nu")
    if found is None:
        raise HyperJaxError(f"optimiser {engine.optimizer} has no second moments; adam has")
    kept = _running_statistics(engine.spec)
    return jnp.copy(found) if kept is None else jnp.where(kept[None], 0, found)


# --- placement --------------------------------------------------------------------------


def padded(engine: Engine, count: int) -> int:
    """Smallest number of members >= `count` that the devices divide, or that divides those of
    each process."""
    return placement.padded(engine.mesh, count)


def place_members(engine: Engine, tree: Any, size: int = 0) -> Any:
    """`placement.place_members` on the engine's devices."""
    return placement.place_members(engine.mesh, tree, size)


def place_images(engine: Engine, images: Images) -> Images:
    """One split of images on every device."""
    dtypes = (np.uint8, np.int32, np.float32, np.float32)
    host = Images(*(np.asarray(x, dtype) for x, dtype in zip(images, dtypes, strict=True)))
    return distributed.share(host, engine.mesh)
