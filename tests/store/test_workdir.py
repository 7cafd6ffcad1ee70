"""The working directory: claims, differences, manifests, metrics, locks; foreign autoencoders."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import hyperjax
from hyperjax import config
from hyperjax.app import run
from hyperjax.config import AutoencoderConfig, Config, LossConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.store import hyperrep_file, workdir


def test_a_claim_is_kept_and_another_refused(tmp_path):
    workdir.create(tmp_path, Config(seed=2))
    workdir.create(tmp_path, Config())  # nothing was made with the first: it may have been refused
    (tmp_path / "zoo").mkdir()
    assert workdir.load_config(tmp_path) == Config()
    with pytest.raises(HyperJaxError, match=r"seed: 0 there, 1 here"):
        workdir.create(tmp_path, Config(seed=1))
    assert workdir.load_config(tmp_path) == Config()


def test_what_training_does_not_depend_on_may_change(tmp_path):
    workdir.create(tmp_path, Config())
    (tmp_path / "zoo").mkdir()
    samplers = dataclasses.replace(Config().samplers, joint_bandwidth=0.1)
    other = Config(data_dir="elsewhere", samplers=samplers)
    workdir.create(tmp_path, other)
    assert workdir.load_config(tmp_path) == other


@pytest.mark.parametrize("text", ["", "{", "3", '{"zoo": 3}', '{"no": 1}'])
def test_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HyperJaxError):
        workdir.load_config(tmp_path)


def test_missing_config_says_how_to_make_one(tmp_path):
    with pytest.raises(HyperJaxError, match=r"no config.json.*train.py"):
        workdir.load_config(tmp_path)


def test_manifest_grows_and_a_damaged_one_is_noticed_early(tmp_path):
    for fact in (1, 2):
        with workdir.recorded(tmp_path, fact=fact):
            pass
    assert [entry["fact"] for entry in workdir.read_manifest(tmp_path)] == [1, 2]
    (tmp_path / "manifest.json").write_text("[{")
    with pytest.raises(HyperJaxError, match=r"manifest.json"):
        workdir.create(tmp_path, Config())


def test_forgotten_metrics_are_those_of_one_stage_after_a_step(tmp_path):
    records = [{"stage": s, "step": i} for i in range(3) for s in ("a", "b")]
    for record in records:
        workdir.log_metrics(tmp_path, record)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "a", "st')  # what a killed run leaves
    workdir.forget_metrics(tmp_path, "a", after=1)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [r for r in records if r != {"stage": "a", "step": 2}]
    assert workdir.metrics_of(tmp_path, "a") == lines[:1] + lines[2:3]
    assert not workdir.metrics_of(tmp_path, "zoo")


def test_two_commands_do_not_share_a_folder(tmp_path):
    with (
        workdir.lock(tmp_path),
        pytest.raises(HyperJaxError, match="in use"),
        workdir.lock(tmp_path),
    ):
        pass
    with workdir.lock(tmp_path):
        pass


def test_what_a_killed_command_was_writing_is_removed_by_the_next(tmp_path):
    """And nothing else: a zoo that is not finished is gone on with."""
    strays = [tmp_path / f"{folder}.manifest.json.12.0123abcd.partial"
              for folder in ("", "zoo/", "report/", "report/tab1/")]  # fmt: skip
    kept = [tmp_path / name for name in ("zoo/zoo.partial", "zoo/.hidden", "mine.partial")]
    for path in strays + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with workdir.lock(tmp_path):
        assert not any(path.exists() for path in strays)
        assert all(path.exists() for path in kept)


def test_a_line_that_a_killed_run_was_writing_is_no_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "zoo", "init_corr')
    assert not workdir.metrics_of(tmp_path, "zoo")


# --- the manifest -----------------------------------------------------------------------------


def test_a_command_is_recorded_while_it_runs_and_when_it_is_done(tmp_path):
    """As "running" from its beginning on: so it stays where it is killed."""
    with workdir.recorded(tmp_path, seed=3) as entry:
        (running,) = workdir.read_manifest(tmp_path)
        assert (running["status"], running["seed"]) == ("running", 3)
        assert "seconds" not in running
        entry["stages"] = {"zoo": 1.5}
    (done,) = workdir.read_manifest(tmp_path)
    assert done.pop("seconds") >= 0
    assert done == running | {"status": "done", "stages": {"zoo": 1.5}}
    assert {"command", "time", "commit", "versions", "devices", "host"} <= done.keys()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HyperJaxError("no space left"), "failed: no space left"),
        (ValueError("not foreseen"), "failed: not foreseen"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
    ],
)
def test_a_command_that_fails_is_recorded_and_its_error_goes_on(tmp_path, error, status):
    with workdir.recorded(tmp_path, fact="earlier"):
        pass

    def fail():
        with workdir.recorded(tmp_path) as entry:
            entry["stages"] = {"zoo": 1.5}
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    earlier, failed = workdir.read_manifest(tmp_path)
    assert (earlier["fact"], earlier["status"]) == ("earlier", "done")
    assert (failed["status"], failed["stages"]) == (status, {"zoo": 1.5})


def test_facts_are_written_as_json_can_hold_them(tmp_path):
    with workdir.recorded(tmp_path, value=np.float32("nan"), array=np.arange(2)):
        pass
    (entry,) = json.loads((tmp_path / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert (entry["value"], entry["array"]) == (None, [0, 1])


def test_what_is_said_of_a_run(monkeypatch):
    monkeypatch.setattr(workdir, "commit", lambda: "0123456789ab+")
    about = workdir.describe_run("train.py --x", seed=1)
    assert (about["command"], about["seed"]) == ("train.py --x", 1)
    assert about["versions"]["hyperjax"] == hyperjax.__version__
    assert about["versions"]["numpy"] == np.__version__
    assert "not installed" not in about["versions"].values()
    assert about["commit"] == "0123456789ab+"
    assert len(about["devices"]) == 4  # of conftest.py


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    """With a plus if files differ from it; none where the package is no checkout's own."""
    package = tmp_path / "checkout" / "hyperjax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(hyperjax, "__file__", str(package / "__init__.py"))

    def git(folder, *arguments):
        config = ("-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false")
        command = ("git", "-C", str(folder), *config, *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def committed(folder):
        git(folder, "init")
        git(folder, "add", ".")
        git(folder, "commit", "-m", "x")

    committed(tmp_path)  # below another checkout
    assert workdir.commit.__wrapped__() is None
    committed(package.parent)
    commit = git(package.parent, "rev-parse", "--short=12", "HEAD")
    assert re.fullmatch("[0-9a-f]{12}", commit)
    assert workdir.commit.__wrapped__() == commit
    (package / "__init__.py").write_text("changed")
    assert workdir.commit.__wrapped__() == commit + "+"


def test_metrics_that_are_not_finite_are_valid_json(tmp_path):
    record = {"stage": "a", "step": 1, "loss": float("nan"), "r2": np.float32("-inf"),
              "parts": {"x": [1.5, float("inf")]}}  # fmt: skip
    workdir.log_metrics(tmp_path, record)
    workdir.log_metrics(tmp_path, {"stage": "a", "step": 2, "loss": np.float32(0.5)})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert first == {"stage": "a", "step": 1, "loss": None, "r2": None, "parts": {"x": [1.5, None]}}
    assert second == {"stage": "a", "step": 2, "loss": 0.5}


# --- the configuration ------------------------------------------------------------------------


def forget(folder, *fields):
    """What a config.json looks like that was written before there were these fields."""
    path = folder / "config.json"
    tree = config.flat(json.loads(path.read_text()))
    kept = {k: v for k, v in tree.items() if not k.startswith(fields)}
    assert len(kept) < len(tree)
    path.write_text(json.dumps(config.nested(kept)))


def test_a_field_that_is_younger_than_the_workdir_has_its_default(tmp_path):
    ours = Config(seed=3)
    workdir.create(tmp_path, ours)
    (tmp_path / "zoo").mkdir()
    forget(tmp_path, "zoo.activation", "autoencoder.loss.temperature", "samplers.gan")
    assert workdir.load_config(tmp_path) == ours
    workdir.create(tmp_path, ours)  # no other configuration
    forget(tmp_path, "zoo.activation")
    other = dataclasses.replace(ours, zoo=dataclasses.replace(ours.zoo, activation="relu"))
    with pytest.raises(HyperJaxError, match=r"zoo\.activation: 'tanh' there, 'relu' here"):
        workdir.create(tmp_path, other)


def foreign(spec, variant: AutoencoderConfig) -> HyperRep:
    """A file's content; parameters do not matter here."""
    layers, size = len(spec.layers), spec.num_params
    stats = Statistics(np.zeros(size), np.ones(layers), np.ones(layers))
    return HyperRep(variant, spec, {"encoder": {"w": np.zeros(1)}}, stats, np.zeros(size))


def test_an_autoencoder_of_another_architecture_is_refused(tmp_path):
    path, variant = tmp_path / "lwln.safetensors", AutoencoderConfig()
    hyperrep_file.write(path, foreign(zoo_cnn_spec(1, "tanh"), variant), {})
    found, info = run.read_checked(path, variant, zoo_cnn_spec(1, "tanh"))
    assert found.config == variant
    assert info.keys() == {"digest"}
    for spec in (zoo_cnn_spec(1, "relu"), zoo_cnn_spec(3, "tanh")):
        with pytest.raises(HyperJaxError, match="another architecture"):
            run.read_checked(path, variant, spec)
    architecture = dataclasses.replace(variant.architecture, latent=8)
    other = dataclasses.replace(variant, architecture=architecture)
    message = r"\(autoencoder\.architecture\.latent: 700 there, 8 here\)"
    with pytest.raises(HyperJaxError, match=message):
        run.read_checked(path, other, zoo_cnn_spec(1, "tanh"))


def test_both_variants_are_trained_unless_told_otherwise():
    assert list(run.variants(Config())) == ["lwln", "no_lwln"]
    plain = AutoencoderConfig(loss=LossConfig(lwln=False), variants=())
    assert list(run.variants(Config(autoencoder=plain))) == ["no_lwln"]
    assert config.from_dict(config.to_dict(Config(autoencoder=plain))).autoencoder == plain
