"""Leases: one holder at a time, a dead one in nobody's way, one that lost its lease stops."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

from hyperjax.errors import HyperJaxError
from hyperjax.store import lease


def holder_of(path):
    return json.loads(path.read_text())


def write(path, **changed):
    path.write_text(json.dumps(lease._describe("train.py --x") | changed))


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_second_one_is_told_who_holds_it(tmp_path):
    path = tmp_path / "new" / ".lease"
    with lease.held(path, "the folder", "train.py --x"):
        message = (
            rf"^the folder is in use by process {os.getpid()} on {re.escape(os.uname().nodename)} "
            r"\(train\.py --x\) since 20\d\d-.*; --wait=SECONDS"
        )
        with pytest.raises(HyperJaxError, match=message), lease.held(path, "the folder"):
            pytest.fail("two hold it")
        assert holder_of(path)["command"] == "train.py --x"  # not released by who did not get it
    assert list(path.parent.iterdir()) == []


def test_the_second_one_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_POLL", 0.01)
    path, said, order = tmp_path / ".lease", [], []
    begun = threading.Event()

    def first():
        with lease.held(path, "it"):
            begun.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait()
    with pytest.raises(HyperJaxError), lease.held(path, "it", wait=0.05, say=said.append):
        pytest.fail("did not wait")
    with lease.held(path, "it", wait=30, say=said.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert len(said) == 2  # once each
    assert all(words.endswith("waiting for it") for words in said)


@pytest.mark.parametrize("changed", [{"pid": None}, {"started": 1}])
def test_a_dead_process_of_this_machine_locks_nobody_out(tmp_path, changed):
    """At once: also if another process has its number now."""
    if not lease._machine():
        pytest.skip("outside Linux heartbeats decide")
    path = tmp_path / ".lease"
    write(path, **({"pid": dead_process()} if "pid" in changed else changed))
    start = time.monotonic()
    with lease.held(path, "it"):
        assert holder_of(path)["pid"] == os.getpid()
    assert time.monotonic() - start < 0.4  # before a second look
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"token": "../../x", "pid": 1}'])
def test_a_holder_elsewhere_is_dead_without_a_sign_of_life(tmp_path, monkeypatch, text):
    """As is a file that nobody can read. Not before the time is over; clocks do not matter."""
    monkeypatch.setattr(lease, "_POLL", 0.01)
    path = tmp_path / ".lease"
    write(path, machine="elsewhere") if text is None else path.write_text(text)
    os.utime(path, (4e9, 4e9))  # their clock is in another century
    start = time.monotonic()
    with lease.held(path, "it", stale=0.3):
        assert time.monotonic() - start >= 0.3
        assert holder_of(path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_elsewhere_that_gives_signs_of_life_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_POLL", 0.01)
    path, done = tmp_path / ".lease", threading.Event()
    write(path, machine="elsewhere", host="far")
    token = holder_of(path)["token"]
    about = (path, "it", token, 0.05, 60, done, pytest.fail)
    thread = threading.Thread(target=lease._keep, args=about)
    thread.start()
    with pytest.raises(HyperJaxError, match=r"on far"), lease.held(path, "it", stale=0.5):
        pytest.fail("taken from a living one")
    done.set()
    thread.join()
    assert holder_of(path)["token"] == token


def test_who_lost_its_lease_is_told_and_leaves_the_other_alone(tmp_path):
    path, lost = tmp_path / ".lease", []

    def work():
        with lease.held(path, "it", beat=0.02, lost=lost.append):
            write(path, host="far", pid=7, token="0" * 16)
            deadline = time.monotonic() + 10
            while not lost and time.monotonic() < deadline:
                time.sleep(0.01)

    with pytest.raises(HyperJaxError) as at_the_end:
        work()
    (reason,) = lost
    assert reason == str(at_the_end.value)
    assert reason.startswith("it is in use by process 7 on far")
    assert "lost its lease" in reason
    assert holder_of(path)["pid"] == 7


def test_a_folder_that_is_gone_at_the_end_is_an_error(tmp_path):
    """Before any sign of life could notice."""
    folder = tmp_path / "workdir"

    def work():
        with lease.held(folder / ".lease", folder):
            shutil.rmtree(folder)

    with pytest.raises(HyperJaxError, match=r"workdir was removed or unmounted"):
        work()


def test_a_full_disk_leaves_no_empty_lease(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lease.json, "dumps", full)
    with pytest.raises(HyperJaxError, match="No space left"), lease.held(tmp_path / "x", "it"):
        pass
    assert not (tmp_path / "x").exists()


def test_a_process_that_lost_its_lease_ends_before_it_writes_more(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from hyperjax.store import lease\n"
        "with lease.held(Path(sys.argv[1]), 'it', beat=0.02):\n"
        "    Path(sys.argv[1]).unlink()\n"
        "    try:\n        time.sleep(60)\n    finally:\n        print('wrote')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / ".lease")], capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: the lease .* is gone: it was removed.*\n", done.stderr)


RACE = """
import json, os, sys, time
from pathlib import Path
from hyperjax.store import lease
path, rounds, takers = Path(sys.argv[1]), 25, 12
winners = []
for _ in range(rounds):
    stale = lease._describe("dead") | {"started": 1}
    path.write_text(json.dumps(stale))
    start_r, start_w = os.pipe()
    result_r, result_w = os.pipe()
    end_r, end_w = os.pipe()
    for _ in range(takers):
        if os.fork() == 0:
            os.close(start_w), os.close(end_w)
            os.read(start_r, 1)  # until all are there
            own, watched, got = lease._describe("x"), {}, b"0"
            for _ in range(20):
                if lease._take(path, own, watched, 60.0):
                    got = b"1"
                    break
                time.sleep(0.0005)
            os.write(result_w, got)
            os.read(end_r, 1)  # a winner lives until all have tried
            os._exit(0)
    os.close(start_w)
    results = b""
    while len(results) < takers:
        results += os.read(result_r, takers)
    winners.append(results.count(b"1"))
    os.close(end_w)
    for _ in range(takers):
        os.wait()
    for number in (start_r, result_r, result_w, end_r):
        os.close(number)
    assert sorted(os.listdir(path.parent)) == [path.name], os.listdir(path.parent)
print(json.dumps(winners))
"""


@pytest.mark.skipif(not lease._machine(), reason="outside Linux heartbeats decide")
def test_of_many_that_find_a_dead_lease_one_gets_it(tmp_path):
    (tmp_path / "held").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path / "held" / ".lease")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1] * 25


def test_a_lease_that_was_taken_in_the_meantime_is_not_taken_again(tmp_path, monkeypatch):
    """One taker is slow: while it finds the lease dead, another one finds so and takes it."""
    path, is_dead, taken = tmp_path / ".lease", lease._is_dead, []
    write(path, pid=dead_process(), machine=lease._machine() or "elsewhere")

    def slow(*about):
        dead = is_dead(*about)
        if not taken:
            taken.append(lease._describe("quick"))
            assert lease._take(path, taken[0], {}, 0)
        return dead

    monkeypatch.setattr(lease, "_is_dead", slow)
    assert not lease._take(path, lease._describe("slow"), {}, 0)
    assert holder_of(path) == taken[0]
    assert [p.name for p in tmp_path.iterdir()] == [".lease"]


def test_who_dies_while_it_takes_over_locks_nobody_out(tmp_path):
    """It leaves the ticket behind, which then is what is taken over first."""
    if not lease._machine():
        pytest.skip("outside Linux heartbeats decide")
    path = tmp_path / ".lease"
    write(path, started=1)
    write(tmp_path / f".lease-{holder_of(path)['token']}", started=2)
    with lease.held(path, "it"):
        assert holder_of(path)["pid"] == os.getpid()
        assert [p.name for p in tmp_path.iterdir()] == [".lease"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(HyperJaxError, match=r"cannot write to .*file"),
        lease.held(tmp_path / "file" / ".lease", "it"),
    ):
        pass
