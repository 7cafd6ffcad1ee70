"""Imports that were killed, or that are there already: the same one goes on, another does not."""

import shutil

import numpy as np
import pytest
from exchange_cases import MLP, imported, zoo_of

import hyperjax as hj
from hyperjax.app import import_zoo as importing
from hyperjax.app import stop
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import export

EPOCHS = (1, 2, 3, 4)


@pytest.fixture
def read(monkeypatch):
    """The rows of members, as they are read."""
    rows, member = [], importing._member

    def counted(source, row):
        rows.append(row)
        return member(source, row)

    monkeypatch.setattr(importing, "_member", counted)
    return rows


@pytest.fixture
def killed(monkeypatch, read):
    """An import that ends after it has read some members."""

    def run(after, make, *args, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(stop, "told", lambda: len(read) == after)
            with pytest.raises(stop.Terminated):
                make(*args, **settings)
        assert read[-1] == after - 1
        read.clear()

    return run


def ray(tmp_path, members=5):
    zoo = zoo_of(MLP, members, EPOCHS)
    export.export(zoo, tmp_path / "ray", "ray")
    return zoo, tmp_path / "ray"


def lay(zoo, rows, folder):
    """These members and no others, as state dicts."""
    shutil.rmtree(folder, ignore_errors=True)
    export.export(zoo.select(list(rows)), folder, "torch")


@pytest.mark.parametrize("epochs", [(3, 4), (1, 2, 3), (2,), ()], ids=str)
def test_other_snapshots_begin_anew(tmp_path, killed, read, capsys, epochs):
    zoo, path = ray(tmp_path)
    killed(3, imported, path, tmp_path, MLP, epochs=(1, 2))
    found = imported(path, tmp_path, MLP, epochs=epochs, verbose=True)
    assert read == list(range(5))
    np.testing.assert_array_equal(found.epochs, epochs or EPOCHS)
    columns = [epoch - 1 for epoch in epochs or EPOCHS]
    np.testing.assert_array_equal(found.weights, zoo.weights[:, columns])
    told = f"(snapshots: [1, 2] there, {list(epochs or EPOCHS)} here): beginning anew"
    assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 1, 2, 3, 4), (0, 2, 3, 4)),
        ((0, 2, 3, 4), (0, 1, 2, 3, 4)),
        ((0, 1, 2, 3), (0, 2, 3, 4)),
    ],
    ids=["fewer", "more", "others"],
)
def test_other_members_begin_anew(tmp_path, killed, before, after):
    """A row is a place in the order of names, which one more or less of them shifts."""
    zoo, folder = zoo_of(MLP, 5), tmp_path / "dicts"
    lay(zoo, before, folder)
    killed(3, imported, folder, tmp_path, MLP)
    lay(zoo, after, folder)
    found = imported(folder, tmp_path, MLP)
    np.testing.assert_array_equal(found.weights[:, 0], zoo.weights[list(after), -1])
    np.testing.assert_array_equal(found.members, range(len(after)))
    assert found.info["names"] == [f"{row:08d}.pt" for row in after]


def test_what_is_begun_anew_has_nothing_of_the_other(tmp_path, killed, monkeypatch):
    """Killed once more, before it has noted anything: nothing says that it has come anywhere."""
    zoo, path = ray(tmp_path)
    killed(3, imported, path, tmp_path, MLP, epochs=(1, 2))

    def fail(source, row):
        raise RuntimeError("the second kill")

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_member", fail)
        with pytest.raises(RuntimeError, match="the second kill"):
            imported(path, tmp_path, MLP, epochs=(3, 4))
    found = imported(path, tmp_path, MLP, epochs=(3, 4))
    np.testing.assert_array_equal(found.weights, zoo.weights[:, 2:])


def test_an_output_of_another_import_is_refused_with_what_differs(tmp_path):
    zoo, path = ray(tmp_path)
    imported(path, tmp_path, MLP, epochs=(1, 2))
    data = (tmp_path / "zoo.safetensors").read_bytes()
    for epochs, here in (((3, 4), r"\[3, 4\]"), ((2,), r"\[2\]"), ((), r"\[1, 2, 3, 4\]")):
        differ = rf"zoo\.safetensors is another zoo \(snapshots: \[1, 2\] there, {here} here\); del"
        with pytest.raises(HyperJaxError, match=differ):
            imported(path, tmp_path, MLP, epochs=epochs)
    with pytest.raises(HyperJaxError, match=r"\(.*activation: relu there, tanh here.*\); delete"):
        imported(path, tmp_path, MLP, epochs=(1, 2), activation="tanh")
    again = imported(path, tmp_path, MLP, epochs=(2, 1), strict=True)
    np.testing.assert_array_equal(again.weights, zoo.weights[:, :2])
    shutil.move(path / "NN_tune_trainable_00000002", tmp_path / "aside")
    differ = r"\(further members: \['NN_tune_trainable_00000002'\] there, \[\] here\); delete"
    with pytest.raises(HyperJaxError, match=differ):
        imported(path, tmp_path, MLP, epochs=(1, 2))
    shutil.move(tmp_path / "aside", path / "a_new_one")
    with pytest.raises(HyperJaxError, match=r"there, \['a_new_one'\] here\); delete"):
        imported(path, tmp_path, MLP, epochs=(1, 2))
    assert (tmp_path / "zoo.safetensors").read_bytes() == data


def test_strict_takes_over_nothing_that_was_left_out(tmp_path, killed, read):
    zoo, folder = zoo_of(MLP, 5), tmp_path / "dicts"
    export.export(zoo, folder, "torch")
    killed(2, imported, folder, tmp_path, MLP, "whole")
    imported(folder, tmp_path, MLP, "whole", strict=True)  # goes on: nothing is left out
    assert read == [2, 3, 4]
    read.clear()
    (folder / "00000001.pt").write_bytes(b"")
    killed(3, imported, folder, tmp_path, MLP)
    with pytest.raises(HyperJaxError, match=r"^member 00000001\.pt: "):
        imported(folder, tmp_path, MLP, strict=True)
    found = imported(folder, tmp_path, MLP)
    np.testing.assert_array_equal(found.weights[:, 0], zoo.weights[[0, 2, 3, 4], -1])
    differ = r"is another zoo \(left out: \['00000001\.pt'\] there, \[\] here\); delete"
    with pytest.raises(HyperJaxError, match=differ):
        imported(folder, tmp_path, MLP, strict=True)
    np.testing.assert_array_equal(imported(folder, tmp_path, MLP).members, [0, 2, 3, 4])


@pytest.mark.parametrize(
    "names", [("mnist-lr0.01", "mnist-lr0.003"), ("a.safetensors", "a.zoo")], ids=str
)
def test_imports_beside_each_other_have_files_of_their_own(tmp_path, killed, read, names):
    """Two of them are under way at once, whatever follows the last dot of their names."""
    zoo, outputs = zoo_of(MLP, 6), [tmp_path / name for name in names]
    zoo.weights[5, -1, 0] = np.nan  # left out: there is a file without its place, too
    given = {"activation": "relu", "image_size": MLP.image_size}
    folders = (tmp_path / "one", tmp_path / "two")
    for rows, folder, output in zip(([0, 1, 2, 5], [3, 4, 5]), folders, outputs, strict=True):
        lay(zoo, rows, folder)
        killed(2, hj.import_zoo, folder, output, **given)
    for rows, folder, output in zip(([0, 1, 2], [3, 4]), folders, outputs, strict=True):
        found = hj.import_zoo(folder, output, **given)
        assert read == list(range(2, len(rows) + 1))
        read.clear()
        np.testing.assert_array_equal(found.weights[:, 0], zoo.weights[rows, -1])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "one", "two"])


@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_an_output_may_lie_among_its_networks(tmp_path, killed, read, pattern):
    """Neither it nor what lies beside it while it is made is one of them."""
    zoo, folder = zoo_of(MLP, 3), tmp_path / "dicts"
    export.export(zoo, folder, "torch")
    killed(2, imported, folder / pattern, folder, MLP)
    assert (folder / "zoo.safetensors.partial").exists()
    for _ in range(2):
        found = imported(folder / pattern, folder, MLP)
        assert read == [2]
        np.testing.assert_array_equal(found.weights[:, 0], zoo.weights[:, -1])
        assert "left_out" not in found.info
