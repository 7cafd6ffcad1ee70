"""The autoencoder's training step against PyTorch, at two sizes, and what augmentation costs.

    python benchmarks/autoencoder.py [--sizes=small,published] [--rounds=3] [--dtype=float32]
    python benchmarks/autoencoder.py --precision=bfloat16  # of layers; PyTorch by autocast
    python benchmarks/autoencoder.py --augmentation=yes    # or no: one of HyperJAX's two contenders
    python benchmarks/autoencoder.py --profile             # where a step's time goes

Two trainers in one process, the default, slow each other down at the published size.

"small" is the autoencoder of configs/digits.py:small, "published" the default one (d 800, latent
700, batch 64); both without HyperJAX's linear path, which the peer does not have. Everything of a
step is included: choice of the batch, augmentation of two views, forward, backward, clipping,
AdamW. All contenders run in one call with all cores, in turn; peers on a CPU only, the one device
they know, each in a process of its own that is stopped while it waits.
Appends a line to benchmarks/autoencoder.jsonl.
"""

import argparse
import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

STEPS = {"small": 10, "published": 2}  # in one call
PEER_FIELDS = (  # of the architecture
    "dim", "heads", "mlp_dim", "dropout", "compression", "blocks", "latent",
    "projection_layers", "projection_hidden", "projection_dim",
)  # fmt: skip


def configuration(size: str, dtype: str) -> Any:
    from hyperjax.config import AutoencoderConfig

    base = common.small_autoencoder() if size == "small" else AutoencoderConfig()
    architecture = dataclasses.replace(base.architecture, linear_path=False, dtype=dtype)
    return dataclasses.replace(base, architecture=architecture)


def step(config: Any, steps: int) -> Callable[[], float]:
    """HyperJAX: `steps` steps on random weights."""
    import jax
    import jax.numpy as jnp

    from hyperjax import hyperrep
    from hyperjax.models.architectures import zoo_cnn_spec

    spec = zoo_cnn_spec(1, "tanh")
    vectors = np.random.default_rng(0).normal(size=(700, spec.num_params)).astype(np.float32)
    trainer = hyperrep.make_trainer(config, spec)
    stats = jax.tree.map(jnp.asarray, hyperrep.statistics(config.data, spec, vectors))
    state, key, done = hyperrep.init(trainer, jax.random.key(0)), jax.random.key(1), 0
    give = hyperrep.batches(trainer, key, vectors)

    def run():
        nonlocal state, done
        batches, done = give(done, steps), done + steps
        state, metrics = hyperrep.train_steps(trainer, state, batches, stats, jnp.int32(steps))
        jax.block_until_ready(metrics)

    return lambda: common.timed(run)


def measure(
    size: str, dtype: str, rounds: int, augmentation: str, requests: dict[str, Callable]
) -> dict[str, Any]:
    import jax

    from hyperjax.config import AugmentConfig
    from hyperjax.models.architectures import zoo_cnn_spec

    config, steps, spec = configuration(size, dtype), STEPS[size], zoo_cnn_spec(1, "tanh")
    nothing = dataclasses.replace(config.data, augment=AugmentConfig(erase=0.0, noise=0.0))
    plain = dataclasses.replace(config, data=nothing)
    runs = {}
    if augmentation != "no":
        runs["HyperJAX"] = step(config, steps)
    if augmentation != "yes":
        runs["HyperJAX, no augmentation"] = step(plain, steps)
    if requests:
        sizes = {name: getattr(config.architecture, name) for name in PEER_FIELDS}
        sizes |= {"beta": config.loss.beta, "batch_size": config.training.batch_size}
        sizes |= {"noise": config.data.augment.noise, "erase": config.data.augment.erase}
        layers = [[layer.num_neurons, layer.token_size] for layer in spec.layers]
        work = {"work": "autoencoder", "config": sizes, "layers": layers, "steps": steps}
        sizes["precision"] = jax.config.jax_default_matmul_precision
        for form, request in requests.items():
            runs[f"torch {form}"] = lambda form=form, ask=request: ask(work | {"form": form})
    seconds = common.alternate(runs, rounds)
    return {
        "size": size,
        "dtype": dtype,
        "precision": jax.config.jax_default_matmul_precision,
        "step_seconds": {name: (np.asarray(s) / steps).tolist() for name, s in seconds.items()},
    }


def show(results: list[dict[str, Any]], ceiling: float, dtype: str) -> Table:
    from hyperjax import cost
    from hyperjax.models.architectures import zoo_cnn_spec

    table = Table(title="autoencoder: milliseconds a step, best (worst)")
    for column in ("size", "contender", "ms a step", "of GEMM", "against the first"):
        table.add_column(column, justify="right")
    for result in results:
        work = cost.autoencoder_flops(configuration(result["size"], dtype), zoo_cnn_spec(1, "tanh"))
        first = min(next(iter(result["step_seconds"].values())))
        for name, seconds in result["step_seconds"].items():
            best, worst = min(seconds), max(seconds)
            share = f"{work / best / ceiling / 1e9:.0%}" if name.startswith("Hyper") else ""
            text = f"{1e3 * best:.0f} ({1e3 * worst:.0f})"
            table.add_row(result["size"], name, text, share, f"{best / first:.2f} x")
    return table


def show_profile(size: str, dtype: str) -> Table:
    """Shares of the devices' time, by kind of operation."""
    import jax
    import jax.numpy as jnp

    from hyperjax import hyperrep
    from hyperjax.models.architectures import zoo_cnn_spec

    spec, config, steps = zoo_cnn_spec(1, "tanh"), configuration(size, dtype), STEPS[size]
    vectors = np.random.default_rng(0).normal(size=(700, spec.num_params)).astype(np.float32)
    trainer = hyperrep.make_trainer(config, spec)
    stats = jax.tree.map(jnp.asarray, hyperrep.statistics(config.data, spec, vectors))
    batches = hyperrep.batches(trainer, jax.random.key(1), vectors)(0, steps)
    state = hyperrep.init(trainer, jax.random.key(0))
    rest = batches, stats, jnp.int32(steps)
    program = hyperrep.train_steps.lower(trainer, state, *rest).compile().as_text()
    state, _ = hyperrep.train_steps(trainer, state, *rest)
    seconds = common.profile(
        program, lambda: jax.block_until_ready(hyperrep.train_steps(trainer, state, *rest))
    )
    kinds: dict[str, float] = {}
    for name, took in seconds.items():
        words = name.split() or ["unnamed"]
        moment = words[0] if words[0] in ("forward", "backward") else "other"
        kind = f"{moment} {words[-1].split('/')[-1]}"
        kinds[kind] = kinds.get(kind, 0.0) + took
    total, table = sum(kinds.values()), Table(title=f"{size}: share of the devices' time")
    for column in ("operation", "share"):
        table.add_column(column, justify="right")
    for kind, took in sorted(kinds.items(), key=lambda item: -item[1]):
        if took >= 0.015 * total:
            table.add_row(kind, f"{took / total:.1%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--precision", choices=("float32", "tensorfloat32", "bfloat16"), default="float32"
    )
    parser.add_argument("--augmentation", choices=("both", "yes", "no"), default="both")
    parser.add_argument("--profile", action="store_true", help="show where a step's time goes")
    args = parser.parse_args()
    import jax

    jax.config.update("jax_default_matmul_precision", args.precision)
    if args.profile:
        for size in args.sizes:
            Console(width=110).print(show_profile(size, args.dtype))
        return
    comparable = args.augmentation != "no" and jax.default_backend() == "cpu"
    ceilings, torch = common.ceilings(), comparable and common.has_torch()
    with ExitStack() as stack:
        requests = {
            form: stack.enter_context(common.peers([common.cores()]))
            for form in (("eager", "compile") if torch else ())
        }
        results = [
            measure(size, args.dtype, args.rounds, args.augmentation, requests)
            for size in args.sizes
        ]
    common.record(__file__, ceilings=ceilings, results=results)
    Console(width=110).print(show(results, ceilings["matmul_gflops"], args.dtype))


if __name__ == "__main__":
    cli.run(main)
