"""Layer-wise loss normalisation, on or off, at several sizes and with and without the linear path.

    python benchmarks/lwln.py [--workdir=runs/digits] [--members=40,165] [--latents=64,256]

Trains autoencoders on the zoo of a finished workdir, all with its configuration's budget, and
reports accuracy and R² of train and of held-out (validation) members. Appends to
benchmarks/lwln.jsonl.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hyperjax.app import cli


def variants(args, config):
    """(members, configuration) of every run."""
    base = config.autoencoder
    base = dataclasses.replace(
        base,
        train_baseline=False,
        steps=args.steps or base.steps,
        learning_rate=args.learning_rate or base.learning_rate,
        augment=dataclasses.replace(
            base.augment, noise=base.augment.noise if args.noise is None else args.noise
        ),
    )
    paths = {"yes": (True,), "no": (False,), "both": (False, True)}[args.linear_path]
    for members, latent, linear, lwln in itertools.product(
        args.members, args.latents, paths, (True, False)
    ):
        autoencoder = dataclasses.replace(base, latent=latent, linear_path=linear, lwln=lwln)
        yield members, dataclasses.replace(config, autoencoder=autoencoder)


def measure(trained, config, members: int) -> dict:
    """Train one autoencoder on the first `members` train members; figures of its best step.

    Held-out members and images are the validation ones: sizes may be chosen by this table, so
    it must not see the test split.
    """
    from hyperjax.app import train_hyperrep
    from hyperjax.store import hyperrep_file, workdir

    count = min(members or len(trained.data.train), len(trained.data.train))
    data = trained.data._replace(train=trained.data.train[:count])
    name, reference = (
        train_hyperrep.main_name(config),
        next(iter(trained.hyperreps.values())).reference,
    )
    with tempfile.TemporaryDirectory() as folder:
        train_hyperrep.make_hyperrep(name, config, data, reference, trained.task, Path(folder))
        info = hyperrep_file.read(workdir.hyperrep_path(Path(folder), name))[1]
    c = config.autoencoder
    settings = {
        "members": count,
        "latent": c.latent,
        "linear_path": c.linear_path,
        "lwln": c.lwln,
        "steps": c.steps,
        "learning_rate": c.learning_rate,
        "noise": c.augment.noise,
    }
    return settings | info


def main() -> None:
    def sizes(text):
        return [int(x) for x in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--members", type=sizes, default=[0], help="train members; 0: all")
    parser.add_argument("--latents", type=sizes, default=[64, 256])
    parser.add_argument("--linear_path", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--steps", type=int, default=0, help="0: the configuration's")
    parser.add_argument("--learning_rate", type=float, default=0, help="0: the configuration's")
    parser.add_argument("--noise", type=float, help="default: the configuration's")
    args = parser.parse_args()
    from hyperjax.app import train

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
        table.add_row(
            *(str(row[key]) for key in ("members", "latent", "linear_path", "lwln", "best_step")),
            *(f"{100 * row[f'{part}_accuracy']:.1f}" for part in ("train", "heldout")),
            *(f"{row[f'{part}_r2_all']:.2f}" for part in ("train", "heldout")),
            *(f"{row[f'heldout_r2_{name}']:.2f}" for name in layers),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    cli.run(main)
