import dataclasses
import errno
import json
import os

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from store_cases import INFO, SPEC, assert_same, make_zoo

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.store import checksums, zoo_file
from hyperjax.zoo import METRICS, Zoo


@pytest.fixture
def zoo():
    return make_zoo()


@pytest.fixture
def path(tmp_path, zoo):
    path = tmp_path / "zoo.safetensors"
    zoo_file.write(path, zoo)
    return path


def with_header(path, change):
    """Rewrite the JSON header of a file, with its checksum, keeping its data."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    fields = json.loads(data[8:end])
    fields["__metadata__"]["header"] = checksums.BLANK
    change(fields)
    text = json.dumps(fields).encode()
    path.write_bytes(checksums.sealed(len(text).to_bytes(8, "little") + text) + data[end:])


def test_round_trip(path, zoo):
    result = zoo_file.read(path)
    assert_same(result, zoo)
    assert (result.weights.dtype, result.epochs.dtype) == (np.float32, np.int32)
    assert result.members.dtype == np.int64
    assert_same(zoo_file.read(str(path)), zoo)
    assert os.listdir(path.parent) == [path.name]


def test_second_moments(tmp_path, zoo):
    """Beside the weights where they are kept; other files know nothing of them."""
    moments = np.random.default_rng(3).random(zoo.weights.shape, np.float32)
    kept, path = dataclasses.replace(zoo, second_moments=moments), tmp_path / "kept"
    zoo_file.write(path, kept)
    found = zoo_file.read(path)
    assert_same(found, zoo)
    np.testing.assert_array_equal(found.second_moments, moments)
    assert safetensors.numpy.load_file(path)["second_moments"].shape == (5, 3, 9)
    partial = tmp_path / "partial"
    mapped = zoo_file.allocate(partial, SPEC, zoo.members, zoo.epochs, INFO, moments=True)
    mapped.weights[:], mapped.second_moments[:] = zoo.weights, moments
    for name, values in zoo.metrics.items():
        mapped.metrics[name][:] = values
    zoo_file.seal(partial)
    zoo_file.flush(mapped)
    assert partial.read_bytes() == path.read_bytes()
    with pytest.raises(HyperJaxError, match=r"second moments have shape \(5, 3, 8\), expected"):
        dataclasses.replace(zoo, second_moments=moments[..., :8])


def test_other_dtypes_and_layouts_are_converted(tmp_path, zoo):
    path = tmp_path / "new" / "zoo"
    turned = np.asfortranarray(zoo.weights.astype(np.float64))
    zoo_file.write(path, Zoo(SPEC, turned, [0, 1, 25], list(range(7, 12)), zoo.metrics, INFO))
    assert_same(zoo_file.read(path), zoo)


def test_the_safetensors_library_reads_it(path, zoo):
    tensors = safetensors.numpy.load_file(path)
    names = {"weights", "members", "epochs", *(f"metrics/{n}" for n in METRICS)}
    assert set(tensors) == names | {f"checksums/{name}" for name in names}
    np.testing.assert_array_equal(tensors["weights"], zoo.weights)
    np.testing.assert_array_equal(tensors["members"], zoo.members)
    np.testing.assert_array_equal(tensors["epochs"], zoo.epochs)
    np.testing.assert_array_equal(tensors["metrics/val_loss"], zoo.metrics["val_loss"])
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "hyperjax-zoo"
    assert metadata["schema"] == "1"
    assert weights.from_json(metadata["spec"]) == SPEC
    assert json.loads(metadata["info"]) == INFO


def test_it_reads_what_the_safetensors_library_writes(tmp_path, zoo):
    tensors = {"weights": zoo.weights, "members": zoo.members, "epochs": zoo.epochs}
    tensors |= {f"metrics/{name}": values for name, values in zoo.metrics.items()}
    metadata = {
        "format": "hyperjax-zoo",
        "schema": "1",
        "spec": weights.to_json(SPEC),
        "info": json.dumps(INFO),
    }
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    assert_same(zoo_file.read(path), zoo)


def test_reading_maps_and_does_not_load(path, zoo, monkeypatch):
    result = zoo_file.read(path)
    assert isinstance(result.weights, np.memmap)
    assert np.shares_memory(result.weights, result.weights[2:, 1])
    with pytest.raises(ValueError, match="read-only"):
        result.weights[0] = 0
    # what is on disk changes under the map: nothing had been copied
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(42).tobytes()
    with open(path, "r+b") as file:
        file.write(data)
    assert result.weights[-1, -1, -1] == 42


@pytest.mark.parametrize("names", [(), ("test_loss",)])
def test_metrics_that_were_not_measured_are_not_written(tmp_path, zoo, names):
    some = dataclasses.replace(zoo, metrics={name: zoo.metrics[name] for name in names})
    zoo_file.write(tmp_path / "zoo", some)
    assert tuple(zoo_file.read(tmp_path / "zoo").metrics) == names
    assert_same(zoo_file.read(tmp_path / "zoo"), some)


def test_latents_round_trip(tmp_path, zoo, path):
    """Of any number and precision, mapped like the weights; a zoo without them has none."""
    assert zoo_file.read(path).latents is None
    latents = np.random.default_rng(1).normal(size=(5, 4))
    zoo_file.write(path, dataclasses.replace(zoo, latents=np.asfortranarray(latents)))
    result = zoo_file.read(path)
    assert_same(result, dataclasses.replace(zoo, latents=latents.astype(np.float32)))
    assert result.latents.dtype == np.float32
    assert isinstance(result.latents, np.memmap)
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(path)["latents"], latents.astype(np.float32)
    )
    again = tmp_path / "again"
    zoo_file.write(again, result)  # as it was read
    assert again.read_bytes() == path.read_bytes()


def test_latents_of_another_number_of_members_are_damage(path, zoo):
    zoo_file.write(path, dataclasses.replace(zoo, latents=np.zeros((5, 4))))
    with_header(path, _set("latents", shape=[4, 5]))
    with pytest.raises(HyperJaxError, match=r"damaged: zoo latents have shape \(4, 5\)"):
        zoo_file.read(path)


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"none": None, "yes": True, "text": 'a "quoted"\n\u2028 line', "empty": [{}, []]},
        {"float": 0.1 + 0.2, "tiny": 5e-324, "large": 2**53 + 1, "nested": {"a": {"b": [1, 2.5]}}},
    ],
)
def test_info_round_trip(tmp_path, zoo, info):
    """To the bit, and in any order of its fields the same file."""
    zoo_file.write(tmp_path / "a", dataclasses.replace(zoo, info=info))
    assert zoo_file.read(tmp_path / "a").info == info
    turned = dict(reversed(info.items()))
    zoo_file.write(tmp_path / "b", dataclasses.replace(zoo, info=turned))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    mapped = zoo_file.allocate(tmp_path / "c", SPEC, zoo.members, zoo.epochs, info)
    assert mapped.info == info


def test_a_full_disk_is_noticed_before_anything_is_computed(tmp_path, zoo, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "zoo.partial"
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HyperJaxError, match=r"zoo\.partial: No space left .*needs 0\.00\d+ MB"):
        zoo_file.allocate(path, SPEC, zoo.members, zoo.epochs, INFO)
    assert not path.exists()


def test_a_folder_that_cannot_be_made(tmp_path, zoo):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "zoo"
    with pytest.raises(HyperJaxError, match=r"cannot write .*file/zoo"):
        zoo_file.allocate(path, SPEC, zoo.members, zoo.epochs, INFO)
    with pytest.raises(HyperJaxError, match=r"cannot write .*file/zoo"):
        zoo_file.write(path, zoo)
    with pytest.raises(HyperJaxError, match=r"cannot read .*file/zoo"):
        zoo_file.read(path)


def test_missing(tmp_path):
    with pytest.raises(HyperJaxError, match="nowhere: there is no such"):
        zoo_file.read(tmp_path / "nowhere")
    with pytest.raises(HyperJaxError, match=f"cannot read {tmp_path}"):
        zoo_file.read(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1, -400])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HyperJaxError, match=r"zoo\.safetensors.*truncated"):
        zoo_file.read(path)


@pytest.mark.parametrize(
    "data",
    [
        b"not a zoo at all, but some text",
        b"PK\x03\x04" + bytes(100),
        (20).to_bytes(8, "little") + b"{" * 20,
        (4).to_bytes(8, "little") + b"\xff\xfe\x00\x01",
        (4).to_bytes(8, "little") + b"null",
        (2**63 + 5).to_bytes(8, "little") + b"{}" * 100,
        (99_999_999).to_bytes(8, "little") + b"{}" * 100,
        bytes(64),
    ],
    ids=["text", "zip", "json", "utf-8", "null", "huge", "long", "zeros"],
)
def test_garbage(path, data):
    path.write_bytes(data)
    with pytest.raises(HyperJaxError, match=r"zoo\.safetensors: not a safetensors file"):
        zoo_file.read(path)


def test_foreign_safetensors(path):
    safetensors.numpy.save_file({"weights": np.zeros((5, 3, 9), np.float32)}, path)
    with pytest.raises(HyperJaxError, match=r"zoo\.safetensors: .*not a HyperJAX zoo"):
        zoo_file.read(path)
    text = b'{"__metadata__": ["format"]}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(HyperJaxError, match=r"zoo\.safetensors: .*not a HyperJAX zoo"):
        zoo_file.read(path)


def test_another_schema(path):
    with_header(path, lambda fields: fields["__metadata__"].update(schema="2"))
    with pytest.raises(HyperJaxError, match=r"zoo\.safetensors: schema version 2, .* version 1"):
        zoo_file.read(path)


def _set(tensor, **changes):
    return lambda fields: fields[tensor].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("weights"),
        lambda fields: fields["__metadata__"].pop("spec"),
        lambda fields: fields["__metadata__"].update(spec="{}"),
        lambda fields: fields["__metadata__"].update(info="{"),
        lambda fields: fields.update(weights="F32"),
        _set("weights", dtype="BF16"),
        _set("weights", shape=[5, 3, 10]),
        _set("weights", shape=[9, 3, 5]),
        _set("epochs", data_offsets=[8, 4]),
        _set("epochs", data_offsets=[-4, 8]),
        _set("epochs", data_offsets=[0, 10**9]),
        _set("epochs", data_offsets=[0, 3]),
        _set("epochs", data_offsets="ab"),
    ],
)
def test_damaged_headers(path, change):
    with_header(path, change)
    with pytest.raises(HyperJaxError, match=r"zoo\.safetensors.*damaged"):
        zoo_file.read(path)


def test_a_digest_tells_weights_apart(tmp_path, zoo):
    first, other = tmp_path / "first", tmp_path / "other"
    zoo_file.write(first, zoo)
    zoo_file.write(other, dataclasses.replace(zoo, info={"seed": 3}))
    assert zoo_file.digest(first) == zoo_file.digest(other)
    zoo_file.write(other, dataclasses.replace(zoo, weights=zoo.weights + np.float32(1e-6)))
    assert zoo_file.digest(first) != zoo_file.digest(other)
