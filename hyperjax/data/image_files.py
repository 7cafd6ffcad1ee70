"""Readers of image files: IDX, CIFAR-10 and STL-10 binary, SVHN .mat, prepared TFDS folders.

Every reader returns one split, `(images uint8[N, H, W, C], labels int32[N])` with labels
in 0..9, and the images as they are in the files. Whatever is wrong with a file raises a
HyperJaxError that names it. The original files may be compressed with gzip.
"""

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hyperjax.errors import HyperJaxError

Raw = tuple[np.ndarray, np.ndarray]
_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """The file's content, decompressed if it is gzip.

    The content decides, not the name: browsers like to save `x.gz` decompressed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HyperJaxError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise HyperJaxError(f"{path}: damaged gzip file: {error}") from error


def read_idx_split(paths: Sequence[Path]) -> Raw:
    """MNIST and Fashion-MNIST: an image file and a label file in the IDX format."""
    images_path, labels_path = paths
    images = _idx(images_path, 3)[..., None]
    labels = _idx(labels_path, 1).astype(np.int32)
    return _paired(images, labels, images_path, labels_path)


def _idx(path: Path, ndim: int) -> np.ndarray:
    """One IDX file of unsigned bytes: magic 0x000008dd, dd big-endian uint32 sizes, data."""
    data = read_bytes(path)
    magic = bytes([0, 0, 8, ndim])
    if data[:4] != magic:
        raise HyperJaxError(
            f"{path}: not an IDX file of {ndim}-dimensional unsigned bytes: it starts with "
            f"{data[:4].hex() or 'nothing'}, expected {magic.hex()}"
        )
    header = 4 + 4 * ndim
    _check_size(path, min(len(data), header), header)
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", ndim, offset=4))
    _check_size(path, len(data), header + math.prod(shape))
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_cifar10_split(paths: Sequence[Path]) -> Raw:
    """CIFAR-10 binary: records of one label byte, then 32x32 red, green and blue bytes."""
    record = 1 + 3 * 32 * 32
    parts = []
    for path in paths:
        data = np.frombuffer(read_bytes(path), np.uint8)
        if len(data) % record or not len(data):
            raise HyperJaxError(
                f"{path}: {len(data)} bytes, expected a multiple of {record} (one label and "
                "3x32x32 pixels an image); truncated, or not the binary version of CIFAR-10?"
            )
        parts.append(data.reshape(-1, record))
        _check_labels(parts[-1][:, 0], path)
    records = np.concatenate(parts)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int32)


def read_stl10_split(paths: Sequence[Path]) -> Raw:
    """STL-10 binary: 96x96 red, green and blue bytes in column-major order; labels 1..10."""
    images_path, labels_path = paths
    data = np.frombuffer(read_bytes(images_path), np.uint8)
    record = 3 * 96 * 96
    if len(data) % record:
        raise HyperJaxError(
            f"{images_path}: {len(data)} bytes, expected a multiple of {record} "
            "(3x96x96 pixels an image); is it truncated?"
        )
    # stored as (channel, column, row)
    images = np.ascontiguousarray(data.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1))
    labels = np.frombuffer(read_bytes(labels_path), np.uint8).astype(np.int32) - 1
    return _paired(images, labels, images_path, labels_path, first_label=1)


def read_svhn_split(paths: Sequence[Path]) -> Raw:
    """SVHN, cropped digits: a MATLAB file with X uint8[32, 32, 3, N] and y[N, 1] in 1..10.

    Label 10 is the digit 0.
    """
    import scipy.io

    (path,) = paths
    try:
        content = scipy.io.loadmat(io.BytesIO(read_bytes(path)), variable_names=("X", "y"))
    except HyperJaxError:
        raise
    except Exception as error:  # SciPy lets through whatever a damaged file runs into
        raise HyperJaxError(f"{path}: not a readable MATLAB file: {error}") from error
    if "X" not in content or "y" not in content:
        raise HyperJaxError(f"{path}: expected the variables X and y")
    images, labels = content["X"], content["y"].reshape(-1).astype(np.int32)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[2] != 3:
        raise HyperJaxError(
            f"{path}: X is {images.dtype}{list(images.shape)}, expected uint8[32, 32, 3, N]"
        )
    if images.ndim == 3:  # MATLAB drops the last axis of a single image
        images = images[..., None]
    images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    images, labels = _paired(images, labels - 1, path, path, first_label=1)
    return images, (labels + 1) % 10


def prepared_versions(folder: Path) -> dict[Path, str]:
    """Version folders of a prepared data set -> file format, newest version first.

    tensorflow-datasets renames a folder to its version once it is complete.
    """
    found = {}
    for path in folder.glob("*/dataset_info.json"):
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name):
            try:
                found[path.parent] = json.loads(path.read_text()).get("fileFormat", "tfrecord")
            except (OSError, ValueError, AttributeError) as error:
                raise HyperJaxError(f"{path}: not a readable dataset_info.json: {error}") from error
    return dict(
        sorted(found.items(), key=lambda it: tuple(map(int, it[0].name.split("."))), reverse=True)
    )


def read_prepared_split(folder: Path, split: str) -> Raw:
    """One split of a prepared data set, without TensorFlow."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise HyperJaxError(
            f"{folder}: reading it needs tensorflow-datasets: pip install tensorflow-datasets"
        ) from error
    try:
        source = tfds.builder_from_directory(folder).as_data_source(split)
        examples = [source[i] for i in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        labels = np.array([example["label"] for example in examples], np.int32)
    except Exception as error:  # tensorflow-datasets has no exception of its own for bad files
        raise HyperJaxError(
            f"{folder}: the split {split!r} cannot be read by tensorflow-datasets: {error}"
        ) from error
    if not len(labels):
        raise HyperJaxError(f"{folder}: no images in the split {split!r}")
    _check_labels(labels, folder)
    return images, labels


def _paired(
    images: np.ndarray, labels: np.ndarray, images_path: Path, labels_path: Path, first_label=0
) -> Raw:
    """Check that images and labels (already counted from 0) belong together."""
    if len(images) != len(labels):
        raise HyperJaxError(
            f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels"
        )
    if not len(images):
        raise HyperJaxError(f"{images_path}: no images in it")
    _check_labels(labels, labels_path, first_label)
    return images, labels


def _check_labels(labels: np.ndarray, path: Path, first_label: int = 0) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 9:
        raise HyperJaxError(
            f"{path}: labels from {low + first_label} to {high + first_label}, "
            f"expected {first_label} to {9 + first_label}"
        )


def _check_size(path: Path, size: int, expected: int) -> None:
    if size < expected:
        raise HyperJaxError(f"{path}: truncated: {size} of {expected} bytes")
    if size > expected:
        raise HyperJaxError(f"{path}: {size} bytes, but its header says {expected}")
