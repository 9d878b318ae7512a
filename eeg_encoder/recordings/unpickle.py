"""Arrays out of pickled files, without running what a pickle may ask for.

Public recordings come as pickled dictionaries named ``.npy``. The unpickler here builds arrays,
numbers, text and plain containers, and nothing else: every global that a pickle names is looked up
in a table of stand-ins written here, never imported. The bytes of large arrays are mapped.
"""

from __future__ import annotations

import math
import mmap
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

MAPPED = 1 << 16
NUMPY_MAGIC = b"\x93NUMPY"
KINDS = "biufcSUO"
# The one written in Python: it can be told where the bytes of an array come from.
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]
ALLOWED = "arrays, numbers, text and plain containers only"


class ForbiddenGlobal(pickle.UnpicklingError):
    """A pickle named something that is not data."""


def load_npy(path: str | Path) -> Any:
    """Read a ``.npy`` file: an array (mapped), or the pickled content of an object array.

    A bare pickle with this suffix, as some THINGS-EEG2 files are, is read too.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    object
        An array, or what an object array of no dimensions held.

    Raises
    ------
    InputError
        For a missing, truncated or foreign file, or a pickle that names anything but data.
    """
    path = Path(path)
    with _opened(path) as file:
        if file.peek(6)[:6] == NUMPY_MAGIC:
            if not _header_has_objects(path, file):
                return _plain_array(path)
            content = _unpickled(path, file)
            return (
                content.item()
                if isinstance(content, np.ndarray) and not content.ndim
                else (content)
            )
        if file.peek(1)[:1] == pickle.PROTO:
            return _unpickled(path, file)
    raise InputError(path, "file", "neither NumPy's header nor a pickle", "a .npy file")


def load_pickle(path: str | Path) -> Any:
    """Read a pickle of arrays and plain containers.

    Raises
    ------
    InputError
        For a missing, truncated or foreign file, or a pickle that names anything but data.
    """
    path = Path(path)
    with _opened(path) as file:
        return _unpickled(path, file)


def _opened(path: Path) -> BufferedReader:
    if not path.is_file():
        raise InputError(path, "file", "nothing", "a file")
    if not path.stat().st_size:
        raise InputError(path, "file", "0 bytes", "a whole file")
    return path.open("rb")


def _header_has_objects(path: Path, file: BufferedReader) -> bool:
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return bool(read(file)[2].hasobject)
    except Exception as error:
        raise InputError(path, "file", _first_line(error), "a whole .npy file") from error


def _plain_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise InputError(path, "file", _first_line(error), "a whole .npy file") from error


def _unpickled(path: Path, file: BufferedReader) -> Any:
    try:
        return _resolved(_Unpickler(file).load(), {}, 0)
    except ForbiddenGlobal as error:
        raise InputError(path, "pickle", f"the global {error}", ALLOWED) from None
    except Exception as error:
        raise InputError(
            path, "pickle", _first_line(error), f"a whole pickle of {ALLOWED}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


class _Dtype:
    """Stands for ``numpy.dtype``."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        self.dtype = np.dtype(_text(name))
        if self.dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"arrays of type {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">") and self.dtype.kind != "O":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray``."""

    array: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.array = _shaped(data, dtype.dtype, shape, "F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _frombuffer(data: Any, dtype: _Dtype, shape: Any, order: str) -> _Array:
    made = _Array()
    made.array = _shaped(data, dtype.dtype, shape, order)
    return made


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return np.frombuffer(_bytes(data), dtype.dtype, 1)[0]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode({"latin1": "latin1", "latin-1": "latin1"}[encoding])


def _shaped(data: Any, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    shape = tuple(int(size) for size in shape)
    if min(shape, default=0) < 0:
        raise pickle.UnpicklingError(f"an array of shape {shape}")
    if dtype.kind == "O":
        objects = np.empty(len(data), dtype=object)
        for i, item in enumerate(data):
            objects[i] = item
        return objects.reshape(shape, order=order)
    data = _bytes(data)
    if memoryview(data).nbytes != math.prod(shape) * dtype.itemsize:
        raise pickle.UnpicklingError(f"{memoryview(data).nbytes} bytes for an array of {shape}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _bytes(data: Any) -> Any:
    return data.encode("latin1") if isinstance(data, str) else data


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


GLOBALS: dict[tuple[str, str], Callable] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{("builtins", kind.__name__): kind for kind in (dict, list, tuple, set, frozenset)},
    **{("__builtin__", kind.__name__): kind for kind in (dict, list, tuple, set, frozenset)},
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _Unpickler(_PythonUnpickler):
    """The standard library's unpickler in Python, with a table instead of imports."""

    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: BufferedReader) -> None:
        super().__init__(file, encoding="latin1")
        self._source = file
        self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def find_class(self, module: str, name: str) -> Any:
        try:
            return GLOBALS[module, name]
        except KeyError:
            raise ForbiddenGlobal(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise ForbiddenGlobal(f"persistent id {pid!r}"[:80])

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise pickle.UnpicklingError(f"state for a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def load_binbytes(self) -> None:
        self._append_bytes(struct.unpack("<I", self.read(4))[0])

    def load_binbytes8(self) -> None:
        self._append_bytes(struct.unpack("<Q", self.read(8))[0])

    def load_bytearray8(self) -> None:
        self._append_bytes(struct.unpack("<Q", self.read(8))[0])

    def _append_bytes(self, n: int) -> None:
        frame = self._unframer.current_frame
        if n < MAPPED or (frame is not None and frame.tell() < frame.getbuffer().nbytes):
            self.append(self.read(n))
            return
        start = self._source.tell()
        if start + n > len(self._map):
            raise pickle.UnpicklingError("pickle data was truncated")
        self._source.seek(start + n)
        self.append(self._map[start : start + n])

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINBYTES[0]] = load_binbytes
    dispatch[pickle.BINBYTES8[0]] = load_binbytes8
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _resolved(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """Replace the stand-ins by what they stand for, inside containers too."""
    if depth > 64:
        raise pickle.UnpicklingError("containers nested deeper than 64")
    if id(value) in seen:
        return seen[id(value)][1]

    def inside(item: Any) -> Any:
        return _resolved(item, seen, depth + 1)

    if isinstance(value, _Array):
        found: Any = value.array
        if found.dtype == object:
            for i in np.ndindex(found.shape):
                found[i] = inside(found[i])
    elif isinstance(value, _Dtype):
        found = value.dtype
    elif isinstance(value, dict):
        found = {key: inside(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple, set, frozenset)):
        found = type(value)(inside(item) for item in value)
    elif isinstance(value, memoryview):
        found = bytes(value)
    elif value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, complex)):
        return value
    else:
        raise ForbiddenGlobal(f"{type(value).__name__} as a value")
    seen[id(value)] = (value, found)
    return found
