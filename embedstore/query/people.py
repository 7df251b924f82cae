"""Reading who is asked about: histories and lists of people, from text and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from embedstore.data.features import MovieId, Vocabulary
from embedstore.errors import DataError, EmbedstoreError, UsageError
from embedstore.query.recommend import Person, known_rows
from embedstore.runs.run import Run

__all__ = ["parse_history", "parse_user", "read_history", "read_people"]


def parse_history(text: str, run: Run) -> list[MovieId]:
    """Return the movie ids of a list like 50,181,258. Ids of another kind stay text: unknown movies.

    Raises UsageError where the list is empty.
    """
    ids = [_movie_id(part, run.movies) for part in text.replace(",", " ").split()]
    if not ids:
        raise UsageError("the history is empty; expected movie ids, as in --history 50,181,258")
    return ids


def parse_user(text: str, run: Run) -> Person:
    """Return the known user that text names. Raises NotFoundError where it cannot be one."""
    user_id = run.users.parse(text.strip())
    if user_id is None or run.users.row(user_id) < 0:
        raise run.unknown_user(repr(text.strip()))
    return Person(user_id=user_id)


def read_history(lines: Iterable[str], run: Run, *, name: str) -> list[MovieId]:
    """Return the movie ids of a history file, one or several (with commas or blanks) on a line."""
    try:
        text = " ".join(lines)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 text ({error.reason}); expected one movie id per line"
        ) from error
    if not text.strip():
        raise UsageError(f"{name} is empty; expected one movie id per line")
    return parse_history(text, run)


def read_people(
    path: Path, run: Run, *, skip: Callable[[EmbedstoreError], None] | None = None
) -> Iterator[Person]:
    """Yield the people of a users file: JSON lines for .jsonl, else one user id per line.

    A JSON line holds user_id, or history (a list of movie ids, oldest first). A person who cannot
    be answered is handed to skip and left out.

    Raises, where skip is None, DataError for a line that is not such a person, NotFoundError for an
    unknown user and UsageError for a history without a known movie, each with file and line.
    """
    json_lines = path.suffix.lower() in (".jsonl", ".ndjson")
    read = _json_person if json_lines else parse_user
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                text = line.strip()
                if not text or (number == 1 and not json_lines and text.lower() == "user_id"):
                    continue
                try:
                    person = read(text, run)
                except EmbedstoreError as error:
                    placed = type(error)(f"{path}, line {number}: {error}")
                    if skip is None:
                        raise placed from error
                    skip(placed)
                    continue
                yield person
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason}); expected one user id per line"
        ) from error
    except OSError as error:
        raise DataError(f"users file {path} cannot be read: {error.strerror}") from error


def _json_person(text: str, run: Run) -> Person:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("user_id"), int | str):
        return parse_user(str(content["user_id"]), run)
    history = content.get("history") if isinstance(content, dict) else None
    if not isinstance(history, list) or not all(isinstance(movie_id, int | str) for movie_id in history):
        raise DataError('expected a JSON object with "user_id" or with "history", a list of movie ids')
    person = Person(history=[_movie_id(str(movie_id), run.movies) for movie_id in history])
    known_rows(run, person)
    return person


def _movie_id(text: str, movies: Vocabulary) -> MovieId:
    parsed = movies.parse(text)
    return text if parsed is None else parsed
