"""Samplers and decoding: time and memory of fitting, and of drawing 10,000 samples.

    python benchmarks/samplers.py [--samples=10000] [--samplers=uniform,kde,gan]

Anchors are 700 latents of 256 dimensions with 20 directions of variance, or as many weight
vectors. Times are of a first call, which compiles, and of a second one; memory is what the
process has more at its peak, each sampler in a process of its own. Decoding is that of
configs/digits.py:small, untrained. UMAP's inverse is slow: `neigh` draws a hundredth of the
samples, and its row says so. Appends a line to benchmarks/samplers.jsonl.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

ANCHORS, LATENT, RANK = 700, 256, 20
SLOW = ("neigh",)  # a hundredth of the samples


def _anchors(size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ANCHORS, RANK)) @ rng.normal(size=(RANK, size)) / RANK**0.5
    return np.tanh(0.4 * values + 0.05 * rng.normal(size=values.shape)).astype(np.float32)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(name: str, count: int) -> dict[str, float]:
    """Fit and draw in this process."""
    import jax

    from hyperjax import samplers
    from hyperjax.config import SamplersConfig
    from hyperjax.models.architectures import zoo_cnn_spec

    spec = zoo_cnn_spec(1, "tanh")
    sampler = samplers.get_sampler(name, SamplersConfig(), spec)
    anchors = _anchors(LATENT if sampler.space == "latent" else spec.num_params)
    quality = np.linspace(0, 1, ANCHORS, dtype=np.float32)
    jax.block_until_ready(jax.numpy.zeros(1))
    before, fits, draws = _peak(), [], []
    for seed in range(2):
        key, start = jax.random.key(seed), time.perf_counter()
        state = jax.block_until_ready(sampler.fit(key, anchors, quality))
        middle = time.perf_counter()
        jax.block_until_ready(sampler.sample(key, state, count))
        fits.append(middle - start)
        draws.append(time.perf_counter() - middle)
    return {
        "fit_first": fits[0], "fit": fits[1], "draw_first": draws[0], "draw": draws[1],
        "peak_mb": _peak() - before, "count": count,
    }  # fmt: skip


def decode(count: int) -> dict[str, float]:
    """Latents to weights; nothing is evaluated."""
    import jax

    from hyperjax import hyperrep
    from hyperjax.models.architectures import zoo_cnn_spec

    spec, config = zoo_cnn_spec(1, "tanh"), common.small_autoencoder()
    trainer = hyperrep.make_trainer(config, spec)
    params = jax.device_get(hyperrep.init(trainer, jax.random.key(0)).params)
    stats = hyperrep.statistics(config.data, spec, _anchors(spec.num_params))
    model = hyperrep.HyperRep(config, spec, params, stats, np.zeros(spec.num_params))
    latents, before = np.resize(_anchors(LATENT), (count, LATENT)), _peak()
    first, second = (common.timed(lambda: hyperrep.decode(model, latents)) for _ in range(2))
    return {"draw_first": first, "draw": second, "peak_mb": _peak() - before, "count": count}


def main() -> None:
    from hyperjax import samplers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--samplers", default=",".join(samplers.names()))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        out = decode(args.samples) if args.one == "decode" else measure(args.one, args.samples)
        print(json.dumps(out))
        return
    results, table = {}, Table(title="seconds: second call (first call, with compilation)")
    for column in ("", "samples", "fit", "draw", "peak memory, MB"):
        table.add_column(column, justify="right")
    for name in (*args.samplers.split(","), "decode"):
        count = args.samples // 100 if name.startswith(SLOW) else args.samples
        command = [sys.executable, "-W", "ignore", __file__, f"--one={name}", f"--samples={count}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = r = json.loads(done.stdout.splitlines()[-1])
        fit = f"{r['fit']:.3f} ({r['fit_first']:.2f})" if "fit" in r else ""
        draw = f"{r['draw']:.3f} ({r['draw_first']:.2f})"
        table.add_row(name, f"{count:,}", fit, draw, f"{r['peak_mb']:.0f}")
    common.record(__file__, results=results)
    Console(width=100).print(table)


if __name__ == "__main__":
    cli.run(main)
