"""Zoos that are arrays: the Small CNN Zoo, and flat vectors in .npz or HDF5 files."""

import ast
import csv
import gzip
import math
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import state_dict
from hyperjax.exchange.source import Source, Wanted, chosen_epochs
from hyperjax.exchange.state_dict import Layout
from hyperjax.models.architectures import ARCHITECTURES, architecture
from hyperjax.zoo import METRICS, Zoo


def small_cnn_zoo(folder: Path, wanted: Wanted) -> Source:
    """weights.npy [rows, D], layout.csv and metrics.csv.gz (Unterthiner et al. 2020): a row a
    snapshot, rows of one model directory a member. Kernels are HWIO or [in, out], biases first."""
    parts = _read_layout(folder / "layout.csv")
    rows = _load(folder / "weights.npy")
    size = max(end for _, end, _ in parts.values())
    if rows.ndim != 2 or rows.shape[1] != size:
        raise HyperJaxError(
            f"{folder / 'weights.npy'}: an array {list(rows.shape)}; expected [rows, {size}], as "
            "layout.csv says"
        )
    table = _read_metrics(folder, len(rows))
    places: dict[str, dict[int, int]] = defaultdict(dict)
    for row, (member, epoch, _) in enumerate(table):
        places[member][epoch] = row
    members = tuple(sorted(places))

    def tensors(row: int) -> dict[str, np.ndarray]:
        return {name: _part(rows[row], *part) for name, part in parts.items()}

    found = state_dict.spec_of(
        tensors(0), activation=wanted.activation, image_size=wanted.image_size, model=wanted.model
    )

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
                if kind not in ("kernel", "bias") or end - begin != math.prod(shape):
                    raise ValueError(f"{fields}")
                found[f"{layer}.{'weight' if kind == 'kernel' else 'bias'}"] = begin, end, shape
    except (OSError, KeyError, ValueError, TypeError, SyntaxError, csv.Error) as error:
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
    except (OSError, EOFError, ValueError, TypeError, zlib.error, csv.Error) as error:
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
        raise HyperJaxError(f"cannot read {path}: {error}") from error


def flat_arrays(path: Path, wanted: Wanted) -> Source:
    """A .npz or HDF5 file with `weights` float[M, D] or [M, E, D] in the order of our own vectors
    (`hyperjax.weights`), and where they are known `epochs` int[E], `members` (names), metrics
    [M, E] under our names and `second_moments` of the shape of the weights. `wanted.model` names
    the architecture, if no `spec` is there, as our own export writes it."""
    found = _read_arrays(path)
    if "weights" not in found or found["weights"].ndim not in (2, 3):
        raise HyperJaxError(f"{path}: expected an array `weights` [M, D] or [M, E, D]")
    vectors = found["weights"]
    vectors = vectors[:, None] if vectors.ndim == 2 else vectors
    there = [int(e) for e in found.get("epochs", np.arange(1, vectors.shape[1] + 1))]
    names = [str(name) for name in found.get("members", np.arange(len(vectors)))]
    width = len(str(len(vectors)))
    names = [name.zfill(width) if name.isdigit() else name for name in names]
    order = np.argsort(names, kind="stable")
    layout = _told(path, found) or _named(path, vectors.shape[-1], wanted)
    if layout.spec.num_params != vectors.shape[-1]:
        raise HyperJaxError(f"{path}: `spec` does not fit weights {vectors.shape}")
    if len(there) != vectors.shape[1] or len(names) != len(vectors):
        raise HyperJaxError(f"{path}: `epochs` or `members` do not fit weights {vectors.shape}")

    def read(row: int, epoch: int) -> np.ndarray:
        return np.asarray(vectors[order[row], there.index(epoch)], np.float32)

    def metrics(row: int) -> dict[str, dict[int, float]]:
        known = {}
        for name in METRICS:
            if name in found:
                values = np.asarray(found[name]).reshape(vectors.shape[:2])[order[row]]
                known[name] = dict(zip(there, map(float, values), strict=True))
        return known

    def moments(row: int, epoch: int) -> np.ndarray:
        return np.asarray(second[order[row], there.index(epoch)], np.float32)

    epochs, second = chosen_epochs(there, wanted, path), found.get("second_moments")
    if second is not None and second.shape != vectors.shape:
        raise HyperJaxError(f"{path}: second_moments {second.shape}; weights are {vectors.shape}")
    asked = moments if wanted.moments and second is not None else None
    members = tuple(names[i] for i in order)
    return Source("flat arrays", members, epochs, read, metrics, layout, asked)


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        import h5py

        file = h5py.File(path, "r")
        return {name: file[name][:] if file[name].ndim < 2 else file[name] for name in file}
    except ImportError as error:
        raise HyperJaxError(f"{path}: HDF5 files need h5py; pip install h5py") from error
    except Exception as error:  # zipfile's, zlib's, h5py's
        raise HyperJaxError(f"cannot read {path}: {error}") from error


def _told(path: Path, found: dict[str, Any]) -> Layout | None:
    """The architecture that the file itself tells."""
    if "spec" not in found:
        return None
    try:
        return state_dict.default_layout(weights.from_json(str(np.asarray(found["spec"]))))
    except HyperJaxError as error:
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
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "layout.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("varname", "start_idx", "end_idx", "shape"))
        writer.writerows(parts)
    names = [name for name in zoo.metrics if not name.startswith("val")]
    with gzip.open(folder / "metrics.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("modeldir", "step", *names))
        for row, member in enumerate(zoo.members):
            for column, epoch in enumerate(zoo.epochs):
                values = [repr(float(zoo.metrics[name][row, column])) for name in names]
                writer.writerow((f"{int(member):08d}", int(epoch), *values))
    shape = (len(zoo.members) * len(zoo.epochs), at)
    rows = np.lib.format.open_memmap(folder / "weights.npy", "w+", np.float32, shape)
    for row in range(len(zoo.members)):
        for column in range(len(zoo.epochs)):
            vector = np.asarray(zoo.weights[row, column])
            blocks = []
            for layer, part in zip(spec.layers, spec.slices, strict=True):
                kernel, bias = weights.split_layer(layer, vector[part])
                order = (2, 3, 1, 0) if layer.kind == "conv" else (1, 0)
                blocks += [bias, kernel.transpose(order).ravel()]
            rows[row * len(zoo.epochs) + column] = np.concatenate(blocks)
    rows.flush()
