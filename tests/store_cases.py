"""A zoo to write and read, and files that another process writes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from hyperjax.weights import LayerSpec, WeightSpec
from hyperjax.zoo import METRICS, Zoo

SPEC = WeightSpec((LayerSpec("a", "dense", (2, 2)), LayerSpec("b", "dense", (1, 2))), "tanh")
INFO = {"dataset": "digits", "learning_rate": 3e-4, "nested": {"seed": 0, "unicode": "π"}}


def bytes_of_another_process(module: Path, code: str, path: Path) -> bytes:
    """What `code` writes to `sys.argv[1]` where `module` is imported as `t`, with another order of
    hashes; the bytes of that file, beside `path`."""
    other, here = path.with_name("other"), module.parent
    folders = os.pathsep.join((str(here), str(here.parent)))
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": folders}
    program = f"import sys, jax, {module.stem} as t\n{code}"
    subprocess.run([sys.executable, "-c", program, str(other)], check=True, env=env)
    return other.read_bytes()


def make_zoo() -> Zoo:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 3, 9)).astype(np.float32)
    values[1, 2, 3] = np.nan
    metrics = {name: rng.random((5, 3), np.float32) for name in METRICS}
    return Zoo(SPEC, values, np.int32([0, 1, 25]), np.arange(7, 12), metrics, INFO)


def assert_same(ours: Zoo, theirs: Zoo) -> None:
    assert ours.spec == theirs.spec
    assert ours.info == theirs.info
    assert (ours.latents is None) == (theirs.latents is None)
    if ours.latents is not None:
        np.testing.assert_array_equal(ours.latents, theirs.latents)
    for name in ("weights", "epochs", "members"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert set(ours.metrics) == set(theirs.metrics)
    for name, values in ours.metrics.items():
        np.testing.assert_array_equal(values, theirs.metrics[name])
