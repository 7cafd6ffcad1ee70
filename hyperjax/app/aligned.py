"""The aligned weights that a workdir's models are trained on: in memory, or, where they are many or
several processes need them, in a file of the workdir, of which each process aligns a share."""

import os
import secrets
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hyperjax import distributed
from hyperjax.config import WeightDataConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import weight_data
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.store import checksums, files, workdir, zoo_file
from hyperjax.weights import WeightSpec
from hyperjax.zoo import METRICS, Split, Zoo, snapshot_index

_IN_MEMORY = 2**31  # bytes; more are in a file
_BLOCK_BYTES = 2**26  # that are aligned between two writes


def size(config: WeightDataConfig, members: int, spec: WeightSpec) -> int:
    """Bytes of what is seen of so many members."""
    return 4 * members * len(config.epochs_seen) * spec.num_params


def in_file(size: int) -> bool:
    """Whether aligned weights of so many bytes lie in a file, and only what is used of them in
    memory."""
    return size > _IN_MEMORY or jax.process_count() > 1


def load(
    folder: Path, config: WeightDataConfig, models: Zoo, parts: Split, reference: np.ndarray
) -> WeightData:
    """`weight_data.load`, from the workdir's file where there has to be one. It is made anew if it
    is of other members. Of a folder that cannot be written to by one process, all in memory."""
    count, path = sum(map(len, parts)), workdir.aligned_path(folder)
    alone = jax.process_count() == 1 and not os.access(folder, os.W_OK) and not path.exists()
    if alone or not in_file(size(config, count, models.spec)):
        return weight_data.load(config, models, parts, reference)
    info = {
        "kind": "aligned",
        "reference": checksums.crc32(reference),
        "rows": checksums.crc32(np.concatenate(parts)),
        "aligned": config.align,
        "zoo": models.info,
        "weights": zoo_file.digest(workdir.zoo_path(folder)),
    }
    if not distributed.agree(_is_of(path, info, config)):
        _make(path, info, config, models, np.concatenate(parts), reference)
    made = zoo_file.read(path)
    ends = np.cumsum([len(part) for part in parts])
    vectors = np.split(made.weights, ends[:-1])
    return WeightData(*vectors, quality=np.asarray(made.metrics["val_accuracy"][: ends[0]]))


def _is_of(path: Path, info: dict[str, Any], config: WeightDataConfig) -> bool:
    """Whether the file is there, and of these members. Process 0's answer counts."""
    if not distributed.is_writer() or not path.exists():
        return False
    try:
        found = zoo_file.read(path)
        return found.info == info and found.epochs.tolist() == list(config.epochs_seen)
    except HyperJaxError:
        return False


def remove_damaged(folder: Path) -> None:
    """So that the file is made anew, if it is not what was written. All of it is read."""
    path = workdir.aligned_path(folder)
    if distributed.is_writer() and path.exists():
        try:
            damaged = zoo_file.damaged(path)
        except HyperJaxError:
            damaged = True
        if damaged:
            files.remove(path)
    distributed.barrier(f"{path} is checked")


def _make(
    path: Path,
    info: dict[str, Any],
    config: WeightDataConfig,
    models: Zoo,
    rows: np.ndarray,
    reference: np.ndarray,
) -> None:
    """Align members, each process its share of them."""
    token = distributed.agree(secrets.randbits(31))
    partial = files.partial_of(path, distributed.agree(os.getpid()), token)
    columns = snapshot_index(models, config.epochs_seen)
    if distributed.is_writer():
        files.remove(path)
        ids, epochs = np.asarray(models.members)[rows], np.int32(config.epochs_seen)
        zoo_file.allocate(partial, models.spec, ids, epochs, info)
        zoo_file.sync(partial)
    distributed.barrier(f"{partial} is allocated")
    unknown = np.broadcast_to(np.float32(np.nan), np.shape(models.weights)[:2])
    share = np.array_split(np.arange(len(rows)), jax.process_count())[jax.process_index()]
    rows_each = max(1, _BLOCK_BYTES // size(config, 1, models.spec))
    for places in np.array_split(share, range(rows_each, len(share), rows_each)):
        vectors = weight_data.aligned(config, models, rows[places], reference)
        for number, column in enumerate(columns):
            tensors = {
                f"metrics/{name}": models.metrics.get(name, unknown)[rows[places], column]
                for name in METRICS
            }
            zoo_file.put(partial, places, number, tensors | {"weights": vectors[:, number]})
        zoo_file.seal(partial, places)
    zoo_file.sync(partial)
    distributed.barrier(f"{partial} is whole")
    if distributed.is_writer():
        zoo_file.publish(partial, path)
    distributed.barrier(f"{path} is written")
