"""Speed of population training and evaluation: forms of the convolution, ways to map members.

    python benchmarks/population.py [--members=16,64] [--batches=10,32,128]

Prints models x images per second and appends a JSON line to benchmarks/population.jsonl. Forms
alternate within one run, so that a busy machine slows all of them.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.tasks import cli

FORMS = (("patches", "map"), ("patches", "vmap"), ("xla", "map"), ("xla", "vmap"))
IMAGES = 1024


def measure(members: int, batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Best of `repeats` alternating rounds, after one that compiles."""
    import jax
    import jax.numpy as jnp

    from hyperjax import population
    from hyperjax.config import TrainingConfig
    from hyperjax.models.cnn import zoo_cnn_spec

    rng, root = np.random.default_rng(0), jax.random.key(0)
    pixels = rng.integers(0, 256, (IMAGES, 28, 28, 1), np.uint8)
    training = TrainingConfig(batch_size=batch)
    runs = {}
    for conv, mapping in FORMS:
        spec = zoo_cnn_spec(1, "tanh")
        engine = population.make_engine(spec, training, conv=conv, members=mapping)
        labels = rng.integers(0, 10, IMAGES)
        images = population.place_images(engine, pixels, labels, [0.13], [0.31])
        hyper = population.place_members(engine, population.hyper(np.arange(members), training))
        state = population.init(engine, root, hyper)
        runs[f"{conv}/{mapping}"] = [engine, images, hyper, state]
    best = {name: {"train": np.inf, "evaluate": np.inf} for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            engine, images, hyper, state = run
            start = time.perf_counter()
            run[3], out = population.train_epoch(
                engine, state, hyper, images, root, jnp.int32(repeat)
            )
            jax.block_until_ready(out)
            middle = time.perf_counter()
            jax.block_until_ready(population.evaluate(engine, run[3].vectors, images))
            if repeat:
                best[name]["train"] = min(best[name]["train"], middle - start)
                end = time.perf_counter()
                best[name]["evaluate"] = min(best[name]["evaluate"], end - middle)
    work = members * IMAGES
    return {n: {k: work / seconds for k, seconds in t.items()} for n, t in best.items()}


def main() -> None:
    def sizes(text):
        return [int(x) for x in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=sizes, default=[16, 64])
    parser.add_argument("--batches", type=sizes, default=[10, 32, 128])
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    from hyperjax.io import workdir

    table = Table(title="models x images per second (train / evaluate)")
    for title in ("members", "batch", *("/".join(form) for form in FORMS)):
        table.add_column(title, justify="right")
    results = []
    for members in args.members:
        for batch in args.batches:
            rates = measure(members, batch, args.repeats)
            results.append({"members": members, "batch": batch, "rates": rates})
            cells = (f"{r['train']:,.0f} / {r['evaluate']:,.0f}" for r in rates.values())
            table.add_row(str(members), str(batch), *cells)
    with open(Path(__file__).with_suffix(".jsonl"), "a") as file:
        record = workdir.describe_run(workdir.command_line(), results=results)
        file.write(json.dumps(record) + "\n")
    Console(width=130).print(table)


if __name__ == "__main__":
    cli.run(main)
