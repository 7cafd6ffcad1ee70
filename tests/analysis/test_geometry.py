"""Geometry of latents, against NumPy and closed forms."""

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist, pdist

from hyperjax.analysis import geometry

RNG = np.random.default_rng(0)
SIZE = 40


def test_norms_and_angles_against_scipy():
    latents, train = RNG.normal(size=(6, 5)), RNG.normal(size=(4, 5))
    cloud = geometry.cloud(latents, train)
    np.testing.assert_allclose(cloud.norms, np.sqrt((latents**2).sum(axis=1)))
    np.testing.assert_allclose(cloud.cosines, 1 - pdist(latents, "cosine"))
    np.testing.assert_allclose(cloud.nearest, 1 - cdist(latents, train, "cosine").min(axis=1))


def test_train_latents_are_compared_with_other_members():
    train, owners = RNG.normal(size=(6, 4)), np.repeat(np.arange(3), 2)
    between = 1 - cdist(train, train, "cosine")
    expected = [between[i, owners != owners[i]].max() for i in range(6)]
    np.testing.assert_allclose(geometry.cloud(train, train, owners, owners).nearest, expected)
    np.testing.assert_allclose(geometry.cloud(train, train).nearest, 1)


def test_snapshots_of_one_member_are_no_pair():
    """Members in independent directions are so, however alike their snapshots are."""
    members = RNG.normal(size=(60, 1, SIZE))
    trajectories = members + 0.01 * RNG.normal(size=(60, 4, SIZE))
    result = geometry.geometry(
        trajectories[:30], {"held out": trajectories[30:]}, np.ones((30, 4)), seed=0
    )
    for cloud in result.clouds.values():
        assert len(cloud.cosines) == 30 * 29 / 2 * 16
        assert geometry.effective_dimension(cloud.cosines) == pytest.approx(SIZE, rel=0.25)
    owners = np.repeat(np.arange(30), 4)
    flat = trajectories[30:].reshape(-1, SIZE)
    between, apart = 1 - pdist(flat, "cosine"), pdist(owners[:, None]) > 0
    np.testing.assert_allclose(result.clouds["held out"].cosines, between[apart], atol=1e-6)
    assert geometry.effective_dimension(between) < 0.6 * SIZE  # were they counted


def test_closed_forms_against_many_points():
    train = 0.3 * RNG.normal(size=(400, SIZE))
    points = {
        "uniform cube": RNG.uniform(-1, 1, (4000, SIZE)),
        "Gaussian": train.std() * RNG.normal(size=(4000, SIZE)),
    }
    for name, expected in geometry.expected(train).items():
        cloud = geometry.cloud(points[name], train)
        assert cloud.norms.mean() == pytest.approx(expected.norm, rel=2e-3)
        assert cloud.norms.std() == pytest.approx(expected.norm_std, rel=0.04)
        assert cloud.cosines.std() == pytest.approx(expected.cosine_std, rel=5e-3)
        assert geometry.effective_dimension(cloud.cosines) == pytest.approx(SIZE, rel=0.01)


def test_gaussian_norm_is_the_chi_distribution():
    train = np.ones((3, 7))
    found = geometry.expected(train)["Gaussian"]
    chi = scipy.stats.chi(7)
    assert (found.norm, found.norm_std) == pytest.approx((chi.mean(), chi.std()))


def test_effective_dimension_of_special_directions():
    line, cross = np.array([[1.0, 0], [2, 0], [-3, 0]]), np.eye(3)
    assert geometry.effective_dimension(geometry.cloud(line, line).cosines) == pytest.approx(1)
    pairs = np.concatenate([cross, -cross])  # every pair but the opposite ones is orthogonal
    assert geometry.effective_dimension(geometry.cloud(pairs, cross).cosines) == pytest.approx(
        15 / 3
    )
    assert np.isnan(geometry.effective_dimension(geometry.cloud(cross[:1], cross).cosines))


def test_planes():
    """PCA is that of the train latents alone; UMAP is deterministic and tells clusters apart."""
    trajectories = RNG.normal(size=(15, 2, 6)) * [5, 3, 1, 0.1, 0.1, 0.1] + 7
    train, far = trajectories.reshape(30, 6), RNG.normal(size=(20, 6)) + 100
    quality = RNG.random((15, 2))
    result = geometry.geometry(trajectories, {"far": far}, quality, seed=3)
    np.testing.assert_array_equal(result.quality, quality.reshape(30))
    centred = train - train.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred)
    for name, points in ((geometry.TRAIN, train), ("far", far)):
        expected = (points - train.mean(axis=0)) @ axes[:2].T
        np.testing.assert_allclose(np.abs(result.pca[name]), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(result.explained, singular[:2] ** 2 / np.sum(singular**2))
    assert [len(xy) for xy in result.umap.values()] == [30, 20]
    centres = [xy.mean(axis=0) for xy in result.umap.values()]
    radius = max(np.linalg.norm(xy - xy.mean(axis=0), axis=1).mean() for xy in result.umap.values())
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * radius
    again = geometry.embed({geometry.TRAIN: train, "far": far}, 3)
    np.testing.assert_array_equal(again["far"], result.umap["far"])


def test_pictures_show_some_but_the_nearest_is_of_all(monkeypatch):
    """The first members alone make clouds and planes; the last one is the nearest of the others."""
    monkeypatch.setattr(geometry, "embed", lambda latents, seed: latents)
    trajectories = RNG.normal(size=(5, 2, 6))
    trajectories[4, 1] = 3 * trajectories[0, 0]
    others, quality = 2 * trajectories[4, :1], RNG.random((5, 2))
    result = geometry.geometry(trajectories, {"others": others}, quality, seed=0, shown=3)
    every, shown = trajectories.reshape(10, 6), trajectories[:3].reshape(6, 6)
    np.testing.assert_array_equal(result.quality, quality[:3].reshape(6))
    np.testing.assert_array_equal(result.umap[geometry.TRAIN], shown)
    assert [len(xy) for xy in result.pca.values()] == [6, 1]
    np.testing.assert_allclose(result.pca[geometry.TRAIN].mean(axis=0), 0, atol=1e-12)
    cloud = result.clouds[geometry.TRAIN]
    np.testing.assert_allclose(cloud.norms, np.linalg.norm(shown, axis=1))
    assert len(cloud.cosines) == 12  # of 15 pairs, less those of the same member
    between, owners = 1 - cdist(shown, every, "cosine"), np.repeat(np.arange(5), 2)
    between[np.repeat(np.arange(3), 2)[:, None] == owners] = -np.inf
    np.testing.assert_allclose(cloud.nearest, between.max(axis=1))
    assert cloud.nearest[0] == pytest.approx(1)  # of a member that is not shown
    np.testing.assert_allclose(result.clouds["others"].nearest, 1)
    whole = geometry.geometry(trajectories, {}, quality, seed=0, shown=9)
    np.testing.assert_array_equal(whole.quality, quality.reshape(10))
