"""The denoising audit: its errors against plain NumPy, its history, and what it shows."""

import json
import types

import jax
import numpy as np
import pytest
from denoiser_cases import CONFIG, MLP, make_denoiser, unit_of, vectors_of

from hyperjax import paper
from hyperjax.diffusion import denoise, wiener
from hyperjax.diffusion.denoiser_training import LEVELS
from hyperjax.paper import audit_denoiser as task
from hyperjax.report import page
from hyperjax.store import workdir

TRAIN, HELD_OUT = vectors_of(MLP, 7, seed=1), vectors_of(MLP, 5, seed=2)


def contexts(folder, **kwargs):
    denoiser = make_denoiser(**kwargs)
    unit = unit_of(denoiser)
    data = types.SimpleNamespace(
        train=np.stack([np.full_like(TRAIN, np.nan), TRAIN * unit], axis=1),  # the last counts
        test=np.stack([np.full_like(HELD_OUT, np.nan), HELD_OUT * unit], axis=1),
        val=None,
    )
    trained = types.SimpleNamespace(
        denoiser=denoiser, denoiser_info={"members": 40, "best_step": 4}, data=data,
        config=types.SimpleNamespace(seed=3), folder=folder,
    )  # fmt: skip
    return types.SimpleNamespace(trained=trained)


def log(folder, *records):
    for record in records:
        workdir.log_metrics(folder, record)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("denoiser")
    log(path, {"stage": "hyperrep/lwln", "step": 0, "train_ratio": 9.0, "val_ratio": 9.0},
        *({"stage": "denoiser", "step": step, "train_ratio": 1 - step / 10,
           "val_ratio": 1 - step / 20, "val_ratio_1": 5.0} for step in (0, 4, 8)))  # fmt: skip
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "denoiser", "st')  # a killed run
    return path


@pytest.fixture(scope="module")
def context(folder):
    return contexts(folder)


@pytest.fixture(scope="module")
def result(context):
    return task.run(context)


def test_errors_are_those_of_denoised_networks(context, result):
    """Of last snapshots, in units of layer variances, with other noise: on average the same."""
    denoiser, unit = context.trained.denoiser, unit_of(context.trained.denoiser)
    rng, compiled, linearly = np.random.default_rng(0), jax.jit(denoise), jax.jit(wiener.denoise)
    for part, members in (("heldout", HELD_OUT), ("train", TRAIN)):
        found = result.errors[part]
        assert found.members == len(members)
        clean = np.tile(members, (350 // len(members), 1))
        for number, level in enumerate(LEVELS):
            noisy = np.float32(clean + level * rng.normal(size=clean.shape))
            ours = np.asarray(compiled(denoiser, noisy * unit, level)) / unit
            linear = linearly(denoiser.wiener, noisy, np.full(350, level, np.float32))
            for error, output in ((found.denoiser, ours), (found.wiener, linear)):
                each = ((np.asarray(output) - clean) ** 2).mean(axis=1).reshape(-1, len(members))
                width = 5 * each.mean(axis=1).std() + 1e-6  # of one draw of the noise
                assert error[number] == pytest.approx(float(each.mean()), abs=float(width))
    assert result.info["parameters"] == sum(
        np.size(leaf) for leaf in jax.tree.leaves(denoiser.params)
    )
    assert result.info["steps"] == CONFIG.training.steps
    assert (result.info["train vectors"], result.info["best step"]) == (40, 4)


def test_without_a_network_the_ratio_is_one(folder):
    found = task.run(contexts(folder, zero=True))
    for errors in found.errors.values():
        np.testing.assert_allclose(errors.ratio, 1, rtol=1e-6)


def test_history_is_what_was_logged(result, tmp_path):
    np.testing.assert_array_equal(result.history.step, [0, 4, 8])
    np.testing.assert_allclose(result.history.train, [1, 0.6, 0.2])
    np.testing.assert_allclose(result.history.validation, [1, 0.8, 0.6])
    nothing = task.history(tmp_path)
    assert [len(part) for part in nothing] == [0, 0, 0]


def test_the_section(context, result, tmp_path):
    section = task.section(context, result)
    page.write_report(tmp_path, "title", {}, [section])
    errors, facts = section.tables
    held_out, train = (result.errors[part] for part in ("heldout", "train"))
    assert [row[0] for row in errors.rows] == ["0.15", "0.3", "0.6", "1", "1.5", "mean"]
    np.testing.assert_allclose(errors.column(3)[:-1], held_out.denoiser / held_out.wiener)
    np.testing.assert_allclose(errors.column(4)[:-1], train.wiener)
    assert errors.rows[-1][3] == pytest.approx(held_out.ratio.mean())
    assert dict(facts.rows) == result.info
    assert f"is {held_out.ratio.mean():.3f} on 5 held-out members" in section.text[-1]
    assert f"{train.ratio.mean():.3f} on 7 train members" in section.text[-1]
    assert [figure.name for figure in section.figures] == ["levels", "training"]
    data = json.loads((tmp_path / "denoiser.json").read_text())
    np.testing.assert_allclose(data["errors"]["heldout"]["wiener"], held_out.wiener)


def test_without_a_history_there_is_no_picture_of_it(context, result):
    bare = result._replace(history=task.History(*np.zeros((3, 0))))
    assert [figure.name for figure in task.section(context, bare).figures] == ["levels"]


def test_it_is_in_the_registry():
    assert paper.load("denoiser") is task
    assert set(paper.NEED_DENOISER) <= set(paper.DESCRIPTIONS)
    assert set(paper.AUDITS) <= set(paper.DESCRIPTIONS)
