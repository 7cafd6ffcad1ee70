"""The configuration of a run: frozen, validated dataclasses.

`configs/*.py` build ml_collections trees from these defaults; `from_dict` turns such a tree back
into a `Config` at the border. A function takes the part that it needs. Every field has a default of
its own type, so that every field can be overridden on the command line, and says beside it what it
may be: one of some names, or a number of a range. A number without a range has to be positive.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from hyperjax import config_rules
from hyperjax.config_rules import VARIANTS as VARIANTS
from hyperjax.errors import HyperJaxError, unknown


def _one_of(default: str, *others: str) -> Any:
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


def _number(default: float, low: float = 0, high: float = math.inf) -> Any:
    """A number in [low, high]."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def _share(default: float) -> Any:
    return _number(default, 0, 1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How zoo networks are trained and fine-tuned (method of the published zoos)."""

    # adam: L2 added to the gradient; adamw: decoupled; sgd: momentum 0.9
    optimizer: str = _one_of("adam", "adamw", "sgd")
    learning_rate: float = 3e-4
    weight_decay: float = _number(0.0)
    batch_size: int = 10


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """A population of networks that differ only by seed."""

    # a zoo file, or networks of others (see `hyperjax import`), in place of training any
    path: str = ""
    # cnn, cnn3, unterthiner, mlp, module:function (models/architectures.py); "": as imported
    model: str = "cnn"
    widths: tuple[int, ...] = (32,)  # of the hidden layers of mlp
    num_members: int = _number(1000, 3)
    epochs: int = 50
    activation: str = _one_of("tanh", "relu", "leakyrelu", "sigmoid", "silu", "gelu")
    init: str = _one_of(
        "uniform", "normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform",
        "xavier_normal", "torch_default",
    )  # fmt: skip
    training: TrainingConfig = TrainingConfig()
    split: tuple[float, ...] = (0.7, 0.15, 0.15)  # of members: train, validation, test
    snapshots: tuple[int, ...] = ()  # epochs kept, with their metrics; empty: all
    # after which of these test images are evaluated: of a large zoo they cost as much as training
    tested: str = _one_of("every", "last")
    save_moments: bool = False  # keep Adam's second moments of each snapshot, as large as weights
    repair: bool = False  # train members anew whose part of the zoo file is damaged
    # how members are computed; nothing of this changes them
    conv: str = _one_of("auto", "tiles", "patches", "xla")  # see models/conv.py
    mapping: str = _one_of("auto", "map", "vmap")  # one after another (CPU), or all at once
    chunk_size: int = _number(0)  # members trained together; 0: chosen from the memory at hand


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentations of weight vectors: mixed first, then permuted, then noise and erasing."""

    permute: bool = False  # fresh random neuron permutations (and symmetric signs) per view
    mix: float = _share(0.0)  # probability of mixing with another aligned member
    noise: float = _number(0.0)  # Gaussian noise, in the autoencoder's input units (see `scale`)
    erase: float = _share(0.5)  # probability of erasing one contiguous block


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """The network on a network's graph (`hyperjax.models.graph`)."""

    edge_dim: int = 64
    edge_hidden: int = 128
    node_dim: int = 128
    node_hidden: int = 256
    heads: int = 4
    rounds: int = 4
    condition_dim: int = 64  # of the noise level's embedding
    equivariant: bool = False  # no positions of hidden neurons: commutes with their symmetries
    dtype: str = _one_of("float32", "bfloat16")  # of the factors of products; sums are float32


@dataclasses.dataclass(frozen=True)
class ArchitectureConfig:
    """The autoencoder (paper section 3, appendix B): all that its modules depend on."""

    # tokens: attention over neurons, as in the paper; graph: messages between them
    network: str = _one_of("tokens", "graph")
    dim: int = 800  # this and the next three: of tokens
    heads: int = 4
    mlp_dim: int = 900
    blocks: int = 2
    graph: GraphConfig = GraphConfig()  # of a graph
    latent: int = 700
    dropout: float = _number(0.1, 0, 0.99)  # of tokens too; so is the next
    compression: str = _one_of("token", "linear")  # what the bottleneck reads: one token, or all
    tanh: bool = True  # bound the latents to (-1, 1)
    linear_path: bool = True  # a linear encoder and decoder beside the attention, from PCA
    variational: bool = False  # a VAE: the encoder gives a Gaussian
    projection_layers: int = _number(4)
    projection_hidden: int = 400
    projection_dim: int = 50
    dtype: str = _one_of("float32", "bfloat16")  # of the activations; parameters stay float32


@dataclasses.dataclass(frozen=True)
class WeightDataConfig:
    """The weights that the autoencoder is given."""

    epochs_seen: tuple[int, ...] = (21, 22, 23, 24, 25)  # snapshots of each train member
    align: bool = True  # align all members to one reference before training
    center: bool = True  # encode and decode the difference to the train members' mean
    scale: bool = True  # encode and decode in units of each layer's standard deviation
    augment: AugmentConfig = AugmentConfig()


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """loss = beta * reconstruction + (1 - beta) * contrast (paper section 3)."""

    lwln: bool = True  # layer-wise loss normalisation (paper section 3.1)
    beta: float = _share(0.9)
    temperature: float = 0.1
    target: str = _one_of("original", "view")  # of the reconstruction: denoising, or as published
    kl: float = 1.0  # of a VAE: variance of its decoder's noise, in the loss's units


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """How the autoencoder is trained, and which of its steps is kept."""

    optimizer: str = _one_of("adamw", "muon")  # muon: of the matrices inside, adamw of the others
    steps: int = _number(27_500)
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = _number(1e-9)
    schedule: str = _one_of("cosine", "constant")  # after a linear warm-up; cosine: to zero
    warmup_steps: int = _number(100)
    clip_norm: float = _number(1.0)  # 0: no clipping
    eval_every: int = 500  # steps between validations
    eval_models: int = _number(200)  # of each part, to validate autoencoders; 0: all, not on images
    select: str = _one_of("loss", "last")  # keep the step of least validation loss, or the last


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The hyper-representation."""

    architecture: ArchitectureConfig = ArchitectureConfig()
    data: WeightDataConfig = WeightDataConfig()
    loss: LossConfig = LossConfig()
    training: OptimizationConfig = OptimizationConfig()
    # views a device computes at once; 0: what suits its cache; all where it draws random numbers
    micro_batch: int = _number(0)
    # trained beside it, with all else equal: lwln or no_lwln (its twin), vae
    variants: tuple[str, ...] = ("no_lwln",)


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """The denoiser of weights, by which the diffusion samplers draw (`hyperjax.diffusion`)."""

    graph: GraphConfig = GraphConfig()
    snapshots: int = 1  # of each train member, the last of autoencoder.data.epochs_seen
    folds: int = 8  # of members; each is shown with the Wiener denoiser of the others. 1: with all
    shrink: bool = True  # the covariance of the Wiener denoiser: least error on unseen members
    sigma_min: float = 0.1  # noise levels seen in training, in layer standard deviations
    sigma_max: float = 3.0
    unconditional: float = _share(0.2)  # share of examples that are shown without their quality
    average: float = _share(0.999)  # decay of the parameters' moving average, which is used
    micro_batch: int = _number(0)  # examples a device computes at once; 0: what suits its cache
    training: OptimizationConfig = OptimizationConfig(
        steps=0, batch_size=64, learning_rate=1e-3, weight_decay=1e-2, warmup_steps=200
    )


@dataclasses.dataclass(frozen=True)
class NeighConfig:
    """UMAP, by which `neigh` embeds the latents; the paper's values."""

    neighbors: int = _number(15, 2)  # fewer where there are fewer anchors
    min_dist: float = _share(0.01)


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
    penalty: float = _number(0.05)  # on the discriminator's slope, for each latent dimension
    average: float = _share(0.995)  # decay of the generator's moving average; 0: none


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """How `diffusion` and `refine:` go from noise to networks, see `hyperjax.diffusion.sampling`;
    noise levels are in layer standard deviations."""

    steps: int = 40  # from sigma_max to sigma_min
    sigma_max: float = 3.0
    sigma_min: float = 0.6  # whose expected clean weights are the sample
    deterministic: bool = False  # the probability flow in place of ancestral steps
    # of ancestral steps' noise, in standard deviations: below 1 less varied and more accurate
    temperature: float = _number(1.0)
    refine_sigma: float = 1.5  # to which `refine:` noises
    polish_sigma: float = 1.0  # to which each round of `polish:` noises
    polish_rounds: int = 4
    guidance: float = _number(1.0)  # of the quality; 1: conditional, more: beyond it


@dataclasses.dataclass(frozen=True)
class SamplersConfig:
    """Settings of the samplers; see `hyperjax.samplers`."""

    # of the train models, by validation accuracy: the `...30` samplers
    best_fraction: float = _number(0.3, 1e-6, 1)
    kde_bandwidth: float = 0.002
    # of each dimension's range, where density is lowest
    counterfactual_fraction: float = _number(0.1, 1e-6, 1)
    joint_bandwidth: float = _share(0.4)  # 0: replay of anchors, 1: a full Gaussian
    neigh: NeighConfig = NeighConfig()
    gan: GanConfig = GanConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    # what `repair:` runs networks on: draws by two stored moments, or training images themselves
    repair_inputs: str = _one_of("moments", "images")
    average_of: int = 2
    noise_scale: float = _number(0.2)  # in units of each layer's standard deviation
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
    assign: str = _one_of("transplant", "refill")  # of weights to unseen architectures
    unseen_models: int = 50  # models per population of each unseen architecture, at most
    ensemble_sizes: tuple[int, ...] = tuple(range(1, 16))  # numbers of models
    ensemble_draws: int = 15  # random ensembles of each size
    noise_levels: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)  # on latents
    pairs: int = 250  # of members that are interpolated, at most
    points: int = _number(11, 2)  # on an interpolation, its ends included
    probe_snapshots: int = 10  # of each member, on which probes are fitted and judged, at most
    probe_members: int = 1000  # likewise, at most
    scaling_members: tuple[int, ...] = (140, 400, 1200, 4000, 10_000)  # as far as there are so many
    scaling_steps: int = _number(0)  # of each denoiser; 0: as many as the workdir's own
    scaling_seeds: int = 3  # of sizes up to a third of the members; 1 of larger ones


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: images, zoo, hyper-representation, samplers, evaluation."""

    seed: int = _number(0, 0, 2**32 - 1)
    dataset: str = "mnist"  # "": no images, of a zoo that was trained elsewhere
    data_dir: str = "data"
    image_size: int = _number(28, 1)  # height and width to which images are brought
    num_train: int = _number(0)  # training images; 0: all that validation leaves
    num_val: int = 10_000  # validation images, drawn from the official training split
    # of the operands of layers' products, whose sums are float32: faster below float32 where the
    # processor multiplies it (tensorfloat32: on GPUs alone); see models/product.py
    matmul_precision: str = _one_of("float32", "tensorfloat32", "bfloat16")
    checkpoint_seconds: float = _number(30.0)  # least time between checkpoints of a running stage
    zoo: ZooConfig = ZooConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    samplers: SamplersConfig = SamplersConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


Part = typing.TypeVar("Part")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary of a configuration, or of a part of one; the inverse of `build`."""
    return dataclasses.asdict(config)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Build and validate a Config. Raises HyperJaxError naming the field that is wrong."""
    config = build(Config, tree)
    config_rules.check_zoo(config)
    config_rules.check_autoencoder(config)
    config_rules.check_denoiser(config)
    config_rules.check_evaluation(config.evaluation)
    return config


def build(cls: type[Part], tree: Mapping[str, Any], prefix: str = "") -> Part:
    """A part of a configuration from a nested dictionary; what is missing has its default.

    Raises HyperJaxError naming the field, after `prefix`, that is unknown or out of range.
    """
    types, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for name, value in tree.items():
        if name not in fields:
            raise unknown("config field", prefix + name, (prefix + field for field in fields))
        if dataclasses.is_dataclass(types[name]):
            if not isinstance(value, Mapping):
                raise HyperJaxError(f"config field {prefix}{name}: got {value!r}, expected fields")
            values[name] = build(types[name], value, f"{prefix}{name}.")
        else:
            values[name] = _convert(types[name], value, prefix + name)
            _check(fields[name], values[name], prefix + name)
    return cls(**values)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary -> {"a.b.c": value}; used to print differences."""
    fields = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = tuple(value) if isinstance(value, list) else value
    return fields


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`. Raises HyperJaxError if a value is said to have fields."""
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        inner, (*parts, name) = tree, path.split(".")
        for part in parts:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise HyperJaxError(f"config field {path}: {part} has no fields of its own")
        inner[name] = value
    return tree


def override(config: Config, fields: Mapping[str, Any]) -> Config:
    """A configuration with the fields {"a.b.c": value} replaced, and validated again."""
    return from_dict(nested(flat(to_dict(config)) | fields))


def differences(ours: Any, theirs: Any) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configurations of one type differ, with both values."""
    one, other = flat(to_dict(ours)), flat(to_dict(theirs))
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


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


def _check(field: dataclasses.Field, value: Any, name: str) -> None:
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise unknown(f"value of config field {name}", value, choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if "range" not in field.metadata:
        if not 0 < value < math.inf:
            raise HyperJaxError(f"config field {name}: got {value}, expected positive")
        return
    low, high = field.metadata["range"]
    if not low <= value <= high or value == math.inf:
        expected = f"at least {low:g}" + (f" and at most {high:.12g}" if high < math.inf else "")
        raise HyperJaxError(f"config field {name}: got {value}, expected {expected}")
