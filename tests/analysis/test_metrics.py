import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import softmax

from hyperjax.analysis.metrics import (
    ensemble_accuracy,
    ensemble_scores,
    error_overlap,
    nearest_distance,
    pairwise_disagreement,
)
from hyperjax.errors import HyperJaxError

RNG = np.random.default_rng(0)


def ensemble_predictions(logits, how):
    return np.asarray(ensemble_scores(logits, how)).sum(axis=0).argmax(axis=-1)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([(2, 1, 3), (5, 7, 2), (9, 20, 10)]))
def test_disagreement_equals_brute_force(seed, shape):
    models, images, classes = shape
    predictions = np.random.default_rng(seed).integers(0, classes, (models, images))
    pairs = [np.mean(a != b) for a, b in itertools.combinations(predictions, 2)]
    result = pairwise_disagreement(predictions)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, np.mean(pairs), atol=1e-6)


def test_disagreement_of_extremes():
    classes = np.tile(np.arange(4)[:, None], (1, 3))
    assert pairwise_disagreement(np.zeros((4, 3), int)) == 0
    assert pairwise_disagreement(classes) == pytest.approx(1)
    assert np.isnan(pairwise_disagreement(classes[:1]))


@pytest.mark.parametrize("how", ["softmax", "logits"])
def test_ensemble_averages(how):
    logits = RNG.normal(0, 3, (5, 40, 10)).astype(np.float32)
    scores = softmax(logits.astype(np.float64), axis=-1) if how == "softmax" else logits
    result = ensemble_predictions(logits, how)
    np.testing.assert_array_equal(result, scores.mean(0).argmax(-1))


def test_the_rules_differ():
    # one model is certain of class 1 with a huge logit, two are in favour of class 0
    logits = np.float32([[[0, 50]], [[2, 0]], [[2, 0]]])
    assert ensemble_predictions(logits, "logits") == 1
    assert ensemble_predictions(logits, "softmax") == 0
    logits = np.float32([[[0, 5]], [[0.1, 0]], [[0.1, 0]]])
    assert ensemble_predictions(logits, "softmax") == 1
    assert ensemble_predictions(logits, "vote") == 0


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_vote_is_a_majority_with_ties_to_the_surer_class(seed):
    logits = np.random.default_rng(seed).normal(0, 4, (6, 30, 3)).astype(np.float32)
    votes = np.stack([np.sum(logits.argmax(-1) == c, axis=0) for c in range(3)], axis=-1)
    sure = softmax(logits.astype(np.float64), axis=-1).mean(0)
    tied = votes == votes.max(-1, keepdims=True)
    expected = np.where(tied, sure, -1).argmax(-1)
    np.testing.assert_array_equal(ensemble_predictions(logits, "vote"), expected)


def test_a_unanimous_saturated_vote_wins():
    logits = np.zeros((1000, 1, 10), np.float32)
    logits[:501, :, 7], logits[501:, :, 3] = 0.01, 90.0  # barely more votes, far less sure
    assert ensemble_predictions(logits, "vote") == 7
    assert ensemble_predictions(logits, "softmax") == 3


def test_accuracy_of_ensembles_of_some_models():
    logits = RNG.normal(0, 3, (5, 40, 10)).astype(np.float32)
    labels, members = RNG.integers(0, 10, 40), RNG.random((7, 5)) < 0.5
    members[0], members[:, 2] = [1, 0, 0, 0, 0], True
    result = ensemble_accuracy(ensemble_scores(logits, "softmax"), labels, members)
    for accuracy, chosen in zip(result, members, strict=True):
        mean = softmax(logits[chosen].astype(np.float64), axis=-1).mean(0)
        assert accuracy == pytest.approx(np.mean(mean.argmax(-1) == labels))


def test_unknown_ensemble():
    with pytest.raises(HyperJaxError, match="unknown ensemble 'median'; there is: logits"):
        ensemble_predictions(np.zeros((1, 1, 2)), "median")


def overlap_by_sets(predictions, train_predictions, labels, exclude_self):
    def errors(row):
        return set(np.flatnonzero(row != labels))

    def iou(a, b):
        return len(a & b) / len(a | b) if a | b else 1.0

    return [
        max(
            iou(errors(row), errors(other))
            for j, other in enumerate(train_predictions)
            if not (exclude_self and i == j)
        )
        for i, row in enumerate(predictions)
    ]


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0, 1))
def test_error_overlap_equals_set_arithmetic(seed, error_rate):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 12)
    models, train = (
        np.where(rng.random((count, 12)) < error_rate, rng.integers(0, 4, (count, 12)), labels)
        for count in (3, 5)
    )
    result = error_overlap(models, train, labels)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, overlap_by_sets(models, train, labels, False), atol=1e-6)
    others = error_overlap(train, train, labels, exclude_self=True)
    np.testing.assert_allclose(others, overlap_by_sets(train, train, labels, True), atol=1e-6)


def test_error_overlap_of_copies_and_of_perfect_models():
    labels = np.arange(6) % 3
    wrong, perfect = np.where(np.arange(6) < 2, 9, labels), labels
    result = error_overlap(np.stack([wrong, perfect]), wrong[None], labels)
    np.testing.assert_array_equal(result, [1, 0])
    assert error_overlap(perfect[None], perfect[None], labels) == 1


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([1e-3, 1.0, 1e3]))
def test_nearest_distance_equals_scipy(seed, scale):
    rng = np.random.default_rng(seed)
    vectors = (scale * rng.normal(size=(4, 50))).astype(np.float32)
    anchors = (scale * rng.normal(size=(6, 50))).astype(np.float32)
    distances = cdist(vectors.astype(np.float64), anchors.astype(np.float64))
    result = nearest_distance(vectors, anchors)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, distances.min(1), rtol=1e-5)


def test_small_distances_between_large_vectors_survive():
    anchors = RNG.normal(0, 10, (5, 2464)).astype(np.float32)  # of norm 500
    vectors = anchors[:3].copy()
    vectors[1] += np.float32(2**-12)
    vectors[2, 7] += np.float32(2**-12)
    exact = cdist(vectors.astype(np.float64), anchors.astype(np.float64)).min(1)
    np.testing.assert_allclose(nearest_distance(vectors, anchors), exact, rtol=1e-5)
    assert exact[0] == 0 < exact[2] < 1e-3


def test_nearest_other_anchor():
    anchors = RNG.normal(size=(7, 20)).astype(np.float32)
    distances = cdist(anchors, anchors)
    np.fill_diagonal(distances, np.inf)
    result = nearest_distance(anchors, anchors, exclude_self=True)
    np.testing.assert_allclose(result, distances.min(1), rtol=1e-5)
    twins = np.concatenate([anchors, anchors[:1]])  # a copy is another model
    result = nearest_distance(twins, twins, exclude_self=True)
    np.testing.assert_array_equal(np.asarray(result) == 0, [True] + [False] * 6 + [True])


def test_nothing_to_compare_with():
    one, two = np.zeros((1, 3), np.float32), np.zeros((2, 3), np.float32)
    with pytest.raises(HyperJaxError, match="0 reference models; expected at least 1"):
        nearest_distance(one, one[:0])
    with pytest.raises(HyperJaxError, match="1 reference models; expected at least 2"):
        nearest_distance(one, one, exclude_self=True)
    with pytest.raises(HyperJaxError, match="the same models twice"):
        error_overlap(one.astype(int), two.astype(int), np.zeros(3, int), exclude_self=True)
