"""Running statistics of batch normalisation, measured again.

Running statistics describe what the weights before them make of images. Those that a sampler draws,
or an average of networks has, describe other networks' activations; stochastic weight averaging
(Izmailov et al. 2018, section 3.2) measures them anew on training images, and so does this.

>>> samples = update_batch_norm(zoo.spec, samples, train_images)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.models import conv
from hyperjax.models.sequential import activate, activation_fn, columns, linear, preactivation
from hyperjax.population import repair
from hyperjax.population.engine import normalize
from hyperjax.types import Array, Images
from hyperjax.weights import WeightSpec


def update_batch_norm(
    spec: WeightSpec, vectors: Array, images: Images, *, batch_size: int | None = None
) -> Array:
    """Networks float32[M, D] whose running means and variances are those of images.

    Layer by layer, on what the layers before hand on with their new statistics: means over all
    images and positions, and variances divided by their number less one, as PyTorch's. All other
    weights stay as they are. A network with values that are not finite gets such statistics, and no
    other does. All images pass at once: some 1,000 do.

    Args:
      spec: a sequential architecture with batch normalisation.
      vectors: networks float32[M, D].
      images: two or more.
      batch_size: networks that are computed at once, which bounds the memory.

    Raises HyperJaxError if no layer has running statistics, and for shapes that do not fit.

    >>> hidden = hj.LayerSpec("fc1", "dense", (4, 784), norm="batch")
    >>> spec = hj.WeightSpec((hidden, hj.LayerSpec("fc2", "dense", (10, 4))), "relu")
    >>> networks = jnp.ones((2, spec.num_params))
    >>> hj.update_batch_norm(spec, networks, images.train).shape
    (2, 3206)
    """
    if not any(layer.norm == "batch" for layer in spec.layers):
        raise HyperJaxError(f"no layer of {', '.join(spec.names)} has batch normalisation")
    if len(images.pixels) < 2:
        raise HyperJaxError("one image has no variance: expected two or more")
    inputs = normalize(images, np.arange(len(images.pixels)))
    repair.check_batch(spec, vectors, inputs)
    return _update(spec, jnp.asarray(vectors, jnp.float32), jnp.asarray(inputs), batch_size)


@functools.partial(jax.jit, static_argnames=("spec", "batch_size"))
def _update(spec: WeightSpec, vectors: Array, inputs: Array, batch_size: int | None) -> Array:
    def one(vector):
        return _update_member(spec, vector, inputs)

    return repair.over_networks(one, vectors, batch_size)


def _update_member(spec: WeightSpec, vector: Array, inputs: Array) -> Array:
    act, params = activation_fn(spec.activation), weights.unflatten(spec, vector)
    x = columns(inputs)
    form = conv.default_form(jax.default_backend())
    for layer in spec.layers:
        own = params[layer.name]
        if layer.norm == "batch":
            z = linear(layer, own, x, form)
            count = z[0].size
            own["mean"], variance = repair.moments(z)
            own["var"] = variance * count / (count - 1)
        x = activate(layer, act, preactivation(layer, own, x, form))
    return weights.flatten(spec, params)
