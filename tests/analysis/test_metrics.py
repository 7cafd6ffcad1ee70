import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from hyperjax.analysis import metrics
from hyperjax.analysis.metrics import (
    ensemble_accuracy,
    error_bits,
    error_overlap,
    pairwise_disagreement,
)
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


def overlaps_by_sets(predictions, train_predictions, labels):
    """[M][T][E] of predictions [M, N] and [T, E, N]."""

    def errors(row):
        return set(np.flatnonzero(row != labels))

    def iou(a, b):
        return len(a & b) / len(a | b) if a | b else 1.0

    return [
        [[iou(errors(row), errors(other)) for other in member] for member in train_predictions]
        for row in predictions
    ]


def without(overlaps, own):
    """Each model's overlaps, without those with its own member."""
    return [[o for j, o in enumerate(row) if j != i] for row, i in zip(overlaps, own, strict=True)]


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0, 1), st.sampled_from([1, 2, 100]))
def test_error_overlap_equals_set_arithmetic(seed, error_rate, members):
    """Whatever the number of training models in a block, and with networks without errors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 12)
    models, train = (
        np.where(rng.random((*shape, 12)) < error_rate, rng.integers(0, 4, (*shape, 12)), labels)
        for shape in ((3,), (5, 2))
    )
    bits, own = error_bits(train, labels), [3, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK_BYTES", members * 4 * 8 * 2 * 2)
        found = error_overlap(error_bits(models, labels), bits)
        others = error_overlap(bits[own, -1], bits, own=own)
    every = overlaps_by_sets(models, train, labels)
    among = without(overlaps_by_sets(train[own, -1], train, labels), own)
    assert found.largest.dtype == np.float32
    for overlap, expected in ((found, every), (others, among)):
        np.testing.assert_allclose(overlap.largest, np.max(expected, axis=(1, 2)), atol=1e-6)
        last = np.array(expected)[:, :, -1]
        gaps = [max(row) - sum(row) / len(row) for row in last]
        np.testing.assert_allclose(overlap.parent_gap, gaps, atol=1e-6)


def test_error_overlap_of_copies_and_of_perfect_models():
    labels = np.arange(6) % 3
    wrong, perfect = np.where(np.arange(6) < 2, 9, labels), labels
    models, train = (error_bits(np.stack(p), labels) for p in ([wrong, perfect], [wrong, wrong]))
    found = error_overlap(models, train[:, None])
    np.testing.assert_array_equal(found.largest, [1, 0])
    np.testing.assert_array_equal(found.parent_gap, [0, 0])  # all are its parents; none is
    both = error_overlap(models, models[:, None])
    np.testing.assert_array_equal(both.largest, 1)
    np.testing.assert_array_equal(both.parent_gap, 0.5)


def test_error_bits_of_many_images():
    predictions, labels = RNG.integers(0, 3, (2, 3, 21)), RNG.integers(0, 3, 21)
    bits = error_bits(predictions, labels)
    assert (bits.shape, bits.dtype) == ((2, 3, 3), np.uint8)
    np.testing.assert_array_equal(np.unpackbits(bits, axis=2)[:, :, :21], predictions != labels)
    assert not np.unpackbits(bits, axis=2)[:, :, 21:].any()


def test_nothing_to_compare_with():
    one = np.zeros((1, 1, 1), np.uint8)
    with pytest.raises(HyperJaxError, match="0 reference models; expected at least 1"):
        error_overlap(one[0], one[:0])
    with pytest.raises(HyperJaxError, match="1 reference models; expected at least 2"):
        error_overlap(one[0], one, own=[0])
