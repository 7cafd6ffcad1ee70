"""Equal runs leave equal files; damage is named and repaired: the commands as a user calls them."""

import re
import shutil
from pathlib import Path

from script_calls import SMOKE, call

CONFIG = f"--config={SMOKE}"
RECORDS = ("manifest.json", "metrics.jsonl", "index.html", "run.json", "section.json")
TIMES = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d\+00:00)?|\d+ s\b")


def content(path: Path, folder: Path):
    """A file's bytes; those of a record without times, seconds and the name of the workdir."""
    if path.name not in RECORDS:
        return path.read_bytes()
    text = TIMES.sub("TIME", path.read_text().replace(str(folder), "FOLDER"))
    return re.sub(
        r'"(seconds|computing|report|zoo|denoiser|experiments|samples|hyperrep/\w+)": [\d.]+',
        r'"\1": TIME',
        text,
    )


def test_equal_runs_leave_equal_files(env, finished, tmp_path):
    """To the bit and by name, whatever the order of hashes: all that the three scripts write."""
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(finished, one)
    text = (one / "manifest.json").read_text().replace(str(finished), str(one))
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


def test_damage_is_named_and_repaired(env, finished, tmp_path):
    """In the weights of two members, in the header, at the end: the same bytes come back."""
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    path, whole = (
        folder / "zoo" / "zoo.safetensors",
        (finished / "zoo/zoo.safetensors").read_bytes(),
    )
    verify = ("-m", "hyperjax", "verify")
    train = ("train.py", CONFIG, f"--workdir={folder}", "--config.denoiser.training.steps=6")
    done = call(env, *verify, folder, finished)
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
    assert (folder / vae).read_bytes() == (finished / vae).read_bytes()
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
