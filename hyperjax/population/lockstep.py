"""Populations trained in lock step, epoch by epoch: zoos, and networks that are fine-tuned."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import distributed
from hyperjax.config import TrainingConfig, ZooConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models import architectures, sequential
from hyperjax.population import engine as engines
from hyperjax.population.engine import Engine, Hyper, Members
from hyperjax.population.evaluation import Task, make_task, members_per_call
from hyperjax.types import Array, Images, Key
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo


class Recipe(NamedTuple):
    """How a population comes about."""

    members: np.ndarray  # int64[M]: ids
    epochs: np.ndarray  # int32[E]: snapshots, the last one is the end of training
    key: Key  # root of all members' randomness
    start: Array | None  # float32[M, D]: initial weights; None: initialise by the key
    info: dict[str, Any]
    tested: str = "every"  # snapshot has test metrics, or the "last" alone; others have NaN
    moments: bool = False  # whether snapshots have Adam's second moments


class Snapshot(NamedTuple):
    """A population after an epoch, still on the devices."""

    epoch: int
    step: int  # epochs done; 1 if nothing but the initial weights is wanted
    vectors: Array | None  # float32[M, D]; None: an epoch that the zoo does not keep
    metrics: Mapping[str, Array]  # float32[M] each
    moments: Array | None = None  # float32[M, D]: Adam's second moments


def start(
    task: Task, recipe: Recipe, training: TrainingConfig, rows: np.ndarray, size: int
) -> tuple[Members, Hyper]:
    """`rows` of a population before its first step, padded to `size` members."""
    hyper = engines.hyper(recipe.members[rows], training)
    hyper = engines.place_members(task.engine, hyper, size)
    if recipe.start is None:
        return engines.init(task.engine, recipe.key, hyper), hyper
    vectors = engines.place_members(task.engine, recipe.start[rows], size)
    return engines.start(task.engine, vectors, hyper), hyper


def train(
    task: Task, recipe: Recipe, state: Members, hyper: Hyper, done: int = 0
) -> Iterator[tuple[Members, Snapshot]]:
    """Train on from a state after `done` epochs, yielding after every epoch.

    The state of an epoch is gone once the next one is asked for; snapshots stay.
    """
    last = int(recipe.epochs[-1])
    if not done and 0 in recipe.epochs:
        untrained = engines.evaluate(task.engine, state.vectors, task.train)._asdict()
        step, tested = int(last == 0), recipe.tested == "every" or last == 0
        first = Snapshot(0, step, None, untrained)
        yield state, measure(task, state, first, tested, recipe.moments)
    for epoch in range(done + 1, last + 1):
        state, running = engines.train_epoch(
            task.engine, state, hyper, task.train, recipe.key, jnp.int32(epoch)
        )
        trained = Snapshot(epoch, epoch, None, running)
        if epoch in recipe.epochs:
            tested = recipe.tested == "every" or epoch == last
            trained = measure(task, state, trained, tested, recipe.moments)
        yield state, trained


def measure(
    task: Task, state: Members, trained: Snapshot, tested: bool = True, moments: bool = False
) -> Snapshot:
    """Start measuring the population after an epoch, of which training tells its part; nothing
    waits for the result. Not `tested`, it has NaN for its test metrics."""
    metrics = {f"train_{name}": trained.metrics[name] for name in ("loss", "accuracy")}
    for part in ("val", "test"):
        images = getattr(task, part)
        if images is None:
            continue
        if part == "val" or tested:
            result = engines.evaluate(task.engine, state.vectors, images)
            loss, accuracy = result.loss, result.accuracy
        else:
            loss = accuracy = np.full(len(state.vectors), np.nan, np.float32)
        metrics |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
    second = engines.second_moments(task.engine, state) if moments else None
    return trained._replace(vectors=jnp.copy(state.vectors), metrics=metrics, moments=second)


# --- in memory ----------------------------------------------------------------------------


def train_zoo(images: Any, config: ZooConfig, key: Key) -> Zoo:
    """A zoo: networks that differ by their seed alone, trained from scratch, with snapshots.

    Args:
      images: a data set with `train`, `val` and `test` images (`Run.images`), or `Images`, whose
        zoo then has no metrics but those of training.
      config: size, epochs, initialisation and hyper-parameters.
      key: the root of all members' initial weights and orders of images.

    >>> small = dataclasses.replace(config.zoo, num_members=3, epochs=1)
    >>> hj.train_zoo(images, small, jax.random.key(0)).weights.shape
    (3, 2, 2464)
    """
    spec = architecture_of(config, images)
    task = make_task(make_engine(config, spec), images)
    epochs = np.array(config.snapshots or range(config.epochs + 1), np.int32)
    recipe = Recipe(
        np.arange(config.num_members), epochs, key, None, {"kind": "zoo"}, config.tested,
        config.save_moments,
    )  # fmt: skip
    return _collect(task, recipe, config.training)


def finetune(
    weights: Zoo | Array,
    images: Any,
    training: ZooConfig | TrainingConfig,
    *,
    epochs: int | Sequence[int],
    key: Key,
    spec: WeightSpec | None = None,
) -> Zoo:
    """Train given networks on, all in one vectorised pass, each in its own order of images.

    Args:
      weights: float32[M, D], or a `Zoo`, whose last snapshots start.
      images: a data set with `train`, `val` and `test` images, or `Images` to train on.
      training: the optimiser and its settings. Those of a zoo (`ZooConfig`) also say, by their
        activation, what network of that zoo an array of weights is.
      epochs: their number, each of which is kept; or those that are kept.
      key: of the orders of images.
      spec: the networks' architecture, where neither `weights` nor `training` tell.

    Returns their weights and metrics at epoch 0 (as given) and after.

    Raises HyperJaxError if the weights do not fit the images, or it is not known what they are.

    >>> tuned = hj.finetune(zoo, images, config.zoo, epochs=1, key=jax.random.key(1))
    >>> tuned.weights.shape, sorted(tuned.metrics)[:2]
    ((4, 2, 2464), ['test_accuracy', 'test_loss'])
    """
    shape = np.shape(_train_images(images).pixels)[1:]
    if isinstance(weights, Zoo):
        weights, spec = np.asarray(weights.weights[:, -1]), weights.spec
    elif spec is None and isinstance(training, ZooConfig):
        spec = architecture_of(training, images)
    if spec is None:
        raise HyperJaxError("finetune: what networks are these? Give a Zoo, or their spec")
    sequential.output_sizes(spec)
    kept = sorted({*(range(epochs + 1) if np.ndim(epochs) == 0 else epochs)})
    if not kept or kept[0] < 0:
        raise HyperJaxError(f"finetune: epochs = {epochs}; expected their number, or which to keep")
    weights = np.asarray(weights, np.float32)
    if (
        weights.ndim != 2
        or not len(weights)
        or weights.shape[1] != spec.num_params
        or (*spec.image_size, spec.channels) != shape
    ):
        raise HyperJaxError(
            f"finetune: weights of shape {weights.shape} and images of shape {shape}; expected "
            f"[M, {spec.num_params}] and {(*spec.image_size, spec.channels)}"
        )
    config = training if isinstance(training, ZooConfig) else ZooConfig(training=training)
    task = make_task(make_engine(config, spec), images)
    recipe = Recipe(np.arange(len(weights)), np.array(kept, np.int32), key, weights,
                    {"kind": "finetuned"}, moments=config.save_moments)  # fmt: skip
    return _collect(task, recipe, config.training)


def architecture_of(config: ZooConfig, images: Any) -> WeightSpec:
    """The architecture of a zoo's members, for a data set or `Images`.

    Raises HyperJaxError if it is not known, or does not take the images.
    """
    train = _train_images(images)
    *size, channels = np.shape(train.pixels)[1:]
    return architectures.architecture(
        config.model, channels=channels, activation=config.activation, image_size=tuple(size),
        classes=getattr(images, "classes", int(np.max(train.labels)) + 1), widths=config.widths,
    )  # fmt: skip


def make_engine(config: ZooConfig, spec: WeightSpec, **architecture: Any) -> Engine:
    """Engine for networks of `spec`, or another `model` and `draw` of its initial weights."""
    return engines.make_engine(
        spec, config.training, init=config.init, conv=config.conv, mapping=config.mapping,
        **architecture,
    )  # fmt: skip


def _train_images(images: Any) -> Images:
    return images if isinstance(images, Images) else images.train


def _collect(task: Task, recipe: Recipe, training: TrainingConfig) -> Zoo:
    """All snapshots of a population, as many members at once as a call should have."""
    count = len(recipe.members)
    size = min(members_per_call(task.engine, len(task.train.labels)), count)
    size, parts = engines.padded(task.engine, size), []
    for begin in range(0, count, size):
        rows = np.arange(begin, min(begin + size, count))
        kept = [
            distributed.fetch((snapshot.vectors, dict(snapshot.metrics), snapshot.moments))
            for _, snapshot in train(task, recipe, *start(task, recipe, training, rows, size))
            if snapshot.vectors is not None
        ]
        parts.append(jax.tree.map(lambda *x: np.stack(x, axis=1), *kept))
    # the last part is padded
    vectors, metrics, moments = jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)
    return Zoo(
        spec=task.engine.spec,
        weights=vectors,
        epochs=recipe.epochs,
        members=recipe.members,
        metrics=metrics,
        info=recipe.info,
        second_moments=moments,
    )
