"""watch: follow a folder of runs, and sync each newly sealed one.

The names in the folder are polled. A library that watches files would be one more dependency, is told nothing
by NFS and most volumes of containers, and would spare one listing per tick: 0.1 ms beside hours of training.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from embedstore.errors import (
    EmbedstoreError,
    NotFoundError,
    RunError,
    StoreLockedError,
    StoreUnreachableError,
    UsageError,
    VerificationError,
)
from embedstore.runs.manifest import MANIFEST, replace_file
from embedstore.runs.registry import run_folders
from embedstore.runs.run import Run
from embedstore.stores.base import Store
from embedstore.sync.gates import Gate
from embedstore.sync.lifecycle import gc
from embedstore.sync.upsert import SyncReport, sync

__all__ = ["Log", "Pause", "Task", "watch"]

Pause = Callable[[float], bool]  # wait so many seconds at most; whether the watch is to end
Log = Callable[[str], None]  # takes one event in words, without the time
State = Literal["starting", "idle", "syncing", "waiting", "stopped"]

_HEALTH_SCHEMA = 1
_LONGEST_PAUSE = 300.0  # seconds between two tries of a store that is away
# Seconds without a sign of life after which the health file is left to age. A sync gives one per batch, but
# none while a server builds an index, for which it waits an hour at most.
_LONGEST_SILENCE = 4000.0
_PASSING = (StoreUnreachableError, StoreLockedError)


@dataclass(frozen=True)
class Task:
    """What is done with every new run, see sync; and with older ones, see gc: nothing where keep is None."""

    alias: str = "movies"
    promote: bool = True
    gates: Sequence[Gate] = ()
    keep: int | None = None


class _Stopped(Exception):  # noqa: N818 - no error
    """The watch is to end, and a sync is under way."""


def watch(
    runs_dir: Path,
    opened: Callable[[], AbstractContextManager[Store]],
    task: Task,
    *,
    pause: Pause,
    log: Log,
    interval: float = 10.0,
    once: bool = False,
    health_file: Path | None = None,
) -> None:
    """Sync the newest sealed run of runs_dir, then each newly sealed one, oldest first, until pause says so.

    A run is taken only where it is newer than the live one and was never live: who rolled it back, or
    restored an old one, is not overruled. An unfinished folder is looked at again until it is sealed, a
    damaged one until it is whole. opened opens the store, each time that there is something to do. pause
    is also asked between the batches of a sync; the next start carries on with what that leaves.

    A store that gives no answer or is locked is asked again after growing pauses, so is one that cannot be
    opened later than at the start. What else goes wrong with a run is logged, and the next one awaited.
    With once there is one look, and what goes wrong is raised: EmbedstoreError, VerificationError for a gate.

    health_file is replaced at every change and every interval seconds. Raises UsageError where it cannot be.
    """
    wait = interval
    with _Health(health_file, interval) as health:
        follower = _Follower(runs_dir, task, pause, log, health)
        while True:
            try:
                follower.look(opened, raising=once)
                wait = interval
                health.tell("idle")
            except _Stopped:
                log("stopped between two batches; the next start carries on")
                return
            except EmbedstoreError as error:
                if once or not (follower.started or isinstance(error, _PASSING)):
                    raise
                wait = max(interval, min(2 * wait, _LONGEST_PAUSE))
                log(f"{error}; next try in {wait:.0f} s")
                health.tell("waiting", error=str(error))
            if once or pause(wait):
                return


class _Follower:
    """A watch between two looks: what it has done, and what it has said already."""

    def __init__(self, runs_dir: Path, task: Task, pause: Pause, log: Log, health: _Health) -> None:
        self.started = False
        self._runs_dir = runs_dir
        self._task = task
        self._pause = pause
        self._log = log
        self._health = health
        self._done: set[str] = set()
        self._reported: set[str] = set()

    def look(self, opened: Callable[[], AbstractContextManager[Store]], *, raising: bool) -> None:
        """Take the turn of every run that is new. The first look opens the store in any case."""
        arrived = self._arrived()
        if self.started and not arrived:
            return
        with opened() as store:
            if not self.started:
                self._done.update(run.run_id for run in arrived[:-1])
                arrived = arrived[-1:]
                live = store.aliases().get(self._task.alias, "nothing")
                self._log(f"watching {self._runs_dir}; alias {self._task.alias} names {live}")
                self.started = True
            for run in arrived:
                if self._pause(0):
                    return
                self._turn(run, store, raising=raising)
                self._done.add(run.run_id)

    def _arrived(self) -> list[Run]:
        """Return the whole runs that had no turn yet, oldest first."""
        found = []
        for path in run_folders(self._runs_dir):
            if path.name in self._done or not (path / MANIFEST).exists():
                continue
            try:
                run = Run.load(path)
                run.verify(size_alone=True)
            except (RunError, NotFoundError) as error:
                if path.name not in self._reported:
                    self._log(f"{error} (it is looked at again, in case that a copy is under way)")
                    self._reported.add(path.name)
            else:
                found.append(run)
        return found

    def _turn(self, run: Run, store: Store, *, raising: bool) -> None:
        if reason := _unwanted(run, store, self._task.alias):
            self._log(f"run {run.run_id} is left alone: {reason}")
            return
        self._log(f"run {run.run_id} is sealed, syncing")
        self._health.tell("syncing", run=run.run_id)
        try:
            report = self._sync(run, store)
        except _PASSING:
            raise
        except EmbedstoreError as error:
            self._health.finished(run.run_id, "failed", str(error))
            if raising:
                raise
            self._log(f"run {run.run_id} failed: {error}")
        else:
            text = _told(report)
            self._health.finished(run.run_id, "promoted" if report.promoted else "synced", text)
            self._log(text)
            if report.promoted:
                self._collect(store)

    def _sync(self, run: Run, store: Store) -> SyncReport:
        """Return what sync returns. Raises VerificationError where a gate failed, _Stopped at the end."""

        def between_batches(what: str, done: int, total: int) -> None:
            self._health.sign()
            if self._pause(0):
                raise _Stopped

        task = self._task
        report = sync(
            run,
            store,
            alias=task.alias,
            promote=task.promote,
            gates=task.gates,
            why="watch",
            runs_dir=self._runs_dir,
            progress=between_batches,
        )
        for result in report.gates:
            verdict = "passed" if result.passed else "failed"
            self._log(f"run {run.run_id}, gate {result.gate} {verdict}: {result.text}")
        if not all(result.passed for result in report.gates):
            raise VerificationError(
                f"a gate failed; alias {task.alias} stays on {report.previous or 'nothing'}, "
                f"{report.collection} is sealed"
            )
        return report

    def _collect(self, store: Store) -> None:
        if self._task.keep is None:
            return
        try:
            report = gc(store, alias=self._task.alias, keep=self._task.keep)
        except EmbedstoreError as error:
            self._log(f"gc failed: {error}")
            return
        if deleted := [verdict.collection for verdict in report.verdicts if verdict.deleted]:
            self._log(f"gc deleted {', '.join(deleted)}")
        for verdict in report.verdicts:
            if verdict.problem:
                self._log(f"gc kept {verdict.collection}: {verdict.problem}")


class _Health:
    """The health file of a watch, None for none; a thread keeps it young."""

    def __init__(self, path: Path | None, interval: float) -> None:
        self._path = path
        self._interval = interval
        self._content: dict[str, Any] = {
            "schema": _HEALTH_SCHEMA,
            "pid": os.getpid(),
            "at": None,
            "state": "starting",
            "run": None,
            "last": None,
            "error": None,
        }
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="health", daemon=True)
        self._signed = time.monotonic()

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                for leftover in self._path.parent.glob(f".{self._path.name}.*.tmp"):  # of one that was killed
                    leftover.unlink()
                self._write()
            except OSError as error:
                raise UsageError(
                    f"health file {self._path} cannot be written: {error.strerror}; choose another one"
                ) from error
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            self._end.set()
            self._thread.join()
            self.tell("stopped", error=None if error is None else str(error))

    def sign(self) -> None:
        """Give a sign of life; the file tells of it within an interval."""
        self._signed = time.monotonic()

    def tell(self, state: State, *, run: str | None = None, error: str | None = None) -> None:
        self._change(state=state, run=run, error=error)

    def finished(self, run: str, outcome: Literal["promoted", "synced", "failed"], text: str) -> None:
        self._change(last={"run": run, "outcome": outcome, "at": _now(), "text": text})

    def _change(self, **content: Any) -> None:
        self.sign()
        if self._content.items() >= content.items():
            return
        with self._lock:
            self._content.update(content)
        with suppress(OSError):  # its age tells
            self._write()

    def _renew(self) -> None:
        while not self._end.wait(self._interval):
            if time.monotonic() - self._signed < _LONGEST_SILENCE:
                with suppress(OSError):  # its age tells
                    self._write()

    def _write(self) -> None:
        if self._path is not None:
            with self._lock:
                self._content["at"] = _now()
                replace_file(self._path, (json.dumps(self._content, indent=1) + "\n").encode())


def _unwanted(run: Run, store: Store, alias: str) -> str | None:
    """Return why a run is not to be synced, None where it is."""
    live = [flip.run_id for flip in store.promotions(alias)]
    if not live or (run.run_id > live[-1] and run.run_id not in live):
        return None
    if run.run_id == live[-1]:
        return "it is live"
    if run.run_id in live:
        return f"it was live before; `embedstore promote {run.run_id}` makes it so again"
    return f"it is older than the live run {live[-1]}; `embedstore sync {run.run_id}` takes it nevertheless"


def _told(report: SyncReport) -> str:
    if report.promoted:
        flip = f"alias {report.alias} -> {report.collection} (before: {report.previous or 'nothing'})"
    else:
        flip = f"alias {report.alias} stays on {report.previous or 'nothing'}"
    return (
        f"{report.collection}: {report.state}, {report.written:,} of {report.count:,} points written; {flip}"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
