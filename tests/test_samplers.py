"""Every sampler keeps one contract; each density is checked against an independent reference."""

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax import samplers
from hyperjax.config import GanConfig, SamplersConfig
from hyperjax.errors import HyperJaxError
from hyperjax.weights import LayerSpec, WeightSpec

SPEC = WeightSpec(
    layers=(LayerSpec("conv1", "conv", (2, 1, 2, 2)), LayerSpec("fc1", "dense", (3, 2))),
    activation="tanh",
)
D = SPEC.num_params  # 10 + 9
NAMES = samplers.names(vae=True)
WEIGHT_SAMPLERS = ("aligned_mean", "average", "noise", "pca")
SUBSAMPLED = ("subsample:kde30", "subsample:bootstrap:pca")
ALL = (*NAMES, *SUBSAMPLED, "bootstrap:joint", "bootstrap:neigh30")
ON_HOST = ("neigh", "neigh30", "bootstrap:neigh30")  # the state
QUICK = SamplersConfig(
    gan=GanConfig(hidden=8, layers=1, steps=10, batch_size=4),
    subsample_factor=3, bootstrap_rounds=2, bootstrap_draws=20,
)  # fmt: skip


def score(samples):
    return -np.abs(samples).sum(axis=1)


def make(name, **settings):
    return samplers.get_sampler(name, dataclasses.replace(QUICK, **settings), SPEC, score)


def fit(sampler, anchors, quality=None):
    anchors = np.asarray(anchors, np.float32)
    quality = np.ones(len(anchors)) if quality is None else quality  # the best: all of them
    return sampler.fit(jax.random.key(0), anchors, quality)


def draw(sampler, state, n, seed=1):
    return np.asarray(sampler.sample(jax.random.key(seed), state, n))


def fit_draw(sampler, anchors, n, quality=None):
    return draw(sampler, fit(sampler, anchors, quality), n)


@functools.cache
def fitted(name):
    return fit(make(name), some_anchors())


def some_anchors(count=20, size=D, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (count, size)).astype(np.float32)


def correlated(count, size, scale=0.1, seed=0):
    """Anchors far inside (-1, 1), with a mean and a full covariance."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size))
    return (scale * (rng.normal(size=(count, size)) @ mixing / size + 1)).astype(np.float32)


def assert_moments(samples, mean, covariance):
    """Within 5 standard errors, with the Gaussian error of a covariance as the scale."""
    n, variance = len(samples), np.diag(covariance)
    assert np.all(np.abs(samples.mean(0) - mean) < 5 * np.sqrt(variance / n) + 1e-6)
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)
    assert np.all(np.abs(np.cov(samples.T, ddof=0) - covariance) < 5 * error + 1e-8)


# The contract


@pytest.mark.parametrize("name", ALL)
def test_draws_finite_float32_deterministically(name):
    sampler, state = make(name), fitted(name)
    samples = sampler.sample(jax.random.key(1), state, 5)
    assert samples.shape == (5, D)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    same, other = draw(sampler, state, 5), draw(sampler, state, 5, seed=2)
    np.testing.assert_array_equal(samples, same)
    assert np.array_equal(same, other) == (name == "aligned_mean")
    assert (len(np.unique(same, axis=0)) == 1) == (name == "aligned_mean")
    assert draw(sampler, state, 1).shape == (1, D)


@pytest.mark.parametrize("name", ALL)
def test_fit_depends_on_the_key_alone(name):
    sampler = make(name)
    again = fit(sampler, some_anchors())
    np.testing.assert_array_equal(draw(sampler, again, 3), draw(sampler, fitted(name), 3))


@pytest.mark.parametrize("name", ALL)
def test_few_anchors_are_enough(name):
    assert np.isfinite(fit_draw(make(name), some_anchors(count=4), 2)).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*WEIGHT_SAMPLERS, "prior")])
def test_latents_stay_within_their_range(name):
    reach = 1 + 5 * QUICK.kde_bandwidth  # the paper's samplers add noise without a bound
    assert np.abs(draw(make(name), fitted(name), 200)).max() <= reach


@pytest.mark.parametrize("name", ALL)
def test_report_is_of_numbers(name):
    sampler = make(name)
    report = sampler.report(fitted(name), draw(sampler, fitted(name), 3))
    assert all(type(value) is float and np.isfinite(value) for value in report.values())
    expected = {"gan": {"coverage", "spread"}, "neigh": {"clipped"}}
    assert set(report) == expected.get(name.rpartition(":")[2].removesuffix("30"), set())


@pytest.mark.parametrize("name", [n for n in ALL if n not in ON_HOST])
def test_state_is_a_pytree_of_arrays(name):
    leaves = jax.tree.leaves(fitted(name))
    assert leaves
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == np.float32 for leaf in leaves)


@pytest.mark.parametrize("name", [n for n in ALL if n not in (*ON_HOST, *SUBSAMPLED)])
def test_sample_can_be_transformed(name):
    sampler, state = make(name), fitted(name)
    keys = jax.random.split(jax.random.key(3), 3)
    draw_one = jax.jit(jax.vmap(lambda key: sampler.sample(key, state, 1)))
    assert jax.eval_shape(draw_one, keys).shape == (3, 1, D)


@pytest.mark.parametrize("name", NAMES)
def test_sample_compiles_once_for_each_n(name, caplog):
    others = {"kde_bandwidth": 0.1, "joint_bandwidth": 0.9, "noise_scale": 0.7}
    first, second = make(name), make(name, **others)
    states = fitted(name), fit(second, some_anchors())
    keys = jax.random.split(jax.random.key(0))
    first.sample(keys[0], states[0], 5)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        first.sample(keys[1], states[0], 5)
        second.sample(keys[0], states[1], 5)
        assert "jit(_sample" not in caplog.text
        if name == "aligned_mean":  # the cheapest shows that the log would tell
            first.sample(keys[0], states[0], 6)
            assert "Compiling jit(_sample" in caplog.text


@pytest.mark.parametrize("name", ALL)
def test_mistakes_are_named(name):
    sampler, state = make(name), fitted(name)
    key, anchors, quality = jax.random.key(0), some_anchors(), np.ones(20)
    for n in (0, -3):
        with pytest.raises(HyperJaxError, match=f"{name}: cannot draw {n} samples"):
            sampler.sample(key, state, n)
    with pytest.raises(HyperJaxError, match=rf"{name}: there are no anchors \(shape \(0, {D}\)"):
        sampler.fit(key, anchors[:0], quality[:0])
    with pytest.raises(HyperJaxError, match=rf"{name}: anchors have shape \({D},\)"):
        sampler.fit(key, anchors[0], quality)
    with pytest.raises(HyperJaxError, match=rf"{name}: quality has shape \(19,\), expected \(20,"):
        sampler.fit(key, anchors, quality[1:])
    anchors[3, :2], anchors[7, 1] = np.nan, np.inf
    with pytest.raises(HyperJaxError, match=f"{name}: 2 of 20 anchors hold NaN"):
        sampler.fit(key, anchors, quality)


@pytest.mark.parametrize("name", [name for name in ALL if not name.endswith("30")])
def test_quality_is_not_needed_without_a_selection(name):
    fit(make(name), some_anchors(), quality=np.full(20, np.nan))


def test_registry():
    assert NAMES == (
        "uniform", "counterfactual", "kde", "kde30", "kde_anchor", "kde_anchor30",
        "neigh", "neigh30", "gan", "gan30", "joint", "joint30", "prior",
        "aligned_mean", "average", "noise", "pca",
    )  # fmt: skip
    assert samplers.names() == tuple(name for name in NAMES if name != "prior")
    lines = samplers.describe()
    assert tuple(lines) == (*NAMES, "subsample:NAME", "bootstrap:NAME")
    assert len(set(lines.values())) == len(lines)
    assert all(line and "\n" not in line for line in lines.values())
    for name in NAMES:
        space = "weights" if name in WEIGHT_SAMPLERS else "latent"
        assert make(name).space == space
        assert make(name).description == lines[name]
    assert "best 12.5 %" in make("kde30", best_fraction=0.125).description


@pytest.mark.parametrize("name", ["gauss", "", "kde:kde30", "subsample:", "pca:subsample"])
def test_unknown_name_lists_the_names(name):
    message = rf"unknown sampler '{name}'; there is: .*bootstrap:NAME.*kde_anchor30"
    with pytest.raises(HyperJaxError, match=message):
        samplers.get_sampler(name, SamplersConfig())
    with pytest.raises(HyperJaxError, match=message):
        samplers.check(name)


@pytest.mark.parametrize("name", WEIGHT_SAMPLERS)
def test_weight_samplers_need_the_right_spec(name):
    with pytest.raises(HyperJaxError, match=f"{name} draws weights: it needs their WeightSpec"):
        samplers.get_sampler(name, SamplersConfig())
    with pytest.raises(HyperJaxError, match=f"{name}: anchors have 18 values.*conv1, fc1.*has 19"):
        fit(make(name), some_anchors(size=18))


@pytest.mark.parametrize("name", ["joint", "pca", "gan"])
def test_one_anchor_has_no_covariance(name):
    with pytest.raises(HyperJaxError, match=f"{name}: one anchor .* at least 2"):
        fit(make(name), some_anchors(count=1))


# The best anchors


def test_only_the_best_anchors_are_used():
    quality = np.array([0.1, 0.9, np.nan, 0.5, 0.8, 0.3, 0.2, 0.6, 0.7, 0.4, 0.0])
    anchors = np.repeat(np.arange(11)[:, None] / 20, 4, axis=1)
    for name in ("kde30", "kde_anchor30"):
        sampler = make(name, kde_bandwidth=1e-6)
        used = np.unique(np.round(20 * fit_draw(sampler, anchors, 200, quality)))
        np.testing.assert_array_equal(used, [1, 4, 8])  # threshold .63, by hand
    samples = fit_draw(make("joint30", joint_bandwidth=0.0), anchors, 200, quality)
    np.testing.assert_array_equal(np.unique(np.round(20 * samples)), [1, 4, 8])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 3), st.sampled_from([0.1, 0.25, 0.5, 1.0]), st.data())
def test_number_of_the_best(known, missing, fraction, data):
    order = data.draw(st.permutations(range(known + missing)))
    quality = np.array([i if i < known else np.nan for i in order], np.float32)
    anchors = np.repeat(np.nan_to_num(quality, nan=-1.0)[:, None], 2, axis=1)
    kept = np.asarray(fit(make("kde30", best_fraction=fraction), anchors, quality).anchors)[:, 0]
    first = known - 1 - int((known - 1) * fraction)  # rank of the quantile, rounded up
    np.testing.assert_array_equal(np.sort(kept), np.arange(first, known))


def test_equal_quality_keeps_all():
    assert len(fit(make("kde30"), some_anchors(), np.full(20, 0.1)).anchors) == 20


def test_best_of_unknown_quality():
    with pytest.raises(HyperJaxError, match=r"kde30: .*best 30 % of 20 anchors: .* NaN"):
        fit(make("kde30"), some_anchors(), np.full(20, np.nan))


# Latent samplers


def test_uniform_fills_the_cube():
    samples = fit_draw(make("uniform"), np.full((3, 4), 0.5), 5000)
    assert np.abs(samples).max() <= 1
    for column in samples.T:
        assert scipy.stats.kstest(column, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    correlation = np.corrcoef(samples.T)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(5000)


def test_prior_is_standard_normal_and_of_vaes_only():
    samples = fit_draw(make("prior"), np.full((3, 4), 0.5), 5000)
    for column in samples.T:
        assert scipy.stats.kstest(column, scipy.stats.norm.cdf).pvalue > 1e-3
    assert_moments(samples, np.zeros(4), np.eye(4))
    samplers.check("subsample:prior", vae=True)
    samplers.check("joint", vae=False)
    with pytest.raises(HyperJaxError, match=r"subsample:prior draws from the prior .*hyperrep=vae"):
        samplers.check("subsample:prior", vae=False)


def test_kde_has_the_marginals_of_sklearn():
    from sklearn.neighbors import KernelDensity

    anchors = np.random.default_rng(0).choice([-0.6, -0.5, 0.1, 0.7], (40, 3))
    samples = fit_draw(make("kde", kde_bandwidth=0.1), anchors, 5000)
    for ours, column in zip(samples.T, anchors.T, strict=True):
        density = KernelDensity(bandwidth=0.1).fit(column[:, None])
        theirs = density.sample(5000, random_state=1)[:, 0]
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3
        gain = density.score_samples(ours[:, None]) - density.score_samples(theirs[:, None])
        assert abs(gain.mean()) < 5 * gain.std() / np.sqrt(5000)


def test_dependence_between_dimensions_is_lost_in_kde_alone():
    line = np.linspace(-0.5, 0.5, 50)[:, None] * np.array([[1.0, 1.0, -1.0]])
    independent = np.corrcoef(fit_draw(make("kde"), line, 5000).T)
    np.testing.assert_allclose(independent, np.eye(3), atol=5 / np.sqrt(5000))
    for name in ("joint", "kde_anchor"):
        kept = np.corrcoef(fit_draw(make(name), line, 500).T)
        np.testing.assert_allclose(kept, np.corrcoef(line.T), atol=1e-3)


def test_kde_anchor_adds_one_number_to_one_anchor():
    anchors = some_anchors(count=12)
    samples = fit_draw(make("kde_anchor", kde_bandwidth=0.05), anchors, 2000)
    shifts = samples[:, None, :] - anchors[None, :, :]
    nearest = shifts.std(axis=2).argmin(axis=1)
    shift = shifts[np.arange(2000), nearest]
    assert np.ptp(shift, axis=1).max() < 1e-6
    assert scipy.stats.kstest(shift[:, 0], scipy.stats.norm(0, 0.05).cdf).pvalue > 1e-3
    assert scipy.stats.chisquare(np.bincount(nearest, minlength=12)).pvalue > 1e-3


@pytest.mark.parametrize("bandwidth", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("count", [30, 3])  # more and fewer anchors than dimensions
def test_joint_has_the_moments_of_the_anchors(bandwidth, count):
    anchors = correlated(count, 5)
    samples = fit_draw(make("joint", joint_bandwidth=bandwidth), anchors, 40_000)
    assert_moments(samples, anchors.mean(0), np.cov(anchors.T, ddof=0))


def test_joint_of_few_anchors_stays_in_their_span():
    anchors = correlated(3, 6)
    samples = fit_draw(make("joint", joint_bandwidth=0.8), anchors, 50)
    centred = anchors - anchors.mean(0)[None, :]
    normal = np.linalg.svd(centred)[2][2:]  # what the two directions of the anchors leave
    residue = (samples - anchors.mean(0)[None, :]) @ normal.T
    np.testing.assert_allclose(residue, np.zeros_like(residue), atol=1e-6)


@pytest.mark.parametrize("bandwidth", [0.3, 0.7, 1.0])
def test_joint_is_the_mixture_of_shrunken_kernels(bandwidth):
    samples = fit_draw(make("joint", joint_bandwidth=bandwidth), [[-0.1], [0.3]], 5000)[:, 0]
    mean, std, centre = 0.1, 0.2, 0.2 * np.sqrt(1 - bandwidth**2)

    def cdf(x):
        low, high = (scipy.stats.norm(mean + s * centre, bandwidth * std) for s in (-1, 1))
        return (low.cdf(x) + high.cdf(x)) / 2

    assert scipy.stats.kstest(samples, cdf).pvalue > 1e-3


def test_joint_without_bandwidth_replays_the_anchors():
    anchors = some_anchors(count=8)
    samples = fit_draw(make("joint", joint_bandwidth=0.0), anchors, 400)
    distance = np.abs(samples[:, None, :] - anchors[None, :, :]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-6
    assert set(distance.argmin(axis=1)) == set(range(8))


def test_joint_stays_within_the_range_of_tanh_if_the_anchors_do():
    sampler = make("joint", joint_bandwidth=1.0)
    inside = np.array([[-0.95, 0.95], [0.95, -0.95], [0.9, 0.9]])
    samples = fit_draw(sampler, inside, 200)
    assert np.abs(samples).max() == 1
    assert np.abs(fit_draw(sampler, 1.2 * inside, 200)).max() > 1.3


# Baselines in weight space


def test_aligned_mean():
    anchors = some_anchors()
    samples = fit_draw(make("aligned_mean"), anchors, 3)
    np.testing.assert_allclose(samples, np.repeat(anchors.mean(0)[None, :], 3, 0), atol=1e-6)


def test_average_is_of_distinct_anchors():
    samples = fit_draw(make("average", average_of=2), 4 * np.eye(4, D), 3000)
    assert set(np.unique(samples)) == {0, 2}
    assert (samples.sum(axis=1) == 4).all()
    _, counts = np.unique(samples, axis=0, return_counts=True)
    assert len(counts) == 6  # pairs of 4
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_average_of_one_and_of_all():
    anchors = some_anchors(count=5)
    of_all = fit_draw(make("average", average_of=5), anchors, 4)
    np.testing.assert_allclose(of_all, np.repeat(anchors.mean(0)[None, :], 4, 0), atol=1e-6)
    of_one = fit_draw(make("average", average_of=1), anchors, 100)
    np.testing.assert_array_equal(np.unique(of_one, axis=0), np.unique(anchors, axis=0))
    with pytest.raises(HyperJaxError, match=r"average: .*average_of: got 6, .* anchors, 5"):
        fit(make("average", average_of=6), anchors)


def test_noise_is_in_units_of_each_layer():
    anchors = some_anchors(count=6)
    anchors[:, 10:] *= 10
    exact = fit_draw(make("noise", noise_scale=0.0), anchors, 200)
    np.testing.assert_array_equal(np.unique(exact, axis=0), np.unique(anchors, axis=0))
    noise = fit_draw(make("noise", noise_scale=0.3), anchors[:1], 4000) - anchors[:1]
    for part in (slice(0, 10), slice(10, 19)):
        std = 0.3 * anchors[0, part].std(ddof=1)
        assert (
            scipy.stats.kstest(noise[:, part].ravel(), scipy.stats.norm(0, std).cdf).pvalue > 1e-3
        )
    std_of_each = 0.3 * np.array([anchors[:, :10].std(ddof=1), anchors[:, 10:].std(ddof=1)])
    scale = fit(make("noise", noise_scale=0.3), anchors).scale
    np.testing.assert_allclose(scale, np.repeat(std_of_each, [10, 9]), rtol=1e-5)


@pytest.mark.parametrize(("components", "kept"), [(3, 3), (64, 11)])
def test_pca_is_the_gaussian_of_sklearn(components, kept):
    from sklearn.decomposition import PCA

    anchors = correlated(12, D)
    sampler = make("pca", pca_components=components)
    state = fit(sampler, anchors)
    reference = PCA(n_components=kept).fit(anchors)
    axes = reference.components_
    covariance = axes.T @ np.diag(reference.explained_variance_) @ axes
    assert state.axes.shape == (kept, D)
    np.testing.assert_allclose(state.axes.T @ state.axes, covariance, atol=1e-6)
    assert_moments(draw(sampler, state, 40_000), anchors.mean(0), covariance)
