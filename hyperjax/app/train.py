"""`train.py`: the zoo, then the hyper-representations that the configuration asks for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax import zoo
from hyperjax.app import plan
from hyperjax.app.progress import console
from hyperjax.app.run import Run, main_name, set_precision, variants
from hyperjax.app.train_hyperrep import checkpoint_folder, chosen, make_hyperrep
from hyperjax.app.train_population import content, make_population
from hyperjax.config import Config
from hyperjax.data.images import ImageData
from hyperjax.population.lockstep import Recipe
from hyperjax.rng import Stream, root_key
from hyperjax.store import workdir


def run(config: Config, folder: Path) -> Run:
    """Make what the workdir lacks; on a finished one, say so."""
    set_precision(config)
    made = Run(folder, config)
    source = made.images.source  # a folder is not claimed before its images are known to be there
    with workdir.lock(folder):
        workdir.create(folder, config)
        missing = [path for path in _products(config, folder) if not path.exists()]
        if not missing:
            console.print(f"{folder} is finished: nothing to train")
            return made
        facts = {"seed": config.seed, "data": made.images.fingerprint, "source": source}
        with workdir.recorded(folder, **facts) as entry:
            _compare_versions(folder, entry)
            entry["stages"] = {}
            _build(made, entry["stages"])
        console.print(f"{folder} is finished after {entry['seconds']:.0f} s")
        return made


def _products(config: Config, folder: Path) -> list[Path]:
    """What a finished workdir holds."""
    names = variants(config)
    return [workdir.zoo_path(folder), *(workdir.hyperrep_path(folder, name) for name in names)]


def _compare_versions(folder: Path, entry: dict[str, Any]) -> None:
    """Say so if another version, or another kind of device, began what is gone on with now."""
    earlier = [e for e in workdir.read_manifest(folder)[:-1] if e.get("status") != "done"]
    for name in ("versions", "devices", "python"):
        if earlier and earlier[-1].get(name) != entry[name]:
            console.print(
                f"this goes on with what another command began with other {name}: "
                f"{earlier[-1].get(name)} there, {entry[name]} here; results may differ by rounding"
            )


def _build(made: Run, stages: dict[str, float]) -> None:
    """`stages` receives the seconds of what is made from its beginning."""
    config, folder, path = made.config, made.folder, workdir.zoo_path(made.folder)
    _announce(made)
    with _timed(stages, "zoo", path, path.with_suffix(".checkpoints")):
        title = f"zoo {config.dataset}"
        make_population(path, zoo_recipe(config, made.images), config, made.task, title)
    if not any(workdir.hyperrep_path(folder, name).exists() for name in variants(config)):
        if 0 in made.zoo.epochs:
            _describe_zoo(made)
        if config.autoencoder.data.align:
            console.print("aligning the zoo to a reference member ...")
    for name in variants(config):
        path = workdir.hyperrep_path(folder, name)
        with _timed(stages, f"hyperrep/{name}", path, checkpoint_folder(folder, name)):
            make_hyperrep(name, made)
    main = main_name(config)
    step = made.hyperreps.info(main)["best_step"]
    console.print(f"{main} is used as of {chosen(config.autoencoder, step)}")


@contextmanager
def _timed(
    stages: dict[str, float], stage: str, product: Path, checkpoints: Path
) -> Iterator[None]:
    """Note the seconds of a stage, unless it is only read, or goes on from an earlier command."""
    whole, start = not product.exists() and not checkpoints.exists(), time.monotonic()
    yield
    if whole:
        stages[stage] = round(time.monotonic() - start, 2)


def _announce(made: Run) -> None:
    """Say what is going to be made and what it takes, or refuse it."""
    config, folder, engine, stages = made.config, made.folder, made.task.engine, []
    if not workdir.zoo_path(folder).exists():
        members, epochs = config.zoo.num_members, config.zoo.epochs
        images = made.images.num_images
        stages += [plan.population_stage("zoo", engine, config.zoo, images, members, epochs)]
    for name, variant in variants(config).items():
        if not workdir.hyperrep_path(folder, name).exists():
            title = f"hyper-representation {name}"
            stages += [plan.autoencoder_stage(title, variant, config.zoo, engine.spec)]
    if stages:
        plan.announce(stages, folder, list(engine.mesh.devices.flat))


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
    )


def _describe_zoo(made: Run) -> None:
    models, parts = made.zoo, made.split
    usable = sum(map(len, parts))
    accuracy = 100 * np.asarray(models.metrics["test_accuracy"])[np.concatenate(parts), -1]
    console.print(
        f"zoo: {usable} of {len(models.members)} members usable "
        f"({len(parts.train)} train, {len(parts.val)} validation, {len(parts.test)} test), "
        f"test accuracy {accuracy.mean():.1f} ± {accuracy.std():.1f} % after epoch "
        f"{models.epochs[-1]}"
    )
    correlation = zoo.init_correlation(models)
    text = ", ".join(f"{name} {value:.2f}" for name, value in correlation.items())
    console.print(f"zoo: correlation of final with initial weights: {text}")
    if not workdir.has_metrics(made.folder, "zoo"):  # else from before this run was resumed
        workdir.log_metrics(made.folder, {"stage": "zoo", "init_correlation": correlation})
