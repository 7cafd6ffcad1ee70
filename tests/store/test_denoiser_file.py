import dataclasses
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from denoiser_cases import EQUIVARIANT, GRAPH, MLP, make_denoiser
from safetensors import safe_open
from store_cases import bytes_of_another_process

from hyperjax import weights
from hyperjax.config import DenoiserConfig
from hyperjax.diffusion import Denoiser, Wiener, denoise
from hyperjax.errors import HyperJaxError
from hyperjax.store import denoiser_file

INFO = {"seed": 3, "val_ratio": {"0.15": 0.9, "1": 0.75}, "best_step": 1200}


def make(graph=GRAPH):
    return make_denoiser(graph, count=20)


def arrays_of(denoiser):
    return denoiser.params, denoiser.wiener, denoiser.scale, denoiser.reference


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "denoiser.safetensors"
    denoiser_file.write(path, make(), INFO)
    return path


def same(ours, theirs):
    assert jax.tree.structure(arrays_of(ours)) == jax.tree.structure(arrays_of(theirs))
    for one, other in zip(
        jax.tree.leaves(arrays_of(ours)), jax.tree.leaves(arrays_of(theirs)), strict=True
    ):
        assert (one.shape, one.dtype) == (other.shape, np.dtype(np.float32))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("graph", [GRAPH, EQUIVARIANT])
def test_round_trip(tmp_path, graph):
    """To the bit and in shape: also of a Wiener denoiser that has no axes."""
    path, denoiser = tmp_path / "denoiser.safetensors", make(graph)
    denoiser_file.write(path, denoiser, INFO)
    result, info = denoiser_file.read(path)
    assert re.fullmatch("[0-9a-f]{16}", info.pop("digest"))
    assert info == INFO
    assert isinstance(result.wiener, Wiener)
    assert (result.config, result.spec) == (denoiser.config, MLP)
    assert hash(result.config) == hash(denoiser.config)  # static under jit
    same(result, denoiser)
    assert os.listdir(path.parent) == [path.name]


def test_what_is_read_denoises_as_what_was_written(path):
    result, _ = denoiser_file.read(path)
    noisy = np.random.default_rng(0).normal(size=(3, MLP.num_params)).astype(np.float32)
    compute = jax.jit(lambda *inputs: denoise(*inputs))  # with a cache of its own
    np.testing.assert_array_equal(compute(result, noisy, 0.5), compute(make(), noisy, 0.5))
    assert compute._cache_size() == 1  # and is compiled once


def test_equal_denoisers_give_equal_bytes(path):
    """In another process, from device arrays, with the info in another order."""
    code = (
        "info = dict(reversed(t.INFO.items()))\n"
        "t.denoiser_file.write(sys.argv[1], jax.device_put(t.make()), info)\n"
    )
    assert bytes_of_another_process(Path(__file__), code, path) == path.read_bytes()


def digest(path):
    return denoiser_file.read(path)[1]["digest"]


def test_digest_is_that_of_the_tensors_alone(tmp_path, path):
    denoiser = make()
    other = dataclasses.replace(denoiser, config=DenoiserConfig(folds=2))
    denoiser_file.write(tmp_path / "same", other, {})
    assert digest(tmp_path / "same") == digest(path)
    digests = {digest(path)}
    for changes in (
        {"scale": denoiser.scale * 2},
        {"reference": denoiser.reference + 1},
        {"wiener": denoiser.wiener._replace(rest=np.float32(0.5))},
        {"params": denoiser.params | {"condition": denoiser.params["readout"]}},
    ):
        denoiser_file.write(tmp_path / "changed", dataclasses.replace(denoiser, **changes), INFO)
        digests.add(digest(tmp_path / "changed"))
    assert len(digests) == 5


def test_the_safetensors_library_reads_it(path):
    tensors = safetensors.numpy.load_file(path)
    names = {name for name in tensors if not name.startswith("params/")}
    assert names == {"scale", "reference", *(f"wiener/{name}" for name in Wiener._fields)}
    assert "params/round_0/attention/qkv/kernel" in tensors
    with safe_open(path, framework="numpy") as file:
        (fields,) = map(json.loads, file.metadata().values())
    assert (fields["format"], fields["schema"]) == ("hyperjax-denoiser", "1")
    assert weights.from_json(fields["spec"]) == MLP


def test_a_failure_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(HyperJaxError, match=r"cannot write .*safetensors/d"):
        denoiser_file.write(path / "d", make(), INFO)
    assert path.read_bytes() == before


# --- files that are none --------------------------------------------------------------------


def test_missing_and_unreadable(path):
    with pytest.raises(HyperJaxError, match="nowhere: there is no such denoiser"):
        denoiser_file.read(path.parent / "nowhere")
    with pytest.raises(HyperJaxError, match=str(path.parent)):
        denoiser_file.read(path.parent)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HyperJaxError, match=r"denoiser\.safetensors: not a whole safetensors"):
        denoiser_file.read(path)


def rewrite(path, tensors=None, metadata=None, **changes):
    """The file with some tensors and fields changed; None: without them. Without checksums."""
    with safe_open(path, framework="numpy") as file:
        fields = json.loads(file.metadata()["hyperjax"]) | {"checksums": None, "header": None}
        fields |= changes
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays = {k: v for k, v in (arrays | (tensors or {})).items() if v is not None}
    fields = {k: v for k, v in fields.items() if v is not None}
    metadata = {"hyperjax": json.dumps(fields)} if metadata is None else metadata
    path.write_bytes(safetensors.numpy.save(arrays, metadata))


@pytest.mark.parametrize(
    "changes", [{"format": "hyperjax-zoo"}, {"format": None}, {"schema": "7"}, {"schema": 1}]
)
def test_foreign_files_and_other_schemas(path, changes):
    rewrite(path, **changes)
    with pytest.raises(HyperJaxError, match=r"denoiser\.safetensors: format.*schema '1'"):
        denoiser_file.read(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "format None"),
        ({"format": "hyperjax-hyperrep", "schema": "3"}, "format 'hyperjax-hyperrep'"),
        ({"hyperjax": "{"}, "damaged"),
        ({"hyperjax": "[1]"}, "damaged"),
        ({"hyperjax": "{}"}, "format None"),
    ],
)
def test_metadata_that_are_not_ours(path, metadata, message):
    rewrite(path, metadata=metadata)
    with pytest.raises(HyperJaxError, match=rf"denoiser\.safetensors: {message}"):
        denoiser_file.read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": 3},
        {"config": {"graph": {"edge_dim": "wide"}}},
        {"config": {"graph": 3}},
        {"config": {"layers": 3}},
        {"spec": None},
        {"spec": '{"layers": []'},
        {"spec": 5},
        {"info": None},
        {"info": 3},
        {"digest": None},
        {"tensors": {"scale": None}},
        {"tensors": {"wiener/mean": None}},
        {"tensors": {"wiener/extra": np.zeros(1, np.float32)}},
        {"tensors": {"scale/extra": np.zeros(1, np.float32)}},
    ],
)
def test_damaged(path, changes):
    rewrite(path, **changes)
    with pytest.raises(HyperJaxError, match=r"denoiser\.safetensors: damaged"):
        denoiser_file.read(path)


def test_a_denoiser_is_a_pytree():
    denoiser = make()
    leaves, structure = jax.tree.flatten(denoiser)
    same(jax.tree.unflatten(structure, leaves), denoiser)
    assert isinstance(jax.device_put(denoiser), Denoiser)
