"""Scratch folders: gone after the block, and after a kill with the next one; none that is in use is taken."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedstore.errors import RunError
from embedstore.runs.scratch import scratch_folder
from embedstore.runs.writer import run_folder
from tests.builders import tiny_run

KILLED = """
import os, signal, sys
from pathlib import Path
from embedstore.runs.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_gone_after_the_block_whatever_happened(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder(tmp_path / "new") as folder:  # noqa: PT012
        (folder / "file").write_text("text")
        raise RuntimeError
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_kill_leaves_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "embedstore-notes").mkdir()  # of a person
    with scratch_folder(tmp_path) as in_use:
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
        assert killed.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 3
        with scratch_folder(tmp_path) as folder:
            assert {path.name for path in tmp_path.iterdir()} == {
                "embedstore-notes",
                in_use.name,
                folder.name,
            }
    assert [path.name for path in tmp_path.iterdir()] == ["embedstore-notes"]


def test_a_link_of_that_name_is_not_followed(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("text")
    with scratch_folder(home) as folder:
        link = folder.with_name(f"{folder.name}x")
    link.symlink_to(elsewhere)
    with scratch_folder(home):
        pass
    assert (elsewhere / "precious").exists()
    assert link.is_symlink()


def test_a_run_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, run_id="20260101t000000-0001")
    runs = tmp_path / "runs"
    with run_folder(runs, "20260101t000000-0002") as folder:
        assert not (runs / "20260101t000000-0002").exists()
        (folder / "file").write_text("text")
    assert (runs / "20260101t000000-0002" / "file").exists()
    with pytest.raises(RunError, match="exists; choose another run id"), run_folder(runs, run.run_id):
        pass
    assert len(list(runs.iterdir())) == 2
