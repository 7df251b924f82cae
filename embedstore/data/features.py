"""Vocabularies and bags: the one definition that training and serving share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Bags", "Ids", "MovieId", "Rows", "Vocabulary"]

MovieId = int | str
Ids = npt.NDArray[Any]  # int64, uint64 or str_
Rows = npt.NDArray[np.int64]


class Vocabulary:
    """Distinct ids in ascending order; the position of an id is its row.

    The order comes from sorting, so it is the same in every process. Integer ids are held as
    int64 (uint64 where one needs it), all others as strings.

    Raises ValueError where values are not one-dimensional, strictly ascending and integer or str.
    """

    def __init__(self, values: Ids) -> None:
        if values.ndim != 1 or values.dtype.kind not in "iuU":
            raise ValueError(
                f"ids must be a one-dimensional integer or str array, received {values.dtype} {values.shape}"
            )
        if values.size > 1 and not bool(np.all(values[1:] > values[:-1])):
            raise ValueError("ids must be distinct and in ascending order")
        self.values = values

    @classmethod
    def of(cls, values: Ids) -> Vocabulary:
        """Return the vocabulary of the distinct values, in any order given."""
        return cls(np.unique(values))

    def __len__(self) -> int:
        return int(self.values.size)

    @property
    def integer(self) -> bool:
        """Whether the ids are integers."""
        return self.values.dtype.kind in "iu"

    def rows(self, values: Sequence[MovieId] | Ids) -> Rows:
        """Return the row of every value, shape (len(values),); -1 where it is unknown."""
        wanted = self._as_ids(values)
        if not self.values.size or not wanted.size:
            return np.full(wanted.shape, -1, dtype=np.int64)
        rows = np.searchsorted(self.values, wanted)
        rows[rows == self.values.size] = 0
        rows[self.values[rows] != wanted] = -1
        return rows

    def row(self, value: MovieId) -> int:
        """Return the row of one value, -1 where it is unknown."""
        return int(self.rows([value])[0])

    def ids(self, rows: Rows) -> list[MovieId]:
        """Return the ids at rows, as Python integers or strings."""
        found: list[MovieId] = self.values[rows].tolist()
        return found

    def parse(self, text: str) -> MovieId | None:
        """Return the id that a person typed, None where it cannot be one of this kind."""
        if not self.integer:
            return text
        return int(text) if text.isascii() and text.isdigit() else None

    def _as_ids(self, values: Sequence[MovieId] | Ids) -> Ids:
        if not self.integer:
            return np.asarray([str(value) for value in values], dtype=np.str_)
        if isinstance(values, np.ndarray) and values.dtype == self.values.dtype:
            return values
        # An id outside the type, or of another kind, is unknown: no id here is negative by accident.
        info = np.iinfo(self.values.dtype)
        absent = info.max if self.values.size and self.values[-1] != info.max else info.min
        inside = [
            int(value)
            if isinstance(value, int | np.integer) and info.min <= int(value) <= info.max
            else absent
            for value in values
        ]
        return np.asarray(inside, dtype=self.values.dtype)


class Bags(NamedTuple):
    """Histories of n_users users as movie rows in CSR form: bag i is rows[offsets[i]:offsets[i + 1]].

    rows: int64, shape (n_rated,), oldest first. offsets: int64, shape (n_users + 1,).
    """

    rows: Rows
    offsets: Rows

    @classmethod
    def of(cls, histories: Iterable[Sequence[int] | Rows]) -> Bags:
        """Return the bags of histories that are given as sequences of movie rows."""
        parts = [np.asarray(history, dtype=np.int64) for history in histories]
        sizes = np.fromiter((part.size for part in parts), dtype=np.int64, count=len(parts))
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return cls(np.concatenate(parts) if parts else np.zeros(0, np.int64), offsets)

    def __len__(self) -> int:  # the number of users, not of fields
        return int(self.offsets.size - 1)

    @property
    def sizes(self) -> Rows:
        """The number of movies of every history, shape (n_users,)."""
        return np.diff(self.offsets)

    def where(self, mask: npt.NDArray[np.bool_]) -> Bags:
        """Return the bags of the movies that mask, shape (n_rated,), marks; some may be empty."""
        bounds = np.concatenate([[0], np.cumsum(mask)]).astype(np.int64)
        return Bags(self.rows[mask], bounds[self.offsets])

    def of_users(self, mask: npt.NDArray[np.bool_]) -> Bags:
        """Return the bags of the users that mask, shape (n_users,), marks."""
        return Bags(self.rows[np.repeat(mask, self.sizes)], np.append(0, np.cumsum(self.sizes[mask])))

    def part(self, start: int, stop: int) -> Bags:
        """Return the bags start .. stop - 1."""
        offsets = self.offsets[start : stop + 1]
        return Bags(self.rows[offsets[0] : offsets[-1]], offsets - offsets[0])

    def newest(self, count: int) -> Bags:
        """Return the bags of the last count movies of every history."""
        age = np.repeat(self.offsets[1:], self.sizes) - 1 - np.arange(self.rows.size)  # 0 for the newest
        return self.where(age < count)
