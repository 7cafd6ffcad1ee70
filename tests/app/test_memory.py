"""Zoos twice as large as the memory that commands may use."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from script_calls import ROOT, SLOW, SMOKE, call

import hyperjax as hj
from hyperjax.store import zoo_file
from hyperjax.zoo import Zoo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
MEMBERS, EPOCHS, HIDDEN = 60, 250, 64


def call_within(limit, env, *arguments):
    """Run a script that may have so many bytes of data; of mapped files as much as it wants. On two
    cores: the stacks of its threads are data too."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    command = f'ulimit -d {int(limit) // 1024} && exec taskset -c {cores} "$0" "$@"'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, *map(str, arguments)],
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=SLOW,
    )  # fmt: skip


@pytest.fixture
def large(tmp_path):
    """A folder for gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_a_zoo_twice_as_large_is_trained_and_evaluated(env, large):
    limit, folder = 1.5e9, large / "run"
    train = (
        "train.py", f"--config={SMOKE}", f"--workdir={folder}",
        "--config.num_train=32", "--config.num_val=20", "--config.zoo.model=mlp",
        f"--config.zoo.widths=({HIDDEN},)", f"--config.zoo.num_members={MEMBERS}",
        f"--config.zoo.epochs={EPOCHS}", "--config.denoiser.training.steps=0",
        f"--config.autoencoder.data.epochs_seen=({EPOCHS - 1},{EPOCHS})",
        "--config.autoencoder.data.align=False", "--config.autoencoder.variants=()",
    )  # fmt: skip
    refused = call_within(limit, env, *train, "--config.zoo.widths=(4096,)")  # beside the other
    assert refused.returncode == 2
    assert "error: zoo needs about" in refused.stderr
    assert not (folder / "zoo").exists()
    done = call_within(limit, env, *train)
    assert done.returncode == 0, done.stderr
    path = folder / "zoo" / "zoo.safetensors"
    assert path.stat().st_size > 2 * limit
    done = call_within(
        limit, env, "evaluate.py", f"--workdir={folder}", "--experiments=tab1",
        "--samplers=kde30,average", "--num_samples=5", "--config.evaluation.epochs=(0,)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "report" / "tab1.json").read_text())["populations"]["B_T"]
    assert found["summary"][str(EPOCHS)]["count"] == 9  # of 60 members


@pytest.mark.parametrize("sampler", ["kde30", "polish:diffusion"])
def test_sampling_takes_what_it_is_noted_to(env, trained, sampler):
    done = call(env, "sample.py", f"--workdir={trained}", f"--sampler={sampler}", "--num_samples=9")
    assert done.returncode == 0, done.stderr
    entry = json.loads((trained / "manifest.json").read_text())[-1]
    (stage,) = entry["announced"]
    assert 0.75 < entry["announced"][stage] / entry["memory"][stage] < 2


def test_a_zoo_twice_as_large_is_imported(env, large):
    """One checkpoint under many names: its bytes are on the disk once."""
    limit, members = 0.5e9, 260
    spec = hj.architecture(
        "mlp", channels=1, activation="relu", image_size=(28, 28), widths=(1280,)
    )
    vector = np.random.default_rng(0).standard_normal(spec.num_params, np.float32)
    zoo = Zoo(spec, vector[None, None], np.zeros(1, np.int32), np.arange(1), {}, {})
    first = hj.export(zoo, large / "networks", "torch")[0]
    for number in range(1, members):
        os.link(first, first.with_name(f"copy{number:04}.pt"))
    output = large / "zoo.safetensors"
    done = call_within(
        limit, env, "-m", "hyperjax", "import", f"--source={first.parent}/*.pt",
        f"--output={output}", "--activation=relu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 2 * limit
    imported = zoo_file.read(output)
    assert imported.weights.shape == (members, 1, spec.num_params)
    for row in (0, 128, members - 1):
        np.testing.assert_array_equal(imported.weights[row, 0], vector)
