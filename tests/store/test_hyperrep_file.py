import dataclasses
import json
import os
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from hyperjax import weights
from hyperjax.config import (
    ArchitectureConfig,
    AugmentConfig,
    AutoencoderConfig,
    WeightDataConfig,
)
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.store import hyperrep_file
from hyperjax.weights import LayerSpec, WeightSpec

SPEC = WeightSpec(
    (LayerSpec("c", "conv", (3, 1, 2, 2), pool="max"), LayerSpec("d", "dense", (4, 12))), "gelu"
)
CONFIG = AutoencoderConfig(
    ArchitectureConfig(dim=16, heads=2, tanh=False),
    WeightDataConfig(epochs_seen=(3, 4), augment=AugmentConfig(erase=0.25)),
)
INFO = {"seed": 3, "val_loss": 0.25, "dataset": "digits"}


@pytest.fixture
def hyperrep():
    rng = np.random.default_rng(0)
    params = {
        "encoder": {
            "embed": {"kernel": rng.normal(size=(4, 3)), "bias": np.zeros(3)},
            "positions": rng.normal(size=(1, 2, 3)),
        },
        "decoder": {"scalar": np.array(2.0)},
    }
    stats = Statistics(rng.normal(size=67), np.ones(2), np.array([0.5, 2]))
    tree = HyperRep(CONFIG, SPEC, params, stats, rng.normal(size=67))
    arrays = jax.tree.map(np.float32, (tree.params, tree.statistics, tree.reference))
    return HyperRep(CONFIG, SPEC, *arrays)


@pytest.fixture
def path(tmp_path, hyperrep):
    path = tmp_path / "hyperrep.safetensors"
    hyperrep_file.write(path, hyperrep, INFO)
    return path


def test_round_trip(path, hyperrep):
    result, info = hyperrep_file.read(path)
    digest = info.pop("digest")
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert info == INFO
    assert (result.config, result.spec) == (hyperrep.config, hyperrep.spec)
    assert hash(result.config) == hash(hyperrep.config)  # static under jit
    ours, theirs = ((h.params, h.statistics, h.reference) for h in (result, hyperrep))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
    assert os.listdir(path.parent) == [path.name]


def test_device_arrays_are_written_too(tmp_path, hyperrep):
    on_device = dataclasses.replace(hyperrep, params=jax.device_put(hyperrep.params))
    hyperrep_file.write(tmp_path / "new" / "h", on_device, {})
    result, _ = hyperrep_file.read(tmp_path / "new" / "h")
    jax.tree.map(np.testing.assert_array_equal, result.params, hyperrep.params)


def digest(path):
    return hyperrep_file.read(path)[1]["digest"]


def test_digest_is_that_of_the_tensors_alone(tmp_path, path, hyperrep):
    """Equal whatever the info, the settings and the device; another for any changed value."""
    hyperrep_file.write(tmp_path / "same", hyperrep, {"seed": 4})
    other = dataclasses.replace(
        hyperrep, config=AutoencoderConfig(), params=jax.device_put(hyperrep.params)
    )
    hyperrep_file.write(tmp_path / "same too", other, INFO)
    assert digest(path) == digest(tmp_path / "same") == digest(tmp_path / "same too")
    digests = {digest(path)}
    for tensors in (
        {"params/encoder/positions": np.float32([[[1, 0, 0], [0, 0, 0]]])},
        {"params/encoder/positions": np.float32([[[0, 1, 0], [0, 0, 0]]])},
        {"params/encoder/positions": np.float32([[[0, 1], [0, 0], [0, 0]]])},  # another shape
        {"params/decoder/scalar": np.float32([2.0000002])},
        {"params/decoder/scalar": None, "params/decoder/other": np.float32([2])},
        {"statistics/layer_std": np.float32([2, 0.5])},
        {"reference": np.zeros(67, np.float32)},
    ):
        changed = tmp_path / "changed"
        changed.write_bytes(path.read_bytes())
        rewrite(changed, tensors, digest=None)  # hence computed from the tensors
        digests.add(digest(changed))
    assert len(digests) == 8


def test_digest_is_read_from_the_header(path, monkeypatch):
    """The tensors are not hashed again, but for a file that does not say."""
    expected = digest(path)
    hashed = []
    monkeypatch.setattr(hyperrep_file, "digest", hashed.append)
    assert digest(path) == expected
    assert not hashed
    monkeypatch.undo()
    rewrite(path, digest=None)
    assert digest(path) == expected


def test_the_safetensors_library_reads_it(path, hyperrep):
    tensors = safetensors.numpy.load_file(path)
    assert set(tensors) == {
        "params/encoder/embed/kernel", "params/encoder/embed/bias", "params/encoder/positions",
        "params/decoder/scalar", "statistics/mean", "statistics/scale", "statistics/layer_std",
        "reference",
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["statistics/layer_std"], [0.5, 2])
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["hyperjax"])
    assert weights.from_json(metadata["spec"]) == SPEC
    assert json.loads(metadata["config"])["data"]["epochs_seen"] == [3, 4]


def rewrite(path, tensors=None, **metadata):
    """The file with some tensors and fields changed; None: without them. As an older version wrote
    it: with a field of metadata each, without checksums."""
    with safe_open(path, framework="numpy") as file:
        fields = file.metadata()
        fields = json.loads(fields["hyperjax"]) if "hyperjax" in fields else fields
        metadata = fields | {"checksums": None, "header": None} | metadata
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays = {k: v for k, v in (arrays | (tensors or {})).items() if v is not None}
    metadata = {k: v for k, v in metadata.items() if v is not None}
    path.write_bytes(safetensors.numpy.save(arrays, metadata))


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(HyperJaxError, match="nowhere: there is no such hyper-representation"):
        hyperrep_file.read(tmp_path / "nowhere")
    with pytest.raises(HyperJaxError, match=str(tmp_path)):
        hyperrep_file.read(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HyperJaxError, match="file/h"):
        hyperrep_file.read(tmp_path / "file" / "h")


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HyperJaxError, match=r"hyperrep\.safetensors: not a whole safetensors"):
        hyperrep_file.read(path)


@pytest.mark.parametrize("changes", [{"format": "hyperjax-zoo"}, {"format": None}, {"schema": "7"}])
def test_foreign_files_and_other_schemas(path, changes):
    rewrite(path, **changes)
    with pytest.raises(HyperJaxError, match=r"hyperrep\.safetensors: .*schema '3'"):
        hyperrep_file.read(path)


def test_no_metadata_at_all(path):
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(HyperJaxError, match=r"hyperrep\.safetensors: format None"):
        hyperrep_file.read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "{"},
        {"config": "null"},
        {"config": '{"architecture": {"dim": "wide"}}'},
        {"config": '{"architecture": 3}'},
        {"config": json.dumps(dataclasses.asdict(CONFIG) | {"attention": 3})},
        {"config": None},
        {"spec": '{"layers": []'},
        {"info": None},
        {"tensors": {"reference": None}},
        {"tensors": {"statistics/mean": None}},
        {"tensors": {"statistics/extra": np.zeros(1)}},
    ],
)
def test_damaged(path, changes):
    rewrite(path, **changes)
    with pytest.raises(HyperJaxError, match=r"hyperrep\.safetensors: damaged"):
        hyperrep_file.read(path)


def test_graphs_of_older_versions_have_to_be_trained_again(tmp_path, hyperrep):
    architecture = dataclasses.replace(CONFIG.architecture, network="graph")
    older = dataclasses.replace(
        hyperrep, config=dataclasses.replace(CONFIG, architecture=architecture)
    )
    hyperrep_file.write(tmp_path / "h", older, {})
    with pytest.raises(HyperJaxError, match=r"h: made by an older version.*train it again"):
        hyperrep_file.read(tmp_path / "h")
    encoder = older.params["encoder"] | {"readout": {"kernel": np.zeros(1, np.float32)}}
    newer = dataclasses.replace(older, params=older.params | {"encoder": encoder})
    hyperrep_file.write(tmp_path / "h", newer, {})
    assert hyperrep_file.read(tmp_path / "h")[0].config == older.config
