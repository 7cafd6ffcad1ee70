"""Noise on latents and lines between them, on a tiny autoencoder with an exact linear path."""

import dataclasses

import jax
import numpy as np
import pytest
from population_cases import random_task

from hyperjax import config as config_lib
from hyperjax import hyperrep
from hyperjax.analysis import lines
from hyperjax.config import (
    ArchitectureConfig,
    AutoencoderConfig,
    Config,
    OptimizationConfig,
)
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.paper import fig3 as task
from hyperjax.population import evaluation
from hyperjax.report import plots

SPEC = zoo_cnn_spec(1, "tanh")
TINY = AutoencoderConfig(
    architecture=ArchitectureConfig(
        dim=8, heads=2, mlp_dim=8, blocks=1, latent=4, dropout=0.0, projection_layers=1,
        projection_hidden=4, projection_dim=4,
    ),
    training=OptimizationConfig(batch_size=8),
)  # fmt: skip
RNG = np.random.default_rng(0)
TRAIN = 0.3 * RNG.standard_normal((9, SPEC.num_params)).astype(np.float32)
HELDOUT = TRAIN[:5] + 0.05 * RNG.standard_normal((5, SPEC.num_params)).astype(np.float32)
LEVELS = (0.0, 0.1, 1.0)


@pytest.fixture(scope="module")
def small_task():
    return random_task(50)


@pytest.fixture(scope="module")
def model():
    trainer = hyperrep.make_trainer(TINY, SPEC)
    stats = hyperrep.statistics(TINY.data, SPEC, TRAIN)
    params = hyperrep.init(trainer, jax.random.key(0)).params
    params = hyperrep.principal_components(TINY, SPEC, params, stats, TRAIN)
    return HyperRep(TINY, SPEC, jax.tree.map(np.asarray, params), stats, TRAIN[0])


@pytest.fixture(scope="module")
def result(model, small_task):
    seen = []
    found = lines.smoothness(
        {"lwln": model},
        {"train": TRAIN, "heldout": HELDOUT},
        np.stack([TRAIN[:3], HELDOUT[:3]], axis=1),
        TRAIN.mean(0),
        small_task,
        levels=LEVELS,
        pairs=7,
        points=3,
        key=jax.random.key(1),
        advance=lambda steps, note: seen.append(note),
    )
    assert seen == ["lwln", "weights"]
    return found


def test_no_noise_is_a_reconstruction(result, model, small_task):
    outputs = hyperrep.reconstruct(model, HELDOUT, aligned=True)
    expected = evaluation.evaluate(small_task, outputs, small_task.test).accuracy
    np.testing.assert_array_equal(result.robustness["lwln"].accuracy[:, 0], expected)
    r2 = losses.r_squared(SPEC, outputs, HELDOUT, TRAIN.mean(0), model.statistics.layer_std)
    found = result.robustness["lwln"].r2
    assert found.shape == (5, len(LEVELS))
    assert found[:, 0].mean() == pytest.approx(r2["all"], abs=1e-4)
    assert found[:, 0].mean() > found[:, 1].mean() > found[:, 2].mean()
    origin = hyperrep.decode(model, np.zeros((1, TINY.architecture.latent), np.float32))
    expected = evaluation.evaluate(small_task, origin, small_task.test).accuracy[0]
    assert result.robustness["lwln"].origin == pytest.approx(expected)


def test_ends_of_lines_are_reconstructions_and_members(result, model, small_task):
    def accuracy(vectors):
        return evaluation.evaluate(small_task, vectors, small_task.test).accuracy

    early, late = TRAIN[:3], HELDOUT[:3]
    line = result.lines["trajectory", "lwln"]
    assert line.shape == (3, 3)
    np.testing.assert_array_equal(
        line[:, 0], accuracy(hyperrep.reconstruct(model, early, aligned=True))
    )
    np.testing.assert_array_equal(
        line[:, -1], accuracy(hyperrep.reconstruct(model, late, aligned=True))
    )
    line = result.lines["trajectory", "weights"]
    np.testing.assert_array_equal(line[:, 0], accuracy(early))
    np.testing.assert_array_equal(line[:, 1], accuracy((early + late) / 2))
    np.testing.assert_array_equal(line[:, -1], accuracy(late))
    z = hyperrep.encode(model, np.concatenate([early, late]), aligned=True)
    middle = accuracy(hyperrep.decode(model, (z[:3] + z[3:]) / 2))
    np.testing.assert_allclose(result.lines["trajectory", "lwln"][:, 1], middle, atol=0.021)
    assert result.lines["train", "lwln"].shape == (7, 3)
    assert result.lines["heldout", "weights"].shape == (7, 3)


def test_noise_has_the_length_that_its_level_says():
    latents = np.float32(RNG.normal(size=(50, 400)) * np.linspace(0.1, 5, 50)[:, None])
    noisy = lines.with_noise(latents, [0, 0.1, 0.5], jax.random.key(2))
    np.testing.assert_array_equal(noisy[:, 0], latents)
    noise = noisy - latents[:, None]
    relative = np.linalg.norm(noise, axis=-1) / np.linalg.norm(latents, axis=-1)[:, None]
    np.testing.assert_allclose(relative.mean(0), [0, 0.1, 0.5], rtol=0.02)
    np.testing.assert_allclose(noise[:, 2], 5 * noise[:, 1], atol=1e-4)  # the same draws
    other = lines.with_noise(latents, [0.5], jax.random.key(3))
    assert np.abs(other[:, 0] - noisy[:, 2]).max() > 0.1


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_pairs_are_different(count):
    total = count * (count - 1) // 2
    everything = lines.random_pairs(count, 10**9, np.random.default_rng(0))
    assert len({frozenset(pair) for pair in everything.tolist()}) == len(everything) == total
    assert (everything[:, 0] != everything[:, 1]).all()
    assert everything.max() == count - 1
    few = lines.random_pairs(count, 1, np.random.default_rng(5))
    assert few.shape == (1, 2)


def test_barrier_and_fluctuation_by_hand():
    courses = np.array([[0.2, 0.4, 0.6], [0.6, 0.1, 0.8], [0.8, 0.9, 0.2], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(lines.barrier(courses), [0, 0.6, 0, 0], atol=1e-7)
    np.testing.assert_allclose(lines.fluctuation(courses), [0, 1.0, 0.2, 0], atol=1e-7)


def test_trajectories_take_the_epochs_of_the_paper_where_the_zoo_has_them():
    assert task._ends(range(51)) == [5, 25]
    assert task._ends([0, 3, 8, 20, 30]) == [8, 20]
    assert task._ends([0, 1, 2, 3]) == [1, 3]
    assert task._ends([0, 50]) == [0, 50]
    assert task._ends([25]) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("points", 1), ("pairs", 0), ("noise_levels", ()), ("noise_levels", (0.1, 0.2)),
     ("noise_levels", (0.0, 0.0)), ("noise_levels", (0.0, float("inf")))],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(field, value):
    evaluation = dataclasses.replace(Config().evaluation, **{field: value})
    tree = config_lib.to_dict(dataclasses.replace(Config(), evaluation=evaluation))
    with pytest.raises(HyperJaxError, match=f"evaluation.{field}"):
        config_lib.from_dict(tree)


def test_baselines_are_dashed_and_zero_has_a_place_on_the_logarithmic_axis(monkeypatch):
    monkeypatch.setattr(plots, "render", lambda figure, kind: figure)
    x, y = np.array([0, 0.01, 0.1, 1.0]), np.arange(4.0)
    series = {name: (x, y, y - 1, y + 1) for name in ("ours", "baseline")}
    figure = plots.curves(series, "x", "y", dashed=["baseline"], linear_below=0.01)
    axes = figure.axes[0]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    places = axes.transData.transform(np.stack([x, y], axis=1))[:, 0]
    steps = np.diff(places)
    assert steps[0] > 0
    assert steps[1] == pytest.approx(steps[2], rel=0.01)  # decades are equally far apart
