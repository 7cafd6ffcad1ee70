"""State dicts of PyTorch and parameters of Flax, as layouts of weights and as flat vectors.

A state dict names tensors, it does not say how they are connected. `spec_of` takes its layers in
the order of their names' numbers, or as they stand, and says what it has assumed.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.models import architectures, sequential
from hyperjax.weights import LayerSpec, WeightSpec

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "params")
_PREFIXES = ("module.", "_orig_mod.")
_NAMES = {"scale": "norm.weight", "shift": "norm.bias", "mean": "norm.running_mean",
          "var": "norm.running_var"}  # fmt: skip
_SIZES = [(28, 28), (32, 32)]  # of images, that are tried where nobody says


class Layout(NamedTuple):
    """How a network's tensors make a flat vector.

    Attributes:
      spec: the architecture.
      names: of the tensors of each layer: its weights, then what its neurons have besides
        (`LayerSpec.values`), a bias and the tensors of a normalisation.
      assumed: what nothing in the tensors says, as sentences.
    """

    spec: WeightSpec
    names: tuple[tuple[str, ...], ...]
    assumed: tuple[str, ...] = ()


def unwrapped(found: Any) -> dict[str, np.ndarray]:
    """The tensors of what a file holds: of a state dict, or of one inside a checkpoint.

    Raises HyperJaxError if there are none.
    """
    for _ in range(len(_WRAPPERS)):
        if not isinstance(found, Mapping):
            break
        inner = next((found[name] for name in _WRAPPERS if _is_mapping(found.get(name))), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping):
        raise HyperJaxError(f"no state dict, but a {type(found).__name__}")
    tensors = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            continue
        if value.ndim and (value.dtype.kind == "f" or value.dtype.name == "bfloat16"):
            tensors[bare(name)] = value
    if not tensors:
        raise HyperJaxError(
            f"no tensors of weights in it; expected a state dict, or one under "
            f"{', '.join(_WRAPPERS)}"
        )
    return tensors


def bare(name: str) -> str:
    """A tensor's name without what wrappers of modules put before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def flax_tensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flax parameters {layer: {kernel, bias}} as a state dict in PyTorch's axis order."""
    tensors = {}
    for name, layer in params.items():
        if not isinstance(layer, Mapping) or "kernel" not in layer:
            raise HyperJaxError(f"parameters {name!r} have no kernel; expected {{kernel, bias}}")
        kernel = np.asarray(layer["kernel"])
        tensors[f"{name}.weight"] = kernel.transpose((3, 2, 0, 1) if kernel.ndim == 4 else None)
        others = (part for part in layer if part != "kernel")
        tensors |= {f"{name}.{_NAMES.get(part, part)}": np.asarray(layer[part]) for part in others}
    return tensors


def spec_of(
    state: Mapping[str, Any],
    *,
    activation: str,
    image_size: tuple[int, int] | None = None,
    model: str = "",
) -> Layout:
    """Infer the architecture of a state dict {name: tensor} or of Flax parameters.

    Args:
      state: tensors of one network; only their shapes are looked at.
      activation: the nonlinearity between the layers, which no tensor tells.
      image_size: height and width of the network's images; None: found out where possible.
      model: the architecture, by name ("" to infer it): one of `ARCHITECTURES` or
        "module:function", whose shapes the tensors must have.

    Returns the spec with the names of each layer's tensors, and what was assumed: a state dict does
    not tell strides, padding and pooling. A known architecture of these shapes is taken first; else
    2 x 2 max-pooling is taken to follow those convolutions with which the dense layers fit.

    A normalisation belongs to the layer of its number with as many neurons ("bn2" to "conv2"), or
    to the one before it. With running statistics it is batch normalisation, without them layer
    normalisation, or group normalisation in one group.

    Raises HyperJaxError, naming the tensor, for what is no sequence of convolutions, dense layers
    and normalisations.

    >>> layout = hj.spec_of(hj.unflatten(zoo.spec, zoo.weights[0, -1]), activation="tanh")
    >>> layout.spec == zoo.spec
    True
    """
    if any(isinstance(value, Mapping) for value in state.values()):
        state = flax_tensors(state)
    layers = _layers(state)
    names = tuple(layer.names for layer in layers)
    if model:
        return Layout(_known(model, layers, activation, image_size), names)
    for name in architectures.ARCHITECTURES:
        for size in [image_size] if image_size else _SIZES:
            found = _matching(name, layers, activation, size)
            if found:
                return Layout(found, names, (f"that it is the architecture {name}",))
    return _inferred(layers, names, activation, image_size)


class _Found(NamedTuple):
    """One layer of a state dict."""

    names: tuple[str, ...]  # of its tensors
    shape: tuple[int, ...]
    bias: bool
    norm: str = ""

    @property
    def kind(self) -> tuple:
        """All that an architecture has to share."""
        return self.shape, self.bias, self.norm


def _layers(state: Mapping[str, Any]) -> list[_Found]:
    """Layers in their order: tensors of two or four axes with the bias of their name; and to which
    of them each normalisation belongs, tensors of one axis."""
    tensors = {name: tuple(np.shape(value)) for name, value in state.items()}
    stems = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    layers: dict[str, _Found] = {}
    for stem in _in_order(stems):
        shape, bias = tensors[f"{stem}.weight"], tensors.get(f"{stem}.bias")
        if bias is not None and bias != shape[:1]:
            raise HyperJaxError(f"tensor {stem}.bias {list(bias)}; expected {[shape[0]]}")
        names = (f"{stem}.weight",) if bias is None else (f"{stem}.weight", f"{stem}.bias")
        if len(shape) in (2, 4):
            layers[stem] = _Found(names, shape, bias is not None)
        elif len(shape) == 1 and bias is not None:
            running = tuple(f"{stem}.running_{name}" for name in ("mean", "var"))
            norm = "batch" if running[0] in tensors else "group"
            owner = _owner(stem, shape[0], layers)
            names = (*layers[owner].names, *names, *(running if norm == "batch" else ()))
            layers[owner] = layers[owner]._replace(names=names, norm=norm)
        else:
            raise HyperJaxError(
                f"tensor {stem}.weight {list(shape)} has {len(shape)} axes: networks are sequences "
                "of convolutions (4 axes), dense layers (2), and normalisations (1, with a bias)"
            )
    left = tensors.keys() - {name for layer in layers.values() for name in layer.names}
    if left or not layers:
        raise HyperJaxError(
            f"tensors that belong to no layer: {', '.join(sorted(left)) or 'there are none at all'}"
            "; expected NAME.weight, and NAME.bias"
        )
    return list(layers.values())


def _owner(norm: str, neurons: int, layers: Mapping[str, _Found]) -> str:
    """The layer whose outputs are normalised: the one that its name begins with ("conv1.norm"), or
    of the same number at the end of its name, else the last one so far; of as many neurons, and not
    normalised yet."""
    free = [s for s, x in layers.items() if x.shape[0] == neurons and not x.norm]
    number = re.search(r"\d+$", norm)
    same = [s for s in free if number and re.search(r"\d+$", s) and s.endswith(number[0])]
    if not free:
        raise HyperJaxError(
            f"tensor {norm}.weight [{neurons}] is a normalisation of no layer before it: none has "
            f"{neurons} neurons that are not normalised yet"
        )
    parent = norm.rpartition(".")[0]
    if parent in free:
        return parent
    return same[0] if same and not norm.isdigit() else free[-1]


def _in_order(stems: list[str]) -> list[str]:
    """By their numbers, where all differ in one number alone ("module_list.3", "layers.11"); as
    they stand in the file otherwise."""
    numbered = [re.fullmatch(r"(.*?)(\d+)", stem) for stem in stems]
    if all(numbered) and len({match[1] for match in numbered}) == 1:
        return sorted(stems, key=lambda stem: int(re.fullmatch(r"(.*?)(\d+)", stem)[2]))
    return stems


def _known(
    model: str, layers: list[_Found], activation: str, image_size: tuple[int, int] | None
) -> WeightSpec:
    """The architecture of that name, whose shapes the layers must have."""
    if ":" not in model and model not in architectures.ARCHITECTURES:
        raise unknown("architecture", model, (*architectures.ARCHITECTURES, "module:function"))
    sizes = [image_size] if image_size else _SIZES
    for size in sizes:
        spec = _matching(model, layers, activation, size)
        if spec is not None:
            return spec
    shapes = ", ".join("x".join(map(str, layer.shape)) for layer in layers)
    tried = " or ".join(f"{h} x {w}" for h, w in sizes)
    raise HyperJaxError(f"layers of shapes {shapes} are no {model} for images of {tried} pixels")


def _matching(
    model: str, layers: list[_Found], activation: str, image_size: tuple[int, int]
) -> WeightSpec | None:
    """The architecture `model`, if its layers have these shapes."""
    first, classes = layers[0].shape, layers[-1].shape[0]
    pixels = 1 if len(first) == 4 else math.prod(image_size)
    if first[1] % pixels:
        return None
    widths = [layer.shape[0] for layer in layers[:-1]]
    try:
        spec = architectures.architecture(
            model, channels=first[1] // pixels, activation=activation, image_size=image_size,
            classes=classes, widths=widths,
        )  # fmt: skip
    except HyperJaxError:
        if ":" in model:
            raise
        return None
    ours = [(layer.shape, layer.bias, layer.norm) for layer in spec.layers]
    return spec if ours == [layer.kind for layer in layers] else None


def _inferred(
    layers: list[_Found],
    names: tuple[tuple[str, ...], ...],
    activation: str,
    image_size: tuple[int, int] | None,
) -> Layout:
    """With convolutions pooled such that all layers fit together."""
    for size in [image_size] if image_size else _SIZES:
        spec = _sequence(layers, _pools(layers, size), activation, size)
        try:
            sequential.output_sizes(spec)
        except HyperJaxError as error:
            problem = error
            continue
        assumed = [f"images of {size[0]} x {size[1]} pixels"]
        if any(layer.norm for layer in layers):
            assumed.append("normalisations before pooling and activation")
        if spec.layers[0].kind == "conv":
            pooled = [s.name for s in spec.layers if s.pool]
            assumed += ["stride 1 and no padding", f"2 x 2 max-pooling after {pooled or 'none'}"]
        return Layout(spec, names, tuple(assumed))
    raise HyperJaxError(
        f"no sequence of valid convolutions, with or without 2 x 2 max-pooling, has these shapes "
        f"for images of {size[0]} x {size[1]} pixels ({problem}); name the architecture, as cnn3 "
        "or module:function"
    )


def _pools(layers: list[_Found], size: tuple[int, int]) -> list[str]:
    """How each convolution is pooled so that the first dense layer gets as many inputs as it has:
    of several ways that with the last convolutions pooled; if there is none, not at all.

    Of all ways to the same size, one is followed: time is linear in the number of layers.
    """
    convolutions = [layer for layer in layers if len(layer.shape) == 4]
    inputs = next((layer.shape[1] for layer in layers if len(layer.shape) == 2), 0)
    ways, channels = {size: 0}, 0  # size -> bits of the convolutions that are not pooled
    for place, layer in enumerate(convolutions):
        channels, _, *window = layer.shape
        found: dict[tuple[int, int], int] = {}
        for pixels, way in ways.items():
            rows, columns = (n - side + 1 for n, side in zip(pixels, window, strict=True))
            for after, bits in (
                ((rows // 2, columns // 2), way),
                ((rows, columns), way | 1 << place),
            ):
                if min(after) > 0:
                    found[after] = min(bits, found.get(after, bits))
        ways = found
    fitting = (way for pixels, way in ways.items() if channels * math.prod(pixels) == inputs)
    way = min(fitting, default=-1)
    return ["" if way >> place & 1 else "max" for place in range(len(convolutions))]


def _sequence(
    layers: list[_Found], pools: list[str], activation: str, image_size: tuple[int, int]
) -> WeightSpec:
    """Layers named as ours are: conv1, conv2, fc1."""
    specs: list[LayerSpec] = []
    for layer in layers:
        kind, stem = ("conv", "conv") if len(layer.shape) == 4 else ("dense", "fc")
        number = sum(spec.kind == kind for spec in specs)
        pool = pools[number] if kind == "conv" else ""
        name = f"{stem}{number + 1}"
        specs.append(
            LayerSpec(name, kind, layer.shape, bias=layer.bias, pool=pool, norm=layer.norm)
        )
    return WeightSpec(tuple(specs), activation, image_size)


def to_vector(layout: Layout, state: Mapping[str, np.ndarray]) -> np.ndarray:
    """The flat vector float32[D] of a state dict.

    Raises HyperJaxError, naming the tensor, if one is missing, left over or of another shape.
    """
    known = {name for names in layout.names for name in names}
    for word, names in (("lacks", known - state.keys()), ("also has", state.keys() - known)):
        if names:
            raise HyperJaxError(f"the state dict {word} {', '.join(sorted(names))}")
    blocks = []
    for name, shape in shapes(layout).items():
        if state[name].shape != shape:
            raise HyperJaxError(
                f"tensor {name} has shape {list(state[name].shape)}; expected {list(shape)}"
            )
        blocks.append(np.asarray(state[name], np.float32).ravel())
    return np.concatenate(blocks)


def shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Of all tensors, in the order of the vector."""
    return {
        name: layer.shape if place == 0 else layer.shape[:1]
        for layer, names in zip(layout.spec.layers, layout.names, strict=True)
        for place, name in enumerate(names)
    }


def to_state(layout: Layout, vector: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `to_vector`."""
    spec, state = layout.spec, {}
    for layer, part, names in zip(spec.layers, spec.slices, layout.names, strict=True):
        kernel, values = weights.split_layer(layer, np.asarray(vector, np.float32)[part])
        tensors = [kernel, *values.reshape(len(layer.values), layer.num_neurons)]
        state |= {name: np.ascontiguousarray(x) for name, x in zip(names, tensors, strict=True)}
    return state


def default_layout(spec: WeightSpec) -> Layout:
    """The names NAME.weight and NAME.bias, by the layers' own, and NAME.norm.weight and so on."""
    names = tuple(
        (f"{layer.name}.weight", *(f"{layer.name}.{_NAMES.get(v, v)}" for v in layer.values))
        for layer in spec.layers
    )
    return Layout(spec, names)
