"""Commands that write to one store at the same time: syncs, gc, and queries beside them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.runs.registry import find_run
from embedstore.stores.base import open_store
from embedstore.stores.contract import STALE_SECONDS
from embedstore.sync import sync, verify
from tests.builders import tiny_run
from tests.faults.report import Count, Mixed, Tally
from tests.server import clean
from tests.server_process import start_server

__all__ = ["races", "races_on_a_server"]

OLD, FIRST, SECOND = "20260101t000000-aaaa", "20260102t000000-bbbb", "20260103t000000-cccc"
ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[str]


def races(folder: Path, size: int) -> Count:
    """Two processes of embedstore work on one store at once: they start at most half a second apart.

    Syncs of two runs, two of one run, one that is killed while another waits for it, gc against sync, and
    gc and sync against queries. Each ends with code 0, or with code 1 and one sentence that says who
    writes, and one of the syncs succeeds. A query always answers, from one run alone. The alias names a
    collection that verifies, and whoever stopped succeeds when run again.
    """
    tally, home = Tally("two commands at once", "embedded"), folder / "store"
    _races(tally, folder, size, str(home), lambda: shutil.rmtree(home))
    return tally.count()


def races_on_a_server(folder: Path, size: int) -> Count:
    """The same on a server. Who waits for a killed writer of this machine goes on at once."""
    tally = Tally("two commands at once", "server")
    with start_server(folder / "qdrant") as server:
        _races(tally, folder, size, server.url, lambda: clean(server.url))
    return tally.count()


def _races(tally: Tally, folder: Path, size: int, location: str, forget: Callable[[], None]) -> None:
    rng = np.random.default_rng(7)
    runs = {
        run_id: tiny_run(folder, n=60, run_id=run_id, seed=seed)
        for seed, run_id in enumerate((OLD, FIRST, SECOND))
    }
    kinds = list(RACES)
    for number in range(size):
        kind, delay = kinds[number % len(kinds)], float(rng.uniform(0, 0.5))
        with tally.attempt(f"{kind}, {1000 * delay:.0f} ms apart"):
            with open_store(location, create=True) as store:
                sync(runs[OLD], store)
            outcome = RACES[kind](folder, location, delay)
            with open_store(location) as store:
                live = store.live("movies")
                assert verify(store, live.collection, runs[live.run_id]).count == 60
            for run in (runs[FIRST], runs[SECOND]):
                with open_store(location) as store:
                    started = time.monotonic()
                    sync(run, store)
                    assert time.monotonic() - started < STALE_SECONDS / 2, "waited for a process that is gone"
                    assert verify(store, "movies", run).count == 60
            tally.outcome(f"{kind}: {outcome}")
        forget()


def _two_runs(folder: Path, location: str, delay: float) -> str:
    return _of_two(*_both(folder, location, ("sync", FIRST), ("sync", SECOND), delay))


def _one_run_twice(folder: Path, location: str, delay: float) -> str:
    return _of_two(*_both(folder, location, ("sync", FIRST), ("sync", FIRST), delay))


def _killed(folder: Path, location: str, delay: float) -> str:
    """Kill the first of two syncs of a run while the other one waits or was turned away."""
    first = _started(folder, location, "sync", FIRST)
    time.sleep(0.3 + delay)
    second = _started(folder, location, "sync", FIRST)
    time.sleep(delay)
    first.kill()
    first.wait()
    for pipe in (first.stdout, first.stderr):
        if pipe is not None:
            pipe.close()
    return "both end well" if _code(second) == 0 else "the second stops"


def _gc_and_sync(folder: Path, location: str, delay: float) -> str:
    first, second = _both(folder, location, ("gc", "--keep", "0", "--unfinished"), ("sync", FIRST), delay)
    return f"gc {'ends well' if first == 0 else 'stops'}, sync {'ends well' if second == 0 else 'stops'}"


def _gc_and_queries(folder: Path, location: str, delay: float) -> str:
    asking = ("query", "--history", "1,2,3", "--json")
    queries = [_started(folder, location, *asking)]
    syncing = _started(folder, location, "sync", FIRST)
    time.sleep(delay)
    queries += [_started(folder, location, *asking) for _ in range(2)]
    assert _code(syncing) == 0
    gc = _started(folder, location, "gc", "--keep", "0")
    queries += [_started(folder, location, *asking) for _ in range(2)]
    assert _code(gc) == 0
    for query in queries:
        out, err = query.communicate()
        assert query.returncode == 0, err
        _whole(json.loads(out), folder / "runs")
    return "all queries answer"


RACES: dict[str, Callable[[Path, str, float], str]] = {
    "syncs of two runs": _two_runs,
    "two syncs of one run": _one_run_twice,
    "a sync is killed": _killed,
    "gc against sync": _gc_and_sync,
    "gc against queries": _gc_and_queries,
}


def _both(
    folder: Path, location: str, one: tuple[str, ...], other: tuple[str, ...], delay: float
) -> tuple[int, int]:
    """Start two commands one after the other, and return their exit codes."""
    first = _started(folder, location, *one)
    time.sleep(delay)
    second = _started(folder, location, *other)
    return _code(first), _code(second)


def _of_two(first: int, second: int) -> str:
    assert 0 in (first, second), "neither succeeds"
    return "both end well" if first == second else f"the {'second' if second else 'first'} stops"


def _started(folder: Path, location: str, *arguments: str) -> Process:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EMBEDSTORE_STORE": location}
    command = [sys.executable, "-m", "embedstore", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _code(process: Process) -> int:
    """Return how a command ended, 0 or 1. Raises AssertionError where it stopped otherwise than it may."""
    _, err = process.communicate(timeout=120)
    if process.returncode:
        assert process.returncode == 1, (process.returncode, err)
        last = err.splitlines()[-1]  # after lines of progress
        assert "another process" in last or "is being written by process" in last, err
        assert "Traceback" not in err, err
    return process.returncode


def _whole(answer: dict[str, Any], runs: Path) -> None:
    """Raise Mixed where an answer is not that of the run which it names."""
    run = find_run(runs, answer["run_id"])
    scores = run.movie_vectors @ run.tower(run.movies.rows([1, 2, 3]))
    scores[run.movies.rows([1, 2, 3])] = -np.inf
    best = np.sort(scores)[::-1][: len(answer["recommendations"])]
    if not np.allclose(best, [hit["score"] for hit in answer["recommendations"]], rtol=1e-4):
        raise Mixed(f"the scores are not those of run {run.run_id}")
