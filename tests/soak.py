"""Train, sample and evaluate at smoke size again and again in one process, and see what grows.

    python tests/soak.py --minutes=30

Each round has a workdir of its own, which is deleted after it. Nothing may grow by more than
`BOUNDS` a round, by a line through the rounds after the first `SETTLED`, the size of that workdir
included. Exits with 1 if anything does.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs

SETTLED = 3  # rounds until caches are full
BOUNDS = {  # growth a round
    "anonymous MB": 2.0, "open files": 0.05, "threads": 0.05, "memory maps": 20.0,
    "cache MB": 0.01, "workdir MB": 0.001, "temporary files": 0.05,
}  # fmt: skip


def measured(folder: Path, cache: Path) -> dict[str, float]:
    """What there is now, by the names of `BOUNDS`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "anonymous MB": int(status["RssAnon"].split()[0]) / 1e3,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "memory maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "cache MB": size_of(cache),
        "workdir MB": size_of(folder),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def size_of(folder: Path) -> float:
    """MB of the files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def work(folder: Path) -> None:
    """One round."""
    from configs import digits
    from hyperjax import paper
    from hyperjax.app import evaluate, sample, train
    from hyperjax.config import from_dict

    config = digits.get_config("smoke")
    config.denoiser.training.steps = 6
    train.run(from_dict(config.to_dict()), folder)
    sample.run(folder, "polish:joint", 5)
    experiments = ("fig2", "tab1", "novelty")
    request = evaluate.Request(experiments, samplers=("kde30", "average", "repair:average"))
    evaluate.run(folder, paper, request)


def growth(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The slope of each measure over the rounds after the first ones."""
    counted = rounds[SETTLED:]
    return {
        name: float(np.polyfit(range(len(counted)), [r[name] for r in counted], 1)[0])
        for name in BOUNDS
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="soak"))
    cache, folder = scratch / "compiled", scratch / "run"
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    from hyperjax.app import cli, progress

    cli.configure_jax()
    progress.console.quiet = True
    rounds, end = [], time.monotonic() + 60 * given.minutes
    try:
        while time.monotonic() < end or len(rounds) < SETTLED + 2:
            begun = time.monotonic()
            work(folder)
            rounds.append(measured(folder, cache))
            shutil.rmtree(folder)
            line = ", ".join(f"{value:.6g} {name}" for name, value in rounds[-1].items())
            print(f"{len(rounds)}: {time.monotonic() - begun:.0f} s, {line}", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = growth(rounds)
    for name, value in found.items():
        print(f"{name:16} {value:+.4f} a round, bound {BOUNDS[name]}")
    return int(any(value > BOUNDS[name] for name, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
