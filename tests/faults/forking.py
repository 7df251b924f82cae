"""Commands of embedstore in processes that are forked in milliseconds, and killed at an instant.

`python -m tests.faults.forking` imports what the commands need, then forks one for every line that it reads.
It runs none itself, so a fork loses no thread of an engine or a library.

An instant is a time, or the n-th *step*: opening a file for writing, renaming, removing, making a folder,
or a request to a server, each counted before it is done. Kills at steps reach the moments between two writes
that a clock rarely hits; kills by time reach the inside of the engine, and of a request.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Forked", "Forks", "Instant"]

# What commands import when they run.
WARM = (
    *(f"embedstore.cli.{name}" for name in ("copy", "lifecycle", "runs", "sync", "train")),
    *("embedstore.stores.edge", "embedstore.stores.server", "embedstore.sync", "embedstore.training.linear"),
    *(
        "embedstore.loaders",
        "embedstore.evaluation.serving",
        "httpx",
        "pandas",
        "rich.console",
        "scipy.linalg",
    ),
)
STEPS = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Instant:
    """When to kill: seconds after the fork, or at a step, from 1. Neither: never.

    process: who is killed at a step, None for the command itself.
    """

    seconds: float | None = None
    step: int | None = None
    process: int | None = None

    def __str__(self) -> str:
        if self.step is not None:
            return f"step {self.step}"
        return "no instant" if self.seconds is None else f"{1000 * self.seconds:.1f} ms"


NEVER = Instant()


@dataclass(frozen=True)
class Forked:
    """How a command ended. code: None where it was killed before it could report; steps: until then, else 0.

    said: what it printed to standard error.
    """

    code: int | None
    seconds: float
    steps: int
    said: str


class Forks:
    """The process that forks, as a context manager; run() asks it for a command and waits for its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forking"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its input is its end

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], instant: Instant = NEVER
    ) -> Forked:
        """Run a command of embedstore, and kill it at an instant."""
        told = self._folder / "said"
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "told": str(told),
            "instant": vars(instant),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return Forked(**json.loads(line), said=told.read_text(encoding="utf-8", errors="replace"))


def main() -> None:
    for name in WARM:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), flush=True)  # noqa: T201 - the answer


def _forked(request: Mapping[str, Any]) -> dict[str, Any]:
    instant = Instant(**request["instant"])
    reading, writing = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _command(request, instant, writing)
    os.close(writing)
    if instant.seconds is not None:
        time.sleep(max(0.0, instant.seconds - (time.perf_counter() - started)))
        os.kill(child, signal.SIGKILL)  # where it has ended, its number is still its own
    os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    with os.fdopen(reading, "rb") as pipe:
        report = pipe.read()  # whole or empty: a pipe takes a few bytes at once
    return {"seconds": seconds, **(json.loads(report) if report else {"code": None, "steps": 0})}


def _command(request: Mapping[str, Any], instant: Instant, report: int) -> None:
    """Run the command in this process, report its code, and end."""
    code = 1
    try:
        os.environ.update(request["environment"])
        tempfile.tempdir = None  # TMPDIR is another one now
        for number, path in ((0, os.devnull), (1, os.devnull), (2, request["told"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        steps = _count_steps(instant)
        from embedstore.cli import run

        code = run(request["arguments"])
        os.write(report, json.dumps({"code": code, "steps": steps[0]}).encode())
    finally:
        os._exit(code)


def _count_steps(instant: Instant) -> list[int]:
    """Count the steps of this process in the list that is returned, and kill at the one asked for."""
    import httpx

    steps = [0]

    def step() -> None:
        steps[0] += 1
        if steps[0] == instant.step:
            os.kill(instant.process or os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            step()

    send = httpx.HTTPTransport.handle_request

    def handle_request(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        step()
        return send(self, request)

    sys.addaudithook(audited)
    httpx.HTTPTransport.handle_request = handle_request  # type: ignore[method-assign]
    return steps


if __name__ == "__main__":
    main()
