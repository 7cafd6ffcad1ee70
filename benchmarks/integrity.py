"""What checksums cost: reading files with and without them, and checking a whole zoo.

    python benchmarks/integrity.py [--members=1000] [--snapshots=51] [--folder=.] [--rounds=5]

Prints a table and appends a JSON line to benchmarks/integrity.jsonl. All files are in the page
cache, where reading is at its fastest and checking costs most of it. Reading is what `hj.load`
does: a hyper-representation of configs/digits.py:small to the device, a zoo to its memory map.
Rounds alternate; the table has the best, the line all.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli


def unchecked(read: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of `read` without computing any checksum of tensors or headers."""
    from hyperjax.store import checksums, tensors, zoo_file

    def run():
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(tensors, "_check"))
            stack.enter_context(mock.patch.object(zoo_file, "_damaged", return_value={}))
            stack.enter_context(mock.patch.object(checksums, "is_sealed", return_value=True))
            return common.timed(read)

    return run


def write_files(folder: Path, members: int, snapshots: int) -> dict[str, Path]:
    """A hyper-representation, samples and a zoo."""
    import jax

    from hyperjax import hyperrep, zoo
    from hyperjax.models.architectures import zoo_cnn_spec
    from hyperjax.store import hyperrep_file, zoo_file

    spec, rng = zoo_cnn_spec(1, "tanh"), np.random.default_rng(0)
    paths = {name: folder / f"{name}.safetensors" for name in ("hyperrep", "samples", "zoo")}
    for name, shape in (("samples", (100, 1)), ("zoo", (members, snapshots))):
        values = rng.random((*shape, spec.num_params), np.float32)
        metrics = {name: values[:, :, 0] for name in zoo.METRICS}
        models = zoo.Zoo(spec, values, np.arange(shape[1]), np.arange(shape[0]), metrics)
        zoo_file.write(paths[name], models)
    config = common.small_autoencoder()
    vectors = rng.random((64, spec.num_params), np.float32)
    stats = hyperrep.statistics(config.data, spec, vectors)
    params = hyperrep.init(hyperrep.make_trainer(config, spec), jax.random.key(0)).params
    model = hyperrep.HyperRep(config, spec, jax.device_get(params), stats, vectors[0])
    hyperrep_file.write(paths["hyperrep"], model, {})
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--snapshots", type=int, default=51)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import jax

    from hyperjax.store import hyperrep_file, zoo_file

    with tempfile.TemporaryDirectory(prefix="hyperjax-", dir=args.folder) as folder:
        paths = write_files(Path(folder), args.members, args.snapshots)
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        reads = {
            "hyperrep": lambda: jax.block_until_ready(
                jax.device_put(hyperrep_file.read(paths["hyperrep"])[0].params)
            ),
            "samples": lambda: np.array(zoo_file.read(paths["samples"]).weights),
            "zoo": lambda: zoo_file.read(paths["zoo"]),
        }
        runs = {}
        for name, read in reads.items():
            runs[f"read {name}"] = functools.partial(common.timed, read)
            runs[f"read {name}, unchecked"] = unchecked(read)
        every = {"read all of the zoo": lambda: np.sum(zoo_file.read(paths["zoo"]).weights)}
        every["verify the zoo"] = lambda: zoo_file.damaged(paths["zoo"])
        runs |= {name: functools.partial(common.timed, run) for name, run in every.items()}
        seconds = common.alternate(runs, args.rounds)
    common.record(__file__, sizes=sizes, seconds=seconds)
    table = Table("what", "MB", "ms", "unchecked, ms", "MB/s")
    for name in (*(f"read {x}" for x in reads), *every):
        size, best = sizes[name.split()[-1]] / 1e6, min(seconds[name])
        plain = seconds.get(f"{name}, unchecked")
        plain = f"{1e3 * min(plain):.2f}" if plain else ""
        rate = "" if name == "read zoo" else f"{size / best:,.0f}"
        table.add_row(name, f"{size:.1f}", f"{1e3 * best:.2f}", plain, rate)
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
