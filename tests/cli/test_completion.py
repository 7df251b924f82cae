"""Completion scripts, and what a shell gets from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedstore.cli import COMMANDS, run

ROOT = Path(__file__).parent.parent.parent
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o nosort"), ("zsh", "#compdef embedstore"), ("fish", "complete ")]
)
def test_a_script_for_every_shell(capsys: Capture, shell: str, word: str) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert word in script
    assert f"_EMBEDSTORE_COMPLETE={shell}_complete" in script


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_accepts_its_script(capsys: Capture, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    run(["completion", shell])
    done = subprocess.run([shell, "-n"], input=capsys.readouterr().out, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_are_completed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "embedstore"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_EMBEDSTORE_COMPLETE": "bash_complete",
            "COMP_WORDS": "embedstore ",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == sorted(COMMANDS)
