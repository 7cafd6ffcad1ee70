"""The package as such: its version, and what importing it costs."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import hyperjax

ROOT = Path(__file__).parents[1]


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == hyperjax.__version__
    assert f"version: {hyperjax.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()


def test_importing_the_package_imports_no_library():
    script = "import sys, json, hyperjax; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert "hyperjax" in top
    assert not top & {
        "absl", "flax", "jax", "matplotlib", "ml_collections", "numpy", "optax", "orbax", "rich",
        "scipy", "sklearn", "tensorflow", "tensorflow_datasets", "umap",
    }  # fmt: skip
