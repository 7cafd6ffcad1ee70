"""What a run costs, known before it runs: floating-point operations and bytes.

Counts are those of the mathematics, two operations per multiply-add; elementwise work, and what
an implementation wastes, are left out. docs/performance.md compares them with the clock.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence

from hyperjax import symmetry
from hyperjax.config import ArchitectureConfig, AutoencoderConfig, DenoiserConfig, GraphConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models.sequential import convolved, output_sizes
from hyperjax.weights import WeightSpec


def layer_flops(spec: WeightSpec) -> list[int]:
    """Forward operations of each layer for one image."""
    outputs = _positions(spec, [spec.image_size, *output_sizes(spec)])
    return [2 * n * math.prod(layer.shape) for n, layer in zip(outputs, spec.layers, strict=True)]


def _positions(spec: WeightSpec, inputs: Sequence[tuple[int, int]]) -> list[int]:
    """How many outputs a neuron of each layer has before pooling, of inputs of these sizes."""
    return [
        math.prod(convolved(layer, size)) if layer.kind == "conv" else 1
        for layer, size in zip(spec.layers, inputs, strict=False)
    ]


def evaluation_flops(spec: WeightSpec) -> int:
    """Operations to classify one image."""
    return sum(layer_flops(spec))


def training_flops(spec: WeightSpec) -> int:
    """Operations of one image's forward and backward pass; images need no gradient."""
    return 3 * evaluation_flops(spec) - layer_flops(spec)[0]


def activation_bytes(spec: WeightSpec) -> int:
    """Memory of one image's patches and outputs in the layer that has most, three copies of them
    alive: what bounds a population whose members run at once. Of layers that are no sequence, in
    the first one."""
    inputs = [spec.image_size]
    with contextlib.suppress(HyperJaxError):
        inputs += output_sizes(spec)
    outputs = zip(_positions(spec, inputs), spec.layers, strict=False)
    return 3 * 4 * max(n * (math.prod(x.shape[1:]) + x.num_neurons) for n, x in outputs)


def member_bytes(spec: WeightSpec) -> int:
    """Memory of one member in training: weights, two moments, gradient, and a snapshot."""
    return 5 * 4 * spec.num_params


def zoo_bytes(spec: WeightSpec, members: int, snapshots: int) -> int:
    """Size of a zoo file, its header aside."""
    return 4 * members * snapshots * (spec.num_params + 6)


def _block_macs(c: ArchitectureConfig, tokens: int) -> int:
    return tokens * (4 * c.dim**2 + 2 * c.dim * c.mlp_dim) + 2 * tokens**2 * c.dim


def autoencoder_flops(config: AutoencoderConfig, spec: WeightSpec) -> int:
    """Operations of one training step: two views of every example, forward and backward."""
    c, tokens = config.architecture, spec.num_tokens
    if c.network == "graph":
        trained = graph_macs(c.graph, spec, 1 + c.linear_path) + graph_macs(c.graph, spec, 1)
        # the encoder's linear path is computed twice, once with a gradient of its inputs, and so
        # is the decoder's; layers in their place are computed and trained once
        trained += _posterior(c, spec) + 2 * spec.num_params * c.latent
        return 2 * (2 * config.training.batch_size) * 3 * trained
    embedding = sum(layer.num_neurons * layer.token_size for layer in spec.layers) * c.dim
    pooled = tokens * c.dim if c.compression == "linear" else c.dim
    if c.compression == "token" and c.blocks:  # the last block computes one token of T
        t = tokens + 1
        trained = embedding + (c.blocks - 1) * _block_macs(c, t)
        trained += 2 * t * c.dim**2 + 2 * c.dim**2 + 2 * c.dim * c.mlp_dim + 2 * t * c.dim
    else:
        trained = embedding + c.blocks * _block_macs(c, tokens)
    trained += pooled * c.latent * (2 if c.variational else 1)  # the encoder; now the decoder
    trained += c.latent * tokens * c.dim + c.blocks * _block_macs(c, tokens) + embedding
    widths = [c.latent, *[c.projection_hidden] * c.projection_layers]
    widths += [c.projection_dim] if c.projection_layers else []
    trained += sum(a * b for a, b in itertools.pairwise(widths))
    # The fixed path needs no gradient of its weights, and its encoder none of its inputs.
    return 2 * (2 * config.training.batch_size) * 3 * (trained + _fixed(c, spec))


def _fixed(c: ArchitectureConfig, spec: WeightSpec) -> int:
    return spec.num_params * c.latent * c.linear_path


def _posterior(c: ArchitectureConfig, spec: WeightSpec) -> int:
    """Weights of a graph's log-variances, which all nodes give."""
    return c.variational * c.latent * (1 + spec.num_tokens) * c.graph.node_dim


def decoding_flops(c: ArchitectureConfig, spec: WeightSpec) -> int:
    """Operations to decode one latent."""
    tokens = spec.num_tokens
    if c.network == "graph":
        return 2 * (graph_macs(c.graph, spec, 1) + c.latent * spec.num_params)
    macs = c.latent * tokens * c.dim + c.blocks * _block_macs(c, tokens)
    macs += sum(layer.num_neurons * layer.token_size for layer in spec.layers) * c.dim
    return 2 * (macs + c.latent * spec.num_params * c.linear_path)


def autoencoder_params(c: ArchitectureConfig, spec: WeightSpec) -> int:
    """Number of weights of the matrix products, biases and norms aside."""
    tokens = spec.num_tokens
    if c.network == "graph":
        graph, maps = dataclasses.replace(c.graph, condition_dim=1), 2 + c.linear_path
        both = denoiser_params(graph, spec, 1 + c.linear_path) + denoiser_params(graph, spec, 1)
        return both + _posterior(c, spec) + maps * spec.num_params * c.latent
    embedding = sum(layer.token_size for layer in spec.layers) * c.dim
    pooled = tokens * c.dim if c.compression == "linear" else c.dim
    blocks = 2 * c.blocks * (4 * c.dim**2 + 2 * c.dim * c.mlp_dim)
    bottleneck = pooled * c.latent * (2 if c.variational else 1) + c.latent * tokens * c.dim
    return 2 * embedding + blocks + bottleneck + 2 * spec.num_params * c.latent * c.linear_path


def autoencoder_bytes(
    config: AutoencoderConfig, spec: WeightSpec, devices: int, at_once: int = 0
) -> int:
    """Memory of training on each device, roughly: weights, gradients, moments and the best
    weights; activations that the backward pass reads, of so many networks `at_once` (0: all)."""
    c, tokens = config.architecture, spec.num_tokens
    examples = 2 * math.ceil(config.training.batch_size / devices)
    if c.network == "graph":
        kept = 5 * 4 * autoencoder_params(c, spec)
        return kept + min(at_once or math.inf, examples) * 2 * _graph_activations(c.graph, spec)
    width = 2 if c.dtype == "bfloat16" else 4
    block = tokens * (10 * c.dim + 2 * c.mlp_dim) + 3 * c.heads * tokens**2
    return 5 * 4 * autoencoder_params(c, spec) + examples * 2 * c.blocks * block * width


def _graph_sizes(spec: WeightSpec) -> tuple[int, int]:
    """Edges and nodes of a network's graph (`models.graph`)."""
    blocks = symmetry.input_blocks(spec)
    edges = sum(
        layer.num_neurons * inputs for layer, (inputs, _) in zip(spec.layers, blocks, strict=True)
    )
    return edges, 1 + spec.num_tokens


def _round_weights(c: GraphConfig) -> tuple[int, int]:
    """Weights of a round that multiply each edge, and each node."""
    edge = 2 * c.edge_dim * c.edge_hidden
    node = 2 * c.node_dim * c.edge_hidden + 2 * c.edge_hidden * c.node_dim
    return edge, node + 4 * c.node_dim**2 + 2 * c.node_dim * c.node_hidden


def graph_macs(c: GraphConfig, spec: WeightSpec, vectors: int) -> int:
    """Multiply-adds of the graph network for one network of `vectors` feature vectors."""
    (edges, nodes), (edge, node) = _graph_sizes(spec), _round_weights(c)
    each = edges * (edge + 2 * c.edge_hidden) + nodes * node + 2 * nodes**2 * c.node_dim
    ends = (spec.num_params - spec.num_tokens) * c.edge_dim + spec.num_tokens * c.node_dim
    return c.rounds * each + (vectors + 1) * ends


def denoiser_flops(config: DenoiserConfig, spec: WeightSpec) -> int:
    """Operations of one training step: the graph network forward and backward, and the Wiener
    denoiser, of which there is no gradient."""
    linear = 2 * spec.num_params**2
    return 2 * config.training.batch_size * (3 * graph_macs(config.graph, spec, 2) + linear)


def denoiser_params(c: GraphConfig, spec: WeightSpec, vectors: int = 2) -> int:
    """Number of weights of the graph network of networks of so many `vectors`, norms and biases
    aside."""
    edges, nodes = _graph_sizes(spec)
    kernels = sum(block for _, block in symmetry.input_blocks(spec))
    ends = (vectors + 1) * (kernels * c.edge_dim + len(spec.layers) * c.node_dim)
    positions = edges * c.edge_dim + nodes * c.node_dim
    if c.equivariant:  # of the input and of the last layer's neurons alone
        positions = (1 + spec.layers[-1].num_neurons) * c.node_dim
    shifts = c.condition_dim * (c.edge_hidden + c.node_hidden)
    return c.rounds * (sum(_round_weights(c)) + shifts) + ends + positions


def denoiser_bytes(config: DenoiserConfig, spec: WeightSpec, vectors: int, examples: int) -> int:
    """Memory of training the denoiser of so many vectors on a device: Wiener denoisers of all folds
    and of all members; weights, average, gradients and moments; activations of the `examples` that
    are computed at once."""
    c, size = config.graph, spec.num_params
    linear = 4 * (config.folds + 1) * min(vectors, size) * size * (not c.equivariant)
    kept = 6 * 4 * denoiser_params(c, spec)
    return linear + kept + examples * _graph_activations(c, spec)


def _graph_activations(c: GraphConfig, spec: WeightSpec) -> int:
    """Bytes of one example's activations that the backward pass of a graph network reads."""
    edges, nodes = _graph_sizes(spec)
    each = edges * (3 * c.edge_dim + 4 * c.edge_hidden)
    each += nodes * (12 * c.node_dim + 3 * c.node_hidden) + 3 * c.heads * nodes**2
    return 4 * c.rounds * each
