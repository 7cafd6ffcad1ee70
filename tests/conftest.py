"""Four virtual devices, quick compilation, no silent rank promotion; warnings are errors. No
network and no pickle, nor in the scripts' processes (`guards`).

What is compiled is kept for the processes of this run alone. Nothing that an earlier run compiled
is used, and nothing is written to the user's home.
"""

import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("HYPERJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["JAX_COMPILATION_CACHE_DIR"] = (  # the first process's, which others inherit
    os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "PYTEST_XDIST_WORKER" in os.environ
    else tempfile.mkdtemp(prefix="compiled")
)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Tests compile much and compute little: without LLVM's optimisations they take a third of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("NUMBA_OPT", "0")  # the same for UMAP

import runpy
from pathlib import Path

import jax
import pytest

_GUARDS = Path(__file__).parent / "guards"
runpy.run_path(str(_GUARDS / "sitecustomize.py"))
_PATHS = (str(_GUARDS), os.environ.get("PYTHONPATH", ""))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))

jax.config.update("jax_numpy_rank_promotion", "raise")


_MAPS, _MOST_MAPS = Path("/proc/self/maps"), 30_000


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Forget compiled programs before they are too many: each takes memory maps, of which Linux
    gives a process 65,530, and XLA crashes where it gets no more."""
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
