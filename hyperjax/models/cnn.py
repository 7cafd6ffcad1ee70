"""The zoo CNN: three convolutions and two dense layers for 28 x 28 images.

conv 5x5 -> pool -> act, conv 5x5 -> pool -> act, conv 2x2 -> act, flatten (channel-major),
dense 20 -> act, dense 10. 2464 parameters for one input channel, 2864 for three.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import zeros

from hyperjax import weights
from hyperjax.errors import unknown
from hyperjax.models import conv
from hyperjax.types import Array, Key
from hyperjax.weights import LayerSpec, WeightSpec

IMAGE_SIZE = 28
NUM_CLASSES = 10
BIAS = 0.01  # every bias of the published zoos starts here

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leakyrelu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}

# Variance of a weight, from the neuron's fan-in and the layer's fan-out, and its distribution.
_INITS: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "uniform": ("unit", lambda fan_in, fan_out: 1.0),  # U[0, 1), the paper's wide start
    "normal": ("normal", lambda fan_in, fan_out: 1.0),
    "kaiming_uniform": ("uniform", lambda fan_in, fan_out: 2 / fan_in),
    "kaiming_normal": ("normal", lambda fan_in, fan_out: 2 / fan_in),
    "xavier_uniform": ("uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "xavier_normal": ("normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    # PyTorch's own default, U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    "torch_default": ("uniform", lambda fan_in, fan_out: 1 / (3 * fan_in)),
}


def activation_fn(name: str) -> Callable[[Array], Array]:
    if name not in _ACTIVATIONS:
        raise unknown("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def zoo_cnn_spec(in_channels: int, activation: str) -> WeightSpec:
    """Layout of the zoo CNN's weights."""
    activation_fn(activation)
    layers = (
        LayerSpec("conv1", "conv", (8, in_channels, 5, 5), pooled=True),
        LayerSpec("conv2", "conv", (6, 8, 5, 5), pooled=True),
        LayerSpec("conv3", "conv", (4, 6, 2, 2)),
        LayerSpec("fc1", "dense", (20, 36)),
        LayerSpec("fc2", "dense", (NUM_CLASSES, 20)),
    )
    return WeightSpec(layers=layers, activation=activation)


def init_vector(spec: WeightSpec, name: str, key: Key) -> Array:
    """Initial weights of one network as a flat vector, float32[D]; every bias is 0.01.

    One draw for all layers: XLA takes many times longer to compile one per layer.
    """
    if name not in _INITS:
        raise unknown("initialisation", name, _INITS)
    distribution, variance = _INITS[name]
    if distribution == "normal":
        draws = jax.random.normal(key, (spec.num_params,))
    elif distribution == "uniform":  # of variance one
        draws = jax.random.uniform(key, (spec.num_params,), minval=-1, maxval=1) * math.sqrt(3)
    else:
        draws = jax.random.uniform(key, (spec.num_params,))
    blocks = []
    for layer, part in zip(spec.layers, spec.slices, strict=True):
        window = math.prod(layer.shape[2:])
        fans = math.prod(layer.shape[1:]), layer.num_neurons * window
        weights_part, bias = weights.split_layer(layer, draws[part])
        scaled = weights_part * math.sqrt(variance(*fans))
        blocks.append(weights.join_layer(scaled, jnp.full_like(bias, BIAS)))
    return jnp.concatenate(blocks)


class Conv(nn.Module):
    """Valid convolution on [C, H, W, N], with or without bias, optionally 2 x 2 max-pooled."""

    features: int
    size: int
    form: str
    pool: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_CxHxWxN: Array) -> Array:
        shape = (self.size, self.size, x_CxHxWxN.shape[0], self.features)
        kernel = self.param("kernel", zeros, shape)
        convolve = conv.conv2d_pool if self.pool else conv.conv2d
        out = convolve(x_CxHxWxN, kernel, form=self.form)
        if not self.use_bias:
            return out
        bias = self.param("bias", zeros, (self.features,))
        return out + bias[:, None, None, None]  # pooling and adding a constant commute


class Dense(nn.Module):
    """Dense layer on [features, N]."""

    features: int

    @nn.compact
    def __call__(self, x_FxN: Array) -> Array:
        shape = (x_FxN.shape[0], self.features)
        kernel = self.param("kernel", zeros, shape)
        bias = self.param("bias", zeros, (self.features,))
        return kernel.T @ x_FxN + bias[:, None]


class ZooCNN(nn.Module):
    """float32[N, 28, 28, C] -> logits float32[N, 10].

    The module's own initial weights are zeros; `init_vector` draws those of a zoo.
    """

    activation: str = "tanh"
    conv_form: str = "patches"

    @nn.compact
    def __call__(self, images_NxHxWxC: Array) -> Array:
        act = activation_fn(self.activation)
        x = images_NxHxWxC.transpose(3, 1, 2, 0)
        # Pooling comes before the nonlinearity; for GELU the order matters.
        x = act(Conv(8, 5, self.conv_form, pool=True, name="conv1")(x))
        x = act(Conv(6, 5, self.conv_form, pool=True, name="conv2")(x))
        x = act(Conv(4, 2, self.conv_form, name="conv3")(x))
        x = x.reshape(-1, x.shape[-1])  # channel-major, as in the published vectors
        x = act(Dense(20, name="fc1")(x))
        return Dense(NUM_CLASSES, name="fc2")(x).T
