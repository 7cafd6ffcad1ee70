import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open
from store_cases import bytes_of_another_process

from hyperjax.errors import HyperJaxError
from hyperjax.population import Moments
from hyperjax.store import moments_file

INFO = {"dataset": "digits", "count": 1000, "size": (28, 28)}


def make_moments():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(24, 9))
    return Moments(np.float32(rng.normal(size=(4, 2, 3))), np.float32(factor @ factor.T))


MOMENTS = make_moments()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "moments.safetensors"
    moments_file.write(path, MOMENTS, INFO)
    return path


def test_round_trip(path):
    result, info = moments_file.read(path)
    assert info == INFO | {"size": [28, 28]}
    jax.tree.map(np.testing.assert_array_equal, result, MOMENTS)
    assert isinstance(result, Moments)
    assert {leaf.dtype for leaf in result} == {np.dtype(np.float32)}
    assert os.listdir(path.parent) == [path.name]


def test_equal_moments_give_equal_bytes(path):
    """In another process, from device arrays, with the info in another order."""
    code = (
        "moments = jax.tree.map(jax.numpy.asarray, t.make_moments())\n"
        "info = dict(reversed(t.INFO.items()))\n"
        "t.moments_file.write(sys.argv[1], moments, info)\n"
    )
    assert bytes_of_another_process(Path(__file__), code, path) == path.read_bytes()


def test_the_safetensors_library_reads_it(path):
    tensors = safetensors.numpy.load_file(path)
    assert set(tensors) == {"mean", "covariance"}
    with safe_open(path, framework="numpy") as file:
        (fields,) = map(json.loads, file.metadata().values())
    assert (fields["format"], fields["schema"]) == ("hyperjax-moments", 1)


def test_a_failure_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(HyperJaxError, match=r"moments\.safetensors: .*not finite"):
        moments_file.write(path, MOMENTS._replace(mean=np.nan * MOMENTS.mean), INFO)
    assert path.read_bytes() == before
    with pytest.raises(HyperJaxError, match=r"cannot write .*safetensors/m"):
        moments_file.write(path / "m", MOMENTS, INFO)


def test_missing_and_unreadable(path):
    with pytest.raises(HyperJaxError, match="nowhere: there is no such file of image moments"):
        moments_file.read(path.parent / "nowhere")
    with pytest.raises(HyperJaxError, match=str(path.parent)):
        moments_file.read(path.parent)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HyperJaxError, match=r"moments\.safetensors: not a whole safetensors"):
        moments_file.read(path)


def store(path, tensors=None, fields=None, **changes):
    """A file of moments with some things changed."""
    fields = {"format": "hyperjax-moments", "schema": 1, "info": {}} | changes
    tensors = {k: v for k, v in (MOMENTS._asdict() | (tensors or {})).items() if v is not None}
    path.write_bytes(safetensors.numpy.save(tensors, {"hyperjax": json.dumps(fields)}))


@pytest.mark.parametrize(
    "changes", [{"format": "hyperjax-zoo"}, {"format": None}, {"schema": 2}, {"schema": "1"}]
)
def test_foreign_files_and_other_schemas(path, changes):
    store(path, **changes)
    expected = r"moments\.safetensors: .*expected 'hyperjax-moments', schema 1"
    with pytest.raises(HyperJaxError, match=expected):
        moments_file.read(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "hyperjax-zoo"}, {"hyperjax": "{"}, {"hyperjax": "[1]"}]
)
def test_metadata_that_are_not_ours(path, metadata):
    path.write_bytes(safetensors.numpy.save(MOMENTS._asdict(), metadata))
    expected = r"moments\.safetensors: (damaged|format (None|'hyperjax-zoo'))"
    with pytest.raises(HyperJaxError, match=expected):
        moments_file.read(path)


COVARIANCE = MOMENTS.covariance


def changed(row, column, value):
    covariance = COVARIANCE.copy()
    covariance[row, column] = value
    return covariance


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mean": None}, "damaged: tensors covariance"),
        ({"extra": np.zeros(1)}, "damaged: tensors covariance, extra, mean"),
        ({"mean": MOMENTS.mean.ravel()}, r"mean float32\[24\].*expected float32\[H, W, C\]"),
        ({"mean": np.zeros((0, 2, 3), np.float32)}, r"expected float32\[H, W, C\]"),
        ({"mean": MOMENTS.mean.astype(np.float64)}, r"mean float64\[4, 2, 3\].*expected float32"),
        ({"mean": MOMENTS.mean[:3]}, r"covariance \[24, 24\]; expected \[18, 18\]"),
        ({"covariance": COVARIANCE[:, :-1]}, r"covariance \[24, 23\]; expected \[24, 24\]"),
        ({"mean": np.inf * MOMENTS.mean}, "not finite"),
        ({"covariance": changed(2, 2, np.nan)}, "not finite"),
        ({"covariance": changed(2, 2, -1)}, "a variance is negative"),
        ({"covariance": changed(2, 3, COVARIANCE[2, 3] + 0.01)}, "not symmetric"),
    ],
)
def test_no_moments(path, tensors, message):
    store(path, tensors)
    with pytest.raises(HyperJaxError, match=rf"moments\.safetensors: .*{message}"):
        moments_file.read(path)


def test_no_info(path):
    store(path, info=None)
    with pytest.raises(HyperJaxError, match=r"moments\.safetensors: damaged: .*info None"):
        moments_file.read(path)


def test_rounding_is_not_asymmetry(path):
    moments_file.write(path, MOMENTS._replace(covariance=changed(2, 3, COVARIANCE[2, 3])), {})
    nearly = changed(2, 3, COVARIANCE[2, 3] * (1 + 1e-6))
    moments_file.write(path, MOMENTS._replace(covariance=nearly), {})
    np.testing.assert_array_equal(moments_file.read(path)[0].covariance, nearly)
