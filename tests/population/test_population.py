"""Tiny populations against plain loops over single members, and against PyTorch.

Almost every test calls the same compiled epoch: 8 members, 23 images in batches of 10, 10 and 3.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from population_cases import (
    IDS,
    INIT,
    ROOT,
    SPEC,
    TEST,
    TRAIN,
    TRAINING,
    make_engine,
    random_images,
    train,
)

from hyperjax import population, weights
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import mlp_spec
from hyperjax.models.initialise import init_vector
from hyperjax.models.sequential import Sequential
from hyperjax.population import engine as engines
from hyperjax.types import Images

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "zoo_cnn.npz")


@pytest.fixture(scope="module")
def engine():
    return make_engine()


@pytest.fixture(scope="module")
def trained(engine):
    return train(engine)


# --- against independent loops ------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """Members 0, 3 and 7, trained one by one with optax's own pieces."""
    model = Sequential(SPEC, "xla")
    tx = optax.chain(optax.add_decayed_weights(1e-2), optax.adam(1e-3))
    pixels, labels = (np.asarray(TRAIN.pixels, np.float32) / 255 - 0.4) / 0.3, TRAIN.labels

    @jax.jit
    def step(params, opt_state, x, y):
        def loss_fn(params):
            logits = model.apply({"params": params}, x)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
            return -picked.mean(), (logits.argmax(1) == y).sum()

        (loss, correct), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, correct

    def train_one(i):
        key = jax.random.fold_in(jax.random.fold_in(ROOT, 0), i)
        params = weights.unflatten(SPEC, init_vector(SPEC, INIT, key))
        opt_state, metrics = tx.init(params), []
        for epoch in range(2):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(ROOT, 1), i), epoch)
            order = np.asarray(jax.random.permutation(key, 23))
            loss_sum = correct_sum = 0.0
            for index in (order[:10], order[10:20], order[20:]):
                params, opt_state, loss, correct = step(
                    params, opt_state, pixels[index], labels[index]
                )
                loss_sum, correct_sum = loss_sum + loss * len(index), correct_sum + correct
            metrics.append((loss_sum / 23, correct_sum / 23))
        return np.asarray(weights.flatten(SPEC, params)), np.asarray(metrics)

    return {i: train_one(i) for i in (0, 3, 7)}


def test_population_equals_a_loop_over_single_members(trained, reference):
    vectors, metrics = trained
    for i, (vector, expected) in reference.items():
        np.testing.assert_allclose(vectors[i], vector, atol=2e-5)
        np.testing.assert_allclose([epoch["loss"][i] for epoch in metrics], expected[:, 0], 1e-5)
        np.testing.assert_allclose(
            [epoch["accuracy"][i] for epoch in metrics], expected[:, 1], atol=1e-6
        )


def test_training_equals_torch(engine):
    """The images are stored so that each epoch's order is the golden's."""
    golden = {name: GOLDEN[f"train/{name}"] for name in ("pixels", "labels", "mean", "std")}
    training = dataclasses.replace(
        TRAINING,
        learning_rate=float(GOLDEN["train/learning_rate"]),
        weight_decay=float(GOLDEN["train/weight_decay"]),
    )
    key = jax.random.fold_in(engines.member_key(ROOT, engines._SHUFFLE, 5), 0)
    stored = np.argsort(np.asarray(jax.random.permutation(key, 23)))
    images = Images(
        golden["pixels"][stored], golden["labels"][stored], golden["mean"], golden["std"]
    )
    start = np.tile(GOLDEN["c1/vector"], (8, 1))
    vectors, (metrics,) = train(
        engine, np.full(8, 5), epochs=1, images=images, start=start, training=training
    )
    moved = np.abs(GOLDEN["train/vector"] - GOLDEN["c1/vector"])
    assert np.median(moved) > 1e-3
    for vector in vectors:
        np.testing.assert_allclose(vector, GOLDEN["train/vector"], atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], GOLDEN["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], GOLDEN["train/accuracy"], rtol=1e-5)


def test_optimisers_equal_their_definitions():
    """Two steps on a made-up gradient, written out in NumPy float64."""
    rate, decay, gradient = 0.1, 0.3, np.array([0.5, -2.0, 1.0])

    def run(name):
        tx, param = engines.optimizer(name, rate, decay), jnp.float32([1.0, 2.0, -3.0])
        state = tx.init(param)
        for scale in (1, -0.4):
            updates, state = tx.update(jnp.float32(scale * gradient), state, param)
            param = optax.apply_updates(param, updates)
        return param

    def adam(decoupled):
        param, m, v = np.array([1.0, 2.0, -3.0]), 0.0, 0.0
        for t, scale in ((1, 1), (2, -0.4)):
            g = scale * gradient + (0 if decoupled else decay * param)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            param = param - rate * (update + (decay * param if decoupled else 0))
        return param

    def sgd():
        param, momentum = np.array([1.0, 2.0, -3.0]), 0.0
        for scale in (1, -0.4):
            momentum = 0.9 * momentum + scale * gradient + decay * param
            param = param - rate * momentum
        return param

    np.testing.assert_allclose(run("adam"), adam(False), rtol=1e-5)
    np.testing.assert_allclose(run("adamw"), adam(True), rtol=1e-5)
    np.testing.assert_allclose(run("sgd"), sgd(), rtol=1e-5)
    with pytest.raises(HyperJaxError, match=r"'lion'.*adam, adamw, sgd"):
        engines.optimizer("lion", rate, decay)


# --- what must not matter -----------------------------------------------------------------


def test_a_member_does_not_depend_on_its_population(engine, trained):
    """Other neighbours, another place, a chunk that is padded to the compiled size."""
    vectors, metrics = train(engine, np.array([6, 3, 1]), size=8)
    np.testing.assert_allclose(vectors, trained[0][[6, 3, 1]], atol=1e-7)
    for ours, theirs in zip(metrics, trained[1], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"][[6, 3, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    "how",
    [{"mapping": "vmap"}, {"conv": "patches"}, {"conv": "xla"}, {"devices": 1}],
    ids=["vmap", "patches", "xla", "1 device"],
)
def test_a_member_does_not_depend_on_how_it_is_computed(trained, how):
    if "devices" in how:
        how = {"devices": jax.devices()[: how["devices"]]}
    vectors, metrics = train(make_engine(**how), IDS[2:4], epochs=1)
    np.testing.assert_allclose(metrics[0]["loss"], trained[1][0]["loss"][2:4], rtol=1e-5)
    other, _ = train(make_engine(), IDS, epochs=1)
    np.testing.assert_allclose(vectors, other[2:4], atol=2e-5)


def test_members_differ_and_learn(engine, trained):
    vectors, metrics = trained
    assert len(np.unique(vectors.round(4), axis=0)) == 8
    _, later = train(engine, epochs=12)
    assert np.all(later[-1]["loss"] < metrics[0]["loss"])


def test_hyperparameters_are_per_member(engine):
    hyper = population.hyper(np.zeros(8), TRAINING)
    assert [leaf.dtype for leaf in hyper] == [jnp.int32, jnp.float32, jnp.float32]
    rates = np.float32([0, 1e-3, 1e-2, 0, 1e-3, 1e-2, 0, 1e-3])
    hyper = population.place_members(engine, hyper._replace(learning_rate=rates))
    state = population.init(engine, ROOT, hyper)
    before = np.array(state.vectors)
    images = population.place_images(engine, TRAIN)
    state, _ = population.train_epoch(engine, state, hyper, images, ROOT, jnp.int32(0))
    moved = np.abs(np.asarray(state.vectors) - before).max(1)
    np.testing.assert_array_equal(moved == 0, rates == 0)
    np.testing.assert_allclose(moved[[1, 4]], moved[7], rtol=1e-5)
    assert moved[2] > 5 * moved[1]


@pytest.mark.parametrize("size", [5, 4])
def test_a_batch_may_be_summed_up_in_parts(trained, size):
    """Batches of 10 as 5 + 5, and as 4 + 4 + 2."""
    engine = dataclasses.replace(make_engine(), micro_batch=size)
    vectors, metrics = train(engine)
    np.testing.assert_allclose(vectors, trained[0], atol=2e-5)
    for ours, theirs in zip(metrics, trained[1], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
        np.testing.assert_allclose(ours["accuracy"], theirs["accuracy"], rtol=1e-6)


# --- members that diverge -----------------------------------------------------------------


def test_a_diverged_member_disturbs_nobody(engine, trained):
    hyper = population.place_members(engine, population.hyper(IDS, TRAINING))
    start = np.array(population.init(engine, ROOT, hyper).vectors)
    start[4] = np.nan
    vectors, metrics = train(engine, start=start)
    others = np.delete(IDS, 4)
    np.testing.assert_allclose(vectors[others], trained[0][others], atol=1e-7)
    assert np.isnan(vectors[4]).all()
    for epoch in metrics:
        np.testing.assert_array_equal(np.isnan(epoch["loss"]), IDS == 4)
        assert epoch["accuracy"][4] == 0
    placed = population.place_members(engine, vectors)
    result = population.evaluate(engine, placed, population.place_images(engine, TEST))
    np.testing.assert_array_equal(np.isnan(result.loss), IDS == 4)
    assert (TEST.labels == 0).any()  # the class that arg max gives for NaN
    assert result.accuracy[4] == 0
    assert (result.predictions[4] == 65_535).all()
    assert (result.predictions[others] < 10).all()


# --- evaluation ---------------------------------------------------------------------------


def test_evaluation_equals_a_direct_computation(engine, trained):
    vectors, _ = trained
    placed = population.place_members(engine, vectors)
    result = population.evaluate(engine, placed, population.place_images(engine, TEST))
    assert result.predictions.dtype == jnp.uint16
    assert result.predictions.shape == (8, 40)
    pixels, labels = (TEST.pixels / 255 - 0.4) / 0.3, TEST.labels
    model = Sequential(SPEC, "xla")
    for i in (0, 7):
        params = weights.unflatten(SPEC, vectors[i])
        logits = np.asarray(model.apply({"params": params}, np.float32(pixels)), np.float64)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(40), labels]
        np.testing.assert_allclose(result.loss[i], losses.mean(), rtol=1e-5)
        np.testing.assert_array_equal(result.predictions[i], logits.argmax(1))
        accuracy = np.mean(logits.argmax(1) == labels)
        np.testing.assert_allclose(result.accuracy[i], accuracy, rtol=1e-6)


def test_more_classes_than_a_byte_has_values():
    """By networks that see their biases alone; the last one has diverged."""
    spec = mlp_spec(1, "relu", classes=300, widths=())
    vectors = np.zeros((3, spec.num_params), np.float32)
    vectors[0, 299 - 300] = vectors[1, 255 - 300] = 1
    vectors[2] = np.nan
    engine = population.make_engine(spec, TRAINING)
    images = TEST._replace(labels=np.full(40, 299, np.int32))
    placed = population.place_members(engine, vectors)
    result = population.evaluate(engine, placed, population.place_images(engine, images))
    np.testing.assert_array_equal(result.accuracy[:3], [1, 0, 0])
    expected = np.broadcast_to([[299], [255], [65_535]], (3, 40))
    np.testing.assert_array_equal(result.predictions[:3], expected)


def test_normalisation():
    images = Images(*(jnp.asarray(part) for part in TEST))
    result = engines.normalize(images, np.array([3, 3, 5]))
    expected = (TEST.pixels[[3, 3, 5]].astype(np.float64) / 255 - 0.4) / 0.3
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
    colour = Images(
        np.full((1, 28, 28, 3), 51, np.uint8), np.int32([0]), np.float32([0, 0.1, 0.2]),
        np.float32([1, 2, 0.5]),
    )  # fmt: skip
    np.testing.assert_allclose(
        engines.normalize(colour, np.array([0]))[0, 0, 0], [0.2, 0.05, 0], atol=1e-6
    )


# --- compilation and placement ------------------------------------------------------------


def test_epochs_and_populations_share_one_compilation(engine):
    hyper = population.place_members(engine, population.hyper(IDS, TRAINING))
    images = population.place_images(engine, TRAIN)
    state = population.init(engine, ROOT, hyper)
    state, _ = population.train_epoch(engine, state, hyper, images, ROOT, jnp.int32(0))
    compiled = population.train_epoch._cache_size()
    for epoch in (1, 2):
        state, _ = population.train_epoch(engine, state, hyper, images, ROOT, jnp.int32(epoch))
    started = population.start(engine, state.vectors, hyper)
    population.train_epoch(engine, started, hyper, images, ROOT, jnp.int32(0))
    same = population.make_engine(SPEC, TRAINING, init=INIT)
    hyper = population.place_members(same, population.hyper(IDS + 8, TRAINING))
    population.train_epoch(
        same, population.init(same, ROOT, hyper), hyper, images, ROOT, jnp.int32(0)
    )
    assert population.train_epoch._cache_size() == compiled


def test_evaluations_share_one_compilation(engine):
    images = population.place_images(engine, TRAIN)
    other = population.place_images(engine, random_images(len(TRAIN.labels), seed=5))
    vectors = np.zeros((len(IDS), SPEC.num_params), np.float32)
    for fn in (population.evaluate, population.logits):
        fn(engine, population.place_members(engine, vectors), images)
        compiled = fn._cache_size()
        for scale in (1, 2):
            fn(engine, population.place_members(engine, vectors + scale), other)
        assert fn._cache_size() == compiled


def test_members_never_communicate(engine):
    hyper = population.place_members(engine, population.hyper(IDS, TRAINING))
    images = population.place_images(engine, TRAIN)
    state = population.init(engine, ROOT, hyper)
    lowered = population.train_epoch.lower(engine, state, hyper, images, ROOT, jnp.int32(0))
    text = lowered.compile().as_text()
    assert "num_partitions=4" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


def test_state_is_split_over_the_devices_and_donated(engine):
    hyper = population.place_members(engine, population.hyper(IDS, TRAINING))
    state = population.init(engine, ROOT, hyper)
    for leaf in jax.tree.leaves((state, hyper)):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}
        assert len(leaf.sharding.device_set) == 4
    images = population.place_images(engine, TRAIN)
    after, _ = population.train_epoch(engine, state, hyper, images, ROOT, jnp.int32(0))
    assert state.vectors.is_deleted()
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == jax.tree.map(
        lambda leaf: leaf.sharding, population.init(engine, ROOT, hyper)
    )


def test_errors(engine):
    with pytest.raises(HyperJaxError, match="empty"):
        population.place_members(engine, np.zeros((0, 2464)))
    with pytest.raises(HyperJaxError, match=r"'pmap'.*map, vmap"):
        make_engine(mapping="pmap")
    hyper = population.place_members(engine, population.hyper(IDS, TRAINING))
    with pytest.raises(HyperJaxError, match="'fft'"):
        population.init(make_engine(conv="fft"), ROOT, hyper)
