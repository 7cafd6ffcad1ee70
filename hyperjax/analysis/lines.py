"""Are hyper-representations robust to noise on their latents, and smooth
along lines between them? With the same lines in weight space as baseline
(paper figure 3)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hyperjax import hyperrep
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.types import Array, Key

WEIGHTS = "weights"  # the space of the aligned weights themselves
TRAJECTORY = "trajectory"  # from an early to a late snapshot of one member


class Robustness(NamedTuple):
    """Held-out members, decoded from latents with noise."""

    accuracy: np.ndarray  # float32[M, levels], on test images
    r2: np.ndarray  # float64[M, levels]: a member's share of R², which is their mean
    origin: float  # accuracy of the latent that is zero everywhere, decoded


class Smoothness(NamedTuple):
    levels: np.ndarray  # float64[levels]: length of the noise, relative to the latent's
    positions: np.ndarray  # float64[points], from 0 to 1 along a line
    robustness: dict[str, Robustness]  # by hyper-representation
    lines: dict[tuple[str, str], np.ndarray]  # (lines, space): accuracy float32[N, points]


def smoothness(
    hyperreps: Mapping[str, HyperRep],
    members: Mapping[str, Array],
    trajectories: Array | None,
    mean: Array,
    task: Task,
    *,
    levels: Sequence[float],
    pairs: int,
    points: int,
    key: Key,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> Smoothness:
    """Paper section 4.2.1, on test images.

    Noise is Gaussian, independent in every dimension, and a member's has an expected squared
    length of (level x its latent's length)²; the same draws serve every level. Latents are not
    cut off at the range of the tanh.

    Args:
      hyperreps: the hyper-representations by name, of which noise and lines are decoded.
      members: float32[M, D] by name of the part, aligned. Noise is put on "heldout".
      trajectories: float32[N, 2, D], an early and a late snapshot of members, aligned; or None.
      mean: float32[D], the train members' mean, which R² is relative to.
      levels: of noise.
      pairs: lines between members of each part, at most; drawn without replacement.
      points: on a line, its ends included.
      key: of noise and pairs.
      advance: told of each space that is done.
    """
    key_noise, key_pairs = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_pairs)))
    ends = {name: vectors[random_pairs(len(vectors), pairs, rng)] for name, vectors in
            members.items() if len(vectors) > 1}  # fmt: skip
    if trajectories is not None:
        ends = {TRAJECTORY: trajectories} | ends
    robustness, lines = {}, {}
    for name, model in hyperreps.items():
        latents = hyperrep.encode(model, members["heldout"], aligned=True)
        noisy = with_noise(latents, levels, key_noise)
        stacks = {"noise": noisy, "origin": np.zeros_like(latents[:1])}
        stacks |= {part: line(*encoded_ends(model, e), points) for part, e in ends.items()}
        decoded = {part: hyperrep.decode(model, stack) for part, stack in stacks.items()}
        accuracy = _accuracy(task, decoded)
        robustness[name] = Robustness(
            accuracy.pop("noise"),
            shares_of_r2(model, decoded["noise"], members["heldout"], mean),
            float(accuracy.pop("origin")[0]),
        )
        lines |= {(part, name): values for part, values in accuracy.items()}
        advance(1, name)
    straight = {part: line(e[:, 0], e[:, 1], points) for part, e in ends.items()}
    if straight:
        lines |= {(part, WEIGHTS): a for part, a in _accuracy(task, straight).items()}
    advance(1, WEIGHTS)
    return Smoothness(np.asarray(levels), np.linspace(0, 1, points), robustness, lines)


def random_pairs(count: int, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """At most `pairs` different pairs of different numbers below `count`, int64[pairs, 2]."""
    total = count * (count - 1) // 2
    chosen = rng.choice(total, min(pairs, total), replace=False)
    # Every pair is its first member and a distance, going round, of at most half the circle.
    first, distance = chosen % count, chosen // count + 1
    return np.stack([first, (first + distance) % count], axis=1)


def with_noise(latents: Array, levels: Sequence[float], key: Key) -> np.ndarray:
    """Latents f[M, Z] with noise of each level, float32[M, levels, Z]."""
    noise = np.asarray(jax.random.normal(key, latents.shape))
    size = np.sqrt(np.mean(latents**2, axis=1))
    scale = np.asarray(levels, np.float32)[None, :, None] * size[:, None, None]
    return latents[:, None] + scale * noise[:, None]


def line(starts: Array, ends: Array, points: int) -> np.ndarray:
    """Evenly spaced points from f[N, F] to f[N, F], float32[N, points, F]."""
    t = np.linspace(0, 1, points, dtype=np.float32)[None, :, None]
    return (1 - t) * starts[:, None] + t * ends[:, None]


def encoded_ends(model: HyperRep, ends: Array) -> tuple[np.ndarray, np.ndarray]:
    """Latents of both ends float32[N, 2, D] of lines."""
    latents = hyperrep.encode(model, ends.reshape(-1, ends.shape[-1]), aligned=True)
    return latents[::2], latents[1::2]


def shares_of_r2(model: HyperRep, decoded: Array, vectors: Array, mean: Array) -> np.ndarray:
    """What each member contributes to R²: decoded f[M, L, D] against f[M, D] -> float64[M, L].

    1 - its normalised squared error / the mean one of predicting `mean`. The mean over members
    is the R² of `losses.r_squared`.
    """
    scale = np.asarray(losses.slot_scale(model.spec, model.statistics.layer_std), np.float64)
    errors = np.sum(((decoded - vectors[:, None]) / scale) ** 2, axis=-1)
    return 1 - errors / np.mean(np.sum(((vectors - mean) / scale) ** 2, axis=-1))


def barrier(accuracy: Array) -> np.ndarray:
    """How far accuracies f[N, points] along lines fall below straight lines between those of
    their ends, at most: f[N], 0 if they never do."""
    return np.max(line(accuracy[:, :1], accuracy[:, -1:], accuracy.shape[1])[..., 0] - accuracy, 1)


def fluctuation(accuracy: Array) -> np.ndarray:
    """Ups and downs of accuracies f[N, points] along lines: the sum of all changes, less the
    difference of the ends. f[N], 0 for a monotone course, twice the depth for a single dip."""
    changes = np.abs(np.diff(accuracy, axis=1)).sum(axis=1)
    return changes - np.abs(accuracy[:, -1] - accuracy[:, 0])


def _accuracy(task: Task, stacks: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Test accuracy of networks f[..., D], in one pass over all stacks: float32[...] each."""
    flat = [stack.reshape(-1, stack.shape[-1]) for stack in stacks.values()]
    accuracy = evaluation.evaluate(task, np.concatenate(flat), task.test).accuracy
    parts = np.split(accuracy, np.cumsum([len(part) for part in flat])[:-1])
    return {
        name: part.reshape(stack.shape[:-1])
        for (name, stack), part in zip(stacks.items(), parts, strict=True)
    }
