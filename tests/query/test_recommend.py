from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from embedstore.errors import DataError, NotFoundError, RunError, StoreError, UsageError
from embedstore.query.filters import parse_filters
from embedstore.query.people import parse_history, read_people
from embedstore.query.recommend import (
    Answer,
    Person,
    ask_live,
    embed,
    embed_batch,
    live_collection,
    recommend,
    recommend_batch,
)
from embedstore.query.resolve import resolve
from embedstore.query.similar import similar
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import Filters, Store, open_store
from embedstore.stores.connection import Connection
from embedstore.stores.server import ServerStore
from embedstore.sync import sync
from tests.builders import tiny_run, with_value
from tests.server import LocalMode


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path, n=60, dim=5)


@pytest.fixture
def store(tmp_path: Path, run: Run) -> Iterator[Store]:
    with open_store(tmp_path / "store", create=True) as opened:
        sync(run, opened)
        yield opened


def brute_force(run: Run, history: list[int], k: int) -> list[tuple[int, float]]:
    rows = run.movies.rows(history)
    scores = run.movie_vectors @ run.tower(rows)
    scores[rows] = -np.inf
    best = np.argsort(-scores, kind="stable")[:k]
    return [(int(run.movies.values[row]), float(scores[row])) for row in best]


@pytest.mark.parametrize("additive", [True, False])
def test_answers_equal_brute_force(tmp_path: Path, additive: bool) -> None:
    run = tiny_run(tmp_path, n=60, dim=5, additive=additive)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        for history in ([3], [50, 18, 25], list(range(1, 41))):
            answer = recommend(run, store, history=history, k=7)
            expected = brute_force(run, history, 7)
            assert [movie.movie_id for movie in answer.recommendations] == [movie for movie, _ in expected]
            np.testing.assert_allclose(
                [movie.score for movie in answer.recommendations], [score for _, score in expected], atol=1e-5
            )


def test_a_known_user_is_their_history(run: Run, store: Store) -> None:
    ids = run.movies.ids(run.history(3))
    by_user = recommend(run, store, user_id=3)
    by_history = recommend(run, store, history=ids)
    assert by_user.recommendations == by_history.recommendations
    assert not {movie.movie_id for movie in by_user.recommendations} & set(ids)


def test_include_seen_and_exclude(run: Run, store: Store) -> None:
    everything = recommend(run, store, history=[1, 2], k=60, include_seen=True)
    assert len(everything.recommendations) == 60
    assert len(recommend(run, store, history=[1, 2], k=10_000).recommendations) == 58
    best = everything.recommendations[0].movie_id
    without = recommend(run, store, history=[1, 2], k=60, include_seen=True, exclude=[best, 10**9])
    assert len(without.recommendations) == 59
    assert best not in {movie.movie_id for movie in without.recommendations}


def test_filters_hold_for_every_answer(run: Run, store: Store) -> None:
    filters = parse_filters(["genre=Comedy", "year>=1960", "year < 1990"])
    answer = recommend(run, store, history=[1], k=60, filters=filters)
    expected = {
        movie_id
        for movie_id, movie in zip(run.movies.values.tolist(), run.catalog, strict=True)
        if "Comedy" in movie.genres and movie.year is not None and 1960 <= movie.year < 1990 and movie_id != 1
    }
    assert {movie.movie_id for movie in answer.recommendations} == expected


def test_unknown_movies_are_left_out_and_counted(run: Run, store: Store) -> None:
    answer = recommend(run, store, history=[3, 999, "x", 3])
    assert answer.unknown_movies == [999, "x"]
    assert answer.n_history == 1
    assert answer.recommendations == recommend(run, store, history=[3]).recommendations


def test_a_history_without_a_known_movie_is_an_error(run: Run, store: Store) -> None:
    with pytest.raises(UsageError, match="none of the 2 movies"):
        recommend(run, store, history=[998, 999])
    with pytest.raises(UsageError, match="history is empty"):
        recommend(run, store, history=[])
    with pytest.raises(NotFoundError, match="user 999 is not among"):
        recommend(run, store, user_id=999)
    with pytest.raises(ValueError, match="one of a user_id, a history and a vector"):
        recommend(run, store)


@pytest.mark.parametrize(
    ("change", "sentence"), [({"dim": 6}, "has width 6 and a"), ({"tower": "dense"}, "and a dense tower")]
)
def test_metadata_that_do_not_fit_the_run_are_refused(
    run: Run, store: Store, change: dict[str, Any], sentence: str
) -> None:
    name = f"movies__{run.run_id}"
    store.set_metadata(name, replace(store.metadata(name), **change))
    with pytest.raises(StoreError, match=f"{sentence}.* has 5 and additive; delete the collection"):
        recommend(run, store, history=[1])


def test_one_runs_tower_never_meets_anothers_vectors(tmp_path: Path, run: Run, store: Store) -> None:
    other = tiny_run(tmp_path, n=60, dim=5, seed=9)
    sync(other, store)
    with pytest.raises(StoreError, match=f"holds run {other.run_id}, the tower is of run {run.run_id}"):
        recommend(run, store, history=[1], collection=live_collection(store, "movies")[0])
    assert (
        recommend(run, store, history=[1]).collection == f"movies__{run.run_id}"
    )  # the old one still serves


def test_many_people_get_what_each_gets_alone(run: Run, store: Store, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("user_id\n" + "\n".join(str(user) for user in range(1, 11)) + "\n\n")
    answers = list(recommend_batch(run, store, read_people(users, run), k=3))
    assert [answer.person.user_id for answer in answers] == list(range(1, 11))
    for answer in answers:
        alone = recommend(run, store, user_id=answer.person.user_id, k=3)
        assert [m.movie_id for m in answer.recommendations] == [m.movie_id for m in alone.recommendations]


def test_people_from_json_lines(run: Run, tmp_path: Path) -> None:
    users = tmp_path / "users.jsonl"
    users.write_text('{"user_id": 3}\n{"history": [1, "2"]}\n')
    assert [person.user_id or person.history for person in read_people(users, run)] == [3, [1, 2]]
    for line, error in [
        ("nope", DataError),
        ("[]", DataError),
        ('{"user_id": 999}', NotFoundError),
        ('{"history": [999]}', UsageError),
        ('{"history": [[1]]}', DataError),
    ]:
        users.write_text('{"user_id": 3}\n' + line)
        with pytest.raises(error, match="line 2"):
            list(read_people(users, run))
        skipped: list[Exception] = []
        assert len(list(read_people(users, run, skip=skipped.append))) == len(skipped) == 1


def test_embeddings_are_the_towers_own(run: Run) -> None:
    found = embed(run, history=[1, 2])
    np.testing.assert_array_equal(found.user_embedding, run.tower(run.movies.rows([1, 2])))
    assert found.to_dict()["user_embedding"] == found.user_embedding.tolist()


def test_the_json_of_an_answer(run: Run, store: Store) -> None:
    answer = json.loads(json.dumps(recommend(run, store, user_id=3, k=1).to_dict()))
    assert list(answer) == ["user_id", "run_id", "collection", "unknown_movies", "recommendations"]
    assert list(answer["recommendations"][0]) == ["rank", "movie_id", "score", "title", "year", "genres"]


def test_a_run_of_one_movie_answers_with_nothing(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, n=1)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        assert recommend(run, store, history=[1]).recommendations == []


def test_similar_is_cosine_and_leaves_the_movie_out(run: Run) -> None:
    unit = run.movie_vectors / np.linalg.norm(run.movie_vectors, axis=1, keepdims=True)
    cosine = unit @ unit[4]
    cosine[4] = -np.inf
    found = similar(run, 5, k=60)
    assert [movie.movie_id for movie in found.movies] == (np.argsort(-cosine)[:59] + 1).tolist()
    np.testing.assert_allclose(found.movies[0].score, cosine.max(), atol=1e-6)
    dot = similar(run, 5, k=1, metric="dot").movies[0]
    scores = np.delete(run.movie_vectors @ run.movie_vectors[4], 4)
    np.testing.assert_allclose(dot.score, scores.max(), atol=1e-5)
    with pytest.raises(NotFoundError, match="movie 999 is not among the 60 movies"):
        similar(run, 999)
    with pytest.raises(UsageError, match="k is 0"):
        similar(run, 5, k=0)


@pytest.mark.parametrize(
    ("text", "filters"),
    [
        ("genre=Film-Noir", Filters(genres=("Film-Noir",))),
        (" genre = Children's ", Filters(genres=("Children's",))),
        ("year>=1990", Filters(years=((">=", 1990),))),
        ("year=1990", Filters(years=(("=", 1990),))),
    ],
)
def test_filters_that_can_be_meant(text: str, filters: Filters) -> None:
    assert parse_filters([text]) == filters


@pytest.mark.parametrize(
    "text",
    [
        "",
        "genre",
        "genre=",
        "genre>Comedy",
        "director=Lynch",
        "year=old",
        "year>=19.5",
        "year>",
        "year>=١٩٩٠",
    ],
)
def test_filters_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match="filter"):
        parse_filters([text])


def test_histories_of_text(run: Run) -> None:
    assert parse_history("1, 2,3\n4 x", run) == [1, 2, 3, 4, "x"]
    with pytest.raises(UsageError):
        parse_history(" , ", run)


class FlipsBeforeSearching(LocalMode):
    """A server whose alias moves between the reading of its metadata and the search."""

    to = ""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.to and request.url.path.endswith("/points/query"):
            self._flip({"actions": [{"create_alias": {"alias_name": "movies", "collection_name": self.to}}]})
        return super().handle_request(request)


def test_a_flip_during_a_query_through_the_alias_is_no_mixture(tmp_path: Path, run: Run) -> None:
    other = tiny_run(tmp_path, n=60, dim=5, seed=9)
    server = FlipsBeforeSearching()
    with ServerStore("http://local-mode", Connection(grpc_port=0), transport=server) as store:
        sync(other, store)
        sync(run, store)
        through_alias = recommend(run, store, history=[1], collection="movies")
        assert through_alias.recommendations == recommend(run, store, history=[1]).recommendations
        server.to = f"movies__{other.run_id}"
        with pytest.raises(
            StoreError, match=f"in 'movies' is of run {other.run_id}, the tower of run {run.run_id}"
        ):
            recommend(run, store, history=[1], collection="movies")
        # What was read through the alias is not remembered.
        with pytest.raises(StoreError, match=f"'movies' holds run {other.run_id}"):
            recommend(run, store, history=[1], collection="movies")
        assert recommend(other, store, history=[1], collection="movies").run_id == other.run_id


def test_who_looked_before_a_flip_is_answered_by_the_new_run(tmp_path: Path, run: Run, store: Store) -> None:
    other = tiny_run(tmp_path, n=60, dim=5, seed=9)
    asked: list[str] = []

    def look() -> tuple[Run, str]:
        return resolve(store, run.path.parent)

    def ask(found: Run, collection: str) -> Answer:
        if not asked:  # the alias moves, and gc deletes what it named
            sync(other, store)
            store.drop(collection)
        asked.append(collection)
        return recommend(found, store, history=[1], collection=collection)

    answer = ask_live(look(), look, ask)
    assert answer == recommend(other, store, history=[1])
    assert asked == [f"movies__{run.run_id}", f"movies__{other.run_id}"]
    with pytest.raises(NotFoundError, match="user 99 "):
        ask_live(look(), look, lambda found, name: recommend(found, store, user_id=99, collection=name))


def test_who_reads_through_the_alias_alone_is_answered_by_the_new_run_too(tmp_path: Path, run: Run) -> None:
    other = tiny_run(tmp_path, n=60, dim=5, seed=9)
    server = FlipsBeforeSearching()
    with ServerStore("http://local-mode", Connection(grpc_port=0), transport=server) as store:
        sync(other, store)
        sync(run, store)

        def look() -> tuple[Run, str]:
            return find_run(run.path.parent, store.metadata("movies").reference), "movies"

        server.to = f"movies__{other.run_id}"
        answer = ask_live(
            look(), look, lambda found, name: recommend(found, store, history=[1], collection=name)
        )
        assert answer.recommendations == recommend(other, store, history=[1]).recommendations


def test_a_tower_that_makes_nan_is_refused_before_any_search(run: Run, store: Store) -> None:
    broken = with_value(run, "history_vectors.npy", (3, 2), np.nan)
    people = [Person(history=[4])]  # movie 4 is row 3
    for ask in (
        lambda: recommend(broken, store, history=[4]),
        lambda: list(recommend_batch(broken, store, people)),
        lambda: embed(broken, history=[4]),
        lambda: list(embed_batch(broken, people)),
    ):
        with pytest.raises(RunError, match="makes NaN or infinity of a history; train again"):
            ask()
    assert recommend(broken, store, history=[5]).recommendations
