"""sync: idempotent, resumable, exact; the alias moves last."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import NotFoundError, StoreError, UsageError, VerificationError
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.stores.contract import Spread
from embedstore.sync import plan, rollback, status, sync, verify
from tests.builders import tiny_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path)


def foreign(folder: Path, *, delete: list[int], retitle: list[int]) -> None:
    """Change points through Edge, behind the back of the store."""
    import qdrant_edge as edge

    shard = edge.EdgeShard.load(str(next((folder / "collections").glob("*/g*"))))
    if delete:
        shard.update(edge.UpdateOperation.delete_points(list(delete)))
    if retitle:
        shard.update(edge.UpdateOperation.set_payload(list(retitle), {"title": "another"}))
    shard.flush()
    shard.close()


def test_a_folder_has_neither_shards_nor_replicas(tmp_path: Path, run: Run) -> None:
    with (
        open_store(tmp_path / "store", create=True) as store,
        pytest.raises(UsageError, match="an embedded store has neither shards nor replicas"),
    ):
        sync(run, store, spread=Spread(shards=2))


def test_sync_then_plan_status_and_verify_agree(tmp_path: Path, run: Run) -> None:
    assert plan(run, None).state == "create"
    with open_store(tmp_path / "store", create=True) as store:
        report = sync(run, store)
        assert (report.state, report.written, report.promoted) == ("created", 40, True)
        assert report.recall == {"k": 40, "value": 1.0, "at_10": 1.0}
        assert plan(run, store).state == "unchanged"
        assert verify(store, "movies", run).count == 40
        (line,) = status(store)
        assert (line.aliases, line.state, line.points, line.problem) == (("movies",), "sealed", 40, None)


def test_second_sync_writes_nothing(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}
    with open_store(tmp_path / "store", create=True) as store:
        assert sync(run, store).state == "unchanged"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")} == before


def test_no_promote_stops_before_the_flip_and_rollback_returns(tmp_path: Path, run: Run) -> None:
    other = tiny_run(tmp_path, seed=5, run_id="20200101t000000-0001")
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        assert not sync(other, store, promote=False).promoted
        assert store.live("movies").run_id == run.run_id
        with pytest.raises(NotFoundError, match="no other"):
            rollback(store)
        assert sync(other, store).promoted
        assert rollback(store).run_id == run.run_id


def test_a_collection_of_other_content_is_refused(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        other = tiny_run(tmp_path / "other", seed=5, run_id=run.run_id)
        with pytest.raises(StoreError, match="other content"):
            sync(other, store)
        with pytest.raises(VerificationError, match="other files"):
            verify(store, "movies", other)
        assert verify(store, "movies", run).count == 40


def test_vectors_that_are_not_finite_write_nothing(tmp_path: Path, run: Run) -> None:
    run.__dict__["movie_vectors"] = np.full((40, 4), np.nan, np.float32)
    with open_store(tmp_path / "store", create=True) as store:
        with pytest.raises(Exception, match="movie 1 in run"):
            sync(run, store)
        assert store.collections() == []


def test_verify_names_the_point(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
    foreign(tmp_path / "store", delete=[], retitle=[17])
    with open_store(tmp_path / "store") as store:
        with pytest.raises(VerificationError, match="point 17 has title 'another'"):
            verify(store, "movies", run)
        report = sync(run, store)
        assert (report.state, report.written) == ("repaired", 1)


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(1, 40), max_size=40), st.sets(st.integers(1, 40), max_size=10))
def test_after_any_change_sync_writes_exactly_that_many(deleted: set[int], retitled: set[int]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        run = tiny_run(folder)
        with open_store(folder / "store", create=True) as store:
            sync(run, store)
        changed = sorted(retitled - deleted)
        foreign(folder / "store", delete=sorted(deleted), retitle=changed)
        with open_store(folder / "store") as store:
            assert sync(run, store).written == len(deleted) + len(changed)
            assert verify(store, "movies", run).count == 40
    finally:
        shutil.rmtree(folder)


def test_any_qdrant_client_computes_psi_inside_qdrant(tmp_path: Path, run: Run) -> None:
    from qdrant_client import QdrantClient, models

    from embedstore.stores.contract import points

    batch = points(run)
    assert batch.history_vectors is not None
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=4, distance=models.Distance.DOT)
    client.create_collection("c", vectors_config={"": params, "history": params})
    client.upsert(
        "c",
        [
            models.PointStruct(id=i, vector={"": v.tolist(), "history": h.tolist()}, payload=dict(p))
            for i, v, h, p in zip(
                batch.ids, batch.movie_vectors, batch.history_vectors, batch.payloads, strict=True
            )
        ],
    )
    history = [3, 9, 27]
    answer = client.query_points(
        "c",
        query=models.RecommendQuery(
            recommend=models.RecommendInput(
                positive=list(history), strategy=models.RecommendStrategy.AVERAGE_VECTOR
            )
        ),
        using="",
        lookup_from=models.LookupLocation(collection="c", vector="history"),
        limit=10,
    ).points
    client.close()
    with open_store(tmp_path / "store", create=True) as store:
        name = sync(run, store).collection
        hits = store.search(name, run.tower(run.movies.rows(history)), limit=10, exclude=history)
    found = [point for point in answer if point.id not in history][:10]
    assert [point.id for point in found] == [hit.movie_id for hit in hits][: len(found)]
    assert np.allclose([p.score for p in found], [h.score for h in hits][: len(found)], atol=1e-5)
    assert len(found) == 10
    assert replace(batch).ids == batch.ids
