"""Movie vectors and movie ids out of arrays and files that somebody else wrote; no pickle is ever read."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Ids, MovieId
from embedstore.errors import DataError, NotFoundError, UsageError
from embedstore.runs.files import release
from embedstore.runs.writer import ids_of

__all__ = [
    "PICKLES",
    "Vectors",
    "check_ids",
    "ids_given",
    "is_array",
    "read_ids",
    "read_vectors",
    "refuse_pickle",
]

PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".joblib")

_BLOCK = 1 << 20  # values looked at or converted at a time
_SHOWN = 5  # ids that an error names
_MEMBER = re.compile(r"(?P<file>.+\.npz)(?::(?P<name>[^/\\:]+))?", re.IGNORECASE)
_INTEGER = re.compile(r"0|[1-9][0-9]{0,19}")

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """A matrix as it was given. array: (n, dim) float32 in C order, finite; a plain .npy is memory-mapped.

    name: what errors call it. notes: what was converted, one sentence each.
    """

    array: Matrix
    name: str
    notes: Sequence[str] = ()


def is_array(source: object) -> bool:
    """Whether source is an array, or names one: FILE.npy, FILE.npz or FILE.npz:NAME."""
    if isinstance(source, str | Path):
        return Path(source).suffix.lower() == ".npy" or _MEMBER.fullmatch(str(source)) is not None
    return isinstance(source, np.ndarray)


def read_vectors(source: str | Path | npt.NDArray[Any], *, name: str = "the array of vectors") -> Vectors:
    """Return the vectors of an array, of FILE.npy or of FILE.npz:NAME (FILE.npz where it holds one array).

    float16, bfloat16, float64, big-endian and Fortran order become float32 in C order, which the notes say.
    name: what errors call an array. Raises NotFoundError where there is no such file or array, UsageError
    for a pickle or another type of file, DataError where it is no finite (n, dim) matrix of floats.
    """
    if isinstance(source, str | Path):
        name = str(source)
        found = _load(name)
    else:
        found = np.asarray(source)
    if found.dtype.hasobject:
        raise _pickle_error(name)
    if found.ndim != 2 or not found.size:
        raise DataError(
            f"{name}: has shape {found.shape}, expected (n_movies, embedding_dim), neither of them 0"
        )
    notes: list[str] = []
    array = _as_float32(found, name, notes)
    step = max(1, _BLOCK // array.shape[1])
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step]).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{name}: row {start + int(np.argmin(finite))} (counted from 0) holds NaN, infinity or a "
                "number beyond float32, expected finite numbers; train again, or leave the movie out"
            )
    release(array)
    return Vectors(array, name, notes)


def read_ids(path: str | Path) -> Ids:
    """Return the ids of a .txt file (one a line), a .npy or a .json list, in the order of the file.

    Integers become int64 (uint64 where one needs it); where one is no plain integer ("007", "tt1") all are
    text. Raises NotFoundError where there is no file, UsageError for a pickle or another type of file,
    DataError where what was found is no list of ids.
    """
    name, suffix = str(path), Path(path).suffix.lower()
    if suffix == ".npy":
        return _ids_of_array(_load(name), name)
    refuse_pickle(name)
    if suffix not in (".txt", ".json"):
        raise UsageError(f"{name}: is no list of ids; expected .txt (one id a line), .npy or .json")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        values = json.loads(text) if suffix == ".json" else _lines(text)
    except OSError as error:
        raise _unreadable(name, error) from error
    except (ValueError, RecursionError) as error:
        expected = "a JSON list of ids" if suffix == ".json" else "UTF-8 text, one id a line"
        raise DataError(f"{name}: cannot be read ({error}); expected {expected}") from error
    if not isinstance(values, list):
        raise DataError(f"{name}: is a JSON {type(values).__name__}, expected a list of ids")
    if not values:
        raise DataError(f"{name}: holds no id; expected one per vector")
    if all(isinstance(value, str) and _INTEGER.fullmatch(value) for value in values):
        numbers = [int(value) for value in values]
        values = values if any(map(_outside, numbers)) else numbers
    return _ids_of_list(values, name)


def ids_given(ids: Sequence[MovieId] | Ids) -> Ids:
    """Return the ids that a program has, as read_ids returns those of a file; text stays text.

    Raises DataError where they are no ids.
    """
    name = "movie_ids"
    if isinstance(ids, np.ndarray):
        return _ids_of_array(ids, name)
    return _ids_of_list([value.item() if isinstance(value, np.generic) else value for value in ids], name)


def check_ids(ids: Ids, n: int, dim: int | None = None) -> None:
    """Raise DataError where ids are not the n distinct ids of the rows of V, in one sentence.

    dim: the width of V; with it, a V that is transposed is told.
    """
    if ids.ndim != 1:
        raise DataError(f"movie ids have shape {ids.shape}, expected one id per vector")
    if ids.size != n:
        raise DataError(f"{ids.size:,} movie ids for {n:,} vectors; {_cure(ids.size, n, dim)}")
    if ids.dtype.kind == "U":
        empty = np.flatnonzero(ids == "")
        if empty.size:
            raise DataError(f"row {int(empty[0])} (counted from 0) has no movie id; expected one per vector")
    ordered = np.sort(ids)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if twice.size:
        named = ", ".join(map(str, twice[:_SHOWN].tolist())) + (", …" if twice.size > _SHOWN else "")
        raise DataError(
            f"movie ids stand there more than once ({named}); expected one vector per movie, "
            "key movies by their id and not by their title"
        )


def refuse_pickle(name: str) -> None:
    """Raise UsageError where name is that of a file that is read by unpickling."""
    if Path(name).suffix.lower() in PICKLES:
        raise _pickle_error(name)


def _pickle_error(name: str) -> UsageError:
    """Return the error for a pickle, which is never read."""
    return UsageError(
        f"{name}: is a pickle, and a pickle runs code when it is read, so that it is refused; write the "
        "numbers with `np.save('V.npy', np.asarray(V, 'float32'), allow_pickle=False)`"
    )


def _cure(n_ids: int, n: int, dim: int | None) -> str:
    if n_ids == dim:
        return f"V has shape ({n:,}, {dim:,}) and looks transposed, save V.T"
    if n == n_ids + 1:
        return (
            "the row too many is often the first, of padding or of unknown movies: if so, save V[1:] "
            "(not V[:-1], which shifts every id)"
        )
    return "expected as many, in the order of V's rows; give the list that the model was trained with"


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _outside(value: int | str) -> bool:
    return isinstance(value, int) and not 0 <= value < 2**64


def _ids_of_list(values: Sequence[Any], name: str) -> Ids:
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | str) or _outside(value):
            raise DataError(
                f"{name}: id {row} (counted from 0) is {value!r}, expected integers from 0 to 2^64-1 or text"
            )
    if any(isinstance(value, str) for value in values):
        values = [str(value) for value in values]
    return ids_of(values)


def _ids_of_array(found: npt.NDArray[Any], name: str) -> Ids:
    if found.dtype.kind == "S":
        found = np.char.decode(found, "utf-8", "replace")
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iuU":
        raise DataError(
            f"{name}: is {found.dtype.name} of shape {found.shape}, expected integers or text, one per vector"
        )
    if found.dtype.kind == "U":
        return np.array(found)
    low, high = int(found.min()), int(found.max())
    if low < 0:
        raise DataError(f"{name}: holds the id {low}, expected integers from 0 to 2^64-1")
    return np.array(found, dtype=np.uint64 if high >= 2**63 else np.int64)


def _as_float32(found: npt.NDArray[Any], name: str, notes: list[str]) -> Matrix:
    """Return found as float32 in C order, itself where it is that, and note what was converted."""
    dtype = found.dtype
    brain = (
        dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names
    )  # how NumPy reads ml_dtypes' bfloat16
    if dtype.kind != "f" and not brain:
        raise DataError(f"{name}: holds {dtype.name}, expected float32, float64, float16 or bfloat16")
    was = "bfloat16" if brain else dtype.name
    if dtype.itemsize > 1 and not dtype.isnative:
        was = f"big-endian {was}" if dtype.byteorder == ">" else f"little-endian {was}"
    if was != "float32":
        notes.append(f"{name}: {was} was converted to float32")
    if not found.flags.c_contiguous:
        notes.append(f"{name}: its columns lay one after the other (Fortran order) and were copied to rows")
    elif was == "float32":
        return found.view(np.ndarray)
    array = np.empty(found.shape, np.float32)
    step = max(1, _BLOCK // found.shape[1])
    with np.errstate(over="ignore"):  # looked at afterwards
        for start in range(0, len(found), step):
            block = found[start : start + step]
            if brain:  # the upper half of a float32
                block = (np.ascontiguousarray(block).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            array[start : start + step] = block
    return array


def _load(name: str) -> npt.NDArray[Any]:
    """Return the array of FILE.npy, mapped, or of FILE.npz:NAME."""
    refuse_pickle(name)
    member = _MEMBER.fullmatch(name)
    if member is None and Path(name).suffix.lower() != ".npy":
        raise UsageError(f"{name}: is no file of arrays; expected FILE.npy or FILE.npz:NAME")
    try:
        if member is not None:
            return _member(Path(member["file"]), member["name"])
        with open(name, "rb") as file:
            if not file.read(6) == b"\x93NUMPY":
                raise DataError(f"{name}: is not an array that NumPy saved; write it with np.save")
        return np.asarray(np.load(name, mmap_mode="r", allow_pickle=False).view(np.ndarray))
    except OSError as error:
        raise _unreadable(name, error) from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        if "object" in str(error).lower():
            raise _pickle_error(name) from error
        raise DataError(f"{name}: cannot be read ({error}); write it again with np.save") from error


def _member(path: Path, name: str | None) -> npt.NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        names = [entry.removesuffix(".npy") for entry in archive.namelist()]
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            held = ", ".join(names[:12]) or "nothing"
            wrong = "does not say which array" if name is None else f"holds no array {name!r}"
            raise NotFoundError(f"{path}: {wrong}; name one as {path}:NAME, it holds {held}")
        with archive.open(f"{name}.npy") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _unreadable(name: str, error: OSError) -> NotFoundError | DataError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{name}: there is no such file; check the path")
    return DataError(f"{name}: cannot be read: {error.strerror or error}")
