"""What a process of its own says: one that may crash, hang, or run on a full disk."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from embedstore.cli import run as embedstore
from embedstore.errors import EmbedstoreError

__all__ = ["answer_of", "printed", "told"]

SECONDS = 60.0  # until a process counts as one that hangs


def answer_of(ask: Callable[[], Any]) -> Any:
    """Return what ask returns, as JSON has it, in a process of its own; the text of an EmbedstoreError.

    Raises AssertionError where the process crashes, is ended by a signal or hangs.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            try:
                answer = ask()
            except EmbedstoreError as error:
                answer = f"refused: {error}"
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(json.dumps(answer).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    said, deadline = b"", time.monotonic() + SECONDS
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not (part := pipe.read(1 << 20)):
                break
            said += part
        else:
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"crashed or hung: status {status}"
    return json.loads(said)


def told(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command in folder, in a process of its own; return exit code, standard output and error."""

    def ask() -> tuple[int, str, str]:
        os.chdir(folder)
        return printed(*arguments)

    code, out, err = answer_of(ask)
    return code, out, err


def printed(*arguments: str) -> tuple[int, str, str]:
    """Run a command and return its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = embedstore(list(arguments))
    return code, out.getvalue(), err.getvalue()
