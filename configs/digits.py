"""The 1,797 handwritten digits inside scikit-learn: the whole pipeline in minutes, no download.

    python train.py --config=configs/digits.py --workdir=runs/digits

A small data set needs its own optimiser settings: with those of the published zoos its members
would never forget their initial weights, and there would be nothing to learn from them.
"""

from hyperjax.app import presets
from hyperjax.config import Config

SMALL = presets.small(Config(dataset="digits", num_val=200))


def get_config(scale: str = "small"):
    return presets.scaled(SMALL, SMALL, scale)
