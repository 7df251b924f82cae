"""The store interface: collections of movie vectors, and aliases that name the live one."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from embedstore.data.features import MovieId
from embedstore.errors import NotFoundError, StoreError
from embedstore.stores.connection import NO_KEY, Connection, is_url
from embedstore.stores.contract import (
    CollectionSpec,
    Metadata,
    PointBatch,
    PointId,
    SearchIndex,
    valid_alias,
)

__all__ = [
    "NO_FILTERS",
    "Filters",
    "Hit",
    "Note",
    "Peer",
    "Progress",
    "Promotion",
    "Query",
    "Replica",
    "Store",
    "YearOperator",
    "moment_after",
    "open_store",
    "who",
]

Progress = Callable[[str, int, int], None]  # (what is being done, points done, points in all)
YearOperator = Literal["=", "<", "<=", ">", ">="]
Vector = npt.NDArray[np.float32]

_TIE_MARGIN = 1
_LONGEST_WHY = 500
_TEXTS = {"collection", "run_id", "at", "who", "why", "tool_version"}  # of a Promotion


@dataclass(frozen=True)
class Filters:
    """What an answer must fulfil: every genre, and every comparison of the year.

    A movie without a year fulfils no comparison.
    """

    genres: tuple[str, ...] = ()
    years: tuple[tuple[YearOperator, int], ...] = ()


NO_FILTERS = Filters()


@dataclass(frozen=True)
class Hit:
    """One movie that a search found; score is the dot product of its vector and the query vector.

    vector: V_j, shape (dim,), where the search was asked for it.
    """

    movie_id: MovieId
    score: float
    payload: Mapping[str, Any]
    vector: Vector | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, name: str, key: PointId, score: float | None, payload: Mapping[str, Any] | None, vector: Any
    ) -> Hit:
        """Return the hit that point key of collection name is.

        Raises StoreError where other hands have left it without a movie_id, or with NaN for a vector.
        """
        movie_id = (payload or {}).get("movie_id")
        if payload is None or not isinstance(movie_id, int | str):
            raise StoreError(
                f"point {key} of collection {name!r} has no movie_id; repair it with `embedstore sync`"
            )
        # Engines take NaN from anybody; JSON has no word for it.
        if score is None or not math.isfinite(score):
            raise StoreError(
                f"point {key} of collection {name!r} holds NaN or infinity; repair it with `embedstore sync`"
            )
        return cls(movie_id, score, payload, None if vector is None else np.array(vector, np.float32))


@dataclass(frozen=True)
class Query:
    """One search: vector, shape (dim,), and what its answer must fulfil."""

    vector: Vector
    filters: Filters
    exclude: Sequence[MovieId]


def who() -> str:
    """Return user@host of this process."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def moment_after(last: str | None) -> str:
    """Return now, but later than last: clocks go back and differ by machine, the order of flips does not."""
    moment = datetime.now(UTC)
    with suppress(ValueError, TypeError, OverflowError):
        after = datetime.fromisoformat(last or "") + timedelta(microseconds=1)
        moment = max(moment, after).astimezone(UTC)
    return moment.isoformat(timespec="microseconds")


def _tool_version() -> str:
    from embedstore import __version__

    return __version__


@dataclass(frozen=True)
class Note:
    """What a flip is remembered with, beside its time; gates as by GateResult.to_dict."""

    why: str = ""
    gates: Sequence[Mapping[str, Any]] = ()
    who: str = field(default_factory=who)
    tool_version: str = field(default_factory=_tool_version)

    def to_dict(self) -> dict[str, Any]:
        return {
            "who": self.who,
            "why": self.why[:_LONGEST_WHY],
            "tool_version": self.tool_version,
            "gates": [dict(gate) for gate in self.gates],
        }


@dataclass(frozen=True)
class Promotion:
    """One flip of an alias, from previous. at is UTC, ISO 8601, empty where nobody noted it."""

    collection: str
    run_id: str
    at: str
    previous: str | None = None
    who: str = ""
    why: str = ""
    tool_version: str = ""
    gates: Sequence[Mapping[str, Any]] = ()

    @property
    def reference(self) -> str:
        """What find_run takes for the run, debiased where the name of the collection says so."""
        _, found, end = self.collection.rpartition(f"__{self.run_id}")
        return f"{self.run_id}{end}" if found else self.run_id

    @classmethod
    def from_dict(cls, entry: object) -> Promotion | None:
        """Return what asdict made entry of; None where other hands have changed it beyond use."""
        if not isinstance(entry, dict):
            return None
        texts = {key: value for key, value in entry.items() if key in _TEXTS and isinstance(value, str)}
        previous, gates = entry.get("previous"), entry.get("gates")
        if not texts.keys() >= {"collection", "run_id", "at"}:
            return None
        return cls(
            **texts,
            previous=previous if isinstance(previous, str) else None,
            gates=[gate for gate in gates if isinstance(gate, dict)] if isinstance(gates, list) else (),
        )


@dataclass(frozen=True)
class Peer:
    """One node of a cluster; answers: whether the others reach it."""

    id: int
    uri: str
    answers: bool


@dataclass(frozen=True)
class Replica:
    """One copy of a shard of a collection, on a node of a cluster. state: Active where all is well."""

    peer: int
    shard: int
    state: str


class Store(ABC):
    """Collections, written by one process at a time and read by any number.

    A collection is building until seal(); only a sealed one can be searched or promoted. Methods
    that write hold the writer lock while they run, writer() holds it across several of them.

    Any method raises StoreError where the store refuses or is damaged; those that take the name
    of a collection raise NotFoundError where there is none; those that write raise
    StoreLockedError where another process holds the writer lock.
    """

    location: str
    version: str | None = None  # of the server, None where there is none
    in_place: bool = False  # whether a revision writes to what readers see
    approximate: bool = False  # whether tune can build an index

    @abstractmethod
    def collections(self) -> list[str]:
        """Return the names of embedstore's collections, the building ones too, in ascending order."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether any collection has that name, one of other tools too; an alias is none."""

    @abstractmethod
    def metadata(self, name: str) -> Metadata: ...

    @abstractmethod
    def create(self, name: str, spec: CollectionSpec, metadata: Metadata) -> None:
        """Create an empty building collection; one that was building is emptied.

        Raises StoreError where a sealed one has that name or the disk lacks the room.
        """

    @abstractmethod
    def create_indexes(self, name: str) -> None:
        """Create the payload indexes of the contract that the version being written lacks."""

    def tune(self, name: str, index: SearchIndex) -> None:
        """Build the index of the movie vectors, and return when it serves. Only where approximate is True."""
        raise NotImplementedError

    @abstractmethod
    def revise(self, name: str, *, empty: bool = False) -> None:
        """Let writes go to a new version of a collection that readers see only once it is sealed.

        The version starts as a copy, or empty. A building collection is its own version, so only
        empty changes it. A version that is never sealed leaves the collection as it was. Where in_place
        is True, readers see the writes at once, and what an alias names cannot be emptied (StoreError).
        """

    @abstractmethod
    def upsert(self, name: str, batch: PointBatch) -> None:
        """Write points, replacing those with the same id, vector and payload whole.

        Batches may land in any order: flush between two that have a point in common.
        """

    @abstractmethod
    def delete(self, name: str, ids: Sequence[PointId]) -> None: ...

    @abstractmethod
    def flush(self, name: str) -> None:
        """Write everything to the disk and read it anew from there."""

    @abstractmethod
    def scroll(self, name: str, *, vectors: bool = True, limit: int = 1000) -> Iterator[PointBatch]:
        """Yield all points in ascending order of their id, limit at a time.

        Without vectors their arrays have the width 0. Reads the version that is being written, if any.
        """

    @abstractmethod
    def count(self, name: str, *, filters: Filters = NO_FILTERS) -> int:
        """Return the exact number of points that fulfil filters."""

    @abstractmethod
    def indexes(self, name: str) -> dict[str, str]:
        """Return the payload indexes, field to kind (keyword or integer)."""

    @abstractmethod
    def intact(self, name: str) -> bool:
        """Whether nothing changed since the collection was sealed; False where that cannot be told.

        True spares a comparison of every point.
        """

    @abstractmethod
    def set_metadata(self, name: str, metadata: Metadata) -> None:
        """Replace the metadata. Does not seal; see seal."""

    @abstractmethod
    def seal(self, name: str, metadata: Metadata) -> None:
        """Make the version that is being written durable, and show it to readers in one step."""

    @abstractmethod
    def pin(self, name: str, pin: Mapping[str, Any] | None) -> None:
        """Set Metadata.pinned, which keeps a collection from gc; None takes it off."""

    def drop(self, name: str) -> None:
        """Delete a collection, or finish its deletion.

        Raises StoreError where an alias names it or it is pinned, StoreLockedError where another process
        builds it.
        """
        with self.writer():
            self._refuse_needed(name)
            self._delete(name)

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Delete a collection that no alias named a moment ago."""

    def size(self, name: str) -> int | None:
        """Return how many bytes of the disk a collection takes, None where the store does not tell."""
        return None

    @abstractmethod
    def aliases(self) -> dict[str, str]:
        """Return the collection that each alias names."""

    def promote(self, alias: str, name: str, note: Note | None = None) -> bool:
        """Point alias at a sealed collection, in one atomic step; False where it did already.

        Raises StoreError where the collection is not sealed or alias is the name of a collection.
        """
        valid_alias(alias)
        with self.writer():
            if self.exists(alias):
                raise StoreError(f"alias {alias!r} has the name of a collection; choose another alias")
            self._require_sealed(name)
            return self._flip(alias, name, note or Note())

    @abstractmethod
    def _flip(self, alias: str, name: str, note: Note) -> bool:
        """Do what promote does, where name was sealed a moment ago."""

    @abstractmethod
    def promotions(self, alias: str) -> list[Promotion]:
        """Return the flips of alias, newest last; older than the last 100 are forgotten."""

    @abstractmethod
    def nearest(
        self, name: str, queries: Sequence[Query], limit: int, *, with_vectors: bool = False
    ) -> list[list[Hit]]:
        """Return, for every query, the limit points of the highest dot product, by descending score.

        Unlike search, in any order among equal scores. Reads the version that is being written, if any.
        """

    def search(
        self,
        name: str,
        vector: Vector,
        *,
        limit: int,
        filters: Filters = NO_FILTERS,
        exclude: Sequence[MovieId] = (),
    ) -> list[Hit]:
        """Return the limit movies of the highest dot product with vector, shape (dim,).

        By descending score; equal scores by ascending movie_id, also at the end of the list.
        Excluded movies are left out within the search, so that limit movies remain. Reads the
        version that is being written, if any.
        """
        row = np.asarray(vector, dtype=np.float32)
        if row.ndim != 1:
            raise ValueError(f"vector must have shape (dim,), received {row.shape}")
        return self.search_batch(name, row[None], limit=limit, filters=filters, excludes=[exclude])[0]

    def search_batch(
        self,
        name: str,
        vectors: npt.NDArray[np.float32],
        *,
        limit: int,
        filters: Filters = NO_FILTERS,
        excludes: Sequence[Sequence[MovieId]] | None = None,
        with_vectors: bool = False,
    ) -> list[list[Hit]]:
        """Return what search returns for every row of vectors, shape (n, dim).

        excludes has one sequence of movies for every row. with_vectors: every hit has its V_j, of the
        same moment, even where name is an alias that moves.
        """
        metadata = self.metadata(name)
        rows = _checked_queries(vectors, metadata.dim)
        if limit < 1:
            raise ValueError(f"limit must be at least 1, received {limit}")
        left_out = [()] * len(rows) if excludes is None else excludes
        if len(left_out) != len(rows):
            raise ValueError(f"excludes must have one entry per vector ({len(rows)}), got {len(left_out)}")
        limit = min(limit, metadata.count)
        wanted = min(limit + _TIE_MARGIN, metadata.count)
        queries = [Query(row, filters, exclude) for row, exclude in zip(rows, left_out, strict=True)]
        answers = []
        firsts = self.nearest(name, queries, wanted, with_vectors=with_vectors)
        for query, first in zip(queries, firsts, strict=True):
            found, more = first, wanted
            # Movies that tie with the last one may be beyond the end: look until the scores differ.
            while len(found) == more < metadata.count and found[limit - 1].score == found[-1].score:
                more = min(2 * more, metadata.count)
                found = self.nearest(name, [query], more, with_vectors=with_vectors)[0]
            answers.append(sorted(found, key=_rank)[:limit])
        return answers

    @abstractmethod
    def vectors_of(self, name: str, movie_ids: Sequence[MovieId]) -> npt.NDArray[np.float32]:
        """Return the movie vectors, shape (len(movie_ids), dim).

        Raises NotFoundError for an unknown movie.
        """

    @abstractmethod
    def writer(self) -> AbstractContextManager[None]:
        """Hold the writer lock. Raises StoreLockedError where another process holds it."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Callable[[], None]]:
        """Be the one who writes to a building collection, and note in it that its writer lives.

        What it yields is to be called now and then, and raises StoreLockedError where another
        process took over, as it may from one that shows no sign of life for STALE_SECONDS. Raises
        StoreLockedError where another one writes.
        """

    def peers(self) -> Sequence[Peer]:
        """Return the nodes of a cluster, by ascending id; none where it is none, or hidden from the key."""
        return ()

    def replicas(self, name: str) -> Sequence[Replica]:
        """Return the copies of every shard of a collection; none where the store has no shards."""
        return ()

    @abstractmethod
    def close(self) -> None: ...

    def live(self, alias: str, back: int = 0) -> Promotion:
        """Return what alias names now, or named back promotions ago.

        Raises NotFoundError where there is no such alias or promotion.
        """
        flips = self.promotions(alias)
        if not flips:
            known = ", ".join(a if a.isprintable() else repr(a) for a in self.aliases()) or "none yet"
            raise NotFoundError(
                f"alias {alias!r} is not in the store (aliases: {known}); fill it with `embedstore sync`"
            )
        if not 0 <= back < len(flips):
            raise NotFoundError(
                f"alias {alias!r} was promoted {len(flips)} time{'s' * (len(flips) != 1)}, "
                f"so there is nothing {back} promotion{'s' * (back > 1)} ago"
            )
        return flips[-1 - back]

    def _require_sealed(self, name: str) -> None:
        state = self.metadata(name).state
        if state == "deleting":
            raise StoreError(f"collection {name!r} is being deleted; make it again by `embedstore sync`")
        if state != "sealed":
            raise StoreError(f"collection {name!r} is not finished; run `embedstore sync` to finish it")

    def _refuse_needed(self, name: str) -> None:
        for alias, target in self.aliases().items():
            if target == name:
                raise StoreError(
                    f"collection {name!r} is what alias {alias!r} names; promote another run first"
                )
        if self.metadata(name).pinned is not None:
            raise StoreError(f"collection {name!r} is pinned; `embedstore unpin` it first")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(location: str | Path, *, create: bool = False, connection: Connection = NO_KEY) -> Store:
    """Open the store at location: a folder, or the URL of a Qdrant server (of several nodes, with commas).

    create makes the folder where it is missing. connection holds the key and certificates of a server.

    Raises NotFoundError where there is no store, StoreError where the folder is not a store or was made
    by a newer version, or the server is too old or refuses the key, StoreUnreachableError where it gives
    no answer, UsageError for a URL that cannot be meant.
    """
    if is_url(str(location)):
        from embedstore.stores.server import ServerStore

        return ServerStore(str(location), connection)
    from embedstore.stores.edge import EdgeStore

    return EdgeStore(Path(location), create=create)


def _checked_queries(vectors: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"query vectors must have shape (n, {dim}), received {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("query vectors must be finite, received NaN or infinity")
    return rows


def _rank(hit: Hit) -> tuple[float, bool, MovieId]:
    return (-hit.score, isinstance(hit.movie_id, str), hit.movie_id)  # text among integers: foreign hands
