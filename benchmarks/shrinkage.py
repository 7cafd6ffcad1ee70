"""What shrinking the covariance gives the Wiener denoiser, on members that it has not seen.

    python benchmarks/shrinkage.py runs/mnist2k

Fits the linear denoiser to the first 140, 400 and all train members, to as many snapshots of each
as the denoiser has, and prints its error per weight on validation and test members, at the noise
levels of the `denoiser` experiment (1 is a layer's standard deviation): with the covariance as it
is, shrunk as if every snapshot were a member of its own, and shrunk by members
(`diffusion/wiener.py`). Seconds on two cores.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import hyperjax as hj
from hyperjax import weights
from hyperjax.app import cli
from hyperjax.diffusion import wiener
from hyperjax.diffusion.denoiser_training import LEVELS
from hyperjax.hyperrep.losses import slot_scale

_SIZES = (140, 400)


def errors(fitted: wiener.Wiener, clean: np.ndarray) -> list[float]:
    """Mean squared error at each level, of networks float32[N, D], with the same noise for all."""
    noise = np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
    return [
        float(np.mean((np.asarray(wiener.denoise(fitted, clean + s * noise, s)) - clean) ** 2))
        for s in LEVELS
    ]


def intensity(fitted: wiener.Wiener) -> float:
    """By how much it was shrunk: the share of `rest` in the mean variance."""
    size, axes = len(fitted.mean), len(fitted.variances)
    return float(fitted.rest * size / (fitted.variances.sum() + fitted.rest * (size - axes)))


def report(folder: Path) -> None:
    run = hj.load(folder)
    train = run.data.train[:, -run.config.denoiser.snapshots :]
    unit = np.asarray(slot_scale(run.zoo.spec, weights.layer_std(run.zoo.spec, train)))
    unseen = np.concatenate([run.data.val[:, -1], run.data.test[:, -1]]) / unit
    table = Table("members", "covariance", "intensity", title=f"error on {len(unseen)} others")
    for level in LEVELS:
        table.add_column(f"noise {level:g}", justify="right")
    for size in sorted({*(s for s in _SIZES if s < len(train)), len(train)}):
        flat = train[:size].reshape(-1, train.shape[-1])
        for name, fitted in (
            ("as it is", wiener.fit(flat, 0.0, unit=unit)),
            ("shrunk by snapshots", wiener.fit(flat, unit=unit)),
            ("shrunk by members", wiener.fit(train[:size], unit=unit)),
        ):
            found = (f"{error:.4f}" for error in errors(fitted, unseen))
            table.add_row(str(size), name, f"{intensity(fitted):.2f}", *found)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="a finished workdir with a denoiser's settings")
    report(parser.parse_args().workdir)


if __name__ == "__main__":
    cli.run(main)
