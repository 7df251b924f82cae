"""promote, rollback, pin, unpin, gc and history as the person on call types them."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from embedstore.cli import run as embedstore
from embedstore.stores import base
from embedstore.stores.base import Note, Store, who
from embedstore.stores.connection import Connection
from embedstore.stores.server import ServerStore
from tests.builders import tiny_run
from tests.server import LocalMode, clean, server_url

Capture = pytest.CaptureFixture[str]
IDS = [f"2026110{number}t000000-000{number}" for number in range(1, 5)]
NAMES = [f"movies__{run_id}" for run_id in IDS]


class Lasting(LocalMode):
    """A server that outlives its clients."""

    def close(self) -> None:
        pass


@pytest.fixture(params=["edge", "local", pytest.param("server", marks=pytest.mark.server)])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> Path:
    """A folder with four runs, three of them in the store, the third one live."""
    monkeypatch.chdir(tmp_path)
    for number, run_id in enumerate(IDS):
        tiny_run(tmp_path, n=8, seed=number, run_id=run_id)
    if request.param == "local":
        server = Lasting()

        def open_store(location: str, *, create: bool = False, connection: Connection) -> Store:
            return ServerStore(location, replace(connection, grpc_port=0), transport=server)

        monkeypatch.setattr(base, "open_store", open_store)
        monkeypatch.setenv("EMBEDSTORE_STORE", "http://local-mode:6333")
    elif request.param != "edge":
        clean(server_url())
        monkeypatch.setenv("EMBEDSTORE_STORE", server_url())
        if key := os.environ.get("QDRANT_API_KEY"):
            monkeypatch.setenv("EMBEDSTORE_QDRANT_API_KEY", key)
    for run_id in IDS[:3]:
        told(capsys, "sync", run_id)
    return tmp_path


def told(capsys: Capture, *arguments: str) -> str:
    assert embedstore(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def read(capsys: Capture, *arguments: str) -> Any:
    return json.loads(told(capsys, *arguments, "--json"))


def test_a_night_is_undone_and_told(folder: Path, capsys: Capture) -> None:
    told(capsys, "sync", IDS[3], "--no-promote")
    assert told(capsys, "promote", IDS[3], "--why", "by hand") == f"alias movies -> {NAMES[3]}\n"
    assert told(capsys, "promote", "latest") == f"alias movies -> {NAMES[3]}, as before\n"
    assert told(capsys, "rollback", "2", "--why", "Comedies\x1b[31m") == f"alias movies -> {NAMES[1]}\n"
    assert read(capsys, "rollback") == {
        "alias": "movies",
        "collection": NAMES[3],
        "previous": NAMES[1],
        "promoted": True,
    }
    flips = read(capsys, "history", "-n", "3")
    assert [(flip["n"], flip["collection"], flip["previous"], flip["why"]) for flip in flips] == [
        (0, NAMES[3], NAMES[1], "rollback 1"),
        (1, NAMES[1], NAMES[3], "Comedies\x1b[31m"),
        (2, NAMES[3], NAMES[2], "by hand"),
    ]
    assert all(flip["there"] and flip["who"] == who() and flip["at"] for flip in flips)
    lines = told(capsys, "history").splitlines()
    assert lines[0].split() == ["N", "when", "(UTC)", "to", "from", "who"]
    assert [line.split()[0] for line in lines[2::2]] == ["0", "1", "2", "3", "4", "5"]
    assert lines[4].split()[3:] == [IDS[1], IDS[3], who()]
    assert lines[5].startswith("    why: Comedies\\x1b[31m; embedstore ")


def test_a_flip_of_other_hands_and_one_whose_collection_is_gone(folder: Path, capsys: Capture) -> None:
    told(capsys, "promote", IDS[0])
    told(capsys, "gc", "--keep", "0")
    if (folder / "store").exists():
        path = folder / "store/aliases/movies.json"
        content = {key: json.loads(path.read_text())[key] for key in ("schema", "collection", "promotions")}
        path.write_text(json.dumps({**content, "promotions": content["promotions"][:-1]}))
        text = told(capsys, "history")
        assert f"not noted            {IDS[0]}" in text
        assert "by other hands, or by a process that was killed" in text
    assert [flip["there"] for flip in read(capsys, "history")] == [True, False, False, True]
    assert "its collection is gone" in told(capsys, "history")


@pytest.mark.parametrize("folder", ["edge"], indirect=True)
def test_gates_are_shown_in_history(folder: Path, capsys: Capture) -> None:
    gates: list[dict[str, Any]] = [
        {"gate": "ndcg@100>=live", "passed": True, "text": "ndcg@100 0.51, wanted 0.50"},
        {"gate": "b"},
    ]
    with base.open_store("store") as store:
        store.promote("movies", NAMES[0], Note(gates=gates))
    assert (
        told(capsys, "history", "-n", "1")
        .splitlines()[3]
        .startswith("    gate: ndcg@100 0.51, wanted 0.50; gate: b; embedstore ")
    )
    assert read(capsys, "history")[0]["gates"] == gates


def test_promote_writes_a_damaged_alias_anew(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tiny_run(tmp_path, n=8, run_id=IDS[0])
    told(capsys, "sync")
    for name in ("movies", "films"):
        (tmp_path / "store" / "aliases" / f"{name}.json").write_text("{")
    assert embedstore(["promote", run.run_id]) == 0
    assert capsys.readouterr().out == f"alias movies -> {NAMES[0]}\n"
    with base.open_store("store") as store:
        assert store.live("movies").collection == NAMES[0]


def test_a_resumed_sync_does_not_list_what_was_never_written(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("embedstore.cli.sync.progress_line", lambda: nullcontext(stop))
        patched.setattr("embedstore.sync.upsert._BATCH", 3)  # 3 of 8 are written
        assert embedstore(["sync", IDS[3]]) == 130
    assert told(capsys, "status").count("building") == 1
    report, flip = told(capsys, "sync", IDS[3]).splitlines()
    assert report.startswith(f"{NAMES[3]}: resumed, ")
    assert flip == f"alias movies -> {NAMES[3]} (before: {NAMES[2]})"


def test_gc_prints_the_same_dry_and_for_good(folder: Path, capsys: Capture) -> None:
    assert told(capsys, "pin", IDS[0], "--why", "the paper's") == f"{NAMES[0]}: pinned\n"
    assert embedstore(["gc", "--keep", "0", "--dry-run"]) == 0
    dry, note = capsys.readouterr()
    assert note == "dry run: nothing was deleted\n"
    assert len(read(capsys, "status")["collections"]) == 3
    assert told(capsys, "gc", "--keep", "0") == dry
    lines = dry.splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["keep", NAMES[2]],
        ["delete", NAMES[1]],
        ["keep", NAMES[0]],
    ]
    assert lines[2].endswith("live: movies")
    assert "pinned: the paper's" in lines[4]
    assert lines[5].startswith("1 of 3 collections of alias movies deleted: 8 points")
    assert told(capsys, "gc", "--alias", "films").startswith("0 of 0 collections")
    assert {entry["collection"] for entry in read(capsys, "status")["collections"]} == {NAMES[0], NAMES[2]}


def test_pins_are_seen_and_taken_off(folder: Path, capsys: Capture) -> None:
    assert read(capsys, "pin", "@movies~1", "--why", "x")["pinned"]["why"] == "x"
    assert "sealed, pinned" in told(capsys, "status")
    pins = {entry["collection"]: entry["pinned"] for entry in read(capsys, "status")["collections"]}
    assert [pins[name] is None for name in NAMES[:3]] == [True, False, True]
    assert told(capsys, "unpin", IDS[1]) == f"{NAMES[1]}: no longer pinned\n"
    assert told(capsys, "unpin", IDS[1]) == f"{NAMES[1]}: was not pinned\n"
    assert read(capsys, "unpin", IDS[1]) == {"collection": NAMES[1], "pinned": None}
    assert "pinned" not in told(capsys, "status")


def test_a_machine_without_runs_promotes_rolls_back_and_queries(folder: Path, capsys: Capture) -> None:
    ask = ["query", "--history", "3,5", "-k", "2"]
    before = {run_id: read(capsys, *ask, "--run", run_id) for run_id in IDS[:3]}
    (folder / "runs").rename(folder / "away")
    told(capsys, "promote", "20261101")
    told(capsys, "pin", IDS[0])
    assert read(capsys, *ask) == before[IDS[0]]
    assert read(capsys, *ask) == before[IDS[0]]
    assert embedstore([*ask, "--run", "@movies~1", "--json"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out) == before[IDS[2]]
    assert said == (f"run {IDS[2]} is not in runs; restored there from {NAMES[2]}, it knows no users\n")
    told(capsys, "rollback")
    assert read(capsys, *ask) == before[IDS[2]]
    assert sorted(path.name for path in (folder / "runs").iterdir()) == [IDS[0], IDS[2]]
    assert embedstore(["query", "--user", "3"]) == 3
    assert "knows no users; give the movies they rated with --history" in capsys.readouterr().err


@dataclass(frozen=True)
class Case:
    arguments: list[str]
    code: int
    sentence: str


NO_FILMS = "alias 'films' is not in the store (aliases: movies)"
CASES = {
    "nothing before": Case(
        ["rollback", "7"],
        3,
        "there is nothing 7 promotions ago; `embedstore rollback 2 --alias movies` returns",
    ),
    "not the past": Case(["rollback", "0"], 2, "0 promotions ago is not in the past; expected 1 or more"),
    "not a number": Case(["rollback", "one"], 2, "'one' is not a valid integer"),
    "another alias": Case(["rollback", "--alias", "films"], 3, NO_FILMS),
    "no history": Case(["history", "--alias", "films"], 3, NO_FILMS),
    "no flips": Case(["history", "-n", "0"], 2, "0 is not in the range x>=1"),
    "not synced": Case(["promote", IDS[3]], 3, f"no collection '{NAMES[3]}'"),
    "no such run": Case(["promote", "1999"], 3, "no run '1999' in runs"),
    "nothing to pin": Case(["pin", IDS[3]], 3, f"no collection '{NAMES[3]}'"),
    "nothing to unpin": Case(["unpin", f"{IDS[0]}_debias0.5"], 3, f"but '{NAMES[0]}' of the same run"),
    "fewer than none": Case(["gc", "--keep=-1"], 2, "-1 collections cannot be kept; expected 0 or more"),
    "no alias": Case(["gc", "--alias", "../x"], 2, "alias '../x' cannot be used"),
    "two runs fit": Case(["pin", "2026"], 2, "fits 4 runs"),
}


@pytest.mark.parametrize("folder", ["edge"], indirect=True)
def test_bad_input_is_one_sentence_and_changes_nothing(folder: Path, capsys: Capture) -> None:
    before = read(capsys, "status"), read(capsys, "history")
    for name, case in CASES.items():
        assert embedstore(case.arguments) == case.code, name
        out, message = capsys.readouterr()
        assert (out, message.count("\n")) == ("", 1), name
        assert case.sentence in message, name
    after = read(capsys, "status"), read(capsys, "history")
    for status in (before[0], after[0]):
        for entry in status["collections"]:
            del entry["age_seconds"]
    assert after == before


@pytest.mark.parametrize("folder", ["edge"], indirect=True)
def test_what_gc_cannot_judge_is_said(folder: Path, capsys: Capture) -> None:
    (folder / "store/collections" / NAMES[0] / "collection.json").write_text("{}")
    assert embedstore(["gc", "--keep", "1"]) == 0
    out, said = capsys.readouterr()
    assert "cannot be judged" in out
    assert said.startswith(f"{NAMES[0]} is kept: ")
    assert "is damaged" in said
    (folder / "store/aliases/movies.json").write_text("{")
    assert embedstore(["gc", "--keep", "0"]) == 1
    assert "gc deletes nothing while it cannot tell what is live" in capsys.readouterr().err
