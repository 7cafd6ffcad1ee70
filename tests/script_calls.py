"""Calls of the three scripts, as a user makes them, and what they have made."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hyperjax.store import hyperrep_file, zoo_file

ROOT = Path(__file__).parents[1]
SMOKE = "configs/digits.py:smoke"
SLOW = 600  # seconds; a hang is a failure


def call(env, *arguments):
    """Run a script from the repository's root."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=SLOW,
    )  # fmt: skip


def wait_for(folder: Path, sign: str, processes) -> None:
    deadline = time.monotonic() + SLOW
    while not list(folder.glob(sign)):
        assert all(p.poll() is None for p in processes), "training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def same_results(
    one: Path, other: Path, names=("lwln", "no_lwln", "vae"), log_tolerance: float = 0
) -> None:
    zoos = [zoo_file.read(folder / "zoo" / "zoo.safetensors") for folder in (one, other)]
    np.testing.assert_array_equal(zoos[0].weights, zoos[1].weights)
    for name, values in zoos[0].metrics.items():
        np.testing.assert_array_equal(values, zoos[1].metrics[name])
    for name in names:
        files = [folder / "hyperrep" / f"{name}.safetensors" for folder in (one, other)]
        (a, info_a), (b, info_b) = map(hyperrep_file.read, files)
        assert info_a == info_b
        for leaf_a, leaf_b in zip(leaves(a.params), leaves(b.params), strict=True):
            np.testing.assert_array_equal(leaf_a, leaf_b)
    stages = ("zoo", *(f"hyperrep/{name}" for name in names))
    logs = [
        [line for line in (folder / "metrics.jsonl").read_text().splitlines()
         if json.loads(line)["stage"] in stages]
        for folder in (one, other)
    ]  # fmt: skip
    assert logs[0]
    if not log_tolerance:
        assert logs[0] == logs[1]
    for line, other_line in zip(*logs, strict=True):
        ours, theirs = json.loads(line), json.loads(other_line)
        assert ours.pop("stage") == theirs.pop("stage")
        for record in (ours, theirs):  # nested: the zoo's correlation by layer
            record |= record.pop("init_correlation", {})
        assert ours == pytest.approx(theirs, rel=log_tolerance, abs=log_tolerance)


def leaves(tree):
    return [x for v in tree.values() for x in leaves(v)] if isinstance(tree, dict) else [tree]
