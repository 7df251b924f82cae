"""Files that anybody may have written, opened so that they can do no harm.

No link is followed, only regular files are opened (a pipe would never answer), and how much there is
gets looked at before memory is taken for it.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import re
import stat
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["content_of", "map_array", "open_file", "parse_json", "read_small", "release", "release_map"]

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_LARGEST = 4 << 20  # bytes of a file that is read whole
_MOST_VALUES = 100_000  # an empty list takes 3 bytes of the file and 64 of memory
_DEEPEST = 32
# What NumPy writes of an array in C order, of the types that a run has.
_ARRAY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f4|<i4|<i8|<u8|<U[1-9]\d{0,5})', 'fortran_order': False, "
    rb"'shape': \((\d{1,18}),(?: (\d{1,18}))?\), \} *\n",
    re.DOTALL,
)
_LONGEST_HEADER = 1024


def open_file(folder: Path, name: str) -> FileIO:
    """Open a regular file, by its path within folder, for reading. folder itself may be a link.

    Raises OSError, where there is a link or something else on the path too.
    """
    *between, _ = name.split("/")
    for depth in range(len(between)):
        inner = folder.joinpath(*between[: depth + 1])
        if not stat.S_ISDIR(os.lstat(inner).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "a link, or no folder", str(inner))
    path = folder / name
    _regular(os.lstat(path), path)  # opening alone may do something to a device
    file = FileIO(path, "rb", opener=lambda given, flags: os.open(given, flags | _FLAGS))
    try:
        _regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def read_small(folder: Path, name: str) -> bytes:
    """Return the content of a file in folder. Raises what open_file and content_of do."""
    with open_file(folder, name) as file:
        return content_of(file)


def content_of(file: FileIO) -> bytes:
    """Return the content of an open file. Raises ValueError where it has more than 4 MB."""
    size = os.fstat(file.fileno()).st_size
    if size > _LARGEST:
        raise ValueError(f"more than {_LARGEST:,} bytes")
    return file.read(size)


def parse_json(text: bytes) -> Any:
    """Return the value of a JSON text, which every command can print.

    NaN and Infinity, which Python writes and JSON does not know, are None. Raises ValueError where it is no
    JSON, has more than 100,000 values or 32 levels, a number beyond a float, or half a character (a lone
    surrogate).
    """
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES:,} values")
    try:
        content = json.loads(text.decode(), parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("too many levels") from None
    level = [content]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                value.encode()
            elif isinstance(value, int | float) and abs(value) > sys.float_info.max:
                raise ValueError("a number beyond a float")
        if not below:
            return content
        level = below
    raise ValueError("too many levels")


def map_array(file: FileIO) -> npt.NDArray[Any]:
    """Return the array of an open .npy file, memory-mapped: float32, int32, int64, uint64 or text.

    Raises ValueError where the file is anything else, or not as long as its first line says.
    """
    header = _ARRAY.match(file.read(_LONGEST_HEADER))
    if header is None:
        raise ValueError("not as NumPy writes an array of such numbers")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(length) for length in header.groups()[1:] if length is not None)
    size = os.fstat(file.fileno()).st_size
    expected = header.end() + math.prod(shape) * dtype.itemsize
    if int.from_bytes(header[0][8:10], "little") != header.end() - 10 or expected != size:
        raise ValueError(f"{size} bytes, expected {expected} for shape {shape}")
    return np.memmap(file, dtype, "r", header.end(), shape).view(np.ndarray)


def release(array: npt.NDArray[Any]) -> None:
    """Take the pages of a memory-mapped array out of the process; the file keeps them.

    Not those of a map that can be written to: what was changed is in its pages alone.
    """
    mapped: object = array
    while isinstance(mapped, np.ndarray):
        mapped = None if mapped.flags.writeable else mapped.base
    if isinstance(mapped, mmap.mmap):
        release_map(mapped)


def release_map(mapped: mmap.mmap) -> None:
    """Take the pages of a memory map for reading out of the process; the file keeps them."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "a link, which is not followed", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
