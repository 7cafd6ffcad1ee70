"""Zoos that are arrays: the Small CNN Zoo, and flat vectors in .npz or HDF5 files."""

import ast
import csv
import gzip
import io
import itertools
import math
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import state_dict
from hyperjax.exchange.source import Source, Wanted, chosen_epochs, layout_of
from hyperjax.exchange.state_dict import Layout
from hyperjax.models.architectures import ARCHITECTURES, architecture
from hyperjax.store.files import atomic_stream, atomic_write
from hyperjax.types import Array
from hyperjax.weights import WeightSpec
from hyperjax.zoo import METRICS, Zoo

_SHOWN = 200  # characters of an error that may quote a damaged file at length


def small_cnn_zoo(folder: Path, wanted: Wanted) -> Source:
    """weights.npy [rows, D], layout.csv and metrics.csv.gz (Unterthiner et al. 2020): a row a
    snapshot, rows of one model directory a member. Kernels are HWIO or [in, out], biases first."""
    parts = _read_layout(folder / "layout.csv")
    rows = _load(folder / "weights.npy")
    size = max(end for _, end, _ in parts.values())
    if rows.ndim != 2 or rows.shape[1] != size or not len(rows) or rows.dtype.kind != "f":
        raise HyperJaxError(
            f"{folder / 'weights.npy'}: an array {rows.dtype}{list(rows.shape)}; expected floats "
            f"[rows, {size}], as layout.csv says"
        )
    table = _read_metrics(folder, len(rows))
    places: dict[str, dict[int, int]] = defaultdict(dict)
    for row, (member, epoch, _) in enumerate(table):
        if epoch in places[member]:
            raise HyperJaxError(f"{folder}: {member} has two rows of step {epoch}")
        places[member][epoch] = row
    members = tuple(sorted(places))

    def tensors(row: int) -> dict[str, np.ndarray]:
        return {name: _part(rows[row], *part) for name, part in parts.items()}

    found = layout_of(folder, tensors(0), wanted)

    def read(row: int, epoch: int) -> np.ndarray:
        if epoch not in places[members[row]]:
            raise HyperJaxError(f"{folder}: {members[row]} has no snapshot of step {epoch}")
        return state_dict.to_vector(found, tensors(places[members[row]][epoch]))

    def metrics(row: int) -> dict[str, dict[int, float]]:
        known: dict[str, dict[int, float]] = {}
        for epoch, place in places[members[row]].items():
            for name, value in table[place][2].items():
                known.setdefault(name, {})[epoch] = value
        return known

    epochs = chosen_epochs((epoch for each in places.values() for epoch in each), wanted, folder)
    return Source("Small CNN Zoo", members, epochs, read, metrics, found)


Part = tuple[int, int, tuple[int, ...]]  # begin, end, shape


def _read_layout(path: Path) -> dict[str, Part]:
    """The tensors of a row: the kernel of each layer and its bias, named as PyTorch's."""
    found: dict[str, Part] = {}
    try:
        with open(path, newline="") as file:
            for fields in csv.DictReader(file):
                layer, _, kind = fields["varname"].removesuffix(":0").rpartition("/")
                shape = tuple(int(x) for x in ast.literal_eval(fields["shape"]))
                begin, end = int(fields["start_idx"]), int(fields["end_idx"])
                axes = {"kernel": (2, 4), "bias": (1,)}.get(kind, ())
                fits = begin >= 0 and end - begin == math.prod(shape) and min(shape, default=0) > 0
                if len(shape) not in axes or not fits:
                    raise ValueError(f"{fields}")
                found[f"{layer}.{'weight' if kind == 'kernel' else 'bias'}"] = begin, end, shape
    except (OSError, KeyError, ValueError, TypeError, AttributeError, SyntaxError, MemoryError,
            RecursionError, csv.Error) as error:  # fmt: skip
        raise HyperJaxError(
            f"{path}: no layout; expected columns varname (ending in kernel:0 or bias:0), "
            f"start_idx, end_idx, shape: {error}"
        ) from error
    if not found:
        raise HyperJaxError(f"{path}: a layout of no tensors")
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def _part(row: np.ndarray, begin: int, end: int, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a row, in PyTorch's axis order."""
    values = np.asarray(row[begin:end], np.float32).reshape(shape)
    return values.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)])


def _read_metrics(folder: Path, rows: int) -> list[tuple[str, int, dict[str, float]]]:
    """Of each row: the member, the step, and the metrics that there are."""
    path = folder / "metrics.csv.gz"
    if not path.exists():
        return [(f"{row:08d}", 0, {}) for row in range(rows)]
    try:
        with gzip.open(path, "rt", newline="") as file:
            table = [_metrics_of(row, fields) for row, fields in enumerate(csv.DictReader(file))]
    except (OSError, EOFError, ArithmeticError, ValueError, TypeError, AttributeError, zlib.error,
            csv.Error) as error:  # fmt: skip
        raise HyperJaxError(f"cannot read {path}: {error}") from error
    if len(table) != rows:
        raise HyperJaxError(f"{path}: {len(table)} rows, weights.npy has {rows}")
    return table


def _metrics_of(row: int, fields: dict[str, str]) -> tuple[str, int, dict[str, float]]:
    names = [f"{part}_{name}" for part in ("train", "test") for name in ("loss", "accuracy")]
    known = {name: float(fields[name]) for name in names if fields.get(name)}
    return fields.get("modeldir") or f"{row:08d}", int(float(fields.get("step") or 0)), known


def _load(path: Path) -> np.ndarray:
    """A .npy array, mapped; objects, which would be pickles, are refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # also those of the parser of a damaged header
        raise HyperJaxError(f"cannot read {path}: {str(error)[:_SHOWN]}") from error


def flat_arrays(path: Path, wanted: Wanted) -> Source:
    """A .npz or HDF5 file with `weights` float[M, D] or [M, E, D] in the order of our own vectors
    (`hyperjax.weights`), and where they are known `epochs` int[E], `members` (names), metrics
    [M, E] under our names and `second_moments` of the shape of the weights. `wanted.model` names
    the architecture, if no `spec` is there, as our own export writes it."""
    found = _read_arrays(path)
    vectors, second = found.get("weights"), found.get("second_moments")
    if vectors is None or vectors.ndim not in (2, 3) or vectors.dtype.kind not in "fiu":
        raise HyperJaxError(f"{path}: expected an array `weights` of numbers, [M, D] or [M, E, D]")
    count, snapshots = (*vectors.shape[:-1], 1)[:2]
    _check(path, found, "second_moments", "f", vectors.shape)
    _check(path, found, "epochs", "iu", (snapshots,))
    _check(path, found, "members", "iuUSO", (count,))
    for name in METRICS:
        _check(path, found, name, "fiu", (count, snapshots), vectors.shape[:-1])
    there = [int(epoch) for epoch in found.get("epochs", range(1, snapshots + 1))]
    names = [_text(name) for name in found.get("members", range(count))]
    if min(len(set(there)) - snapshots, len(set(names)) - count, min(there, default=0)) < 0:
        raise HyperJaxError(f"{path}: `epochs` or `members` that are twice there, or negative")
    names = [name.zfill(len(str(count))) if name.isdigit() else name for name in names]
    order = np.argsort(names, kind="stable")
    layout = _told(path, found) or _named(path, vectors.shape[-1], wanted)
    if not count or not snapshots or layout.spec.num_params != vectors.shape[-1]:
        raise HyperJaxError(
            f"{path}: `weights` {vectors.shape}; expected networks of {layout.spec.num_params}"
        )

    def read(row: int, epoch: int) -> np.ndarray:
        return _row(path, vectors, order[row], there.index(epoch))

    def metrics(row: int) -> dict[str, dict[int, float]]:
        known = {name: found[name][order[row]] for name in METRICS if name in found}
        return {
            name: dict(zip(there, np.ravel(x).tolist(), strict=True)) for name, x in known.items()
        }

    def moments(row: int, epoch: int) -> np.ndarray:
        return _row(path, second, order[row], there.index(epoch))

    epochs, members = chosen_epochs(there, wanted, path), tuple(names[i] for i in order)
    asked = moments if wanted.moments and second is not None else None
    return Source("flat arrays", members, epochs, read, metrics, layout, asked)


def _check(
    path: Path, found: dict[str, Any], name: str, kinds: str, *shapes: tuple[int, ...]
) -> None:
    """Raises HyperJaxError unless an array, if it is there, has a shape and a kind of values."""
    array = found.get(name)
    if array is not None and (array.shape not in shapes or array.dtype.kind not in kinds):
        raise HyperJaxError(
            f"{path}: `{name}` of shape {array.shape} and type {array.dtype} does not fit weights "
            f"{found['weights'].shape}; expected {shapes[0]} of type {' or '.join(kinds)}"
        )


def _row(path: Path, array: Any, row: int, column: int) -> np.ndarray:
    """One vector float32[D] of an array [M, D] or [M, E, D], which may lie in a file."""
    try:
        return np.asarray(array[row] if array.ndim == 2 else array[row, column], np.float32)
    except OSError as error:
        raise HyperJaxError(f"cannot read {path}: {error}") from error


def _text(value: Any) -> str:
    """Also of HDF5, whose texts are bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        import h5py

        file = h5py.File(path, "r")
        return {name: file[name][()] if file[name].ndim < 2 else file[name] for name in file}
    except ImportError as error:
        raise HyperJaxError(f"{path}: HDF5 files need h5py; pip install h5py") from error
    except Exception as error:  # zipfile's, zlib's, h5py's
        raise HyperJaxError(f"cannot read {path}: {str(error)[:_SHOWN]}") from error


def _told(path: Path, found: dict[str, Any]) -> Layout | None:
    """The architecture that the file itself tells."""
    if "spec" not in found:
        return None
    try:
        return state_dict.default_layout(weights.from_json(_text(np.asarray(found["spec"]).item())))
    except (HyperJaxError, ValueError) as error:  # also of an array of several
        raise HyperJaxError(f"{path}: `spec`: {error}") from error


def _named(path: Path, size: int, wanted: Wanted) -> Layout:
    """The architecture that the user has named, which a flat vector does not tell."""
    name, image_size = wanted.model, wanted.image_size or (28, 28)
    if not name:
        raise HyperJaxError(
            f"{path}: flat vectors do not tell their architecture; name it, one of "
            f"{', '.join(ARCHITECTURES)} or module:function"
        )
    for channels in (1, 3):
        spec = architecture(
            name, channels=channels, activation=wanted.activation, image_size=image_size
        )
        if spec.num_params == size:
            return state_dict.default_layout(spec)
    raise HyperJaxError(f"{path}: vectors of {size} values; {name} has {spec.num_params}")


def export_small_cnn_zoo(folder: Path, zoo: Zoo) -> None:
    """Write a zoo in this form: layout.csv, metrics.csv.gz, weights.npy."""
    spec, parts, at = zoo.spec, [], 0
    normalised = [layer.name for layer in spec.layers if layer.norm]
    if normalised:
        raise HyperJaxError(
            f"layers {', '.join(normalised)} are normalised; the Small CNN Zoo's form has kernels "
            "and biases only"
        )
    for number, layer in enumerate(spec.layers):
        neurons, inputs, *window = layer.shape
        stem = "conv2d" if layer.kind == "conv" else "dense"
        name = f"sequential/{stem}_{number}" if number else f"sequential/{stem}"
        for kind, shape in (("bias", (neurons,)), ("kernel", (*window, inputs, neurons))):
            if kind == "kernel" or layer.bias:
                parts.append((f"{name}/{kind}:0", at, at + math.prod(shape), shape))
                at += math.prod(shape)
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("varname", "start_idx", "end_idx", "shape"))
        writer.writerows(parts)
        atomic_write(folder / "layout.csv", file.getvalue().encode())
    names = [name for name in zoo.metrics if not name.startswith("val")]
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("modeldir", "step", *names))
        for row, member in enumerate(zoo.members):
            for column, epoch in enumerate(zoo.epochs):
                values = [repr(float(zoo.metrics[name][row, column])) for name in names]
                writer.writerow((f"{int(member):08d}", int(epoch), *values))
        packed = gzip.compress(file.getvalue().encode(), mtime=0)  # equal zoos, equal bytes
        atomic_write(folder / "metrics.csv.gz", packed)
    shape = (len(zoo.members) * len(zoo.epochs), at)
    with io.BytesIO() as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        head = file.getvalue()
    rows = (_in_their_order(spec, vector) for models in zoo.weights for vector in models)
    size = len(head) + 4 * math.prod(shape)
    atomic_stream(folder / "weights.npy", itertools.chain([head], rows), size)


def _in_their_order(spec: WeightSpec, vector: Array) -> bytes:
    """A network's weights as the Small CNN Zoo has them."""
    vector, blocks = np.asarray(vector, "<f4"), []
    for layer, part in zip(spec.layers, spec.slices, strict=True):
        kernel, bias = weights.split_layer(layer, vector[part])
        order = (2, 3, 1, 0) if layer.kind == "conv" else (1, 0)
        blocks += [bias, kernel.transpose(order).ravel()]
    return np.concatenate(blocks).tobytes()
