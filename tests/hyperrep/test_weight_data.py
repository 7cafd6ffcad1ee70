"""What the autoencoder sees of a zoo, and that the rest of the file stays on disk."""

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest

from hyperjax import symmetry, zoo
from hyperjax.app import populations
from hyperjax.app.context import Context, Target
from hyperjax.app.run import Run
from hyperjax.config import AutoencoderConfig, Config, WeightDataConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import weight_data
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.store import workdir, zoo_file
from hyperjax.symmetry import alignment
from hyperjax.zoo import Zoo

SPEC = zoo_cnn_spec(1, "tanh")
CONFIG = WeightDataConfig(epochs_seen=(2, 4))
SHARES = (0.7, 0.15, 0.15)


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, 4, SPEC.num_params)).astype(np.float32)
    metrics = {"val_accuracy": rng.random((9, 4), np.float32)}
    return Zoo(SPEC, values, np.int32([0, 2, 3, 4]), np.arange(9), metrics)


def test_each_member_is_aligned_by_its_last_epoch(models, monkeypatch):
    """Two members at a time, against each one alone with the plain `symmetry.apply`."""
    monkeypatch.setattr(weight_data, "_CHUNK_BYTES", 2 * models.weights[0, :2].nbytes)
    parts = zoo.split_members(models, SHARES, 0)
    reference = weight_data.find_reference(CONFIG, models, parts, 0)
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
    config = dataclasses.replace(CONFIG, align=False)
    parts = zoo.split_members(models, SHARES, 0)
    reference = weight_data.find_reference(config, models, parts, 0)
    np.testing.assert_array_equal(reference, models.weights[parts.train[0], 3])
    data = weight_data.load(config, models, parts, reference)
    np.testing.assert_array_equal(data.val, models.weights[parts.val][:, [1, 3]])


def test_the_reference_of_a_large_zoo_comes_from_a_sample_of_train_members(models, monkeypatch):
    parts = zoo.split_members(models, SHARES, 0)
    every = weight_data.find_reference(CONFIG, models, parts, 0)
    monkeypatch.setattr(weight_data, "_REFERENCE_MEMBERS", len(parts.train))
    np.testing.assert_array_equal(weight_data.find_reference(CONFIG, models, parts, 0), every)
    asked = []

    def find_reference(spec, vectors, seed):
        asked.append(vectors)
        return alignment.Alignment(vectors[0], 1.0)

    monkeypatch.setattr(weight_data, "_REFERENCE_MEMBERS", 3)
    monkeypatch.setattr(alignment, "find_reference", find_reference)
    weight_data.find_reference(CONFIG, models, parts, 0)
    known = {models.weights[row, 3].tobytes() for row in parts.train}
    chosen = {vector.tobytes() for vector in asked[0]}
    assert len(chosen) == 3
    assert chosen <= known


def test_a_zoo_larger_than_memory_stays_on_disk(tmp_path, monkeypatch):
    """From split to training data, with a memory of an eighth of the file."""
    members, epochs, path = 80, 130, workdir.zoo_path(tmp_path)
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
    seen = WeightDataConfig(epochs_seen=(epochs - 2, epochs - 1))
    config = Config(autoencoder=AutoencoderConfig(data=seen))
    tracemalloc.start()
    try:
        run = Run(tmp_path, config)
        parts = run.split
        correlation = zoo.init_correlation(run.zoo)
        data = run.data
        target = Target("digits", config, "", None, run.zoo)
        context = Context(tmp_path, run, (), 1)
        scratch = populations.from_scratch(context, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 8
    assert sum(map(len, parts)) == members
    assert all(abs(value) < 0.1 for value in correlation.values())
    assert [part.shape[:2] for part in data[:3]] == [(len(part), 2) for part in parts]
    assert scratch.weights.shape == (5, epochs, SPEC.num_params)
    some = populations.from_scratch(context, target, epochs=(epochs - 1, 0, epochs))
    assert some.epochs.tolist() == [0, epochs - 1]  # those that there are
    np.testing.assert_array_equal(some.weights, scratch.weights[:, [0, -1]])
    with pytest.raises(HyperJaxError, match="no snapshot of epochs"):
        populations.from_scratch(context, target, epochs=(epochs,))


def test_quality_is_nan_where_it_was_not_measured(models):
    parts = zoo.split_members(models, SHARES, 0)
    unmeasured = dataclasses.replace(models, metrics={})
    data = weight_data.load(CONFIG, unmeasured, parts, models.weights[0, 3])
    assert data.quality.shape == (len(parts.train), 2)
    assert np.isnan(data.quality).all()
