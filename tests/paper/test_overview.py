"""The head of the report, and what `evaluate.py` notes of every experiment."""

import dataclasses
import time
from types import SimpleNamespace

import pytest

from hyperjax.app import evaluate
from hyperjax.config import ArchitectureConfig, Config
from hyperjax.paper import overview


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "tokens", "linear_path": False}, "attention, latent 9"),
        (
            {"network": "graph", "linear_path": True},
            "messages along the networks' edges beside fixed principal components, latent 9",
        ),
    ],
)
def test_the_architecture_in_words(changes, words):
    config, architecture = Config(), ArchitectureConfig(latent=9, **changes)
    autoencoder = dataclasses.replace(config.autoencoder, architecture=architecture)
    run = SimpleNamespace(config=dataclasses.replace(config, autoencoder=autoencoder))
    assert overview._architecture(run) == words


def test_seconds_of_computing_and_of_the_report():
    def pause(seconds):
        return lambda *_: time.sleep(seconds)

    experiment = SimpleNamespace(run=pause(0.3), section=pause(0.05))
    registry = SimpleNamespace(DESCRIPTIONS={"fig": "a figure"}, load=lambda name: experiment)
    published = []
    _, failures, times = evaluate._run(
        None, registry, ["fig"], lambda sections, failures: published.append(sections)
    )
    assert failures == {}
    assert published == [[None]]
    assert times["fig"]["computing"] >= 0.3
    assert times["fig"]["report"] >= 0.05
