"""Zoos of others into one file: every form, resumed, with damaged members, and out again."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from exchange_cases import CNN, MLP, PLAIN, TORCH, UNTERTHINER, corrupted, moments_of, zoo_of

import hyperjax as hj
from hyperjax.app import import_zoo as importing
from hyperjax.app import stop
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import export, sources, torch_file
from hyperjax.models.architectures import architecture
from hyperjax.store import files


def imported(path, tmp_path, spec, name="zoo", **settings):
    settings = {"activation": spec.activation, "image_size": spec.image_size} | settings
    return hj.import_zoo(path, tmp_path / f"{name}.safetensors", **settings)


def assert_same(ours, theirs, columns=slice(None)):
    """To the bit."""
    np.testing.assert_array_equal(ours.weights, theirs.weights[:, columns])
    np.testing.assert_array_equal(ours.epochs, theirs.epochs[columns])
    assert ours.spec == theirs.spec
    for name, values in ours.metrics.items():
        if np.isfinite(values).any():
            np.testing.assert_array_equal(values, theirs.metrics[name][:, columns])


def test_the_published_ray_layout_and_back(tmp_path):
    """Weights, metrics and logits to the bit; six digits or fewer in the folders' names."""
    zoo = zoo_of(CNN)
    export.export(zoo, tmp_path / "ray", "ray", tensors=PLAIN)
    trial = tmp_path / "ray" / "NN_tune_trainable_00000002"
    (trial / "checkpoint_000003").rename(trial / "checkpoint_3")
    (trial / "params.pkl").write_bytes(b"never opened")
    (tmp_path / "ray" / "experiment_state-1.json").write_text("{}")
    lines = (trial / "result.json").read_text().splitlines()
    (trial / "result.json").write_text("\n".join([lines[2], lines[0], "", lines[1]]))
    found = imported(tmp_path / "ray", tmp_path, CNN, image_size=None)
    assert_same(found, zoo)
    assert set(found.metrics) == set(zoo.metrics)
    assert found.info["tensors"] == [list(names) for names in PLAIN]
    assert found.info["names"][2] == trial.name
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    apply = hj.network(CNN).apply
    np.testing.assert_array_equal(
        apply(found.weights[1, -1], images), apply(zoo.weights[1, -1], images)
    )
    last = imported(tmp_path / "ray", tmp_path, CNN, "last", epochs=(1, 3))
    assert_same(last, zoo, [1, 2])
    with pytest.raises(HyperJaxError, match=r"no snapshots of epochs \[2\]; it has \[0, 1, 3\]"):
        imported(tmp_path / "ray", tmp_path, CNN, "other", epochs=(2,))


@pytest.mark.parametrize("spec", [CNN, UNTERTHINER], ids=["cnn", "unterthiner"])
def test_the_small_cnn_zoo_and_back(tmp_path, spec):
    zoo = zoo_of(spec)
    export.export(zoo, tmp_path / "small", "small_cnn_zoo")
    model = "unterthiner" if spec is UNTERTHINER else ""
    found = imported(tmp_path / "small", tmp_path, spec, model=model)
    assert_same(found, zoo)
    assert np.isnan(found.metrics["val_accuracy"]).all()
    if spec is UNTERTHINER:  # the published boundaries
        text = (tmp_path / "small" / "layout.csv").read_text()
        for begin, end in ((0, 16), (16, 160), (176, 2480), (2496, 4800), (4800, 4810)):
            assert f",{begin},{end}," in text


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_state_dicts_and_back(tmp_path, form):
    zoo = zoo_of(MLP)
    paths = export.export(zoo, tmp_path / "dicts", form)
    assert len(paths) == 4
    found = imported(tmp_path / "dicts", tmp_path, MLP)
    np.testing.assert_array_equal(found.weights[:, 0], zoo.weights[:, -1])
    assert found.spec == MLP
    assert all(np.isnan(values).all() for values in found.metrics.values())
    some = imported(tmp_path / "dicts" / f"*[12]{paths[0].suffix}", tmp_path, MLP, "some")
    np.testing.assert_array_equal(some.weights[:, 0], zoo.weights[1:3, -1])


def test_a_folder_a_member(tmp_path):
    """The last number of a file's name is its epoch; the order is that of names."""
    zoo = zoo_of(MLP)
    for row, member in enumerate(("b", "a", "net_10", "net_9")):
        for column, epoch in enumerate(zoo.epochs):
            one = zoo.select([row], epoch=int(epoch))
            (path,) = export.export(one, tmp_path / "dicts" / member, "torch")
            path.rename(path.with_name(f"model_2_epoch_{epoch}.pth"))
            assert column < 3
    found = imported(tmp_path / "dicts", tmp_path, MLP)
    assert found.info["names"] == ["a", "b", "net_10", "net_9"]
    np.testing.assert_array_equal(found.weights, zoo.weights[[1, 0, 2, 3]])
    shutil.copy(tmp_path / "dicts/a/model_2_epoch_1.pth", tmp_path / "dicts/a/model_3_epoch_1.pth")
    with pytest.raises(HyperJaxError, match="would both be epoch 1"):
        imported(tmp_path / "dicts", tmp_path, MLP, "other")


def test_a_published_dataset(tmp_path):
    """Of PyTorch, with a class that is not there; see make_torch.py."""
    found = imported(TORCH / "dataset.pt", tmp_path, MLP)
    assert found.info["names"] == ["model_0", "model_1", "model_2", "model_3"]
    assert found.epochs.tolist() == [24, 25]
    expected = [[0.5, 0.25 + seed / 100] for seed in range(4)]
    np.testing.assert_allclose(found.metrics["test_accuracy"], expected, atol=1e-6)
    first = hj.spec_of(hj.unflatten(MLP, found.weights[0, 0]), activation="relu", image_size=(4, 3))
    assert first.spec.layers == MLP.layers
    plain = json.loads((TORCH / "expected.json").read_text())["state"]
    np.testing.assert_allclose(found.weights[0, 0], np.concatenate(list(plain.values())), rtol=1e-6)


@pytest.mark.parametrize("form", ["numpy", "small_cnn_zoo"])
def test_epochs_of_arrays_are_checked(tmp_path, form):
    zoo = zoo_of(CNN)
    export.export(zoo, tmp_path / "out", form)
    path = tmp_path / "out" / ("zoo.npz" if form == "numpy" else "")
    last = imported(path, tmp_path, CNN, epochs=(3, 1))
    assert_same(last, zoo, [1, 2])
    with pytest.raises(HyperJaxError, match=r"no snapshots of epochs \[2\]; it has \[0, 1, 3\]"):
        imported(path, tmp_path, CNN, "other", epochs=(2, 3))


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_flat_arrays_and_back(tmp_path, suffix):
    zoo = zoo_of(CNN)
    (path,) = export.export(zoo, tmp_path, "numpy")
    if suffix == "h5":
        h5py = pytest.importorskip("h5py")
        with np.load(path) as arrays, h5py.File(tmp_path / "zoo.h5", "w") as file:
            for name in ("weights", "epochs", *zoo.metrics):
                file[name] = arrays[name]
        path = tmp_path / "zoo.h5"
    found = imported(path, tmp_path, CNN, "again", model="cnn")
    assert_same(found, zoo)
    if suffix == "npz":  # it tells its architecture itself; arrays of others do not
        assert_same(imported(path, tmp_path, CNN, "told"), zoo)
        with np.load(path) as arrays:
            np.savez(path, **{name: arrays[name] for name in arrays.files if name != "spec"})
    with pytest.raises(HyperJaxError, match="do not tell their architecture; name it"):
        imported(path, tmp_path, CNN, "other")
    with pytest.raises(HyperJaxError, match="vectors of 2464 values; unterthiner has"):
        imported(path, tmp_path, CNN, "other", model="unterthiner")


def test_members_that_cannot_be_used_are_left_out_by_name(tmp_path, capsys):
    zoo = zoo_of(MLP, members=6)
    zoo.weights[3, -1, 7] = np.nan
    paths = export.export(zoo, tmp_path / "dicts", "torch")
    paths[1].write_bytes(paths[1].read_bytes()[:900])
    export.export(zoo_of(CNN, 1), tmp_path / "foreign", "torch")[0].replace(paths[4])
    found = imported(tmp_path / "dicts", tmp_path, MLP, verbose=True)
    np.testing.assert_array_equal(found.weights[:, 0], zoo.weights[[0, 2, 5], -1])
    np.testing.assert_array_equal(found.members, [0, 2, 5])
    left_out = found.info["left_out"]
    assert list(left_out) == ["00000001.pt", "00000003.pt", "00000004.pt"]
    assert "not finite" in left_out["00000003.pt"]
    assert "lacks fc" in left_out["00000004.pt"] or "also has" in left_out["00000004.pt"]
    text = " ".join(capsys.readouterr().out.split())
    assert "3 members, 3 left out" in text
    assert "left out: 00000001.pt: " in text
    with pytest.raises(HyperJaxError, match=r"^member 00000001\.pt: .*00000001\.pt: "):
        imported(tmp_path / "dicts", tmp_path, MLP, "strict", strict=True)
    for path in paths[:1] + paths[2:]:
        path.write_bytes(b"")
    with pytest.raises(HyperJaxError, match=r"00000000\.pt"):
        imported(tmp_path / "dicts", tmp_path, MLP, "none")


def test_a_stopped_import_goes_on(tmp_path, monkeypatch):
    """To the same bytes, and what has been read is not read again."""
    zoo = zoo_of(MLP, members=9)
    zoo.weights[[2, 6], -1, 0] = np.inf
    export.export(zoo, tmp_path / "dicts", "torch")
    whole = imported(tmp_path / "dicts", tmp_path, MLP, "whole")
    monkeypatch.setattr(importing, "_ROWS", 2)
    read, member = [], importing._member

    def counted(source, row):
        read.append(row)
        return member(source, row)

    monkeypatch.setattr(importing, "_member", counted)
    asked = iter([False] * 4 + [True] + [False] * 20)
    monkeypatch.setattr(stop, "requested", lambda due: next(asked))
    monkeypatch.setattr(stop, "leave", lambda: (_ for _ in ()).throw(stop.Terminated))
    monkeypatch.setattr(stop, "requested", lambda due: len(read) == 5)
    with pytest.raises(stop.Terminated):
        imported(tmp_path / "dicts", tmp_path, MLP, "again")
    assert not (tmp_path / "again.safetensors").exists()
    monkeypatch.setattr(stop, "requested", lambda due: False)
    again = imported(tmp_path / "dicts", tmp_path, MLP, "again")
    assert read == list(range(9))
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "whole.safetensors"
    ).read_bytes()
    assert_same(again, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.safetensors", "dicts", "whole.safetensors"
    ]  # fmt: skip
    imported(tmp_path / "dicts", tmp_path, MLP, "again")  # there is nothing to do
    assert len(read) == 9
    with pytest.raises(HyperJaxError, match="is another zoo"):
        imported(tmp_path / "dicts", tmp_path, MLP, "again", activation="tanh")


def test_nothing_there(tmp_path):
    with pytest.raises(HyperJaxError, match="no networks there; expected a folder or pattern"):
        imported(tmp_path, tmp_path, MLP)
    with pytest.raises(HyperJaxError, match="no networks there"):
        imported(tmp_path / "*.pt", tmp_path, MLP)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "params.json").write_text("{}")
    with pytest.raises(HyperJaxError, match="none of its 1 members has a checkpoint_<epoch>"):
        imported(tmp_path, tmp_path, MLP)


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
        files.remove(*(output.with_suffix(s) for s in (".safetensors", ".partial", ".importing")))
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
