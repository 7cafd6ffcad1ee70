"""Whether files are as they were written: `hyperjax verify`, and before a zoo is trained on."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hyperjax.app.progress import console
from hyperjax.errors import HyperJaxError
from hyperjax.store import denoiser_file, hyperrep_file, moments_file, tensors, workdir, zoo_file

WHOLE, UNCHECKED, FOREIGN, DAMAGED = "whole", "unchecked", "foreign", "damaged"
_WORDS = {
    UNCHECKED: "of an older version, without checksums",
    FOREIGN: "of another library",
}
_READERS = {
    hyperrep_file.FORMAT: hyperrep_file.read,
    denoiser_file.FORMAT: denoiser_file.read,
    moments_file.FORMAT: moments_file.read,
}


def verify(paths: Sequence[Path]) -> bool:
    """Check all bytes of files, and of all safetensors files below folders; of a workdir also its
    config.json and manifest.json. Prints a line for each; returns whether none is damaged.

    Raises HyperJaxError for a path where there is nothing to check.
    """
    start, found = time.monotonic(), [file for path in paths for file in _files(path)]
    states = Counter()
    for file in found:
        state, words = _state(file)
        states[state] += 1
        console.print(f"{state:9}  {words or file}", markup=False)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    size = sum(file.stat().st_size for file in found) / 1e6
    console.print(f"{len(found)} files, {size:.1f} MB, {time.monotonic() - start:.1f} s: {counts}")
    return not states[DAMAGED]


def check_zoo(path: Path) -> None:
    """Check all of a zoo before it is trained on.

    Raises HyperJaxError naming the damaged tensors and members.
    """
    start = time.monotonic()
    found = zoo_file.damaged(path)
    if found:
        raise zoo_file.damage(path, found)
    seconds, size = time.monotonic() - start, path.stat().st_size / 1e6
    text = "it has no checksums" if found is None else f"{size:.1f} MB, {seconds:.1f} s"
    console.print(f"{path}: {UNCHECKED if found is None else WHOLE} ({text})", markup=False)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    records = () if (path / "model.safetensors").is_file() else ("config.json", "manifest.json")
    found = [path / name for name in records if (path / name).is_file()]  # or of a hub's folder
    found += sorted(path.rglob("*.safetensors"))
    if not found:
        raise HyperJaxError(f"{path}: expected a file, or a folder with safetensors files")
    return found


def _state(path: Path) -> tuple[str, str]:
    """What to call a file, and what is to be said of it."""
    try:
        if path.name == "config.json":
            workdir.load_config(path.parent)
            state = WHOLE
        elif path.name == "manifest.json":
            workdir.read_manifest(path.parent)
            state = WHOLE
        else:
            state = _of_tensors(path)
    except HyperJaxError as error:
        return DAMAGED, str(error)
    return state, f"{path} ({_WORDS[state]})" if state in _WORDS else ""


def _of_tensors(path: Path) -> str:
    """Raises HyperJaxError for a file that is damaged."""
    form, has_checksums = tensors.form_of(path)
    if form == zoo_file.FORMAT:
        found = zoo_file.damaged(path)
        if found:
            raise zoo_file.damage(path, found)
        zoo_file.read(path)
    elif form in _READERS:
        _READERS[form](path)
    elif has_checksums:
        raise HyperJaxError(f"{path}: format {form!r} is of a later version")
    else:
        return FOREIGN
    return WHOLE if has_checksums else UNCHECKED
