"""Any number of networks on a task's images, by a few compiled programs."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from population_cases import SPEC, TEST, TRAIN, make_engine, random_images, random_vectors

from hyperjax import population
from hyperjax.errors import HyperJaxError
from hyperjax.population import engine as engines
from hyperjax.population import evaluation

VAL = random_images(9, seed=4)
VECTORS = random_vectors(41)


@pytest.fixture(scope="module")
def task():
    data = SimpleNamespace(train=TRAIN, val=VAL, test=TEST)
    return evaluation.make_task(make_engine(mapping="map"), data)


def test_a_task_is_made_of_a_data_set_or_of_images_alone(task):
    assert task.num_images == {"train": 23, "val": 9, "test": 40}
    np.testing.assert_array_equal(task.val.pixels, VAL.pixels)
    np.testing.assert_array_equal(task.test.labels, TEST.labels)
    alone = evaluation.make_task(make_engine(), TRAIN)
    assert alone.num_images == {"train": 23}
    assert (alone.val, alone.test) == (None, None)
    np.testing.assert_array_equal(alone.train.pixels, TRAIN.pixels)


def test_populations_of_nearly_one_size_share_a_program(task):
    """39 and 40 members, padded to one size; rows are those of their own networks."""
    before = engines.evaluate._cache_size()
    forty = evaluation.evaluate(task, VECTORS[:40], task.val)
    assert engines.evaluate._cache_size() == before + 1
    thirty_nine = evaluation.evaluate(task, VECTORS[:39], task.val)
    evaluation.evaluate(task, VECTORS[:34], task.val)
    assert engines.evaluate._cache_size() == before + 1
    assert [leaf.shape[0] for leaf in thirty_nine] == [39, 39, 39]
    for ours, theirs in zip(thirty_nine, forty, strict=True):
        np.testing.assert_array_equal(ours, theirs[:39])


def test_parts_of_a_population_are_put_together(task, monkeypatch):
    """41 networks, 8 at a time, against one network at a time."""
    asked = []

    def remembered(engine, vectors, images):
        asked.append(len(vectors))
        return population.logits(engine, vectors, images)

    monkeypatch.setattr(engines, "logits", remembered)
    monkeypatch.setattr(evaluation, "_IMAGES_PER_CALL", 8 * 23)
    found = evaluation.logits(task, VECTORS, task.val)
    assert isinstance(found, np.ndarray)
    assert found.shape == (41, 9, 10)
    assert asked == [8] * 6
    engine = task.engine
    for i in (0, 8, 40):
        alone = population.logits(
            engine, population.place_members(engine, VECTORS[[i]], 8), task.val
        )
        np.testing.assert_allclose(found[i], alone[0], atol=1e-6)


def test_calls_hold_what_fits(monkeypatch):
    """Where members run one after another a number of images, where at once a share of memory;
    always a multiple of the devices."""
    monkeypatch.setattr(evaluation, "_memory", lambda device: 16e9)
    one_by_one = make_engine(mapping="map", devices=jax.devices()[:1])
    assert evaluation.members_per_call(one_by_one, 40_000) == 10
    assert evaluation.members_per_call(one_by_one, 10**9) == 1
    on_all, count = make_engine(mapping="map"), jax.device_count()
    assert evaluation.members_per_call(on_all, 40_000) == -(-10 // count) * count
    assert evaluation.members_per_call(on_all, 400_000) == count  # not shared: there are others
    at_once = make_engine(mapping="vmap", devices=jax.devices()[:1])
    patches = 3 * 4 * 24 * 24 * (25 + 8) * 128  # bytes of one member's first layer
    expected = int(0.5 * 16e9 / patches)
    assert evaluation.members_per_call(at_once, 40_000) == expected


def test_no_networks(task):
    with pytest.raises(HyperJaxError, match="empty"):
        evaluation.evaluate(task, np.zeros((0, SPEC.num_params)), task.val)
