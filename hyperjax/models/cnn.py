"""The zoo CNN: three convolutions and two dense layers for 28 x 28 images.

conv 5x5 -> pool -> act, conv 5x5 -> pool -> act, conv 2x2 -> act, flatten (channel-major),
dense 20 -> act, dense 10. 2464 parameters for one input channel, 2864 for three.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from hyperjax.errors import unknown
from hyperjax.models import conv
from hyperjax.types import Array
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

_INITS = {
    "uniform": lambda: nn.initializers.uniform(scale=1.0),  # U[0, 1), the paper's wide start
    "normal": lambda: nn.initializers.normal(stddev=1.0),
    "kaiming_uniform": lambda: nn.initializers.variance_scaling(2.0, "fan_in", "uniform"),
    "kaiming_normal": lambda: nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "xavier_uniform": lambda: nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
    "xavier_normal": lambda: nn.initializers.variance_scaling(1.0, "fan_avg", "normal"),
    # PyTorch's own default: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), variance 1 / (3 fan_in)
    "torch_default": lambda: nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


def activation_fn(name: str) -> Callable[[Array], Array]:
    if name not in _ACTIVATIONS:
        raise unknown("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def kernel_init(name: str) -> Callable:
    if name not in _INITS:
        raise unknown("initialisation", name, _INITS)
    return _INITS[name]()


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


class Conv(nn.Module):
    """Valid convolution with a bias on [C, H, W, N]."""

    features: int
    size: int
    initializer: str
    form: str

    @nn.compact
    def __call__(self, x_CxHxWxN: Array) -> Array:
        shape = (self.size, self.size, x_CxHxWxN.shape[0], self.features)
        kernel = self.param("kernel", kernel_init(self.initializer), shape)
        bias = self.param("bias", nn.initializers.constant(BIAS), (self.features,))
        out = conv.conv2d(x_CxHxWxN, kernel, form=self.form)
        return out + bias[:, None, None, None]


class Dense(nn.Module):
    """Dense layer on [features, N]."""

    features: int
    initializer: str

    @nn.compact
    def __call__(self, x_FxN: Array) -> Array:
        shape = (x_FxN.shape[0], self.features)
        kernel = self.param("kernel", kernel_init(self.initializer), shape)
        bias = self.param("bias", nn.initializers.constant(BIAS), (self.features,))
        return kernel.T @ x_FxN + bias[:, None]


class ZooCNN(nn.Module):
    """float32[N, 28, 28, C] -> logits float32[N, 10]."""

    activation: str = "tanh"
    initializer: str = "uniform"
    conv_form: str = "patches"

    @nn.compact
    def __call__(self, images_NxHxWxC: Array) -> Array:
        act = activation_fn(self.activation)
        x = images_NxHxWxC.transpose(3, 1, 2, 0)
        # Pooling comes before the nonlinearity; for GELU the order matters.
        x = act(conv.max_pool(Conv(8, 5, self.initializer, self.conv_form, name="conv1")(x)))
        x = act(conv.max_pool(Conv(6, 5, self.initializer, self.conv_form, name="conv2")(x)))
        x = act(Conv(4, 2, self.initializer, self.conv_form, name="conv3")(x))
        x = x.reshape(-1, x.shape[-1])  # channel-major, as in the published vectors
        x = act(Dense(20, self.initializer, name="fc1")(x))
        return Dense(NUM_CLASSES, self.initializer, name="fc2")(x).T
