"""Every error becomes one sentence on standard error and a documented exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest

from embedstore import __version__, errors
from embedstore.cli import COMMANDS, cli, run

ROOT = Path(__file__).parent.parent.parent
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a command that raises, return the exit code."""

    def run_raising(error: BaseException) -> int:
        @click.command()
        def broken() -> None:
            raise error

        monkeypatch.setattr(type(cli), "get_command", lambda *_: broken)
        return run(["broken"])

    return run_raising


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EmbedstoreError("a"), 1),
        (errors.UsageError("a"), 2),
        (errors.DataError("a"), 1),
        (errors.RunError("a"), 1),
        (errors.NotFoundError("a"), 3),
        (errors.StoreError("a"), 1),
        (errors.StoreLockedError("a"), 1),
        (errors.StoreUnreachableError("a"), 5),
        (errors.VerificationError("a"), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_gives_its_sentence_and_code(
    raising: Callable[[BaseException], int], capsys: Capture, error: errors.EmbedstoreError, code: int
) -> None:
    assert raising(error) == code
    assert capsys.readouterr() == ("", "Error: a\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (click.Abort(), 130, "Interrupted.\n"),
        (PermissionError(13, "Permission denied", "runs/x"), 1, "Error: runs/x: Permission denied\n"),
        (click.UsageError("no such thing"), 2, "Error: no such thing; see `embedstore broken --help`\n"),
        (click.BadParameter("bad"), 2, "Error: Invalid value: bad; see `embedstore broken --help`\n"),
        (click.FileError("a.csv", "no"), 1, "Error: Could not open file 'a.csv': no\n"),
        (SystemExit(3), 3, ""),
        (click.exceptions.Exit(7), 7, ""),
        (errors.DataError("title \x1b[31mred\nsecond line"), 1, "Error: title \\x1b[31mred\\nsecond line\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_other_ends(
    raising: Callable[[BaseException], int], capsys: Capture, error: BaseException, code: int, message: str
) -> None:
    assert raising(error) == code
    assert capsys.readouterr().err == message


def test_a_defect_is_one_line_and_names_the_way_to_the_traceback(
    raising: Callable[[BaseException], int], capsys: Capture
) -> None:
    assert raising(KeyError("x")) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: unexpected KeyError: 'x'")
    assert "EMBEDSTORE_DEBUG=1" in message
    assert message.count("\n") == 1


def test_debug_shows_the_traceback(
    raising: Callable[[BaseException], int], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSTORE_DEBUG", "1")
    assert raising(KeyError("x")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_click_usage_errors_exit_2_and_point_at_help(capsys: Capture) -> None:
    assert run(["runs", "list", "--nonsense"]) == 2
    message = capsys.readouterr().err
    assert message == "Error: No such option '--nonsense'; see `embedstore runs list --help`\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["runs", "nonsense"], ["runs", "rm"], ["completion", "tcsh"]]
)
def test_wrong_commands_exit_2_in_one_line(capsys: Capture, arguments: list[str]) -> None:
    assert run(arguments) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert message.startswith("Error: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["runs"]])
def test_a_group_alone_shows_its_help_and_exits_2(capsys: Capture, arguments: list[str]) -> None:
    assert run(arguments) == 2
    assert "Usage: embedstore" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(capsys: Capture, flag: str) -> None:
    assert run([flag]) == 0
    words = capsys.readouterr().out.split()
    assert set(COMMANDS) <= set(words)


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"embedstore, version {__version__}\n"


def embedstore(
    arguments: Sequence[str | bytes], *, env: dict[str, str] | None = None, line: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; line, if given, is one of bash that uses "$@"."""
    command: list[str | bytes] = [sys.executable, "-m", "embedstore", *arguments]
    if line:
        command = ["bash", "-c", line, "bash", *command]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_arguments_that_are_not_utf8_are_refused_in_a_sentence() -> None:
    done = embedstore([b"runs", b"list", b"--runs", b"caf\xe9"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: argument 4 (b'caf\\xe9') is not valid UTF-8; type it in UTF-8\n"


def test_a_closed_pipe_is_a_quiet_exit() -> None:
    done = embedstore(["--help"], line='"$@" | true; exit ${PIPESTATUS[0]}')
    assert done.returncode in (0, 141)  # 0 where everything was written before true had ended
    assert done.stderr == ""
    slow = 'set -o pipefail; { sleep 0.2; "$@"; } | sleep 0'
    assert embedstore(["--help"], line=slow).stderr == ""
    assert embedstore(["--help"], line=slow).returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_a_sentence() -> None:
    done = embedstore(["--help"], line='"$@" > /dev/full')
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_crash(closing: str) -> None:
    done = embedstore(["--version"], line=f'"$@" {closing}')
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_terminal_that_cannot_show_a_letter_is_no_crash() -> None:
    done = embedstore(
        ["runs", "show", "é"], env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == 3
    assert done.stderr.startswith("Error: no run ")
