"""Initial weights of networks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hyperjax import weights
from hyperjax.errors import unknown
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec

BIAS = 0.01  # every bias of the published zoos starts here

_VALUES = {"bias": BIAS, "scale": 1.0, "shift": 0.0, "mean": 0.0, "var": 1.0}

# Variance of a weight, from the neuron's fan-in and the layer's fan-out, and its distribution.
_INITS: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "uniform": ("unit", lambda fan_in, fan_out: 1.0),  # U[0, 1), the paper's wide start
    "normal": ("normal", lambda fan_in, fan_out: 1.0),
    "kaiming_uniform": ("uniform", lambda fan_in, fan_out: 2 / fan_in),
    "kaiming_normal": ("normal", lambda fan_in, fan_out: 2 / fan_in),
    "xavier_uniform": ("uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "xavier_normal": ("normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    # PyTorch's own default, U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    "torch_default": ("uniform", lambda fan_in, fan_out: 1 / (3 * fan_in)),
}


def init_vector(spec: WeightSpec, name: str, key: Key) -> Array:
    """Initial weights of one network as a flat vector, float32[D]; every bias is 0.01, every
    normalisation changes nothing.

    One draw for all layers: XLA takes many times longer to compile one per layer.
    """
    if name not in _INITS:
        raise unknown("initialisation", name, _INITS)
    distribution, variance = _INITS[name]
    if distribution == "normal":
        draws = jax.random.normal(key, (spec.num_params,))
    elif distribution == "uniform":  # of variance one
        draws = jax.random.uniform(key, (spec.num_params,), minval=-1, maxval=1) * math.sqrt(3)
    else:
        draws = jax.random.uniform(key, (spec.num_params,))
    blocks = []
    for layer, part in zip(spec.layers, spec.slices, strict=True):
        window = math.prod(layer.shape[2:])
        fans = math.prod(layer.shape[1:]), layer.num_neurons * window
        scaled = weights.split_layer(layer, draws[part])[0] * math.sqrt(variance(*fans))
        values = [jnp.full(layer.num_neurons, _VALUES[name]) for name in layer.values]
        blocks += [scaled.ravel(), *values]
    return jnp.concatenate(blocks)
