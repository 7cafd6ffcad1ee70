"""Sections of populations that lack something: an epoch, enough models, a metric, a name."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hyperjax.analysis import ensembles
from hyperjax.analysis.comparisons import OverEpochs, Tuned
from hyperjax.app import evaluate, populations
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError
from hyperjax.paper import audit_probes, fig4, fig5, tab2


def test_a_target_without_its_first_epoch():
    rows = {
        "B_T": Tuned({21: np.ones(4), 25: np.ones(4)}, {}, 1.0),
        "S_kde": Tuned({0: np.ones(3), 25: np.ones(3)}, {}, 1.0),
    }
    table = tab2._accuracy_table(tab2.Transfer("a", "b", (0, 25), OverEpochs(rows, {})))
    assert [row[:2] for row in table.rows] == [("B_T", 4), ("S_kde", 3)]
    assert table.columns == ("population", "models", "epoch 0 (%)", "epoch 25 (%)")
    assert table.rows[0][2] is None


def test_populations_too_small_for_any_ensemble():
    context = SimpleNamespace(trained=SimpleNamespace(config=Config()))
    result = {
        name: ensembles.Ensembles(
            np.full(2, 0.5), np.array(sizes, int), np.full((len(sizes), 9), x)
        )
        for name, sizes, x in (("few", [], 0.0), ("enough", [5, 10], 0.7))
    }
    few, enough = fig5.section(context, result).tables[0].rows
    assert np.isnan(few[-1])
    assert enough[-1] == pytest.approx(20)
    fig5.section(context, {"few": result["few"]})


def test_targets_that_are_not_known_are_left_out(monkeypatch):
    shape = (3, 2)
    metrics = {"test_accuracy": np.ones(shape), "train_accuracy": np.full(shape, np.nan)}
    monkeypatch.setattr(audit_probes, "tested", lambda *_: SimpleNamespace(metrics=metrics))
    trained = SimpleNamespace(task=None, zoo=SimpleNamespace(select=lambda *_, **__: None))
    found = audit_probes._targets(trained, np.arange(3), np.array([1, 5]))
    assert list(found) == [audit_probes.ACCURACY, audit_probes.EPOCH]
    metrics["train_accuracy"] = np.ones(shape)
    assert tuple(audit_probes._targets(trained, np.arange(3), np.array([1, 5]))) == (
        audit_probes.TARGETS
    )


def context(*files, names=("kde", "average", "repair:kde")):
    trained = SimpleNamespace(
        main="lwln", pair={}, config=Config(), zoo=SimpleNamespace(spec=object())
    )
    return SimpleNamespace(trained=trained, samplers=names, files=tuple(map(Path, files)))


@pytest.mark.parametrize("name", ["B_T", "held-out members", "average"])
def test_a_file_takes_no_other_populations_name(name):
    with pytest.raises(HyperJaxError, match=f"another population {name}; rename the file"):
        populations.sources(context(f"x/{name}.safetensors"))
    assert "mine" in populations.sources(context("x/mine.safetensors"))


@pytest.mark.parametrize("denoiser", [False, True])
def test_samplers_of_networks_whose_accuracy_nobody_knows(denoiser):
    """By default none that chooses the best: each would fail its experiment."""
    quality = np.full((4, 2), np.nan)
    run = SimpleNamespace(
        has_denoiser=denoiser, has_images=False, data=SimpleNamespace(quality=quality)
    )
    unknown = evaluate._samplers(run)
    assert "kde" in unknown
    assert ("diffusion" in unknown) == denoiser
    assert not [name for name in unknown if name.endswith("30")]
    quality[0, 0] = 0.5
    known = evaluate._samplers(run)
    assert {"kde30", "gan30"} <= set(known)
    assert ("refine:kde30" in known) == ("diffusion30" in known) == denoiser
    assert not [name for name in known if "repair" in name]  # without images, no moments


def test_only_what_needs_no_latents_is_without_an_autoencoder():
    assert fig4.without_autoencoder(context("mine.safetensors")) == ["average"]
