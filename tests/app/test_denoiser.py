"""The denoiser and the images' moments in a workdir, as a user makes and uses them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from script_calls import ROOT, SLOW, call

import hyperjax as hj
from hyperjax.app import run as app_run
from hyperjax.errors import HyperJaxError
from hyperjax.population.engine import normalize
from hyperjax.population.repair import preactivations
from hyperjax.store import denoiser_file, moments_file, workdir, zoo_file

GRAPH = {
    "edge_dim": 4, "edge_hidden": 4, "node_dim": 8, "node_hidden": 8, "heads": 2, "rounds": 1,
    "condition_dim": 4,
}  # fmt: skip
TRAIN = (
    "train.py", "--config=configs/digits.py:smoke", "--config.zoo.epochs=2",
    "--config.autoencoder.variants=()", "--config.autoencoder.data.epochs_seen=(1,2)",
    "--config.autoencoder.training.steps=2", "--config.denoiser.training.steps=6",
    "--config.denoiser.training.eval_every=3", "--config.denoiser.training.batch_size=8",
    "--config.denoiser.snapshots=2", "--config.denoiser.folds=2",
    *(f"--config.denoiser.graph.{name}={value}" for name, value in GRAPH.items()),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(env, tmp_path_factory):
    """A workdir made by one uninterrupted run of train.py."""
    folder = tmp_path_factory.mktemp("runs") / "denoiser"
    done = call(env, *TRAIN, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert "error on held-out members as a share of the Wiener denoiser's" in flat(done.stdout)
    return folder


def flat(text):
    return " ".join(text.split())


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == "denoiser"]


def test_train_leaves_a_denoiser_and_moments(trained):
    denoiser, info = denoiser_file.read(workdir.denoiser_path(trained))
    assert denoiser.config == workdir.load_config(trained).denoiser
    assert denoiser.config.graph.edge_dim == 4
    zoo = zoo_file.read(workdir.zoo_path(trained))
    assert denoiser.spec == zoo.spec
    assert denoiser.wiener.mean.shape == denoiser.reference.shape == (2464,)
    assert info["members"] == 2 * 6  # two snapshots of six train members
    assert set(info["val_ratio"]) == set(info["wiener_error"]) == {"0.15", "0.3", "0.6", "1", "1.5"}
    assert all(np.isfinite(list(info["val_ratio"].values())))
    assert [record["step"] for record in records(trained)] == [0, 3, 6]
    assert records(trained)[0]["val_ratio"] == pytest.approx(1, abs=1e-5)  # as Wiener's at first
    moments, facts = moments_file.read(workdir.moments_path(trained))
    assert moments.mean.shape == (28, 28, 1)
    assert facts["dataset"] == "digits"
    manifest = json.loads((trained / "manifest.json").read_text())
    assert {"zoo", "hyperrep/lwln", "denoiser"} == set(manifest[-1]["stages"])
    assert not list(trained.glob("checkpoints/*"))


def test_samples_through_the_denoiser(env, trained):
    sample = ("sample.py", f"--workdir={trained}", "--num_samples=3",
              "--config.samplers.diffusion.steps=2")  # fmt: skip
    done = call(env, *sample, "--sampler=repair:diffusion")
    assert done.returncode == 0, done.stderr
    (path,) = (trained / "samples").glob("repair-diffusion-lwln-n3-*")
    drawn = zoo_file.read(path)
    assert drawn.weights.shape == (3, 1, 2464)
    assert np.isfinite(drawn.weights).all()
    assert len(np.unique(drawn.weights[:, 0], axis=0)) == 3
    assert drawn.latents is None
    _, info = denoiser_file.read(workdir.denoiser_path(trained))
    assert drawn.info["denoiser"] == info["digest"]
    assert drawn.info["settings"]["diffusion"]["steps"] == 2
    assert drawn.metrics["test_accuracy"].shape == (3, 1)


def test_other_settings_of_the_denoiser_are_refused_by_name(env, trained):
    """And change nothing; how examples are computed may differ."""
    before = (trained / "config.json").read_bytes()
    other = call(env, *TRAIN, f"--workdir={trained}", "--config.denoiser.graph.rounds=2",
                 "--config.denoiser.micro_batch=4")  # fmt: skip
    assert other.returncode == 2
    assert "denoiser.graph.rounds: 1 there, 2 here" in flat(other.stderr)
    assert "micro_batch" not in other.stderr
    assert (trained / "config.json").read_bytes() == before


def test_moments_are_made_where_they_are_missing(env, trained, tmp_path):
    """As in a workdir of an older version; samplers that need them say so."""
    folder = tmp_path / "older"
    shutil.copytree(trained, folder)
    path = workdir.moments_path(folder)
    path.unlink()
    again = call(env, *TRAIN, f"--workdir={folder}")
    assert again.returncode == 0, again.stderr
    assert path.read_bytes() == workdir.moments_path(trained).read_bytes()
    denoisers = [workdir.denoiser_path(f).read_bytes() for f in (folder, trained)]
    assert denoisers[0] == denoisers[1]
    assert len(records(folder)) == 3  # nothing else was trained


def test_repair_by_images_in_place_of_moments(trained, tmp_path):
    """Needs no moments; nor are those of other images taken."""
    folder = tmp_path / "other"
    shutil.copytree(trained, folder)
    path = workdir.moments_path(folder)
    moments, facts = moments_file.read(path)
    moments_file.write(path, moments, facts | {"fingerprint": "0123"})
    with pytest.raises(HyperJaxError, match=r"moments of other images \(digits, 0123\) than"):
        _ = hj.load(folder).repair
    with pytest.raises(HyperJaxError, match="overrides: seed is part of what was made in"):
        hj.load(folder, overrides={"samplers.repair_inputs": "images", "seed": 1})
    run = hj.load(folder, overrides={"samplers.repair_inputs": "images"})
    images = np.asarray(normalize(run.images.train, np.arange(120)))
    found, shown = (sorted(x.reshape(120, -1).tolist()) for x in (run.repair.inputs, images))
    np.testing.assert_allclose(found, shown, rtol=1e-6)  # all of them, in an order of its own
    drawn = hj.draw(run, "repair:noise", n=2)
    assert drawn.info["images"] == facts["fingerprint"]
    assert "moments" not in drawn.info
    found = preactivations(run.zoo.spec, drawn.weights[0, 0], run.repair.inputs)
    for z, mean in zip(found, run.repair.means, strict=True):
        np.testing.assert_allclose(z.mean(range(1, z.ndim)), mean, atol=1e-3)


def test_anchors_are_encoded_once(trained, monkeypatch):
    """For all samplers of latents that a run is asked for."""
    calls, encode = [], app_run.encode

    def counted(*args, **settings):
        calls.append(len(args[1]))
        return encode(*args, **settings)

    monkeypatch.setattr(app_run, "encode", counted)
    run = hj.load(trained)
    for name in ("kde", "joint"):
        hj.draw(run, name, n=2)
    assert calls == [len(run.data.train_vectors)]
    anchors = run.hyperreps.anchors(run.main)
    expected = encode(run.hyperreps[run.main], run.data.train_vectors, aligned=True)
    np.testing.assert_array_equal(anchors, expected)


def test_scaling(env, trained):
    """Subsets of the train members, each with its own denoiser, made once."""
    command = ("evaluate.py", f"--workdir={trained}", "--experiments=scaling", "--num_samples=3",
               "--config.evaluation.scaling_members=(4,99)", "--config.samplers.diffusion.steps=2",
               "--config.evaluation.scaling_steps=3")  # fmt: skip
    done = call(env, *command)
    assert done.returncode == 0, done.stderr
    points = json.loads((trained / "report" / "scaling.json").read_text())["points"]
    assert [point["members"] for point in points] == [4, 6]  # of six there are
    for point in points:
        assert all(np.isfinite(list(point[part].values())).all() for part in ("held_out", "wiener"))
        assert point["repaired"]["novelty"] != point["plain"]["novelty"]
    made = {path: path.stat().st_mtime_ns for path in (trained / "scaling").iterdir()}
    assert len(made) == 2
    again = call(env, *command)
    assert again.returncode == 0, again.stderr
    assert "denoiser of" not in again.stdout  # nothing is trained
    assert {path: path.stat().st_mtime_ns for path in (trained / "scaling").iterdir()} == made
    assert json.loads((trained / "report" / "scaling.json").read_text())["points"] == points


def begin_anew(trained: Path, folder: Path) -> None:
    """A copy of a workdir that has no denoiser yet."""
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "denoiser")
    log = folder / "metrics.jsonl"
    lines = [line for line in log.read_text().splitlines() if '"denoiser"' not in line]
    log.write_text("".join(f"{line}\n" for line in lines))


def test_a_denoiser_that_was_stopped_ends_as_one_that_was_not(env, trained, tmp_path):
    folder = tmp_path / "stopped"
    begin_anew(trained, folder)
    command = [*TRAIN, f"--workdir={folder}"]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + SLOW
    while not records(folder):  # its first validation, before the first step
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SLOW) == 75
    assert list(folder.glob("checkpoints/denoiser_*/*"))
    assert not workdir.denoiser_path(folder).exists()
    done = call(env, *command)
    assert done.returncode == 0, done.stderr
    ours, theirs = (workdir.denoiser_path(f).read_bytes() for f in (folder, trained))
    assert ours == theirs
    assert records(folder) == records(trained)
    assert not list(folder.glob("checkpoints/*"))
