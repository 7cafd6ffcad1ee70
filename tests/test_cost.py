"""Counted operations against XLA's own count, and numbers written out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import cost
from hyperjax.config import ArchitectureConfig, AutoencoderConfig, OptimizationConfig
from hyperjax.models.autoencoder import Autoencoder
from hyperjax.models.cnn import zoo_cnn_spec

SPEC = zoo_cnn_spec(1, "tanh")


def test_zoo_cnn_by_hand():
    macs = [24 * 24 * 25 * 8, 8 * 8 * 200 * 6, 3 * 3 * 24 * 4, 36 * 20, 20 * 10]
    assert cost.layer_flops(SPEC) == [2 * m for m in macs]
    assert cost.evaluation_flops(SPEC) == 2 * 193_784
    assert cost.training_flops(SPEC) == 2 * (3 * 193_784 - 115_200)
    assert cost.evaluation_flops(zoo_cnn_spec(3, "tanh")) == 2 * (193_784 + 2 * 115_200)


@pytest.mark.parametrize("compression", ["token", "linear"])
@pytest.mark.parametrize("linear_path", [True, False])
def test_autoencoder_equals_the_count_of_xla(compression, linear_path):
    """XLA also counts elementwise operations; at this size they are a few percent."""
    c = ArchitectureConfig(
        dim=128, heads=4, mlp_dim=256, blocks=2, latent=64, dropout=0.0,
        compression=compression, linear_path=linear_path,
        projection_layers=2, projection_hidden=64, projection_dim=16,
    )  # fmt: skip
    config = AutoencoderConfig(architecture=c, training=OptimizationConfig(batch_size=2))
    module = Autoencoder(c, SPEC)
    vectors = jnp.zeros((4, SPEC.num_params))  # two views of a batch of two
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), vectors, train=False))["params"]

    def loss(params):
        outputs = module.apply({"params": params}, vectors, train=False)
        return sum(jnp.sum(leaf**2) for leaf in outputs[1:])

    lowered = jax.jit(jax.grad(loss)).lower(params)
    assert cost.autoencoder_flops(config, SPEC) == pytest.approx(
        lowered.cost_analysis()["flops"], rel=0.06
    )
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost.autoencoder_params(c, SPEC) == pytest.approx(weights, rel=0.05)


def test_bytes():
    assert cost.zoo_bytes(SPEC, 1000, 51) == pytest.approx(1000 * 51 * 2464 * 4, rel=0.01)
    assert cost.member_bytes(SPEC) == 5 * 2464 * 4
    base = ArchitectureConfig()
    halves = [
        cost.autoencoder_bytes(
            AutoencoderConfig(architecture=dataclasses.replace(base, dtype=dtype)), SPEC, devices
        )
        - 20 * cost.autoencoder_params(base, SPEC)
        for dtype, devices in (("float32", 1), ("bfloat16", 1), ("float32", 2))
    ]
    np.testing.assert_allclose(halves[1:], halves[0] / 2)
