"""A network of networks: message passing on the graph of a network's own neurons.

Nodes are neurons, and one node that stands for the input; an edge joins a neuron to one of the
layer before, and its feature is the kernel between them (of a dense layer after a flattened
convolution: one weight for each pixel; else one weight). Biases, and scales and shifts of a
normalisation, are features of their nodes. After
Kofinas et al., "Graph Neural Networks for Learning Equivariant Representations of Neural
Networks" (2024), and Lim et al., "Graph Metanetworks" (2024).

A round lets every edge look at its two neurons, gives every neuron the means of its incoming and of
its outgoing edges, and lets all neurons attend to one another. Without learned positions of hidden
neurons it commutes with their permutations.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import normal, variance_scaling, zeros
from jax import lax

from hyperjax import symmetry, weights
from hyperjax.config import GraphConfig
from hyperjax.models.product import as_dot_general, bfloat16_product, product
from hyperjax.types import Array
from hyperjax.weights import WeightSpec

_FREQUENCIES = 8  # of the embeddings of noise level and quality
_POSITION_STD = 0.5


def at_once(platform: str) -> int:
    """Networks that a device computes together; 0: as many as there are. On a CPU the graphs of a
    few stay in a core's cache."""
    return 4 if platform == "cpu" else 0


def in_parts(fn: Callable[[Array], Any], size: int, rows: Array) -> Any:
    """`fn` of rows [N, ...], which treats each by itself, for `size` at a time (0: all)."""
    count = len(rows)
    if not size or count <= size:
        return fn(rows)
    padded = jnp.pad(rows, ((0, -count % size), *((0, 0),) * (rows.ndim - 1)), mode="edge")
    parts = lax.map(fn, padded.reshape(-1, size, *rows.shape[1:]))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], parts)


class Graph(NamedTuple):
    """Features of B networks.

    Attributes:
      edges: of each layer, `[B, neurons, inputs, d]`.
      nodes: `[B, 1 + neurons of all layers, n]`, the input first.
    """

    edges: tuple[Array, ...]
    nodes: Array


def _places(spec: WeightSpec) -> list[tuple[slice, slice]]:
    """Of each layer: the nodes that its edges lead to, and those that they come from."""
    found, start = [], 1
    for layer, (inputs, _) in zip(spec.layers, symmetry.input_blocks(spec), strict=True):
        end = start + layer.num_neurons
        found.append((slice(start, end), slice(start - inputs, start)))
        start = end
    return found


def _spread(spec: WeightSpec, to: Array, source: Array) -> list[Array]:
    """Features of nodes [B, nodes, h] -> sums for the edges of each layer: `to` of the neuron that
    an edge leads to, `source` of the one that it comes from."""
    return [to[:, ends, None] + source[:, None, starts] for ends, starts in _places(spec)]


def _collect(edges: list[Array]) -> Array:
    """Features of the edges of each layer [B, neurons, inputs, h] -> of nodes [B, nodes, 2h]: the
    means of each neuron's incoming and of its outgoing edges, zeros where it has none."""
    incoming, outgoing = [e.mean(2) for e in edges], [e.mean(1) for e in edges]
    ends = jnp.concatenate([jnp.zeros_like(outgoing[0]), *incoming], axis=1)
    starts = jnp.concatenate([*outgoing, jnp.zeros_like(incoming[-1])], axis=1)
    return jnp.concatenate([ends, starts], axis=-1)


def _dense(features: int, dtype: str, name: str, init=None, bias: bool = True) -> nn.Dense:
    """A dense layer in the precision that JAX is set to, or with operands in bfloat16."""
    return nn.Dense(
        features,
        use_bias=bias,
        kernel_init=init or variance_scaling(1.0, "fan_in", "normal"),
        name=name,
        dot_general=as_dot_general(bfloat16_product if dtype == "bfloat16" else product),
    )


class Embed(nn.Module):
    """Several vectors of each network float32[B, V, D] -> its graph.

    Learned positions tell edges and nodes apart; with `equivariant` hidden neurons have none.
    """

    config: GraphConfig
    spec: WeightSpec

    @nn.compact
    def __call__(self, vectors_BxVxD: Array) -> Graph:
        c, dtype = self.config, self.config.dtype
        batch, count, _ = vectors_BxVxD.shape
        positions = functools.partial(self.param, init_fn=normal(_POSITION_STD))
        edges, nodes = [], [jnp.zeros((batch, 1, c.node_dim))]
        tokens = weights.tokenize(self.spec, vectors_BxVxD)
        blocks = symmetry.input_blocks(self.spec)
        for layer, token, (inputs, block) in zip(self.spec.layers, tokens, blocks, strict=True):
            kernel = token[..., : inputs * block].reshape(batch, count, -1, inputs, block)
            kernel = kernel.transpose(0, 2, 3, 1, 4).reshape(batch, -1, inputs, count * block)
            edge = _dense(c.edge_dim, dtype, f"edge_{layer.name}")(kernel)
            if not c.equivariant:
                position = positions(f"position_{layer.name}", shape=edge.shape[1:])
                edge += position[None]
            edges.append(edge)
            node = jnp.zeros((batch, layer.num_neurons, c.node_dim))
            if layer.values:
                values = token[..., inputs * block :].transpose(0, 2, 1, 3)
                values = values.reshape(batch, layer.num_neurons, -1)
                node = _dense(c.node_dim, dtype, f"node_{layer.name}")(values)
            nodes.append(node)
        nodes = jnp.concatenate(nodes, axis=1)
        known = np.arange(nodes.shape[1])
        if c.equivariant:
            known = np.append(0, known[-self.spec.layers[-1].num_neurons :])
        position = positions("positions", shape=(len(known), c.node_dim))
        return Graph(tuple(edges), nodes.at[:, known].add(position[None]))


class Round(nn.Module):
    """One round of messages; `condition` [B, C], if there is one, shifts what edges and nodes
    compute."""

    config: GraphConfig
    spec: WeightSpec

    @nn.compact
    def __call__(self, graph: Graph, condition_BxC: Array | None = None) -> Graph:
        c, dtype = self.config, self.config.dtype
        edges, nodes = graph
        norm = functools.partial(nn.LayerNorm, use_bias=False)

        def shift_of(features: int, name: str) -> Array:
            if condition_BxC is None:
                return self.param(name, zeros, (1, features))
            return _dense(features, dtype, name)(condition_BxC)

        # Edges: from themselves, their two neurons and the noise level.
        shift = shift_of(c.edge_hidden, "edge_condition")
        ends = _dense(2 * c.edge_hidden, dtype, "ends", bias=False)(norm(name="norm_ends")(nodes))
        to, source = jnp.split(ends, 2, axis=-1)
        sums = _spread(self.spec, to + shift[:, None], source)
        norm_edges, inner = (
            norm(name="norm_edges"),
            _dense(c.edge_hidden, dtype, "edge_in", bias=False),
        )
        outer = _dense(c.edge_dim, dtype, "edge_out", bias=False)
        hidden = [nn.gelu(inner(norm_edges(e)) + x) for e, x in zip(edges, sums, strict=True)]
        edges = tuple(e + outer(h) for e, h in zip(edges, hidden, strict=True))
        # Nodes: from their edges, from one another, and from themselves and the noise level.
        nodes += _dense(c.node_dim, dtype, "messages")(_collect(hidden))
        nodes += Attention(c.heads, dtype, name="attention")(norm(name="norm_attention")(nodes))
        shift = shift_of(c.node_hidden, "node_condition")
        h = _dense(c.node_hidden, dtype, "node_in", bias=False)(norm(name="norm_mlp")(nodes))
        nodes += _dense(c.node_dim, dtype, "node_out")(nn.gelu(h + shift[:, None]))
        return Graph(edges, nodes)


class Attention(nn.Module):
    """Multi-head self-attention over nodes [B, T, n]."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x_BxTxd: Array) -> Array:
        batch, nodes, dim = x_BxTxd.shape
        qkv = _dense(3 * dim, self.dtype, "qkv", bias=False)(x_BxTxd)
        qkv = qkv.reshape(batch, nodes, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        q, k, v = qkv
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        shares = jax.nn.softmax(scores)
        mixed = (shares @ v).transpose(0, 2, 1, 3).reshape(batch, nodes, dim)
        return _dense(dim, self.dtype, "out", bias=False)(mixed)


class Readout(nn.Module):
    """A graph -> weight vectors float32[B, D], zeros at the start of training."""

    config: GraphConfig
    spec: WeightSpec

    @nn.compact
    def __call__(self, graph: Graph) -> Array:
        dtype = self.config.dtype
        norm_edges = nn.LayerNorm(name="norm_edges")
        nodes, tokens = nn.LayerNorm(name="norm_nodes")(graph.nodes), []
        blocks = symmetry.input_blocks(self.spec)
        layers = zip(self.spec.layers, graph.edges, blocks, _places(self.spec), strict=True)
        for layer, edges, (_, block), (ends, _) in layers:
            kernel = _dense(block, dtype, f"edge_{layer.name}", zeros)(norm_edges(edges))
            parts = [kernel.reshape(len(nodes), layer.num_neurons, -1)]
            if layer.values:
                values = _dense(len(layer.values), dtype, f"node_{layer.name}", zeros)
                parts.append(values(nodes[:, ends]))
            tokens.append(jnp.concatenate(parts, axis=-1))
        return weights.detokenize(self.spec, tokens)


def condition_embedding(log_sigma: Array, quantile: Array) -> Array:
    """Logarithms of noise levels float32[B] and quantiles of quality float32[B], negative where
    unknown -> float32[B, 3 + 4 * frequencies]."""
    known = (quantile >= 0)[:, None]
    parts = [log_sigma[:, None]]
    rates = np.linspace(0.5, 4, _FREQUENCIES, dtype=np.float32)[None]
    for value, shown in ((log_sigma, True), (2 * quantile - 1, known)):
        phase = value[:, None] * rates
        parts += [jnp.where(shown, wave(phase), 0) for wave in (jnp.sin, jnp.cos)]
    parts += [known.astype(jnp.float32), jnp.where(known, 2 * quantile[:, None] - 1, 0)]
    return jnp.concatenate(parts, axis=-1)


class GraphDenoiser(nn.Module):
    """What a linear denoiser misses, of networks at a noise level and of a quality."""

    config: GraphConfig
    spec: WeightSpec

    @nn.compact
    def __call__(self, vectors_BxVxD: Array, log_sigma_B: Array, quantile_B: Array) -> Array:
        c, dtype = self.config, self.config.dtype
        known = condition_embedding(log_sigma_B, quantile_B)
        condition = nn.silu(_dense(c.condition_dim, dtype, "condition")(known))
        graph = Embed(c, self.spec, name="embed")(vectors_BxVxD)
        for i in range(c.rounds):
            graph = Round(c, self.spec, name=f"round_{i}")(graph, condition)
        return Readout(c, self.spec, name="readout")(graph)
