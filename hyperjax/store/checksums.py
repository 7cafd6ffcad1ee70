"""Checksums inside safetensors files, by which damage is noticed: CRC-32 of every tensor, and of
the header that describes them.

A header is written with `BLANK` in its metadata, in place of which `sealed` puts the checksum of
all of its bytes. A file without any is of an older version, or of another library.
"""

import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hyperjax.errors import HyperJaxError

BLANK = "header-crc32:00000000"
_OWN = re.compile(rb"header-crc32:[0-9a-f]{8}")
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
ADVICE = (
    "restore it, or delete it and let the command that made it make it anew; of a workdir's zoo, "
    "train.py --config.zoo.repair=True trains the damaged members alone"
)


def crc32(array: np.ndarray) -> int:
    """Of an array's bytes; contiguous ones are not copied."""
    return zlib.crc32(np.ascontiguousarray(array))


def crc32_of_rows(array: np.ndarray, rows: Iterable[int]) -> np.ndarray:
    """uint32[len(rows)]: of `array[row]` each."""
    return np.array([crc32(array[row]) for row in rows], np.uint32)


def header_of(path: Path, what: str) -> tuple[bytes, int]:
    """The first bytes of a safetensors file, up to its data, and the size of the file.

    Raises HyperJaxError naming the file, which is to be `what`, if it is missing or has none.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise HyperJaxError(f"{path}: not a safetensors file, or a truncated one")
            return start + file.read(length), size
    except FileNotFoundError as error:
        raise HyperJaxError(f"{path}: there is no such {what}") from error
    except OSError as error:
        raise HyperJaxError(f"cannot read {path}: {error.strerror or error}") from error


def sealed(header: bytes) -> bytes:
    """A header that holds `BLANK`, with its checksum there."""
    return header.replace(BLANK.encode(), _seal(header), 1)


def is_sealed(path: Path, header: bytes) -> bool:
    """Whether a header has a checksum. Raises HyperJaxError naming the file if it is not the
    header's."""
    own = _OWN.search(header)
    if own is None:
        return False
    if _seal(header[: own.start()] + BLANK.encode() + header[own.end() :]) != own.group():
        raise HyperJaxError(f"{path}: damaged: the header's checksum is another; {ADVICE}")
    return True


def _seal(header: bytes) -> bytes:
    return b"header-crc32:%08x" % zlib.crc32(header)


def ranges(rows: Iterable[int]) -> str:
    """Rising numbers in words: "3, 5 to 9"."""
    found: list[list[int]] = []
    for row in map(int, rows):
        if found and row == found[-1][1] + 1:
            found[-1][1] = row
        else:
            found.append([row, row])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in found)
