"""A zoo of others, whatever its form: what is known of it, and how to read one network of it.

A source knows its members by name and reads one network at a time; nothing of it stays in memory.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.exchange import state_dict
from hyperjax.exchange.state_dict import Layout

Metrics = dict[str, dict[int, float]]  # name of ours -> epoch -> value


class Source(NamedTuple):
    """Networks on disk.

    Attributes:
      form: what kind of folder or file it is, in words.
      members: names, in order.
      epochs: snapshots that a member may have, rising.
      read: the network of (row of a member, epoch) as a vector float32[D]; raises HyperJaxError.
      metrics: what is known of a member, by its row.
      layout: the architecture, and how its tensors are named.
      moments: like `read`, Adam's second moments float32[D]; None: there are none, or nobody asks.
    """

    form: str
    members: tuple[str, ...]
    epochs: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    metrics: Callable[[int], Metrics]
    layout: Layout
    moments: Callable[[int, int], np.ndarray] | None = None


class Wanted(NamedTuple):
    """What a user says of a source that it does not say itself."""

    activation: str
    image_size: tuple[int, int] | None = None
    model: str = ""
    epochs: tuple[int, ...] = ()  # of the snapshots; empty: all
    moments: bool = False  # whether second moments are to come along


def chosen_epochs(there: Iterable[int], wanted: Wanted, path: Path) -> tuple[int, ...]:
    """The snapshots to take, rising. Raises HyperJaxError for those that no member has."""
    there = set(there)
    missing = sorted(set(wanted.epochs) - there)
    if missing:
        raise HyperJaxError(f"{path}: no snapshots of epochs {missing}; it has {sorted(there)}")
    return tuple(sorted(set(wanted.epochs) or there))


def layout_of(path: Path, tensors: Mapping[str, np.ndarray], wanted: Wanted) -> Layout:
    """The architecture of a first network, from `path`, which errors name."""
    try:
        return state_dict.spec_of(
            tensors, activation=wanted.activation, image_size=wanted.image_size, model=wanted.model
        )
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: {error}") from error
