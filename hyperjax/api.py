"""The public names of `hyperjax`, from the places where they are defined."""

from hyperjax import samplers
from hyperjax.app.import_zoo import import_zoo
from hyperjax.app.populations import draw
from hyperjax.app.run import Run, load
from hyperjax.config import AutoencoderConfig, Config, DenoiserConfig, TrainingConfig, ZooConfig
from hyperjax.data.images import load_images
from hyperjax.diffusion import Denoiser, denoise
from hyperjax.diffusion.fit_denoiser import fit_denoiser
from hyperjax.errors import HyperJaxError
from hyperjax.exchange.export import export
from hyperjax.exchange.hub import from_pretrained, push_to_hub, save_pretrained
from hyperjax.exchange.state_dict import spec_of
from hyperjax.hyperrep import (
    HyperRep,
    align,
    align_zoo,
    decode,
    encode,
    fit_hyperrep,
    reconstruct,
)
from hyperjax.models.architectures import architecture
from hyperjax.population.batch_norm import update_batch_norm
from hyperjax.population.evaluation import Network, network
from hyperjax.population.lockstep import finetune, train_zoo
from hyperjax.store.zoo_file import read as read_zoo
from hyperjax.store.zoo_file import write as write_zoo
from hyperjax.symmetry.nearest import novelty, train_models
from hyperjax.types import Images
from hyperjax.weights import LayerSpec, WeightSpec, flatten, unflatten
from hyperjax.zoo import Zoo
