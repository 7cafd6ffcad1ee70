"""Where the scripts run."""

import os
import shutil

import pytest
from script_calls import SMOKE, call


@pytest.fixture(scope="session")
def env():
    """Two devices."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}


@pytest.fixture(scope="session")
def finished(env, tmp_path_factory):
    """A workdir made by one uninterrupted run of train.py, with a denoiser too: not to be changed,
    `trained` is a copy."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = call(
        env, "train.py", f"--config={SMOKE}", f"--workdir={folder}",
        "--config.denoiser.training.steps=6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """A copy of it for the tests of a file."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "smoke")


def pytest_collection_modifyitems(items):
    """Tests that run commands as a user does are `end_to_end`: `make end-to-end` has them."""
    for item in items:
        if "env" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.end_to_end)
