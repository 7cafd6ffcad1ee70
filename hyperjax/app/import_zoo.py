"""`hyperjax import`: a zoo of others into one zoo file, one network at a time."""

import glob
import json
from collections.abc import Callable, Collection, Iterator, Sequence
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
_LONGEST = 200  # characters of a value that an error shows


class Member(NamedTuple):
    """One member as it was read."""

    vectors: np.ndarray  # float32[E, D]
    metrics: dict[str, np.ndarray]  # float32[E], of METRICS; NaN where unknown
    moments: np.ndarray | None  # float32[E, D], where they are asked for


class _Paths(NamedTuple):
    """The zoo file, and what lies beside it until it is made."""

    output: Path
    partial: Path  # all members, one behind another
    note: Path  # how far it has come
    whole: Path  # without the places of those that are left out

    @classmethod
    def of(cls, output: Path) -> "_Paths":
        kinds = ("partial", "importing", "whole")
        return cls(output, *(output.with_name(f"{output.name}.{kind}") for kind in kinds))


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

    Nothing that lies at `path` is ever executed. A killed import goes on where it was; one of other
    snapshots or members, or that is `strict` where members were left out, begins anew.

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

    Raises HyperJaxError if nothing that is known lies there, no member is left, `output` is another
    zoo, or another import into this file is under way.

    >>> files = hj.export(zoo, "networks", "torch")
    >>> imported = hj.import_zoo("networks/*.pt", "imported.safetensors", activation="tanh")
    >>> imported.weights.shape, imported.spec == zoo.spec
    ((4, 1, 2464), True)
    """
    output, say = Path(output), _teller(verbose)
    paths = _Paths.of(output)
    source = _find(path, Wanted(activation, image_size, model, tuple(epochs), moments), paths)
    info = _info(path, source, dataset)
    claim = output.with_name(f".{output.name}.lease")
    with lease.held(claim, output, wait=wait, say=say, lost=peers.end_without_lease, alone=True):
        return _import(source, paths, info, strict, verbose)


def _import(
    source: Source, paths: _Paths, info: dict[str, Any], strict: bool, verbose: bool
) -> Zoo:
    say, (output, *scratch) = _teller(verbose), paths
    files.remove_partials(output.parent.glob(f".{glob.escape(paths.note.name)}.*"))
    if output.exists():
        made = zoo_file.read(output)
        differ = _differences(made, source, info, made.info.get("left_out", {}), strict)
        if differ:
            raise HyperJaxError(
                f"{output} is another zoo ({differ}); delete it, or choose another file"
            )
        say(f"{output} is there: nothing to import")
        files.remove(*scratch)  # left by a kill at the last moment
        return made
    _describe(source, say)
    target, left_out = _read_members(source, info, paths, strict, verbose)
    made = _finish(target, paths, source, info, left_out)
    files.remove(*scratch)
    _summarise(made, output, left_out, say)
    return made


def _find(path: str | Path, wanted: Wanted, paths: _Paths) -> Source:
    source = sources.find(path, wanted, paths)
    if wanted.moments and source.moments is None:
        raise HyperJaxError(
            f"{path}: {source.form} without second moments; expected a ray-tune zoo, checkpoints "
            "with their optimiser, or an array second_moments"
        )
    return source


def _differences(
    made: Zoo, source: Source, info: dict[str, Any], left_out: Collection[str], strict: bool
) -> str:
    """What of a zoo file, from which some members were left out, is not as this import makes it;
    "" if nothing."""
    spec, here = source.layout.spec, set(source.members)
    there = {*made.info.get("names", ()), *left_out}
    pairs = {name: (made.info.get(name), x) for name, x in json.loads(json.dumps(info)).items()}
    pairs |= {
        "activation": (made.spec.activation, spec.activation),
        "image size": (made.spec.image_size, spec.image_size),
        "layers": (made.spec.layers, spec.layers),
        "snapshots": (made.epochs.tolist(), list(source.epochs)),
        "second moments": (made.second_moments is not None, source.moments is not None),
        "further members": (sorted(there - here), sorted(here - there)),
        "left out": (sorted(left_out) if strict else [], []),
    }
    return "; ".join(
        f"{name}: {_short(theirs)} there, {_short(ours)} here"
        for name, (theirs, ours) in pairs.items()
        if theirs != ours
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _read_members(
    source: Source, info: dict[str, Any], paths: _Paths, strict: bool, verbose: bool
) -> tuple[Zoo, dict[str, str]]:
    """All members in the file `paths.partial`, and why others are not there."""
    target, done, left_out = _resume(paths, source, info, strict, _teller(verbose))
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
                state = {"done": row + 1, "left_out": left_out}
                atomic_write(paths.note, json.dumps(state).encode())
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


def _teller(verbose: bool) -> Callable[[str], None]:
    return console.print if verbose else _silent


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
    paths: _Paths,
    source: Source,
    info: dict[str, Any],
    strict: bool,
    say: Callable[[str], None],
) -> tuple[Zoo, int, dict[str, str]]:
    """The file to fill, how many members have been read, and which were left out."""
    try:
        state = json.loads(paths.note.read_text())
        done, left_out = state["done"], state["left_out"]
        begun = zoo_file.read(paths.partial, writable=True)
        differ = _differences(begun, source, info, left_out, strict)
        if not differ:
            return begun, done, left_out
        say(f"another import was stopped here ({differ}): beginning anew")
    except (OSError, ValueError, KeyError, TypeError, HyperJaxError):
        pass  # there is none, or none that can be gone on with
    files.remove(paths.note)  # first: it must not speak of the file that is made now
    ids, epochs = np.arange(len(source.members)), np.array(source.epochs, np.int32)
    info, moments = info | {"names": list(source.members)}, source.moments is not None
    spec = source.layout.spec
    return zoo_file.allocate(paths.partial, spec, ids, epochs, info, moments=moments), 0, {}


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
    target: Zoo, paths: _Paths, source: Source, info: dict[str, Any], left_out: dict[str, str]
) -> Zoo:
    """Give the file its name; without the places of those that were left out."""
    kept = [name for name in source.members if name not in left_out]
    if not kept:
        raise HyperJaxError(
            f"no member is left of {len(left_out)}: {next(iter(left_out.values()))}"
        )
    if left_out:
        names = {"names": kept, "left_out": left_out}
        ids = np.asarray(target.members[: len(kept)])
        moments = source.moments is not None
        short = zoo_file.allocate(
            paths.whole, target.spec, ids, target.epochs, info | names, moments=moments
        )
        for rows in _blocks(len(kept)):
            short.weights[rows] = target.weights[rows]
            if moments:
                short.second_moments[rows] = target.second_moments[rows]
            for name in METRICS:
                short.metrics[name][rows] = target.metrics[name][rows]
        zoo_file.seal(paths.whole)
        zoo_file.flush(short)
        zoo_file.publish(paths.whole, paths.output)
    else:
        zoo_file.seal(paths.partial)
        zoo_file.flush(target)
        zoo_file.publish(paths.partial, paths.output)
    return zoo_file.read(paths.output)


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
