"""Train a population into a zoo file: chunk by chunk, resumable. Used for zoos and fine-tuning."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import population, zoo
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError
from hyperjax.io import checkpoint, progress, zoo_file
from hyperjax.io.images import ImageData
from hyperjax.lab import Lab, members_per_call
from hyperjax.population import Members
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo


class Recipe(NamedTuple):
    """How a population comes about."""

    members: np.ndarray  # int64[M]: ids
    epochs: np.ndarray  # int32[E]: snapshots, the last one is the end of training
    key: Key  # root of all members' randomness
    start: Array | None  # float32[M, D]: initial weights; None: initialise by the key
    info: dict[str, Any]


def make_lab(config: Config, spec: WeightSpec, data: ImageData) -> Lab:
    engine = population.make_engine(
        spec,
        config.zoo.training,
        init=config.zoo.init,
        conv=config.zoo.conv,
        members=config.zoo.members,
    )
    splits = (
        population.place_images(engine, split.images, split.labels, data.mean, data.std)
        for split in (data.train, data.val, data.test)
    )
    return Lab(engine, *splits)


def make_population(path: Path, recipe: Recipe, config: Config, lab: Lab, title: str) -> Zoo:
    """Train the population of `recipe` into the file `path`, or read it if it is there.

    A killed call goes on from its last checkpoint and gives the same result.
    """
    recipe = recipe._replace(info=json.loads(json.dumps(recipe.info)))  # as a file returns it
    all_checkpoints = path.with_suffix(".checkpoints")
    if path.exists():
        made = zoo_file.read(path)
        if not _is_of(made, recipe, lab.engine.spec):
            raise HyperJaxError(f"{path} was made with other settings; delete it to make it anew")
        shutil.rmtree(all_checkpoints, ignore_errors=True)  # left by a kill at the last moment
        return made
    size = config.zoo.chunk_size or members_per_call(lab)
    size = population.padded(lab.engine, min(size, len(recipe.members)))
    # A checkpoint belongs to one way of cutting the population into chunks.
    partial, checkpoints = path.with_suffix(".partial"), all_checkpoints / str(size)
    target, done = _resume(partial, checkpoints, recipe, lab.engine.spec)
    chunks = np.split(np.arange(len(recipe.members)), range(size, len(recipe.members), size))
    steps = max(int(recipe.epochs[-1]), 1)  # of a chunk
    with progress.bar(title, len(chunks) * steps, done) as advance:
        saved = time.monotonic()
        for number, rows in enumerate(chunks):
            first = number * steps
            if done >= first + steps:
                continue
            resume_from = (checkpoints, done) if done > first else None
            for epoch, state, note in train_chunk(
                target, rows, size, recipe, config, lab, resume_from, done - first
            ):
                advance(1, note)
                late = time.monotonic() - saved >= config.checkpoint_seconds
                if late or (epoch == recipe.epochs[-1] and number + 1 < len(chunks)):
                    zoo_file.flush(target)
                    checkpoint.save(checkpoints, first + max(epoch, 1), state)
                    saved = time.monotonic()
    zoo_file.flush(target)
    zoo_file.publish(partial, path)
    shutil.rmtree(all_checkpoints, ignore_errors=True)
    return zoo_file.read(path)


def _is_of(models: Zoo, recipe: Recipe, spec: WeightSpec) -> bool:
    return (
        models.spec == spec
        and models.info == recipe.info
        and np.array_equal(models.members, recipe.members)
        and np.array_equal(models.epochs, recipe.epochs)
    )


def _resume(partial: Path, checkpoints: Path, recipe: Recipe, spec: WeightSpec) -> tuple[Zoo, int]:
    """The file to fill, and how many epochs (over all chunks) it already holds."""
    done = checkpoint.latest_step(checkpoints)
    if done is not None and partial.exists():
        target = zoo_file.read(partial, writable=True)
        if _is_of(target, recipe, spec):
            return target, done
    shutil.rmtree(checkpoints.parent, ignore_errors=True)
    return zoo_file.allocate(partial, spec, recipe.members, recipe.epochs, recipe.info), 0


def train_chunk(
    target: Zoo,
    rows: np.ndarray,
    size: int,
    recipe: Recipe,
    config: Config,
    lab: Lab,
    resume_from: tuple[Path, int] | None,
    done: int,
) -> Iterator[tuple[int, Members, str]]:
    """Train `rows` of `target`, yielding (epoch, state, note) after every epoch."""
    engine, last = lab.engine, int(recipe.epochs[-1])
    hyper = population.hyper(recipe.members[rows], config.zoo.training)
    hyper = population.place_members(engine, hyper, size)
    if recipe.start is None:
        state = population.init(engine, recipe.key, hyper)
    else:
        vectors = population.place_members(engine, recipe.start[rows], size)
        state = population.start(engine, vectors, hyper)
    if resume_from is not None:
        state = checkpoint.restore(*resume_from, state)
    else:
        done = 0
        if 0 in recipe.epochs:
            train = population.evaluate(engine, state.vectors, lab.train)
            record(target, rows, 0, lab, state, train._asdict())
        if last == 0:
            yield 0, state, ""
    for epoch in range(done + 1, last + 1):
        state, running = population.train_epoch(
            engine, state, hyper, lab.train, recipe.key, jnp.int32(epoch)
        )
        jax.block_until_ready(running)  # the bar shows what is done, not what is queued
        note = ""
        if epoch in recipe.epochs:
            record(target, rows, epoch, lab, state, running)
            accuracy = target.metrics["val_accuracy"][rows, np.searchsorted(target.epochs, epoch)]
            note = f"epoch {epoch}, validation accuracy {100 * np.nanmean(accuracy):.1f} %"
        yield epoch, state, note


def record(
    target: Zoo,
    rows: np.ndarray,
    epoch: int,
    lab: Lab,
    state: Members,
    train: Mapping[str, Array],
) -> None:
    """Write a snapshot and its metrics into the zoo file."""
    column, count = int(np.searchsorted(target.epochs, epoch)), len(rows)
    val = population.evaluate(lab.engine, state.vectors, lab.val)
    test = population.evaluate(lab.engine, state.vectors, lab.test)
    named = {"train": train, "val": val._asdict(), "test": test._asdict()}
    target.weights[rows, column] = np.asarray(state.vectors)[:count]
    for name in zoo.METRICS:
        split, metric = name.split("_")
        target.metrics[name][rows, column] = np.asarray(named[split][metric])[:count]
