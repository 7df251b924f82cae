"""What movie files share: the year in a title, lists of genres, lines that are wrong."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedstore.data.dataset import Movie
from embedstore.data.features import Ids

__all__ = ["MovieLine", "PackedMovies", "genres_of", "split_year", "year_of"]

# "Heat (1995)", "Forever Knight (1992-1996)", "The Great Giving (1995) (V)"
YEAR_AT_END = re.compile(
    r"^(?P<title>.*\S)\s*\((?P<year>\d{4})(?:\s*[-–]\s*(?:\d{4})?)?\)\s*(?P<medium>\((?:V|TV)\))?$"
)
NO_GENRE = frozenset({"(no genres listed)", "unknown", "n/a", "none", "nan"})
FIRST_YEAR, LAST_YEAR = 1850, 2150


@dataclass(frozen=True)
class MovieLine:
    """One line of a movie file: the id as it is written there, and what is known; or what is wrong."""

    line: int
    movie_id: str
    movie: Movie
    wrong: str | None = None

    @classmethod
    def bad(cls, line: int, wrong: str) -> MovieLine:
        return cls(line, "", Movie(), wrong)


MovieLines = Iterator[MovieLine]


class PackedMovies(Mapping[Any, Movie]):
    """A table of movies that holds bytes, a tenth of the memory of objects, and parses what is asked for.

    Movies are appended one after the other, and then index gives their ids, in that order.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        self._ids: Ids = np.zeros(0, np.int64)
        self._order = np.zeros(0, np.int64)

    def append(self, movie: Movie) -> None:
        self._text += json.dumps([movie.title, movie.year, movie.genres]).encode()
        self._ends.append(len(self._text))

    def index(self, ids: Ids) -> tuple[int, int | None]:
        """Take the ids of the movies; return where one stands first and again, None where none does."""
        self._ids, self._order = ids, np.argsort(ids, kind="stable")
        ordered = ids[self._order]
        twice = self._order[1:][ordered[1:] == ordered[:-1]]
        if not twice.size:
            return 0, None
        again = int(twice.min())
        return int(np.flatnonzero(ids == ids[again])[0]), again

    def __getitem__(self, movie_id: Any) -> Movie:
        text = self._ids.dtype.kind == "U"
        if isinstance(movie_id, str) == text and (text or isinstance(movie_id, int | np.integer)):
            place = int(np.searchsorted(self._ids, movie_id, sorter=self._order))
            row = int(self._order[place]) if place < self._order.size else -1
            if row >= 0 and self._ids[row] == movie_id:
                title, year, genres = json.loads(self._text[self._ends[row] : self._ends[row + 1]])
                return Movie(title, year, tuple(genres))
        raise KeyError(movie_id)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ids.tolist())

    def __len__(self) -> int:
        return int(self._ids.size)


def split_year(title: str) -> tuple[str | None, int | None]:
    """Return the title without the year in brackets at its end, and that year; each None where missing."""
    title = title.strip()
    found = YEAR_AT_END.match(title)
    year = None if found is None else year_of(found["year"])
    if found is None or year is None:
        return title or None, None
    return f"{found['title']} {found['medium']}" if found["medium"] else found["title"], year


def year_of(text: str) -> int | None:
    """Return the year that a text is or holds ('1995', '01-Jan-1995', '1995-01-01'), else None."""
    found = re.search(r"(?<!\d)(\d{4})(?!\d)", text)
    if found is None:
        return None
    year = int(found[1])
    return year if FIRST_YEAR <= year <= LAST_YEAR else None


def genres_of(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Return the genres of a list; separator None: the first of | ; , that occurs in it."""
    if separator is None:
        separator = next((mark for mark in "|;," if mark in text), "|")
    parts = (part.strip() for part in text.split(separator))
    return tuple(dict.fromkeys(part for part in parts if part and part.casefold() not in NO_GENRE))
