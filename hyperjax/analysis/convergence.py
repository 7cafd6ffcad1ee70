"""Do reconstructed models become their originals while they are fine-tuned? (paper figure 6)"""

from typing import NamedTuple

import jax
import numpy as np

from hyperjax.types import Array, Key
from hyperjax.zoo import Zoo, test_accuracy

ORIGINAL, RECONSTRUCTED, NOISY = "original", "reconstructed", "original + noise"


class Convergence(NamedTuple):
    """Populations of the same M members, by name; E epochs of fine-tuning."""

    epochs: np.ndarray  # int32[E]
    accuracy: dict[str, np.ndarray]  # float32[E, M] on test images
    distance: dict[str, np.ndarray]  # float32[E, M]: Euclidean, to the original at that epoch
    cosine: dict[str, np.ndarray]  # float32[E, M]: cosine of the angle to the original then


def with_noise(vectors: Array, reconstructed: Array, key: Key) -> np.ndarray:
    """Originals float32[M, D], as far from themselves as their reconstructions, but in random
    directions: tells what a reconstruction's direction is worth."""
    noise = np.asarray(jax.random.normal(key, vectors.shape))
    size = np.linalg.norm(reconstructed - vectors, axis=1, keepdims=True)
    return vectors + noise * size / np.linalg.norm(noise, axis=1, keepdims=True)


def compare(populations: dict[str, Zoo]) -> Convergence:
    """Compare populations of the same members, fine-tuned with the same order of images.

    `populations` has ORIGINAL, and others whose member i started near original i.
    """
    original = populations[ORIGINAL]
    accuracy, distance, cosine = {}, {}, {}
    for name, models in populations.items():
        accuracy[name] = np.stack([test_accuracy(models, epoch) for epoch in models.epochs])
        if name != ORIGINAL:
            pairs = np.asarray(original.weights, np.float64), np.asarray(models.weights, np.float64)
            norms = [np.linalg.norm(weights, axis=2) for weights in pairs]
            distance[name] = np.linalg.norm(pairs[0] - pairs[1], axis=2).T
            cosine[name] = (np.sum(pairs[0] * pairs[1], axis=2) / (norms[0] * norms[1])).T
    return Convergence(np.asarray(original.epochs), accuracy, distance, cosine)
