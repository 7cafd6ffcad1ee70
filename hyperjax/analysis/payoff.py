"""What a sampled model costs against one trained from scratch, and when the zoo and the
hyper-representation have paid for themselves."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hyperjax.zoo import Zoo, test_accuracy


class Stage(NamedTuple):
    """One part of the work."""

    name: str
    models: int  # how many it makes or treats; 0: none
    seconds: float
    flops: float  # of the mathematics (`hyperjax.cost`); NaN: not counted
    origin: str  # of the seconds: recorded, measured or estimated


class Payoff(NamedTuple):
    """A sampled model after some epochs of fine-tuning, against equally accurate training."""

    population: str
    epochs: int  # of fine-tuning
    accuracy: float  # mean test accuracy
    seconds: float  # per model: drawing and fine-tuning
    scratch_epochs: int  # after which training from scratch is as accurate
    reached: bool  # False: it never is, and `scratch_epochs` are all there are
    scratch_seconds: float  # per model
    models: float  # from so many on, sampling has been cheaper in all; infinite: never


def payoffs(
    populations: Mapping[str, Zoo],
    scratch: Zoo,
    *,
    setup_seconds: Mapping[str, float],
    draw_seconds: Mapping[str, float],
    epoch_seconds: float,
) -> list[Payoff]:
    """Every population at every epoch of fine-tuning that it has.

    Args:
      populations: drawn and fine-tuned, by name.
      scratch: the same architecture trained from scratch.
      setup_seconds: of what has to be there before each population's first sample.
      draw_seconds: of drawing one model of each population, or of decoding it.
      epoch_seconds: of training one model for one epoch.
    """
    trained = mean_accuracy(scratch)
    found = []
    for name, models in populations.items():
        for epoch, accuracy in mean_accuracy(models).items():
            needed = equal_accuracy(trained, accuracy)
            epochs = max(trained) if needed is None else needed
            each, other = draw_seconds[name] + epoch * epoch_seconds, epochs * epoch_seconds
            after = break_even(setup_seconds[name], each, other)
            reached = needed is not None
            found.append(Payoff(name, epoch, accuracy, each, epochs, reached, other, after))
    return found


def mean_accuracy(models: Zoo) -> dict[int, float]:
    """Mean test accuracy at every snapshot, diverged members aside."""
    return {int(e): float(np.nanmean(test_accuracy(models, int(e)))) for e in models.epochs}


def equal_accuracy(by_epoch: Mapping[int, float], accuracy: float) -> int | None:
    """The first epoch at which the accuracy is reached; None if it never is."""
    return next((e for e, value in sorted(by_epoch.items()) if value >= accuracy), None)


def break_even(setup: float, each: float, other: float) -> float:
    """After how many models `setup` + models x `each` is no more than models x `other`."""
    return math.ceil(setup / (other - each)) if other > each else math.inf
