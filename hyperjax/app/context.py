"""What every experiment is given: a trained workdir, and what the user asked for."""

from pathlib import Path
from typing import NamedTuple

from hyperjax.app.train import Trained
from hyperjax.config import Config
from hyperjax.population.evaluation import Task
from hyperjax.zoo import Split, Zoo


class Target(NamedTuple):
    """Another data set, to which models are transferred."""

    name: str  # of the data set
    config: Config
    fingerprint: str  # of its images
    task: Task
    models: Zoo | None  # its zoo, where the target is a finished workdir
    split: Split | None  # of that zoo


class Context(NamedTuple):
    folder: Path  # the workdir
    trained: Trained
    samplers: tuple[str, ...]
    num_samples: int  # models per population
    targets: tuple[Target, ...] = ()

    @property
    def home(self) -> Target:
        """The workdir's own data set, as a target."""
        trained = self.trained
        return Target(
            trained.config.dataset,
            trained.config,
            trained.images.fingerprint,
            trained.task,
            trained.zoo,
            trained.split,
        )
