"""Zoos for others, and by others."""

import dataclasses
from pathlib import Path

import numpy as np

import hyperjax as hj
from hyperjax.models.architectures import architecture
from hyperjax.zoo import METRICS, Zoo

TORCH = Path(__file__).parent / "golden" / "torch"  # of PyTorch's own torch.save
CNN = architecture("cnn", channels=1, activation="tanh", image_size=(28, 28))
MLP = architecture("mlp", channels=1, activation="relu", image_size=(4, 3), classes=3, widths=(5,))
UNTERTHINER = architecture("unterthiner", channels=1, activation="relu", image_size=(28, 28))
# of the published zoos, without dropout and with it
PLAIN, DROPOUT = (
    tuple((f"module_list.{i}.weight", f"module_list.{i}.bias") for i in numbers)
    for numbers in ((0, 3, 6, 9, 11), (0, 4, 8, 11, 14))
)


def zoo_of(spec, members=4, epochs=(0, 1, 3), seed=0):
    """Random networks with random metrics."""
    rng = np.random.default_rng(seed)
    shape = (members, len(epochs))
    weights = rng.standard_normal((*shape, spec.num_params)).astype(np.float32)
    metrics = {name: rng.random(shape).astype(np.float32) for name in METRICS}
    return Zoo(spec, weights, np.int32(epochs), np.arange(members), metrics)


def moments_of(zoo, seed=1):
    """The same with random second moments."""
    values = np.random.default_rng(seed).random(zoo.weights.shape).astype(np.float32)
    return dataclasses.replace(zoo, second_moments=values)


def corrupted(data: bytes, seed: int) -> bytes:
    """Truncated, or with a few bytes changed, inserted or doubled."""
    rng = np.random.default_rng(seed)
    changed, at = bytearray(data), int(rng.integers(len(data)))
    kind = seed % 4
    if kind == 0:
        return bytes(changed[:at])
    if kind == 1:
        for place in rng.integers(len(data), size=3):
            changed[place] ^= int(rng.integers(1, 256))
    elif kind == 2:
        changed[at:at] = rng.bytes(int(rng.integers(1, 9)))
    else:
        changed[at : at + 16] = changed[:16]
    return bytes(changed)


def imported(path, tmp_path, spec, name="zoo", **settings):
    settings = {"activation": spec.activation, "image_size": spec.image_size} | settings
    return hj.import_zoo(path, tmp_path / f"{name}.safetensors", **settings)
