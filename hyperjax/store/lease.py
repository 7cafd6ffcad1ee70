"""Who may write a folder: a lease, one small file, right also where a file system has no locks.

It is created by O_EXCL and touched every few seconds. A holder on this machine is dead when its
process is, on another one when the file has not changed for a minute of looking at it: clocks are
never compared. Only who creates the file TICKET, named after the dead holder's token, may put the
lease in its place, so that one of many who find it dead gets it; a ticket is itself a lease, in
case its owner dies.
"""

import datetime
import errno
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hyperjax import distributed
from hyperjax.errors import HyperJaxError

BEAT = 5.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which a holder on another machine is dead
_POLL = 0.5  # seconds between two looks
_REFUSED, _WATCHING, _TAKEN = range(3)


class _Seen(NamedTuple):
    """What a lease file says."""

    token: str  # of the holder; where the file cannot be understood, of its last change
    holder: dict[str, Any]
    touched: int  # changes with every sign of life


class _Watch(NamedTuple):
    """What looking at a lease file again and again has shown."""

    token: str
    touched: int
    looks: int  # since it last changed
    alive: bool  # it has changed, or its process was there


@contextmanager
def held(
    path: Path,
    what: str | os.PathLike,
    command: str = "",
    *,
    wait: float = 0.0,
    say: Callable[[str], None] = print,
    beat: float = BEAT,
    stale: float = STALE,
    lost: Callable[[str], None] | None = None,
    alone: bool = False,
) -> Iterator[None]:
    """Hold the lease file `path` over `what`, of which errors speak.

    Args:
      command: what the holder is said to run.
      wait: seconds to wait for a living holder, `math.inf` for as long as it takes. A dead one is
        waited for anyway: on another machine it takes `stale` seconds to tell.
      say: is told what is waited for.
      beat: seconds between two signs of life.
      lost: is called, in a thread, when another process has taken the lease, which it may when
        this one gave no sign of life for `stale` seconds; by default the process ends with 2.

      alone: process 0 of a run comes here by itself; otherwise all come together, and it has the
        lease.

    Raises HyperJaxError naming the holder if there still is one, or if the file cannot be written.
    """
    own, done = _describe(command), threading.Event()
    try:
        _acquire(path, what, own, wait, stale, say, alone)
        if distributed.is_writer():
            about = (path, what, own["token"], beat, stale, done, lost or _end)
            threading.Thread(target=_keep, args=about, daemon=True, name="lease").start()
        yield
    finally:
        done.set()
        kept = _release(path, own["token"])
    if distributed.is_writer() and not kept:  # since the last look at it
        raise HyperJaxError(_loss(path, what))


def _describe(command: str) -> dict[str, Any]:
    return {
        "token": secrets.token_hex(8),
        "host": os.uname().nodename,
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def _machine() -> str:
    """Where process numbers mean the same: one boot of one kernel, one container. "": not known,
    outside Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did, 0 if it has ended and is yet to be
    collected; None: there is none, or it cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _is_running(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process is there; None: that cannot be told from here."""
    if not _machine() or holder.get("machine") != _machine():
        return None
    started = _started(holder["pid"])
    if started is not None:
        return started == holder.get("started")
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return None  # another user's, where /proc shows one's own alone


def _acquire(
    path: Path,
    what: Any,
    own: dict[str, Any],
    wait: float,
    stale: float,
    say: Callable,
    alone: bool,
) -> None:
    watched: dict[Path, _Watch] = {}
    start, told = time.monotonic(), False
    while True:
        state, problem = _WATCHING, None
        if distributed.is_writer():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if _take(path, own, watched, stale):
                    state = _TAKEN
                elif _is_alive(path, watched) and time.monotonic() - start >= wait:
                    state = _REFUSED
            except OSError as error:
                state, problem = _REFUSED, error
        if not alone:  # each look together: no process waits long for another
            state = distributed.agree(state)
        if problem is not None:
            reason = problem.strerror or problem
            raise HyperJaxError(f"cannot write to {path.parent}: {reason}") from problem
        if state == _TAKEN:
            return
        if state == _REFUSED:
            raise HyperJaxError(f"{_who(path, what)}; --wait=SECONDS waits for it")
        if not told and distributed.is_writer():
            say(f"{_who(path, what)}; waiting for it")
            told = True
        time.sleep(_POLL)


def _who(path: Path, what: str | os.PathLike) -> str:
    try:
        seen = _read(path)
    except OSError:
        seen = None
    if seen is None or not seen.holder:
        return f"{what} is in use by another command"
    holder = seen.holder
    command = f" ({holder['command']})" if holder.get("command") else ""
    return (
        f"{what} is in use by process {holder['pid']} on {holder.get('host')}{command} since "
        f"{holder.get('since')}"
    )


def _take(path: Path, own: dict[str, Any], watched: dict[Path, _Watch], stale: float) -> bool:
    """One attempt at a lease file. `watched` is what earlier ones saw."""
    if _create(path, own):
        return True
    seen = _read(path)
    if seen is None or not _is_dead(path, seen, watched, stale):
        return False
    ticket = path.with_name(f"{path.name}-{seen.token}")
    if not _take(ticket, own, watched, stale):
        return False
    now = _read(path)
    if now is not None and now.token == seen.token:  # and nobody else may replace it
        os.replace(ticket, path)
        return True
    ticket.unlink(missing_ok=True)  # it was replaced before the ticket was free
    return False


def _create(path: Path, own: dict[str, Any]) -> bool:
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with open(number, "wb") as file:
            file.write(json.dumps(own).encode())
    except OSError:  # an empty one would keep others waiting
        path.unlink(missing_ok=True)
        raise
    return True


def _read(path: Path) -> _Seen | None:
    """Opened anew each time, which is when NFS asks its server."""
    try:
        with open(path, "rb") as file:
            text, touched = file.read(4096), os.fstat(file.fileno()).st_mtime_ns
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    try:
        holder = json.loads(text)
        token, pid = holder["token"], int(holder["pid"])
        if pid < 1 or not re.fullmatch("[0-9a-f]{16}", token):
            raise ValueError("no lease")
        return _Seen(token, holder | {"pid": pid}, touched)
    except (ValueError, KeyError, TypeError, OverflowError):  # being written, or damaged
        return _Seen(f"unreadable{touched}", {}, touched)


def _is_dead(path: Path, seen: _Seen, watched: dict[Path, _Watch], stale: float) -> bool:
    """Looks are counted and not seconds, of which many pass while a machine sleeps."""
    running = _is_running(seen.holder)
    if running is not None:
        watched[path] = _Watch(seen.token, seen.touched, 0, running)
        return not running
    last = watched.get(path)
    if last is None or last.token != seen.token:
        watched[path] = _Watch(seen.token, seen.touched, 0, False)
    elif last.touched != seen.touched:
        watched[path] = _Watch(seen.token, seen.touched, 0, True)
    else:
        watched[path] = last._replace(looks=last.looks + 1)
    return watched[path].looks * _POLL >= stale


def _is_alive(path: Path, watched: dict[Path, _Watch]) -> bool:
    return path in watched and watched[path].alive


def _keep(
    path: Path,
    what: str | os.PathLike,
    token: str,
    beat: float,
    stale: float,
    done: threading.Event,
    lost: Callable[[str], None],
) -> None:
    """Touch the lease until `done`, and notice if it is no longer ours."""
    last = time.monotonic()
    while not done.wait(beat):
        try:
            seen = _read(path)
            if done.is_set():
                return
            if seen is None or seen.token != token:
                return lost(_loss(path, what))
            os.utime(path)
            last = time.monotonic()
        except OSError as error:  # a server that is away for a while
            if time.monotonic() - last > stale:
                return lost(f"cannot renew the lease {path}: {error.strerror or error}")


def _end(reason: str) -> NoReturn:
    """Not by an exception: what it would pass through writes to what is another's now."""
    os.write(2, f"error: {reason}\n".encode())
    os._exit(2)


def _loss(path: Path, what: str | os.PathLike) -> str:
    """Why the lease is not ours any more."""
    if path.exists():
        return f"{_who(path, what)}: this one lost its lease {path}; nothing more is written"
    return (
        f"the lease {path} is gone: {what} was removed or unmounted while it was in use, and what "
        "was written since may be missing; once it is back, the same command goes on"
    )


def _release(path: Path, token: str) -> bool:
    """Whether the lease was still ours, as far as can be seen."""
    try:
        seen = _read(path)
        if seen is None or seen.token != token:
            return False
        path.unlink()
    except OSError:  # the disk has turned read-only, say: the file names a process that is dead
        pass
    return True
