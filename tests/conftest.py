"""Four virtual devices, quick compilation, no silent rank promotion; warnings are errors."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("HYPERJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# Tests compile much and compute little: without LLVM's optimisations they take a third of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
