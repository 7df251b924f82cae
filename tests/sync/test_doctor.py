"""What doctor finds: in an embedded store, in local mode, and with the keys of a real server."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
from qdrant_client import models

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.stores.access import read_token
from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection, Secret
from embedstore.stores.edge import EdgeStore
from embedstore.stores.server import ServerStore
from embedstore.sync import sync
from embedstore.sync.doctor import Finding, doctor
from tests.builders import tiny_run
from tests.keys import KEY, OTHER_KEY, READ_ONLY_KEY
from tests.server import LocalMode
from tests.server_process import start_server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path, run_id="20260101t000000-0001")


def local(mode: LocalMode) -> ServerStore:
    return ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=mode)


def not_ok(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.name, finding.text) for finding in findings if finding.level != "ok"]


def interrupted(run: Run, store: Store) -> str:
    """Leave an unfinished collection behind and return its name."""

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(run, store, progress=interrupt)
    return f"movies__{run.run_id}"


def test_a_healthy_folder_is_ok(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        findings = doctor(store, [run.run_id])
    assert not_ok(findings) == []
    assert [finding.name for finding in findings] == ["disk", "lock", "aliases", "collections"]


def test_a_healthy_server_is_ok_and_tells_how_points_travel(run: Run) -> None:
    with local(LocalMode()) as store:
        sync(run, store)
        findings = doctor(store, [run.run_id])
    assert not_ok(findings) == [
        ("note", "bulk", "REST, gRPC is switched off"),
        ("note", "clock", "the server does not tell its time"),
    ]
    assert {finding.name for finding in findings} == {
        "server", "key", "bulk", "clock", "aliases", "collections",
    }  # fmt: skip


def test_an_empty_store_has_no_alias_to_serve(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        assert not_ok(doctor(store, [])) == [
            ("warning", "aliases", "there is no alias 'movies' (aliases: none)")
        ]


def test_a_writer_at_work_and_one_that_died_are_told_apart(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        name = interrupted(run, store)
        with EdgeStore(tmp_path / "store") as other, other.writer():
            found = not_ok(doctor(store, [run.run_id]))
        assert ("note", "lock", "another process is writing to the store") in found
        assert ("note", "collections", f"{name} is being written") in found
        later = datetime.now(UTC) + timedelta(hours=1)
        (finding,) = [
            finding for finding in doctor(store, [run.run_id], now=later) if finding.name == "collections"
        ]
    assert finding.level == "warning"
    assert finding.text == f"{name} is unfinished, no sign of life for 60 min"
    assert finding.advice == f"finish it by `embedstore sync {run.run_id}`, or delete it"


def test_a_disk_without_room_for_the_next_run_is_told(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
        (finding,) = [finding for finding in doctor(store, [run.run_id]) if finding.name == "disk"]
    assert finding.level == "warning"
    assert "1 MB free" in finding.text


def test_a_run_that_is_not_at_hand_is_a_note(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        assert not_ok(doctor(store, ["20260101t000000-ffff"])) == [
            ("note", "runs", f"no run at hand for 1 of 1 collections: movies__{run.run_id}")
        ]


def test_aliases_that_name_what_is_foreign_or_unfinished(run: Run) -> None:
    mode = LocalMode()
    with local(mode) as store:
        name = interrupted(run, store)
        mode.client.create_collection("theirs", models.VectorParams(size=2, distance=models.Distance.DOT))
        for alias, target in [("movies", "theirs"), ("films", name), ("other", "theirs")]:
            made = models.CreateAlias(alias_name=alias, collection_name=target)
            mode.client.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])
        found = {(finding.level, finding.text) for finding in doctor(store, []) if finding.name == "aliases"}
    assert found == {
        ("problem", "movies -> theirs, which is no collection of embedstore"),
        ("problem", f"films -> {name}, which is building"),
        ("note", "other -> theirs, which is no collection of embedstore"),
    }


def test_points_that_are_gone_are_a_problem_that_comes_first(run: Run) -> None:
    mode = LocalMode()
    with local(mode) as store:
        sync(run, store)
        mode.client.delete("movies", models.PointIdsList(points=[1]))
        first = doctor(store, [run.run_id])[0]
    name = f"movies__{run.run_id}"
    assert first == Finding(
        "collections", "problem", f"{name}: has 39 points, expected 40", "repair it with `embedstore sync`"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-60, "the server's is 60 s behind ours"), (60, "the server's is 60 s ahead of ours"), (0, None)],
)
def test_clocks_that_differ_are_a_warning(seconds: int, text: str | None, run: Run) -> None:
    class Dated(LocalMode):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            answer.headers["date"] = formatdate(time.time() + seconds, usegmt=True)
            return answer

    with local(Dated()) as store:
        (finding,) = [finding for finding in doctor(store, []) if finding.name == "clock"]
    if text is None:
        assert finding.level == "ok"
    else:
        assert finding.level == "warning"
        assert abs(int(finding.text.split()[3]) - 60) <= 1
        assert finding.text.split()[5:] == text.split()[5:]


def test_the_command_ends_with_1_where_there_is_a_problem(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", str(tmp_path / "store"), "--runs", str(tmp_path / "runs")]
    assert embedstore(["sync", *where]) == 0
    capsys.readouterr()
    assert embedstore(["doctor", *where]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"ok       aliases      movies -> movies__{run.run_id}",
        "ok       collections  1, all sealed and counted",
    ]
    assert embedstore(["doctor", "--json", "--store", "http://127.0.0.1:9"]) == 1
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

        with opened(Secret(KEY)) as store:
            sync(run, store)
            assert store.may_write()
            assert not_ok(doctor(store, [run.run_id])) == []
            assert store.collections() == [f"movies__{run.run_id}"]
        with opened(Secret(READ_ONLY_KEY)) as store:
            assert not store.may_write()
            assert not_ok(doctor(store, [run.run_id])) == [("note", "key", "may only read")]
        with opened(token) as store:
            assert not store.may_write()
            findings = doctor(store, [run.run_id])
            assert not_ok(findings) == [("note", "key", "may only read")]
            assert Finding("aliases", "ok", f"movies -> run {run.run_id}") in findings
        for key in (None, Secret(OTHER_KEY)):
            with opened(key) as store:
                assert not store.may_write()
                ((level, name, text),) = not_ok(doctor(store, [run.run_id]))
                assert (level, name) == ("problem", "key")
                assert "refuses the key, or asks for one" in text
