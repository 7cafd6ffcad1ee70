"""Sequential networks against loops over their definition, and architectures by name."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

import hyperjax as hj
from hyperjax import symmetry, weights
from hyperjax.config import TrainingConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models import architectures, conv, sequential
from hyperjax.models.sequential import Sequential
from hyperjax.population.repair import fit_repair, preactivations, repair
from hyperjax.types import Images
from hyperjax.weights import LayerSpec, WeightSpec

MEAN = {"pool": "mean", "window": 0, "pool_last": True}
SPECS = {
    "strides": WeightSpec(
        (
            LayerSpec("a", "conv", (4, 2, 3, 3), stride=2, padding=1),
            LayerSpec("b", "conv", (5, 4, 2, 3), bias=False, **MEAN),
            LayerSpec("out", "dense", (3, 5)),
        ),
        "tanh",
        (9, 11),
    ),
    "pools": WeightSpec(
        (
            LayerSpec("a", "conv", (4, 1, 3, 3), pool="max", window=3),
            LayerSpec("b", "conv", (3, 4, 2, 2), pool="max", pool_last=True, bias=False),
            LayerSpec("c", "dense", (6, 12), bias=False),
            LayerSpec("out", "dense", (4, 6)),
        ),
        "gelu",
        (17, 18),
    ),
    "means": WeightSpec(
        (
            LayerSpec("a", "conv", (3, 1, 1, 1), pool="mean"),
            LayerSpec("b", "conv", (2, 3, 3, 2), padding=2, pool="max", window=0),
            LayerSpec("out", "dense", (4, 2), bias=False),
        ),
        "tanh",
        (6, 5),
    ),
    "batch": WeightSpec(
        (
            LayerSpec("a", "conv", (4, 1, 3, 3), bias=False, norm="batch", pool="max"),
            LayerSpec("b", "conv", (4, 4, 2, 2), norm="batch", stride=2),
            LayerSpec("c", "dense", (5, 4), norm="batch"),
            LayerSpec("out", "dense", (4, 5)),
        ),
        "relu",
        (8, 9),
    ),
    "group": WeightSpec(
        (
            LayerSpec("a", "conv", (6, 1, 3, 3), norm="group", groups=6),
            LayerSpec("b", "conv", (4, 6, 2, 2), bias=False, norm="group", pool="mean"),
            LayerSpec("c", "dense", (5, 24), norm="group"),
            LayerSpec("out", "dense", (4, 5)),
        ),
        "tanh",
        (7, 9),
    ),
    "mlp": architectures.mlp_spec(2, "relu", (3, 4), 5, widths=(7, 6)),
}
ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
}


def vectors_of(spec, count, seed=0):
    rng = np.random.default_rng(seed)
    vectors = (0.5 * rng.standard_normal((count, spec.num_params))).astype(np.float32)
    for layer, part in zip(spec.layers, spec.slices, strict=True):
        for number, name in enumerate(layer.values):
            begin = part.start + layer.num_weights + number * layer.num_neurons
            values = vectors[:, begin : begin + layer.num_neurons]
            values += name == "scale"
            values[:] = np.abs(values) + 0.5 if name == "var" else values
    return vectors


def images_of(spec, count, seed=1):
    shape = (count, *spec.image_size, spec.channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pooled(layer, x):
    down, across = (layer.window, layer.window) if layer.window else x.shape[1:]
    of = np.max if layer.pool == "max" else np.mean
    rows = range(0, x.shape[1] - down + 1, down)
    columns = range(0, x.shape[2] - across + 1, across)
    return np.array(
        [[[of(c[i : i + down, j : j + across]) for j in columns] for i in rows] for c in x]
    )


def logits_of(spec, vector, image):
    """One image through one network, in float64, from the layout that `weights` documents."""
    act, x, at = ACTIVATIONS[spec.activation], image.transpose(2, 0, 1).astype(np.float64), 0
    for layer in spec.layers:
        size, neurons = math.prod(layer.shape), layer.shape[0]
        kernel = vector[at : at + size].reshape(layer.shape).astype(np.float64)
        at, values = at + size, {"bias": np.zeros(neurons)}
        for name in layer.values:
            values[name] = vector[at : at + neurons].astype(np.float64)
            at += neurons
        bias = values["bias"]
        if layer.kind == "dense":
            z = kernel @ x.ravel() + bias
        else:
            p = layer.padding
            x = np.pad(x, ((0, 0), (p, p), (p, p)))
            z = np.stack([correlate(x, filter_, mode="valid")[0] for filter_ in kernel])
            z = z[:, :: layer.stride, :: layer.stride] + np.reshape(bias, (-1, 1, 1))
        z = normalised(layer, values, z)
        if layer is spec.layers[-1]:
            assert at == len(vector)
            return z
        z = pooled(layer, z) if layer.pool and not layer.pool_last else z
        x = act(z)
        x = pooled(layer, x) if layer.pool and layer.pool_last else x


def normalised(layer, values, z):
    """As PyTorch's BatchNorm in evaluation mode, and GroupNorm."""
    if not layer.norm:
        return z
    shape = (-1, *[1] * (z.ndim - 1))
    mean, var = (values.get(n, np.zeros(len(z))).reshape(shape) for n in ("mean", "var"))
    scale, shift = (values[name].reshape(shape) for name in ("scale", "shift"))
    if layer.norm == "batch":
        z = (z - mean) / np.sqrt(var + 1e-5)
    else:
        groups = z.reshape(layer.groups, -1)
        groups = groups - groups.mean(1, keepdims=True)
        z = (groups / np.sqrt((groups**2).mean(1, keepdims=True) + 1e-5)).reshape(z.shape)
    return scale * z + shift


@pytest.mark.parametrize("form", ["tiles", "xla"])
@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_those_of_loops(name, form):
    spec = SPECS[name]
    (vector,), images = vectors_of(spec, 1), images_of(spec, 3)
    params = weights.unflatten(spec, vector)
    logits = Sequential(spec, form).apply({"params": params}, images)
    expected = [logits_of(spec, vector, image) for image in images]
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert np.std(expected, axis=0).min() > 1e-3
    np.testing.assert_array_equal(weights.flatten(spec, params), vector)


@pytest.mark.parametrize("name", SPECS)
def test_symmetries_leave_the_function_unchanged(name):
    """Permutations; signs where a layer is odd and no maximum follows; scales of ReLUs."""
    spec = SPECS[name]
    (vector,), images = vectors_of(spec, 1), images_of(spec, 3)
    transform = symmetry.random_transform(jax.random.key(3), spec, scale=0.5)
    moved = symmetry.apply(spec, transform, vector)
    assert np.mean(np.isclose(moved, vector)) < 0.5
    net = hj.network(spec)
    np.testing.assert_allclose(net.apply(moved, images), net.apply(vector, images), atol=1e-4)
    signs = {"strides": (True, True), "means": (True, False)}
    assert symmetry.sign_symmetric(spec) == signs.get(name, (False,) * (len(spec.layers) - 1))


@pytest.mark.parametrize("name", SPECS)
def test_tokens_and_alignment_without_biases(name):
    spec = SPECS[name]
    vectors = vectors_of(spec, 3)
    tokens = weights.tokenize(spec, vectors)
    assert [t.shape[1:] for t in tokens] == [(x.num_neurons, x.token_size) for x in spec.layers]
    np.testing.assert_array_equal(weights.detokenize(spec, tokens), vectors)
    transform = symmetry.random_transform(jax.random.key(3), spec)
    moved = symmetry.apply(spec, transform, vectors)
    aligned, _ = symmetry.alignment.align(spec, moved, vectors[0])
    np.testing.assert_allclose(aligned[0], vectors[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "channels", "size", "count"),
    [
        ("cnn", 1, 28, 2464), ("cnn", 3, 28, 2864), ("cnn3", 3, 32, 10_853),
        ("unterthiner", 1, 28, 4970), ("mlp", 1, 28, 25_450),
    ],
)  # fmt: skip
def test_the_published_architectures_have_their_sizes(name, channels, size, count):
    spec = hj.architecture(name, channels=channels, activation="relu", image_size=(size, size))
    assert (spec.num_params, spec.channels, spec.num_classes) == (count, channels, 10)
    logits = hj.network(spec).apply(vectors_of(spec, 1)[0], images_of(spec, 2))
    assert logits.shape == (2, 10)


def test_an_mlp_may_have_no_hidden_layers():
    spec = hj.architecture("mlp", channels=1, activation="relu", image_size=(28, 28), widths=())
    assert [layer.shape for layer in spec.layers] == [(10, 784)]
    vector, images = vectors_of(spec, 1)[0], images_of(spec, 2)
    assert hj.network(spec).apply(vector, images).shape == (2, 10)


def own(channels, activation, image_size, classes):
    """An architecture of a user's own."""
    return architectures.mlp_spec(channels, activation, image_size, classes, widths=(3,))


def test_an_architecture_of_ones_own():
    known = {"channels": 2, "activation": "silu", "image_size": (2, 3), "classes": 4}
    spec = hj.architecture(f"{__name__}:own", **known)
    assert spec.layers[0].shape == (3, 12)
    assert (spec.activation, spec.num_classes) == ("silu", 4)
    for name, message in (
        ("vgg", r"architecture .vgg.; there is: cnn, cnn3, mlp, module:function, unterthiner"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        (":f", "architecture :f: .* expected module:function"),
        (".m:f", r"architecture \.m:f: .* expected module:function"),
        (f"{__name__}:gone", "has no attribute 'gone'"),
        (f"{__name__}:vectors_of", "returned a|takes"),
    ):
        with pytest.raises(HyperJaxError, match=message):
            hj.architecture(name, **known)
    with pytest.raises(HyperJaxError, match="for 2 channels and 4 classes; the images have 3"):
        architectures.checked("x:y", spec, channels=3, classes=4)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"shape": (4, 2, 12, 3)}, "layer 'a' .* has no outputs, for its inputs have 9 x 11"),
        (1, {"shape": (5, 3, 2, 3)}, "layer 'b' .* would get 4 channels"),
        (1, {"window": 9}, "layer 'b' .* has no outputs"),
        (2, {"shape": (3, 6)}, "layer 'out' .* would get 5 inputs"),
        (2, {"kind": "conv", "shape": (3, 5, 1, 1)}, "layer 'out' .* has to be dense"),
    ],
)
def test_layers_that_do_not_fit_are_named(number, change, message):
    layers = list(SPECS["strides"].layers)
    layers[number] = dataclasses.replace(layers[number], **change)
    with pytest.raises(HyperJaxError, match=message):
        sequential.output_sizes(WeightSpec(tuple(layers), "tanh", (9, 11)))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "dense", "shape": (3, 4), "stride": 2}, {"kind": "dense", "shape": (3, 4, 1)},
        {"kind": "conv", "shape": (3, 4, 1, 1), "pool": "median"},
        {"kind": "conv", "shape": (3, 4, 1, 1), "stride": 0},
        {"kind": "conv", "shape": (3, 4, 1, 1), "window": -1, "pool": "max"},
        {"kind": "conv", "shape": (3, 0, 1, 1)}, {"kind": "pool", "shape": (3, 4)},
    ],
)  # fmt: skip
def test_layers_that_there_are_not(fields):
    with pytest.raises(HyperJaxError, match="'odd'"):
        LayerSpec("odd", **fields)


def test_neurons_in_groups_cannot_be_permuted():
    hidden = LayerSpec("a", "dense", (6, 4), norm="group", groups=3)
    spec = WeightSpec((hidden, LayerSpec("out", "dense", (2, 6))), "relu", (2, 2))
    with pytest.raises(HyperJaxError, match="'a' is normalised in 3 groups"):
        symmetry.input_blocks(spec)
    with pytest.raises(HyperJaxError, match="'a': 6 neurons in 4 groups"):
        LayerSpec("a", "dense", (6, 4), norm="group", groups=4)


def test_training_leaves_running_statistics_as_they_are():
    """Weight decay too; all else moves."""
    spec = SPECS["batch"]
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 9, 1), np.uint8)
    images = Images(pixels, np.arange(12) % 4, np.float32([0.5]), np.float32([0.3]))
    training = TrainingConfig(optimizer="adamw", weight_decay=0.1, learning_rate=0.01, batch_size=4)
    start = vectors_of(spec, 2)
    tuned = hj.finetune(start, images, training, epochs=1, key=jax.random.key(0), spec=spec)
    before, after = (weights.unflatten(spec, v) for v in (start, tuned.weights[:, -1]))
    for layer in ("a", "b", "c"):
        for name in ("mean", "var"):
            np.testing.assert_array_equal(before[layer][name], after[layer][name])
        for name in ("kernel", "scale", "shift"):
            assert np.abs(before[layer][name] - after[layer][name]).min() > 0


def test_a_variance_below_zero_is_none():
    """Of a network that was drawn."""
    spec = SPECS["batch"]
    none, below = (weights.unflatten(spec, vectors_of(spec, 1)[0]) for _ in range(2))
    none["a"]["var"], below["a"]["var"] = np.zeros(4, np.float32), np.full(4, -0.1, np.float32)
    outputs = [
        Sequential(spec, "xla").apply({"params": params}, images_of(spec, 5))
        for params in (none, below)
    ]
    assert np.isfinite(outputs[0]).all()
    np.testing.assert_array_equal(*outputs)


def test_repair_of_normalised_networks():
    """By their scales and shifts alone: neurons have the moments of members afterwards."""
    spec = SPECS["batch"]
    inputs, vectors = images_of(spec, 40), vectors_of(spec, 6)
    fitted = fit_repair(spec, vectors, inputs)
    start = vectors[0] + 0.1 * vectors_of(spec, 1, seed=9)[0]
    repaired = np.asarray(repair(spec, fitted, start[None])[0])
    close = []
    for z, mean, std in zip(
        preactivations(spec, repaired, inputs), fitted.means, fitted.stds, strict=True
    ):
        rows = tuple(range(1, z.ndim))
        np.testing.assert_allclose(z.mean(rows), mean, atol=1e-3)
        close.append(np.abs(np.asarray(z).std(rows) / np.asarray(std) - 1) < 1e-2)
    assert np.concatenate(close).mean() > 0.8  # where the scale was not clipped
    before, after = (weights.unflatten(spec, vector) for vector in (start, repaired))
    for layer in ("a", "b", "c"):
        for name, value in before[layer].items():
            assert np.array_equal(value, after[layer][name]) == (name not in ("scale", "shift"))


@pytest.mark.parametrize("name", SPECS)
def test_specs_survive_a_file(name):
    spec = SPECS[name]
    assert weights.from_json(weights.to_json(spec)) == spec


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU backend")
@pytest.mark.parametrize("once", [True, False])
def test_activations_are_computed_once_not_for_every_window(once, monkeypatch):
    if not once:  # what it is there for: without it, the check below fails
        monkeypatch.setattr(conv, "computed_once", lambda x: x)
    spec = architectures.architecture("cnn3", channels=3, image_size=(32, 32), activation="tanh")
    net = Sequential(spec, "tiles")
    images = jnp.zeros((32, 32, 32, 3))
    params = net.init(jax.random.key(0), images)
    text = jax.jit(net.apply).lower(params, images).compile().as_text()
    joined = [part for part in text.split("\n\n") if "tanh(" in part and "concatenate(" in part]
    assert bool(joined) != once
