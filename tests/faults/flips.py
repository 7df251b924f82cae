"""Readers during flips: every answer is of one run, the old or the new one, and none fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from embedstore.errors import EmbedstoreError
from embedstore.query.recommend import ask_live, live_collection, recommend
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection, Secret
from embedstore.stores.contract import HISTORY_VECTOR, collection_name
from embedstore.sync import sync
from tests.builders import tiny_run
from tests.faults.report import Count, StoreKind
from tests.server_process import start_server

__all__ = [
    "HISTORY",
    "Findings",
    "Place",
    "Readers",
    "Truth",
    "count_of",
    "flips_of_a_folder",
    "flips_on_a_server",
    "two_runs",
]

HISTORY = (1, 5, 9)
K = 10
_READY_SECONDS = 60.0
_KEPT = 5  # reproductions of each kind
RUN_IDS = ("20260101t000000-0001", "20260101t000000-0002")


@dataclass(frozen=True)
class Place:
    """Where readers read: the folder of the runs, and the store with its key."""

    runs_dir: Path
    store: str
    key: str | None = None

    def opened(self) -> Store:
        return open_store(
            self.store, connection=Connection(Secret(self.key) if self.key else None, grpc_port=0)
        )

    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.store, headers={"api-key": self.key} if self.key else {}, timeout=60
        )

    @cached_property
    def truths(self) -> Mapping[str, Truth]:
        return {run_id: Truth.of(find_run(self.runs_dir, run_id)) for run_id in RUN_IDS}


@dataclass(frozen=True)
class Truth:
    """What the plain formula recommends after HISTORY, and psi(X)."""

    run: Run
    psi: Sequence[float]
    movie_ids: Sequence[Any]
    scores: Sequence[float]

    @classmethod
    def of(cls, run: Run) -> Truth:
        seen = run.movies.rows(HISTORY)
        psi = run.tower(seen)
        scores = run.movie_vectors @ psi  # (n_movies,)
        scores[seen] = -np.inf
        best = np.argsort(-scores)[:K]
        return cls(run, psi.tolist(), run.movies.ids(best), scores[best].tolist())


@dataclass(frozen=True)
class Reading:
    """One answer: the run that it says it is of, and (movie_id, score, run_id of the point) of every hit.

    The last is the answer's own run_id where the way of asking does not tell.
    """

    run_id: str
    hits: Sequence[tuple[Any, float, str]]


Ask = Callable[[], Reading]


@dataclass
class Findings:
    """What a reader found: answers by run, errors, and answers that are not one run's alone."""

    kind: str
    answers: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def note(self, reading: Reading, truth: Truth) -> None:
        self.answers[reading.run_id] += 1
        ids, scores, run_ids = zip(*reading.hits, strict=True)
        if {*run_ids} != {reading.run_id} or list(ids) != truth.movie_ids:
            self.mixed.append(f"{self.kind}: {reading}")
        elif not np.allclose(scores, truth.scores, rtol=1e-5, atol=1e-6):
            self.mixed.append(f"{self.kind}: {reading}, expected {truth.scores}")


@contextmanager
def _by_query(place: Place) -> Iterator[Ask]:
    """recommend, as `query` does it."""
    with place.opened() as store:

        def ask() -> Reading:
            answer = ask_live(
                _live(place, store),
                lambda: _live(place, store),
                lambda run, name: recommend(run, store, history=HISTORY, k=K, collection=name),
            )
            movies = answer.recommendations
            return Reading(answer.run_id, [(movie.movie_id, movie.score, answer.run_id) for movie in movies])

        yield ask


@contextmanager
def _by_search(place: Place) -> Iterator[Ask]:
    """Store.search by what the alias names, as an application in Python does it."""
    with place.opened() as store:

        def search(run: Run, name: str) -> Reading:
            hits = store.search(name, run.tower(run.movies.rows(HISTORY)), limit=K, exclude=HISTORY)
            return Reading(run.run_id, [(hit.movie_id, hit.score, hit.payload["run_id"]) for hit in hits])

        yield lambda: ask_live(_live(place, store), lambda: _live(place, store), search)


def _live(place: Place, store: Store) -> tuple[Run, str]:
    collection, run_id = live_collection(store, "movies")
    return place.truths[run_id].run, collection


@contextmanager
def _by_command(place: Place) -> Iterator[Ask]:
    """The program itself."""
    command = [sys.executable, "-m", "embedstore", "query", "--history", ",".join(map(str, HISTORY))]
    command += ["--json", "--runs", str(place.runs_dir), "--store", place.store, "--grpc-port", "0"]

    def ask() -> Reading:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_PYTHONPATH})
        if done.returncode:
            raise EmbedstoreError(f"exit code {done.returncode}: {done.stderr}")
        answer = json.loads(done.stdout)
        movies = answer["recommendations"]
        run_id = answer["run_id"]
        return Reading(run_id, [(movie["movie_id"], movie["score"], run_id) for movie in movies])

    yield ask


@contextmanager
def _by_history(place: Place) -> Iterator[Ask]:
    """docs/contract.md, by a history: psi(X) inside Qdrant, the run_id of the alias before and after."""
    body = {
        "query": {"recommend": {"positive": HISTORY, "strategy": "average_vector"}},
        "lookup_from": {"collection": "movies", "vector": HISTORY_VECTOR},
        "filter": {"must_not": [{"has_id": HISTORY}]},
        "limit": K,
        "with_payload": True,
    }
    with place.http() as http:

        def ask() -> Reading:
            after = _run_id_of_the_alias(http)
            while True:
                before, answer = after, _raw(http, body)
                after = _run_id_of_the_alias(http)
                if {before, after} == {run_id for _, _, run_id in answer}:
                    return Reading(after, answer)

        yield ask


@contextmanager
def _by_embedding(place: Place) -> Iterator[Ask]:
    """docs/contract.md, by a psi(X) of the application's own: an answer of another run is asked for anew."""
    with place.http() as http:
        mine = RUN_IDS[0]

        def ask() -> Reading:
            nonlocal mine
            while True:
                body = {
                    "query": place.truths[mine].psi,
                    "filter": {"must_not": [{"has_id": HISTORY}]},
                    "limit": K,
                    "with_payload": True,
                }
                answer = _raw(http, body)
                (found,) = {run_id for _, _, run_id in answer}
                if found == mine:
                    return Reading(mine, answer)
                mine = found

        yield ask


def _raw(http: httpx.Client, body: Mapping[str, Any]) -> list[tuple[Any, float, str]]:
    answer = http.post("/collections/movies/points/query", json=body)
    points = answer.raise_for_status().json()["result"]["points"]
    return [(point["payload"]["movie_id"], point["score"], point["payload"]["run_id"]) for point in points]


def _run_id_of_the_alias(http: httpx.Client) -> str:
    answer = http.get("/collections/movies").raise_for_status()
    return str(answer.json()["result"]["config"]["metadata"]["run_id"])


WAYS: Mapping[str, Callable[[Place], Any]] = {
    "query": _by_query,
    "search": _by_search,
    "program": _by_command,
    "raw history": _by_history,
    "raw embedding": _by_embedding,
}
_PYTHONPATH = {"PYTHONPATH": str(Path(__file__).parents[2])}


def _read(kind: str, place: Place, pause: float, ready: Any, stop: Any, results: Any) -> None:
    """Ask again and again until stop is set, in a process of its own."""
    found = Findings(kind)
    with WAYS[kind](place) as ask:
        while not stop.is_set():
            try:
                reading = ask()
            except (EmbedstoreError, httpx.HTTPError, ValueError, KeyError) as error:
                found.errors.append(f"{kind}: {type(error).__name__}: {error}")
                time.sleep(0.05)
            else:
                found.note(reading, place.truths[reading.run_id])
            ready.set()
            time.sleep(pause)
    results.put(found)


class Readers:
    """Processes that read, one for each kind, while the `with` lasts; findings are there after it.

    pause: seconds between two questions, so that who writes has a processor, too.
    """

    def __init__(self, place: Place, kinds: Sequence[str], *, pause: float = 0.001) -> None:
        context = multiprocessing.get_context("spawn")
        self.findings: list[Findings] = []
        self._stop, self._results = context.Event(), context.Queue()
        self._ready = [context.Event() for _ in kinds]
        self._processes = [
            context.Process(target=_read, args=(kind, place, pause, ready, self._stop, self._results))
            for kind, ready in zip(kinds, self._ready, strict=True)
        ]

    def __enter__(self) -> Readers:
        for process in self._processes:
            process.start()
        for ready in self._ready:
            assert ready.wait(_READY_SECONDS), "a reader has not begun"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        found = [self._results.get(timeout=_READY_SECONDS) for _ in self._processes]
        self.findings = sorted(found, key=lambda one: one.kind)
        for process in self._processes:
            process.join()


def two_runs(folder: Path) -> list[Run]:
    """Return two runs of the same movies, of which no score of one is a score of the other."""
    return [tiny_run(folder, seed=seed, run_id=run_id) for seed, run_id in enumerate(RUN_IDS)]


def flips_of_a_folder(folder: Path, size: int) -> list[Count]:
    """Readers in processes of their own loop over `query` (the function, and the program itself) and over
    Store.search, while an embedded store's alias goes to and fro between two runs of the same movies with
    other vectors. After every fourth flip the collection that was live is deleted, as by gc, and synced
    again for the next; after every tenth a foreign file lies in the live one, and sync mends it.

    Every answer must be, movie by movie and score by score, what the plain formula makes of one of the two
    runs, the one that it names. An error is counted as lost.
    """
    runs = two_runs(folder)
    place = Place(runs[0].path.parent, str(folder / "store"))
    started = time.perf_counter()
    with open_store(place.store, create=True) as store:
        for run in runs:
            sync(run, store)
        with Readers(place, ["query", "search", "program"]) as readers:
            for number in range(size):
                _flip(store, runs[number % 2], runs[1 - number % 2], delete=number % 4 == 3)
                if number % 10 == 4:
                    _disturb(Path(place.store), runs[number % 2])
                    assert sync(runs[number % 2], store).state == "repaired"
    return [count_of(found, f"{size} flips", "embedded", started) for found in readers.findings]


def flips_on_a_server(folder: Path, size: int) -> list[Count]:
    """The same on a Qdrant server, where readers also ask over plain HTTP, as docs/contract.md says: by a
    history, whose psi(X) Qdrant computes, and by a psi(X) of their own. After every fourth flip the
    collection that was live is deleted and synced again for the next.
    """
    runs = two_runs(folder)
    with start_server(folder / "server") as server:
        place = Place(runs[0].path.parent, server.url)
        started = time.perf_counter()
        with place.opened() as store:
            for run in runs:
                sync(run, store)
            with Readers(place, list(WAYS)) as readers:
                for number in range(size):
                    _flip(store, runs[number % 2], runs[1 - number % 2], delete=number % 4 == 3)
        return [count_of(found, f"{size} flips", "server", started) for found in readers.findings]


def _flip(store: Store, run: Run, other: Run, *, delete: bool) -> None:
    name = collection_name("movies", run.run_id)
    if store.exists(name):
        assert store.promote("movies", name)
    else:
        assert sync(run, store).promoted
    if delete:
        store.drop(collection_name("movies", other.run_id))


def _disturb(folder: Path, run: Run) -> None:
    """Put a foreign file into the shard of run: no answer changes, but the shard is not as it was sealed."""
    (shard,) = (folder / "collections" / collection_name("movies", run.run_id)).glob("g*")
    (shard / "notes").write_text("kept here by mistake", encoding="utf-8")


def count_of(found: Findings, during: str, store: StoreKind, started: float) -> Count:
    """Return what a reader found as a count, of answers."""
    outcomes = {f"answered by {run_id}": n for run_id, n in sorted(found.answers.items())}
    outcomes |= {"error": len(found.errors)} if found.errors else {}
    return Count(
        f"{during}, as read by {found.kind}",
        store,
        sum(outcomes.values()),
        outcomes,
        len(found.errors),
        len(found.mixed),
        time.perf_counter() - started,
        [*found.errors[:_KEPT], *found.mixed[:_KEPT]],
    )
