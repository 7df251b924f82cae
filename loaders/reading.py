"""Columns out of delimited text: a fast way through pyarrow, and an exact way that knows every line.

The fast way answers None to whatever it does not take as it is; the exact way then reads the file
line by line, names what is wrong and, where nothing is, gives the same columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import RatingColumns
from embedstore.data.features import Ids
from embedstore.errors import DataError

__all__ = [
    "Problem",
    "RatingFile",
    "Scan",
    "first_rows",
    "read_fast",
    "read_lines",
    "read_ratings",
    "scan_ratings",
    "seconds_of",
    "typed_ids",
]

BLOCK = 1 << 17  # bytes; larger ones are no faster and cost memory
PARALLEL_FROM = 32 << 20  # bytes; below, a second thread is not worth its start
LONGEST_ID = 200
DAY = 86_400
LARGEST_ID = 2**64 - 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file; line counts from 1, None where the whole file is meant.

    A warning does not keep the file from being loaded.
    """

    file: Path
    line: int | None
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = str(self.file) if self.line is None else f"{self.file}, line {self.line}"
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class RatingFile:
    """Where the columns of a delimited rating file stand, counted from 0; width is their number."""

    path: Path
    delimiter: str  # one character, or "::"
    width: int
    user: int
    movie: int
    rating: int | None
    timestamp: int | None
    header: bool = False
    integer_ids: bool = False  # True: other ids are a problem; False: they make all ids text
    quoted: bool = False


@dataclass
class Scan:
    """What the exact way found: the good lines as columns, their line numbers, and the bad ones."""

    columns: RatingColumns
    lines: npt.NDArray[np.int64]
    problems: list[Problem] = field(default_factory=list)


def read_ratings(file: RatingFile) -> RatingColumns:
    """Return the columns of a rating file; DataError names the first line that is wrong."""
    check_readable(file.path)
    columns = read_fast(file)
    if columns is not None:
        return columns
    found = scan_ratings(file)
    if found.problems:
        raise DataError(str(found.problems[0]))
    return found.columns


def check_readable(path: Path) -> None:
    """Raise DataError where path is no file, is empty, or is no 8-bit text."""
    try:
        with open(path, "rb") as handle:
            start = handle.read(4096)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, expected a file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not start.strip():
        raise DataError(f"{path}: the file is empty; expected at least one line")
    if b"\0" in start:
        raise DataError(f"{path}, line 1: the file is UTF-16 or not text at all; expected UTF-8 text")


# The fast way


def read_fast(file: RatingFile) -> RatingColumns | None:
    """Return the columns of a rating file, None where the exact way has to look."""
    first = first_rows(file.path, file.delimiter, 2, quoted=file.quoted)[int(file.header) :]
    if not first or len(first[0]) != file.width:
        return None
    stamp = "0" if file.timestamp is None else first[0][file.timestamp].strip()
    stamp_type = "int64" if stamp.isdigit() else "float64" if _is_number(stamp) else None
    if stamp_type is None:
        return None
    whole = file.integer_ids or all(_is_integer_id(first[0][at].strip()) for at in (file.user, file.movie))
    kinds = ["int64", "uint64"] if file.integer_ids else ["int64", "text"] if whole else ["text"]
    if file.quoted and not _some_quote(file):
        file = replace(file, quoted=False)  # faster, and can be split between threads
    if kinds[0] == "int64" and not file.integer_ids and _some_leading_zero(file):
        kinds = ["text"]
    for kind in kinds:
        columns = _read_as(file, kind, stamp_type)
        if columns is not None:
            return columns
    return None


def _read_as(file: RatingFile, id_kind: str, stamp_type: str) -> RatingColumns | None:
    import pyarrow as pa

    try:
        parts = _read_parts(file, id_kind, stamp_type)
    except pa.ArrowException:
        return None
    columns = _join(parts)
    if columns is None or columns.ratings.size == 0:
        return None
    for ids in (columns.user_ids, columns.movie_ids):
        if ids.dtype == np.int64 and int(ids.min()) < 0:
            return None
        if ids.dtype.kind == "U" and (file.integer_ids or ids.dtype.itemsize > 4 * LONGEST_ID):
            return None
    if not np.isfinite(columns.ratings).all():
        return None
    low, high = int(columns.timestamps.min()), int(columns.timestamps.max())
    return columns if low >= 0 and high <= _latest() else None


def _read_parts(file: RatingFile, id_kind: str, stamp_type: str) -> list[_Growing]:
    size = file.path.stat().st_size
    parallel = size >= PARALLEL_FROM and not file.quoted and id_kind != "text" and (os.cpu_count() or 1) > 1
    ranges = [(0, size)]
    if parallel:
        middle = _next_line(file.path, size // 2)
        ranges = [(0, middle), (middle, size)] if middle < size else ranges
    if len(ranges) == 1:
        return [_read_range(file, id_kind, stamp_type, 0, size)]
    with ThreadPoolExecutor(len(ranges)) as pool:
        return list(pool.map(lambda span: _read_range(file, id_kind, stamp_type, span[0], span[1]), ranges))


def _next_line(path: Path, position: int) -> int:
    with open(path, "rb") as handle:
        handle.seek(position)
        handle.readline()
        return handle.tell()


class _Range(io.RawIOBase):
    """The bytes of a file from start to stop; pa.ArrowInvalid at 0x, which Arrow would take for a number."""

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.seek(start)
        self._left = stop - start
        self._last = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        found = self._file.read(self._left if size < 0 else min(size, self._left)) or b""
        self._left -= len(found)
        if b"0x" in found or b"0X" in found or (self._last == b"0" and found[:1] in (b"x", b"X")):
            import pyarrow as pa

            raise pa.ArrowInvalid("a hexadecimal number")
        self._last = found[-1:]
        return found

    def close(self) -> None:
        self._file.close()
        super().close()


class _Growing:
    """Columns that grow in place, so that the peak is the columns themselves and one block."""

    def __init__(self, rows: int, id_kind: str) -> None:
        self.size = 0
        self.text: list[list[Any]] | None = [[], []] if id_kind == "text" else None
        kinds: list[Any] = [np.float32, np.int64]
        if self.text is None:
            kinds = [id_kind, id_kind, *kinds]
        self.arrays: list[npt.NDArray[Any]] = [np.empty(rows, kind) for kind in kinds]

    def add(self, columns: Sequence[Any], rating: bool, timestamp: bool, rows: int) -> None:
        end = self.size + rows
        if end > self.arrays[0].size:
            for column in self.arrays:
                column.resize(int(end * 1.2) + 1024, refcheck=False)  # realloc moves pages, not bytes
        ids, rest = columns[:2], list(columns[2:])
        targets = self.arrays
        if self.text is None:
            for target, column in zip(targets[:2], ids, strict=True):
                target[self.size : end] = _values(column)
            targets = targets[2:]
        else:
            for kept, column in zip(self.text, ids, strict=True):
                kept.append(column)
        targets[0][self.size : end] = _values(rest.pop(0)) if rating else 1
        if timestamp:
            stamps = _values(rest.pop(0))
            if stamps.dtype.kind == "f" and not (np.abs(stamps) < 2**53).all():
                stamps = np.full(rows, -1)  # NaN and the like: the exact way will say so
            targets[1][self.size : end] = stamps
        else:
            targets[1][self.size : end] = 0
        self.size = end

    def finish(self) -> None:
        for column in self.arrays:
            column.resize(self.size, refcheck=False)


def _values(column: Any) -> npt.NDArray[Any]:
    """Return the numbers of an Arrow array without nulls; its own to_numpy imports pandas (70 MB)."""
    kind = {"float": "float32", "double": "float64"}.get(str(column.type), str(column.type))
    start = column.offset
    return np.frombuffer(column.buffers()[1], kind)[start : start + len(column)]


def _read_range(file: RatingFile, id_kind: str, stamp_type: str, start: int, stop: int) -> _Growing:
    import pyarrow as pa
    import pyarrow.csv as arrow_csv

    step = len(file.delimiter)  # "::" is read as ":" with an empty column in between
    names = [str(index) for index in range((file.width - 1) * step + 1)]
    id_type = pa.dictionary(pa.int32(), pa.string()) if id_kind == "text" else pa.type_for_alias(id_kind)
    types: dict[str, Any] = {str(file.user * step): id_type, str(file.movie * step): id_type}
    if file.rating is not None:
        types[str(file.rating * step)] = pa.float32()
    if file.timestamp is not None:
        types[str(file.timestamp * step)] = pa.type_for_alias(stamp_type)
    wanted = list(types)
    gaps = [name for name in names if step == 2 and int(name) % 2]
    types |= {name: pa.null() for name in gaps}  # anything between the colons is an error
    convert = arrow_csv.ConvertOptions(
        column_types=types,
        include_columns=wanted + gaps,
        null_values=[""] if gaps else [],
        strings_can_be_null=False,
    )
    source = _Range(file.path, start, stop)
    try:
        with arrow_csv.open_csv(
            pa.PythonFile(source, mode="r"),
            read_options=arrow_csv.ReadOptions(
                column_names=names, block_size=BLOCK, skip_rows=int(file.header and start == 0)
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=file.delimiter[0], quote_char='"' if file.quoted else False
            ),
            convert_options=convert,
        ) as reader:
            growing: _Growing | None = None
            for batch in reader:
                if growing is None:
                    per_byte = batch.num_rows / min(BLOCK, stop - start)
                    growing = _Growing(int(per_byte * (stop - start) * 1.1) + 1024, id_kind)
                if gaps and any(batch.column(index).null_count for index in range(len(wanted))):
                    raise pa.ArrowInvalid("an empty field")
                columns = batch.columns[: len(wanted)]
                growing.add(columns, file.rating is not None, file.timestamp is not None, batch.num_rows)
    finally:
        source.close()
    if growing is None:
        raise pa.ArrowInvalid("no row")
    growing.finish()
    return growing


def _join(parts: list[_Growing]) -> RatingColumns | None:
    first, *rest = parts
    total = sum(part.size for part in parts)
    for at, column in enumerate(first.arrays):  # column by column, each freed once it is copied
        column.resize(total, refcheck=False)
        start = first.size
        for part in rest:
            column[start : start + part.size] = part.arrays[at]
            start += part.size
            part.arrays[at] = np.empty(0)
    if first.text is None:
        return RatingColumns(*first.arrays)
    ids = [_text_ids(chunks) for chunks in first.text]
    if ids[0] is None or ids[1] is None:
        return None
    return RatingColumns(ids[0], ids[1], *first.arrays)


def _text_ids(chunks: list[Any]) -> Ids | None:
    import pyarrow as pa

    joined = pa.chunked_array(chunks).unify_dictionaries().combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.chunk(0)
    values = [text.strip() for text in joined.dictionary.to_pylist()]
    if any(not text or "\0" in text or len(text) > LONGEST_ID for text in values):
        return None
    found: Ids = typed_ids(values)[_values(joined.indices)]
    return found


def typed_ids(values: Sequence[str]) -> Ids:
    """Return ids as int64, as uint64 where one needs it, or, where one is no plain integer, as text.

    A leading zero is part of an id, so "007" makes all of them text.
    """
    if all(map(_is_integer_id, values)):
        numbers = list(map(int, values))
        return np.array(numbers, dtype=np.uint64 if max(numbers, default=0) >= 2**63 else np.int64)
    return np.array(values, dtype=np.str_)


def _is_integer_id(text: str) -> bool:
    return (
        text.isascii() and text.isdigit() and (text[0] != "0" or text == "0") and int(text[:30]) <= LARGEST_ID
    )


def _is_number(text: str) -> bool:
    return _number(text) is not None


def _number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _some_quote(file: RatingFile) -> bool:
    with open(file.path, "rb", buffering=0) as handle:
        if file.header:
            handle.seek(_next_line(file.path, 0))
        while block := handle.read(BLOCK):
            if b'"' in block:
                return True
    return False


def _some_leading_zero(file: RatingFile) -> bool:
    """Whether some field may start with a zero that a digit or x follows (exact ids are looked at later)."""
    delimiter = ord(file.delimiter[-1])
    with open(file.path, "rb", buffering=0) as handle:
        before = b"\n"
        while block := handle.read(1 << 18):
            data = np.frombuffer(before + block, np.uint8)
            left, here, right = data[:-2], data[1:-1], data[2:]
            found = here == ord("0")
            found &= (right >= ord("0")) & (right <= ord("9")) | (right == ord("x"))
            found &= (left == delimiter) | (left == ord("\n")) | (left == ord('"')) | (left == ord(" "))
            if found.any():
                return True
            before = (before + block)[-2:]
    return False


def _latest() -> int:
    return int(time.time()) + DAY  # a day for clocks and time zones


# The exact way


def scan_ratings(file: RatingFile) -> Scan:
    """Read a rating file line by line and return the good lines and every problem."""
    users: list[str] = []
    movies: list[str] = []
    ratings, stamps, lines = array("f"), array("q"), array("q")
    problems: list[Problem] = []
    latest = _latest()
    for line, fields, complete in _rows(file):
        wrong: str | None = None
        if isinstance(fields, str):
            wrong = fields
        elif len(fields) != file.width:
            wrong = f"has {len(fields)} fields, expected {file.width}" + (
                "" if complete else "; the file may be cut off"
            )
        else:
            wrong = _check_row(file, fields, latest)
        if wrong is not None:
            problems.append(Problem(file.path, line, wrong))
            continue
        users.append(fields[file.user].strip())
        movies.append(fields[file.movie].strip())
        ratings.append(1.0 if file.rating is None else float(fields[file.rating]))
        stamps.append(0 if file.timestamp is None else seconds_of(fields[file.timestamp]) or 0)
        lines.append(line)
    if not lines and not problems:
        problems.append(Problem(file.path, None, "has no rating; expected at least one line of ratings"))
    plain = [[str(int(text)) for text in ids] if file.integer_ids else ids for ids in (users, movies)]
    columns = RatingColumns(
        user_ids=typed_ids(plain[0]),
        movie_ids=typed_ids(plain[1]),
        ratings=np.array(ratings, np.float32),
        timestamps=np.array(stamps, np.int64),
    )
    return Scan(columns, np.array(lines, np.int64), problems)


def _check_row(file: RatingFile, fields: Sequence[str], latest: int) -> str | None:
    """Return what is wrong with the fields of one line, None where nothing is."""
    for name, at in (("user", file.user), ("movie", file.movie)):
        wrong = _check_id(name, fields[at].strip(), integer=file.integer_ids)
        if wrong:
            return wrong
    if file.rating is not None:
        wrong = check_rating(fields[file.rating])
        if wrong:
            return wrong
    return None if file.timestamp is None else check_timestamp(fields[file.timestamp], latest=latest)


def _check_id(name: str, text: str, *, integer: bool) -> str | None:
    if not text:
        return f"has no {name} id"
    if integer and not (text.isascii() and text.isdigit() and len(text) <= 30 and int(text) <= LARGEST_ID):
        return f"{name} id {_short(text)} is not an integer from 0 to 2^64-1"
    if len(text) > LONGEST_ID:
        return f"{name} id {_short(text)} is longer than {LONGEST_ID} characters"
    return f"{name} id {_short(text)} holds a NUL character" if "\0" in text else None


def check_rating(text: str) -> str | None:
    """Return what is wrong with the text of a rating, None where nothing is."""
    value = _number(text)
    if value is None:
        return f"rating {_short(text)} is not a number" if text.strip() else "has no rating"
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        return f"rating {_short(text)} is not a finite number"
    return None


def check_timestamp(text: str, *, latest: int | None = None) -> str | None:
    """Return what is wrong with the text of a timestamp, None where nothing is."""
    if not text.strip():
        return "has no timestamp"
    value = seconds_of(text)
    if value is None:
        return f"timestamp {_short(text)} is neither seconds since 1970 nor an ISO date"
    if value < 0:
        return f"timestamp {_short(text)} is negative; expected seconds since 1970"
    if value > (_latest() if latest is None else latest):
        return f"timestamp {_short(text)} lies in the future; expected seconds (not milliseconds) since 1970"
    return None


def seconds_of(text: str) -> int | None:
    """Return a timestamp in seconds since 1970, UTC, from a number or an ISO date; None where it is neither.

    A date without a time zone is taken as UTC.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return int(text[:19])
    value = _number(text)
    if value is not None:
        return int(value) if math.isfinite(value) and abs(value) < 2**62 else None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _rows(file: RatingFile) -> Iterator[tuple[int, Any, bool]]:
    """Yield line number, fields (or, as a str, what is wrong) and whether the line ended."""
    with open(
        file.path, encoding="utf-8-sig", errors="surrogateescape", newline="" if file.quoted else None
    ) as h:
        if file.quoted:
            yield from _quoted_rows(file, h)
            return
        for number, text in enumerate(h, start=1):
            if number == 1 and file.header:
                continue
            ended = text.endswith("\n")
            bare = text.rstrip("\r\n")
            if not bare:
                continue
            if not bare.isascii() and _is_broken(bare):
                yield number, NOT_UTF8, ended
            else:
                yield number, bare.split(file.delimiter), ended


NOT_UTF8 = "is not valid UTF-8; convert the file to UTF-8"


def _quoted_rows(file: RatingFile, handle: io.TextIOWrapper) -> Iterator[tuple[int, Any, bool]]:
    reader = csv.reader(handle, delimiter=file.delimiter)
    header = file.header
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield number, f"cannot be read as CSV: {error}", True
            continue
        if fields is None:
            return
        if header:
            header = False
        elif any(not text.isascii() and _is_broken(text) for text in fields):
            yield number, NOT_UTF8, True
        elif fields:
            yield number, fields, True


def _is_broken(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


# Small text files


def read_lines(path: Path, *, latin1: bool = False) -> Iterator[tuple[int, str | None]]:
    """Yield number and text of every line that is not empty; None in place of a line that is not UTF-8.

    latin1: a file that is not UTF-8 as a whole is taken as latin-1, as MovieLens wrote its older ones.
    """
    check_readable(path)
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1") if latin1 else data.decode(errors="surrogateescape")
    del data
    start = 0
    for number in itertools.count(1):  # split would hold every line as an object
        end = text.find("\n", start)
        bare = text[start : end if end >= 0 else None].rstrip("\r")
        if bare:
            yield number, None if _is_broken(bare) else bare
        if end < 0:
            return
        start = end + 1


def first_rows(path: Path, delimiter: str, count: int, *, quoted: bool = True) -> list[list[str]]:
    """Return the fields of the first lines of a file that are not empty."""
    rows: list[list[str]] = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        start = handle.read(1 << 16).splitlines()
    lines = [line for line in start if line]
    if len(delimiter) == 1 and quoted:
        try:
            for fields in csv.reader(lines, delimiter=delimiter):
                rows.append(fields)
                if len(rows) == count:
                    break
        except csv.Error:
            return rows
        return rows
    return [line.split(delimiter) for line in lines[:count]]
