"""What a run costs, known before it runs: floating-point operations and bytes.

Counts are those of the mathematics, two operations per multiply-add; elementwise work, and what
an implementation wastes, are left out. docs/performance.md compares them with the clock.
"""

import itertools
import math

from hyperjax.config import ArchitectureConfig, AutoencoderConfig
from hyperjax.models.cnn import IMAGE_SIZE
from hyperjax.weights import WeightSpec


def layer_flops(spec: WeightSpec) -> list[int]:
    """Forward operations of each layer for one image."""
    size, flops = IMAGE_SIZE, []
    for layer in spec.layers:
        outputs = 1
        if layer.kind == "conv":
            size = size - layer.shape[2] + 1
            outputs = size**2
            size = size // 2 if layer.pooled else size
        flops.append(2 * outputs * math.prod(layer.shape))
    return flops


def evaluation_flops(spec: WeightSpec) -> int:
    """Operations to classify one image."""
    return sum(layer_flops(spec))


def training_flops(spec: WeightSpec) -> int:
    """Operations of one image's forward and backward pass; images need no gradient."""
    return 3 * evaluation_flops(spec) - layer_flops(spec)[0]


def activation_bytes(spec: WeightSpec) -> int:
    """Memory of one image's patches and outputs in the first layer, three copies of them alive:
    what bounds a population whose members run at once."""
    layer = spec.layers[0]
    outputs = (IMAGE_SIZE - layer.shape[-1] + 1) ** 2
    return 3 * 4 * outputs * (math.prod(layer.shape[1:]) + layer.num_neurons)


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
    fixed = spec.num_params * c.latent * c.linear_path
    return 2 * (2 * config.training.batch_size) * (3 * trained + 3 * fixed)


def decoding_flops(c: ArchitectureConfig, spec: WeightSpec) -> int:
    """Operations to decode one latent."""
    tokens = spec.num_tokens
    macs = c.latent * tokens * c.dim + c.blocks * _block_macs(c, tokens)
    macs += sum(layer.num_neurons * layer.token_size for layer in spec.layers) * c.dim
    return 2 * (macs + c.latent * spec.num_params * c.linear_path)


def autoencoder_params(c: ArchitectureConfig, spec: WeightSpec) -> int:
    """Number of weights of the matrix products, biases and norms aside."""
    tokens = spec.num_tokens
    embedding = sum(layer.token_size for layer in spec.layers) * c.dim
    pooled = tokens * c.dim if c.compression == "linear" else c.dim
    blocks = 2 * c.blocks * (4 * c.dim**2 + 2 * c.dim * c.mlp_dim)
    bottleneck = pooled * c.latent * (2 if c.variational else 1) + c.latent * tokens * c.dim
    return 2 * embedding + blocks + bottleneck + 2 * spec.num_params * c.latent * c.linear_path


def autoencoder_bytes(config: AutoencoderConfig, spec: WeightSpec, devices: int) -> int:
    """Memory of training on each device, roughly: weights, gradients, moments and the best
    weights; activations that the backward pass reads."""
    c, tokens = config.architecture, spec.num_tokens
    width = 2 if c.dtype == "bfloat16" else 4
    block = tokens * (10 * c.dim + 2 * c.mlp_dim) + 3 * c.heads * tokens**2
    examples = 2 * math.ceil(config.training.batch_size / devices)
    return 5 * 4 * autoencoder_params(c, spec) + examples * 2 * c.blocks * block * width
