"""The working directory that the three scripts share.

config.json, manifest.json (one entry per command: versions, commit, devices, data), metrics.jsonl,
checkpoints/, zoo/, hyperrep/, samples/, populations/, report/.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

import hyperjax
from hyperjax import distributed
from hyperjax.config import Config, differences, from_dict, to_dict
from hyperjax.errors import HyperJaxError
from hyperjax.store import files, lease
from hyperjax.store.files import atomic_write, to_jsonable
from hyperjax.store.upgrade import upgraded

MAY_DIFFER = (  # beginnings of the fields that do not change what train.py has made
    "data_dir", "checkpoint_seconds", "zoo.conv", "zoo.mapping", "zoo.chunk_size", "zoo.repair",
    "autoencoder.variants", "autoencoder.micro_batch", "denoiser.", "samplers.", "evaluation.",
)  # fmt: skip
FOLDERS = ("zoo", "hyperrep", "denoiser", "samples", "populations", "scaling", "report")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def zoo_path(workdir: Path) -> Path:
    return workdir / "zoo" / "zoo.safetensors"


def hyperrep_path(workdir: Path, name: str) -> Path:
    return workdir / "hyperrep" / f"{name}.safetensors"


def aligned_path(workdir: Path) -> Path:
    return workdir / "zoo" / "aligned.safetensors"


def moments_path(workdir: Path) -> Path:
    return workdir / "zoo" / "moments.safetensors"


def denoiser_path(workdir: Path) -> Path:
    return workdir / "denoiser" / "denoiser.safetensors"


def create(workdir: Path, config: Config) -> None:
    """Claim a folder for a configuration.

    Raises HyperJaxError, with the differences, if anything in it was made with another one. Fields
    that do not change what train.py makes may differ; the newest values are kept.
    """
    path = workdir / "config.json"
    made = any((workdir / name).exists() for name in (*FOLDERS, "checkpoints"))
    if path.exists() and made:  # else what was asked for was refused
        differing = [
            f"  {field}: {theirs!r} there, {ours!r} here"
            for field, (ours, theirs) in differences(config, load_config(workdir)).items()
            if not field.startswith(MAY_DIFFER)
        ]
        if differing:
            raise HyperJaxError(
                f"{workdir} was made with another configuration; choose another --workdir or "
                "the same settings:\n" + "\n".join(differing)
            )
    read_manifest(workdir)  # a damaged one should not be noticed after hours
    atomic_write(path, json.dumps(to_dict(config), indent=2).encode())


def load_config(workdir: Path) -> Config:
    """The configuration a folder was made with."""
    path = Path(workdir) / "config.json"
    try:
        return from_dict(upgraded(json.loads(path.read_text())))
    except FileNotFoundError as error:
        raise HyperJaxError(
            f"{workdir} is no HyperJAX workdir (it has no config.json); make one with "
            f"python train.py --config=configs/digits.py --workdir={workdir}"
        ) from error
    except (HyperJaxError, OSError, ValueError, TypeError, AttributeError) as error:
        raise HyperJaxError(f"cannot read {path}: {error}") from error


def unfinished(workdir: Path, path: Path, change: str = "") -> HyperJaxError:
    """The error for a workdir that lacks a file that train.py makes."""
    return HyperJaxError(
        f"{workdir} is not finished: it has no {path.relative_to(workdir)}; run train.py with "
        f"the same --config and --workdir{change} to complete it"
    )


def made_with() -> dict[str, Any]:
    """Versions, commit and platform: what equal runs have in common, wherever and whenever."""
    versions = {"hyperjax": hyperjax.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
        "platform": jax.devices()[0].platform,
    }


def describe_run(command: str, **facts: Any) -> dict[str, Any]:
    """Versions, commit, devices, time and `facts`: what is saved with every command."""
    return {
        "command": command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **made_with(),
        "processes": jax.process_count(),
        **hardware(),
        **facts,
    }


@functools.cache
def commit() -> str | None:
    """The git commit of this HyperJAX, with "+" if files differ from it; None: no checkout."""
    folder = Path(hyperjax.__file__).parents[1]
    if not (folder / ".git").exists():  # installed somewhere below another checkout, perhaps
        return None
    try:
        describe = ("git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12")
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git
        return None
    return done.stdout.strip() or None


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


@contextmanager
def recorded(workdir: Path, **facts: Any) -> Iterator[dict[str, Any]]:
    """Record this command in the manifest when it begins, and how it ended and what was added to
    the yielded entry when it does: one that was killed stays "running" there."""
    earlier, start = read_manifest(workdir), time.monotonic()
    entry = describe_run(command_line(), host=platform.node(), **facts) | {"status": "running"}

    def write(status: str) -> None:
        entry["status"] = status
        text = json.dumps(to_jsonable([*earlier, entry]), indent=2)
        atomic_write(workdir / "manifest.json", text.encode())

    write("running")
    try:
        yield entry
    except BaseException as error:
        with suppress(HyperJaxError):  # nor can this be written, perhaps, where that could not
            write(f"failed: {error}" if str(error) else f"ended by {type(error).__name__}")
        raise
    entry["seconds"] = round(time.monotonic() - start, 1)
    write("done")


def command_line() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def log_metrics(workdir: Path, record: dict[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    if not distributed.is_writer():
        return
    path, line = workdir / "metrics.jsonl", json.dumps(to_jsonable(record), allow_nan=False) + "\n"
    try:
        with open(path, "a") as file:
            file.write(line)
    except OSError as error:
        raise files.cannot_write(path, error, len(line)) from error


def metrics_of(workdir: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of that stage in metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return [record for record, _ in _records(path) if record.get("stage") == stage]


def forget_metrics(workdir: Path, stage: str, after: int) -> None:
    """Drop a stage's lines beyond step `after`, which a resumed run writes again."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return
    kept = [
        line + "\n"
        for record, line in _records(path)
        if record.get("stage") != stage or record.get("step", 0) <= after
    ]
    atomic_write(path, "".join(kept).encode())


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The lines of metrics.jsonl, without the one that a killed run was writing."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line), line
        except ValueError:
            continue


@contextmanager
def lock(
    workdir: Path,
    wait: float = 0.0,
    say: Callable[[str], None] = print,
    lost: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Keep two commands from writing one folder at the same time: for `wait` seconds at most the
    second one waits for the first. What a killed command was writing is removed. `lost` is called
    as `lease.held` says.

    Raises HyperJaxError, naming the command that has the folder, or if it cannot be written to.
    """
    with lease.held(workdir / ".lease", workdir, command_line(), wait=wait, say=say, lost=lost):
        for part in ("*", *(f"{name}/*" for name in FOLDERS), "report/*/*"):
            files.remove_partials(workdir.glob(part))
        yield
