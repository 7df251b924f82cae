"""restore: the run of a collection, from the collection alone, byte by byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.data.features import MovieId
from embedstore.errors import NotFoundError, RunError, StoreError, UsageError, VerificationError
from embedstore.query.recommend import recommend
from embedstore.runs.run import Run
from embedstore.runs.writer import ids_of
from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection
from embedstore.stores.contract import collection_name, points
from embedstore.stores.server import ServerStore
from embedstore.sync import find_collection, restore, sync, verify
from tests.builders import tiny_dataset, tiny_run, with_unrated
from tests.server import LocalMode, server_store

FILES = ("movie_ids.npy", "movie_vectors.npy", "history_vectors.npy", "movies.jsonl", "tower.json")

IDS: dict[str, list[MovieId]] = {
    "integers": [1, 2, 30, 4_000_000],
    "negative": [-70, -1, 0, 5, 2**40],  # the points of the first two have UUIDs
    "unsigned": [1, 2**63, 2**64 - 1],
    "text": ["b", "tt10", "tt9", "\u00fc"],  # UUIDs all, in another order
}


@pytest.fixture(
    params=["edge", "local", *(pytest.param(way, marks=pytest.mark.server) for way in ("rest", "grpc"))]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Store
    if request.param == "edge":
        opened = open_store(tmp_path / "store", create=True)
    elif request.param == "rest":
        opened = server_store(grpc_port=0)
    elif request.param == "grpc":
        opened = server_store()
    else:
        opened = ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=LocalMode())
    with opened:
        yield opened


def run_of(folder: Path, ids: list[MovieId], *, unrated: MovieId | None = None) -> Run:
    """Write a run of movies with these ids, the second without title, year and genres."""
    n = len(ids)
    columns = RatingColumns(
        user_ids=np.repeat(np.arange(3), n),
        movie_ids=ids_of(ids * 3),
        ratings=np.full(3 * n, 4, np.float32),
        timestamps=np.arange(3 * n),
    )
    table = {
        i: Movie() if k == 1 else Movie(f"T\n{i} \u201c\u00e9\u201d", 1990 + k, ("War", "Drama"))
        for k, i in enumerate(ids)
    }
    if unrated is not None:
        table[unrated] = Movie("unrated")
    return tiny_run(folder, dataset=Dataset.of("ids", columns, table))


@pytest.mark.parametrize("kind", list(IDS))
def test_a_restored_run_is_the_original_byte_by_byte(tmp_path: Path, store: Store, kind: str) -> None:
    if kind == "unsigned" and isinstance(store, ServerStore) and store.bulk_way().startswith("gRPC"):
        pytest.skip("gRPC holds no payload integer beyond int64")
    run = run_of(tmp_path, IDS[kind])
    sync(run, store)
    report = restore(store, "movies", tmp_path / "elsewhere")
    assert (report.run_id, report.count, report.written) == (run.run_id, len(IDS[kind]), True)
    restored = Run.load(report.path)
    restored.verify()
    for name in FILES:
        assert (restored.path / name).read_bytes() == (run.path / name).read_bytes(), name
    assert restored.fingerprint == run.fingerprint
    origin = f"{socket.gethostname()}:{run.path}"
    assert restored.manifest.config == {"restored_from": report.collection, "origin": origin}
    assert restored.manifest.dataset["n_ratings"] == 3 * len(IDS[kind])
    assert len(restored.users) == 0
    assert {path.name for path in restored.path.iterdir()} == {*FILES, "histories", "manifest.json"}


def test_a_cold_movie_stays_cold_in_a_store_and_after_it(tmp_path: Path, store: Store) -> None:
    dataset = with_unrated(tiny_dataset(), Movie("New", 2024, ("Drama",)))
    run = tiny_run(tmp_path, dataset=dataset, cold=True)
    sync(run, store)
    verify(store, "movies", run)
    restored = Run.load(restore(store, "movies", tmp_path / "elsewhere").path)
    assert (restored.path / "movies.jsonl").read_bytes() == (run.path / "movies.jsonl").read_bytes()
    answer = recommend(run, store, history=[41, 3], k=100, include_seen=True)
    assert {movie.movie_id for movie in answer.recommendations if movie.cold} == {41}


def test_a_restored_run_answers_a_history_as_the_original_does(tmp_path: Path, store: Store) -> None:
    run = tiny_run(tmp_path)
    sync(run, store)
    restored = Run.load(restore(store, "movies", tmp_path / "elsewhere").path)
    history: list[MovieId] = [3, 9, 27]
    assert recommend(restored, store, history=history) == recommend(run, store, history=history)
    assert verify(store, "movies", restored).count == 40
    assert sync(restored, store).state == "unchanged"


@pytest.mark.parametrize(("ids", "unrated"), [(["a", "b"], "a-much-longer-id"), ([1, 2], 2**64 - 1)])
def test_an_id_that_nobody_rated_leaves_no_trace_in_the_files(
    tmp_path: Path, ids: list[MovieId], unrated: MovieId
) -> None:
    run = run_of(tmp_path, ids, unrated=unrated)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        assert Run.load(restore(store, "movies", tmp_path / "elsewhere").path).fingerprint == run.fingerprint


def test_points_of_many_batches_find_their_rows(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, n=2500, text_ids=True)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        assert Run.load(restore(store, "movies", tmp_path / "elsewhere").path).fingerprint == run.fingerprint


def test_a_run_that_is_there_is_left_alone_or_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        assert not restore(store, "movies", tmp_path / "runs").written
        assert len(run.users) == 12
        other = tiny_run(tmp_path / "other", seed=3, run_id=run.run_id)
        with pytest.raises(RunError, match="has other content"):
            restore(store, "movies", other.path.parent)


def test_a_dense_run_cannot_be_restored(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, additive=False)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        with pytest.raises(RunError, match=f"tower is dense.* copy the folder {run.run_id} to "):
            restore(store, "movies", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"title": "another"},
        {"movie_id": 2},
        {"movie_id": "text"},
        {"movie_id": 1.5},
        {"movie_id": None},
        {"movie_id": 2**70},
        {"popularity": "many"},
        {"genres": 7},
    ],
)
def test_a_tampered_collection_leaves_nothing_behind(tmp_path: Path, change: dict[str, object]) -> None:
    from dataclasses import replace

    run = tiny_run(tmp_path)
    with open_store(tmp_path / "store", create=True) as store:
        name = sync(run, store).collection
        batch = points(run, 0, 1)
        with store.writer():
            store.revise(name)
            store.upsert(name, replace(batch, payloads=[{**batch.payloads[0], **change}]))
            store.seal(name, store.metadata(name))
        with pytest.raises(VerificationError, match=f"{name}.* expected the points of run {run.run_id}"):
            restore(store, "movies", tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_references_to_collections(tmp_path: Path) -> None:
    runs = [tiny_run(tmp_path, seed=k, run_id=f"2020010{k}t000000-0000") for k in (1, 2)]
    names = [collection_name("movies", run.run_id) for run in runs]
    with open_store(tmp_path / "store", create=True) as store:
        for run in runs:
            sync(run, store)
        for reference, found in [
            ("movies", 1),
            ("@movies", 1),
            ("@movies~1", 0),
            (names[0], 0),
            (runs[0].run_id, 0),
            ("20200102", 1),
        ]:
            assert find_collection(store, reference)[0] == names[found], reference
        for reference in ("films", "2021", "", "@films", "../x"):
            with pytest.raises(NotFoundError):
                find_collection(store, reference)
        with pytest.raises(NotFoundError):
            find_collection(store, "2020", alias="films")
        with pytest.raises(UsageError, match="give more of the run id"):
            find_collection(store, "2020")


def test_an_unfinished_collection_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    run = tiny_run(tmp_path)
    with open_store(tmp_path / "store", create=True) as store:
        metadata = store.metadata(sync(run, store).collection)
        store.create("movies__half", metadata.spec, replace(metadata, state="building"))
        with pytest.raises(StoreError, match="is not finished"):
            restore(store, "movies__half", tmp_path / "elsewhere")
