"""Image data: every file format written here by an independent writer and read back."""

import gzip
import sys

import jax
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import idx_bytes, write_cifar10, write_idx, write_stl10, write_svhn
from PIL import Image

from hyperjax.data import images as images_lib
from hyperjax.data.images import DATASETS, dataset_info, load_images, resize
from hyperjax.errors import HyperJaxError
from hyperjax.types import Images

RNG = np.random.default_rng(0)
CHANNELS = {"mnist": 1, "fashion_mnist": 1, "svhn": 1, "cifar10": 3, "stl10": 3}


@pytest.fixture(autouse=True)
def no_network_and_no_home(monkeypatch, tmp_path):
    """No test may find data in the user's home or open a connection."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def refuse(*args, **kwargs):
        raise AssertionError("network access")

    monkeypatch.setattr("socket.socket.connect", refuse)


def pillow_resize(images, size):
    """torchvision's Resize on PIL images."""
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((size, size), Image.BILINEAR)) for x in images]
    )


def pillow_grey_crop(images):
    """torchvision's Grayscale, then CenterCrop(28), on PIL images."""
    grey = [Image.fromarray(x).convert("L").crop((2, 2, 30, 30)) for x in images]
    return np.stack([np.asarray(x) for x in grey])[..., None]


def assert_same_examples(images, labels, expected_images, expected_labels):
    """Equal as sets of (image, label) pairs; training images come back permuted."""
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert images.flags.c_contiguous
    got = sorted((x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True))
    expected = zip(expected_images, expected_labels, strict=True)
    assert got == sorted((x.tobytes(), int(y)) for x, y in expected)


def assert_loaded(data, train, test, transform):
    """All splits of `data` hold the given raw splits, prepared by the reference."""
    pooled = [
        np.concatenate([getattr(data.train, f), getattr(data.val, f)]) for f in ("pixels", "labels")
    ]
    assert_same_examples(*pooled, transform(train[0]), train[1])
    np.testing.assert_array_equal(data.test.pixels, transform(test[0]))
    np.testing.assert_array_equal(data.test.labels, test[1])
    for split in (data.train, data.val, data.test):
        assert split.pixels.shape[1:] == (28, 28, CHANNELS[data.name])
        np.testing.assert_array_equal(split.mean, np.float32(DATASETS[data.name].mean))
        np.testing.assert_array_equal(split.std, np.float32(DATASETS[data.name].std))


FORMATS = {
    "mnist": (write_idx, "mnist", lambda x: x[..., None], "idx"),
    "fashion_mnist": (write_idx, "", lambda x: x[..., None], "idx"),
    "svhn": (write_svhn, "svhn", pillow_grey_crop, "mat"),
    "cifar10": (
        write_cifar10, "cifar-10-batches-bin", lambda x: pillow_resize(x, 28), "cifar10 binary"
    ),
    "stl10": (write_stl10, "stl10_binary", lambda x: pillow_resize(x, 28), "stl10 binary"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_original_files(name, tmp_path):
    write, folder, transform, source = FORMATS[name]
    train, test = write(tmp_path / "data" / folder)
    data = load_images(name, tmp_path / "data", seed=3, num_val=4)
    assert len(data.val.labels) == 4
    assert data.source == source
    assert data.name == name
    assert len(data.train.mean) == len(data.train.std) == data.channels == CHANNELS[name]
    assert data.num_images == {"train": len(train[1]) - 4, "val": 4, "test": len(test[1])}
    assert_loaded(data, train, test, transform)


def test_gz_in_the_folder_of_torchvision(tmp_path):
    train, test = write_idx(tmp_path / "MNIST" / "raw", compress=True)
    data = load_images("mnist", str(tmp_path), seed=0, num_val=0)
    assert data.val.pixels.shape == (0, 28, 28, 1)
    assert data.val.labels.shape == (0,)
    assert_loaded(data, train, test, lambda x: x[..., None])


def test_gz_name_with_plain_content(tmp_path):
    train, test = write_idx(tmp_path)
    for path in list(tmp_path.glob("*ubyte")):
        path.rename(f"{path}.gz")
    data = load_images("mnist", tmp_path, seed=0, num_val=5)
    assert_loaded(data, train, test, lambda x: x[..., None])


def test_splits_follow_the_seed(tmp_path):
    write_idx(tmp_path, count=50)

    def load(seed, num_train=0, num_val=10):
        return load_images("mnist", tmp_path, seed=seed, num_train=num_train, num_val=num_val)

    def rows(split):
        return [image.tobytes() for image in split.pixels]

    whole, small, other = load(1), load(1, 7), load(2)
    assert rows(load(1).train) == rows(whole.train)
    assert rows(small.train) == rows(whole.train)[:7]
    assert rows(small.val) == rows(whole.val)
    assert set(rows(whole.val)) != set(rows(other.val))
    assert not set(rows(whole.train)) & set(rows(whole.val))
    assert len(whole.train.labels) == 40
    assert len(load(1, 40).train.labels) == 40
    assert rows(whole.test) == rows(other.test)
    assert load(1).fingerprint == whole.fingerprint != other.fingerprint
    assert small.fingerprint != whole.fingerprint


def test_fingerprint_sees_labels_and_pixels():
    unit = np.ones(1, np.float32)
    split = Images(np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, np.int32), unit, unit)
    pixel, label = split.pixels.copy(), split.labels.copy()
    pixel[1, 27, 27, 0] = label[1] = 1
    prints = {
        images_lib.fingerprint(split),
        images_lib.fingerprint(split._replace(pixels=pixel)),
        images_lib.fingerprint(split._replace(labels=label)),
    }
    assert len(prints) == 3
    assert all(len(p) == 16 for p in prints)


def test_digits():
    data = load_images("digits", "no/such/folder", seed=0, num_val=147)
    other = load_images("digits", "", seed=1, num_train=100, num_val=0)
    assert [len(s.labels) for s in (data.train, data.val, data.test)] == [1200, 147, 450]
    np.testing.assert_array_equal(data.test.pixels, other.test.pixels)
    np.testing.assert_array_equal(np.bincount(data.test.labels), [45] * 10)
    # the test images are part of what results mean: they must never change
    assert images_lib.fingerprint(data.test) == "21aabb6b39bb2d59"
    pooled = np.concatenate([data.train.pixels, data.val.pixels]) / 255
    np.testing.assert_allclose(data.train.mean, [pooled.mean()], rtol=0, atol=1e-4)
    np.testing.assert_allclose(data.train.std, [pooled.std()], rtol=0, atol=1e-4)
    assert data.source == "scikit-learn"
    assert data.channels == 1


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = pillow_resize(np.rint(bunch.images * 255 / 16).astype(np.uint8), 20)
    expected = np.zeros((1797, 28, 28, 1), np.uint8)
    expected[:, 4:24, 4:24, 0] = images
    data = load_images("digits", "", seed=0, num_val=0)
    pooled = [
        np.concatenate([getattr(data.train, f), getattr(data.test, f)])
        for f in ("pixels", "labels")
    ]
    assert_same_examples(*pooled, expected, bunch.target)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_resize_is_pillows_to_the_bit(side, size, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    images[0] = 255
    np.testing.assert_array_equal(resize(images, size), pillow_resize(images, size))


def test_resize_agrees_with_jax():
    images = RNG.integers(0, 256, (3, 96, 32, 3), dtype=np.uint8)
    reference = jax.image.resize(images.astype(np.float32), (3, 28, 28, 3), "bilinear")
    assert np.abs(resize(images) - np.asarray(reference)).max() < 1.01  # two roundings


@pytest.mark.parametrize(("arguments", "expected"), [
    (dict(num_val=30), "num_val: 30, but mnist has 30 training images"),
    (dict(num_val=-1), "num_val: -1"),
    (dict(num_val=10, num_train=21), "num_train: 21, but mnist has 30 .* leaves 20"),
    (dict(num_val=10, num_train=-1), "num_train: -1"),
])  # fmt: skip
def test_more_images_than_there_are(arguments, expected, tmp_path):
    write_idx(tmp_path)
    with pytest.raises(HyperJaxError, match=expected):
        load_images("mnist", tmp_path, seed=0, **arguments)


def test_unknown_name():
    for call in (dataset_info, lambda name: load_images(name, "", seed=0, num_val=0)):
        with pytest.raises(HyperJaxError, match=r"unknown dataset 'minst'.*fashion_mnist"):
            call("minst")


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_missing_says_where_and_how(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # must not be needed to say so
    with pytest.raises(HyperJaxError) as caught:
        load_images(name, tmp_path, seed=0, num_val=0)
    message = str(caught.value)
    info = DATASETS[name]
    for part in (
        *info.train_files, *info.test_files, str(tmp_path / info.folders[0]), info.url,
        str(tmp_path / "home" / "tensorflow_datasets" / info.tfds),
        f"python -m hyperjax.data.prepare --dataset={name} --data_dir={tmp_path}",
    ):  # fmt: skip
        assert part in message


def test_missing_names_the_one_file_that_lacks(tmp_path):
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(HyperJaxError, match=r"mnist \(there, but for t10k-labels-idx1-ubyte\)"):
        load_images("mnist", tmp_path, seed=0, num_val=0)


@pytest.mark.parametrize(("name", "labels", "other"), [
    ("fashion_mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "mnist"),
    ("mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "fashion_mnist"),
])  # fmt: skip
def test_mnist_is_not_taken_for_fashion_mnist(name, labels, other, tmp_path):
    write_idx(tmp_path, count=10)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.array(labels)))
    with pytest.raises(HyperJaxError, match=f"these are the files of {other}, not of {name}"):
        load_images(name, tmp_path, seed=0, num_val=0)
    load_images(other, tmp_path, seed=0, num_val=0)


def _truncated(data):
    return data[:-1]


DAMAGE = [
    ("mnist", "train-images-idx3-ubyte", _truncated, "truncated: 23535 of 23536 bytes"),
    ("mnist", "train-images-idx3-ubyte", lambda d: d[:10], "truncated: 10 of 16 bytes"),
    ("mnist", "train-images-idx3-ubyte", lambda d: d + b"x", "23537 bytes, but its header"),
    ("mnist", "train-images-idx3-ubyte", lambda d: b"", "starts with nothing"),
    ("mnist", "t10k-images-idx3-ubyte", lambda d: b"<htm" + d, "not an IDX file.*00000803"),
    ("mnist", "t10k-labels-idx1-ubyte", lambda d: d[:-1] + b"\x0a", "labels from 0 to 10"),
    ("mnist", "t10k-labels-idx1-ubyte", lambda d: idx_bytes(np.arange(9)), "12 images.*9 labels"),
    ("mnist", "t10k-images-idx3-ubyte", lambda d: idx_bytes(np.zeros((12, 8, 8), int)),
     r"shape \(8, 8, 1\), expected \(28, 28, 1\)"),
    ("mnist", "train-labels-idx1-ubyte", lambda d: gzip.compress(d)[:-9], "damaged gzip"),
    ("mnist", "train-labels-idx1-ubyte", lambda d: gzip.compress(d)[:20] + b"abc", "damaged gzip"),
    ("mnist", "train-labels-idx1-ubyte", lambda d: gzip.compress(d)[:-8] + b"x" * 8,
     "damaged gzip"),
    ("svhn", "train_32x32.mat", lambda d: d[: len(d) // 2], "not a readable MATLAB file"),
    ("svhn", "train_32x32.mat", lambda d: b"", "not a readable MATLAB file"),
    ("cifar10", "data_batch_3.bin", _truncated, "expected a multiple of 3073"),
    ("cifar10", "data_batch_3.bin", lambda d: b"", "expected a multiple of 3073"),
    ("cifar10", "test_batch.bin", lambda d: b"\x0a" + d[1:], "labels from . to 10"),
    ("stl10", "train_X.bin", _truncated, "expected a multiple of 27648"),
    ("stl10", "test_y.bin", _truncated, "10 images.*9 labels"),
    ("stl10", "test_y.bin", lambda d: d[:-1] + b"\0", "labels from 0 to .*, expected 1 to 10"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "damage", "expected"), DAMAGE)
def test_damaged_files(name, file, damage, expected, tmp_path):
    write, folder, _, _ = FORMATS[name]
    write(tmp_path / folder)
    path = tmp_path / folder / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(HyperJaxError, match=expected) as caught:
        load_images(name, tmp_path, seed=0, num_val=0)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "expected"), [
    ({"X": np.zeros((32, 32, 3, 4), np.uint8)}, "the variables X and y"),
    ({"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))}, "X is float64"),
    ({"X": np.zeros((4, 32, 32, 3), np.uint8), "y": np.ones((4, 1))}, "expected uint8"),
    ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((3, 1))}, "4 images.*3 labels"),
    ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.full((4, 1), 11)}, "expected 1 to 10"),
])  # fmt: skip
def test_wrong_matlab_variables(content, expected, tmp_path):
    write_svhn(tmp_path / "svhn")
    scipy.io.savemat(tmp_path / "svhn" / "test_32x32.mat", content)
    with pytest.raises(HyperJaxError, match=expected):
        load_images("svhn", tmp_path, seed=0, num_val=0)
