"""What another application needs to know of the live collection, told with the values of a real user."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, MovieId
from embedstore.query.recommend import embed, recommendations_of
from embedstore.query.snippets import LANGUAGES, LIMIT, PAGE, RECIPES, Values, snippet
from embedstore.runs.run import Run
from embedstore.stores.base import NO_FILTERS, Filters, Hit, Store
from embedstore.stores.connection import Endpoint
from embedstore.stores.contract import HISTORY_VECTOR, NAMESPACE, Metadata, collection_name, point_id

__all__ = ["METADATA", "PAYLOAD", "POINT_ID", "Contract", "Recipe", "describe"]

POINT_ID = f"movie_id where it is an unsigned integer, else uuid5({NAMESPACE}, movie_id as text)"
PAYLOAD = {  # field -> type, meaning
    "movie_id": ("integer or keyword", "the data set's own id of the movie"),
    "title": ("keyword or null", "as in the data set; titles can occur twice"),
    "year": ("integer or null", "of release"),
    "genres": ("keyword[]", "as in the data set, none is []"),
    "popularity": ("integer", "ratings of the movie in the data that the run was trained on"),
    "run_id": ("keyword", "the run whose vectors these are"),
    "cold": ("boolean", "true where nobody rated the movie and its vectors are predicted; else not there"),
}
METADATA = {
    "schema": "version of this contract; refuse one that is newer than you know",
    "state": "building, sealed or deleting; an alias names sealed ones",
    "run_id": "the run whose vectors these are; psi(X) must be of the same run",
    "dim": "width of every vector",
    "count": "number of movies",
    "tower": "additive: psi(X) is the mean of `history` vectors; dense, none: it is not",
    "fingerprint": "digest of ids, vectors, payload, run_id: equal where they are",
    "created_at": "when the collection was begun, UTC",
    "heartbeat": "when its writer was last seen, UTC",
    "tool_version": "the embedstore that wrote it",
    "search": "how the default search works: exact, or HNSW with these m and ef",
    "recall": "of the default search, measured before the alias moved",
    "debias": "A where V_j is scaled by norm(V_j)^-A, to show less popular movies; null: as trained",
    "writer": "who is building the collection, host:pid:token; null: nobody",
    "pinned": "when, by whom and why it is kept from clean-up; null: it is not",
    "origin": "where the run was that it was made from, host:path",
    "metrics": "what was measured of the run, by name",
    "measured_on": "on which held-out users: runs where it is equal can be compared",
}
_MANY_USERS = 200
_FEW_MOVIES = 10
_SAMPLE = 1000


@dataclass(frozen=True)
class Recipe:
    """One way to ask. snippets: a program per language; expected: what it answers now, best first.

    command is the embedstore query that answers the same (of a page: that ends with it), None without
    a user.
    """

    name: str
    title: str
    command: str | None
    snippets: Mapping[str, str]
    expected: Sequence[Hit]


@dataclass(frozen=True)
class Example:
    """Whose values fill the snippets: a user of the run, or no user_id. psi: (dim,) float32."""

    user_id: MovieId | None
    who: str
    history: Sequence[MovieId]
    psi: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contract:
    """The live collection of an alias, and how to query it."""

    alias: str
    collection: str
    metadata: Metadata
    indexes: Mapping[str, str]
    example: Example
    recipes: Sequence[Recipe]

    def vectors(self) -> dict[str, str]:
        """Return the meaning of every vector of the collection, by its name."""
        debias = self.metadata.debias
        scaled = "" if debias is None else f", V_j scaled by norm(V_j)^-{debias:g}"
        elsewhere = "; psi(X) is made elsewhere" if self.metadata.tower == "none" else ""
        told = {"": f"V_j of the movie: score = psi(X) . V_j{scaled}{elsewhere}"}
        if self.metadata.spec.additive:
            told[HISTORY_VECTOR] = "E_j of a watched movie: psi(X) is the mean of E_j over the history X"
        return told

    def to_dict(self) -> dict[str, Any]:
        width = {"size": self.metadata.dim, "distance": "Dot", "datatype": "float32"}
        present = self.metadata.to_dict()
        return {
            "alias": self.alias,
            "run_id": self.metadata.run_id,
            "collection": self.collection,
            "metric": "dot",
            "point_id": POINT_ID,
            "vectors": {name: {**width, "meaning": told} for name, told in self.vectors().items()},
            "payload": {name: {"type": kind, "meaning": told} for name, (kind, told) in PAYLOAD.items()},
            "indexes": dict(self.indexes),
            "metadata": {key: {"value": present[key], "meaning": told} for key, told in METADATA.items()},
            "recipes": [
                {"name": recipe.name, "title": recipe.title, "command": recipe.command, **recipe.snippets}
                for recipe in self.recipes
            ],
            "example": {
                "who": self.example.who,
                "history": list(self.example.history),
                "point_ids": [point_id(movie_id) for movie_id in self.example.history],
                "psi": _numbers(self.example.psi),
                "expected": {
                    recipe.name: [{"movie_id": hit.movie_id, "score": hit.score} for hit in recipe.expected]
                    for recipe in self.recipes
                },
            },
        }


def describe(store: Store, alias: str, run: Run | None, endpoint: Endpoint) -> Contract:
    """Return the contract of what alias names now, with snippets that ask the server at endpoint.

    run is the run of the collection, whose user fills the snippets; where it is None, or the alias has moved
    on to another one, popular movies of the collection do. Raises NotFoundError where there is no such alias.
    """
    collection = store.live(alias).collection
    metadata, indexes = store.metadata(collection), store.indexes(collection)
    example = (
        _popular(store, collection, metadata)
        if run is None or run.reference != metadata.reference or metadata.tower == "none"
        else _user(run, store, collection)
    )
    plain = store.search(collection, example.psi, limit=LIMIT)
    filters, values = _values(alias, metadata, example, plain, endpoint)

    def found(limit: int, conditions: Filters = NO_FILTERS) -> list[Hit]:
        return store.search(
            collection, example.psi, limit=limit, filters=conditions, exclude=list(example.history)
        )

    answers = {"embedding": plain, "history": found(LIMIT), "filters": found(2 * PAGE, filters)[PAGE:]}
    if not metadata.spec.additive:
        del answers["history"]
    recipes = [
        Recipe(
            name,
            RECIPES[name],
            _command(name, alias, example.user_id, filters),
            {
                language: snippet(name, language, values, [hit.movie_id for hit in hits[:3]])
                for language in LANGUAGES
            },
            hits,
        )
        for name, hits in answers.items()
    ]
    if collection == alias:  # a token for the alias alone is told no other name
        collection = collection_name(alias, metadata.reference)
    return Contract(alias, collection, metadata, indexes, example, recipes)


def _user(run: Run, store: Store, collection: str) -> Example:
    """Return a user with a history of a handy length."""
    some = run.users.ids(np.arange(min(len(run.users), _MANY_USERS)))
    rated = [user_id for user_id in some if run.tower.knows(Bags.of([run.history(user_id)]))[0]]
    if not rated:
        return _popular(store, collection, store.metadata(collection))
    user_id = min(rated, key=lambda user: abs(run.history(user).size - _FEW_MOVIES))
    psi = embed(run, user_id=user_id).user_embedding
    return Example(user_id, f"user {user_id}", run.movies.ids(run.history(user_id)), psi)


def _popular(store: Store, collection: str, metadata: Metadata) -> Example:
    """Return somebody who watched popular movies; psi is V_j of the first one where no rows tell it."""
    batch = next(islice(store.scroll(collection, limit=_SAMPLE), 1))
    order = sorted(range(len(batch)), key=lambda row: -int(batch.payloads[row]["popularity"]))
    if batch.history_vectors is not None:
        rows, what = order[: _FEW_MOVIES // 2], "a history of popular movies"
        psi = batch.history_vectors[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
    else:
        rows, what = order[:1], "the vector of a popular movie in place of a psi(X)"
        psi = batch.movie_vectors[rows[0]]
    return Example(None, what, [batch.payloads[row]["movie_id"] for row in rows], psi)


def _values(
    alias: str, metadata: Metadata, example: Example, hits: Sequence[Hit], endpoint: Endpoint
) -> tuple[Filters, Values]:
    """Return filters that leave something of hits, and all that fills the snippets."""
    found = recommendations_of(hits)
    genres = Counter(str(genre) for movie in found for genre in movie.genres)
    years = sorted(movie.year for movie in found if type(movie.year) is int)  # it stands in programs as it is
    genre = genres.most_common(1)[0][0] if genres else None
    year = years[len(years) // 4] if years else None
    filters = Filters(genres=() if genre is None else (genre,), years=() if year is None else ((">=", year),))
    values = Values(
        url=endpoint.url,
        host=endpoint.host,
        grpc_port=endpoint.grpc_port or int(endpoint.url.rsplit(":", 1)[1].split("/")[0]) + 1,
        alias=alias,
        run_id=metadata.run_id,
        who=example.who,
        history=[point_id(movie_id) for movie_id in example.history],
        psi=_numbers(example.psi),
        integer_ids=isinstance(example.history[0], int),
        genre=genre,
        year=year,
    )
    return filters, values


def _command(recipe: str, alias: str, user_id: MovieId | None, filters: Filters) -> str | None:
    if user_id is None:
        return None
    words = ["embedstore", "query", "--alias", alias, "--user", str(user_id)]
    if recipe == "embedding":
        words.append("--include-seen")
    elif recipe == "filters":
        conditions = [f"genre={genre}" for genre in filters.genres]
        conditions += [f"year{operator}{year}" for operator, year in filters.years]
        words += [word for condition in conditions for word in ("--filter", condition)]
    return shlex.join(words)


def _numbers(vector: npt.NDArray[np.float32]) -> list[float]:
    """Return the shortest decimal numbers that are these float32 again."""
    return [float(str(value)) for value in vector]
