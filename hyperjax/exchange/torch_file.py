"""PyTorch's files (`torch.save`, 1.6 and later) as NumPy arrays, without PyTorch.

They are ZIP archives of a pickle and raw tensors. A pickle is a program; of this one only what is
listed here is ever called, all of it our own or a plain container, and everything else is refused
by its name. Tensors are read where they lie in the file, with their checksums; nothing is unpacked,
so that no file becomes larger in memory than it is.
"""

import dataclasses
import functools
import io
import mmap
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax.errors import HyperJaxError

_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?", "BFloat16Storage": "bfloat16",
}  # fmt: skip
# Modules of published zoos, whose objects are read as the attributes that they have.
_BAGS = re.compile(
    r"(checkpoints_to_datasets|ghrp|model_definitions|shrp|torch\.utils\.data|argparse)\b"
)
_MAX_PICKLE = 2**30  # bytes
_MAX_REMEMBERED = 2**20
_ATOMS = (str, int, float, bool, bytes, type(None))
_LOCAL_HEADER = 30  # bytes, then name and extra field


class Bag:
    """An object of a foreign class: its attributes, and nothing that it could do."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass


class _RefusedError(Exception):
    """With what is wrong with a file."""


def read(path: str | Path) -> Any:
    """What `torch.save` was given, with float and integer arrays for tensors.

    Raises HyperJaxError for a file that is missing, truncated, damaged, of another format, or that
    asks for anything but tensors in plain containers.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        archive = _Archive(data)
        load = _remembered if len(archive.program) <= _MAX_REMEMBERED else _loaded
        return _filled(load(archive.program), archive, {})
    except FileNotFoundError as error:
        raise HyperJaxError(f"{path}: there is no such file") from error
    except OSError as error:
        raise HyperJaxError(f"cannot read {path}: {error.strerror or error}") from error
    except _RefusedError as error:
        raise HyperJaxError(f"{path}: {error}") from error
    except Exception as error:  # whatever else damaged bytes bring about
        raise HyperJaxError(
            f"{path}: no PyTorch file, or a damaged one: {type(error).__name__}: {error}"
        ) from error


class _Archive:
    """The ZIP archive of one file, mapped into memory."""

    def __init__(self, data: mmap.mmap):
        self._data, self._arrays = data, {}
        if not zipfile.is_zipfile(data):
            raise _RefusedError(
                "no ZIP archive: truncated, no PyTorch file, or saved by a PyTorch before 1.6 "
                "(load and save it again with a newer one)"
            )
        self._entries = {entry.filename: entry for entry in zipfile.ZipFile(data).infolist()}
        names = [name for name in self._entries if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(names) != 1:
            raise _RefusedError("an archive without data.pkl: no file of torch.save")
        self._root = names[0].removesuffix("data.pkl")
        order = self._entries.get(f"{self._root}byteorder")
        if order and bytes(self._bytes(order.filename)) != b"little":
            raise _RefusedError("its numbers are big-endian")
        self.program = bytes(self._bytes(names[0]))
        if len(self.program) > _MAX_PICKLE:
            raise _RefusedError(f"its data.pkl has {len(self.program)} bytes")

    def storage(self, stored: "_Storage") -> np.ndarray:
        """The values float or integer [count] of a storage."""
        if type(stored) is not _Storage:
            raise _RefusedError(f"it has a tensor of a {type(stored).__name__}")
        if stored.key not in self._arrays:
            values = self._bytes(f"{self._root}data/{stored.key}")
            self._arrays[stored.key] = np.frombuffer(values, _dtype(stored.kind))[: stored.count]
            if len(self._arrays[stored.key]) != stored.count:
                raise _RefusedError(f"tensor {stored.key} has fewer than {stored.count} values")
        return self._arrays[stored.key]

    def tensor(self, tensor: "_Tensor") -> np.ndarray:
        values = self.storage(tensor.storage)
        if np.prod(tensor.size, dtype=object) > values.size:
            raise _RefusedError(f"a tensor of shape {tuple(tensor.size)} has {values.size} values")
        width = values.dtype.itemsize
        steps = tuple(step * width for step in tensor.stride)
        return np.ndarray(tuple(tensor.size), values.dtype, values, tensor.offset * width, steps)

    def _bytes(self, name: str) -> memoryview:
        """The bytes of one entry, where they lie."""
        if name not in self._entries:
            raise _RefusedError(f"its archive lacks {name}")
        entry = self._entries[name]
        at, size = entry.header_offset, entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != size:
            raise _RefusedError(f"{name} is compressed, as torch.save never does it")
        header = self._data[at : at + _LOCAL_HEADER]
        start = (
            at + _LOCAL_HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        )
        values = memoryview(self._data)[start : start + size]
        if len(values) != size or zlib.crc32(values) != entry.CRC:
            raise _RefusedError(f"{name} is damaged: its checksum is another one")
        return values


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    kind: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    storage: _Storage
    offset: int
    size: Any
    stride: Any


class _Reader(pickle._Unpickler):
    """Of what a file holds, without its numbers.

    The one written in Python: the other takes memory for as many entries as a damaged byte says.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if _BAGS.match(module):
            return type(name, (Bag,), {})
        raise _RefusedError(f"it asks for {module}.{name}, which is refused: nothing was executed")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in _STORAGES.values():
            raise _RefusedError(f"its tensors are {storage!r}, which are not known")
        return _Storage(storage, key, count)


def _loaded(program: bytes) -> Any:
    return _Reader(io.BytesIO(program)).load()


# The checkpoints of one training differ in their numbers only, which are not in the pickle.
_remembered = functools.lru_cache(maxsize=4)(_loaded)


def _filled(value: Any, archive: _Archive, seen: dict[int, Any]) -> Any:
    """A copy with arrays in place of tensors; what was one object before is one after."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in seen:
        return seen[id(value)]
    if kind is _Tensor:
        new = archive.tensor(value)
    elif kind is _Storage:
        new = archive.storage(value)
    elif kind in (tuple, set):
        new = kind(_filled(entry, archive, seen) for entry in value)
    elif kind is list:
        new = seen[id(value)] = []
        new.extend(_filled(entry, archive, seen) for entry in value)
    elif kind in (dict, OrderedDict):
        new = seen[id(value)] = kind()
        for key, entry in value.items():
            new[_filled(key, archive, seen)] = _filled(entry, archive, seen)
    elif isinstance(value, Bag):
        new = seen[id(value)] = kind()
        new.__dict__.update(_filled(vars(value), archive, seen))
    else:
        new = value
    seen[id(value)] = new
    return new


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


# --- what a pickle may call ---------------------------------------------------------------


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


def _parameter(data: _Tensor, *_: Any) -> _Tensor:
    return data


def _path(*parts: str) -> str:
    return "/".join(map(str, parts)).replace("//", "/")


def _plain_dtype(name: str, *_: Any) -> Any:
    """Stands for `numpy.dtype`, whose state is not needed."""
    if not re.fullmatch(r"[<>=|]?[fiub?]\d*", name):
        raise _RefusedError(f"it has values of type {name!r}")
    return _DType(name)


class _DType:
    def __init__(self, name: str):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """The byte order and flags, which the name tells as well."""


def _scalar(dtype: _DType, values: bytes) -> Any:
    return np.frombuffer(values, np.dtype(dtype.name))[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _path,
    ("numpy", "dtype"): _plain_dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _latin1,
    **{
        (module, name): _path
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
