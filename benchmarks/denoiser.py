"""The weight denoiser's training step against PyTorch, at two sizes.

    python benchmarks/denoiser.py [--sizes=small,large] [--rounds=3] [--dtype=float32] [--forms=all]
    python benchmarks/denoiser.py --check      # that both compute the same
    python benchmarks/denoiser.py --profile    # where HyperJAX's step spends its time

Sizes are SMALL_DENOISER and LARGE_DENOISER of configs/common.py, batch 64. Everything of a step is
included on both sides: choice of the batch, noise, the Wiener denoiser's two products with all
principal axes, forward, backward, clipping, AdamW, the moving average; HyperJAX's Muon, which the
configurations have, is a row of its own. Data are random, of the shape of 8 folds of 475 members.
Contenders run in one call with all cores, in turn, PyTorch on a CPU only and each of its forms in a
process of its own: eager or compiled; edges in one of the layouts of torch_denoiser.py; the batch
whole or in parts, of which the gradients add up.

Appends a line to benchmarks/denoiser.jsonl.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

STEPS = 5  # in one call
FOLDS, MEMBERS = 8, 475
BEST = (("eager", "joined", 64), ("compile", "joined", 64))  # form, layout, examples at once
LAYOUTS = ("layers", "joined", "gather")
ALL = tuple(itertools.product(("eager", "compile"), LAYOUTS, (64, 16)))


def configuration(size: str, dtype: str, optimizer: str = "adamw") -> Any:
    configs = common.configurations()
    base = {"small": configs.SMALL_DENOISER, "large": configs.LARGE_DENOISER}[size]
    graph = dataclasses.replace(base.graph, dtype=dtype)
    training = dataclasses.replace(base.training, batch_size=64, optimizer=optimizer)
    return dataclasses.replace(base, graph=graph, training=training)


def cnn_spec() -> Any:
    from hyperjax.models.architectures import zoo_cnn_spec

    return zoo_cnn_spec(1, "tanh")


def random_data(size: int) -> Any:
    """Members, and Wiener denoisers whose axes are only about orthonormal."""
    from hyperjax.diffusion.denoiser_training import Data
    from hyperjax.diffusion.wiener import Wiener

    rng = np.random.default_rng(0)
    axes = rng.standard_normal((FOLDS, size, size), np.float32) / np.float32(size**0.5)
    mean, variances = np.zeros((FOLDS, size), np.float32), rng.random((FOLDS, size), np.float32)
    wiener = Wiener(mean, axes, variances, np.full(FOLDS, 0.05, np.float32))
    members = rng.standard_normal((FOLDS * MEMBERS, 1, size), np.float32)
    rows = np.arange(FOLDS * MEMBERS).reshape(FOLDS, MEMBERS)
    quantiles = rng.random((FOLDS, MEMBERS), np.float32)
    return Data(members, np.ones(size, np.float32), rows, quantiles, wiener)


# --- contenders -----------------------------------------------------------------------------


def step(config: Any) -> Callable[[], float]:
    """HyperJAX: `STEPS` steps."""
    import jax
    import jax.numpy as jnp

    from hyperjax.diffusion import denoiser_training as training
    from hyperjax.hyperrep.training import place

    spec = cnn_spec()
    trainer = training.make_trainer(config, spec)
    data, done = random_data(spec.num_params), 0
    unit, folds = place(trainer, (data.unit, data.wieners))
    state = training.begin(trainer, jax.random.key(0)).state
    give = training.members_of(trainer, state.key, data)

    def run():
        nonlocal state, done
        drawn, done = give(done, STEPS), done + STEPS
        state, metrics = training.train_steps(trainer, state, drawn, unit, folds, jnp.int32(STEPS))
        jax.block_until_ready(metrics)

    return lambda: common.timed(run)


def peer_config(config: Any) -> dict[str, Any]:
    levels = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
    return dataclasses.asdict(config.graph) | levels


def peer_layers() -> list[list[Any]]:
    from hyperjax import symmetry

    spec = cnn_spec()
    pairs = zip(spec.layers, symmetry.input_blocks(spec), strict=True)
    return [[layer.name, layer.num_neurons, *sizes] for layer, sizes in pairs]


def measure(size: str, dtype: str, rounds: int, forms: tuple) -> dict[str, Any]:
    config = configuration(size, dtype)
    runs = {
        "HyperJAX, Adam": step(config),
        "HyperJAX, Muon": step(configuration(size, dtype, "muon")),
    }
    work = {"work": "denoiser", "config": peer_config(config), "layers": peer_layers()}
    work |= {"steps": STEPS, "batch": 64, "folds": FOLDS, "members": MEMBERS}
    with ExitStack() as stack:
        for form, layout, part in forms:
            request = stack.enter_context(common.peers([common.cores()]))
            ask = work | {"form": form, "layout": layout, "part": part}
            name = f"torch {form}, {layout}" + (f", {part} at once" if part < 64 else "")
            runs[name] = lambda ask=ask, request=request: request(ask)
        seconds = common.alternate(runs, rounds)
    found = {name: (np.asarray(s) / STEPS).tolist() for name, s in seconds.items()}
    return {"size": size, "dtype": dtype, "step_seconds": found}


def show(results: list[dict[str, Any]], ceiling: float) -> Table:
    """Ratios are of best to best: the best PyTorch form's time as a multiple of a contender's."""
    from hyperjax import cost

    table = Table(title="denoiser: milliseconds a step, best (worst)")
    for column in ("size", "contender", "ms a step", "GFLOP/s", "of GEMM", "torch's best / it"):
        table.add_column(column, justify="right")
    for result in results:
        work = cost.denoiser_flops(configuration(result["size"], result["dtype"]), cnn_spec())
        seconds = result["step_seconds"]
        peers = [min(s) for name, s in seconds.items() if name.startswith("torch")]
        for name, times in seconds.items():
            best, worst = min(times), max(times)
            rate = work / best / 1e9
            ratio = f"{min(peers) / best:.2f}" if peers else ""
            cells = f"{1e3 * best:.0f} ({1e3 * worst:.0f})", f"{rate:.0f}", f"{rate / ceiling:.0%}"
            table.add_row(f"{result['size']}, {work / 1e9:.1f} GFLOP", name, *cells, ratio)
    return table


# --- where a step's time goes -----------------------------------------------------------------


def profile(size: str, dtype: str, rounds: int) -> dict[str, float]:
    """Seconds of the pieces of a step, each compiled alone, and of the whole."""
    import jax
    import optax

    from hyperjax.diffusion import denoiser_training as training
    from hyperjax.hyperrep.training import optimizer, place

    spec, config = cnn_spec(), configuration(size, dtype)
    trainer = training.make_trainer(config, spec)
    data = random_data(spec.num_params)
    key, state = jax.random.key(1), training.init(trainer, jax.random.key(0))
    unit, folds = place(trainer, (data.unit, data.wieners))
    short = folds._replace(axes=folds.axes[:, :0])
    give = training.members_of(trainer, key, data)
    drawn = jax.tree.map(lambda leaf: leaf[0], give(0, 1))
    draw = jax.jit(lambda key, folds: training.draw_batch(trainer, key, drawn, unit, folds))
    gradient = jax.jit(lambda params, batch: training._grads(trainer, params, batch))
    forward = jax.jit(lambda params, batch: training._grads(trainer, params, batch)[0])
    batch = jax.block_until_ready(draw(key, folds))
    grads = gradient(state.params, batch)[1]
    average = jax.jit(lambda new, old: optax.incremental_update(new, old, 0.001))
    runs = {
        "members from the host, 5 steps": lambda: give(0, STEPS),
        "batch without products": lambda: draw(key, short),
        "batch": lambda: draw(key, folds),
        "forward": lambda: forward(state.params, batch),
        "forward and backward": lambda: gradient(state.params, batch),
        "moving average": lambda: average(state.params, state.trained),
    }
    for name in ("adamw", "muon"):
        update = optimizer(configuration(size, dtype, name).training)
        opt_state, call = update.init(state.params), jax.jit(update.update)
        runs[name] = lambda c=call, s=opt_state: c(grads, s, state.params)
    found = {
        name: common.best_of(lambda run=run: jax.block_until_ready(run()), 3 * rounds)
        for name, run in runs.items()
    }
    for name in ("adamw", "muon"):
        run = step(configuration(size, dtype, name))
        found[f"whole step, {name}"] = min(run() for _ in range(rounds + 1)) / STEPS
    return found


def show_profile(results: list[dict[str, Any]]) -> Table:
    table = Table(title="pieces of HyperJAX's step, each alone: milliseconds, best")
    table.add_column("")
    for result in results:
        table.add_column(result["size"], justify="right")
    for name in results[0]["pieces"]:
        table.add_row(name, *(f"{1e3 * result['pieces'][name]:.1f}" for result in results))
    return table


# --- both compute the same ----------------------------------------------------------------------


def check(size: str) -> dict[str, dict[str, float]]:
    """Greatest differences to PyTorch's layouts, for random parameters and one batch: of outputs,
    and of the gradient as a share of its norm."""
    import jax
    import jax.numpy as jnp

    from hyperjax.diffusion import denoiser_training as training
    from hyperjax.diffusion.denoiser import residual

    spec, config = cnn_spec(), configuration(size, "float32")
    trainer, rng = training.make_trainer(config, spec, jax.devices()[:1]), np.random.default_rng(1)
    params = training.init(trainer, jax.random.key(0)).params
    # no zeros: a fresh network's output is zero whatever it computes
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params)
    clean, noisy, linear = rng.standard_normal((3, 8, spec.num_params), np.float32)
    sigma, quantile = np.exp(rng.uniform(-2, 1, 8)).astype(np.float32), np.linspace(-1, 1, 8)
    batch = training.Batch(clean, noisy, linear, sigma, quantile.astype(np.float32))
    norm = jax.lax.rsqrt(1 + sigma**2)[:, None]
    inputs = noisy * norm, linear, sigma, batch.quantile
    output = jax.jit(residual, static_argnums=0)(trainer.static, params, *inputs)
    loss_fn = functools.partial(training.loss_fn, trainer)
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params, batch)
    request = {"config": peer_config(config), "layers": peer_layers()}
    request |= {"batch": [x.tolist() for x in batch], "params": named(params, lambda x: x.tolist())}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(request, file)
        file.flush()
        command = [common.torch_python(), str(common.FOLDER / "torch_denoiser.py"), file.name]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    total = float(jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))))
    ours, found = named(grads, np.ravel), {}
    for layout, other in json.loads(answer.stdout).items():
        far = [np.sum((g - np.float32(other["grads"][name])) ** 2) for name, g in ours.items()]
        found[layout] = {
            "output": float(np.abs(output - np.float32(other["output"])).max()),
            "loss": abs(float(loss) - other["loss"]),
            "gradient": float(np.sqrt(sum(far))) / total,
        }
    return found


def named(params: Any, give: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Arrays by PyTorch's names and in its order of axes."""
    import jax

    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *modules, last = (entry.key for entry in path)
        value = np.asarray(leaf).T if last == "kernel" else np.asarray(leaf)
        last = "weight" if last in ("kernel", "scale") else last
        found[".".join([*modules, last])] = give(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=["small", "large"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--forms", choices=("best", "all"), default="best", help="PyTorch's")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    import jax

    console = Console(width=110)
    if args.check:
        for size in args.sizes:
            console.print(size, check(size))
        return
    ceilings = common.ceilings()
    if args.profile:
        results = [
            {"size": size, "dtype": args.dtype, "pieces": profile(size, args.dtype, args.rounds)}
            for size in args.sizes
        ]
        table = show_profile(results)
    else:
        torch = jax.default_backend() == "cpu" and common.has_torch()
        forms = (ALL if args.forms == "all" else BEST) if torch else ()
        results = [measure(size, args.dtype, args.rounds, forms) for size in args.sizes]
        table = show(results, ceilings["matmul_gflops"])
    common.record(__file__, ceilings=ceilings, results=results)
    console.print(table, {name: round(value, 1) for name, value in ceilings.items()})


if __name__ == "__main__":
    cli.run(main)
