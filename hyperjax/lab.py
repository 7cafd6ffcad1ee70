"""A laboratory: images on the devices, and the engine that runs populations on them."""

from typing import NamedTuple

import jax
import numpy as np

from hyperjax import population
from hyperjax.errors import HyperJaxError
from hyperjax.population import Engine, Evaluation, Images
from hyperjax.types import Array


class Lab(NamedTuple):
    """What evaluating and training CNNs needs."""

    engine: Engine
    train: Images
    val: Images
    test: Images


def evaluate(lab: Lab, vectors: Array, images: Images, chunk: int = 512) -> Evaluation:
    """Evaluate flat vectors float32[M, D] as networks; host arrays over M."""
    count = len(vectors)
    if count == 0:
        raise HyperJaxError("the population is empty: expected at least one model to evaluate")
    size = min(chunk, population.padded(lab.engine, count))
    parts = []
    for begin in range(0, count, size):
        rows = np.asarray(vectors[begin : begin + size], np.float32)
        placed = population.place_members(lab.engine, rows, size)
        result = population.evaluate_vectors(lab.engine, placed, images)
        parts.append(jax.tree.map(np.asarray, result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
