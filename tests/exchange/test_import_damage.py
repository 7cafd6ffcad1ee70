"""Zoos of others that are damaged, or are none: one clear error, or members left out."""

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from exchange_cases import MLP, TORCH, corrupted, imported, moments_of, zoo_of

import hyperjax as hj
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import export, sources, torch_file
from hyperjax.models.architectures import architecture
from hyperjax.store import files

TINY = architecture("mlp", channels=1, activation="relu", image_size=(2, 1), classes=2, widths=(2,))
FORMS = ("torch", "safetensors", "numpy", "hdf5", "small_cnn_zoo", "ray", "dataset")


def written(form, folder):
    """A tiny zoo in a form; what to import."""
    zoo = moments_of(zoo_of(TINY, members=2, epochs=(1,)))
    if form == "dataset":
        folder.mkdir()
        shutil.copy(TORCH / "dataset.pt", folder)
        return folder / "dataset.pt"
    export.export(zoo, folder, "numpy" if form == "hdf5" else form)
    if form == "hdf5":
        h5py = pytest.importorskip("h5py")
        with np.load(folder / "zoo.npz") as arrays, h5py.File(folder / "zoo.h5", "w") as file:
            for name, array in arrays.items():
                file[name] = array.astype("S") if array.dtype.kind == "U" else array
        (folder / "zoo.npz").unlink()
    return {"numpy": folder / "zoo.npz", "hdf5": folder / "zoo.h5"}.get(form, folder)


def outcome(path, output, spec=TINY, **settings):
    """An imported zoo, or None for one error that says what it is about, in one line."""
    known = {"activation": "relu", "image_size": spec.image_size, "model": "mlp", "strict": True}
    try:
        return hj.import_zoo(path, output, **(known | settings))
    except HyperJaxError as error:
        text = str(error)
    finally:
        files.remove(*output.parent.glob(f"{output.name}*"))
    assert str(path.parent) in text or text.startswith("member ")
    assert len(text) < 1000
    return None


@pytest.mark.parametrize("form", FORMS)
def test_damaged_zoos_end_in_one_error_or_leave_members_out(tmp_path, form):
    """No crash, whatever is changed; what is taken over is as it was, or has no checksum."""
    where, spec = written(form, tmp_path / "zoo"), MLP if form == "dataset" else TINY
    paths = sorted(path for path in (tmp_path / "zoo").rglob("*") if path.is_file())
    output = tmp_path / "out.safetensors"
    moments = {"moments": form in ("numpy", "hdf5", "ray")}
    whole, refused = outcome(where, output, spec, **moments), 0
    for seed in range(200):
        path = paths[seed // 4 % len(paths)]  # each with all kinds of damage
        data = path.read_bytes()
        path.write_bytes(corrupted(data, seed))
        found = outcome(where, output, spec, **moments)
        path.write_bytes(data)
        refused += found is None
        assert found is None or found.weights.shape[2] == spec.num_params
        if found is not None and form in ("torch", "dataset"):  # which have checksums
            np.testing.assert_array_equal(found.weights, whole.weights)
    assert refused >= (20 if form == "hdf5" else 75)


def changed_arrays(arrays, seed):
    """Other keys, or another shape or type of one of them, in place."""
    rng = np.random.default_rng(seed)
    name = sorted(arrays)[rng.integers(len(arrays))]
    value = arrays.pop(name)
    kind = seed % 7
    if kind == 1:
        arrays[f"{name}x"] = value
    elif kind == 2:
        arrays |= {name: value, "further": value}
    elif kind == 3:
        arrays[name] = value[None]
    elif kind == 4:
        arrays[name] = np.ravel(value)[:-1]
    elif kind == 5:
        arrays[name] = np.empty((0, *value.shape[1:]), value.dtype)
    elif kind == 6:
        arrays[name] = np.full(value.shape, [np.nan, -np.inf, 1e300][rng.integers(3)])
    return arrays


@pytest.mark.parametrize("form", ["torch", "safetensors", "numpy", "hdf5", "small_cnn_zoo"])
def test_wrong_shapes_and_keys_end_in_one_error(tmp_path, form):
    """Files that are whole, but hold something else."""
    where = written(form, tmp_path / "zoo")
    path = {"small_cnn_zoo": where / "weights.npy"}.get(form, where)
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    output, refused = tmp_path / "out.safetensors", 0
    for seed in range(200):
        path = paths[seed // 7 % len(paths)]  # each with all kinds of change
        data = path.read_bytes()
        with np.errstate(over="ignore"):
            rewrite(form, path, seed)
            found = outcome(where, output)
        refused += found is None
        assert found is None or np.isfinite(found.weights).all()
        for changed in {path, where / "layout.csv"} if form == "small_cnn_zoo" else {path}:
            changed.write_bytes(data if changed == path else LAYOUT.encode())
    assert refused >= 75


LAYOUT = """varname,start_idx,end_idx,shape
sequential/dense/bias:0,0,2,"(2,)"
sequential/dense/kernel:0,2,6,"(2, 2)"
sequential/dense_1/bias:0,6,8,"(2,)"
sequential/dense_1/kernel:0,8,12,"(2, 2)"
"""
WORDS = ("(2, 2, 1)", "(-2, -2)", "(0, 2)", "(4,)", "2", "()", "(2", "('a',)", "[2, 2]", "(1, 4)",
         "-3", "99", "0", "bias:0", "x", "")  # fmt: skip


def rewrite(form, path, seed):
    """The file with something else in it."""
    rng = np.random.default_rng(seed)
    if form in ("torch", "safetensors"):
        state = changed_arrays(dict(sources.tensors_of(path)), seed)
        write = export.torch_bytes if form == "torch" else safetensors.numpy.save
        path.write_bytes(write(state))
    elif form == "numpy":
        with np.load(path) as arrays:
            changed = changed_arrays(dict(arrays), seed)
        np.savez(path, **changed)
    elif form == "hdf5":
        import h5py

        with h5py.File(path) as file:
            changed = changed_arrays({name: np.asarray(file[name][()]) for name in file}, seed)
        with h5py.File(path, "w") as file:
            for name, array in changed.items():
                file[name] = array
    elif seed % 2:
        np.save(path, changed_arrays({"weights": np.load(path)}, seed).popitem()[1]
                if seed % 7 not in (0, 1, 2) else np.zeros((2, 5 + seed % 7)))  # fmt: skip
    else:
        table = list(csv.reader(LAYOUT.splitlines()))
        table[rng.integers(5)][rng.integers(4)] = rng.choice(WORDS)
        with open(path.parent / "layout.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)


@pytest.mark.parametrize(
    ("there", "instead"),
    [('2,6,"(2, 2)"', '2,6,"(2, 2, 1)"'), ('0,2,"(2,)"', '-2,0,"(2,)"'),
     ('2,6,"(2, 2)"', '2,6,"(-2, -2)"'), ('2,6,"(2, 2)"', '2,2,"(0, 2)"'),
     ('0,2,"(2,)"', '0,2,"(2, 1)"')],
)  # fmt: skip
def test_layouts_that_no_row_has(tmp_path, there, instead):
    where, output = written("small_cnn_zoo", tmp_path / "zoo"), tmp_path / "out.safetensors"
    (where / "layout.csv").write_text(LAYOUT)
    assert outcome(where, output) is not None
    (where / "layout.csv").write_text(LAYOUT.replace(there, instead))
    with pytest.raises(HyperJaxError, match=r"layout\.csv: no layout; expected columns"):
        imported(where, tmp_path, TINY)


def test_rows_that_are_no_zoo(tmp_path):
    where = written("small_cnn_zoo", tmp_path / "zoo")
    with gzip.open(where / "metrics.csv.gz", "wt") as file:
        file.write("modeldir,step\na,1\na,1\n")
    with pytest.raises(HyperJaxError, match="a has two rows of step 1"):
        imported(where, tmp_path, TINY)
    (where / "metrics.csv.gz").unlink()
    np.save(where / "weights.npy", np.zeros((0, 12), np.float32))
    with pytest.raises(HyperJaxError, match=r"weights\.npy: an array float32\[0, 12\]; expected"):
        imported(where, tmp_path, TINY)


def test_datasets_of_another_form(tmp_path, monkeypatch):
    """Whose pickle is harmless."""
    path, bag = tmp_path / "dataset.pt", torch_file.Bag
    path.write_bytes(b"")

    def of(**attributes):
        found = bag()
        found.__dict__ |= attributes
        return {"trainset": found}

    state = {"a.weight": np.zeros((2, 2), np.float32), "b.weight": np.zeros((2, 2), np.float32)}
    for found in (
        [], {}, {"trainset": [1]}, {"trainset": None}, of(), of(data_in=3), of(data_in=[]),
        of(data_in=[np.zeros(3)]), of(data_in=[[]]), of(data_in=[state], paths=[1, 2]),
        of(data_in=[state], properties=[1]), of(data_in=[state], paths=3),
        of(data_in=[state], properties={"training_iteration": ["x"]}),
        of(data_in=[state], properties={"training_iteration": [[np.inf]]}),
        of(data_in=[state], properties={"test_acc": [{}]}), of(data_in=[{"a": 3}]),
    ):  # fmt: skip
        monkeypatch.setattr(torch_file, "read", lambda path, found=found: found)
        assert outcome(path, tmp_path / "out.safetensors", model="") is None
    monkeypatch.setattr(torch_file, "read", lambda path: of(data_in=[state]))
    assert outcome(path, tmp_path / "out.safetensors", model="") is not None


def test_forms_that_cannot_hold_a_network_say_so(tmp_path):
    layers = (hj.LayerSpec("a", "dense", (3, 4), norm="group"), hj.LayerSpec("b", "dense", (2, 3)))
    zoo = zoo_of(hj.WeightSpec(layers, "relu", (2, 2)))
    with pytest.raises(HyperJaxError, match="layers a are normalised"):
        export.export(zoo, tmp_path, "small_cnn_zoo")
    with pytest.raises(HyperJaxError, match=r"form of export 'onnx'.*safetensors"):
        export.export(zoo, tmp_path, "onnx")


def test_objects_in_arrays_are_refused(tmp_path):
    """They would be pickles."""
    export.export(zoo_of(MLP), tmp_path / "small", "small_cnn_zoo")
    np.save(tmp_path / "small" / "weights.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(HyperJaxError, match=r"cannot read .*weights\.npy"):
        imported(tmp_path / "small", tmp_path, MLP)
    np.savez(tmp_path / "zoo.npz", weights=np.array([[{}]], object))
    with pytest.raises(HyperJaxError, match=r"cannot read .*zoo\.npz"):
        imported(tmp_path / "zoo.npz", tmp_path, MLP, model="mlp")
    with gzip.open(tmp_path / "small" / "metrics.csv.gz", "wt") as file:
        file.write("modeldir\n")
    assert Path(tmp_path / "small" / "metrics.csv.gz").exists()
