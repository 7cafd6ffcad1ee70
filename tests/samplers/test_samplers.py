"""Every sampler keeps one contract."""

import logging

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import (
    ALL,
    DIFFUSION,
    NAMES,
    ON_HOST,
    QUICK,
    SUBSAMPLED,
    WEIGHT_SAMPLERS,
    WITH_TOOLS,
    D,
    draw,
    fit,
    fit_draw,
    fitted,
    make,
    some_anchors,
)

from hyperjax import samplers
from hyperjax.config import SamplersConfig
from hyperjax.errors import HyperJaxError

# The contract


@pytest.mark.parametrize("name", ALL)
def test_draws_finite_float32_deterministically(name):
    sampler, state = make(name), fitted(name)
    samples = sampler.sample(jax.random.key(1), state, 5)
    assert samples.shape == (5, D)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    same, other = draw(sampler, state, 5), draw(sampler, state, 5, seed=2)
    np.testing.assert_array_equal(samples, same)
    assert np.array_equal(same, other) == (name == "aligned_mean")
    assert (len(np.unique(same, axis=0)) == 1) == (name == "aligned_mean")
    assert draw(sampler, state, 1).shape == (1, D)


@pytest.mark.parametrize("name", ALL)
def test_fit_depends_on_the_key_alone(name):
    sampler = make(name)
    again = fit(sampler, some_anchors())
    np.testing.assert_array_equal(draw(sampler, again, 3), draw(sampler, fitted(name), 3))


@pytest.mark.parametrize("name", ALL)
def test_few_anchors_are_enough(name):
    assert np.isfinite(fit_draw(make(name), some_anchors(count=4), 2)).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*WEIGHT_SAMPLERS, "prior")])
def test_latents_stay_within_their_range(name):
    reach = 1 + 5 * QUICK.kde_bandwidth  # the paper's samplers add noise without a bound
    assert np.abs(draw(make(name), fitted(name), 200)).max() <= reach


@pytest.mark.parametrize("name", ALL)
def test_report_is_of_numbers(name):
    sampler = make(name)
    report = sampler.report(fitted(name), draw(sampler, fitted(name), 3))
    assert all(type(value) is float and np.isfinite(value) for value in report.values())
    expected = {"gan": {"coverage", "spread"}, "neigh": {"clipped"}}
    assert set(report) == expected.get(name.rpartition(":")[2].removesuffix("30"), set())


@pytest.mark.parametrize("name", [n for n in ALL if n not in ON_HOST])
def test_state_is_a_pytree_of_arrays(name):
    leaves = jax.tree.leaves(fitted(name))
    assert bool(leaves) == (name not in DIFFUSION)  # which look at no anchors
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == np.float32 for leaf in leaves)


@pytest.mark.parametrize("name", [n for n in ALL if n not in (*ON_HOST, *SUBSAMPLED, *WITH_TOOLS)])
def test_sample_can_be_transformed(name):
    sampler, state = make(name), fitted(name)
    keys = jax.random.split(jax.random.key(3), 3)
    draw_one = jax.jit(jax.vmap(lambda key: sampler.sample(key, state, 1)))
    assert jax.eval_shape(draw_one, keys).shape == (3, 1, D)


@pytest.mark.parametrize("name", NAMES)
def test_sample_compiles_once_for_each_n(name, caplog):
    others = {"kde_bandwidth": 0.1, "joint_bandwidth": 0.9, "noise_scale": 0.7}
    first, second = make(name), make(name, **others)
    states = fitted(name), fit(second, some_anchors())
    keys = jax.random.split(jax.random.key(0))
    first.sample(keys[0], states[0], 5)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        first.sample(keys[1], states[0], 5)
        second.sample(keys[0], states[1], 5)
        assert "jit(_sample" not in caplog.text
        if name == "aligned_mean":  # the cheapest shows that the log would tell
            first.sample(keys[0], states[0], 6)
            assert "Compiling jit(_sample" in caplog.text


@pytest.mark.parametrize("name", ALL)
def test_mistakes_are_named(name):
    sampler, state = make(name), fitted(name)
    key, anchors, quality = jax.random.key(0), some_anchors(), np.ones(20)
    for n in (0, -3):
        with pytest.raises(HyperJaxError, match=f"{name}: cannot draw {n} samples"):
            sampler.sample(key, state, n)
    with pytest.raises(HyperJaxError, match=rf"{name}: there are no anchors \(shape \(0, {D}\)"):
        sampler.fit(key, anchors[:0], quality[:0])
    with pytest.raises(HyperJaxError, match=rf"{name}: anchors have shape \({D},\)"):
        sampler.fit(key, anchors[0], quality)
    with pytest.raises(HyperJaxError, match=rf"{name}: quality has shape \(19,\), expected \(20,"):
        sampler.fit(key, anchors, quality[1:])
    anchors[3, :2], anchors[7, 1] = np.nan, np.inf
    with pytest.raises(HyperJaxError, match=f"{name}: 2 of 20 anchors hold NaN"):
        sampler.fit(key, anchors, quality)


@pytest.mark.parametrize("name", [n for n in ALL if not n.endswith("30")])
def test_quality_is_not_needed_without_a_selection(name):
    fit(make(name), some_anchors(), quality=np.full(20, np.nan))


def test_registry():
    assert NAMES == (
        "uniform", "counterfactual", "kde", "kde30", "kde_anchor", "kde_anchor30",
        "neigh", "neigh30", "gan", "gan30", "joint", "joint30", "prior",
        "aligned_mean", "average", "average_nearest", "noise", "pca",
    )  # fmt: skip
    plain = tuple(name for name in NAMES if name != "prior")
    assert samplers.names() == plain
    assert samplers.names(denoiser=True) == (*plain, *DIFFUSION)
    wrappers = ("subsample", "bootstrap", "refine", "repair", "polish")
    lines = samplers.describe()
    assert tuple(lines) == (*NAMES, *DIFFUSION, *(f"{name}:NAME" for name in wrappers))
    assert len(set(lines.values())) == len(lines)
    assert all(line and "\n" not in line for line in lines.values())
    for name in NAMES:
        space = "weights" if name in WEIGHT_SAMPLERS else "latent"
        assert make(name).space == space
        assert make(name).description == lines[name]
    assert "best 12.5 %" in make("kde30", best_fraction=0.125).description


@pytest.mark.parametrize(
    "name", ["gauss", "", "kde:kde30", "subsample:", "pca:subsample", "refine", "diffusion:kde"]
)
def test_unknown_name_lists_the_names(name):
    some = ".*".join(("bootstrap:NAME", "diffusion30", "kde_anchor30", "polish:NAME", "prior"))
    message = rf"unknown sampler '{name}'; there is: .*{some}"
    with pytest.raises(HyperJaxError, match=message):
        samplers.get_sampler(name, SamplersConfig())
    with pytest.raises(HyperJaxError, match=message):
        samplers.check(name)


@pytest.mark.parametrize("name", [*WEIGHT_SAMPLERS, "diffusion", "repair:average"])
def test_weight_samplers_need_the_right_spec(name):
    with pytest.raises(HyperJaxError, match=f"{name} draws weights: it needs their WeightSpec"):
        samplers.get_sampler(name, SamplersConfig())
    with pytest.raises(HyperJaxError, match=f"{name}: anchors have 18 values.*conv1, fc1.*has 19"):
        fit(make(name), some_anchors(size=18))


@pytest.mark.parametrize("name", ["joint", "pca", "gan", "average_nearest"])
def test_one_anchor_has_no_covariance(name):
    with pytest.raises(HyperJaxError, match=f"{name}: one anchor .* at least 2"):
        fit(make(name), some_anchors(count=1))


# The best anchors


def test_only_the_best_anchors_are_used():
    quality = np.array([0.1, 0.9, np.nan, 0.5, 0.8, 0.3, 0.2, 0.6, 0.7, 0.4, 0.0])
    anchors = np.repeat(np.arange(11)[:, None] / 20, 4, axis=1)
    for name in ("kde30", "kde_anchor30"):
        sampler = make(name, kde_bandwidth=1e-6)
        used = np.unique(np.round(20 * fit_draw(sampler, anchors, 200, quality)))
        np.testing.assert_array_equal(used, [1, 4, 8])  # threshold .63, by hand
    samples = fit_draw(make("joint30", joint_bandwidth=0.0), anchors, 200, quality)
    np.testing.assert_array_equal(np.unique(np.round(20 * samples)), [1, 4, 8])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 3), st.sampled_from([0.1, 0.25, 0.5, 1.0]), st.data())
def test_number_of_the_best(known, missing, fraction, data):
    order = data.draw(st.permutations(range(known + missing)))
    quality = np.array([i if i < known else np.nan for i in order], np.float32)
    anchors = np.repeat(np.nan_to_num(quality, nan=-1.0)[:, None], 2, axis=1)
    kept = np.asarray(fit(make("kde30", best_fraction=fraction), anchors, quality).anchors)[:, 0]
    first = known - 1 - int((known - 1) * fraction)  # rank of the quantile, rounded up
    np.testing.assert_array_equal(np.sort(kept), np.arange(first, known))


def test_equal_quality_keeps_all():
    assert len(fit(make("kde30"), some_anchors(), np.full(20, 0.1)).anchors) == 20


def test_best_of_unknown_quality():
    with pytest.raises(HyperJaxError, match=r"kde30: .*best 30 % of 20 anchors: .* NaN"):
        fit(make("kde30"), some_anchors(), np.full(20, np.nan))
