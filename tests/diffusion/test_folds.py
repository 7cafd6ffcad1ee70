"""Folds of the denoiser's members, with the Wiener denoisers that have not seen them."""

import numpy as np
import pytest
from denoiser_cases import (
    COUNT,
    EQUIVARIANT,
    MEMBERS,
    MLP,
    QUALITY,
    configured,
    folded,
    members_in,
    row_of,
    vectors_of,
)
from hyperrep_cases import assert_trees_equal
from scipy.stats import percentileofscore

from hyperjax.diffusion import UNKNOWN, wiener
from hyperjax.diffusion import denoiser_training as training

SIZE = MLP.num_params


def test_every_member_is_in_one_fold_whose_wiener_denoiser_has_not_seen_it():
    data = folded()
    assert members_in(data).shape == (4, 51, SIZE)
    folds = [row_of(members) for members in members_in(data)]
    assert sorted(np.concatenate([np.unique(fold) for fold in folds])) == list(range(COUNT))
    assert sorted(len(set(fold)) for fold in folds) == [50, 50, 50, 51]
    noisy = vectors_of(MLP, 5, seed=1)
    for number, fold in enumerate(folds):
        np.testing.assert_array_equal(members_in(data)[number], MEMBERS[fold])
        others = np.delete(MEMBERS, fold, axis=0)
        ours = wiener.Wiener(*(leaf[number] for leaf in data.wieners))
        theirs = wiener.fit(others)
        assert len(ours.axes) >= len(theirs.axes)
        for level in (0.2, 1.0):
            np.testing.assert_allclose(
                wiener.denoise(ours, noisy, level), wiener.denoise(theirs, noisy, level), atol=1e-5
            )


def test_axes_that_fill_up_change_nothing():
    both, noisy = (wiener.fit(MEMBERS[:10]), wiener.fit(MEMBERS[:33])), vectors_of(MLP, 4, seed=1)
    stacked = training._stacked(iter(both), 2, 40)
    assert stacked.axes.shape == (2, len(both[1].axes), SIZE)
    for number, fitted in enumerate(both):
        one = wiener.Wiener(*(leaf[number] for leaf in stacked))
        np.testing.assert_allclose(
            wiener.denoise(one, noisy, 0.7), wiener.denoise(fitted, noisy, 0.7), atol=1e-5
        )


def test_the_seed_shuffles_the_folds():
    first, again, other = (folded(seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


@pytest.mark.parametrize(("folds", "count"), [(1, 20), (8, 3), (3, 2)])
def test_one_fold_where_there_can_be_no_more(folds, count):
    config, members = configured(folds=folds), MEMBERS[:count]
    data = folded(members, QUALITY[:count], config)
    np.testing.assert_array_equal(members_in(data), members[None])
    expected = wiener.fit(members)
    assert_trees_equal(wiener.Wiener(*(leaf[0] for leaf in data.wieners)), expected)


def test_snapshots_of_one_member_are_in_one_fold():
    """20 members of two snapshots each: none is denoised by what has seen its other one."""
    data = folded(MEMBERS[:40], QUALITY[:40], each=2)
    folds = [set(row_of(members)) for members in members_in(data)]
    assert sorted(row for fold in folds for row in fold) == list(range(40))
    for fold in folds:
        assert {row ^ 1 for row in fold} == fold
    others = np.delete(MEMBERS[:40], sorted(folds[0]), axis=0)
    np.testing.assert_allclose(data.wieners.mean[0], others.mean(0), atol=1e-5)


def test_folds_of_an_equivariant_denoiser():
    config = configured(graph=EQUIVARIANT)
    data = folded(config=config)
    assert data.wieners.axes.shape == (4, 0, SIZE)
    others = np.delete(MEMBERS, row_of(members_in(data)[1]), axis=0)
    np.testing.assert_allclose(data.wieners.rest[1], wiener.fit_orbits(MLP, others).rest)


def test_qualities_go_with_their_members():
    data = folded()
    expected = training._quantiles(QUALITY)
    for members, quantiles in zip(members_in(data), data.quantiles, strict=True):
        np.testing.assert_array_equal(quantiles, expected[row_of(members)])


def test_quantiles():
    """Those of ranks, ties in the middle, unknown ones apart."""
    quality = np.array([0.3, 0.1, np.nan, 0.3, 0.9, np.inf, 0.3, 0.2])
    known = quality[np.isfinite(quality)]
    expected = [
        percentileofscore(known, q, kind="mean") / 100 if np.isfinite(q) else UNKNOWN
        for q in quality
    ]
    found = training._quantiles(quality)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(training._quantiles(np.full(3, np.nan)), [UNKNOWN] * 3)
    np.testing.assert_array_equal(training._quantiles(np.array([0.7])), [0.5])
