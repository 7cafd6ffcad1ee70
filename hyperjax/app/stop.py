"""SIGTERM, which batch systems send before they kill: write a checkpoint, then exit with 75.

Elsewhere a command ends at once. A training loop is `deferred`: the signal waits until it has come
to a point from which it can go on, has saved its state, and calls `leave`.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from hyperjax import distributed

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
_waiting = {"requested": False, "depth": 0}  # of this process, as its signals are


class Terminated(BaseException):
    """The command was asked to stop; the same command goes on from its last checkpoint."""


def install() -> None:
    """Let SIGTERM raise `Terminated`, at once or when a training loop can be left."""
    signal.signal(signal.SIGTERM, _handle)


def _handle(number, frame) -> None:
    _waiting["requested"] = True
    if not _waiting["depth"]:
        raise Terminated


@contextmanager
def deferred() -> Iterator[None]:
    """Code that saves its state and calls `leave` when `requested`."""
    _waiting["depth"] += 1
    try:
        yield
    finally:
        _waiting["depth"] -= 1
    if _waiting["requested"] and not _waiting["depth"]:
        raise Terminated


def requested(due: bool = False) -> bool:
    """Whether to save now: because it is `due` in some process, or to leave because one was asked
    to. All processes have to call this together."""
    return distributed.any_of(_waiting["requested"] or due)


def leave() -> None:
    """Raises `Terminated` if that was asked of some process; the state has been saved."""
    if distributed.any_of(_waiting["requested"]):
        raise Terminated
