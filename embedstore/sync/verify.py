"""Verify: read a collection back and compare it with its run."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.errors import RunError, StoreError, StoreUnreachableError, VerificationError
from embedstore.runs.run import Run
from embedstore.stores.base import Filters, Progress, Store
from embedstore.stores.contract import Metadata, collection_name
from embedstore.sync.compare import compare

__all__ = [
    "VerifyReport",
    "check",
    "check_recall",
    "good",
    "measure_recall",
    "mending",
    "told_of",
    "verify",
    "wrong_metadata",
]

_USERS = 16
_K = 100
_LEAST_RECALL = 0.97
_LEAST_RECALL_AT_10 = 0.99
_COUNTED_VALUES = 64
# Rows read at a time, and the newest movies of a user that make a query: a row that is read by itself maps
# up to 2 MB of its file, which count as memory of the process until they are given back.
_SCATTERED = 32
_BLOCK = 1 << 14  # rows scored at a time
_LINES = 1000  # movies counted at a time


@dataclass(frozen=True)
class VerifyReport:
    """What was read back and found equal. recall: see measure_recall."""

    collection: str
    run_id: str
    count: int
    recall: Mapping[str, Any]


def verify(
    store: Store, alias_or_collection: str, run: Run, *, progress: Progress | None = None
) -> VerifyReport:
    """Compare every point of a collection with run, count through its indexes, and measure its recall.

    Raises VerificationError that names the first point that differs, NotFoundError where there is
    neither such an alias nor such a collection, StoreError where the collection is not finished.
    """
    name = store.aliases().get(alias_or_collection, alias_or_collection)
    metadata = store.metadata(name)
    if metadata.reference != run.reference:
        raise VerificationError(
            f"collection {name!r} holds run {metadata.reference}, expected {run.reference}; "
            "verify it with its own run"
        )
    if metadata.state != "sealed":
        raise StoreError(f"collection {name!r} is not finished; finish it by {mending(name, run.reference)}")
    if metadata.fingerprint != run.fingerprint:
        raise VerificationError(
            f"collection {name!r} was made from other files of run {run.run_id} (fingerprint "
            f"{metadata.fingerprint[:12]}, expected {run.fingerprint[:12]}); restore the run or "
            "delete the collection"
        )
    if wrong := wrong_metadata(metadata, run):
        raise VerificationError(f"{wrong[0]}; repair it by {mending(name, run.reference)}")
    try:
        recall = check(run, store, name, progress=progress)
    except StoreUnreachableError:
        raise
    except StoreError as error:  # what cannot be read back is not what was written
        raise VerificationError(str(error)) from error
    return VerifyReport(name, run.run_id, len(run.movies), recall)


def mending(name: str, reference: str) -> str:
    """Return the command that makes collection name what its run says and leaves the aliases as they are."""
    alias = name.removesuffix(collection_name("", reference))
    return f"`{shlex.join(['embedstore', 'sync', reference, '--no-promote', '--alias', alias])}`"


def told_of(run: Run) -> dict[str, Any]:
    """Return what the metadata of every collection of run say of it."""
    return {
        "run_id": run.run_id,
        "dim": run.embedding_dim,
        "count": len(run.movies),
        "tower": run.manifest.tower,
        "debias": run.manifest.debias,
    }


def wrong_metadata(metadata: Metadata, run: Run) -> list[str]:
    """Return one sentence for everything that the metadata of a collection of run say wrongly of it."""
    return [
        f"the metadata of the collection have the {key} {getattr(metadata, key)}, expected {value}"
        for key, value in told_of(run).items()
        if getattr(metadata, key) != value
    ]


def check(run: Run, store: Store, name: str, *, progress: Progress | None = None) -> dict[str, Any]:
    """Return the recall of a collection that equals run.

    Raises VerificationError where it is not equal, or its search does not find what it should.
    """
    _check_points(run, store, name, progress)
    _check_indexes(run, store, name)
    return check_recall(run, store, name)


def check_recall(run: Run, store: Store, name: str) -> dict[str, Any]:
    """Return what measure_recall returns. Raises VerificationError where it is not good."""
    recall = measure_recall(run, store, name)
    if not good(recall):
        raise VerificationError(
            f"collection {name!r} finds {recall['value']:.3f} of the true top {recall['k']} and "
            f"{recall['at_10']:.3f} of the top 10, expected {_LEAST_RECALL} and {_LEAST_RECALL_AT_10}; "
            "rebuild it: delete the collection and run `embedstore sync`"
        )
    return recall


def good(recall: Mapping[str, Any]) -> bool:
    """Whether a default search finds enough of the true best movies to be served."""
    return bool(recall["value"] >= _LEAST_RECALL and recall["at_10"] >= _LEAST_RECALL_AT_10)


def _check_points(run: Run, store: Store, name: str, progress: Progress | None) -> None:
    count = store.count(name)
    difference = compare(run, store, name, progress=progress)
    if difference:
        total = difference.missing.size + difference.different.size + len(difference.extra)
        more = f" ({total} points differ)" if total > 1 else ""
        raise VerificationError(
            f"collection {name!r} is not run {run.run_id}: {difference.reasons[0]}{more}; "
            f"repair it by {mending(name, run.reference)}"
        )
    if count != len(run.movies):
        raise VerificationError(
            f"collection {name!r} counts {count} points, expected {len(run.movies)}; "
            f"repair it by {mending(name, run.reference)}"
        )


def _check_indexes(run: Run, store: Store, name: str) -> None:
    """Count through the payload indexes, the commonest values of each, against the catalog."""
    genres: Counter[str] = Counter()
    years: Counter[int] = Counter()
    for start in range(0, len(run.movies), _LINES):
        lines = run.catalog.lines(np.arange(start, min(start + _LINES, len(run.movies))))
        genres.update([genre for line in lines for genre in set(line["genres"])])
        years.update([line["year"] for line in lines if line["year"] is not None])
        run.release()
    expected = [
        (f"genre {genre!r}", Filters(genres=(genre,)), n) for genre, n in genres.most_common(_COUNTED_VALUES)
    ]
    expected += [
        (f"year {year}", Filters(years=(("=", year),)), n) for year, n in years.most_common(_COUNTED_VALUES)
    ]
    for what, filters, wanted in expected:
        found = store.count(name, filters=filters)
        if found != wanted:
            raise VerificationError(
                f"collection {name!r} finds {found} points of {what} through its index, expected {wanted}; "
                f"repair it by {mending(name, run.reference)}"
            )


def measure_recall(run: Run, store: Store, name: str) -> dict[str, Any]:
    """Return the recall of the default search, on user vectors of the run, against exact search.

    k is 100, or the size of a smaller catalog; value is the recall at k, at_10 that of the first 10.
    """
    queries = _user_vectors(run)
    k = min(_K, len(run.movies))
    hits = store.search_batch(name, queries, limit=k)
    best, largest = _best_scores(run, queries, k)
    right = {k: 0, min(10, k): 0}
    for psi, found, scores, most_of_all in zip(queries, hits, best, largest, strict=True):
        slack = 1e-5 * max(1.0, float(most_of_all))  # near ties may swap in float32
        rows = run.movies.rows([hit.movie_id for hit in found])
        row = _vectors_at(run, rows) @ psi  # (k,)
        for most in right:
            right[most] += int((row[:most] >= scores[-most] - slack).sum())
    value, at_10 = (right[most] / (most * len(queries)) for most in (k, min(10, k)))
    return {"k": k, "value": value, "at_10": at_10}


def _vectors_at(run: Run, rows: Rows) -> npt.NDArray[np.float32]:
    parts = [np.zeros((0, run.embedding_dim), np.float32)]
    for start in range(0, rows.size, _SCATTERED):
        parts.append(run.movie_vectors[rows[start : start + _SCATTERED]])
        run.release()
    return np.concatenate(parts)


def _best_scores(
    run: Run, queries: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the k highest scores of every query, ascending, and its largest magnitude, a block at a time."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    largest = np.zeros(len(queries), np.float32)
    for start in range(0, len(run.movies), _BLOCK):
        scores = queries @ run.movie_vectors[start : start + _BLOCK].T  # (n_queries, block)
        largest = np.maximum(largest, np.abs(scores).max(axis=1))
        best = np.partition(np.concatenate([best, scores], axis=1), -k, axis=1)[:, -k:]
        run.release()
    return np.sort(best, axis=1), largest


def _user_vectors(run: Run) -> npt.NDArray[np.float32]:
    """Return psi of a few users spread over the run; movie vectors where the run has no tower or history."""
    if run.manifest.tower != "none":
        users = run.users.values[np.linspace(0, len(run.users) - 1, min(_USERS, len(run.users))).astype(int)]
        vectors = []
        for user_id in users.tolist():
            history = run.history(user_id)[-_SCATTERED:]
            if run.tower.knows(Bags.of([history]))[0]:
                vectors.append(run.tower(history))
                run.release()
        if vectors:
            psi = np.stack(vectors)
            if not np.isfinite(psi).all():
                raise RunError(
                    f"the tower of run {run.run_id} makes NaN or infinity of a history; train again"
                )
            return psi
    picked = np.linspace(0, len(run.movies) - 1, min(_USERS, len(run.movies))).astype(int)
    return np.asarray(run.movie_vectors[picked])
