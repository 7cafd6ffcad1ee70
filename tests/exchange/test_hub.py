"""Folders of a hub: what is saved is read again, and says what it is."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from exchange_cases import CNN, zoo_of
from hyperrep_cases import SPEC, STATS, TINY, VECTORS

import hyperjax as hj
from hyperjax import hyperrep
from hyperjax.errors import HyperJaxError


def front_matter(folder):
    _, matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(matter), text


def test_a_zoo(tmp_path):
    zoo = zoo_of(CNN)
    folder = hj.save_pretrained(
        zoo, tmp_path / "zoo", title="My zoo", license="mit", datasets=["mnist"],
        metrics={"accuracy": 0.9512345}, text="Trained with care.",
    )  # fmt: skip
    found = hj.from_pretrained(folder)
    np.testing.assert_array_equal(found.weights, zoo.weights)
    assert found.spec == CNN
    matter, text = front_matter(folder)
    assert matter == {
        "library_name": "hyperjax", "license": "mit", "datasets": ["mnist"],
        "metrics": ["accuracy"], "tags": ["hyperjax", "weight-space-learning", "zoo"],
    }  # fmt: skip
    for words in ("# My zoo", "2464 weights", "4 members", "| accuracy | 0.9512 |",
                  "Trained with care.", "hj.from_pretrained"):  # fmt: skip
        assert words in text
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "zoo"
    assert config["architecture"]["layers"][0]["shape"] == [8, 1, 5, 5]


def test_a_hyper_representation(tmp_path):
    params = hyperrep.init(hyperrep.make_trainer(TINY, SPEC), jax.random.key(0)).params
    model = hj.HyperRep(TINY, SPEC, params, STATS, VECTORS[0])
    found = hj.from_pretrained(hj.save_pretrained(model, tmp_path / "hr"))
    np.testing.assert_array_equal(
        hj.encode(found, VECTORS[:3], aligned=True), hj.encode(model, VECTORS[:3], aligned=True)
    )
    matter, text = front_matter(tmp_path / "hr")
    assert matter["tags"][-1] == "hyper-representation"
    assert "license" not in matter
    assert "hj.encode(found, networks)" in text
    config = json.loads((tmp_path / "hr" / "config.json").read_text())
    assert config["config"]["architecture"]["latent"] == 8


def test_what_is_no_folder_of_ours(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    with pytest.raises(HyperJaxError, match="expected HyperRep, Denoiser or Zoo"):
        hj.save_pretrained(VECTORS, tmp_path)
    with pytest.raises(HyperJaxError, match=r"model\.safetensors: there is no such file"):
        hj.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(HyperJaxError, match="no safetensors file"):
        hj.from_pretrained(tmp_path)
    save_file({"a": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(HyperJaxError, match="no file of HyperJAX, but of another library"):
        hj.from_pretrained(tmp_path)
    with pytest.raises(HyperJaxError, match="nothing to upload"):
        hj.push_to_hub(tmp_path / "absent", "me/zoo")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as where it is not installed
    with pytest.raises(HyperJaxError, match="me/zoo: no such folder; to reach a hub, huggingface"):
        hj.from_pretrained("me/zoo")
    asked = {}

    def download(name, **settings):
        asked.update(settings, name=name)
        return tmp_path / "elsewhere"

    module = SimpleNamespace(snapshot_download=download)
    errors = SimpleNamespace(
        HfHubHTTPError=OSError, HFValidationError=ValueError, LocalEntryNotFoundError=OSError
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    zoo = zoo_of(CNN)
    hj.save_pretrained(zoo, tmp_path / "elsewhere")
    found = hj.from_pretrained("me/zoo", revision="v1", token="t")
    np.testing.assert_array_equal(found.weights, zoo.weights)
    assert (asked["name"], asked["revision"], asked["token"]) == ("me/zoo", "v1", "t")
