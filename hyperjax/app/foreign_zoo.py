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
from hyperjax.data.images import ImageData
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import sources
from hyperjax.exchange.source import Wanted
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task, make_task
from hyperjax.population.lockstep import make_engine
from hyperjax.store import files, zoo_file
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


def make_zoo(config: Config, path: Path, images: ImageData | None = None) -> Zoo:
    """Copy or import the zoo into the file `path`, unless it is there, and write the accuracies on
    the images that it lacks."""
    if not distributed.exists(path):
        staged = path.with_suffix(".staged")  # until it is measured
        if distributed.is_writer():
            _bring(config, staged)
        distributed.barrier(f"{staged} is written")
        models, task = zoo_file.read(staged), None
        if images is not None:
            task = make_task(make_engine(config.zoo, models.spec), images)
        _check(staged, models, task, config.autoencoder.data.epochs_seen)
        if task is not None:
            _measure(staged, task, config.autoencoder.data.epochs_seen)
        if distributed.is_writer():
            zoo_file.publish(staged, path)
        distributed.barrier(f"{path} is written")
    return zoo_file.read(path)


def _check(staged: Path, models: Zoo, task: Task | None, epochs: tuple[int, ...]) -> None:
    """Refuse a zoo that is not what the configuration says, and leave its folder free for what was
    meant."""
    problem = None
    try:
        snapshot_index(models, epochs)
        if task is not None:
            check_images(models, task)
    except HyperJaxError as error:
        problem = error
    if distributed.any_of(problem is not None):
        files.remove(staged)
        files.remove_if_empty(staged.parent)
        raise problem or HyperJaxError(f"another process refused {staged}")


def _bring(config: Config, staged: Path) -> None:
    """Copy or import the zoo."""
    source, wanted = Path(config.zoo.path), _wanted(config)
    staged.parent.mkdir(parents=True, exist_ok=True)
    if not _is_zoo(source):
        if staged.exists() and zoo_file.damaged(staged):  # killed while its accuracies were written
            staged.unlink()
        import_zoo(
            source, staged, activation=wanted.activation, image_size=wanted.image_size,
            model=wanted.model, dataset=config.dataset, moments=config.zoo.save_moments,
            verbose=True,
        )  # fmt: skip
        return
    found = zoo_file.read(source)  # or say what is wrong with it
    if config.zoo.save_moments and found.second_moments is None:
        raise HyperJaxError(f"config field zoo.save_moments: {source} has none")
    try:
        shutil.copyfile(source, staged)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise HyperJaxError(f"cannot copy {source} to {staged}: {error.strerror}") from error


def _measure(path: Path, task: Task, epochs: tuple[int, ...]) -> None:
    """Write into a zoo file the accuracies on validation and test images that it lacks, at once
    when all are known."""
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
    found = {name: np.array(values) for name, values in models.metrics.items()}
    with progress.bar("measuring the zoo", count * len(models.members)) as advance:
        for part, of_part in lacking.items():
            for column in of_part:
                for begin in range(0, len(models.members), _ROWS):
                    rows = slice(begin, begin + _ROWS)
                    vectors = np.asarray(models.weights[rows, column])
                    measured = evaluation.evaluate(task, vectors, getattr(task, part))
                    found[f"{part}_loss"][rows, column] = measured.loss
                    found[f"{part}_accuracy"][rows, column] = measured.accuracy
                    advance(len(vectors), f"{part} images, epoch {models.epochs[column]}")
    if distributed.is_writer():
        target = zoo_file.read(path, writable=True)
        for name, values in found.items():
            target.metrics[name][:] = values
        zoo_file.seal(path, names=[f"metrics/{name}" for name in found])
        zoo_file.flush(target)


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
