"""Convolution and max-pooling with the batch as the innermost axis (C, H, W, N).

A zoo CNN's convolutions are tiny (at most 25 x 8 inputs for 8 outputs), so their cost is
data movement. Two forms that compute the same:

* "patches": stack the shifted slices of the input and multiply by the kernel in one GEMM.
  With the batch innermost every slice is contiguous. The backward pass recomputes the
  patches instead of keeping them. The best form on CPU, where the patches of one member
  stay in cache.
* "xla": `lax.conv_general_dilated`; under `vmap` over members a grouped convolution.

`benchmarks/population.py` measures both.
"""

import jax
import jax.numpy as jnp
from jax import lax

from hyperjax.errors import unknown
from hyperjax.types import Array

FORMS = ("patches", "xla")


def default_form(backend: str) -> str:
    """The form that is used for `conv="auto"`: patches, measured on CPU; also the better
    guess on accelerators, since XLA lowers vmapped convolutions to grouped ones, which are
    slow for few channels, while vmapped patches become one batched GEMM."""
    del backend  # no backend is known on which the other form wins
    return "patches"


def conv2d(inputs_CxHxWxN: Array, kernel_HxWxCxO: Array, *, form: str) -> Array:
    """Valid convolution (cross-correlation), stride 1: [C, H, W, N] -> [O, H', W', N]."""
    if form == "patches":
        return _patches_conv(inputs_CxHxWxN, kernel_HxWxCxO)
    if form == "xla":
        return lax.conv_general_dilated(
            inputs_CxHxWxN,
            kernel_HxWxCxO,
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("CHWN", "HWIO", "CHWN"),
        )
    raise unknown("form of convolution", form, FORMS)


def max_pool(inputs_CxHxWxN: Array) -> Array:
    """2 x 2 max-pooling, stride 2. Halves H and W, which must be even."""
    x = inputs_CxHxWxN
    rows = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def _patches(x_CxHxWxN: Array, height: int, width: int) -> Array:
    """All `height` x `width` windows: [height * width * C, H' * W' * N], ordered as the kernel."""
    c, h, w, n = x_CxHxWxN.shape
    rows, cols = h - height + 1, w - width + 1
    slices = [
        lax.slice(x_CxHxWxN, (0, i, j, 0), (c, i + rows, j + cols, n))
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(slices, axis=0).reshape(height * width * c, rows * cols * n)


def _output(kernel_HxWxCxO: Array, x_CxHxWxN: Array) -> Array:
    kh, kw, c, o = kernel_HxWxCxO.shape
    _, h, w, n = x_CxHxWxN.shape
    patches = _patches(x_CxHxWxN, kh, kw)
    out = kernel_HxWxCxO.reshape(kh * kw * c, o).T @ patches
    return out.reshape(o, h - kh + 1, w - kw + 1, n)


@jax.custom_vjp
def _patches_conv(x_CxHxWxN: Array, kernel_HxWxCxO: Array) -> Array:
    return _output(kernel_HxWxCxO, x_CxHxWxN)


def _patches_conv_fwd(x_CxHxWxN, kernel_HxWxCxO):
    return _output(kernel_HxWxCxO, x_CxHxWxN), (x_CxHxWxN, kernel_HxWxCxO)


def _patches_conv_bwd(residuals, grad_OxHxWxN):
    x, kernel = residuals
    kh, kw, _, o = kernel.shape
    grad_kernel = _patches(x, kh, kw) @ grad_OxHxWxN.reshape(o, -1).T
    # The input's gradient is the full convolution with the kernel turned by 180 degrees.
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    padding = ((0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1), (0, 0))
    grad_x = _output(turned, jnp.pad(grad_OxHxWxN, padding))
    return grad_x, grad_kernel.reshape(kernel.shape)


_patches_conv.defvjp(_patches_conv_fwd, _patches_conv_bwd)
