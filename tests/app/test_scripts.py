"""The three scripts as a user calls them, on digits:smoke; mistakes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from script_calls import SMOKE, call

from hyperjax import paper, samplers
from hyperjax.store import hyperrep_file, workdir, zoo_file
from hyperjax.zoo import Zoo

CONFIG = f"--config={SMOKE}"


def test_train_writes_a_workdir(trained):
    zoo = zoo_file.read(trained / "zoo" / "zoo.safetensors")
    assert zoo.weights.shape == (8, 4, 2464)
    accuracy = zoo.metrics["train_accuracy"].mean(0)
    assert accuracy[-1] > accuracy[0] + 0.1  # the members have learned something
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest[0]["seed"] == 0
    assert "jax" in manifest[0]["versions"]
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    hyperreps = (f"hyperrep/{name}" for name in ("lwln", "no_lwln", "vae"))
    assert set(stages) == {"zoo", "denoiser", *hyperreps}
    assert (manifest[0]["status"], len(manifest)) == ("done", 1)
    assert set(manifest[0]["stages"]) == set(stages)
    assert not list(trained.rglob("*.partial"))
    assert not (trained / "zoo" / "zoo.checkpoints").exists()


def test_finished_workdir_says_so(env, trained):
    command = "train.py", CONFIG, f"--workdir={trained}", "--config.denoiser.training.steps=6"
    again = call(env, *command)
    assert again.returncode == 0
    assert "is finished: nothing to train" in again.stdout


def test_another_config_is_refused_with_the_difference(env, trained):
    other = call(env, "train.py", CONFIG, f"--workdir={trained}", "--config.zoo.num_members=9")
    assert other.returncode == 2
    assert "zoo.num_members: 8 there, 9 here" in other.stderr


def test_sample_and_seed(env, trained, tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file, seed in zip(files, (5, 5, 6), strict=True):
        done = call(env, "sample.py", f"--workdir={trained}", "--sampler=kde30",
                    "--num_samples=3", f"--seed={seed}", f"--output={file}")  # fmt: skip
        assert done.returncode == 0, done.stderr
    first, again, other = (zoo_file.read(file) for file in files)
    assert first.weights.shape == (3, 1, 2464)
    assert np.isfinite(first.weights).all()
    assert first.info["sampler"] == "kde30"
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, other.weights)


def test_every_experiment(env, trained):
    """All of them in one call, with the data set itself as the target; then one of them alone,
    from what the first call left in the workdir."""
    few = "kde30,kde_anchor30,joint30,average"
    arguments = ("evaluate.py", f"--workdir={trained}", f"--samplers={few}",
                 f"--targets={SMOKE}")  # fmt: skip
    done = call(env, *arguments)
    assert done.returncode == 0, done.stderr
    report = trained / "report"
    page = (report / "index.html").read_text()
    entry = workdir.read_manifest(trained)[-1]
    assert set(entry["experiments"]) == set(paper.DESCRIPTIONS) - set(paper.HOURS)
    parts = [part for took in entry["experiments"].values() for part in took.values()]
    seconds, rounding = entry["stages"]["experiments"], 0.005 * (len(parts) + 1)
    assert 0.9 * seconds < sum(parts) <= seconds + rounding
    for name in set(paper.DESCRIPTIONS) - set(paper.HOURS):
        assert f'<section id="{name}">' in page
        assert json.loads((report / f"{name}.json").read_text())
        assert list((report / name).glob("*.csv"))
    for name in ("B_T", "B_F", "B_kde30", *few.split(",")):
        assert name in page
    assert not re.search(r'(?:src|href)="https?:', page)
    rows = (report / "tab1" / "accuracy.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 4 + 2  # header, B_T, samplers, B_ twice
    assert "step 0 of 20, principal components only" in page  # what the figures are of
    data = json.loads((report / "fig2.json").read_text())
    assert set(data) == {"lwln/train", "no_lwln/train", "lwln/heldout", "no_lwln/heldout"}
    accuracy = json.loads((report / "tab2.json").read_text())["digits"]["table"]["populations"]
    again = call(env, *arguments, "--experiments=tab2")
    assert again.returncode == 0, again.stderr
    assert "B_F on digits" not in again.stdout  # nothing was trained
    assert (report / "tab1" / "accuracy.csv").read_text().splitlines() == rows  # as it was
    page = (report / "index.html").read_text()
    assert page.index('id="overview"') < page.index('id="tab1"') < page.index('id="tab2"')
    assert "--experiments=tab2" in page  # what it was made by
    same = json.loads((report / "tab2.json").read_text())["digits"]["table"]["populations"]
    assert same == accuracy
    vae = trained / "hyperrep" / "vae.safetensors"
    whole, older = vae.read_bytes(), (report / "vae.json").read_bytes()
    vae.write_bytes(b"broken")
    failed = call(env, *arguments, "--experiments=vae,tab2")
    vae.write_bytes(whole)
    assert failed.returncode != 0
    assert "the report lacks what failed" in failed.stderr
    assert "vae.safetensors" in failed.stderr
    page = (report / "index.html").read_text()
    assert '<section id="tab2">' in page  # all the same
    assert "An older result: making it anew failed" in page
    assert (report / "vae.json").read_bytes() == older


def test_settings_of_samplers_and_evaluation_belong_to_the_scripts(env, trained):
    """They are given to the script that uses them, and stand beside what it made."""
    sample = ("sample.py", f"--workdir={trained}", "--sampler=joint", "--num_samples=3")
    for setting in ("", "--config.samplers.joint_bandwidth=0.1", ""):
        done = call(env, *sample, *filter(None, [setting]))
        assert done.returncode == 0, done.stderr
    drawn = [zoo_file.read(path) for path in (trained / "samples").glob("joint-lwln-n3-*")]
    assert len(drawn) == 2  # two requests, and the first one again
    assert {z.info["settings"]["joint_bandwidth"] for z in drawn} == {0.1, 0.4}
    digest = hyperrep_file.read(trained / "hyperrep" / "lwln.safetensors")[1]["digest"]
    for population in drawn:
        assert population.latents.shape == (3, 8)
        assert population.info["decoder"] == digest
        assert {"commit", "versions"} <= population.info["run"].keys()
    # the commands that drew them are in the manifest alone: files are a function of their content
    commands = {Path(entry.get("output", "")).name: entry["command"]
                for entry in workdir.read_manifest(trained)}  # fmt: skip
    for path in (trained / "samples").glob("joint-lwln-n3-*"):
        assert "--sampler=joint" in commands[path.name]
    path.unlink()  # as where the call was killed after the line and before the file
    assert call(env, *sample, "--config.samplers.joint_bandwidth=0.1").returncode == 0
    assert call(env, *sample).returncode == 0
    for path in (trained / "samples").glob("joint-lwln-n3-*"):
        (line,) = workdir.metrics_of(trained, f"samples/{path.stem}")
        assert line["seconds"] > 0
    done = call(env, "evaluate.py", f"--workdir={trained}", "--experiments=fig3",
                "--config.evaluation.points=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads((trained / "report" / "fig3.json").read_text())["positions"]) == 2
    used = json.loads((trained / "report" / "fig3" / "run.json").read_text())["config"]
    assert used["evaluation"]["points"] == 2
    assert workdir.load_config(trained).evaluation.points == 3  # the workdir's own stay


def test_populations_of_other_origin_are_evaluated(env, trained, tmp_path):
    """One that sample.py wrote, and one with nothing but weights and their spec."""
    zoo = zoo_file.read(trained / "zoo" / "zoo.safetensors")
    rows = np.arange(3)
    bare = Zoo(zoo.spec, np.asarray(zoo.weights[rows, -1:]), zoo.epochs[-1:], rows, {})
    files = [tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"]
    zoo_file.write(files[1], bare)
    done = call(env, "sample.py", f"--workdir={trained}", "--sampler=kde", "--num_samples=3",
                f"--output={files[0]}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = ",".join(map(str, files))
    done = call(env, "evaluate.py", f"--workdir={trained}", "--experiments=fig4,novelty",
                "--samplers=average", f"--populations={names}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    decoded = json.loads((trained / "report" / "fig4.json").read_text())["populations"]
    assert set(decoded) == {"average", "ours", "theirs"}
    expected = zoo.metrics["test_accuracy"][rows, -1]
    np.testing.assert_allclose(decoded["theirs"]["accuracy"], expected, atol=1e-6)
    audit = json.loads((trained / "report" / "novelty.json").read_text())
    assert len(audit["populations"]["theirs"]["weights"]) == 3


def test_nothing_is_drawn_before_the_folder_is_held(env, trained):
    with workdir.lock(trained):
        done = call(env, "sample.py", f"--workdir={trained}", "--sampler=uniform",
                    "--num_samples=7")  # fmt: skip
    assert done.returncode == 2
    assert "is in use by process" in done.stderr
    assert not list((trained / "samples").glob("uniform-*"))


def test_every_sampler_in_the_report(env, trained):
    done = call(env, "evaluate.py", f"--workdir={trained}", "--experiments=fig4")
    assert done.returncode == 0, done.stderr
    page = (trained / "report" / "index.html").read_text()
    assert all(name in page for name in samplers.names())


def test_list_and_help(env):
    listed = call(env, "sample.py", "--list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in samplers.names())
    assert "tab1" in call(env, "evaluate.py", "--list").stdout
    for script in ("train.py", "sample.py", "evaluate.py"):
        assert "--workdir" in call(env, script, "--help").stdout
    fields = call(env, "sample.py", "--help").stdout
    assert "\n    --config.samplers.subsample_factor=10\n" in fields  # as it can be typed
    assert "evaluation" not in fields
    commands = call(env, "-m", "hyperjax", "--help").stdout
    assert re.search(r"verify +Check that files are as they were written", commands)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample.py", "--workdir={w}", "--sampler=kd"], "there is: aligned_mean"),
        (["sample.py", "--workdir={w}", "--sampler=kde", "--num_samples=0"], "at least 1"),
        (["sample.py", "--workdir={w}", "--sampler=kde", "--hyperrep=x"], "lwln, no_lwln"),
        (["sample.py", "--workdir={w}/none", "--sampler=kde"], "no config.json"),
        (["evaluate.py", "--workdir={w}", "--experiments=tab9"], "there is: "),
        (["evaluate.py", "--workdir={w}", "--samplers=x"], "unknown sampler 'x'"),
        (["evaluate.py", "--workdir={w}", "--experiments=tab2"], "name one by --targets"),
        (["evaluate.py", "--workdir={w}", "--targets=none.py"], "no such workdir or config"),
        (["evaluate.py", "--workdir={w}", f"--targets={SMOKE},{SMOKE}"], "two are digits"),
        (["evaluate.py", "--workdir={w}", "--samplers=prior"], "draws from the prior"),
        (["train.py", "--config=configs/digits.py:tiny", "--workdir={w}"], "paper, small, smoke"),
        (["train.py", CONFIG, "--workdir={w}", "--config.dataset=cifar"], "cifar10"),
        (["train.py", CONFIG, "--workdir={w}", "--config.zoo.epochs=0"], "zoo.epochs"),
        (["train.py", CONFIG, "--workdir={w}", "--num_sample=3"], "flag 'num_sample'"),
        (["sample.py", "--workdir={w}", "--sampler=kde", "--seed=x"], "--seed=x"),
        (["train.py", CONFIG, "--workdir={w}", "stray"], "unexpected argument 'stray'"),
        (["evaluate.py", "--workdir={w}", "--populations=none"], "there is no such file"),
        (["evaluate.py", "--workdir={w}", "--config.evaluation.point=3"], "point"),
        (["evaluate.py", "--workdir={w}", "--config.evaluation.points=1"], "at least 2"),
        (["sample.py", "--workdir={w}", "--sampler=kde", "--config.zoo.epochs=3"], "zoo"),
    ],
)
def test_mistakes_get_one_clear_error(env, trained, tmp_path, arguments, message):
    folder = trained if arguments[0] != "train.py" else tmp_path / "new"
    done = call(env, *(a.format(w=folder) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_config_typo(env, tmp_path):
    done = call(env, "train.py", CONFIG, f"--workdir={tmp_path}", "--config.zoo.num_member=9")
    assert done.returncode != 0
    assert "num_member" in done.stderr
