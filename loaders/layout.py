"""Which files of a folder are what, and how each layout is read."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from embedstore.data.dataset import Movie, MovieTable, RatingColumns
from embedstore.data.features import Ids, MovieId
from embedstore.errors import DataError, NotFoundError, UsageError
from embedstore.loaders import movielens, recbole, tabular
from embedstore.loaders.movies import MovieLine, PackedMovies
from embedstore.loaders.reading import (
    Problem,
    RatingFile,
    Scan,
    first_rows,
    read_fast,
    read_lines,
    read_ratings,
    scan_ratings,
    typed_ids,
)

__all__ = [
    "Layout",
    "find_layout",
    "movie_list",
    "movie_table",
    "parse_columns",
    "read_columns",
    "read_movies",
    "scan",
]


@dataclass(frozen=True)
class Layout:
    """The files of a data set and their format."""

    format: str
    name: str
    ratings: Path
    movies: Path | None
    columns: Mapping[str, str] = field(default_factory=dict)


def parse_columns(columns: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return a mapping of roles to column names from "user=uid,movie=iid"; UsageError where it is none."""
    if columns is None:
        return {}
    if isinstance(columns, str):
        pairs = [part.partition("=") for part in columns.split(",") if part.strip()]
        wrong = next(("".join(pair) for pair in pairs if not pair[0].strip() or not pair[2].strip()), None)
        if wrong is not None or not pairs:
            raise UsageError(
                f"columns {wrong or columns!r} is not ROLE=NAME; expected user=NAME,movie=NAME,…"
            )
        columns = {role.strip(): name.strip() for role, _, name in pairs}
        if len(columns) != len(pairs):
            raise UsageError("columns name a role twice; give every role once")
    for role in columns:
        if role not in tabular.ROLES:
            raise UsageError(f"columns have an unknown role {role!r}; expected {', '.join(tabular.ROLES)}")
    if len(set(columns.values())) != len(columns):
        raise UsageError("columns name one column for two roles; give every role its own")
    return dict(columns)


def find_layout(path: Path, columns: Mapping[str, str]) -> Layout:
    """Return the layout of a folder or of one rating file.

    Raises NotFoundError where nothing is there, DataError where no rating file is found,
    UsageError where several are.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: there is no such file or folder; check the path")
    if not path.is_dir():
        return _file_layout(path, columns)
    found = _folder_layout(path, columns)
    if found is None:
        inner = [
            entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")
        ]
        found = _folder_layout(inner[0], columns) if len(inner) == 1 else None
    if found is None:
        raise DataError(
            f"{path}: holds no rating file; expected u.data, ratings.dat, ratings.csv, NAME.inter, "
            "or a CSV, TSV or Parquet file with a user and a movie column (--columns user=NAME,movie=NAME)"
        )
    return found


def _folder_layout(folder: Path, columns: Mapping[str, str]) -> Layout | None:
    name = folder.resolve().name
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    for known in ("u.data", "ratings.dat"):
        if folder / known in files:
            return _file_layout(folder / known, columns, name)
    inter = [file for file in files if file.suffix == ".inter"]
    if len(inter) > 1:
        raise UsageError(f"{folder}: holds {len(inter)} .inter files; name the one to load")
    if inter:
        return _file_layout(inter[0], columns, name)
    if folder / "ratings.csv" in files:
        return _file_layout(folder / "ratings.csv", columns, name)
    tables = []
    for file in files:
        if file.suffix.lower() in tabular.SUFFIXES and not file.name.lower().startswith("readme"):
            try:
                tables.append(tabular.open_table(file, columns))
            except DataError:
                continue  # some other file; where no table is left, the folder is named
    rated = [table for table in tables if tabular.is_rating_table(table)]
    if len(rated) > 1:
        names = ", ".join(table.path.name for table in rated)
        raise UsageError(f"{folder}: holds several rating files ({names}); name the one to load")
    return _file_layout(rated[0].path, columns, name) if rated else None


def _file_layout(path: Path, columns: Mapping[str, str], name: str | None = None) -> Layout:
    suffix = path.suffix.lower()
    if suffix == ".inter":
        return Layout("recbole", name or path.stem, path, _beside(path, f"{path.stem}.item"), columns)
    named = name or path.stem
    fixed = {".data": ("movielens-100k", "u.item"), ".dat": ("movielens-dat", "movies.dat")}.get(suffix)
    if fixed is None and suffix in (".base", ".test") and path.stem[:1] == "u":  # the splits of ML-100K
        fixed = ("movielens-100k", "u.item")
    if fixed is not None:
        if columns:
            raise UsageError(
                f"{path}: has no names of columns, so that --columns cannot be meant; leave it out"
            )
        return Layout(fixed[0], named, path, _beside(path, fixed[1]))
    if suffix == ".csv" and not columns and path.stat().st_size:
        header = first_rows(path, ",", 1)
        if header and movielens.is_csv_header(header[0]):
            return Layout("movielens-csv", named, path, _beside(path, "movies.csv"))
    return Layout("table", named, path, _movies_beside(path, columns), columns)


def _beside(path: Path, name: str) -> Path | None:
    found = path.with_name(name)
    return found if found.is_file() else None


def _movies_beside(path: Path, columns: Mapping[str, str]) -> Path | None:
    """Return the file with titles, years or genres: the ratings' own, else the only movie table beside it."""
    own = tabular.open_table(path, columns)
    if {"title", "year", "genres"} & own.roles.keys():
        return path
    tables = []
    for file in sorted(path.parent.iterdir()):
        if file != path and file.suffix.lower() in tabular.SUFFIXES and file.is_file():
            try:
                tables.append(tabular.open_table(file, columns))
            except DataError:
                continue
    movies = [table.path for table in tables if tabular.is_movie_table(table)]
    return movies[0] if len(movies) == 1 else None


def rating_file(layout: Layout) -> RatingFile:
    """Return where the columns of a delimited rating file stand."""
    if layout.format == "recbole":
        return recbole.inter_ratings(layout.ratings, dict(layout.columns))
    if layout.format == "table":
        return tabular.rating_file(tabular.open_table(layout.ratings, layout.columns), layout.columns)
    kinds: dict[str, Callable[[Path], RatingFile]] = {
        "movielens-100k": movielens.tab_ratings,
        "movielens-dat": movielens.dat_ratings,
        "movielens-csv": movielens.csv_ratings,
    }
    return kinds[layout.format](layout.ratings)


def _is_parquet(layout: Layout) -> bool:
    return layout.ratings.suffix.lower() in tabular.PARQUET


def read_columns(layout: Layout) -> RatingColumns:
    """Return the ratings of a data set; DataError names the first line that is wrong."""
    if not _is_parquet(layout):
        return read_ratings(rating_file(layout))
    found = tabular.parquet_scan(tabular.open_table(layout.ratings, layout.columns), layout.columns)
    if found.problems:
        raise DataError(str(found.problems[0]))
    return found.columns


def scan(layout: Layout) -> tuple[RatingColumns, Scan | None]:
    """Return the good ratings, and every line and problem where the fast way did not suffice."""
    if _is_parquet(layout):
        found = tabular.parquet_scan(tabular.open_table(layout.ratings, layout.columns), layout.columns)
        return found.columns, found
    file = rating_file(layout)
    columns = read_fast(file)
    if columns is not None:
        return columns, None
    found = scan_ratings(file)
    return found.columns, found


def movie_lines(layout: Layout) -> Iterator[MovieLine]:
    """Yield every line of the movie file, the wrong ones too."""
    path = layout.movies
    if path is None:
        return iter(())
    if layout.format == "recbole":
        return recbole.item_movies(path, dict(layout.columns))
    if layout.format == "table":
        return tabular.table_movies(tabular.open_table(path, layout.columns))
    kinds: dict[str, Callable[[Path], Iterator[MovieLine]]] = {
        "movielens-100k": movielens.item_movies,
        "movielens-dat": movielens.dat_movies,
        "movielens-csv": movielens.csv_movies,
    }
    return kinds[layout.format](path)


def read_movies(layout: Layout, rated: Ids) -> tuple[dict[MovieId, Movie], list[Problem]]:
    """Return the movies, keyed as the ratings are (integers or text), and every problem of their file."""
    movies: dict[MovieId, Movie] = {}
    problems: list[Problem] = []
    path = layout.movies
    if path is None:
        return movies, problems
    integer = rated.dtype.kind in "iu"
    plain = layout.format.startswith("movielens")  # "0010" is movie 10 there, and an id of its own elsewhere
    for line in movie_lines(layout):
        wrong, key = line.wrong, line.movie_id.strip()
        movie_id: MovieId = key
        if wrong is None and integer:
            number = int(key) if key.isascii() and key.isdigit() and len(key) <= 20 else 2**64
            if number >= 2**64 or (not plain and str(number) != key):
                wrong = f"movie id {key[:40]!r} is not an integer, as those of the ratings are"
            movie_id = number
        if wrong is None and not key:
            wrong = "has no movie id"
        if wrong is not None:
            problems.append(Problem(path, line.line, wrong))
            continue
        if movie_id in movies:
            problems.append(
                Problem(path, line.line, f"movie {key} stands here again; the last line counts", "warning")
            )
        movies[movie_id] = line.movie
    if path == layout.ratings:  # wrong lines of it are the ratings' own
        problems = []
    return movies, problems


def movie_table(layout: Layout, rated: Ids) -> dict[MovieId, Movie]:
    """Return the movies of a data set; DataError names the first line that is wrong."""
    movies, problems = read_movies(layout, rated)
    wrong = next((problem for problem in problems if problem.severity == "error"), None)
    if wrong is not None:
        raise DataError(str(wrong))
    if any(isinstance(movie_id, int) and movie_id >= 2**63 for movie_id in movies):
        # NumPy makes floats of a list of int where only some need uint64; np.uint64(5) finds 5 in a dict.
        return {cast(int, np.uint64(movie_id)): movie for movie_id, movie in movies.items()}
    return movies


def movie_list(path: str | Path) -> tuple[Ids, MovieTable]:
    """Return the movie ids in the order of a movie file, and what it says of each.

    The file is u.item, movies.dat, movies.csv, NAME.item, a table with a movie column, or one id a line
    (of which nothing more is known). Raises NotFoundError where there is none, UsageError where it is a
    folder or a file of ratings, DataError with the line where an id is missing or stands there twice.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"{path}: there is no such file; check the path")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name the file of the movies in it")
    kind = _movie_format(path)
    plain = kind.startswith("movielens")
    ids: list[str] = []
    numbers = array("q")  # of the lines
    movies = PackedMovies()
    for line in _plain_ids(path) if kind == "ids" else movie_lines(Layout(kind, path.stem, path, path)):
        movie_id = line.movie_id.strip()
        wrong = line.wrong or (None if movie_id else "has no movie id")
        if wrong is not None:
            raise DataError(str(Problem(path, line.line, wrong)))
        ids.append(str(int(movie_id)) if plain and movie_id.isascii() and movie_id.isdigit() else movie_id)
        numbers.append(line.line)
        movies.append(line.movie)
    if not ids:
        raise DataError(f"{path}: holds no movie; expected one line per movie")
    found = typed_ids(ids)
    first, again = movies.index(found)
    if again is not None:
        wrong = (
            f"movie {ids[again][:40]} stands here again, first on line {numbers[first]}; expected one line "
            "per movie, in the order of the vectors"
        )
        raise DataError(str(Problem(path, numbers[again], wrong)))
    return found, movies


def _movie_format(path: Path) -> str:
    """Return the format of a movie file: that of a layout, or ids where it is a plain list."""
    suffix = path.suffix.lower()
    if suffix == ".dat":
        return "movielens-dat"
    if suffix in tabular.PARQUET:
        return _movie_table_format(path)
    _, line = next(read_lines(path, latin1=True), (1, None))
    first = line or ""
    names = [name.strip() for name in first.split(",")]
    if suffix == ".item":
        return "recbole" if ":token" in first else "movielens-100k"
    if names == ["movieId", "title", "genres"]:
        return "movielens-csv"
    if suffix in tabular.SUFFIXES and not any(mark in first for mark in tabular.DELIMITERS):
        return "ids"
    return _movie_table_format(path)


def _movie_table_format(path: Path) -> str:
    table = tabular.open_table(path, {})
    found = ", ".join(table.names[:12])
    if tabular.is_rating_table(table):
        raise UsageError(f"{path}: is a file of ratings (columns {found}); name that of the movies")
    if "movie" not in table.roles:
        raise UsageError(
            f"{path}, line 1: cannot tell the movie column, found {found}; name it movie_id in the file"
        )
    return "table"


def _plain_ids(path: Path) -> Iterator[MovieLine]:
    """Yield the ids of a list; a first line that is the name of such a column is none."""
    for number, text in read_lines(path):
        if text is None:
            yield MovieLine.bad(number, "is not valid UTF-8; convert the file to UTF-8")
        elif number > 1 or not tabular.names_movies(text):
            yield MovieLine(number, text.strip().strip('"'), Movie())
