"""The zoo of a workdir that was trained elsewhere (`config.zoo.path`): a zoo file, or networks of
others, which are imported."""

import shutil
from pathlib import Path

import numpy as np

from hyperjax import distributed
from hyperjax.app import progress
from hyperjax.app.import_zoo import import_zoo
from hyperjax.app.progress import console
from hyperjax.config import Config, override
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import sources
from hyperjax.exchange.source import Wanted
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.store import zoo_file
from hyperjax.zoo import Zoo, snapshot_index

_LAST = 5  # snapshots that an autoencoder sees where nobody says which
_ROWS = 512  # members that are measured together


def resolved(config: Config, made: Path) -> Config:
    """With the snapshots that are seen, where the configuration leaves them open: the last five, of
    the workdir's zoo `made`, if it is there.

    Raises HyperJaxError if nothing that is known lies at the path.
    """
    if not config.zoo.path or config.autoencoder.data.epochs_seen:
        return config
    zoo = made if made.exists() else Path(config.zoo.path)
    if _is_zoo(zoo):
        epochs = zoo_file.read(zoo).epochs.tolist()
    else:
        epochs = sources.find(config.zoo.path, _wanted(config)).epochs
    return override(config, {"autoencoder.data.epochs_seen": tuple(epochs[-_LAST:])})


def make_zoo(config: Config, path: Path) -> Zoo:
    """Copy or import the zoo into the file `path`, unless it is there."""
    if path.exists():
        return zoo_file.read(path)
    source = Path(config.zoo.path)
    if distributed.is_writer():
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_zoo(source):
            found = zoo_file.read(source)  # or say what is wrong with it
            if config.zoo.save_moments and found.second_moments is None:
                raise HyperJaxError(f"config field zoo.save_moments: {source} has none")
            partial = path.with_suffix(".copy")
            try:
                shutil.copyfile(source, partial)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise HyperJaxError(f"cannot copy {source} to {path}: {error.strerror}") from error
            zoo_file.publish(partial, path)
        else:
            wanted = _wanted(config)
            import_zoo(
                source, path, activation=wanted.activation, image_size=wanted.image_size,
                model=wanted.model, dataset=config.dataset, moments=config.zoo.save_moments,
                verbose=True,
            )  # fmt: skip
    distributed.barrier(f"{path} is written")
    return zoo_file.read(path)


def measure(path: Path, task: Task, epochs: tuple[int, ...]) -> None:
    """Write into a zoo file the accuracies on validation and test images that it lacks."""
    models = zoo_file.read(path)
    columns = snapshot_index(models, epochs)
    lacking = {
        part: [c for c in columns if np.isnan(models.metrics[f"{part}_accuracy"][:, c]).all()]
        for part in ("val", "test")
        if f"{part}_accuracy" in models.metrics and getattr(task, part) is not None
    }
    count = sum(map(len, lacking.values()))
    if not count:
        return
    console.print("the zoo has no accuracies: measuring them on the images at hand")
    target = zoo_file.read(path, writable=True) if distributed.is_writer() else None
    with progress.bar("measuring the zoo", count * len(models.members)) as advance:
        for part, of_part in lacking.items():
            for column in of_part:
                for begin in range(0, len(models.members), _ROWS):
                    rows = slice(begin, begin + _ROWS)
                    vectors = np.asarray(models.weights[rows, column])
                    found = evaluation.evaluate(task, vectors, getattr(task, part))
                    if target is not None:
                        target.metrics[f"{part}_loss"][rows, column] = found.loss
                        target.metrics[f"{part}_accuracy"][rows, column] = found.accuracy
                    advance(len(vectors), f"{part} images, epoch {models.epochs[column]}")
    if target is not None:
        zoo_file.flush(target)
    distributed.barrier(f"{path} is measured")


def _is_zoo(path: Path) -> bool:
    """Whether it is a file of ours, not someone's tensors."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        zoo_file.read(path)
    except HyperJaxError as error:
        return "not a HyperJAX zoo" not in str(error)
    return True


def _wanted(config: Config) -> Wanted:
    size = (config.image_size, config.image_size) if config.dataset else None
    return Wanted(config.zoo.activation, size, config.zoo.model)


def check_images(models: Zoo, task: Task) -> None:
    """Raises HyperJaxError if the networks do not take the images of the configuration."""
    shape = tuple(np.shape(task.train.pixels)[1:])
    expected = (*models.spec.image_size, models.spec.channels)
    classes = int(np.max(task.train.labels)) + 1
    if shape != expected or classes > models.spec.num_classes:
        raise HyperJaxError(
            f"config field dataset: images of shape {shape} with {classes} classes; the networks "
            f"of the zoo take {expected} and know {models.spec.num_classes}"
        )
