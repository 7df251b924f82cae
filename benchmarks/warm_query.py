"""A warm filtered query beside bare Edge, and a users file of 10,000 users; 62,000 movies x 64.

python -m benchmarks.warm_query
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from benchmarks.generated import generated_run
from embedstore.stores.base import Filters, open_store
from embedstore.sync import sync

QUERIES = 300


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = generated_run(folder / "runs", n_movies=62_000)
        name = f"movies__{run.run_id}"
        rows = run.history(7)
        seen, psi = run.movies.ids(rows), run.tower(rows)
        filters = Filters(genres=("Comedy",), years=((">=", 1990),))
        with open_store(folder / "store", create=True) as store:
            sync(run, store)
        shard_folder = next(
            path.parent for path in folder.glob(f"store/collections/{name}/*/edge_config.json")
        )
        shard = edge.EdgeShard.load(str(shard_folder))

        def bare() -> object:
            conditions: list[Any] = [
                edge.FieldCondition("genres", match=edge.MatchValue("Comedy")),
                edge.FieldCondition("year", range=edge.RangeFloat(gte=1990)),
            ]
            return shard.query(
                edge.QueryRequest(
                    limit=10,
                    query=edge.Query.Nearest(psi.tolist()),
                    filter=edge.Filter(must=conditions, must_not=[edge.HasIdCondition(set(seen))]),
                    with_payload=True,
                )
            )

        with open_store(folder / "store") as store:
            pairs = [
                (
                    _seconds(lambda: store.search(name, psi, limit=10, filters=filters, exclude=seen)),
                    _seconds(bare),
                )
                for _ in range(QUERIES)
            ][QUERIES // 10 :]
        shard.close()
        ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        print(
            f"filtered query, warm, 100 seen   {ours * 1e3:.2f} ms, bare Edge {theirs * 1e3:.2f} ms: "
            f"{statistics.median(pair[0] / pair[1] for pair in pairs):.2f}x, median of pairs"
        )
        (folder / "users.txt").write_text("\n".join(str(user) for user in range(1, 10_001)))
        command = [str(Path(sys.executable).with_name("embedstore")), "query", "--users-file", "users.txt"]
        started = time.perf_counter()
        subprocess.run([*command, "-o", "answers.parquet"], cwd=folder, check=True)
        taken = time.perf_counter() - started
        print(
            f"users file of 10,000             {taken:.1f} s, {10_000 / taken:.0f} users a second, to Parquet"
        )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
