"""Generated weights in architectures that the hyper-representation has not seen (paper table 4)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hyperjax.analysis import statistics
from hyperjax.analysis.comparisons import at_epochs
from hyperjax.analysis.statistics import Comparison, Summary
from hyperjax.models import variants
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo

RANDOM = "random"  # the population that is initialised as the target's zoo


class Population(NamedTuple):
    """One row of the table."""

    accuracy: dict[int, np.ndarray]  # float32[M] on test images, by epoch; NaN: diverged
    summary: dict[int, Summary]


class Pair(NamedTuple):
    """Two populations of one architecture at one epoch."""

    architecture: str
    epoch: int
    name: str
    against: str
    comparison: Comparison


class Unseen(NamedTuple):
    populations: dict[str, dict[str, Population]]  # by architecture and name
    comparisons: list[Pair]  # Holm-corrected over the whole table


def shuffled(name: str) -> str:
    return f"{name}, shuffled"


def starts(
    key: Key,
    source: WeightSpec,
    target: WeightSpec,
    populations: Mapping[str, Array],
    *,
    rule: str,
    init: str,
    control: str,
) -> dict[str, np.ndarray]:
    """Initial weights float32[N, D'] in an architecture `target`, from networks of the zoo's.

    Args:
      key: of the random weights, which all populations share where they have any.
      source: layout of the zoo CNN.
      target: layout of one of `hyperjax.models.variants`.
      populations: zoo CNNs float32[N, D] by name, the same N for all.
      rule: how they are assigned, one of `hyperjax.models.variants.RULES`.
      init: the target's initialisation.
      control: the population of which two variations are made: assigned and then shuffled within
        each layer, which keeps the weights' scale and nothing else; and, where rules differ,
        assigned by the other rule.
    """
    count = len(populations[control])
    key_random, key_shuffle = jax.random.split(key)
    keys = jax.random.split(key_random, count)
    random = np.asarray(_random(target, init, keys))
    found = {RANDOM: random}
    for name, vectors in populations.items():
        found[name] = variants.assign(rule, source, target, vectors, random)
    seed = int(jax.random.bits(key_shuffle))
    found[shuffled(control)] = variants.shuffle(seed, target, found[control])
    for other in variants.RULES:
        vectors = variants.assign(other, source, target, populations[control], random)
        if not np.array_equal(vectors, found[control]):
            found[f"{control}, {other}"] = vectors
    return found


def compare(
    populations: Mapping[str, Mapping[str, Zoo]],
    epochs: Sequence[int],
    *,
    bootstrap: int,
    seed: int,
) -> Unseen:
    """Summarise fine-tuned populations, by architecture and name, at `epochs`.

    Each is compared with random initialisation, and with its shuffled weights where these are
    there. One family of tests: their p-values are corrected over the whole table.
    """
    rows = {
        architecture: {
            name: Population(*at_epochs(models, epochs, bootstrap=bootstrap, seed=seed))
            for name, models in members.items()
        }
        for architecture, members in populations.items()
    }
    pairs = [
        Pair(architecture, epoch, name, against, compared)
        for architecture, members in rows.items()
        for epoch in members[RANDOM].accuracy
        for name, against, compared in _compare(members, epoch)
    ]
    mwu = statistics.holm([pair.comparison.mwu_p for pair in pairs])
    welch = statistics.holm([pair.comparison.welch_p for pair in pairs])
    corrected = [
        pair._replace(
            comparison=dataclasses.replace(pair.comparison, mwu_p=float(p), welch_p=float(q))
        )
        for pair, p, q in zip(pairs, mwu, welch, strict=True)
    ]
    return Unseen(rows, corrected)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _random(spec: WeightSpec, init: str, keys: Key) -> Array:
    return jax.vmap(lambda key: variants.init_vector(spec, init, key))(keys)


def _compare(
    members: Mapping[str, Population], epoch: int
) -> Iterator[tuple[str, str, Comparison]]:
    for name, row in members.items():
        for against in (RANDOM, shuffled(name)):
            if against in members and against != name:
                other = members[against].accuracy[epoch]
                yield name, against, statistics.compare(row.accuracy[epoch], other)
