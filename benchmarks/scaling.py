"""How population training scales over the devices of one host.

    python benchmarks/scaling.py [--devices=1,2] [--members=16] [--batch=32]

The same population on 1, 2, ... devices, in turn; on a CPU a device is a core. Prints models x
images per second and the speed-up, and appends a line to benchmarks/scaling.jsonl. Results are
the same on any number of devices (tests/test_population.py).
"""

import argparse

import common
from rich.console import Console
from rich.table import Table

from hyperjax.tasks import cli


def main() -> None:
    import jax
    from population import ours

    everywhere = len(jax.devices())
    powers = [2**i for i in range(8) if 2**i < everywhere]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=common.sizes, default=[*powers, everywhere])
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    images = 2560
    runs = {
        count: ours("train", args.members, args.batch, images, devices=jax.devices()[:count])
        for count in args.devices
    }
    seconds = common.alternate(runs, args.rounds)
    rates = {n: common.spread(args.members * images, s) for n, s in seconds.items()}
    table = Table(title="population training over devices")
    for column in ("devices", "models x images / s", "median", "speed-up"):
        table.add_column(column, justify="right")
    first = rates[args.devices[0]]["best"]
    for count, rate in rates.items():
        speedup = f"{rate['best'] / first:.2f} x"
        table.add_row(str(count), f"{rate['best']:,.0f}", f"{rate['median']:,.0f}", speedup)
    common.record(__file__, members=args.members, batch=args.batch, rates=rates)
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
