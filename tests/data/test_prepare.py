"""Preparation with tensorflow-datasets, and reading the outcome without TensorFlow.

Nothing is downloaded: a stand-in takes the place of tensorflow-datasets where the command
would download, and its own writer makes the prepared files that are read.
"""

import importlib.util
import io
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from hyperjax.data import prepare
from hyperjax.data.images import load_images
from hyperjax.errors import HyperJaxError


@pytest.fixture(autouse=True)
def empty_home(monkeypatch, tmp_path):
    """No test may find data in the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def stand_in(monkeypatch):
    """Pretend that TensorFlow is installed; record what tensorflow-datasets is asked for."""
    calls = []

    def builder(name, *, data_dir, file_format):
        calls.append((name, str(data_dir), file_format))

        def download_and_prepare():
            calls.append("download")

        return types.SimpleNamespace(
            download_and_prepare=download_and_prepare, data_dir=f"{data_dir}/{name}/3.1.0"
        )

    module = types.SimpleNamespace(builder=builder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return calls, module


def mark_prepared(folder, file_format):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": file_format}))


def test_prepares_array_records(stand_in, tmp_path, capsys):
    calls, _ = stand_in
    assert prepare.main(["--dataset=svhn", f"--data_dir={tmp_path}"]) == 0
    assert calls == [("svhn_cropped", str(tmp_path), "array_record"), "download"]
    assert f"{tmp_path}/svhn_cropped/3.1.0" in capsys.readouterr().out


def test_prepared_data_are_left_alone(stand_in, tmp_path, capsys):
    calls, _ = stand_in
    mark_prepared(tmp_path / "mnist" / "3.0.1", "array_record")
    assert prepare.main(["--dataset=mnist", f"--data_dir={tmp_path}"]) == 0
    assert not calls
    assert str(tmp_path / "mnist" / "3.0.1") in capsys.readouterr().out


def test_another_format_is_refused(stand_in, tmp_path):
    mark_prepared(tmp_path / "mnist" / "3.0.1", "tfrecord")
    with pytest.raises(HyperJaxError, match=r"3\.0\.1: already prepared, but as tfrecord"):
        prepare.prepare("mnist", tmp_path)


def test_failed_download_is_one_message(stand_in, tmp_path, capsys):
    _, module = stand_in

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    module.builder = offline
    assert prepare.main(["--dataset=mnist", f"--data_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "mnist could not be prepared" in error
    assert "no route to host" in error


def test_needs_tensorflow(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert prepare.main(["--dataset=mnist", f"--data_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install -e '.[prepare]' in the repository" in error
    assert not list(tmp_path.iterdir())


def test_names():
    with pytest.raises(HyperJaxError, match="digits needs no preparation"):
        prepare.prepare("digits", "")
    with pytest.raises(HyperJaxError, match="unknown dataset 'minst'"):
        prepare.prepare("minst", "")


def test_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match=r"^0$"):
        prepare.main(["--help"])
    shown = capsys.readouterr().out
    for part in (
        "--dataset {mnist,",
        "--data_dir",
        "pip install -e '.[prepare]'",
        "example: python -m",
    ):
        assert part in shown


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def write_prepared(root, name, version, shape, *, labels=tuple(range(10)) * 2):
    """Prepare random images with the writer of tensorflow-datasets; return the splits."""
    tfds = pytest.importorskip("tensorflow_datasets")
    rng = np.random.default_rng(0)
    splits = {
        split: (rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels)
        for split in ("train", "test")
    }

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            features = tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=shape, encoding_format="png"),
                "label": tfds.features.Scalar(np.int64),
            })  # fmt: skip
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {split: self._generate_examples(*pair) for split, pair in splits.items()}

        def _generate_examples(self, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"image": png(image), "label": label}

    Prepared.name = name
    Prepared(data_dir=root, file_format="array_record").download_and_prepare()
    return splits["train"], splits["test"]


def pairs(splits, prepare_image):
    """The (image, label) pairs as a sorted list: tensorflow-datasets shuffles them."""
    return sorted(
        (prepare_image(image).tobytes(), int(label))
        for images, labels in splits
        for image, label in zip(images, labels, strict=True)
    )


def same(image):
    return image


def grey_crop(image):
    return np.asarray(Image.fromarray(image).convert("L").crop((2, 2, 30, 30)))


def pillow_resize(image):
    return np.asarray(Image.fromarray(image).resize((28, 28), Image.BILINEAR))


@pytest.mark.parametrize(("name", "tfds_name", "version", "shape", "reference"), [
    ("mnist", "mnist", "3.0.1", (28, 28, 1), same),
    ("svhn", "svhn_cropped", "3.1.0", (32, 32, 3), grey_crop),
    ("stl10", "stl10", "1.0.0", (96, 96, 3), pillow_resize),
])  # fmt: skip
def test_prepared_files_are_read(name, tfds_name, version, shape, reference, tmp_path):
    train, test = write_prepared(tmp_path, tfds_name, version, shape)
    data = load_images(name, tmp_path, seed=0, num_val=3)
    assert data.source == f"tfds {version}"
    assert len(data.val.labels) == 3
    training = [(split.pixels, split.labels) for split in (data.train, data.val)]
    assert pairs(training, same) == pairs([train], reference)
    assert pairs([(data.test.pixels, data.test.labels)], same) == pairs([test], reference)
    assert data.test.pixels.dtype == np.uint8
    assert data.test.labels.dtype == np.int32
    assert "tensorflow" not in sys.modules


def load_mnist(tmp_path):
    return load_images("mnist", tmp_path, seed=0, num_val=0)


def test_original_files_come_before_prepared_ones(tmp_path):
    write_prepared(tmp_path / "home" / "tensorflow_datasets", "mnist", "3.0.1", (28, 28, 1))
    assert load_mnist(tmp_path).source == "tfds 3.0.1"
    for split in ("train", "t10k"):
        images = bytes([0, 0, 8, 3, *(0, 0, 0, 1), *(0, 0, 0, 28), *(0, 0, 0, 28)]) + bytes(784)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    assert load_mnist(tmp_path).source == "idx"


def test_newest_readable_version(tmp_path):
    write_prepared(tmp_path, "mnist", "3.0.2", (28, 28, 1))
    write_prepared(tmp_path, "mnist", "3.0.10", (28, 28, 1))
    (tmp_path / "mnist" / "4.0.0").mkdir()  # not finished
    mark_prepared(tmp_path / "mnist" / "5.0.0", "tfrecord")
    mark_prepared(tmp_path / "mnist" / "incomplete.X_6.0.0", "array_record")
    assert load_mnist(tmp_path).source == "tfds 3.0.10"


def test_damaged_preparation(tmp_path):
    write_prepared(tmp_path, "mnist", "3.0.1", (28, 28, 1))
    folder = tmp_path / "mnist" / "3.0.1"
    (test_file,) = folder.glob("*-test.*")
    test_file.write_bytes(test_file.read_bytes()[:100])
    with pytest.raises(HyperJaxError, match=r"3\.0\.1: the split 'test' cannot be read"):
        load_mnist(tmp_path)
    test_file.unlink()
    with pytest.raises(HyperJaxError, match=r"3\.0\.1: the split 'test' cannot be read"):
        load_mnist(tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(HyperJaxError, match=r"not a readable dataset_info\.json"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(("shape", "labels", "expected"), [
    ((32, 32, 1), (0, 1), r"shape \(32, 32, 1\), expected \(28, 28, 1\)"),
    ((28, 28, 1), (0, 10), "labels from 0 to 10"),
])  # fmt: skip
def test_another_data_set_of_that_name(shape, labels, expected, tmp_path):
    write_prepared(tmp_path, "mnist", "3.0.1", shape, labels=labels)
    with pytest.raises(HyperJaxError, match=expected):
        load_mnist(tmp_path)


def test_tfrecords_only(tmp_path):
    mark_prepared(tmp_path / "mnist" / "3.0.1", "tfrecord")
    with pytest.raises(HyperJaxError, match=r"mnist \(has 3\.0\.1 as tfrecord\)"):
        load_mnist(tmp_path)


def test_prepared_without_tensorflow_datasets(tmp_path, monkeypatch):
    mark_prepared(tmp_path / "mnist" / "3.0.1", "array_record")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(HyperJaxError, match="pip install tensorflow-datasets"):
        load_mnist(tmp_path)
