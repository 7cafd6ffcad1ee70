"""Aliases that name what an array is. No code."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Key = jax.Array  # a typed PRNG key, `jax.random.key(seed)`
Params = Any  # a linen parameter tree
Metrics = Mapping[str, Array]
