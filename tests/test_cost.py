"""Counted operations against XLA's own count, and numbers written out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import cost
from hyperjax.config import (
    ArchitectureConfig,
    AutoencoderConfig,
    DenoiserConfig,
    GraphConfig,
    OptimizationConfig,
)
from hyperjax.diffusion import Wiener
from hyperjax.diffusion import denoiser_training as training
from hyperjax.models.architectures import mlp_spec, zoo_cnn_spec
from hyperjax.models.autoencoder import Autoencoder
from hyperjax.models.graph import GraphDenoiser
from hyperjax.models.variants import res_skip_spec
from hyperjax.weights import LayerSpec, WeightSpec

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


def test_activations_are_those_of_the_largest_layer():
    """Which need not be the first one; of layers that are no sequence it is that."""
    assert cost.activation_bytes(SPEC) == 3 * 4 * 24 * 24 * (25 + 8)
    layers = (
        LayerSpec("a", "conv", (2, 1, 1, 1), pool="max"),  # 16 x 16 times 1 + 2
        LayerSpec("b", "conv", (4, 2, 3, 3)),
        LayerSpec("c", "dense", (3, 144)),
    )
    assert cost.activation_bytes(WeightSpec(layers, "tanh", (16, 16))) == 3 * 4 * 6 * 6 * (18 + 4)
    wide = mlp_spec(1, "relu", widths=(16, 4096))
    assert cost.activation_bytes(wide) == 3 * 4 * (16 + 4096)
    assert cost.activation_bytes(res_skip_spec(1, "tanh")) == cost.activation_bytes(SPEC)


GRAPH = GraphConfig(edge_dim=32, edge_hidden=64, node_dim=64, node_hidden=128, rounds=2)


def graph_params(graph, spec):
    module = GraphDenoiser(graph, spec)
    inputs = jnp.zeros((2, 2, spec.num_params)), jnp.zeros(2), jnp.zeros(2)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_denoisers_parameters_are_counted(equivariant, channels):
    """All but norms, biases and what embeds a noise level's 35 features."""
    spec = zoo_cnn_spec(channels, "tanh")
    graph = dataclasses.replace(GRAPH, equivariant=equivariant)
    leaves = jax.tree_util.tree_leaves_with_path(graph_params(graph, spec))
    counted = 0
    for path, leaf in leaves:
        names = [entry.key for entry in path]
        left_out = names[-1] in ("scale", "bias") or names[0] == "condition"
        counted += 0 if left_out else leaf.size
    assert cost.denoiser_params(graph, spec) == counted
    assert counted > 0.95 * sum(leaf.size for _, leaf in leaves)


def test_the_denoisers_operations_are_those_that_xla_counts():
    """A tenth of what XLA counts is elementwise; the draws of a batch are too."""
    config = DenoiserConfig(graph=GRAPH, training=OptimizationConfig(batch_size=8))
    trainer = training.make_trainer(config, SPEC, jax.devices()[:1])
    vectors = jnp.zeros((8, SPEC.num_params))
    batch = training.Batch(vectors, vectors, vectors, jnp.ones(8), jnp.ones(8))
    grad = jax.jit(jax.grad(lambda params: training.loss_fn(trainer, params, batch)))
    graph = grad.lower(graph_params(GRAPH, SPEC)).cost_analysis()["flops"]
    counted = 2 * 8 * 3 * cost.graph_macs(GRAPH, SPEC, 2)
    assert counted == pytest.approx(graph, rel=0.15)
    size = SPEC.num_params
    shapes = ((size,), (size, size), (size,), ())
    wiener = Wiener(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    linear = jax.jit(training.wieners.denoise).lower(wiener, vectors, jnp.ones(8))
    assert cost.denoiser_flops(config, SPEC) - counted == pytest.approx(
        linear.cost_analysis()["flops"], rel=0.02
    )


def test_the_denoisers_memory():
    """Wiener denoisers of all folds, of as many axes as there are vectors, and of an equivariant
    one none; more examples at once."""
    config = DenoiserConfig(graph=GRAPH, folds=8)
    bare = DenoiserConfig(graph=dataclasses.replace(GRAPH, equivariant=True), folds=8)
    for vectors, axes in ((100, 100), (5000, SPEC.num_params)):
        linear, other = (cost.denoiser_bytes(c, SPEC, vectors, 4) for c in (config, bare))
        assert linear - other == pytest.approx(9 * 4 * axes * SPEC.num_params, rel=0.05, abs=2e6)
    few, more, most = (cost.denoiser_bytes(config, SPEC, 100, count) for count in (0, 4, 64))
    assert most - few == 16 * (more - few) > 0
