"""Named streams of random numbers, all from the one seed of a configuration."""

import enum

import jax
import numpy as np

from hyperjax.types import Key


class Stream(enum.IntEnum):
    """What randomness is for. Numbers never change: they are part of every result."""

    ZOO = 0
    HYPERREP = 1
    SAMPLES = 2
    FINETUNING = 3
    EXPERIMENTS = 4  # folded once more, with a number of each experiment's own
    DENOISER = 5
    REPAIR = 6


# Likewise for ever; a new experiment takes a new number.
_EXPERIMENTS = {
    "fig3": 3, "fig6": 6, "novelty": 7, "cost": 9, "figD": 11, "vae": 14, "denoiser": 15,
    "scaling": 16,
    "tab4": 44,
}  # fmt: skip


def root_key(seed: int, stream: Stream) -> Key:
    return jax.random.fold_in(jax.random.key(seed), int(stream))


def experiment_key(seed: int, name: str) -> Key:
    """The key of an experiment's own randomness."""
    return jax.random.fold_in(root_key(seed, Stream.EXPERIMENTS), _EXPERIMENTS[name])


def copied(key: Key) -> Key:
    """The same key in a buffer of its own, bound to no device of a mesh."""
    bits = np.array(jax.random.key_data(key))
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))
