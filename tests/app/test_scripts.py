"""The three scripts as a user calls them, on digits:smoke; killed runs; mistakes."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from script_calls import ROOT, SLOW, call

from hyperjax import paper, samplers
from hyperjax.store import hyperrep_file, workdir, zoo_file
from hyperjax.zoo import Zoo

DIGITS = "configs/digits.py:smoke"
CONFIG = f"--config={DIGITS}"


@pytest.fixture(scope="module")
def trained(env, tmp_path_factory):
    """A workdir made by one uninterrupted run of train.py, with a denoiser too."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = call(
        env, "train.py", CONFIG, f"--workdir={folder}", "--config.denoiser.training.steps=6"
    )
    assert done.returncode == 0, done.stderr
    return folder


def same_results(
    one: Path, other: Path, names=("lwln", "no_lwln", "vae"), log_tolerance: float = 0
) -> None:
    zoos = [zoo_file.read(folder / "zoo" / "zoo.safetensors") for folder in (one, other)]
    np.testing.assert_array_equal(zoos[0].weights, zoos[1].weights)
    for name, values in zoos[0].metrics.items():
        np.testing.assert_array_equal(values, zoos[1].metrics[name])
    for name in names:
        files = [folder / "hyperrep" / f"{name}.safetensors" for folder in (one, other)]
        (a, info_a), (b, info_b) = map(hyperrep_file.read, files)
        assert info_a == info_b
        for leaf_a, leaf_b in zip(leaves(a.params), leaves(b.params), strict=True):
            np.testing.assert_array_equal(leaf_a, leaf_b)
    stages = ("zoo", *(f"hyperrep/{name}" for name in names))
    logs = [
        [line for line in (folder / "metrics.jsonl").read_text().splitlines()
         if json.loads(line)["stage"] in stages]
        for folder in (one, other)
    ]  # fmt: skip
    assert logs[0]
    if not log_tolerance:
        assert logs[0] == logs[1]
    for line, other_line in zip(*logs, strict=True):
        ours, theirs = json.loads(line), json.loads(other_line)
        assert ours.pop("stage") == theirs.pop("stage")
        for record in (ours, theirs):  # nested: the zoo's correlation by layer
            record |= record.pop("init_correlation", {})
        assert ours == pytest.approx(theirs, rel=log_tolerance, abs=log_tolerance)


def leaves(tree):
    return [x for v in tree.values() for x in leaves(v)] if isinstance(tree, dict) else [tree]


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


RECORDS = ("manifest.json", "metrics.jsonl", "index.html", "run.json", "section.json")
TIMES = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d\+00:00)?|\d+ s\b")


def content(path: Path, folder: Path):
    """A file's bytes; those of a record without times, seconds and the name of the workdir."""
    if path.name not in RECORDS:
        return path.read_bytes()
    text = TIMES.sub("TIME", path.read_text().replace(str(folder), "FOLDER"))
    return re.sub(r'"(seconds|zoo|denoiser|hyperrep/\w+)": [\d.]+', r'"\1": TIME', text)


def test_equal_runs_leave_equal_files(env, trained, tmp_path):
    """To the bit and by name, whatever the order of hashes: all that the three scripts write."""
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(trained, one)
    text = (one / "manifest.json").read_text().replace(str(trained), str(one))
    (one / "manifest.json").write_text(text)
    train = ("train.py", CONFIG, "--config.denoiser.training.steps=6")
    for folder, seed, commands in (
        (one, "1", ()),
        (other, "2", (train,)),
    ):
        for command in (
            *commands,
            ("sample.py", "--sampler=joint", "--num_samples=3"),
            ("evaluate.py", "--experiments=fig2,fig4,tab1", "--samplers=kde30,average"),
        ):
            start, rest = command[:2], command[2:]  # flags in the order of the fixture's
            where = f"--workdir={folder}"
            done = call(env | {"PYTHONHASHSEED": seed}, *start, where, *rest)
            assert done.returncode == 0, done.stderr
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.name != ".lock"}
        for folder in (one, other)
    ]
    assert names[0] == names[1]
    kinds = {"zoo", "hyperrep", "denoiser", "samples", "populations", "report"}
    assert kinds <= {str(name) for name in names[0]}
    assert Path("checkpoints") not in names[0]
    differing = [
        str(name)
        for name in sorted(names[0])
        if (one / name).is_file() and content(one / name, one) != content(other / name, other)
    ]
    assert differing == []


def flip(path: Path, place: int) -> None:
    with open(path, "rb+") as file:
        file.seek(place, 2 if place < 0 else 0)
        byte = file.read(1)[0]
        file.seek(place, 2 if place < 0 else 0)
        file.write(bytes([byte ^ 1]))


def test_damage_is_named_and_repaired(env, trained, tmp_path):
    """In the weights of two members, in the header, at the end: the same bytes come back."""
    folder = tmp_path / "damaged"
    shutil.copytree(trained, folder)
    path, whole = folder / "zoo" / "zoo.safetensors", (trained / "zoo/zoo.safetensors").read_bytes()
    verify = ("-m", "hyperjax", "verify")
    train = ("train.py", CONFIG, f"--workdir={folder}", "--config.denoiser.training.steps=6")
    done = call(env, *verify, folder, trained)
    assert done.returncode == 0, done.stderr + done.stdout
    member = 4 * 4 * 2464  # bytes of its weights, which come last
    flip(path, -1)
    flip(path, -2 * member - 5)
    for command, code in (((*verify, folder), 1), (("sample.py", f"--workdir={folder}",
                          "--sampler=kde"), 2)):  # fmt: skip
        done = call(env, *command)
        assert done.returncode == code
        words = " ".join((done.stdout + done.stderr).split())
        assert "zoo.safetensors: damaged: weights of the members in rows 5, 7;" in words
        assert "--config.zoo.repair=True" in words
    (folder / "hyperrep" / "vae.safetensors").unlink()
    done = call(env, *train)
    assert done.returncode == 2
    assert "rows 5, 7" in done.stderr
    done = call(env, *train, "--config.zoo.repair=True")
    assert done.returncode == 0, done.stderr
    assert "trained members in rows 5, 7 anew" in done.stdout
    assert path.read_bytes() == whole
    vae = "hyperrep/vae.safetensors"
    assert (folder / vae).read_bytes() == (trained / vae).read_bytes()
    flip(path, 50)
    with open(path, "ab") as file:
        file.write(b"x")
    for words in ("restoring what holds the members", "is whole"):  # of a finished workdir
        done = call(env, *train, "--config.zoo.repair=True")
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
        assert path.read_bytes() == whole
    assert "name files or folders" in call(env, *verify).stderr
    assert "hyperjax verify runs/digits" in call(env, *verify, "--help").stdout
    refused = call(env, *verify, tmp_path / "none")
    assert (refused.returncode, "none: expected a file" in refused.stderr) == (2, True)


def test_another_config_is_refused_with_the_difference(env, trained):
    other = call(env, "train.py", CONFIG, f"--workdir={trained}", "--config.zoo.num_members=9")
    assert other.returncode == 2
    assert "zoo.num_members: 8 there, 9 here" in other.stderr


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


def wait_for(folder: Path, sign: str, processes) -> None:
    deadline = time.monotonic() + SLOW
    while not list(folder.glob(sign)):
        assert all(p.poll() is None for p in processes), "training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_runs_resume_to_the_same_result(env, trained, tmp_path):
    folder = tmp_path / "killed"
    kill_when(env, folder, "zoo/zoo.checkpoints/*/1")
    assert not (folder / "zoo" / "zoo.safetensors").exists()
    kill_when(env, folder, "checkpoints/hyperrep_lwln/10")
    assert not (folder / "hyperrep" / "lwln.safetensors").exists()
    done = call(env, "train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0")
    assert done.returncode == 0, done.stderr
    same_results(trained, folder)


@contextmanager
def two_processes(env, *arguments):
    """Start a script as two processes of one device each; kill what is left of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = {
        "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments), "--multihost"],
            cwd=ROOT, env=env | cluster | {"JAX_PROCESS_ID": str(i)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_processes_give_the_result_of_one_also_when_killed(env, trained, tmp_path):
    folder = tmp_path / "two"
    train = ("train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0",
             "--config.autoencoder.variants=('no_lwln',)")  # fmt: skip
    with two_processes(env, *train) as processes:
        wait_for(folder, "zoo/zoo.checkpoints/*/1", processes)
    assert not (folder / "zoo" / "zoo.safetensors").exists()
    with two_processes(env, *train) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=SLOW)
            assert process.returncode == 0, errors
    # Norms are summed in another order; the weights that are kept are the same to the bit.
    same_results(trained, folder, ("lwln", "no_lwln"), log_tolerance=1e-5)
    assert json.loads((folder / "manifest.json").read_text())[0]["processes"] == 2
    sample = ("sample.py", f"--workdir={folder}", "--sampler=kde30", "--num_samples=3")
    with two_processes(env, *sample) as processes:
        outputs = [process.communicate(timeout=SLOW) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    assert [("written to" in output) for output, _ in outputs] == [True, False]
    alone = call(env, *sample, f"--output={tmp_path / 'alone.safetensors'}")
    assert alone.returncode == 0, alone.stderr
    drawn = [next(folder.glob("samples/*.safetensors")), tmp_path / "alone.safetensors"]
    one, other = map(zoo_file.read, drawn)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.metrics["val_loss"], other.metrics["val_loss"])


def test_missing_processes_are_a_clear_error(env, tmp_path):
    done = call(env, "train.py", CONFIG, f"--workdir={tmp_path / 'x'}", "--multihost")
    assert done.returncode == 2
    assert "JAX_COORDINATOR_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


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
                 f"--targets={DIGITS}")  # fmt: skip
    done = call(env, *arguments)
    assert done.returncode == 0, done.stderr
    report = trained / "report"
    page = (report / "index.html").read_text()
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
        (["evaluate.py", "--workdir={w}", f"--targets={DIGITS},{DIGITS}"], "two are digits"),
        (["evaluate.py", "--workdir={w}", "--samplers=prior"], "draws from the prior"),
        (["train.py", "--config=configs/digits.py:tiny", "--workdir={w}"], "paper, small, smoke"),
        (["train.py", CONFIG, "--workdir={w}", "--config.dataset=cifar"], "cifar10"),
        (["train.py", CONFIG, "--workdir={w}", "--config.zoo.epochs=0"], "zoo.epochs"),
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
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_config_typo(env, tmp_path):
    done = call(env, "train.py", CONFIG, f"--workdir={tmp_path}", "--config.zoo.num_member=9")
    assert done.returncode != 0
    assert "num_member" in done.stderr
