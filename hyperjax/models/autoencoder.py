"""The hyper-representation's attention autoencoder (paper section 3, appendix B).

Neuron tokens -> per-layer linear embedding, compression token, learned positions, pre-norm
transformer blocks -> linear bottleneck with tanh -> latent; the decoder mirrors it. A
projection head maps latents to the space of the contrastive loss.

Not in the paper: `linear_path` adds a linear encoder and decoder beside the attention, which
`hyperrep.linear` fits to the train members in closed form and which is then
fixed. The attention starts at zero and learns what it misses (docs/design.md).

With `network="graph"`, messages between neurons and along edges (`models.graph`) stand in for the
attention over tokens, which knows nothing of which weight connects which neurons. On both sides of
the linear path's maps E and D, or of trained ones, networks are computed from networks,

    z = tanh(E (x + F(x, D tanh(E x)))),    y = D z + G(D z),

so that no weights of theirs grow with the latent.

With `variational` it is a variational autoencoder (paper appendix E): the encoder gives a Gaussian.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal, normal, variance_scaling, zeros
from jax import lax

from hyperjax import weights
from hyperjax.config import ArchitectureConfig, GraphConfig
from hyperjax.models.graph import Embed, Readout, Round
from hyperjax.models.product import as_dot_general, product
from hyperjax.types import Array
from hyperjax.weights import WeightSpec


def _dense(features: int, dtype, name: str | None = None, kernel_init=None) -> nn.Dense:
    init = kernel_init or variance_scaling(1.0, "fan_avg", "uniform")
    # a layer of bfloat16 has its results in it as well
    compute = as_dot_general(product) if jnp.dtype(dtype) == jnp.float32 else None
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name, dot_general=compute)


class Dropout(nn.Module):
    """Zero a share `rate` of the values, in steps of 1/256, and scale up the others.

    One random byte decides a value: a fourth of the random numbers of flax's, which would take
    a tenth of a training step.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        threshold = round(256 * self.rate)
        if not train or not threshold:
            return x
        *batch, last = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (*batch, -(-last // 4)))
        draws = lax.bitcast_convert_type(words, jnp.uint8).reshape(*batch, -1)[..., :last]
        return jnp.where(draws >= threshold, x * (256 / (256 - threshold)), 0)


class Attention(nn.Module):
    """Multi-head attention softmax(q k' / sqrt(d / heads)) v, with dropout: the tokens
    [B, S, d] attend to [B, T, d]."""

    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxd: Array, context_BxTxd: Array, *, train: bool) -> Array:
        *batch, dim = x_BxSxd.shape
        q = _dense(dim, self.dtype, "q", lecun_normal())(x_BxSxd)
        kv = _dense(2 * dim, self.dtype, "kv", lecun_normal())(context_BxTxd)
        q = q.reshape(*batch, self.heads, -1)
        k, v = jnp.split(kv.reshape(*context_BxTxd.shape[:-1], 2 * self.heads, -1), 2, axis=-2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / math.sqrt(q.shape[-1]), k)
        # exponentials and their sum in float32, whatever the dtype of the activations
        shares = jax.nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", Dropout(self.dropout)(shares, train=train), v)
        return _dense(dim, self.dtype, "out", lecun_normal())(mixed.reshape(*batch, dim))


class Block(nn.Module):
    """Pre-norm transformer block on [B, T, d]: attention over tokens, then a ReLU MLP.

    With `outputs`, only the first so many tokens are computed, from all tokens.
    """

    heads: int
    mlp_dim: int
    dropout: float
    dtype: jnp.dtype
    outputs: int | None = None

    @nn.compact
    def __call__(self, x_BxTxd: Array, *, train: bool) -> Array:
        dim, drop = x_BxTxd.shape[-1], functools.partial(Dropout(self.dropout), train=train)
        h = nn.LayerNorm(dtype=self.dtype, name="norm_attention")(x_BxTxd)
        attention = Attention(self.heads, self.dropout, self.dtype, name="attention")
        h = attention(h[:, : self.outputs], h, train=train)
        x_BxSxd = x_BxTxd[:, : self.outputs] + drop(h)
        h = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")(x_BxSxd)
        h = drop(nn.relu(_dense(self.mlp_dim, self.dtype, "mlp_in")(h)))
        return x_BxSxd + drop(_dense(dim, self.dtype, "mlp_out")(h))


class Fixed(nn.Module):
    """Linear map that is not trained: `hyperrep.linear` fits it in closed form."""

    features: int

    @nn.compact
    def __call__(self, x_BxF: Array) -> Array:
        shape = (x_BxF.shape[-1], self.features)
        return x_BxF @ lax.stop_gradient(self.param("kernel", zeros, shape))


def _linear_map(c: ArchitectureConfig, features: int, name: str, init: Callable) -> nn.Module:
    """The linear path, or without one a layer in its place that is trained."""
    if c.linear_path:
        return Fixed(features, name="linear")
    return _dense(features, jnp.float32, name, init)


def _messages(config: GraphConfig, spec: WeightSpec, vectors_BxVxD: Array) -> tuple[Array, Array]:
    """Inside a compact module: of networks, by messages along their edges, all nodes [B, N], and
    networks [B, D], zeros at the start of training."""
    graph = Embed(config, spec, name="embed")(vectors_BxVxD)
    for i in range(config.rounds):
        graph = Round(config, spec, name=f"round_{i}")(graph)
    found = Readout(config, spec, name="readout")(graph)
    return graph.nodes.reshape(len(graph.nodes), -1), found


class Posterior(NamedTuple):
    """What a variational encoder gives: independent Gaussians."""

    mean: Array  # float32[B, latent]
    log_variance: Array  # float32[B, latent]


class Encoder(nn.Module):
    """Scaled, centred weight vectors float32[B, D] -> latents float32[B, latent], or of a VAE
    their posterior."""

    config: ArchitectureConfig
    spec: WeightSpec

    @nn.compact
    def __call__(self, vectors_BxD: Array, *, train: bool) -> Array | Posterior:
        c = self.config
        if c.network == "graph":
            pooled, z_BxZ = self._graph(vectors_BxD)
        else:
            pooled = self._tokens(vectors_BxD, train)
            init = zeros if c.linear_path else None
            z_BxZ = _dense(c.latent, jnp.float32, "bottleneck", init)(pooled)
            if c.linear_path:
                z_BxZ = z_BxZ + Fixed(c.latent, name="linear")(vectors_BxD)
        if (
            c.variational
        ):  # at first the variance is the prior's, or what the linear path sets it to
            return Posterior(z_BxZ, _dense(c.latent, jnp.float32, "log_variance", zeros)(pooled))
        return jnp.tanh(z_BxZ) if c.tanh else z_BxZ

    def _graph(self, vectors_BxD: Array) -> tuple[Array, Array]:
        """All nodes, and latents before their tanh. The network is shown what the linear path keeps
        of it: what that loses is what it has to tell."""
        c, seen = self.config, [vectors_BxD]
        encode = _linear_map(c, c.latent, "to_latent", lecun_normal())
        if c.linear_path:
            z_BxZ = encode(vectors_BxD)
            decode = Fixed(self.spec.num_params, name="linear_decoder")
            seen.append(decode(jnp.tanh(z_BxZ) if c.tanh else z_BxZ))
        nodes, more_BxD = _messages(c.graph, self.spec, jnp.stack(seen, axis=1))
        return nodes, encode(vectors_BxD + more_BxD)

    def _tokens(self, vectors_BxD: Array, train: bool) -> Array:
        """The compression token, or all tokens, after attention."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        tokens = weights.tokenize(self.spec, vectors_BxD)
        # One embedding per layer, shared by its neurons.
        parts = [
            _dense(c.dim, dtype, f"embed_{layer.name}")(token)
            for layer, token in zip(self.spec.layers, tokens, strict=True)
        ]
        if c.compression == "token":
            token = self.param("compression_token", normal(1.0), (1, 1, c.dim))
            batch = vectors_BxD.shape[0]
            parts.insert(0, jnp.broadcast_to(token, (batch, 1, c.dim)).astype(dtype))
        x_BxTxd = jnp.concatenate(parts, axis=1)
        positions = self.param("positions", normal(1.0), (1, *x_BxTxd.shape[1:]))
        x_BxTxd = x_BxTxd + positions.astype(dtype)
        for i in range(c.blocks):
            # Of the last block only the compression token is read.
            outputs = 1 if c.compression == "token" and i == c.blocks - 1 else None
            block = Block(c.heads, c.mlp_dim, c.dropout, dtype, outputs, name=f"block_{i}")
            x_BxTxd = block(x_BxTxd, train=train)
        whole = x_BxTxd.reshape(len(x_BxTxd), -1)
        return (x_BxTxd[:, 0] if c.compression == "token" else whole).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float32[B, latent] -> scaled, centred weight vectors float32[B, D]."""

    config: ArchitectureConfig
    spec: WeightSpec

    @nn.compact
    def __call__(self, z_BxZ: Array, *, train: bool) -> Array:
        c = self.config
        if c.network == "graph":
            linear_BxD = _linear_map(c, self.spec.num_params, "from_latent", zeros)(z_BxZ)
            return linear_BxD + _messages(c.graph, self.spec, linear_BxD[:, None])[1]
        outputs_BxD = self._tokens(z_BxZ, train)
        if c.linear_path:
            outputs_BxD += Fixed(self.spec.num_params, name="linear")(z_BxZ)
        return outputs_BxD

    def _tokens(self, z_BxZ: Array, train: bool) -> Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        shape = (self.spec.num_tokens, c.dim)
        x = _dense(shape[0] * shape[1], dtype, "expand")(z_BxZ.astype(dtype))
        x_BxTxd = x.reshape(-1, *shape)
        x_BxTxd = x_BxTxd + self.param("positions", normal(1.0), (1, *shape)).astype(dtype)
        for i in range(c.blocks):
            x_BxTxd = Block(c.heads, c.mlp_dim, c.dropout, dtype, name=f"block_{i}")(
                x_BxTxd, train=train
            )
        tokens, start = [], 0
        for layer in self.spec.layers:
            end = start + layer.num_neurons
            # Zero at the start: an untrained autoencoder decodes to the train members' mean.
            out = _dense(layer.token_size, dtype, f"unembed_{layer.name}", zeros)
            tokens.append(out(x_BxTxd[:, start:end]))
            start = end
        return weights.detokenize(self.spec, tokens).astype(jnp.float32)


class ProjectionHead(nn.Module):
    """Latents -> contrastive space. LayerNorm where the published code has BatchNorm, so that
    an example's projection does not depend on the rest of its batch."""

    config: ArchitectureConfig

    @nn.compact
    def __call__(self, z_BxZ: Array) -> Array:
        c = self.config
        for i in range(c.projection_layers):
            z_BxZ = _dense(c.projection_hidden, jnp.float32, f"hidden_{i}")(z_BxZ)
            z_BxZ = nn.relu(nn.LayerNorm(name=f"norm_{i}")(z_BxZ))
        return _dense(c.projection_dim, jnp.float32, "out")(z_BxZ) if c.projection_layers else z_BxZ


class Autoencoder(nn.Module):
    """Encoder, decoder and projection head with one parameter tree."""

    config: ArchitectureConfig
    spec: WeightSpec

    def setup(self):
        self.encoder = Encoder(self.config, self.spec)
        self.decoder = Decoder(self.config, self.spec)
        self.head = ProjectionHead(self.config)

    def __call__(
        self, vectors_BxD: Array, *, train: bool
    ) -> tuple[Array | Posterior, Array, Array]:
        """Latents, reconstructions and projections of a batch.

        Of a VAE the first is the posterior. In training the decoder is given samples of it, of
        the random stream "latent", elsewhere its mean; projections are of the mean.
        """
        latents = self.encoder(vectors_BxD, train=train)
        z_BxZ, drawn_BxZ = latents, latents
        if self.config.variational:
            z_BxZ, drawn_BxZ = latents.mean, latents.mean
            if train:
                noise_BxZ = jax.random.normal(self.make_rng("latent"), z_BxZ.shape)
                drawn_BxZ = z_BxZ + jnp.exp(latents.log_variance / 2) * noise_BxZ
        return latents, self.decoder(drawn_BxZ, train=train), self.head(z_BxZ)

    def encode(self, vectors_BxD: Array) -> Array:
        latents = self.encoder(vectors_BxD, train=False)
        return latents.mean if self.config.variational else latents

    def posterior(self, vectors_BxD: Array) -> Posterior:
        return self.encoder(vectors_BxD, train=False)

    def decode(self, z_BxZ: Array) -> Array:
        return self.decoder(z_BxZ, train=False)
