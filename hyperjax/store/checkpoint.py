"""Resumable training state through Orbax: the latest checkpoint of each stage.

Orbax is imported where it is used: a finished workdir is loaded without it, and sooner.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax

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
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if isinstance(error, OSError):
        return error
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
    """Restore the checkpoint of `step` with the structure, shapes and sharding of `like`."""
    from orbax.checkpoint import v1 as ocp

    path = Path(folder).absolute()
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
    )
    try:
        with ocp.training.Checkpointer(path) as checkpointer:
            return checkpointer.load(step, abstract)
    except (OSError, ValueError, KeyError) as error:
        raise HyperJaxError(
            f"checkpoint {path}/{step} cannot be restored ({error}); delete that folder to train "
            "this stage again from its start"
        ) from error
