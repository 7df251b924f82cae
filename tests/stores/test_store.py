"""What every store must do, whatever keeps it. A new backend joins tests/backends.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from embedstore.errors import NotFoundError, StoreError
from embedstore.runs.run import Run
from embedstore.stores.base import Filters, Note, Promotion, Store, moment_after, who
from embedstore.stores.contract import PointBatch, points
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import metadata_of, tiny_run

NAME = "movies__one"


@pytest.fixture(params=EVERY_BACKEND)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with BACKENDS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path)


def fill(store: Store, run: Run, name: str = NAME, *, batch: PointBatch | None = None) -> None:
    batch = batch or points(run)
    metadata = replace(metadata_of(run), count=len(batch))
    with store.writer():
        store.create(name, metadata.spec, metadata)
        store.upsert(name, batch)
        store.flush(name)
        store.seal(name, metadata)


def vectors(run: Run, movie_vectors: list[list[float]]) -> PointBatch:
    """Return the first points of run with other movie vectors."""
    made = points(run, 0, len(movie_vectors))
    return replace(made, movie_vectors=np.array(movie_vectors, np.float32))


def test_what_was_written_is_read_back_bit_by_bit(store: Store, run: Run) -> None:
    fill(store, run)
    wanted = points(run)
    (found,) = store.scroll(NAME)
    assert list(found.ids) == list(wanted.ids)
    assert found.movie_vectors.tobytes() == wanted.movie_vectors.tobytes()
    assert found.history_vectors is not None
    assert wanted.history_vectors is not None
    assert found.history_vectors.tobytes() == wanted.history_vectors.tobytes()
    assert list(found.payloads) == list(wanted.payloads)


def test_scroll_without_vectors_and_in_pages(store: Store, run: Run) -> None:
    fill(store, run)
    pages = list(store.scroll(NAME, vectors=False, limit=7))
    assert [len(page) for page in pages] == [7, 7, 7, 7, 7, 5]
    assert pages[0].movie_vectors.shape == (7, 0)
    assert [i for page in pages for i in page.ids] == list(range(1, 41))


def test_text_ids_and_the_largest_integers(store: Store, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "text", text_ids=True)
    fill(store, run)
    hits = store.search(NAME, run.movie_vectors[3], limit=40, exclude=["tt00001", "tt99999"])
    assert len(hits) == 39
    assert {hit.movie_id for hit in hits} == set(run.movies.values.tolist()) - {"tt00001"}
    assert np.array_equal(store.vectors_of(NAME, ["tt00003"]), run.movie_vectors[2:3])


def test_search_is_the_plain_formula(store: Store, run: Run) -> None:
    fill(store, run)
    psi = run.tower([0, 3, 7])
    scores = run.movie_vectors @ psi
    best = np.argsort(-scores)[:10]
    hits = store.search(NAME, psi, limit=10)
    assert [hit.movie_id for hit in hits] == run.movies.ids(best)
    assert np.allclose([hit.score for hit in hits], scores[best], atol=1e-5)
    assert hits[0].payload == points(run).payloads[best[0]]


def test_search_batch_is_search(store: Store, run: Run) -> None:
    fill(store, run)
    excludes = [[k + 1, 5] for k in range(6)]
    batch = store.search_batch(NAME, run.movie_vectors[:6], limit=4, excludes=excludes)
    assert batch == [store.search(NAME, run.movie_vectors[k], limit=4, exclude=excludes[k]) for k in range(6)]


def test_vectors_come_with_the_hits_where_they_are_asked_for(store: Store, run: Run) -> None:
    fill(store, run)
    plain = store.search_batch(NAME, run.movie_vectors[:2], limit=5)
    assert {hit.vector for hits in plain for hit in hits} == {None}
    for hits, same in zip(
        store.search_batch(NAME, run.movie_vectors[:2], limit=5, with_vectors=True), plain, strict=True
    ):
        assert hits == same
        rows = run.movies.rows([hit.movie_id for hit in hits])
        assert np.array_equal([hit.vector for hit in hits], run.movie_vectors[rows])  # type: ignore[arg-type]


def test_ties_are_in_ascending_order_of_movie_id_also_at_the_end(store: Store, run: Run) -> None:
    # 40 points in scores 2 (odd ids) and 1 (even ids): the top 15 are odd ids, in order
    made = vectors(run, [[2.0 if movie_id % 2 else 1.0, 0, 0, 0] for movie_id in range(1, 41)])
    fill(store, run, batch=made)
    for limit in (1, 15, 20, 25, 40, 1000):
        hits = store.search(NAME, np.array([1, 0, 0, 0], np.float32), limit=limit)
        wanted = [*range(1, 41, 2), *range(2, 41, 2)][:limit]
        assert [hit.movie_id for hit in hits] == wanted


def test_a_catalog_of_one_score_comes_in_order_of_movie_id(store: Store, run: Run) -> None:
    fill(store, run, batch=vectors(run, [[0.0, 0, 0, 0]] * 40))
    hits = store.search(NAME, np.array([1, 0, 0, 0], np.float32), limit=3, exclude=[2])
    assert [hit.movie_id for hit in hits] == [1, 3, 4]


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        (Filters(genres=("Comedy",)), lambda m: "Comedy" in m.genres),
        (Filters(genres=("Comedy", "Drama")), lambda m: {"Comedy", "Drama"} <= set(m.genres)),
        (Filters(years=(("=", 1960),)), lambda m: m.year == 1960),
        (Filters(years=(("<", 1960),)), lambda m: m.year is not None and m.year < 1960),
        (Filters(years=(("<=", 1960),)), lambda m: m.year is not None and m.year <= 1960),
        (Filters(years=((">", 1960),)), lambda m: m.year is not None and m.year > 1960),
        (Filters(years=((">=", 1960), ("<", 1970))), lambda m: m.year and 1960 <= m.year < 1970),
        (Filters(genres=("No such",)), lambda _: False),
    ],
)
def test_filters(store: Store, run: Run, filters: Filters, holds: Callable[..., bool]) -> None:
    fill(store, run)
    wanted = {i for i, movie in zip(run.movies.values.tolist(), run.catalog, strict=True) if holds(movie)}
    hits = store.search(NAME, run.movie_vectors[0], limit=40, filters=filters)
    assert {hit.movie_id for hit in hits} == wanted
    assert store.count(NAME, filters=filters) == len(wanted)


def test_excluded_movies_make_room_for_others(store: Store, run: Run) -> None:
    fill(store, run)
    first = store.search(NAME, run.movie_vectors[0], limit=20)
    second = store.search(NAME, run.movie_vectors[0], limit=20, exclude=[hit.movie_id for hit in first])
    assert first + second == store.search(NAME, run.movie_vectors[0], limit=40)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(store: Store, run: Run, bad: float) -> None:
    fill(store, run)
    with pytest.raises(ValueError, match="finite"):
        store.search(NAME, np.array([bad, 0, 0, 0], np.float32), limit=1)
    with pytest.raises(ValueError, match="finite"):
        fill(store, run, "movies__two", batch=vectors(run, [[bad, 0, 0, 0]]))


def test_wrong_shapes_are_refused(store: Store, run: Run) -> None:
    fill(store, run)
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        store.search(NAME, np.zeros(3, np.float32), limit=1)
    with pytest.raises(ValueError, match="limit"):
        store.search(NAME, np.zeros(4, np.float32), limit=0)


def test_a_building_collection_is_neither_searched_nor_promoted(store: Store, run: Run) -> None:
    metadata = metadata_of(run)
    store.create(NAME, metadata.spec, metadata)
    assert store.collections() == [NAME]
    assert store.metadata(NAME).state == "building"
    with pytest.raises(StoreError, match="not finished"):
        store.search(NAME, np.zeros(4, np.float32), limit=1)
    with pytest.raises(StoreError, match="not finished"):
        store.promote("movies", NAME)
    assert store.aliases() == {}


def test_a_sealed_collection_changes_only_at_the_next_seal(store: Store, run: Run) -> None:
    fill(store, run)
    assert store.intact(NAME) != store.in_place
    with pytest.raises(StoreError, match="sealed"):
        store.delete(NAME, [1])
    with store.writer():
        store.revise(NAME)
        store.delete(NAME, [1, 2])
        store.flush(NAME)
        assert store.count(NAME) == 38  # the writer sees its own version
        store.seal(NAME, replace(metadata_of(run), count=38))
    assert store.count(NAME) == 38
    with pytest.raises(StoreError, match="sealed"):
        store.delete(NAME, [3])


def test_a_revision_that_is_never_sealed_leaves_no_trace(store: Store, run: Run) -> None:
    if store.in_place:
        pytest.skip("a server is mended in place")
    fill(store, run)
    with store.writer():
        store.revise(NAME)
        store.delete(NAME, [1, 2])
    with store.writer():
        store.revise(NAME, empty=True)
    assert store.count(NAME) == 40
    assert store.intact(NAME)


def test_aliases_and_their_history(store: Store, run: Run) -> None:
    fill(store, run)
    fill(store, run, "movies__two")
    assert store.promote("movies", NAME)
    assert store.promote("movies", "movies__two")
    assert not store.promote("movies", "movies__two")
    assert store.aliases() == {"movies": "movies__two"}
    assert [flip.collection for flip in store.promotions("movies")] == [NAME, "movies__two"]
    assert store.live("movies").collection == "movies__two"
    assert store.live("movies", 1).collection == NAME
    with pytest.raises(NotFoundError, match="2 times"):
        store.live("movies", 2)
    with pytest.raises(NotFoundError, match="embedstore sync"):
        store.live("films")


def test_a_flip_is_remembered_with_its_reason(store: Store, run: Run) -> None:
    fill(store, run)
    fill(store, run, "movies__two")
    gate = {"gate": "ndcg@100>=live", "passed": True}
    store.promote("movies", NAME, Note(why="first"))
    store.promote("movies", "movies__two", Note("better" * 200, [gate], who="ann@night", tool_version="9"))
    first, second = store.promotions("movies")
    assert (first.why, first.who, first.previous, first.gates) == ("first", who(), None, [])
    assert second.at > first.at
    assert second == Promotion(
        "movies__two", run.run_id, second.at, NAME, "ann@night", ("better" * 200)[:500], "9", [gate]
    )


def test_a_pin_outlives_what_sync_writes(store: Store, run: Run) -> None:
    fill(store, run)
    unpinned = store.metadata(NAME)
    pin = {"at": "2026-01-01T00:00:00+00:00", "who": "ann@night", "why": "the best of the year"}
    store.pin(NAME, pin)
    with store.writer():
        store.revise(NAME)
        store.flush(NAME)
        store.seal(NAME, unpinned)
    store.set_metadata(NAME, unpinned)
    assert store.metadata(NAME).pinned == pin
    store.pin(NAME, None)
    assert store.metadata(NAME).pinned is None


def test_clocks_that_go_back_leave_the_order_of_flips(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, run)
    fill(store, run, "movies__two")

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) - timedelta(days=1)

    store.promote("movies", NAME)
    monkeypatch.setattr("embedstore.stores.base.datetime", Yesterday)
    store.promote("movies", "movies__two")
    assert [flip.collection for flip in store.promotions("movies")] == [NAME, "movies__two"]


def test_a_name_is_either_an_alias_or_a_collection(store: Store, run: Run) -> None:
    fill(store, run)
    store.promote("movies", NAME)
    with pytest.raises(StoreError, match="name of a collection"):
        store.promote(NAME, NAME)
    with pytest.raises(StoreError, match="name of an alias"):
        store.create("movies", metadata_of(run).spec, metadata_of(run))


def test_drop_spares_what_an_alias_names(store: Store, run: Run) -> None:
    fill(store, run)
    fill(store, run, "movies__two")
    store.promote("movies", NAME)
    with pytest.raises(StoreError, match="alias 'movies'"):
        store.drop(NAME)
    store.drop("movies__two")
    assert store.collections() == [NAME]
    with pytest.raises(NotFoundError):
        store.metadata("movies__two")


def test_a_delete_is_of_all_that_was_written_before_it(store: Store, run: Run) -> None:
    metadata = replace(metadata_of(run), count=0)
    with store.writer():
        store.create(NAME, metadata.spec, metadata)
        for row in range(40):
            store.upsert(NAME, points(run, row, row + 1))
            store.delete(NAME, [row + 1])
        store.flush(NAME)
        assert store.count(NAME) == 0


def test_a_point_that_other_hands_left_without_a_movie_is_named(store: Store, run: Run) -> None:
    made = points(run)
    for payload in ({}, {"title": "x"}, {"movie_id": None}, {"movie_id": [1]}):
        fill(store, run, batch=replace(made, payloads=[payload, *made.payloads[1:]]))
        with pytest.raises(StoreError, match=r"point 1 of collection .* has no movie_id; repair it"):
            store.search(NAME, run.movie_vectors[0], limit=40)
        store.drop(NAME)


def test_text_among_integers_is_ranked_after_them(store: Store, run: Run) -> None:
    made = vectors(run, [[0.0, 0, 0, 0]] * 40)
    named = [{**payload, "movie_id": "text"} for payload in made.payloads[:1]]
    fill(store, run, batch=replace(made, payloads=[*named, *made.payloads[1:]]))
    hits = store.search(NAME, np.zeros(4, np.float32), limit=40)
    assert [hit.movie_id for hit in hits] == [*range(2, 41), "text"]


def test_a_flip_noted_at_the_end_of_time_stands_in_nobodys_way() -> None:
    assert moment_after("9999-12-31T23:59:59.999999+00:00") > "2026"


@pytest.mark.parametrize("name", ["nope", "../store", "", ".", "a/b"])
def test_an_unknown_collection_is_not_found(store: Store, name: str) -> None:
    for question in (store.metadata, store.count, store.drop):
        with pytest.raises(NotFoundError, match="no collection"):
            question(name)


def test_vectors_of_an_unknown_movie(store: Store, run: Run) -> None:
    fill(store, run)
    assert np.array_equal(store.vectors_of(NAME, [3, 1]), run.movie_vectors[[2, 0]])
    with pytest.raises(NotFoundError, match="movie 99"):
        store.vectors_of(NAME, [3, 99])
    assert store.vectors_of(NAME, []).shape == (0, 4)


def test_payload_indexes_are_those_of_the_contract(store: Store, run: Run) -> None:
    fill(store, run)
    assert store.indexes(NAME) == {"genres": "keyword", "year": "integer"}
