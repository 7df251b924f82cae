"""promote, rollback, pin and gc on every store: what moves, what is kept, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import embedstore.stores.server as server
from embedstore.errors import NotFoundError, StoreError, StoreLockedError, UsageError
from embedstore.runs.debias import debiased
from embedstore.runs.run import Run
from embedstore.stores.base import Note, Store, open_store, who
from embedstore.stores.connection import Connection
from embedstore.stores.contract import Metadata, collection_name
from embedstore.stores.edge import EdgeStore
from embedstore.stores.server import ServerStore
from embedstore.sync import gc, pin, plan, promote_run, rollback, status, sync, unpin
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run
from tests.server import LocalMode, clean, connection_of_tests, server_url

IDS = [f"2026110{number}t000000-000{number}" for number in range(1, 6)]
NAMES = [collection_name("movies", run_id) for run_id in IDS]


@pytest.fixture(params=EVERY_BACKEND)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with BACKENDS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [tiny_run(tmp_path, n=8, seed=number, run_id=run_id) for number, run_id in enumerate(IDS)]


def collections(store: Store, n: int, *, alias: str = "movies") -> list[str]:
    """Make n sealed collections of alias, without points, each begun an hour after the one before it."""
    begun = datetime(2026, 11, 1, tzinfo=UTC)
    names = [collection_name(alias, run_id) for run_id in IDS[:n]]
    for number, (name, run_id) in enumerate(zip(names, IDS, strict=False)):
        at = (begun + timedelta(hours=number)).isoformat()
        made = Metadata("building", run_id, 2, 0, "dense", "f" * 64, at, at, "1")
        with store.writer():
            store.create(name, made.spec, made)
            with store.writing(name):
                store.seal(name, made)
    return names


def changed(store: Store, name: str, change: Callable[[Metadata], Metadata]) -> None:
    """Change the metadata of a collection."""
    store.set_metadata(name, change(store.metadata(name)))


def deleted(store: Store, **options: Any) -> list[str]:
    """Run gc dry and for good; return what both said was deleted, which is what is gone."""
    before = store.collections()
    dry = gc(store, dry_run=True, **options)
    assert store.collections() == before
    report = gc(store, **options)
    assert asdict(report) == {**asdict(dry), "dry_run": False}
    gone = [verdict.collection for verdict in report.verdicts if verdict.deleted]
    assert store.collections() == sorted(set(before) - set(gone))
    return sorted(gone)


def why(store: Store, name: str, **options: Any) -> str:
    (verdict,) = [v for v in gc(store, dry_run=True, **options).verdicts if v.collection == name]
    return verdict.why


def test_a_flip_says_who_why_and_from_where(store: Store) -> None:
    collections(store, 2)
    assert promote_run(store, IDS[0], note=Note("the first one"))
    assert not promote_run(store, IDS[0], note=Note("again"))
    assert promote_run(store, IDS[1], note=Note(who="ann@night"))
    now = rollback(store, note=Note("too many Comedies"))
    assert (now.collection, now.previous) == (NAMES[0], NAMES[1])
    told = [(flip.collection, flip.previous, flip.who, flip.why) for flip in store.promotions("movies")]
    assert told == [
        (NAMES[0], None, who(), "the first one"),
        (NAMES[1], NAMES[0], "ann@night", ""),
        (NAMES[0], NAMES[1], who(), "too many Comedies"),
    ]
    assert rollback(store).collection == NAMES[1]
    assert store.promotions("movies")[-1].why == "rollback 1"


def test_rollback_returns_to_what_the_number_means(store: Store) -> None:
    collections(store, 4)
    for run_id in IDS[:4]:
        promote_run(store, run_id)
    wanted = store.live("movies", 3).collection
    assert (rollback(store, 3).collection, store.live("movies").collection) == (wanted, wanted)
    assert rollback(store).collection == NAMES[3]


def test_rollback_names_the_nearest_that_works(store: Store) -> None:
    collections(store, 3)
    with pytest.raises(NotFoundError, match="alias 'movies' is not in the store"):
        rollback(store)
    promote_run(store, IDS[0])
    with pytest.raises(
        NotFoundError, match="promoted 1 time, so there is nothing 1 promotion ago; there is no"
    ):
        rollback(store)
    for run_id in (IDS[1], IDS[2], IDS[0]):
        promote_run(store, run_id)
    with pytest.raises(
        NotFoundError, match=f"'{NAMES[0]}' 3 promotions ago, which it names now; .* 2 --alias movies` re"
    ):
        rollback(store, 3)
    with pytest.raises(
        NotFoundError, match=f"nothing 9 promotions ago; `embedstore rollback 2 .*'{NAMES[1]}'"
    ):
        rollback(store, 9)
    store.drop(NAMES[2])
    with pytest.raises(
        NotFoundError, match=f"'{NAMES[2]}' 1 promotion ago, which is gone; .* 2 --alias movies` returns"
    ):
        rollback(store)
    changed(store, NAMES[1], lambda metadata: replace(metadata, state="deleting"))
    with pytest.raises(NotFoundError, match=f"'{NAMES[1]}' 2 promotions ago, which is deleting; there is no"):
        rollback(store, 2)
    with pytest.raises(UsageError, match="0 promotions ago is not in the past"):
        rollback(store, 0)
    assert store.live("movies").collection == NAMES[0]


def test_who_sees_no_list_of_aliases_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerStore, "aliases", lambda self: {})  # as a token for one alias
    shared = LocalMode()
    with ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=shared) as store:
        collections(store, 1)
        promote_run(store, IDS[0])
        with pytest.raises(NotFoundError, match=r"promoted 0 times.* no other collection to return to"):
            rollback(store)


def test_gc_takes_what_is_old_unpinned_and_named_by_no_alias(store: Store) -> None:
    collections(store, 5)
    store.promote("films", NAMES[0])
    promote_run(store, IDS[1])
    pin(store, IDS[2])
    for keep in range(7):
        old = NAMES[: max(5 - keep, 0)]
        verdicts = gc(store, keep=keep, dry_run=True).verdicts
        assert {verdict.collection for verdict in verdicts if verdict.deleted} == set(old) - set(NAMES[:3])
    assert deleted(store, keep=1) == [NAMES[3]]
    assert deleted(store, keep=0) == [NAMES[4]]


def test_gc_says_why(store: Store) -> None:
    collections(store, 5)
    store.promote("films", NAMES[0])
    promote_run(store, IDS[1])
    pin(store, IDS[2], why="the paper's")
    report = gc(store, keep=1)
    today = datetime.now(UTC).date()
    assert [(verdict.deleted, verdict.why, verdict.points) for verdict in report.verdicts] == [
        (False, "of the newest 1", 0),
        (True, "not of the newest 1", 0),
        (False, f"pinned: the paper's ({who()}, {today})", 0),
        (False, "live: movies", 0),
        (False, "live: films", 0),
    ]
    assert all((verdict.bytes is not None) == isinstance(store, EdgeStore) for verdict in report.verdicts)
    assert store.collections() == sorted({*NAMES} - {NAMES[3]})


def test_the_newest_are_those_begun_last_then_by_name(store: Store) -> None:
    names = collections(store, 4)
    changed(store, names[0], lambda metadata: replace(metadata, created_at="2026-12-01T01:00:00+01:00"))
    changed(store, names[3], lambda metadata: replace(metadata, created_at="2026-12-01T00:00:00+00:00"))
    assert deleted(store, keep=1) == [names[0], names[1], names[2]]


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-12-01T00:00:00"])
def test_a_collection_of_unknown_age_is_kept(store: Store, moment: str) -> None:
    names = collections(store, 3)
    changed(store, names[2], lambda metadata: replace(metadata, created_at=moment))
    assert deleted(store, keep=1) == [names[0]]
    assert why(store, names[2], keep=0) == "does not say when it was begun"


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "2026-12-01"])
def test_a_time_that_nobody_can_mean_stops_no_sync(store: Store, runs: list[Run], moment: str) -> None:
    collections(store, 1)
    changed(store, NAMES[0], lambda metadata: replace(metadata, created_at=moment))
    assert sync(runs[1], store).state == "created"
    assert len(status(store)) == 2


def test_gc_leaves_other_aliases_alone(store: Store) -> None:
    collections(store, 2)
    others = [*collections(store, 2, alias="films"), *collections(store, 2, alias="movies__x")]
    assert deleted(store, keep=0) == NAMES[:2]
    assert store.collections() == sorted(others)
    assert len(gc(store, alias="movies__x").verdicts) == 2


def test_debiased_collections_are_collected_as_others(store: Store, runs: list[Run]) -> None:
    sync(runs[0], store)
    half = sync(debiased(runs[0], 0.5), store).collection
    assert pin(store, debiased(runs[0], 0.5).reference) == half
    sync(runs[1], store)
    assert deleted(store, keep=1) == [NAMES[0]]
    assert unpin(store, f"{IDS[0]}_debias0.50") == (half, True)
    assert deleted(store, keep=1) == [half]
    with pytest.raises(NotFoundError, match=f"no collection '{NAMES[0]}'"):
        pin(store, IDS[0])


def test_a_pin_is_kept_by_gc_and_by_drop_until_it_is_taken_off(store: Store) -> None:
    names = collections(store, 2)
    pin(store, IDS[0], why="first")
    pin(store, IDS[0], why="second")
    assert (store.metadata(names[0]).pinned or {})["why"] == "second"
    assert next(line for line in status(store) if line.collection == names[0]).pinned is not None
    with pytest.raises(StoreError, match="is pinned; `embedstore unpin`"):
        store.drop(names[0])
    assert deleted(store, keep=0) == [names[1]]
    assert unpin(store, IDS[0]) == (names[0], True)
    assert unpin(store, IDS[0]) == (names[0], False)
    assert deleted(store, keep=0) == [names[0]]


def test_what_was_pinned_or_promoted_since_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = collections(store, 3)
    drop = type(store).drop
    acts: dict[str, Callable[[Store, str], object]] = {names[0]: pin, names[1]: promote_run}

    def at_the_last_instant(self: Store, name: str) -> None:
        if name in acts:
            acts[name](self, self.metadata(name).reference)
        drop(self, name)

    monkeypatch.setattr(type(store), "drop", at_the_last_instant)
    report = {verdict.collection: verdict for verdict in gc(store, keep=0).verdicts}
    assert store.collections() == names[:2]
    assert [report[name].deleted for name in names] == [False, False, True]
    assert f"{names[0]!r} is pinned" in str(report[names[0]].problem)
    assert f"{names[1]!r} is what alias 'movies' names" in str(report[names[1]].problem)


def test_gc_finishes_a_deletion_that_was_begun(store: Store, runs: list[Run]) -> None:
    sync(runs[0], store)
    sync(runs[1], store)
    changed(store, NAMES[0], lambda metadata: replace(metadata, state="deleting"))
    (line,) = [line for line in status(store) if line.collection == NAMES[0]]
    assert "`embedstore gc` finishes it" in str(line.problem)
    for refused in (pin, promote_run):
        with pytest.raises(StoreError, match="is being deleted"):
            refused(store, IDS[0])
    assert store.metadata(NAMES[0]).pinned is None
    assert plan(runs[0], store).state == "create"
    assert deleted(store, keep=3) == [NAMES[0]]


def test_unfinished_ones_go_when_asked_for(store: Store) -> None:
    collections(store, 2)
    half = begun(store)
    assert deleted(store, keep=2) == []
    assert why(store, half) == "unfinished"
    assert deleted(store, keep=2, unfinished=True) == [half]


def begun(store: Store) -> str:
    """Create a collection that is being built."""
    made = store.metadata(NAMES[0])
    name = collection_name("movies", IDS[4])
    store.create(name, made.spec, replace(made, state="building", run_id=IDS[4]))
    return name


def test_gc_waits_for_nobody_who_writes_to_the_same_folder(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", create=True) as store, open_store(tmp_path / "store") as other:
        collections(store, 2)
        half = begun(store)
        with other.writing(half), pytest.raises(StoreLockedError, match="is being written by another"):
            gc(store, keep=0, unfinished=True)
        assert len(gc(store, keep=0, unfinished=True, dry_run=True).verdicts) == 3
        assert store.collections() == [*NAMES[:2], half]


@pytest.mark.parametrize("backend", ["local", pytest.param("rest", marks=pytest.mark.server)])
def test_what_somebody_builds_on_a_server_is_kept(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(server, "STALE_SECONDS", 0.4)
    shared = LocalMode()

    def opened() -> ServerStore:
        if backend == "local":
            return ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=shared)
        return ServerStore(server_url(), connection_of_tests(grpc_port=0))

    if backend == "rest":
        clean(server_url())
    with opened() as store, opened() as other:
        collections(store, 1)
        half = begun(store)
        with other.writing(half):
            kept = gc(store, keep=0, unfinished=True).verdicts[0]
            assert (kept.collection, kept.deleted) == (half, False)
            assert "is being written by process" in str(kept.problem)
        assert store.collections() == [half]
        assert deleted(store, unfinished=True) == [half]


def test_gc_deletes_nothing_where_an_alias_cannot_be_read(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        names = collections(store, 3)
        promote_run(store, IDS[0])
        store.promote("films", names[1])
        (tmp_path / "store/aliases/films.json").write_text("{")
        for dry_run in (True, False):
            with pytest.raises(StoreError, match=r"gc deletes nothing .*: .*films\.json is damaged"):
                gc(store, keep=0, dry_run=dry_run)
        assert store.collections() == names


def test_what_cannot_be_read_is_kept_and_said(store: Store, tmp_path: Path) -> None:
    names = collections(store, 4)
    if isinstance(store, EdgeStore):
        (tmp_path / "store/collections" / names[0] / "collection.json").write_text("{}")
    else:
        changed(store, names[0], lambda metadata: replace(metadata, schema=99))
    changed(store, names[1], lambda metadata: replace(metadata, run_id=IDS[4]))
    assert deleted(store, keep=1) == [names[2]]
    problems = {verdict.collection: verdict.problem for verdict in gc(store, keep=1).verdicts}
    assert "damaged" in str(problems[names[0]]) or "schema 99" in str(problems[names[0]])
    assert f"says that it is of run {IDS[4]}" in str(problems[names[1]])
    with pytest.raises(UsageError, match="-1 collections cannot be kept"):
        gc(store, keep=-1)
