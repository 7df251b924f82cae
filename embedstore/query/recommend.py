"""From a user to recommendations: history, psi(X), the query by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, MovieId, Rows
from embedstore.errors import NotFoundError, RunError, StoreError, StoreUnreachableError, UsageError
from embedstore.runs.run import Run
from embedstore.stores.base import Filters, Hit, Store
from embedstore.stores.contract import Metadata, collection_name

if TYPE_CHECKING:
    from embedstore.query.explain import Contribution, Kind

__all__ = [
    "Answer",
    "Embedding",
    "Person",
    "Recommendation",
    "ask_live",
    "embed",
    "embed_batch",
    "known_rows",
    "live_collection",
    "recommend",
    "recommend_batch",
]


class _Referred(Protocol):
    """A run, or what a collection says of one."""

    @property
    def reference(self) -> str: ...


T = TypeVar("T")
R = TypeVar("R", bound=_Referred)

_BATCH = 256  # users whose vectors and answers are held at a time
_BATCH_VECTORS = 1 << 14  # of movies that were found, where an answer needs them


@dataclass(frozen=True)
class Person:
    """Who is asked about: a known user, the movie ids of a history, oldest first, or a psi(X) made elsewhere.

    vector: (embedding_dim,) or (1, embedding_dim) numbers, by the tower of the run that is asked.
    """

    user_id: MovieId | None = None
    history: Sequence[MovieId] | None = None
    vector: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.user_id, self.history, self.vector)) != 1:
            raise ValueError("a person is one of a user_id, a history and a vector")


@dataclass(frozen=True)
class Embedding:
    """psi(X) of one person. user_embedding: (embedding_dim,) float32."""

    person: Person
    run_id: str
    user_embedding: npt.NDArray[np.float32]
    n_history: int
    unknown_movies: Sequence[MovieId] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            **_who(self.person),
            "run_id": self.run_id,
            "unknown_movies": list(self.unknown_movies),
            "user_embedding": self.user_embedding.tolist(),
        }


@dataclass(frozen=True)
class Recommendation:
    """One movie of an answer; score is the dot product of psi(X), or of a vector, and V_j.

    explanation: what every watched movie contributes to the score, the largest first; None where not asked.
    cold: whether V_j is predicted, since nobody rated the movie.
    """

    rank: int
    movie_id: MovieId
    score: float
    title: str | None
    year: int | None
    genres: Sequence[str]
    explanation: Sequence[Contribution] | None = None
    cold: bool = False

    def to_dict(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "rank": self.rank,
            "movie_id": self.movie_id,
            "score": self.score,
            "title": self.title,
            "year": self.year,
            "genres": list(self.genres),
        }
        if self.explanation is not None:
            shown["explanation"] = [part.to_dict() for part in self.explanation]
        if self.cold:
            shown["cold"] = True
        return shown


@dataclass(frozen=True)
class Answer:
    """What one person was recommended, and by which run.

    diverse and explanation_kind (see query.diverse, query.explain) are None where not asked for.
    """

    person: Person
    run_id: str
    collection: str
    n_history: int
    unknown_movies: Sequence[MovieId]
    recommendations: Sequence[Recommendation] = field(default_factory=tuple)
    diverse: float | None = None
    explanation_kind: Kind | None = None

    def to_dict(self) -> dict[str, Any]:
        asked = {"diverse": self.diverse, "explanation_kind": self.explanation_kind}
        return {
            **_who(self.person),
            "run_id": self.run_id,
            "collection": self.collection,
            "unknown_movies": list(self.unknown_movies),
            **{name: value for name, value in asked.items() if value is not None},
            "recommendations": [movie.to_dict() for movie in self.recommendations],
        }


def embed(run: Run, *, user_id: MovieId | None = None, history: Sequence[MovieId] | None = None) -> Embedding:
    """Return psi(X) of a known user_id, or of a history, by the tower of run.

    Movies that the run does not know are left out and listed. Raises NotFoundError for an unknown
    user and UsageError where no known movie is left.
    """
    person = Person(user_id=user_id, history=history)
    rows, unknown = known_rows(run, person)
    vector = _finite(run, run.tower(rows))
    return Embedding(person, run.run_id, vector, int(rows.size), unknown)


def embed_batch(run: Run, people: Iterable[Person]) -> Iterator[Embedding]:
    """Yield psi(X) of every person, in order, in bounded memory. Raises what embed raises."""
    for batch in _batches(people):
        histories = [known_rows(run, person) for person in batch]
        vectors = _finite(run, run.tower.batch(Bags.of(rows for rows, _ in histories)))
        for person, (rows, unknown), vector in zip(batch, histories, vectors, strict=True):
            yield Embedding(person, run.run_id, vector, int(rows.size), unknown)


def recommend(
    run: Run | None,
    store: Store,
    *,
    user_id: MovieId | None = None,
    history: Sequence[MovieId] | None = None,
    vector: npt.ArrayLike | None = None,
    k: int = 10,
    filters: Filters | None = None,
    exclude: Sequence[MovieId] = (),
    include_seen: bool = False,
    diverse: float | None = None,
    explain: bool = False,
    collection: str | None = None,
    alias: str = "movies",
) -> Answer:
    """Return the k movies with the highest score psi(X) . V_j for one person.

    The person is a known user_id, a history, oldest first, or a vector, psi(X) as it is. What they
    watched is left out, at any length of the history, unless include_seen; of a vector nothing is known
    to be watched. Fewer than k come back where the catalog or the filters leave fewer. Ties stand in
    ascending order of movie_id.

    diverse, from 0 to 1, trades score for difference within the list, see query.diverse.mmr. explain adds
    what every watched movie contributes to each score, see query.explain.contributions.

    The query goes to collection, by default the one of run under alias, by its concrete name. A vector
    needs no run: where that is None, collection answers, by default the one that alias names now.

    Raises NotFoundError for an unknown user or a missing collection, UsageError for a history
    without a known movie, a vector of NaN or another width, with explain or include_seen, k < 1 or a
    diverse outside of 0 to 1, RunError where run has no tower for a history, StoreError where the
    collection, or a movie found, is not of run.
    """
    person = Person(user_id=user_id, history=history, vector=vector)
    options = _Options(k, filters or Filters(), tuple(exclude), include_seen, diverse, explain)
    return next(_answers(run, store, [person], options, collection or _collection_of(run, store, alias)))


def recommend_batch(
    run: Run | None,
    store: Store,
    people: Iterable[Person],
    *,
    k: int = 10,
    filters: Filters | None = None,
    exclude: Sequence[MovieId] = (),
    include_seen: bool = False,
    diverse: float | None = None,
    explain: bool = False,
    collection: str | None = None,
    alias: str = "movies",
) -> Iterator[Answer]:
    """Yield the answer of recommend for every person, in order, in bounded memory.

    Raises what recommend raises, at the person that it concerns.
    """
    options = _Options(k, filters or Filters(), tuple(exclude), include_seen, diverse, explain)
    return _answers(run, store, people, options, collection or _collection_of(run, store, alias))


def live_collection(store: Store, alias: str, back: int = 0) -> tuple[str, str]:
    """Return the collection that alias names now, or named back promotions ago, and the reference of its run.

    From one look at the alias. Raises NotFoundError where there is no such alias, promotion or collection.
    """
    while True:
        collection = store.live(alias, back).collection
        try:
            return collection, store.metadata(collection).reference
        except NotFoundError:  # deleted since, where the alias has moved on
            if store.live(alias, back).collection == collection:
                raise


def ask_live(found: tuple[R, str], look: Callable[[], tuple[R, str]], ask: Callable[[R, str], T]) -> T:
    """Return ask(run, collection) for found, which look returned: the run and the collection that are live.

    run may be the metadata of the collection, where that is all there is.

    Where the alias moved since, and the collection was deleted or is that of another run, for what look
    returns by then: who looked at the alias a moment before is answered by the new run. Raises what ask
    raises where look returns the same again.
    """
    while True:
        try:
            return ask(*found)
        except StoreUnreachableError:
            raise
        except (NotFoundError, StoreError):
            (run, collection), found = found, look()
            if (found[0].reference, found[1]) == (run.reference, collection):
                raise


@dataclass(frozen=True)
class _Options:
    k: int
    filters: Filters
    exclude: tuple[MovieId, ...]
    include_seen: bool
    diverse: float | None
    explain: bool

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k is {self.k}; expected 1 or more movies")
        if self.diverse is not None and not 0 <= self.diverse <= 1:
            raise UsageError(
                f"diverse is {self.diverse}; expected 0 (by score alone) to 1 (as different as possible)"
            )


def _collection_of(run: Run | None, store: Store, alias: str) -> str:
    return live_collection(store, alias)[0] if run is None else collection_name(alias, run.reference)


def _refuse_other_collections(run: Run, collection: str, metadata: Metadata) -> None:
    """Raise StoreError where a collection is not of run."""
    if metadata.run_id != run.run_id:
        raise StoreError(
            f"collection {collection!r} holds run {metadata.run_id}, the tower is of run {run.run_id}; "
            "sync the run or query the collection's own"
        )
    made = (metadata.dim, metadata.tower)
    if made != (run.embedding_dim, run.manifest.tower):
        raise StoreError(
            f"collection {collection!r} has width {made[0]} and a {made[1]} tower, run {run.run_id} has "
            f"{run.embedding_dim} and {run.manifest.tower}; delete the collection and sync the run again"
        )


def _answers(
    run: Run | None, store: Store, people: Iterable[Person], options: _Options, collection: str
) -> Iterator[Answer]:
    metadata = store.metadata(collection)
    if run is not None:
        _refuse_other_collections(run, collection, metadata)
    n_movies = max(1, metadata.count) if run is None else len(run.movies)
    limit = wanted = min(options.k, n_movies)
    if options.diverse:
        from embedstore.query.diverse import candidates_for, diversified

        wanted = min(candidates_for(options.k), n_movies)
    if options.explain:
        from embedstore.query.explain import explain
    with_vectors = options.explain or bool(options.diverse)
    size = max(1, min(_BATCH, _BATCH_VECTORS // wanted)) if with_vectors else _BATCH
    for batch in _batches(people, size):
        vectors, histories = _asked(run, batch, metadata, options)
        seen = [[] if run is None or options.include_seen else run.movies.ids(rows) for rows, _ in histories]
        found = store.search_batch(
            collection,
            vectors,
            limit=wanted,
            filters=options.filters,
            excludes=[[*watched, *options.exclude] for watched in seen],
            with_vectors=with_vectors,
        )
        for person, (rows, unknown), hits in zip(batch, histories, found, strict=True):
            _refuse_other_runs(metadata.run_id, collection, hits)
            shown = diversified(hits, limit, options.diverse) if options.diverse else hits
            why = explain(run, rows, shown) if options.explain and run is not None else None
            yield Answer(
                person,
                metadata.run_id,
                collection,
                int(rows.size),
                unknown,
                recommendations_of(shown, why.movies if why else None),
                diverse=options.diverse,
                explanation_kind=why.kind if why else None,
            )


def _asked(
    run: Run | None, people: Sequence[Person], metadata: Metadata, options: _Options
) -> tuple[npt.NDArray[np.float32], list[tuple[Rows, list[MovieId]]]]:
    """Return psi(X) of people, (n_people, embedding_dim), and what they watched: rows and unknown ids."""
    vectors = np.empty((len(people), metadata.dim), np.float32)
    histories: list[tuple[Rows, list[MovieId]]] = []
    others = []
    for number, person in enumerate(people):
        if person.vector is not None:
            vectors[number] = _given(person.vector, metadata, options)
            histories.append((np.zeros(0, np.int64), []))
        elif run is None:
            raise ValueError("a person without a vector needs the run whose tower makes psi(X)")
        else:
            histories.append(known_rows(run, person))
            others.append(number)
    if others and run is not None:
        rows = [histories[number][0] for number in others]
        psi = run.tower(rows[0])[None] if len(rows) == 1 else run.tower.batch(Bags.of(rows))
        vectors[others] = _finite(run, psi)
    return vectors, histories


def _given(vector: npt.ArrayLike, metadata: Metadata, options: _Options) -> npt.NDArray[np.float32]:
    """Return a psi(X) that was made elsewhere, (embedding_dim,). Raises UsageError where it cannot be one."""
    for asked, option in ((options.explain, "explain"), (options.include_seen, "include_seen")):
        if asked:
            raise UsageError(
                f"{option} needs the movies that were watched, and a vector tells none; leave it out"
            )
    with np.errstate(over="ignore"):
        psi = np.asarray(vector).astype(np.float32)
    shape = psi.shape[1:] if psi.ndim == 2 and len(psi) == 1 else psi.shape
    if shape != (metadata.dim,):
        found = f"{psi.size} numbers" if len(shape) == 1 else f"shape {psi.shape}"
        bias = (
            "; where its last dimension is the bias of a movie, append a 1"
            if psi.size + 1 == metadata.dim
            else ""
        )
        raise UsageError(
            f"the vector has {found}, run {metadata.run_id} has embedding_dim {metadata.dim}; give psi(X) by "
            f"the tower of that run{bias}"
        )
    if not np.isfinite(psi).all():
        raise UsageError("the vector holds NaN, infinity or more than a float32 can; expected finite numbers")
    return psi.reshape(-1)


def _finite(run: Run, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not np.isfinite(vectors).all():
        raise RunError(f"the tower of run {run.run_id} makes NaN or infinity of a history; train again")
    return vectors


def _refuse_other_runs(run_id: str, collection: str, hits: Sequence[Hit]) -> None:
    """Raise StoreError where a hit is of another run: collection may be an alias, moved since it was read."""
    for hit in hits:
        if hit.payload.get("run_id") != run_id:
            raise StoreError(
                f"movie {hit.movie_id} in {collection!r} is of run {hit.payload.get('run_id')}, the tower "
                f"of run {run_id}; ask again if the alias has just moved, else run `embedstore verify`"
            )


def _batches(people: Iterable[Person], size: int = _BATCH) -> Iterator[list[Person]]:
    iterator = iter(people)
    while batch := list(islice(iterator, size)):
        yield batch


def recommendations_of(
    hits: Sequence[Hit], explanations: Sequence[Sequence[Contribution]] | None = None
) -> list[Recommendation]:
    """Return the hits of a search as ranked recommendations, with their explanations where there are some."""
    return [
        Recommendation(
            rank=rank,
            movie_id=hit.movie_id,
            score=hit.score,
            title=_told(hit, "title", str),
            year=_told(hit, "year", int),
            genres=tuple(genre for genre in _told(hit, "genres", list) or () if isinstance(genre, str)),
            explanation=None if explanations is None else explanations[rank - 1],
            cold=bool(hit.payload.get("cold")),
        )
        for rank, hit in enumerate(hits, start=1)
    ]


def _told(hit: Hit, key: str, kind: type[T]) -> T | None:
    """Return what a movie says of itself, None where it does not: other hands may have written it."""
    value = hit.payload.get(key)
    return value if isinstance(value, kind) else None


def known_rows(run: Run, person: Person) -> tuple[Rows, list[MovieId]]:
    """Return the distinct movie rows of a person's history, oldest first, and the unknown ids.

    Raises RunError where run has no tower that could take them, NotFoundError for an unknown user and
    UsageError where no known movie is left. A vector has no history: ValueError.
    """
    if person.vector is not None:
        raise ValueError("a vector is a psi(X) already, and has no history")
    run.check_tower()
    if person.user_id is not None:
        rows = run.history(person.user_id)
        if not rows.size:
            raise UsageError(f"user {person.user_id} has rated nothing that run {run.run_id} knows")
        return _taken(run, rows, f"user {person.user_id}"), []
    given = list(dict.fromkeys(person.history or ()))
    if not given:
        raise UsageError("the history is empty; expected at least one movie id")
    found = run.movies.rows(given)
    unknown = [movie_id for movie_id, row in zip(given, found.tolist(), strict=True) if row < 0]
    if len(unknown) == len(given):
        raise UsageError(
            f"none of the {len(given)} movies of the history is known to run {run.run_id}; "
            "expected ids of the catalog that it was trained on"
        )
    return _taken(run, found[found >= 0], "the history"), unknown


def _taken(run: Run, rows: Rows, whose: str) -> Rows:
    """Return rows. Raises UsageError where the tower of run knows none of them."""
    if not run.tower.knows(Bags.of([rows]))[0]:
        raise UsageError(
            f"none of the {rows.size} movies of {whose} is in the vocabulary of the model that computes "
            f"psi of run {run.run_id}; expected one of those that it was trained on"
        )
    return rows


def _who(person: Person) -> dict[str, Any]:
    if person.user_id is not None:
        return {"user_id": person.user_id}
    if person.vector is not None:
        return {"vector": True}
    return {"history": list(person.history or ())}
