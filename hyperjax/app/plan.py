"""What a command is going to take of this machine: shown, and refused if it cannot fit, before it
starts; and beside it what it took, when it is over."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.table import Table

from hyperjax import cost
from hyperjax.app import machine
from hyperjax.app.machine import on_cpu
from hyperjax.app.progress import console
from hyperjax.config import AutoencoderConfig, Config, DenoiserConfig, ZooConfig
from hyperjax.diffusion import denoiser_training
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import training
from hyperjax.population import Engine
from hyperjax.population.evaluation import STATES, members_per_call
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo

# Share of the rate of large float32 products that a stage of each kind reaches on a CPU, between
# what two makes of them do (docs/performance.md), and how much faster it is where it multiplies in
# bfloat16 and the CPU can. There are no such figures for accelerators yet.
_EFFICIENCY = {"zoo": 0.3, "hyperrep": 0.33, "denoiser": 0.4}
_GAIN = 1.3
EXPERIMENTS, SAMPLES, DIFFUSION = "experiments", "samples", "samples by the denoiser"
# Bytes of a process on a CPU beside its arrays: Python and the libraries, then what a stage of each
# kind adds to it with its compiled programs, and a second one of its kind; a stage has those of the
# stages before it too. And how often the weights that a stage learns from lie in memory at worst.
# All are measured (benchmarks/memory.py, and "memory" in the manifest of every command): those of
# zoo, autoencoder and denoiser lie between what small and large networks take to compile.
PROCESS = 0.25e9
_PROGRAMS = {
    "zoo": (0.35e9, 0), "hyperrep": (0.8e9, 0.25e9), "denoiser": (1.0e9, 0),
    "graphs": (1.85e9, 0.85e9),  # of hyper-representations on graphs; the second in proportion
    EXPERIMENTS: (1.1e9, 0), SAMPLES: (0.14e9, 0), DIFFUSION: (0.3e9, 0),
}  # fmt: skip
_COPIES = 8


class Stage(NamedTuple):
    """One part of a command."""

    name: str
    flops: float  # NaN: not known
    memory: float  # bytes on each device
    devices: int  # of this host that it uses; on a CPU they share its memory
    less: str  # what to reduce for less `memory`
    disk: float  # bytes
    copies: float = 0.0  # of `memory`: what it takes at worst, and may be done without
    programs: str = ""  # the kind of its compiled programs; its name up to "/", if not another
    dtype: str = ""  # that its own products are asked for in, whatever JAX is set to


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
    once = config.tested == "last" and not snapshots
    snapshots = snapshots or len(config.snapshots) or epochs + 1
    work = epochs * images["train"] * cost.training_flops(spec)
    tests = 1 if once else snapshots
    measured = snapshots * images["val"] + tests * images["test"]
    work += measured * cost.evaluation_flops(spec)
    together = min(config.chunk_size or members_per_call(engine, images["train"]), members)
    each, local = math.ceil(together / devices), len(engine.mesh.local_devices)
    at_once = each if engine.mapping == "vmap" else 1
    pixels = sum(images.values()) * spec.channels * math.prod(spec.image_size)
    memory, spare = _copied(pixels, local)
    memory += STATES * each * cost.member_bytes(spec)
    memory += at_once * min(engine.micro_batch, images["train"]) * cost.activation_bytes(spec)
    disk = copies * cost.zoo_bytes(spec, members, snapshots) + together * cost.member_bytes(spec)
    return Stage(
        name,
        float(members) * work,
        memory,
        local,
        "config field zoo.chunk_size, or num_train",
        disk,
        spare,
    )


def aligned_stage(size: int) -> Stage:
    """Align weights of so many bytes into a file (`aligned`)."""
    less = "config field autoencoder.data.epochs_seen"
    return Stage("aligned weights", math.nan, 0.0, 1, less, size)


def autoencoder_stage(
    name: str, config: AutoencoderConfig, zoo: ZooConfig, spec: WeightSpec, in_file: bool = False
) -> Stage:
    """Train one hyper-representation, on as many devices as it uses. What it learns from lies in
    memory, or in a file."""
    used = training.used_devices(config, spec)
    local = sum(device.process_index == jax.process_index() for device in used)
    samples = zoo.split[0] * zoo.num_members * len(config.data.epochs_seen)
    held, copies = _learned_from(samples, spec, local, in_file)
    at_once = training.examples_at_once(config, used[0].platform)
    memory = cost.autoencoder_bytes(config, spec, len(used), at_once) + held
    disk = 2 * 4 * 5 * cost.autoencoder_params(config.architecture, spec)  # two checkpoints
    work = config.training.steps * cost.autoencoder_flops(config, spec)
    graph = config.architecture.network == "graph"
    return Stage(
        name, work, memory, local, "config field autoencoder", disk, copies,
        "graphs" if graph else "", config.architecture.graph.dtype if graph else "",
    )  # fmt: skip


def denoiser_stage(
    config: DenoiserConfig, zoo: ZooConfig, spec: WeightSpec, in_file: bool = False
) -> Stage:
    """Train the denoiser, on what lies in memory or in a file."""
    samples = zoo.split[0] * zoo.num_members * config.snapshots
    params, platform = cost.denoiser_params(config.graph, spec), jax.local_devices()[0].platform
    used = denoiser_training.used_devices(config)
    local = sum(device.process_index == jax.process_index() for device in used)
    batch = config.training.batch_size // len(used)  # of a device
    examples = min(denoiser_training.examples_at_once(config, platform), batch)
    held, copies = _learned_from(samples, spec, local, in_file)
    memory = cost.denoiser_bytes(config, spec, int(samples), examples) + held
    work = config.training.steps * cost.denoiser_flops(config, spec)
    return Stage(
        "denoiser", work, memory, local, "config field denoiser", 2 * 4 * 6 * params, copies,
        dtype=config.graph.dtype,
    )  # fmt: skip


def reading_stage(name: str, models: Zoo, config: Config, num_samples: int) -> Stage:
    """Experiments or samplers with the train members of a zoo; what they compute depends on which
    they are."""
    seen = len(models.split.train) * len(config.autoencoder.data.epochs_seen)
    memory, copies = _copied(4 * seen * models.spec.num_params, 1)
    memory += 2 * 4 * num_samples * models.spec.num_params  # as drawn, and as measured
    return Stage(name, math.nan, memory, 1, "--num_samples", 0.0, copies)


def _learned_from(
    samples: float, spec: WeightSpec, devices: int, in_file: bool
) -> tuple[float, float]:
    """`_copied` of the weights that a model learns from: where they lie in a file, none of them are
    in memory but those that are just used."""
    return (0.0, 0.0) if in_file else _copied(4 * samples * spec.num_params, devices)


def _copied(size: float, devices: int) -> tuple[float, float]:
    """Bytes on each of so many devices of a host, of `size` bytes that all of them work with, and
    how many of them are copies. Devices of a CPU share what they need not have each."""
    if not on_cpu():
        return size, 0.0
    return _COPIES * size / devices, (_COPIES - 1) * size / devices


def totals(stages: list[Stage]) -> dict[str, float]:
    """Bytes at most, by stage: of the process, whose memory the devices of a CPU share, or of each
    accelerator."""
    if not on_cpu():
        return {stage.name: stage.memory for stage in stages}
    found, programs, seen = {}, PROCESS, set()
    for stage in stages:
        kind = stage.programs or stage.name.split("/")[0]
        programs += _PROGRAMS.get(kind, (0, 0))[kind in seen]
        seen.add(kind)
        found[stage.name] = programs + stage.memory * stage.devices
    return found


def announced(stages: list[Stage]) -> dict[str, int]:
    """`totals` as a manifest notes them."""
    return {name: round(size) for name, size in totals(stages).items()}


def announce(stages: list[Stage], folder: Path, devices: list[jax.Device]) -> float:
    """Print the table of stages and check that the machine can hold them. Returns operations per
    second of a matrix product, by which the stages' times are told; 0 where they are not known."""
    first, rate = jax.local_devices()[0], 0.0
    if on_cpu():  # a product uses all cores of its host, whatever the number of virtual devices
        rate = len(devices) / jax.local_device_count() * machine.matmul_rate(first)
    caption = "time: arithmetic at the share of a matrix product's rate that such stages reach; "
    caption += "compilation, alignment and validation come on top"
    table = Table(title="what this is going to take, about", caption=caption if rate else None)
    memory = "memory" if on_cpu() else "memory a device"
    for column in ("stage", "operations", memory, "disk", "time"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    whole = totals(stages)
    for stage in stages:
        sizes = _amount(whole[stage.name], "B"), _amount(stage.disk, "B")
        table.add_row(stage.name, _amount(stage.flops, "FLOP"), *sizes, _announced(stage, rate))
    console.print(table)
    check_here(stages, folder)
    return rate


def note_precision(config: Config) -> None:
    """Say so if products of bfloat16 are asked of a CPU that has no instructions for them."""
    fields = {"matmul_precision": jax.config.jax_default_matmul_precision}
    if config.denoiser.training.steps:
        fields["denoiser.graph.dtype"] = config.denoiser.graph.dtype
    if config.autoencoder.architecture.network == "graph":
        fields["autoencoder.architecture.graph.dtype"] = config.autoencoder.architecture.graph.dtype
    asked = [name for name, value in fields.items() if value == "bfloat16"]
    if asked and on_cpu() and machine.multiplies_bfloat16() is False:
        console.print(
            f"{' and '.join(asked)}: this processor has no products of bfloat16 (AVX512-BF16, AMX, "
            "Arm BF16); they are rounded as asked, but nothing will be faster for it"
        )


def check_here(stages: list[Stage], folder: Path) -> None:
    """`check` against what this machine has."""
    first = jax.local_devices()[0]
    free, ours = machine.free_memory(first), machine.used_memory(first) if on_cpu() else 0
    check(stages, folder, None if free is None else free + (ours or 0), machine.free_disk(folder))


def check(stages: list[Stage], folder: Path, memory: int | None, disk: int) -> None:
    """Raise HyperJaxError, naming what to change, if the stages need more than there is for them:
    `memory` and `disk` in bytes. Say so if what they may take at worst is more."""
    most = totals(stages)
    for stage in stages if memory is not None else ():
        alone = (
            PROCESS + (stage.memory - stage.copies) * stage.devices if on_cpu() else stage.memory
        )
        if alone > memory:
            raise HyperJaxError(
                f"{stage.name} needs about {_amount(alone, 'B')} of memory, "
                f"{_amount(memory, 'B')} are free; reduce {stage.less}"
            )
        if most[stage.name] > memory:
            console.print(
                f"{stage.name} may take {_amount(most[stage.name], 'B')} of memory, and "
                f"{_amount(memory, 'B')} are free"
            )
    needed = sum(stage.disk for stage in stages)
    if needed > disk:
        raise HyperJaxError(
            f"{folder}: this needs about {_amount(needed, 'B')} of disk, {_amount(disk, 'B')} are "
            "free; choose another --workdir, or fewer of config field zoo.snapshots"
        )


def compare(stages: list[Stage], rate: float, entry: Mapping[str, Any]) -> None:
    """Print what the stages took, seconds by name in "stages" of the manifest's `entry` and bytes
    in "memory" and "announced", beside what `announce` said."""
    table = Table(title="what it took, and what was announced")
    for column in ("stage", "time", "announced", "memory", "announced"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in stages:
        if stage.name in entry["stages"]:
            seconds, most = (entry[field][stage.name] for field in ("stages", "memory"))
            memory = "not known" if most is None else _amount(most, "B")
            announced = _announced(stage, rate), _amount(entry["announced"][stage.name], "B")
            table.add_row(stage.name, _time(seconds), announced[0], memory, announced[1])
    if table.rows:
        console.print(table)


def _announced(stage: Stage, rate: float) -> str:
    if not rate or math.isnan(stage.flops):
        return "not known"
    share = _EFFICIENCY.get(stage.name.split("/")[0], _EFFICIENCY["zoo"])  # or it trains members
    if "bfloat16" in (stage.dtype, jax.config.jax_default_matmul_precision):
        share *= _GAIN if machine.multiplies_bfloat16() else 1
    return _time(stage.flops / (share * rate))


def _amount(value: float, unit: str) -> str:
    if math.isnan(value):
        return "not known"
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} P{unit}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
