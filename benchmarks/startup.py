"""Start-up: imports, --help of each script, and compilation with and without its cache.

    python benchmarks/startup.py [--repeats=3]

Prints two tables and appends a JSON line to benchmarks/startup.jsonl. Every measurement is a
fresh process; the best of the rounds counts. Imports are timed inside it, --help from outside.
Compilation is what a first call takes beyond a second one; "warm" loads what the cold process
left in a cache of its own. The autoencoder is that of configs/digits.py:small.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

SCRIPTS = ("train.py", "sample.py", "evaluate.py")
MODULES = ("hyperjax", *(f"hyperjax.app.{Path(script).stem}" for script in SCRIPTS))
_MEMBERS, _IMAGES, _VECTORS = 8, 256, 256  # enough to compile for


def import_seconds(module: str, first: str) -> float:
    """Import a module in a fresh process, after `first`."""
    code = f"import {first}, time; t = time.perf_counter(); import {module}; "
    code += "print(time.perf_counter() - t)"
    return float(_output([sys.executable, "-c", code]))


def help_seconds(script: str) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, script, "--help"], cwd=common.ROOT, capture_output=True)
    assert b"--workdir" in done.stdout, done.stderr
    return time.perf_counter() - start


def compile_seconds(cache: str) -> dict[str, float]:
    """Compile the hot paths in a fresh process with this cache."""
    text = _output([sys.executable, __file__, "--compile"], JAX_COMPILATION_CACHE_DIR=cache)
    return json.loads(text.splitlines()[-1])


def _output(command: list[str], **environ: str) -> str:
    environ = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true"} | environ
    return subprocess.run(
        command, cwd=common.ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def measure_here() -> dict[str, float]:
    """Seconds of compilation of each hot path, in this process."""
    return {**_population(), **_hyperrep()}


def _population() -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from hyperjax import population
    from hyperjax.config import TrainingConfig
    from hyperjax.models.architectures import zoo_cnn_spec
    from hyperjax.types import Images

    rng, root, training = np.random.default_rng(0), jax.random.key(0), TrainingConfig(batch_size=32)
    engine = population.make_engine(zoo_cnn_spec(1, "tanh"), training)
    pixels = rng.integers(0, 256, (_IMAGES, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, _IMAGES)
    images = population.place_images(engine, Images(pixels, labels, [0.13], [0.31]))
    hyper = population.place_members(engine, population.hyper(np.arange(_MEMBERS), training))
    state = population.init(engine, root, hyper)

    def train():
        nonlocal state
        state, metrics = population.train_epoch(engine, state, hyper, images, root, jnp.int32(0))
        return metrics

    return {
        "population.train_epoch": _first_beyond_second(train),
        "population.evaluate": _first_beyond_second(
            lambda: population.evaluate(engine, state.vectors, images)
        ),
    }


def _hyperrep() -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from hyperjax import hyperrep
    from hyperjax.models.architectures import zoo_cnn_spec

    config, spec = common.small_autoencoder(), zoo_cnn_spec(1, "tanh")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((_VECTORS, spec.num_params), np.float32)
    trainer = hyperrep.make_trainer(config, spec)
    stats = jax.tree.map(jnp.asarray, hyperrep.statistics(config.data, spec, vectors))
    state, key = hyperrep.init(trainer, jax.random.key(0)), jax.random.key(1)
    batches = hyperrep.batches(trainer, key, vectors)(0, 1)

    def steps():
        nonlocal state
        state, metrics = hyperrep.train_steps(trainer, state, batches, stats, jnp.int32(1))
        return metrics

    return {"hyperrep.train_steps": _first_beyond_second(steps)}


def _first_beyond_second(call: Callable) -> float:
    import jax

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


def one_round() -> dict[str, float]:
    """Every measurement once: seconds by name."""
    found = {"import jax": import_seconds("jax", "sys")}
    for module in MODULES:
        found[f"import {module}"] = import_seconds(module, "sys")
        found[f"import {module}, after jax"] = import_seconds(module, "jax")
    found |= {f"{script} --help": help_seconds(script) for script in SCRIPTS}
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            for name, seconds in compile_seconds(cache).items():
                found[f"{name}, {state}"] = seconds
    return found


def report(best: dict[str, float]) -> list[Table]:
    start, compiled = Table(title="Start-up, seconds"), Table(title="Compilation, seconds")
    for title in ("", "alone", "after import jax"):
        start.add_column(title, justify="right" if title else "left")
    imports = ["import jax", *(f"import {module}" for module in MODULES)]
    for name in (*imports, *(f"{script} --help" for script in SCRIPTS)):
        after = best.get(f"{name}, after jax")
        start.add_row(name, f"{best[name]:.3f}", "" if after is None else f"{after:.3f}")
    for title in ("", "cold", "from the cache", "faster"):
        compiled.add_column(title, justify="right" if title else "left")
    for name in best:
        if name.endswith(", cold"):
            name = name.removesuffix(", cold")
            cold, warm = best[f"{name}, cold"], best[f"{name}, warm"]
            compiled.add_row(name, f"{cold:.2f}", f"{warm:.2f}", f"{cold / warm:.0f} x")
    return [start, compiled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(measure_here()))
        return
    rounds = [one_round() for _ in range(args.repeats)]
    best = {name: min(found[name] for found in rounds) for name in rounds[0]}
    common.record(__file__, seconds=best)
    console = Console(width=130)
    for table in report(best):
        console.print(table)


if __name__ == "__main__":
    cli.run(main)
