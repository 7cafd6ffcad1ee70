"""What this machine has left, and what a command is going to take of it: shown, and refused if it
cannot fit, before it starts."""

import math
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from hyperjax import cost
from hyperjax.app.progress import console
from hyperjax.config import AutoencoderConfig, DenoiserConfig, ZooConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep.training import used_devices
from hyperjax.population import Engine
from hyperjax.population.evaluation import members_per_call
from hyperjax.weights import WeightSpec

# Share of a matrix product's rate that the stages reach on a CPU (docs/performance.md). There
# is no such figure for accelerators yet.
_EFFICIENCY = {"cpu": 0.25}


class Stage(NamedTuple):
    """One part of a command."""

    name: str
    flops: float
    memory: float  # bytes on each device
    devices: int  # of this host that it uses; on a CPU they share its memory
    field: str  # of the configuration, by which `memory` can be reduced
    disk: float  # bytes


def population_stage(
    name: str,
    engine: Engine,
    config: ZooConfig,
    images: dict[str, int],
    members: int,
    epochs: int,
    snapshots: int = 0,
) -> Stage:
    """Train `members` for `epochs`, measuring them at so many `snapshots` (0: as a zoo).

    `images`: how many of each split.
    """
    spec, devices = engine.spec, engine.mesh.size
    copies = 2 if config.save_moments and not snapshots else 1  # of what the file keeps
    snapshots = snapshots or len(config.snapshots) or epochs + 1
    work = epochs * images["train"] * cost.training_flops(spec)
    tests = 1 if config.tested == "last" else snapshots
    measured = snapshots * images["val"] + tests * images["test"]
    work += measured * cost.evaluation_flops(spec)
    together = min(config.chunk_size or members_per_call(engine, images["train"]), members)
    each, local = math.ceil(together / devices), len(engine.mesh.local_devices)
    at_once = each if engine.mapping == "vmap" else 1
    pixels = sum(images.values()) * spec.channels * math.prod(spec.image_size)
    memory = pixels / (local if _on_cpu() else 1)  # whose devices share one copy
    memory += each * cost.member_bytes(spec)
    memory += at_once * min(engine.micro_batch, images["train"]) * cost.activation_bytes(spec)
    disk = copies * cost.zoo_bytes(spec, members, snapshots) + together * cost.member_bytes(spec)
    return Stage(name, float(members) * work, memory, local, "zoo.chunk_size", disk)


def autoencoder_stage(
    name: str, config: AutoencoderConfig, zoo: ZooConfig, spec: WeightSpec
) -> Stage:
    """Train one hyper-representation, on as many devices as it uses."""
    used = used_devices(config, spec)
    local = sum(device.process_index == jax.process_index() for device in used)
    samples = zoo.split[0] * zoo.num_members * len(config.data.epochs_seen)
    memory = cost.autoencoder_bytes(config, spec, len(used)) + 4 * samples * spec.num_params
    disk = 2 * 4 * 5 * cost.autoencoder_params(config.architecture, spec)  # two checkpoints
    work = config.training.steps * cost.autoencoder_flops(config, spec)
    return Stage(name, work, memory, local, "autoencoder", disk)


def denoiser_stage(config: DenoiserConfig, zoo: ZooConfig, spec: WeightSpec) -> Stage:
    """Train the denoiser."""
    samples = zoo.split[0] * zoo.num_members * config.snapshots
    params = cost.denoiser_params(config.graph, spec)
    memory = cost.denoiser_bytes(config, spec) + 4 * samples * spec.num_params
    local = min(jax.local_device_count(), max(1, config.training.batch_size // 8))
    work = config.training.steps * cost.denoiser_flops(config, spec)
    return Stage("denoiser", work, memory, local, "denoiser", 2 * 4 * 6 * params)


def _on_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def announce(stages: list[Stage], folder: Path, devices: list[jax.Device]) -> None:
    """Print the table of stages and check that the machine can hold them."""
    rate = _EFFICIENCY.get(devices[0].platform, 0)
    if rate:  # a product uses all cores of its host, whatever the number of virtual devices
        hosts = len(devices) / jax.local_device_count()
        rate *= hosts * matmul_rate(jax.local_devices()[0])
    caption = f"time: arithmetic at {100 * _EFFICIENCY['cpu']:.0f} % of a matrix product's rate; "
    caption += "compilation, alignment and validation come on top"
    table = Table(title="what this is going to take, about", caption=caption if rate else None)
    for column in ("stage", "operations", "memory a device", "disk", "time"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in stages:
        seconds = _time(stage.flops / rate) if rate else "not known here"
        memory, disk = (_amount(x, "B") for x in (stage.memory, stage.disk))
        table.add_row(stage.name, _amount(stage.flops, "FLOP"), memory, disk, seconds)
    console.print(table)
    check(stages, folder, free_memory(jax.local_devices()[0]), free_disk(folder))


def check(stages: list[Stage], folder: Path, memory: int | None, disk: int) -> None:
    """Raise HyperJaxError, naming what to change, if the stages need more than there is.

    On a CPU all devices share `memory`; a stage's need is then that of all of them.
    """
    for stage in stages:
        need = stage.memory * (stage.devices if _on_cpu() else 1)
        if memory is not None and need > memory:
            raise HyperJaxError(
                f"{stage.name} needs about {_amount(need, 'B')} of memory, "
                f"{_amount(memory, 'B')} are free; reduce config field {stage.field}, or "
                "num_train"
            )
    needed = sum(stage.disk for stage in stages)
    if needed > disk:
        raise HyperJaxError(
            f"{folder}: this needs about {_amount(needed, 'B')} of disk, {_amount(disk, 'B')} are "
            "free; choose another --workdir, or fewer of config field zoo.snapshots"
        )


def _amount(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} P{unit}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
