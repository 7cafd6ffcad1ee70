"""Damage anywhere in a file of any kind is noticed; files without checksums are read."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from denoiser_cases import make_denoiser
from hyperrep_cases import SPEC, STATS, TINY, VECTORS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hyperjax.app import integrity
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep
from hyperjax.population import Moments
from hyperjax.store import checksums, denoiser_file, hyperrep_file, moments_file, zoo_file
from hyperjax.zoo import METRICS, Zoo

GOLDEN = Path(__file__).parents[1] / "golden"
READ = {
    "zoo": zoo_file.read, "samples": zoo_file.read, "hyperrep": hyperrep_file.read,
    "denoiser": denoiser_file.read, "moments": moments_file.read,
}  # fmt: skip
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def zoo_of(members=70, epochs=2, **fields):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(members, epochs, SPEC.num_params)).astype(np.float32)
    metrics = {name: rng.random((members, epochs), np.float32) for name in METRICS}
    ids = np.arange(members) + 100
    return Zoo(SPEC, values, np.arange(epochs), ids, metrics, {"kind": "zoo"}, **fields)


def write(kind: str, path: Path) -> None:
    if kind == "zoo":
        zoo_file.write(path, zoo_of())
    elif kind == "samples":
        zoo_file.write(path, zoo_of(5, 1, latents=np.ones((5, 3))))
    elif kind == "hyperrep":
        params = {"encoder": {"w": np.ones((4, 3)), "b": np.zeros(3)}}
        hyperrep_file.write(path, HyperRep(TINY, SPEC, params, STATS, VECTORS[0]), {"seed": 3})
    elif kind == "denoiser":
        denoiser_file.write(path, make_denoiser(count=20), {"seed": 3})
    else:
        factor = np.random.default_rng(0).normal(size=(24, 9))
        covariance = np.float32(factor @ factor.T)
        moments_file.write(path, Moments(np.zeros((4, 2, 3)), covariance), {"dataset": "x"})


@pytest.fixture(scope="module", params=list(READ))
def file(request, tmp_path_factory):
    """A file of every kind, and how it is read."""
    path = tmp_path_factory.mktemp("files") / f"{request.param}.safetensors"
    write(request.param, path)
    return path, READ[request.param]


def refused(path: Path, read) -> None:
    with pytest.raises(HyperJaxError) as noticed:
        read(path)
    assert path.name in str(noticed.value)
    assert not integrity.verify([path])


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_workdir_that_lacks_a_record_is_checked_all_the_same(tmp_path, capsys, name):
    write("zoo", tmp_path / "zoo.safetensors")
    (tmp_path / name).write_text("{")
    assert not integrity.verify([tmp_path])
    assert f"cannot read {tmp_path / name}" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "zoo.safetensors").rename(tmp_path / "model.safetensors")
    assert integrity.verify([tmp_path])  # a folder of a hub, whose config.json is another


def test_whole_files_are_whole(file, capsys):
    path, read = file
    read(path)
    assert integrity.verify([path])
    assert "1 whole" in capsys.readouterr().out


@FEW
@given(data=st.data())
def test_flipped_bytes_are_noticed(file, tmp_path, data):
    """In the header, its length, its padding and the data alike; one or many."""
    path, read = file
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    last = data.draw(st.sampled_from([header, len(content)])) - 1
    places = st.sets(st.integers(0, last), min_size=1, max_size=50)
    for place in data.draw(places):
        content[place] ^= data.draw(st.integers(1, 255))
    copy = tmp_path / path.name
    copy.write_bytes(content)
    refused(copy, read)


def test_every_byte_of_a_header_counts(file, tmp_path):
    """Those that JSON does not see too, and the checksum itself in capitals."""
    path, read = file
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    copy = tmp_path / path.name
    for place in (*range(0, header, 97), *range(header - 12, header)):
        copy.write_bytes(content[:place] + bytes([content[place] ^ 0x29]) + content[place + 1 :])
        with pytest.raises(HyperJaxError, match=path.name):
            read(copy)


@FEW
@given(data=st.data())
def test_truncated_and_appended(file, tmp_path, data):
    path, read = file
    content, copy = path.read_bytes(), tmp_path / path.name
    copy.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(copy, read)
    copy.write_bytes(content + data.draw(st.binary(min_size=1, max_size=100)))
    refused(copy, read)


def overwrite(path: Path, name: str, place: int) -> None:
    """One byte of a tensor, `place` bytes from its begin."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    begin, _ = json.loads(content[8:start])[name]["data_offsets"]
    content[start + begin + place] ^= 1
    path.write_bytes(content)


def test_damage_is_named_by_tensor_and_members(tmp_path, monkeypatch, capsys):
    """Of a file that is too large to be checked whenever it is read."""
    path, row = tmp_path / "zoo.safetensors", 2 * SPEC.num_params * 4
    zoo_file.write(path, zoo_of())
    assert zoo_file.damaged(path) == {}
    for place in (0, 3 * row, 4 * row + 17, 5 * row, 70 * row - 1):
        overwrite(path, "weights", place)
    overwrite(path, "metrics/val_loss", 8 * 64)
    overwrite(path, "epochs", 3)
    monkeypatch.setattr(zoo_file, "_SMALL", path.stat().st_size - 1)
    assert zoo_file.read(path).weights.shape == (70, 2, SPEC.num_params)
    found = zoo_file.damaged(path)
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "weights": [0, 3, 4, 5, 69], "metrics/val_loss": [64], "epochs": [],
    }  # fmt: skip
    words = "epochs; metrics/val_loss of the members in rows 64; weights of the members in rows 0, "
    assert not integrity.verify([path])
    assert words + "3 to 5, 69;" in capsys.readouterr().out
    with pytest.raises(HyperJaxError, match=r"zoo\.safetensors: damaged: epochs; .*zoo\.repair"):
        integrity.check_zoo(path)
    monkeypatch.undo()
    with pytest.raises(HyperJaxError, match=r"damaged: epochs; .*rows 64"):
        zoo_file.read(path)


def test_a_damaged_tensor_is_named(tmp_path):
    path = tmp_path / "hyperrep.safetensors"
    write("hyperrep", path)
    overwrite(path, "params/encoder/w", 5)
    overwrite(path, "reference", 5)
    with pytest.raises(HyperJaxError) as noticed:
        hyperrep_file.read(path)
    names = str(noticed.value).split("damaged: tensor ")[1].split(";")[0]
    assert sorted(names.split(", ")) == ["params/encoder/w", "reference"]


def test_members_are_sealed_one_by_one(tmp_path):
    """What is filled in place has the checksums of those that are done, and the bytes of a file
    that is written at once."""
    zoo, partial = zoo_of(), tmp_path / "partial"
    target = zoo_file.allocate(partial, SPEC, zoo.members, zoo.epochs, zoo.info)
    for rows in (slice(0, 40), slice(40, 70)):
        target.weights[rows] = zoo.weights[rows]
        for name, values in zoo.metrics.items():
            target.metrics[name][rows] = values[rows]
        zoo_file.seal(partial, range(rows.start, rows.stop))
        left = zoo_file.damaged(partial)
        assert left.keys() == ({"weights", "members", *(f"metrics/{n}" for n in METRICS)}
                               if rows.stop < 70 else set())  # fmt: skip
        for unsealed in left.values():
            np.testing.assert_array_equal(unsealed, np.arange(40, 70))
    zoo_file.flush(target)
    zoo_file.write(tmp_path / "whole", zoo)
    assert partial.read_bytes() == (tmp_path / "whole").read_bytes()
    target.weights[3] = 0
    target.metrics["val_loss"][5] = 7
    zoo_file.seal(partial, names=["metrics/val_loss"])  # the weights' checksums stay
    assert {k: v.tolist() for k, v in zoo_file.damaged(partial).items()} == {"weights": [3]}


@pytest.mark.parametrize("version", ["v0_1", "v0_2"])
def test_files_without_checksums_are_read_and_said_to_be_unchecked(version, capsys):
    files = [GOLDEN / version / "zoo" / "zoo.safetensors", GOLDEN / version / "hyperrep" /
             "lwln.safetensors"]  # fmt: skip
    zoo_file.read(files[0])
    hyperrep_file.read(files[1])
    assert zoo_file.damaged(files[0]) is None
    assert integrity.verify([GOLDEN / version])
    text = capsys.readouterr().out
    assert text.count("unchecked") == 3  # each of them, and their number
    integrity.check_zoo(files[0])
    assert "unchecked (it has no checksums)" in capsys.readouterr().out.replace("\n", " ")


def test_checksums_that_are_gone_are_damage(tmp_path):
    """A file that has some is not taken for an older one."""
    zoo_file.write(tmp_path / "zoo", zoo_of(3))
    tensors = safetensors.numpy.load_file(tmp_path / "zoo")
    with safe_open(tmp_path / "zoo", "numpy") as opened:
        meta = {k: v for k, v in opened.metadata().items() if k != "header"}
    safetensors.numpy.save_file(tensors, tmp_path / "zoo", meta)
    refused(tmp_path / "zoo", zoo_file.read)
    write("moments", tmp_path / "moments")
    with safe_open(tmp_path / "moments", "numpy") as opened:
        fields = json.loads(opened.metadata()["hyperjax"])
    arrays = safetensors.numpy.load_file(tmp_path / "moments")
    for gone in ("header", "checksums"):
        kept = {name: value for name, value in fields.items() if name != gone}
        data = safetensors.numpy.save(arrays, {"hyperjax": json.dumps(kept)})
        (tmp_path / "moments").write_bytes(data)
        with pytest.raises(HyperJaxError, match="moments: damaged"):
            moments_file.read(tmp_path / "moments")


def test_a_folder_is_verified_with_its_json_files(tmp_path, capsys):
    zoo_file.write(tmp_path / "samples" / "a.safetensors", zoo_of(3))
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "theirs.safetensors")
    (tmp_path / "manifest.json").write_text("[]")
    (tmp_path / "config.json").write_text("{}")
    assert integrity.verify([tmp_path, tmp_path / "samples"])
    assert "5 files" in (text := capsys.readouterr().out)
    assert "4 whole, 1 foreign" in text.replace("\n", " ")
    for name, content in (("manifest.json", "[{"), ("config.json", '{"no": 1}')):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content)
        assert not integrity.verify([tmp_path])
        assert name in capsys.readouterr().out
        (tmp_path / name).write_text(whole)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        with pytest.raises(HyperJaxError, match=f"{name}: expected a file, or a folder"):
            integrity.verify([tmp_path / name])


def test_numbers_in_words():
    assert checksums.ranges([]) == ""
    assert checksums.ranges(np.array([0, 1, 2, 5, 7, 8])) == "0 to 2, 5, 7 to 8"


def test_crc_is_that_of_the_bytes():
    """The check value of CRC-32, of strided arrays and of none."""
    assert checksums.crc32(np.frombuffer(b"123456789", np.uint8)) == 0xCBF43926
    strided = np.frombuffer(b"1-2-3-4-5-6-7-8-9", np.uint8)[::2]
    assert checksums.crc32(strided) == 0xCBF43926
    assert checksums.crc32(np.zeros((0, 3))) == 0


def test_equal_zoos_give_equal_bytes_whatever_their_layout(tmp_path):
    zoo = zoo_of(4)
    turned = dataclasses.replace(zoo, weights=np.asfortranarray(zoo.weights))
    zoo_file.write(tmp_path / "a", zoo)
    zoo_file.write(tmp_path / "b", turned)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    shutil.copy(tmp_path / "a", tmp_path / "c")
    assert integrity.verify([tmp_path / "c"])
