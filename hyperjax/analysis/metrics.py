"""How models and populations behave: diversity, ensembles, overlap of errors.

Diverged models (logits or weights that are not finite) are for the caller to leave out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.types import Array


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


@jax.jit
def error_overlaps(predictions: Array, train_predictions: Array, labels: Array) -> Array:
    """Behavioural similarity of models and training models, float32[M, T].

    It is the intersection over union of the sets of wrongly classified images (Zeng et al.,
    arXiv 2506.07998). Two models without errors overlap by 1.

    Args:
      predictions: int[M, N] classes that the models predict.
      train_predictions: int[T, N] those of the training models.
      labels: int[N] true classes.
    """
    wrong = (predictions != labels[None, :]).astype(jnp.float32)
    train_wrong = (train_predictions != labels[None, :]).astype(jnp.float32)
    both = wrong @ train_wrong.T  # counts, exact in float32 up to 2**24 images
    either = jnp.sum(wrong, axis=1)[:, None] + jnp.sum(train_wrong, axis=1)[None, :] - both
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


@functools.partial(jax.jit, static_argnames="exclude_self")
def error_overlap(
    predictions: Array, train_predictions: Array, labels: Array, *, exclude_self: bool = False
) -> Array:
    """The largest of each model's `error_overlaps` with training models, float32[M].

    Args:
      exclude_self: the models are the training models: compare each with the others only.

    Raises HyperJaxError if there is nothing to compare with.
    """
    _check_references(predictions, train_predictions, exclude_self)
    overlap = error_overlaps(predictions, train_predictions, labels)
    if exclude_self:
        overlap = jnp.where(jnp.eye(len(overlap), dtype=bool), -jnp.inf, overlap)
    return jnp.max(overlap, axis=1)


def _check_references(models: Array, references: Array, exclude_self: bool) -> None:
    if exclude_self and len(models) != len(references):
        raise HyperJaxError(
            f"exclude_self: got {len(models)} models and {len(references)} references, "
            "expected the same models twice"
        )
    if len(references) <= exclude_self:
        raise HyperJaxError(
            f"cannot compare models with {len(references)} reference models; "
            f"expected at least {1 + exclude_self}"
        )
