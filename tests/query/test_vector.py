"""A psi(X) that was made elsewhere: the same answers, from the collection alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.errors import DataError, NotFoundError, RunError, StoreError, UsageError
from embedstore.query.filters import parse_filters
from embedstore.query.people import read_vectors
from embedstore.query.recommend import Person, embed, known_rows, live_collection, recommend, recommend_batch
from embedstore.query.resolve import resolve, resolve_collection
from embedstore.query.similar import similar
from embedstore.runs.debias import debiased
from embedstore.runs.run import Run
from embedstore.stores.base import Store
from embedstore.sync import restore, sync
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run, without_tower


@pytest.fixture(params=EVERY_BACKEND)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with BACKENDS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture(params=["additive", "dense", "none"])
def run(request: pytest.FixtureRequest, tmp_path: Path, store: Store) -> Run:
    """A live run of 30 movies x 4."""
    run = tiny_run(tmp_path, n=30, dim=4, additive=request.param == "additive")
    run = without_tower(run) if request.param == "none" else run
    sync(run, store)
    return run


PSI = np.array([0.5, -1.25, 2.0, 0.125])


def best(run: Run, psi: np.ndarray[Any, Any], k: int, exclude: tuple[int, ...] = ()) -> list[int]:
    scores = run.movie_vectors @ psi.astype(np.float32)
    scores[run.movies.rows(exclude)] = -np.inf
    return [int(run.movies.values[row]) for row in np.argsort(-scores, kind="stable")[:k]]


def test_a_vector_is_answered_as_brute_force_does(run: Run, store: Store) -> None:
    answer = recommend(run, store, vector=PSI, k=5)
    assert [movie.movie_id for movie in answer.recommendations] == best(run, PSI, 5)
    top = answer.recommendations[0]
    assert top.score == pytest.approx(float(run.movie_vectors[run.movies.row(top.movie_id)] @ PSI), abs=1e-5)
    assert (answer.n_history, answer.unknown_movies, answer.run_id) == (0, [], run.run_id)
    shown = answer.to_dict()
    assert (shown["vector"], list(shown)[1:]) == (
        True,
        ["run_id", "collection", "unknown_movies", "recommendations"],
    )


def test_no_run_is_needed(run: Run, store: Store) -> None:
    answer = recommend(None, store, vector=PSI[None], k=5)
    assert answer.recommendations == recommend(run, store, vector=PSI, k=5).recommendations
    assert (answer.run_id, answer.collection) == (run.run_id, f"movies__{run.run_id}")
    exclude = (answer.recommendations[0].movie_id, "nothing", 10**9)
    left = recommend(None, store, vector=PSI, k=100, exclude=exclude)
    assert [movie.movie_id for movie in left.recommendations] == best(run, PSI, 30)[1:]
    comedies = recommend(None, store, vector=PSI, k=100, filters=parse_filters(["genre=Comedy"]))
    assert {movie.movie_id for movie in comedies.recommendations} == {
        movie_id
        for movie_id, movie in zip(run.movies.values.tolist(), run.catalog, strict=True)
        if "Comedy" in movie.genres
    }
    diverse = recommend(None, store, vector=PSI, k=5, diverse=0.5)
    assert diverse.recommendations[0].movie_id == exclude[0]
    with pytest.raises(ValueError, match="needs the run whose tower"):
        recommend(None, store, history=[1])


def test_any_numbers_are_taken(run: Run, store: Store) -> None:
    expected = best(run, np.array([1, -2, 0, 3]), 4)
    for dtype in (np.float16, np.float32, np.float64, np.int64, object):
        answer = recommend(run, store, vector=np.array([1, -2, 0, 3], dtype), k=4)
        assert [movie.movie_id for movie in answer.recommendations] == expected, dtype
    assert recommend(run, store, vector=[1, -2, 0, 3], k=4).recommendations == answer.recommendations


REFUSED: list[tuple[Any, str]] = [
    ([1, 2, 3, 4, 5], r"has 5 numbers, run .* has embedding_dim 4; give psi\(X\) by the tower of that run$"),
    ([1, 2, 3], "has 3 numbers, run .* embedding_dim 4; .*; where its last dimension is .* append a 1$"),
    (np.ones((2, 4)), r"has shape \(2, 4\)"),
    (np.ones((4, 1)), r"has shape \(4, 1\)"),
    (2.0, r"has shape \(\)"),
    ([1, 2, np.nan, 4], "holds NaN, infinity"),
    ([1, 2, np.inf, 4], "holds NaN, infinity"),
    ([1, 2, 1e300, 4], "more than a float32"),
]


def test_what_is_no_vector_of_the_run_is_refused(run: Run, store: Store) -> None:
    for vector, sentence in REFUSED:
        for asked in (run, None):
            with pytest.raises(UsageError, match=sentence):
                recommend(asked, store, vector=vector)


def test_what_needs_a_history_is_refused(run: Run, store: Store) -> None:
    with pytest.raises(UsageError, match="explain needs the movies that were watched"):
        recommend(run, store, vector=PSI, explain=True)
    with pytest.raises(UsageError, match="include_seen needs the movies"):
        recommend(run, store, vector=PSI, include_seen=True)
    with pytest.raises(ValueError, match="has no history"):
        known_rows(run, Person(vector=PSI))
    with pytest.raises(ValueError, match="one of a user_id, a history and a vector"):
        recommend(run, store, vector=PSI, history=[1])


def test_vectors_and_histories_in_one_batch(run: Run, store: Store) -> None:
    people = [Person(vector=PSI), Person(vector=-PSI)]
    if run.manifest.tower != "none":
        people[1:1] = [Person(history=[3, 9]), Person(user_id=3)]
    answers = list(recommend_batch(run, store, iter(people), k=3))
    assert [answer.person for answer in answers] == people
    for person, answer in zip(people, answers, strict=True):
        alone = recommend(
            run, store, user_id=person.user_id, history=person.history, vector=person.vector, k=3
        )
        assert [movie.movie_id for movie in answer.recommendations] == [
            movie.movie_id for movie in alone.recommendations
        ]


def test_a_vector_of_another_run_is_not_answered_by_this_one(run: Run, store: Store, tmp_path: Path) -> None:
    other = tiny_run(tmp_path / "other", n=30, dim=4, seed=5)
    with pytest.raises(StoreError, match="holds run"):
        recommend(other, store, vector=PSI, collection=f"movies__{run.run_id}")


def test_a_collection_is_found_without_its_run(run: Run, store: Store, tmp_path: Path) -> None:
    sync(debiased(run, 0.5), store)
    nowhere = tmp_path / "nowhere"
    for reference, name in [
        (None, f"movies__{run.run_id}_debias0.50"),
        ("@movies~1", f"movies__{run.run_id}"),
        (run.run_id, f"movies__{run.run_id}"),
        (f"{run.run_id}_debias0.5", f"movies__{run.run_id}_debias0.50"),
    ]:
        assert resolve_collection(store, nowhere, reference) == name
    assert resolve_collection(store, run.path.parent, "latest") == f"movies__{run.run_id}"
    for reference in ("latest", "1999", "20991231t000000-ffff", "@shows"):
        with pytest.raises(NotFoundError):
            resolve_collection(store, nowhere, reference)
    assert not nowhere.exists()


def test_a_run_without_tower_says_what_works(store: Store, tmp_path: Path) -> None:
    run = without_tower(tiny_run(tmp_path))
    sync(run, store)
    for ask in (
        lambda: embed(run, user_id=3),
        lambda: embed(run, user_id="nobody"),
        lambda: recommend(run, store, history=[3]),
        lambda: run.tower,
    ):
        with pytest.raises(
            RunError, match=r"`embedstore query --vector` takes one made .* `embedstore similar`"
        ):
            ask()


def test_a_run_without_tower_is_whole_in_its_collection(store: Store, tmp_path: Path) -> None:
    run = without_tower(tiny_run(tmp_path))
    sync(run, store)
    elsewhere, told = tmp_path / "elsewhere", list[str]()
    restored, _ = resolve(store, elsewhere, restored=told.append)
    assert (restored.fingerprint, restored.manifest.tower, len(told)) == (run.fingerprint, "none", 1)
    assert similar(restored, 3) == similar(run, 3)
    assert not restore(store, "movies", elsewhere).written
    sync(restored, store, alias="films")
    films = live_collection(store, "films")[0]
    assert recommend(restored, store, vector=PSI, collection=films).recommendations == (
        recommend(run, store, vector=PSI).recommendations
    )


def npy(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


NUMBERS = [0.5, -1.25, 2e-3]


@pytest.mark.parametrize(
    "content",
    [
        npy(np.array(NUMBERS)),
        npy(np.array(NUMBERS, np.float32), version=(2, 0)),
        npy(np.array(NUMBERS, ">f8")),
        json.dumps(NUMBERS).encode(),
        json.dumps({"run_id": "r1", "user_embedding": NUMBERS}).encode(),
        b"0.5 -1.25 2e-3\n",
        b"0.5,-1.25,\n0.002\n",
        str(np.array(NUMBERS)).encode(),
    ],
)
def test_a_vector_is_read_from_what_holds_numbers(content: bytes) -> None:
    vectors, run_id = read_vectors(content, name="f")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.array(NUMBERS, np.float32))
    assert run_id == ("r1" if b"r1" in content else None)


def test_rows_are_read_in_their_order() -> None:
    rows = np.arange(6).reshape(2, 3)
    for content in (npy(rows), npy(np.asfortranarray(rows)), json.dumps(rows.tolist()).encode()):
        np.testing.assert_array_equal(read_vectors(content, name="f")[0], rows)
    assert read_vectors(b"7", name="f")[0].shape == (1,)


TRUNCATED = npy(np.ones(4))[:-1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b" \n", "f is empty; expected a .npy file of numbers"),
        (b"[]", r"f has shape \(0,\)"),
        (b"[[[1]]]", r"f has shape \(1, 1, 1\)"),
        (b"\xff\xfe", "f is neither a .npy file nor text"),
        (b"\x80\x04\x95\x00", "f is neither a .npy file nor text"),  # a pickle
        (b"one two", "f cannot be read as a vector .*'one'"),
        (b"[1, [2, 3]]", "f cannot be read as a vector"),
        (b'{"psi": [1]}', "f cannot be read as a vector .*user_embedding"),
        (b'{"user_embedding": {"a": 1}}', "f cannot be read as a vector"),
        (b"[" * 100_000, "f cannot be read as a vector"),
        (b"[1, NaN]", r"f holds NaN, infinity or more than a float32 can at \[1\]"),
        (npy(np.array([[1, 2], [3, np.inf]])), r"f holds NaN, .* at \[1, 1\]"),
        (b"[1e39, 2]", r"f holds NaN, .* at \[0\]"),
        (b"[1" + b"0" * 400 + b"]", "f cannot be read as a vector"),
        (npy(np.array(["a"])), "f cannot be read as a vector .it holds <U1"),
        (npy(np.array([1j])), "it holds complex128"),
        (TRUNCATED, "f cannot be read as a vector"),
        (TRUNCATED + b"12", "f cannot be read as a vector"),
        (b"\x93NUMPY", "f cannot be read as a vector"),
        (b"\x93NUMPY\x01\x00\x02\x00{\n", "f cannot be read as a vector"),
        (b"\x93NUMPY\x09\x00\x02\x00{}\n", "f cannot be read as a vector"),
    ],
)
def test_what_is_no_vector_is_a_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_vectors(content, name="f")


def test_objects_are_refused_before_any_is_made() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("the pickle was read",))

    file = io.BytesIO()
    np.save(file, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects, which are pickles and run code when read"):
        read_vectors(file.getvalue(), name="f")
