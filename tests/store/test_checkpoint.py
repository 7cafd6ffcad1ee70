import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from script_calls import ROOT

from hyperjax.errors import HyperJaxError
from hyperjax.store import checkpoint


class State(NamedTuple):
    params: dict
    opt_state: tuple
    step: jax.Array
    key: jax.Array


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {"b": {"kernel": jnp.float32(rng.normal(size=(4, 2)))}, "a": jnp.arange(3.0) + seed}
    opt_state = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
    return State(params, opt_state, jnp.int32(seed), jax.random.key(seed))


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.sharding == b.sharding
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_round_trip(tmp_path):
    state = make_state(7)
    checkpoint.save(tmp_path / "deep" / "ck", 7, state)
    assert checkpoint.latest_step(tmp_path / "deep" / "ck") == 7
    restored = checkpoint.restore(tmp_path / "deep" / "ck", 7, make_state(0))
    assert_same(restored, state)
    assert isinstance(restored, State)
    # the key goes on where it was
    np.testing.assert_array_equal(jax.random.normal(restored.key), jax.random.normal(state.key))


def test_only_the_latest_is_kept(tmp_path):
    for step in (3, 5, 40):
        checkpoint.save(tmp_path / "ck", step, make_state(step))
    assert checkpoint.latest_step(tmp_path / "ck") == 40
    assert [name for name in os.listdir(tmp_path / "ck") if name.isdigit()] == ["40"]
    assert_same(checkpoint.restore(tmp_path / "ck", 40, make_state()), make_state(40))


def test_there_is_none(tmp_path):
    assert checkpoint.latest_step(tmp_path / "nowhere") is None
    (tmp_path / "empty").mkdir()
    assert checkpoint.latest_step(tmp_path / "empty") is None


def test_relative_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("ck", 1, make_state(1))
    assert checkpoint.latest_step("ck") == 1
    assert_same(checkpoint.restore("ck", 1, make_state()), make_state(1))


def test_sharding_is_that_of_the_template(tmp_path):
    mesh = jax.make_mesh((4,), ("member",), (AxisType.Auto,))
    split = NamedSharding(mesh, P("member"))
    members = {"w": jax.device_put(np.arange(8.0, dtype=np.float32).reshape(4, 2), split)}
    checkpoint.save(tmp_path / "ck", 1, members)
    like = {"w": jax.device_put(np.zeros((4, 2), np.float32), split)}
    assert_same(checkpoint.restore(tmp_path / "ck", 1, like), members)
    # a run resumed on another number of devices
    one = {"w": jax.device_put(np.zeros((4, 2), np.float32), jax.devices()[0])}
    restored = checkpoint.restore(tmp_path / "ck", 1, one)
    np.testing.assert_array_equal(restored["w"], members["w"])
    assert restored["w"].sharding == one["w"].sharding


def test_a_checkpoint_of_something_else(tmp_path):
    checkpoint.save(tmp_path / "ck", 2, make_state(2))
    wrong = make_state()._replace(params={"other": jnp.zeros(3)})
    with pytest.raises(HyperJaxError, match=r"ck/2 cannot be restored.*delete that folder"):
        checkpoint.restore(tmp_path / "ck", 2, wrong)


def test_a_damaged_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "ck", 2, make_state(2))
    for folder, _, files in os.walk(tmp_path / "ck" / "2"):
        for name in files:
            open(os.path.join(folder, name), "wb").close()
    with pytest.raises(HyperJaxError, match="ck/2 cannot be restored"):
        checkpoint.restore(tmp_path / "ck", 2, make_state())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HyperJaxError, match=r"cannot write .*file/ck"):
        checkpoint.save(tmp_path / "file" / "ck", 1, make_state())


ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
import jax, numpy as np
from hyperjax.errors import HyperJaxError
from hyperjax.store import checkpoint
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", disk], check=True)
state = {"x": jax.numpy.asarray(np.random.default_rng(0).normal(size=90_000), "float32")}
checkpoint.save(disk / "ck", 1, state)
try:
    checkpoint.save(disk / "ck", 2, state)
except HyperJaxError as error:
    print(error)
print(checkpoint.latest_step(disk / "ck"), [path.name for path in (disk / "ck").iterdir()])
kept = checkpoint.restore(disk / "ck", 1, state)
np.testing.assert_array_equal(kept["x"], state["x"])
subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
checkpoint.save(disk / "ck", 2, state)
print(checkpoint.latest_step(disk / "ck"), [path.name for path in (disk / "ck").iterdir()])
"""


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(tmp_path):
    namespace = ["unshare", "-m" if os.geteuid() == 0 else "-Urm"]
    if subprocess.run(
        [*namespace, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount")
    done = subprocess.run(
        [*namespace, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith(
        f"cannot write {tmp_path}/ck: No space left on device; it needs 0.36 MB"
    )
    assert rest == ["1 ['1']", "2 ['2']"]
