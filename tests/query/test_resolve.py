"""Run and collection from one look at the alias, and a run whose folder is not here."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from embedstore.errors import NotFoundError, RunError, UsageError
from embedstore.query.recommend import live_collection, recommend
from embedstore.query.resolve import resolve
from embedstore.runs.debias import debiased
from embedstore.runs.run import Run
from embedstore.stores.base import Promotion, Store, open_store
from embedstore.sync import rollback, sync
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run

OLD, NEW = "20261101t000000-0001", "20261102t000000-0002"
HISTORY = [3, 9, 27]


@pytest.fixture(params=EVERY_BACKEND)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with BACKENDS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two runs."""
    tiny_run(tmp_path, run_id=OLD)
    tiny_run(tmp_path, run_id=NEW, seed=1)
    return tmp_path / "runs"


def answer(store: Store, runs: Path, reference: str | None = None) -> tuple[list[float], str]:
    """Return the scores of what is recommended after HISTORY, and by which run."""
    run, collection = resolve(store, runs, reference, restored=list[str]().append)
    found = recommend(run, store, history=HISTORY, collection=collection)
    return [movie.score for movie in found.recommendations], found.run_id


def test_tower_and_vectors_move_together(store: Store, runs: Path) -> None:
    sync(Run.load(runs / OLD), store)
    old = answer(store, runs)
    sync(Run.load(runs / NEW), store)
    new = answer(store, runs)
    assert (old[1], new[1], old[0] == new[0]) == (OLD, NEW, False)
    for reference, expected in [("@movies", new), ("@movies~1", old), (OLD, old), ("20261102", new)]:
        assert answer(store, runs, reference) == expected
    rollback(store)
    assert (answer(store, runs), answer(store, runs, "@movies~1")) == (old, new)


def test_each_reference_means_one_collection(store: Store, runs: Path) -> None:
    run = Run.load(runs / OLD)
    sync(run, store)
    sync(debiased(run, 0.5), store)
    sync(Run.load(runs / NEW), store, alias="films")
    for reference, alias, own, collection in [
        (None, "movies", f"{OLD}_debias0.50", f"movies__{OLD}_debias0.50"),
        (None, "films", NEW, f"films__{NEW}"),
        ("@films", "movies", NEW, f"films__{NEW}"),
        ("@movies~1", "films", OLD, f"movies__{OLD}"),
        (f"{OLD}_debias0.5", "movies", f"{OLD}_debias0.50", f"movies__{OLD}_debias0.50"),
        ("latest", "movies", NEW, f"movies__{NEW}"),  # whether that is there is for the query to say
    ]:
        found, name = resolve(store, runs, reference, alias=alias)
        assert (found.reference, name) == (own, collection), reference
    for reference in ("@shows", "@movies~7", "1999", "20991231t000000-ffff"):
        with pytest.raises(NotFoundError):
            resolve(store, runs, reference)
    with pytest.raises(UsageError, match="alias 'a~b' cannot be used"):
        resolve(store, runs, alias="a~b")


@pytest.mark.parametrize("reference", [None, "@movies~1", OLD])
def test_an_additive_run_that_is_not_here_is_restored(
    store: Store, runs: Path, tmp_path: Path, reference: str | None
) -> None:
    for run_id in (NEW, OLD, NEW, OLD) if reference is None else (OLD, NEW):
        sync(Run.load(runs / run_id), store)
    expected = answer(store, runs, reference)
    elsewhere, told = tmp_path / "elsewhere" / "runs", list[str]()
    run, name = resolve(store, elsewhere, reference, restored=told.append)
    assert (run.path, name) == (elsewhere / OLD, f"movies__{OLD}")
    assert told == [f"run {OLD} is not in {elsewhere}; restored there from {name}, it knows no users"]
    assert [path.name for path in elsewhere.iterdir()] == [OLD]
    assert (answer(store, elsewhere, reference), len(told)) == (expected, 1)
    for user_id in (3, "nobody"):
        with pytest.raises(NotFoundError, match=f"was restored from {name} and knows no users; give the mov"):
            raise run.unknown_user(user_id)
    with pytest.raises(NotFoundError, match="knows no users"):
        run.history(3)


def test_nothing_is_restored_unasked(store: Store, runs: Path, tmp_path: Path) -> None:
    sync(Run.load(runs / OLD), store)
    with pytest.raises(
        NotFoundError, match=f"`embedstore runs restore movies__{OLD}`, or copy the folder {OLD}"
    ):
        resolve(store, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_another_tower_says_where_its_folder_is(store: Store, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, additive=False, run_id=OLD)
    sync(run, store)
    made, name = store.metadata(f"movies__{OLD}"), f"movies__{OLD}"
    here, first = os.uname().nodename, r"`mkdir -p -- \S+elsewhere && "
    for origin, advice in [
        ("trainer:/srv/my runs/x", rf".*{first}scp -r -- 'trainer:/srv/my runs/x' \S+elsewhere/`"),
        (f"{here}:{run.path}", rf".*on {made.created_at[:10]}: {first}cp -r -- {run.path} \S+/`"),
        (
            f"{here}:{tmp_path}/x",
            f"its folder was {tmp_path}/x and is gone: bring back a copy, or `.* rollback`",
        ),
    ]:
        store.set_metadata(name, replace(made, origin=origin))
        expected = rf"dense tower is in its folder alone; {advice}"
        with pytest.raises(NotFoundError, match=expected):
            resolve(store, tmp_path / "elsewhere", restored=list[str]().append)
    assert not (tmp_path / "elsewhere").exists()


def test_a_debiased_run_is_rebuilt_for_as_long_as_it_is_used(
    store: Store, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(debiased(Run.load(runs / OLD), 0.5), store)
    expected = answer(store, runs)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    told = list[str]()
    run, _ = resolve(store, tmp_path / "elsewhere", restored=told.append)
    assert (run.reference, len(told)) == (f"{OLD}_debias0.50", 1)
    assert "for this command alone" in told[0]
    assert answer(store, tmp_path / "elsewhere") == expected
    del run
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_of_runs_that_cannot_be_written_is_no_obstacle(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(Run.load(runs / OLD), store)
        shutil.rmtree(runs / OLD)
        monkeypatch.setattr(os, "access", lambda path, mode: path != runs)  # root may write anywhere
        told = list[str]()
        run, _ = resolve(store, runs, restored=told.append)
        assert (run.run_id, run.path.parent == runs, len(told)) == (OLD, False, 1)
        assert [path.name for path in runs.iterdir()] == [NEW]


def test_two_who_restore_at_once_both_answer(runs: Path, tmp_path: Path) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(Run.load(runs / OLD), store)
        expected = answer(store, runs)
    elsewhere = tmp_path / "elsewhere"

    def ask(_: int) -> tuple[list[float], str]:
        with open_store(tmp_path / "store") as own:
            return answer(own, elsewhere)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [expected] * 4
    assert [path.name for path in elsewhere.iterdir()] == [OLD]


def test_a_damaged_run_is_not_replaced(store: Store, runs: Path) -> None:
    sync(Run.load(runs / OLD), store)
    (runs / OLD / "manifest.json").unlink()
    with pytest.raises(RunError, match="its training did not finish"):
        resolve(store, runs, restored=list[str]().append)


def test_an_alias_that_moves_on_while_it_is_looked_at(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(Run.load(runs / OLD), store)
        live = store.live

        def and_then_it_moves(alias: str, back: int = 0) -> Promotion:
            found = live(alias, back)
            if found.run_id == OLD:
                sync(Run.load(runs / NEW), store)
                store.drop(f"movies__{OLD}")
            return found

        monkeypatch.setattr(store, "live", and_then_it_moves)
        assert live_collection(store, "movies") == (f"movies__{NEW}", NEW)
        with pytest.raises(NotFoundError, match=f"no collection 'movies__{OLD}'"):
            live_collection(store, "movies", 1)
