"""Zoos of others into one file: every form, resumed, with damaged members, and out again."""

import json
import shutil

import numpy as np
import pytest
from exchange_cases import CNN, MLP, PLAIN, TORCH, UNTERTHINER, imported, zoo_of

import hyperjax as hj
from hyperjax.app import import_zoo as importing
from hyperjax.app import stop
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import export


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


def test_a_network_of_one_layer(tmp_path):
    """An `mlp` without hidden layers, for images of a size that nobody says."""
    spec = hj.WeightSpec((hj.LayerSpec("fc1", "dense", (10, 784)),), "relu", (28, 28))
    zoo = zoo_of(spec, members=2, epochs=(1,))
    export.export(zoo, tmp_path / "dicts", "torch")
    for model in ("mlp", ""):
        name = f"zoo{model}"
        found = imported(tmp_path / "dicts", tmp_path, spec, name, model=model, image_size=None)
        assert_same(found, zoo)
    with pytest.raises(HyperJaxError, match="layers of shapes 10x784 are no cnn for images"):
        imported(tmp_path / "dicts", tmp_path, spec, "other", model="cnn")


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


@pytest.mark.parametrize(("dtype", "too_large", "rtol"), [("<f2", 7e4, 1e-3), ("<f8", 1e300, 1e-7)])
def test_values_beyond_the_range_of_a_type_are_not_finite(tmp_path, dtype, too_large, rtol):
    """Of float16, whose owner let them overflow, and of float64, which float32 does not hold."""
    zoo = zoo_of(MLP, epochs=(0,))
    (path,) = export.export(zoo, tmp_path, "numpy")
    with np.load(path) as found, np.errstate(over="ignore"):
        arrays = dict(found)
        weights = arrays["weights"].astype("f8")
        weights[2, 0, 7] = too_large
        arrays["weights"] = weights.astype(dtype)
    np.savez(path, **arrays)
    found = imported(path, tmp_path, MLP, "again")
    assert found.members.tolist() == [0, 1, 3]
    assert "not finite" in str(found.info["left_out"])
    assert found.weights.dtype == np.float32
    np.testing.assert_allclose(found.weights, zoo.weights[[0, 1, 3]], rtol=rtol, atol=1e-6)


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
    monkeypatch.setattr(stop, "told", lambda: len(read) == 5)
    with pytest.raises(stop.Terminated):
        imported(tmp_path / "dicts", tmp_path, MLP, "again")
    assert not (tmp_path / "again.safetensors").exists()
    monkeypatch.setattr(stop, "told", lambda: False)
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
