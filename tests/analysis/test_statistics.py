import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.analysis.statistics import (
    QUANTILES,
    against,
    compare,
    compare_all,
    holm,
    summarize,
)

RNG = np.random.default_rng(0)
floats = st.floats(-1e3, 1e3, width=32)


def test_summary_of_a_hand_worked_sample():
    summary = summarize(np.float32([1, 2, 3, 4, np.nan, 10, np.inf, -np.inf]), bootstrap=500)
    assert (summary.count, summary.excluded) == (5, 3)
    assert (summary.mean, summary.median) == (4.0, 3.0)
    assert summary.std == pytest.approx(np.sqrt(10))  # ddof 0: (9 + 4 + 1 + 0 + 36) / 5
    assert summary.quantiles.keys() == QUANTILES.keys()
    assert (summary.quantiles["min"], summary.quantiles["max"]) == (1.0, 10.0)
    assert (summary.quantiles["q25"], summary.quantiles["q75"]) == (2.0, 4.0)


def test_intervals_equal_scipy_and_depend_on_the_seed_only():
    values = RNG.gamma(2.0, size=40)
    summary = summarize(values, bootstrap=999, seed=3)
    for statistic, method, interval in [
        (np.mean, "BCa", summary.mean_ci),
        (np.median, "percentile", summary.median_ci),
    ]:
        expected = scipy.stats.bootstrap(
            (values,), statistic, n_resamples=999, method=method, rng=np.random.default_rng(3)
        ).confidence_interval
        np.testing.assert_allclose(interval, expected)
    assert summarize(values, bootstrap=999, seed=3) == summary
    assert summarize(values, bootstrap=999, seed=4) != summary


def test_mean_interval_is_near_the_normal_one_and_covers():
    values = RNG.normal(5.0, 2.0, size=400)
    half = 1.96 * values.std() / np.sqrt(400)
    expected = (values.mean() - half, values.mean() + half)
    np.testing.assert_allclose(summarize(values, bootstrap=2000).mean_ci, expected, atol=0.02)
    covered = [
        low <= 0 <= high
        for seed in range(200)
        for low, high in [summarize(RNG.normal(size=40), bootstrap=200, seed=seed).mean_ci]
    ]
    assert 0.88 < np.mean(covered) < 0.99


@pytest.mark.parametrize("count", [2, 3, 7])
def test_constant_values_have_no_spread(count):
    summary = summarize(np.full(count, 0.1))  # 0.1 + 0.1 + 0.1 is not 3 * 0.1
    assert (summary.mean, summary.std, summary.median) == (0.1, 0.0, 0.1)
    assert summary.mean_ci == summary.median_ci == (0.1, 0.1)


def test_few_values():
    one = summarize([7.0])
    assert (one.count, one.mean, one.std, one.median) == (1, 7.0, 0.0, 7.0)
    assert np.isnan([*one.mean_ci, *one.median_ci]).all()
    assert summarize([1.0, 3.0]).mean_ci == (1.0, 3.0)
    none = summarize([np.nan, np.inf])
    assert (none.count, none.excluded) == (0, 2)
    assert np.isnan([none.mean, none.std, none.median, *none.quantiles.values()]).all()
    assert summarize([]).count == 0


def test_bca_falls_back_where_it_does_not_exist():
    # one resample gives no bias correction: BCa itself is NaN here
    assert np.isfinite(summarize([1.0, 2.0, 4.0], bootstrap=1).mean_ci).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(floats, min_size=1, max_size=12), st.lists(floats, min_size=1, max_size=12))
def test_mann_whitney_counts_pairs(a, b):
    wins = sum((x > y) + 0.5 * (x == y) for x, y in itertools.product(a, b))
    forth, back = compare(a, b), compare(b, a)
    assert forth.mann_whitney_u == pytest.approx(wins)
    assert forth.cles == pytest.approx(wins / (len(a) * len(b)))
    assert forth.rank_biserial == pytest.approx(-back.rank_biserial, abs=1e-9)
    assert 0 <= forth.mwu_p <= 1
    assert forth.mwu_p == pytest.approx(back.mwu_p)


values = st.lists(floats | st.just(float("nan")), max_size=12)


@settings(max_examples=60, deadline=None)
@given(values, values)
def test_flipped_is_the_comparison_the_other_way_round(a, b):
    """In every field, also where one side is empty, constant, or has values that are no numbers."""
    forth, back = compare(a, b), compare(b, a)
    ours, theirs = (dataclasses.asdict(comparison) for comparison in (forth.flipped(), back))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert_same(forth.flipped().flipped(), forth)


def assert_same(ours, theirs):
    np.testing.assert_allclose(*map(dataclasses.astuple, (ours, theirs)), rtol=1e-9, atol=1e-12)


def test_comparison_equals_scipy():
    a, b = RNG.normal(1.0, 1.0, 30), RNG.normal(0.0, 3.0, 50)
    result = compare(np.append(a, np.nan), np.append(b, np.inf))
    mwu = scipy.stats.mannwhitneyu(a, b)
    welch = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert (result.mann_whitney_u, result.mwu_p) == (mwu.statistic, mwu.pvalue)
    np.testing.assert_allclose((result.welch_t, result.welch_p), (welch.statistic, welch.pvalue))


def test_cohens_d_of_a_hand_worked_sample():
    # variances 1 and 4 with 2 and 2 degrees of freedom: pooled 2.5
    assert compare([1, 2, 3], [3, 5, 7]).cohens_d == pytest.approx(-3 / np.sqrt(2.5))


def test_constant_populations():
    same = compare([0.1] * 3, [0.1] * 4)
    assert (same.mann_whitney_u, same.mwu_p, same.rank_biserial, same.cles) == (6, 1, 0, 0.5)
    assert (same.welch_t, same.welch_p, same.cohens_d) == (0, 1, 0)
    below = compare([0.1] * 3, [0.2] * 4)
    assert (below.rank_biserial, below.cles) == (-1, 0)
    assert (below.welch_t, below.welch_p, below.cohens_d) == (-np.inf, 0, -np.inf)
    half = compare([0.1] * 3, [0.1, 0.2, 0.3])
    assert np.isfinite(dataclasses.astuple(half)).all()


def test_too_few_values_to_compare():
    single = compare([1.0], [0.0, 2.0])
    assert (single.mann_whitney_u, single.cles) == (1.0, 0.5)
    assert np.isnan([single.welch_t, single.welch_p, single.cohens_d]).all()
    pairs, *others = dataclasses.astuple(compare([np.nan], [0.0, 2.0]))
    assert pairs == 0
    assert np.isnan(others).all()


def test_holm_hand_worked():
    # sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> 0.06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])
    np.testing.assert_allclose(holm([np.nan, 0.02, 0.01]), [np.nan, 0.02, 0.02])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_holm_rejects_as_the_step_down_procedure(p_values, level):
    rejected = set()
    for k, i in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[i] * (len(p_values) - k) > level:
            break
        rejected.add(i)
    assert set(np.flatnonzero(holm(p_values) <= level)) == rejected


def test_all_pairs_are_compared_in_order_and_adjusted():
    populations = {
        "b": RNG.normal(0, 1, 20),
        "a": RNG.normal(1, 1, 25),
        "c": RNG.normal(3, 1, 30),
    }
    result = compare_all(populations)
    assert [pair[:2] for pair in result] == [("b", "a"), ("b", "c"), ("a", "c")]
    plain = [compare(populations[x], populations[y]) for x, y, _ in result]
    np.testing.assert_array_equal([c.mwu_p for *_, c in result], holm([c.mwu_p for c in plain]))
    np.testing.assert_array_equal([c.welch_p for *_, c in result], holm([c.welch_p for c in plain]))
    assert [c.cohens_d for *_, c in result] == [c.cohens_d for c in plain]
    assert compare_all({"a": [1.0, 2.0]}) == []


def test_comparisons_against_one_population_are_all_the_same_way_round():
    """As the other against the base, wherever the base stands; p-values stay as corrected."""
    populations = {name: RNG.normal(2 * mean, 1, 20) for mean, name in enumerate("abcd")}
    everything = compare_all(populations)
    for base in populations:
        found = against(everything, base)
        assert found.keys() == populations.keys() - {base}
        for name, comparison in found.items():
            (pair,) = (c for *names, c in everything if set(names) == {name, base})
            expected = dataclasses.replace(
                compare(populations[name], populations[base]),
                mwu_p=pair.mwu_p, welch_p=pair.welch_p,
            )  # fmt: skip
            assert_same(comparison, expected)
            assert (comparison.cohens_d > 0) == (name > base)  # later ones are larger
    assert against(everything, "nobody") == {}
