"""Zoo files: time against the disk's own bandwidth, memory against the file's size.

    python benchmarks/zoo_io.py [--members=1000] [--snapshots=51] [--folder=.] [--repeats=3]

Prints a table and appends a JSON line to benchmarks/zoo_io.jsonl. Every measurement is a fresh
process, and rounds alternate, so that a busy machine slows all of them; the best round counts,
and the line holds all. What writes does so twice, and the second time counts: on a virtual
machine the host hands out memory that is new to the page cache more slowly than disks write.

The page cache is emptied of a file before it is read, where the system permits; "cached" says
how much of it was left. Memory is what the process has beyond its imports, at its highest:
"anonymous" is what it really needs (sampled every few milliseconds), "with mapped pages" adds
pages of the file, which the kernel takes back when it wants them.

Filling falls behind the disk because its pages are faulted in one by one, which costs some 10 ms
a snapshot of 1000 members. Loading a few epochs makes the kernel read ahead over those between.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

_BLOCK = 2**23  # bytes of one plain write or read
_PROBES = 256
_SAMPLE_SECONDS = 0.003
STAGES = {  # name: what it does, the file it leaves or reads
    "disk write": ("plain sequential write and fsync", "plain"),
    "disk read": ("plain sequential read", "plain"),
    "write": ("zoo_file.write of a zoo in memory", "zoo"),
    "fill": ("allocate, one snapshot of all members after another, flush, publish", "zoo"),
    "read all": ("zoo.valid_members: every weight, from the memory map", "zoo"),
    "load": ("weight_data.load: the five epochs that an autoencoder sees", "zoo"),
}

WRITES = ("disk write", "write", "fill")


def plain(path: Path, size: int) -> dict[str, Callable[[], int]]:
    """What the disk itself can do with as many bytes."""

    def disk_write() -> int:
        block = np.random.default_rng(0).bytes(min(_BLOCK, size))
        with open(path, "wb", buffering=0) as file:
            for _ in range(size // len(block)):
                file.write(block)
            os.fsync(file.fileno())
        return size // len(block) * len(block)

    def disk_read() -> int:
        block, total = bytearray(_BLOCK), 0
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(block):
                total += count
        return total

    return {"disk write": disk_write, "disk read": disk_read}


def prepare(stage: str, path: Path, members: int, snapshots: int) -> Callable[[], int]:
    """A stage up to where its clock starts: a call that does it and returns the bytes it moved."""
    import jax

    from hyperjax import zoo
    from hyperjax.config import WeightDataConfig
    from hyperjax.hyperrep import weight_data
    from hyperjax.models.architectures import zoo_cnn_spec
    from hyperjax.store import zoo_file

    jax.devices()  # else JAX's own memory would count
    spec, rows, epochs = zoo_cnn_spec(1, "tanh"), np.arange(members), np.arange(snapshots)
    size, rng = 4 * members * snapshots * spec.num_params, np.random.default_rng(0)

    def write() -> int:
        zoo_file.write(path, models)
        return size

    def fill() -> int:
        partial = path.with_suffix(".partial")
        zoo_file.allocate(partial, spec, rows, epochs, {})
        for column in range(snapshots):
            tensors = {f"metrics/{name}": np.full(members, column) for name in zoo.METRICS}
            zoo_file.put(partial, rows, column, tensors | {"weights": vectors})
        zoo_file.seal(partial)
        zoo_file.publish(partial, path)
        return size

    def read_all() -> int:
        assert zoo.valid_members(zoo_file.read(path)).all()
        return size

    def load() -> int:
        last = snapshots // 2  # the epochs before and up to it: 21 to 25 of 50, as in the paper
        seen = tuple(range(max(0, last - 4), last + 1))
        config = WeightDataConfig(align=False, epochs_seen=seen)
        parts = zoo.Split(*np.array_split(rows, 3))
        data = weight_data.load(config, zoo_file.read(path), parts, np.zeros(spec.num_params))
        return sum(part.nbytes for part in data[:3])

    if stage == "write":
        values = rng.random((members, snapshots, spec.num_params), np.float32)
        metrics = {name: values[:, :, 0] for name in zoo.METRICS}
        models = zoo.Zoo(spec, values, epochs, rows, metrics)
    if stage == "fill":
        vectors = rng.random((members, spec.num_params), np.float32)
    calls = {"write": write, "fill": fill, "read all": read_all, "load": load}
    return (plain(path, size) | calls)[stage]


def measure(stage: str, path: Path, members: int, snapshots: int) -> dict:
    """In a process of its own: seconds, bytes and memory of one stage."""
    prepare("read all", path, members, snapshots)  # whatever is imported is imported now
    before, rss = memory("RssAnon"), memory("VmRSS")
    stage_call = prepare(stage, path, members, snapshots)
    if stage in WRITES:
        stage_call()
        path.unlink()  # leaves its share of the page cache to the second time
    disk, start = read_bytes(), time.perf_counter()
    moved = stage_call()
    seconds = time.perf_counter() - start
    highest = memory("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "bytes": moved,
        "read_from_disk": None if disk is None else read_bytes() - disk,
        "anonymous_before": before,
        "rss_growth": highest - rss if rss else highest,
    }


def memory(field: str, pid: int | str = "self") -> int | None:
    """Bytes, from the kernel's account of a process; None where there is none."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    except OSError:  # no such system, or the process has ended
        pass
    return None


def read_bytes() -> int | None:
    """What this process has made the disk read so far."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["read_bytes"])
    except OSError:
        return None


def forget(path: Path) -> float | None:
    """Empty the page cache of a file; the share of it that is still cached, None if unknown."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())  # only what is on disk can be dropped
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not hasattr(os, "RWF_NOWAIT"):
            return None
        hits = 0
        for offset in np.linspace(0, path.stat().st_size - 1, _PROBES).astype(int).tolist():
            try:  # answers from the cache or not at all
                hits += os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError:  # not on this file system
                return None
    return hits / _PROBES


def run_stage(stage: str, path: Path, args: argparse.Namespace) -> dict:
    """Measure a stage in a fresh process, watching its memory from here."""
    cached = forget(path) if path.exists() else None
    command = [
        sys.executable, __file__, f"--stage={stage}", f"--folder={path}",
        f"--members={args.members}", f"--snapshots={args.snapshots}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    highest = 0
    while process.poll() is None:
        highest = max(highest, memory("RssAnon", process.pid) or 0)
        time.sleep(_SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(process.returncode)  # it has said why
    result = json.loads(process.stdout.read())
    before = result.pop("anonymous_before")
    growth = None if before is None else max(0, highest - before)
    return result | {"anonymous_growth": growth, "cached": cached}


def report(best: dict[str, dict], size: int) -> Table:
    table = Table(title=f"Zoo files, {size / 1e6:,.0f} MB of weights", caption_justify="left")
    for title in ("operation", "seconds", "MB/s", "of the disk's MB/s", "read from disk, MB",
                  "cached", "anonymous / size", "with mapped pages / size"):  # fmt: skip
        table.add_column(title, justify="left" if title == "operation" else "right")

    def text(value: float | None, form: str) -> str:
        return "unknown" if value is None else format(value, form)

    for stage, found in best.items():
        rate = found["bytes"] / found["seconds"]
        reads = stage not in WRITES
        plain = best["disk read" if reads else "disk write"]
        from_disk = found["read_from_disk"]
        table.add_row(
            stage,
            f"{found['seconds']:.2f}",
            f"{rate / 1e6:,.0f}",
            f"{rate / (plain['bytes'] / plain['seconds']):.0%}",
            text(None if from_disk is None else from_disk / 1e6, ",.0f") if reads else "",
            text(found["cached"], ".0%") if reads else "",
            text(None if (x := found["anonymous_growth"]) is None else x / size, ".2f"),
            f"{found['rss_growth'] / size:.2f}",
        )
    table.caption = "\n".join(f"{stage}: {what}" for stage, (what, _) in STAGES.items())
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--snapshots", type=int, default=51)
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:  # in a process of its own, on the file --folder
        print(json.dumps(measure(args.stage, args.folder, args.members, args.snapshots)))
        return
    from hyperjax.models.architectures import zoo_cnn_spec

    size = 4 * args.members * args.snapshots * zoo_cnn_spec(1, "tanh").num_params
    rounds: dict[str, list[dict]] = {stage: [] for stage in STAGES}
    with tempfile.TemporaryDirectory(prefix=".zoo_io-", dir=args.folder) as folder:
        for _ in range(args.repeats):
            for stage, (_, name) in STAGES.items():
                rounds[stage].append(run_stage(stage, Path(folder) / name, args))
    best = {
        stage: min(found, key=lambda x: x["seconds"]) | {"rounds": [x["seconds"] for x in found]}
        for stage, found in rounds.items()
    }
    sizes = {"members": args.members, "snapshots": args.snapshots, "size": size}
    common.record(__file__, **sizes, results=best)
    Console(width=130).print(report(best, size))


if __name__ == "__main__":
    cli.run(main)
