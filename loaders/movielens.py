"""The layouts of MovieLens: u.data (100K), :: (1M, 10M) and CSV (latest, 20M, 25M, 32M)."""

from __future__ import annotations

import csv
from pathlib import Path

from embedstore.data.dataset import Movie
from embedstore.loaders.movies import MovieLine, MovieLines, genres_of, split_year, year_of
from embedstore.loaders.reading import RatingFile, read_lines

__all__ = [
    "csv_movies",
    "csv_ratings",
    "dat_movies",
    "dat_ratings",
    "is_csv_header",
    "item_movies",
    "tab_ratings",
]

CSV_HEADER = ["userId", "movieId", "rating", "timestamp"]
# The flags of u.item, in the order of u.genre.
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
BEFORE_FLAGS = 5  # id, title, release date, video release date, URL


def tab_ratings(path: Path) -> RatingFile:
    """Return the columns of u.data: user, movie, rating, timestamp, tabs between them."""
    return RatingFile(path, "\t", 4, 0, 1, 2, 3, integer_ids=True)


def dat_ratings(path: Path) -> RatingFile:
    """Return the columns of ratings.dat: user::movie::rating::timestamp."""
    return RatingFile(path, "::", 4, 0, 1, 2, 3, integer_ids=True)


def csv_ratings(path: Path) -> RatingFile:
    """Return the columns of ratings.csv."""
    return RatingFile(path, ",", 4, 0, 1, 2, 3, header=True, integer_ids=True, quoted=True)


def is_csv_header(fields: list[str]) -> bool:
    """Whether the first line of a CSV file is that of a MovieLens ratings.csv."""
    return [name.strip() for name in fields] == CSV_HEADER


def item_movies(path: Path) -> MovieLines:
    """Yield the movies of u.item: latin-1, | between fields, one 0/1 flag per genre."""
    genres = _genre_names(path.with_name("u.genre"))
    width = BEFORE_FLAGS + len(genres)
    for number, line in read_lines(path, latin1=True):
        fields = (line or "").split("|")
        flags = fields[BEFORE_FLAGS:]
        if len(fields) != width:
            yield MovieLine.bad(number, f"has {len(fields)} fields, expected {width}")
        elif not set(flags) <= {"0", "1"}:
            yield MovieLine.bad(number, "has a genre flag that is neither 0 nor 1")
        else:
            title, year = split_year(fields[1])
            named = (
                name for name, flag in zip(genres, flags, strict=True) if flag == "1" and name != "unknown"
            )
            yield MovieLine(number, fields[0], Movie(title, year or year_of(fields[2]), tuple(named)))


def _genre_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return GENRES
    lines = (line.partition("|")[0] for _, line in read_lines(path, latin1=True) if line)
    return tuple(name for name in lines if name) or GENRES


def dat_movies(path: Path) -> MovieLines:
    """Yield the movies of movies.dat: id::title (year)::genre|genre, UTF-8 or latin-1."""
    for number, line in read_lines(path, latin1=True):
        movie_id, first, rest = (line or "").partition("::")
        title, second, genres = rest.rpartition("::")
        if not first or not second:
            count = (line or "").count("::") + 1
            yield MovieLine.bad(number, f"has {count} fields, expected 3 with '::' between them")
        else:
            yield MovieLine(number, movie_id, Movie(*split_year(title), genres_of(genres, "|")))


def csv_movies(path: Path) -> MovieLines:
    """Yield the movies of movies.csv: movieId,title,genres with quotes where a title has a comma."""
    for number, line in read_lines(path):
        if line is None:
            yield MovieLine.bad(number, "is not valid UTF-8; convert the file to UTF-8")
            continue
        try:
            fields = next(csv.reader([line]))
        except csv.Error as error:
            yield MovieLine.bad(number, f"cannot be read as CSV: {error}")
            continue
        if number == 1:
            if [name.strip() for name in fields[:2]] != ["movieId", "title"]:
                yield MovieLine.bad(number, "is not the header movieId,title,genres")
        elif len(fields) != 3:
            yield MovieLine.bad(number, f"has {len(fields)} fields, expected 3")
        else:
            yield MovieLine(number, fields[0], Movie(*split_year(fields[1]), genres_of(fields[2], "|")))
