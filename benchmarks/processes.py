"""A training by one process on one core, and by several of one core each: seconds and results.

    python benchmarks/processes.py [--processes=1,2] [--members=256] [--scale=demo]

Each runs train.py twice, `--multihost` where there are several, which find each other as hosts of
a cluster do: once for two epochs of the zoo and a step of each model, once for more. Prints the
seconds of every stage of the longer run as the manifest has them; seconds an epoch or a step, by
the difference of both, so that what is compiled or prepared does not count; both of the first as a
multiple; and how far the weights are from the first's. No compiled program is kept. Appends a line
to benchmarks/processes.jsonl.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

FILES = {"zoo": "zoo/zoo.safetensors", "hyperrep/lwln": "hyperrep/lwln.safetensors",
         "denoiser": "denoiser/denoiser.safetensors"}  # fmt: skip


def command(scale: str, members: int, epochs: int, steps: int, folder: Path) -> list[str]:
    return [
        sys.executable, str(common.ROOT / "train.py"), f"--config=configs/digits.py:{scale}",
        f"--workdir={folder}", f"--config.zoo.num_members={members}",
        f"--config.zoo.epochs={epochs}", f"--config.zoo.snapshots=({epochs - 1},{epochs})",
        f"--config.autoencoder.data.epochs_seen=({epochs - 1},{epochs})",
        "--config.autoencoder.training.select=last",
        f"--config.autoencoder.training.steps={steps}", f"--config.denoiser.training.steps={steps}",
    ]  # fmt: skip


def train(words: list[str], count: int, folder: Path) -> dict[str, float]:
    """Seconds of the stages of a command, by so many processes of one core each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    processes = []
    for number, core in zip(range(count), common.cores(), strict=False):
        own = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        own |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        own |= cluster | {"JAX_PROCESS_ID": str(number)} if count > 1 else {}
        pinned = ["taskset", "-c", str(core), *words, *(["--multihost"] if count > 1 else [])]
        processes.append(subprocess.Popen(pinned, cwd=common.ROOT, env=own, stdout=subprocess.PIPE))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(b"\n".join(outputs).decode())
    return json.loads((folder / "manifest.json").read_text())[-1]["stages"]


def apart(ours: Path, theirs: Path) -> float:
    """The greatest difference of two files' numbers, as a share of the greatest number of each
    tensor."""
    from safetensors.numpy import load_file

    both, found = (load_file(ours), load_file(theirs)), [0.0]
    for name, values in both[0].items():
        if values.dtype == np.float32 and values.size:
            largest = np.nanmax(np.abs(values))
            found.append(np.nanmax(np.abs(values - both[1][name])) / (largest or 1))
    return float(max(found))


def show(results: dict[int, dict[str, Any]]) -> Table:
    table = Table(title="train.py: seconds by stage")
    columns = ["stage", "processes", "seconds", "first / it", "an epoch or step", "first / it"]
    for column in (*columns, "apart from the first's"):
        table.add_column(column, justify="right")
    first = next(iter(results.values()))
    for stage in FILES:
        for count, found in results.items():
            cells = [stage, str(count)]
            for part in ("stages", "each"):
                seconds, base = found[part][stage], first[part][stage]
                cells += [f"{seconds:.3g}", f"{base / seconds:.2f}"]
            far = f"{found['apart'][stage]:.0e}" if found["apart"][stage] else "equal to the bit"
            table.add_row(*cells, far)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=common.sizes, default=[1, 2])
    parser.add_argument("--scale", default="large", help="of configs/digits.py")
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="of autoencoder and denoiser")
    args = parser.parse_args()
    if max(args.processes) > len(common.cores()):
        parser.error(f"--processes: there are {len(common.cores())} cores")
    results: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in args.processes:
            own, begin = Path(folder) / str(count), Path(folder) / str(args.processes[0])
            short = Path(folder) / f"short{count}"
            less = train(command(args.scale, args.members, 2, 1, short), count, short)
            longer = command(args.scale, args.members, args.epochs, args.steps, own)
            stages = train(longer, count, own)
            more = {stage: args.steps - 1 for stage in FILES} | {"zoo": args.epochs - 2}
            each = {stage: (stages[stage] - less[stage]) / more[stage] for stage in FILES}
            far = {stage: apart(begin / name, own / name) for stage, name in FILES.items()}
            results[count] = {"stages": stages, "each": each, "apart": far}
    common.record(__file__, settings=vars(args), results=results)
    Console().print(show(results))


if __name__ == "__main__":
    cli.run(main)
