"""Novelty audit: are samples more than copies of train models, noise on them, or their averages?

After Zeng, Yin, Xu and Liu, "Generative Modeling of Weights: Generalization or Memorization?"
(arXiv 2506.07998), who found no generator of weights beyond what noise and averages give. A
sampler is judged in the plane of novelty and accuracy, against the frontier of such baselines.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hyperjax.analysis import metrics
from hyperjax.errors import HyperJaxError
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.symmetry import nearest
from hyperjax.symmetry.alignment import blocks
from hyperjax.symmetry.nearest import TrainModels
from hyperjax.types import Array

# Kinds of populations: what is done to all samples alike, and so to baselines of their own.
PLAIN, REPAIRED = "plain", "repaired"
SELECTED, SELECTED_REPAIRED = "selected", "selected, repaired"  # by validation accuracy
KINDS = (PLAIN, REPAIRED, SELECTED, SELECTED_REPAIRED)
REPLAY = 0.2  # of the distance among train models: nearer than that is no other network
AXES = ("weights", "behaviour")
_EVALUATED = 500  # train members whose predictions are held at a time


class Audit(NamedTuple):
    """One population: M networks that are finite.

    Novelties are in units of the same among train models, each compared with the other members:
    0 is a copy of a train model, 1 is as far from the nearest as train models are.
    """

    accuracy: np.ndarray  # float[M] on test images
    weights: np.ndarray  # float[M]: distance to the nearest train model, modulo symmetries
    behaviour: np.ndarray  # float[M]: 1 - largest overlap of errors with a train model
    mixture: np.ndarray  # float[M]: distance to the nearest weighted average of train models;
    # infinite for baselines, of which it is not asked
    parent_gap: np.ndarray  # float[M]: see `metrics.Overlap`; not in units of anything
    replica: np.ndarray | None  # float[M]: distance to the nearest train model's reconstruction
    excluded: int  # networks that are not finite


class Margin(NamedTuple):
    """A population's accuracy above the baselines' frontier, by one kind of novelty."""

    novelty: float  # mean
    frontier: float  # accuracy of the baselines at that novelty
    margin: float
    interval: tuple[float, float]  # 95 %, bootstrap over the models of all populations
    verdict: str  # beyond, on or below the frontier; replays, one network or unknown


Edge = tuple[np.ndarray, np.ndarray]  # a frontier's points: novelty and accuracy


class Novelty(NamedTuple):
    populations: dict[str, Audit]
    kinds: dict[str, str]  # of each population
    baselines: dict[str, dict[str, Audit]]  # by kind and name
    margins: dict[str, dict[str, Margin]]  # by axis and population, among baselines of its kind
    frontier: dict[str, dict[str, Edge]]  # by axis and kind
    overlap: float  # mean largest overlap of a train model's errors with another member's
    distance: float  # mean distance of a train model to the nearest other member


class _Units(NamedTuple):
    """Train models, and how much their errors overlap."""

    models: TrainModels
    errors: np.ndarray  # uint8[T, E, B], see `metrics.error_bits`
    overlap: float


def audit(
    populations: Mapping[str, Array],
    baselines: Mapping[str, Mapping[str, Array]],
    train: TrainModels,
    task: Task,
    *,
    kinds: Mapping[str, str] | None = None,
    reconstructions: Mapping[str, Array],
    bootstrap: int,
    seed: int,
    advance: Callable[[int, str], None] = lambda steps, note="": None,
) -> Novelty:
    """Audit populations float32[M, D] against baselines float32[M, D] of several strengths.

    Args:
      baselines: by kind and name. What helps any network, a repair or a choice among many, helps
        baselines too: a population is compared with those of its own kind alone.
      train: all models that a sampler may have seen; at least two members.
      kinds: of the populations that are not `PLAIN`.
      reconstructions: for the populations that were decoded, float32[T, E, D]: what the same
        decoder makes of the train models. A decoder that loses something moves its replays
        away from the train models, but not from these.
      bootstrap: resamples of each interval.
      advance: told of each population that is done.

    Raises HyperJaxError if there are fewer than two train members, vectors do not fit, or a
    population is of a kind without baselines.
    """
    kinds = {name: (kinds or {}).get(name, PLAIN) for name in populations}
    for name, kind in kinds.items():
        if not baselines.get(kind):
            raise HyperJaxError(
                f"population {name!r} is {kind}, and there are no such baselines to compare it "
                f"with; there are: {', '.join(baselines) or 'none'}"
            )
    advance(0, "errors of the train models")
    units = _among_train(train, task)
    spacing = {id(r): _spacing(r) for r in reconstructions.values()}

    def audited(some: Mapping[str, Array], *, baseline: bool = False) -> dict[str, Audit]:
        found = {}
        for name, vectors in some.items():
            of = None if baseline else reconstructions.get(name)
            found[name] = _audit(units, task, vectors, of, spacing.get(id(of)), not baseline)
            advance(1, name)
        return found

    tested = audited(populations)
    base = {kind: audited(some, baseline=True) for kind, some in baselines.items()}
    margins, edge = {}, {}
    for axis in AXES:
        edge[axis] = {k: frontier(*points(some.values(), axis).T) for k, some in base.items()}
        margins[axis] = {}
        for kind in dict.fromkeys(kinds.values()):
            alike = {name: tested[name] for name in tested if kinds[name] == kind}
            margins[axis] |= compare(alike, base[kind], axis, bootstrap=bootstrap, seed=seed)
    return Novelty(tested, kinds, base, margins, edge, units.overlap, train.spacing)


def _among_train(train: TrainModels, task: Task) -> _Units:
    """Compare the last snapshots of at most 1,000 members with all snapshots of the others."""
    members, _, size = train.vectors.shape
    if members < 2:
        raise HyperJaxError(f"novelty compares with {members} train member; expected at least 2")
    errors = np.concatenate([
        _errors(task, train.vectors[part].reshape(-1, size))
        for part in blocks(members, _EVALUATED)
    ]).reshape(*train.vectors.shape[:2], -1)  # fmt: skip
    own = nearest.evenly_spaced(members)
    overlap = metrics.error_overlap(errors[own, -1], errors, own=own)
    return _Units(train, errors, float(overlap.largest.mean()))


def _errors(task: Task, vectors: Array) -> np.ndarray:
    """`metrics.error_bits` of networks float32[M, D] on test images."""
    predictions = evaluation.evaluate(task, vectors, task.test).predictions
    return metrics.error_bits(predictions, task.test.labels)


def _spacing(trajectories: Array) -> float:
    """Mean distance of last snapshots to the nearest snapshot of another member."""
    own = nearest.evenly_spaced(len(trajectories))
    others = nearest.nearest_members(trajectories[own, -1], trajectories, 1, own=own)
    return float(others.far.mean())


def _audit(
    units: _Units,
    task: Task,
    vectors: Array,
    decoded: Array | None,
    spacing: float | None,
    mixtures: bool,
) -> Audit:
    finite = np.isfinite(vectors).all(axis=1)
    excluded, vectors = int(np.sum(~finite)), np.asarray(vectors[finite], np.float32)
    if not len(vectors):
        nothing = np.zeros(0)
        return Audit(*[nothing] * 5, None if decoded is None else nothing, excluded)
    far = nearest.distances(units.models, vectors, mixtures=mixtures)
    measured = evaluation.evaluate(task, vectors, task.test)
    errors = metrics.error_bits(measured.predictions, task.test.labels)
    overlap = metrics.error_overlap(errors, units.errors)
    replica = None
    if decoded is not None:
        replica = _ratio(nearest.nearest_members(vectors, decoded, 1).far[:, 0], spacing)
    return Audit(
        accuracy=measured.accuracy,
        weights=_ratio(far.member, units.models.spacing),
        behaviour=_ratio(1 - overlap.largest, 1 - units.overlap),
        mixture=_ratio(far.mixture, units.models.spacing),
        parent_gap=overlap.parent_gap,
        replica=replica,
        excluded=excluded,
    )


def _ratio(values: np.ndarray, unit: float) -> np.ndarray:
    """NaN where train models do not differ, so that there is no unit."""
    return values / unit if unit > 0 else np.full(values.shape, np.nan)


def shares(audit: Audit) -> tuple[float, float]:
    """Shares of a population that replay one train model (or its reconstruction), and of those
    that do not, but lie as near to a weighted average of train models: NaN for no models."""
    if not len(audit.weights):
        return float("nan"), float("nan")
    replays = audit.weights < REPLAY
    if audit.replica is not None:
        replays = replays | (audit.replica < REPLAY)
    mixes = ~replays & (audit.mixture < REPLAY)
    return float(replays.mean()), float(mixes.mean())


# --- the frontier -----------------------------------------------------------------------


def frontier(novelty: Array, accuracy: Array) -> Edge:
    """The baselines f[B] that no other beats in both, by rising novelty and falling accuracy.

    Between them, `height` interpolates linearly: a baseline of a strength in between. Points
    that are not finite are left out.
    """
    known = np.isfinite(novelty) & np.isfinite(accuracy)
    x, y = np.asarray(novelty)[known], np.asarray(accuracy)[known]
    order = np.lexsort((-y, -x))  # from the farthest, of equals the most accurate first
    x, y = x[order], y[order]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(y)[:-1]])
    kept = y > best_before
    return x[kept][::-1], y[kept][::-1]


def height(novelty: Array, edge: Edge) -> np.ndarray:
    """Accuracy of a frontier at given novelties f[K]; NaN if the frontier has no points.

    A novelty above 1 counts as 1: being still farther away than networks that were trained by
    themselves is no merit, and shrinking or blowing up weights would be enough. Nearer than its
    first point the frontier is as high as that, and likewise beyond its last.
    """
    if not len(edge[0]):
        return np.full(np.shape(novelty), np.nan)
    return np.interp(np.minimum(novelty, 1), *edge)


def compare(
    populations: Mapping[str, Audit],
    baselines: Mapping[str, Audit],
    axis: str,
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Margin]:
    """Margins of populations above the baselines' frontier, by novelty of `axis`.

    Each resample draws the models of every population and of every baseline anew, with
    replacement, and finds the frontier again. A frontier of noisy points is too high rather than
    too low, at the populations' disadvantage. The intervals know nothing of other zoos, seeds of
    training or samplers' fits, and are not corrected for the number of populations.
    """
    rng = np.random.default_rng(seed)
    places = points(populations.values(), axis)
    edge = frontier(*points(baselines.values(), axis).T)
    expected = height(places[:, 0], edge)
    drawn, base = (
        np.stack([_resampled(audit, axis, bootstrap, rng) for audit in some.values()], axis=1)
        for some in (populations, baselines)
    )  # [resamples, populations, 2]
    margins = np.stack([
        sample[:, 1] - height(sample[:, 0], frontier(*reference.T))
        for sample, reference in zip(drawn, base, strict=True)
    ])  # fmt: skip
    low, high = np.percentile(margins, [2.5, 97.5], axis=0)
    return {
        name: Margin(
            novelty=float(places[i, 0]),
            frontier=float(expected[i]),
            margin=float(places[i, 1] - expected[i]),
            interval=(float(low[i]), float(high[i])),
            verdict=verdict(populations[name], axis, low[i], high[i]),
        )
        for i, name in enumerate(populations)
    }


def band(
    baselines: Mapping[str, Audit], axis: str, at: Array, *, bootstrap: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ends f[K] of the 95 % interval of the frontier's height at each of the novelties `at` f[K],
    resampled as in `compare`; NaN without baselines."""
    if not baselines:
        return np.full(np.shape(at), np.nan), np.full(np.shape(at), np.nan)
    rng = np.random.default_rng(seed)
    drawn = np.stack([_resampled(a, axis, bootstrap, rng) for a in baselines.values()], axis=1)
    heights = [height(at, frontier(*reference.T)) for reference in drawn]
    low, high = np.percentile(heights, [2.5, 97.5], axis=0)
    return low, high


def verdict(audit: Audit, axis: str, low: float, high: float) -> str:
    """In a word, from the interval of a margin. Replays are called so whatever their margin.

    Copies of one network are no sample: their interval would only be that of the baselines.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return "unknown"
    if np.ptp(audit.accuracy) == 0 and np.ptp(audit.weights) < 1e-5:
        return "one network"
    if shares(audit)[0] > 0.5 or np.mean(getattr(audit, axis)) < REPLAY:
        return "replays"
    return "beyond" if low > 0 else "below" if high < 0 else "on"


def points(audits, axis: str) -> np.ndarray:
    """Mean novelty and accuracy of each population, f[K, 2]; NaN for one without models."""
    both = [np.stack([getattr(audit, axis), audit.accuracy], axis=1) for audit in audits]
    return np.array([b.mean(axis=0) if len(b) else [np.nan, np.nan] for b in both])


def _resampled(audit: Audit, axis: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Mean novelty and accuracy of `count` resamples, f[count, 2]."""
    both = np.stack([getattr(audit, axis), audit.accuracy], axis=1)
    if not len(both):
        return np.full((count, 2), np.nan)
    times = rng.multinomial(len(both), np.full(len(both), 1 / len(both)), size=count)
    return times @ both / len(both)
