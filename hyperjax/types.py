"""What arrays are: aliases, and images with what belongs to them."""

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
Key = jax.Array  # a typed PRNG key, `jax.random.key(seed)`
Params = Any  # a linen parameter tree


class Images(NamedTuple):
    """One split of an image data set, on the host or on devices, and its normalisation."""

    pixels: Array  # uint8[N, H, W, C]
    labels: Array  # int32[N], from 0
    mean: Array  # float32[C], of pixels / 255
    std: Array  # float32[C]
