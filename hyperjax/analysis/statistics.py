"""Statistics of populations: summaries, confidence intervals and tests, all from SciPy.

Values are one number per model. Those that are not finite (diverged models) are left out,
and a summary counts them. Nothing here warns: where a statistic does not exist, it is NaN.

SciPy's statistics take longer to import than JAX, hence inside functions.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hyperjax.types import Array

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "q75": 0.75, "q95": 0.95, "max": 1.0}
_RESAMPLED_AT_ONCE = 2**22  # numbers; bounds the memory of a bootstrap to some 100 MB

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Summary:
    """One population.

    Attributes:
      count: finite values; everything below is about these.
      excluded: values that are NaN or infinite.
      mean: arithmetic mean.
      std: population standard deviation (ddof 0), as in the paper's published code.
      median: middle value.
      quantiles: those of `QUANTILES`, by name.
      mean_ci: 95 % bootstrap interval of the mean (BCa; percentile for fewer than 3 values).
      median_ci: 95 % percentile bootstrap interval of the median.
    """

    count: int
    excluded: int
    mean: float
    std: float
    median: float
    quantiles: dict[str, float]
    mean_ci: Interval
    median_ci: Interval


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two populations, a against b. Positive effects: a is larger. Tests are two-sided.

    Attributes:
      pairs: number of pairs of a value of a and one of b.
      mann_whitney_u: U of a, the pairs in which a is larger, ties counting half.
      mwu_p: its p-value (exact for small samples without ties).
      rank_biserial: 2 * cles - 1, in [-1, 1].
      cles: common-language effect size, the chance that a random a is larger than a random b.
      welch_t: Welch's t.
      welch_p: its p-value.
      cohens_d: difference of the means in units of the pooled standard deviation (ddof 1).
    """

    pairs: int
    mann_whitney_u: float
    mwu_p: float
    rank_biserial: float
    cles: float
    welch_t: float
    welch_p: float
    cohens_d: float

    def flipped(self) -> "Comparison":
        """b against a."""
        return dataclasses.replace(
            self,
            mann_whitney_u=self.pairs - self.mann_whitney_u,
            rank_biserial=-self.rank_biserial,
            cles=1 - self.cles,
            welch_t=-self.welch_t,
            cohens_d=-self.cohens_d,
        )


def summarize(values: Array, *, bootstrap: int = 9999, seed: int = 0) -> Summary:
    """Describe the values f[N] of one population by `bootstrap` resamples.

    Equal values give an interval of width zero. The interval of a single value, and every
    statistic of no values, is NaN.
    """
    finite, total = _finite(values), np.size(values)
    if len(finite) == 0:
        nan = float("nan")
        return Summary(
            0, total, nan, nan, nan, dict.fromkeys(QUANTILES, nan), (nan, nan), (nan, nan)
        )
    mean, std = _moments(finite, ddof=0)
    return Summary(
        count=len(finite),
        excluded=total - len(finite),
        mean=mean,
        std=std,
        median=float(np.median(finite)),
        quantiles={name: float(np.quantile(finite, q)) for name, q in QUANTILES.items()},
        mean_ci=_interval(finite, np.mean, "BCa", bootstrap, seed),
        median_ci=_interval(finite, np.median, "percentile", bootstrap, seed),
    )


def compare(a: Array, b: Array) -> Comparison:
    """Compare the values f[N] and f[M] of two populations.

    Constant populations are compared in the limit: equal constants differ by nothing (p = 1),
    different ones by infinitely many standard deviations (p = 0). Welch's test and Cohen's d
    need two values on either side, the Mann-Whitney test one; else they are NaN.
    """
    a, b = _finite(a), _finite(b)
    u, mwu_p = _mann_whitney(a, b)
    cles = u / (len(a) * len(b)) if len(a) and len(b) else float("nan")
    t, welch_p, d = _welch(a, b)
    return Comparison(len(a) * len(b), u, mwu_p, 2 * cles - 1, cles, t, welch_p, d)


def compare_all(populations: Mapping[str, Array]) -> list[tuple[str, str, Comparison]]:
    """Compare every pair of populations, in the order given.

    The p-values are Holm-adjusted over all pairs, each test being one family.
    """
    pairs = [
        (name_a, name_b, compare(a, b))
        for (name_a, a), (name_b, b) in itertools.combinations(populations.items(), 2)
    ]
    mwu = holm([pair.mwu_p for _, _, pair in pairs])
    welch = holm([pair.welch_p for _, _, pair in pairs])
    return [
        (name_a, name_b, dataclasses.replace(pair, mwu_p=float(p), welch_p=float(q)))
        for (name_a, name_b, pair), p, q in zip(pairs, mwu, welch, strict=True)
    ]


def against(comparisons: Sequence[tuple[str, str, Comparison]], base: str) -> dict[str, Comparison]:
    """Those of all pairs (`compare_all`) that have `base` in them, as the other against it."""
    found = {}
    for a, b, comparison in comparisons:
        if base == b:
            found[a] = comparison
        elif base == a:
            found[b] = comparison.flipped()
    return found


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of p-values f[K] -> f64[K].

    The k-th smallest of K is multiplied by K - k + 1; an adjusted value is never below that
    of a smaller one, nor above 1. NaN (a test that could not be made) stays and counts nothing.
    """
    p_values = np.asarray(p_values, np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    order = np.argsort(p_values)[: np.sum(~np.isnan(p_values))]  # argsort puts NaN last
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _finite(values: Array) -> np.ndarray:
    values = np.asarray(values, np.float64).ravel()
    return values[np.isfinite(values)]


def _moments(values: np.ndarray, ddof: int) -> tuple[float, float]:
    """Mean and standard deviation; rounding must not make equal values differ."""
    if np.ptp(values) == 0:
        return float(values[0]), 0.0
    return float(np.mean(values)), float(np.std(values, ddof=ddof))


def _interval(
    values: np.ndarray, statistic: Callable, method: str, resamples: int, seed: int
) -> Interval:
    import scipy.stats

    if len(values) == 1:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    for name in [method, "percentile"] if len(values) >= 3 else ["percentile"]:
        with warnings.catch_warnings():  # BCa warns where it does not exist: we fall back
            warnings.simplefilter("ignore")
            interval = scipy.stats.bootstrap(
                (values,),
                statistic,
                n_resamples=resamples,
                batch=max(1, _RESAMPLED_AT_ONCE // len(values)),
                vectorized=True,
                method=name,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.all(np.isfinite(interval)):
            break
    return float(interval.low), float(interval.high)


def _mann_whitney(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    import scipy.stats

    if len(a) == 0 or len(b) == 0:
        return float("nan"), float("nan")
    if np.ptp(np.concatenate([a, b])) == 0:  # the ranks have no variance
        return len(a) * len(b) / 2, 1.0
    result = scipy.stats.mannwhitneyu(a, b, alternative="two-sided")
    return float(result.statistic), float(result.pvalue)


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Welch's t and p-value, and Cohen's d."""
    import scipy.stats

    if len(a) < 2 or len(b) < 2:
        return float("nan"), float("nan"), float("nan")
    (mean_a, std_a), (mean_b, std_b) = _moments(a, ddof=1), _moments(b, ddof=1)
    difference = mean_a - mean_b
    if std_a == std_b == 0:
        infinite = float(np.copysign(np.inf, difference))
        return (infinite, 0.0, infinite) if difference else (0.0, 1.0, 0.0)
    result = scipy.stats.ttest_ind_from_stats(
        mean_a, std_a, len(a), mean_b, std_b, len(b), equal_var=False
    )
    freedom = len(a) + len(b) - 2
    pooled = np.sqrt(((len(a) - 1) * std_a**2 + (len(b) - 1) * std_b**2) / freedom)
    return float(result.statistic), float(result.pvalue), float(difference / pooled)
