"""The pair of functions that a spec stands for, against PyTorch and against populations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from population_cases import MEAN, SPEC, STD, TEST, TRAIN, make_engine, random_vectors

from hyperjax import population, weights
from hyperjax.errors import HyperJaxError
from hyperjax.models import variants
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.population.evaluation import network
from hyperjax.types import Images

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "zoo_cnn.npz")
NET = network(SPEC)
apply = jax.jit(NET.apply)
VECTORS = random_vectors(3)


@pytest.mark.parametrize(
    ("channels", "activation"), [(1, "tanh"), (1, "leakyrelu"), (3, "gelu"), (3, "sigmoid")]
)
def test_logits_equal_those_of_torch(channels, activation):
    """Of images that were normalised already."""
    spec = zoo_cnn_spec(channels, activation)
    compiled = jax.jit(network(spec).apply)
    logits = compiled(GOLDEN[f"c{channels}/vector"], GOLDEN[f"c{channels}/images"])
    expected = GOLDEN[f"c{channels}/logits/{activation}"]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_images_are_normalised_by_their_own_numbers():
    """Equal to arrays that were normalised in float64."""
    normalised = np.float32((TEST.pixels / 255.0 - 0.4) / 0.3)
    expected = apply(VECTORS[0], normalised)
    np.testing.assert_allclose(apply(VECTORS[0], TEST), expected, atol=1e-4)
    other = TEST._replace(mean=2 * MEAN, std=STD / 2)
    assert np.abs(apply(VECTORS[0], other) - expected).max() > 0.01
    half = np.asarray(normalised, np.float16)  # any kind of float
    np.testing.assert_allclose(apply(VECTORS[0], half), expected, atol=1e-2)


def test_colour_has_a_normalisation_of_each_channel():
    spec = zoo_cnn_spec(3, "gelu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    mean, std = np.float32([0.1, 0.5, 0.9]), np.float32([0.2, 0.4, 0.8])
    images = Images(pixels, np.zeros(2, np.int32), mean, std)
    vector = random_vectors(1, spec)[0]
    compiled = jax.jit(network(spec).apply)
    expected = compiled(vector, np.float32((pixels / 255.0 - mean) / std))
    np.testing.assert_allclose(compiled(vector, images), expected, atol=1e-4)


def test_a_population_computes_the_same():
    engine = make_engine()
    placed = population.place_members(engine, np.repeat(VECTORS, 3, axis=0)[:8])
    images = population.place_images(engine, TEST)
    expected = population.logits(engine, placed, images)[::3]
    mapped = jax.jit(jax.vmap(NET.apply, (0, None)))(VECTORS, TEST)
    assert mapped.shape == (3, 40, 10)
    np.testing.assert_allclose(mapped, expected, atol=1e-4)


def test_gradients_are_those_of_finite_differences():
    """Of the loss of several networks, along one direction."""

    def loss(vector):
        logits = NET.apply(vector, TRAIN)
        return optax.softmax_cross_entropy_with_integer_labels(logits, TRAIN.labels).mean()

    slopes = jax.jit(jax.vmap(jax.grad(loss)))(VECTORS)
    direction = np.random.default_rng(0).normal(size=SPEC.num_params)
    losses = jax.jit(jax.vmap(loss))
    ends = [losses(np.float32(VECTORS + sign * 3e-3 * direction)) for sign in (1, -1)]
    along = np.asarray(slopes, np.float64) @ direction
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / 6e-3, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", ["torch_default", "kaiming_uniform", "normal"])
def test_initial_weights(name):
    """Of the named distribution; biases are 0.01; without a name they are PyTorch's."""
    keys = jax.random.split(jax.random.key(0), 20)
    draw = jax.jit(jax.vmap(lambda key: NET.init(key, name)))
    vectors = np.asarray(draw(keys))
    assert vectors.shape == (20, SPEC.num_params)
    fc1 = SPEC.layers[3]
    kernel, bias = weights.split_layer(fc1, vectors[:, SPEC.slices[3]])
    np.testing.assert_array_equal(bias, np.float32(0.01))
    std = {"torch_default": 1 / np.sqrt(3 * 36), "kaiming_uniform": np.sqrt(2 / 36), "normal": 1}
    assert kernel.std() == pytest.approx(std[name], rel=0.03)
    assert (np.abs(kernel).max() > 2 * kernel.std()) == (name == "normal")
    if name == "torch_default":
        np.testing.assert_allclose(jax.jit(NET.init)(keys[3]), vectors[3], rtol=1e-6)


def test_what_a_network_does_not_take():
    with pytest.raises(HyperJaxError, match=r"pixels without their normalisation.*Images"):
        NET.apply(VECTORS[0], TEST.pixels)
    with pytest.raises(HyperJaxError, match="pixels without their normalisation"):
        apply(VECTORS[0], TEST.pixels.astype(np.int32))
    for shape in ((28, 28, 1), (2, 28, 28, 3), (2, 1, 28, 28), (2, 32, 32, 1)):
        with pytest.raises(HyperJaxError, match=r"images of shape .*expected \[N, 28, 28, 1\]"):
            NET.apply(VECTORS[0], np.zeros(shape, np.float32))
    with pytest.raises(HyperJaxError, match="have 2463 values"):
        NET.apply(VECTORS[0, 1:], TEST)
    with pytest.raises(HyperJaxError, match=r"initialisation 'zeros'.*kaiming_uniform"):
        NET.init(jax.random.key(0), "zeros")


def test_architectures_that_are_no_sequence():
    with pytest.raises(HyperJaxError, match=r"layer 'skip1' .* convolution after a dense"):
        network(variants.res_skip_spec(1, "tanh"))
