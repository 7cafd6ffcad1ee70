"""What every experiment is given: a trained workdir, and what the user asked for."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import NamedTuple

from hyperjax import config as config_lib
from hyperjax.app.run import Run, images_of, load
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError
from hyperjax.population.evaluation import Task, make_task
from hyperjax.population.lockstep import architecture_of, make_engine
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo


class Target(NamedTuple):
    """Another data set, to which models are transferred."""

    name: str  # of the data set
    config: Config
    fingerprint: str  # of its images
    task: Task
    models: Zoo | None  # its zoo, with its split, where the target is a finished workdir


class Context(NamedTuple):
    folder: Path  # the workdir
    trained: Run
    samplers: tuple[str, ...]
    num_samples: int  # models per population
    targets: tuple[Target, ...] = ()
    files: tuple[Path, ...] = ()  # populations made elsewhere

    @property
    def home(self) -> Target:
        """The workdir's own data set, as a target."""
        run = self.trained
        return Target(run.config.dataset, run.config, run.images.fingerprint, run.task, run.zoo)


def load_target(name: str, trained: Run, data_dir: str = "") -> Target:
    """The target `name`: a workdir that train.py has finished, or `configs/x.py[:scale]`.

    Raises HyperJaxError if it is neither, or its images have another number of channels.
    """
    folder = Path(name)
    if folder.is_dir():
        run = load(folder, data_dir=data_dir)
        models = run.zoo  # first: it may not be there
        config, task, fingerprint = run.config, run.task, run.images.fingerprint
        _check_architecture(name, config.dataset, task.engine.spec, trained)
    else:
        models, config = None, read_config(name)
        if data_dir:
            config = dataclasses.replace(config, data_dir=data_dir)
        images = images_of(config)
        spec = architecture_of(config.zoo, images)
        _check_architecture(name, config.dataset, spec, trained)
        task, fingerprint = make_task(make_engine(config.zoo, spec), images), images.fingerprint
    return Target(config.dataset, config, fingerprint, task, models)


def _check_architecture(name: str, dataset: str, spec: WeightSpec, trained: Run) -> None:
    """Weights carry over between networks of the same layers, whatever their activations."""
    ours = trained.zoo.spec
    if spec.channels != ours.channels:
        raise HyperJaxError(
            f"--targets={name}: {dataset} has {spec.channels} channels, the workdir's "
            f"{trained.config.dataset} has {ours.channels}; weights do not carry over"
        )
    if (spec.layers, spec.image_size) != (ours.layers, ours.image_size):
        raise HyperJaxError(
            f"--targets={name}: its networks have the layers {', '.join(spec.names)} with "
            f"{spec.num_params} weights for images of {spec.image_size}, the workdir's "
            f"{', '.join(ours.names)} with {ours.num_params} for {ours.image_size}; weights do not "
            "carry over"
        )


def read_config(name: str) -> Config:
    """The configuration of a file with `get_config`, given what stands after the colon."""
    path, _, scale = name.partition(":")
    if not Path(path).is_file():
        raise HyperJaxError(
            f"--targets={name}: there is no such workdir or configuration; expected a folder "
            "that train.py has finished, or a file like configs/mnist.py:small"
        )
    spec = importlib.util.spec_from_file_location("hyperjax_target_config", path)
    if spec is None or spec.loader is None:
        raise HyperJaxError(f"--targets={name}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        tree = module.get_config(scale) if scale else module.get_config()
    except (SyntaxError, ImportError, AttributeError, TypeError) as error:
        raise HyperJaxError(f"--targets={name}: cannot read {path}: {error}") from error
    return config_lib.from_dict(tree.to_dict())
