"""Data sets of random images in their original formats, by writers of our own."""

import gzip
import struct

import numpy as np
import scipy.io

RNG = np.random.default_rng(0)


def random_split(count, shape, first_label=0):
    images = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, RNG.permutation(np.arange(count) % 10 + first_label)


def idx_bytes(array):
    """The format of yann.lecun.com/exdb/mnist, written with struct."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + bytes(array.ravel().tolist())


def write_idx(folder, count=30, test=12, *, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": random_split(count, (28, 28)), "t10k": random_split(test, (28, 28))}
    for split, (images, labels) in splits.items():
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            name = f"{split}-{kind}-ubyte" + (".gz" if compress else "")
            (folder / name).write_bytes(gzip.compress(data) if compress else data)
    return splits["train"], splits["t10k"]


def write_svhn(folder, count=20, test=20):
    folder.mkdir(parents=True)
    splits = []
    for split, size in (("train", count), ("test", test)):
        images, labels = random_split(size, (32, 32, 3), first_label=1)
        content = {"X": np.moveaxis(images, 0, -1), "y": labels.astype(np.uint8)[:, None]}
        scipy.io.savemat(folder / f"{split}_32x32.mat", content, do_compression=True)
        splits.append((images, labels % 10))
    return splits


def write_cifar10(folder, each=10):
    """Six files of `each` images, the last one to test."""
    folder.mkdir(parents=True)
    images, labels = random_split(6 * each, (32, 32, 3))
    names = [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)] + ["test_batch.bin"]
    for k, name in enumerate(names):
        data = b""
        for i in range(each * k, each * (k + 1)):
            data += bytes([labels[i]]) + b"".join(images[i, :, :, c].tobytes() for c in range(3))
        (folder / name).write_bytes(data)
    train = 5 * each
    return (images[:train], labels[:train]), (images[train:], labels[train:])


def write_stl10(folder, count=10, test=10):
    folder.mkdir(parents=True)
    splits = []
    for split, size in (("train", count), ("test", test)):
        images, labels = random_split(size, (96, 96, 3), first_label=1)
        # Fortran order of one channel: down the columns
        planes = [image[:, :, c].tobytes(order="F") for image in images for c in range(3)]
        (folder / f"{split}_X.bin").write_bytes(b"".join(planes))
        (folder / f"{split}_y.bin").write_bytes(bytes(labels.tolist()))
        splits.append((images, labels - 1))
    return splits
