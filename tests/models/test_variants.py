"""Unseen architectures against loops in NumPy, and the rules that give them weights."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy.signal import correlate

from hyperjax import population, symmetry, weights
from hyperjax.config import EvaluationConfig, TrainingConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models import variants
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.sequential import Sequential
from hyperjax.models.variants import VARIANTS
from hyperjax.population import engine as engines
from hyperjax.types import Images
from hyperjax.weights import LayerSpec, WeightSpec

SIZES = {"res_skip": (2562, 2978), "four_conv": (2464, 2864), "four_conv_skip": (2464, 2864)}
ZOO, FOUR = zoo_cnn_spec(1, "tanh"), variants.four_conv_spec(1)


def spec_of(name, channels=1, activation="tanh"):
    return VARIANTS[name].spec(channels, activation)


def random_vectors(spec, count, seed=0):
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal((count, spec.num_params))).astype(np.float32)


# --- forward passes -----------------------------------------------------------------------


def state_of(spec, vector):
    """{layer: (weights in PyTorch's order, bias)}, cut out of the vector by hand."""
    state, at = {}, 0
    for layer in spec.layers:
        size, biases = int(np.prod(layer.shape)), layer.shape[0] if layer.bias else 0
        block = vector[at : at + size + biases].astype(np.float64)
        state[layer.name] = block[:size].reshape(layer.shape), block[size:]
        at += size + biases
    assert at == len(vector)
    return state


def conv(state, name, x):
    kernel, bias = state[name]
    x = x.astype(np.float64)  # as the kernel: SciPy would cast memory that it has not written
    out = np.stack([correlate(x, filter_, mode="valid")[0] for filter_ in kernel])
    return out + (bias[:, None, None] if len(bias) else 0)


def pool(x, size, stride):
    steps = range(0, x.shape[1] - size + 1, stride)
    return np.array([[x[:, i : i + size, j : j + size].max((1, 2)) for j in steps]
                     for i in steps]).transpose(2, 0, 1)  # fmt: skip


def dense(state, name, x):
    return state[name][0] @ x + state[name][1]


def logits_of(name, state, act, image):
    """One image [C, 28, 28] through the architecture, as it is written down in the paper's code."""
    if name == "res_skip":
        x = act(pool(conv(state, "conv1", image), 2, 2)) + conv(state, "skip1", pool(image, 5, 2))
        x = act(pool(conv(state, "conv2", x), 2, 2)) + conv(state, "skip2", pool(x, 5, 2))
        x = act(conv(state, "conv3", x)) + conv(state, "skip3", pool(x, 2, 1))
    else:
        early = np.tanh(pool(conv(state, "conv1", image), 2, 2))
        early = np.tanh(conv(state, "conv2", early))
        x = np.tanh(conv(state, "conv4", np.tanh(conv(state, "conv3", early))))
        if name == "four_conv_skip":
            x = x + early[:, [1, 3, 5]][:, :, [1, 3, 5]]
    assert x.shape == (4, 3, 3)
    return dense(state, "fc2", act(dense(state, "fc1", x.ravel())))


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(model, spec, vector, images):
    return model.apply({"params": weights.unflatten(spec, vector)}, images)


@pytest.mark.parametrize("form", ["tiles", "xla"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_those_of_loops(name, channels, form):
    spec = spec_of(name, channels)
    vector = random_vectors(spec, 1)[0]
    images = np.random.default_rng(1).normal(size=(2, 28, 28, channels)).astype(np.float32)
    model = VARIANTS[name].model(spec, form)
    logits = forward(model, spec, vector, images)
    state = state_of(spec, vector)
    expected = [logits_of(name, state, np.tanh, image.transpose(2, 0, 1)) for image in images]
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert np.std(expected) > 0.1


def test_the_zoos_activation_is_that_of_the_residual_network_alone():
    assert spec_of("res_skip", activation="gelu").activation == "gelu"
    assert spec_of("four_conv", activation="gelu").activation == "tanh"
    spec = spec_of("res_skip", activation="relu")
    vector, image = random_vectors(spec, 1)[0], np.ones((1, 28, 28, 1), np.float32)
    image[0, :9] = -1
    logits = forward(variants.ResSkipCNN(spec), spec, vector, image)
    expected = logits_of("res_skip", state_of(spec, vector), lambda x: np.maximum(x, 0),
                         image[0].transpose(2, 0, 1))  # fmt: skip
    np.testing.assert_allclose(logits[0], expected, atol=2e-5)


def test_pooling_shares_the_gradient_of_equal_maxima():
    x = np.float32([[3, 1, 3, 0]]).reshape(1, 1, 4, 1)
    pooled, pull = jax.vjp(lambda x: variants.window_max(x[:, [0, 0, 0]], 3, 1), x)
    np.testing.assert_array_equal(pooled.ravel(), [3, 3])
    gradient = np.asarray(pull(np.ones_like(pooled))[0]).ravel()
    np.testing.assert_allclose(gradient, [0.5, 0, 1.5, 0])


# --- layouts and initial weights ----------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_are_the_published_ones(name):
    assert tuple(spec_of(name, channels).num_params for channels in (1, 3)) == SIZES[name]
    spec = spec_of(name)
    model = VARIANTS[name].model(spec, "patches")
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 28, 28, 1)))["params"]
    shapes = jax.tree.map(np.shape, weights.unflatten(spec, np.zeros(spec.num_params)))
    assert jax.tree.map(np.shape, params) == shapes


def test_initial_weights():
    """Skips are kaiming_uniform, whatever the rest is; biases 0.01; layers do not share draws."""
    spec = spec_of("res_skip", 3)
    keys = jax.random.split(jax.random.key(0), 50)
    draw = jax.jit(jax.vmap(variants.init_vector, (None, None, 0)), static_argnums=(0, 1))
    vectors = np.asarray(draw(spec, "uniform", keys))
    layers = {}
    for layer, part in zip(spec.layers, spec.slices, strict=True):
        layers[layer.name], bias = weights.split_layer(layer, vectors[:, part])
        np.testing.assert_array_equal(bias, np.float32(0.01))
    for name, fan_in in (("skip1", 3), ("skip2", 8), ("skip3", 6)):
        bound = np.sqrt(6 / fan_in)
        assert np.abs(layers[name]).max() == pytest.approx(bound, rel=0.02)
        assert layers[name].std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    for name in ("conv1", "conv3", "fc2"):
        assert 0 <= layers[name].min() < 0.01 < 0.99 < layers[name].max() < 1
    four = draw(FOUR, "kaiming_uniform", keys[:1])[0]
    conv4, none = weights.split_layer(FOUR.layers[3], four[FOUR.slices[3]])
    assert none.shape == (0,)
    assert np.abs(conv4).max() == pytest.approx(np.sqrt(6 / 54), rel=0.1)


def test_layers_without_bias():
    spec = WeightSpec(
        (LayerSpec("a", "conv", (2, 3, 1, 2), bias=False), LayerSpec("b", "dense", (3, 4))), "tanh"
    )
    assert (spec.num_params, spec.layers[0].token_size) == (12 + 15, 6)
    vectors = np.arange(54, dtype=np.float32).reshape(2, 27)
    params = weights.unflatten(spec, vectors)
    assert set(params["a"]) == {"kernel"}
    np.testing.assert_array_equal(params["b"]["bias"], vectors[:, -3:])
    np.testing.assert_array_equal(weights.flatten(spec, params), vectors)
    block, none = weights.split_layer(spec.layers[0], vectors[:, :12])
    assert (block.shape, none.shape) == ((2, 2, 3, 1, 2), (2, 0))
    np.testing.assert_array_equal(weights.join_layer(block, none), vectors[:, :12])
    text = weights.to_json(spec)
    assert weights.from_json(text) == spec
    assert weights.from_json(text.replace(', "bias": true', "")) == spec  # as older files have it
    assert weights.from_json(text) != weights.from_json(
        text.replace('"bias": false', '"bias": true')
    )
    tokens = weights.tokenize(spec, vectors)
    assert [token.shape for token in tokens] == [(2, 2, 6), (2, 3, 5)]
    np.testing.assert_array_equal(weights.detokenize(spec, tokens), vectors)
    assert symmetry.input_blocks(spec) == ((1, 6), (2, 2))


# --- assignment ---------------------------------------------------------------------------


def test_rules_are_those_of_the_configuration():
    (field,) = (f for f in dataclasses.fields(EvaluationConfig) if f.name == "assign")
    assert set(field.metadata["choices"]) == set(variants.RULES)


@pytest.mark.parametrize("rule", variants.RULES)
def test_the_residual_network_is_the_zoo_cnn_if_its_skips_are_silent(rule):
    spec, zoo = spec_of("res_skip", activation="gelu"), zoo_cnn_spec(1, "gelu")
    vectors, random = random_vectors(zoo, 2), random_vectors(spec, 2, seed=1)
    images = np.random.default_rng(2).normal(size=(3, 28, 28, 1)).astype(np.float32)
    assigned = variants.assign(rule, zoo, spec, vectors, random)
    np.testing.assert_array_equal(assigned[:, 2464:], random[:, 2464:])
    silent = variants.assign(rule, zoo, spec, vectors, np.zeros_like(random))
    for vector, old in zip(silent, vectors, strict=True):
        ours = forward(variants.ResSkipCNN(spec), spec, vector, images)
        theirs = forward(Sequential(zoo), zoo, old, images)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_refill_is_in_order():
    vectors = random_vectors(ZOO, 2)
    filled = variants.assign("refill", ZOO, FOUR, vectors, random_vectors(FOUR, 2, seed=1))
    np.testing.assert_array_equal(filled, vectors)
    assert not np.shares_memory(filled, vectors)
    state = state_of(FOUR, filled[1])
    old = state_of(ZOO, vectors[1])
    np.testing.assert_array_equal(state["conv1"][0], old["conv1"][0])
    np.testing.assert_array_equal(state["conv2"][0], old["conv2"][0][:4])


def transplanted(channels=1, count=2):
    zoo, four = zoo_cnn_spec(channels, "tanh"), variants.four_conv_spec(channels)
    vectors, random = random_vectors(zoo, count), random_vectors(four, count, seed=1)
    found = variants.assign("transplant", zoo, four, vectors, random)
    states = [[state_of(spec, row) for row in rows]
              for spec, rows in ((zoo, vectors), (four, random), (four, found))]  # fmt: skip
    return list(zip(*states, strict=True))


def test_transplant_gives_every_layer_what_plays_its_role():
    """All of conv2, conv3, fc1 and fc2 by explicit loops, on networks that drop other neurons."""
    dropped = set()
    for old, random, new in transplanted(channels=3):
        filters = [np.linalg.norm(old["conv3"][0][:, i]) for i in range(6)]
        filters = sorted(sorted(range(6), key=lambda i: -filters[i])[:4])
        neurons = [np.linalg.norm(old["fc2"][0][:, i]) for i in range(20)]
        neurons = sorted(sorted(range(20), key=lambda i: -neurons[i])[:18])
        dropped.add((*filters, *neurons))
        for part in (0, 1):
            np.testing.assert_array_equal(new["conv1"][part], old["conv1"][part])
            np.testing.assert_array_equal(new["fc1"][part], old["fc1"][part][neurons])
        np.testing.assert_array_equal(new["conv2"][0], old["conv2"][0][filters])
        np.testing.assert_array_equal(new["fc2"][0], old["fc2"][0][:, neurons])
        np.testing.assert_array_equal(new["fc2"][1], old["fc2"][1])
        np.testing.assert_array_equal(new["conv3"][0][4:], random["conv3"][0][4:])
        for o, i, h, w in np.ndindex(4, 4, 4, 4):
            expected = old["conv3"][0][o, filters[i], h // 2, w // 2] / 4
            assert new["conv3"][0][o, i, h, w] == pytest.approx(expected, rel=1e-6)
        for o, i, h, w in np.ndindex(4, 6, 3, 3):
            assert new["conv4"][0][o, i, h, w] == (o == i and h == w == 1)
    assert len(dropped) == 2


def test_transplant_keeps_the_function_where_it_can():
    """Maps that do not vary in space, and neurons that do not count: only tanh stands between."""
    images = np.random.default_rng(3).normal(size=(5, 1, 1, 1)) * np.ones((1, 28, 28, 1))
    zoo = random_vectors(ZOO, 1)
    parts = variants._split(ZOO, zoo)
    parts["conv2"][1][:] = parts["conv3"][1][:] = 0  # biases without a place
    parts["conv3"][0][:, :, [1, 4]] = parts["fc2"][0][:, :, [0, 19]] = 0
    parts["conv3"][0][:] *= 0.02  # where tanh is linear
    four = variants.assign("transplant", ZOO, FOUR, zoo, random_vectors(FOUR, 1, seed=1))
    ours = forward(variants.FourConvCNN(FOUR), FOUR, four[0], images.astype(np.float32))
    theirs = forward(Sequential(ZOO), ZOO, zoo[0], images.astype(np.float32))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    shuffled = variants.shuffle(0, FOUR, four)
    other = forward(variants.FourConvCNN(FOUR), FOUR, shuffled[0], images.astype(np.float32))
    assert np.abs(other - theirs).max() > 0.1


def test_assignment_refuses():
    vectors, random = random_vectors(ZOO, 2), random_vectors(FOUR, 2)
    with pytest.raises(HyperJaxError, match=r"'copy'.*refill, transplant"):
        variants.assign("copy", ZOO, FOUR, vectors, random)
    other = WeightSpec((LayerSpec("fc", "dense", (10, 784)),), "tanh")
    with pytest.raises(HyperJaxError, match=r"no rule assigns weights of conv1.* to fc"):
        variants.assign("refill", ZOO, other, vectors, random)
    with pytest.raises(HyperJaxError, match="refill needs equal numbers of parameters"):
        variants.assign("refill", ZOO, variants.four_conv_spec(3), vectors, random)


def test_shuffling_keeps_every_layers_values():
    vectors = random_vectors(FOUR, 3)
    shuffled = variants.shuffle(0, FOUR, vectors)
    for before, after in zip(vectors, shuffled, strict=True):
        for old, new in zip(state_of(FOUR, before).values(), state_of(FOUR, after).values(),
                            strict=True):  # fmt: skip
            for a, b in zip(old, new, strict=True):
                np.testing.assert_array_equal(np.sort(a, axis=None), np.sort(b, axis=None))
    changed = np.mean(vectors != shuffled, axis=1)
    assert (changed > 0.9).all()
    moves = [np.argsort(row[208:1008])[np.argsort(np.argsort(v[208:1008]))]
             for row, v in zip(shuffled, vectors, strict=True)]  # fmt: skip
    assert not np.array_equal(moves[0], moves[1])  # each network in its own way
    np.testing.assert_array_equal(variants.shuffle(0, FOUR, vectors), shuffled)
    assert (variants.shuffle(1, FOUR, vectors) != shuffled).any()


# --- populations --------------------------------------------------------------------------


def test_a_population_of_another_architecture():
    """Initial weights, gradient along one direction, and training, by an engine of its own."""
    spec, training = spec_of("res_skip"), TrainingConfig(batch_size=8, learning_rate=1e-2)
    how = {"init": "torch_default", "model": variants.ResSkipCNN, "draw": variants.init_vector}
    engine = population.make_engine(spec, training, devices=jax.devices()[:1], **how)
    assert engine == population.make_engine(spec, training, devices=jax.devices()[:1], **how)
    rng, root = np.random.default_rng(0), jax.random.key(5)
    pixels = rng.integers(0, 256, (16, 28, 28, 1))
    images = population.place_images(engine, Images(pixels, rng.integers(0, 10, 16), [0.5], [0.3]))
    hyper = population.place_members(engine, population.hyper(np.arange(3), training))
    state = population.init(engine, root, hyper)
    key = engines.member_key(root, engines._INIT, 1)
    expected = variants.init_vector(spec, "torch_default", key)
    np.testing.assert_allclose(state.vectors[1], expected, atol=1e-7)

    vector, index = np.asarray(state.vectors[0], np.float64), np.arange(16)
    gradient_fn = jax.jit(engines.gradient, static_argnums=0)
    gradient, _ = gradient_fn(engine, state.vectors[0], images, index)
    direction = rng.normal(size=len(vector))
    pixels = ((np.asarray(images.pixels) / 255.0 - 0.5) / 0.3).transpose(0, 3, 1, 2)

    def loss(step):
        layers = state_of(spec, vector + step * direction)
        logits = np.array([logits_of("res_skip", layers, np.tanh, image) for image in pixels])
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return -logits[index, np.asarray(images.labels)].sum()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert np.asarray(gradient, np.float64) @ direction == pytest.approx(slope, rel=1e-3)
    losses = []
    for epoch in range(5):
        state, running = population.train_epoch(engine, state, hyper, images, root, np.int32(epoch))
        losses.append(np.asarray(running["loss"]))
    assert (losses[-1] < losses[0]).all()
