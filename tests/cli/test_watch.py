"""watch as a process: signals, exit codes, its lines, and the files that supervisors read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedstore.cli import run as embedstore
from embedstore.stores.base import open_store
from embedstore.sync import verify
from tests.builders import tiny_run
from tests.server import clean, connection_of_tests, server_url
from tests.server_process import free_port, start_server

ROOT = Path(__file__).parent.parent.parent
FIRST, SECOND = "20250101t000000-0001", "20250102t000000-0001"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [^\x00-\x1f\x7f]+")
KEY = "EMBEDSTORE_QDRANT_API_KEY"
PATIENCE = 60.0


def health(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "health.json").read_bytes())
    return content


def until(fulfilled: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not fulfilled():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def watching(folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run watch in folder until the block ends, and yield it when its health file is there."""
    (folder / "health.json").unlink(missing_ok=True)
    options = ["--interval", "0.05", "--health-file", "health.json", *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "embedstore", "watch", *options],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", KEY: os.environ.get(KEY, "")},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        until((folder / "health.json").exists)
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, list[str]]:
    """Send a signal; return the exit code and the lines of the log."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert out == ""
    return process.returncode, err.splitlines()


def test_runs_are_synced_as_they_are_sealed_until_sigterm(tmp_path: Path) -> None:
    def done(run_id: str) -> bool:
        told = health(tmp_path)
        return told["state"] == "idle" and bool(told["last"]) and told["last"]["run"] == run_id

    tiny_run(tmp_path, run_id=FIRST)
    with watching(tmp_path) as process:
        until(lambda: done(FIRST))
        tiny_run(tmp_path, run_id=SECOND)
        until(lambda: done(SECOND))
        assert health(tmp_path)["pid"] == process.pid
        code, lines = ended(process, signal.SIGTERM)
    assert code == 0
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    first, second = f"movies__{FIRST}", f"movies__{SECOND}"
    written = "created, 40 of 40 points written; alias movies ->"
    assert [line.split(" ", 1)[1] for line in lines] == [
        "watching runs; alias movies names nothing",
        f"run {FIRST} is sealed, syncing",
        f"{first}: {written} {first} (before: nothing)",
        f"run {SECOND} is sealed, syncing",
        f"{second}: {written} {second} (before: {first})",
        "stopped by SIGTERM",
    ]
    assert health(tmp_path)["state"] == "stopped"


def test_sigint_ends_it_as_any_command(tmp_path: Path) -> None:
    with watching(tmp_path) as process:
        until(lambda: health(tmp_path)["state"] == "idle")
        code, lines = ended(process, signal.SIGINT)
    assert code == 130
    assert lines[-2].endswith("Z stopped by SIGINT")
    assert lines[-1] == "Interrupted."


def ended_amid_a_sync(folder: Path, *store: str) -> None:
    with watching(folder, *store) as process:
        until(lambda: health(folder)["state"] == "syncing")
        code, lines = ended(process, signal.SIGTERM)
    assert code == 0
    assert lines[-2].endswith("Z stopped between two batches; the next start carries on")


def test_sigterm_amid_a_sync_leaves_what_the_next_start_finishes(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, run_id=FIRST, n=20_000)
    ended_amid_a_sync(tmp_path)
    with open_store(tmp_path / "store") as store:
        assert store.aliases() == {}
    assert (
        embedstore(["watch", "--once", "--store", str(tmp_path / "store"), "--runs", str(tmp_path / "runs")])
        == 0
    )
    with open_store(tmp_path / "store") as store:
        assert verify(store, "movies", run).count == 20_000


@pytest.mark.server
def test_sigterm_amid_a_sync_to_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, connection = server_url(), connection_of_tests()
    clean(url)
    if connection.api_key is not None:
        monkeypatch.setenv(KEY, connection.api_key.reveal())
    run = tiny_run(tmp_path, run_id=FIRST, n=20_000)
    ended_amid_a_sync(tmp_path, "--store", url)
    with open_store(url, connection=connection) as store:  # given back: nothing has to go stale
        assert (store.metadata(f"movies__{FIRST}").state, store.metadata(f"movies__{FIRST}").writer) == (
            "building",
            None,
        )
    assert embedstore(["watch", "--once", "--store", url, "--runs", str(tmp_path / "runs")]) == 0
    with open_store(url, connection=connection) as store:
        assert verify(store, "movies", run).count == 20_000


@pytest.mark.server
def test_a_server_that_dies_is_awaited(tmp_path: Path) -> None:
    tiny_run(tmp_path, run_id=FIRST)
    with start_server(tmp_path / "server") as server, watching(tmp_path, "--store", server.url) as process:
        until(lambda: health(tmp_path)["state"] == "idle")
        server.kill()
        run = tiny_run(tmp_path, run_id=SECOND)
        until(lambda: health(tmp_path)["state"] == "waiting")
        assert "gives no answer" in health(tmp_path)["error"]
        server.start()
        until(lambda: health(tmp_path)["last"]["run"] == SECOND)
        assert ended(process, signal.SIGTERM)[0] == 0
        with open_store(server.url) as store:
            assert verify(store, "movies", run).count == 40


def test_sigkill_is_survived(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, run_id=FIRST, n=20_000)
    for delay in (0.1, 0.3):
        with watching(tmp_path) as process:
            until(lambda: health(tmp_path)["state"] == "syncing")
            time.sleep(delay)
            process.kill()
    with watching(tmp_path) as process:
        until(lambda: health(tmp_path)["state"] == "idle")
        assert ended(process, signal.SIGTERM)[0] == 0
    with open_store(tmp_path / "store") as store:
        assert verify(store, "movies", run).count == 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["health.json", "runs", "store"]


def test_once_ends_with_the_code_of_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--runs", str(tmp_path / "runs"), "--store", str(tmp_path / "store")]
    tiny_run(tmp_path, run_id=FIRST)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert embedstore(["watch", "--once", "--gate", "ndcg@100>=0.4", *where]) == 4
    assert "Error: a gate failed; alias movies stays on nothing" in capsys.readouterr().err
    assert embedstore(["watch", "--once", *where]) == 0
    assert embedstore(["watch", "--once", *where[:2], "--store", f"http://127.0.0.1:{free_port()}"]) == 5
    assert embedstore(["watch", "--gate", "ndcg", *where]) == 2
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_the_log_is_free_of_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "a\x1b[31m\nb"
    assert embedstore(["watch", "--once", "--runs", str(runs), "--store", str(tmp_path / "store")]) == 0
    assert [LINE.fullmatch(line) is None for line in capsys.readouterr().err.split("\n")[:-1]] == [False] * 2


def test_the_liveness_command_of_the_docs_tells_young_from_old(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "watch.md").read_text(encoding="utf-8")
    (pod,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    shell, option, command = container["livenessProbe"]["exec"]["command"]
    file = tmp_path / "health.json"

    def alive() -> bool:
        return not subprocess.run(
            [shell, option, command.replace("/run/embedstore/health.json", str(file))]
        ).returncode

    assert not alive()
    file.touch()
    assert alive()
    old = time.time() - 600
    os.utime(file, (old, old))
    assert not alive()
