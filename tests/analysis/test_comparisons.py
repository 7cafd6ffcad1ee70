"""Populations against each other: novelty in known cases, and who is compared with whom."""

import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest
from population_cases import random_task

from hyperjax import symmetry
from hyperjax.analysis import comparisons
from hyperjax.analysis.statistics import compare_all, summarize
from hyperjax.population import evaluation
from hyperjax.symmetry import nearest
from hyperjax.weights import LayerSpec, WeightSpec
from hyperjax.zoo import Zoo

SPEC = WeightSpec((LayerSpec("a", "dense", (8, 16)), LayerSpec("b", "dense", (10, 8))), "tanh")
RNG = np.random.default_rng(0)
MEMBERS = 8


class SmallNet(nn.Module):
    """Of the architecture above, on a coarse image."""

    activation: str
    conv_form: str

    @nn.compact
    def __call__(self, images):
        pixels = images[:, ::7, ::7].reshape(len(images), 16)
        return nn.Dense(10, name="b")(nn.tanh(nn.Dense(8, name="a")(pixels)))


def networks(count, spec=SPEC):
    return RNG.normal(0, 0.3, (count, spec.num_params)).astype(np.float32)


def disguised(vectors, spec=SPEC):
    """The same functions, with other orders and signs of neurons."""

    def one(key, vector):
        return symmetry.apply(spec, symmetry.random_transform(key, spec), vector)

    keys = jax.random.split(jax.random.key(0), len(vectors))
    return np.asarray(jax.jit(jax.vmap(one))(keys, vectors))


def as_zoo(vectors, accuracy, epochs=(0,)):
    """Members that start at `vectors`, and whose accuracy is given, f[M, E]."""
    trajectories = np.repeat(vectors[:, None], len(epochs), axis=1)
    metrics = {"test_accuracy": np.asarray(accuracy, np.float32).reshape(len(vectors), -1)}
    return Zoo(SPEC, trajectories, np.array(epochs), np.arange(len(vectors)), metrics)


@pytest.fixture(scope="module")
def task():
    return random_task(20, SPEC, model=SmallNet)


@pytest.fixture(scope="module")
def train():
    """Two snapshots of each member."""
    start = networks(MEMBERS)
    trajectories = np.stack([start, start + 0.05 * networks(MEMBERS)], axis=1)
    return nearest.train_models(SPEC, trajectories, trajectories[0, -1])


@pytest.fixture(scope="module")
def decoded(task, train):
    """What is compared of known populations, and these."""
    replays = disguised(np.concatenate([train.vectors[:3, -1], train.vectors[:1, 0]]))
    broken = np.full((1, SPEC.num_params), np.nan, np.float32)
    some, other = networks(4), networks(4)
    found = {
        "replays": as_zoo(replays, np.arange(4) / 10),
        "independent": as_zoo(some, [0.3, 0.1, 0.2, 0.4]),
        "partly broken": as_zoo(np.concatenate([broken, other]), [0.9, 0.1, 0.2, 0.3, 0.4]),
        "broken": as_zoo(broken, [0.1]),
        "one network": as_zoo(np.repeat(some[:1], 4, axis=0), [0.5] * 4),
    }
    scratch = as_zoo(networks(3), RNG.random((3, 2)), epochs=(0, 25))
    result = comparisons.as_decoded(found, scratch, 25, train, task, bootstrap=99, seed=0)
    return result, found, scratch


def test_replays_have_no_novelty_and_independent_networks_one(decoded):
    rows = decoded[0].populations
    assert rows["replays"].novelty == pytest.approx(0, abs=1e-4)
    assert rows["independent"].novelty == pytest.approx(1, abs=0.1)


def test_networks_that_are_not_finite_do_not_count(decoded, train, task):
    """Neither in the novelty nor in the accuracy, the summary or the disagreement."""
    rows, populations, _ = decoded[0].populations, *decoded[1:]
    row, finite = rows["partly broken"], populations["partly broken"].weights[1:, 0]
    assert row.novelty == pytest.approx(nearest.novelty(train, finite).mean())
    np.testing.assert_allclose(row.accuracy, [np.nan, 0.1, 0.2, 0.3, 0.4])
    assert (row.summary.count, row.summary.excluded) == (4, 1)
    assert row.summary == summarize(row.accuracy, bootstrap=99, seed=0)
    predictions = evaluation.evaluate(task, finite, task.test).predictions
    pairs = [np.mean(a != b) for a, b in itertools.combinations(predictions, 2)]
    assert row.disagreement == pytest.approx(np.mean(pairs)) != 0
    assert np.isnan([rows["broken"].novelty, rows["broken"].disagreement]).all()


def test_all_pairs_of_samples_and_models_trained_from_scratch(decoded):
    """Copies of one network, and populations without any, are in no pair."""
    result, populations, scratch = decoded
    assert result.populations["one network"].disagreement == 0
    assert result.scratch_epoch == 25
    np.testing.assert_array_equal(result.scratch, scratch.metrics["test_accuracy"][:, 1])
    assert result.populations.keys() == populations.keys()
    compared = ("replays", "independent", "partly broken")
    samples = {name: result.populations[name].accuracy for name in compared}
    assert result.comparisons == compare_all({"B_T": result.scratch} | samples)


def test_over_epochs(task):
    """Each population at the epochs that it has; copies of one network are compared once they
    have been trained, which makes them differ."""
    epochs = {"a": (0, 1, 5), "b": (0, 5), "copies": (0, 1, 5), "late": (1,)}
    starts = {name: networks(4) for name in epochs}
    starts["copies"] = np.repeat(starts["copies"][:1], 4, axis=0)
    accuracy = {name: RNG.random((4, len(of))).astype(np.float32) for name, of in epochs.items()}
    found = {name: as_zoo(starts[name], accuracy[name], epochs[name]) for name in epochs}
    result = comparisons.over_epochs(found, (0, 1, 5, 25), task, bootstrap=99, seed=3)
    for name, row in result.populations.items():
        assert tuple(row.accuracy) == tuple(row.summary) == epochs[name]
        for column, epoch in enumerate(epochs[name]):
            np.testing.assert_array_equal(row.accuracy[epoch], accuracy[name][:, column])
            expected = summarize(accuracy[name][:, column], bootstrap=99, seed=3)
            assert row.summary[epoch] == expected
        assert (row.disagreement == 0) == (name == "copies")
    at = {0: ("a", "b"), 1: ("a", "copies", "late"), 5: ("a", "b", "copies")}
    assert tuple(result.comparisons) == tuple(at)  # Holm-corrected at each epoch by itself
    for epoch, names in at.items():
        values = {name: result.populations[name].accuracy[epoch] for name in names}
        assert result.comparisons[epoch] == compare_all(values)


# --- the unit of novelty ------------------------------------------------------------------

TINY = WeightSpec((LayerSpec("a", "dense", (3, 2)), LayerSpec("b", "dense", (2, 3))), "tanh")


@pytest.fixture(scope="module")
def tiny():
    trajectories = np.stack([networks(4, TINY), networks(4, TINY)], axis=1)
    return nearest.train_models(TINY, trajectories, trajectories[0, -1])


def test_spacing_is_the_mean_distance_to_the_nearest_other_member(tiny):
    """Of last snapshots to any snapshot of another; a member's own do not count."""
    nearest_other = []
    for i in range(4):
        others = tiny._replace(vectors=np.delete(tiny.vectors, i, axis=0))
        nearest_other.append(nearest.distances(others, tiny.vectors[i : i + 1, -1]).member[0])
    assert tiny.spacing == pytest.approx(np.mean(nearest_other))
    strangers = networks(3, TINY)
    far = nearest.distances(tiny, strangers).member
    np.testing.assert_allclose(nearest.novelty(tiny, strangers), far / tiny.spacing)


def test_a_small_change_of_a_large_network_is_a_small_novelty(tiny):
    """What rounding leaves of the difference of two large sums would be larger."""
    large = nearest.train_models(TINY, 512 * tiny.vectors, 512 * tiny.reference)
    moved = large.vectors[:, -1].copy()
    moved[:, 7] += 0.125
    change = np.abs(moved - large.vectors[:, -1]).max(axis=1)  # as rounded
    np.testing.assert_allclose(nearest.novelty(large, moved), change / large.spacing, rtol=1e-5)
    assert np.all(nearest.novelty(large, moved) < 1e-3)


def test_without_a_unit_there_is_no_novelty(tiny):
    """A single train member, or copies of one; and networks that are not finite."""
    alone = nearest.train_models(TINY, tiny.vectors[:1], tiny.reference)
    copies = nearest.train_models(TINY, np.repeat(tiny.vectors[:1, -1:], 3, 0), tiny.reference)
    assert np.isnan(alone.spacing)
    for train in (alone, copies):
        assert np.isnan(nearest.novelty(train, networks(2, TINY))).all()
    vectors = networks(3, TINY)
    vectors[1, 4] = np.inf
    np.testing.assert_array_equal(np.isnan(nearest.novelty(tiny, vectors)), [False, True, False])
    assert np.isnan(nearest.novelty(tiny, vectors[1:2])).all()
