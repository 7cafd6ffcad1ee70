"""One architecture as two pure functions on flat weight vectors."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.models.cnn import ZooCNN, init_vector, zoo_cnn_spec
from hyperjax.types import Array, Images, Key
from hyperjax.weights import WeightSpec


class Network(NamedTuple):
    """A pair of functions, like a transformation of Optax; both work under jit, vmap and grad.

    Attributes:
      init: `init(key, name="torch_default") -> float32[D]`, initial weights by the name of an
        initialisation (`ZooConfig.init`).
      apply: `apply(vector float32[D], images) -> logits float32[N, 10]`. `Images` are normalised
        by their mean and standard deviation, an array float32[N, 28, 28, C] is taken as it is.
    """

    init: Callable[..., Array]
    apply: Callable[[Array, Images | Array], Array]


def network(spec: WeightSpec) -> Network:
    """The network that a spec lays out.

    Raises HyperJaxError if it is none of the zoo's CNNs; `apply` does so for images that the
    network does not take.

    >>> net = hj.network(zoo.spec)
    >>> net.apply(zoo.weights[0, -1], images.test).shape
    (450, 10)
    """
    check_known(spec)
    return Network(functools.partial(_init, spec), functools.partial(_apply, spec))


def check_known(spec: WeightSpec) -> None:
    """Raises HyperJaxError if a spec is none of the zoo's CNNs."""
    channels = spec.layers[0].shape[1]
    if spec != zoo_cnn_spec(channels, spec.activation):
        raise HyperJaxError(
            f"no network is known for the layers {', '.join(spec.names)} with "
            f"{spec.num_params} weights; there is the zoo's CNN"
        )


def _init(spec: WeightSpec, key: Key, name: str = "torch_default") -> Array:
    return init_vector(spec, name, key)


def _apply(spec: WeightSpec, vector: Array, images: Images | Array) -> Array:
    if isinstance(images, Images):
        scale, shift = 1 / (255 * images.std), -images.mean / images.std
        x = images.pixels * scale[None, None, None] + shift[None, None, None]
    elif np.issubdtype(images.dtype, np.integer):
        raise HyperJaxError(
            "pixels without their normalisation: expected hyperjax.Images, or floats that have "
            "been normalised as the zoo's images were"
        )
    else:
        x = images
    expected = (28, 28, spec.layers[0].shape[1])
    if x.ndim != 4 or x.shape[1:] != expected:
        raise HyperJaxError(f"images of shape {x.shape}; expected [N, 28, 28, {expected[-1]}]")
    params = weights.unflatten(spec, jnp.asarray(vector))
    return ZooCNN(spec.activation).apply({"params": params}, jnp.asarray(x, jnp.float32))
