"""From PyTorch and back to PyTorch: needs it, here or as HYPERJAX_TORCH_PYTHON."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from script_calls import ROOT, call

import hyperjax as hj
from hyperjax.data.images import load_images
from hyperjax.population.engine import normalize
from hyperjax.store import zoo_file

PYTHON = os.environ.get("HYPERJAX_TORCH_PYTHON") or (
    sys.executable if importlib.util.find_spec("torch") else ""
)
SETTINGS = {"mlp": ("relu", 28), "cnn3": ("gelu", 32)}

pytestmark = pytest.mark.skipif(not PYTHON, reason="no PyTorch: HYPERJAX_TORCH_PYTHON names it")


def torch_user(*arguments):
    command = [PYTHON, str(ROOT / "tests" / "torch_user.py"), *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("model", SETTINGS)
def test_networks_of_a_user_of_torch(env, tmp_path, model):
    """24 networks, trained and saved in PyTorch; imported, learned from, sampled, evaluated;
    PyTorch loads samples with strict=True and gives the same logits, of far more than chance."""
    activation, size = SETTINGS[model]
    env = env | {"XLA_FLAGS": ""}  # here computing takes longer than compiling
    data = load_images("digits", "", seed=0, num_val=200, size=size)
    x, test = (
        np.asarray(normalize(part, np.arange(len(part.labels)))).transpose(0, 3, 1, 2)
        for part in (data.train, data.test)
    )
    np.savez(tmp_path / "images.npz", x=x, y=data.train.labels, test=test)
    torch_user("train", model, tmp_path / "images.npz", tmp_path / "nets", 24, 4)
    folder = tmp_path / "run"
    done = call(
        env, "train.py", "--config=configs/zoo_folder.py:small", f"--workdir={folder}",
        f"--config.zoo.path={tmp_path / 'nets'}", f"--config.zoo.activation={activation}",
        "--config.dataset=digits", "--config.num_val=200", f"--config.image_size={size}",
        "--config.autoencoder.variants=()", "--config.autoencoder.training.steps=20",
        "--config.autoencoder.training.eval_every=10",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = hj.load(folder)
    assert run.zoo.weights.shape[:2] == (24, 4)
    assert run.zoo.metrics["test_accuracy"][:, -1].mean() > 0.8
    path = tmp_path / "samples.safetensors"
    command = ("sample.py", f"--workdir={folder}", "--sampler=joint", f"--output={path}")
    assert call(env, *command, "--num_samples=5").returncode == 0
    done = call(
        env, "evaluate.py", f"--workdir={folder}", "--experiments=fig2,novelty",
        "--samplers=joint,average,repair:average",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = zoo_file.read(path)
    hj.export(drawn, tmp_path / "out")
    torch_user("load", model, tmp_path / "images.npz", tmp_path / "out", tmp_path / "logits.npz")
    logits = np.load(tmp_path / "logits.npz")["logits"]
    apply = hj.network(run.zoo.spec).apply
    for ours, theirs in zip(drawn.weights[:, 0], logits, strict=True):
        np.testing.assert_allclose(apply(ours, run.images.test), theirs, atol=1e-3)
    accuracy = (logits.argmax(-1) == np.asarray(data.test.labels)).mean()
    assert accuracy > 0.5  # of ten classes: joint keeps near the members
