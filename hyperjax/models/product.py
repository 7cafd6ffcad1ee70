"""Matrix products in the precision that JAX is set to, and their gradients.

`jax_default_matmul_precision` says how exact a product of float32 has to be, but XLA's CPU backend
ignores it. In layers of zoo networks, tokens and graphs "bfloat16" means the same everywhere:
operands are rounded to bfloat16, products are summed up in float32, forward and backward, and
everything else stays in float32 (attention's scores too, on a CPU). It is the only
product of bfloat16 that XLA's CPU backend computes fast: with results in bfloat16 it is slower than
in float32 (docs/performance.md).

Products of layers have a gradient of their own also in float32: JAX's is the transposed one of the
kernel, and XLA turns it back once for each of the optimiser's moments. It costs forward-mode
differentiation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hyperjax.types import Array


def operand_dtype(x: Array) -> Any:
    """Of x as the operand of a product: bfloat16 if JAX is set to it, else its own."""
    halved = jax.config.jax_default_matmul_precision == "bfloat16"
    return jnp.dtype(jnp.bfloat16) if halved else x.dtype


def operand(x: Array) -> Array:
    """x as the operand of a product."""
    return x.astype(operand_dtype(x))


def dot(a: Array, b: Array, axis_a: int = 1, axis_b: int = 0) -> Array:
    """Product float32 of two matrices, of operands as they are, over one axis of each."""
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def product(x: Array, kernel: Array) -> Array:
    """x float32[..., k] @ kernel float32[k, n] -> float32[..., n] in the precision JAX is set to.

    Differentiable in reverse mode.
    """
    return _product(operand_dtype(kernel), x, kernel)


def bfloat16_product(x: Array, kernel: Array) -> Array:
    """The same with operands in bfloat16 whatever JAX is set to."""
    return _product(jnp.dtype(jnp.bfloat16), x, kernel)


def as_dot_general(multiply: Callable[[Array, Array], Array]) -> Callable:
    """What a dense layer of flax takes for its product."""
    return lambda x, kernel, *args, **kwargs: multiply(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(dtype: Any, x: Array, kernel: Array) -> Array:
    return _forward(dtype, x, kernel)[0]


def _forward(dtype: Any, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32), (x, kernel)


def _backward(dtype: Any, kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    (x, kernel), grad = kept, grad.astype(dtype)
    rows = tuple(range(x.ndim - 1))
    of_kernel = lax.dot_general(
        x, grad, ((rows, rows), ((), ())), preferred_element_type=jnp.float32
    )
    return jnp.dot(grad, kernel.T, preferred_element_type=jnp.float32), of_kernel


_product.defvjp(_forward, _backward)
