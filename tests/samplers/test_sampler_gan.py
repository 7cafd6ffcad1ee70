"""The GAN on latents: what it learns, its legs, its compilations, its check for collapse."""

import dataclasses
import functools
import importlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from hyperjax import samplers
from hyperjax.config import GanConfig, SamplersConfig
from hyperjax.errors import HyperJaxError
from hyperjax.store import checkpoint

gan = importlib.import_module("hyperjax.samplers.gan")  # the name in the package is the sampler
QUICK = GanConfig(hidden=8, layers=1, steps=12, batch_size=4)
MODES = np.array([[-0.6, -0.6], [0.6, -0.5], [-0.5, 0.6], [0.6, 0.6]])
WEIGHTS = np.array([0.4, 0.2, 0.2, 0.2])


def mixture(count, seed=0):
    rng = np.random.default_rng(seed)
    which = rng.choice(4, count, p=WEIGHTS)
    return (MODES[which] + 0.08 * rng.normal(size=(count, 2))).astype(np.float32)


def fit(config, anchors):
    sampler = samplers.get_sampler("gan", SamplersConfig(gan=config))
    return sampler, sampler.fit(jax.random.key(0), anchors, np.ones(len(anchors)))


@functools.cache
def trained():
    config = GanConfig(hidden=64, steps=1500)
    return fit(config, mixture(500))


def test_recovers_a_mixture():
    sampler, state = trained()
    samples = np.asarray(sampler.sample(jax.random.key(1), state, 4000))
    exact = mixture(200_000, seed=1)
    mode = pairwise_distances(samples, MODES).argmin(axis=1)
    share = np.bincount(mode, minlength=4) / 4000
    assert np.all(share > 0.6 * WEIGHTS), share  # none is missed
    assert np.all(share < 1.5 * WEIGHTS), share
    assert np.mean(pairwise_distances(samples, MODES).min(axis=1) < 0.32) > 0.85  # 4 std
    np.testing.assert_allclose(samples.mean(0), exact.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(exact.T), atol=0.08)


def test_reports_that_it_has_not_collapsed():
    sampler, state = trained()
    report = sampler.report(state, np.zeros((1, 2), np.float32))
    assert report["coverage"] > 0.8
    assert 0.9 < report["spread"] < 1.1


@pytest.mark.parametrize("factor", [1, 3])  # within and beyond the range of tanh
def test_an_untrained_generator_has_the_anchors_frame(factor):
    anchors = factor * mixture(300) * np.array([1, 0.1]) + np.array([0, 0.2])
    anchors = np.column_stack([anchors, np.full(300, 0.4)]).astype(np.float32)
    frame = gan.make_frame(anchors)
    standard = np.asarray(gan.standardise(frame, anchors))
    np.testing.assert_allclose(standard[:, :2].mean(0), [0, 0], atol=1e-3)
    np.testing.assert_allclose(standard[:, :2].std(0), [1, 1], atol=1e-3)
    assert frame.bounded == (factor == 1)
    sampler, state = fit(QUICK, anchors)
    samples = np.asarray(sampler.sample(jax.random.key(1), state, 500))
    assert (np.abs(samples).max() <= 1) == (factor == 1)
    np.testing.assert_allclose(samples[:, 2], np.full(500, 0.4), atol=1e-3)  # a constant stays


def test_legs_through_a_checkpoint_are_one_training(tmp_path):
    anchors = mixture(30)
    trainer, frame = gan.Trainer(QUICK, 2), gan.make_frame(anchors)
    data = gan.standardise(frame, anchors)
    start = gan.init(trainer, jax.random.key(0))
    at_once = gan.train_steps(trainer, start, data, jnp.int32(12))
    state = gan.train_steps(trainer, start, data, jnp.int32(5))
    checkpoint.save(tmp_path / "gan", 5, state)
    state = checkpoint.restore(tmp_path / "gan", 5, start)
    state = gan.train_steps(trainer, state, data, jnp.int32(7))
    fitted = gan.finish(trainer, state, frame, anchors)
    assert state.step == 12
    for one, other in (
        (at_once._replace(key=0), state._replace(key=0)),
        (fit(QUICK, anchors)[1], fitted),
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_training_compiles_once(caplog):
    config = dataclasses.replace(QUICK, hidden=9)  # of which no other test has made a program
    anchors = mixture(30)
    trainer, data = gan.Trainer(config, 2), jnp.asarray(anchors)
    state = gan.init(trainer, jax.random.key(0))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for count in (1, 4, 3):
            state = gan.train_steps(trainer, state, data, jnp.int32(count))
        gan.train_steps(trainer, gan.init(trainer, jax.random.key(1)), data + 0.1, jnp.int32(2))
        fit(config, anchors)
    assert caplog.text.count("Compiling jit(train_steps)") == 1
    assert caplog.text.count("Compiling jit(init)") == 0


def plain(params, x):
    """The networks in NumPy."""
    layers = params["params"]
    for name in sorted(layers):  # hidden_0, ..., out
        kernel, bias = (np.asarray(layers[name][part]) for part in ("kernel", "bias"))
        x = x @ kernel + bias[None, :]
        x = np.where(x > 0, x, 0.2 * x) if name != "out" else x
    return x


def differences(loss, params, step=1e-4):
    """Gradient of loss(params), one parameter after another."""
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: np.array(x, np.float64), params))
    grads = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, grad in zip(leaves, grads, strict=True):
        for place in np.ndindex(leaf.shape):
            value, ends = leaf[place], []
            for sign in (1, -1):
                leaf[place] = value + sign * step
                ends.append(loss(jax.tree.unflatten(tree, leaves)))
            leaf[place] = value
            grad[place] = (ends[0] - ends[1]) / (2 * step)
    return jax.tree.unflatten(tree, grads)


def test_first_step_follows_the_stated_losses():
    config = dataclasses.replace(QUICK, average=0.0, penalty=0.3)
    real = np.array([[0.3, -0.7, 0.2]], np.float32)  # one anchor: every batch is known
    trainer = gan.Trainer(config, 3)
    old = gan.init(trainer, jax.random.key(0))
    new = gan.train_steps(trainer, old, jnp.asarray(real), jnp.int32(1))
    keys = jax.random.split(jax.random.fold_in(old.key, 0), 3)
    first, second = (np.asarray(jax.random.normal(key, (4, 16))) for key in keys[1:])
    fake = plain(old.generator, first)

    def discriminator_loss(params):
        nudges = 1e-5 * np.eye(3)
        slope = (plain(params, real + nudges) - plain(params, real - nudges)) / 2e-5
        loss = np.log1p(np.exp(-plain(params, real))).mean()
        loss += np.log1p(np.exp(plain(params, fake))).mean()
        return loss + 0.3 * 3 / 2 * np.sum(slope**2)

    def generator_loss(params):
        return np.log1p(np.exp(-plain(new.discriminator, plain(params, second)))).mean()

    jax.tree.map(np.testing.assert_array_equal, new.average, new.generator)
    for before, after, loss, rate in (
        (old.discriminator, new.discriminator, discriminator_loss, config.discriminator_rate),
        (old.generator, new.generator, generator_loss, config.generator_rate),
    ):
        grads = jax.tree.leaves(differences(loss, before))
        moves = jax.tree.leaves(jax.tree.map(lambda a, b: np.asarray(b - a), before, after))
        grads, moves = (np.concatenate([x.ravel() for x in xs]) for xs in (grads, moves))
        clear = np.abs(grads) > 1e-4
        assert clear.mean() > 0.5
        # Adam's first step is as long for every parameter, against its gradient.
        np.testing.assert_allclose(moves[clear], -rate * np.sign(grads[clear]), rtol=0.01)


def test_collapse_of_known_samples():
    rng = np.random.default_rng(0)
    anchors, twin = mixture(300), mixture(300, seed=5)
    half = anchors[anchors[:, 0] < 0]
    share = len(half) / 300
    cases = {
        "same": (twin, (0.85, 1.0), (0.95, 1.05)),
        "one point": (np.repeat(anchors[:1], 50, 0), (0, 0.1), (0, 0)),
        "half the modes": (half, (share, share + 0.01), (0.5, 0.9)),
        "elsewhere": (5 + rng.normal(size=(50, 2)).astype(np.float32), (0, 0), (1, 5)),
    }
    for name, (samples, coverage, spread) in cases.items():
        found = {k: float(v) for k, v in gan.collapse(jnp.asarray(anchors), samples).items()}
        assert coverage[0] <= found["coverage"] <= coverage[1], (name, found)
        assert spread[0] <= found["spread"] <= spread[1], (name, found)
        among, across = pairwise_distances(anchors), pairwise_distances(anchors, samples)
        near = across.min(axis=1) <= np.sort(among, axis=1)[:, 5]  # the first is itself
        np.testing.assert_allclose(found["coverage"], near.mean(), atol=1e-6)
        pairs = np.triu_indices(len(samples), 1), np.triu_indices(300, 1)
        ratio = pairwise_distances(samples)[pairs[0]].mean() / among[pairs[1]].mean()
        np.testing.assert_allclose(found["spread"], ratio, rtol=1e-3, atol=1e-3)


def test_collapse_is_judged_on_some_of_many_anchors(monkeypatch):
    """All pairs of tens of thousands would be gigabytes."""
    seen, collapse = [], gan.collapse
    monkeypatch.setattr(gan, "_JUDGED", 5)
    monkeypatch.setattr(gan, "collapse", lambda *both: seen.append(both) or collapse(*both))
    anchors = mixture(21)
    fit(QUICK, anchors)
    ((judged, samples),) = seen
    np.testing.assert_array_equal(judged, anchors[::5])
    assert len(samples) == 5


def test_equal_anchors_teach_nothing():
    with pytest.raises(HyperJaxError, match="gan: all 3 anchors are equal"):
        fit(QUICK, np.full((3, 2), 0.5, np.float32))
