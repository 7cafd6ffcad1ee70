"""Sequential networks: what a `WeightSpec` lays out, run on images.

Layer by layer: convolution or dense layer, bias, normalisation, pooling, activation (or activation,
then pooling); the last layer's outputs are the logits. Between a convolution and a dense layer all
positions of all channels are flattened, channel-major, as in PyTorch.

Activations have the batch as their innermost axis: `[C, H, W, N]`, then `[features, N]`.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import zeros
from jax import lax

from hyperjax.errors import HyperJaxError, unknown
from hyperjax.models import conv
from hyperjax.models.product import product
from hyperjax.types import Array, Params
from hyperjax.weights import LayerSpec, WeightSpec

EPSILON = 1e-5  # of a normalisation, PyTorch's default

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leakyrelu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def activation_fn(name: str) -> Callable[[Array], Array]:
    if name not in _ACTIVATIONS:
        raise unknown("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def output_sizes(spec: WeightSpec) -> tuple[tuple[int, int], ...]:
    """Height and width of each layer's outputs after its pooling; (1, 1) of dense layers.

    Raises HyperJaxError, naming the layer, if `spec` is no sequence of layers that fit together.
    """
    activation_fn(spec.activation)
    size, channels, sizes, flat = spec.image_size, spec.channels, [], False
    for layer in spec.layers:
        if flat and layer.kind == "conv":
            raise _misfit(layer, "is a convolution after a dense layer")
        size, channels = output_size(layer, size, channels), layer.num_neurons
        sizes.append(size)
        flat = layer.kind == "dense"
    if not flat:
        raise _misfit(layer, "is the last one, which has to be dense")
    return tuple(sizes)


def output_size(layer: LayerSpec, size: tuple[int, int], channels: int) -> tuple[int, int]:
    """The same of one layer, whose input has `channels` of `size`."""
    if layer.kind == "dense":
        inputs = channels * math.prod(size)
        if layer.shape[1] != inputs:
            raise _misfit(layer, f"would get {inputs} inputs")
        return 1, 1
    if layer.shape[1] != channels:
        raise _misfit(layer, f"would get {channels} channels")
    rows, columns = convolved(layer, size)
    if layer.pool and min(rows, columns) > 0:
        down, across = (layer.window, layer.window) if layer.window else (rows, columns)
        rows, columns = rows // down, columns // across
    if min(rows, columns) < 1:
        raise _misfit(layer, f"has no outputs, for its inputs have {size[0]} x {size[1]} pixels")
    return rows, columns


def convolved(layer: LayerSpec, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a convolution's outputs before its pooling."""
    rows, columns = (
        (pixels + 2 * layer.padding - kernel) // layer.stride + 1
        for pixels, kernel in zip(size, layer.shape[2:], strict=True)
    )
    return rows, columns


def _misfit(layer: LayerSpec, problem: str) -> HyperJaxError:
    return HyperJaxError(f"layer {layer.name!r} ({layer.kind} {layer.shape}) {problem}")


def columns(images_NxHxWxC: Array) -> Array:
    """Images with the batch as innermost axis, [C, H, W, N]."""
    return images_NxHxWxC.transpose(3, 1, 2, 0)


def linear(layer: LayerSpec, params: Params, x: Array, form: str) -> Array:
    """Weighted sums of [C, H, W, n] or [features, n], and biases: before normalisation, pooling and
    activation; `params` are the layer's own."""
    kernel, bias = params["kernel"], params.get("bias")
    if layer.kind == "dense":
        out = product(kernel.T, x.reshape(-1, x.shape[-1]))
    else:
        out = conv.conv2d(x, kernel, form=form, stride=layer.stride, padding=layer.padding)
    return out if bias is None else out + jnp.expand_dims(bias, range(1, out.ndim))


def preactivation(layer: LayerSpec, params: Params, x: Array, form: str) -> Array:
    """One layer of [C, H, W, n] or [features, n] up to its activation; `params` are its own."""
    pooled = bool(layer.pool) and not layer.pool_last
    if pooled and not layer.norm and (layer.pool, layer.window) == ("max", 2):
        settings = {"form": form, "stride": layer.stride, "padding": layer.padding}
        out, bias = conv.conv2d_pool(x, params["kernel"], **settings), params.get("bias")
        # pooling and adding a constant commute
        return out if bias is None else out + bias[:, None, None, None]
    out = _normalised(layer, params, linear(layer, params, x, form))
    return conv.pool(out, layer.pool, layer.window) if pooled else out


def _normalised(layer: LayerSpec, params: Params, z: Array) -> Array:
    """[neurons, ..., n], normalised as the layer says. Running statistics are no parameters: they
    have no gradient, and training leaves them as they are."""
    if not layer.norm:
        return z
    rows = range(1, z.ndim)
    if layer.norm == "batch":
        mean, var = (jnp.expand_dims(lax.stop_gradient(params[n]), rows) for n in ("mean", "var"))
        # of a network that was made, not trained, a variance may be less than zero
        z = (z - mean) * lax.rsqrt(jnp.maximum(var, 0) + EPSILON)
    else:
        grouped = z.reshape(layer.groups, -1, z.shape[-1])
        mean = grouped.mean(1, keepdims=True)
        var = jnp.square(grouped - mean).mean(1, keepdims=True)
        z = ((grouped - mean) * lax.rsqrt(var + EPSILON)).reshape(z.shape)
    scale, shift = (jnp.expand_dims(params[name], rows) for name in ("scale", "shift"))
    return scale * z + shift


def activate(layer: LayerSpec, act: Callable[[Array], Array], z: Array) -> Array:
    """What the layer after it gets."""
    x = act(z)
    return conv.pool(x, layer.pool, layer.window) if layer.pool and layer.pool_last else x


class Layer(nn.Module):
    """A layer's parameters, and what it computes up to its activation."""

    layer: LayerSpec
    form: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        neurons, inputs, *window = self.layer.shape
        params = {"kernel": self.param("kernel", zeros, (*window, inputs, neurons))}
        for name in self.layer.values:
            params[name] = self.param(name, zeros, (neurons,))
        return preactivation(self.layer, params, x, self.form)


class Sequential(nn.Module):
    """float32[N, H, W, C] -> logits float32[N, classes].

    The module's own initial weights are zeros; `hyperjax.models.initialise` draws
    those of a zoo.
    """

    spec: WeightSpec
    conv_form: str = "patches"

    @nn.compact
    def __call__(self, images_NxHxWxC: Array) -> Array:
        act, x = activation_fn(self.spec.activation), columns(images_NxHxWxC)
        *hidden, last = self.spec.layers
        for layer, after in zip(hidden, self.spec.layers[1:], strict=True):
            x = activate(layer, act, Layer(layer, self.conv_form, name=layer.name)(x))
            if after.kind == "conv":
                x = conv.computed_once(x)
        return Layer(last, self.conv_form, name=last.name)(x).T
