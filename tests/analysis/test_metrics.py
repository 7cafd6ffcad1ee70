import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from hyperjax.analysis.metrics import ensemble_accuracy, error_overlap, pairwise_disagreement
from hyperjax.errors import HyperJaxError

RNG = np.random.default_rng(0)


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


def test_accuracy_of_ensembles_of_some_models():
    logits = RNG.normal(0, 3, (5, 40, 10)).astype(np.float32)
    labels, members = RNG.integers(0, 10, 40), RNG.random((7, 5)) < 0.5
    members[0], members[:, 2] = [1, 0, 0, 0, 0], True
    probabilities = softmax(logits, axis=-1)
    result = ensemble_accuracy(probabilities, labels, members)
    for accuracy, chosen in zip(result, members, strict=True):
        mean = softmax(logits[chosen].astype(np.float64), axis=-1).mean(0)
        assert accuracy == pytest.approx(np.mean(mean.argmax(-1) == labels))


def test_an_ensemble_averages_probabilities_not_logits():
    """A model that is certain outvotes two that hardly are, but not two that are fairly sure."""
    everyone = np.ones((1, 3), bool)
    for logits, expected in (([[0, 50], [2, 0], [2, 0]], 0), ([[0, 5], [0.1, 0], [0.1, 0]], 1)):
        probabilities = softmax(np.float32(logits)[:, None], axis=-1)
        assert ensemble_accuracy(probabilities, np.array([expected]), everyone) == 1
        assert ensemble_accuracy(probabilities, np.array([1 - expected]), everyone) == 0


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


def test_nothing_to_compare_with():
    one, two = np.zeros((1, 3), int), np.zeros((2, 3), int)
    labels = np.zeros(3, int)
    with pytest.raises(HyperJaxError, match="0 reference models; expected at least 1"):
        error_overlap(one, one[:0], labels)
    with pytest.raises(HyperJaxError, match="1 reference models; expected at least 2"):
        error_overlap(one, one, labels, exclude_self=True)
    with pytest.raises(HyperJaxError, match="the same models twice"):
        error_overlap(one, two, labels, exclude_self=True)
