"""Promote, rollback, gc, verify and the heartbeat, on the embedded store and on a Qdrant server.

    [QDRANT_URL=http://127.0.0.1:6333] python -m benchmarks.lifecycle [--movies 62000]

Without QDRANT_URL the embedded store alone is measured; QDRANT_API_KEY is its key. The times are those
of the functions, beyond the start of a process; ratios are to the bare calls that a user would make.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.stores.contract import HEARTBEAT_SECONDS, now

if TYPE_CHECKING:
    from embedstore.runs.run import Run
    from embedstore.stores.base import Store

ALIAS = "bench"
COLLECTIONS = 10
FLIPS = 50
BEATS = 50


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def copies(run: Run, folder: Path, count: int) -> Iterator[Run]:
    """Yield count runs with the content of run and ids of their own."""
    from embedstore.runs.manifest import read_manifest
    from embedstore.runs.run import Run
    from embedstore.runs.writer import seal_run

    for number in range(count):
        path = folder / f"{20250101 + number}t000000-0000"
        path.mkdir(parents=True)
        for name in run.manifest.files:
            (path / name).parent.mkdir(exist_ok=True)
            os.link(run.path / name, path / name)
        seal_run(path, replace(read_manifest(run.path), run_id=path.name))
        yield Run.load(path)


def flips(store: Store, runs: list[Run]) -> tuple[list[float], list[float]]:
    """Return the seconds of promotions, and of rollbacks."""
    from embedstore.sync import promote_run, rollback

    promoted, returned = [], []
    for flip in range(FLIPS):
        promoted.append(seconds_of(partial(promote_run, store, runs[flip % 2].reference, alias=ALIAS)))
        if flip:
            returned += [seconds_of(partial(rollback, store, alias=ALIAS)) for _ in range(2)]
    return promoted, returned


def measure(store: Store, run: Run, folder: Path, bare: Callable[[str], object]) -> None:
    """Print the figures of one store. bare reads every point of a collection."""
    from embedstore.sync import gc, sync, verify

    runs = list(copies(run, folder, COLLECTIONS + 1))
    built = [seconds_of(partial(sync, one, store, alias=ALIAS, promote=False)) for one in runs]
    promoted, returned = flips(store, runs[-2:])
    name = f"{ALIAS}__{runs[-1].reference}"
    verified, ratios = [], []
    for _ in range(5):
        verified.append(seconds_of(partial(verify, store, name, runs[-1])))
        ratios.append(verified[-1] / seconds_of(partial(bare, name)))
    beat = statistics.median(heartbeats(store, name))
    collected = seconds_of(partial(gc, store, alias=ALIAS, keep=1))
    deleted = len(runs) - len([left for left in store.collections() if left.startswith(f"{ALIAS}__")])
    for what, seconds in (("promote", promoted), ("rollback", returned)):
        worst = f"worst of {len(seconds)}: {1e3 * max(seconds):.1f}"
        print(f"  {what:9} {1e3 * statistics.median(seconds):7.1f} ms   {worst}")
    print(f"  gc        {collected:7.2f} s    of {deleted} collections")
    ratio = f"{statistics.median(ratios):.2f}x reading every point and no more"
    print(f"  verify    {statistics.median(verified):7.2f} s    {ratio}")
    share = f"{beat / HEARTBEAT_SECONDS:.2%} of a sync, every {HEARTBEAT_SECONDS:.0f} s"
    print(f"  heartbeat {1e3 * beat:7.1f} ms   {share} (this one took {statistics.median(built):.2f} s)")


def heartbeats(store: Store, name: str) -> Iterator[float]:
    """Yield the seconds that a sign of life in a collection takes."""
    for _ in range(BEATS):
        metadata = replace(store.metadata(name), heartbeat=now())
        yield seconds_of(partial(store.set_metadata, name, metadata))


@contextmanager
def embedded(folder: Path) -> Iterator[tuple[Store, Callable[[str], object]]]:
    from embedstore.stores.base import open_store

    with open_store(folder / "store", create=True) as store:
        yield store, lambda name: read_shard(next((folder / "store/collections" / name).glob("g*")))


def read_shard(path: Path) -> int:
    """Read every point of a shard of Edge by a hand-written loop."""
    import qdrant_edge as edge

    shard, offset, count = edge.EdgeShard.load(str(path)), None, 0
    while True:
        request = edge.ScrollRequest(offset=offset, limit=1000, with_payload=True, with_vector=True)
        records, offset = shard.scroll(request)
        count += len([(record.id, record.vector, record.payload) for record in records])
        if offset is None:
            return count


@contextmanager
def server() -> Iterator[tuple[Store, Callable[[str], object]]]:
    from benchmarks.server import clean, opened, raw_client

    client = raw_client(grpc=True)

    def read_all(name: str) -> int:
        offset: Any = None
        count = 0
        while True:
            points, offset = client.scroll(name, limit=1000, offset=offset, with_vectors=True)
            count += len(points)
            if offset is None:
                return count

    clean()
    with opened() as store:
        yield store, read_all
    clean()


def main() -> None:
    from benchmarks.generated import generated_run

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--movies", type=int, default=62_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-lifecycle-") as name:
        folder = Path(name)
        run = generated_run(folder / "runs", n_movies=options.movies, n_users=500)
        load = os.getloadavg()[0]
        print(f"{options.movies:,} movies x {run.embedding_dim}, two vectors each; load {load:.1f} before")
        print("embedded")
        with embedded(folder) as (store, bare):
            measure(store, run, folder / "copies-embedded", bare)
        if "QDRANT_URL" not in os.environ:
            print("server: not measured, QDRANT_URL is not set")
            return
        with server() as (store, bare):
            print(f"server, Qdrant {store.version}")
            measure(store, run, folder / "copies-server", bare)


if __name__ == "__main__":
    main()
