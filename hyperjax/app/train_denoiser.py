"""The stage of `train.py` that makes the denoiser of weights, and the images' moments."""

from pathlib import Path
from typing import Any

import jax

from hyperjax import distributed
from hyperjax.app import progress, stage
from hyperjax.app.run import Run
from hyperjax.app.stage import Stage
from hyperjax.config import differences, to_dict
from hyperjax.diffusion import Denoiser, fit_denoiser
from hyperjax.diffusion import denoiser_training as training
from hyperjax.diffusion.denoiser_training import LEVELS
from hyperjax.errors import HyperJaxError
from hyperjax.population.repair import image_moments
from hyperjax.rng import Stream, root_key
from hyperjax.store import denoiser_file, files, moments_file, workdir

NAME = "denoiser"


def make_moments(run: Run) -> None:
    """Store the two moments of the training images, unless the workdir has them."""
    path = workdir.moments_path(run.folder)
    if not distributed.exists(path):
        facts = {"dataset": run.images.name, "fingerprint": run.images.fingerprint}
        moments_file.write(path, image_moments(run.images.train), facts)
        distributed.barrier(f"{path} is written")


def make_denoiser(run: Run) -> None:
    """Train the denoiser of the configuration, unless the workdir has it.

    Raises HyperJaxError if it has one of another configuration.
    """
    config, path = run.config.denoiser, workdir.denoiser_path(run.folder)
    if distributed.exists(path):
        check_denoiser(run)
        files.remove(checkpoint_folder(run))
        return
    data = run.data
    prepared = fit_denoiser.prepare(
        config, run.zoo.spec, data.train, data.val, data.quality, run.config.seed
    )
    about = Stage(
        NAME, NAME, run.folder, checkpoint_folder(run), config.training.steps,
        run.config.checkpoint_seconds,
    )  # fmt: skip
    result = stage.train(
        about,
        lambda: training.begin(prepared.trainer, root_key(run.config.seed, Stream.DENOISER)),
        lambda begun: begun,
        lambda begun: fit_denoiser.steps(prepared, begun),
        note,
    )
    best = distributed.fetch(result.best)
    denoiser = Denoiser(config, run.zoo.spec, best, prepared.wiener, prepared.scale, run.reference)
    key = jax.random.key(1)  # other noise than that by which the step was chosen
    found = training.ratios(prepared.trainer.static, best, prepared.wiener, prepared.val, key)
    info = {
        "seed": run.config.seed,
        "best_step": int(result.best_step),
        "best_score": float(result.best_score),
        "members": len(data.train) * min(config.snapshots, data.train.shape[1]),
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


def note(record: dict[str, float]) -> str:
    found = ", ".join(f"{record[f'val_ratio_{level:g}']:.3f}" for level in LEVELS)
    return f"held-out error / Wiener's {found}; train {record['train_ratio']:.3f}"
