"""`sample.py`: draw new models from a trained workdir."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax.app import machine, peers, plan, populations
from hyperjax.app.progress import console
from hyperjax.app.run import Run, load
from hyperjax.store import workdir


def run(
    folder: Path,
    sampler: str,
    num_samples: int,
    *,
    name: str = "",
    seed: int | None = None,
    output: Path | None = None,
    data_dir: str = "",
    overrides: Mapping[str, Any] | None = None,
    wait: float = 0.0,
) -> Path:
    """Draw `num_samples` models, evaluate them once, and write them as a population file.

    `name` is the hyper-representation, "lwln", "no_lwln" or "vae"; by default the configuration's
    own. `overrides` are settings of samplers, {"samplers.x": value}. For `wait` seconds at
    most it waits for another command that has the workdir.
    """
    populations.check_request(sampler, num_samples, seed)
    workdir.load_config(folder)  # before what is no workdir becomes one
    with workdir.lock(folder, wait, console.print, peers.end_without_lease):
        trained = load(folder, data_dir=data_dir, overrides=overrides)
        name = name or trained.main
        seed = trained.config.seed if seed is None else seed
        variational = trained.hyperreps[name].config.architecture.variational
        populations.samplers.check(sampler, vae=variational)
        with workdir.recorded(folder, seed=seed) as entry:
            stage = _stage(trained, sampler, num_samples)
            plan.check_here([stage], folder)
            entry["announced"] = plan.announced([stage])
            console.print(f"drawing {num_samples} models from {sampler} ({name}) ...")
            with machine.measured() as took:
                path, drawn = populations.sampled(trained, sampler, num_samples, name, seed, output)
                seconds, most = took()
            entry["output"] = str(path)
            entry["stages"], entry["memory"] = {stage.name: round(seconds, 2)}, {stage.name: most}
    texts = []
    for part in ("val", "test") if trained.has_images else ():
        accuracy = 100 * drawn.metrics[f"{part}_accuracy"]
        texts.append(f"{part} accuracy {np.mean(accuracy):.1f} ± {np.std(accuracy):.1f} %")
    measured = f": {', '.join(texts)}, as decoded" if texts else ""
    console.print(f"{num_samples} models from {sampler} ({name}){measured}")
    console.print(f"written to {path}")
    return path


def _stage(trained: Run, sampler: str, num_samples: int) -> plan.Stage:
    """What the machine has to have for it."""
    name = plan.DIFFUSION if populations.samplers.needs_denoiser(sampler) else plan.SAMPLES
    return plan.reading_stage(name, trained.zoo, trained.config, num_samples)
