"""The stage of `train.py` that makes the denoiser of weights, and the images' moments."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hyperjax import distributed, weights
from hyperjax.app import progress, stage
from hyperjax.app.run import Run
from hyperjax.app.stage import Stage
from hyperjax.config import differences, to_dict
from hyperjax.diffusion import Denoiser
from hyperjax.diffusion import denoiser_training as training
from hyperjax.diffusion.denoiser_training import LEVELS
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep.losses import slot_scale
from hyperjax.hyperrep.training import place, run_steps
from hyperjax.population.repair import image_moments
from hyperjax.rng import Stream, root_key
from hyperjax.store import denoiser_file, files, moments_file, workdir

NAME = "denoiser"


def make_moments(run: Run) -> None:
    """Store the two moments of the training images, unless the workdir has them."""
    path = workdir.moments_path(run.folder)
    if not path.exists():
        facts = {"dataset": run.images.name, "fingerprint": run.images.fingerprint}
        moments_file.write(path, image_moments(run.images.train), facts)
        distributed.barrier(f"{path} is written")


def make_denoiser(run: Run) -> None:
    """Train the denoiser of the configuration, unless the workdir has it.

    Raises HyperJaxError if it has one of another configuration.
    """
    config, path = run.config.denoiser, workdir.denoiser_path(run.folder)
    if path.exists():
        check_denoiser(run)
        files.remove(checkpoint_folder(run))
        return
    train, val = of_last(run, run.data.train), np.asarray(run.data.val[:, -1], np.float32)
    quality = run.data.quality[:, -config.snapshots :].reshape(-1)
    scale = weights.layer_std(run.zoo.spec, train)
    unit = np.asarray(slot_scale(run.zoo.spec, scale))[None]
    train, val = train / unit, val / unit
    trainer = training.make_trainer(config, run.zoo.spec)
    full = training.whole(config, run.zoo.spec, train)
    each = len(train) // len(run.data.train)  # snapshots of a member
    folds = training.folded(config, run.zoo.spec, train, quality, run.config.seed, each)
    data = place(trainer, folds)
    judged = training.judge(trainer, full, train, val)
    result = stage.train(
        Stage(
            NAME, NAME, run.folder, checkpoint_folder(run), config.training.steps,
            run.config.checkpoint_seconds,
        ),
        lambda: training.begin(trainer, root_key(run.config.seed, Stream.DENOISER)),
        lambda begun: begun,
        lambda begun: run_steps(
            trainer, begun, functools.partial(_steps, trainer, data), judged, NAME
        ),
        _note,
    )  # fmt: skip
    best = distributed.fetch(result.best)
    denoiser = Denoiser(config, run.zoo.spec, best, full, scale, run.reference)
    key = jax.random.key(1)  # other noise than that by which the step was chosen
    found = training.ratios(trainer.static, best, full, val, key)
    info = {
        "seed": run.config.seed,
        "best_step": int(result.best_step),
        "best_score": float(result.best_score),
        "members": len(train),
        "val_ratio": {f"{level:g}": ratio for level, (ratio, _) in found.items()},
        "wiener_error": {f"{level:g}": error for level, (_, error) in found.items()},
    }
    progress.console.print(
        f"denoiser: step {info['best_step']} of {config.training.steps}; error on held-out members "
        "as a share of the Wiener denoiser's: "
        + ", ".join(f"{ratio:.3f} at {level}" for level, ratio in info["val_ratio"].items())
    )
    denoiser_file.write(path, denoiser, info)
    files.remove(checkpoint_folder(run))
    distributed.barrier(f"{path} is written")


def of_last(run: Run, members: np.ndarray) -> np.ndarray:
    """The last snapshots of members float32[M, E, D] that the denoiser sees, float32[M * S, D]."""
    seen = members[:, -run.config.denoiser.snapshots :]
    return np.asarray(seen.reshape(-1, seen.shape[-1]), np.float32)


def check_denoiser(run: Run) -> None:
    """Raises HyperJaxError if the workdir's denoiser has another configuration than the run."""
    path = workdir.denoiser_path(run.folder)
    denoiser, _ = denoiser_file.read(path)
    differing = [
        f"denoiser.{name}: {theirs!r} there, {ours!r} here"
        for name, (ours, theirs) in differences(run.config.denoiser, denoiser.config).items()
        if name != "micro_batch"
    ]
    if differing:
        raise HyperJaxError(
            f"{path}: made with another configuration ({'; '.join(differing)}); delete it to make "
            "it anew"
        )


def checkpoint_folder(run: Run) -> Path:
    """Of this configuration's own: its fields may be changed before it is finished."""
    from hyperjax.app.populations import digest

    own: dict[str, Any] = {k: v for k, v in to_dict(run.config.denoiser).items()}
    own.pop("micro_batch")
    return run.folder / "checkpoints" / f"{NAME}_{digest(own)}"


def _steps(trainer, data, state, count):
    return training.train_steps(trainer, state, data, count)


def _note(record: dict[str, float]) -> str:
    found = ", ".join(f"{record[f'val_ratio_{level:g}']:.3f}" for level in LEVELS)
    return f"held-out error / Wiener's {found}; train {record['train_ratio']:.3f}"
