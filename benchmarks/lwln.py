"""Layer-wise loss normalisation, on or off, at several sizes and with and without the linear path.

    python benchmarks/lwln.py [--workdir=runs/digits] [--members=40,165] [--latents=64,256]

Trains autoencoders on the zoo of a finished workdir, in memory, all with its configuration's
budget. Prints how each ends, then a table of the step that its configuration selects: accuracy
and R² of train and of held-out members. Appends a line for each to benchmarks/lwln.jsonl.

Held-out members and images are the validation ones: sizes may be chosen by this table, so it must
not see the test split.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

PATHS = {"yes": (True,), "no": (False,), "both": (False, True)}


def settings(args: argparse.Namespace) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of every autoencoder: train members (0: all), and fields of the configuration."""
    given = {
        "training.steps": args.steps,
        "training.learning_rate": args.learning_rate,
        "data.augment.noise": args.noise,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for members, latent, linear, lwln in itertools.product(
        args.members, args.latents, PATHS[args.linear_path], (True, False)
    ):
        sizes = {"architecture.latent": latent, "architecture.linear_path": linear}
        yield members, sizes | {"loss.lwln": lwln} | given


def measure(run: Any, config: Any, members: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train one autoencoder on the first `members` train members, as train.py would; the figures
    of the step that it selects, and of its last one."""
    from hyperjax.hyperrep import HyperRep, statistics, training, validate
    from hyperjax.rng import Stream, root_key

    spec, whole = run.zoo.spec, run.data
    data = whole._replace(train=whole.train[:members], quality=whole.quality[:members])
    trainer = training.make_trainer(config, spec)
    stats = statistics(config.data, spec, data.train_vectors)
    placed_stats = training.place(trainer, stats)
    key = root_key(run.config.seed, Stream.HYPERREP)
    start = training.begin(trainer, key, placed_stats)
    start = training.fit_linear(trainer, start, stats, data.train_vectors)
    last: dict[str, Any] = {}

    def judged(params: Any) -> dict[str, float]:
        return validate(HyperRep(config, spec, params, placed_stats, run.reference), data, run.task)

    steps = training.run(trainer, start, data.train_vectors, placed_stats, judged)
    for current, _, record in steps:  # noqa: B007
        last = record or last
    return {"step": int(current.best_step)} | judged(current.best), last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--members", type=common.sizes, default=[0], help="train members; 0: all")
    parser.add_argument("--latents", type=common.sizes, default=[64, 256])
    parser.add_argument("--linear_path", choices=PATHS, default="both")
    parser.add_argument("--steps", type=int, help="default: the configuration's")
    parser.add_argument("--learning_rate", type=float, help="default: the configuration's")
    parser.add_argument("--noise", type=float, help="default: the configuration's")
    args = parser.parse_args()
    from hyperjax.app.run import load
    from hyperjax.config import override

    run, console = load(args.workdir), Console(width=150)
    table = Table(title=f"LWLN on {run.config.dataset}, seed {run.config.seed}")
    layers = run.zoo.spec.names
    for title in ("members", "latent", "linear path", "LWLN", "best step", "train acc",
                  "held-out acc", "train R²", "held-out R²", *layers):  # fmt: skip
        table.add_column(title, justify="right")
    for members, fields in settings(args):
        fields = {f"autoencoder.{name}": value for name, value in fields.items()}
        config = override(run.config, fields).autoencoder
        count = min(members or len(run.data.train), len(run.data.train))
        best, last = measure(run, config, count)
        sizes = (count, config.architecture.latent, config.architecture.linear_path)
        cells = [str(value) for value in (*sizes, config.loss.lwln)]
        console.print(f"{' '.join(cells)}, after {last['step']} steps: {in_words(last)}")
        table.add_row(
            *cells,
            str(best["step"]),
            *(f"{100 * best[f'{part}_accuracy']:.1f}" for part in ("train", "val")),
            *(f"{best[f'{part}_r2_all']:.2f}" for part in ("train", "val")),
            *(f"{best[f'val_r2_{name}']:.2f}" for name in layers),
        )
        facts = {"workdir": str(args.workdir), "dataset": run.config.dataset}
        facts |= {"seed": run.config.seed, "members": count, "fields": fields}
        common.record(__file__, **facts, best=best, last=last)
    console.print(table)


def in_words(scores: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} accuracy {100 * scores[f'{part}_accuracy']:.1f} %, "
        f"R² {scores[f'{part}_r2_all']:.2f}"
        for part, name in (("train", "train"), ("val", "held-out"))
    )


if __name__ == "__main__":
    cli.run(main)
