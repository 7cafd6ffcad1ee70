"""Where compiled programs are kept. In fresh processes, since JAX is configured once."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from hyperjax.app import cli

ROOT = Path(__file__).parents[2]
SCRIPT = """
from hyperjax.app import cli
cli.configure_jax()
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: x + 1)(1)
print(jax.config.jax_compilation_cache_dir, "/jax/compilation_cache/cache_hits" in events)
"""


def compiled(**environ: str) -> tuple[str, bool]:
    """The folder that JAX keeps a compiled program in, or "None"; whether it was there."""
    names = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    fresh = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=ROOT, env=clean | fresh | environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stderr == ""
    folder, hit = run.stdout.split()
    return folder, hit == "True"


@pytest.mark.skipif(jax.__version_info__ < (0, 10, 2), reason="nothing is kept by older ones")
@pytest.mark.parametrize(("variable", "below"), [("XDG_CACHE_HOME", ""), ("HOME", ".cache")])
def test_programs_are_kept_in_the_users_cache(tmp_path, variable, below):
    folder = tmp_path / below / "hyperjax" / "jax"
    assert compiled(**{variable: str(tmp_path)}) == (str(folder), False)
    assert any(path.name.startswith("jit_") for path in folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert compiled(**{variable: str(tmp_path)}) == (str(folder), True)


def test_the_users_own_folder_comes_first(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    environ = {"XDG_CACHE_HOME": str(ours), "JAX_COMPILATION_CACHE_DIR": str(theirs)}
    assert compiled(**environ) == (str(theirs), False)
    assert list(theirs.iterdir())
    assert not ours.exists()


def test_a_run_goes_on_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "file").touch()
    assert compiled(XDG_CACHE_HOME=str(tmp_path / "file")) == ("None", False)
    off = {"XDG_CACHE_HOME": str(tmp_path / "off"), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    assert compiled(**off) == ("None", False)
    assert not (tmp_path / "off").exists()


def test_what_was_used_longest_ago_is_forgotten(tmp_path, monkeypatch):
    """Three programs of 10 bytes where 25 are kept: the oldest goes, whatever its name."""
    monkeypatch.setattr(cli, "_MOST_COMPILED_BYTES", 25)
    for name, age in (("b", 300), ("a", 200), ("c", 100)):
        path = tmp_path / name
        path.write_bytes(bytes(10))
        os.utime(path, times=(path.stat().st_mtime - age,) * 2)
    cli._forget_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    cli._forget_oldest(tmp_path / "missing")


def test_what_cannot_be_forgotten_is_left(tmp_path, monkeypatch):
    """A folder that XLA keeps beside the programs, and files of other users."""
    monkeypatch.setattr(cli, "_MOST_COMPILED_BYTES", 5)
    (tmp_path / "autotuned").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(10))
    unlink = Path.unlink

    def refusing(path, missing_ok=False):
        if path.name == "a":
            raise PermissionError(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    cli._forget_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "autotuned"]


LATE = """
import asyncio, threading
import tensorstore
from hyperjax.app import cli
def task():
    promise, future = tensorstore.Promise.new()
    async def wait(): await future
    async def leave(): tasks.append(asyncio.ensure_future(wait())); await asyncio.sleep(0)
    tasks, loop = [], asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    thread = threading.Thread(target=promise.set_result, args=(1,))
    thread.start()
    thread.join()
    tasks.clear()
    class Broken:
        def __del__(self): raise ValueError("shown")
    Broken()
cli.run(task)
"""


def test_what_comes_too_late_for_a_closed_loop_is_not_said():
    """As where a disk is full, by each of the tensors of a checkpoint."""
    command = [sys.executable, "-c", LATE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "Event loop is closed" not in done.stderr
    assert "ValueError: shown" in done.stderr
