"""Commands that are killed or told to stop, of one process and of two, go on to the same result."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from script_calls import ROOT, SLOW, SMOKE, call

from hyperjax.store import hyperrep_file, zoo_file

CONFIG = f"--config={SMOKE}"


def same_results(
    one: Path, other: Path, names=("lwln", "no_lwln", "vae"), log_tolerance: float = 0
) -> None:
    zoos = [zoo_file.read(folder / "zoo" / "zoo.safetensors") for folder in (one, other)]
    np.testing.assert_array_equal(zoos[0].weights, zoos[1].weights)
    for name, values in zoos[0].metrics.items():
        np.testing.assert_array_equal(values, zoos[1].metrics[name])
    for name in names:
        files = [folder / "hyperrep" / f"{name}.safetensors" for folder in (one, other)]
        (a, info_a), (b, info_b) = map(hyperrep_file.read, files)
        assert info_a == info_b
        for leaf_a, leaf_b in zip(leaves(a.params), leaves(b.params), strict=True):
            np.testing.assert_array_equal(leaf_a, leaf_b)
    stages = ("zoo", *(f"hyperrep/{name}" for name in names))
    logs = [
        [line for line in (folder / "metrics.jsonl").read_text().splitlines()
         if json.loads(line)["stage"] in stages]
        for folder in (one, other)
    ]  # fmt: skip
    assert logs[0]
    if not log_tolerance:
        assert logs[0] == logs[1]
    for line, other_line in zip(*logs, strict=True):
        ours, theirs = json.loads(line), json.loads(other_line)
        assert ours.pop("stage") == theirs.pop("stage")
        for record in (ours, theirs):  # nested: the zoo's correlation by layer
            record |= record.pop("init_correlation", {})
        assert ours == pytest.approx(theirs, rel=log_tolerance, abs=log_tolerance)


def leaves(tree):
    return [x for v in tree.values() for x in leaves(v)] if isinstance(tree, dict) else [tree]


def kill_when(env, folder: Path, sign: str) -> None:
    """Start training and kill it, without warning, once a checkpoint `sign` is there."""
    command = [sys.executable, "train.py", CONFIG, f"--workdir={folder}",
               "--config.checkpoint_seconds=0"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(folder, sign, [process])
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_sigterm_saves_and_asks_to_be_started_again(env, trained, tmp_path):
    """In the zoo and in an autoencoder, long before a checkpoint is due."""
    folder = tmp_path / "stopped"
    command = [sys.executable, "train.py", CONFIG, f"--workdir={folder}"]
    log = folder / "metrics.jsonl"
    for begun, saved in (
        (lambda: list(folder.glob("zoo/zoo.partial")), "zoo/zoo.checkpoints/*/*"),
        (lambda: log.exists() and "hyperrep/lwln" in log.read_text(), "checkpoints/*/*"),
    ):
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        while not begun():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SLOW) == 75
        assert list(folder.glob(saved))
    entries = json.loads((folder / "manifest.json").read_text())
    assert [entry["status"] for entry in entries] == ["ended by Terminated"] * 2
    assert call(env, *command[1:]).returncode == 0
    same_results(trained, folder)


def wait_for(folder: Path, sign: str, processes) -> None:
    deadline = time.monotonic() + SLOW
    while not list(folder.glob(sign)):
        assert all(p.poll() is None for p in processes), "training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_runs_resume_to_the_same_result(env, trained, tmp_path):
    folder = tmp_path / "killed"
    kill_when(env, folder, "zoo/zoo.checkpoints/*/1")
    assert not (folder / "zoo" / "zoo.safetensors").exists()
    kill_when(env, folder, "checkpoints/hyperrep_lwln/10")
    assert not (folder / "hyperrep" / "lwln.safetensors").exists()
    done = call(env, "train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0")
    assert done.returncode == 0, done.stderr
    same_results(trained, folder)


@contextmanager
def two_processes(env, *arguments):
    """Start a script as two processes of one device each; kill what is left of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = {
        "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments), "--multihost"],
            cwd=ROOT, env=env | cluster | {"JAX_PROCESS_ID": str(i)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_processes_give_the_result_of_one_also_when_killed(env, trained, tmp_path):
    folder = tmp_path / "two"
    train = ("train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0",
             "--config.autoencoder.variants=('no_lwln',)")  # fmt: skip
    with two_processes(env, *train) as processes:
        wait_for(folder, "zoo/zoo.checkpoints/*/1", processes)
        processes[1].kill()  # as where memory ran out
        _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode not in (0, 75)
    assert "another process of this run was lost" in errors or "another task died" in errors
    assert not (folder / "zoo" / "zoo.safetensors").exists()
    with two_processes(env, *train) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=SLOW)
            assert process.returncode == 0, errors
    # Norms are summed in another order; the weights that are kept are the same to the bit.
    same_results(trained, folder, ("lwln", "no_lwln"), log_tolerance=1e-5)
    assert json.loads((folder / "manifest.json").read_text())[0]["processes"] == 2
    sample = ("sample.py", f"--workdir={folder}", "--sampler=kde30", "--num_samples=3")
    with two_processes(env, *sample) as processes:
        outputs = [process.communicate(timeout=SLOW) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    assert [("written to" in output) for output, _ in outputs] == [True, False]
    alone = call(env, *sample, f"--output={tmp_path / 'alone.safetensors'}")
    assert alone.returncode == 0, alone.stderr
    drawn = [next(folder.glob("samples/*.safetensors")), tmp_path / "alone.safetensors"]
    one, other = map(zoo_file.read, drawn)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.metrics["val_loss"], other.metrics["val_loss"])


def test_missing_processes_are_a_clear_error(env, tmp_path):
    done = call(env, "train.py", CONFIG, f"--workdir={tmp_path / 'x'}", "--multihost")
    assert done.returncode == 2
    assert "JAX_COORDINATOR_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr
