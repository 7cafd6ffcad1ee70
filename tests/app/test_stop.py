"""Signals: at once outside a training loop, at the next safe point inside, within the grace."""

import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from hyperjax.app import evaluate, stop
from hyperjax.errors import HyperJaxError

LOOP = """
import sys, time
from hyperjax.app import stop
stop.install(float(sys.argv[1]))
try:
    if sys.argv[2] == "outside":
        print("ready", flush=True)
        time.sleep(60)
    with stop.deferred():
        print("ready", flush=True)
        for _ in range(int(sys.argv[2])):  # of a tenth of a second each, then a safe point
            end = time.monotonic() + 0.1
            while time.monotonic() < end: pass
        print("saved", flush=True)
        stop.leave()
        time.sleep(60)
except stop.Terminated:
    stop.exit_stopped()
"""


IMPORTING = """
import os, signal
from hyperjax.app import cli
def load():  # as a C extension does that is interrupted while it is loaded
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
        raise ImportError("failed to import") from error
cli.run(load)
"""


def stopped(grace, steps, *signals):
    """Exit code, output, errors and seconds of a loop that gets signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(grace), str(steps)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output, errors, time.monotonic() - start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_is_left_at_its_safe_point_and_other_code_at_once(number):
    code, output, errors, seconds = stopped(60, 8, number)
    assert (code, output) == (75, "saved\n")
    assert 0.7 < seconds < 30
    assert errors.splitlines()[0].startswith("stopping at the next safe point, within 60 s")
    assert errors.splitlines()[1:] == [
        "told to stop; the same command goes on from the last checkpoint"
    ]
    code, _, errors, seconds = stopped(60, "outside", number)
    assert (code, errors.count("\n")) == (75, 1)
    assert seconds < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_safe_point_within_the_grace(number):
    code, output, errors, seconds = stopped(0.6, 1200, number)
    assert (code, output) == (75, "")
    assert 0.6 <= seconds < 30
    assert errors.splitlines()[-1] == (
        "stopped at once, not at a safe point within 0.6 s; the same command goes on from the "
        "last checkpoint"
    )


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not():
    code, output, errors, seconds = stopped(60, 1200, signal.SIGINT, signal.SIGINT)
    assert (code, output) == (75, "")
    assert seconds < 30
    assert "told so twice" in errors
    code, output, _, _ = stopped(60, 8, signal.SIGTERM, signal.SIGTERM)
    assert (code, output) == (75, "saved\n")


def test_a_signal_while_python_cleans_up_changes_no_exit_code():
    code = (
        "import os, signal, sys\nfrom hyperjax.app import stop\nstop.install()\n"
        "class Late:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.modules['late'] = Late()\nstop.ignore()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_grace_ends_also_what_python_cannot_interrupt():
    """No handler runs while the main thread is inside a call, as that of a compiler."""
    code = (
        "import hashlib\nfrom hyperjax.app import stop\nstop.install(0.3)\n"
        "with stop.deferred():\n    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "\nstopped at once, not at a safe point within 0.3 s; the same command" in errors


@pytest.mark.parametrize("interrupted", [True, False])
def test_such_an_error_is_not_an_experiments_own(monkeypatch, interrupted):
    def load(name):
        raise ImportError("failed to import")

    monkeypatch.setattr(stop, "interrupted", lambda: interrupted)
    registry = SimpleNamespace(load=load, DESCRIPTIONS={"x": "an experiment"})
    with pytest.raises(ImportError if interrupted else HyperJaxError, match="failed to import"):
        evaluate._run(None, registry, ["x"], publish=None)


def test_what_was_found_before_a_signal_is_in_the_report(monkeypatch):
    """Each experiment's section is published as soon as it is there."""
    published, done = [], SimpleNamespace(run=lambda context: 1, section=lambda context, x: "first")

    def load(name):
        if name == "stopped":
            raise KeyboardInterrupt
        return done

    registry = SimpleNamespace(load=load, DESCRIPTIONS={"done": "", "stopped": ""})
    with pytest.raises(KeyboardInterrupt):
        evaluate._run(None, registry, ["done", "stopped"], lambda *made: published.append(made))
    assert published == [(["first"], {})]


def test_an_error_that_a_signal_has_become_is_the_signal():
    command = [sys.executable, "-c", IMPORTING]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    told = "told to stop; the same command goes on from the last checkpoint\n"
    assert (done.returncode, done.stderr) == (75, told)
