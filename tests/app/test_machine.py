"""What a machine has left, against files as Linux writes them."""

import resource
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hyperjax.app import machine

CPU = SimpleNamespace(platform="cpu")
GB = 10**9


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A machine with 16 GB, and a function that writes its files."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 32000000 kB\nMemFree: 1 kB\nMemAvailable:   16000000 kB\n")
    return write


def test_a_machine_without_limits(linux):
    assert machine.free_memory(CPU) == 16_000_000 * 1024
    linux("proc/self/cgroup", "0::/\n")
    linux("cgroup/memory.max", "max\n")
    linux("cgroup/memory.current", "5\n")
    assert machine.free_memory(CPU) == 16_000_000 * 1024


def test_elsewhere_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    assert machine.free_memory(CPU) is None
    assert machine.used_memory(CPU) is None
    with machine.measured(CPU) as took:
        assert took()[1] is None


def test_the_smallest_limit_of_the_groups_around_a_process_counts(linux):
    """As a batch system nests them; what is kept of files does not count as used."""
    linux("proc/self/cgroup", "0::/slurm/job_7/step_0\n")
    linux("cgroup/slurm/job_7/memory.max", f"{8 * GB}\n")
    linux("cgroup/slurm/job_7/memory.current", f"{7 * GB}\n")
    linux(
        "cgroup/slurm/job_7/memory.stat", f"anon {GB}\ninactive_file {4 * GB}\nactive_file {GB}\n"
    )
    assert machine.free_memory(CPU) == 6 * GB
    linux("cgroup/slurm/job_7/step_0/memory.max", f"{2 * GB}\n")
    linux("cgroup/slurm/job_7/step_0/memory.current", f"{GB}\n")
    assert machine.free_memory(CPU) == GB


def test_the_first_version_of_control_groups(linux):
    linux("proc/self/cgroup", "4:memory:/docker/x\n3:cpu:/docker/x\n0::/\n")
    linux(
        "cgroup/memory/memory.limit_in_bytes", f"{4 * GB}\n"
    )  # the container's own: it sees no other
    linux("cgroup/memory/memory.usage_in_bytes", f"{3 * GB}\n")
    linux("cgroup/memory/memory.stat", f"total_rss 1\ntotal_inactive_file {GB}\n")
    assert machine.free_memory(CPU) == 2 * GB


@pytest.mark.parametrize(
    ("limit", "field"), [(resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")]
)
def test_limits_of_the_process(linux, monkeypatch, limit, field):
    none = (resource.RLIM_INFINITY,) * 2
    linux("proc/self/status", f"Name:\tpython\n{field}:\t 1000000 kB\n")
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (3 * GB, 3 * GB) if which == limit else none
    )
    assert machine.free_memory(CPU) == 3 * GB - 1_000_000 * 1024


def test_an_accelerator_says_itself():
    stats = {"bytes_limit": 80, "bytes_in_use": 30, "peak_bytes_in_use": 50}
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert machine.free_memory(device) == 50
    assert machine.used_memory(device) == 50
    with machine.measured(device) as took:
        assert took()[1] is None  # the most was in use before
        stats["peak_bytes_in_use"] = 60
        assert took()[1] == 60
    silent = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    assert machine.free_memory(silent) is None
    assert machine.used_memory(silent) is None


@pytest.mark.skipif(machine.used_memory(CPU) is None, reason="the system does not say")
def test_memory_that_was_in_use_for_a_moment_is_seen():
    before = machine.used_memory(CPU)
    with machine.measured(CPU) as took:
        array = np.ones(25_000_000)  # 200 MB
        time.sleep(0.2)
        del array
        seconds, most = took()
    assert 0.2 <= seconds < 20
    assert before + 150e6 < most < before + 400e6
    assert machine.used_memory(CPU) < most - 100e6
