"""A server whose disk fills up during a sync: a process of its own on a small tmpfs, which root may mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedstore.cli import run as embedstore
from tests.builders import tiny_run
from tests.server_process import start_server

RUN, NEWER = "20250101t000000-bbbb", "20260101t000000-cccc"
LEFT = 20 << 20  # of room: less than the 32 MB that the server makes ready for its log


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", folder)
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("NO SMALL DISK: only root may mount one, and not in every container")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.server
@pytest.mark.parametrize("flags", [[], ["--grpc-port", "0"]], ids=["gRPC", "REST"])
def test_a_full_disk_is_one_sentence_and_readers_keep_what_they_have(
    flags: list[str],
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_run(tmp_path, run_id=RUN)
    tiny_run(tmp_path, run_id=NEWER, seed=1)
    with start_server(disk / "qdrant") as server:
        monkeypatch.setenv("EMBEDSTORE_STORE", server.url)
        assert embedstore(["sync", RUN]) == 0
        capfd.readouterr()
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - LEFT))

        assert embedstore(["sync", *flags]) == 1
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("Error: the disk of store ")
        assert err.rstrip().endswith("make room and run the command again")
        assert live_run(capfd) == RUN

        (disk / "ballast").unlink()
        assert embedstore(["sync", *flags]) == 0
        assert "resumed, 40 written, 40 verified" in capfd.readouterr().out
        assert live_run(capfd) == NEWER


def live_run(capfd: pytest.CaptureFixture[str]) -> object:
    assert embedstore(["query", "--user", "3", "--json"]) == 0
    return json.loads(capfd.readouterr().out)["run_id"]
