"""What the benchmarks share: ceilings of the machine, alternating rounds, peers, records."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
TORCH_PYTHON = "HYPERJAX_TORCH_PYTHON"  # a Python that has torch, if this one has not


def small_autoencoder() -> Any:
    """The autoencoder of configs/digits.py:small."""
    return configurations().SMALL_AUTOENCODER


def configurations() -> Any:
    """The module configs/common.py."""
    if str(ROOT) not in sys.path:  # a script has its own folder there
        sys.path.append(str(ROOT))
    from configs import common

    return common


def cores() -> list[int]:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def ceilings() -> dict[str, float]:
    """Measured here and now: float32 products on all devices at once, and copies on one."""
    import jax
    import jax.numpy as jnp

    from hyperjax.app import machine

    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.asarray(devices), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    x = jax.device_put(jnp.full((len(devices), 1024, 1024), 1e-3), sharding)
    multiply = jax.jit(lambda x: x @ x)
    seconds = best_of(lambda: jax.block_until_ready(multiply(x)), 5)
    buffer = np.ones(2**26, np.float32)  # 256 MB
    copied = best_of(lambda: np.copyto(np.empty_like(buffer), buffer), 3)
    return {
        "matmul_gflops": len(devices) * 2 * 1024**3 / seconds / 1e9,
        "matmul_gflops_one_device": machine.matmul_rate(devices[0]) / 1e9,
        "copy_gb_per_s": 2 * buffer.nbytes / copied / 1e9,
    }


def best_of(run: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest of `rounds` runs, after one that is not counted."""
    run()
    return min(timed(run) for _ in range(rounds))


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender, `rounds` times in turn, so that a busy moment hits all.

    Each entry runs once and returns the seconds that it took; the first time is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = run()
            if number:
                seconds[name].append(took)
    return seconds


def spread(work: float, seconds: list[float]) -> dict[str, float]:
    """Rates of the rounds: best, median, worst."""
    rates = work / np.asarray(seconds)
    return {"best": rates.max(), "median": float(np.median(rates)), "worst": rates.min()}


# --- where time goes -----------------------------------------------------------------------


def profile(program: str, run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call of `run` by what computes them, as "forward conv1/dot_general": pass,
    layer and operation. `program` is the compiled text of what `run` calls."""
    import jax

    named = re.findall(r'%?([\w.\-]+) = .*?op_name="([^"]*)"', program)
    labels = {name: _label(path) for name, path in named}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found: dict[str, float] = defaultdict(float)
    for event in events:
        name = event.get("args", {}).get("hlo_op", "while")
        if name.split(".")[0] not in ("while", "call", "conditional"):  # their parts count
            found[labels.get(name, name.rstrip(".0123456789"))] += event["dur"] / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _label(path: str) -> str:
    """Of the path that JAX gives an operation."""
    moment = "forward" if "jvp(" in path else ""
    moment = "backward" if "transpose(jvp" in path else moment
    parts = [part for part in path.split("/") if "(" not in part and ")" not in part]
    parts = [part for part in parts if part not in ("while", "body", "closed_call")]
    return f"{moment} {'/'.join(parts[-2:])}".strip()


# --- PyTorch ------------------------------------------------------------------------------


def has_torch() -> bool:
    """Whether the peers can run; says how to get them if not."""
    done = subprocess.run([torch_python(), "-c", "import torch"], capture_output=True)
    if done.returncode:
        print(f"no PyTorch here: pip install -e .[bench], or {TORCH_PYTHON}=its Python")
    return done.returncode == 0


def torch_python() -> str:
    return os.environ.get(TORCH_PYTHON, sys.executable)


@contextmanager
def peers(groups: list[list[int]]) -> Iterator[Callable[[dict[str, Any]], float]]:
    """Start one PyTorch process for each group of cores; yields `request`, which has all of
    them do the same work at the same moment and returns the seconds of the slowest. Between
    requests they are stopped: a process that waits may still spin."""
    processes = [
        subprocess.Popen(
            [torch_python(), "-W", "ignore", str(FOLDER / "torch_peer.py"), ",".join(map(str, g))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for g in groups
    ]  # fmt: skip

    def request(work: dict[str, Any]) -> float:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.stdin.write(json.dumps(work) + "\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in processes]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        if not all(answers):
            raise RuntimeError(f"a PyTorch process died at {work}")
        return max(json.loads(answer)["seconds"] for answer in answers)

    try:
        yield request
    finally:
        for process in processes:
            process.stdin.close()
            process.kill()
            process.wait()


# --- results ------------------------------------------------------------------------------


def record(script: str, **facts: Any) -> None:
    """Append one line with versions, commit, devices and figures to the benchmark's .jsonl file."""
    from hyperjax.store import workdir
    from hyperjax.store.files import to_jsonable

    entry = workdir.describe_run(workdir.command_line(), cores_used=cores(), **facts)
    with open(Path(script).with_suffix(".jsonl"), "a") as file:
        file.write(json.dumps(to_jsonable(entry), allow_nan=False) + "\n")


def sizes(text: str) -> list[int]:
    """A comma-separated option."""
    return [int(x) for x in text.split(",")]
