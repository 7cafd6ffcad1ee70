"""Adam's second moments: of PyTorch's own optimisers, in every form that holds them, and back."""

import json
import shutil

import numpy as np
import pytest
from exchange_cases import CNN, MLP, PLAIN, TORCH, moments_of, zoo_of

import hyperjax as hj
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import export, optimizer_state, state_dict, torch_file

EXPECTED = json.loads((TORCH / "expected.json").read_text())
STATISTICS = ("2.running_mean", "2.running_var")


def checkpoint(name="adam"):
    found = torch_file.read(TORCH / f"{name}.pt")
    tensors = state_dict.unwrapped(found)
    layout = hj.spec_of(tensors, activation="relu", image_size=(4, 3))
    return layout, tensors, found["optimizer_state_dict"]


def imported(path, output, **settings):
    given = {"activation": "relu", "image_size": (4, 3), "moments": True}
    return hj.import_zoo(path, output, **(given | settings))


@pytest.mark.parametrize("name", ["adam", "adam_groups"])
def test_the_state_of_pytorchs_adam(name):
    """By the order of the parameters, past the buffers; or by the names that groups tell."""
    layout, tensors, optimizer = checkpoint(name)
    vector = optimizer_state.second_moments(layout, tensors, optimizer)
    found = state_dict.to_state(layout, vector)
    for tensor in STATISTICS:
        assert not found.pop(tensor).any()
    assert found.keys() == EXPECTED[name].keys()
    for tensor, values in EXPECTED[name].items():
        np.testing.assert_array_equal(found[tensor].ravel(), np.float32(values))
    again = optimizer_state.to_optimizer(layout, vector)
    np.testing.assert_array_equal(optimizer_state.second_moments(layout, tensors, again), vector)


def test_before_the_first_step_moments_are_zero():
    layout, tensors, optimizer = checkpoint()
    assert not optimizer_state.second_moments(layout, tensors, optimizer | {"state": {}}).any()


def test_what_is_no_state_of_adam_says_so():
    layout, tensors, optimizer = checkpoint()
    (group,), states = optimizer["param_groups"], optimizer["state"]
    sgd = {n: {"momentum_buffer": x["exp_avg_sq"]} for n, x in states.items()}
    swapped = states | {0: states[4], 4: states[0]}
    for state, message in (
        ([1], "no state of an optimiser"),
        ({"state": states}, "no state of an optimiser: KeyError"),
        (optimizer | {"state": sgd}, r"without exp_avg_sq of 1\.weight"),
        (optimizer | {"state": swapped}, r"1\.weight has shape \[3, 5\]; expected \[5, 12\]"),
        (optimizer | {"state": {0: states[0]}}, r"without exp_avg_sq of 1\.bias"),
        (optimizer | {"param_groups": [{"params": [0, 1]}]}, "of 2 parameters; the network has 6"),
        (optimizer | {"param_groups": [{"params": [0]}, {"params": [1]}]}, "2 groups of param"),
        (optimizer | {"param_groups": [group | {"params": [[0]]}]}, "no state of an optimiser"),
        (optimizer | {"param_groups": [group | {"param_names": list("abcdef")}]}, "lacks 1.bias"),
        ({"param_groups": [{"params": range(6)}], "state": {}}, "without exp_avg_sq"),  # nor Adam
    ):
        with pytest.raises(HyperJaxError, match=message):
            optimizer_state.second_moments(layout, tensors, state)
    lightning = {"optimizer_states": [optimizer]}
    assert optimizer_state.of_checkpoint(lightning) is optimizer
    for found in ({"state_dict": tensors}, tensors, [1], {"optimizer_states": [1, 2]}):
        with pytest.raises(HyperJaxError, match="no optimiser in it"):
            optimizer_state.of_checkpoint(found)


def test_checkpoints_with_their_optimiser(tmp_path):
    """A member without one is left out; whoever does not ask gets weights alone."""
    folder = tmp_path / "nets"
    folder.mkdir()
    shutil.copy(TORCH / "adam.pt", folder / "a.pt")
    shutil.copy(TORCH / "adam_groups.pt", folder / "b.pt")
    layout, tensors, _ = checkpoint()
    (folder / "c.pt").write_bytes(export.torch_bytes(tensors))
    zoo = imported(folder, tmp_path / "zoo.safetensors")
    assert zoo.info["names"] == ["a.pt", "b.pt"]
    assert "c.pt: no optimiser in it" in zoo.info["left_out"]["c.pt"]
    for row, name in enumerate(("adam", "adam_groups")):
        expected = EXPECTED[name] | {n: np.zeros(5) for n in STATISTICS}
        vector = state_dict.to_vector(layout, {n: np.reshape(x, tensors[n].shape)
                                               for n, x in expected.items()})  # fmt: skip
        np.testing.assert_array_equal(zoo.second_moments[row, 0], vector)
    with pytest.raises(HyperJaxError, match="is another zoo"):
        imported(folder, tmp_path / "zoo.safetensors", moments=False)
    plain = imported(folder, tmp_path / "plain.safetensors", moments=False)
    assert plain.second_moments is None
    assert len(plain.members) == 3
    with pytest.raises(HyperJaxError, match=r"^member c\.pt: "):
        imported(folder, tmp_path / "strict.safetensors", strict=True)


def test_the_ray_layout_holds_them(tmp_path):
    """Beside the weights, to the bit; a bad or missing optimiser costs its member alone."""
    zoo = moments_of(zoo_of(CNN, members=5))
    export.export(zoo, tmp_path / "ray", "ray", tensors=PLAIN)
    output = tmp_path / "zoo.safetensors"
    known = {"activation": "tanh", "image_size": (28, 28)}
    found = imported(tmp_path / "ray", output, **known)
    np.testing.assert_array_equal(found.second_moments, zoo.second_moments)
    np.testing.assert_array_equal(found.weights, zoo.weights)
    places = sorted(tmp_path.glob("ray/*/checkpoint_000003/optimizer"))
    places[0].unlink()
    data = bytearray(places[2].read_bytes())
    data[len(data) // 2] ^= 1
    places[2].write_bytes(data)
    negative = optimizer_state.to_optimizer(export.layout_of(zoo, PLAIN), zoo.weights[3, 0])
    places[3].write_bytes(export.torch_bytes(negative))
    some = imported(tmp_path / "ray", tmp_path / "some.safetensors", **known)
    np.testing.assert_array_equal(some.members, [1, 4])
    np.testing.assert_array_equal(some.second_moments, zoo.second_moments[[1, 4]])
    reasons = list(some.info["left_out"].values())
    for reason, words in zip(reasons, ("no such file", "checksum", "negative"), strict=True):
        assert words in reason


@pytest.mark.parametrize("form", ["numpy", "small_cnn_zoo", "safetensors"])
def test_other_forms_hold_them_or_say_so(tmp_path, form):
    zoo = moments_of(zoo_of(MLP))
    export.export(zoo, tmp_path / "out", form)
    path, output = tmp_path / "out", tmp_path / "zoo.safetensors"
    if form == "numpy":
        found = imported(path / "zoo.npz", output)
        np.testing.assert_array_equal(found.second_moments, zoo.second_moments)
        return
    message = {"small_cnn_zoo": "Small CNN Zoo without second", "safetensors": "hold no optimiser"}
    with pytest.raises(HyperJaxError, match=message[form]):
        imported(path, output)
    assert not output.exists()


def test_imports_with_and_without_them_do_not_go_on_from_each_other(tmp_path, monkeypatch):
    from hyperjax.app import import_zoo as importing
    from hyperjax.app import stop

    zoo = moments_of(zoo_of(MLP, members=4))
    export.export(zoo, tmp_path / "ray", "ray")
    output = tmp_path / "zoo.safetensors"
    read, member = [], importing._member

    def counted(source, row):
        read.append(row)
        return member(source, row)

    monkeypatch.setattr(importing, "_member", counted)
    for moments in (False, True):
        read.clear()
        monkeypatch.setattr(stop, "told", lambda: len(read) == 2)
        with pytest.raises(stop.Terminated):
            imported(tmp_path / "ray", output, moments=moments)
        assert read == [0, 1]
    monkeypatch.setattr(stop, "told", lambda: False)
    found = imported(tmp_path / "ray", output)
    np.testing.assert_array_equal(found.second_moments, zoo.second_moments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ray", output.name]
