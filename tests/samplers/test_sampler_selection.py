"""Samplers that choose by a score, and counterfactual sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.neighbors import KernelDensity

from hyperjax import samplers
from hyperjax.config import SamplersConfig
from hyperjax.errors import HyperJaxError
from hyperjax.samplers.base import Sampler
from hyperjax.samplers.selection import bootstrap, subsample


def first(samples):
    return samples[:, 0]


def anchors(count=200, size=3):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (count, size)).astype(np.float32)


def run(name, score, n, points=None, **settings):
    points = anchors() if points is None else points
    sampler = samplers.get_sampler(name, SamplersConfig(**settings), score=score)
    state = sampler.fit(jax.random.key(0), points, np.ones(len(points)))
    return np.asarray(sampler.sample(jax.random.key(1), state, n))


def test_subsample_keeps_the_best_of_the_same_draws():
    drawn = run("joint", None, 60)
    kept = run("subsample:joint", first, 20, subsample_factor=3)
    np.testing.assert_array_equal(kept, drawn[np.argsort(-drawn[:, 0])[:20]])
    with_nan = run("subsample:joint", lambda z: np.where(z[:, 0] > 0, np.nan, z[:, 0]), 5)
    assert (with_nan[:, 0] <= 0).all()


def test_bootstrap_climbs():
    """Samples of rising score, far beyond the best anchors where the sampler extrapolates."""
    plain = run("joint", None, 200)[:, 0]
    means = [
        run("bootstrap:joint", first, 200, bootstrap_rounds=rounds)[:, 0].mean()
        for rounds in (1, 3, 6)
    ]
    assert plain.mean() < means[0] < means[1] < means[2]
    assert means[2] > 0.5 > anchors()[:, 0].max() - 0.01


def test_bootstrap_is_what_it_says():
    """By hand, with a sampler that records what it is fitted on."""
    fits = []

    def fit(key, points, quality):
        fits.append((np.array(points), np.array(quality)))
        return jnp.asarray(points)

    def sample(key, state, n):
        return jax.random.uniform(key, (n, 2)) + jnp.max(state)

    base = Sampler(fit, sample, "latent", "base")
    sampler = bootstrap(base, first, rounds=2, draws=10, fraction=0.25)
    state = sampler.fit(jax.random.key(0), np.zeros((4, 2), np.float32), np.arange(4.0))
    assert len(fits) == 3
    np.testing.assert_array_equal(fits[0][1], np.arange(4))
    rounds_key = jax.random.split(jax.random.key(0))[1]
    points = np.zeros((4, 2), np.float32)
    for round_key, (chosen, quality) in zip(jax.random.split(rounds_key, 2), fits[1:], strict=True):
        drawn = np.asarray(sample(jax.random.split(round_key)[0], points, 10))
        points = drawn[np.argsort(-drawn[:, 0])[:3]]
        np.testing.assert_array_equal(chosen, points)
        np.testing.assert_array_equal(quality, np.ones(3))
    np.testing.assert_array_equal(state, points)
    assert sampler.sample is base.sample
    assert "2 times on the best 3 of 10" in sampler.description


def test_the_best_of_bootstrap_30_are_not_chosen_twice():
    """All that a round keeps are anchors of a `...30` sampler."""
    sampler = samplers.get_sampler("bootstrap:kde30", SamplersConfig(), score=first)
    state = sampler.fit(jax.random.key(0), anchors(), np.arange(200.0))
    assert len(state.anchors) == 60  # 30 % of 200 draws


def test_wrappers_can_be_nested():
    outer, inner = (
        run(name, first, 10, subsample_factor=5)
        for name in ("subsample:bootstrap:joint", "bootstrap:joint")
    )
    assert outer[:, 0].min() > inner[:, 0].mean()


@pytest.mark.parametrize("name", ["subsample:kde", "bootstrap:kde"])
def test_scores_that_do_not_serve(name):
    for score, message in (
        (None, "chooses by a score"),
        (lambda z: np.full(len(z), np.nan), "is NaN: cannot keep the best"),
        (lambda z: z[:, :1], r"has shape \(\d+, 1\), expected \(\d+,\)"),
    ):
        with pytest.raises(HyperJaxError, match=f"{name}: .*{message}"):
            run(name, score, 30)


def test_subsample_of_the_sampler_alone():
    sampler = subsample(
        Sampler(None, lambda key, state, n: jnp.arange(n)[:, None], "", ""), first, 4
    )
    np.testing.assert_array_equal(sampler.sample(None, None, 2)[:, 0], [7, 6])


# Counterfactual sampling


def log_density(points, samples, bandwidth):
    """Of each dimension by itself, float[n, Z]."""
    columns = [
        KernelDensity(bandwidth=bandwidth).fit(p[:, None]).score_samples(s[:, None])
        for p, s in zip(points.T, samples.T, strict=True)
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("bandwidth", [0.002, 0.1])
@pytest.mark.parametrize("scale", [1, 4])  # within and beyond the range of tanh
def test_counterfactual_is_less_likely_than_the_kde(bandwidth, scale):
    points = scale * anchors()
    odd, own = (
        log_density(points, run(name, None, 300, points, kde_bandwidth=bandwidth), bandwidth)
        for name in ("counterfactual", "kde")
    )
    assert np.quantile(odd, 0.99) < np.quantile(own, 0.01)
    assert odd.mean(axis=0).max() < own.mean(axis=0).min() - 3


def test_counterfactual_is_uniform_in_the_gaps():
    """One wide kernel at 0.5: the least likely quarter of (-1, 1) is its left end."""
    points = np.full((5, 2), 0.5, np.float32)
    settings = {"kde_bandwidth": 0.5, "counterfactual_fraction": 0.25}
    samples = run("counterfactual", None, 4000, points, **settings)
    for column in samples.T:
        assert scipy.stats.kstest(column, scipy.stats.uniform(-1, 0.501).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(samples.T)[0, 1]) < 5 / np.sqrt(4000)


def test_ties_of_counterfactual_all_stay():
    """Nothing lies outside of 0.3 ± 4 * 0.01: all of that is as unlikely as can be."""
    points = np.full((1, 1), 0.3, np.float32)
    samples = run("counterfactual", None, 5000, points, kde_bandwidth=0.01)[:, 0]
    assert np.abs(samples - 0.3).min() > 0.039
    below = scipy.stats.uniform(-1, 1.26)
    assert scipy.stats.kstest(samples[samples < 0.3], below.cdf).pvalue > 1e-3
    assert np.mean(samples < 0.3) == pytest.approx(1.26 / 1.92, abs=0.03)
