"""The door in: rating and movie files of several layouts, read into one Dataset.

movielens-100k  u.data and u.item           movielens-csv  ratings.csv and movies.csv (latest, 20M, 25M, 32M)
movielens-dat   ratings.dat and movies.dat  recbole        NAME.inter and NAME.item
table           any CSV, TSV or Parquet with named columns

The layout is detected from what a folder holds, never from its name.
"""

from __future__ import annotations

from pathlib import Path

from embedstore.data.dataset import Dataset
from embedstore.errors import NotFoundError, UsageError
from embedstore.loaders.layout import find_layout, movie_list, movie_table, parse_columns, read_columns
from embedstore.loaders.reading import Problem

__all__ = ["Problem", "detect", "load", "movie_list", "parse_columns", "resolve"]


def load(
    path: str | Path,
    *,
    columns: str | dict[str, str] | None = None,
    name: str | None = None,
    tie_seed: int = 0,
) -> Dataset:
    """Return the data set of a folder or of one rating file (with the movie file beside it, if there).

    columns: for tables, which column is what, as "user=uid,movie=iid,rating=stars" or a dict; what
    is left out is guessed from the names. A missing rating is 1.0, a missing timestamp 0.
    Raises DataError with file and line where something cannot be read, UsageError for a mapping that
    cannot be meant, NotFoundError where nothing is at path.
    """
    layout = find_layout(Path(path), parse_columns(columns))
    ratings = read_columns(layout)
    movies = movie_table(layout, ratings.movie_ids)
    source = {"format": layout.format, "ratings": layout.ratings.name}
    if layout.movies is not None:
        source["movies"] = layout.movies.name
    return Dataset.of(name or layout.name, ratings, movies, tie_seed=tie_seed, source=source)


def detect(path: str | Path) -> str:
    """Return the layout of a folder or file: a name of the list above; DataError where it is none."""
    return find_layout(Path(path), {}).format


def resolve(data: str | Path, data_dir: str | Path) -> Path:
    """Return where a data set is that a person named: a path, or a name of a folder in data_dir.

    Raises NotFoundError where neither is there.
    """
    from embedstore.loaders.fetch import PUBLISHED

    text = str(data)
    if not text.strip():
        raise UsageError("the name of the data set is empty; give a name or a path")
    named = Path(data_dir) / text
    plain = len(Path(text).parts) == 1 and text not in (".", "..")
    for candidate in [named, Path(text)] if plain else [Path(text)]:
        if candidate.exists():
            return candidate
    if plain and text in PUBLISHED:
        raise NotFoundError(f"data set {text!r} is not in {data_dir}; run `embedstore data fetch {text}`")
    where = f"neither in {data_dir} nor here" if plain else "not there"
    raise NotFoundError(
        f"data set {text!r} is {where}; check the path, or fetch one of {', '.join(PUBLISHED)} "
        "with `embedstore data fetch NAME`"
    )
