"""What a collection is, as pure data. Public: other apps read collections by this contract.

alias `movies`  ->  collection `movies__<run_id>`, debiased `movies__<run_id>_debias0.50`
unnamed vector  V_j, DOT, float32; of a debiased collection V_j norm(V_j)^-debias
vector history  E_j, DOT, float32, only where the tower is additive: psi(X) is the mean of E_j over X
point id        movie_id where it is an unsigned integer, else uuid5(NAMESPACE, movie_id)
payload         movie_id, title, year, genres, popularity, run_id; title and year may be null;
                cold: true on movies without ratings alone, whose vectors are predicted
payload index   genres (keyword), year (integer)
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from embedstore.data.features import MovieId, Rows
from embedstore.errors import StoreError, UsageError
from embedstore.runs.manifest import reference_of

if TYPE_CHECKING:
    from embedstore.runs.run import Run

__all__ = [
    "ANY_SPREAD",
    "EXACT",
    "HEARTBEAT_SECONDS",
    "HISTORY_VECTOR",
    "INDEXES",
    "LARGEST_DIM",
    "NAMESPACE",
    "SCHEMA_VERSION",
    "STALE_SECONDS",
    "CollectionSpec",
    "Metadata",
    "PointBatch",
    "PointId",
    "SearchIndex",
    "Spread",
    "check_batch",
    "collection_name",
    "moment_of",
    "now",
    "payload",
    "point_id",
    "points",
    "points_at",
    "rows_of",
    "seconds_since",
    "valid_alias",
]

SCHEMA_VERSION = 1
HISTORY_VECTOR = "history"
HEARTBEAT_SECONDS = 5.0  # between two signs of life of who builds a collection
STALE_SECONDS = 30.0  # without one, until another may take over
INDEXES = {"genres": "keyword", "year": "integer"}
NAMESPACE = uuid.UUID("6f1b0f0e-6d0c-5a53-9c0e-0a3a7c1a5b1d")

PointId = int | str
Matrix = npt.NDArray[np.float32]
State = Literal["building", "sealed", "deleting"]

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_LARGEST_POINT_ID = 2**64 - 1
LARGEST_DIM = 65_536  # of Qdrant; a larger one would only take memory
_SHOWN = 50  # characters of a value that cannot be meant


@dataclass(frozen=True)
class Spread:
    """How a cluster spreads a collection; None leaves it to the server.

    write_consistency: how many replicas must have a write before it is acknowledged.
    """

    shards: int | None = None
    replicas: int | None = None
    write_consistency: int | None = None

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if value is not None and value < 1:
                raise UsageError(f"{key.replace('_', ' ')} is {value}; expected 1 or more")
        if (self.write_consistency or 1) > (self.replicas or self.write_consistency or 1):
            raise UsageError(
                f"a write cannot be on {self.write_consistency} of {self.replicas} replicas; "
                "lower the write consistency or add replicas"
            )


ANY_SPREAD = Spread()


@dataclass(frozen=True)
class CollectionSpec:
    """The shape of a collection: the vectors' width, and whether there are history vectors."""

    dim: int
    additive: bool
    spread: Spread = ANY_SPREAD


@dataclass(frozen=True)
class SearchIndex:
    """How the movie vectors are searched by default: exactly where m is 0, else by HNSW."""

    m: int = 0
    ef: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"exact": self.m == 0, "m": self.m, "ef": self.ef}


EXACT = SearchIndex()


@dataclass(frozen=True)
class Metadata:
    """What a collection says about itself. created_at and heartbeat are UTC, ISO 8601.

    writer: who builds it, host:pid:token, None once sealed. pinned: at, who and why it is kept from gc.
    origin: host:path of the run that it was made from. metrics: those of the run, by name, measured on
    the users whom measured_on identifies.
    """

    state: State
    run_id: str
    dim: int
    count: int
    tower: str  # additive, dense or none
    fingerprint: str
    created_at: str
    heartbeat: str
    tool_version: str
    search: Mapping[str, Any] = field(default_factory=EXACT.to_dict)
    recall: Mapping[str, Any] | None = None  # {"k", "value"}, measured before sealing
    schema: int = SCHEMA_VERSION
    debias: float | None = None  # A where V_j is scaled by norm(V_j)^-A
    writer: str | None = None
    pinned: Mapping[str, Any] | None = None
    origin: str | None = None
    metrics: Mapping[str, float] | None = None
    measured_on: str | None = None

    @property
    def reference(self) -> str:
        """What find_run takes for the run whose vectors these are."""
        return reference_of(self.run_id, self.debias)

    @property
    def spec(self) -> CollectionSpec:
        return CollectionSpec(self.dim, self.tower == "additive")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, name: str) -> Metadata:
        """Return the metadata of the collection name.

        Raises StoreError where it was written by a newer version, or a field that decides what the
        collection is, and whether it may be deleted, is missing or cannot be meant. Another field that
        cannot be meant is as if it was not there.
        """
        schema = content.get("schema")
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise StoreError(
                f"collection {name!r} has schema {schema}, this embedstore reads up to {SCHEMA_VERSION}; "
                "upgrade embedstore"
            )
        known = {part.name: content[part.name] for part in fields(cls) if part.name in content}
        missing = [key for key in _DECIDING if key not in known and key not in ("debias", "pinned")]
        if missing:
            raise StoreError(
                f"the metadata of collection {name!r} lack {', '.join(missing)}; delete the collection and "
                "run `embedstore sync` again"
            )
        for key, (expected, fits) in _DECIDING.items():
            if key in known and not fits(known[key]):
                raise StoreError(
                    f"the metadata of collection {name!r} have the {key} {_shown(known[key])}, expected "
                    f"{expected}; delete the collection and run `embedstore sync` again"
                )
        told = {key: value for key, value in known.items() if key in _DECIDING or _TOLD[key](value)}
        return cls(**{"created_at": "", "heartbeat": "", "tool_version": "", **told})


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# What fields of metadata hold, which other tools can write too.
_DECIDING: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "state": ("building, sealed or deleting", lambda value: value in ("building", "sealed", "deleting")),
    # It is a part of programs that `contract` writes to be pasted into a shell.
    "run_id": ("letters, digits, '_.-'", lambda value: _is_text(value) and bool(_RUN.fullmatch(value))),
    "dim": (
        f"an integer from 1 to {LARGEST_DIM}",
        lambda value: _is_integer(value, 1) and value <= LARGEST_DIM,
    ),
    "count": ("an integer", lambda value: _is_integer(value, 0)),
    "tower": ("additive, dense or none", lambda value: value in ("additive", "dense", "none")),
    "fingerprint": ("text", _is_text),
    "schema": ("an integer above 0", lambda value: _is_integer(value, 1)),
    "debias": ("a number or null", lambda value: value is None or _is_number(value)),
    "pinned": ("an object or null", lambda value: value is None or _is_object(value)),
}
_TOLD: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("created_at", "heartbeat", "tool_version", "writer", "origin", "measured_on"), _is_text),
    "search": _is_object,
    "recall": _is_object,
    "metrics": lambda value: _is_object(value) and all(map(_is_number, value.values())),
}


@dataclass(frozen=True)
class PointBatch:
    """Points, one per row. A vector that a point lacks is a row of NaN (in scrolled points alone).

    movie_vectors, history_vectors: float32, shape (len(ids), dim).
    """

    ids: Sequence[PointId]
    movie_vectors: Matrix
    history_vectors: Matrix | None
    payloads: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)


def check_batch(name: str, batch: PointBatch, spec: CollectionSpec) -> None:
    """Raise ValueError for wrong shapes, and for NaN, which engines take silently."""
    expected = (len(batch), spec.dim)
    arrays = [batch.movie_vectors] + ([batch.history_vectors] if batch.history_vectors is not None else [])
    if spec.additive != (batch.history_vectors is not None):
        raise ValueError(f"collection {name!r} expects history vectors: {spec.additive}")
    for array in arrays:
        if array.shape != expected or array.dtype != np.float32:
            raise ValueError(
                f"vectors must be float32 of shape {expected}, received {array.dtype} {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError("vectors must be finite, received NaN or infinity")


def rows_of(values: Sequence[Sequence[float] | None], dim: int) -> Matrix:
    """Return vectors as rows; a missing one, or one of another width, is a row of NaN: foreign hands."""
    rows = [[np.nan] * dim if value is None or len(value) != dim else value for value in values]
    return np.array(rows, dtype=np.float32).reshape(len(rows), dim)


def valid_alias(alias: str) -> str:
    """Return alias. Raises UsageError where it cannot name an alias, since it becomes a file name."""
    if not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"alias {alias!r} cannot be used; take up to 100 letters, digits, '_', '-' and '.', "
            "beginning with a letter or digit"
        )
    return alias


def now() -> str:
    """Return the time of this machine as metadata hold it: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def moment_of(stamp: object) -> datetime | None:
    """Return the time that now wrote as stamp; None where it is none, or says no zone."""
    try:
        moment = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def seconds_since(stamp: object) -> float | None:
    """Return the age of what now wrote as stamp, by the clock of this machine; None as for moment_of."""
    moment = moment_of(stamp)
    return None if moment is None else (datetime.now(UTC) - moment).total_seconds()


def collection_name(alias: str, reference: str) -> str:
    """Return the name of the collection that holds the vectors of one run (its reference) for alias."""
    return f"{alias}__{reference}"


def point_id(movie_id: MovieId) -> PointId:
    """Return the id of a movie's point: the movie_id itself where it is an unsigned integer."""
    if isinstance(movie_id, int) and 0 <= movie_id <= _LARGEST_POINT_ID:
        return movie_id
    return str(uuid.uuid5(NAMESPACE, str(movie_id)))


def payload(line: Mapping[str, Any], *, movie_id: MovieId, run_id: str) -> dict[str, Any]:
    """Return the payload of a movie's point; line is what its run says of the movie, see Catalog.lines."""
    content = {
        "movie_id": movie_id,
        "title": line["title"],
        "year": line["year"],
        "genres": line["genres"],
        "popularity": line["popularity"],
        "run_id": run_id,
    }
    return {**content, "cold": True} if line.get("cold") else content


def points_at(run: Run, rows: Rows) -> PointBatch:
    """Return the points of the movies at rows of run, in that order; releases the run's memory."""
    movie_ids = run.movies.ids(rows)
    lines = run.catalog.lines(rows)
    history = run.history_vectors
    batch = PointBatch(
        ids=[point_id(movie_id) for movie_id in movie_ids],
        movie_vectors=run.movie_vectors[rows],
        history_vectors=None if history is None else history[rows],
        payloads=[
            payload(line, movie_id=movie_id, run_id=run.run_id)
            for line, movie_id in zip(lines, movie_ids, strict=True)
        ],
    )
    run.release()
    return batch


def points(run: Run, start: int = 0, stop: int | None = None) -> PointBatch:
    """Return the points of rows start to stop of run, in ascending order of movie_id."""
    return points_at(run, np.arange(start, len(run.movies) if stop is None else stop, dtype=np.int64))
