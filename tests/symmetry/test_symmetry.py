import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import symmetry
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.symmetry import Transform
from hyperjax.weights import LayerSpec, WeightSpec

IMAGES = np.random.default_rng(0).normal(size=(5, 2, 8, 8))
LAYERS = (
    LayerSpec("conv1", "conv", (3, 2, 3, 3), pool="max"),  # 8 x 8 -> 6 x 6 -> 3 x 3
    LayerSpec("conv2", "conv", (4, 3, 2, 2)),  # -> 2 x 2
    LayerSpec("fc1", "dense", (5, 16)),
    LayerSpec("fc2", "dense", (6, 5)),
    LayerSpec("fc3", "dense", (3, 6)),
)
ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
seeds = st.integers(0, 2**31 - 1)
examples = hypothesis.settings(max_examples=8, deadline=None)


apply = jax.jit(symmetry.apply, static_argnums=0)
draw = jax.jit(symmetry.random_transform, static_argnums=1, static_argnames=("permute", "signs"))


@functools.partial(jax.jit, static_argnums=1, static_argnames="signs")
def draw_many(keys, spec, signs=True, scale=0.0):
    one = functools.partial(symmetry.random_transform, spec=spec, signs=signs, scale=scale)
    return jax.vmap(one)(keys)


def tiny_spec(activation):
    return WeightSpec(LAYERS, activation)


def random_vectors(spec, seed, *lead):
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, 0.5, (*lead, spec.num_params)).astype(np.float32)


def tensors(spec, vector):
    """Weights and bias of each layer of one flat vector, cut by hand."""
    parts, start = [], 0
    for layer in spec.layers:
        weights = vector[start : start + np.prod(layer.shape)].reshape(layer.shape)
        start += weights.size
        parts.append((weights, vector[start : start + layer.shape[0]]))
        start += layer.shape[0]
    return parts


def forward(spec, vector, images=IMAGES):
    """The network as a function, in NumPy: conv, pool, activation; flatten; dense."""
    x, activation = images, ACTIVATIONS[spec.activation]
    for i, (weights, bias) in enumerate(tensors(spec, np.asarray(vector, np.float64))):
        if spec.layers[i].kind == "conv":
            patches = np.lib.stride_tricks.sliding_window_view(x, weights.shape[2:], axis=(2, 3))
            x = np.einsum("nchwij,ocij->nohw", patches, weights) + bias[:, None, None]
            if spec.layers[i].pool:
                n, c, h, w = x.shape
                x = x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
        else:
            x = x.reshape(len(x), -1) @ weights.T + bias  # channel-major
        if i < len(spec.layers) - 1:
            x = activation(x)
    return x


@pytest.mark.parametrize("activation", ACTIVATIONS)
@examples
@hypothesis.given(seed=seeds)
def test_apply_keeps_the_function(activation, seed):
    spec = tiny_spec(activation)
    vector = random_vectors(spec, seed)
    transform = draw(jax.random.key(seed), spec, scale=0.5)
    moved = apply(spec, transform, vector)
    assert moved.dtype == jnp.float32
    assert np.abs(moved - vector).max() > 0.1
    np.testing.assert_allclose(forward(spec, moved), forward(spec, vector), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("activation", "signs", "scales"),
    [
        ("tanh", (False, True, True, True), (False,) * 4),
        ("relu", (False,) * 4, (True,) * 4),
        ("leakyrelu", (False,) * 4, (True,) * 4),
        ("gelu", (False,) * 4, (False,) * 4),
    ],
)
def test_which_layers_are_symmetric(activation, signs, scales):
    assert symmetry.sign_symmetric(tiny_spec(activation)) == signs
    assert symmetry.scale_symmetric(tiny_spec(activation)) == scales


def test_a_sign_is_no_symmetry_of_a_pooled_or_a_relu_layer():
    for activation, layer in (("tanh", 0), ("relu", 1)):
        spec = tiny_spec(activation)
        scales = list(symmetry.identity(spec).scales)
        scales[layer] = -scales[layer]
        vector = random_vectors(spec, 0)
        moved = apply(spec, symmetry.identity(spec)._replace(scales=tuple(scales)), vector)
        assert np.abs(forward(spec, moved) - forward(spec, vector)).max() > 0.01


def test_apply_moves_the_zoo_cnn_as_the_method_says():
    """W'[o] = W[p[o]], the next layer's inputs alike; fc1's inputs are 4 blocks of 9 columns."""
    spec = zoo_cnn_spec(1, "tanh")
    assert symmetry.input_blocks(spec) == ((1, 25), (8, 25), (6, 4), (4, 9), (20, 1))
    vector = np.arange(spec.num_params, dtype=np.float32)
    rng = np.random.default_rng(3)
    p = [rng.permutation(n) for n in (8, 6, 4, 20)]
    s = [rng.choice(np.float32([-2, 1, 4]), n) for n in (8, 6, 4, 20)]
    (w1, b1), (w2, b2), (w3, b3), (w4, b4), (w5, b5) = tensors(spec, vector)
    column = (slice(None), None, None, None)
    expected = [
        (w1[p[0]] * s[0][column], b1[p[0]] * s[0]),
        (w2[p[1]][:, p[0]] * s[1][column] / s[0][None, :, None, None], b2[p[1]] * s[1]),
        (w3[p[2]][:, p[1]] * s[2][column] / s[1][None, :, None, None], b3[p[2]] * s[2]),
    ]
    blocks = w4.reshape(20, 4, 9)[p[3]][:, p[2]] * s[3][:, None, None] / s[2][None, :, None]
    expected += [(blocks, b4[p[3]] * s[3]), (w5[:, p[3]] / s[3][None], b5)]
    expected = np.concatenate([part.ravel() for pair in expected for part in pair])
    transform = Transform(tuple(q.astype(np.int32) for q in p), tuple(s))
    np.testing.assert_array_equal(apply(spec, transform, vector), expected)


@examples
@hypothesis.given(seed=seeds, activation=st.sampled_from(["tanh", "relu"]))
def test_group_laws(seed, activation):
    spec = tiny_spec(activation)
    vector = random_vectors(spec, seed)
    keys = jax.random.split(jax.random.key(seed))
    first, second = (draw(key, spec, scale=0.3) for key in keys)
    moved = apply(spec, first, vector)
    back = apply(spec, symmetry.invert(first), moved)
    np.testing.assert_allclose(back, vector, rtol=1e-5)
    composed = apply(spec, symmetry.compose(second, first), vector)
    np.testing.assert_allclose(composed, apply(spec, second, moved), rtol=1e-5)
    np.testing.assert_array_equal(apply(spec, symmetry.identity(spec), vector), vector)
    neutral = symmetry.compose(symmetry.invert(first), first)
    for found, expected in zip(
        jax.tree.leaves(neutral), jax.tree.leaves(symmetry.identity(spec)), strict=True
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_transforms_run_along_the_first_axes_of_vectors():
    spec = tiny_spec("tanh")
    trajectories = random_vectors(spec, 1, 3, 2)  # 3 networks of 2 snapshots
    many = draw_many(jax.random.split(jax.random.key(0), 3), spec)
    moved = apply(spec, many, trajectories)
    last = apply(spec, many, trajectories[:, -1])
    mapped = jax.vmap(lambda one, vectors: apply(spec, one, vectors))(many, trajectories)
    np.testing.assert_array_equal(moved[:, -1], last)
    np.testing.assert_array_equal(moved, mapped)
    for i, snapshot in itertools.product(range(3), range(2)):
        one = jax.tree.map(lambda field: field[i], many)  # noqa: B023
        alone = apply(spec, one, trajectories[i, snapshot])
        np.testing.assert_array_equal(moved[i, snapshot], alone)
    everywhere = apply(spec, one, trajectories)
    np.testing.assert_array_equal(everywhere[2], moved[2])


def test_random_transforms_are_uniform_and_only_where_symmetric():
    spec = tiny_spec("tanh")
    keys = jax.random.split(jax.random.key(5), 1200)
    drawn = draw_many(keys, spec)
    _, counts = np.unique(np.asarray(drawn.permutations[0]), axis=0, return_counts=True)
    assert len(counts) == 6  # 3 neurons: mean 200, standard deviation 13
    assert counts.min() > 140
    assert counts.max() < 260
    assert np.all(np.asarray(drawn.scales[0]) == 1)  # pooled
    for signs in drawn.scales[1:]:
        np.testing.assert_array_equal(np.unique(signs), [-1, 1])
        assert np.abs(np.mean(signs, axis=0)).max() < 0.15
    correlation = np.corrcoef(np.concatenate(drawn.scales[1:], axis=1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.15

    quiet = draw(keys[0], spec, permute=False, signs=False, scale=1.0)
    jax.tree.map(np.testing.assert_array_equal, quiet, symmetry.identity(spec))
    relu = tiny_spec("relu")
    scaled = draw_many(keys, relu, scale=0.5)
    logs = np.log(np.concatenate(scaled.scales, axis=1))
    assert np.abs(logs.mean(axis=0)).max() < 0.06
    np.testing.assert_allclose(logs.std(axis=0), 0.5, rtol=0.1)


def test_a_network_without_hidden_layers_has_no_symmetry():
    spec = WeightSpec((LayerSpec("fc", "dense", (2, 3)),), "tanh")
    vectors = random_vectors(spec, 0, 4)
    assert symmetry.identity(spec) == Transform((), ())
    moved = apply(spec, draw(jax.random.key(0), spec), vectors)
    np.testing.assert_array_equal(moved, vectors)


def test_errors_say_what_is_wrong():
    spec = tiny_spec("tanh")
    with pytest.raises(HyperJaxError, match="have 7 values"):
        apply(spec, symmetry.identity(spec), np.zeros(7, np.float32))
    misfit = WeightSpec((LAYERS[0], LayerSpec("fc1", "dense", (5, 16))), "tanh")
    with pytest.raises(HyperJaxError, match=r"'fc1' has 16 inputs.*3 neurons of layer 'conv1'"):
        symmetry.input_blocks(misfit)
