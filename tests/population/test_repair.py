"""Moment repair against its definition, written in NumPy and SciPy for one network at a time."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from population_cases import TEST, random_vectors
from scipy.signal import correlate

from hyperjax import population, symmetry
from hyperjax.errors import HyperJaxError
from hyperjax.models import variants
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.population import Repair, fit_repair, repair_member
from hyperjax.population import repair as repairs
from hyperjax.population.evaluation import network
from hyperjax.population.repair import preactivations, repair, repair_all
from hyperjax.weights import LayerSpec, WeightSpec

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "zoo_cnn.npz")  # of PyTorch


def small_spec(channels, activation):
    """One layer of each kind, for images 8 x 8."""
    layers = (
        LayerSpec("c1", "conv", (3, channels, 3, 3), pool="max"),
        LayerSpec("c2", "conv", (2, 3, 2, 2)),
        LayerSpec("d1", "dense", (5, 8)),
        LayerSpec("d2", "dense", (4, 5)),
    )
    return WeightSpec(layers, activation, (8, 8))


def random_inputs(n, channels=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8, 8, channels)).astype(np.float32)


SPEC = small_spec(1, "tanh")
KINDS = [(1, "tanh"), (3, "relu")]
INPUTS = random_inputs(64)
MEMBERS = random_vectors(6, SPEC)
FITTED = fit_repair(SPEC, MEMBERS, INPUTS)
OTHERS = random_vectors(5, SPEC, seed=1)


# --- the definition ---------------------------------------------------------------------


def parts(spec, vector):
    """(layer, weights, bias) in float64, read from the flat vector by its documented order."""
    at = 0
    for layer in spec.layers:
        size, neurons = int(np.prod(layer.shape)), layer.shape[0]
        block = np.asarray(vector[at : at + size + neurons], np.float64)
        yield layer, block[:size].reshape(layer.shape), block[size:]
        at += size + neurons


def one_layer(layer, weights, bias, x):
    """[n, C, H, W] or [n, features] -> the same of the outputs, after the pooling."""
    if layer.kind == "dense":
        return x.reshape(len(x), -1) @ weights.T + bias
    maps = [[correlate(image, kernel, "valid")[0] for kernel in weights] for image in x]
    z = np.array(maps) + bias[:, None, None]
    n, o, h, w = z.shape
    return z.reshape(n, o, h // 2, 2, w // 2, 2).max(axis=(3, 5)) if layer.pool else z


def moments(z):
    axes = (0, *range(2, z.ndim))
    return z.mean(axes), z.std(axes)


ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def expected_preactivations(spec, vector, inputs):
    x, outputs = np.float64(inputs).transpose(0, 3, 1, 2), []
    for layer, weights, bias in parts(spec, vector):
        outputs.append(one_layer(layer, weights, bias, x))
        x = ACTIVATIONS[spec.activation](outputs[-1])
    return outputs


def expected_repair(spec, fitted, vector):
    """Every layer is computed again with its repaired weights. Also the scales, not clipped."""
    inputs, means, stds = jax.tree.map(np.float64, fitted)
    x, result, scales = inputs.transpose(0, 3, 1, 2), [], []
    for (layer, weights, bias), mean, std in zip(parts(spec, vector), means, stds, strict=True):
        m, s = moments(one_layer(layer, weights, bias, x))
        scales.append(std / s)
        a = np.clip(std / s, 0.2, 5)
        weights = weights * a.reshape(-1, *[1] * (weights.ndim - 1))
        bias = a * (bias - m) + mean
        x = ACTIVATIONS[spec.activation](one_layer(layer, weights, bias, x))
        result += [weights.ravel(), bias]
    return np.concatenate(result), np.concatenate(scales)


def neurons_of(spec, vector, inputs):
    """Means and deviations of all neurons, one vector each."""
    pairs = [moments(z) for z in expected_preactivations(spec, vector, inputs)]
    return tuple(np.concatenate(values) for values in zip(*pairs, strict=True))


# --- pre-activations and targets --------------------------------------------------------


@pytest.mark.parametrize(("channels", "activation"), KINDS)
def test_preactivations_equal_the_definition(channels, activation):
    spec, inputs = small_spec(channels, activation), random_inputs(9, channels)
    vector = random_vectors(1, spec)[0]
    outputs = jax.jit(preactivations, static_argnums=0)(spec, vector, inputs)
    expected = expected_preactivations(spec, vector, inputs)
    assert [z.shape for z in outputs] == [(3, 3, 3, 9), (2, 2, 2, 9), (5, 9), (4, 9)]
    for z, reference in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(z, -1, 0), reference, atol=1e-5)


@pytest.mark.parametrize(("channels", "activation"), [(1, "tanh"), (3, "gelu")])
def test_the_last_ones_are_the_logits_of_torch_and_of_the_network(channels, activation):
    spec, vector = zoo_cnn_spec(channels, activation), GOLDEN[f"c{channels}/vector"]
    images = GOLDEN[f"c{channels}/images"]

    @jax.jit
    def both(vector, images):
        return preactivations(spec, vector, images)[-1].T, network(spec).apply(vector, images)

    for logits in both(vector, images):
        np.testing.assert_allclose(logits, GOLDEN[f"c{channels}/logits/{activation}"], atol=1e-5)


@pytest.mark.parametrize(("channels", "activation"), KINDS)
def test_targets_are_means_over_members(channels, activation):
    spec, inputs = small_spec(channels, activation), random_inputs(30, channels)
    members = random_vectors(4, spec)
    fitted = fit_repair(spec, members, inputs)
    np.testing.assert_array_equal(fitted.inputs, inputs)
    expected = [neurons_of(spec, vector, inputs) for vector in members]
    for targets, reference in zip(fitted[1:], np.mean(expected, axis=0), strict=True):
        assert [target.shape for target in targets] == [(3,), (2,), (5,), (4,)]
        np.testing.assert_allclose(np.concatenate(targets), reference, atol=1e-5)


def assert_close(first, second, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), first, second)


def test_members_that_count(monkeypatch):
    """Those with finite weights, and of too many evenly spaced ones."""
    diverged = MEMBERS.copy()
    diverged[1, 3], diverged[4] = np.inf, np.nan
    assert_close(
        fit_repair(SPEC, diverged, INPUTS), fit_repair(SPEC, MEMBERS[[0, 2, 3, 5]], INPUTS)
    )
    monkeypatch.setattr(repairs, "MAX_MEMBERS", 4)
    some = fit_repair(SPEC, np.concatenate([MEMBERS, OTHERS[:1]]), INPUTS)
    assert_close(some, fit_repair(SPEC, np.stack([*MEMBERS[::2], OTHERS[0]]), INPUTS))
    for none in (MEMBERS[:0], diverged[[1, 4]]):
        with pytest.raises(HyperJaxError, match="a member with finite weights, and there is none"):
            fit_repair(SPEC, none, INPUTS)


# --- repair -----------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "activation"), KINDS)
def test_repair_equals_the_definition(channels, activation):
    """Whether the scales are within the bounds or not."""
    spec, inputs = small_spec(channels, activation), random_inputs(30, channels)
    fitted = fit_repair(spec, random_vectors(4, spec), inputs)
    vectors = random_vectors(3, spec, seed=1)
    vectors[1] *= 0.05
    vectors[2] *= 20
    repaired = repair(spec, fitted, vectors)
    assert repaired.dtype == jnp.float32
    scales = []
    for vector, result in zip(vectors, repaired, strict=True):
        expected, scale = expected_repair(spec, fitted, vector)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
        scales.append(scale)
    scales = np.array(scales)
    assert (scales > 5).any()
    assert (scales < 0.2).any()
    assert ((scales > 0.2) & (scales < 5)).any()


def test_repaired_neurons_have_the_targets():
    """On the repair's own inputs, and nearly on fresh ones of the same distribution."""
    inputs = random_inputs(400)
    fitted = fit_repair(SPEC, MEMBERS, inputs)
    targets = [np.concatenate(values) for values in fitted[1:]]
    fresh = random_inputs(400, seed=1)
    for vector in repair(SPEC, fitted, 0.6 * OTHERS[:2]):
        for found, target in zip(neurons_of(SPEC, vector, inputs), targets, strict=True):
            np.testing.assert_allclose(found, target, atol=1e-3)
        mean, std = neurons_of(SPEC, vector, fresh)
        noise = 2**0.5 * targets[1] / 400**0.5  # of two samples of 400 inputs
        assert np.abs((mean - targets[0]) / noise).max() < 5
        assert np.abs((std - targets[1]) / noise).max() < 5
        assert np.abs(neurons_of(SPEC, 0.6 * OTHERS[0], fresh)[1] / targets[1] - 1).max() > 0.3


def test_a_network_that_matches_stays():
    fitted = fit_repair(SPEC, MEMBERS[:1], INPUTS)
    np.testing.assert_allclose(repair(SPEC, fitted, MEMBERS[:1]), MEMBERS[:1], atol=1e-5)
    once = repair(SPEC, FITTED, OTHERS)
    np.testing.assert_allclose(repair(SPEC, FITTED, once), once, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scaled_and_shifted_neurons_are_restored(seed):
    """Whatever the layers before do: z' = a z + c is undone, hence all weights are."""
    rng = np.random.default_rng(seed)
    blocks = []
    for _, weights, bias in parts(SPEC, MEMBERS[0]):
        a, c = rng.uniform(0.5, 2, len(bias)), rng.normal(size=len(bias))
        blocks += [(a * weights.reshape(len(bias), -1).T).T.ravel(), a * bias + c]
    disturbed = np.float32(np.concatenate(blocks))[None]
    fitted = fit_repair(SPEC, MEMBERS[:1], INPUTS)
    restored = repair(SPEC, fitted, disturbed)
    np.testing.assert_allclose(restored, MEMBERS[:1], atol=1e-4)
    logits = [expected_preactivations(SPEC, v[0], INPUTS)[-1] for v in (MEMBERS, restored)]
    np.testing.assert_allclose(*logits, atol=1e-4)


move = jax.jit(symmetry.apply, static_argnums=0)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5]))
def test_repair_commutes_with_symmetries(seed, scale):
    """Permutations of hidden neurons, and for ReLU their positive scales."""
    spec = small_spec(1, "relu")
    members, vectors = random_vectors(6, spec), random_vectors(5, spec, seed=1)
    transform = symmetry.random_transform(jax.random.key(seed), spec, signs=False, scale=scale)
    fitted = fit_repair(spec, members, INPUTS)
    moved = fit_repair(spec, move(spec, transform, members), INPUTS)
    for before, after, neurons, factor in zip(
        fitted.stds, moved.stds, transform.permutations, transform.scales, strict=False
    ):
        np.testing.assert_allclose(before[neurons] * factor, after, rtol=1e-4)
    np.testing.assert_allclose(
        repair(spec, moved, move(spec, transform, vectors)),
        move(spec, transform, repair(spec, fitted, vectors)),
        rtol=1e-3,
        atol=1e-4,
    )


def test_constant_neurons_are_shifted_only():
    """Without weights, or fed by neurons that say nothing: no scale but 1, and no NaN."""
    spec = small_spec(1, "relu")
    vectors = random_vectors(2, spec)
    fitted = fit_repair(spec, vectors, INPUTS)
    dead = vectors.copy()
    dead[0, 9:18], dead[0, 28] = 0, 0.7  # neuron 1 of the first layer
    dead[1, :27] = 0  # all of that layer: whatever comes later is constant
    repaired = np.asarray(repair(spec, fitted, dead))
    assert np.isfinite(repaired).all()
    np.testing.assert_array_equal(repaired[0, 9:18], 0)
    np.testing.assert_allclose(repaired[0, 28], fitted.means[0][1], rtol=1e-5)
    for (_, before, _), (_, after, _) in zip(
        parts(spec, dead[1]), parts(spec, repaired[1]), strict=True
    ):
        np.testing.assert_allclose(after, before, rtol=1e-6)
    mean, std = neurons_of(spec, repaired[1], INPUTS)
    np.testing.assert_allclose(mean, np.concatenate(fitted.means), atol=1e-5)
    assert std.max() < 1e-5


def test_what_is_not_finite_stays_so_and_spares_others():
    vectors = np.repeat(OTHERS[:1], 5, axis=0)
    vectors[1] = np.nan
    vectors[3, 30] = np.nan  # in the second layer
    repaired = np.asarray(repair(SPEC, FITTED, vectors))
    np.testing.assert_array_equal(repaired[[2, 4]], repaired[[0, 0]])
    assert np.isfinite(repaired[0]).all()
    assert np.isnan(repaired[1]).all()
    np.testing.assert_array_equal(repaired[3, :30], repaired[0, :30])
    assert np.isnan(repaired[3, 30])
    assert np.isnan(repaired[3, SPEC.slices[2]]).all()


@pytest.mark.parametrize("batch_size", [2, 9])
def test_the_batch_size_does_not_matter(batch_size):
    """Whether it leaves a rest or is larger than the number of networks."""
    assert_close(fit_repair(SPEC, MEMBERS, INPUTS, batch_size=batch_size), FITTED)
    result = repair(SPEC, FITTED, OTHERS, batch_size=batch_size)
    np.testing.assert_allclose(result, repair(SPEC, FITTED, OTHERS), atol=1e-5)


def test_inside_other_functions():
    """One network or many under jit, `Repair` being a pytree, and gradients."""
    expected = repair(SPEC, FITTED, OTHERS)

    @jax.jit
    def both(fitted, vectors):
        mapped = jax.vmap(lambda vector: repair_member(SPEC, fitted, vector))(vectors)
        return repair(SPEC, fitted, vectors), mapped

    for result in both(FITTED, OTHERS):
        np.testing.assert_allclose(result, expected, atol=1e-5)
    slope = jax.jit(jax.grad(lambda v: jnp.square(repair_member(SPEC, FITTED, v)).sum()))
    assert np.isfinite(slope(np.zeros(SPEC.num_params, np.float32))).all()
    assert repair(SPEC, FITTED, OTHERS[:0]).shape == (0, SPEC.num_params)
    np.testing.assert_allclose(repair(SPEC, FITTED, OTHERS[:1])[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 11])
def test_all_devices_repair_as_one_does(count):
    """Fewer networks than devices, more, or a number that they do not divide."""
    vectors = np.concatenate([OTHERS, 0.5 * OTHERS, MEMBERS])[:count]
    vectors[1::4, 30] = np.nan
    found = repair_all(SPEC, FITTED, vectors)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, repair(SPEC, FITTED, vectors))


def test_all_devices_repair(monkeypatch):
    used, spread = [], repairs._spread

    def watched(*args):
        result = spread(*args)
        used.append({shard.device: shard.data.shape[0] for shard in result.addressable_shards})
        return result

    monkeypatch.setattr(repairs, "_spread", watched)
    repair_all(SPEC, FITTED, np.tile(OTHERS, (3, 1))[:11])
    assert used == [dict.fromkeys(jax.devices(), 3)]


def test_the_zoo_cnn_is_repaired_from_moments_of_images():
    spec = zoo_cnn_spec(1, "tanh")
    inputs = population.gaussian_inputs(jax.random.key(0), population.image_moments(TEST), 16)
    members = random_vectors(2, spec)
    fitted = fit_repair(spec, members, inputs)
    repaired = repair(spec, fitted, 0.8 * members)
    means, stds = neurons_of(spec, repaired[0], inputs)
    np.testing.assert_allclose(means, np.concatenate(fitted.means), atol=1e-3)
    np.testing.assert_allclose(stds, np.concatenate(fitted.stds), atol=1e-3)


# --- what is refused --------------------------------------------------------------------


def with_layer(position, **changes):
    layers = list(SPEC.layers)
    fields = {"name": layers[position].name, "kind": "dense", **changes}
    layers[position] = LayerSpec(**fields)
    return WeightSpec(tuple(layers), "tanh", (8, 8))


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        (variants.four_conv_spec(1), 28, "layers conv2, conv3, conv4 have no biases"),
        (variants.res_skip_spec(1, "tanh"), 28, r"layer 'skip1' .* convolution after a dense"),
        (SPEC, 9, r"inputs of shape \(2, 9, 9, 1\); expected \[n, 8, 8, 1\]"),
        (small_spec(3, "tanh"), 8, r"inputs of shape .* expected \[n, 8, 8, 3\]"),
        (WeightSpec(SPEC.layers, "tanh", (2, 2)), 2, r"layer 'c1' .* has no outputs"),
        (WeightSpec(SPEC.layers, "tanh", (10, 10)), 10, r"layer 'd1' .* would get 18 inputs"),
        (with_layer(1, kind="conv", shape=(2, 4, 2, 2)), 8, r"layer 'c2' .* get 3 channels"),
        (with_layer(3, shape=(4, 6)), 8, r"layer 'd2' .* would get 5 inputs"),
        (WeightSpec(SPEC.layers, "sine", (8, 8)), 8, "unknown activation 'sine'"),
    ],
)
def test_architectures_that_cannot_be_run(spec, size, message):
    inputs = np.zeros((2, size, size, 1), np.float32)
    with pytest.raises(HyperJaxError, match=message):
        fit_repair(spec, np.zeros((1, spec.num_params), np.float32), inputs)
    with pytest.raises(HyperJaxError, match=message):
        preactivations(spec, np.zeros(spec.num_params, np.float32), inputs)


def test_arrays_that_do_not_fit():
    for inputs in (INPUTS[0], INPUTS[:0]):
        with pytest.raises(HyperJaxError, match=r"inputs of shape .*\[n, 8, 8, 1\]"):
            fit_repair(SPEC, MEMBERS, inputs)
    with pytest.raises(HyperJaxError, match="inputs are integers"):
        fit_repair(SPEC, MEMBERS, INPUTS.astype(np.uint8))
    for vectors in (MEMBERS[0], MEMBERS[:, 1:], MEMBERS[None]):
        with pytest.raises(HyperJaxError, match=r"vectors of shape .*expected \[M, 125\] .*c1, c2"):
            fit_repair(SPEC, vectors, INPUTS)
        with pytest.raises(HyperJaxError, match=r"vectors of shape .*expected \[M, 125\]"):
            repair(SPEC, FITTED, vectors)
    with pytest.raises(HyperJaxError, match="have 124 values"):
        repair_member(SPEC, FITTED, MEMBERS[0, 1:])
    other = Repair(FITTED.inputs, FITTED.means[:-1], FITTED.stds[:-1])
    with pytest.raises(
        HyperJaxError, match=r"fitted to layers of \[3, 2, 5\] neurons.*\[3, 2, 5, 4\]"
    ):
        repair(SPEC, other, MEMBERS)
