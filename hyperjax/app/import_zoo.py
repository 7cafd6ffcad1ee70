"""`hyperjax import`: a zoo of others into one zoo file, one network at a time."""

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyperjax.app import peers, progress, stop
from hyperjax.app.progress import console
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import sources
from hyperjax.exchange.source import Source, Wanted
from hyperjax.store import files, lease, zoo_file
from hyperjax.store.files import atomic_write
from hyperjax.zoo import METRICS, Zoo

_ROWS = 128  # members between two notes of how far it has come
_SHOWN = 5  # of those that are left out


class Member(NamedTuple):
    """One member as it was read."""

    vectors: np.ndarray  # float32[E, D]
    metrics: dict[str, np.ndarray]  # float32[E], of METRICS; NaN where unknown
    moments: np.ndarray | None  # float32[E, D], where they are asked for


def import_zoo(
    path: str | Path,
    output: str | Path,
    *,
    activation: str,
    image_size: tuple[int, int] | None = None,
    model: str = "",
    epochs: Sequence[int] = (),
    dataset: str = "",
    moments: bool = False,
    strict: bool = False,
    verbose: bool = False,
    wait: float = 0.0,
) -> Zoo:
    """Bring networks of others into one zoo file, and read it.

    Nothing that lies at `path` is ever executed. A killed import goes on where it was.

    Args:
      path: a folder or pattern of state dicts (PyTorch's or safetensors), a ray-tune zoo, a Small
        CNN Zoo, a .npz or HDF5 file of flat vectors, or a dataset.pt.
      output: the zoo file.
      activation: the nonlinearity of the networks, which no file tells.
      image_size: height and width of their images; None: found out where possible.
      model: their architecture by name ("": inferred from the tensors, see `spec_of`).
      epochs: snapshots to take; empty: all.
      dataset: name of the images that they were trained on, as a note.
      moments: bring Adam's second moments along (`Zoo.second_moments`), of which members without
        them are left out: of ray-tune zoos, of checkpoints with their optimiser, and of arrays.
      strict: refuse what would be left out: members that cannot be read, that lack a snapshot,
        whose tensors have other shapes than the first member's, or whose weights are not finite.
      verbose: say what is found and assumed, how far it has come, and who is left out.
      wait: seconds to wait for another import into this file.

    Members are in the order of their sorted names, which `info["names"]` keeps; ids are their
    places in it, those that are left out included.

    Raises HyperJaxError if nothing that is known lies there, no member is left, or another import
    into this file is under way.

    >>> files = hj.export(zoo, "networks", "torch")
    >>> imported = hj.import_zoo("networks/*.pt", "imported.safetensors", activation="tanh")
    >>> imported.weights.shape, imported.spec == zoo.spec
    ((4, 1, 2464), True)
    """
    output, say = Path(output), console.print if verbose else _silent
    source = _find(path, Wanted(activation, image_size, model, tuple(epochs), moments))
    info = _info(path, source, dataset)
    claim = output.with_name(f".{output.name}.lease")
    with lease.held(claim, output, wait=wait, say=say, lost=peers.end_without_lease, alone=True):
        return _import(source, output, info, strict, verbose)


def _import(source: Source, output: Path, info: dict[str, Any], strict: bool, verbose: bool) -> Zoo:
    say = console.print if verbose else _silent
    partial, note = output.with_suffix(".partial"), output.with_suffix(".importing")
    files.remove_partials(note.parent.glob(f".{glob.escape(note.name)}.*"))
    if output.exists():
        made = zoo_file.read(output)
        if not _is_of(made, source, info):
            raise HyperJaxError(f"{output} is another zoo; delete it, or choose another file")
        say(f"{output} is there: nothing to import")
        files.remove(note, partial)  # left by a kill at the last moment
        return made
    _describe(source, say)
    target, left_out = _read_members(source, info, partial, note, strict, verbose)
    made = _finish(target, partial, output, source, info, left_out)
    files.remove(note, partial)
    _summarise(made, output, left_out, say)
    return made


def _find(path: str | Path, wanted: Wanted) -> Source:
    source = sources.find(path, wanted)
    if wanted.moments and source.moments is None:
        raise HyperJaxError(
            f"{path}: {source.form} without second moments; expected a ray-tune zoo, checkpoints "
            "with their optimiser, or an array second_moments"
        )
    return source


def _is_of(made: Zoo, source: Source, info: dict[str, Any]) -> bool:
    theirs = {name: made.info.get(name) for name in info}
    same = theirs == json.loads(json.dumps(info)) and made.spec == source.layout.spec
    return same and (made.second_moments is None) == (source.moments is None)


def _read_members(
    source: Source, info: dict[str, Any], partial: Path, note: Path, strict: bool, verbose: bool
) -> tuple[Zoo, dict[str, str]]:
    """All members in the file `partial`, one behind another, and why others are not there. How far
    it has come stands in the file `note`."""
    target, done, left_out = _resume(partial, note, source, info)
    title = f"import {len(source.members)} members"
    bar = progress.bar(title, len(source.members), done) if verbose else nullcontext(_silent)
    with bar as advance, stop.deferred():
        for row in range(done, len(source.members)):
            name = source.members[row]
            try:
                _write(target, row - len(left_out), row, _member(source, row))
            except HyperJaxError as error:
                if strict:
                    raise HyperJaxError(f"member {name}: {error}") from error
                left_out[name] = str(error)
            advance(1, f"{len(left_out)} left out" if left_out else "")
            due = (row + 1) % _ROWS == 0
            if due or stop.told():  # this process: of a run of several it alone is here
                zoo_file.flush(target)
                state = {"info": info, "done": row + 1, "left_out": left_out}
                atomic_write(note, json.dumps(state).encode())
            if stop.told():
                raise stop.Terminated
    return target, left_out


def _info(path: str | Path, source: Source, dataset: str) -> dict[str, Any]:
    """What a zoo file says of where it comes from."""
    return {
        "kind": "imported",
        "source": str(path),
        "form": source.form,
        "dataset": dataset,
        "tensors": [list(names) for names in source.layout.names],
        "assumed": list(source.layout.assumed),
    }


def _silent(*words: Any) -> None:
    """In place of a progress bar, or of words."""


def _describe(source: Source, say: Callable[[str], None]) -> None:
    spec = source.layout.spec
    shapes = ", ".join(f"{x.name} {'x'.join(map(str, x.shape))}" for x in spec.layers)
    say(
        f"{source.form}: {len(source.members)} members, snapshots {_range(source.epochs)}, "
        f"{spec.num_params} weights: {shapes}"
    )
    for assumed in source.layout.assumed:
        say(f"assumed: {assumed}")


def _range(epochs: tuple[int, ...]) -> str:
    whole = len(epochs) > 2 and epochs == tuple(range(epochs[0], epochs[-1] + 1))
    return f"{epochs[0]} to {epochs[-1]}" if whole else ", ".join(map(str, epochs))


def _resume(
    partial: Path, note: Path, source: Source, info: dict[str, Any]
) -> tuple[Zoo, int, dict[str, str]]:
    """The file to fill, how many members have been read, and which were left out."""
    try:
        state = json.loads(note.read_text())
        begun = zoo_file.read(partial, writable=True) if partial.exists() else None
        if begun and state["info"] == json.loads(json.dumps(info)) and _is_of(begun, source, info):
            return begun, state["done"], state["left_out"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or none that can be gone on with
    ids, epochs = np.arange(len(source.members)), np.array(source.epochs, np.int32)
    info = info | {"names": list(source.members)}
    moments = source.moments is not None
    return zoo_file.allocate(partial, source.layout.spec, ids, epochs, info, moments=moments), 0, {}


def _member(source: Source, row: int) -> Member:
    """Raises HyperJaxError for a member that is to be left out."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which is looked for
        vectors = np.stack([source.read(row, epoch) for epoch in source.epochs])
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        epoch = source.epochs[int(np.argmin(finite))]
        raise HyperJaxError(f"weights of epoch {epoch} are not finite")
    moments = None
    if source.moments is not None:
        moments = np.stack([source.moments(row, epoch) for epoch in source.epochs])
        if not (np.isfinite(moments) & (moments >= 0)).all():
            raise HyperJaxError("second moments that are negative or not finite")
    known, metrics = source.metrics(row), {}
    for name in METRICS:
        values = known.get(name, {})
        metrics[name] = np.float32([values.get(epoch, np.nan) for epoch in source.epochs])
    return Member(vectors, metrics, moments)


def _write(target: Zoo, place: int, member_id: int, member: Member) -> None:
    target.weights[place] = member.vectors
    target.members[place] = member_id
    if member.moments is not None:
        target.second_moments[place] = member.moments
    for name, values in member.metrics.items():
        target.metrics[name][place] = values


def _finish(
    target: Zoo,
    partial: Path,
    output: Path,
    source: Source,
    info: dict[str, Any],
    left_out: dict[str, str],
) -> Zoo:
    """Give the file its name; without the places of those that were left out."""
    kept = [name for name in source.members if name not in left_out]
    if not kept:
        raise HyperJaxError(
            f"no member is left of {len(left_out)}: {next(iter(left_out.values()))}"
        )
    if left_out:
        whole = output.with_suffix(".whole")
        names = {"names": kept, "left_out": left_out}
        ids = np.asarray(target.members[: len(kept)])
        moments = source.moments is not None
        short = zoo_file.allocate(
            whole, target.spec, ids, target.epochs, info | names, moments=moments
        )
        for rows in _blocks(len(kept)):
            short.weights[rows] = target.weights[rows]
            if moments:
                short.second_moments[rows] = target.second_moments[rows]
            for name in METRICS:
                short.metrics[name][rows] = target.metrics[name][rows]
        zoo_file.seal(whole)
        zoo_file.flush(short)
        zoo_file.publish(whole, output)
    else:
        zoo_file.seal(partial)
        zoo_file.flush(target)
        zoo_file.publish(partial, output)
    return zoo_file.read(output)


def _summarise(
    made: Zoo, output: Path, left_out: dict[str, str], say: Callable[[str], None]
) -> None:
    for name, reason in list(left_out.items())[:_SHOWN]:
        say(f"left out: {name}: {reason}")
    if len(left_out) > _SHOWN:
        say(f"... and {len(left_out) - _SHOWN} more; info['left_out'] has them all")
    measured = [name for name, values in made.metrics.items() if np.isfinite(values).any()]
    measured += [] if made.second_moments is None else ["second moments"]
    what = ", ".join(measured) or "no metrics: what needs accuracy has to measure it"
    say(f"{output}: {len(made.members)} members, {len(left_out)} left out; {what}")


def _blocks(count: int) -> Iterator[slice]:
    return (slice(begin, min(begin + _ROWS, count)) for begin in range(0, count, _ROWS))
