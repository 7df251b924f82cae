"""Other programs: git, pip and this very interpreter, started without a shell and without our keys."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["git", "run_program"]


def run_program(
    command: Sequence[str | Path], *, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, whose environment has no *API_KEY, and return what it said.

    Raises OSError where it cannot be started, subprocess.TimeoutExpired after timeout seconds.
    """
    environment = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")}
    return subprocess.run(  # noqa: S603 - the one place; every command is a list whose program is fixed
        command,
        env=environment,
        timeout=timeout,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Return what git says of folder; None where there is no git or it gives no answer.

    A folder of strangers can name programs in its settings, of which this starts none.
    """
    program = shutil.which("git")
    if program is None:
        return None
    try:
        return run_program([program, "-c", "core.fsmonitor=false", "-C", folder, *arguments], timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
