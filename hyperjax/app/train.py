"""`train.py`: the zoo, then the hyper-representation with and without LWLN."""

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperjax import zoo
from hyperjax.app import plan, train_hyperrep
from hyperjax.app.progress import console
from hyperjax.app.train_population import Recipe, make_engine, make_population, make_task
from hyperjax.config import Config, to_dict
from hyperjax.data import images
from hyperjax.data.images import ImageData
from hyperjax.hyperrep import HyperRep, weight_data
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.models.cnn import zoo_cnn_spec
from hyperjax.population import Engine
from hyperjax.population.evaluation import Task
from hyperjax.rng import Stream, root_key
from hyperjax.store import hyperrep_file, workdir
from hyperjax.zoo import Split, Zoo

HOW = ("conv", "members", "chunk_size", "split", "max_abs_weight")  # no part of a zoo's content


class Trained(NamedTuple):
    """All that a workdir holds after training, loaded."""

    config: Config
    images: ImageData
    task: Task
    zoo: Zoo
    split: Split
    data: WeightData
    hyperreps: dict[str, HyperRep]


def run(config: Config, folder: Path) -> Trained:
    """Make what the workdir lacks; on a finished one, only load it."""
    _set_precision(config)
    data = _load_images(config)  # first: a folder should not be claimed by a mistake
    with workdir.lock(folder):
        workdir.create(folder, config)
        complete = all(path.exists() for path in _products(config, folder))
        if complete:
            console.print(f"{folder} is finished: nothing to train")
        start, stages = time.monotonic(), {}
        trained = _build(config, folder, data, stages)
        if not complete:
            seconds = time.monotonic() - start
            entry = workdir.describe_run(
                workdir.command_line(),
                seed=config.seed,
                data=trained.images.fingerprint,
                source=trained.images.source,
                seconds=round(seconds, 1),
                stages=stages,
            )
            workdir.add_to_manifest(folder, entry)
            console.print(f"{folder} is finished after {seconds:.0f} s")
        return trained


def _products(config: Config, folder: Path) -> list[Path]:
    """What a finished workdir holds."""
    names = train_hyperrep.variants(config)
    return [workdir.zoo_path(folder), *(workdir.hyperrep_path(folder, name) for name in names)]


def load(folder: Path, data_dir: str = "") -> Trained:
    """Load a finished workdir. Raises HyperJaxError if it is not one."""
    config = workdir.load_config(folder)
    _set_precision(config)
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    for path in _products(config, folder):
        if not path.exists():
            raise workdir.unfinished(folder, path)
    return _build(config, folder, _load_images(config), {})


def _set_precision(config: Config) -> None:
    """For the rest of the process; JAX_DEFAULT_MATMUL_PRECISION, where set, comes first."""
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)


def _load_images(config: Config) -> ImageData:
    return images.load_images(
        config.dataset,
        config.data_dir,
        seed=config.seed,
        num_train=config.num_train,
        num_val=config.num_val,
    )


def _build(config: Config, folder: Path, data: ImageData, stages: dict[str, float]) -> Trained:
    """Make or read everything. `stages` receives the seconds of what is made from its beginning."""
    engine = make_engine(config, zoo_cnn_spec(data.train.images.shape[-1], config.zoo.activation))
    _announce(config, folder, engine, data)
    task = make_task(engine, data)
    zoo_path = workdir.zoo_path(folder)
    with _timed(stages, "zoo", zoo_path, zoo_path.with_suffix(".checkpoints")):
        models = make_population(
            zoo_path, zoo_recipe(config, data), config, task, f"zoo {config.dataset}"
        )
    parts = weight_data.split(config, models)
    made = [workdir.hyperrep_path(folder, name) for name in train_hyperrep.variants(config)]
    if not any(path.exists() for path in made) and 0 in models.epochs:
        _describe_zoo(folder, models, parts)
    reference = _reference(config, folder, models, parts)
    weights = weight_data.load(config, models, parts, reference)
    trained = {}
    for name in train_hyperrep.variants(config):
        path = workdir.hyperrep_path(folder, name)
        with _timed(
            stages, f"hyperrep/{name}", path, train_hyperrep.checkpoint_folder(folder, name)
        ):
            trained[name] = train_hyperrep.make_hyperrep(
                name, config, weights, reference, task, folder
            )
    return Trained(config, data, task, models, parts, weights, trained)


@contextmanager
def _timed(
    stages: dict[str, float], stage: str, product: Path, checkpoints: Path
) -> Iterator[None]:
    """Note the seconds of a stage, unless it is only read, or goes on from an earlier command."""
    whole, start = not product.exists() and not checkpoints.exists(), time.monotonic()
    yield
    if whole:
        stages[stage] = round(time.monotonic() - start, 2)


def _announce(config: Config, folder: Path, engine: Engine, data: ImageData) -> None:
    """Say what is going to be made and what it takes, or refuse it."""
    stages = []
    if not workdir.zoo_path(folder).exists():
        images = {part: len(getattr(data, part).labels) for part in ("train", "val", "test")}
        members, epochs = config.zoo.num_members, config.zoo.epochs
        stages += [plan.population_stage("zoo", engine, config, images, members, epochs)]
    for name in train_hyperrep.variants(config):
        if not workdir.hyperrep_path(folder, name).exists():
            title, devices = f"hyper-representation {name}", engine.mesh.size
            stages += [plan.autoencoder_stage(title, config, engine.spec, devices)]
    if stages:
        plan.announce(stages, folder, list(engine.mesh.devices.flat))


def zoo_recipe(config: Config, data: ImageData) -> Recipe:
    info: dict[str, Any] = {
        "kind": "zoo",
        "dataset": data.name,
        "source": data.source,
        "fingerprint": data.fingerprint,
        "images": {part: len(getattr(data, part).labels) for part in ("train", "val", "test")},
        "seed": config.seed,
        "zoo": {k: v for k, v in to_dict(config)["zoo"].items() if k not in HOW},
    }
    return Recipe(
        members=np.arange(config.zoo.num_members),
        epochs=np.array(config.zoo.snapshots or range(config.zoo.epochs + 1)),
        key=root_key(config.seed, Stream.ZOO),
        start=None,
        info=info,
    )


def _reference(config: Config, folder: Path, models: Zoo, parts: Split) -> np.ndarray:
    """Taken from a hyper-representation that is already there: finding it takes a while."""
    for name in train_hyperrep.variants(config):
        path = workdir.hyperrep_path(folder, name)
        if path.exists():
            return hyperrep_file.read(path)[0].reference
    if config.autoencoder.align:
        console.print("aligning the zoo to a reference member ...")
    return weight_data.find_reference(config, models, parts)


def _describe_zoo(folder: Path, models: Zoo, parts: Split) -> None:
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
    if not workdir.has_metrics(folder, "zoo"):  # else from before this run was resumed
        workdir.log_metrics(folder, {"stage": "zoo", "init_correlation": correlation})
