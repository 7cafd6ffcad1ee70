import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.weights import LayerSpec, WeightSpec

GOLDEN = Path(__file__).parent / "golden" / "zoo_cnn.npz"
TINY = WeightSpec((LayerSpec("a", "conv", (2, 3, 1, 2)), LayerSpec("b", "dense", (3, 4))), "tanh")

sizes = st.integers(1, 3)
convs = st.tuples(sizes, sizes, sizes, sizes).map(lambda shape: ("conv", shape))
denses = st.tuples(sizes, sizes).map(lambda shape: ("dense", shape))


@st.composite
def cases(draw):
    """Any chain of layers, and flat vectors of it with any leading axes."""
    kinds = draw(st.lists(convs | denses, min_size=1, max_size=3))
    layers = tuple(LayerSpec(f"l{9 - i}", *kind) for i, kind in enumerate(kinds))
    spec = WeightSpec(layers, "relu")
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return spec, rng.normal(size=(*lead, spec.num_params)).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(cases())
def test_round_trips_are_exact(case):
    spec, vectors = case
    params = weights.unflatten(spec, vectors)
    np.testing.assert_array_equal(weights.flatten(spec, params), vectors)
    tokens = weights.tokenize(spec, vectors)
    np.testing.assert_array_equal(weights.detokenize(spec, tokens), vectors)
    for layer, token in zip(spec.layers, tokens, strict=True):
        assert token.shape == (*vectors.shape[:-1], layer.num_neurons, layer.token_size)
        assert params[layer.name]["bias"].shape == (*vectors.shape[:-1], layer.num_neurons)
    assert weights.from_json(weights.to_json(spec)) == spec


def test_published_order_on_a_labelled_example():
    # every scalar carries its own address, so that a transposed axis cannot hide
    conv = np.fromfunction(lambda o, i, h, w: 1000 * o + 100 * i + 10 * h + w, (2, 3, 1, 2))
    conv_bias = np.array([7000.0, 7001.0])
    dense = np.fromfunction(lambda o, i: 9000 + 10 * o + i, (3, 4))
    dense_bias = np.array([9900.0, 9901.0, 9902.0])
    vector = np.concatenate([conv.ravel(), conv_bias, dense.ravel(), dense_bias])

    params = weights.unflatten(TINY, vector)
    assert params["a"]["kernel"].shape == (1, 2, 3, 2)  # height, width, in, out
    for o, i, w in np.ndindex(2, 3, 2):
        assert params["a"]["kernel"][0, w, i, o] == 1000 * o + 100 * i + w
    np.testing.assert_array_equal(params["a"]["bias"], conv_bias)
    np.testing.assert_array_equal(params["b"]["kernel"], dense.T)
    np.testing.assert_array_equal(params["b"]["bias"], dense_bias)

    first, second = weights.tokenize(TINY, vector)
    np.testing.assert_array_equal(first[1], [*conv[1].ravel(), 7001])
    np.testing.assert_array_equal(second[2], [*dense[2], 9902])
    np.testing.assert_array_equal(weights.layer_ids(TINY), [0] * 14 + [1] * 15)


@pytest.mark.parametrize("channels", [1, 3])
def test_order_is_that_of_a_torch_state_dict(channels):
    golden = np.load(GOLDEN)
    names = [f"{i}.{kind}" for i in (0, 3, 6, 9, 11) for kind in ("weight", "bias")]
    state = [golden[f"c{channels}/state/{name}"] for name in names]
    vector = np.concatenate([value.ravel() for value in state])
    np.testing.assert_array_equal(vector, golden[f"c{channels}/vector"])
    spec = zoo_cnn_spec(channels, "tanh")
    params = weights.unflatten(spec, vector)
    for layer, weight, bias in zip(spec.layers, state[::2], state[1::2], strict=True):
        order = (2, 3, 1, 0) if layer.kind == "conv" else (1, 0)
        np.testing.assert_array_equal(params[layer.name]["kernel"], weight.transpose(order))
        np.testing.assert_array_equal(params[layer.name]["bias"], bias)


def test_layout_is_that_of_the_published_zoos():
    spec = zoo_cnn_spec(1, "tanh")
    assert [part.start for part in spec.slices] == [0, 208, 1414, 1514, 2254]
    assert [layer.num_params for layer in spec.layers] == [208, 1206, 100, 740, 210]
    assert [layer.num_neurons for layer in spec.layers] == [8, 6, 4, 20, 10]
    assert [layer.token_size for layer in spec.layers] == [26, 201, 25, 37, 21]
    assert (spec.num_params, spec.num_tokens) == (2464, 48)
    colour = zoo_cnn_spec(3, "tanh")
    assert [part.start for part in colour.slices] == [0, 608, 1814, 1914, 2654]
    assert [layer.token_size for layer in colour.layers] == [76, 201, 25, 37, 21]
    assert (colour.num_params, colour.num_tokens) == (2864, 48)
    np.testing.assert_array_equal(
        weights.layer_ids(spec), np.repeat(range(5), [208, 1206, 100, 740, 210])
    )


def test_functions_are_traceable_with_a_static_spec():
    vectors = np.random.default_rng(0).normal(size=(3, TINY.num_params)).astype(np.float32)

    @jax.jit
    def round_trip(vectors):
        one = jax.vmap(lambda vector: weights.flatten(TINY, weights.unflatten(TINY, vector)))
        return one(vectors), weights.detokenize(TINY, weights.tokenize(TINY, vectors))

    for result in round_trip(vectors):
        np.testing.assert_array_equal(result, vectors)
    assert hash(TINY) == hash(weights.from_json(weights.to_json(TINY)))


def test_order_of_parameter_dictionary_does_not_matter():
    vector = np.arange(TINY.num_params, dtype=np.float32)
    params = weights.unflatten(TINY, vector)
    backwards = {k: dict(reversed(params[k].items())) for k in reversed(params)}
    np.testing.assert_array_equal(weights.flatten(TINY, backwards), vector)


def test_layer_std_on_the_published_check():
    spec = WeightSpec(
        (LayerSpec("first", "dense", (1, 2)), LayerSpec("second", "dense", (1, 1))), "tanh"
    )
    values = np.float32([[1, 2, 3, 10, 20], [2, 3, 5, 30, 10], [0, 1, 1, 5, 5]])
    std = weights.layer_std(spec, values)
    assert std.dtype == np.float32
    np.testing.assert_allclose(std, [1.5, 9.8319], rtol=1e-5)
    np.testing.assert_allclose(weights.layer_std(spec, values + 1e3), std, rtol=1e-5)
    same = np.concatenate([np.ones((3, 3)), values[:, 3:]], axis=1)
    np.testing.assert_allclose(weights.layer_std(spec, same), [1e-4, 9.8319], rtol=1e-5)


def test_layer_std_of_members_block_by_block(monkeypatch):
    monkeypatch.setattr(weights, "_BLOCK_BYTES", 3 * 2 * TINY.num_params * 4)
    rng = np.random.default_rng(0)
    values = np.float32(rng.normal(5, 2, (10, 2, TINY.num_params)))
    expected = [np.std(np.float64(values[..., part]), ddof=1) for part in TINY.slices]
    np.testing.assert_allclose(weights.layer_std(TINY, values), expected, rtol=1e-6)


def test_errors():
    with pytest.raises(HyperJaxError, match=r"have 28 values.* has 29"):
        weights.unflatten(TINY, np.zeros((2, 28)))
    with pytest.raises(HyperJaxError, match="29"):
        weights.tokenize(TINY, np.zeros(30))
    with pytest.raises(HyperJaxError, match="29"):
        weights.layer_std(TINY, np.zeros((2, 30)))
    with pytest.raises(HyperJaxError, match="empty"):
        weights.layer_std(TINY, np.zeros((0, 29)))
    with pytest.raises(HyperJaxError, match=r"layer 'x'.*'conv' with 4 axes"):
        LayerSpec("x", "conv", (2, 3))
    with pytest.raises(HyperJaxError, match="pool"):
        LayerSpec("x", "pool", (2, 3))
    with pytest.raises(HyperJaxError, match=r"layers \(\); expected one or more"):
        WeightSpec((), "tanh")
    with pytest.raises(HyperJaxError, match=r"layers \('b', 'b'\); .* a name of its own"):
        WeightSpec(TINY.layers[1:] * 2, "tanh")


@pytest.mark.parametrize("damage", ["layer", "bias", "kernel shape", "kernel axes", "bias shape"])
def test_flatten_names_the_layer_that_is_wrong(damage):
    params = weights.unflatten(TINY, jnp.zeros(29))
    if damage == "layer":
        del params["b"]
    elif damage == "bias":
        del params["b"]["bias"]
    elif damage == "kernel shape":
        params["b"]["kernel"] = params["b"]["kernel"].T
    elif damage == "kernel axes":
        params["b"]["kernel"] = jnp.zeros(12)
    else:
        params["b"]["bias"] = jnp.zeros(4)
    with pytest.raises(HyperJaxError, match=r"\bb\b"):
        weights.flatten(TINY, params)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"layers": 3, "activation": "tanh"}',
     '{"layers": [{}], "activation": "tanh"}', '{"layers": [], "activation": "tanh"}',
     json.dumps({"layers": [{"name": "a", "kind": "conv", "shape": [1]}], "activation": "tanh"})],
)  # fmt: skip
def test_from_json_refuses_what_is_no_spec(text):
    with pytest.raises(HyperJaxError):
        weights.from_json(text)
