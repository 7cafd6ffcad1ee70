"""What a denoiser computes: its formula, units, symmetries, and what it is asked for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoiser_cases import (
    CONFIG,
    EQUIVARIANT,
    GRAPH,
    MLP,
    SPECS,
    apply,
    make_denoiser,
    transforms,
    unit_of,
    vectors_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.diffusion import UNKNOWN, denoise, wiener
from hyperjax.diffusion import denoiser_training as training
from hyperjax.diffusion.denoiser import bias_signs
from hyperjax.models.graph import GraphDenoiser

LEVELS = np.float32([0.15, 0.6, 1.0, 3.0])
compiled = jax.jit(denoise)


def compute(*arguments):
    return np.asarray(compiled(*arguments))


def linear(denoiser, scaled):
    return np.asarray(wiener.denoise(denoiser.wiener, scaled, LEVELS))


def noisy_of(denoiser, count=4, seed=1):
    return unit_of(denoiser) * vectors_of(denoiser.spec, count, seed)


def test_an_untrained_denoiser_is_the_wiener_denoiser():
    trainer = training.make_trainer(CONFIG, MLP)
    params = jax.device_get(training.init(trainer, jax.random.key(0)).params)
    denoiser = dataclasses.replace(make_denoiser(), params=params)
    noisy, unit = noisy_of(denoiser), unit_of(denoiser)
    found = compute(denoiser, noisy, LEVELS, np.float32([-1, 0, 0.5, 1]))
    expected = unit * linear(denoiser, noisy / unit)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_network_adds_to_it_in_units_of_the_scale():
    """D = W + s / sqrt(1 + s^2) F(x / sqrt(1 + s^2), W, log s), in units of each layer's scale."""
    denoiser, quality = make_denoiser(), np.float32([0.1, UNKNOWN, 0.9, 0.4])
    noisy, unit = noisy_of(denoiser), unit_of(denoiser)
    known = linear(denoiser, noisy / unit)
    norm = 1 / np.sqrt(1 + LEVELS[:, None] ** 2)
    inputs = np.stack([noisy / unit * norm, known], axis=1)
    module = GraphDenoiser(GRAPH, MLP)
    inputs = {"params": denoiser.params}, inputs, np.log(LEVELS), quality
    added = np.asarray(jax.jit(module.apply)(*inputs))
    expected = unit * (known + LEVELS[:, None] * norm * added)
    found = compute(denoiser, noisy, LEVELS, quality)
    assert np.abs(found / unit - known).max() > 0.3
    np.testing.assert_allclose(found / unit, expected / unit, atol=1e-5)


def test_scaling_a_layer_and_its_scale_scales_what_comes_out():
    denoiser = make_denoiser()
    factor = np.float32([4.0, 0.5])
    other = dataclasses.replace(denoiser, scale=denoiser.scale * factor)
    by = np.repeat(factor, [24, 10])
    noisy = noisy_of(denoiser)
    np.testing.assert_allclose(
        compute(other, noisy * by, 0.7), by * compute(denoiser, noisy, 0.7), rtol=1e-4
    )


def test_one_level_and_one_quality_serve_all():
    denoiser = make_denoiser()
    noisy = noisy_of(denoiser)
    for level, quality in ((0.6, 0.25), (1.5, UNKNOWN)):
        many = compute(denoiser, noisy, np.full(4, level, np.float32), np.float32([quality] * 4))
        np.testing.assert_allclose(compute(denoiser, noisy, level, quality), many, rtol=1e-4)
    plain, unknown = compute(denoiser, noisy, 0.6), compute(denoiser, noisy, 0.6, UNKNOWN)
    np.testing.assert_array_equal(plain, unknown)


def test_qualities_make_a_difference():
    denoiser = make_denoiser()
    noisy, unit = noisy_of(denoiser), unit_of(denoiser)
    found = [compute(denoiser, noisy, 1.0, q) / unit for q in (UNKNOWN, 0.0, 0.5, 1.0)]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (np.abs(one - other).max(axis=1) > 1e-2).all()


def test_transformations():
    """vmap over single networks is the batch; the gradient is that of finite differences."""
    denoiser = make_denoiser(EQUIVARIANT)
    noisy = noisy_of(denoiser)
    one = jax.jit(jax.vmap(lambda x, s: denoise(denoiser, x[None], s)[0]))
    unit = unit_of(denoiser)
    expected = compute(denoiser, noisy, LEVELS) / unit
    np.testing.assert_allclose(np.asarray(one(noisy, LEVELS)) / unit, expected, atol=1e-5)

    def total(x):
        return jnp.sum(denoise(denoiser, x * unit[None], LEVELS) / unit[None])

    direction, start = vectors_of(MLP, 4, seed=5), jnp.asarray(noisy / unit)
    slope = jnp.sum(jax.jit(jax.grad(total))(start) * direction)
    step = 1e-2
    ends = [jax.jit(total)(start + sign * step * direction) for sign in (1, -1)]
    assert slope == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=0.02, abs=0.02)


# --- symmetries -----------------------------------------------------------------------------


@functools.cache
def case(name, graph):
    denoiser = make_denoiser(graph, SPECS[name])
    return denoiser, noisy_of(denoiser), unit_of(denoiser)


def deviation(name, graph, seed):
    """By how much denoising a disguised network differs from disguising a denoised one."""
    denoiser, noisy, unit = case(name, graph)
    transform = transforms(jax.random.key(seed), SPECS[name])
    levels = LEVELS, np.float32([0.3, UNKNOWN, 0.9, 0.0])
    ours = compute(denoiser, apply(SPECS[name], transform, noisy), *levels)
    theirs = apply(SPECS[name], transform, compute(denoiser, noisy, *levels))
    return np.abs((ours - np.asarray(theirs)) / unit).max()


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**31 - 1))
def test_an_equivariant_denoiser_commutes_with_the_symmetries(name, seed):
    assert deviation(name, EQUIVARIANT, seed) < 1e-5


def test_one_with_positions_does_not():
    assert min(deviation("mlp", GRAPH, seed) for seed in range(3)) > 0.1


def test_the_network_of_an_equivariant_denoiser_is_not_blind():
    denoiser, noisy, unit = case("mlp", EQUIVARIANT)
    added = compute(denoiser, noisy, LEVELS) / unit - linear(denoiser, noisy / unit)
    assert np.abs(added).max() > 0.1


@pytest.mark.parametrize("name", SPECS)
def test_signs_make_biases_positive_and_keep_the_function(name):
    """Those of layers whose signs are free; all other signs follow from them."""
    spec = SPECS[name]
    vectors = vectors_of(spec, 6)
    signs = np.asarray(jax.jit(bias_signs, static_argnums=0)(spec, vectors))
    assert set(np.unique(signs)) <= {-1, 1}
    free = {"tanh": [1], "colour": [], "mlp": [0]}[name]
    expected = np.ones_like(vectors)
    for number in free:
        layer, part, after = spec.layers[number], spec.slices[number], spec.slices[number + 1]
        sign = np.where(vectors[:, part][:, -layer.num_neurons :] < 0, -1, 1)
        for row in range(6):
            block = expected[row, part]
            block[: layer.num_weights] *= np.repeat(sign[row], layer.token_size - 1)
            block[layer.num_weights :] *= sign[row]
            following = spec.layers[number + 1]
            outgoing = expected[row, after][: following.num_weights]
            outgoing *= np.tile(sign[row], following.num_neurons)  # one weight for each neuron
    np.testing.assert_array_equal(signs, expected)
    assert (signs == 1).all() == (name == "colour")
