"""Zoos whose members have diverged, through the whole pipeline."""

import json

from script_calls import SMOKE, call

TRAIN = ("train.py", f"--config={SMOKE}", "--config.autoencoder.variants=()",
         "--config.denoiser.training.steps=6")  # fmt: skip


def refuse(constant):
    raise AssertionError(f"{constant} in JSON")


def test_a_zoo_that_learned_nothing_goes_through_everything(env, tmp_path):
    """Steps so long that weights become huge but stay finite: every experiment ends with a result
    or a note, and no file has a NaN that JSON does not know."""
    folder = tmp_path / "huge"
    done = call(
        env, *TRAIN, f"--workdir={folder}", "--config.zoo.training.learning_rate=1e30",
        "--config.zoo.num_members=12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = call(
        env, "evaluate.py", f"--workdir={folder}", "--num_samples=6",
        "--samplers=kde30,kde,neigh,joint30,average,noise,pca,diffusion,repair:average",
        "--experiments=fig2,fig4,denoiser,novelty,tab1", "--config.evaluation.epochs=(0,1)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    written = [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]
    assert len(written) > 8
    for path in written:
        for line in (
            path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        ):
            json.loads(line, parse_constant=refuse)


def test_a_zoo_of_which_nothing_is_left_is_one_error(env, tmp_path):
    done = call(
        env, *TRAIN, f"--workdir={tmp_path / 'nan'}",
        "--config.zoo.training.learning_rate=3.4e38",
    )  # fmt: skip
    assert done.returncode == 2
    assert "usable" in done.stderr
    assert "Traceback" not in done.stderr
