"""Image data sets as uint8 arrays of 28x28 pixels (or another size), as for the published zoos.

The original files are read if they are there, else what tensorflow-datasets prepared
(`python -m hyperjax.data.prepare`). Nothing here touches the network or needs TensorFlow.
Both hold the same images, but tensorflow-datasets keeps them in an order of its own, so
that one seed draws other validation images; `source` and `fingerprint` tell them apart.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperjax.data import image_files
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.types import Images

SIZE = 28  # height and width of images unless others are asked for
_DIGITS_TEST_PER_CLASS = 45
_CHUNK = 64  # images transformed at a time, few enough to stay in cache


@dataclass(frozen=True)
class ImageData:
    """A data set in three splits, with the normalisation of its zoo."""

    name: str
    train: Images
    val: Images
    test: Images
    source: str  # where it came from: "scikit-learn", "idx", "tfds 3.0.1", ...
    fingerprint: str  # of all images and labels, saved with results

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[-1]

    @property
    def classes(self) -> int:
        return dataset_info(self.name).classes

    @property
    def num_images(self) -> dict[str, int]:
        """Of each split."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: len(part.labels) for name, part in parts.items()}


def resize(images: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Antialiased bilinear resizing, uint8[N, H, W, C] -> uint8[N, size, size, C], by Pillow, as
    torchvision does it for the published zoos."""
    from PIL import Image

    if images.shape[1:3] == (size, size):
        return images
    planes = images[..., 0] if images.shape[-1] == 1 else images
    resized = [Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR) for x in planes]
    return np.stack([np.asarray(x) for x in resized]).reshape(len(images), size, size, -1)


def grey_crop(images: np.ndarray, size: int = SIZE) -> np.ndarray:
    """ITU-R 601 luma (Pillow's), then the central pixels, or all of them resized if there are too
    few: uint8[N, H, W, 3] -> uint8[N, size, size, 1]."""
    from PIL import Image

    luma = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    if size > min(luma.shape[1:]):
        return resize(luma[..., None], size)
    top, left = ((side - size) // 2 for side in luma.shape[1:])
    return luma[:, top : top + size, left : left + size, None]


@dataclass(frozen=True)
class DatasetInfo:
    """What is fixed about a data set: normalisation (method of the published zoos), files."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    raw_shape: tuple[int, int, int] = (28, 28, 1)
    classes: int = 10
    transform: Callable[[np.ndarray, int], np.ndarray] = resize  # to a size
    # the original files: folders below data_dir in which they are looked for, first to last
    folders: tuple[str, ...] = ()
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    reader: Callable[[Sequence[Path]], image_files.Raw] | None = None
    source: str = ""
    url: str = ""
    first_labels: tuple[int, ...] = ()  # of the training file; tells MNIST and Fashion-MNIST apart
    tfds: str = ""  # name in tensorflow-datasets


def _idx_info(name: str, folders: tuple[str, ...], **kwargs) -> DatasetInfo:
    return DatasetInfo(
        folders=(name, *folders, ""),
        train_files=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        test_files=("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        reader=image_files.read_idx_split,
        source="idx",
        tfds=name,
        **kwargs,
    )


DATASETS = {
    # mean and standard deviation of its 1,347 training images
    "digits": DatasetInfo(mean=(0.1558,), std=(0.2772,)),
    "mnist": _idx_info(
        "mnist",
        ("MNIST/raw",),
        mean=(0.1307,),
        std=(0.3081,),
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        first_labels=(5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ),
    "fashion_mnist": _idx_info(
        "fashion_mnist",
        ("FashionMNIST/raw",),
        mean=(0.5,),
        std=(0.5,),
        url="https://github.com/zalandoresearch/fashion-mnist",
        first_labels=(9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
    ),
    "svhn": DatasetInfo(
        mean=(0.5,),
        std=(0.5,),
        raw_shape=(32, 32, 3),
        transform=grey_crop,
        folders=("svhn", ""),
        train_files=("train_32x32.mat",),
        test_files=("test_32x32.mat",),
        reader=image_files.read_svhn_split,
        source="mat",
        url="http://ufldl.stanford.edu/housenumbers/",
        tfds="svhn_cropped",
    ),
    "cifar10": DatasetInfo(
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        raw_shape=(32, 32, 3),
        folders=("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "cifar10", ""),
        train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test_files=("test_batch.bin",),
        reader=image_files.read_cifar10_split,
        source="cifar10 binary",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        tfds="cifar10",
    ),
    "stl10": DatasetInfo(
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        raw_shape=(96, 96, 3),
        folders=("stl10/stl10_binary", "stl10_binary", "stl10", ""),
        train_files=("train_X.bin", "train_y.bin"),
        test_files=("test_X.bin", "test_y.bin"),
        reader=image_files.read_stl10_split,
        source="stl10 binary",
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        tfds="stl10",
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """The entry of `DATASETS`. Raises HyperJaxError for an unknown name."""
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return DATASETS[name]


def load_images(
    name: str,
    data_dir: str | Path,
    *,
    seed: int,
    num_train: int = 0,
    num_val: int,
    size: int = SIZE,
) -> ImageData:
    """Load a data set and draw its validation split.

    `seed` permutes the official training images; the first `num_val` are for validation
    and the next `num_train` (0: all the rest) for training, so that a larger `num_train`
    adds images to a smaller one. The official test split stays as it is. All are brought to
    `size` x `size` pixels.

    Raises HyperJaxError if the data set is unknown, absent or damaged, or has fewer images
    than are asked for.

    >>> digits = hj.load_images("digits", "", seed=0, num_val=200)
    >>> digits.train.pixels.shape, digits.test.labels.shape
    ((1147, 28, 28, 1), (450,))
    """
    info = dataset_info(name)
    if name == "digits":
        (train, test), source = load_digits(), "scikit-learn"
        train, test = ((resize(images, size), labels) for images, labels in (train, test))
    else:
        train, test, source = _load_files(name, info, Path(os.path.expanduser(data_dir)), size)
    order = np.random.default_rng(seed).permutation(len(train[0]))
    left = len(order) - num_val
    if num_val < 0 or left < 1:
        raise HyperJaxError(
            f"num_val: {num_val}, but {name} has {len(order)} training images to draw from"
        )
    if not 0 <= num_train <= left:
        raise HyperJaxError(
            f"num_train: {num_train}, but {name} has {len(order)} training images and "
            f"num_val = {num_val} leaves {left}"
        )
    chosen = order[:num_val], order[num_val : num_val + (num_train or left)]
    parts = [*([part[rows] for part in train] for rows in chosen), test]
    mean, std = np.float32(info.mean), np.float32(info.std)
    val, train, test = (Images(pixels, labels, mean, std) for pixels, labels in parts)
    return ImageData(name, train, val, test, source, fingerprint(train, val, test))


def fingerprint(*splits: Images) -> str:
    """16 hexadecimal digits of the SHA-256 of shapes, images and labels."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.pixels, split.labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def load_digits() -> tuple[image_files.Raw, image_files.Raw]:
    """The 1,797 digits of scikit-learn: 1,347 for training, 450 for testing.

    They become MNIST-like: 8x8 counts of 0..16 are stretched to 0..255, resized
    bilinearly to 20x20 and centred on 28x28 black pixels.

    scikit-learn ships one split only, in which the images of a writer follow one another.
    To cut it by position would test on other writers than it trains on. The test images
    are instead the 45 of each class whose bytes have the smallest SHA-256: a fixed
    permutation, stratified, whatever the seed and the NumPy version.
    """
    from sklearn.datasets import load_digits as load

    bunch = load()
    labels = bunch.target.astype(np.int32)
    counts = bunch.images.astype(np.uint8)
    hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in counts])
    order = np.argsort(hashes, kind="stable")
    of_class = [order[labels[order] == digit] for digit in range(10)]
    is_test = np.zeros(len(labels), bool)
    is_test[np.concatenate([rows[:_DIGITS_TEST_PER_CLASS] for rows in of_class])] = True
    images = resize(np.rint(counts[..., None] * (255 / 16)).astype(np.uint8), 20)
    images = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])


def _load_files(
    name: str, info: DatasetInfo, data_dir: Path, size: int
) -> tuple[image_files.Raw, image_files.Raw, str]:
    """Training split, test split and source, from original or from prepared files."""
    paths = _find_original(info, data_dir)
    if paths is not None:
        cut = len(info.train_files)
        train, test = (
            _finish(info, info.reader(p), p[0], size) for p in (paths[:cut], paths[cut:])
        )
        first = tuple(train[1][:10].tolist())
        for other in DATASETS:
            if other != name and first == DATASETS[other].first_labels:
                where = paths[0].parent
                raise HyperJaxError(f"{where}: these are the files of {other}, not of {name}")
        return train, test, info.source
    folder = _find_prepared(info, data_dir)
    if folder is None:
        raise _missing(name, info, data_dir)
    train, test = (
        _finish(info, image_files.read_prepared_split(folder, s), folder, size)
        for s in ("train", "test")
    )
    return train, test, f"tfds {folder.name}"


def _finish(info: DatasetInfo, raw: image_files.Raw, path: Path, size: int) -> image_files.Raw:
    """Bring raw images to their size."""
    images, labels = raw
    if images.shape[1:] != info.raw_shape:
        raise HyperJaxError(
            f"{path}: images of shape {images.shape[1:]}, expected {info.raw_shape}"
        )
    parts = [info.transform(images[i : i + _CHUNK], size) for i in range(0, len(images), _CHUNK)]
    return np.concatenate(parts), labels


def _find_original(info: DatasetInfo, data_dir: Path) -> list[Path] | None:
    """The training, then the test files, in the first folder that has them all."""
    for folder in info.folders:
        paths = [_plain_or_gz(data_dir / folder / f) for f in info.train_files + info.test_files]
        if None not in paths:
            return paths
    return None


def _plain_or_gz(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _prepared_folders(info: DatasetInfo, data_dir: Path) -> list[Path]:
    """Where tensorflow-datasets puts a data set: here, then its own default."""
    roots = (data_dir, Path(os.path.expanduser("~/tensorflow_datasets")))
    return [root / info.tfds for root in roots]


def _find_prepared(info: DatasetInfo, data_dir: Path) -> Path | None:
    """The newest version folder that is in the array_record format."""
    for folder in _prepared_folders(info, data_dir):
        for version, file_format in image_files.prepared_versions(folder).items():
            if file_format == "array_record":
                return version
    return None


def _missing(name: str, info: DatasetInfo, data_dir: Path) -> HyperJaxError:
    """Say what was looked for where, and what would put it there."""
    files = info.train_files + info.test_files
    folders = []
    for folder in (data_dir / folder for folder in info.folders):
        lacks = [file for file in files if _plain_or_gz(folder / file) is None]
        partly = len(lacks) < len(files)
        folders.append(f"{folder} (there, but for {', '.join(lacks)})" if partly else f"{folder}")
    prepared = []
    for folder in _prepared_folders(info, data_dir):
        others = image_files.prepared_versions(folder).items()
        prepared.append(str(folder) + "".join(f" (has {v.name} as {f})" for v, f in others))
    return HyperJaxError(
        f"the data set {name} is not there, and a run downloads nothing. Looked for\n"
        f"- {', '.join(files)}, plain or .gz, in {', '.join(folders)}\n"
        f"- VERSION/dataset_info.json of the format array_record in {', '.join(prepared)}\n"
        f"Either put the unpacked files from {info.url} into {data_dir / info.folders[0]}, or run\n"
        f"  python -m hyperjax.data.prepare --dataset={name} --data_dir={data_dir}"
    )
