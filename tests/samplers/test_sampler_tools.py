"""Samplers that are given tools: diffusion, what refines and repairs, and what they choose by."""

import dataclasses

import jax
import numpy as np
import pytest
from sampler_cases import (
    LINEAR,
    QUICK,
    SPEC,
    TOOLS,
    D,
    decode,
    denoiser,
    draw,
    encode,
    fit,
    fit_draw,
    make,
    repair,
    score,
    some_anchors,
)

from hyperjax import samplers
from hyperjax.config import DiffusionConfig, SamplersConfig
from hyperjax.diffusion import UNKNOWN, sampling
from hyperjax.errors import HyperJaxError
from hyperjax.samplers import Sampler, Tools

KEY = jax.random.key(1)


def replayed(name, n=4):
    """What a sampler inside of a wrapper draws, whose key the wrapper has split, decoded."""
    inner, key = make(name), jax.random.split(KEY)[0]
    drawn = np.asarray(inner.sample(key, fit(inner, some_anchors()), n))
    return drawn if inner.drawn == "weights" else decode(drawn)


# --- average_nearest ------------------------------------------------------------------------


def test_average_nearest_by_a_plain_loop():
    anchors = some_anchors(30)
    means = []
    for i, one in enumerate(anchors):
        distances = [np.inf if j == i else np.linalg.norm(one - x) for j, x in enumerate(anchors)]
        means.append((one + anchors[np.argmin(distances)]) / 2)
    found = fit_draw(make("average_nearest"), anchors, 300)
    distance = np.abs(found[:, None] - np.array(means)[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-6
    assert len(set(distance.argmin(axis=1))) > 20  # all anchors have their turn


def test_the_nearest_of_anchors_that_are_far_from_the_origin():
    """Or equal: an anchor is never paired with itself, but may be with its copy."""
    anchors = np.float32(some_anchors(3) + 50)
    anchors = np.concatenate([anchors, anchors + 0.05])
    found = fit_draw(make("average_nearest"), anchors, 50)
    distance = np.abs(found[:, None] - anchors[None, :3] - 0.025).max(axis=2).min(axis=1)
    assert distance.max() < 1e-4
    twins = np.repeat(some_anchors(2), 2, axis=0)
    pairs = fit_draw(make("average_nearest"), twins, 20)
    assert np.abs(pairs[:, None] - twins[None]).max(axis=2).min(axis=1).max() < 1e-6


# --- what wrappers do -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kde", "average"])
def test_repair_mends_what_is_drawn(name):
    inner, sampler = make(name), make(f"repair:{name}")
    found = draw(sampler, fit(sampler, some_anchors()), 4)
    drawn = draw(inner, fit(inner, some_anchors()), 4)
    expected = repair(drawn if name == "average" else decode(drawn))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.mean(axis=1), 0.5, atol=1e-6)


@pytest.mark.parametrize("name", ["kde", "pca"])
def test_refine_noises_and_denoises_what_is_drawn(name):
    sampler = make(f"refine:{name}")
    found = draw(sampler, fit(sampler, some_anchors()), 4)
    level, unknown = QUICK.diffusion.refine_sigma, np.full(4, UNKNOWN)
    key = jax.random.split(KEY)[1]
    expected = sampling.refine(key, denoiser(), QUICK.diffusion, replayed(name), level, unknown)
    np.testing.assert_array_equal(found, expected)


def test_polish_repairs_and_denoises_in_turn():
    found = fit_draw(make("polish:kde"), some_anchors(), 4)
    key, *keys = jax.random.split(KEY, 3)
    inner = make("kde")
    expected = repair(decode(inner.sample(key, fit(inner, some_anchors()), 4)))
    for of_round in keys:
        level, unknown = QUICK.diffusion.polish_sigma, np.full(4, UNKNOWN)
        given = denoiser(), QUICK.diffusion, expected, level, unknown
        expected = repair(sampling.refine(of_round, *given))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found.mean(axis=1), 0.5, atol=1e-6)


def test_wrappers_run_from_the_inside_out():
    """In the order of their names, and each on what the one inside draws."""
    found = draw(make("repair:refine:kde"), fit(make("kde"), some_anchors()), 3)
    inner = draw(make("refine:kde"), fit(make("kde"), some_anchors()), 3)
    np.testing.assert_array_equal(found, repair(inner))
    outer = draw(make("refine:repair:kde"), fit(make("kde"), some_anchors()), 3)
    assert np.abs(outer.mean(axis=1) - 0.5).max() > 1e-3


def test_what_is_drawn_and_what_is_fitted():
    """Wrappers of latents' samplers take latents and give weights."""
    expected = {
        "kde": ("latent", "latent"),
        "refine:kde": ("latent", "weights"),
        "subsample:repair:joint": ("latent", "weights"),
        "bootstrap:refine:kde": ("latent", "weights"),
        "repair:subsample:kde": ("latent", "weights"),
        "repair:average": ("weights", "weights"),
        "diffusion": ("weights", "weights"),
    }
    for name, (space, drawn) in expected.items():
        sampler = make(name)
        assert (sampler.space, sampler.drawn) == (space, drawn)


def test_what_samplers_need():
    for name in ("diffusion", "diffusion30", "repair:diffusion", "polish:kde", "repair:refine:kde"):
        assert samplers.needs_denoiser(name)
    for name in ("kde", "repair:kde", "subsample:joint30", "average_nearest"):
        assert not samplers.needs_denoiser(name)
    for name in ("repair:kde", "polish:diffusion", "subsample:repair:kde"):
        assert samplers.is_repaired(name)
    for name in ("diffusion", "refine:kde", "average_nearest"):
        assert not samplers.is_repaired(name)
    for name in ("subsample:kde", "repair:bootstrap:kde", "subsample:polish:diffusion"):
        assert samplers.is_selected(name)
    for name in ("kde30", "diffusion30", "repair:average"):
        assert not samplers.is_selected(name)


# --- scores ---------------------------------------------------------------------------------


def test_networks_are_scored_whatever_is_drawn():
    """Latents are decoded first, unless there is no decoder; weights are networks already."""
    for name, tools, expected in (
        ("subsample:joint", TOOLS, decode),
        ("subsample:joint", Tools(score=score), np.asarray),
        ("subsample:repair:joint", TOOLS, np.asarray),
        ("subsample:pca", TOOLS, np.asarray),
    ):
        seen = []

        def recorded(networks, seen=seen):
            seen.append(np.asarray(networks))
            return score(networks)

        inner = name.removeprefix("subsample:")
        sampler = samplers.get_sampler(name, QUICK, SPEC, tools=tools._replace(score=recorded))
        found = draw(sampler, fit(sampler, some_anchors()), 4)
        drawn = draw(make(inner), fit(make(inner), some_anchors()), 12)
        (networks,) = seen
        np.testing.assert_array_equal(networks, expected(drawn))
        best = np.argsort(-score(networks), kind="stable")[:4]
        np.testing.assert_array_equal(found, drawn[best])


def test_bootstrap_encodes_what_it_has_chosen():
    """Anchors of the rounds after the first are latents of the best networks."""
    fits = []

    def remember(key, anchors, quality):
        fits.append(np.asarray(anchors))
        return anchors

    def replay(key, state, n):
        return jax.random.choice(key, state, (n,), axis=0)

    inner = Sampler(remember, replay, "latent", "replay")
    wrapped = samplers.repair(inner, repair, decode)
    found = samplers.bootstrap(
        wrapped, score, rounds=1, draws=10, fraction=0.3, anchors_of=encode
    ).fit(KEY, some_anchors())
    first, second = fits
    np.testing.assert_array_equal(first, some_anchors())
    rounds_key = jax.random.split(KEY)[1]
    (round_key,) = jax.random.split(rounds_key, 1)
    networks = np.asarray(wrapped.sample(jax.random.split(round_key)[0], first, 10))
    best = networks[np.argsort(-score(networks), kind="stable")[:3]]
    np.testing.assert_allclose(decode(second), best, atol=1e-5)
    np.testing.assert_array_equal(found, second)
    named = fit(make("bootstrap:refine:kde"), some_anchors())
    assert np.asarray(jax.tree.leaves(named)[0]).shape[-1] == D
    np.testing.assert_allclose(encode(LINEAR), np.eye(D), atol=1e-5)


# --- diffusion ------------------------------------------------------------------------------


def test_diffusion_looks_at_no_anchors():
    sampler = make("diffusion")
    state, other = fit(sampler, some_anchors()), fit(sampler, some_anchors(seed=1))
    assert state == other == ()
    found = draw(sampler, state, 3)
    key = jax.random.split(KEY)[1]
    expected = sampling.sample(key, denoiser(), QUICK.diffusion, np.full(3, UNKNOWN))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("name", "settings", "low"), [
    ("diffusion30", {}, 0.7), ("diffusion30", {"best_fraction": 0.1}, 0.9),
])  # fmt: skip
def test_diffusion_of_the_best_asks_for_high_quantiles(monkeypatch, name, settings, low):
    asked = []

    def record(key, denoiser, config, quantiles):
        asked.extend(np.asarray(quantiles))
        return np.zeros((len(quantiles), D), np.float32)

    monkeypatch.setattr(sampling, "sample", record)
    sampler = make(name, **settings)
    sampler.sample(KEY, (), 500)
    assert low <= min(asked) < low + 0.01
    assert 0.99 < max(asked) <= 1
    assert f"best {100 * (1 - low):.0f} %" in sampler.description


def test_diffusion_of_the_best_needs_a_quality():
    """Of members whose accuracy nobody knows the denoiser was never told which are good."""
    sampler, anchors = make("diffusion30"), some_anchors()
    unknown = np.full(len(anchors), np.nan)
    for quality in (None, unknown):
        with pytest.raises(HyperJaxError, match=r"diffusion30: cannot ask for the best 30 %"):
            sampler.fit(KEY, anchors, quality)
    unknown[1] = 0.5
    assert sampler.fit(KEY, anchors, unknown) == make("diffusion").fit(KEY, anchors) == ()


@pytest.mark.parametrize("name", ["bootstrap:diffusion", "bootstrap:repair:diffusion30"])
def test_bootstrap_of_what_fits_nothing_is_refused(name):
    """It would draw and score for nothing."""
    anchors = some_anchors()
    with pytest.raises(HyperJaxError, match=f"{name}: bootstrap refits .* fits nothing to anchors"):
        make(name).fit(KEY, anchors, np.ones(len(anchors)))


def test_settings_of_diffusion():
    """Steps, levels and guidance are the configuration's."""
    settings = DiffusionConfig(steps=2, sigma_max=1.5, refine_sigma=1.5, guidance=3.0)
    for name in ("diffusion30", "refine:kde"):
        changed = dataclasses.replace(QUICK, diffusion=settings)
        sampler = samplers.get_sampler(name, changed, SPEC, tools=TOOLS)
        ours = fit_draw(sampler, some_anchors(), 3)
        theirs = fit_draw(make(name), some_anchors(), 3)
        assert np.allclose(ours, theirs) == (name == "refine:kde")  # which asks for no quality


# --- what is missing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("diffusion", "denoiser", "goes through a denoiser"),
        ("diffusion30", "denoiser", "goes through a denoiser"),
        ("refine:average", "denoiser", "goes through a denoiser"),
        ("refine:kde", "decode", "needs networks.*no decoder"),
        ("polish:average", "denoiser", "goes through a denoiser"),
        ("polish:average", "repair", "repairs networks.*no repair"),
        ("polish:kde", "decode", "needs networks.*no decoder"),
        ("repair:kde", "decode", "needs networks.*no decoder"),
        ("repair:average", "repair", "repairs networks.*no repair"),
        ("subsample:repair:average", "repair", "repairs networks.*no repair"),
        ("subsample:repair:average", "score", "chooses by a score"),
        ("bootstrap:repair:kde", "encode", "needs latents of networks.*no encoder"),
    ],
)
def test_missing_tools_are_named(name, missing, message):
    """By the sampler that needs them, when it needs them."""
    tools = TOOLS._replace(**{missing: None})
    sampler = samplers.get_sampler(name, QUICK, SPEC, tools=tools)
    with pytest.raises(HyperJaxError, match=f"^sampler {name}: it {message}"):
        fit_draw(sampler, some_anchors(), 2)


def test_tools_that_are_not_needed_may_be_missing():
    for name in ("repair:average", "subsample:pca"):
        tools = {"repair:average": Tools(repair=repair), "subsample:pca": Tools(score=score)}[name]
        sampler = samplers.get_sampler(name, QUICK, SPEC, tools=tools)
        assert fit_draw(sampler, some_anchors(), 2).shape == (2, D)


def test_networks_that_are_not_finite_are_drawn_as_they_are():
    """A repair sees them, diffusion leaves them alone: populations say so where they measure."""
    broken = np.zeros((2, D), np.float32)
    broken[1, 0] = np.nan
    inner = Sampler(lambda *_: (), lambda key, state, n: broken, "weights", "broken")
    found = samplers.refine(inner, denoiser, SamplersConfig().diffusion).sample(KEY, (), 2)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[1], broken[1])
