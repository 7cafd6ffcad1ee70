"""Each density is checked against an independent reference."""

import numpy as np
import pytest
import scipy.stats
from sampler_cases import D, assert_moments, correlated, draw, fit, fit_draw, make, some_anchors

from hyperjax import samplers
from hyperjax.errors import HyperJaxError

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
