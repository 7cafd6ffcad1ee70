"""The working directory that the three scripts share.

config.json, manifest.json (one entry per command: versions, devices, data), metrics.jsonl,
checkpoints/, zoo/, hyperrep/, samples/, populations/, report/.
"""

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from hyperjax import config as config_lib
from hyperjax import distributed
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError
from hyperjax.store.files import atomic_write

MAY_DIFFER = (  # beginnings of the fields that do not change what train.py makes
    "data_dir", "checkpoint_seconds", "zoo.conv", "zoo.members", "zoo.chunk_size", "samplers.",
    "evaluation.",
)  # fmt: skip
PACKAGES = ("hyperjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def zoo_path(workdir: Path) -> Path:
    return workdir / "zoo" / "zoo.safetensors"


def hyperrep_path(workdir: Path, name: str) -> Path:
    return workdir / "hyperrep" / f"{name}.safetensors"


def create(workdir: Path, config: Config) -> None:
    """Claim a folder for a configuration.

    Raises HyperJaxError, with the differences, if it was made with another one. Fields that do
    not change what train.py makes may differ; the newest values are kept.
    """
    path = workdir / "config.json"
    if path.exists():
        ours, theirs = (
            config_lib.flat(config_lib.to_dict(c)) for c in (config, load_config(workdir))
        )
        differing = [
            f"  {field}: {theirs[field]!r} there, {ours[field]!r} here"
            for field in ours
            if ours[field] != theirs[field] and not field.startswith(MAY_DIFFER)
        ]
        if differing:
            raise HyperJaxError(
                f"{workdir} was made with another configuration; choose another --workdir or "
                "the same settings:\n" + "\n".join(differing)
            )
    read_manifest(workdir)  # a damaged one should not be noticed after hours
    atomic_write(path, json.dumps(config_lib.to_dict(config), indent=2).encode())


def load_config(workdir: Path) -> Config:
    """The configuration a folder was made with."""
    path = Path(workdir) / "config.json"
    try:
        return config_lib.from_dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise HyperJaxError(
            f"{workdir} is no HyperJAX workdir (it has no config.json); make one with "
            f"python train.py --config=configs/digits.py --workdir={workdir}"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise HyperJaxError(f"cannot read {path}: {error}") from error


def unfinished(workdir: Path, path: Path) -> HyperJaxError:
    """The error for a workdir whose training is not complete."""
    return HyperJaxError(
        f"{workdir} is not finished: it has no {path.relative_to(workdir)}; run train.py with "
        "the same --config and --workdir to complete it"
    )


def describe_run(command: str, **facts: Any) -> dict[str, Any]:
    """Versions, devices, time and `facts`: what is saved with every result."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions,
        "platform": jax.devices()[0].platform,
        "processes": jax.process_count(),
        **hardware(),
        **facts,
    }


def hardware() -> dict[str, Any]:
    """What a figure in seconds holds for."""
    return {
        "devices": [device.device_kind for device in jax.devices()],
        "cores": os.cpu_count(),
    }


def read_manifest(workdir: Path) -> list[dict[str, Any]]:
    """What every command recorded in this folder."""
    path = workdir / "manifest.json"
    try:
        entries = json.loads(path.read_text()) if path.exists() else []
    except (OSError, ValueError) as error:
        raise HyperJaxError(f"cannot read {path}: {error}; delete it or restore it") from error
    if not isinstance(entries, list):
        raise HyperJaxError(f"{path}: expected a list of commands; delete it or restore it")
    return entries


def add_to_manifest(workdir: Path, entry: dict[str, Any]) -> None:
    entries = [*read_manifest(workdir), entry]
    atomic_write(workdir / "manifest.json", json.dumps(entries, indent=2).encode())


def command_line() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def log_metrics(workdir: Path, record: dict[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    if not distributed.is_writer():
        return
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(workdir: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of a stage in metrics.jsonl, oldest first."""
    path = workdir / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):  # the line that a killed run was writing
            records.append(json.loads(line))
    return [record for record in records if record.get("stage") == stage]


def has_metrics(workdir: Path, stage: str) -> bool:
    """Whether metrics.jsonl has a line of that stage."""
    path = workdir / "metrics.jsonl"
    start = json.dumps({"stage": stage})[:-1]
    return path.exists() and any(x.startswith(start) for x in path.read_text().splitlines())


def forget_metrics(workdir: Path, stage: str, after: int) -> None:
    """Drop a stage's lines beyond step `after`, which a resumed run writes again."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line that a killed run was writing
        if record.get("stage") != stage or record.get("step", 0) <= after:
            kept.append(line + "\n")
    atomic_write(path, "".join(kept).encode())


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keep two commands from writing one folder at the same time."""
    if not distributed.is_writer():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "w")  # noqa: SIM115 held for the whole run
    except OSError as error:
        raise HyperJaxError(f"cannot write to {workdir}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HyperJaxError(f"{workdir} is in use by another command") from error
        yield
