"""watch, look by look: pauses and what happens during them are the test's, stores and runs are real."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import (
    RunError,
    StoreLockedError,
    StoreUnreachableError,
    UsageError,
    VerificationError,
)
from embedstore.runs.manifest import MANIFEST
from embedstore.stores.base import Store, open_store
from embedstore.stores.edge import EdgeStore
from embedstore.sync import rollback, sync
from embedstore.sync.gates import parse_gate
from embedstore.sync.watch import Task, watch
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run
from tests.server_process import free_port

FIRST, SECOND, THIRD, FOURTH = (f"2026010{day}t000000-0001" for day in range(1, 5))
COLLECTION = "movies__{}".format


class Watched:
    """A watch of folder / "runs" that ends when its events are over; each one happens in one pause."""

    def __init__(self, folder: Path, *events: Callable[[], object]) -> None:
        self.log: list[str] = []
        self.pauses: list[float] = []
        self.between_batches: Callable[[], bool] = lambda: False
        self._folder = folder
        self._events = list(events)

    def __call__(self, store: Store | str, task: Task | None = None, **options: Any) -> Watched:
        def opened() -> Any:
            return nullcontext(store) if isinstance(store, Store) else open_store(store, create=True)

        runs = self._folder / "runs"
        watch(runs, opened, task or Task(), pause=self._pause, log=self.log.append, **options)
        return self

    def _pause(self, seconds: float) -> bool:
        if not seconds:
            return self.between_batches()
        self.pauses.append(seconds)
        if not self._events:
            return True
        self._events.pop(0)()
        return False


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with BACKENDS[getattr(request, "param", "edge")](tmp_path) as opened:
        yield opened


every_backend = pytest.mark.parametrize("store", EVERY_BACKEND, indirect=True)


def promoted(store: Store) -> list[str]:
    return [flip.run_id for flip in store.promotions("movies")]


def nothing() -> None:
    pass


@every_backend
def test_the_newest_run_is_caught_up_and_new_ones_follow_the_oldest_first(
    tmp_path: Path, store: Store
) -> None:
    for run_id in (FIRST, SECOND):
        tiny_run(tmp_path, run_id=run_id)

    def two_more() -> None:
        for run_id in (FOURTH, THIRD):
            tiny_run(tmp_path, run_id=run_id)

    watched = Watched(tmp_path, two_more, nothing)(store)
    assert promoted(store) == [SECOND, THIRD, FOURTH]
    assert watched.log[0] == f"watching {tmp_path / 'runs'}; alias movies names nothing"
    assert watched.log[-1] == (
        f"{COLLECTION(FOURTH)}: created, 40 of 40 points written; "
        f"alias movies -> {COLLECTION(FOURTH)} (before: {COLLECTION(THIRD)})"
    )


def test_a_folder_of_runs_that_comes_later_is_followed(tmp_path: Path, store: Store) -> None:
    Watched(tmp_path, lambda: tiny_run(tmp_path, run_id=FIRST), nothing)(store)
    assert promoted(store) == [FIRST]


@every_backend
def test_a_run_that_was_rolled_back_is_never_promoted_again(tmp_path: Path, store: Store) -> None:
    for run_id in (FIRST, SECOND):
        sync(tiny_run(tmp_path, run_id=run_id), store)
    rollback(store)
    watched = Watched(tmp_path)(store)
    assert promoted(store) == [FIRST, SECOND, FIRST]
    assert watched.log[1] == (
        f"run {SECOND} is left alone: it was live before; `embedstore promote {SECOND}` makes it so again"
    )


def test_the_live_run_and_an_older_one_that_is_restored_are_left_alone(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path, run_id=SECOND), store)
    watched = Watched(tmp_path, lambda: tiny_run(tmp_path, run_id=FIRST), nothing)(store)
    live, older = watched.log[1:]
    assert live == f"run {SECOND} is left alone: it is live"
    assert older == (
        f"run {FIRST} is left alone: it is older than the live run {SECOND}; "
        f"`embedstore sync {FIRST}` takes it nevertheless"
    )
    assert store.collections() == [COLLECTION(SECOND)]


def test_an_unfinished_folder_is_awaited_in_silence(tmp_path: Path, store: Store) -> None:
    manifest = tiny_run(tmp_path, run_id=FIRST).path / MANIFEST
    away = manifest.rename(tmp_path / MANIFEST)
    watched = Watched(tmp_path, nothing, lambda: away.rename(manifest), nothing)(store)
    assert promoted(store) == [FIRST]
    assert len(watched.log) == 3  # where it watches, that it syncs, what came of it


def test_a_run_that_is_being_copied_is_reported_once_and_taken_when_it_is_whole(
    tmp_path: Path, store: Store
) -> None:
    """Most tools copy manifest.json before movie_vectors.npy."""
    vectors = tiny_run(tmp_path, run_id=FIRST).path / "movie_vectors.npy"
    content = vectors.read_bytes()
    vectors.write_bytes(content[:100])
    watched = Watched(tmp_path, nothing, lambda: vectors.write_bytes(content), nothing)(store)
    assert promoted(store) == [FIRST]
    (line,) = [line for line in watched.log if " is damaged" in line]
    assert line.startswith(
        f"run {FIRST} is damaged: movie_vectors.npy has 100 bytes, the manifest says {len(content)}; "
    )
    assert line.endswith("(it is looked at again, in case that a copy is under way)")


def test_damaged_runs_are_reported_once_and_the_next_is_taken(tmp_path: Path, store: Store) -> None:
    def damaged() -> None:
        vectors = tiny_run(tmp_path, run_id=FIRST).path / "movie_vectors.npy"
        vectors.write_bytes(vectors.read_bytes()[:-1] + b"!")
        (tiny_run(tmp_path, run_id=SECOND).path / MANIFEST).write_text("{")

    watched = Watched(tmp_path, damaged, nothing, lambda: tiny_run(tmp_path, run_id=THIRD), nothing)(store)
    assert promoted(store) == [THIRD]
    no_json, failed = [line for line in watched.log if " is damaged" in line]
    assert no_json.startswith(f"{tmp_path / 'runs' / SECOND / MANIFEST} is not JSON")
    assert failed.startswith(f"run {FIRST} failed: run {FIRST} is damaged: movie_vectors.npy does not have")


@every_backend
def test_a_stop_between_batches_leaves_a_collection_that_the_next_start_resumes(
    tmp_path: Path, store: Store
) -> None:
    tiny_run(tmp_path, run_id=FIRST)
    watched = Watched(tmp_path)
    watched.between_batches = lambda: bool(store.collections())
    watched(store)
    assert watched.log[-1] == "stopped between two batches; the next start carries on"
    assert store.metadata(COLLECTION(FIRST)).state == "building"
    assert store.aliases() == {}
    watched = Watched(tmp_path)(store)
    assert watched.log[-1].startswith(f"{COLLECTION(FIRST)}: resumed")
    assert promoted(store) == [FIRST]


def test_a_locked_store_is_tried_again_with_growing_pauses(tmp_path: Path, store: Store) -> None:
    tiny_run(tmp_path, run_id=FIRST)
    with EdgeStore(tmp_path / "store") as other, other.writer():
        with pytest.raises(StoreLockedError):
            Watched(tmp_path)(store, once=True)
        watched = Watched(tmp_path, *[nothing] * 6)(store, interval=10)
    assert watched.pauses == [20, 40, 80, 160, 300, 300, 300]
    assert watched.log[-1].endswith(
        "is being written by another process; wait until it has finished; next try in 300 s"
    )
    Watched(tmp_path)(store)
    assert promoted(store) == [FIRST]


def test_a_server_that_is_away_is_tried_again_from_the_start(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    watched = Watched(tmp_path, nothing)(url, interval=1)
    assert watched.pauses == [2, 4]
    assert "gives no answer" in watched.log[0]
    with pytest.raises(StoreUnreachableError):
        Watched(tmp_path)(url, once=True)


def test_what_cannot_be_a_store_ends_the_start_but_no_later_look(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    tiny_run(tmp_path, run_id=FIRST)

    def a_moved_volume() -> None:
        folder.rename(tmp_path / "moved")
        folder.write_text("no folder")
        tiny_run(tmp_path, run_id=SECOND)

    def its_return() -> None:
        folder.unlink()
        (tmp_path / "moved").rename(folder)

    watched = Watched(tmp_path, a_moved_volume, its_return, nothing)(str(folder))
    assert watched.log[-3] == f"store {folder} is a file; expected a folder; next try in 20 s"
    with open_store(folder) as store:
        assert promoted(store) == [FIRST, SECOND]
    with pytest.raises(UsageError, match="is not the URL"):
        Watched(tmp_path)("ftp://127.0.0.1")


@every_backend
def test_a_run_that_fails_a_gate_is_not_promoted_and_the_next_is_awaited(
    tmp_path: Path, store: Store
) -> None:
    def measured(run_id: str, ndcg: float) -> Callable[[], object]:
        return lambda: tiny_run(tmp_path, run_id=run_id, metrics={"ndcg@100": ndcg})

    task = Task(gates=[parse_gate("ndcg@100>=0.4")])
    events = [measured(FIRST, 0.5), measured(SECOND, 0.3), measured(THIRD, 0.6)]
    watched = Watched(tmp_path, *events, nothing)(store, task)
    assert promoted(store) == [FIRST, THIRD]
    (gate,) = store.promotions("movies")[-1].gates
    assert gate["passed"]
    assert store.metadata(COLLECTION(SECOND)).state == "sealed"
    message = f"a gate failed; alias movies stays on {COLLECTION(FIRST)}, {COLLECTION(SECOND)} is sealed"
    assert [line for line in watched.log if SECOND in line and "fail" in line] == [
        f"run {SECOND}, gate ndcg@100>=0.4 failed: ndcg@100 is 0.3, wanted >= 0.4",
        f"run {SECOND} failed: {message}",
    ]
    measured(FOURTH, 0.1)()
    with pytest.raises(VerificationError, match="a gate failed"):
        Watched(tmp_path)(store, task, once=True)


def test_without_promotion_the_alias_stays(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path, run_id=FIRST), store)
    watched = Watched(tmp_path, lambda: tiny_run(tmp_path, run_id=SECOND), nothing)(
        store, Task(promote=False)
    )
    assert store.metadata(COLLECTION(SECOND)).state == "sealed"
    assert promoted(store) == [FIRST]
    assert watched.log[-1].endswith(f"alias movies stays on {COLLECTION(FIRST)}")


@every_backend
def test_older_collections_are_deleted_after_each_promotion(tmp_path: Path, store: Store) -> None:
    def one_more(run_id: str) -> Callable[[], object]:
        return lambda: tiny_run(tmp_path, run_id=run_id)

    events = [one_more(run_id) for run_id in (FIRST, SECOND, THIRD)]
    watched = Watched(tmp_path, *events, nothing)(store, Task(keep=1))
    assert promoted(store)[-1] == THIRD
    assert store.collections() == [COLLECTION(THIRD)]
    assert watched.log[-1] == f"gc deleted {COLLECTION(SECOND)}"


def test_the_health_file_tells_the_state_and_stays_young_during_a_sync(tmp_path: Path, store: Store) -> None:
    tiny_run(tmp_path, run_id=FIRST)
    health = tmp_path / "health.json"
    (tmp_path / ".health.json.1.tmp").touch()  # left by a watch that was killed
    seen: list[dict[str, Any]] = []

    def look() -> None:
        seen.append(json.loads(health.read_bytes()))

    def a_slow_batch() -> bool:
        look()
        before = health.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while health.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return False

    with EdgeStore(tmp_path / "store") as other, other.writer():
        Watched(tmp_path, look)(store, interval=0.05, health_file=health)
    look()
    watched = Watched(tmp_path, look)
    watched.between_batches = a_slow_batch
    watched(store, interval=0.05, health_file=health)
    look()
    assert list(seen[0]) == ["schema", "pid", "at", "state", "run", "last", "error"]
    assert [content["state"] for content in seen[:3]] == ["waiting", "stopped", "starting"]
    assert "is being written by another process" in seen[0]["error"]
    assert {content["state"] for content in seen[3:-2]} == {"syncing"}
    assert [content["state"] for content in seen[-2:]] == ["idle", "stopped"]
    assert seen[3]["run"] == FIRST
    assert seen[-1]["last"]["outcome"] == "promoted"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["health.json", "runs", "store"]


def test_the_health_file_of_a_watch_that_hangs_grows_old(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run(tmp_path, run_id=FIRST)
    health = tmp_path / "health.json"
    ages: list[bool] = []

    def hanging() -> bool:
        if store.collections():
            monkeypatch.setattr("embedstore.sync.watch._LONGEST_SILENCE", 0.1)
            time.sleep(0.2)
            before = health.stat().st_mtime_ns
            time.sleep(0.2)
            ages.append(health.stat().st_mtime_ns == before)
        return bool(ages)

    watched = Watched(tmp_path)
    watched.between_batches = hanging
    watched(store, interval=0.01, health_file=health)
    assert ages == [True]


def test_a_health_file_that_cannot_be_written_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        Watched(tmp_path)(store, health_file=tmp_path / "nowhere" / "health.json")


def test_once_is_one_look_that_raises(tmp_path: Path, store: Store) -> None:
    assert Watched(tmp_path)(store, once=True).pauses == []
    tiny_run(tmp_path, run_id=FIRST)
    Watched(tmp_path)(store, once=True)
    assert promoted(store) == [FIRST]
    vectors = tiny_run(tmp_path, run_id=SECOND).path / "movie_vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match="is damaged: movie_vectors"):
        Watched(tmp_path)(store, once=True)
