"""Architectures that no hyper-representation was trained on (paper section 4.2.4, Table 4).

All take 28 x 28 images and end like the zoo CNN, in a flatten (channel-major) of 4 x 3 x 3.

* "3-conv + res-skip": the zoo CNN, each convolution with a parallel path (overlapping
  max-pooling, then a convolution 1x1) that is added after the activation. 2562 parameters for
  one input channel, 2978 for three: the skip paths' are more than a generated network has.
* "4-conv": conv 5x5 -> pool -> act, conv 5x5 -> act, conv 4x4 -> act, conv 3x3 -> act,
  dense 18 -> act, dense 10; no biases in the last three convolutions, tanh always. As many
  parameters as the zoo CNN: 2464 or 2864.
* "4-conv + id.-skip": the same, and the output of the second convolution's activation, cropped
  and subsampled to 3 x 3, is added to that of the last one's.

`hyperjax.models.transplant` assigns the zoo CNN's weights to them.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hyperjax import weights
from hyperjax.models import cnn
from hyperjax.models.cnn import NUM_CLASSES, Conv, Dense, activation_fn, zoo_cnn_spec
from hyperjax.types import Array, Key
from hyperjax.weights import LayerSpec, WeightSpec

SKIPS = ("skip1", "skip2", "skip3")


def res_skip_spec(in_channels: int, activation: str) -> WeightSpec:
    """Layout of "3-conv + res-skip": the zoo CNN's vector, then the three skip convolutions."""
    zoo = zoo_cnn_spec(in_channels, activation)
    fans = ((8, in_channels), (6, 8), (4, 6))
    skips = [LayerSpec(name, "conv", (*fan, 1, 1)) for name, fan in zip(SKIPS, fans, strict=True)]
    return WeightSpec((*zoo.layers, *skips), activation)


def four_conv_spec(in_channels: int, activation: str = "tanh") -> WeightSpec:
    """Layout of "4-conv", with or without identity skip. Its activation is tanh, whatever the
    zoo's is, as in the published code."""
    del activation
    layers = (
        LayerSpec("conv1", "conv", (8, in_channels, 5, 5), pooled=True),
        LayerSpec("conv2", "conv", (4, 8, 5, 5), bias=False),
        LayerSpec("conv3", "conv", (6, 4, 4, 4), bias=False),
        LayerSpec("conv4", "conv", (4, 6, 3, 3), bias=False),
        LayerSpec("fc1", "dense", (18, 36)),
        LayerSpec("fc2", "dense", (NUM_CLASSES, 18)),
    )
    return WeightSpec(layers, "tanh")


def init_vector(spec: WeightSpec, name: str, key: Key) -> Array:
    """Random weights of one network as a flat vector, float32[D]: initialised by `name`, skip
    convolutions by kaiming_uniform; every bias is 0.01."""
    key_main, key_skips = jax.random.split(key)
    is_skip = np.isin(spec.names, SKIPS)[weights.layer_ids(spec)]
    main = cnn.init_vector(spec, name, key_main)
    return jnp.where(is_skip, cnn.init_vector(spec, "kaiming_uniform", key_skips), main)


def window_max(x_CxHxWxN: Array, size: int, stride: int) -> Array:
    """Max-pooling by windows that may overlap: [C, H, W, N] -> [C, H', W', N].

    H and W must be multiples of the stride. Equal maxima share the gradient, where PyTorch gives
    it to the first.
    """
    x = x_CxHxWxN
    for axis in (1, 2):  # columns of maxima of rows
        shape, count = x.shape, (x.shape[axis] - size) // stride + 1
        # Strided slices are slow on CPU: cut rows by their position within a stride instead.
        x = x.reshape(*shape[:axis], shape[axis] // stride, stride, *shape[axis + 1 :])
        planes = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(stride)]
        parts = [
            lax.slice_in_dim(planes[i % stride], i // stride, i // stride + count, axis=axis)
            for i in range(size)
        ]
        x = functools.reduce(jnp.maximum, parts)
    return x


class ResSkipCNN(nn.Module):
    """float32[N, 28, 28, C] -> logits float32[N, 10], as `ZooCNN`."""

    activation: str = "tanh"
    conv_form: str = "patches"

    @nn.compact
    def __call__(self, images_NxHxWxC: Array) -> Array:
        act, form = activation_fn(self.activation), self.conv_form
        x = images_NxHxWxC.transpose(3, 1, 2, 0)
        skip = Conv(8, 1, form, name="skip1")(window_max(x, 5, 2))
        x = act(Conv(8, 5, form, pool=True, name="conv1")(x)) + skip
        skip = Conv(6, 1, form, name="skip2")(window_max(x, 5, 2))
        x = act(Conv(6, 5, form, pool=True, name="conv2")(x)) + skip
        skip = Conv(4, 1, form, name="skip3")(window_max(x, 2, 1))
        x = act(Conv(4, 2, form, name="conv3")(x)) + skip
        x = x.reshape(-1, x.shape[-1])
        x = act(Dense(20, name="fc1")(x))
        return Dense(NUM_CLASSES, name="fc2")(x).T


class FourConvCNN(nn.Module):
    """float32[N, 28, 28, C] -> logits float32[N, 10], as `ZooCNN`."""

    activation: str = "tanh"
    conv_form: str = "patches"
    identity_skip: bool = False

    @nn.compact
    def __call__(self, images_NxHxWxC: Array) -> Array:
        act, conv = activation_fn(self.activation), functools.partial(Conv, form=self.conv_form)
        x = images_NxHxWxC.transpose(3, 1, 2, 0)
        x = act(conv(8, 5, pool=True, name="conv1")(x))
        early = x = act(conv(4, 5, use_bias=False, name="conv2")(x))
        x = act(conv(6, 4, use_bias=False, name="conv3")(x))
        x = act(conv(4, 3, use_bias=False, name="conv4")(x))
        if self.identity_skip:
            x = x + early[:, 1:-1:2, 1:-1:2]  # 8 x 8 without its rim, every second: 3 x 3
        x = x.reshape(-1, x.shape[-1])
        x = act(Dense(18, name="fc1")(x))
        return Dense(NUM_CLASSES, name="fc2")(x).T


class FourConvSkipCNN(FourConvCNN):
    """`FourConvCNN` with the identity skip."""

    identity_skip: bool = True


@dataclasses.dataclass(frozen=True)
class Variant:
    """An architecture: its name in the paper, its module, and its layout from the number of
    input channels and the zoo's activation."""

    title: str
    model: type[nn.Module]
    spec: Callable[[int, str], WeightSpec]


VARIANTS = {
    "res_skip": Variant("3-conv + res-skip", ResSkipCNN, res_skip_spec),
    "four_conv": Variant("4-conv", FourConvCNN, four_conv_spec),
    "four_conv_skip": Variant("4-conv + id.-skip", FourConvSkipCNN, four_conv_spec),
}
