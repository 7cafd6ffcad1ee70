"""SIGTERM, which batch systems send before they kill, and SIGINT, Ctrl-C: write a checkpoint at the
next safe point, then exit with 75.

Elsewhere a command ends at once. A training loop is `deferred`: the signal waits until it has come
to a point from which it can go on, has saved its state, and calls `leave`. Where that takes longer
than the grace, or Ctrl-C is pressed again, the process ends where it is.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from hyperjax.app import peers

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
GRACE = 30.0  # seconds
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GO_ON = "the same command goes on from the last checkpoint"
TOLD = f"told to stop; {_GO_ON}"
# of this process, as its signals are
_waiting = {"requested": False, "raised": False, "depth": 0, "grace": None}


class Terminated(BaseException):
    """The command was asked to stop; the same command goes on from its last checkpoint."""


def install(grace: float = GRACE) -> None:
    """Let SIGTERM and SIGINT raise `Terminated`, at once or when a training loop can be left; after
    `grace` seconds the process ends wherever it is. May be called again."""
    if _waiting["grace"] is None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader,), daemon=True, name="stop").start()
    _waiting["grace"] = grace
    for number in _SIGNALS:
        signal.signal(number, _handle)


def exit_stopped() -> NoReturn:
    """Say how to go on, and exit with the code that says so too."""
    print(TOLD, file=sys.stderr)
    sys.exit(EXIT_CODE)


def ignore() -> None:
    """The command is over. Python gives signals back their own effect while it cleans up: the exit
    code of one that is done would be that of one that was killed."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number, frame) -> None:
    if not _waiting["requested"]:  # once: a second one must not interrupt what the first one ends
        _waiting["requested"] = True
        if not _waiting["depth"]:
            _waiting["raised"] = True
            raise Terminated


def interrupted() -> bool:
    """Whether `Terminated` was raised in the middle of something: an error that comes after it is
    what it has become on its way. A C extension that it stops from loading says ImportError."""
    return _waiting["raised"]


def _watch(pipe: int) -> None:
    """End the process if it does not end itself. In a thread: the main one handles no signal while
    XLA compiles."""
    while os.read(pipe, 1)[0] not in _SIGNALS:
        pass
    start, why = time.monotonic(), f"not at a safe point within {_waiting['grace']:g} s"
    if _waiting["depth"]:
        words = f"stopping at the next safe point, within {_waiting['grace']:g} s; Ctrl-C: at once"
        with suppress(OSError):  # the log may be on the disk that is full
            os.write(2, f"{words}\n".encode())
    while (left := start + _waiting["grace"] - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0] and os.read(pipe, 1)[0] == signal.SIGINT:
            why = "told so twice"
            break
    peers.end_at_once(EXIT_CODE, f"stopped at once, {why}; {_GO_ON}")


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


def told() -> bool:
    """Whether this process was asked to stop."""
    return _waiting["requested"]


def requested(due: bool = False) -> bool:
    """Whether to save now: because it is `due` in some process, or to leave because one was asked
    to. All processes have to call this together."""
    from hyperjax import distributed  # JAX: the handlers are there before it is

    return distributed.any_of(_waiting["requested"] or due)


def leave() -> None:
    """Raises `Terminated` if that was asked of some process; the state has been saved."""
    from hyperjax import distributed

    if distributed.any_of(_waiting["requested"]):
        raise Terminated
