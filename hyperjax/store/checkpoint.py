"""Resumable training state through Orbax: the latest checkpoint of each stage.

Orbax is imported where it is used: a finished workdir is loaded without it, and sooner.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hyperjax import distributed
from hyperjax.errors import HyperJaxError
from hyperjax.store.files import cannot_write


def save(folder: str | Path, step: int, state: Any) -> None:
    """Save a pytree of arrays as the one checkpoint in `folder`.

    The older one goes once the new one is whole. Raises HyperJaxError naming the folder if the
    system refuses (a full disk, no permission).
    """
    from orbax.checkpoint import v1 as ocp

    keep_one = ocp.training.preservation_policies.LatestN(1)
    path = Path(folder).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ocp.training.Checkpointer(path, preservation_policy=keep_one) as checkpointer:
            checkpointer.save(step, state)
    except (OSError, ValueError) as error:
        for partial in path.glob(f"{step}.*-tmp"):  # would only take the room that is missing
            shutil.rmtree(partial, ignore_errors=True)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        raise cannot_write(path, _of_system(error), size) from error


def _of_system(error: OSError | ValueError) -> OSError:
    """The system's error in one of TensorStore's, which gives its number in its text."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found is None:
        raise error
    return OSError(int(found[1]), os.strerror(int(found[1])))


def latest_step(folder: str | Path) -> int | None:
    """Step of the checkpoint in `folder`; None if there is none.

    Orbax waits for all processes here: each of them has to call this.
    """
    path = Path(folder).absolute()
    if not path.exists():
        return None
    from orbax.checkpoint import v1 as ocp

    with ocp.training.Checkpointer(path) as checkpointer:
        return None if checkpointer.latest is None else int(checkpointer.latest.step)


def restore(folder: str | Path, step: int, like: Any) -> Any:
    """Restore the checkpoint of `step` with the structure, shapes and sharding of `like`.

    Raises HyperJaxError, naming its folder, if that cannot be done.
    """
    with _opened(Path(folder).absolute(), step) as checkpointer:
        return checkpointer.load(step, _abstract(like))


def restore_members(folder: str | Path, step: int, like: Any) -> Any:
    """`restore` of leaves whose first axis is that of members, saved on any number of devices: it
    is padded by its last rows, or cut."""
    with _opened(Path(folder).absolute(), step) as checkpointer:
        saved = checkpointer.metadata(step).metadata
        count = jax.tree.leaves(saved, is_leaf=lambda leaf: hasattr(leaf, "shape"))[0].shape[0]
        size = len(jax.tree.leaves(like)[0])
        if count == size:
            return checkpointer.load(step, _abstract(like))
        everywhere = jax.tree.map(
            lambda leaf: leaf.update(
                shape=(count, *leaf.shape[1:]),
                sharding=NamedSharding(leaf.sharding.mesh, PartitionSpec()),
            ),
            _abstract(like),
        )
        found = checkpointer.load(step, everywhere)
    rows = np.minimum(np.arange(size), count - 1)
    return jax.tree.map(
        lambda leaf, target: distributed.put(np.asarray(leaf)[rows], target.sharding), found, like
    )


def _abstract(like: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
    )


@contextmanager
def _opened(path: Path, step: int) -> Iterator[Any]:
    """Orbax's checkpointer, whose refusals become errors that name the checkpoint."""
    from orbax.checkpoint import v1 as ocp

    try:
        with ocp.training.Checkpointer(path) as checkpointer:
            yield checkpointer
    except (OSError, ValueError, KeyError) as error:
        if distributed.is_of_transport(error):  # no fault of the checkpoint's
            raise
        raise HyperJaxError(
            f"checkpoint {path}/{step} cannot be restored ({error}); delete that folder to train "
            "this stage again from its start"
        ) from error
