"""From tensors to an architecture, and from an architecture to vectors and back."""

import jax
import numpy as np
import pytest
from exchange_cases import CNN, DROPOUT, MLP, PLAIN, TORCH, UNTERTHINER, zoo_of
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperjax as hj
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import state_dict, torch_file
from hyperjax.models import architectures, sequential
from hyperjax.models.architectures import architecture
from hyperjax.weights import LayerSpec

CNN3 = architecture("cnn3", channels=3, activation="gelu", image_size=(32, 32))


def state_of(spec, names=None):
    """A state dict, in PyTorch's order."""
    layout = state_dict.default_layout(spec)
    layout = layout._replace(names=names) if names else layout
    return layout, state_dict.to_state(layout, zoo_of(spec, 1).weights[0, -1])


@pytest.mark.parametrize("spec", [CNN, CNN3, UNTERTHINER, MLP], ids=lambda s: str(s.num_params))
def test_the_known_architectures_are_recognised(spec):
    _, state = state_of(spec)
    known = {"activation": spec.activation, "image_size": spec.image_size}
    assert hj.spec_of(state, **known).spec == spec
    if spec is not MLP:  # whose images could have any shape
        found = hj.spec_of(state, activation=spec.activation)
        assert found.spec == spec
        assert "that it is the architecture" in found.assumed[0]


def test_flax_parameters_are_recognised_too():
    params = hj.unflatten(CNN, zoo_of(CNN, 1).weights[0, 0])
    assert hj.spec_of(params, activation="tanh").spec == CNN
    with pytest.raises(HyperJaxError, match="'scale' have no kernel"):
        hj.spec_of({"scale": {"bias": np.zeros(2)}}, activation="tanh")


@pytest.mark.parametrize("name", ["cnn", "cnn_dropout"])
def test_indices_of_the_published_zoos(name):
    """With dropout they are others, and no layer is lost."""
    state = torch_file.read(TORCH / f"{name}.pt")
    layout = hj.spec_of(state, activation="tanh")
    assert layout.spec == CNN
    assert layout.names == {"cnn": PLAIN, "cnn_dropout": DROPOUT}[name]
    vector = state_dict.to_vector(layout, state)
    expected = np.concatenate([np.ravel(state[n]) for names in layout.names for n in names])
    np.testing.assert_array_equal(vector, expected)
    again = state_dict.to_state(layout, vector)
    assert all((again[n] == state[n]).all() for n in state)


def test_layers_are_in_the_order_of_their_numbers():
    """Not of the text, in which 11 comes before 3; names without numbers stay as they stand."""
    _, state = state_of(CNN, PLAIN)
    shuffled = dict(sorted(state.items()))
    assert list(shuffled) != list(state)
    assert hj.spec_of(shuffled, activation="tanh").names == PLAIN
    names = tuple((f"{n}.weight", f"{n}.bias") for n in ("stem", "body", "neck", "hidden", "head"))
    _, state = state_of(CNN, names)
    assert hj.spec_of(state, activation="tanh").names == names


def test_pooling_is_tried_until_the_dense_layer_fits():
    layers = (
        LayerSpec("conv1", "conv", (4, 1, 3, 3), pool="max"),
        LayerSpec("conv2", "conv", (6, 4, 3, 3)),
        LayerSpec("fc1", "dense", (3, 6 * 4 * 5), bias=False),
    )
    spec = hj.WeightSpec(layers, "relu", (14, 16))
    found = hj.spec_of(state_of(spec)[1], activation="relu", image_size=(14, 16))
    assert found.spec == spec
    assert "max-pooling after ['conv1']" in found.assumed[-1]
    with pytest.raises(HyperJaxError, match=r"no sequence of valid convolutions.*name the archi"):
        hj.spec_of(state_of(spec)[1], activation="relu", image_size=(15, 19))


def convolutions(windows, inputs, channels=2):
    """Layers of a state dict; windows of one channel or two in, two out."""
    shapes = [(channels, 1 if not i else channels, *w) for i, w in enumerate(windows)]
    return {f"{i}.weight": np.zeros(s) for i, s in enumerate([*shapes, (3, inputs)])}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6),
    st.tuples(st.integers(8, 17), st.integers(8, 17)),
    st.integers(0, 63),
)
def test_pooling_is_what_trying_every_way_finds(windows, size, drawn):
    """Last convolutions first, counting up which are not pooled."""

    def spec(way):
        layers = [
            LayerSpec(f"conv{i + 1}", "conv", (2, 1 if not i else 2, *w), bias=False,
                      pool="" if way >> i & 1 else "max")
            for i, w in enumerate(windows)
        ]  # fmt: skip
        head = LayerSpec("fc1", "dense", (3, inputs), bias=False)
        return hj.WeightSpec((*layers, head), "relu", size)

    rows, columns = size
    for i, (down, across) in enumerate(windows):
        rows, columns = rows - down + 1, columns - across + 1
        if not drawn >> i & 1:
            rows, columns = rows // 2, columns // 2
    inputs = max(1, 2 * rows * columns)
    expected = None
    for way in range(2 ** len(windows)):
        try:
            sequential.output_sizes(spec(way))
        except HyperJaxError:
            continue
        expected = spec(way)
        break
    known = {"activation": "relu", "image_size": size}
    if expected is None:
        with pytest.raises(HyperJaxError, match="no sequence of valid convolutions"):
            hj.spec_of(convolutions(windows, inputs), **known)
    else:
        assert hj.spec_of(convolutions(windows, inputs), **known).spec == expected


def test_many_convolutions_take_no_longer():
    """2^40 ways, of which trying each would take years."""
    state = convolutions([(1, 1)] * 40, 2 * 7 * 7)
    found = hj.spec_of(state, activation="relu", image_size=(28, 28)).spec
    assert [layer.name for layer in found.layers if layer.pool] == ["conv39", "conv40"]


def test_what_is_no_sequence_is_named():
    _, state = state_of(MLP)
    for more, message in (
        ({"norm.weight": np.zeros(5)}, r"norm\.weight \[5\] has 1 axes"),
        (
            {"n.weight": np.zeros(9), "n.bias": np.zeros(9)},
            r"n\.weight \[9\] is a normalisation of no",
        ),
        ({"scale": np.zeros(5)}, "belong to no layer: scale"),
        ({"a.weight": np.zeros((2, 3, 4))}, r"a\.weight .* has 3 axes"),
        ({"fc1.bias": np.zeros(4)}, r"fc1\.bias \[4\]; expected \[5\]"),
    ):
        with pytest.raises(HyperJaxError, match=message):
            hj.spec_of(state | more, activation="relu")
    with pytest.raises(HyperJaxError, match="5x12, 3x5 are no cnn3 for images of 28 x 28 or"):
        hj.spec_of(state, activation="relu", model="cnn3")
    with pytest.raises(HyperJaxError, match="unknown architecture 'vgg'"):
        hj.spec_of(state, activation="relu", model="vgg")


def test_normalisations_find_their_layers():
    """By their numbers, whatever the order; by their place else; with running statistics or not."""
    shapes = {
        "conv1.weight": (4, 1, 3, 3), "conv2.weight": (4, 4, 3, 3), "conv2.bias": (4,),
        "bn1.weight": (4,), "bn1.bias": (4,), "bn1.running_mean": (4,), "bn1.running_var": (4,),
        "bn2.weight": (4,), "bn2.bias": (4,), "fc.weight": (3, 64), "fc.bias": (3,),
        "norm.weight": (3,), "norm.bias": (3,),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    state = {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}
    layout = hj.spec_of(state, activation="relu", image_size=(14, 14))
    assert [layer.norm for layer in layout.spec.layers] == ["batch", "group", "group"]
    assert layout.names[0] == (
        "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"
    )  # fmt: skip
    assert layout.names[1][2:] == ("bn2.weight", "bn2.bias")
    again = state_dict.to_state(layout, state_dict.to_vector(layout, state))
    assert all((again[name] == state[name]).all() for name in state)
    numbered = {f"net.{i}.{part}": np.zeros(shape) for i, part, shape in (
        (1, "weight", (6, 12)), (1, "bias", (6,)), (2, "weight", (6,)), (2, "bias", (6,)),
        (4, "weight", (3, 6)),
    )}  # fmt: skip
    layout = hj.spec_of(numbered, activation="relu", image_size=(4, 3))
    assert [layer.norm for layer in layout.spec.layers] == ["group", ""]


def test_normalised_networks_of_ours_are_recognised():
    """From Flax parameters, and from the names that they are exported under."""
    layers = (
        LayerSpec("conv1", "conv", (4, 1, 3, 3), bias=False, norm="batch"),
        LayerSpec("conv2", "conv", (4, 4, 3, 3), norm="group"),
        LayerSpec("fc1", "dense", (3, 64), norm="batch"),
    )
    spec = hj.WeightSpec(layers, "relu", (8, 8))
    layout, state = state_of(spec)
    vector = state_dict.to_vector(layout, state)
    for tensors in (state, hj.unflatten(spec, vector)):
        found = hj.spec_of(tensors, activation="relu", image_size=(8, 8))
        assert found.spec == spec
    assert found.names == layout.names


def test_vectors_of_other_networks_are_refused_by_tensor():
    layout, state = state_of(MLP)
    for changed, message in (
        ({n: x for n, x in state.items() if n != "fc2.bias"}, r"lacks fc2\.bias"),
        (state | {"more": np.zeros(1)}, "also has more"),
        (state | {"fc1.weight": np.zeros((5, 11))}, r"fc1\.weight .*\[5, 11\]; expected \[5, 12\]"),
    ):
        with pytest.raises(HyperJaxError, match=message):
            state_dict.to_vector(layout, changed)


def test_what_holds_no_state_dict():
    for found, message in (
        ([1], "no state dict, but a list"), ({}, "no tensors"), ({"state_dict": {}}, "no tensors"),
        ({"epoch": 3}, "no tensors"), ({"model": {"net": 4}}, "no tensors"),
    ):  # fmt: skip
        with pytest.raises(HyperJaxError, match=message):
            state_dict.unwrapped(found)


def test_an_inferred_network_computes_what_torch_computes():
    """Golden logits of PyTorch's own module."""
    import json

    expected = json.loads((TORCH / "expected.json").read_text())["logits"]
    state = torch_file.read(TORCH / "plain.pt")
    layout = hj.spec_of(state, activation="relu", image_size=(4, 3))
    images = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 4, 3, 1)
    logits = hj.network(layout.spec).apply(state_dict.to_vector(layout, state), images)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert isinstance(logits, jax.Array)
    assert layout.spec.layers == architectures.mlp_spec(1, "relu", (4, 3), 3, (5,)).layers
