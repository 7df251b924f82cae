"""Sync speed: a first sync against bare upserts and against qdrant-client's local mode, and a second sync.

    python benchmarks/sync.py [--movies 62000] [--dim 64] [--folder DIR]

Prints one line per figure. Every part runs in a process of its own, on the same generated run; DIR
should be on a real disk, not in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RUN_ID = "20260101t000000-0000"
LOCAL_POINTS = 500  # local mode commits once per point: a part is enough for its rate


def make_run(folder: Path, movies: int, dim: int) -> None:
    """Write a generated additive run of so many movies."""
    from embedstore.data.dataset import Dataset, Movie, RatingColumns
    from embedstore.runs.tower import AdditiveTower
    from embedstore.runs.writer import write_run

    rng = np.random.default_rng(0)
    ids = np.arange(1, movies + 1)
    columns = RatingColumns(
        user_ids=rng.integers(1, 1001, size=movies),
        movie_ids=ids,
        ratings=np.full(movies, 4, np.float32),
        timestamps=rng.integers(1, 10**9, size=movies),
    )
    names = ["Action", "Comedy", "Drama", "Film-Noir", "Sci-Fi", "Thriller", "War", "Western"]
    table: dict[int | str, Movie] = {
        int(i): Movie(f"Movie number {i}", 1920 + int(i) % 100, (names[i % 8], names[(i // 8) % 8]))
        for i in ids
    }
    write_run(
        folder / "runs",
        dataset=Dataset.of("generated", columns, table),
        config={"preset": "generated"},
        movie_vectors=rng.normal(size=(movies, dim)).astype(np.float32),
        tower=AdditiveTower(rng.normal(size=(movies, dim)).astype(np.float32)),
        metrics={},
        run_id=RUN_ID,
    )


def bare_edge(folder: Path) -> dict[str, float]:
    """Upsert the same points straight into a shard and flush it."""
    import qdrant_edge as edge

    from embedstore.runs.run import Run
    from embedstore.stores.contract import points

    run = Run.load(folder / "runs" / RUN_ID)
    batches = [
        points(run, start, min(start + 1000, len(run.movies))) for start in range(0, len(run.movies), 1000)
    ]
    target = folder / "bare"
    target.mkdir()
    started = time.perf_counter()
    params = edge.EdgeVectorParams(size=run.embedding_dim, distance=edge.Distance.Dot)
    shard = edge.EdgeShard.create(
        str(target), edge.EdgeConfig(vectors={"": params, "history": params}, wal_enabled=False)
    )
    shard.update(edge.UpdateOperation.create_field_index("genres", edge.PayloadSchemaType.Keyword))
    shard.update(edge.UpdateOperation.create_field_index("year", edge.PayloadSchemaType.Integer))
    for batch in batches:
        assert batch.history_vectors is not None
        made = [
            edge.Point(i, {"": v.tolist(), "history": h.tolist()}, dict(p))
            for i, v, h, p in zip(
                batch.ids, batch.movie_vectors, batch.history_vectors, batch.payloads, strict=True
            )
        ]
        shard.update(edge.UpdateOperation.upsert_points(made))
    shard.flush()
    return {"seconds": time.perf_counter() - started, "points": len(run.movies)}


def first_sync(folder: Path) -> dict[str, float]:
    """Sync into an empty store, verification included."""
    from embedstore.runs.run import Run
    from embedstore.stores.base import open_store
    from embedstore.sync import sync

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = Run.load(folder / "runs" / RUN_ID)
    stages: dict[str, float] = {}
    own = [_own_memory()]

    def progress(what: str, _done: int, _all: int) -> None:
        stages[what] = time.perf_counter()
        own.append(_own_memory())

    started = time.perf_counter()
    with open_store(folder / "store", create=True) as store:
        report = sync(run, store, progress=progress)
    seconds = time.perf_counter() - started
    assert report.written == len(run.movies)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "seconds": seconds,
        "points": report.count,
        "written_at": stages["writing"] - started,
        "compared_at": stages["comparing"] - started,
        "peak": peak,
        "own": max(own) - own[0],
    }


def _own_memory() -> int:
    """Return the bytes of this process that are not pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def second_sync(folder: Path) -> dict[str, float]:
    """Run the whole command again, best of three; fail where it wrote a file."""
    before = _state(folder / "store")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from embedstore.cli import main; main()", "sync", "--json"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        seconds.append(time.perf_counter() - started)
    assert _state(folder / "store") == before, "an unchanged sync wrote something"
    return {"seconds": min(seconds)}


def local_mode(folder: Path) -> dict[str, float]:
    """Upsert the first points through qdrant-client's local mode."""
    from qdrant_client import QdrantClient, models

    from embedstore.runs.run import Run
    from embedstore.stores.contract import points

    run = Run.load(folder / "runs" / RUN_ID)
    batch = points(run, 0, min(LOCAL_POINTS, len(run.movies)))
    assert batch.history_vectors is not None
    client = QdrantClient(path=str(folder / "local"))
    params = models.VectorParams(size=run.embedding_dim, distance=models.Distance.DOT)
    client.create_collection("movies", vectors_config={"": params, "history": params})
    started = time.perf_counter()
    client.upsert(
        "movies",
        [
            models.PointStruct(id=i, vector={"": v.tolist(), "history": h.tolist()}, payload=dict(p))
            for i, v, h, p in zip(
                batch.ids, batch.movie_vectors, batch.history_vectors, batch.payloads, strict=True
            )
        ],
    )
    seconds = time.perf_counter() - started
    client.close()
    return {"seconds": seconds, "points": len(batch)}


PARTS: dict[str, Callable[[Path], dict[str, float]]] = {
    "bare": bare_edge,
    "first": first_sync,
    "second": second_sync,
    "local": local_mode,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--movies", type=int, default=62_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--part", choices=sorted(PARTS))
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder)))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-sync-", dir=options.folder))
    try:
        make_run(folder, options.movies, options.dim)
        _report(folder, options.movies, options.dim)
    finally:
        shutil.rmtree(folder)


def _report(folder: Path, movies: int, dim: int) -> None:
    bare, first, second, local = (_measure(part, folder) for part in ("bare", "first", "second", "local"))
    rates = {
        name: part["points"] / part["seconds"]
        for name, part in (("bare", bare), ("first", first), ("local", local))
    }
    vectors = 2 * movies * dim * 4
    print(f"{movies:,} movies x {dim}, two vectors each, {vectors / 1e6:.0f} MB of vectors")
    print(f"bare Edge upserts            {rates['bare']:>9,.0f} points/s  {bare['seconds']:.2f} s")
    print(
        f"first sync, verified         {rates['first']:>9,.0f} points/s  {first['seconds']:.2f} s"
        f"  {rates['first'] / rates['bare']:.2f} of bare"
        f"  (written {first['written_at']:.2f} s, read back {first['compared_at']:.2f} s)"
    )
    print(
        f"qdrant-client local mode     {rates['local']:>9,.0f} points/s"
        f"  ({local['points']:.0f} points)  sync is {rates['first'] / rates['local']:.0f}x"
    )
    print(f"unchanged sync, the command  {second['seconds']:.2f} s, nothing written")
    print(
        f"peak memory of first sync    {first['own'] / 1e6:.0f} MB of its own, {first['own'] / vectors:.1f}x "
        f"the vectors; {first['peak'] / 1e6:.0f} MB with the mapped pages of run and shard"
    )
    sealed = next((folder / "store" / "collections").glob("*/g*"))
    used = sum(path.stat().st_blocks * 512 for path in sealed.rglob("*"))
    print(f"shard on the disk            {used / 1e6:.0f} MB")


def _measure(part: str, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, "--folder", str(folder)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
