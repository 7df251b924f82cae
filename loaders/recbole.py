"""RecBole's atomic files: tabs, and a header of name:type."""

from __future__ import annotations

from pathlib import Path

from embedstore.data.dataset import Movie
from embedstore.errors import DataError
from embedstore.loaders.movies import MovieLine, MovieLines, genres_of, split_year, year_of
from embedstore.loaders.reading import RatingFile, check_readable, read_lines

__all__ = ["inter_ratings", "item_movies"]

TYPES = frozenset({"token", "token_seq", "float", "float_seq"})
NAMES = {
    "user": ("user_id", "user", "userid"),
    "movie": ("item_id", "movie_id", "item", "itemid"),
    "rating": ("rating", "stars", "score"),
    "timestamp": ("timestamp", "time"),
    "title": ("movie_title", "title", "item_name", "name"),
    "year": ("release_year", "year"),
    "genres": ("class", "genre", "genres", "categories"),
}


def inter_ratings(path: Path, columns: dict[str, str]) -> RatingFile:
    """Return the columns of an .inter file; columns maps roles to names where they are not RecBole's own."""
    names = _header(path)
    at = {role: _position(names, role, columns, path) for role in ("user", "movie", "rating", "timestamp")}
    if at["user"] is None or at["movie"] is None:
        missing = "user_id" if at["user"] is None else "item_id"
        raise DataError(
            f"{path}, line 1: there is no column {missing}:token, found {', '.join(names)}; "
            "name it with --columns user=NAME,movie=NAME"
        )
    return RatingFile(
        path, "\t", len(names), at["user"], at["movie"], at["rating"], at["timestamp"], header=True
    )


def item_movies(path: Path, columns: dict[str, str]) -> MovieLines:
    """Yield the movies of an .item file; the year of a title counts where there is no year column."""
    names = _header(path)
    movie, title, year, genres = (
        _position(names, role, columns, path, must=False) for role in ("movie", "title", "year", "genres")
    )
    if movie is None:
        yield MovieLine.bad(1, f"there is no column item_id:token, found {', '.join(names)}")
        return
    for number, line in read_lines(path):
        if number == 1:
            continue
        if line is None:
            yield MovieLine.bad(number, "is not valid UTF-8; convert the file to UTF-8")
            continue
        fields = line.split("\t")
        if len(fields) != len(names):
            yield MovieLine.bad(number, f"has {len(fields)} fields, expected {len(names)}")
            continue
        named, titled_year = split_year(fields[title]) if title is not None else (None, None)
        known_year = year_of(fields[year]) if year is not None else None
        listed = genres_of(fields[genres], " ") if genres is not None else ()
        yield MovieLine(number, fields[movie], Movie(named, known_year or titled_year, listed))


def _header(path: Path) -> list[str]:
    """Return the names of the columns; DataError where the first line is no header of name:type."""
    check_readable(path)
    _, line = next(read_lines(path))
    names = []
    for part in (line or "").split("\t"):
        name, _, kind = part.rpartition(":")
        if not name or kind not in TYPES:
            raise DataError(
                f"{path}, line 1: {part[:40]!r} is not name:type with a type of {', '.join(sorted(TYPES))}; "
                "expected RecBole's header"
            )
        names.append(name)
    return names


def _position(
    names: list[str], role: str, columns: dict[str, str], path: Path, *, must: bool = True
) -> int | None:
    if role in columns:
        if columns[role] in names:
            return names.index(columns[role])
        if must:
            raise DataError(f"{path}, line 1: there is no column {columns[role]!r}, found {', '.join(names)}")
        return None
    return next((names.index(name) for name in NAMES[role] if name in names), None)
