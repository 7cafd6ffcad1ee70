"""The paper's pairs of data sets through the three scripts, from small image files."""

import pytest
from image_files import write_cifar10, write_idx, write_stl10, write_svhn
from script_calls import call

from hyperjax.store import zoo_file

ORIGINALS = {  # as many images as smoke runs take
    "mnist": lambda data: write_idx(data / "mnist", 200, 40),
    "svhn": lambda data: write_svhn(data / "svhn", 200, 40),
    "cifar10": lambda data: write_cifar10(data / "cifar-10-batches-bin", 40),
    "stl10": lambda data: write_stl10(data / "stl10", 200, 40),
}


@pytest.mark.parametrize(
    ("source", "target", "num_params", "other"),
    [("stl10", "cifar10", 2864, "digits"), ("svhn", "mnist", 2464, "cifar10")],
)
def test_pairs_of_the_paper(env, tmp_path, source, target, num_params, other):
    """Its transfers (tables 2 and 3) from small files; a target of other channels is refused."""
    run, data = tmp_path / "run", f"--data_dir={tmp_path}"
    for name in {source, target, other} & ORIGINALS.keys():
        ORIGINALS[name](tmp_path)
    done = call(
        env, "train.py", f"--config=configs/{source}.py:smoke", f"--workdir={run}",
        f"--config.data_dir={tmp_path}", "--config.zoo.epochs=2",
        "--config.autoencoder.data.epochs_seen=(1,2)", "--config.autoencoder.variants=()",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert zoo_file.read(run / "zoo" / "zoo.safetensors").weights.shape == (8, 3, num_params)
    arguments = ["evaluate.py", f"--workdir={run}", data, "--samplers=kde_anchor30"]
    done = call(env, *arguments, "--experiments=tab2,tab3", f"--targets=configs/{target}.py:smoke")
    assert done.returncode == 0, done.stderr
    (table,) = (run / "report" / "tab3").glob("*.csv")
    assert f"{target} models, decoded (paper)" in table.read_text()
    table = run / "report" / "tab2" / f"accuracy_{target}.csv"
    assert "S_gan30 (paper)" in table.read_text()
    done = call(env, *arguments, f"--targets=configs/{other}.py:smoke")
    assert done.returncode != 0
    assert "channels" in done.stderr
    assert "Traceback" not in done.stderr
