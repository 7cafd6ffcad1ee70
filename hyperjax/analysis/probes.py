"""Discriminative probes: what can be read off weights, and off latents, by a linear map?

After Schürholt et al., "Self-Supervised Representation Learning on Neural Network Weights for
Model Characteristic Prediction" (NeurIPS 2021). Their closed form penalises the bias and takes
features as they are. Here (scikit-learn's `Ridge`) features are standardised by the train
members, the bias is free, and the grid of penalties reaches higher, as a few thousand
standardised weights need; the choice by validation members and R² are theirs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hyperjax.types import Array
from hyperjax.weights import WeightSpec, split_layer

# The published grid, and four larger penalties.
STRENGTHS = (
    1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 1e1, 3e1, 1e2, 3e2, 1e3,
    3e3, 1e4, 3e4, 1e5,
)  # fmt: skip
_PERCENTILES = (1, 25, 50, 75, 99)
_VECTORS = 2000  # whose covariance is computed at a time

Interval = tuple[float, float]


class Parts(NamedTuple):
    """Of members that were split: features f[M, E, F] or targets f[M, E] at E snapshots."""

    train: Array
    val: Array
    test: Array


class Probe(NamedTuple):
    """One target, predicted from one kind of features."""

    strength: float  # of the ridge penalty
    train_r2: float
    r2: float  # on test members, like all that follows
    r2_ci: Interval  # 95 %, members resampled as a whole
    tau: float  # Kendall's tau-b of predicted and true values
    tau_ci: Interval
    last_tau: float  # the same, of the last snapshots alone
    true: np.ndarray  # float64[M, E]
    predicted: np.ndarray  # float64[M, E]


def probe(
    features: Mapping[str, Parts],
    targets: Mapping[str, Parts],
    *,
    bootstrap: int,
    seed: int,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> dict[tuple[str, str], Probe]:
    """Predict every target from every kind of features, by (features, target).

    Computed in the precision of the features.
    """
    result = {}
    for name, parts in features.items():
        for target, found in _targets_of(parts, targets, bootstrap, seed).items():
            result[name, target] = found
        advance(1, name)
    return result


def layer_statistics(spec: WeightSpec, vectors: Array) -> np.ndarray:
    """Mean, variance and percentiles 1, 25, 50, 75, 99 of each layer's weights, then of its
    biases: f[..., D] -> float64[..., 14 * layers], 7 fewer for a layer without biases."""
    columns = []
    for layer, part in zip(spec.layers, spec.slices, strict=True):
        weights, bias = split_layer(layer, np.asarray(vectors[..., part], np.float64))
        for values in (weights.reshape(*bias.shape[:-1], -1), bias):
            if values.shape[-1]:
                columns += [values.mean(-1), values.var(-1)]
                columns += list(np.percentile(values, _PERCENTILES, axis=-1))
    return np.stack(columns, axis=-1)


def principal_components(vectors: Array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean float64[D] and leading `count` components float64[D, count] of vectors [N, D].

    Of many from their covariance, summed up in blocks: memory does not grow with their number.
    """
    from scipy.linalg import eigh

    size, mean = vectors.shape[1], np.mean(vectors, axis=0, dtype=np.float64)
    if len(vectors) <= size:
        return mean, np.linalg.svd(vectors - mean, full_matrices=False)[2][:count].T
    covariance = np.zeros((size, size))
    for begin in range(0, len(vectors), _VECTORS):
        centred = vectors[begin : begin + _VECTORS] - mean
        covariance += centred.T @ centred
    leading = eigh(covariance, subset_by_index=(size - count, size - 1))[1]
    return mean, leading[:, ::-1]


def _targets_of(
    features: Parts, targets: Mapping[str, Parts], bootstrap: int, seed: int
) -> dict[str, Probe]:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    flat = [np.asarray(part).reshape(-1, part.shape[-1]) for part in features]
    scaler = StandardScaler().fit(flat[0])
    train, val, test = (scaler.transform(part) for part in flat)
    names, count = list(targets), len(STRENGTHS)
    # All targets with all penalties at once, from one singular value decomposition.
    wanted = np.stack([np.ravel(targets[name].train) for name in names], axis=1)
    penalties = np.tile(STRENGTHS, len(names))
    ridge = Ridge(alpha=penalties, solver="svd").fit(train, np.repeat(wanted, count, axis=1))
    fits, on_val, on_test = (ridge.predict(x).astype(np.float64) for x in (train, val, test))
    result = {}
    for index, name in enumerate(names):
        of_name = slice(index * count, (index + 1) * count)
        errors = np.mean((on_val[:, of_name] - np.ravel(targets[name].val)[:, None]) ** 2, axis=0)
        best = index * count + int(np.argmin(errors))  # the largest R² on validation members
        true = np.asarray(targets[name].test, np.float64)
        predicted = on_test[:, best].reshape(true.shape)
        counts = _resampled(len(true), bootstrap, seed)
        result[name] = Probe(
            strength=float(penalties[best]),
            train_r2=r_squared(wanted[:, index], fits[:, best]),
            r2=r_squared(true, predicted),
            r2_ci=_interval(r_squared_of(counts, true, predicted)),
            tau=kendall_tau(true, predicted),
            tau_ci=_interval(kendall_tau_of(counts, true, predicted)),
            last_tau=kendall_tau(true[:, -1], predicted[:, -1]),
            true=true,
            predicted=predicted,
        )
    return result


def r_squared(true: Array, predicted: Array) -> float:
    """1 - mean squared error / variance of the true values; NaN where they do not vary."""
    variance = np.var(true)
    return float(1 - np.mean((predicted - true) ** 2) / variance) if variance else float("nan")


def kendall_tau(true: Array, predicted: Array) -> float:
    """Kendall's tau-b; NaN where either does not vary."""
    import scipy.stats

    if np.size(true) < 2:
        return float("nan")
    return float(scipy.stats.kendalltau(np.ravel(true), np.ravel(predicted)).statistic)


def r_squared_of(counts: Array, true: Array, predicted: Array) -> np.ndarray:
    """R² of samples of members: f[M, E] with the members repeated int[B, M] times -> f64[B]."""
    per_member = [np.full(len(true), true.shape[1]), true.sum(1), np.sum(true**2, axis=1),
                  np.sum((predicted - true) ** 2, axis=1)]  # fmt: skip
    n, total, squares, errors = (counts @ values for values in per_member)
    variation = squares - total**2 / n
    return np.divide(errors, -variation, out=np.full(len(n), np.nan), where=variation > 0) + 1


def kendall_tau_of(counts: Array, true: Array, predicted: Array) -> np.ndarray:
    """Kendall's tau-b of samples of members, as `r_squared_of`.

    Concordant less discordant pairs, and pairs without ties, are quadratic forms of the counts:
    copies of one value tie with each other in both rankings.
    """
    members, each = true.shape
    signs = [np.sign(v.ravel()[:, None] - v.ravel()[None]) for v in (true, predicted)]

    def pairs(values: np.ndarray) -> np.ndarray:
        by_member = values.reshape(members, each, members, each).sum((1, 3))
        return np.sum(counts @ by_member * counts, axis=1)

    product = np.sqrt(pairs(np.abs(signs[0])) * pairs(np.abs(signs[1])))
    score = pairs(signs[0] * signs[1])
    return np.divide(score, product, out=np.full(len(score), np.nan), where=product > 0)


def _resampled(members: int, bootstrap: int, seed: int) -> np.ndarray:
    """How often each member is drawn: float64[bootstrap, members]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(members, np.full(members, 1 / members), bootstrap).astype(np.float64)


def _interval(values: np.ndarray) -> Interval:
    """95 % percentile interval; NaN if a single member gave it, or nothing varied."""
    finite = values[np.isfinite(values)]
    if not len(finite) or np.ptp(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)
