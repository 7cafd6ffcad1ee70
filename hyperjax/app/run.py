"""A workdir that train.py has made, for notebooks and scripts: read when it is touched."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hyperjax import config as config_lib
from hyperjax import zoo
from hyperjax.app import aligned, foreign_zoo
from hyperjax.config import VARIANTS, AutoencoderConfig, Config, override
from hyperjax.data.images import ImageData, load_images
from hyperjax.diffusion import Denoiser
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.hyperrep import HyperRep, encode, weight_data
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.population.evaluation import Task, make_task
from hyperjax.population.lockstep import architecture_of, make_engine
from hyperjax.population.repair import Moments, Repair, fit_repair, gaussian_inputs, image_inputs
from hyperjax.rng import Stream, root_key
from hyperjax.store import denoiser_file, hyperrep_file, moments_file, workdir, zoo_file
from hyperjax.symmetry import alignment, nearest
from hyperjax.symmetry.nearest import TrainModels
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Split, Zoo

LWLN, NO_LWLN, VAE = "lwln", "no_lwln", "vae"


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir. Every attribute but the first two is read, or computed, when it is first used.

    Attributes:
      folder: the workdir.
      config: its configuration; settings of samplers and evaluation may have been overridden.
      zoo: the trained population, memory-mapped, with its split into members.
      hyperreps: the hyper-representations by name, the configuration's own first.
      images: the data set, on the host.
      task: the same on the devices, with the engine that runs networks.
      data: aligned weights of the epochs that the autoencoder sees.
      denoiser: by which the diffusion samplers draw.
      repair: what `repair:` gives neurons back: their moments in train members, on inputs drawn
        from the Gaussian with the training images' two moments, which train.py stores, or on
        training images (`samplers.repair_inputs`).
    """

    folder: Path
    config: Config

    @cached_property
    def images(self) -> ImageData:
        return images_of(self.config)

    @property
    def has_images(self) -> bool:
        return bool(self.config.dataset)

    @cached_property
    def task(self) -> Task:
        config = self.config.zoo
        spec = self.zoo.spec if config.path else architecture_of(config, self.images)
        task = make_task(make_engine(config, spec), self.images)
        if config.path:
            foreign_zoo.check_images(self.zoo, task)
        return task

    @cached_property
    def zoo(self) -> Zoo:
        path = workdir.zoo_path(self.folder)
        if not path.exists():
            raise workdir.unfinished(self.folder, path)
        models = zoo_file.read(path)
        parts = zoo.split_members(models, self.config.zoo.split, self.config.seed)
        return dataclasses.replace(models, split=parts)

    @property
    def split(self) -> Split:
        return self.zoo.split

    @cached_property
    def hyperreps(self) -> "HyperReps":
        return HyperReps(self)

    @cached_property
    def reference(self) -> np.ndarray:
        """The network that all members are aligned to, float32[D]: that of a hyper-representation,
        or found now, which takes a while."""
        for name in variants(self.config):
            if workdir.hyperrep_path(self.folder, name).exists():
                return np.asarray(self.hyperreps[name].reference)
        seen = self.config.autoencoder.data
        return weight_data.find_reference(seen, self.zoo, self.split, self.config.seed)

    @cached_property
    def data(self) -> WeightData:
        seen = self.config.autoencoder.data
        return aligned.load(self.folder, seen, self.zoo, self.split, self.reference)

    @cached_property
    def train_models(self) -> TrainModels:
        """What samples are compared with, to tell new networks from replays."""
        return nearest.train_models(self.zoo.spec, self.data.train, self.reference)

    @property
    def denoiser(self) -> Denoiser:
        return self._denoiser[0]

    @property
    def denoiser_info(self) -> dict[str, Any]:
        """What was recorded with the denoiser: the chosen step, ratios, the tensors' digest."""
        return self._denoiser[1]

    @property
    def has_denoiser(self) -> bool:
        return workdir.denoiser_path(self.folder).exists()

    @cached_property
    def _denoiser(self) -> tuple[Denoiser, dict[str, Any]]:
        path = workdir.denoiser_path(self.folder)
        if not path.exists():
            change = " and --config.denoiser.training.steps=3000"
            raise workdir.unfinished(self.folder, path, change)
        denoiser, info = denoiser_file.read(path)
        if denoiser.spec != self.zoo.spec:
            raise HyperJaxError(f"{path}: made for another architecture than the zoo's")
        return jax.device_put(denoiser), info

    @cached_property
    def moments(self) -> Moments:
        """The two moments of the training images. Raises HyperJaxError if they are not there."""
        path = workdir.moments_path(self.folder)
        if not path.exists() and not self.has_images:
            raise HyperJaxError(
                f"{path}: repair: needs the moments of the images that the networks were trained "
                "on, and no images are known; put those there that a workdir of the same images has"
            )
        if not path.exists():
            raise HyperJaxError(
                f"{path}: there are no moments of the training images, which repair: needs; "
                "run train.py again on this workdir, with its images at hand, or put those that "
                "another workdir of the same images has there"
            )
        moments, info = moments_file.read(path)
        theirs, ours = (about.get("fingerprint") for about in (info, self.zoo.info))
        if theirs and ours and theirs != ours:
            raise HyperJaxError(
                f"{path}: moments of other images ({info.get('dataset', 'unnamed')}, {theirs}) "
                f"than those that the zoo was trained on ({self.config.dataset}, {ours})"
            )
        return moments

    @cached_property
    def repair(self) -> Repair:
        key, members = root_key(self.config.seed, Stream.REPAIR), self.data.train[:, -1]
        if self.config.samplers.repair_inputs == "images":
            return fit_repair(self.zoo.spec, members, image_inputs(key, self.images.train))
        return fit_repair(self.zoo.spec, members, gaussian_inputs(key, self.moments))

    @property
    def main(self) -> str:
        """The name of the configuration's own hyper-representation."""
        return main_name(self.config)

    @property
    def pair(self) -> dict[str, HyperRep]:
        """Those with and without LWLN, as far as they are there, the configuration's own first."""
        return {name: self.hyperreps[name] for name in self.hyperreps if name != VAE}

    def trajectories(
        self, rows: np.ndarray, epochs: Sequence[int], *, aligned: bool = False
    ) -> np.ndarray:
        """Weights float32[len(rows), len(epochs), D] of members, as they were trained or aligned as
        the autoencoder's data: each by the last epoch that it sees, whatever the `epochs`.

        Raises HyperJaxError for an epoch of which the zoo has no snapshot.
        """
        seen = self.config.autoencoder.data
        aligned = aligned and seen.align
        wanted = [*epochs, seen.epochs_seen[-1]] if aligned else epochs
        columns = zoo.snapshot_index(self.zoo, wanted)
        vectors = np.asarray(self.zoo.weights[rows[:, None], columns[None]])
        if not aligned:
            return vectors
        return alignment.align_trajectories(self.zoo.spec, vectors, self.reference)[:, :-1]


class HyperReps(Mapping[str, HyperRep]):
    """The hyper-representations of a run by name, each read, onto the device, when it is asked
    for; `info` has what was recorded with them: the chosen step, scores, the tensors' digest;
    `anchors` the train members' latents."""

    def __init__(self, run: Run):
        self._run, self._read, self._anchors = run, {}, {}

    def __iter__(self) -> Iterator[str]:
        return iter(variants(self._run.config))

    def __len__(self) -> int:
        return len(variants(self._run.config))

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the file
        return name in variants(self._run.config)

    def __getitem__(self, name: str) -> HyperRep:
        return self._load(name)[0]

    def info(self, name: str) -> dict[str, Any]:
        return self._load(name)[1]

    def anchors(self, name: str) -> np.ndarray:
        """Latents float32[samples, latent] of the train members, that samplers are fitted on."""
        if name not in self._anchors:
            self._anchors[name] = encode(self[name], self._run.data.train_vectors, aligned=True)
        return self._anchors[name]

    def _load(self, name: str) -> tuple[HyperRep, dict[str, Any]]:
        if name not in self._read:
            if name not in VARIANTS:
                raise unknown("hyper-representation", name, self)
            config, folder = self._run.config, self._run.folder
            path = workdir.hyperrep_path(folder, name)
            if not path.exists():
                change = f" and --config.autoencoder.variants=('{name}',)"
                raise workdir.unfinished(folder, path, "" if name in self else change)
            possible = variants(override(config, {"autoencoder.variants": VARIANTS}))
            spec = zoo_file.read(workdir.zoo_path(folder)).spec
            hyperrep, info = read_checked(path, possible[name], spec)
            self._read[name] = jax.device_put(hyperrep), info
        return self._read[name]


def load(
    folder: str | Path, *, data_dir: str = "", overrides: Mapping[str, Any] | None = None
) -> Run:
    """A workdir of train.py. Zoo, hyper-representations and images are read when they are used.

    Args:
      folder: the workdir.
      data_dir: where images are, if they have moved since.
      overrides: other settings of samplers and of the evaluation, {"samplers.x": value}.

    Raises HyperJaxError if it is no workdir, or a field is unknown or none of these; and later,
    where something that is touched is not there.

    >>> run = hj.load("runs/digits")
    >>> run.zoo.weights.shape, run.zoo.select("train", epoch=3).weights.shape
    ((8, 26, 2464), (6, 1, 2464))
    >>> run.hyperreps["lwln"].config.architecture.latent
    8
    """
    for field in overrides or {}:
        if not field.startswith(("samplers.", "evaluation.")):
            raise HyperJaxError(
                f"overrides: {field} is part of what was made in {folder}; expected fields "
                "samplers.x or evaluation.x"
            )
    config = override(workdir.load_config(Path(folder)), overrides or {})
    set_precision(config)
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    return Run(Path(folder), config)


def images_of(config: Config) -> ImageData:
    """The data set of a configuration. Raises HyperJaxError if it has none, or it is not there."""
    if not config.dataset:
        raise HyperJaxError(
            "this needs images, and the workdir's networks come without any: config field dataset "
            "names the data set that they were trained on"
        )
    return load_images(
        config.dataset, config.data_dir, seed=config.seed, num_train=config.num_train,
        num_val=config.num_val, size=config.image_size,
    )  # fmt: skip


def set_precision(config: Config) -> None:
    """For the rest of the process; JAX_DEFAULT_MATMUL_PRECISION, where set, comes first."""
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)


def variants(config: Config) -> dict[str, AutoencoderConfig]:
    """The autoencoder of the configuration under its name, then those trained beside it."""
    main = dataclasses.replace(config.autoencoder, variants=())
    found = {LWLN if main.loss.lwln else NO_LWLN: main}
    for name in config.autoencoder.variants:
        if name == VAE:
            architecture = dataclasses.replace(main.architecture, variational=True, tanh=False)
            variant = dataclasses.replace(main, architecture=architecture)
        else:
            loss = dataclasses.replace(main.loss, lwln=name == LWLN)
            variant = dataclasses.replace(main, loss=loss)
        found.setdefault(name, variant)
    return found


def main_name(config: Config) -> str:
    return next(iter(variants(config)))


def read_checked(
    path: Path, variant: AutoencoderConfig, spec: WeightSpec
) -> tuple[HyperRep, dict[str, Any]]:
    """Read a hyper-representation that must be of this configuration and architecture."""
    hyperrep, info = hyperrep_file.read(path)
    if hyperrep.spec != spec:
        raise HyperJaxError(
            f"{path}: made for another architecture ({hyperrep.spec.num_params} weights, "
            f"{hyperrep.spec.activation}); expected {spec.num_params} weights, {spec.activation}"
        )
    differing = [
        f"autoencoder.{name}: {theirs!r} there, {ours!r} here"
        for name, (ours, theirs) in essential_differences(variant, hyperrep.config).items()
    ]
    if differing:
        raise HyperJaxError(
            f"{path}: made with another configuration ({'; '.join(differing)}); delete it "
            "or restore"
        )
    return hyperrep, info


def essential_differences(
    ours: AutoencoderConfig, theirs: AutoencoderConfig
) -> dict[str, tuple[Any, Any]]:
    """What makes two autoencoders different: not what is trained beside them, nor how many examples
    at once, nor the noise of a VAE that they are not."""
    found = config_lib.differences(ours, theirs)
    for field in ("variants", "micro_batch"):
        found.pop(field, None)
    if not ours.architecture.variational and not theirs.architecture.variational:
        found.pop("loss.kl", None)
    return found
