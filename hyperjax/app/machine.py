"""What this machine has left of memory, disk and arithmetic, and what this process takes of it."""

import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_SECONDS_BETWEEN_LOOKS = 0.02
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, x86 and Arm
# Of both versions of control groups: where a limit is, what is used, and what of that is only kept
# because nobody else needs it.
_VERSIONS = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": (
        "memory.limit_in_bytes", "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}  # fmt: skip


def on_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def multiplies_bfloat16() -> bool | None:
    """Whether this CPU has instructions for products of bfloat16; None where the system does not
    say."""
    flags = {
        word
        for line in _lines(_PROC / "cpuinfo")
        if line.startswith(("flags", "Features"))
        for word in line.split()
    }
    return bool(flags & _BFLOAT16_FLAGS) if flags else None


def free_memory(device: jax.Device) -> int | None:
    """Bytes that a device has left; None where the system does not say.

    A CPU device's are the host's, within the limits of this process (`ulimit -v` and `-d`) and of
    its control groups, a container's or a batch system's.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    found = _fields(_PROC / "meminfo").get("MemAvailable")
    free = [] if found is None else [1024 * found]
    return min([*free, *_left_by_limits(), *_left_by_cgroups()], default=None)


def _left_by_limits() -> Iterator[int]:
    status = _fields(_PROC / "self/status")
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and name in status:
            yield most - 1024 * status[name]


def _left_by_cgroups() -> Iterator[int]:
    """Of the process's own group and of those around it, up to the outermost that can be seen."""
    for line in _lines(_PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in _VERSIONS:
            continue
        limit, used, kept = _VERSIONS[controllers]
        top = _CGROUPS / controllers
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            most, now = _lines(group / limit), _lines(group / used)
            if most and now and most[0].strip().isdigit():  # "max": none
                fields = _fields(group / "memory.stat")
                yield int(most[0]) - int(now[0]) + sum(fields.get(name, 0) for name in kept)
            if group == top:
                break


def used_memory(device: jax.Device) -> int | None:
    """Bytes that this process has of a device's memory, at most so far for an accelerator; None
    where the system does not say. Pages of files, which the system can take back, do not count."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    found = _fields(_PROC / "self/status").get("RssAnon")
    return None if found is None else 1024 * found


@contextmanager
def measured(device: jax.Device | None = None) -> Iterator[Callable[[], tuple[float, int | None]]]:
    """Yields a function that gives the seconds since, and the most of a device's memory (by default
    of this host's first) that was in use, by `used_memory`."""
    device = device or jax.local_devices()[0]
    before, start, over = used_memory(device), time.monotonic(), threading.Event()
    most = before

    def look() -> tuple[float, int | None]:
        nonlocal most
        if most is not None:
            most = max(most, used_memory(device) or 0)
        known = device.platform == "cpu" or most != before  # an accelerator's is of all time
        return time.monotonic() - start, most if known else None

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            look()

    if most is not None and device.platform == "cpu":
        threading.Thread(target=watch, daemon=True, name="memory").start()
    try:
        yield look
    finally:
        over.set()


def free_disk(folder: Path) -> int:
    """Bytes left where `folder` is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def matmul_rate(device: jax.Device, size: int = 1024, seconds: float = 0.1) -> float:
    """float32 operations per second that a matrix product reaches on one device."""
    x = jax.device_put(jnp.full((size, size), 1 / size, jnp.float32), device)
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    rate, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        x = multiply(x).block_until_ready()
        rate = max(rate, 2 * size**3 / (time.perf_counter() - start))
    return rate


def _fields(path: Path) -> dict[str, int]:
    """Whole numbers of a file's lines "name: number unit" or "name number"."""
    found = {}
    for line in _lines(path):
        words = line.replace(":", " ", 1).split()
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not on Linux, or not in a group
        return []
