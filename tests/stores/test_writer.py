"""Two who build one collection on a server, which has no lock; and who delete what another promotes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import EmbedstoreError, StoreError, StoreLockedError
from embedstore.runs.run import Run
from embedstore.stores import server
from embedstore.stores.connection import Connection
from embedstore.stores.contract import Metadata, now
from embedstore.stores.server import ServerStore
from embedstore.sync import sync, verify
from tests.builders import metadata_of, tiny_run
from tests.server import LocalMode, clean, connection_of_tests, server_url

BEAT = 0.05


@pytest.fixture(params=["local", pytest.param("rest", marks=pytest.mark.server)])
def opened(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], ServerStore]]:
    """What opens one store, and another client of the same server at every further call."""
    monkeypatch.setattr(server, "HEARTBEAT_SECONDS", BEAT)
    monkeypatch.setattr(server, "STALE_SECONDS", 8 * BEAT)
    stores: list[ServerStore] = []
    shared = LocalMode()

    def open_one() -> ServerStore:
        if request.param == "local":
            store = ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=shared)
        else:
            store = ServerStore(server_url(), connection_of_tests(grpc_port=0))
        stores.append(store)
        return store

    if request.param == "rest":
        clean(server_url())
    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path)


def begun(store: ServerStore, run: Run, writer: str | None = None) -> str:
    """Create the collection of run, as writer where it is not store itself."""
    name = f"movies__{run.reference}"
    store.create(name, metadata_of(run).spec, metadata_of(run))
    if writer is not None:
        store.set_metadata(name, replace(store.metadata(name), writer=writer))
    return name


def test_a_second_writer_stops_while_the_first_one_lives(opened: Callable[[], ServerStore], run: Run) -> None:
    first, second = opened(), opened()
    name = begun(first, run)
    with first.writing(name) as still_ours:
        with pytest.raises(StoreLockedError, match=rf"{name!r} is being written by process \d+ on .*; wait"):
            sync(run, second)
        time.sleep(2 * BEAT)
        still_ours()
    assert sync(run, first).promoted
    assert verify(second, "movies", run).count == 40


def test_a_writer_of_another_machine_that_went_silent_is_replaced_and_stops(
    opened: Callable[[], ServerStore], run: Run
) -> None:
    first, second = opened(), opened()
    name = begun(first, run)
    with first.writing(name) as still_ours:
        first._name = "elsewhere:1:ab"  # so that its thread falls silent at its next look
        second.set_metadata(name, replace(second.metadata(name), writer="elsewhere:2:cd"))
        started = time.monotonic()
        assert sync(run, second).state == "resumed"
        assert time.monotonic() - started > 8 * BEAT
        time.sleep(3 * BEAT)
        with pytest.raises(StoreLockedError):
            still_ours()
    assert verify(second, "movies", run).count == 40


def test_a_writer_of_this_machine_that_is_no_more_is_replaced_at_once(
    opened: Callable[[], ServerStore], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALE_SECONDS", 3600.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    store = opened()
    begun(store, run, writer=f"{socket.gethostname()}:{ended.pid}:ab")
    assert sync(run, opened()).state == "resumed"


def test_a_writer_that_fails_leaves_the_place_free(
    opened: Callable[[], ServerStore], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALE_SECONDS", 3600.0)
    first = opened()

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(run, first, progress=stop)
    assert first.metadata(f"movies__{run.reference}").writer is None
    assert sync(run, opened()).state == "resumed"


def test_of_two_who_create_at_once_one_stops(opened: Callable[[], ServerStore], run: Run) -> None:
    first, second = opened(), opened()
    name = begun(first, run)
    second.exists = lambda name: False  # type: ignore[method-assign]  # it looked a moment too early
    with first.writing(name), pytest.raises(StoreLockedError, match=r"by process \d+ on "):
        second.create(name, metadata_of(run).spec, metadata_of(run))


def test_a_writer_that_ends_while_it_is_watched_is_another_process(
    opened: Callable[[], ServerStore], run: Run
) -> None:
    store = opened()
    made = store.metadata(begun(store, run, writer="elsewhere:2:cd"))
    looks = iter([made, made, replace(made, state="sealed", writer=None, heartbeat="")])
    store._fresh = lambda name: next(looks)  # type: ignore[method-assign]
    with (
        pytest.raises(StoreLockedError, match="is being written by another process; wait"),
        store.writing(f"movies__{run.reference}"),
    ):
        pytest.fail("the other one had it")


def test_a_deletion_that_was_cut_short_is_finished(opened: Callable[[], ServerStore], run: Run) -> None:
    store = opened()
    sync(run, store, promote=False)
    name = f"movies__{run.reference}"
    store._patch(name, {"state": "deleting"})
    with pytest.raises(StoreError, match="is being deleted"):
        store.promote("movies", name)
    with pytest.raises(StoreError, match="is being deleted"):
        store.search(name, run.movie_vectors[0], limit=1)
    assert sync(run, store).state == "created"
    assert verify(store, "movies", run).count == 40


def test_a_promotion_under_way_keeps_a_collection(opened: Callable[[], ServerStore], run: Run) -> None:
    store = opened()
    sync(run, store, promote=False)
    name = f"movies__{run.reference}"
    store._patch(name, {"promoting": {"at": now(), "who": "elsewhere:17:x"}})
    with pytest.raises(StoreError, match="is being promoted by process 17 on elsewhere"):
        opened().drop(name)
    assert store._fresh(name).state == "sealed"
    store._patch(name, {"promoting": {"at": "2020-01-01T00:00:00+00:00", "who": "elsewhere:17:x"}})
    store.drop(name)
    assert store.collections() == []


def test_a_promotion_of_a_process_that_was_killed_keeps_nothing(
    opened: Callable[[], ServerStore], run: Run
) -> None:
    store = opened()
    sync(run, store, promote=False)
    name = f"movies__{run.reference}"
    with subprocess.Popen(["true"]) as process:
        process.wait()
    store._patch(name, {"promoting": {"at": now(), "who": f"{socket.gethostname()}:{process.pid}:x"}})
    store.drop(name)
    assert store.collections() == []


def test_promoting_against_deleting_never_loses_the_alias(
    opened: Callable[[], ServerStore], tmp_path: Path
) -> None:
    """Both at once, many times: the alias names the collection, or the promotion was refused."""
    old, new = tiny_run(tmp_path, run_id="20250101t000000-aaaa"), tiny_run(tmp_path, seed=1)
    first, second = opened(), opened()
    for _ in range(10):
        sync(old, first)
        sync(new, first, promote=False)
        name, said = f"movies__{new.reference}", dict[str, Any]()

        def attempt(what: str, act: Callable[[], Any], said: dict[str, Any] = said) -> None:
            try:
                act()
                said[what] = "done"
            except EmbedstoreError as error:
                said[what] = str(error)

        threads = [
            threading.Thread(
                target=attempt, args=("promote", lambda name=name: first.promote("movies", name))
            ),
            threading.Thread(target=attempt, args=("drop", lambda name=name: second.drop(name))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        served = first.aliases()["movies"]
        assert served == (name if said["promote"] == "done" else f"movies__{old.reference}"), said
        assert first._fresh(served).state == "sealed"
        assert first.exists(served)
        assert (said["drop"] == "done") == (not first.exists(name)), said


def test_the_flips_of_a_deleted_collection_are_not_forgotten(
    opened: Callable[[], ServerStore], tmp_path: Path
) -> None:
    runs = [tiny_run(tmp_path, run_id=f"2025010{day}t000000-aaaa", seed=day) for day in (1, 2, 3)]
    store = opened()
    for run in runs:
        sync(run, store)
    before = store.promotions("movies")
    store.drop(f"movies__{runs[0].reference}")
    store.drop(f"movies__{runs[1].reference}")
    assert store.promotions("movies") == before
    assert [flip.previous for flip in before] == [None, *(f"movies__{run.reference}" for run in runs[:2])]


def test_metadata_of_an_unfinished_collection_name_its_writer(
    opened: Callable[[], ServerStore], run: Run
) -> None:
    store = opened()
    name = begun(store, run)
    found: Metadata = store.metadata(name)
    assert str(found.writer).startswith(f"{socket.gethostname()}:")
    sync(run, store)
    assert store._fresh(name).writer is None
