"""Population training and evaluation against PyTorch, and the forms of the convolution.

    python benchmarks/population.py [--members=1,16,128,1000] [--batches=10,32,128]
    python benchmarks/population.py --net=cnn3         # or mlp: other networks than the paper's
    python benchmarks/population.py --forms            # HyperJAX's own forms instead of PyTorch
    python benchmarks/population.py --precisions=float32,bfloat16    # of products, on both sides
    python benchmarks/population.py --profile          # where the time of training goes

Prints models x images per second: best of the rounds, and the worst in brackets. All contenders
run in one call on the same cores, in turn. PyTorch runs in each of its forms: one model per
single-threaded process on every core (eager, channels-last, compiled), and the whole population
through torch.func in one process with all cores, in bfloat16 only where the processor has
instructions for it. Appends a line for every setting to benchmarks/population.jsonl.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

ALONE = ("eager", "channels_last", "compile")
TOGETHER = ("vmap", "vmap_compile")
MOST_TOGETHER = 128  # members; more only fall out of PyTorch's cache, so they are not run again
OURS = (("tiles", "map"), ("patches", "map"), ("patches", "vmap"), ("xla", "map"), ("xla", "vmap"))
EVALUATION_BATCHES = (32, 128, 500)
NETS = {  # by name: what `architecture` is told
    "cnn": {"channels": 1, "image_size": (28, 28)},
    "cnn3": {"channels": 3, "image_size": (32, 32)},
    "mlp": {"channels": 1, "image_size": (28, 28), "widths": (64, 64)},
}


def network(net: str) -> Any:
    """The layout of a network's weights."""
    from hyperjax.models.architectures import architecture

    return architecture(net, activation="tanh", **NETS[net])


def prepared(net: str, count: int, batch: int, images: int, **how: Any) -> tuple[Any, ...]:
    """What `train_epoch` takes: engine, state, hyper-parameters, images, key and epoch."""
    import jax
    import jax.numpy as jnp

    from hyperjax import population
    from hyperjax.config import TrainingConfig
    from hyperjax.types import Images

    rng, root = np.random.default_rng(0), jax.random.key(0)
    training = TrainingConfig(batch_size=batch)
    spec, channels = network(net), NETS[net]["channels"]
    engine = population.make_engine(spec, training, **how)
    pixels = rng.integers(0, 256, (images, *spec.image_size, channels), np.uint8)
    labels = rng.integers(0, 10, images)
    scale = [0.13] * channels, [0.31] * channels
    split = population.place_images(engine, Images(pixels, labels, *scale))
    hyper = population.place_members(engine, population.hyper(np.arange(count), training))
    state = population.init(engine, root, hyper)
    return engine, state, hyper, split, root, jnp.int32(1)


def ours(
    work: str,
    net: str,
    count: int,
    batch: int,
    images: int,
    precision: str = "float32",
    **how: Any,
) -> Callable[[], float]:
    """HyperJAX: one epoch, or one evaluation, of a population."""
    import jax

    from hyperjax import population

    engine, state, *rest = prepared(net, count, batch, images, **how)
    split = rest[1]

    def train():
        nonlocal state
        state, out = population.train_epoch(engine, state, *rest)
        jax.block_until_ready(out)

    def evaluate():
        jax.block_until_ready(population.evaluate(engine, state.vectors, split))

    def run():
        with jax.default_matmul_precision(precision):
            return common.timed(train if work == "train" else evaluate)

    return run


@dataclasses.dataclass
class Contender:
    run: Callable[[], float]  # returns seconds
    work: float  # models x images


def contenders(
    work: str,
    net: str,
    members: int,
    batch: int,
    images: int,
    alone: Any,
    together: Any,
    forms: bool,
    precisions: tuple[str, ...],
) -> dict[str, Contender]:
    from hyperjax.app import machine

    few = min(images, max(256, 640_000 // members))  # images: a round should take seconds
    out = {}
    variants = OURS if forms else (("auto", "auto"),)
    for (conv, mapping), precision in itertools.product(variants, precisions):
        name = (f"{conv}/{mapping}" if forms else "HyperJAX") + _suffix(precision)
        how = {"conv": conv, "mapping": mapping, "precision": precision}
        out[name] = Contender(ours(work, net, members, batch, few, **how), members * few)
    if alone is None:
        return out
    request = {"work": work, "net": net, "members": 1, "images": images}
    workers = len(common.cores())
    fewer = max(256, min(1280, 40_000 // members))
    halves = "bfloat16" in precisions and machine.multiplies_bfloat16() is not False
    for precision in ("float32", "bfloat16") if halves else ("float32",):
        request = request | {"precision": precision}
        half = _suffix(precision)
        for form in ALONE:
            for size in (batch,) if work == "train" else EVALUATION_BATCHES:
                name = f"torch {form}{half}" + (f" {size}" if work != "train" else "")
                ask = request | {"form": form, "batch": size}
                out[name] = Contender(lambda ask=ask: alone(ask), workers * images)
        for form in TOGETHER if 1 < members <= MOST_TOGETHER else ():
            ask = request | {"form": form, "members": members, "images": fewer, "batch": batch}
            out[f"torch {form}{half}"] = Contender(lambda ask=ask: together(ask), members * fewer)
    return out


def _suffix(precision: str) -> str:
    """Of a contender's name."""
    return "" if precision == "float32" else f" {precision}"


def measure(
    work: str, net: str, members: int, batch: int, rounds: int, **kwargs: Any
) -> dict[str, Any]:
    entries = contenders(work, net, members, batch, 2560, **kwargs)
    seconds = common.alternate({name: entry.run for name, entry in entries.items()}, rounds)
    rates = {name: common.spread(entries[name].work, seconds[name]) for name in entries}
    return {"work": work, "net": net, "members": members, "batch": batch, "rates": rates}


def show(results: list[dict[str, Any]], net: str, ceiling: float) -> Table:
    """A row for a setting and a precision of ours. Ratios are of best to best; shares are of the
    measured rate of products in float32."""
    from hyperjax import cost

    spec = network(net)
    per_image = {"train": cost.training_flops(spec), "evaluate": cost.evaluation_flops(spec)}
    table = Table(title=f"{net}: models x images per second")
    columns = ["", "members", "batch", "HyperJAX", "of GEMM", "best in float32", "", "ratio"]
    halves = any("bfloat16" in name for result in results for name in result["rates"])
    columns += ["best in bfloat16", "", "ratio"] if halves else []
    for column in columns:
        table.add_column(column, justify="right")
    for result in results:
        rates = result["rates"]
        own = [name for name in rates if name.startswith("HyperJAX")] or [next(iter(rates))]
        for first in own:
            mine, (_, *half) = rates[first], first.split()
            share = mine["best"] * per_image[result["work"]] / ceiling / 1e9
            cells = [" ".join([result["work"], *half]), str(result["members"])]
            cells += [str(result["batch"])]
            cells += [f"{mine['best']:,.0f} ({mine['worst']:,.0f})", f"{share:.0%}"]
            peers = {name: rate for name, rate in rates.items() if name not in own}
            for in_half in (False, True) if halves else (False,):
                among = {name: r for name, r in peers.items() if ("bfloat16" in name) == in_half}
                if among:
                    name, peer = max(among.items(), key=lambda item: item[1]["best"])
                    cells += [f"{peer['best']:,.0f} ({peer['worst']:,.0f})", name]
                    cells += [f"{mine['best'] / peer['best']:.1f}"]
            table.add_row(*cells)
    return table


def show_profile(net: str, members: int, batch: int) -> Table:
    """Shares of an epoch's time; operations that take less than 1 % are one row."""
    import jax

    from hyperjax import population

    engine, state, *rest = prepared(net, members, batch, 2560)
    program = population.train_epoch.lower(engine, state, *rest).compile().as_text()
    state, _ = population.train_epoch(engine, state, *rest)
    seconds = common.profile(
        program, lambda: jax.block_until_ready(population.train_epoch(engine, state, *rest))
    )
    total = sum(seconds.values())
    table = Table(title=f"{net}: training {members} members in batches of {batch}, share of time")
    for column in ("operation", "share"):
        table.add_column(column, justify="right")
    shown = {name: s for name, s in seconds.items() if s >= 0.01 * total}
    products = sum(s for name, s in seconds.items() if name.endswith("dot_general"))
    for name, s in shown.items():
        table.add_row(name, f"{s / total:.1%}")
    table.add_row("all others", f"{1 - sum(shown.values()) / total:.1%}")
    table.add_row("products, together", f"{products / total:.1%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=tuple(NETS), default="cnn")
    parser.add_argument("--members", type=common.sizes, default=[1, 16, 128, 1000])
    parser.add_argument("--batches", type=common.sizes, default=[10, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=("train", "evaluate", "both"), default="both")
    parser.add_argument("--forms", action="store_true", help="compare HyperJAX's own forms")
    parser.add_argument(
        "--precisions", type=lambda text: tuple(text.split(",")), default=("float32",)
    )
    parser.add_argument("--profile", action="store_true", help="show where training's time goes")
    args = parser.parse_args()
    import jax

    if args.profile:
        for members, batch in itertools.product(args.members, args.batches):
            with jax.default_matmul_precision(args.precisions[0]):
                Console(width=130).print(show_profile(args.net, members, batch))
        return
    ceilings, results = common.ceilings(), []
    settings = [
        (work, args.net, members, batch)
        for work in ("train", "evaluate")
        if args.work in (work, "both")
        for members in args.members
        for batch in (args.batches if work == "train" else [32])
    ]
    torch = not args.forms and common.has_torch()
    console, cores = Console(width=130), common.cores()
    with (
        common.peers([[core] for core in cores] if torch else []) as alone,
        common.peers([cores] if torch else []) as together,
    ):
        both = {"alone": alone if torch else None, "together": together, "forms": args.forms}
        both["precisions"] = args.precisions
        for setting in settings:
            results.append(measure(*setting, args.rounds, **both))
            rates = results[-1]["rates"]
            line = ", ".join(f"{name} {rate['best']:,.0f}" for name, rate in rates.items())
            console.print(f"{' '.join(map(str, setting))}: {line}")
            common.record(__file__, ceilings=ceilings, results=results[-1:])
    console.print(show(results, args.net, ceilings["matmul_gflops"]))
    console.print({name: round(value, 1) for name, value in ceilings.items()})


if __name__ == "__main__":
    cli.run(main)
