"""How models and populations behave: diversity, ensembles and novelty. Pure JAX.

Diverged models (logits or weights that are not finite) are for the caller to leave out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.errors import HyperJaxError, unknown
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.types import Array

ENSEMBLES = ("softmax", "logits", "vote")


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


@functools.partial(jax.jit, static_argnames="how")
def ensemble_scores(logits: Array, how: str = "softmax") -> Array:
    """What each model f[M, N, C] contributes to an ensemble: the ensemble of some models predicts
    the class with the largest sum of their scores f[M, N, C].

    Args:
      how: "softmax" averages probabilities; "logits" averages logits; "vote" takes the
        majority of the models' predictions, ties going to the larger mean probability.

    Raises HyperJaxError on another `how`. (The paper does not say which one its figure 5 uses.)
    """
    if how not in ENSEMBLES:
        raise unknown("ensemble", how, ENSEMBLES)
    if how == "logits":
        return logits
    probabilities = jax.nn.softmax(logits)
    if how == "softmax":
        return probabilities
    # All probabilities together stay below one vote: they settle ties only.
    votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return votes + probabilities / (2 * len(logits))


@jax.jit
def ensemble_accuracy(scores: Array, labels: Array, members: Array) -> Array:
    """Accuracy f32[K] of K ensembles of the models with `ensemble_scores` f[M, N, C].

    `members` bool[K, M] says which models each ensemble has; labels are int[N].
    """

    def one(chosen):
        sums = jnp.tensordot(chosen.astype(scores.dtype), scores, 1)
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


@functools.partial(jax.jit, static_argnames="exclude_self")
def nearest_distance(vectors: Array, anchors: Array, *, exclude_self: bool = False) -> Array:
    """Euclidean distance of each vector f[M, D] to the nearest of the anchors f[T, D], float32[M].

    Sums squared differences, one vector at a time. The shorter way over inner products
    cancels in float32, and loses just the small distances by which replicas are known.

    Args:
      exclude_self: the vectors are the anchors: compare each with the others only.

    Raises HyperJaxError if there is nothing to compare with.
    """
    _check_references(vectors, anchors, exclude_self)

    def one(item):
        index, vector = item
        squares = jnp.sum(jnp.square(anchors - vector[None, :]), axis=1)
        if exclude_self:
            squares = squares.at[index].set(jnp.inf)
        return jnp.sqrt(jnp.min(squares))

    return jax.lax.map(one, (jnp.arange(len(vectors)), jnp.asarray(vectors)))


def novelty(vectors: Array, train_vectors: Array) -> float:
    """Mean distance of models f[M, D] to their nearest train model, in units of the mean distance
    of train models f[T, D] to their nearest other: 0 replays, 1 is as far as another member.

    Both must be aligned to one reference. Diverged models are left out; NaN if there is nothing
    to compare.
    """
    finite = vectors[np.isfinite(vectors).all(axis=1)]
    if len(train_vectors) < 2 or not len(finite):
        return float("nan")
    among = nearest_distance(train_vectors, train_vectors, exclude_self=True)
    return float(np.mean(nearest_distance(finite, train_vectors)) / np.mean(among))


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
