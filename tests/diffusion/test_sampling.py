"""Sampling against closed forms, which a denoiser without a network has: it is linear."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from denoiser_cases import MLP, make_denoiser, unit_of, vectors_of
from sampler_cases import assert_moments

from hyperjax.config import DiffusionConfig
from hyperjax.diffusion import UNKNOWN, denoise, sampling
from hyperjax.diffusion import wiener as wieners

# as many levels in nearly all tests, for one compilation
QUICK = DiffusionConfig(steps=5, sigma_max=2.0, sigma_min=0.4)
KEY, SIZE = jax.random.key(0), MLP.num_params
compiled = jax.jit(denoise)


@pytest.fixture(scope="module")
def gaussian():
    return make_denoiser(zero=True)


@pytest.fixture(scope="module")
def learned():
    return make_denoiser()


def refine(denoiser, networks, config=QUICK, sigma=QUICK.sigma_max, quality=UNKNOWN, key=KEY):
    qualities = np.full(len(networks), quality, np.float32)
    return sampling.refine(key, denoiser, config, networks, sigma, qualities)


def sample(denoiser, count, config=QUICK, quality=UNKNOWN, key=KEY):
    return sampling.sample(key, denoiser, config, np.full(count, quality, np.float32))


def networks_of(denoiser, count, seed=7):
    return np.float32(unit_of(denoiser) * vectors_of(MLP, count, seed))


# --- levels ---------------------------------------------------------------------------------


def test_levels_fall_geometrically_from_the_start():
    config = DiffusionConfig(steps=40, sigma_max=3.0, sigma_min=0.6)
    whole = sampling.levels(config, 3.0)
    assert (len(whole), whole.dtype) == (41, np.float32)
    np.testing.assert_allclose(whole, 3.0 * 0.2 ** (np.arange(41) / 40), rtol=1e-6)
    part = sampling.levels(config, 1.5)  # 23 of the 40 steps lie below it
    assert len(part) == 1 + round(40 * np.log(1.5 / 0.6) / np.log(3.0 / 0.6)) == 24
    np.testing.assert_allclose(part[[0, -1]], [1.5, 0.6], rtol=1e-6)
    np.testing.assert_allclose(part[1:] / part[:-1], 0.4 ** (1 / 23), rtol=1e-5)


@pytest.mark.parametrize(("start", "expected"), [(0.1, [0.1]), (0.6, [0.6]), (0.601, [0.601, 0.6])])
def test_no_steps_from_below_the_last_level(start, expected):
    config = DiffusionConfig(steps=40, sigma_max=3.0, sigma_min=0.6)
    found = sampling.levels(config, start)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_one_level_alone():
    config = DiffusionConfig(steps=3, sigma_max=0.5, sigma_min=0.5)
    np.testing.assert_allclose(sampling.levels(config, 0.5), [0.5])


# --- closed forms ---------------------------------------------------------------------------


def spectrum(denoiser):
    """All principal axes and variances float64 of the Gaussian, in units of the scale."""
    axes, variances = (np.asarray(x, np.float64) for x in denoiser.wiener[1:3])
    assert len(axes) == SIZE
    return axes, variances


def gain_of(variances, levels, deterministic):
    """By what each axis of what sampling starts from is multiplied until its end."""
    gain = np.ones_like(variances)
    for level, lower in itertools.pairwise(levels):
        clean, share = variances / (variances + level**2), lower / level
        share = share if deterministic else share**2
        gain = gain * (clean + share * (1 - clean))
    return gain * variances / (variances + levels[-1] ** 2)


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_becomes_of_a_difference(gaussian, deterministic):
    """Two starts with the same noise: their difference is only scaled, axis by axis."""
    config = dataclasses.replace(QUICK, deterministic=deterministic)
    one, other = networks_of(gaussian, 3), networks_of(gaussian, 3, seed=8)
    found = refine(gaussian, one, config) - refine(gaussian, other, config)
    axes, variances = spectrum(gaussian)
    levels = sampling.levels(config, 2.0).astype(np.float64)
    assert len(levels) == 6
    if deterministic:
        expected = np.prod(
            [
                1 + (b / a - 1) * (1 - variances / (variances + a**2))
                for a, b in itertools.pairwise(levels)
            ],
            axis=0,
        ) * variances / (variances + levels[-1] ** 2)  # fmt: skip
        np.testing.assert_allclose(gain_of(variances, levels, True), expected)
    gain = gain_of(variances, levels, deterministic)
    start, end = ((x / unit_of(gaussian)) @ axes.T for x in (one - other, found))
    np.testing.assert_allclose(end, start * gain[None], atol=1e-4)


def variance_of(variances, levels, start, deterministic, temperature=1.0):
    """Of samples along each axis, whose networks have variance `start` before noise comes."""
    found = start + levels[0] ** 2
    for level, lower in itertools.pairwise(levels):
        clean, share = variances / (variances + level**2), lower / level
        if deterministic:
            found = found * (clean + share * (1 - clean)) ** 2
        else:
            fresh = temperature**2 * lower**2 * (1 - share**2)
            found = found * (clean + share**2 * (1 - clean)) ** 2 + fresh
    return found * (variances / (variances + levels[-1] ** 2)) ** 2


@pytest.mark.parametrize(
    ("deterministic", "temperature"), [(True, 1.0), (False, 1.0), (False, 0.7), (False, 0.0)]
)
def test_moments_of_samples(gaussian, deterministic, temperature):
    """Along the principal axes: the mean of the members, and variances in closed form."""
    config = dataclasses.replace(QUICK, deterministic=deterministic, temperature=temperature)
    axes, variances = spectrum(gaussian)
    levels = sampling.levels(config, config.sigma_max).astype(np.float64)
    samples = sample(gaussian, 2000, config) / unit_of(gaussian)
    expected = variance_of(variances, levels, variances, deterministic, temperature)
    along = (samples - gaussian.wiener.mean) @ axes.T
    assert_moments(along, np.zeros(SIZE), np.diag(expected))


def test_moments_of_one_network_refined_many_times(gaussian):
    axes, variances = spectrum(gaussian)
    one, levels = networks_of(gaussian, 1), sampling.levels(QUICK, 2.0).astype(np.float64)
    found = refine(gaussian, np.repeat(one, 2000, axis=0)) / unit_of(gaussian)
    start = (one[0] / unit_of(gaussian) - gaussian.wiener.mean) @ axes.T
    expected = variance_of(variances, levels, 0, False)
    along = (found - gaussian.wiener.mean) @ axes.T
    assert_moments(along, gain_of(variances, levels, False) * start, np.diag(expected))


def test_refining_at_a_tiny_level_denoises_and_does_no_more(learned):
    networks, unit = networks_of(learned, 4), unit_of(learned)
    found = refine(learned, networks, QUICK, 1e-4) / unit
    linear = np.asarray(wieners.denoise(learned.wiener, networks / unit, 1e-4))
    np.testing.assert_allclose(found, linear, atol=2e-3)


# --- rows -----------------------------------------------------------------------------------


def test_the_number_of_networks_changes_none_of_them(learned):
    """53 in two calls of 50, of which the second is mostly padding."""
    networks, unit = networks_of(learned, 53), unit_of(learned)
    whole = refine(learned, networks)
    np.testing.assert_array_equal(refine(learned, networks[:3]), whole[:3])
    many = sample(learned, 53)
    assert (many.shape, many.dtype) == ((53, SIZE), np.float32)
    assert len(np.unique(many, axis=0)) == 53
    np.testing.assert_allclose(sample(learned, 2) / unit, many[:2] / unit, atol=1e-4)


def test_keys_change_all_and_equal_keys_nothing(learned):
    first, again = sample(learned, 3), sample(learned, 3)
    np.testing.assert_array_equal(first, again)
    other = sample(learned, 3, key=jax.random.key(1))
    assert (np.abs(first - other).max(axis=1) > 1e-3).all()


def test_networks_that_are_not_finite_stay_and_touch_no_others(learned):
    networks = networks_of(learned, 4)
    expected = refine(learned, networks)
    broken = networks.copy()
    broken[1, 3], broken[2, 0] = np.nan, np.inf
    found = refine(learned, broken)
    np.testing.assert_array_equal(found[[0, 3]], expected[[0, 3]])
    np.testing.assert_array_equal(found[[1, 2]], broken[[1, 2]])


# --- qualities ------------------------------------------------------------------------------

ONCE = DiffusionConfig(steps=1, sigma_max=0.8, sigma_min=0.8)  # the clean weights at one level


def guided(denoiser, guidance, quality=0.9):
    config = dataclasses.replace(ONCE, guidance=guidance)
    return refine(denoiser, networks_of(denoiser, 3), config, 0.8, quality) / unit_of(denoiser)


def test_guidance_extrapolates_what_the_quality_changes(learned):
    plain, asked = guided(learned, 1.0, UNKNOWN), guided(learned, 1.0)
    assert np.abs(asked - plain).max() > 0.05
    np.testing.assert_allclose(guided(learned, 3.5), plain + 3.5 * (asked - plain), atol=1e-4)
    np.testing.assert_array_equal(guided(learned, 3.5, UNKNOWN), plain)


def test_each_network_has_the_quality_that_is_asked_of_it(learned):
    networks = networks_of(learned, 3)
    qualities = np.float32([0.2, UNKNOWN, 0.9])
    found = sampling.refine(KEY, learned, QUICK, networks, QUICK.sigma_max, qualities)
    for row, quality in enumerate(qualities):
        alone = refine(learned, networks, quality=quality)
        np.testing.assert_array_equal(found[row], alone[row])


def test_one_compilation_serves_all_numbers_and_qualities(learned):
    sample(learned, 4)
    compiled = sampling._denoised._cache_size()
    for count, quality in ((2, UNKNOWN), (60, 0.5)):
        sample(learned, count, quality=quality)
    refine(learned, networks_of(learned, 7), sigma=QUICK.sigma_max)
    assert sampling._denoised._cache_size() == compiled


def test_steps_are_those_of_the_denoiser(learned):
    """Deterministic ones by hand; the noise at the start is that of each network's own key."""
    networks, unit = networks_of(learned, 3), unit_of(learned)
    config = dataclasses.replace(QUICK, deterministic=True)
    keys = jax.random.split(KEY, 3)
    noise = [jax.random.normal(jax.random.fold_in(key, 0), (SIZE,)) for key in keys]
    x, levels = networks + 2.0 * unit * np.asarray(noise), sampling.levels(config, 2.0)
    for level, lower in itertools.pairwise(levels):
        clean = np.asarray(compiled(learned, np.float32(x), level))
        x = clean + lower / level * (x - clean)
    expected = np.asarray(compiled(learned, np.float32(x), levels[-1]))
    found = refine(learned, networks, config)
    np.testing.assert_allclose(found / unit, expected / unit, atol=1e-4)
