"""The whole pipeline on architectures other than the paper's CNN, as a user calls it."""

import json

import numpy as np
import pytest
from script_calls import call

import hyperjax as hj

TRAIN = (
    "train.py", "--config=configs/digits.py:smoke", "--config.zoo.num_members=8",
    "--config.zoo.epochs=2", "--config.autoencoder.variants=('no_lwln',)",
    "--config.autoencoder.data.epochs_seen=(1,2)", "--config.autoencoder.training.steps=2",
    "--config.autoencoder.training.eval_every=2", "--config.denoiser.training.steps=2",
    "--config.denoiser.training.eval_every=2",
)  # fmt: skip
ARCHITECTURES = {
    "cnn3": ("--config.image_size=32", "--config.zoo.activation=gelu"),
    "unterthiner": ("--config.zoo.activation=relu",),
    "mlp": ("--config.zoo.widths=(6,5)", "--config.zoo.activation=leakyrelu",
            "--config.image_size=14"),
}  # fmt: skip
SIZES = {"cnn3": 10_565, "unterthiner": 4970, "mlp": 196 * 6 + 6 + 6 * 5 + 5 + 5 * 10 + 10}
SAMPLERS = "joint,kde30,average,noise,repair:average,diffusion,refine:average"


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_the_whole_pipeline(env, tmp_path, model):
    """Zoo, alignment, autoencoders, denoiser, samplers, every experiment that is about no other
    data set; tab4, which is about the paper's CNN, is left out and says so."""
    done = call(
        env, *TRAIN, f"--workdir={tmp_path}", f"--config.zoo.model={model}", *ARCHITECTURES[model]
    )
    assert done.returncode == 0, done.stderr
    run = hj.load(tmp_path)
    assert run.zoo.spec.num_params == SIZES[model]
    losses = run.zoo.metrics["train_loss"].mean(axis=0)
    assert losses[-1] < losses[0]  # of eight steps; what networks compute is tested elsewhere
    experiments = "fig2,fig3,fig4,tab1,fig5,fig6,figD,novelty,denoiser,probes,cost"
    done = call(
        env, "evaluate.py", f"--workdir={tmp_path}", f"--samplers={SAMPLERS}",
        f"--experiments={experiments}", "--num_samples=3",
        "--config.samplers.diffusion.steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = tmp_path / "report"
    assert {path.stem for path in report.glob("*.json")} >= set(experiments.split(","))
    result = json.loads((report / "fig4.json").read_text())
    assert result
    drawn = hj.draw(run, "joint", n=2)
    logits = hj.network(run.zoo.spec).apply(drawn.weights[0, 0], run.images.test)
    assert np.isfinite(logits).all()
    if model == "mlp":
        done = call(env, "evaluate.py", f"--workdir={tmp_path}", "--experiments=tab4")
        assert done.returncode == 2
        assert "those here have the layers fc1, fc2, fc3" in " ".join(done.stderr.split())
