"""Four virtual devices, no silent rank promotion, warnings are errors (pyproject)."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("HYPERJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "4"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
