"""Zoos of others, as they lie on disk: what is where, and a `Source` for each form of files of
single networks. Members are in the order of their names, whatever that of the file system."""

import glob
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.exchange import arrays, optimizer_state, state_dict, torch_file
from hyperjax.exchange.source import Metrics, Source, Wanted, chosen_epochs, layout_of
from hyperjax.exchange.state_dict import Layout

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
# of the published ray-tune zoos, and of derivatives -> ours
_METRICS = {
    f"{part}_{theirs}": f"{part}_{ours}"
    for part in ("train", "val", "test")
    for theirs, ours in (("loss", "loss"), ("acc", "accuracy"))
}


def find(path: str | Path, wanted: Wanted, aside: Collection[Path] = ()) -> Source:
    """What lies at a path: a folder, a file, or a pattern of files; `aside` are none of its
    networks, though they may lie among them.

    Raises HyperJaxError if there is nothing that is known.
    """
    path = Path(path)
    if path.is_dir():
        trials = sorted(p.parent for p in path.glob("*/params.json"))
        if trials:
            return ray_zoo(path, trials, wanted)
        if (path / "layout.csv").exists():
            return arrays.small_cnn_zoo(path, wanted)
        files = [p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()]
    elif path.is_file() and path.suffix in (".npz", ".h5", ".hdf5"):
        return arrays.flat_arrays(path, wanted)
    elif path.is_file():
        return dataset(path, wanted)
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]
        plain = re.split(r"[*?\[]", str(path))[0]  # and a name's beginning, or a slash
        path = Path(f"{plain}_").parent if files else path
    others = {file.name: file.resolve() for file in aside}
    files = [p for p in files if p.name not in others or p.resolve() != others[p.name]]
    if not files:
        raise HyperJaxError(
            f"{path}: no networks there; expected a folder or pattern of {', '.join(SUFFIXES)}, "
            "folders with params.json (ray), weights.npy with layout.csv, .npz, .h5 or dataset.pt"
        )
    return state_dicts(path, files, wanted)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file of one network."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            try:
                return state_dict.unwrapped(load_file(path))
            except (SafetensorError, OSError) as error:
                raise HyperJaxError(str(error)) from error
        return state_dict.unwrapped(torch_file.read(path))
    except HyperJaxError as error:
        text = str(error)
        raise HyperJaxError(text if str(path) in text else f"{path}: {text}") from error


def state_dicts(folder: Path, files: list[Path], wanted: Wanted) -> Source:
    """Files of one network each: flat, a file a member; or in folders, a folder a member, whose
    files are its snapshots, by the last number of their names."""
    names = {path: path.relative_to(folder).as_posix() for path in files}
    nested: dict[str, dict[int, Path]] = {}
    for path in sorted(files, key=lambda path: names[path]):
        inside, number = Path(names[path]).parent.as_posix(), re.findall(r"\d+", path.stem)
        alone = inside == "." or not number
        member, epoch = (names[path], 1) if alone else (inside, int(number[-1]))
        if epoch in nested.setdefault(member, {}):
            raise HyperJaxError(
                f"{folder}: {path.name} and {nested[member][epoch].name} of {member} would both be "
                f"epoch {epoch}"
            )
        nested[member][epoch] = path
    members = tuple(sorted(nested))
    first = next(iter(nested[members[0]].values()))
    layout = layout_of(first, tensors_of(first), wanted)

    def path_of(row: int, epoch: int) -> Path:
        path = nested[members[row]].get(epoch)
        if path is None:
            raise HyperJaxError(f"{folder / members[row]} has no snapshot of epoch {epoch}")
        return path

    def read(row: int, epoch: int) -> np.ndarray:
        path = path_of(row, epoch)
        return _vector(layout, tensors_of(path), path)

    def moments(row: int, epoch: int) -> np.ndarray:
        path = path_of(row, epoch)
        return _moments(layout, path, path)

    epochs = chosen_epochs({epoch for paths in nested.values() for epoch in paths}, wanted, folder)
    asked = moments if wanted.moments else None
    return Source("state dicts", members, epochs, read, lambda row: {}, layout, asked)


def ray_zoo(folder: Path, trials: list[Path], wanted: Wanted) -> Source:
    """A folder a member with params.json, result.json, and checkpoint_<epoch>/checkpoints (and
    optimizer beside it), as the published zoos are (Schürholt et al., "Model Zoos", 2022)."""
    members = tuple(sorted(trial.name for trial in trials))
    found: dict[str, dict[int, Path]] = {}
    for name in members:
        folders = (folder / name).glob("checkpoint_*")
        found[name] = {
            int(match[1]): path / "checkpoints"
            for path in folders
            if (match := re.fullmatch(r"checkpoint_(\d+)", path.name))
        }
    first = next((paths for paths in found.values() if paths), None)
    if first is None:
        raise HyperJaxError(
            f"{folder}: none of its {len(members)} members has a checkpoint_<epoch>"
        )
    place = next(iter(first.values()))
    layout = layout_of(place, tensors_of(place), wanted)

    def path_of(row: int, epoch: int) -> Path:
        path = found[members[row]].get(epoch)
        if path is None:
            raise HyperJaxError(f"{folder / members[row]} has no checkpoint of epoch {epoch}")
        return path

    def read(row: int, epoch: int) -> np.ndarray:
        path = path_of(row, epoch)
        return _vector(layout, tensors_of(path), path)

    def moments(row: int, epoch: int) -> np.ndarray:
        path = path_of(row, epoch)
        return _moments(layout, path, path.with_name("optimizer"))

    def metrics(row: int) -> Metrics:
        return ray_metrics(folder / members[row] / "result.json")

    epochs = chosen_epochs({epoch for paths in found.values() for epoch in paths}, wanted, folder)
    asked = moments if wanted.moments else None
    return Source("ray-tune zoo", members, epochs, read, metrics, layout, asked)


def ray_metrics(path: Path) -> Metrics:
    """Of the lines of result.json, by their `training_iteration` (or `epoch`), never by number."""
    found: Metrics = {}
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise HyperJaxError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line) if line.strip() else {}
            epoch = fields.get("training_iteration", fields.get("epoch"))
            for theirs, ours in _METRICS.items():
                if theirs in fields and epoch is not None:
                    found.setdefault(ours, {})[int(epoch)] = float(fields[theirs])
        except (ValueError, ArithmeticError, TypeError, AttributeError, RecursionError) as error:
            raise HyperJaxError(f"{path}, line {number}: no JSON of results: {error}") from error
    return found


def dataset(path: Path, wanted: Wanted) -> Source:
    """A dataset.pt of the published zoos: lists of state dicts with their properties. It is read as
    a whole."""
    found = torch_file.read(path)
    parts = found if isinstance(found, Mapping) else {}
    sets = [parts[name] for name in ("trainset", "valset", "testset") if name in parts]
    if not sets:
        raise HyperJaxError(f"{path}: no dataset of trainset, valset and testset")
    networks: dict[str, dict[int, Any]] = {}
    known: dict[str, Metrics] = {}
    try:
        for part in sets:
            _collect(path, vars(part), networks, known)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise HyperJaxError(f"{path}: sets of another form: {error!r}") from error
    if not networks:
        raise HyperJaxError(f"{path}: its sets have no networks")
    members = tuple(sorted(networks))

    def tensors(row: int, epoch: int) -> dict[str, np.ndarray]:
        if epoch not in networks[members[row]]:
            raise HyperJaxError(f"{path}: {members[row]} has no snapshot of epoch {epoch}")
        try:
            return state_dict.unwrapped(networks[members[row]][epoch])
        except HyperJaxError as error:
            raise HyperJaxError(f"{path}: {members[row]}: {error}") from error

    layout = layout_of(path, tensors(0, next(iter(networks[members[0]]))), wanted)

    def read(row: int, epoch: int) -> np.ndarray:
        return _vector(layout, tensors(row, epoch), path)

    epochs = chosen_epochs({epoch for each in networks.values() for epoch in each}, wanted, path)
    return Source("dataset of state dicts", members, epochs, read, lambda row: known[members[row]],
                  layout)  # fmt: skip


def _collect(path: Path, part: dict[str, Any], networks: dict, known: dict[str, Metrics]) -> None:
    """The networks of one set, by member and epoch, and their properties."""
    properties, data = part.get("properties") or {}, part.get("data_in")
    if not isinstance(data, list):
        raise HyperJaxError(f"{path}: a set without data_in, the list of its networks")
    for row, (paths, states) in enumerate(
        zip(part.get("paths") or range(len(data)), data, strict=True)
    ):
        states = states if isinstance(states, list) else [states]
        epochs = _of_row(properties.get("training_iteration"), row, len(states))
        member = Path(str(paths)).name
        for number, state in enumerate(states):
            epoch = int(epochs[number]) if epochs else number + 1
            networks.setdefault(member, {})[epoch] = state
            for theirs, ours in _METRICS.items():
                values = _of_row(properties.get(theirs), row, len(states))
                if values:
                    known.setdefault(member, {}).setdefault(ours, {})[epoch] = float(values[number])
        known.setdefault(member, {})


def _of_row(values: Any, row: int, count: int) -> list[Any]:
    """A property of the snapshots of one row; empty if it is not there."""
    if not isinstance(values, list) or row >= len(values):
        return []
    found = values[row] if isinstance(values[row], list) else [values[row]]
    return found if len(found) == count else []


def _vector(layout: Layout, tensors: dict[str, np.ndarray], path: Path) -> np.ndarray:
    try:
        return state_dict.to_vector(layout, tensors)
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: {error}") from error


def _moments(layout: Layout, network: Path, place: Path) -> np.ndarray:
    """Second moments of a network from the file `place`: the state of an optimiser, or the
    network's own file, a checkpoint that holds one."""
    if place.suffix == ".safetensors":
        raise HyperJaxError(f"{place}: .safetensors files hold no optimiser")
    tensors, found = tensors_of(network), torch_file.read(place)
    try:
        optimizer = optimizer_state.of_checkpoint(found) if place == network else found
        return optimizer_state.second_moments(layout, tensors, optimizer)
    except HyperJaxError as error:
        raise HyperJaxError(f"{place}: {error}") from error
