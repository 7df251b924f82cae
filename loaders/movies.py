"""What movie files share: the year in a title, lists of genres, lines that are wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from embedstore.data.dataset import Movie

__all__ = ["MovieLine", "genres_of", "split_year", "year_of"]

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
