"""A run folder that other hands change while it is synced, at every point between two batches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.runs.run import Run
from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection
from embedstore.sync import sync, upsert, verify
from tests.builders import tiny_run
from tests.faults.forked import answer_of
from tests.faults.report import Count, Tally
from tests.server import clean
from tests.server_process import start_server

__all__ = ["changed_runs", "changed_runs_on_a_server"]

BATCH = 10
POINTS = 7  # before it begins, after each of 4 batches, after comparing, and never reached where it has ended


def _overwritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x01\x02\x03\x04")


def _replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    other.replace(path)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: os.truncate(path, 0),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "appended to": lambda path: path.open("ab").write(b"more"),
    "overwritten": _overwritten,
    "replaced": _replaced,
    "deleted": lambda path: path.unlink(),
}


def changed_runs(folder: Path, size: int) -> Count:
    """A file of a run is truncated, cut, appended to, overwritten, replaced or deleted while it is synced.

    This happens before the first write, after a batch, or while the points are compared. The sync seals
    what the run was when it began, or refuses and names the file; it is not ended by a signal. What is
    sealed verifies against the run as it was trained, and with the run restored, the same sync finishes.
    """
    tally, home = Tally("a run changed while it is synced", "embedded"), folder / "store"
    _change(tally, folder, size, lambda: open_store(home, create=True), lambda: shutil.rmtree(home))
    return tally.count()


def changed_runs_on_a_server(folder: Path, size: int) -> Count:
    """The same, where the run is synced to a server."""
    tally = Tally("a run changed while it is synced", "server")
    how = Connection(grpc_port=0)  # a process that has used gRPC cannot be forked
    with start_server(folder / "qdrant") as server:
        _change(
            tally, folder, size, lambda: open_store(server.url, connection=how), lambda: clean(server.url)
        )
    return tally.count()


def _change(
    tally: Tally, folder: Path, size: int, opened: Callable[[], Store], forget: Callable[[], None]
) -> None:
    rng = np.random.default_rng(7)
    for number in range(size):
        run = tiny_run(folder, run_id=f"20260101t{number:06}-aaaa")
        trained = folder / "trained" / run.run_id
        shutil.copytree(run.path, trained)
        n = len(run.movies)
        what = list(CHANGES)[number % len(CHANGES)]
        name, point = str(rng.choice(sorted(run.manifest.files))), max(0, int(rng.integers(-2, POINTS)))
        with tally.attempt(f"{name} {what} at point {point}"):
            said = answer_of(partial(_sync, run.path, opened, point, partial(CHANGES[what], run.path / name)))
            with opened() as store:
                collection = store.aliases().get("movies")
                if said == "created":
                    assert verify(store, "movies", Run.load(trained)).count == n
                else:
                    assert name in said, said
                    assert "\n" not in said, said
                    assert collection is None, "the alias moved"
                shutil.rmtree(run.path)
                shutil.copytree(trained, run.path)
                sync(Run.load(run.path), store)
                assert verify(store, "movies", Run.load(trained)).count == n
            tally.outcome("sealed as it was when it began" if said == "created" else "refused by name")
        forget()


def _sync(run_path: Path, opened: Callable[[], Store], point: int, change: Callable[[], object]) -> str:
    """Sync a run and change it when progress is told of for the point-th time; 0: before it begins."""
    calls = 0

    def progress(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == point:
            change()

    upsert._BATCH = BATCH
    with opened() as store:
        run = Run.load(run_path)
        if point == 0:
            change()
        return sync(run, store, progress=progress).state
