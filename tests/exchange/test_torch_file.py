"""PyTorch's files, of its own making and of those who mean harm."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from exchange_cases import TORCH, corrupted

from hyperjax.errors import HyperJaxError
from hyperjax.exchange import export, sources, state_dict, torch_file

EXPECTED = {
    name: np.float32(values)
    for name, values in json.loads((TORCH / "expected.json").read_text())["state"].items()
}


def assert_state(found, **tolerance):
    assert list(found) == list(EXPECTED)
    for name, values in EXPECTED.items():
        np.testing.assert_allclose(np.float32(found[name]).ravel(), values, **tolerance)


@pytest.mark.parametrize("name", ["plain", "parameters", "views", "wrapped", "parallel"])
def test_state_dicts_of_every_kind(name):
    found = torch_file.read(TORCH / f"{name}.pt")
    if name == "wrapped":
        assert {key: found[key] for key in ("epoch", "lr", "args")} == {
            "epoch": 3, "lr": 0.1, "args": None
        }  # fmt: skip
    assert_state(state_dict.unwrapped(found), rtol=0)


def test_a_training_checkpoint():
    found = torch_file.read(TORCH / "training.ckpt")
    assert found["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert_state(state_dict.unwrapped(found), rtol=0)


@pytest.mark.parametrize(("name", "rtol"), [("half", 1e-3), ("bfloat16", 8e-3)])
def test_half_precision(name, rtol):
    found = torch_file.read(TORCH / f"{name}.pt")
    assert {x.dtype.name for x in found.values()} == {{"half": "float16"}.get(name, name)}
    assert_state(state_dict.unwrapped(found), rtol=rtol, atol=1e-6)


def test_what_was_read_belongs_to_the_reader():
    """The same pickle is parsed once; no two readings share a container."""
    first, second = (torch_file.read(TORCH / "wrapped.pt") for _ in range(2))
    first["epoch"] = "changed"
    state_dict.unwrapped(first).clear()
    assert second["epoch"] == 3
    assert_state(state_dict.unwrapped(second), rtol=0)
    assert_state(state_dict.unwrapped(torch_file.read(TORCH / "wrapped.pt")), rtol=0)


def test_files_of_one_pickle_have_their_own_numbers():
    state = torch_file.read(TORCH / "cnn.pt")
    other = {name: values + 1 for name, values in state.items()}
    for expected in (state, other):
        found = read_bytes(export.torch_bytes(expected))
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_what_is_written_is_read_again():
    """To the bit; PyTorch's own reading of it is tested where there is PyTorch."""
    state = torch_file.read(TORCH / "cnn.pt")
    data = export.torch_bytes(state)
    assert data == export.torch_bytes(state)
    path = zipfile.ZipFile(io.BytesIO(data))
    assert path.testzip() is None
    again = read_bytes(data)
    assert list(again) == list(state)
    for name in state:
        np.testing.assert_array_equal(again[name], state[name])


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read_bytes(data):
    Path("file.pt").write_bytes(data)
    return torch_file.read("file.pt")


def archive(program: bytes, entries=(), compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, values in (("a/data.pkl", program), ("a/byteorder", b"little"), *entries):
            file.writestr(name, values)
    return buffer.getvalue()


# --- those who mean harm ----------------------------------------------------------------------


class Calls:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


TOUCH = "touch harmed"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
HOSTILE = {
    "system": pickle.dumps(Calls(os.system, TOUCH), 2),
    "eval": pickle.dumps(Calls(eval, f"__import__('os').system('{TOUCH}')"), 2),
    "exec": pickle.dumps({"a": [Calls(exec, f"import os; os.system('{TOUCH}')")]}, 2),
    "open": pickle.dumps(Calls(open, "harmed", "w"), 2),
    "getattr": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system"), 2),
    "import": pickle.dumps(Calls(__import__, "antigravity"), 4),
    "nested": pickle.dumps({"state_dict": {"w": (1, {"x": Calls(os.system, TOUCH)})}}, 2),
    "globals by stack": pickle.dumps(Calls(os.system, TOUCH), 5),
    "functions of a known module": b"\x80\x02ccollections\nnamedtuple\nX\x01\x00\x00\x00a)\x86R.",
    "attributes of a module": b"\x80\x04\x8c\x05torch\x8c\x0b_utils.__a__\x93.",
    "instances": b"(S'touch harmed'\nios\nsystem\n.",
    "objects": b"(cos\nsystem\nS'touch harmed'\no.",
    "extension codes": b"\x80\x02\x82\x01.",
    "storage functions": b"\x80\x02ctorch.storage\n_load_from_bytes\nB\x01\x00\x00\x00a\x85R.",
    "no end": b"\x80\x02}",
    "a memo without end": b"\x80\x02}r\xff\xff\xff\xff.",
    "a text without end": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "deep nesting": b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
    "a tensor of a tensor": b"\x80\x02" + TENSOR + b"(K\x01K\x00)NNNtR.",
    "an odd storage": b"\x80\x02X\x01\x00\x00\x00aQ.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_pickle_is_executed(name):
    Path("file.pt").write_bytes(archive(HOSTILE[name]))
    with pytest.raises(HyperJaxError, match=r"^file\.pt: ") as caught:
        sources.tensors_of(Path("file.pt"))
    assert "\n" not in str(caught.value)
    assert os.listdir() == ["file.pt"]  # nor made
    if name in ("system", "eval", "nested"):
        assert "is refused: nothing was executed" in str(caught.value)


def test_classes_of_published_zoos_are_bags_that_do_nothing():
    program = (
        b"\x80\x02cghrp.evil\nSystem\nX\x0c\x00\x00\x00touch harmed\x85R}X\x01\x00\x00\x00aK\x01sb."
    )
    found = read_bytes(archive(program))
    assert isinstance(found, torch_file.Bag)
    assert vars(found) == {"a": 1}
    assert os.listdir() == ["file.pt"]


def tensor_of(size, stride, count=4, offset=0):
    """The program of one tensor."""

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    return (
        b"\x80\x02" + TENSOR + STORAGE + b"J" + struct.pack("<i", count) + b"tQ"
        + b"J" + struct.pack("<i", offset) + numbers(size) + numbers(stride) + b"\x89NtR."
    )  # fmt: skip


def test_tensors_stay_within_their_values():
    values = np.arange(4, dtype=np.float32)
    whole = ("a/data/0", values.tobytes())
    np.testing.assert_array_equal(
        read_bytes(archive(tensor_of((2, 2), (1, 2)), [whole])), [[0, 2], [1, 3]]
    )
    for program, entries in (
        (tensor_of((2, 2), (2, 1), offset=1), [whole]),  # beyond the end
        (tensor_of((2, 2), (-2, 1)), [whole]),  # before the beginning
        (tensor_of((1000, 1000), (0, 0)), [whole]),  # of one value, a million times
        (tensor_of((-1, 2), (2, 1)), [whole]),
        (tensor_of((5,), (1,), count=5), [whole]),  # fewer values than it says
        (tensor_of((4,), (1,)), []),  # none at all
    ):
        with pytest.raises(HyperJaxError, match=r"^file\.pt: "):
            read_bytes(archive(program, entries))


def test_archives_that_grow_are_refused():
    program = tensor_of((4,), (1,))
    bomb = archive(program, [("a/data/0", bytes(10**7))], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    with pytest.raises(HyperJaxError, match=r"is compressed, as torch\.save never does it"):
        read_bytes(bomb)


@pytest.mark.parametrize("name", ["plain.pt", "dataset.pt", "training.ckpt"])
def test_damaged_files_end_in_one_error_or_change_nothing(name):
    data = (TORCH / name).read_bytes()
    expected, refused = describe(read_bytes(data)), 0
    for seed in range(200):
        try:
            found = describe(read_bytes(corrupted(data, seed)))
        except HyperJaxError as error:
            refused += str(error).startswith("file.pt: ")
        else:  # padding, or names within the archive
            assert found == expected
    assert refused > 100


def describe(found):
    if isinstance(found, np.ndarray):
        return found.tolist()
    if isinstance(found, torch_file.Bag):
        return describe(vars(found))
    if isinstance(found, dict):
        return {name: describe(value) for name, value in found.items()}
    return [describe(value) for value in found] if isinstance(found, list | tuple) else found


def test_files_that_are_none():
    with pytest.raises(HyperJaxError, match=r"^absent\.pt: there is no such file"):
        torch_file.read("absent.pt")
    (TORCH / "legacy.pt").read_bytes()
    with pytest.raises(HyperJaxError, match=r"before 1\.6"):
        torch_file.read(TORCH / "legacy.pt")
    for data in (b"", b"text", archive(b".")[:40]):
        with pytest.raises(HyperJaxError, match=r"^file\.pt: "):
            read_bytes(data)
    os.mkdir("folder.pt")
    with pytest.raises(HyperJaxError, match=r"folder\.pt"):
        torch_file.read("folder.pt")
