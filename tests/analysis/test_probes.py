"""Linear probes against closed forms, SciPy and scikit-learn."""

import numpy as np
import pytest
import scipy.stats
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from hyperjax.analysis import probes
from hyperjax.analysis.probes import Parts
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.report import plots
from hyperjax.weights import LayerSpec, WeightSpec

RNG = np.random.default_rng(0)


def make_parts(members=(12, 5, 6), each=4, width=7, noise=0.0):
    """Features of very different scale, and a target that is linear in them."""
    scale, slope = np.geomspace(0.01, 100, width), RNG.normal(size=width)
    features = [RNG.normal(size=(count, each, width)) * scale + 3 for count in members]
    targets = [x / scale @ slope + 2 + noise * RNG.normal(size=x.shape[:2]) for x in features]
    return Parts(*features), Parts(*targets)


def test_a_linear_target_is_predicted_perfectly():
    features, target = make_parts()
    found = probes.probe({"x": features}, {"y": target}, bootstrap=50, seed=0)
    probe = found["x", "y"]
    assert probe.r2 == pytest.approx(1, abs=1e-9)
    assert [probe.tau, probe.last_tau] == pytest.approx([1, 1])
    assert probe.r2_ci[0] > 1 - 1e-9
    assert probe.strength == min(probes.STRENGTHS)
    np.testing.assert_allclose(probe.predicted, target.test, atol=1e-4)
    np.testing.assert_array_equal(probe.true, target.test)


def closed_form(features, target, strength):
    """Standardised by the train part, centred target, normal equations."""
    x, y = features.train.reshape(-1, features.train.shape[-1]), target.train.ravel()
    mean, std = x.mean(0), x.std(0)
    x = (x - mean) / std
    slope = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return lambda z: (z - mean) / std @ slope + y.mean()


@pytest.mark.parametrize("width", [7, 60])  # fewer and more features than samples
def test_ridge_equals_the_closed_form_and_validation_members_choose(width):
    features, target = make_parts(width=width, noise=2.0)
    other = Parts(*(RNG.normal(size=y.shape) for y in target))
    seen = []
    found = probes.probe({"x": features}, {"y": target, "other": other}, bootstrap=20, seed=0,
                       advance=lambda steps, note: seen.append(note))  # fmt: skip
    assert seen == ["x"]
    for name, wanted in (("y", target), ("other", other)):
        fits = {s: closed_form(features, wanted, s) for s in probes.STRENGTHS}
        r2 = {s: r2_score(wanted.val.ravel(), f(features.val).ravel()) for s, f in fits.items()}
        best = max(r2, key=r2.get)
        probe = found["x", name]
        assert probe.strength == best
        np.testing.assert_allclose(probe.predicted, fits[best](features.test), rtol=1e-6)
        assert probe.r2 == pytest.approx(r2_score(wanted.test.ravel(), probe.predicted.ravel()))
        in_train = r2_score(wanted.train.ravel(), fits[best](features.train).ravel())
        assert probe.train_r2 == pytest.approx(in_train)
        tau = scipy.stats.kendalltau(wanted.test[:, -1], probe.predicted[:, -1]).statistic
        assert probe.last_tau == pytest.approx(tau)


def test_resampled_statistics_equal_those_of_the_resample():
    """With ties, which the repeated members bring along and rounding adds."""
    true = np.round(RNG.normal(size=(6, 4)), 1)
    predicted = np.round(true + RNG.normal(size=true.shape), 1)
    draws = RNG.integers(0, 6, (20, 6))
    counts = np.stack([np.bincount(draw, minlength=6) for draw in draws]).astype(float)
    taus = [scipy.stats.kendalltau(true[d].ravel(), predicted[d].ravel()).statistic for d in draws]
    np.testing.assert_allclose(probes.kendall_tau_of(counts, true, predicted), taus)
    r2 = [r2_score(true[draw].ravel(), predicted[draw].ravel()) for draw in draws]
    np.testing.assert_allclose(probes.r_squared_of(counts, true, predicted), r2)


def test_intervals_hold_the_estimate_and_depend_on_the_seed_only():
    features, target = make_parts(members=(30, 10, 15), noise=2.0)

    def run(seed):
        return probes.probe({"x": features}, {"y": target}, bootstrap=300, seed=seed)["x", "y"]

    probe = run(0)
    assert probe.r2_ci[0] < probe.r2 < probe.r2_ci[1]
    assert probe.tau_ci[0] < probe.tau < probe.tau_ci[1]
    assert run(0).r2_ci == probe.r2_ci != run(1).r2_ci


def test_what_does_not_vary_has_no_r2_and_does_not_warn():
    features, target = make_parts(members=(4, 1, 1), each=2)
    features.train[..., 0] = features.val[..., 0] = features.test[..., 0] = 1.0
    constant = Parts(*(np.full(y.shape, 0.1) for y in target))
    found = probes.probe({"x": features}, {"y": target, "c": constant}, bootstrap=20, seed=0)
    assert np.isfinite(found["x", "y"].r2)
    assert np.isnan([*found["x", "y"].r2_ci, found["x", "y"].last_tau]).all()  # one test member
    assert np.isnan([found["x", "c"].r2, found["x", "c"].tau]).all()


def test_layer_statistics_by_hand():
    spec = WeightSpec(
        (LayerSpec("a", "conv", (2, 1, 2, 2)), LayerSpec("b", "dense", (3, 2))), "tanh"
    )
    vectors = RNG.normal(size=(5, 2, spec.num_params))
    found = probes.layer_statistics(spec, vectors)
    blocks = np.split(vectors, [8, 10, 16], axis=-1)  # weights, biases, weights, biases
    expected = []
    for block in blocks:
        expected += [block.mean(-1), np.mean((block - block.mean(-1, keepdims=True)) ** 2, -1)]
        expected += [np.percentile(block, q, axis=-1) for q in (1, 25, 50, 75, 99)]
    np.testing.assert_allclose(found, np.stack(expected, axis=-1), rtol=1e-6)
    assert probes.layer_statistics(zoo_cnn_spec(1, "tanh"), np.zeros((1, 2464))).shape == (1, 70)


@pytest.mark.parametrize("count", [6, 50])  # fewer and more vectors than dimensions
def test_principal_components_against_scikit_learn(count, monkeypatch):
    vectors = (RNG.normal(size=(count, 8)) * np.geomspace(1, 0.01, 8) + 5).astype(np.float32)
    monkeypatch.setattr(probes, "_VECTORS", 7)
    mean, components = probes.principal_components(vectors, 3)
    expected = PCA(3, svd_solver="full").fit(vectors.astype(np.float64))
    np.testing.assert_allclose(mean, expected.mean_)
    np.testing.assert_allclose(np.abs(components.T), np.abs(expected.components_), rtol=1e-6)


def test_picture_of_predictions(monkeypatch):
    groups = {"early": (RNG.normal(size=9), RNG.normal(size=9)), "late": ([1.0], [2.0])}
    assert plots.predictions(groups, "true", "predicted", kind="png").startswith(b"\x89PNG")
    monkeypatch.setattr(plots, "render", lambda figure, kind: figure)
    figure = plots.predictions(groups, "true", "predicted")
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(groups)
    for points, values in zip(axes.collections, groups.values(), strict=True):
        np.testing.assert_array_equal(points.get_offsets(), np.stack(values, axis=1))
    x, y = axes.lines[0].get_xy1()  # a point that does not widen the axes
    assert (axes.lines[0].get_slope(), x) == (1, y)
    assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
