"""The Wiener denoiser against covariances and linear solves in float64, and group averages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoiser_cases import SPECS, apply, linear_error, transforms, vectors_of
from sampler_cases import assert_moments
from sklearn.covariance import LedoitWolf

from hyperjax import symmetry, weights
from hyperjax.diffusion import wiener
from hyperjax.errors import HyperJaxError
from hyperjax.weights import LayerSpec, WeightSpec

SMALL = (
    LayerSpec("c", "conv", (2, 1, 2, 2), pool="max"),
    LayerSpec("d", "dense", (3, 4)),
    LayerSpec("e", "dense", (2, 3)),
)


def mixed(count, size, seed=0):
    """Of a mean far from zero and a full covariance."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size)) / np.sqrt(size)
    return np.float32(rng.normal(size=(count, size)) @ mixing + 3 * rng.normal(size=size))


def covariance_of(fitted):
    """What a Wiener denoiser holds, float64[D, D]."""
    axes, variances = (np.asarray(x, np.float64) for x in (fitted.axes, fitted.variances))
    beside = np.eye(len(fitted.mean)) - axes.T @ axes
    return (axes.T * variances[None]) @ axes + fitted.rest * beside


def shrunk(vectors, shrinkage):
    vectors = np.asarray(vectors, np.float64)
    if shrinkage is None and vectors.ndim == 2:
        return LedoitWolf().fit(vectors).covariance_
    if shrinkage is None:
        shrinkage = intensity(vectors)
    vectors = vectors.reshape(-1, vectors.shape[-1])
    sample = np.cov(vectors.T, ddof=0)
    return (1 - shrinkage) * sample + shrinkage * np.trace(sample) / len(sample) * np.eye(
        len(sample)
    )


def intensity(vectors):
    """Of Ledoit and Wolf, with each member's mean of x x^T, written out, as an observation."""
    centred = vectors - vectors.mean((0, 1))
    of_members = np.einsum("med,mef->mdf", centred, centred) / vectors.shape[1]
    sample = of_members.mean(0)
    error = np.sum((of_members - sample) ** 2) / len(vectors) ** 2
    apart = np.sum((sample - np.trace(sample) / len(sample) * np.eye(len(sample))) ** 2)
    return min(error / apart, 1)


# --- fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(60, 19), (12, 40), (20, 20), (21, 20), (2, 7)])
@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3, 1.0])
def test_fit_is_the_shrunk_covariance(count, size, shrinkage):
    vectors = mixed(count, size)
    fitted = wiener.fit(vectors, shrinkage)
    expected = shrunk(vectors, shrinkage)
    np.testing.assert_allclose(fitted.mean, vectors.astype(np.float64).mean(0), atol=1e-5)
    np.testing.assert_allclose(covariance_of(fitted), expected, atol=1e-4 * expected.max())
    assert fitted.axes.shape == (min(count - 1, size), size)
    assert {leaf.dtype for leaf in fitted} == {np.dtype(np.float32)}
    assert fitted.rest.shape == ()


@pytest.mark.parametrize("count", [16, 60])
def test_members_are_looked_at_in_blocks_units_and_rows(tmp_path, monkeypatch, count):
    """Of a file, some members at a time, two vectors of each: what all at once, divided, give."""
    monkeypatch.setattr(weights, "_BLOCK_BYTES", 7 * 2 * 19 * 4)
    vectors, unit = mixed(2 * count, 19).reshape(count, 2, 19), np.linspace(0.5, 20, 19)
    np.save(tmp_path / "vectors.npy", vectors)
    rows = np.random.default_rng(1).permutation(count)[: count // 2]
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    fitted = wiener.fit(mapped, rows=rows, unit=unit.astype(np.float32))
    seen = vectors[rows] / unit
    expected = shrunk(seen, None)
    np.testing.assert_allclose(fitted.mean, seen.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(covariance_of(fitted), expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("size", [19, 300])
def test_snapshots_are_no_networks_of_their_own(size):
    """Equal ones shrink as one does; unlike ones, which say more, less."""
    both = mixed(80, size).reshape(2, 40, size).swapaxes(0, 1)
    one = both[:, :1]
    once = covariance_of(wiener.fit(one[:, 0]))
    thrice = covariance_of(wiener.fit(np.tile(one, (1, 3, 1))))
    np.testing.assert_allclose(thrice, once, atol=1e-4 * once.max())
    assert intensity(both) < intensity(one)
    found = covariance_of(wiener.fit(both))
    np.testing.assert_allclose(found, shrunk(both, None), atol=1e-4 * found.max())


@pytest.mark.parametrize(("count", "size"), [(60, 19), (50, 500), (300, 200), (2, 3)])
def test_axes_are_orthonormal(count, size):
    """Also where the mean is a hundred times what is left without it."""
    vectors = mixed(count, size) / 100 + 1
    axes = np.asarray(wiener.fit(vectors).axes, np.float64)
    assert len(axes) == min(count - 1, size)
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=2e-4)


def test_members_that_are_all_the_same():
    fitted = wiener.fit(np.ones((5, 4), np.float32))
    assert fitted.axes.shape == (0, 4)
    clean = wiener.denoise(fitted, np.float32([[1, 2, 3, 4]]), 0.5)
    np.testing.assert_array_equal(clean, np.ones((1, 4)))


@pytest.mark.parametrize("count", [0, 1])
def test_one_network_has_no_covariance(count):
    with pytest.raises(HyperJaxError, match=f"a covariance of {count} networks"):
        wiener.fit(np.ones((count, 4), np.float32))


# --- denoise, error, sample -----------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(60, 19), (12, 40)])
@pytest.mark.parametrize("shrinkage", [None, 0.0])
def test_denoise_solves_the_linear_system(count, size, shrinkage):
    vectors = mixed(count, size)
    fitted, covariance = wiener.fit(vectors, shrinkage), shrunk(vectors, shrinkage)
    noisy, levels = mixed(5, size, seed=1), np.float32([0.05, 0.3, 1, 2, 10])
    mean = vectors.astype(np.float64).mean(0)
    expected = [
        mean + covariance @ np.linalg.solve(covariance + s**2 * np.eye(size), x - mean)
        for x, s in zip(noisy, levels.astype(np.float64), strict=True)
    ]
    found = jax.jit(wiener.denoise)(fitted, noisy, levels)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    one = jax.jit(wiener.denoise)(fitted, noisy, 1.0)
    np.testing.assert_allclose(one[2], expected[2], atol=1e-4)
    slope = jax.grad(lambda x: wiener.denoise(fitted, x, 0.7).sum())(jnp.asarray(noisy))
    gain = np.linalg.solve(covariance + 0.49 * np.eye(size), covariance)
    np.testing.assert_allclose(slope, np.tile(gain.sum(1), (5, 1)), atol=1e-4)


@pytest.mark.parametrize("count", [60, 5])
@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_error_in_closed_form(count, sigma):
    """Of a population that has another covariance than that which is believed."""
    fitted, rng = wiener.fit(mixed(count, 9)), np.random.default_rng(2)
    mixing, many = rng.normal(size=(9, 9)) / 3, 100_000
    clean = rng.normal(size=(many, 9)) @ mixing + fitted.mean
    noisy = np.float32(clean + sigma * rng.normal(size=clean.shape))
    squares = np.mean((wiener.denoise(fitted, noisy, sigma) - clean) ** 2, axis=1)
    expected = linear_error(fitted, mixing.T @ mixing, sigma)
    assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(many)
    assert expected > linear_error(
        wiener.Wiener(fitted.mean, *spectrum(mixing.T @ mixing)), mixing.T @ mixing, sigma
    )  # which believes in the right one


def spectrum(covariance):
    variances, axes = np.linalg.eigh(covariance)
    return np.float32(axes.T), np.float32(variances), np.float32(0)


@pytest.mark.parametrize("count", [40, 4])
def test_samples_have_the_covariance(count):
    fitted, rng = wiener.fit(mixed(count, 6), 0.2), np.random.default_rng(3)
    noise = [np.float32(rng.normal(size=(50_000, k))) for k in (len(fitted.axes), 6)]
    samples = np.asarray(wiener.sample(fitted, *noise))
    assert_moments(samples, fitted.mean, covariance_of(fitted))


# --- orbits ---------------------------------------------------------------------------------


def group(spec):
    """Every permutation of the hidden neurons, with every sign that is a symmetry."""
    layers = []
    for layer, signed in zip(spec.layers[:-1], symmetry.sign_symmetric(spec), strict=True):
        neurons = layer.num_neurons
        signs = itertools.product((1, -1), repeat=neurons) if signed else [(1,) * neurons]
        layers.append(itertools.product(itertools.permutations(range(neurons)), signs))
    for element in itertools.product(*layers):
        permutations, scales = zip(*element, strict=True)
        yield symmetry.Transform(
            tuple(np.int32(p) for p in permutations), tuple(np.float32(s) for s in scales)
        )


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_orbits_are_averages_over_the_group(activation):
    """Mean and variance of each weight in all disguises of all members."""
    spec = WeightSpec(SMALL, activation)
    vectors = vectors_of(spec, 7)
    disguised = [apply(spec, transform, vectors) for transform in group(spec)]
    assert len(disguised) == {"tanh": 2 * 6 * 2**3, "relu": 2 * 6}[activation]
    disguised = np.asarray(disguised, np.float64).reshape(-1, spec.num_params)
    fitted = wiener.fit_orbits(spec, vectors)
    np.testing.assert_allclose(fitted.mean, disguised.mean(0), atol=1e-5)
    np.testing.assert_allclose(fitted.rest, disguised.var(0), rtol=1e-4)
    assert fitted.axes.shape == (0, spec.num_params)
    assert {leaf.dtype for leaf in fitted} == {np.dtype(np.float32)}


def test_orbits_by_a_plain_loop():
    """The first layer and the last of an unpooled network, weight by weight."""
    spec = SPECS["mlp"]  # 4 x 5 and 4 biases, 2 x 4 and 2 biases; hidden signs are free
    vectors = vectors_of(spec, 6)
    fitted = wiener.fit_orbits(spec, vectors)
    weights, biases = vectors[:, :20].reshape(6, 4, 5), vectors[:, 20:24]
    outer, last = vectors[:, 24:32].reshape(6, 2, 4), vectors[:, 32:]
    rest = []
    for _ in range(4):
        rest += [np.mean(weights[:, :, k] ** 2) for k in range(5)]
    rest += [np.mean(biases**2)] * 4
    for o in range(2):
        rest += [np.mean(outer[:, o] ** 2)] * 4
    rest += [last[:, o].var() for o in range(2)]
    np.testing.assert_allclose(fitted.rest, rest, rtol=1e-5)
    np.testing.assert_allclose(fitted.mean, [*[0] * 32, *last.mean(0)], atol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_orbits_commute_with_the_symmetries(name):
    spec = SPECS[name]
    fitted, noisy = wiener.fit_orbits(spec, vectors_of(spec, 9)), vectors_of(spec, 4, seed=1)
    denoise = jax.jit(wiener.denoise)
    for seed in range(5):
        transform = transforms(jax.random.key(seed), spec)
        ours = denoise(fitted, apply(spec, transform, noisy), 0.8)
        np.testing.assert_allclose(
            ours, apply(spec, transform, denoise(fitted, noisy, 0.8)), atol=1e-5
        )


def test_error_and_samples_of_orbits():
    spec = SPECS["mlp"]
    fitted, rng = wiener.fit_orbits(spec, vectors_of(spec, 20)), np.random.default_rng(0)
    covariance = np.diag(np.asarray(fitted.rest, np.float64))
    expected = np.mean(fitted.rest * 0.25 / (fitted.rest + 0.25))
    assert linear_error(fitted, covariance, 0.5) == pytest.approx(expected, rel=1e-5)
    noise = np.zeros((20_000, 0), np.float32), np.float32(rng.normal(size=(20_000, 34)))
    assert_moments(np.asarray(wiener.sample(fitted, *noise)), fitted.mean, covariance)
