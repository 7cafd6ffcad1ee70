"""How population training scales over the devices of one host.

    python benchmarks/scaling.py [--devices=1,2] [--members=16] [--batch=32]

The same population on 1, 2, ... devices, in turn; on a CPU a device is a core. There a single
device of several would use the threads of all cores, so that one core is measured by a process
that has no other. Prints models x images per second and the speed-up, and appends a line to
benchmarks/scaling.jsonl. Results are the same on any number of devices
(tests/population/test_population.py).
"""

import argparse
import json
import os
import subprocess
import sys

import common
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

IMAGES = 2560


def on_one_core(args: argparse.Namespace) -> dict[str, float]:
    """Rates of this script in a process that is pinned to the first core."""
    command = [sys.executable, __file__, "--pinned", f"--members={args.members}",
               f"--batch={args.batch}", f"--rounds={args.rounds}"]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


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
    parser.add_argument("--pinned", action="store_true", help="on one core, for the script itself")
    args = parser.parse_args()
    pin = jax.default_backend() == "cpu" and everywhere > 1
    runs = {
        count: ours("train", "cnn", args.members, args.batch, IMAGES, devices=jax.devices()[:count])
        for count in args.devices
        if count > 1 or not pin
    }
    seconds = common.alternate(runs, args.rounds)
    rates = {n: common.spread(args.members * IMAGES, s) for n, s in seconds.items()}
    if args.pinned:
        print(json.dumps(rates[1]))
        return
    if pin and 1 in args.devices:
        rates = {1: on_one_core(args)} | rates
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
    if "--pinned" in sys.argv:  # before JAX counts cores and starts its threads
        os.sched_setaffinity(0, common.cores()[:1])
        os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    cli.run(main)
