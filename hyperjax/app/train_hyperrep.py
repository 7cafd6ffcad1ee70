"""Train a hyper-representation into the workdir: validated, checkpointed, resumable."""

import time
from pathlib import Path
from typing import Any

import jax

from hyperjax import distributed
from hyperjax.app import progress, stop
from hyperjax.app.run import Run, variants
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, statistics, training, validate
from hyperjax.hyperrep.training import Progress, Trainer
from hyperjax.rng import Stream, root_key
from hyperjax.store import checkpoint, files, hyperrep_file, workdir


def make_hyperrep(name: str, run: Run) -> None:
    """Train the variant `name` of a run with a zoo, unless the workdir has it."""
    path, checkpoints = workdir.hyperrep_path(run.folder, name), checkpoint_folder(run.folder, name)
    if path.exists():
        files.remove(checkpoints)
        return
    config, spec = variants(run.config)[name], run.zoo.spec
    trainer = training.make_trainer(config, spec)
    stats = statistics(config.data, spec, run.data.train_vectors)
    result = _train(name, trainer, stats, run, checkpoints)
    trained = HyperRep(config, spec, jax.device_get(result.best), stats, run.reference)
    info = {
        "name": name,
        "seed": run.config.seed,
        "best_step": int(result.best_step),
        "best_score": float(result.best_score),
        "selected_by": config.training.select,
        **validate(trained, run.data, run.task),
    }
    progress.console.print(f"hyper-representation {name}: {chosen(config, info['best_step'])}")
    hyperrep_file.write(path, trained, info)
    files.remove(checkpoints)
    distributed.barrier(f"{path} is written")


def chosen(config: Any, best_step: int) -> str:
    """Which step of an autoencoder is used, and what that means."""
    text = f"step {best_step} of {config.training.steps}"
    if not best_step and config.architecture.linear_path:
        text += ", principal components only: the attention has no part in it"
    return text


def _train(name: str, trainer: Trainer, stats: Any, run: Run, checkpoints: Path) -> Progress:
    stage, c, data = f"hyperrep/{name}", trainer.config.training, run.data
    placed, placed_stats = training.place(trainer, (data.train_vectors, stats))
    key = root_key(run.config.seed, Stream.HYPERREP)
    start, done = training.begin(trainer, key, placed, placed_stats), 0
    step = checkpoint.latest_step(checkpoints)
    if step is None:
        start = training.fit_linear(trainer, start, stats, data.train_vectors)
    else:
        start, done = checkpoint.restore(checkpoints, step, start), step
    workdir.forget_metrics(run.folder, stage, done if done else -1)

    def judged(params: Any) -> dict[str, float]:
        model = HyperRep(trainer.config, trainer.spec, params, placed_stats, run.reference)
        return validate(model, data, run.task)

    current, saved, note = start, time.monotonic(), ""
    title = f"hyper-representation {name}"
    with progress.bar(title, c.steps, done) as advance, stop.deferred():
        try:
            for current, count, record in training.run(
                trainer, start, placed, placed_stats, judged
            ):
                if record is not None:
                    workdir.log_metrics(run.folder, {"stage": stage, **record})
                    note = _note(record)
                advance(count, note)
                late = time.monotonic() - saved >= run.config.checkpoint_seconds
                done += count
                late = late and record is not None and done < c.steps
                if done and stop.requested(late):
                    checkpoint.save(checkpoints, done, current)
                    saved = time.monotonic()
                    stop.leave()
        except HyperJaxError as error:
            raise HyperJaxError(f"{stage}: {error}") from error
    return current


def _note(record: dict[str, float]) -> str:
    text = f"R2 train {record['train_r2_all']:.2f}, validation {record['val_r2_all']:.2f}"
    if "val_accuracy" in record:
        text += (
            f"; accuracy train {100 * record['train_accuracy']:.0f} %, "
            f"validation {100 * record['val_accuracy']:.0f} %"
        )
    return text


def checkpoint_folder(folder: Path, name: str) -> Path:
    return folder / "checkpoints" / f"hyperrep_{name}"
