"""The architectures that are known by name, as layouts of their weights.

- `cnn`: the paper's small network: conv 5x5 -> pool -> act, conv 5x5 -> pool -> act, conv 2x2 ->
  act, dense 20 -> act, dense. 2,464 parameters for one input channel, 2,864 for three.
- `cnn3`: the larger one of the published zoos, for 32 x 32 images: three times conv 3x3 -> pool ->
  act, dense 20 -> act, dense. 10,853 parameters for three channels.
- `unterthiner`: of the Small CNN Zoo (Unterthiner et al., "Predicting Neural Network Accuracy from
  Weights", 2020): three times conv 3x3 with stride 2 -> act, the mean over all positions, dense.
  4,970 parameters for one channel.
- `mlp`: dense layers of any widths.

Whatever else is a sequence of layers is a `WeightSpec` too; `module:function` names one's own.
"""

import importlib
import math
from collections.abc import Callable, Sequence

from hyperjax.errors import HyperJaxError, unknown
from hyperjax.models import sequential
from hyperjax.weights import LayerSpec, WeightSpec

NUM_CLASSES = 10


def zoo_cnn_spec(
    in_channels: int,
    activation: str,
    image_size: tuple[int, int] = (28, 28),
    classes: int = NUM_CLASSES,
) -> WeightSpec:
    """The paper's small network."""
    layers = (
        LayerSpec("conv1", "conv", (8, in_channels, 5, 5), pool="max"),
        LayerSpec("conv2", "conv", (6, 8, 5, 5), pool="max"),
        LayerSpec("conv3", "conv", (4, 6, 2, 2)),
    )
    return _with_dense(layers, (20, classes), activation, image_size)


def cnn3_spec(
    in_channels: int,
    activation: str,
    image_size: tuple[int, int] = (32, 32),
    classes: int = NUM_CLASSES,
) -> WeightSpec:
    """The larger network of the published zoos."""
    layers = (
        LayerSpec("conv1", "conv", (16, in_channels, 3, 3), pool="max"),
        LayerSpec("conv2", "conv", (32, 16, 3, 3), pool="max"),
        LayerSpec("conv3", "conv", (15, 32, 3, 3), pool="max"),
    )
    return _with_dense(layers, (20, classes), activation, image_size)


def unterthiner_spec(
    in_channels: int,
    activation: str,
    image_size: tuple[int, int] = (28, 28),
    classes: int = NUM_CLASSES,
) -> WeightSpec:
    """The network of the Small CNN Zoo."""
    mean = {"pool": "mean", "window": 0, "pool_last": True}
    layers = (
        LayerSpec("conv1", "conv", (16, in_channels, 3, 3), stride=2),
        LayerSpec("conv2", "conv", (16, 16, 3, 3), stride=2),
        LayerSpec("conv3", "conv", (16, 16, 3, 3), stride=2, **mean),
    )
    return _with_dense(layers, (classes,), activation, image_size)


def mlp_spec(
    in_channels: int,
    activation: str,
    image_size: tuple[int, int] = (28, 28),
    classes: int = NUM_CLASSES,
    widths: Sequence[int] = (32,),
) -> WeightSpec:
    """Dense layers of these widths, and one of the classes."""
    sequential.activation_fn(activation)
    inputs, layers = in_channels * math.prod(image_size), []
    for number, neurons in enumerate((*widths, classes), 1):
        layers.append(LayerSpec(f"fc{number}", "dense", (neurons, inputs)))
        inputs = neurons
    return WeightSpec(tuple(layers), activation, tuple(image_size))


ARCHITECTURES: dict[str, Callable[..., WeightSpec]] = {
    "cnn": zoo_cnn_spec,
    "cnn3": cnn3_spec,
    "unterthiner": unterthiner_spec,
    "mlp": mlp_spec,
}


def architecture(
    name: str,
    *,
    channels: int,
    activation: str,
    image_size: tuple[int, int],
    classes: int = NUM_CLASSES,
    widths: Sequence[int] | None = None,
) -> WeightSpec:
    """The architecture of that name for images of some size.

    Args:
      name: one of `ARCHITECTURES`, or "module:function" of your own, which is called with
        `(channels, activation, image_size, classes)` and returns a `WeightSpec`. The module is
        imported: name only what you trust.
      widths: of the hidden layers of `mlp`, of which there may be none; None: one of 32.

    Raises HyperJaxError for a name that is not known, a function that cannot be called, and layers
    that do not fit together.

    >>> hj.architecture("mlp", channels=1, activation="relu", image_size=(28, 28)).num_params
    25450
    """
    build = _function(name) if ":" in name else ARCHITECTURES.get(name)
    if build is None:
        raise unknown("architecture", name, (*ARCHITECTURES, "module:function"))
    more = {"widths": tuple(widths)} if name == "mlp" and widths is not None else {}
    try:
        spec = build(channels, activation, tuple(image_size), classes, **more)
    except TypeError as error:
        raise HyperJaxError(f"architecture {name}: {error}") from error
    return checked(name, spec, channels=channels, classes=classes)


def checked(name: str, spec: WeightSpec, *, channels: int, classes: int) -> WeightSpec:
    """The architecture `name`, if it is one, for such images."""
    if not isinstance(spec, WeightSpec):
        raise HyperJaxError(f"{name} returned a {type(spec).__name__}; expected a WeightSpec")
    sequential.output_sizes(spec)
    if (spec.channels, spec.num_classes) != (channels, classes):
        raise HyperJaxError(
            f"{name} is a network for {spec.channels} channels and {spec.num_classes} classes; "
            f"the images have {channels} and {classes}"
        )
    return spec


def is_zoo_cnn(spec: WeightSpec) -> bool:
    """Whether a network is the paper's, whatever its activation and number of channels."""
    return spec.layers == zoo_cnn_spec(spec.channels, spec.activation).layers


def _function(name: str) -> Callable[..., WeightSpec]:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # no or a relative module
        raise HyperJaxError(
            f"architecture {name}: {error}; expected module:function, of a module on the path"
        ) from error


def _with_dense(
    layers: tuple[LayerSpec, ...],
    widths: tuple[int, ...],
    activation: str,
    image_size: tuple[int, int],
) -> WeightSpec:
    """Convolutions, and dense layers of these widths after what they leave of an image."""
    sequential.activation_fn(activation)
    (size, channels), image_size = (image_size, layers[0].shape[1]), tuple(image_size)
    for layer in layers:
        size, channels = sequential.output_size(layer, size, channels), layer.num_neurons
    inputs = channels * math.prod(size)
    for number, neurons in enumerate(widths, 1):
        layers = (*layers, LayerSpec(f"fc{number}", "dense", (neurons, inputs)))
        inputs = neurons
    return WeightSpec(layers, activation, image_size)
