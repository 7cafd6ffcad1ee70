"""Where the scripts run."""

import os

import pytest


@pytest.fixture(scope="session")
def env(tmp_path_factory):
    """Two devices, and one compilation cache for all calls of a test process."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
