"""Train a population into a zoo file: chunk by chunk, resumable. Used for zoos and fine-tuning."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hyperjax import distributed, population, zoo
from hyperjax.app import progress
from hyperjax.config import Config
from hyperjax.data.images import ImageData
from hyperjax.errors import HyperJaxError
from hyperjax.population import Engine, Members
from hyperjax.population.evaluation import Task, members_per_call
from hyperjax.store import checkpoint, files, zoo_file
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo


class Snapshot(NamedTuple):
    """A population after an epoch, still on the devices."""

    epoch: int
    step: int  # epochs done; 1 if nothing but the initial weights is wanted
    vectors: Array | None  # float32[M, D]; None: an epoch that the zoo does not keep
    metrics: Mapping[str, Array]  # float32[M] each


class Recipe(NamedTuple):
    """How a population comes about."""

    members: np.ndarray  # int64[M]: ids
    epochs: np.ndarray  # int32[E]: snapshots, the last one is the end of training
    key: Key  # root of all members' randomness
    start: Array | None  # float32[M, D]: initial weights; None: initialise by the key
    info: dict[str, Any]


def make_engine(config: Config, spec: WeightSpec, **architecture: Any) -> Engine:
    """Engine for zoo CNNs of `spec`, or another `model` and `draw` of its initial weights."""
    return population.make_engine(
        spec,
        config.zoo.training,
        init=config.zoo.init,
        conv=config.zoo.conv,
        members=config.zoo.members,
        **architecture,
    )


def make_task(engine: Engine, data: ImageData) -> Task:
    splits = (
        population.place_images(engine, split.images, split.labels, data.mean, data.std)
        for split in (data.train, data.val, data.test)
    )
    return Task(engine, *splits)


def make_population(path: Path, recipe: Recipe, config: Config, task: Task, title: str) -> Zoo:
    """Train the population of `recipe` into the file `path`, or read it if it is there.

    A killed call goes on from its last checkpoint and gives the same result.
    """
    recipe = recipe._replace(info=json.loads(json.dumps(recipe.info)))  # as a file returns it
    checkpoints = path.with_suffix(".checkpoints")
    if path.exists():
        made = zoo_file.read(path)
        if not _is_of(made, recipe, task.engine.spec):
            raise HyperJaxError(f"{path} was made with other settings; delete it to make it anew")
    else:
        _train(path, checkpoints, recipe, config, task, title)
        distributed.barrier(f"{path} is written")
        made = zoo_file.read(path)
    files.remove(checkpoints)  # also one left by a kill at the last moment
    return made


def _train(
    path: Path, all_checkpoints: Path, recipe: Recipe, config: Config, task: Task, title: str
) -> None:
    size = config.zoo.chunk_size or members_per_call(task.engine, len(task.train.labels))
    size = population.padded(task.engine, min(size, len(recipe.members)))
    # A checkpoint belongs to one way of cutting the population into chunks.
    partial, checkpoints = path.with_suffix(".partial"), all_checkpoints / str(size)
    target, done = _resume(partial, checkpoints, recipe, task.engine.spec)
    chunks = np.split(np.arange(len(recipe.members)), range(size, len(recipe.members), size))
    steps = max(int(recipe.epochs[-1]), 1)  # of a chunk
    with progress.bar(title, len(chunks) * steps, done) as advance:
        saved = time.monotonic()
        for number, rows in enumerate(chunks):
            first = number * steps
            if done >= first + steps:
                continue
            resume_from = (checkpoints, done) if done > first else None
            waiting: list[Snapshot] = []  # at most one, of which the devices may not be done
            for state, snapshot in train_chunk(
                rows, size, recipe, config, task, resume_from, first
            ):
                # Writing lags an epoch behind: the devices work while it waits for them.
                _write(target, rows, waiting, advance)
                waiting = [snapshot]
                late = distributed.agree(time.monotonic() - saved >= config.checkpoint_seconds)
                if (late and snapshot.step) or (
                    snapshot.step == steps and number + 1 < len(chunks)
                ):
                    _write(target, rows, waiting, advance)
                    waiting = []
                    if target is not None:
                        zoo_file.flush(target)
                    checkpoint.save(checkpoints, first + snapshot.step, state)
                    saved = time.monotonic()
            _write(target, rows, waiting, advance)
    if target is not None:
        zoo_file.flush(target)
        zoo_file.publish(partial, path)


def _is_of(models: Zoo, recipe: Recipe, spec: WeightSpec) -> bool:
    return (
        models.spec == spec
        and models.info == recipe.info
        and np.array_equal(models.members, recipe.members)
        and np.array_equal(models.epochs, recipe.epochs)
    )


def _resume(
    partial: Path, checkpoints: Path, recipe: Recipe, spec: WeightSpec
) -> tuple[Zoo | None, int]:
    """The file to fill, and how many epochs (over all chunks) it already holds.

    Process 0 decides, and it alone has the file.
    """
    target, done = None, checkpoint.latest_step(checkpoints)
    distributed.barrier("the checkpoint is found")  # before process 0 may remove it
    if distributed.is_writer():
        if done is not None and partial.exists():
            target = zoo_file.read(partial, writable=True)
        if target is None or not _is_of(target, recipe, spec):
            files.remove(checkpoints.parent)
            target = zoo_file.allocate(partial, spec, recipe.members, recipe.epochs, recipe.info)
            done = 0
    return target, distributed.agree(done or 0)


def train_chunk(
    rows: np.ndarray,
    size: int,
    recipe: Recipe,
    config: Config,
    task: Task,
    resume_from: tuple[Path, int] | None,
    first: int,
) -> Iterator[tuple[Members, Snapshot]]:
    """Train `rows` of the population, padded to `size`, yielding after every epoch.

    The state of an epoch is gone once the next one is asked for; snapshots stay. `first` is
    the step at which this chunk begins.
    """
    engine, last = task.engine, int(recipe.epochs[-1])
    hyper = population.hyper(recipe.members[rows], config.zoo.training)
    hyper = population.place_members(engine, hyper, size)
    if recipe.start is None:
        state = population.init(engine, recipe.key, hyper)
    else:
        vectors = population.place_members(engine, recipe.start[rows], size)
        state = population.start(engine, vectors, hyper)
    done = 0
    if resume_from is not None:
        state, done = checkpoint.restore(*resume_from, state), resume_from[1] - first
    elif 0 in recipe.epochs:
        train = population.evaluate(engine, state.vectors, task.train)
        yield state, measure(task, state, 0, int(last == 0), train._asdict())
    for epoch in range(done + 1, last + 1):
        state, running = population.train_epoch(
            engine, state, hyper, task.train, recipe.key, jnp.int32(epoch)
        )
        if epoch in recipe.epochs:
            yield state, measure(task, state, epoch, epoch, running)
        else:
            yield state, Snapshot(epoch, epoch, None, running)


def measure(
    task: Task, state: Members, epoch: int, step: int, train: Mapping[str, Array]
) -> Snapshot:
    """Start measuring the population after an epoch; nothing waits for the result."""
    metrics = {f"train_{name}": train[name] for name in ("loss", "accuracy")}
    for part in ("val", "test"):
        result = population.evaluate(task.engine, state.vectors, getattr(task, part))
        metrics |= {f"{part}_loss": result.loss, f"{part}_accuracy": result.accuracy}
    return Snapshot(epoch, step, jnp.copy(state.vectors), metrics)


def _write(
    target: Zoo | None,
    rows: np.ndarray,
    snapshots: list[Snapshot],
    advance: Callable[[int, str], None],
) -> None:
    """Wait for snapshots, write them into the zoo file, and tell the progress bar."""
    for epoch, step, vectors, metrics in snapshots:
        note = ""
        values = {name: value[: len(rows)] for name, value in distributed.fetch(metrics).items()}
        if vectors is not None:
            vectors = distributed.fetch(vectors)[: len(rows)]
            accuracy = values["val_accuracy"]
            note = f"epoch {epoch}, validation accuracy {100 * np.nanmean(accuracy):.1f} %"
            if target is not None:
                column = int(np.searchsorted(target.epochs, epoch))
                target.weights[rows, column] = vectors
                for name in zoo.METRICS:
                    target.metrics[name][rows, column] = values[name]
        advance(min(step, 1), note)
