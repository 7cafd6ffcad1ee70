"""Runs of several processes, each of one device: they give the result of one, and end together."""

import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import image_files
import numpy as np
import pytest
from script_calls import ROOT, SLOW, SMOKE, call, leaves, same_results, wait_for

from hyperjax.exchange import export
from hyperjax.store import hyperrep_file, zoo_file

CONFIG = f"--config={SMOKE}"


@contextmanager
def several_processes(env, count, *arguments):
    """Start a script as so many processes of one device each; kill what is left of them. `PROCESS`
    in an argument becomes the process's number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = {
        "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count),
        "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *(str(x).replace("PROCESS", str(i)) for x in arguments),
             "--multihost"],
            cwd=ROOT, env=env | cluster | {"JAX_PROCESS_ID": str(i)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finished_by(env, count, *arguments):
    """What the processes print, all of which must end well."""
    with several_processes(env, count, *arguments) as processes:
        outputs = [process.communicate(timeout=SLOW) for process in processes]
        codes = [process.returncode for process in processes]
    assert codes == [0] * count, "\n".join(errors for _, errors in outputs)
    return [output for output, _ in outputs]


def test_two_processes_give_the_result_of_one_also_when_killed(env, trained, tmp_path):
    folder = tmp_path / "two"
    train = ("train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0",
             "--config.autoencoder.variants=('no_lwln',)")  # fmt: skip
    with several_processes(env, 2, *train) as processes:
        wait_for(folder, "zoo/zoo.checkpoints/*/1", processes)
        processes[1].kill()  # as where memory ran out
        _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode not in (0, 75)
    assert "another process of this run was lost" in errors or "another task died" in errors
    assert not (folder / "zoo" / "zoo.safetensors").exists()
    finished_by(env, 2, *train)
    # Norms are summed in another order; the weights that are kept are the same to the bit.
    same_results(trained, folder, ("lwln", "no_lwln"), log_tolerance=1e-5)
    assert json.loads((folder / "manifest.json").read_text())[0]["processes"] == 2
    sample = ("sample.py", f"--workdir={folder}", "--sampler=kde30", "--num_samples=3")
    outputs = finished_by(env, 2, *sample)
    assert [("written to" in output) for output in outputs] == [True, False]
    alone = call(env, *sample, f"--output={tmp_path / 'alone.safetensors'}")
    assert alone.returncode == 0, alone.stderr
    drawn = [next(folder.glob("samples/*.safetensors")), tmp_path / "alone.safetensors"]
    one, other = map(zoo_file.read, drawn)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.metrics["val_loss"], other.metrics["val_loss"])


def test_four_processes_go_on_with_what_two_began(env, trained, tmp_path):
    """Killed in the middle of the population, and again, all of them, when it has been written."""
    folder = tmp_path / "four"
    train = ("train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0",
             "--config.autoencoder.variants=()")  # fmt: skip
    for count, sign in ((2, "zoo/zoo.checkpoints/*/1"), (4, "zoo/zoo.safetensors")):
        with several_processes(env, count, *train) as processes:  # which kills them at its end
            wait_for(folder, sign, processes)
        assert (folder / "zoo" / "zoo.safetensors").exists() == (count == 4)
    finished_by(env, 4, *train)
    same_results(trained, folder, ("lwln",), log_tolerance=1e-5)
    entries = json.loads((folder / "manifest.json").read_text())
    assert [entry["processes"] for entry in entries] == [2, 4, 4]
    assert "zoo" not in entries[2]["stages"]  # it was there


def test_one_process_goes_on_with_an_autoencoder_that_two_began(env, tmp_path):
    """Each had half of the batch. What differs is the order in which sums are taken."""
    folders = [tmp_path / "alone", tmp_path / "two"]
    train = ("train.py", CONFIG, "--config.autoencoder.training.batch_size=16",
             "--config.autoencoder.training.select=last", "--config.autoencoder.variants=()",
             "--config.checkpoint_seconds=0")  # fmt: skip
    with several_processes(env, 2, *train, f"--workdir={folders[1]}") as processes:
        wait_for(folders[1], "checkpoints/hyperrep_lwln/10", processes)
    for folder in folders:
        done = call(env, *train, f"--workdir={folder}")
        assert done.returncode == 0, done.stderr
    entry = json.loads((folders[1] / "manifest.json").read_text())[-1]
    assert entry["stages"] == {}  # nothing was made from its beginning
    files = [folder / "hyperrep" / "lwln.safetensors" for folder in folders]
    (a, info), (b, other_info) = map(hyperrep_file.read, files)
    assert info["best_step"] == other_info["best_step"] == 20
    for ours, theirs in zip(leaves(a.params), leaves(b.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_two_processes_evaluate_as_one(env, trained, tmp_path):
    evaluate = ("evaluate.py", "--experiments=fig4,tab1", "--samplers=kde30,average",
                "--config.evaluation.epochs=(0,2)")  # fmt: skip
    folders = [shutil.copytree(trained, tmp_path / name) for name in ("alone", "two")]
    alone = call(env, *evaluate, f"--workdir={folders[0]}")
    assert alone.returncode == 0, alone.stderr
    outputs = finished_by(env, 2, *evaluate, f"--workdir={folders[1]}")
    assert [("report: " in output) for output in outputs] == [True, False]
    tables = [path.relative_to(folders[0]) for path in (folders[0] / "report").rglob("*.csv")]
    assert len(tables) > 2
    for table in tables:
        assert (folders[0] / table).read_bytes() == (folders[1] / table).read_bytes(), table


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_process_ends_all_of_them_with_it(env, tmp_path, failing):
    """One that does not find its images; the other one waits for it in a collective operation."""
    image_files.write_idx(tmp_path / f"data{1 - failing}", 200, 20)
    train = ("train.py", "--config=configs/mnist.py:smoke", f"--workdir={tmp_path / 'x'}",
             f"--config.data_dir={tmp_path / 'dataPROCESS'}")  # fmt: skip
    begun = time.monotonic()
    with several_processes(env, 2, *train) as processes:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    assert time.monotonic() - begun < 60
    assert [process.returncode for process in processes] == [2, 2]
    reason = "error: the data set mnist is not there"
    assert reason in errors[failing]
    assert f"process {failing} of this run ended first: {reason}" in errors[1 - failing]
    assert "Traceback" not in "".join(errors)


@pytest.mark.parametrize(
    ("ending", "code", "reason"),
    [
        (lambda folder, processes: processes[1].terminate(), 75, "stopped at once"),
        (lambda folder, processes: (folder / ".lease").unlink(), 2, "error: the lease"),
    ],
    ids=["grace", "lease"],
)
def test_a_process_that_ends_where_it_is_ends_the_other(env, tmp_path, ending, code, reason):
    """The first at once, as no time is given to come to a safe point; the second, which has the
    lease, when it next looks at it."""
    folder = tmp_path / "run"
    train = ("train.py", CONFIG, f"--workdir={folder}", "--grace=0",
             "--config.checkpoint_seconds=0")  # fmt: skip
    with several_processes(env, 2, *train) as processes:
        wait_for(folder, "zoo/zoo.checkpoints/*/1", processes)
        begun = time.monotonic()
        ending(folder, processes)
        errors = [process.communicate(timeout=60)[1] for process in processes]
    assert time.monotonic() - begun < 30
    assert [process.returncode for process in processes] == [code, code]
    assert any(reason in text for text in errors)
    assert "Traceback" not in "".join(errors)


def test_two_processes_train_on_networks_from_elsewhere(env, trained, tmp_path):
    """Process 0 alone imports them."""
    export.export(zoo_file.read(trained / "zoo" / "zoo.safetensors"), tmp_path / "nets", "torch")
    folder, networks = tmp_path / "run", tmp_path / "nets" / "*.pt"
    train = ("train.py", CONFIG, f"--workdir={folder}", f"--config.zoo.path={networks}",
             "--config.autoencoder.data.epochs_seen=(1,)", "--config.autoencoder.variants=()",
             "--config.zoo.model=cnn", "--config.denoiser.training.steps=0")  # fmt: skip
    finished_by(env, 2, *train)
    made, source = (zoo_file.read(x / "zoo" / "zoo.safetensors") for x in (folder, trained))
    np.testing.assert_array_equal(made.weights[:, 0], source.weights[:, -1])


def test_missing_processes_are_a_clear_error(env, tmp_path):
    done = call(env, "train.py", CONFIG, f"--workdir={tmp_path / 'x'}", "--multihost")
    assert done.returncode == 2
    assert "JAX_COORDINATOR_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr
