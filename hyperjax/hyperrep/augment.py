"""Augmentations of weight vectors, drawn fresh on the device for every view.

Order: mix -> permute -> noise -> erase. Mixing and permuting make another network of the
population from raw weights; noise and erasing corrupt the autoencoder's input, where zero
stands for the train members' mean if the inputs are centred, and for zero weights if not.
"""

import jax
import jax.numpy as jnp

from hyperjax import symmetry
from hyperjax.config import AugmentConfig
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec

ERASED = (0.02, 0.33)  # range of the erased block's share of the vector (published)


def erase_block(key: Key, vector: Array, scale: tuple[float, ...]) -> Array:
    """Set one contiguous block of the flat vector [D] to zero.

    The block's share of the vector is uniform in `scale`; its position is uniform among
    those where it fits.
    """
    size = vector.shape[-1]
    key_length, key_start = jax.random.split(key)
    share = jax.random.uniform(key_length, minval=scale[0], maxval=scale[1])
    length = jnp.floor(size * share).astype(jnp.int32)
    start = jnp.floor(jax.random.uniform(key_start) * (size - length + 1)).astype(jnp.int32)
    position = jnp.arange(size)
    return jnp.where((position >= start) & (position < start + length), 0.0, vector)


def mix_members(key: Key, vectors: Array, probability: float) -> Array:
    """Replace rows of [B, D], with `probability`, by a random convex combination with another.

    Meaningful for aligned members only: averages of unaligned networks are no networks.
    """
    key_partner, key_weight, key_apply = jax.random.split(key, 3)
    partners = jnp.asarray(vectors)[jax.random.permutation(key_partner, len(vectors))]
    share = jax.random.uniform(key_weight, (len(vectors), 1))
    apply = jax.random.bernoulli(key_apply, probability, (len(vectors), 1))
    return jnp.where(apply, share * vectors + (1 - share) * partners, vectors)


def networks(key: Key, spec: WeightSpec, config: AugmentConfig, vectors: Array) -> Array:
    """Other networks of the same population: raw vectors [B, D], mixed while they are aligned, and
    permuted."""
    key_permute, key_mix = jax.random.split(key)
    if config.mix:
        vectors = mix_members(key_mix, vectors, config.mix)
    if config.permute:
        vectors = permute(key_permute, spec, vectors)
    return vectors


def permute(key: Key, spec: WeightSpec, vectors: Array) -> Array:
    """A fresh random symmetry (permutation, and sign where it is one) of every row of [B, D]."""

    def one(key, vector):
        return symmetry.apply(spec, symmetry.random_transform(key, spec), vector)

    return jax.vmap(one)(jax.random.split(key, len(vectors)), vectors)


def corrupt(key: Key, config: AugmentConfig, inputs: Array) -> Array:
    """Noise and erasing of autoencoder inputs [B, D]."""
    key_noise, key_erase, key_apply = jax.random.split(key, 3)
    if config.noise:
        inputs = inputs + config.noise * jax.random.normal(key_noise, inputs.shape)
    if config.erase:
        keys = jax.random.split(key_erase, len(inputs))
        erased = jax.vmap(lambda k, x: erase_block(k, x, ERASED))(keys, inputs)
        apply = jax.random.bernoulli(key_apply, config.erase, (len(inputs), 1))
        inputs = jnp.where(apply, erased, inputs)
    return inputs
