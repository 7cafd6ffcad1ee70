"""What the autoencoder sees of a zoo, and that the rest of the file stays on disk."""

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest

from hyperjax import symmetry, zoo
from hyperjax.app import populations, train
from hyperjax.app.context import Context, Target
from hyperjax.config import AutoencoderConfig, Config
from hyperjax.hyperrep import weight_data
from hyperjax.models.cnn import zoo_cnn_spec
from hyperjax.store import zoo_file
from hyperjax.symmetry import alignment
from hyperjax.zoo import Zoo

SPEC = zoo_cnn_spec(1, "tanh")
CONFIG = Config(autoencoder=AutoencoderConfig(epochs_seen=(2, 4)))


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, 4, SPEC.num_params)).astype(np.float32)
    metrics = {"val_accuracy": rng.random((9, 4), np.float32)}
    return Zoo(SPEC, values, np.int32([0, 2, 3, 4]), np.arange(9), metrics)


def test_each_member_is_aligned_by_its_last_epoch(models, monkeypatch):
    """Two members at a time, against each one alone with the plain `symmetry.apply`."""
    monkeypatch.setattr(weight_data, "_CHUNK_BYTES", 2 * models.weights[0, :2].nbytes)
    parts = weight_data.split(CONFIG, models)
    reference = weight_data.find_reference(CONFIG, models, parts)
    data = weight_data.load(CONFIG, models, parts, reference)
    for part, rows in zip(data[:3], parts, strict=True):
        assert (part.shape, part.dtype) == ((len(rows), 2, SPEC.num_params), np.float32)
        for vectors, row in zip(part, rows, strict=True):
            own = models.weights[row]
            _, transform = alignment.align(SPEC, own[3][None], reference)
            for vector, epoch in zip(vectors, (1, 3), strict=True):
                expected = symmetry.apply(SPEC, transform, own[epoch][None])[0]
                np.testing.assert_allclose(vector, expected, atol=1e-6)
    np.testing.assert_array_equal(
        data.quality, models.metrics["val_accuracy"][parts.train][:, [1, 3]]
    )


def test_without_alignment_weights_come_as_they_are(models):
    config = dataclasses.replace(
        CONFIG, autoencoder=dataclasses.replace(CONFIG.autoencoder, align=False)
    )
    parts = weight_data.split(config, models)
    reference = weight_data.find_reference(config, models, parts)
    np.testing.assert_array_equal(reference, models.weights[parts.train[0], 3])
    data = weight_data.load(config, models, parts, reference)
    np.testing.assert_array_equal(data.val, models.weights[parts.val][:, [1, 3]])


def test_the_reference_of_a_large_zoo_comes_from_a_sample_of_train_members(models, monkeypatch):
    parts = weight_data.split(CONFIG, models)
    every = weight_data.find_reference(CONFIG, models, parts)
    monkeypatch.setattr(weight_data, "_REFERENCE_MEMBERS", len(parts.train))
    np.testing.assert_array_equal(weight_data.find_reference(CONFIG, models, parts), every)
    asked = []

    def find_reference(spec, vectors, seed):
        asked.append(vectors)
        return alignment.Alignment(vectors[0], 1.0)

    monkeypatch.setattr(weight_data, "_REFERENCE_MEMBERS", 3)
    monkeypatch.setattr(alignment, "find_reference", find_reference)
    weight_data.find_reference(CONFIG, models, parts)
    known = {models.weights[row, 3].tobytes() for row in parts.train}
    chosen = {vector.tobytes() for vector in asked[0]}
    assert len(chosen) == 3
    assert chosen <= known


def test_a_zoo_larger_than_memory_stays_on_disk(tmp_path, monkeypatch):
    """From split to training data, with a memory of an eighth of the file."""
    members, epochs, path = 80, 130, tmp_path / "zoo"
    # a sparse file: what is not written takes neither space nor time
    monkeypatch.setattr(
        os, "posix_fallocate", lambda fd, start, size: os.truncate(fd, start + size)
    )
    models = zoo_file.allocate(path, SPEC, np.arange(members), np.arange(epochs), {})
    rng = np.random.default_rng(0)
    for epoch in (0, epochs - 2, epochs - 1):
        models.weights[:, epoch] = rng.standard_normal((members, SPEC.num_params), np.float32)
    monkeypatch.setattr(weight_data, "_REFERENCE_MEMBERS", 4)
    monkeypatch.setattr(populations, "_TEST_MEMBERS", 5)
    config = Config(autoencoder=AutoencoderConfig(epochs_seen=(epochs - 2, epochs - 1)))
    models = zoo_file.read(path)
    tracemalloc.start()
    try:
        parts = weight_data.split(config, models)
        correlation = zoo.init_correlation(models)
        reference = weight_data.find_reference(config, models, parts)
        data = weight_data.load(config, models, parts, reference)
        trained = train.Trained(config, None, None, models, parts, data, {})
        target = Target("digits", config, "", None, models, parts)
        scratch = populations.from_scratch(Context(tmp_path, trained, (), 1), target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 8
    assert sum(map(len, parts)) == members
    assert all(abs(value) < 0.1 for value in correlation.values())
    assert scratch.weights.shape == (5, epochs, SPEC.num_params)
