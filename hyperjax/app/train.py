"""`train.py`: the zoo, then the hyper-representations that the configuration asks for."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hyperjax import config_rules, distributed, zoo
from hyperjax.app import (
    aligned,
    foreign_zoo,
    integrity,
    machine,
    peers,
    plan,
    progress,
    stage,
    train_denoiser,
)
from hyperjax.app.progress import console
from hyperjax.app.run import Run, main_name, set_precision, variants
from hyperjax.app.stage import Stage
from hyperjax.app.train_denoiser import make_moments
from hyperjax.app.train_population import content, make_population, repair_population
from hyperjax.config import Config
from hyperjax.data.images import ImageData
from hyperjax.hyperrep import HyperRep, statistics, training, validate
from hyperjax.hyperrep.training import Progress, Trainer
from hyperjax.population.lockstep import Recipe
from hyperjax.rng import Stream, root_key
from hyperjax.store import files, hyperrep_file, workdir


def run(config: Config, folder: Path, wait: float = 0.0) -> Run:
    """Make what the workdir lacks; on a finished one, say so. For `wait` seconds at most it waits
    for another command that has the workdir."""
    config_rules.check_asked(config.autoencoder)
    set_precision(config)
    config = foreign_zoo.resolved(config, workdir.zoo_path(folder))
    made = Run(folder, config)
    # a folder is not claimed before its images are known to be there
    source, data = "none", None
    if made.has_images:
        console.print(f"reading the images of {config.dataset} ...")
        source, data = made.images.source, made.images.fingerprint
    with workdir.lock(folder, wait, console.print, peers.end_without_lease):
        if config.denoiser.training.steps and made.has_denoiser:
            train_denoiser.check_denoiser(made)  # before its settings replace those of the workdir
        workdir.create(folder, config)
        missing = sum(not path.exists() for path in _products(config, folder))
        if not distributed.agree(missing) and not config.zoo.repair:
            files.remove(*_checkpoints(made))  # left by a kill at the last moment
            files.remove_if_empty(folder / "checkpoints")
            console.print(f"{folder} is finished: nothing to train")
            return made
        facts = {"seed": config.seed, "data": data, "source": source}
        with workdir.recorded(folder, **facts) as entry:
            _compare_versions(folder, entry)
            entry["stages"], entry["memory"] = {}, {}
            _build(made, entry)
            files.remove_if_empty(folder / "checkpoints")
        console.print(f"{folder} is finished after {entry['seconds']:.0f} s")
        return made


def _products(config: Config, folder: Path) -> list[Path]:
    """What a finished workdir holds."""
    names = variants(config)
    found = [workdir.zoo_path(folder)]
    found += [workdir.moments_path(folder)] if config.dataset else []
    found += [workdir.hyperrep_path(folder, name) for name in names]
    return found + ([workdir.denoiser_path(folder)] if config.denoiser.training.steps else [])


def _checkpoints(made: Run) -> list[Path]:
    """What `_products` are made with, and need no more."""
    config, folder = made.config, made.folder
    found = [workdir.zoo_path(folder).with_suffix(".checkpoints")]
    found += [checkpoint_folder(folder, name) for name in variants(config)]
    return [*found, train_denoiser.checkpoint_folder(made)]


def _compare_versions(folder: Path, entry: dict[str, Any]) -> None:
    """Say so if another version, or another kind of device, began what is gone on with now."""
    earlier = [e for e in workdir.read_manifest(folder)[:-1] if e.get("status") != "done"]
    for name in ("versions", "devices", "python"):
        if earlier and earlier[-1].get(name) != entry[name]:
            console.print(
                f"this goes on with what another command began with other {name}: "
                f"{earlier[-1].get(name)} there, {entry[name]} here; results may differ by rounding"
            )


def _build(made: Run, entry: dict[str, Any]) -> None:
    """`entry` receives what the stages took that were made from their beginning: "stages" the
    seconds, "memory" the bytes, and "announced" those that were."""
    config, folder, path = made.config, made.folder, workdir.zoo_path(made.folder)
    if config.zoo.path:
        foreign_zoo.make_zoo(config, path, made.images if made.has_images else None)
        stages, rate = _announce(made, entry)
    else:
        recipe, title = zoo_recipe(config, made.images), f"zoo {config.dataset}"
        if config.zoo.repair and path.exists():
            repair_population(path, recipe, config, made.task, title)
        stages, rate = _announce(made, entry)
        with _measured(entry, "zoo", path, path.with_suffix(".checkpoints")):
            make_population(path, recipe, config, made.task, title)
    integrity.check_zoo(path)
    aligned.remove_damaged(folder)
    if made.has_images:
        make_moments(made)
    if not any(workdir.hyperrep_path(folder, name).exists() for name in variants(config)):
        _describe_zoo(made)
        if config.autoencoder.data.align:
            console.print("aligning the zoo to a reference member ...")
    for name in variants(config):
        path = workdir.hyperrep_path(folder, name)
        with _measured(entry, f"hyperrep/{name}", path, checkpoint_folder(folder, name)):
            make_hyperrep(name, made)
    if config.denoiser.training.steps:
        path = workdir.denoiser_path(folder)
        with _measured(entry, "denoiser", path, train_denoiser.checkpoint_folder(made)):
            train_denoiser.make_denoiser(made)
    main = main_name(config)
    step = made.hyperreps.info(main)["best_step"]
    console.print(f"{main} is used as of {chosen(config.autoencoder, step)}")
    plan.compare(stages, rate, entry)


@contextmanager
def _measured(
    entry: dict[str, Any], stage: str, product: Path, checkpoints: Path
) -> Iterator[None]:
    """Note what a stage takes, unless it is only read, or goes on from an earlier command."""
    whole = not product.exists() and not checkpoints.exists()
    with machine.measured() as took:
        yield
        if whole:
            seconds, entry["memory"][stage] = took()
            entry["stages"][stage] = round(seconds, 2)


def _announce(made: Run, entry: dict[str, Any]) -> tuple[list[plan.Stage], float]:
    """Say what is going to be made and what it takes, or refuse it. Returns the stages, and the
    operations per second that their times are told by."""
    config, folder, stages = made.config, made.folder, []
    if distributed.exists(workdir.zoo_path(folder)):
        spec, members = made.zoo.spec, len(made.zoo.members)
    else:
        engine, members, epochs = made.task.engine, config.zoo.num_members, config.zoo.epochs
        images, spec = made.images.num_images, engine.spec
        stage = plan.population_stage("zoo", engine, config.zoo, images, members, epochs)
        begun = files.held([workdir.zoo_path(folder).with_suffix(".partial")])
        stages += [stage._replace(disk=max(0, stage.disk - begun))]
    zoo = dataclasses.replace(config.zoo, num_members=members)
    size = aligned.size(config.autoencoder.data, members, spec)
    mapped, learning = aligned.in_file(size), []
    for name, variant in variants(config).items():
        if not workdir.hyperrep_path(folder, name).exists():
            stage = plan.autoencoder_stage(f"hyperrep/{name}", variant, zoo, spec, mapped)
            learning.append(stage)
    if config.denoiser.training.steps and not workdir.denoiser_path(folder).exists():
        learning.append(plan.denoiser_stage(config.denoiser, zoo, spec, mapped))
    if learning and mapped and not workdir.aligned_path(folder).exists():
        stages.append(plan.aligned_stage(size))
    stages += learning
    entry["announced"] = plan.announced(stages)
    if not stages:
        return [], 0.0
    plan.note_precision(config)
    return stages, plan.announce(stages, folder, jax.devices())


def zoo_recipe(config: Config, images: ImageData) -> Recipe:
    info: dict[str, Any] = {
        "kind": "zoo",
        "dataset": images.name,
        "source": images.source,
        "fingerprint": images.fingerprint,
        "images": images.num_images,
        "seed": config.seed,
        "zoo": content(config.zoo),
    }
    return Recipe(
        members=np.arange(config.zoo.num_members),
        epochs=np.array(config.zoo.snapshots or range(config.zoo.epochs + 1)),
        key=root_key(config.seed, Stream.ZOO),
        start=None,
        info=info,
        tested=config.zoo.tested,
        moments=config.zoo.save_moments,
    )


def _describe_zoo(made: Run) -> None:
    models, parts = made.zoo, made.split
    usable = sum(map(len, parts))
    accuracy = 100 * np.asarray(models.metrics["test_accuracy"])[np.concatenate(parts), -1]
    measured = f"test accuracy {accuracy.mean():.1f} ± {accuracy.std():.1f} %"
    console.print(
        f"zoo: {usable} of {len(models.members)} members usable "
        f"({len(parts.train)} train, {len(parts.val)} validation, {len(parts.test)} test), "
        f"{'accuracy not known' if np.isnan(accuracy).all() else measured} after epoch "
        f"{models.epochs[-1]}"
    )
    if 0 not in models.epochs:
        return
    correlation = zoo.init_correlation(models)
    text = ", ".join(f"{name} {value:.2f}" for name, value in correlation.items())
    console.print(f"zoo: correlation of final with initial weights: {text}")
    if not workdir.metrics_of(made.folder, "zoo"):  # else from before this run was resumed
        workdir.forget_metrics(made.folder, "zoo", -1)  # the line that a killed run was writing
        workdir.log_metrics(made.folder, {"stage": "zoo", "init_correlation": correlation})


def make_hyperrep(name: str, run: Run) -> None:
    """Train the variant `name` of a run with a zoo, unless the workdir has it."""
    path, checkpoints = workdir.hyperrep_path(run.folder, name), checkpoint_folder(run.folder, name)
    if distributed.exists(path):
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
        **validate(trained, run.data, run.task if run.has_images else None),
    }
    progress.console.print(f"hyper-representation {name}: {chosen(config, info['best_step'])}")
    hyperrep_file.write(path, trained, info)
    files.remove(checkpoints)
    distributed.barrier(f"{path} is written")


def chosen(config: Any, best_step: int) -> str:
    """Which step of an autoencoder is used, and what that means."""
    text, learned = f"step {best_step} of {config.training.steps}", "attention"
    if config.architecture.network == "graph":
        learned = "graph network"
    if not best_step and config.architecture.linear_path:
        text += f", principal components only: the {learned} has no part in it"
    return text


def _train(name: str, trainer: Trainer, stats: Any, run: Run, checkpoints: Path) -> Progress:
    c, data = trainer.config.training, run.data
    task = run.task if run.has_images else None
    placed_stats = training.place(trainer, stats)
    key = root_key(run.config.seed, Stream.HYPERREP)

    def begin() -> Progress:
        return training.begin(trainer, key, placed_stats)

    def fitted(begun: Progress) -> Progress:
        return training.fit_linear(trainer, begun, stats, data.train_vectors)

    def judged(params: Any) -> dict[str, float]:
        model = HyperRep(trainer.config, trainer.spec, params, placed_stats, run.reference)
        return validate(model, data, task)

    def steps(begun: Progress) -> Any:
        return training.run(trainer, begun, data.train_vectors, placed_stats, judged)

    about = Stage(
        f"hyperrep/{name}", f"hyper-representation {name}", run.folder, checkpoints, c.steps,
        run.config.checkpoint_seconds,
    )  # fmt: skip
    return stage.train(about, begin, fitted, steps, _note)


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
