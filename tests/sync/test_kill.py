"""SIGKILL at any instant: the alias is absent or on a sealed collection that verifies, and sync finishes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from embedstore.errors import NotFoundError
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync, verify
from tests.builders import tiny_run


def _kill_during_sync(run: Run, folder: Path, delay: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            with open_store(folder, create=True) as store:
                sync(Run.load(run.path), store)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _kills(tmp_path: Path, count: int) -> None:
    run = tiny_run(tmp_path, n=60)
    folder = tmp_path / "store"
    started = time.perf_counter()
    with open_store(tmp_path / "timed", create=True) as store:
        sync(Run.load(run.path), store)
    whole = time.perf_counter() - started
    rng = random.Random(0)  # noqa: S311 - instants, not secrets
    for _ in range(count):
        _kill_during_sync(run, folder, rng.uniform(0, whole))
        try:
            with open_store(folder) as store:
                name = store.aliases().get("movies")
                if name is not None:
                    assert verify(store, name, run).count == 60
        except NotFoundError:
            continue  # killed before there was a store
        if name is not None or rng.random() < 0.2:
            with open_store(folder, create=True) as store:
                sync(run, store)
                assert verify(store, "movies", run).count == 60
            shutil.rmtree(folder)
    with open_store(folder, create=True) as store:
        sync(run, store)
        assert verify(store, "movies", run).count == 60


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fifty_kills(tmp_path: Path) -> None:
    _kills(tmp_path, 50)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_five_hundred_kills(tmp_path: Path) -> None:
    _kills(tmp_path, 500)
