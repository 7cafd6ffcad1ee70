"""How models and populations behave: diversity, ensembles, overlap of errors.

Diverged models (logits or weights that are not finite) are for the caller to leave out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.types import Array

_BLOCK_BYTES = 2**26  # of training models' errors or overlaps, as numbers, at a time


@jax.jit
def pairwise_disagreement(predictions: Array) -> Array:
    """Share of images on which two distinct models differ, averaged over all pairs.

    Takes predicted classes int[M, N]; gives a float32 scalar in [0, 1], NaN for one model.
    """
    num_models = predictions.shape[0]
    pairs = num_models * (num_models - 1) // 2
    if pairs == 0:
        return jnp.float32(jnp.nan)
    # Sort each image's predictions, so that a class is a run. The element at offset k of its
    # run agrees with the k before it; hence a run of n gives n (n - 1) / 2 agreeing pairs.
    ordered = jnp.sort(predictions, axis=0)
    index = jnp.arange(num_models)[:, None]
    opens_run = jnp.concatenate([jnp.ones_like(ordered[:1], bool), ordered[1:] != ordered[:-1]])
    run_start = jax.lax.cummax(jnp.where(opens_run, index, 0))
    agreeing = jnp.sum(index - run_start, axis=0)
    return jnp.mean((pairs - agreeing).astype(jnp.float32)) / pairs


def disagreement(task: Task, vectors: Array) -> float:
    """Mean share of test images on which two models of float32[M, D] differ.

    Diverged models are left out; NaN if fewer than two are there.
    """
    finite = vectors[np.isfinite(vectors).all(axis=1)]
    if len(finite) < 2:
        return float("nan")
    return float(pairwise_disagreement(evaluation.evaluate(task, finite, task.test).predictions))


@jax.jit
def ensemble_accuracy(probabilities: Array, labels: Array, members: Array) -> Array:
    """Accuracy f32[K] of K ensembles of models with probabilities f[M, N, C].

    An ensemble predicts the class of the largest mean probability. (The paper does not say how
    those of its figure 5 do.)

    `members` bool[K, M] says which models each ensemble has; labels are int[N].
    """

    def one(chosen):
        sums = jnp.tensordot(chosen.astype(probabilities.dtype), probabilities, 1)
        return jnp.mean(jnp.argmax(sums, axis=-1) == labels, dtype=jnp.float32)

    return jax.lax.map(one, members)


def error_bits(predictions: Array, labels: Array) -> np.ndarray:
    """Which images are classified wrongly, eight to a byte: of predictions int[..., N] and true
    classes int[N], uint8[..., ceil(N / 8)]."""
    return np.packbits(np.asarray(predictions) != np.asarray(labels), axis=-1)


@jax.jit
def error_overlaps(errors: Array, train_errors: Array) -> Array:
    """Behavioural similarity of models and training models, float32[M, T].

    It is the intersection over union of the sets of wrongly classified images (Zeng et al.,
    arXiv 2506.07998). Two models without errors overlap by 1.

    Args:
      errors: uint8[M, B], the models' `error_bits`.
      train_errors: uint8[T, B], those of the training models.
    """
    wrong, train_wrong = (
        jnp.unpackbits(bits, axis=1).astype(jnp.float32) for bits in (errors, train_errors)
    )
    both = wrong @ train_wrong.T  # counts, exact in float32 up to 2**24 images
    either = jnp.sum(wrong, axis=1)[:, None] + jnp.sum(train_wrong, axis=1)[None, :] - both
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


class Overlap(NamedTuple):
    """Of M models' errors with those of training models."""

    largest: np.ndarray  # float32[M]: with any snapshot of any training model
    parent_gap: np.ndarray  # float64[M]: largest with a last snapshot, less the mean with all


def error_overlap(errors: Array, train_errors: Array, *, own: Array | None = None) -> Overlap:
    """The largest of each model's `error_overlaps` with training models, in blocks of these.

    The largest alone is nearly a function of accuracy: few errors overlap little. Less the mean
    overlap with all training models, it is large for the child of one, and for others as large
    as for networks that were trained by themselves. A model without errors has no parent.

    Args:
      errors: uint8[M, B], the models' `error_bits`.
      train_errors: uint8[T, E, B], those of all snapshots of the training models.
      own: int[M], the training model that each is a snapshot of and is not compared with.

    Raises HyperJaxError if there is nothing to compare with.
    """
    members, snapshots, _ = train_errors.shape
    others = members - (own is not None)
    if others < 1:
        raise HyperJaxError(
            f"cannot compare models with {members} reference models; "
            f"expected at least {1 + (own is not None)}"
        )
    largest, parent = np.full((2, len(errors)), -np.inf, np.float32)
    total = np.zeros(len(errors))
    widest = max(8 * train_errors.shape[2], len(errors))  # images, or models to compare with
    size = max(1, _BLOCK_BYTES // (4 * snapshots * widest))
    for begin in range(0, members, size):
        part = train_errors[begin : begin + size]
        overlaps = np.array(error_overlaps(errors, part.reshape(-1, part.shape[2])))
        overlaps = overlaps.reshape(len(errors), *part.shape[:2])
        counted = np.ones(overlaps.shape[:2], bool)
        if own is not None:
            counted = np.asarray(own)[:, None] != begin + np.arange(len(part))
            overlaps[~counted] = -np.inf
        largest = np.maximum(largest, overlaps.max(axis=(1, 2)))
        parent = np.maximum(parent, overlaps[:, :, -1].max(axis=1))
        total += np.sum(overlaps[:, :, -1], axis=1, where=counted, dtype=np.float64)
    return Overlap(largest, parent - total / others)
