"""What this machine has left: memory, disk, arithmetic."""

import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp


def free_memory(device: jax.Device) -> int | None:
    """Bytes that a device has left; None where the system does not say.

    A CPU device's are the host's, within the limits of the container it runs in.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    free = []
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    limit, used = (_lines(Path(f"/sys/fs/cgroup/memory.{x}")) for x in ("max", "current"))
    if limit and used and limit[0].strip().isdigit():
        free.append(int(limit[0]) - int(used[0]))
    return min(free) if free else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not on Linux, or not in a container
        return []


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
