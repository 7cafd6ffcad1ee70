import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax import zoo as zoo_lib
from hyperjax.errors import HyperJaxError
from hyperjax.weights import LayerSpec, WeightSpec
from hyperjax.zoo import Zoo, split_members

SPEC = WeightSpec((LayerSpec("a", "dense", (2, 2)), LayerSpec("b", "dense", (1, 2))), "tanh")
SHARES = (0.7, 0.15, 0.15)


def make_zoo(members=20, epochs=(0, 5, 10)):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(members, len(epochs), 9)).astype(np.float32)
    metrics = {"test_accuracy": rng.random((members, len(epochs)), np.float32)}
    return Zoo(SPEC, values, np.int32(epochs), np.arange(100, 100 + members), metrics)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(3, 200),
    st.sampled_from([SHARES, (0.2, 0.4, 0.4), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)]),
    st.integers(0, 100),
)
def test_split_is_a_partition_with_no_empty_part(members, shares, seed):
    zoo = make_zoo(members, epochs=(0,))
    split = split_members(zoo, shares, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(members))
    for part, share in zip(split, shares, strict=True):
        assert len(part) >= 1
        assert abs(len(part) - share * members) <= 2
        assert part.dtype == np.int64


def test_split_has_the_published_shares_and_is_reproducible():
    zoo = make_zoo(1000, epochs=(0,))
    split = split_members(zoo, SHARES, seed=1)
    assert [len(part) for part in split] == [700, 150, 150]
    again, other = split_members(zoo, SHARES, seed=1), split_members(zoo, SHARES, seed=2)
    for a, b, c in zip(split, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert set(a) != set(c)
    # drawn at random, not the first 700
    assert 200 < np.mean(split.test) < 800


def test_split_depends_on_ids_and_not_on_rows():
    zoo = make_zoo()
    rows = np.random.default_rng(5).permutation(20)
    shuffled = dataclasses.replace(
        zoo,
        weights=zoo.weights[rows],
        members=zoo.members[rows],
        metrics={name: values[rows] for name, values in zoo.metrics.items()},
    )
    parts = zip(split_members(zoo, SHARES, 0), split_members(shuffled, SHARES, 0), strict=True)
    for ours, theirs in parts:
        assert set(zoo.members[ours]) == set(shuffled.members[theirs])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_diverged_members_are_left_out(value):
    zoo = make_zoo()
    zoo.weights[3, 1, 4] = value
    np.testing.assert_array_equal(np.flatnonzero(~zoo_lib.valid_members(zoo)), [3])
    zoo.weights[11, 2, 0] = 1e30  # large, but a number
    assert zoo_lib.valid_members(zoo)[11]
    rows = np.concatenate(split_members(zoo, SHARES, 0))
    assert set(rows) == set(range(20)) - {3}


def test_too_few_usable_members():
    zoo = make_zoo(4)
    assert [len(part) for part in split_members(zoo, SHARES, 0)] == [2, 1, 1]
    zoo.weights[:2] = np.nan
    with pytest.raises(HyperJaxError, match=r"2 usable members of 4; a train.*at least 3 whose"):
        split_members(zoo, SHARES, 0)


def test_snapshot_index():
    zoo = make_zoo()
    np.testing.assert_array_equal(zoo_lib.snapshot_index(zoo, [10, 0, 10]), [2, 0, 2])
    np.testing.assert_array_equal(zoo_lib.snapshot_index(zoo, (5,)), [1])
    with pytest.raises(HyperJaxError, match=r"epochs \[3, 11\]; it has \[0, 5, 10\]"):
        zoo_lib.snapshot_index(zoo, [11, 5, 3])


@pytest.mark.parametrize("epochs", [(5, 0, 10), (0, 5, 5)])
def test_epochs_that_do_not_rise(epochs):
    zoo = make_zoo(epochs=epochs)
    with pytest.raises(HyperJaxError, match=r"epochs are \[(5, 0, 10|0, 5, 5)\]; expected them to"):
        zoo.select(epoch=5)


def test_init_correlation():
    zoo = make_zoo(500)
    first, noise = zoo.weights[:, 0], np.random.default_rng(9).normal(size=(500, 9))
    zoo.weights[:, -1, :6] = 0.6 * first[:, :6] + 0.8 * noise[:, :6]  # layer a: correlation 0.6
    zoo.weights[:, -1, 6:] = noise[:, 6:] + 3  # layer b: none
    zoo.weights[7, -1, 2] = np.nan
    result = zoo_lib.init_correlation(zoo)
    assert list(result) == ["a", "b"]
    assert result["a"] == pytest.approx(0.6, abs=0.05)
    assert result["b"] == pytest.approx(0, abs=0.1)
    finite = np.isfinite(zoo.weights[:, -1, :6])
    expected = np.corrcoef(first[:, :6][finite], zoo.weights[:, -1, :6][finite])[0, 1]
    assert result["a"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(HyperJaxError, match=r"no snapshot of epochs \[0\]"):
        zoo_lib.init_correlation(make_zoo(epochs=(5, 10)))


def test_init_correlation_of_weights_that_do_not_vary():
    zoo = make_zoo()
    zoo.weights[:, 0, :6] = 0
    result = zoo_lib.init_correlation(zoo)
    assert np.isnan(result["a"])
    assert np.isfinite(result["b"])


def test_shapes_are_checked():
    zoo = make_zoo()
    with pytest.raises(HyperJaxError, match=r"\(20, 3, 9\), expected \(19, 3, 9\)"):
        dataclasses.replace(zoo, members=np.arange(19))
    with pytest.raises(HyperJaxError, match=r"metric 'loss' has shape \(20, 2\)"):
        dataclasses.replace(zoo, metrics={"loss": np.zeros((20, 2))})
    with pytest.raises(HyperJaxError, match=r"zoo latents have shape \(3, 4\), expected 20 rows"):
        dataclasses.replace(zoo, latents=np.zeros((3, 4)))
    with pytest.raises(HyperJaxError, match="empty"):
        Zoo(SPEC, np.zeros((0, 3, 9)), np.arange(3), np.arange(0), {})


# --- parts of a zoo -----------------------------------------------------------------------


def split_zoo():
    zoo = make_zoo()
    latents = np.arange(40.0, dtype=np.float32).reshape(20, 2)
    return dataclasses.replace(zoo, latents=latents, split=split_members(zoo, SHARES, 0))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_select_by_part_and_epoch(part):
    zoo = split_zoo()
    rows = getattr(zoo.split, part)
    chosen = zoo.select(part, epoch=[0, 10])
    np.testing.assert_array_equal(chosen.weights, zoo.weights[rows][:, [0, 2]])
    np.testing.assert_array_equal(chosen.epochs, [0, 10])
    np.testing.assert_array_equal(chosen.members, 100 + rows)
    np.testing.assert_array_equal(
        chosen.metrics["test_accuracy"], zoo.metrics["test_accuracy"][rows][:, [0, 2]]
    )
    np.testing.assert_array_equal(chosen.latents, zoo.latents[rows])
    assert chosen.split is None
    assert not np.shares_memory(chosen.weights, zoo.weights)


def test_epochs_rise_in_whatever_order_they_are_asked_for():
    zoo = make_zoo()
    chosen = zoo.select([3, 1], epoch=(10, 0, 10))
    np.testing.assert_array_equal(chosen.epochs, [0, 10])
    np.testing.assert_array_equal(chosen.weights, zoo.weights[[3, 1]][:, [0, 2]])
    last = chosen.select(epoch=10)
    np.testing.assert_array_equal(last.weights[:, 0], zoo.weights[[3, 1], 2])


def test_select_by_rows_or_epoch_alone():
    zoo = split_zoo()
    some = zoo.select([7, 2])
    np.testing.assert_array_equal(some.weights, zoo.weights[[7, 2]])
    np.testing.assert_array_equal(some.members, [107, 102])
    assert some.split is None
    whole = zoo.select(epoch=5)
    np.testing.assert_array_equal(whole.weights, zoo.weights[:, [1]])
    assert whole.split is zoo.split
    assert zoo.select("test").select([0], epoch=0).weights.shape == (1, 1, 9)


def test_select_of_what_is_not_there():
    with pytest.raises(HyperJaxError, match=r"part of a zoo 'valid'; there is: test, train, val"):
        split_zoo().select("valid")
    with pytest.raises(HyperJaxError, match=r"'train'.*the zoo has no split"):
        make_zoo().select("train")
    with pytest.raises(HyperJaxError, match=r"no snapshot of epochs \[7\]"):
        split_zoo().select("train", epoch=7)


def test_accuracy_after_an_epoch():
    """NaN for what has diverged by then, or was not measured."""
    zoo = make_zoo()
    zoo.weights[4, 1, 0] = np.inf
    expected = zoo.metrics["test_accuracy"][:, 1].copy()
    expected[4] = np.nan
    np.testing.assert_array_equal(zoo_lib.test_accuracy(zoo, 5), expected)
    np.testing.assert_array_equal(
        zoo_lib.test_accuracy(zoo, 10), zoo.metrics["test_accuracy"][:, 2]
    )
    unmeasured = dataclasses.replace(zoo, metrics={})
    assert np.isnan(zoo_lib.test_accuracy(unmeasured, 5)).all()


def test_concatenation():
    one, other = make_zoo(3), make_zoo(2)
    both = zoo_lib.concatenate(one, dataclasses.replace(other, members=np.array([8, 9])))
    np.testing.assert_array_equal(both.weights, np.concatenate([one.weights, other.weights]))
    np.testing.assert_array_equal(both.members, [100, 101, 102, 8, 9])
    np.testing.assert_array_equal(both.epochs, [0, 5, 10])
    assert (both.spec, both.split) == (SPEC, None)
    lacking = dataclasses.replace(other, metrics={"loss": np.ones((2, 3))})
    given = dataclasses.replace(one, metrics={"loss": np.zeros((3, 3)), "own": np.zeros((3, 3))})
    kept = zoo_lib.concatenate(given, lacking).metrics  # a validation zoo hides no quality
    assert set(kept) == {"loss"}
    np.testing.assert_array_equal(kept["loss"][:, 0], [0, 0, 0, 1, 1])
    with pytest.raises(HyperJaxError, match=r"snapshots \[0, 5, 10\] and \[0, 5\]"):
        zoo_lib.concatenate(one, make_zoo(2, epochs=(0, 5)))
