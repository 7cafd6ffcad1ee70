"""Table 1 over several seeds: the spread between runs beside the spread between models.

    for seed in 0 1 2; do
      python train.py --config=configs/digits.py --workdir=runs/digits_$seed --config.seed=$seed
      python evaluate.py --workdir=runs/digits_$seed --experiments=tab1
    done
    python benchmarks/seeds.py runs/digits_0 runs/digits_1 runs/digits_2

Reads the reports of workdirs that differ only by seed, and prints, per population and epoch, the
mean over seeds of the populations' mean accuracy, its standard deviation between seeds (ddof 1),
and the mean standard deviation between the models of one population.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax import config as config_lib
from hyperjax.app import cli
from hyperjax.errors import HyperJaxError
from hyperjax.store import workdir

Summaries = dict[str, dict[int, tuple[float, float]]]  # population -> epoch -> mean, std in %


def read(folder: Path) -> Summaries:
    """The summaries in a workdir's report."""
    path = folder / "report" / "tab1.json"
    try:
        populations = json.loads(path.read_text())["populations"]
        return {
            name: {
                int(epoch): (100 * one["mean"], 100 * one["std"])
                for epoch, one in row["summary"].items()
            }
            for name, row in populations.items()
        }
    except FileNotFoundError as error:
        raise HyperJaxError(
            f"{path}: there is no such file; run evaluate.py --workdir={folder} "
            "--experiments=tab1 first"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise HyperJaxError(f"{path}: not a report's table 1: {error!r}") from error


def check(folders: list[Path]) -> list[int]:
    """The seeds. Raises HyperJaxError if the runs differ by more than these."""
    configs = [workdir.load_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        differing = config_lib.differences(configs[0], config).keys() - {"seed"}
        if differing:
            names = ", ".join(sorted(differing))
            raise HyperJaxError(f"{folder} differs from {folders[0]} in {names}")
    seeds = [config.seed for config in configs]
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise HyperJaxError(f"seeds {seeds}: expected at least two, all different")
    return seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path)
    folders = parser.parse_args().workdirs
    seeds, tables = check(folders), [read(folder) for folder in folders]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    epochs = sorted({epoch for table in tables for name in names for epoch in table[name]})
    out = Table(title=f"test accuracy (%), seeds {', '.join(map(str, seeds))}",
                caption="mean ± standard deviation between seeds (between models)")  # fmt: skip
    for column in ("population", *(f"epoch {epoch}" for epoch in epochs)):
        out.add_column(column, justify="left" if column == "population" else "right")
    for name in names:
        cells = []
        for epoch in epochs:
            values = np.array([table[name][epoch] for table in tables if epoch in table[name]])
            if len(values) == len(tables):
                spread = values[:, 0].std(ddof=1)
                cells.append(
                    f"{values[:, 0].mean():.1f} ± {spread:.1f} ({values[:, 1].mean():.1f})"
                )
            else:
                cells.append("")
        out.add_row(name, *cells)
    Console(width=120).print(out)


if __name__ == "__main__":
    cli.run(main)
