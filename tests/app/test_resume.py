"""Commands that are killed or told to stop go on to the same result."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from script_calls import ROOT, SLOW, SMOKE, call, same_results, wait_for

CONFIG = f"--config={SMOKE}"


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


def test_killed_runs_resume_to_the_same_result(env, trained, tmp_path):
    folder = tmp_path / "killed"
    kill_when(env, folder, "zoo/zoo.checkpoints/*/1")
    assert not (folder / "zoo" / "zoo.safetensors").exists()
    kill_when(env, folder, "checkpoints/hyperrep_lwln/10")
    assert not (folder / "hyperrep" / "lwln.safetensors").exists()
    done = call(env, "train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0")
    assert done.returncode == 0, done.stderr
    same_results(trained, folder)
