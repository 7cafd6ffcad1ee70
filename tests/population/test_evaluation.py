"""Any number of networks on a task's images, by a few compiled programs."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from population_cases import (
    SPEC,
    TEST,
    TRAIN,
    TRAINING,
    make_engine,
    random_images,
    random_vectors,
)

from hyperjax import population
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import mlp_spec
from hyperjax.population import engine as engines
from hyperjax.population import evaluation
from hyperjax.zoo import Zoo

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
    """A share of memory, and where members run one after another no more than a number of images;
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
    held = 2.5 * 5 * 4 * 2464  # and of its weights and the state of its optimiser
    expected = int(0.5 * 16e9 / (patches + held))
    assert evaluation.members_per_call(at_once, 40_000) == expected
    assert evaluation.members_per_call(at_once, 1) == expected
    wide = mlp_spec(1, "relu", widths=(4096,))
    held, largest = 2.5 * 5 * 4 * wide.num_params, 3 * 4 * (784 + 4096) * 128
    for mapping, each in (("map", held), ("vmap", held + largest)):
        engine = population.make_engine(wide, TRAINING, mapping=mapping, devices=jax.devices()[:1])
        assert evaluation.members_per_call(engine, 1000) == int(0.5 * 16e9 / each) < 50


def test_virtual_devices_share_their_hosts_memory():
    device = SimpleNamespace(memory_stats=lambda: None)
    assert evaluation._memory(device) * jax.local_device_count() == 16e9


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_images_is_named(split):
    parts = {"train": TRAIN, "val": VAL, "test": TEST, split: random_images(0)}
    with pytest.raises(HyperJaxError, match=f"no {split} images; expected one or more"):
        evaluation.make_task(make_engine(), SimpleNamespace(**parts))
    with pytest.raises(HyperJaxError, match="no train images"):
        evaluation.make_task(make_engine(), random_images(0))


def test_what_is_known_is_not_measured_again(task):
    """A test accuracy, with or without its loss, and a loss without its accuracy."""
    metrics = {
        "test_loss": np.float32([[np.nan], [1.5], [np.nan]]),
        "test_accuracy": np.float32([[0.25], [np.nan], [np.nan]]),
    }
    models = Zoo(SPEC, VECTORS[:3, None], np.zeros(1, np.int32), np.arange(3), metrics)
    found = evaluation.tested(task, models).metrics
    measured = evaluation.evaluate(task, VECTORS[:3], task.test)
    expected = [0.25, *measured.accuracy[1:]]
    np.testing.assert_allclose(found["test_accuracy"][:, 0], expected, rtol=1e-5)
    expected = [np.nan, 1.5, measured.loss[2]]
    np.testing.assert_allclose(found["test_loss"][:, 0], expected, rtol=1e-5)


def test_no_networks(task):
    with pytest.raises(HyperJaxError, match="empty"):
        evaluation.evaluate(task, np.zeros((0, SPEC.num_params)), task.val)
