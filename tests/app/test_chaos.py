"""Kills and a full disk for the cheapest command; `make chaos` has the others, and more of both."""

import os
import subprocess
import sys

import chaos
import pytest
from script_calls import ROOT, SLOW


def test_an_import_that_is_killed_gives_the_same_file(env, tmp_path):
    command = [sys.executable, "tests/chaos.py", f"--workdir={tmp_path}", "--stage=import",
               "--kills=3"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    lives = [line.split() for line in done.stdout.splitlines()[-len(chaos.SIGNALS) :]]
    assert [life[:2] for life in lives] == [["import", number.name] for number in chaos.SIGNALS]
    assert sum(int(life[3]) for life in lives) == 3  # by which signals depends on the moments
    assert all(life[4:] == ["0"] * 3 for life in lives)


def test_an_import_on_a_full_disk_goes_on_where_there_is_room(env, tmp_path):
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    allowed = ["unshare", flags, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if subprocess.run(allowed, capture_output=True).returncode:
        pytest.skip("no right to mount")
    command = [sys.executable, "tests/faults.py", f"--workdir={tmp_path}", "--stage=import",
               "--fault=full", "--times=1"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = done.stdout.splitlines()[-1].split()
    assert counts[:2] == ["import", "full"]
    assert (counts[3], counts[5]) == ("1", "0"), done.stdout


def test_differences_and_files_left_over_are_found(tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / "manifest.json").write_text('[{"status": "running"}, {"status": "done"}]')
        (folder / "run.json").write_text(f'{{"folder": "{folder}", "time": "2026-01-02T03:04:05"}}')
    assert chaos.compare(*folders) == ([], [])
    (folders[0] / "run.json").write_text('{"folder": ""}')
    (folders[0] / "lacking").write_text("")
    (folders[1] / ".x.1.0123abcd.partial").write_text("")
    assert chaos.compare(*folders) == (["lacking", "run.json"], [".x.1.0123abcd.partial"])
