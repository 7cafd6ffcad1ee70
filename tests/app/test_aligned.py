"""Aligned weights in a file: what is in memory otherwise, and made anew when it has to be."""

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest

from hyperjax import zoo
from hyperjax.app import aligned
from hyperjax.config import WeightDataConfig
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.store import workdir, zoo_file
from hyperjax.zoo import METRICS, Zoo

SPEC = zoo_cnn_spec(1, "tanh")
CONFIG = WeightDataConfig(epochs_seen=(2, 4))


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, 4, SPEC.num_params)).astype(np.float32)
    metrics = {name: rng.random((9, 4), np.float32) for name in METRICS}
    return Zoo(SPEC, values, np.int32([0, 2, 3, 4]), np.arange(9), metrics, {"seed": 1})


@pytest.fixture
def loaded(models, tmp_path, monkeypatch):
    """`load` with another zoo, configuration or reference; in memory or in a file."""
    parts = zoo.split_members(models, (0.7, 0.15, 0.15), 0)

    def load(zoo=models, config=CONFIG, row=0, parts=parts, memory=0):
        monkeypatch.setattr(aligned, "_IN_MEMORY", memory)
        zoo_file.write(workdir.zoo_path(tmp_path), zoo)
        return aligned.load(tmp_path, config, zoo, parts, models.weights[row, 3])

    return load


def mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows", [2, 512])
def test_a_file_holds_what_memory_would(loaded, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(aligned, "_BLOCK_BYTES", rows * aligned.size(CONFIG, 1, SPEC))
    path = workdir.aligned_path(tmp_path)
    inside = loaded(memory=2**31)
    assert not path.exists()
    ours = loaded()
    assert_equal(ours, inside)
    assert all(mapped(part) for part in ours[:3])
    assert mapped(ours.train_vectors)
    assert not zoo_file.damaged(path)
    assert sorted(x.name for x in path.parent.iterdir()) == [
        "aligned.safetensors",
        "zoo.safetensors",
    ]


def test_the_file_is_read_again(loaded, monkeypatch):
    first = loaded()
    monkeypatch.setattr(aligned, "_make", None)  # would be called
    assert_equal(loaded(), first)


@pytest.mark.parametrize(
    "other",
    [{"row": 1}, {"config": dataclasses.replace(CONFIG, epochs_seen=(3, 4))},
     {"config": dataclasses.replace(CONFIG, align=False)}, "split", "weights", "info", "damage",
     "garbage"],
)  # fmt: skip
def test_another_file_is_made_anew(loaded, models, tmp_path, monkeypatch, other):
    """Also for the same members with other weights."""
    loaded()
    path = workdir.aligned_path(tmp_path)
    if other == "split":
        other = {"parts": zoo.split_members(models, (0.5, 0.25, 0.25), 1)}
    elif other == "weights":
        weights = np.array(models.weights)
        weights[3, 1, 5] += 1
        other = {"zoo": dataclasses.replace(models, weights=weights)}
    elif other == "info":
        other = {"zoo": dataclasses.replace(models, info={"seed": 2})}
    elif other == "damage":
        with open(path, "rb+") as file:
            file.seek(-100, 2)
            file.write(b"damage")
        monkeypatch.setattr(zoo_file, "_SMALL", 0)  # nothing is checked as it is read
        aligned.remove_damaged(tmp_path)
        assert not path.exists()
        other = {}
    elif other == "garbage":
        path.write_bytes(b"no zoo")
        other = {}
    assert_equal(loaded(**other), loaded(**other, memory=2**31))


def test_a_zoo_without_accuracies(loaded, models):
    data = loaded(zoo=dataclasses.replace(models, metrics={}))
    assert np.isnan(data.quality).all()


def test_only_a_few_members_are_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(aligned, "_IN_MEMORY", 0)
    monkeypatch.setattr(aligned, "_BLOCK_BYTES", 8 * 4 * SPEC.num_params)
    weights = np.random.default_rng(0).standard_normal((400, 1, SPEC.num_params), np.float32)
    models = Zoo(SPEC, weights, np.int32([4]), np.arange(400), {}, {})
    parts = zoo.split_members(models, (0.7, 0.15, 0.15), 0)
    config = dataclasses.replace(CONFIG, epochs_seen=(4,), align=False)
    zoo_file.write(workdir.zoo_path(tmp_path), models)
    tracemalloc.start()
    try:
        aligned.load(tmp_path, config, models, parts, weights[0, 0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < weights.nbytes / 4


def test_where_nothing_can_be_written_it_stays_in_memory(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    data = loaded()
    assert not workdir.aligned_path(tmp_path).exists()
    assert not mapped(data.train)
