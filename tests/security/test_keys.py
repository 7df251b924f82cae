"""A key shows itself nowhere: see tests/keys.py for the watch over the whole suite."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from embedstore.cli import run
from embedstore.errors import StoreError
from embedstore.runs.programs import run_program
from embedstore.stores.bulk import GrpcBulk
from embedstore.stores.connection import Connection, Endpoint, Secret, endpoints_of
from embedstore.stores.rest import RestClient
from embedstore.stores.server import ServerStore
from tests.builders import tiny_run
from tests.keys import KEY, MARK
from tests.scripted import QDRANT, GrpcServer, HttpServer, answer, everything_about, refuse
from tests.server import LocalMode

ROOT = Path(__file__).parent.parent.parent
CONNECTION = Connection(api_key=Secret(KEY), grpc_port=0)


SHOWING = [
    "print(KEY)",
    "print(KEY, file=sys.stderr)",
    "os.write(1, KEY.encode())",
    "logging.getLogger('any').debug('key %s', KEY)",
    "raise ValueError(KEY)",
    "local = KEY; raise ValueError",
    "print(KEY); assert capfd.readouterr()",
    "assert subprocess.run([sys.executable, '-c', f'print({KEY!r})'], capture_output=True)",
]


def test_the_watch_finds_a_key(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.keys import pytest_configure, pytest_runtest_makereport\n"
    )
    tests = [*SHOWING, "print('nothing')"]
    (tmp_path / "test_one.py").write_text(
        "import logging, os, subprocess, sys\nfrom tests.keys import KEY\n"
        + "".join(
            f"def test_{number}({'capfd' if 'capfd' in test else ''}):\n    {test}\n"
            for number, test in enumerate(tests)
        )
    )
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--log-level=DEBUG", "--showlocals"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert f"{len(SHOWING)} failed, 1 passed" in done.stdout
    assert done.stdout.count("\na key is in ") >= len(SHOWING)
    assert MARK not in done.stdout + done.stderr


def test_nothing_that_holds_a_key_shows_it() -> None:
    transport = LocalMode()
    with (
        ServerStore("http://127.0.0.1:6333", CONNECTION, transport=transport) as store,
        closing(RestClient(endpoints_of("http://127.0.0.1:6333"), CONNECTION, transport=transport)) as rest,
        GrpcServer(refuse("UNAUTHENTICATED")) as server,
        closing(GrpcBulk([Endpoint("http://127.0.0.1:1", "127.0.0.1", server.port)], CONNECTION)) as bulk,
    ):
        rest.get("/", str)
        for holder in (CONNECTION, CONNECTION.api_key, store, rest, bulk):
            shown = [repr(holder), str(holder), f"{holder}", repr(getattr(holder, "__dict__", ""))]
            inside = list(getattr(holder, "__dict__", {}).values())
            shown += [repr(getattr(value, "__dict__", value)) for value in inside]
            assert MARK not in "".join(shown)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_an_error_with_its_traceback_and_every_log_does_not_show_the_key(
    status: int,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server sends back what it was sent, as some proxies do."""
    monkeypatch.setenv("EMBEDSTORE_DEBUG", "1")
    monkeypatch.setenv("EMBEDSTORE_QDRANT_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with HttpServer(QDRANT, answer(status, {"status": {"error": f"api-key: {KEY}"}})) as server:
        for command in (["status"], ["query", "--user", "3"], ["doctor"]):
            assert run([*command, "--store", server.url, "--grpc-port", "0"]) > 0
    found = capfd.readouterr()
    assert "Traceback" in found.err
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    assert MARK not in found.out + found.err + caplog.text


def test_an_error_of_grpc_does_not_show_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint = "127.0.0.1"
    with GrpcServer(refuse("PERMISSION_DENIED", f"api-key: {KEY}")) as server:
        there = [Endpoint("http://127.0.0.1:1", endpoint, server.port)]
        with closing(GrpcBulk(there, CONNECTION)) as bulk, pytest.raises(StoreError) as caught:
            bulk._call("Scroll", bulk._messages.ScrollPoints(collection_name="movies"))
        assert server.calls[0]["api-key"] == KEY
    assert MARK not in everything_about(caught.value) + caplog.text


def test_a_program_that_we_start_does_not_know_our_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMBEDSTORE_QDRANT_API_KEY", "QDRANT_API_KEY", "QDRANT__SERVICE__READ_ONLY_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("LIKE_ANY_OTHER", "x")
    said = run_program([sys.executable, "-c", "import os; print(*map('='.join, os.environ.items()))"]).stdout
    assert "LIKE_ANY_OTHER=x" in said
    assert MARK not in said


def test_the_health_file_of_watch_does_not_hold_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDSTORE_QDRANT_API_KEY", KEY)
    tiny_run(tmp_path)
    with HttpServer(QDRANT, answer(400, {"status": {"error": f"api-key: {KEY}"}})) as server:
        options = ["--store", server.url, "--grpc-port", "0", "--health-file", "health.json"]
        assert run(["watch", "--once", *options]) > 0
    health = (tmp_path / "health.json").read_text()
    assert "***" in health
    assert MARK not in health
