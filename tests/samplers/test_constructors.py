"""Samplers that are built and registered by hand keep the contract of those with a name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_cases import (
    QUICK,
    SPEC,
    D,
    decode,
    denoiser,
    draw,
    make,
    repair,
    score,
    some_anchors,
)

from hyperjax import samplers
from hyperjax.config import SamplersConfig
from hyperjax.errors import HyperJaxError

KEY = jax.random.key(0)


def score_latents(samples):
    return score(decode(samples))


BUILT = {
    "uniform": samplers.uniform(),
    "counterfactual": samplers.counterfactual(QUICK.kde_bandwidth, QUICK.counterfactual_fraction),
    "kde": samplers.kde(),
    "kde_anchor": samplers.kde_anchor(),
    "neigh": samplers.neigh(),
    "gan": samplers.gan(QUICK.gan),
    "joint": samplers.joint(QUICK.joint_bandwidth),
    "prior": samplers.prior(),
    "aligned_mean": samplers.aligned_mean(),
    "average": samplers.average(QUICK.average_of),
    "average_nearest": samplers.average_nearest(),
    "noise": samplers.noise(QUICK.noise_scale, SPEC),
    "pca": samplers.pca(QUICK.pca_components),
    "subsample:joint": samplers.subsample(
        samplers.joint(QUICK.joint_bandwidth), score_latents, QUICK.subsample_factor
    ),
    "bootstrap:kde": samplers.bootstrap(
        samplers.kde(), score_latents, rounds=QUICK.bootstrap_rounds, draws=QUICK.bootstrap_draws,
        fraction=QUICK.best_fraction,
    ),
    "diffusion": samplers.diffusion(denoiser, QUICK.diffusion),
    "refine:kde": samplers.refine(samplers.kde(), denoiser, QUICK.diffusion, decode),
    "polish:kde": samplers.polish(samplers.kde(), denoiser, repair, QUICK.diffusion, decode),
    "repair:average": samplers.repair(samplers.average(QUICK.average_of), repair),
}  # fmt: skip


def test_every_sampler_has_a_constructor():
    named = {name.removesuffix("30") for name in samplers.names(vae=True, denoiser=True)}
    assert named == {name for name in BUILT if ":" not in name}
    assert {"make", "best", *named} <= set(samplers.__all__)


@pytest.mark.parametrize("name", BUILT)
def test_a_sampler_that_is_built_draws_what_the_named_one_does(name):
    """And needs no quality."""
    built, named, anchors = BUILT[name], make(name), some_anchors()
    assert (built.space, built.description) == (named.space, named.description)
    ours = draw(built, built.fit(KEY, anchors), 4)
    theirs = draw(named, named.fit(KEY, anchors, np.full(20, np.nan)), 4)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(draw(named, named.fit(KEY, anchors, None), 4), theirs)


@pytest.mark.parametrize("name", BUILT)
def test_a_sampler_that_is_built_checks_its_arguments(name):
    sampler, anchors = BUILT[name], some_anchors()
    with pytest.raises(HyperJaxError, match=r"there are no anchors \(shape \(0, 19\)"):
        sampler.fit(KEY, anchors[:0])
    with pytest.raises(HyperJaxError, match=r"anchors have shape \(19,\)"):
        sampler.fit(KEY, anchors[0])
    with pytest.raises(HyperJaxError, match=r"quality has shape \(3,\), expected \(20,\)"):
        sampler.fit(KEY, anchors, np.ones(3))
    anchors[2, 1] = np.inf
    with pytest.raises(HyperJaxError, match="1 of 20 anchors hold NaN or infinite"):
        sampler.fit(KEY, anchors)
    for n in (0, -2):
        with pytest.raises(HyperJaxError, match=f"cannot draw {n} samples"):
            sampler.sample(KEY, None, n)


def test_make_hands_on_what_it_checked():
    """Anchors and quality in float32; without a quality, NaN for each."""
    seen = []

    def fit(key, anchors, quality):
        seen.append((anchors, quality))
        return jnp.asarray(anchors[0])

    sampler = samplers.make(
        fit, lambda key, state, n: jnp.tile(state, (n, 1)), "latent", "the first",
        lambda state, samples: {"count": float(len(samples))},
    )  # fmt: skip
    state = sampler.fit(KEY, [[1, 2], [3, 4], [5, 6]])
    samples = sampler.sample(KEY, state, 2)
    np.testing.assert_array_equal(samples, [[1, 2], [1, 2]])
    assert sampler.report(state, samples) == {"count": 2.0}
    sampler.fit(KEY, np.ones((2, 2)), [0.5, np.nan])
    (anchors, unknown), (_, known) = seen
    assert anchors.dtype == unknown.dtype == known.dtype == np.float32
    assert unknown.shape == (3,)
    assert np.isnan(unknown).all()
    np.testing.assert_array_equal(known, np.float32([0.5, np.nan]))


def test_best_of_a_sampler_that_is_built():
    """Only anchors of the best quality are used; a report and a space go with it."""
    quality = np.arange(20) / 20
    sampler = samplers.best(samplers.joint(0.0), 0.25)
    state = sampler.fit(KEY, some_anchors(), quality)
    drawn, anchors = draw(sampler, state, 100), some_anchors()
    nearest = np.abs(drawn[:, None] - anchors[None]).max(axis=2).argmin(axis=1)
    assert set(nearest) == {15, 16, 17, 18, 19}
    assert sampler.space == "latent"
    with pytest.raises(HyperJaxError, match="cannot draw 0 samples"):
        sampler.sample(KEY, state, 0)


@pytest.mark.parametrize("quality", [None, np.full(20, np.nan)])
def test_best_of_unknown_quality_is_refused(quality):
    sampler = samplers.best(samplers.kde(), 0.3)
    with pytest.raises(HyperJaxError, match=r"best 30 % of 20 anchors: the quality of every one"):
        sampler.fit(KEY, some_anchors(), quality)
    with pytest.raises(HyperJaxError, match=r"^sampler kde30: cannot choose the best 30 %"):
        make("kde30").fit(KEY, some_anchors(), quality)


# --- registration -------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(samplers, "_REGISTRY", dict(samplers._REGISTRY))
    return samplers._REGISTRY


def test_a_registered_sampler_is_one_of_the_others(registry):
    before, asked = samplers.names(), []

    def build(config, spec):
        asked.append((config, spec))
        return samplers.joint(config.joint_bandwidth / 2)

    samplers.register("half_joint2", build)
    assert samplers.names() == (*before, "half_joint2")
    samplers.check("subsample:half_joint2", vae=False)
    assert samplers.describe()["half_joint2"] == samplers.joint(0.2).description
    settings = SamplersConfig(joint_bandwidth=0.6)
    sampler = samplers.get_sampler("half_joint2", settings, SPEC)
    assert asked[-1] == (settings, SPEC)
    plain = samplers.joint(0.3)
    state = sampler.fit(KEY, some_anchors())
    np.testing.assert_array_equal(
        draw(sampler, state, 3), draw(plain, plain.fit(KEY, some_anchors()), 3)
    )
    with pytest.raises(HyperJaxError, match=r"^sampler half_joint2: there are no anchors"):
        sampler.fit(KEY, np.zeros((0, D)))
    best = samplers.get_sampler("subsample:half_joint2", settings, SPEC, score)
    assert draw(best, best.fit(KEY, some_anchors()), 2).shape == (2, D)


def test_a_registered_sampler_of_weights_needs_a_spec(registry):
    samplers.register("mean_again", lambda config, spec: samplers.aligned_mean())
    with pytest.raises(HyperJaxError, match="mean_again draws weights: it needs their WeightSpec"):
        samplers.get_sampler("mean_again", SamplersConfig())
    with pytest.raises(HyperJaxError, match="mean_again: anchors have 18 values"):
        samplers.get_sampler("mean_again", SamplersConfig(), SPEC).fit(KEY, some_anchors(size=18))


@pytest.mark.parametrize(
    "name", ["joint", "kde30", "prior", "subsample", "bootstrap", "refine", "polish", "diffusion30"]
)
def test_names_that_are_taken(registry, name):
    before = dict(registry)
    with pytest.raises(HyperJaxError, match=f"there is a sampler {name} already"):
        samplers.register(name, lambda config, spec: samplers.uniform())
    assert registry == before


@pytest.mark.parametrize("name", ["", "a-b", "subsample:mine", "two words", "../x", "3d"])
def test_names_that_are_none(registry, name):
    before = dict(registry)
    with pytest.raises(HyperJaxError, match=r"expected an identifier"):
        samplers.register(name, lambda config, spec: samplers.uniform())
    assert registry == before
