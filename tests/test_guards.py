"""What the product never does: the tests run with it forbidden, and it is nowhere in the code."""

import os
import pickle
import re
import socket
import subprocess
import sys

import pytest
from script_calls import ROOT

CODE = sorted(path for path in (ROOT / "hyperjax").rglob("*.py"))


def test_no_network_in_this_process_or_any_other():
    with pytest.raises(AssertionError, match="no network"):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(AssertionError, match="no network"), socket.socket() as plain:
        plain.connect(("127.0.0.1", 9))
    code = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no network" in done.stderr
    assert os.environ["PYTHONPATH"].startswith(str(ROOT / "tests" / "guards"))


def test_no_pickle_is_read(tmp_path):
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(1))
    with open(tmp_path / "x.pickle", "rb") as file, pytest.raises(AssertionError, match="program"):
        pickle.load(file)


def test_the_code_reads_pickles_by_its_own_list_alone():
    """`torch_file` has the one unpickler, which calls nothing but what it lists."""
    reads = re.compile(
        r"\b(?:pickle|joblib|dill|cloudpickle|marshal|shelve)\.\w+|allow_pickle=True"
        r"|import torch\b|\beval\(|\bexec\("
    )
    found = {(path.name, match) for path in CODE for match in reads.findall(path.read_text())}
    assert found == {("torch_file.py", "pickle._Unpickler")}


def test_the_code_asks_for_nothing_from_the_network():
    """Models are pulled and pushed by huggingface_hub where the user says so, in `hub`."""
    asks = re.compile(r"\b(urllib|requests|httpx|aiohttp|http\.client|ftplib|socket)\b")
    found = {path.name for path in CODE if asks.search(path.read_text())}
    assert found == set()
