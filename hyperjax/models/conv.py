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

Products have the precision that JAX is set to (`models.product`), except those of "xla", which a
CPU computes in float32. `benchmarks/population.py` measures the forms.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from hyperjax.errors import unknown
from hyperjax.models.product import dot, operand
from hyperjax.types import Array

FORMS = ("tiles", "patches", "xla")


def default_form(backend: str) -> str:
    """The form that is used for `conv="auto"`: "tiles", measured on CPU; elsewhere "patches", a
    guess: XLA lowers vmapped convolutions to grouped ones, which are slow for few channels,
    while vmapped patches become one batched GEMM."""
    return "tiles" if backend == "cpu" else "patches"


def conv2d(
    inputs_CxHxWxN: Array,
    kernel_HxWxCxO: Array,
    *,
    form: str,
    stride: int = 1,
    padding: int = 0,
) -> Array:
    """Convolution (cross-correlation) with zeros around the input: [C, H, W, N] -> [O, H', W', N].

    With a stride, patches are those of the input's positions within strides, as channels: more
    multiplications by zeros, but no strided slices, which are slow.
    """
    if form == "xla":
        return lax.conv_general_dilated(
            inputs_CxHxWxN,
            kernel_HxWxCxO,
            window_strides=(stride, stride),
            padding=[(padding, padding)] * 2,
            dimension_numbers=("CHWN", "HWIO", "CHWN"),
        )
    if form not in FORMS:
        raise unknown("form of convolution", form, FORMS)
    x, kernel = _padded(inputs_CxHxWxN, padding), kernel_HxWxCxO
    if stride > 1:
        x, kernel = _without_stride(x, kernel, stride)
    return _patches_conv(x, kernel)


def conv2d_pool(
    inputs_CxHxWxN: Array, kernel_HxWxCxO: Array, *, form: str, stride: int = 1, padding: int = 0
) -> Array:
    """`conv2d`, then 2 x 2 max-pooling: [C, H, W, N] -> [O, H' / 2, W' / 2, N]."""
    kh, kw, _, _ = kernel_HxWxCxO.shape
    if form == "tiles" and stride == 1 and kh % 2 and kw % 2:
        x = _padded(inputs_CxHxWxN, padding)
        _, h, w, _ = x.shape
        x = x[:, : h - h % 2, : w - w % 2]  # what lies beyond gives outputs that no window covers
        return max_of(_tiles_conv(x, kernel_HxWxCxO))
    out = conv2d(inputs_CxHxWxN, kernel_HxWxCxO, form=form, stride=stride, padding=padding)
    return pool(out, "max", 2)


@jax.custom_vjp
def computed_once(x: Array) -> Array:
    """`x` as it is, for a convolution to read.

    Without it XLA's CPU backend computes activations inside the copies that make patches of them,
    for every window that sees one again. A barrier is gone before it decides so; the branches of a
    condition that it cannot foresee read an array that is there. A backward pass needs the
    activations anyway, so nothing of this is part of training.
    """
    known = x[(0,) * x.ndim] < jnp.inf
    return lax.cond(known, lambda x: x, lambda x: x + 0, x)


computed_once.defvjp(lambda x: (x, None), lambda _, grad: (grad,))


def pool(inputs_CxHxWxN: Array, kind: str, window: int) -> Array:
    """Maxima or means of windows side by side, [C, H, W, N] -> [C, H / window, W / window, N].

    What is left over at the lower and right rim is dropped. Window 0: of all positions.
    """
    c, h, w, n = inputs_CxHxWxN.shape
    down, across = (window, window) if window else (h, w)
    rows, columns = h // down, w // across
    x = inputs_CxHxWxN[:, : rows * down, : columns * across]
    if kind == "mean":
        return x.reshape(c, rows, down, columns, across, n).mean((2, 4))
    parts = [x[:, i::down, j::across] for i in range(down) for j in range(across)]
    return max_of(jnp.stack(parts))


@jax.custom_vjp
def max_of(x_KxCxHxWxN: Array) -> Array:
    """Maximum over the leading axis. As in PyTorch, the gradient goes to the first maximum."""
    return _winner(x_KxCxHxWxN)[0]


def _winner(x_KxCxHxWxN: Array) -> tuple[Array, Array]:
    """Maxima, and the first that is one: a byte or two per output, all that backward reads."""
    dtype = jnp.int8 if len(x_KxCxHxWxN) < 128 else jnp.int16
    found = [(x, jnp.full(x.shape, i, dtype)) for i, x in enumerate(x_KxCxHxWxN)]
    while len(found) > 1:
        pairs = zip(found[::2], found[1::2], strict=False)
        merged = [
            (jnp.maximum(a, b), jnp.where(b > a, second, first))
            for (a, first), (b, second) in pairs
        ]
        found = merged + found[len(found) // 2 * 2 :]
    return found[0]


def _max_of_fwd(x):
    largest, winner = _winner(x)
    return largest, (winner, jnp.arange(len(x), dtype=winner.dtype))


def _max_of_bwd(residuals, grad_CxHxWxN):
    winner, positions = residuals
    chosen = winner[None] == positions[:, None, None, None, None]
    return (jnp.where(chosen, grad_CxHxWxN[None], 0),)


max_of.defvjp(_max_of_fwd, _max_of_bwd)


def _padded(x_CxHxWxN: Array, padding: int) -> Array:
    return jnp.pad(x_CxHxWxN, ((0, 0), *[(padding, padding)] * 2, (0, 0)))


def _without_stride(x_CxHxWxN: Array, kernel_HxWxCxO: Array, stride: int) -> tuple[Array, Array]:
    """Inputs and kernel of a convolution without stride that computes the same: positions within
    a stride become channels."""
    (_, *sizes, _), (*kernels, c, o) = x_CxHxWxN.shape, kernel_HxWxCxO.shape
    whole = [-(-k // stride) for k in kernels]  # of the kernel, in strides
    outputs = [(size - k) // stride + 1 for size, k in zip(sizes, kernels, strict=True)]
    needed = [stride * (out + k - 1) for out, k in zip(outputs, whole, strict=True)]
    rims = [(0, stride * a - k) for a, k in zip(whole, kernels, strict=True)]
    kernel = jnp.pad(kernel_HxWxCxO, (*rims, (0, 0), (0, 0)))
    kernel = kernel.reshape(whole[0], stride, whole[1], stride, c, o).transpose(0, 2, 1, 3, 4, 5)
    rims = [(0, max(n - size, 0)) for n, size in zip(needed, sizes, strict=True)]
    x = jnp.pad(x_CxHxWxN, ((0, 0), *rims, (0, 0)))[:, : needed[0], : needed[1]]
    return _space_to_depth(x, stride), kernel.reshape(*whole, stride * stride * c, o)


# --- tiles ------------------------------------------------------------------------------


def _space_to_depth(x_CxHxWxN: Array, size: int = 2) -> Array:
    """[C, H, W, N] -> [4 C, H / 2, W / 2, N], the position within 2 x 2 (or `size`) first."""
    c, h, w, n = x_CxHxWxN.shape
    split = x_CxHxWxN.reshape(c, h // size, size, w // size, size, n)
    return split.transpose(2, 4, 0, 1, 3, 5).reshape(size * size * c, h // size, w // size, n)


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
    window = (kh + 1) // 2, (kw + 1) // 2
    out = _window_sums(window, _tile_matrix(kernel_HxWxCxO), _space_to_depth(x_CxHxWxN))
    return out.reshape(4, o, (h - kh + 1) // 2, (w - kw + 1) // 2, n)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _window_sums(window: tuple[int, int], matrix_OxK: Array, x_CxHxWxN: Array) -> Array:
    """The matrix times the patches of all windows, [O, H' * W' * N]."""
    return _window_sums_fwd(window, matrix_OxK, x_CxHxWxN)[0]


def _window_sums_fwd(window, matrix_OxK, x_CxHxWxN):
    matrix, x = operand(matrix_OxK), operand(x_CxHxWxN)
    patches = _patches(x, *window)
    return dot(matrix, patches), (matrix, patches, x)


def _window_sums_bwd(window, residuals, grad_OxP):
    matrix, patches, x = residuals
    grad = grad_OxP.astype(matrix.dtype)
    # The barriers keep XLA from turning both products into forms that its CPU backend computes at
    # half the speed: the long operand second, and a first operand that is read along its columns.
    grad_matrix = lax.optimization_barrier(dot(patches, grad, 1, 1)).T
    grad_patches = dot(lax.optimization_barrier(matrix.T), grad)
    # Windows overlap: what an input gets from them is summed up in float32.
    inputs = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    (grad_x,) = jax.linear_transpose(lambda x: _patches(x, *window), inputs)(grad_patches)
    return grad_matrix, grad_x


_window_sums.defvjp(_window_sums_fwd, _window_sums_bwd)


# --- patches ----------------------------------------------------------------------------


def _patches(x_CxHxWxN: Array, height: int, width: int) -> Array:
    """All `height` x `width` windows: [height * width * C, H' * W' * N], ordered as the kernel."""
    c, h, w, n = x_CxHxWxN.shape
    rows, cols = h - height + 1, w - width + 1
    if x_CxHxWxN.dtype == jnp.bfloat16:
        # XLA's CPU backend would copy bfloat16 by way of float32
        bits = _patches(lax.bitcast_convert_type(x_CxHxWxN, jnp.uint16), height, width)
        return lax.bitcast_convert_type(bits, jnp.bfloat16)
    slices = [
        lax.slice(x_CxHxWxN, (0, i, j, 0), (c, i + rows, j + cols, n))
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(slices, axis=0).reshape(height * width * c, rows * cols * n)


def _output(kernel_HxWxCxO: Array, x_CxHxWxN: Array) -> Array:
    kh, kw, c, o = kernel_HxWxCxO.shape
    _, h, w, n = x_CxHxWxN.shape
    patches = _patches(operand(x_CxHxWxN), kh, kw)
    out = dot(operand(kernel_HxWxCxO).reshape(kh * kw * c, o), patches, 0, 0)
    return out.reshape(o, h - kh + 1, w - kw + 1, n)


@jax.custom_vjp
def _patches_conv(x_CxHxWxN: Array, kernel_HxWxCxO: Array) -> Array:
    return _output(kernel_HxWxCxO, x_CxHxWxN)


def _patches_conv_fwd(x_CxHxWxN, kernel_HxWxCxO):
    x, kernel = operand(x_CxHxWxN), operand(kernel_HxWxCxO)
    return _output(kernel, x), (x, kernel)


def _patches_conv_bwd(residuals, grad_OxHxWxN):
    x, kernel = residuals
    kh, kw, _, o = kernel.shape
    grad_OxHxWxN = grad_OxHxWxN.astype(x.dtype)
    grad_kernel = dot(_patches(x, kh, kw), grad_OxHxWxN.reshape(o, -1), 1, 1)
    # The input's gradient is the full convolution with the kernel turned by 180 degrees.
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    padding = ((0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1), (0, 0))
    grad_x = _output(turned, jnp.pad(grad_OxHxWxN, padding))
    return grad_x, grad_kernel.reshape(kernel.shape)


_patches_conv.defvjp(_patches_conv_fwd, _patches_conv_bwd)
