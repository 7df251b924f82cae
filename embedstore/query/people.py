"""Reading who is asked about: histories, vectors and lists of people, from text and files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import MovieId, Vocabulary
from embedstore.errors import DataError, EmbedstoreError, UsageError
from embedstore.query.recommend import Person, known_rows
from embedstore.runs.run import Run

__all__ = ["parse_excluded", "parse_history", "parse_user", "read_history", "read_people", "read_vectors"]

_NPY = b"\x93NUMPY"


def parse_history(text: str, run: Run) -> list[MovieId]:
    """Return the movie ids of a list like 50,181,258. Ids of another kind stay text: unknown movies.

    Raises UsageError where the list is empty.
    """
    ids = [_movie_id(part, run.movies) for part in text.replace(",", " ").split()]
    if not ids:
        raise UsageError("the history is empty; expected movie ids, as in --history 50,181,258")
    return ids


def parse_excluded(text: str) -> list[MovieId]:
    """Return the movie ids of a list like 50,181,258: a whole number as such and as text, of any run."""
    ids = text.replace(",", " ").split()
    return [*ids, *(int(part) for part in ids if part.isascii() and part.isdigit())]


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


def read_vectors(content: bytes, *, name: str) -> tuple[npt.NDArray[np.float32], str | None]:
    """Return the vector of a file, (width,), or all of several, (n, width), and their run where it is told.

    content: a .npy file, or text: JSON, what `embed` prints, numbers between blanks or commas. Raises
    DataError where it is nothing of these, or a number is not finite as float32.
    """
    expected = "expected a .npy file of numbers, or numbers as JSON or between blanks or commas"
    if not content.strip():
        raise DataError(f"{name} is empty; {expected}")
    try:
        vectors, run_id = (_npy(content), None) if content.startswith(_NPY) else _numbers(content.decode())
    except UnicodeDecodeError:
        raise DataError(f"{name} is neither a .npy file nor text; {expected}") from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, SyntaxError) as error:
        raise DataError(f"{name} cannot be read as a vector ({error}); {expected}") from error
    if vectors.ndim not in (1, 2) or not vectors.size:
        raise DataError(f"{name} has shape {vectors.shape}; expected (embedding_dim,) or (n, embedding_dim)")
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float32)
    if not (finite := np.isfinite(vectors)).all():
        place = [str(number) for number in np.argwhere(~finite)[0]]
        raise DataError(
            f"{name} holds NaN, infinity or more than a float32 can at [{', '.join(place)}]; "
            "expected finite numbers"
        )
    return vectors, run_id


def _npy(content: bytes) -> npt.NDArray[Any]:
    """Return the array of a .npy file; no object is ever made of one, and no memory beyond its size."""
    file = io.BytesIO(content)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    try:
        shape, fortran, dtype = read_header(file)
    except TokenError as error:  # NumPy has a second look at a header, for those of Python 2
        raise ValueError(f"its header is damaged: {error}") from error
    if dtype.kind not in "fiu":
        what = "Python objects, which are pickles and run code when read" if dtype.hasobject else str(dtype)
        raise ValueError(f"it holds {what}")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _numbers(text: str) -> tuple[npt.NDArray[Any], str | None]:
    try:
        content = json.loads(text)
    except ValueError:  # between blanks or commas, as NumPy prints it too
        content = [float(part) for part in text.strip().strip("[]").replace(",", " ").split()]
    told = content if isinstance(content, dict) else {"user_embedding": content}
    return np.atleast_1d(np.array(told["user_embedding"], np.float64)), told.get("run_id")


def read_people(
    path: Path, run: Run, *, skip: Callable[[EmbedstoreError], None] | None = None
) -> Iterator[Person]:
    """Yield the people of a users file: JSON lines for .jsonl, else one user id per line.

    A JSON line holds user_id, or history (a list of movie ids, oldest first). A person who cannot
    be answered is handed to skip and left out.

    Raises, where skip is None, DataError for a line that is not such a person, NotFoundError for an
    unknown user and UsageError for one without a known movie, each with file and line.
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
                    known_rows(run, person)
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
    return Person(history=[_movie_id(str(movie_id), run.movies) for movie_id in history])


def _movie_id(text: str, movies: Vocabulary) -> MovieId:
    parsed = movies.parse(text)
    return text if parsed is None else parsed
