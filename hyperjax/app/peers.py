"""The processes of a run on several hosts: how they find each other, and how one that fails ends
all of them.

A process that waits for another in a collective operation would wait until JAX gives the other one
up, and then end by an abort. So the first that fails leaves its reason in the store that the
processes share, all of them look there, and they end together: with the failing one's error on
every screen, and its exit code. A process that is inside XLA cannot be interrupted and is ended
where it is, as if killed. One that is killed itself says nothing; JAX notices it, after `_LOST`
seconds.
"""

import faulthandler
import json
import os
import sys
import threading
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from hyperjax.errors import HyperJaxError

_LOST = 20  # seconds without a sign of life, after which a process is given up
_SECONDS_BETWEEN_LOOKS = 0.5
_UNWIND = 3.0  # seconds that a process has to come to its end by itself
_TOGETHER = 8.0  # seconds in which the others have to
_LONG = 7 * 24 * 3600.0  # seconds that a process which is done waits for the others at most
_KEY, _BARRIER, _DONE = "hyperjax/failure", "hyperjax/end", "hyperjax/done"
_watching = threading.Event()  # from when this process has joined the others
_ending = threading.Event()  # of this process
_at_once = threading.Event()  # by a thread, wherever it is
_end_once = threading.Lock()  # by the main thread or by the one that looks


class _Failure(NamedTuple):
    process: int  # that failed first
    code: int  # its exit code
    reason: str
    unwind: float  # seconds that the others have to come to their ends by themselves


def join() -> None:
    """Join the other processes of a run; process 0 alone prints.

    Raises HyperJaxError if they are not found or do not answer.
    """
    import jax

    from hyperjax.app import progress

    try:
        numbers = {
            name: int(os.environ[variable])
            for name, variable in (
                ("num_processes", "JAX_NUM_PROCESSES"),
                ("process_id", "JAX_PROCESS_ID"),
            )
            if variable in os.environ
        }
        jax.distributed.initialize(
            **numbers, heartbeat_timeout_seconds=_LOST, shutdown_timeout_seconds=_LOST
        )
    except (RuntimeError, ValueError) as error:
        raise HyperJaxError(
            f"--multihost: cannot join the other processes: {error}. Where no cluster is detected, "
            "set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    # JAX ends a process whose run has lost another one by an abort that says so: no stacks below it
    faulthandler.disable()
    progress.console.quiet = _number() != 0
    _watching.set()
    threading.Thread(target=_watch, daemon=True, name="peers").start()


def joined() -> bool:
    return _watching.is_set()


def leave() -> None:
    """This process is done. It waits for the others, which may still fail."""
    if joined():
        with suppress(Exception):
            _client().wait_at_barrier(_DONE, int(1000 * _LONG))
        _ending.set()


def end(code: int, reason: str, unwind: float = _UNWIND) -> NoReturn:
    """End this process with its exit code, and all others of the run, which have `unwind` seconds
    to come to their ends by themselves."""
    _ending.set()
    with suppress(Exception):  # another one was first, or the store is gone
        _client().key_value_set(_KEY, json.dumps([_number(), code, reason, unwind]))
    end_with_another()
    _exit_together(code)


def end_at_once(code: int, text: str) -> NoReturn:
    """`end` from a thread, wherever this process and the others are; also of a run of one."""
    with suppress(OSError):  # the log may be on the disk that is full
        os.write(2, f"{text}\n".encode())
    if joined():
        _at_once.set()
        last = threading.Timer(2 * _TOGETHER, os._exit, (code,))  # whatever the others do
        last.daemon = True
        last.start()
        end(code, text, unwind=0.0)
    os._exit(code)


def wait_if_ending() -> None:
    """For ever, where a thread is ending this process: what fails meanwhile is a consequence."""
    if _at_once.is_set():
        threading.Event().wait()


def end_without_lease(reason: str) -> NoReturn:
    """Not by an exception: what it would pass through writes to what is another's now."""
    end_at_once(2, f"error: {reason}")


def end_with_another() -> None:
    """End as another process did, if one has failed: what fails here is a consequence."""
    failure = _failure() if joined() else None
    if failure and failure.process != _number():
        _ending.set()
        _exit_together(failure.code, failure)


def _watch() -> None:
    """Wait for a failure of another process. In a thread: the main one may be inside XLA."""
    while not _ending.wait(_SECONDS_BETWEEN_LOOKS):
        failure = _failure()
        if failure and not _ending.wait(failure.unwind):
            _exit_together(failure.code, failure)


def _exit_together(code: int, failure: _Failure | None = None) -> NoReturn:
    """Once all are here, or have been waited for. Process 0 is the last: it has the store, and JAX
    would say at length that it is gone."""
    _end_once.acquire()
    with suppress(Exception):  # the log may be on the disk that is full
        if failure:
            text = f"process {failure.process} of this run ended first: {failure.reason}"
            print(text, file=sys.stderr)
    with suppress(Exception):
        _client().wait_at_barrier(_BARRIER, int(1000 * _TOGETHER))
    if _number() == 0:
        threading.Event().wait(_SECONDS_BETWEEN_LOOKS)
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _failure() -> _Failure | None:
    """The first one."""
    try:
        return _Failure(*json.loads(_client().key_value_try_get(_KEY)))
    except Exception:  # none; or the store is gone, which JAX notices itself
        return None


def _number() -> int:
    """Of this process. Not JAX's own word for it, which would start the devices."""
    from jax._src import distributed

    return distributed.global_state.process_id


def _client() -> Any:
    """The store of JAX's processes, which has no public name."""
    from jax._src import distributed

    return distributed.global_state.client
