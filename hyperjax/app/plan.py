"""What a command is going to cost: shown, and refused if it cannot fit, before it starts."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
from rich.table import Table

from hyperjax import cost
from hyperjax.app import machine
from hyperjax.app.progress import console
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError
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
    field: str  # of the configuration, by which `memory` can be reduced
    disk: float  # bytes


def population_stage(
    name: str,
    engine: Engine,
    config: Config,
    images: dict[str, int],
    members: int,
    epochs: int,
    snapshots: int = 0,
) -> Stage:
    """Train `members` for `epochs`, measuring them at so many `snapshots` (0: as a zoo).

    `images`: how many of each split.
    """
    spec, devices = engine.spec, engine.mesh.size
    snapshots = snapshots or len(config.zoo.snapshots) or epochs + 1
    work = epochs * images["train"] * cost.training_flops(spec)
    work += snapshots * (images["val"] + images["test"]) * cost.evaluation_flops(spec)
    together = min(config.zoo.chunk_size or members_per_call(engine, images["train"]), members)
    each = math.ceil(together / devices)
    at_once = each if engine.members == "vmap" else 1
    memory = sum(images.values()) * spec.layers[0].shape[1] * 28 * 28
    memory += each * cost.member_bytes(spec)
    memory += at_once * min(engine.micro_batch, images["train"]) * cost.activation_bytes(spec)
    disk = cost.zoo_bytes(spec, members, snapshots) + together * cost.member_bytes(spec)
    return Stage(name, float(members) * work, memory, "zoo.chunk_size", disk)


def autoencoder_stage(name: str, config: Config, spec: WeightSpec, devices: int) -> Stage:
    """Train one hyper-representation."""
    c = config.autoencoder
    samples = config.zoo.split[0] * config.zoo.num_members * len(c.epochs_seen)
    memory = cost.autoencoder_bytes(c, spec, devices) + 4 * samples * spec.num_params
    disk = 2 * 4 * 5 * cost.autoencoder_params(c, spec)  # two checkpoints at a time
    return Stage(name, c.steps * cost.autoencoder_flops(c, spec), memory, "autoencoder", disk)


def announce(stages: list[Stage], folder: Path, devices: list[jax.Device]) -> None:
    """Print the table of stages and check that the machine can hold them."""
    rate = _EFFICIENCY.get(devices[0].platform, 0)
    if rate:  # a product uses all cores of its host, whatever the number of virtual devices
        hosts = len(devices) / jax.local_device_count()
        rate *= hosts * machine.matmul_rate(jax.local_devices()[0])
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
    check(stages, folder, machine.free_memory(jax.local_devices()[0]), machine.free_disk(folder))


def check(stages: list[Stage], folder: Path, memory: int | None, disk: int) -> None:
    """Raise HyperJaxError, naming what to change, if the stages need more than there is.

    On a CPU all devices share `memory`; a stage's need is then that of all of them.
    """
    local = jax.local_devices()
    sharing = len(local) if local[0].platform == "cpu" else 1
    for stage in stages:
        if memory is not None and sharing * stage.memory > memory:
            raise HyperJaxError(
                f"{stage.name} needs about {_amount(sharing * stage.memory, 'B')} of memory, "
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
