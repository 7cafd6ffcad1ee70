"""Convolution and max-pooling with the batch as the innermost axis (C, H, W, N).

A zoo CNN's convolutions are tiny (at most 25 x 8 inputs for 8 outputs), so their cost is
data movement. Three forms that compute the same:

* "tiles": each column of a GEMM computes a whole 2 x 2 window of the max-pooling that follows.
  The windows of neighbouring outputs overlap, so a tile of 6 x 6 inputs serves four 5 x 5
  convolutions: 1.4 times the multiplications of "patches", but a GEMM of four times as many
  rows on 2.8 times less data, and pooling becomes the maximum of four contiguous blocks. The
  best form on CPU. Convolutions without pooling are computed as "patches".
* "patches": stack the shifted slices of the input and multiply by the kernel in one GEMM.
  With the batch innermost every slice is contiguous. The backward pass recomputes the
  patches instead of keeping them.
* "xla": `lax.conv_general_dilated`; under `vmap` over members a grouped convolution.

`benchmarks/population.py` measures them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from hyperjax.errors import unknown
from hyperjax.types import Array

FORMS = ("tiles", "patches", "xla")


def default_form(backend: str) -> str:
    """The form that is used for `conv="auto"`: "tiles", measured on CPU; elsewhere "patches", a
    guess: XLA lowers vmapped convolutions to grouped ones, which are slow for few channels,
    while vmapped patches become one batched GEMM."""
    return "tiles" if backend == "cpu" else "patches"


def conv2d(inputs_CxHxWxN: Array, kernel_HxWxCxO: Array, *, form: str) -> Array:
    """Valid convolution (cross-correlation), stride 1: [C, H, W, N] -> [O, H', W', N]."""
    if form in ("patches", "tiles"):
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


def conv2d_pool(inputs_CxHxWxN: Array, kernel_HxWxCxO: Array, *, form: str) -> Array:
    """`conv2d`, then 2 x 2 max-pooling: [C, H, W, N] -> [O, H' / 2, W' / 2, N]."""
    _, h, w, _ = inputs_CxHxWxN.shape
    kh, kw, _, _ = kernel_HxWxCxO.shape
    if form == "tiles" and not (h % 2 or w % 2) and kh % 2 and kw % 2:
        return max_of_four(_tiles_conv(inputs_CxHxWxN, kernel_HxWxCxO))
    return max_pool(conv2d(inputs_CxHxWxN, kernel_HxWxCxO, form=form))


def max_pool(inputs_CxHxWxN: Array) -> Array:
    """2 x 2 max-pooling, stride 2. Halves H and W, which must be even."""
    x = inputs_CxHxWxN
    return max_of_four(jnp.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]))


@jax.custom_vjp
def max_of_four(x_4xCxHxWxN: Array) -> Array:
    """Maximum over the leading axis. As in PyTorch, the gradient goes to the first maximum."""
    x = x_4xCxHxWxN
    return jnp.maximum(jnp.maximum(x[0], x[1]), jnp.maximum(x[2], x[3]))


def _max_of_four_fwd(x):
    upper, lower = jnp.maximum(x[0], x[1]), jnp.maximum(x[2], x[3])
    right = (x[1] > x[0]).astype(jnp.int8), 2 + (x[3] > x[2]).astype(jnp.int8)
    # One byte per output is all that the backward pass reads.
    return jnp.maximum(upper, lower), jnp.where(lower > upper, right[1], right[0])


def _max_of_four_bwd(winner_CxHxWxN, grad_CxHxWxN):
    position = jnp.arange(4, dtype=jnp.int8)[:, None, None, None, None]
    return (jnp.where(winner_CxHxWxN[None] == position, grad_CxHxWxN[None], 0),)


max_of_four.defvjp(_max_of_four_fwd, _max_of_four_bwd)


# --- tiles ------------------------------------------------------------------------------


def _space_to_depth(x_CxHxWxN: Array) -> Array:
    """[C, H, W, N] -> [4 C, H / 2, W / 2, N], the position within 2 x 2 first."""
    c, h, w, n = x_CxHxWxN.shape
    split = x_CxHxWxN.reshape(c, h // 2, 2, w // 2, 2, n)
    return split.transpose(2, 4, 0, 1, 3, 5).reshape(4 * c, h // 2, w // 2, n)


def _tile_matrix(kernel_HxWxCxO: Array) -> Array:
    """The kernel at the four positions of a 2 x 2 tile of outputs: [4 O, (H + 1) (W + 1) C].

    Columns are ordered as the patches of `_space_to_depth`'s output.
    """
    kh, kw, c, o = kernel_HxWxCxO.shape
    shifted = [
        jnp.pad(kernel_HxWxCxO, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))
        for i in (0, 1)
        for j in (0, 1)
    ]
    blocks = jnp.stack(shifted).reshape(4, (kh + 1) // 2, 2, (kw + 1) // 2, 2, c, o)
    return blocks.transpose(0, 6, 1, 3, 2, 4, 5).reshape(4 * o, (kh + 1) * (kw + 1) * c)


def _tiles_conv(x_CxHxWxN: Array, kernel_HxWxCxO: Array) -> Array:
    """The convolution's outputs by their position in the pooling window: [4, O, H', W', N]."""
    (_, h, w, n), (kh, kw, _, o) = x_CxHxWxN.shape, kernel_HxWxCxO.shape
    patches = _patches(_space_to_depth(x_CxHxWxN), (kh + 1) // 2, (kw + 1) // 2)
    out = _tile_matrix(kernel_HxWxCxO) @ patches
    return out.reshape(4, o, (h - kh + 1) // 2, (w - kw + 1) // 2, n)


# --- patches ----------------------------------------------------------------------------


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
