"""Train a population into a zoo file: chunk by chunk, resumable. Used for zoos and fine-tuning."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax import distributed, zoo
from hyperjax.app import progress, stop
from hyperjax.config import Config, ZooConfig, build, to_dict
from hyperjax.errors import HyperJaxError
from hyperjax.population import lockstep, padded
from hyperjax.population.evaluation import Task, members_per_call
from hyperjax.population.lockstep import Recipe, Snapshot
from hyperjax.store import checkpoint, checksums, files, zoo_file
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo

# fields of ZooConfig that no weight of a zoo depends on
HOW = ("conv", "mapping", "chunk_size", "split", "save_moments", "repair")


def make_population(path: Path, recipe: Recipe, config: Config, task: Task, title: str) -> Zoo:
    """Train the population of `recipe` into the file `path`, or read it if it is there.

    A killed call goes on from its last checkpoint and gives the same result.
    """
    recipe = _as_read(recipe)
    checkpoints = path.with_suffix(".checkpoints")
    if distributed.exists(path):
        made = zoo_file.read(path)
        if not _is_of(made, recipe, task.engine.spec):
            raise _of_others(path)
    else:
        with stop.deferred():  # from before there is a file: what has begun can be gone on with
            _train(path, checkpoints, recipe, config, task, title)
        distributed.barrier(f"{path} is written")
        made = zoo_file.read(path)
    files.remove(checkpoints)  # also one left by a kill at the last moment
    return made


def _as_read(recipe: Recipe) -> Recipe:
    """With the info as a file returns it."""
    return recipe._replace(info=json.loads(json.dumps(recipe.info)))


def _of_others(path: Path) -> HyperJaxError:
    return HyperJaxError(f"{path} was made with other settings; delete it to make it anew")


def content(config: ZooConfig) -> dict[str, Any]:
    """What a zoo's weights depend on."""
    return {name: value for name, value in to_dict(config).items() if name not in HOW}


def _train(
    path: Path, all_checkpoints: Path, recipe: Recipe, config: Config, task: Task, title: str
) -> None:
    size, begun = chunk_size(config, task, len(recipe.members)), _size_begun(all_checkpoints)
    # A checkpoint belongs to one way of cutting the population into chunks, on any devices.
    # of a zoo alone: a fine-tuning has no say in it, and goes on as it was begun
    asked = 0 if recipe.info.get("kind") == "finetuned" else config.zoo.chunk_size
    if begun and asked and begun not in (size, asked):  # what begun by itself may be padded
        raise HyperJaxError(
            f"config field zoo.chunk_size: got {asked}, but {path} was begun with "
            f"chunks of {begun}; go on with these, or delete {all_checkpoints} to begin anew"
        )
    size = begun or size
    partial, checkpoints = path.with_suffix(".partial"), all_checkpoints / str(size)
    done = _resume(partial, checkpoints, recipe, task.engine.spec)
    chunks = np.split(np.arange(len(recipe.members)), range(size, len(recipe.members), size))
    steps = max(int(recipe.epochs[-1]), 1)  # of a chunk
    with progress.bar(title, len(chunks) * steps, done) as advance:
        saved = time.monotonic()
        for number, rows in enumerate(chunks):
            first = number * steps
            if done >= first + steps:
                continue
            begin, hyper = lockstep.start(task, recipe, config.zoo.training, rows, size)
            if done > first:
                begin = checkpoint.restore_members(checkpoints, done, begin)
            waiting: list[Snapshot] = []  # at most one, of which the devices may not be done
            for state, snapshot in lockstep.train(task, recipe, begin, hyper, max(done - first, 0)):
                # Writing lags an epoch behind: the devices work while it waits for them.
                _write(partial, recipe, rows, waiting, advance)
                waiting = [snapshot]
                due = time.monotonic() - saved >= config.checkpoint_seconds
                whole = snapshot.step == steps and number + 1 < len(chunks)
                if snapshot.step and (stop.requested(due) or whole):
                    _write(partial, recipe, rows, waiting, advance)
                    waiting = []
                    zoo_file.sync(partial)
                    checkpoint.save(checkpoints, first + snapshot.step, state)
                    saved = time.monotonic()
                    stop.leave()
            _write(partial, recipe, rows, waiting, advance)
    zoo_file.sync(partial)
    distributed.barrier(f"{partial} is whole")
    if distributed.is_writer():
        zoo_file.publish(partial, path)


def chunk_size(config: Config, task: Task, members: int) -> int:
    """How many of them are trained together."""
    if config.zoo.chunk_size:
        return min(config.zoo.chunk_size, members)
    size = members_per_call(task.engine, len(task.train.labels))
    return padded(task.engine, min(size, members))


def _size_begun(checkpoints: Path) -> int:
    """That of the chunks of an earlier command, on other devices perhaps; 0: there is none. Process
    0 decides."""
    found = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
    return distributed.agree(found[0] if found else 0)


def repair_population(path: Path, recipe: Recipe, config: Config, task: Task, title: str) -> None:
    """Train the members anew whose part of the file `path` is damaged; the others stay as they are.

    They become what they were, to the bit on the same devices: the file's checksums tell. A killed
    call leaves them damaged, and the same call begins anew.

    Raises HyperJaxError if the file was made by another recipe.
    """
    recipe, spec = _as_read(recipe), task.engine.spec
    if distributed.is_writer():
        _restore_frame(path, recipe, spec)
    distributed.barrier(f"{path} has its frame")
    found = zoo_file.damaged(path)
    if found is None:
        progress.console.print(f"{path} has no checksums: what is damaged is not known")
        return
    rows = np.unique(np.concatenate([[], *found.values()])).astype(int)
    distributed.barrier(f"{path} is checked")
    if len(rows):
        _train_rows(path, rows, recipe, config, task, title)
    zoo_file.sync(path)
    distributed.barrier(f"{path} is repaired")
    left = zoo_file.damaged(path)
    others = np.unique(np.concatenate([[], *left.values()])).astype(int)
    distributed.barrier(f"{path} is checked again")
    if distributed.is_writer():
        zoo_file.seal(path, others)
        zoo_file.sync(path)
    text = f"trained members in rows {checksums.ranges(rows)} anew" if len(rows) else "is whole"
    if len(others):
        text += f"; {checksums.ranges(others)} are no more what they were to the bit"
    progress.console.print(f"{path}: {text}")


def _restore_frame(path: Path, recipe: Recipe, spec: WeightSpec) -> None:
    """See to it that everything is as it was but for the data of trained tensors."""
    about = None
    with suppress(HyperJaxError):  # its header is damaged
        about = zoo_file.about(path)
    if about and (about[0], _comparable(about[1])) != (spec, _comparable(recipe.info)):
        raise _of_others(path)
    try:
        target = zoo_file.read(path, writable=True)
    except HyperJaxError as error:
        progress.console.print(f"{error}: restoring what holds the members")
        frame = zoo_file.blank(
            spec, recipe.members, recipe.epochs, recipe.info, moments=recipe.moments
        )
        zoo_file.restore_frame(path, frame)
        target = zoo_file.read(path, writable=True)
    shape, kept = target.weights.shape[:2], target.second_moments is not None
    if (shape, kept) != ((len(recipe.members), len(recipe.epochs)), recipe.moments):
        raise _of_others(path)
    target.members[:], target.epochs[:] = recipe.members, recipe.epochs
    zoo_file.flush(target)


def _train_rows(
    path: Path, rows: np.ndarray, recipe: Recipe, config: Config, task: Task, title: str
) -> None:
    """Where members run one after another, the program of one does not depend on their number, if
    they are no fewer than the devices; where they run at once it does. As many are trained as
    were, or as are enough."""
    size = chunk_size(config, task, len(recipe.members))
    if task.engine.mapping == "map":
        size = min(size, padded(task.engine, max(len(rows), task.engine.mesh.size)))
    parts, steps = np.split(rows, range(size, len(rows), size)), max(int(recipe.epochs[-1]), 1)
    with progress.bar(f"repair {title}", len(parts) * steps) as advance:
        for part in parts:
            state, hyper = lockstep.start(task, recipe, config.zoo.training, part, size)
            for _, snapshot in lockstep.train(task, recipe, state, hyper):
                _write(path, recipe, part, [snapshot], advance, seal=False)


def _is_of(models: Zoo, recipe: Recipe, spec: WeightSpec) -> bool:
    return (
        models.spec == spec
        and _comparable(models.info) == _comparable(recipe.info)
        and np.array_equal(models.members, recipe.members)
        and np.array_equal(models.epochs, recipe.epochs)
        and (models.second_moments is not None) == recipe.moments
    )


def _comparable(info: dict[str, Any]) -> dict[str, Any]:
    """A file's info with all fields of a zoo's configuration: those that an older version did not
    have yet, and that hence say nothing, with their defaults."""
    if "zoo" not in info:
        return info
    return info | {"zoo": content(build(ZooConfig, info["zoo"], "zoo."))}


def _resume(partial: Path, checkpoints: Path, recipe: Recipe, spec: WeightSpec) -> int:
    """See to it that there is a file to fill. Returns how many epochs (over all chunks) it already
    holds. Process 0 decides."""
    done = checkpoint.latest_step(checkpoints)
    distributed.barrier("the checkpoint is found")  # before process 0 may remove it
    if distributed.is_writer():
        begun = done is not None and partial.exists()
        # writable: what is small and only read is checked, and this is not sealed yet
        if not begun or not _is_of(zoo_file.read(partial, writable=True), recipe, spec):
            files.remove(checkpoints.parent)
            zoo_file.allocate(
                partial, spec, recipe.members, recipe.epochs, recipe.info, moments=recipe.moments
            )
            zoo_file.sync(partial)  # what is left in its memory map would cover others' members
            done = 0
    return distributed.agree(done or 0)


def _write(
    path: Path,
    recipe: Recipe,
    rows: np.ndarray,
    snapshots: list[Snapshot],
    advance: Callable[[int, str], None],
    *,
    seal: bool = True,
) -> None:
    """Wait for snapshots, write this process's members of them into the zoo file, with their
    checksums after the last one, and tell the progress bar."""
    for epoch, step, vectors, metrics, moments in snapshots:
        note = ""
        values = {name: value[: len(rows)] for name, value in distributed.fetch(metrics).items()}
        if vectors is not None:
            accuracy = values["val_accuracy"]
            note = f"epoch {epoch}, validation accuracy {100 * np.nanmean(accuracy):.1f} %"
            column = int(np.searchsorted(recipe.epochs, epoch))
            kept = {"weights": vectors} | ({} if moments is None else {"second_moments": moments})
            for first, tensors in distributed.own_parts(kept):
                own = rows[first : first + len(tensors["weights"])]
                if not len(own):  # all of them are padding
                    continue
                tensors = {name: found[: len(own)] for name, found in tensors.items()}
                tensors |= {
                    f"metrics/{n}": values[n][first : first + len(own)] for n in zoo.METRICS
                }
                zoo_file.put(path, own, column, tensors)
                if seal and epoch == recipe.epochs[-1]:
                    zoo_file.seal(path, own)
        advance(min(step, 1), note)
