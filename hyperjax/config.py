"""The configuration of a run: frozen, validated dataclasses.

`configs/*.py` build ml_collections trees from these defaults; `from_dict` turns such a
tree back into a `Config` at the border. Every field has a default of its own type, so that
every field can be overridden on the command line.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from hyperjax.errors import HyperJaxError, unknown

ACTIVATIONS = ("tanh", "relu", "leakyrelu", "sigmoid", "silu", "gelu")
INITS = (
    "uniform",
    "normal",
    "kaiming_uniform",
    "kaiming_normal",
    "xavier_uniform",
    "xavier_normal",
    "torch_default",
)
OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How zoo CNNs are trained and fine-tuned (method of the published zoos)."""

    optimizer: str = "adam"  # adam: L2 added to the gradient; adamw: decoupled; sgd: momentum 0.9
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    batch_size: int = 10


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """A population of CNNs that differ only by seed."""

    num_members: int = 1000
    epochs: int = 50
    activation: str = "tanh"
    init: str = "uniform"
    training: TrainingConfig = TrainingConfig()
    split: tuple[float, ...] = (0.7, 0.15, 0.15)  # of members: train, validation, test
    max_abs_weight: float = 0.0  # members with a weight beyond it are left out; 0: off
    snapshots: tuple[int, ...] = ()  # epochs kept, with their metrics; empty: all
    conv: str = "auto"  # form of the convolution, see models/conv.py
    members: str = "auto"  # map: one after another (CPU); vmap: all at once (accelerators)
    chunk_size: int = 0  # members trained together; 0: chosen from the memory at hand


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentations of weight vectors, in the order in which they are applied."""

    permute: bool = False  # fresh random neuron permutations (and symmetric signs) per view
    mix: float = 0.0  # probability of mixing with another aligned member
    noise: float = 0.0  # Gaussian noise, in the autoencoder's input units (see `scale`)
    erase: float = 0.5  # probability of erasing one contiguous block
    erase_scale: tuple[float, ...] = (0.02, 0.33)  # range of the block's share of the vector


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The hyper-representation: architecture, losses and training."""

    # architecture (paper section 3, appendix B)
    dim: int = 800
    heads: int = 4
    mlp_dim: int = 900
    blocks: int = 2
    latent: int = 700
    dropout: float = 0.1
    compression: str = "token"  # token, average or linear
    tanh: bool = True  # bound the latents to (-1, 1)
    linear_path: bool = True  # a linear encoder and decoder beside the attention, from PCA
    projection_layers: int = 4
    projection_hidden: int = 400
    projection_dim: int = 50
    dtype: str = "float32"  # of the activations; parameters stay float32
    # data
    epochs_seen: tuple[int, ...] = (21, 22, 23, 24, 25)  # snapshots of each train member
    align: bool = True  # align all members to one reference before training
    center: bool = True  # encode and decode the difference to the train members' mean
    scale: bool = True  # encode and decode in units of each layer's standard deviation
    augment: AugmentConfig = AugmentConfig()
    # losses
    lwln: bool = True  # layer-wise loss normalisation (paper section 3.1)
    beta: float = 0.9  # loss = beta * reconstruction + (1 - beta) * contrast
    temperature: float = 0.1
    target: str = "original"  # of the reconstruction: original (denoising) or view (published)
    kl: float = 0.0  # variance of a variational decoder's noise, in the loss's units; 0: no VAE
    kl_warmup: int = 0  # steps over which the KL term rises from nothing to its weight
    # training
    train_baseline: bool = True  # also train the twin with `lwln` inverted
    steps: int = 27_500
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-9
    schedule: str = "cosine"  # constant, or cosine decay to zero; after a linear warm-up
    warmup_steps: int = 100
    clip_norm: float = 1.0  # 0: no clipping
    eval_every: int = 500  # steps between validations (and checkpoints)
    eval_models: int = 200  # held-out models whose reconstructions are evaluated on images
    select: str = "loss"  # best checkpoint by: loss or accuracy of held-out models, or the last


@dataclasses.dataclass(frozen=True)
class NeighConfig:
    """UMAP, by which `neigh` embeds the latents; the paper's and the published values."""

    neighbors: int = 15  # fewer where there are fewer anchors
    min_dist: float = 0.01
    cube: bool = False  # draw from one cube over all coordinates (published code), not the box


@dataclasses.dataclass(frozen=True)
class GanConfig:
    """The GAN on latents and its training; see `hyperjax.samplers.gan`."""

    noise: int = 16  # size of the generator's input (paper section 3.2.4)
    hidden: int = 128  # width of the hidden layers of both networks
    layers: int = 3  # number of hidden layers of both networks
    steps: int = 3000
    batch_size: int = 64
    generator_rate: float = 2e-3
    discriminator_rate: float = 4e-3
    penalty: float = 0.05  # on the discriminator's slope, for each latent dimension
    average: float = 0.995  # decay of the generator's moving average; 0: none


@dataclasses.dataclass(frozen=True)
class SamplersConfig:
    """Settings of the samplers; see `hyperjax.samplers`."""

    best_fraction: float = 0.3  # of the train models, by validation accuracy: the `...30` samplers
    kde_bandwidth: float = 0.002
    counterfactual_fraction: float = 0.1  # of each dimension's range, where density is lowest
    joint_bandwidth: float = 0.4  # 0: replay of anchors, 1: a full Gaussian
    neigh: NeighConfig = NeighConfig()
    gan: GanConfig = GanConfig()
    average_of: int = 2
    noise_scale: float = 0.2  # in units of each layer's standard deviation
    pca_components: int = 64
    subsample_factor: int = 10  # `subsample:...` keeps one sample of so many
    bootstrap_rounds: int = 5  # `bootstrap:...` refits so often,
    bootstrap_draws: int = 200  # each time on `best_fraction` of so many samples


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What `evaluate.py` measures."""

    num_samples: int = 100  # models per population
    epochs: tuple[int, ...] = (0, 1, 5, 25, 50)  # of fine-tuning at which populations are compared
    samplers: tuple[str, ...] = ()  # empty: all
    bootstrap: int = 9999  # resamples of the confidence intervals
    assign: str = "transplant"  # of weights to unseen architectures: transplant or refill
    unseen_models: int = 50  # models per population of each unseen architecture, at most
    ensemble: str = "softmax"  # mean of probabilities, of logits, or (vote) majority
    ensemble_sizes: tuple[int, ...] = tuple(range(1, 16))  # numbers of models
    ensemble_draws: int = 15  # random ensembles of each size
    vae_kl: float = 1.0  # `autoencoder.kl` of the VAE that experiment `vae` trains
    noise_levels: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)  # on latents
    pairs: int = 250  # of members that are interpolated, at most
    points: int = 11  # on an interpolation, its ends included
    probe_snapshots: int = 10  # of each member, on which probes are fitted and judged, at most
    probe_members: int = 1000  # likewise, at most


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: images, zoo, hyper-representation, samplers, evaluation."""

    seed: int = 0
    dataset: str = "mnist"
    data_dir: str = "data"
    num_train: int = 0  # training images; 0: all that validation leaves
    num_val: int = 10_000  # validation images, drawn from the official training split
    # of matrix products on accelerators, which are several times as fast below float32
    matmul_precision: str = "float32"
    checkpoint_seconds: float = 30.0  # least time between checkpoints of a running stage
    zoo: ZooConfig = ZooConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    samplers: SamplersConfig = SamplersConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


_CHOICES = {
    "matmul_precision": ("float32", "tensorfloat32", "bfloat16"),
    "zoo.activation": ACTIVATIONS,
    "zoo.init": INITS,
    "zoo.training.optimizer": OPTIMIZERS,
    "zoo.conv": ("auto", "tiles", "patches", "xla"),
    "zoo.members": ("auto", "map", "vmap"),
    "evaluation.assign": ("refill", "transplant"),
    "evaluation.ensemble": ("softmax", "logits", "vote"),
    "autoencoder.compression": ("token", "average", "linear"),
    "autoencoder.target": ("original", "view"),
    "autoencoder.schedule": ("constant", "cosine"),
    "autoencoder.select": ("accuracy", "loss", "last"),
    "autoencoder.dtype": ("float32", "bfloat16"),
}
_MAY_BE_ZERO = {
    "seed", "num_train", "checkpoint_seconds", "zoo.training.weight_decay", "zoo.chunk_size",
    "zoo.max_abs_weight",
    "autoencoder.dropout", "autoencoder.projection_layers", "autoencoder.augment.mix",
    "autoencoder.augment.noise", "autoencoder.augment.erase", "autoencoder.beta",
    "autoencoder.weight_decay", "autoencoder.warmup_steps", "autoencoder.clip_norm",
    "autoencoder.eval_models", "autoencoder.kl", "autoencoder.kl_warmup",
    "samplers.joint_bandwidth", "samplers.noise_scale",
    "samplers.neigh.min_dist", "samplers.gan.penalty", "samplers.gan.average",
}  # fmt: skip
_AT_MOST_ONE = {
    "autoencoder.beta", "autoencoder.dropout", "autoencoder.augment.mix",
    "autoencoder.augment.erase", "samplers.best_fraction", "samplers.joint_bandwidth",
    "samplers.counterfactual_fraction", "samplers.neigh.min_dist", "samplers.gan.average",
}  # fmt: skip


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionary; the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Build and validate a Config. Raises HyperJaxError naming the field that is wrong."""
    config = _build(Config, tree, "")
    _validate(config)
    return config


def autoencoder_from_dict(tree: Mapping[str, Any]) -> AutoencoderConfig:
    """The part of a configuration that a trained hyper-representation carries with it."""
    return _build(AutoencoderConfig, tree, "autoencoder.")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary -> {"a.b.c": value}; used to validate and to print differences."""
    fields = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = tuple(value) if isinstance(value, list) else value
    return fields


def _build(cls: type, tree: Mapping[str, Any], prefix: str) -> Any:
    types = typing.get_type_hints(cls)
    for name in tree:
        if name not in types:
            raise unknown("config field", prefix + name, (prefix + field for field in types))
    values = {}
    for name, value in tree.items():
        kind = types[name]
        if dataclasses.is_dataclass(kind):
            values[name] = _build(kind, value, f"{prefix}{name}.")
        else:
            values[name] = _convert(kind, value, prefix + name)
    return cls(**values)


def _convert(kind: Any, value: Any, field: str) -> Any:
    error = HyperJaxError(f"config field {field}: got {value!r}, expected {kind}")
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise error
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, entry, field) for entry in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise error
    return value


def _validate(config: Config) -> None:
    fields = flat(to_dict(config))
    for field, choices in _CHOICES.items():
        if fields[field] not in choices:
            raise unknown(f"value of config field {field}", fields[field], choices)
    for field, value in fields.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not value >= 0 or (value == 0 and field not in _MAY_BE_ZERO):
            least = "at least 0" if field in _MAY_BE_ZERO else "positive"
            raise HyperJaxError(f"config field {field}: got {value}, expected {least}")
        if field in _AT_MOST_ONE and value > 1:
            raise HyperJaxError(f"config field {field}: got {value}, expected at most 1")
    split = config.zoo.split
    if len(split) != 3 or min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise HyperJaxError(
            f"config field zoo.split: got {split}, expected three shares that sum to 1"
        )
    if config.autoencoder.dim % config.autoencoder.heads:
        raise HyperJaxError("config field autoencoder.dim: must be a multiple of autoencoder.heads")
    _validate_relations(config)


def _validate_relations(config: Config) -> None:
    """What no single field can say."""
    zoo, autoencoder, epochs = config.zoo, config.autoencoder, config.evaluation.epochs
    if config.seed >= 2**32:
        raise HyperJaxError(f"config field seed: got {config.seed}, expected less than 2**32")
    if zoo.num_members < 3:
        raise HyperJaxError("config field zoo.num_members: a split needs at least 3 members")
    if config.samplers.neigh.neighbors < 2:
        raise HyperJaxError("config field samplers.neigh.neighbors: got 1, expected at least 2")
    if autoencoder.select == "accuracy" and not autoencoder.eval_models:
        raise HyperJaxError("config field autoencoder.select: accuracy needs eval_models > 0")
    if autoencoder.kl and autoencoder.tanh:
        raise HyperJaxError(
            f"config field autoencoder.kl: got {autoencoder.kl}, but a variational autoencoder's "
            "latents cannot be bounded: its prior is N(0, 1); expected autoencoder.tanh=False"
        )
    low, high = (*autoencoder.augment.erase_scale, 0, 0)[:2]
    if len(autoencoder.augment.erase_scale) != 2 or not 0 <= low <= high <= 1:
        raise HyperJaxError(
            "config field autoencoder.augment.erase_scale: expected two shares, low to high"
        )
    if min(config.evaluation.ensemble_sizes, default=0) < 1:
        raise HyperJaxError("config field evaluation.ensemble_sizes: expected numbers of models")
    if config.evaluation.points < 2:
        raise HyperJaxError("config field evaluation.points: got 1, expected at least the 2 ends")
    levels = config.evaluation.noise_levels
    if levels[:1] != (0,) or list(levels) != sorted(set(levels)) or not levels[-1] < math.inf:
        raise HyperJaxError(
            f"config field evaluation.noise_levels: got {levels}, expected rising levels from 0"
        )
    for field, values in (("evaluation.epochs", epochs), ("zoo.snapshots", zoo.snapshots),
                          ("autoencoder.epochs_seen", autoencoder.epochs_seen)):  # fmt: skip
        if list(values) != sorted(set(values)) or min(values, default=0) < 0:
            raise HyperJaxError(f"config field {field}: got {values}, expected rising epochs")
    missing = set(autoencoder.epochs_seen) - set(zoo.snapshots)
    if zoo.snapshots and (missing or max(zoo.snapshots) != zoo.epochs):
        raise HyperJaxError(
            "config field zoo.snapshots: must hold autoencoder.epochs_seen and end with "
            f"zoo.epochs = {zoo.epochs}"
        )
    late = [e for e in config.autoencoder.epochs_seen if not 0 <= e <= config.zoo.epochs]
    if late or not config.autoencoder.epochs_seen:
        raise HyperJaxError(
            f"config field autoencoder.epochs_seen: got {config.autoencoder.epochs_seen}, "
            f"expected epochs between 0 and zoo.epochs = {config.zoo.epochs}"
        )
    if 0 not in config.evaluation.epochs:
        raise HyperJaxError(
            "config field evaluation.epochs: must contain 0, the samples as decoded"
        )
