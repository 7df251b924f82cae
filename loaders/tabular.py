"""Any CSV, TSV or Parquet whose columns have names, given by the user or guessed."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.data.dataset import Movie, RatingColumns
from embedstore.errors import DataError, UsageError
from embedstore.loaders.movies import MovieLine, MovieLines, genres_of, split_year, year_of
from embedstore.loaders.reading import (
    Problem,
    RatingFile,
    Scan,
    check_rating,
    check_readable,
    check_timestamp,
    first_rows,
    seconds_of,
    typed_ids,
)

__all__ = [
    "DELIMITERS",
    "ROLES",
    "SUFFIXES",
    "Table",
    "is_movie_table",
    "is_rating_table",
    "names_movies",
    "open_table",
    "parquet_scan",
    "rating_file",
    "table_movies",
]

ROLES = ("user", "movie", "rating", "timestamp", "title", "year", "genres")
SUFFIXES = (".csv", ".tsv", ".txt", ".tab", ".parquet", ".pq")
PARQUET = (".parquet", ".pq")
DELIMITERS = "\t,;|"
GUESSES: dict[str, tuple[str, ...]] = {
    "user": ("user", "userid", "uid", "customer", "customerid", "visitorid", "reviewerid"),
    "movie": (
        "movie",
        "movieid",
        "item",
        "itemid",
        "iid",
        "mid",
        "film",
        "filmid",
        "product",
        "productid",
        "asin",
    ),
    "rating": ("rating", "stars", "score", "overall"),
    "timestamp": ("timestamp", "time", "ts", "date", "datetime", "ratedat", "createdat", "unixreviewtime"),
    "title": ("title", "movietitle", "itemtitle", "name"),
    "year": ("year", "releaseyear"),
    "genres": ("genres", "genre", "class", "categories", "category"),
}


@dataclass(frozen=True)
class Table:
    """A file with named columns and where each role stands, counted from 0."""

    path: Path
    names: tuple[str, ...]
    delimiter: str  # "" for Parquet
    roles: Mapping[str, int]

    @property
    def parquet(self) -> bool:
        return not self.delimiter


def open_table(path: Path, columns: Mapping[str, str]) -> Table:
    """Return the columns of a file; columns maps roles to names, the others are guessed.

    Raises DataError where the file has no readable header.
    """
    check_folder(path)
    if path.suffix.lower() in PARQUET:
        names = _parquet_names(path)
        return Table(path, names, "", _roles(names, columns))
    check_readable(path)
    delimiter = _delimiter(path)
    names = tuple(name.strip() for name in first_rows(path, delimiter, 1)[0])
    return Table(path, names, delimiter, _roles(names, columns))


def check_folder(path: Path) -> None:
    """Raise DataError where path is not there or is a folder."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a file")
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check the path")


def is_rating_table(table: Table) -> bool:
    """Whether the file has a user and a movie column."""
    return {"user", "movie"} <= table.roles.keys()


def is_movie_table(table: Table) -> bool:
    """Whether the file describes movies: a movie column and one of title, year and genres, no user."""
    return (
        "movie" in table.roles
        and "user" not in table.roles
        and bool({"title", "year", "genres"} & table.roles.keys())
    )


def names_movies(text: str) -> bool:
    """Whether a header would give the movie column this name."""
    return "movie" in _roles([text], {})


def rating_file(table: Table, columns: Mapping[str, str]) -> RatingFile:
    """Return the rating columns of a delimited table; UsageError where a column is missing."""
    check_mapping(table, columns)
    at = table.roles
    return RatingFile(
        table.path,
        table.delimiter,
        len(table.names),
        at["user"],
        at["movie"],
        at.get("rating"),
        at.get("timestamp"),
        header=True,
        quoted=True,
    )


def check_mapping(table: Table, columns: Mapping[str, str]) -> None:
    """Raise UsageError where a named column is not there, or user and movie cannot be told."""
    found = ", ".join(table.names[:12])
    for role in ("user", "movie", "rating", "timestamp"):
        if role in columns and role not in table.roles:
            raise UsageError(f"{table.path}, line 1: there is no column {columns[role]!r}, found {found}")
    for role in ("user", "movie"):
        if role not in table.roles:
            raise UsageError(
                f"{table.path}, line 1: cannot tell the {role} column, found {found}; "
                "name it with --columns user=NAME,movie=NAME"
            )


def table_movies(table: Table) -> MovieLines:
    """Yield the movies of a table; in a table of ratings a movie stands where it first occurs."""
    at = table.roles
    seen: set[str] = set()
    once = "user" in at
    for line, fields in _table_rows(table):
        if isinstance(fields, str):
            yield MovieLine.bad(line, fields)
            continue
        movie_id = _text(fields[at["movie"]])
        if once and movie_id in seen:
            continue
        seen.add(movie_id)
        if not movie_id:
            yield MovieLine.bad(line, "has no movie id")
            continue
        title, titled_year = split_year(_text(fields[at["title"]])) if "title" in at else (None, None)
        year = _year(fields[at["year"]]) if "year" in at else None
        yield MovieLine(line, movie_id, Movie(title, year or titled_year, _genres(fields, at)))


def _genres(fields: Sequence[Any], at: Mapping[str, int]) -> tuple[str, ...]:
    if "genres" not in at:
        return ()
    value = fields[at["genres"]]
    if isinstance(value, list | tuple):
        return tuple(
            dict.fromkeys(str(part).strip() for part in value if part is not None and str(part).strip())
        )
    return genres_of(_text(value))


def _year(value: object) -> int | None:
    if isinstance(value, date):  # a datetime, too
        return value.year
    return year_of(_text(value))


def _text(value: object) -> str:
    """Return the text of a cell; a whole decimal number is taken as an integer."""
    if value is None:
        return ""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def _table_rows(table: Table) -> Iterator[tuple[int, Any]]:
    if table.parquet:
        wanted = [table.names[at] for at in table.roles.values()]
        where = list(table.roles.values())
        for number, values in enumerate(_parquet_rows(table.path, wanted), start=1):
            fields: list[Any] = [None] * len(table.names)
            for at, value in zip(where, values, strict=True):
                fields[at] = value
            yield number, fields
        return
    with open(table.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        reader = csv.reader(handle, delimiter=table.delimiter)
        next(reader, None)
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield number, f"cannot be read as CSV: {error}"
                continue
            if row is None:
                return
            if not row:
                continue
            if len(row) != len(table.names):
                yield number, f"has {len(row)} fields, expected {len(table.names)}"
            elif any("\udc80" <= mark <= "\udcff" for text in row if not text.isascii() for mark in text):
                yield number, "is not valid UTF-8; convert the file to UTF-8"
            else:
                yield number, row


def _delimiter(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as handle:
        header = handle.readline(1 << 16)
    counts = {mark: header.count(mark) for mark in DELIMITERS}
    best = max(counts, key=lambda mark: counts[mark])
    if not counts[best]:
        raise DataError(
            f"{path}, line 1: is no header; expected several names with commas or tabs between them"
        )
    return best


def _roles(names: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    plain = ["".join(mark for mark in name.casefold() if mark.isalnum()) for name in names]
    roles: dict[str, int] = {}
    taken = {names.index(name) for name in columns.values() if name in names}
    for role in ROLES:
        if role in columns:
            if columns[role] in names:
                roles[role] = names.index(columns[role])
            elif role != "movie":
                continue  # a folder's other file may hold it
        if role not in roles and (role not in columns or (role == "movie" and "user" not in roles)):
            found = next((plain.index(guess) for guess in GUESSES[role] if guess in plain), None)
            if found is not None and found not in taken:
                roles[role] = found
                taken.add(found)
    return roles


# Parquet


def _parquet_names(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return tuple(parquet.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a readable Parquet file; write it again") from error


def _parquet_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(dict.fromkeys(names))):
                found = batch.to_pydict()
                yield from zip(*(found[name] for name in names), strict=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a readable Parquet file; write it again") from error


def parquet_scan(table: Table, columns: Mapping[str, str]) -> Scan:
    """Return the ratings of a Parquet file; the line of a problem is its row, counted from 1."""
    check_mapping(table, columns)
    fast = _parquet_fast(table)
    if fast is not None:
        return Scan(fast, np.arange(1, fast.ratings.size + 1))
    at = table.roles
    roles = [role for role in ("user", "movie", "rating", "timestamp") if role in at]
    good: dict[str, list[Any]] = {role: [] for role in ("user", "movie", "rating", "timestamp", "line")}
    problems: list[Problem] = []
    for number, values in enumerate(
        _parquet_rows(table.path, [table.names[at[role]] for role in roles]), start=1
    ):
        row = {role: _cell(role, value) for role, value in zip(roles, values, strict=True)}
        row = {"rating": "1", "timestamp": "0", **row}
        missing = next((role for role in ("user", "movie") if not row[role]), None)
        wrong = (
            f"has no {missing} id"
            if missing
            else check_rating(row["rating"]) or check_timestamp(row["timestamp"])
        )
        if wrong:
            problems.append(Problem(table.path, number, wrong))
            continue
        for role, text in row.items():
            good[role].append(text)
        good["line"].append(number)
    if not good["line"] and not problems:
        problems.append(Problem(table.path, None, "has no rating; expected at least one row"))
    found = RatingColumns(
        user_ids=typed_ids(good["user"]),
        movie_ids=typed_ids(good["movie"]),
        ratings=np.array([float(text) for text in good["rating"]], np.float32),
        timestamps=np.array([seconds_of(text) for text in good["timestamp"]], np.int64),
    )
    return Scan(found, np.array(good["line"], np.int64), problems)


def _cell(role: str, value: object) -> str:
    if role == "timestamp" and isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return str(math.floor(moment.timestamp()))
    if role == "rating" and isinstance(value, float):
        return str(value)
    return _text(value)


def _parquet_fast(table: Table) -> RatingColumns | None:
    """Return the columns where their types fit as they are, else None."""
    import pyarrow as pa
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    at = table.roles
    roles = [role for role in ("user", "movie", "rating", "timestamp") if role in at]
    try:
        read = parquet.read_table(
            table.path, columns=list(dict.fromkeys(table.names[at[role]] for role in roles))
        )
        found = {role: read.column(table.names[at[role]]) for role in roles}
        ids = [found["user"], found["movie"]]
        if read.num_rows == 0 or any(column.null_count for column in found.values()):
            return None
        if not all(pa.types.is_integer(column.type) for column in ids):
            return None
        user_ids, movie_ids = (
            column.cast(pa.uint64() if pa.types.is_uint64(column.type) else pa.int64()).to_numpy()
            for column in ids
        )
        n = read.num_rows
        ratings = (
            found["rating"].cast(pa.float32()).to_numpy() if "rating" in found else np.ones(n, np.float32)
        )
        stamps = np.zeros(n, np.int64)
        if "timestamp" in found:
            column = found["timestamp"]
            if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
                zone = getattr(column.type, "tz", None)
                column = compute.floor_temporal(column.cast(pa.timestamp("us", tz=zone)), unit="second")
                column = column.cast(pa.timestamp("s", tz=zone)).cast(pa.int64())
            elif not pa.types.is_integer(column.type):
                return None
            stamps = column.cast(pa.int64()).to_numpy()
    except (pa.ArrowException, OSError):
        return None
    good = np.isfinite(ratings).all() and all(
        check_timestamp(str(s)) is None for s in (stamps.min(), stamps.max())
    )
    signed = any(column.dtype == np.int64 and int(column.min()) < 0 for column in (user_ids, movie_ids))
    if signed or not good:
        return None
    # The largest uint64 ids need the type; all others are held as int64, as everywhere.
    small = [
        ids.astype(np.int64) if ids.dtype == np.uint64 and int(ids.max()) < 2**63 else ids
        for ids in (user_ids, movie_ids)
    ]
    return RatingColumns(small[0], small[1], ratings, stamps)
