import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from hyperjax import weights
from hyperjax.config import ZooConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models import initialise, sequential
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.sequential import Sequential

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "zoo_cnn.npz")
CHOICES = {f.name: f.metadata.get("choices") for f in dataclasses.fields(ZooConfig)}
ACTIVATIONS, INITS = CHOICES["activation"], CHOICES["init"]
FAN_IN = {"conv1": 25, "conv2": 200, "conv3": 24, "fc1": 36, "fc2": 20}
FAN_OUT = {"conv1": 200, "conv2": 150, "conv3": 16, "fc1": 20, "fc2": 10}


@pytest.mark.parametrize("form", ["patches", "xla"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_equal_those_of_torch(channels, activation, form):
    spec = zoo_cnn_spec(channels, activation)
    params, model = weights.unflatten(spec, GOLDEN[f"c{channels}/vector"]), Sequential(spec, form)
    logits = model.apply({"params": params}, GOLDEN[f"c{channels}/images"])
    expected = GOLDEN[f"c{channels}/logits/{activation}"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    # the golden tells the activations apart
    others = [GOLDEN[f"c{channels}/logits/{name}"] for name in ACTIVATIONS]
    assert sum(np.allclose(logits, other, atol=1e-4) for other in others) == 1


@pytest.fixture(scope="module")
def kernels():
    """Initial kernels of 20 members, by initialisation and layer: float32[20, ...]."""
    spec, keys = zoo_cnn_spec(1, "tanh"), jax.random.split(jax.random.key(0), 20)
    drawn = {
        name: jax.vmap(lambda key, name=name: initialise.init_vector(spec, name, key))(keys)
        for name in INITS
    }
    return {
        name: {
            layer: np.asarray(params["kernel"])
            for layer, params in weights.unflatten(spec, vectors).items()
        }
        for name, vectors in drawn.items()
    }


def test_every_bias_starts_at_a_hundredth():
    spec = zoo_cnn_spec(3, "tanh")
    params = weights.unflatten(spec, initialise.init_vector(spec, "normal", jax.random.key(1)))
    for layer in spec.names:
        np.testing.assert_array_equal(params[layer]["bias"], np.float32(0.01))


@pytest.mark.parametrize("layer", FAN_IN)
@pytest.mark.parametrize("name", INITS)
def test_initial_kernels_have_their_published_distribution(kernels, name, layer):
    fans = FAN_IN[layer] + FAN_OUT[layer]
    low, high, std = {
        "uniform": (0, 1, None),
        "kaiming_uniform": (-np.sqrt(6 / FAN_IN[layer]), np.sqrt(6 / FAN_IN[layer]), None),
        "xavier_uniform": (-np.sqrt(6 / fans), np.sqrt(6 / fans), None),
        "torch_default": (-1 / np.sqrt(FAN_IN[layer]), 1 / np.sqrt(FAN_IN[layer]), None),
        "normal": (-np.inf, np.inf, 1),
        "kaiming_normal": (-np.inf, np.inf, np.sqrt(2 / FAN_IN[layer])),
        "xavier_normal": (-np.inf, np.inf, np.sqrt(2 / fans)),
    }[name]
    values = kernels[name][layer].ravel()
    if std is None:
        assert low * (1 + 1e-6) <= values.min() < values.max() <= high * (1 + 1e-6)
        assert values.min() < low + 0.02 * (high - low)
        assert values.max() > high - 0.02 * (high - low)
        centre, std = (low + high) / 2, (high - low) / np.sqrt(12)
        assert values.mean() == pytest.approx(centre, abs=5 * std / np.sqrt(values.size))
    else:
        assert np.abs(values).max() > 2.5 * std  # not truncated at two
        assert values.mean() == pytest.approx(0, abs=5 * std / np.sqrt(values.size))
    assert values.std() == pytest.approx(std, rel=6 / np.sqrt(values.size))


def test_uniform_never_reaches_one(kernels):
    assert max(layer.max() for layer in kernels["uniform"].values()) < 1


def test_unknown_names():
    with pytest.raises(HyperJaxError, match=r"activation 'softsign'.*gelu.*tanh"):
        zoo_cnn_spec(1, "softsign")
    with pytest.raises(HyperJaxError, match=r"initialisation 'zeros'.*kaiming_uniform"):
        initialise.init_vector(zoo_cnn_spec(1, "tanh"), "zeros", jax.random.key(0))
    assert set(sequential._ACTIVATIONS) == set(ACTIVATIONS)
    assert set(initialise._INITS) == set(INITS)
