"""What doctor finds: in healthy, unfinished and damaged stores and runs, and with the keys of a server."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import models

from embedstore.cli import run as embedstore
from embedstore.runs.manifest import MANIFEST
from embedstore.runs.run import Run
from embedstore.stores.access import read_token
from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection, Secret
from embedstore.stores.edge import EdgeStore
from embedstore.stores.server import ServerStore
from embedstore.sync import promote_run, sync
from embedstore.sync.doctor import Finding, doctor
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run
from tests.keys import KEY, OTHER_KEY, READ_ONLY_KEY
from tests.server import LocalMode
from tests.server_process import free_port, start_server

RUN_ID, LATER = "20250101t000000-0001", "20250102t000000-0001"
NAME = f"movies__{RUN_ID}"
OF_A_SERVER = {("note", "disk"), ("note", "bulk"), ("note", "clock")}  # what local mode cannot do


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path, run_id=RUN_ID)


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with BACKENDS[getattr(request, "param", "edge")](tmp_path) as opened:
        yield opened


every_backend = pytest.mark.parametrize("store", EVERY_BACKEND, indirect=True)


def local(mode: LocalMode) -> ServerStore:
    return ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=mode)


def found(store: Store, runs_dir: Path, **options: Any) -> list[Finding]:
    """Return what doctor finds beyond the ordinary."""
    findings = doctor(lambda: nullcontext(store), runs_dir, **options)
    return [
        finding
        for finding in findings
        if finding.level != "ok" and (finding.level, finding.name) not in OF_A_SERVER
    ]


def interrupted(run: Run, store: Store) -> None:
    """Leave an unfinished collection behind."""

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(run, store, progress=interrupt)


@every_backend
def test_a_healthy_store_is_ok(store: Store, run: Run) -> None:
    sync(run, store)
    for deep in (False, True):
        assert found(store, run.path.parent, deep=deep) == []


def test_what_is_looked_at_in_a_folder(store: Store, run: Run) -> None:
    sync(run, store)
    findings = doctor(lambda: nullcontext(store), run.path.parent, deep=True)
    assert [(finding.name, finding.text) for finding in findings[3:]] == [
        ("aliases", f"movies -> {NAME}"),
        ("collections", "1, all sealed, no file changed"),
        ("live", f"40 points equal run {RUN_ID}"),
        ("runs", "1 at hand, every file equals its digest"),
    ]
    assert [finding.name for finding in findings[:3]] == ["store", "disk", "lock"]


def test_what_is_looked_at_on_a_server(run: Run) -> None:
    with local(LocalMode()) as store:
        sync(run, store)
        findings = doctor(lambda: nullcontext(store), run.path.parent)
    assert [(finding.level, finding.name, finding.text) for finding in findings] == [
        ("note", "bulk", "REST, gRPC is switched off"),
        ("note", "clock", "the server does not tell its time"),
        ("note", "disk", "Qdrant's API does not tell how much room is left on the server's disk"),
        ("ok", "server", "Qdrant 1.18.3 at http://local-mode:6333"),
        ("ok", "key", "may read and write"),
        ("ok", "aliases", f"movies -> {NAME}"),
        ("ok", "collections", "1, all sealed, all counted"),
        ("ok", "runs", "1 at hand, every file has its size; --deep reads them"),
    ]


@every_backend
def test_an_empty_store_has_no_alias_to_serve(store: Store, tmp_path: Path) -> None:
    (finding,) = found(store, tmp_path / "runs", alias="films")
    assert finding == Finding(
        "aliases",
        "warning",
        "there is no alias 'films' (aliases: none)",
        "make it by `embedstore sync --alias films`",
    )


def test_a_store_that_is_not_there_hides_no_run(run: Run, tmp_path: Path) -> None:
    (run.path / "movies.jsonl").unlink()
    for where in (str(tmp_path / "store"), f"http://127.0.0.1:{free_port()}"):
        findings = doctor(lambda where=where: open_store(where), run.path.parent)  # type: ignore[misc]
        assert [(finding.level, finding.name) for finding in findings] == [
            ("problem", "store"),
            ("problem", "runs"),
        ]


@every_backend
def test_an_unfinished_collection_names_the_ways_on(store: Store, run: Run) -> None:
    interrupted(run, store)
    later = datetime.now(UTC) + timedelta(hours=3)
    (finding,) = [one for one in found(store, run.path.parent, now=later) if one.name == "collections"]
    assert finding.level == "warning"
    assert finding.text == f"{NAME} is unfinished, its last sign of life 3 h ago"
    assert finding.advice == (
        f"finish it by `embedstore sync {RUN_ID} --no-promote`, or delete it by `embedstore gc --unfinished`"
    )


@every_backend
def test_a_writer_at_work_is_a_note(store: Store, run: Run, tmp_path: Path) -> None:
    seen: list[Finding] = []

    def look(what: str, done: int, total: int) -> None:
        if isinstance(store, EdgeStore):
            with open_store(tmp_path / "store") as reader:
                seen.extend(found(reader, run.path.parent))
        else:
            seen.extend(found(store, run.path.parent))

    sync(run, store, progress=look)
    assert Finding("collections", "note", f"{NAME} is being written") in seen
    assert {finding.level for finding in seen if finding.name in ("lock", "collections")} == {"note"}


def test_half_deleted_and_strange_states_are_told(run: Run) -> None:
    mode = LocalMode()
    with local(mode) as store:
        sync(run, store)
        sync(tiny_run(run.path.parent.parent, run_id=LATER), store, alias="films")
        mode.metadata[f"films__{LATER}"]["state"] = "deleting"
        mode.metadata[NAME]["state"] = "sealled"
        *_, strange, half = [one for one in found(store, run.path.parent) if one.name == "collections"]
    assert strange.level == "problem"
    assert "'sealled'" in strange.text
    assert half == Finding(
        "collections",
        "warning",
        f"films__{LATER} is half deleted",
        "delete it by `embedstore gc --alias films`",
    )


def test_what_a_killed_delete_left_in_a_folder_is_a_note(store: Store, run: Run) -> None:
    sync(run, store)
    (Path(store.location) / "collections" / f"movies__{LATER}").mkdir()
    assert found(store, run.path.parent) == [
        Finding(
            "lock",
            "note",
            f"a killed sync or gc left 1 folders behind: movies__{LATER}",
            "the next `embedstore sync` or `gc` removes them",
        )
    ]


def test_a_disk_without_room_for_the_next_run_is_told(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(run, store)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    (finding,) = found(store, run.path.parent)
    assert (finding.name, finding.level) == ("disk", "warning")
    assert "1 MB free" in finding.text


def test_a_folder_that_may_only_be_read_is_a_note(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(run, store)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)  # root may write everywhere
    (finding,) = found(store, run.path.parent)
    assert (finding.name, finding.level) == ("store", "note")
    assert finding.text == f"{store.location} may only be read"


@every_backend
@pytest.mark.parametrize("additive", [True, False])
def test_a_run_that_is_not_at_hand_is_a_note(store: Store, tmp_path: Path, additive: bool) -> None:
    run = tiny_run(tmp_path, run_id=RUN_ID, additive=additive)
    sync(run, store)
    assert str(store.metadata(NAME).origin).endswith(f":{run.path}")
    (finding,) = found(store, tmp_path / "elsewhere", deep=True)
    way = (
        f"`embedstore runs restore {NAME}` makes it of the collection"
        if additive
        else f"copy its folder from {store.metadata(NAME).origin}"
    )
    assert finding == Finding(
        "runs", "note", f"no run at hand for 1 of 1 collections: {NAME}", f"{way}; or look at --runs"
    )


def test_aliases_that_name_what_is_foreign_or_unfinished(run: Run) -> None:
    mode = LocalMode()
    with local(mode) as store:
        interrupted(run, store)
        mode.client.create_collection("theirs", models.VectorParams(size=2, distance=models.Distance.DOT))
        for alias, target in [("movies", "theirs"), ("films", NAME), ("other", "theirs")]:
            made = models.CreateAlias(alias_name=alias, collection_name=target)
            mode.client.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])
        findings = {
            finding.text: finding for finding in found(store, run.path.parent) if finding.name == "aliases"
        }
    theirs = findings.pop("movies -> theirs, which is no collection of embedstore")
    assert (theirs.level, theirs.advice) == ("problem", "point it elsewhere by `embedstore sync`")
    unfinished = findings.pop(f"films -> {NAME}, which is building")
    assert unfinished.level == "problem"
    assert unfinished.advice == (
        f"finish the run by `embedstore sync {RUN_ID} --no-promote`, or point it elsewhere by "
        "`embedstore rollback --alias films`"
    )
    other = findings.pop("other -> theirs, which is no collection of embedstore")
    assert (other.level, other.advice) == ("note", None)
    assert not findings


@every_backend
def test_an_alias_on_a_collection_of_another_alias_is_a_problem(store: Store, run: Run) -> None:
    sync(run, store)
    sync(run, store, alias="films")
    store.promote("films", NAME)
    assert found(store, run.path.parent) == [
        Finding(
            "aliases",
            "problem",
            f"films -> {NAME}, which belongs to alias 'movies': sync refuses to move it",
            f"give it its own collection by `embedstore promote {RUN_ID} --alias films`",
        )
    ]
    promote_run(store, RUN_ID, alias="films")
    assert found(store, run.path.parent) == []


@every_backend
def test_an_alias_named_like_a_collection_is_a_problem(store: Store, run: Run) -> None:
    sync(run, store)
    findings = found(store, run.path.parent, alias=NAME)
    assert Finding(
        "aliases",
        "problem",
        f"{NAME!r} is the name of a collection too, so that nothing can be promoted to it",
        "take another --alias, or delete that collection",
    ) in findings  # fmt: skip


def test_damaged_alias_files_are_named_and_mended_by_the_command(store: Store, run: Run) -> None:
    sync(run, store)
    sync(run, store, alias="films")
    aliases = Path(store.location) / "aliases"
    (aliases / "movies.json").write_text("{")
    shutil.rmtree(Path(store.location) / "collections" / f"films__{RUN_ID}")
    movies, films = found(store, run.path.parent)
    assert movies.text.startswith(f"{aliases / 'movies.json'} is damaged")
    assert movies.advice == f"`embedstore promote {RUN_ID}` writes it anew"
    assert films.text == f"films -> films__{RUN_ID}, which is not there"
    assert films.advice == "point it elsewhere by `embedstore sync --alias films`"
    promote_run(store, RUN_ID)
    sync(run, store, alias="films")
    assert found(store, run.path.parent) == []


def test_points_that_are_gone_are_a_problem_that_comes_first(run: Run) -> None:
    mode = LocalMode()
    with local(mode) as store:
        sync(run, store)
        mode.client.delete("movies", models.PointIdsList(points=[1]))
        first = doctor(lambda: nullcontext(store), run.path.parent)[0]
    assert first == Finding(
        "collections",
        "problem",
        f"{NAME}: has 39 points, expected 40",
        f"mend it by `embedstore sync {RUN_ID} --no-promote`",
    )


def test_a_server_that_cannot_maintain_a_collection_says_why(run: Run) -> None:
    class Full(LocalMode):
        full = False

        def _info(self, body: Any, name: str) -> dict[str, Any]:
            said = {"error": "Service internal error: No space left on device"}
            bad = {"status": "red", "optimizer_status": said} if self.full else {}
            return {**super()._info(body, name), **bad}

    mode = Full()
    with local(mode) as store:
        sync(run, store)
        mode.full = True
        (finding,) = found(store, run.path.parent)
    assert (finding.name, finding.level) == ("collections", "problem")
    assert "No space left on device" in finding.text


@every_backend
def test_a_changed_point_is_found_by_a_deep_look(store: Store, run: Run) -> None:
    sync(run, store)
    with store.writer():
        store.revise(NAME)
        batch = next(store.scroll(NAME, limit=1))
        store.upsert(NAME, replace(batch, movie_vectors=batch.movie_vectors + 1))
        store.flush(NAME)
        store.seal(NAME, store.metadata(NAME))
    assert found(store, run.path.parent) == []
    (finding,) = found(store, run.path.parent, deep=True)
    assert (finding.name, finding.level) == ("live", "problem")
    assert "point 1 has another movie vector" in finding.text
    assert finding.advice == f"repair it by `embedstore sync {RUN_ID} --no-promote --alias movies`"


def test_damaged_files_of_a_store_are_found_without_opening_them(store: Store, run: Run) -> None:
    sync(run, store)
    for path in (Path(store.location) / "collections" / NAME).rglob("*"):
        if path.is_file() and path.name != "collection.json":
            path.write_bytes(b"\xff" * path.stat().st_size)
    assert found(store, run.path.parent, deep=True) == [
        Finding(
            "collections",
            "problem",
            f"{NAME}: its files are not those that were sealed",
            f"mend it by `embedstore sync {RUN_ID} --no-promote`",
        )
    ]
    assert sync(run, store).state == "rebuilt"
    assert found(store, run.path.parent, deep=True) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"metadata": 1}', '{"metadata": {"state": []}}'])
def test_a_damaged_record_is_a_finding(store: Store, run: Run, content: str) -> None:
    sync(run, store)
    (Path(store.location) / "collections" / NAME / "collection.json").write_text(content)
    findings = found(store, run.path.parent, deep=True)
    assert {finding.level for finding in findings} == {"problem"}
    assert {finding.name for finding in findings} >= {"aliases", "collections"}


def test_metadata_that_other_tools_wrote_end_no_look(run: Run) -> None:
    mode = LocalMode()
    with local(mode) as store:
        sync(run, store)
        good = dict(mode.metadata[NAME])
        values: tuple[object, ...] = (None, 7, [], {"a": "b"}, "\x1b[31m")
        for key in (
            "state",
            "run_id",
            "count",
            "created_at",
            "heartbeat",
            "tower",
            "writer",
            "dim",
            "schema",
        ):
            for value in values:
                mode.metadata[NAME] = {**good, key: value}
                findings = doctor(lambda: nullcontext(store), run.path.parent, deep=value == 7)
                assert {"aliases", "runs"} <= {finding.name for finding in findings}, (key, value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-60, "the server's is 60 s behind ours"), (60, "the server's is 60 s ahead of ours"), (0, None)],
)
def test_clocks_that_differ_are_a_warning(seconds: int, text: str | None, tmp_path: Path) -> None:
    class Dated(LocalMode):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            answer.headers["date"] = formatdate(time.time() + seconds, usegmt=True)
            return answer

    with local(Dated()) as store:
        findings = doctor(lambda: nullcontext(store), tmp_path / "runs")
    (finding,) = [finding for finding in findings if finding.name == "clock"]
    if text is None:
        assert finding.level == "ok"
    else:
        assert finding.level == "warning"
        assert abs(int(finding.text.split()[3]) - 60) <= 1
        assert finding.text.split()[5:] == text.split()[5:]


@every_backend
def test_a_clock_that_was_set_back_is_a_warning(store: Store, run: Run, tmp_path: Path) -> None:
    sync(run, store)
    (finding,) = found(store, run.path.parent, now=datetime.now(UTC) - timedelta(days=3))
    assert (finding.name, finding.level) == ("clock", "warning")
    assert finding.text == f"collection {NAME} is from 3 days ahead of our clock"
    tiny_run(tmp_path, run_id="29990101t000000-0001")
    (finding,) = found(store, run.path.parent)
    assert finding.text.startswith("run 29990101t000000-0001 is from ")


def test_runs_that_do_not_verify_are_problems(store: Store, run: Run, tmp_path: Path) -> None:
    sync(run, store)
    vectors = tiny_run(tmp_path, run_id=LATER).path / "movie_vectors.npy"
    content = vectors.read_bytes()
    vectors.write_bytes(content[:-1] + b"!")
    assert found(store, run.path.parent) == []
    (finding,) = found(store, run.path.parent, deep=True)
    assert finding.text == (
        f"run {LATER} is damaged: movie_vectors.npy does not have the sha256 of the manifest"
    )
    vectors.write_bytes(content[:-1])
    (finding,) = found(store, run.path.parent)
    assert (finding.level, finding.name) == ("problem", "runs")
    assert f"movie_vectors.npy has {len(content) - 1} bytes" in finding.text
    (vectors.parent / MANIFEST).write_text("{")
    (finding,) = found(store, run.path.parent)
    assert "is not JSON" in finding.text


def test_a_folder_that_was_never_finished_is_a_warning_after_a_day(store: Store, run: Run) -> None:
    sync(run, store)
    unfinished = run.path.with_name(LATER)
    unfinished.mkdir()
    assert found(store, run.path.parent) == []
    before = time.time() - 3 * 86400
    os.utime(unfinished, (before, before))
    assert found(store, run.path.parent) == [
        Finding(
            "runs",
            "warning",
            f"run {LATER} is unfinished, and was not written to for 3 days",
            f"remove it by `embedstore runs rm {LATER}`",
        )
    ]


def test_the_command_ends_with_1_where_there_is_a_problem(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", str(tmp_path / "store"), "--runs", str(tmp_path / "runs")]
    assert embedstore(["sync", *where]) == 0
    capsys.readouterr()
    assert embedstore(["doctor", "--deep", *where]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        f"ok       aliases      movies -> {NAME}",
        "ok       collections  1, all sealed, no file changed",
        f"ok       live         40 points equal run {RUN_ID}",
        "ok       runs         1 at hand, every file equals its digest",
    ]
    elsewhere = ["--store", "http://127.0.0.1:9", "--runs", str(tmp_path)]
    assert embedstore(["doctor", "--json", *elsewhere]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["healthy"]
    assert [finding["advice"] for finding in answer["findings"]] == ["start the server or correct --store"]


@pytest.mark.server
def test_what_a_key_may_do(tmp_path: Path, run: Run) -> None:
    """Asked without any change: a collection is neither made nor touched."""
    env = {
        "QDRANT__SERVICE__API_KEY": KEY,
        "QDRANT__SERVICE__READ_ONLY_API_KEY": READ_ONLY_KEY,
        "QDRANT__SERVICE__JWT_RBAC": "true",
    }
    token = read_token(Secret(KEY), "movies", None)
    with start_server(tmp_path / "server", env=env) as server:

        def opened(key: Secret | None) -> ServerStore:
            return ServerStore(server.url, Connection(api_key=key))

        def said(store: Store) -> list[tuple[str, str, str]]:
            return [(one.level, one.name, one.text) for one in found(store, run.path.parent)]

        with opened(Secret(KEY)) as store:
            sync(run, store)
            assert store.may_write()
            assert said(store) == []
            assert store.collections() == [NAME]
        with opened(Secret(READ_ONLY_KEY)) as store:
            assert not store.may_write()
            assert said(store) == [("note", "key", "may only read")]
        with opened(token) as store:
            assert not store.may_write()
            findings = doctor(lambda: nullcontext(store), run.path.parent)
            assert said(store) == [("note", "key", "may only read")]
            assert Finding("aliases", "ok", f"movies -> run {RUN_ID}") in findings
        for key in (None, Secret(OTHER_KEY)):
            with opened(key) as store:
                assert not store.may_write()
                ((level, name, text),) = said(store)
                assert (level, name) == ("problem", "key")
                assert "refuses the key, or asks for one" in text
