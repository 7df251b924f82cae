"""sync to a server: what is there is compared, point by point, and mended in place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedstore.sync.upsert as upsert
from embedstore.errors import NotFoundError, StoreError, VerificationError
from embedstore.runs.run import Run
from embedstore.stores.contract import points
from embedstore.stores.rest import anything
from embedstore.stores.server import ServerStore
from embedstore.sync import plan, promote_run, rollback, status, sync, verify
from tests.backends import BACKENDS, SERVER_BACKENDS
from tests.builders import tiny_run

RUN_ID = "20260101t000000-0001"
COLLECTION = f"/collections/movies__{RUN_ID}"


@pytest.fixture(params=SERVER_BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerStore]:
    opened = BACKENDS[request.param](tmp_path)
    assert isinstance(opened, ServerStore)
    with opened:
        yield opened


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path, run_id=RUN_ID)


def by_other_hands(store: ServerStore, method: str, path: str, body: Any) -> None:
    """Send a request that embedstore did not make up."""
    store._rest.request(method, COLLECTION + path, body)


def point(run: Run, row: int, **changes: Any) -> dict[str, Any]:
    """Return one point of run as REST takes it, with changes."""
    batch = points(run, row, row + 1)
    assert batch.history_vectors is not None
    vectors = {"": batch.movie_vectors[0].tolist(), "history": batch.history_vectors[0].tolist()}
    return {"id": batch.ids[0], "vector": vectors, "payload": dict(batch.payloads[0])} | changes


def test_sync_then_plan_status_and_verify_agree(store: ServerStore, run: Run) -> None:
    report = sync(run, store)
    assert (report.state, report.written, report.promoted) == ("created", 40, True)
    assert (plan(run, store).state, plan(run, store).write) == ("unchanged", 0)
    again = sync(run, store)
    assert (again.state, again.written, again.promoted) == ("unchanged", 0, False)
    assert verify(store, "movies", run).count == 40
    (line,) = status(store)
    assert (line.aliases, line.state, line.points, line.problem) == (("movies",), "sealed", 40, None)


def test_a_tampered_collection_is_mended_point_by_point(store: ServerStore, run: Run) -> None:
    sync(run, store)
    moved = np.array(run.movie_vectors[3]) + np.float32(1e-7)
    history = {"": run.movie_vectors[4].tolist(), "history": [0.0, 0.0, 0.0, 1.0]}
    by_other_hands(store, "POST", "/points/delete?wait=true", {"points": [1, 2]})
    wrong = [
        point(run, 3, vector={"": moved.tolist(), "history": point(run, 3)["vector"]["history"]}),
        point(run, 4, vector=history),
        point(run, 5, payload={"movie_id": 6}),
        point(run, 7, id=4711),
    ]
    by_other_hands(store, "PUT", "/points?wait=true", {"points": wrong})
    with pytest.raises(VerificationError, match=r"6 points differ|point \d+"):
        verify(store, "movies", run)
    assert plan(run, store).state == "repair"
    report = sync(run, store)
    assert (report.state, report.written, report.deleted) == ("repaired", 5, 1)
    assert verify(store, "movies", run).count == 40


def test_a_payload_index_that_other_hands_dropped_comes_back(store: ServerStore, run: Run) -> None:
    sync(run, store)
    if not store._rest.get("/", anything).get("commit"):
        pytest.skip("local mode has no payload indexes")
    store._rest.request("DELETE", f"{COLLECTION}/index/genres?wait=true")
    with pytest.raises(VerificationError, match="index of genres"):
        verify(store, "movies", run)
    assert sync(run, store).state == "repaired"
    assert store.indexes(f"movies__{RUN_ID}") == {"genres": "keyword", "year": "integer"}


def test_an_interrupted_sync_carries_on(
    store: ServerStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsert, "_BATCH", 10)

    def stop(what: str, done: int, total: int) -> None:
        if what == "writing" and done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(run, store, progress=stop)
    assert store.aliases() == {}
    assert store.metadata(f"movies__{RUN_ID}").state == "building"
    report = sync(run, store)
    assert (report.state, report.written) == ("resumed", 20)
    assert verify(store, "movies", run).count == 40


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_between_flip_and_note_loses_no_history(
    store: ServerStore, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    other = tiny_run(tmp_path, seed=5, run_id="20260101t000000-0002")
    sync(run, store)
    with monkeypatch.context() as patch:
        patch.setattr(ServerStore, "_note", lambda *_: None)
        sync(other, store)
    assert [flip.run_id for flip in store.promotions("movies")] == [run.run_id, other.run_id]
    assert store.promotions("movies")[-1].at == ""
    if again:
        assert not promote_run(store, other.run_id)
        assert store.promotions("movies")[-1].at
    assert rollback(store).run_id == run.run_id
    with monkeypatch.context() as patch:
        patch.setattr(ServerStore, "_note", lambda *_: None)
        assert promote_run(store, other.run_id)
    assert rollback(store).run_id == run.run_id
    flips = [(flip.run_id, bool(flip.at)) for flip in store.promotions("movies")]
    assert flips == [
        (run.run_id, True),
        (other.run_id, again),
        (run.run_id, True),
        (other.run_id, False),
        (run.run_id, True),
    ]


def test_a_flip_whose_note_is_lost_is_told_of_by_the_next(
    store: ServerStore, run: Run, tmp_path: Path
) -> None:
    other = tiny_run(tmp_path, seed=5, run_id="20260101t000000-0002")
    for each in (run, other, run):
        sync(each, store)
    lost = f"movies__{other.run_id}"
    store._rest.request("PATCH", f"/collections/{lost}", {"metadata": {"promotions": []}})
    flips = [(flip.run_id, bool(flip.at)) for flip in store.promotions("movies")]
    assert flips == [(run.run_id, True), (other.run_id, False), (run.run_id, True)]
    store._rest.request("DELETE", f"/collections/{lost}")
    assert [(flip.run_id, bool(flip.at)) for flip in store.promotions("movies")] == flips


def test_a_flip_from_a_collection_of_others_names_it(store: ServerStore, run: Run) -> None:
    store._rest.request("PUT", "/collections/movies__theirs", {"vectors": {"size": 4, "distance": "Dot"}})
    sync(run, store, promote=False)
    move = {"create_alias": {"alias_name": "movies", "collection_name": "movies__theirs"}}
    store._rest.request("POST", "/collections/aliases", {"actions": [move]})
    assert promote_run(store, run.run_id)
    assert [flip.run_id for flip in store.promotions("movies")] == ["theirs", run.run_id]


def test_a_collection_of_something_else_under_our_name_is_refused(store: ServerStore, run: Run) -> None:
    store._rest.request("PUT", COLLECTION, {"vectors": {"size": 4, "distance": "Dot"}})
    with pytest.raises(StoreError, match="not made by embedstore"):
        sync(run, store)
    assert status(store) == []


def test_an_alias_named_like_a_collection_is_refused(store: ServerStore, run: Run) -> None:
    store._rest.request("PUT", "/collections/films", {"vectors": {"size": 4, "distance": "Dot"}})
    with pytest.raises(StoreError, match="name of a collection"):
        sync(run, store, alias="films")


def test_a_large_collection_gets_the_least_index_whose_recall_is_good(
    store: ServerStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsert, "_LARGEST_EXACT", 0)
    measured = iter([{"k": 40, "value": 0.9, "at_10": 1.0}, {"k": 40, "value": 0.98, "at_10": 0.995}])
    monkeypatch.setattr(upsert, "measure_recall", lambda *_: next(measured))
    sync(run, store)
    made = store.metadata(f"movies__{RUN_ID}")
    assert made.search == {"exact": False, "m": 48, "ef": 384}
    assert made.recall == {"k": 40, "value": 1.0, "at_10": 1.0}
    vectors = store._rest.get(COLLECTION, anything)["config"]["params"]["vectors"]
    if store._rest.get("/", anything).get("commit"):  # local mode has no index
        assert vectors[""]["hnsw_config"] == {"m": 48, "ef_construct": 384}
        assert vectors["history"]["hnsw_config"] == {"m": 0}
    assert sync(run, store).state == "unchanged"


def test_recall_below_the_gate_stops_before_the_flip(
    store: ServerStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[verify.__module__], "_LEAST_RECALL", 1.1)
    with pytest.raises(VerificationError, match="true top 40"):
        sync(run, store)
    assert store.aliases() == {}


def test_a_dense_run_has_no_history_vectors(store: ServerStore, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "dense", additive=False, run_id=RUN_ID)
    sync(run, store)
    (found,) = store.scroll(f"movies__{RUN_ID}")
    assert found.history_vectors is None
    assert replace(found, payloads=[]).movie_vectors.tobytes() == run.movie_vectors.tobytes()


def test_metadata_that_say_something_else_of_the_run_are_named_and_mended(
    store: ServerStore, run: Run
) -> None:
    name = sync(run, store).collection
    right = store.metadata(name)
    for wrong in ({"count": 1}, {"tower": "dense"}, {"run_id": "20000101t000000-0000"}, {"debias": 0.25}):
        store.set_metadata(name, replace(right, **wrong))
        ((key, value),) = wrong.items()
        with pytest.raises(VerificationError, match=f"{key} {value}, expected|holds run"):
            verify(store, name, run)
        assert plan(run, store).changes == (
            f"the metadata of the collection have the {key} {value}, expected {getattr(right, key)}",
        )
        assert sync(run, store).state == "repaired"
        assert store.metadata(name) == right
        assert verify(store, name, run).count == 40


def test_a_payload_that_nests_too_deeply_for_grpc_is_mended(store: ServerStore, run: Run) -> None:
    sync(run, store)
    deep: Any = 1
    for _ in range(50):
        deep = [{"deeper": deep}]
    by_other_hands(store, "PUT", "/points?wait=true", {"points": [point(run, 3, payload={"title": deep})]})
    with pytest.raises(VerificationError, match="point 4 "):
        verify(store, "movies", run)
    pages = list(store.scroll(f"movies__{RUN_ID}", limit=2))  # by gRPC, by REST, and by gRPC again
    assert [key for page in pages for key in page.ids] == list(range(1, 41))
    assert sync(run, store).written == 1


def test_what_is_served_is_not_deleted_because_other_hands_say_so(store: ServerStore, run: Run) -> None:
    name = sync(run, store).collection
    store.set_metadata(name, replace(store.metadata(name), state="deleting"))
    assert sync(run, store).written == 0
    assert store.metadata(name).state == "sealed"
    assert store.aliases() == {"movies": name}


@pytest.mark.parametrize(
    ("odd", "what"),
    [({"datatype": "uint8"}, "uint8"), ({"multivector_config": {"comparator": "max_sim"}}, "many vectors")],
)
def test_vectors_of_another_type_are_refused(
    store: ServerStore, run: Run, odd: dict[str, Any], what: str
) -> None:
    name = sync(run, store).collection
    metadata = store.metadata(name).to_dict()
    plain = {"size": 4, "distance": "Dot"}
    by_other_hands(store, "DELETE", "", None)
    by_other_hands(
        store, "PUT", "", {"vectors": {"": {**plain, **odd}, "history": plain}, "metadata": metadata}
    )
    with pytest.raises(StoreError, match=f"and type {what}, expected 4, Dot and float32; delete the coll"):
        sync(run, store)
    by_other_hands(store, "DELETE", "", None)
    assert sync(run, store).state == "created"


def test_flips_are_never_carried_into_what_another_tool_made(
    store: ServerStore, run: Run, tmp_path: Path
) -> None:
    name = sync(run, store).collection
    store._rest.request("PUT", "/collections/canary", {"vectors": {"size": 4, "distance": "Dot"}})
    move = {"create_alias": {"alias_name": "movies", "collection_name": "canary"}}
    store._rest.request("POST", "/collections/aliases", {"actions": [move]})
    store.drop(name)
    info = store._rest.get("/collections/canary", anything)
    assert info["config"].get("metadata") in (None, {})


def test_flips_that_are_none_are_not_carried(store: ServerStore, run: Run, tmp_path: Path) -> None:
    other = tiny_run(tmp_path, seed=5, run_id="20260101t000000-0002")
    old = sync(run, store).collection
    new = sync(other, store).collection
    store._rest.request("PATCH", f"/collections/{new}", {"metadata": {"promotions": [3, None, "x"]}})
    store.drop(old)
    assert [flip.collection for flip in store.promotions("movies")] == [old, new]


def test_names_that_other_tools_gave_break_no_sentence(store: ServerStore, run: Run) -> None:
    name = sync(run, store).collection
    odd = {"create_alias": {"alias_name": "two\nlines", "collection_name": name}}
    store._rest.request("POST", "/collections/aliases", {"actions": [odd]})
    with pytest.raises(NotFoundError) as raised:
        store.live("films")
    assert "(aliases: movies, 'two\\nlines')" in str(raised.value)
