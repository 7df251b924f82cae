"""Every problem of a data set, with file and line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import RatingColumns
from embedstore.errors import DataError
from embedstore.loaders.layout import Layout, find_layout, parse_columns, rating_file, read_movies, scan
from embedstore.loaders.reading import Problem, Scan, check_readable, scan_ratings

__all__ = ["Problem", "validate"]


def validate(path: str | Path, *, columns: str | Mapping[str, str] | None = None) -> list[Problem]:
    """Return every problem of a folder or rating file, in the order of the file; empty where it is sound.

    Errors keep the data set from being loaded. Warnings do not: a rating given twice (the newest
    counts), a movie listed twice, rated movies without a line in the movie file.
    Raises what load raises where no rating file can be told: NotFoundError, DataError, UsageError.
    """
    layout = find_layout(Path(path), parse_columns(columns))
    try:
        if layout.ratings.suffix.lower() not in (".parquet", ".pq"):
            check_readable(layout.ratings)
        ratings, found = scan(layout)
    except DataError as error:
        return [_whole_file(layout.ratings, error)]
    problems = list(found.problems) if found is not None else []
    problems += _duplicates(layout, ratings, found)
    problems.sort(key=lambda problem: problem.line or 0)
    if layout.movies is not None and ratings.ratings.size:
        problems += _movie_problems(layout, ratings)
    return problems


def _whole_file(path: Path, error: DataError) -> Problem:
    return Problem(path, None, str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, "))


def _movie_problems(layout: Layout, ratings: RatingColumns) -> list[Problem]:
    path = layout.movies or layout.ratings
    try:
        movies, problems = read_movies(layout, ratings.movie_ids)
    except DataError as error:
        return [_whole_file(path, error)]
    unknown = [movie_id for movie_id in np.unique(ratings.movie_ids).tolist() if movie_id not in movies]
    if unknown:
        some = ", ".join(map(str, unknown[:3])) + (", …" if len(unknown) > 3 else "")
        text = f"{len(unknown)} rated movies have no line here ({some}); they get neither title nor genres"
        problems.append(Problem(path, None, text, "warning"))
    return problems


def _duplicates(layout: Layout, ratings: RatingColumns, found: Scan | None) -> list[Problem]:
    """Return a warning for every rating of a pair of user and movie after its first."""
    later = _repeated(ratings)
    if not later.size:
        return []
    if found is None:  # the fast way keeps no line numbers
        found = scan_ratings(rating_file(layout))
        ratings, later = found.columns, _repeated(found.columns)
    return [
        Problem(
            layout.ratings,
            int(found.lines[at]),
            f"user {ratings.user_ids[at]} rated movie {ratings.movie_ids[at]} before; the newest counts",
            "warning",
        )
        for at in later.tolist()
    ]


def _repeated(ratings: RatingColumns) -> npt.NDArray[np.int64]:
    """Return the positions, ascending, of ratings whose user and movie stand further up already."""
    user_rows = np.unique(ratings.user_ids, return_inverse=True)[1]
    movies, movie_rows = np.unique(ratings.movie_ids, return_inverse=True)
    pairs = user_rows * max(movies.size, 1) + movie_rows
    order = np.argsort(pairs, kind="stable")
    again = np.flatnonzero(pairs[order][1:] == pairs[order][:-1]) + 1
    return np.sort(order[again])
