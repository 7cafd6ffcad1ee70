import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hyperjax import weights
from hyperjax.config import AugmentConfig
from hyperjax.hyperrep import augment
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.sequential import Sequential
from hyperjax.weights import LayerSpec, WeightSpec

OFF = AugmentConfig(permute=False, mix=0.0, noise=0.0, erase=0.0)
SPEC = WeightSpec((LayerSpec("a", "dense", (6, 5)), LayerSpec("b", "dense", (4, 6))), "tanh")
KEY = jax.random.key(0)


def with_(**changes):
    return dataclasses.replace(OFF, **changes)


@pytest.fixture(scope="module")
def erased():
    """4000 erasings of a vector of 200 ones: bool[4000, 200], where it was erased."""
    return np.asarray(augment.corrupt(KEY, with_(erase=1.0), jnp.ones((4000, 200)))) == 0


def test_an_erased_block_is_contiguous(erased):
    edges = np.diff(np.pad(erased, ((0, 0), (1, 1))).astype(int), axis=1)
    np.testing.assert_array_equal((edges == 1).sum(1), 1)


def test_the_length_of_a_block_is_uniform(erased):
    lengths = erased.sum(1)
    assert (lengths.min(), lengths.max()) == (4, 65)  # floor of 200 times [0.02, 0.33)
    assert stats.kstest(lengths + 0.5, stats.uniform(4, 62).cdf).pvalue > 1e-3
    assert lengths.mean() == pytest.approx(200 * 0.175 - 0.5, abs=1.5)


def test_the_start_of_a_block_is_uniform_where_it_fits(erased):
    lengths, starts = erased.sum(1), erased.argmax(1)
    assert np.all(starts + lengths <= 200)
    shares = (starts + 0.5) / (200 - lengths + 1)
    assert stats.kstest(shares, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(shares, lengths)[0, 1]) < 0.06


def test_rows_are_erased_independently_with_the_given_probability(monkeypatch):
    monkeypatch.setattr(augment, "ERASED", (0.1, 0.2))
    values = np.random.default_rng(0).normal(size=(2000, 50)).astype(np.float32)
    result = np.asarray(augment.corrupt(KEY, with_(erase=0.3), values))
    changed = np.any(result != values, axis=1)
    assert changed.mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(result[result != values], 0)
    assert len(np.unique((result[changed] == 0).argmax(1))) > 20  # not one block for all


def test_a_block_may_take_the_whole_vector_or_nothing():
    ones = jnp.ones(10)
    assert not augment.erase_block(KEY, ones, (1.0, 1.0)).any()
    assert augment.erase_block(KEY, ones, (0.0, 0.05)).all()


def test_noise_has_the_given_standard_deviation():
    values = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
    noise = np.asarray(augment.corrupt(KEY, with_(noise=0.25), values)) - values
    assert noise.std() == pytest.approx(0.25, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert stats.kstest(noise[:10].ravel() / 0.25, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise[:50]) - np.eye(50)).max() < 0.5  # fresh for every row


def test_erasing_comes_after_noise(monkeypatch):
    """Zero stands for 'nothing known': noise on top would hide that."""
    monkeypatch.setattr(augment, "ERASED", (0.3, 0.4))
    both = with_(noise=0.5, erase=1.0)
    result = augment.corrupt(KEY, both, jnp.ones((20, 50)))
    assert np.all((np.asarray(result) == 0).sum(1) >= 15)


def test_mixing_is_a_convex_combination_of_two_rows():
    values = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    mixed = np.asarray(augment.mix_members(KEY, values, 1.0), np.float64)
    shares, partners = [], []
    for i, row in enumerate(mixed):
        # row = values[j] + share * (values[i] - values[j]) for one j
        direction, offset = values[i] - values, row - values
        share = (direction * offset).sum(1) / np.maximum((direction**2).sum(1), 1e-12)
        error = np.abs(offset - share[:, None] * direction).max(1)
        j = error.argmin()
        assert error[j] < 1e-5
        if j != i:
            assert -1e-6 <= share[j] <= 1 + 1e-6
            shares.append(share[j])
        partners.append(j)
    assert sorted(partners) == list(range(30))  # everybody is somebody's partner once
    assert stats.kstest(shares, "uniform").pvalue > 1e-3


def test_mixing_happens_with_the_given_probability():
    values = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    mixed = np.asarray(augment.mix_members(KEY, values, 0.3))
    assert np.any(mixed != values, axis=1).mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(augment.mix_members(KEY, values, 0.0), values)


def test_permuting_draws_another_network_for_every_row():
    vector = np.random.default_rng(0).normal(size=SPEC.num_params).astype(np.float32)
    result = np.asarray(augment.permute(KEY, SPEC, np.tile(vector, (16, 1))))
    assert len(np.unique(result.round(5), axis=0)) == 16
    for row in result:  # the same numbers elsewhere, up to signs
        np.testing.assert_allclose(np.sort(np.abs(row)), np.sort(np.abs(vector)), rtol=1e-6)
    # the output layer's biases belong to the classes and stay
    np.testing.assert_array_equal(result[:, -4:], np.tile(vector[-4:], (16, 1)))


def test_mixing_comes_before_permuting():
    """A network mixed with itself is itself, in whatever order its neurons come then; the mean of
    two orders of its neurons is another."""
    vector = np.random.default_rng(0).normal(size=SPEC.num_params).astype(np.float32)
    result = augment.networks(KEY, SPEC, with_(permute=True, mix=1.0), np.tile(vector, (8, 1)))
    assert len(np.unique(np.asarray(result).round(5), axis=0)) == 8
    for row in np.asarray(result):
        np.testing.assert_allclose(np.sort(np.abs(row)), np.sort(np.abs(vector)), rtol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_permuting_keeps_the_function(activation):
    spec = zoo_cnn_spec(1, activation)
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.3, (2, spec.num_params)).astype(np.float32)
    images = rng.normal(size=(3, 28, 28, 1)).astype(np.float32)
    permuted = np.asarray(augment.networks(KEY, spec, with_(permute=True), values))
    model = Sequential(spec, "xla")
    for before, after in zip(values, permuted, strict=True):
        assert np.mean(before == after) < 0.6
        logits = [
            model.apply({"params": weights.unflatten(spec, vector)}, images)
            for vector in (before, after)
        ]
        np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)


def test_what_is_off_changes_nothing():
    values = np.random.default_rng(0).normal(size=(4, SPEC.num_params)).astype(np.float32)
    np.testing.assert_array_equal(augment.networks(KEY, SPEC, OFF, values), values)
    np.testing.assert_array_equal(augment.corrupt(KEY, OFF, values), values)


def test_results_depend_on_the_key_alone():
    config = with_(permute=True, mix=0.5, noise=0.1, erase=0.5)
    values = np.random.default_rng(0).normal(size=(4, SPEC.num_params)).astype(np.float32)

    @jax.jit
    def both(key):
        one, two = jax.random.split(key)
        return augment.corrupt(two, config, augment.networks(one, SPEC, config, values))

    np.testing.assert_array_equal(both(KEY), both(KEY))
    assert not np.array_equal(both(KEY), both(jax.random.key(1)))
