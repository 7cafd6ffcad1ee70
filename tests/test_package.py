"""The package as such: its version, and what importing it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hyperjax

ROOT = Path(__file__).parents[1]


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == hyperjax.__version__
    assert f"version: {hyperjax.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()


def imported(*command: str) -> set[str]:
    """Modules that a Python command imports."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True
    )
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_importing_the_package_imports_no_library():
    found = packages(imported("-c", "import hyperjax"))
    assert "hyperjax" in found
    assert not found & {
        "absl", "flax", "jax", "matplotlib", "ml_collections", "numpy", "optax", "orbax", "rich",
        "scipy", "sklearn", "tensorflow", "tensorflow_datasets", "umap",
    }  # fmt: skip


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_help_does_not_wait_for_jax(script):
    found = packages(imported(script, "--help"))
    assert "absl" in found
    assert not found & {"flax", "jax", "numpy", "scipy"}


def test_what_is_slow_is_imported_where_it_is_needed():
    found = imported("-c", "import hyperjax.app.evaluate")
    assert "hyperjax.app.run" in found
    assert not found & {"matplotlib", "orbax.checkpoint", "scipy.stats", "sklearn"}
