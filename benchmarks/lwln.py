"""Layer-wise loss normalisation, on or off, at several sizes and with and without the linear path.

    python benchmarks/lwln.py --workdir=runs/digits [--members=40,165] [--latents=64,256]

Trains autoencoders on the zoo of a finished workdir, all with its configuration's budget, and
reports accuracy and R² of train and of held-out (test) members. Appends to benchmarks/lwln.jsonl.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.tasks import cli


def variants(args, config):
    """(members, configuration) of every run."""
    grid = itertools.product(args.members, args.latents, (False, True), (True, False))
    for members, latent, linear, lwln in grid:
        autoencoder = dataclasses.replace(
            config.autoencoder,
            latent=latent,
            linear_path=linear,
            lwln=lwln,
            train_baseline=False,
            steps=args.steps or config.autoencoder.steps,
        )
        yield members, dataclasses.replace(config, autoencoder=autoencoder)


def measure(trained, config, members: int) -> dict:
    """Train one autoencoder on the first `members` train members and reconstruct."""
    from hyperjax.experiments import fig2
    from hyperjax.tasks import hyperreps

    count = min(members, len(trained.data.train)) or len(trained.data.train)
    data = trained.data._replace(train=trained.data.train[:count])
    name, reference = hyperreps.main_name(config), next(iter(trained.hyperreps.values())).reference
    with tempfile.TemporaryDirectory() as folder:
        model = hyperreps.make_hyperrep(name, config, data, reference, trained.lab, Path(folder))
        info = hyperreps.hyperrep_file.read(Path(folder) / "hyperrep" / f"{name}.safetensors")[1]
    result = fig2.run({name: model}, data, trained.lab)
    row = {
        "members": count,
        "latent": config.autoencoder.latent,
        "linear_path": config.autoencoder.linear_path,
        "lwln": config.autoencoder.lwln,
        "steps": config.autoencoder.steps,
        "best_step": info["best_step"],
    }
    for part in ("train", "heldout"):
        r = result[name, part]
        row[f"{part}_accuracy"] = float(np.mean(r.accuracy))
        row[f"{part}_r2"] = r.r2
    return row


def main() -> None:
    def sizes(text):
        return [int(x) for x in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--members", type=sizes, default=[0], help="train members; 0: all")
    parser.add_argument("--latents", type=sizes, default=[64, 256])
    parser.add_argument("--steps", type=int, default=0, help="0: the configuration's")
    args = parser.parse_args()
    from hyperjax.tasks import train

    trained = train.load(args.workdir)
    table = Table(title=f"LWLN on {trained.config.dataset}, seed {trained.config.seed}")
    layers = trained.zoo.spec.names
    for title in ("members", "latent", "linear path", "LWLN", "best step", "train acc",
                  "held-out acc", "train R²", "held-out R²", *layers):  # fmt: skip
        table.add_column(title, justify="right")
    for members, config in variants(args, trained.config):
        row = measure(trained, config, members)
        with open(Path(__file__).with_suffix(".jsonl"), "a") as file:
            file.write(json.dumps(row) + "\n")
        held = row["heldout_r2"]
        table.add_row(
            str(row["members"]), str(row["latent"]), str(row["linear_path"]), str(row["lwln"]),
            str(row["best_step"]), f"{100 * row['train_accuracy']:.1f}",
            f"{100 * row['heldout_accuracy']:.1f}", f"{row['train_r2']['all']:.2f}",
            f"{held['all']:.2f}", *(f"{held[name]:.2f}" for name in layers),
        )  # fmt: skip
    Console(width=150).print(table)


if __name__ == "__main__":
    cli.run(main)
