"""Which device computes which members, and members that several devices share."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from population_cases import (
    IDS,
    INIT,
    ROOT,
    SPEC,
    TRAINING,
    make_engine,
    random_images,
    random_vectors,
    train,
)

from hyperjax import population
from hyperjax.population import Members, placement


@pytest.mark.parametrize("count", [1, 2])
def test_few_members_share_all_devices(count):
    """Each of four devices computes a part of a batch of 64, and of the last one of 32 with two
    members, but not with one: 8 images are too few. And of 301 images in evaluation, in several
    batches. The same as on one device but for rounding."""
    images, training = random_images(160, seed=2), dataclasses.replace(TRAINING, batch_size=64)
    results = []
    for devices in (jax.devices()[:4], jax.devices()[:1]):
        engine = population.make_engine(SPEC, training, init=INIT, devices=devices)
        start = random_vectors(count)
        vectors, metrics = train(
            engine, IDS[:count], epochs=2, images=images, start=start, training=training
        )
        placed = population.place_members(engine, vectors)
        split = population.place_images(engine, random_images(301, seed=3))
        found = population.evaluate(engine, placed, split), population.logits(engine, placed, split)
        results.append((vectors, metrics, *found))
    assert len(placed) == count
    for here, there in zip(*map(jax.tree.leaves, results), strict=True):
        assert here.shape == there.shape
        np.testing.assert_allclose(here, there, atol=2e-5)


def test_what_few_members_share():
    """Sums over devices stand in the program of a large batch alone, and where members are few."""

    def sums(count, batch):
        training = dataclasses.replace(TRAINING, batch_size=batch)
        engine = population.make_engine(SPEC, training, init=INIT, devices=jax.devices()[:4])
        hyper = population.place_members(engine, population.hyper(IDS[:count], training))
        state = jax.eval_shape(lambda: population.init(engine, ROOT, hyper))
        images = population.place_images(engine, random_images(128))
        arguments = engine, state, hyper, images, ROOT, jnp.int32(1)
        return population.train_epoch.lower(*arguments).as_text().count("all_reduce")

    assert sums(1, 64) > 0
    assert sums(2, 32) > 0
    assert sums(1, 32) == sums(4, 64) == sums(8, 64) == 0


@pytest.mark.parametrize(
    ("devices", "processes", "expected"),
    [(12, 1, {1: 1, 4: 4, 5: 6, 7: 12, 13: 24}), (8, 4, {1: 4, 3: 4, 5: 8, 9: 16})],
)
def test_padding_wastes_as_little_as_the_devices_allow(devices, processes, expected):
    """Members fewer than the processes would be shared over the network: they are not."""
    each = devices // processes
    grid = np.array([SimpleNamespace(process_index=i // each) for i in range(devices)])
    mesh = SimpleNamespace(size=devices, devices=grid)
    assert {count: placement.padded(mesh, count) for count in expected} == expected


def test_placement_pads_with_the_last_member():
    engine = make_engine()
    assert [population.padded(engine, n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]
    tree = Members(np.arange(3), {"x": np.arange(6.0).reshape(3, 2)})
    placed = population.place_members(engine, tree)
    np.testing.assert_array_equal(placed.vectors, [0, 1, 2, 2])
    np.testing.assert_array_equal(placed.opt_state["x"][2:], [[4, 5], [4, 5]])
    assert len(population.place_members(engine, tree, 5).vectors) == 8


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (4, 1), (4, 2), (4, 4)])
def test_trained_and_placed_members_are_evaluated_by_one_program(devices, count):
    engine = make_engine(devices=jax.devices()[:devices])
    images = population.place_images(engine, random_images(40))
    hyper = population.place_members(engine, population.hyper(IDS[:count], TRAINING))
    state = population.init(engine, ROOT, hyper)
    state, _ = population.train_epoch(engine, state, hyper, images, ROOT, jnp.int32(1))
    population.evaluate(engine, state.vectors, images)
    programs = population.evaluate._cache_size()
    population.evaluate(engine, population.place_members(engine, np.asarray(state.vectors)), images)
    assert population.evaluate._cache_size() == programs


def test_sizes_are_rounded_up_by_a_fourth_at_most():
    counts = np.arange(1, 3000)
    rounded = np.array([placement.rounded(int(count)) for count in counts])
    assert np.all(counts <= rounded)
    assert np.all(rounded <= 1.25 * counts)
    assert np.all(np.diff(rounded) >= 0)
    for power in (8, 64, 1024):  # four sizes up to each next power of two
        within = (counts > power) & (counts <= 2 * power)
        assert len(set(rounded[within])) == 4
