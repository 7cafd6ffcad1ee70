"""Named streams of random numbers, all from the one seed of a configuration."""

import enum

import jax

from hyperjax.types import Key


class Stream(enum.IntEnum):
    """What randomness is for. Numbers never change: they are part of every result."""

    ZOO = 0
    HYPERREP = 1
    SAMPLES = 2
    FINETUNING = 3
    EXPERIMENTS = 4  # folded once more, with a number of each experiment's own


def root_key(seed: int, stream: Stream) -> Key:
    return jax.random.fold_in(jax.random.key(seed), int(stream))
