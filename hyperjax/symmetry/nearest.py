"""How far networks are from the train models, whatever the order, signs and scales of neurons.

The distance of two networks modulo their symmetries is the smallest Euclidean distance of the
one to any network that computes the same as the other. `alignment` finds it but for the local
optima of a matching, so that distances here are upper bounds, tight for replicas: networks
equal up to symmetry get zero. Positive scales, where they are a symmetry, are balanced first.

A matching to every train model would take hours. Hence networks are first compared as they came
and as aligned to the train models' common reference, which is fast; then the few train models
that are nearest so are aligned to each network itself.

Runs on the host in float64: differences of large sums lose no replica.
"""

from typing import NamedTuple

import jax
import numpy as np

from hyperjax import symmetry
from hyperjax.symmetry import alignment
from hyperjax.types import Array
from hyperjax.weights import WeightSpec

_apply = jax.jit(symmetry.apply, static_argnums=0)
_CANDIDATES = 5  # train members that are aligned to each network
_MIXED = 32  # train members, at most, of whose weighted averages a network may be one
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


def train_models(spec: WeightSpec, trajectories: Array, reference: Array) -> TrainModels:
    """Trajectories float32[T, E, D] in the form that distances are measured in.

    Each is aligned by its last snapshot; those that are aligned already stay as they are.

    >>> train = hj.train_models(zoo.spec, zoo.weights, hr.reference)
    >>> train.spacing > 0
    True
    """
    reference = balanced(spec, np.asarray(reference, np.float32)[None])[0]
    vectors = alignment.align_trajectories(spec, np.asarray(trajectories, np.float32), reference)
    train = TrainModels(spec, vectors, reference, float("nan"))
    if len(vectors) < 2:
        return train
    far = distances(train, vectors[:, -1], own=np.arange(len(vectors)), mixtures=False)
    return train._replace(spacing=float(far.member.mean()))


def balanced(spec: WeightSpec, vectors: Array) -> np.ndarray:
    """Vectors float32[M, D] with the scales that make them smallest; as they are for tanh."""
    return np.asarray(_apply(spec, alignment.balance(spec, vectors), vectors))


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
    framed = [
        balanced(train.spec, vectors),
        alignment.align(train.spec, vectors, train.reference)[0],
    ]
    tables = [nearest_snapshots(frame, train.vectors) for frame in framed]
    if own is not None:
        for far, _ in tables:
            far[np.arange(len(far)), own] = np.inf
    count = len(train.vectors) - (own is not None)
    member, mixture = np.empty(len(vectors)), np.full(len(vectors), np.inf)
    for i in range(len(vectors)):
        views = [_View(frame[i], far[i], snapshot[i], count)
                 for frame, (far, snapshot) in zip(framed, tables, strict=True)]  # fmt: skip
        nearer = min(views, key=lambda view: view.far.min())
        member[i] = min(nearer.far.min(), _to_members(train, nearer))
        if mixtures:
            differ = not np.array_equal(views[0].vector, views[1].vector)
            mixture[i] = min(_to_mixture(train, view) for view in views[: 1 + differ])
    return Distances(member, np.minimum(mixture, member) if mixtures else mixture)


class _View(NamedTuple):
    """One network in one frame."""

    vector: np.ndarray  # float32[D]
    far: np.ndarray  # float64[T]: to the nearest snapshot of each train member, in this frame
    snapshot: np.ndarray  # int[T]: which snapshot that is
    count: int  # members to compare with

    def nearest(self, most: int) -> np.ndarray:
        """The nearest members, int[K]."""
        return np.argsort(self.far, kind="stable")[: min(most, self.count)]


def _to_members(train: TrainModels, view: _View) -> float:
    """Distance of a network to the nearest members, aligned to it by their nearest snapshots; the
    first by each of its snapshots, so that a replica of any is recovered exactly."""
    members, snapshots = view.nearest(_CANDIDATES), np.arange(train.vectors.shape[1])
    by = np.concatenate([view.snapshot[members], snapshots])
    members = np.concatenate([members, np.repeat(members[0], len(snapshots))])
    _, transform = alignment.align(train.spec, train.vectors[members, by], view.vector)
    moved = np.asarray(_apply(train.spec, transform, train.vectors[members]), np.float64)
    return float(np.linalg.norm(moved - view.vector, axis=-1).min())


def _to_mixture(train: TrainModels, view: _View) -> float:
    """Distance to the averages of the nearest members' nearest and last snapshots."""
    members = view.nearest(_MIXED)
    near = train.vectors[members, view.snapshot[members]], train.vectors[members, -1]
    return to_hull(view.vector, np.concatenate(near))


def nearest_snapshots(vectors: Array, trajectories: Array) -> tuple[np.ndarray, np.ndarray]:
    """Distances float64[M, T] of vectors [M, D] to the nearest snapshot of each of the
    trajectories [T, E, D], as they are, and which snapshot that is, int[M, T]."""
    flat = np.asarray(trajectories, np.float64).reshape(-1, trajectories.shape[-1])
    vectors = np.asarray(vectors, np.float64)
    squares = np.sum(vectors**2, axis=1)[:, None] + np.sum(flat**2, axis=1) - 2 * vectors @ flat.T
    squares = np.maximum(squares, 0).reshape(len(vectors), *trajectories.shape[:2])
    return np.sqrt(squares.min(axis=2)), squares.argmin(axis=2)


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
