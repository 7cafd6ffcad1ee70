"""Networks for others: PyTorch state dicts, safetensors, Flax parameters, NumPy arrays.

PyTorch's own format is written without PyTorch: a ZIP archive of tensors and of a pickle that
builds an OrderedDict of them, which `torch.load(weights_only=True)` reads.
"""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.exchange import optimizer_state, state_dict
from hyperjax.exchange.arrays import export_small_cnn_zoo
from hyperjax.exchange.state_dict import Layout
from hyperjax.store.files import atomic_write
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo

FORMATS = {
    "torch": ".pt: a PyTorch state dict for each network",
    "safetensors": ".safetensors: the same tensors for each network",
    "flax": ".npz: Flax parameters, layer/kernel and layer/bias, for each network",
    "numpy": ".npz: all networks as flat vectors, their layout and their metrics",
    "ray": "the folders of the published zoos, with result.json",
    "small_cnn_zoo": "weights.npy, layout.csv and metrics.csv.gz",
}


def layout_of(zoo: Zoo, tensors: Sequence[Sequence[str]] = ()) -> Layout:
    """Names of a zoo's tensors: those that were asked for, that it was imported with, or its own
    layers' NAME.weight and NAME.bias."""
    own = state_dict.default_layout(zoo.spec)
    names = tuple(map(tuple, tensors or zoo.info.get("tensors") or own.names))
    if list(map(len, names)) != list(map(len, own.names)):
        raise HyperJaxError(
            f"names of tensors {names}; expected weights and bias of each layer, as {own.names}"
        )
    return own._replace(names=names)


def export(
    zoo: Zoo, folder: str | Path, form: str = "torch", *, tensors: Sequence[Sequence[str]] = ()
) -> list[Path]:
    """Write the networks of a zoo or population, at its last snapshot, into a folder.

    Args:
      zoo: whatever `read_zoo` reads, or a selection of it.
      folder: made if it is not there.
      form: one of `FORMATS`; "ray", "numpy" and "small_cnn_zoo" hold all snapshots, and the first
        two second moments as well.
      tensors: the names of each layer's tensors, (("0.weight", "0.bias"), ...), as the module that
        is to load them has them; default: as they were imported, or the layers' own names.

    Returns the files. Raises HyperJaxError for a form that is not known.

    >>> files = hj.export(zoo, "exported", "torch")
    >>> files[0].name
    '00000000.pt'
    """
    folder = Path(folder)
    if form not in FORMATS:
        raise unknown("form of export", form, FORMATS)
    if form == "ray":
        return _ray(zoo, folder, layout_of(zoo, tensors))
    if form == "small_cnn_zoo":
        export_small_cnn_zoo(folder, zoo)
        return [folder / name for name in ("layout.csv", "metrics.csv.gz", "weights.npy")]
    if form == "numpy":
        return [_numpy(zoo, folder / "zoo.npz")]
    layout, paths = layout_of(zoo, tensors), []
    for row, member in enumerate(zoo.members):
        vector = np.asarray(zoo.weights[row, -1])
        stem = folder / f"{int(member):08d}"
        if form == "flax":
            paths.append(stem.with_suffix(".npz"))
            atomic_write(paths[-1], _npz(flax_arrays(zoo.spec, vector)))
        elif form == "safetensors":
            from safetensors.numpy import save

            paths.append(stem.with_suffix(".safetensors"))
            atomic_write(paths[-1], save(state_dict.to_state(layout, vector)))
        else:
            paths.append(stem.with_suffix(".pt"))
            atomic_write(paths[-1], torch_bytes(state_dict.to_state(layout, vector)))
    return paths


def flax_arrays(spec: WeightSpec, vector: np.ndarray) -> dict[str, np.ndarray]:
    """Flax parameters of one network, under "layer/kernel" and "layer/bias"."""
    params = weights.unflatten(spec, vector)
    return {
        f"{layer}/{name}": np.ascontiguousarray(value)
        for layer, tensors in params.items()
        for name, value in tensors.items()
    }


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _numpy(zoo: Zoo, path: Path) -> Path:
    names = np.array([f"{int(member):08d}" for member in zoo.members])
    arrays = {"weights": np.asarray(zoo.weights), "epochs": np.asarray(zoo.epochs)}
    arrays |= {"members": names, "spec": np.array(weights.to_json(zoo.spec))}
    if zoo.second_moments is not None:
        arrays["second_moments"] = np.asarray(zoo.second_moments)
    atomic_write(path, _npz(arrays | {name: np.asarray(x) for name, x in zoo.metrics.items()}))
    return path


def _ray(zoo: Zoo, folder: Path, layout: Layout) -> list[Path]:
    """A folder a member, as in the published zoos: params.json, result.json, checkpoint_<epoch>,
    in which the optimizer holds second moments alone."""
    paths = []
    for row, member in enumerate(zoo.members):
        trial = folder / f"NN_tune_trainable_{int(member):08d}"
        fields = {"model::nlin": zoo.spec.activation, "seed": int(member)}
        atomic_write(trial / "params.json", json.dumps(fields).encode())
        lines = []
        for column, epoch in enumerate(np.asarray(zoo.epochs).tolist()):
            known = {"training_iteration": epoch}
            for name, values in zoo.metrics.items():
                value = float(values[row, column])
                if np.isfinite(value):
                    known[name.replace("accuracy", "acc")] = value
            lines.append(json.dumps(known))
            state = state_dict.to_state(layout, np.asarray(zoo.weights[row, column]))
            paths.append(trial / f"checkpoint_{epoch:06d}" / "checkpoints")
            atomic_write(paths[-1], torch_bytes(state))
            if zoo.second_moments is not None:
                moments = np.asarray(zoo.second_moments[row, column])
                paths.append(paths[-1].with_name("optimizer"))
                atomic_write(paths[-1], torch_bytes(optimizer_state.to_optimizer(layout, moments)))
        atomic_write(trial / "result.json", "".join(f"{line}\n" for line in lines).encode())
    return paths


# --- PyTorch's format -----------------------------------------------------------------------


def torch_bytes(state: Mapping[str, Any]) -> bytes:
    """A file of `torch.save` of float32 tensors, in dictionaries and lists, by texts and numbers;
    equal tensors give equal bytes."""
    arrays: list[np.ndarray] = []
    program = b"\x80\x02" + _program(state, arrays) + b"."  # protocol 2, then stop
    parts = [("data.pkl", program), ("byteorder", b"little")]
    parts += [(f"data/{key}", array.tobytes()) for key, array in enumerate(arrays)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, values in (*parts, ("version", b"3\n")):
            # a date of its own would make equal tensors unequal files
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), values)
    return buffer.getvalue()


def _program(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The pickle of a value, opcode by opcode as `torch.save` writes it: dictionaries are
    OrderedDicts. The values of tensors lie beside it and are appended to `arrays`."""
    if isinstance(value, np.ndarray):
        array, key = np.ascontiguousarray(value, "<f4"), len(arrays)
        arrays.append(array)
        strides = [step // array.itemsize for step in array.strides]
        parts = [b"ctorch._utils\n_rebuild_tensor_v2\n("]
        parts += [b"(", _text("storage"), b"ctorch\nFloatStorage\n", _text(str(key))]
        parts += [_text("cpu"), _integer(array.size), b"tQ"]  # a tuple that names the values
        parts += [_integer(0), _tuple(array.shape), _tuple(strides)]
        parts += [b"\x89", _ORDERED_DICT, b"tR"]  # needs no gradient and has no hooks; call
        return b"".join(parts)
    if isinstance(value, Mapping):  # an empty one, a mark, and all items
        items = (_program(part, arrays) for item in value.items() for part in item)
        return b"".join((_ORDERED_DICT, b"(", *items, b"u"))
    if isinstance(value, list):
        return b"".join((b"](", *(_program(part, arrays) for part in value), b"e"))
    return _integer(value) if isinstance(value, int) else _text(value)


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
