"""How far networks are from the train models, whatever the order, signs and scales of neurons.

The distance of two networks modulo their symmetries is the smallest Euclidean distance of the
one to any network that computes the same as the other. `alignment` finds it but for the local
optima of a matching, so that distances here are upper bounds, tight for replicas: networks
equal up to symmetry get zero. Positive scales, where they are a symmetry, are balanced first.

A matching to every train model would take hours. Hence networks are first compared as they came
and as aligned to the train models' common reference, which is fast; then the few train models
that are nearest so are aligned to each network itself.

Runs on the host, in time linear in the number of train models and in blocks of them, whatever
their number. Products in float32 choose the few nearest; these are measured again in float64,
for differences of large sums would lose replicas.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hyperjax.symmetry import alignment
from hyperjax.symmetry.alignment import blocks
from hyperjax.types import Array
from hyperjax.weights import WeightSpec

_CANDIDATES = 5  # train members that are aligned to each network
_MIXED = 32  # train members, at most, of whose weighted averages a network may be one
_SPARE = 8  # more than are asked for, to choose from: float32 may mistake the order of equals
_SPACED = 1000  # train members, at most, over which their distances to the others are averaged
_QUERIES = 50  # networks that are compared at a time,
_BLOCK_BYTES = 2**25  # with so much of the train models
_RIDGE = 1e-10  # relative; an average among the points makes their products singular


class TrainModels(NamedTuple):
    """Trajectories of T train members, balanced and aligned to one reference."""

    spec: WeightSpec
    vectors: np.ndarray  # float32[T, E, D]
    reference: np.ndarray  # float32[D]
    spacing: float  # mean distance of last snapshots to the nearest of another member; NaN: none


class Distances(NamedTuple):
    """Of M networks; Euclidean, modulo symmetries."""

    member: np.ndarray  # float64[M]: to the nearest snapshot of a train member
    mixture: np.ndarray  # float64[M]: to the nearest weighted average of train members, if asked


class Neighbours(NamedTuple):
    """The K train members nearest to each of M networks, the nearest first."""

    members: np.ndarray  # int[M, K]
    snapshots: np.ndarray  # int[M, K]: which of each member's is the nearest
    far: np.ndarray  # float64[M, K]: how far that is


def train_models(spec: WeightSpec, trajectories: Array, reference: Array) -> TrainModels:
    """Trajectories float32[T, E, D] in the form that distances are measured in.

    Each is aligned by its last snapshot; where all are aligned already, they are not copied. The
    spacing is that of at most 1,000 members, evenly spaced, to all others.

    >>> train = hj.train_models(zoo.spec, zoo.weights, hr.reference)
    >>> train.spacing > 0
    True
    """
    reference = balanced(spec, np.asarray(reference, np.float32)[None])[0]
    vectors = _aligned(spec, np.asarray(trajectories, np.float32), reference)
    train = TrainModels(spec, vectors, reference, float("nan"))
    if len(vectors) < 2:
        return train
    own = evenly_spaced(len(vectors))
    far = distances(train, vectors[own, -1], own=own, mixtures=False)
    return train._replace(spacing=float(far.member.mean()))


def _aligned(spec: WeightSpec, trajectories: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """As `align_trajectories`, but the trajectories themselves while that changes nothing."""
    aligned = trajectories
    for block in _blocks(len(trajectories), trajectories):
        part = alignment.align_trajectories(spec, trajectories[block], reference)
        if aligned is trajectories and not np.array_equal(part, trajectories[block]):
            aligned = trajectories.copy()
        if aligned is not trajectories:
            aligned[block] = part
    return aligned


def evenly_spaced(members: int) -> np.ndarray:
    """Of so many train members the at most 1,000 by which distances among them are measured."""
    return np.linspace(0, members - 1, min(members, _SPACED)).round().astype(int)


def balanced(spec: WeightSpec, vectors: Array) -> np.ndarray:
    """Vectors float32[M, D] with the scales that make them smallest; as they are for tanh."""
    vectors = np.asarray(vectors)
    return alignment.transformed(spec, alignment.balance(spec, vectors), vectors)


def novelty(train: TrainModels, vectors: Array) -> np.ndarray:
    """Distance of each network float32[M, D] to the nearest train model, in units of the distance
    among those: 0 is a replay, 1 is as new as a network that was trained by itself.

    float64[M], NaN for networks that are not finite, and where train models do not differ.

    >>> train = hj.train_models(zoo.spec, zoo.weights, hr.reference)
    >>> replays = hj.novelty(train, zoo.weights[:, -1])
    >>> replays.shape, bool((replays < 1e-5).all())
    ((4,), True)
    """
    finite = np.isfinite(vectors).all(axis=1)
    found = np.full(len(vectors), np.nan)
    if finite.any() and train.spacing > 0:
        far = distances(train, np.asarray(vectors[finite], np.float32), mixtures=False)
        found[finite] = far.member / train.spacing
    return found


def distances(
    train: TrainModels, vectors: Array, *, own: Array | None = None, mixtures: bool = True
) -> Distances:
    """Distances of networks float32[M, D], all finite, to the train models.

    Args:
      own: int[M], the train member that each network is a snapshot of and is not compared with.
      mixtures: whether distances to averages are wanted; otherwise they are infinite.

    Raises HyperJaxError if the networks do not fit the train models' architecture.
    """
    vectors, own = np.asarray(vectors), None if own is None else np.asarray(own)
    member, mixture = np.empty((2, len(vectors)))
    for block in blocks(len(vectors), _QUERIES):
        others = None if own is None else own[block]
        member[block], mixture[block] = _distances(train, vectors[block], others, mixtures)
    return Distances(member, mixture)


def _distances(
    train: TrainModels, vectors: np.ndarray, own: np.ndarray | None, mixtures: bool
) -> Distances:
    """`distances` of a few networks: as they came, and as aligned to the common reference."""
    frames = np.stack([
        balanced(train.spec, vectors),
        alignment.align(train.spec, vectors, train.reference)[0],
    ])  # fmt: skip
    most = _MIXED if mixtures else _CANDIDATES
    both = nearest_members(
        np.concatenate(frames), train.vectors, most, own=None if own is None else np.tile(own, 2)
    )
    near = Neighbours(*(field.reshape(*frames.shape[:2], -1) for field in both))
    rows, nearer = np.arange(len(vectors)), near.far[:, :, 0].argmin(axis=0)
    chosen = Neighbours(*(field[nearer, rows] for field in near))
    member = np.minimum(chosen.far[:, 0], _to_members(train, frames[nearer, rows], chosen))
    mixture = np.full(len(vectors), np.inf)
    for i in rows if mixtures else ():
        differ = not np.array_equal(*frames[:, i])
        mixture[i] = min(_to_mixture(train, frames[frame, i],
                                     near.members[frame, i], near.snapshots[frame, i])
                         for frame in range(1 + differ))  # fmt: skip
    return Distances(member, np.minimum(mixture, member) if mixtures else mixture)


def _to_members(train: TrainModels, vectors: np.ndarray, near: Neighbours) -> np.ndarray:
    """Distances of networks to their nearest members, aligned to them by their nearest snapshots;
    the first by each of its snapshots, so that a replica of any is recovered exactly."""
    snapshots = np.arange(train.vectors.shape[1])
    members, by = near.members[:, :_CANDIDATES], near.snapshots[:, :_CANDIDATES]
    members = np.concatenate([members, np.repeat(members[:, :1], len(snapshots), 1)], axis=1)
    by = np.concatenate([by, np.tile(snapshots, (len(vectors), 1))], axis=1)
    found = np.empty(members.shape)
    flat, targets = members.ravel(), np.repeat(vectors, members.shape[1], axis=0)
    for block in _blocks(found.size, train.vectors):
        trajectories, goal = train.vectors[flat[block]], targets[block]
        starts = trajectories[np.arange(len(goal)), by.ravel()[block]]
        _, transform = alignment.align_pairs(train.spec, starts, goal)
        moved = alignment.transformed(train.spec, transform, trajectories)
        found.ravel()[block] = _squares(moved - goal[:, None]).min(axis=1)
    return np.sqrt(found.min(axis=1))


def _to_mixture(
    train: TrainModels, vector: np.ndarray, members: np.ndarray, snapshots: np.ndarray
) -> float:
    """Distance to the averages of the nearest members' nearest and last snapshots."""
    near = train.vectors[members, snapshots], train.vectors[members, -1]
    return to_hull(vector, np.concatenate(near))


def nearest_members(
    vectors: Array, trajectories: Array, most: int, *, own: Array | None = None
) -> Neighbours:
    """Of trajectories [T, E, D] the at most `most` that come nearest to each of the vectors [M, D],
    all as they are; with `own` int[M] another than that one."""
    vectors = np.asarray(vectors)
    most = min(most, len(trajectories) - (own is not None))
    chosen = _preselected(vectors, trajectories, most + _SPARE, own)
    members, snapshots = np.empty((2, len(vectors), most), int)
    far = np.empty((len(vectors), most))
    for i, candidates in enumerate(chosen):
        candidates = np.sort(candidates if own is None else candidates[candidates != own[i]])
        difference = trajectories[candidates] - vectors[i].astype(np.float64)
        squares = _squares(difference)
        order = np.argsort(squares.min(axis=1), kind="stable")[:most]
        members[i], snapshots[i] = candidates[order], squares[order].argmin(axis=1)
        far[i] = np.sqrt(squares[order].min(axis=1))
    return Neighbours(members, snapshots, far)


def _preselected(
    vectors: np.ndarray, trajectories: Array, most: int, own: Array | None
) -> np.ndarray:
    """Of trajectories [T, E, D] those nearest to each of the vectors [M, D] by float32, in no
    order, int[M, min(most, T)]."""
    vectors = vectors.astype(np.float32)
    members, squares = np.zeros((len(vectors), 0), int), np.zeros((len(vectors), 0), np.float32)
    for block in _blocks(len(trajectories), trajectories):
        part = np.asarray(trajectories[block], np.float32)
        flat = part.reshape(-1, part.shape[-1])
        # less the square of the vector itself, which changes no order
        products = np.einsum("nd,nd->n", flat, flat) - 2 * vectors @ flat.T
        table = products.reshape(len(vectors), *part.shape[:2]).min(axis=2)
        numbers = np.arange(block.start, block.stop)
        if own is not None:
            table[np.asarray(own)[:, None] == numbers] = np.inf
        members = np.concatenate([members, np.tile(numbers, (len(vectors), 1))], axis=1)
        squares = np.concatenate([squares, table], axis=1)
        if squares.shape[1] > most:
            kept = np.argpartition(squares, most - 1, axis=1)[:, :most]
            members, squares = (np.take_along_axis(x, kept, axis=1) for x in (members, squares))
    return members


def _blocks(count: int, trajectories: Array) -> Iterator[slice]:
    """Parts of `count` trajectories such as these [T, E, D], few enough for memory."""
    each = 4 * max(1, trajectories.shape[1] * trajectories.shape[2])
    return blocks(count, max(1, _BLOCK_BYTES // each))


def _squares(differences: np.ndarray) -> np.ndarray:
    """Squared norms float64[...] of vectors [..., D]."""
    return np.einsum("...d,...d->...", differences, differences, dtype=np.float64)


def to_hull(vector: Array, points: Array) -> float:
    """Distance of a vector [D] to the nearest weighted average of points [K, D].

    With P the points minus the vector, the best weights w >= 0 of sum 1 are those for which
    u = s w, s > 0, minimises |P^T u|^2 + (sum u - 1)^2: for given w the best s leaves
    |P^T w|^2 / (1 + |P^T w|^2), which grows with |P^T w|. That is non-negative least squares.
    """
    from scipy.optimize import nnls

    difference = np.asarray(points, np.float64) - np.asarray(vector, np.float64)
    scale = np.linalg.norm(difference, axis=1).min()
    if scale == 0:
        return 0.0
    difference /= scale
    products = difference @ difference.T
    products += _RIDGE * np.trace(products) / len(products) * np.eye(len(products))
    root = np.linalg.cholesky(products).T  # [K, K] in place of [D, K]: the same inner products
    target = np.append(np.zeros(len(points)), 1)
    weights, _ = nnls(np.concatenate([root, np.ones((1, len(points)))]), target)
    return float(scale * np.linalg.norm(weights / weights.sum() @ difference))
