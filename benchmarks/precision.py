"""What products of bfloat16 do to a zoo: float32 members beside twins of the same seeds.

    python benchmarks/precision.py [--members=100] [--epochs=25] [--seed=0]

Trains digits' zoo three times: in float32, in float32 with the convolutions computed in another
form, which differs from the first by rounding alone, and with products of bfloat16. Prints, of test
images after the last epoch: accuracy, its mean difference to the float32 twins' with a 95 %
interval, and the share of images of which twins say the same; and how much of the members' variance
their twins' weights explain (R2). Before that, the rates of products alone, on one device, by the
precision of operands and result. Appends a line to benchmarks/precision.jsonl.
`benchmarks/population.py --precisions=float32,bfloat16` measures the speed.
"""

import argparse
import dataclasses
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

FIRST = "float32"
WAYS = {FIRST: ("float32", "tiles"), "float32, other form": ("float32", "patches"),
        "bfloat16": ("bfloat16", "tiles")}  # fmt: skip
SHAPES = ((32, 36, 4608), (32, 288, 2048), (1024, 1024, 1024))  # the first: a zoo CNN's own
PRECISIONS = (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"))
REPEATS = 20  # of a product, in one call


def product_rate(shape: tuple[int, int, int], operands: str, result: str) -> float:
    """GFLOP/s of [m, k] times [k, n]."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    m, k, n = shape
    a, b = jnp.ones((m, k), operands), jnp.ones((k, n), operands)

    @jax.jit
    def many(a, b):
        def one(a, _):  # each waits for the one before
            out = jnp.dot(a, b, preferred_element_type=result)
            return a + (0 * out[:1, :1]).astype(a.dtype), None

        return lax.scan(one, a, length=REPEATS)[0]

    seconds = common.best_of(lambda: many(a, b).block_until_ready(), 10)
    return 2 * m * k * n * REPEATS / seconds / 1e9


def show_products(rates: dict[str, dict[str, float]]) -> Table:
    table = Table(title="products on one device, GFLOP/s: operands and result")
    for column in ("", *next(iter(rates.values()))):
        table.add_column(column, justify="right")
    for shape, found in rates.items():
        table.add_row(shape, *(f"{rate:.0f}" for rate in found.values()))
    return table


def trained(config: Any, images: Any, precision: str, form: str) -> dict[str, Any]:
    """A zoo's last weights, and what they say of the test images."""
    import jax

    from hyperjax.population import evaluate, lockstep, place_members
    from hyperjax.population.evaluation import make_task

    zoo = dataclasses.replace(config.zoo, conv=form)
    spec = lockstep.architecture_of(zoo, images)
    key = jax.random.key(config.seed)
    with jax.default_matmul_precision(precision):
        task = make_task(lockstep.make_engine(zoo, spec), images)
        weights = lockstep.train_zoo(images, zoo, key).weights[:, -1]
    # in float32 whatever they were trained in, so that nothing but the weights differs
    placed = place_members(task.engine, weights)
    result = jax.device_get(evaluate(task.engine, placed, task.test))
    found = {"accuracy": result.accuracy, "predictions": result.predictions}
    return {name: values[: len(weights)] for name, values in found.items()} | {"weights": weights}


def compare(way: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    from scipy import stats

    gap = 100 * (way["accuracy"] - first["accuracy"])
    centred = first["weights"] - first["weights"].mean(0)
    half = stats.t.ppf(0.975, len(gap) - 1) * stats.sem(gap) if gap.any() else 0.0
    return {
        "accuracy": 100 * float(way["accuracy"].mean()),
        "std": 100 * float(way["accuracy"].std(ddof=1)),
        "difference": float(gap.mean()),
        "half_width": float(half),
        "agreement": 100 * float((way["predictions"] == first["predictions"]).mean()),
        "r2": 1 - float(np.sum((way["weights"] - first["weights"]) ** 2) / np.sum(centred**2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from hyperjax.app.context import read_config
    from hyperjax.app.run import images_of

    config = dataclasses.replace(
        read_config(f"{common.ROOT}/configs/digits.py:small"), seed=args.seed
    )
    zoo = dataclasses.replace(config.zoo, num_members=args.members, epochs=args.epochs,
                              snapshots=(args.epochs,), tested="last")  # fmt: skip
    config, images = dataclasses.replace(config, zoo=zoo), images_of(config)
    console = Console(width=110)
    rates = {
        " x ".join(map(str, shape)): {f"{a}, {b}": product_rate(shape, a, b) for a, b in PRECISIONS}
        for shape in SHAPES
    }
    console.print(show_products(rates))
    runs = {name: trained(config, images, *way) for name, way in WAYS.items()}
    results = {name: compare(run, runs[FIRST]) for name, run in runs.items()}
    common.record(
        __file__, members=args.members, epochs=args.epochs, seed=args.seed, rates=rates, **results
    )
    table = Table(title=f"{args.members} members of digits, {args.epochs} epochs")
    for column in ("", "accuracy, %", "minus float32's", "same answers, %", "R2"):
        table.add_column(column, justify="right")
    for name, r in results.items():
        cells = (
            f"{r['accuracy']:.2f} ± {r['std']:.2f}",
            f"{r['difference']:+.2f} ± {r['half_width']:.2f}",
        )
        table.add_row(name, *cells, f"{r['agreement']:.2f}", f"{r['r2']:.4f}")
    console.print(table)


if __name__ == "__main__":
    cli.run(main)
