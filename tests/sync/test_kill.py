"""SIGKILL at any instant: the alias is absent or on a sealed collection that verifies, and sync finishes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embedstore.runs.debias import debiased
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import Store, open_store
from embedstore.sync import sync, verify
from tests.builders import tiny_run
from tests.server import clean, connection_of_tests, server_url


def _loaded(run: Run) -> Run:
    """Return run opened anew, as a process does that knows its reference alone."""
    return find_run(run.path.parent, run.reference)


def _kill_during_sync(run: Run, opened: Callable[[], Store], delay: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            with opened() as store:
                sync(_loaded(run), store)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _kills(run: Run, opened: Callable[[], Store], forget: Callable[[], None], count: int) -> None:
    started = time.perf_counter()
    with opened() as store:
        sync(_loaded(run), store)
    whole = time.perf_counter() - started
    forget()
    rng = random.Random(0)  # noqa: S311 - instants, not secrets
    for _ in range(count):
        _kill_during_sync(run, opened, rng.uniform(0, whole))
        with opened() as store:
            name = store.aliases().get("movies")
            if name is not None:
                assert verify(store, name, run).count == 60
        if name is not None or rng.random() < 0.2:
            with opened() as store:
                sync(run, store)
                assert verify(store, "movies", run).count == 60
            forget()
    with opened() as store:
        sync(run, store)
        assert verify(store, "movies", run).count == 60


def _kills_of_a_folder(run: Run, tmp_path: Path, count: int) -> None:
    folder = tmp_path / "store"
    _kills(
        run,
        lambda: open_store(folder, create=True),
        lambda: shutil.rmtree(folder),
        count,
    )


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fifty_kills(tmp_path: Path) -> None:
    _kills_of_a_folder(tiny_run(tmp_path, n=60), tmp_path, 50)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fifteen_kills_of_a_debiased_sync(tmp_path: Path) -> None:
    _kills_of_a_folder(debiased(tiny_run(tmp_path, n=60), 0.5), tmp_path, 15)


@pytest.mark.server
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_thirty_kills_of_a_sync_to_a_server(tmp_path: Path) -> None:
    url = server_url()
    connection = connection_of_tests(grpc_port=0)  # a process that has used gRPC cannot be forked
    clean(url)
    _kills(tiny_run(tmp_path, n=60), lambda: open_store(url, connection=connection), lambda: clean(url), 30)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_five_hundred_kills(tmp_path: Path) -> None:
    _kills_of_a_folder(tiny_run(tmp_path, n=60), tmp_path, 500)
