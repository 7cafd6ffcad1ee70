"""HyperJAX: hyper-representations as generative models of neural network weights.

    import hyperjax as hj

    run = hj.load("runs/digits")             # a workdir of train.py
    networks = hj.draw(run, "joint30", n=100)

Every name of `__all__` is imported when it is first used: `import hyperjax` imports no library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperjax.api import *  # noqa: F403

__version__ = "0.2.0"
_PUBLIC = (
    "AutoencoderConfig",
    "Config",
    "Denoiser",
    "DenoiserConfig",
    "HyperJaxError",
    "HyperRep",
    "Images",
    "LayerSpec",
    "Network",
    "Run",
    "TrainingConfig",
    "WeightSpec",
    "Zoo",
    "ZooConfig",
    "align",
    "align_zoo",
    "architecture",
    "decode",
    "denoise",
    "draw",
    "encode",
    "export",
    "finetune",
    "fit_denoiser",
    "fit_hyperrep",
    "flatten",
    "from_pretrained",
    "import_zoo",
    "load",
    "load_images",
    "network",
    "novelty",
    "push_to_hub",
    "read_zoo",
    "reconstruct",
    "samplers",
    "save_pretrained",
    "spec_of",
    "train_models",
    "train_zoo",
    "unflatten",
    "update_batch_norm",
    "write_zoo",
)
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hyperjax' has no attribute {name!r}")
    if name == "samplers":
        return importlib.import_module("hyperjax.samplers")
    return getattr(importlib.import_module("hyperjax.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
