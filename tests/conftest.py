"""Four virtual devices, quick compilation, no silent rank promotion; warnings are errors.

Nothing that an earlier run compiled is used, and nothing is written to the user's home.
"""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("HYPERJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# Tests compile much and compute little: without LLVM's optimisations they take a third of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("NUMBA_OPT", "0")  # the same for UMAP

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
