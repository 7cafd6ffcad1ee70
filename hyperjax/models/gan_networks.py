"""The two networks of the GAN on latents (paper section 3.2.4; appendix E is not public)."""

import flax.linen as nn

from hyperjax.config import GanConfig
from hyperjax.types import Array


class MLP(nn.Module):
    """float32[B, F] -> float32[B, features]: hidden layers with leaky ReLU, then a linear one."""

    hidden: int
    layers: int
    features: int

    @nn.compact
    def __call__(self, x_BxF: Array) -> Array:
        for i in range(self.layers):
            x_BxF = nn.leaky_relu(nn.Dense(self.hidden, name=f"hidden_{i}")(x_BxF), 0.2)
        return nn.Dense(self.features, name="out")(x_BxF)


def make_generator(config: GanConfig, size: int) -> MLP:
    """Noise float32[B, config.noise] -> standardised latents float32[B, size]."""
    return MLP(config.hidden, config.layers, size)


def make_discriminator(config: GanConfig) -> MLP:
    """Standardised latents float32[B, Z] -> logits float32[B, 1], positive for real ones."""
    return MLP(config.hidden, config.layers, 1)
