"""A cluster of three: what its readers see, and what goes on, when a node dies."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import pytest

from embedstore.data.features import MovieId
from embedstore.errors import EmbedstoreError, UsageError
from embedstore.query.recommend import live_collection, recommend
from embedstore.runs.run import Run
from embedstore.stores.connection import Connection
from embedstore.stores.contract import Spread, collection_name
from embedstore.stores.server import ServerStore
from embedstore.sync import Progress, promote_run, rollback, status, sync, verify
from embedstore.sync.doctor import doctor
from tests.builders import tiny_run
from tests.cluster import Cluster, running_cluster
from tests.server_process import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]

SPREAD = Spread(shards=3, replicas=2)
MOVIES = 4000
DIM = 16
RAW = "/collections/movies/points/query"
HISTORY = (1, 50, 181)
LIMIT = 50
REPEAT_SECONDS = 0.05


_numbers = itertools.count(1)


def new_run(folder: Path) -> Run:
    """Return a run unlike all others."""
    number = next(_numbers)
    return tiny_run(folder, n=MOVIES, dim=DIM, seed=number, run_id=f"20260101t000000-{number:04x}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def synced(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    made = [new_run(folder), new_run(folder)]
    with ServerStore(cluster.urls[0]) as store:
        for run in made:
            sync(run, store, spread=SPREAD)
    return made


@pytest.fixture
def runs(cluster: Cluster, synced: list[Run]) -> list[Run]:
    """Two runs that are in the cluster, the first of them live."""
    with ServerStore(cluster.urls[0]) as store:
        promote_run(store, synced[0].run_id)
    return synced


class Readers:
    """Threads that read from each of urls until the block ends: the raw alias, and recommend().

    repeated: answers of 5xx, asked for again. failures: no answer then either, or half of one. mixed: movies
    of two runs in one answer, or other movies than the run recommends.
    """

    def __init__(self, urls: Sequence[str], runs: Sequence[Run]) -> None:
        self.reads = 0
        self.runs: set[str] = set()
        self.repeated: list[str] = []
        self.failures: list[str] = []
        self.mixed: list[str] = []
        self._by_id = {run.run_id: run for run in runs}
        self._stop = threading.Event()
        ways = [(self._recommend, url) for url in urls]
        ways += [(self._read_alias, url) for url in urls if "," not in url]
        self._threads = [threading.Thread(target=way, args=[url]) for way, url in ways]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def log(self, what: str) -> None:
        counts = f"{len(self.repeated)} repeated, {len(self.failures)} failed, {len(self.mixed)} mixed"
        logging.getLogger(__name__).info("%s: %s reads, %s", what, self.reads, counts)

    def check(self) -> None:
        assert self.failures == []
        assert self.mixed == []

    def _read_alias(self, url: str) -> None:
        body = {"query": [1.0] * DIM, "limit": LIMIT, "with_payload": True}
        with httpx.Client(base_url=url) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post(RAW, json=body)
                    if answer.is_server_error:
                        self.repeated.append(f"{url}: {answer.text}")
                        time.sleep(REPEAT_SECONDS)
                        answer = http.post(RAW, json=body)
                    points = answer.raise_for_status().json()["result"]["points"]
                except httpx.HTTPError as error:
                    self.failures.append(f"{url}: {error!r}")
                else:
                    self._note(url, points)

    def _note(self, url: str, points: Sequence[Mapping[str, Any]]) -> None:
        run_ids = {point["payload"]["run_id"] for point in points}
        self.reads += 1
        self.runs |= run_ids
        if len(points) != LIMIT:
            self.failures.append(f"{url}: {len(points)} points")
        if len(run_ids) != 1:
            self.mixed.append(f"{url}: {run_ids}")

    def _recommend(self, url: str) -> None:
        with ServerStore(url) as store:
            while not self._stop.is_set():
                try:
                    collection, run_id = live_collection(store, "movies")
                    answer = recommend(self._by_id[run_id], store, history=HISTORY, collection=collection)
                except EmbedstoreError as error:
                    self.failures.append(f"{url}: {error!r}")
                    continue
                self.reads += 1
                self.runs.add(run_id)
                found = [movie.movie_id for movie in answer.recommendations]
                if found != best_movies(self._by_id[run_id]):
                    self.mixed.append(f"{url}: {found} of {run_id}")


@cache
def best_movies(run: Run) -> list[MovieId]:
    """Return what the plain formula recommends after HISTORY."""
    seen = run.movies.rows(HISTORY)
    scores = run.movie_vectors @ run.tower(seen)  # (n_movies,)
    scores[seen] = -np.inf
    return run.movies.ids(np.argsort(-scores)[:10])


def verify_on_every_node(cluster: Cluster, run: Run) -> None:
    for url in cluster.urls:
        with ServerStore(url) as store:
            assert verify(store, collection_name("movies", run.run_id), run).count == MOVIES


def kill_half_way(node: Server) -> Progress:
    """Return a progress callback that kills a node once half of the points are written."""

    def progress(what: str, done: int, total: int) -> None:
        if what == "writing" and done >= total / 2:
            node.kill()

    return progress


def test_every_node_serves_a_flip_that_was_acknowledged(cluster: Cluster, runs: list[Run]) -> None:
    with ExitStack() as stack:
        stores = [stack.enter_context(ServerStore(url)) for url in cluster.urls]
        readings = stack.enter_context(Readers(cluster.urls, runs))
        for run in [runs[1], runs[0]] * 4:
            promote_run(stores[0], run.run_id)
            for store in stores:
                assert store.live("movies").run_id == run.run_id
    readings.log("8 flips")
    readings.check()
    assert readings.repeated == []
    assert readings.runs == {run.run_id for run in runs}


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_a_node_killed_during_sync(cluster: Cluster, runs: list[Run], tmp_path: Path, role: str) -> None:
    run, victim = new_run(tmp_path), getattr(cluster, role)
    name, others = collection_name("movies", run.run_id), cluster.others(victim)
    with Readers(others, [*runs, run]) as readings, cluster.down(victim, name):
        with ServerStore(others[0]) as store:
            assert sync(run, store, spread=SPREAD, progress=kill_half_way(victim)).promoted
        assert victim.process.poll() is not None
        assert readings.repeated == []
        readings.log(f"{role} killed during sync")
    readings.log("and back again")
    readings.check()
    assert readings.runs == {runs[0].run_id, run.run_id}
    verify_on_every_node(cluster, run)


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_a_node_killed_around_a_flip(cluster: Cluster, runs: list[Run], role: str) -> None:
    victim = getattr(cluster, role)
    others = cluster.others(victim)
    names = [collection_name("movies", run.run_id) for run in runs]
    with Readers(others, runs) as readings, cluster.down(victim, *names), ExitStack() as stack:
        stores = [stack.enter_context(ServerStore(url)) for url in others]
        for number, run in enumerate([runs[1], runs[0]] * 2):
            if number == 1:
                threading.Timer(0.02, victim.kill).start()  # in the middle of a flip
            promote_run(stores[0], run.run_id)
            for store in stores:
                assert store.live("movies").run_id == run.run_id
        assert readings.repeated == []
        readings.log(f"4 flips, {role} killed")
    readings.log("and back again")
    readings.check()
    for run in runs:
        verify_on_every_node(cluster, run)


def test_several_urls_outlive_the_node_that_is_used(
    cluster: Cluster, runs: list[Run], tmp_path: Path
) -> None:
    """The first URL is that of the node that dies: while it is written to, and before the store is opened."""
    run, victim = new_run(tmp_path), cluster.follower
    name, urls = collection_name("movies", run.run_id), ",".join([victim.url, *cluster.others(victim)])
    with Readers([urls], [*runs, run]) as readings, cluster.down(victim, name):
        with ServerStore(urls) as store:
            assert sync(run, store, spread=SPREAD, progress=kill_half_way(victim)).promoted
        with ServerStore(urls) as store:
            assert store.bulk_way().startswith("gRPC")
            assert verify(store, name, run).count == MOVIES
            findings = doctor(lambda: nullcontext(store), tmp_path / "runs")
            problems = {found.name for found in findings if found.level == "problem"}
            assert problems == {"server", "cluster", "replicas"}
            (line,) = [line for line in status(store) if line.collection == name]
            assert {replica.state for replica in line.replicas} == {"Active", "Dead"}
    readings.log("first of three URLs killed")
    readings.check()
    assert readings.runs == {runs[0].run_id, run.run_id}
    findings = doctor(lambda: ServerStore(urls), tmp_path / "runs")
    assert [found for found in findings if found.level == "problem"] == []
    verify_on_every_node(cluster, run)


def test_a_collection_without_its_only_copy_stands_in_the_way_of_no_other(
    cluster: Cluster, runs: list[Run], tmp_path: Path
) -> None:
    lost, victim = new_run(tmp_path), cluster.follower
    name, others = collection_name("films", lost.run_id), cluster.others(victim)
    with ServerStore(others[0]) as store:
        sync(lost, store, alias="films", spread=Spread(shards=3, replicas=1))
    with cluster.down(victim, name):
        victim.kill()
        with ServerStore(others[0]) as store:
            promote_run(store, runs[1].run_id)
            assert rollback(store).run_id == runs[0].run_id
            assert name in store.collections()
        with ServerStore(others[0], Connection(patient=False)) as store:
            problems = {line.collection: line.problem for line in status(store) if line.problem}
            assert "read operations failed" in problems.pop(name)
            assert problems == {}
    with ServerStore(others[0]) as store:
        assert verify(store, name, lost).count == MOVIES


def test_more_replicas_than_nodes_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    with (
        ServerStore(cluster.urls[0]) as store,
        pytest.raises(UsageError, match="4 replicas need as many nodes"),
    ):
        sync(new_run(tmp_path), store, spread=Spread(replicas=4))
