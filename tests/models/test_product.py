"""Products in the precision that JAX is set to: "bfloat16" means the same on every platform."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hyperjax import population
from hyperjax.config import TrainingConfig
from hyperjax.models import conv
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.product import bfloat16_product, product
from hyperjax.types import Images

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def rounded(x):
    """To bfloat16, exactly what NumPy makes of it, in float64."""
    return np.asarray(x, ml_dtypes.bfloat16).astype(np.float64)


def test_product_rounds_operands_and_nothing_else():
    x, kernel, grad = normal(3, 4, 50), normal(50, 6), normal(3, 4, 6)
    with jax.default_matmul_precision("bfloat16"):
        out, pull = jax.vjp(product, x, kernel)
        of_x, of_kernel = pull(grad)
    assert out.dtype == of_x.dtype == of_kernel.dtype == jnp.float32
    np.testing.assert_allclose(out, rounded(x) @ rounded(kernel), atol=1e-5)
    np.testing.assert_allclose(of_x, rounded(grad) @ rounded(kernel).T, atol=1e-5)
    expected = np.einsum("abk,abn->kn", rounded(x), rounded(grad))
    np.testing.assert_allclose(of_kernel, expected, atol=1e-5)
    assert np.abs(out - x @ kernel).max() > 1e-3  # float32 would be told from it
    np.testing.assert_array_equal(bfloat16_product(x, kernel), out)


def test_a_compiled_product_follows_the_setting():
    x, kernel, compiled = normal(4, 50), normal(50, 6), jax.jit(product)
    exact = compiled(x, kernel)
    with jax.default_matmul_precision("bfloat16"):
        assert np.abs(compiled(x, kernel) - exact).max() > 1e-3
    np.testing.assert_array_equal(compiled(x, kernel), exact)
    np.testing.assert_allclose(exact, np.float64(x) @ np.float64(kernel), atol=1e-5)


@pytest.mark.parametrize("form", ["tiles", "patches"])
@pytest.mark.parametrize("pooled", [False, True])
def test_convolutions_round_operands_and_nothing_else(form, pooled):
    """Against float32 convolutions of operands rounded beforehand, whose gradient is rounded as
    well where it becomes an operand."""
    x, kernel = normal(2, 12, 12, 4), normal(5, 5, 2, 3)
    apply = conv.conv2d_pool if pooled else conv.conv2d
    shape = (3, 4, 4, 4) if pooled else (3, 8, 8, 4)
    grad = rounded(normal(*shape)).astype(np.float32)
    with jax.default_matmul_precision("bfloat16"):
        out, pull = jax.vjp(lambda x, k: apply(x, k, form=form), x, kernel)
        found = out, *pull(grad)
    operands = (rounded(operand).astype(np.float32) for operand in (x, kernel))
    out, pull = jax.vjp(lambda x, k: apply(x, k, form=form), *operands)
    for result, expected in zip(found, (out, *pull(grad)), strict=True):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, atol=2e-4, rtol=1e-5)


def test_a_population_trains_with_products_of_bfloat16_alone():
    """Every product of a step has operands of bfloat16 and results of float32; weights, moments
    and losses stay float32."""
    config = TrainingConfig(batch_size=10)
    engine = population.make_engine(zoo_cnn_spec(1, "tanh"), config, devices=jax.devices()[:1])
    hyper = population.hyper(np.arange(2), config)
    state = population.init(engine, jax.random.key(0), hyper)
    pixels, labels = RNG.integers(0, 256, (30, 28, 28, 1), np.uint8), np.arange(30) % 10
    images = Images(pixels, labels.astype(np.int32), np.float32([0.1]), np.float32([0.3]))
    with jax.default_matmul_precision("bfloat16"):
        arguments = engine, state, hyper, images, jax.random.key(1), jnp.int32(1)
        program = population.train_epoch.lower(*arguments).as_text()
        trained, metrics = population.train_epoch(*arguments)
    products = re.findall(r"dot_general.*: \((.*), (.*)\) -> (.*)", program)
    assert len(products) > 10
    for *operands, result in products:
        assert all("bf16" in operand for operand in operands), products
        assert "xf32" in result
    floats = [leaf for leaf in jax.tree.leaves((trained, metrics)) if leaf.dtype.kind == "f"]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
