"""`--targets`: other data sets, as finished workdirs or as configurations."""

import dataclasses
import importlib.util
from pathlib import Path

from hyperjax import config as config_lib
from hyperjax.app.context import Target
from hyperjax.app.train import Trained
from hyperjax.app.train_population import make_engine, make_task
from hyperjax.config import Config
from hyperjax.data import images
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import weight_data
from hyperjax.models.cnn import zoo_cnn_spec
from hyperjax.store import workdir, zoo_file


def load_target(name: str, trained: Trained, data_dir: str = "") -> Target:
    """The target `name`: a workdir that train.py has finished, or `configs/x.py[:scale]`.

    Raises HyperJaxError if it is neither, or its images have another number of channels.
    """
    folder = Path(name)
    models = None
    if folder.is_dir():
        config = workdir.load_config(folder)
        path = workdir.zoo_path(folder)
        if not path.exists():
            raise workdir.unfinished(folder, path)
        models = zoo_file.read(path)
    else:
        config = read_config(name)
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    data = images.load_images(
        config.dataset, config.data_dir, seed=config.seed, num_train=config.num_train,
        num_val=config.num_val,
    )  # fmt: skip
    channels, ours = data.train.images.shape[-1], trained.images.train.images.shape[-1]
    if channels != ours:
        raise HyperJaxError(
            f"--targets={name}: {config.dataset} has {channels} channels, the workdir's "
            f"{trained.config.dataset} has {ours}; weights do not carry over"
        )
    task = make_task(make_engine(config, zoo_cnn_spec(channels, config.zoo.activation)), data)
    parts = None if models is None else weight_data.split(config, models)
    return Target(config.dataset, config, data.fingerprint, task, models, parts)


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
