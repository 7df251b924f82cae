"""What a collection holds against what its run says, point by point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Rows
from embedstore.runs.run import Run
from embedstore.stores.base import Progress, Store
from embedstore.stores.contract import INDEXES, PointBatch, PointId, point_id, points_at

__all__ = ["Difference", "compare", "everything"]

_REASONS_KEPT = 20
_IDS = 1 << 14  # made into keys at a time


@dataclass(frozen=True)
class Difference:
    """Where a collection differs from its run. reasons tells of the first of them, one sentence each.

    missing, different: rows of the run, ascending. extra: points that the run does not have.
    """

    missing: Rows
    different: Rows
    extra: Sequence[PointId]
    reasons: Sequence[str]
    indexes_missing: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.missing.size or self.different.size or self.extra or self.indexes_missing)

    @property
    def rows(self) -> Rows:
        """The rows to write, ascending."""
        return np.union1d(self.missing, self.different)


def everything(run: Run) -> Difference:
    """Return how an empty collection differs from run."""
    none = np.zeros(0, np.int64)
    return Difference(np.arange(len(run.movies), dtype=np.int64), none, [], [])


def compare(run: Run, store: Store, name: str, *, progress: Progress | None = None) -> Difference:
    """Return where the collection differs from run: ids, vectors bit by bit, payload, payload indexes.

    Reads every point, a bounded number at a time.
    """
    n = len(run.movies)
    row_of = _row_lookup(run)
    seen = np.zeros(n, dtype=bool)
    different = [np.zeros(0, np.int64)]
    extra: list[PointId] = []
    reasons: list[str] = []
    read = 0
    for batch in store.scroll(name):
        rows = row_of(batch.ids)
        known = np.flatnonzero(rows >= 0)
        for position in np.flatnonzero(rows < 0).tolist():
            extra.append(batch.ids[position])
            if len(reasons) < _REASONS_KEPT:
                reasons.append(f"point {batch.ids[position]} is not in run {run.run_id}")
        seen[rows[known]] = True
        expected = points_at(run, rows[known])
        unequal = _unequal(batch, known, expected)
        different.append(rows[np.array([position for position, _ in unequal], dtype=np.int64)])
        for position, reason in unequal[: _REASONS_KEPT - len(reasons)]:
            reasons.append(f"point {batch.ids[position]} {reason}")
        read += len(batch)
        if progress is not None:
            progress("comparing", min(read, n), n)
    missing = np.flatnonzero(~seen)
    reasons += [
        f"point {point_id(run.movies.ids(missing[k : k + 1])[0])} is missing"
        for k in range(min(missing.size, _REASONS_KEPT - len(reasons)))
    ]
    found = store.indexes(name)
    absent = [field for field, kind in INDEXES.items() if found.get(field) != kind]
    reasons += [f"the payload index of {field} is missing" for field in absent]
    return Difference(missing, np.sort(np.concatenate(different)), extra, reasons, absent)


def _row_lookup(run: Run) -> Callable[[Sequence[PointId]], Rows]:
    movies = run.movies
    if movies.integer and (not len(movies) or int(movies.values[0]) >= 0):
        return movies.rows
    blocks = range(0, len(movies), _IDS)
    keys = np.concatenate(
        [_keys([point_id(i) for i in movies.values[start : start + _IDS].tolist()]) for start in blocks]
    )
    order = np.argsort(keys)
    ranked = keys[order]

    def rows_of(ids: Sequence[PointId]) -> Rows:
        wanted = _keys(ids)
        at = np.minimum(np.searchsorted(ranked, wanted), ranked.size - 1)
        return np.where(ranked[at] == wanted, order[at], -1)

    return rows_of


def _keys(ids: Sequence[PointId]) -> npt.NDArray[np.bytes_]:
    """Return point ids, integers and UUIDs, as an array that sorts: a tenth of the memory of a dict."""
    return np.array([str(key) for key in ids], dtype="S36")


def _unequal(batch: PointBatch, known: npt.NDArray[np.int64], expected: PointBatch) -> list[tuple[int, str]]:
    """Return the positions in batch, ascending, of the points that are not as expected, and why."""
    found: dict[int, str] = {}
    for position, payload in zip(known.tolist(), expected.payloads, strict=True):
        if not _same(batch.payloads[position], payload):
            found[position] = _describe(batch.payloads[position], payload)
    arrays = [("movie vector", batch.movie_vectors, expected.movie_vectors)]
    if batch.history_vectors is not None and expected.history_vectors is not None:
        arrays.append(("history vector", batch.history_vectors, expected.history_vectors))
    for what, stored, wanted in arrays:
        if known.size == len(stored) and stored.tobytes() == wanted.tobytes():
            continue
        bits = stored[known].view(np.uint32) != np.ascontiguousarray(wanted).view(np.uint32)
        for k in np.flatnonzero(bits.any(axis=1)).tolist():
            dimension = int(np.argmax(bits[k]))
            found.setdefault(
                int(known[k]),
                f"has another {what}: dimension {dimension} is {stored[known[k], dimension]!s}, "
                f"expected {wanted[k, dimension]!s}",
            )
    return sorted(found.items())


def _same(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    # 1990.0 == 1990 in Python, but the index of year finds only the integer.
    return (
        stored == wanted
        and type(stored["movie_id"]) is type(wanted["movie_id"])
        and type(stored["year"]) is type(wanted["year"])
        and type(stored["popularity"]) is type(wanted["popularity"])
    )


def _describe(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for key in [*wanted, *(key for key in stored if key not in wanted)]:
        if key not in stored:
            return f"has no {key} in its payload, expected {wanted[key]!r}"
        if key not in wanted:
            return f"has {key} in its payload, which the contract does not know"
        if stored[key] != wanted[key] or type(stored[key]) is not type(wanted[key]):
            return f"has {key} {stored[key]!r}, expected {wanted[key]!r}"
    return "has another payload"
