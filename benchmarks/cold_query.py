"""A cold `embedstore query --user`, as a whole process, beside the script that a user would write.

The script loads a Keras model with the same user tower, opens qdrant-client's local mode with the
same vectors, and asks for the same ten movies. Both are run in turn; the ratio is pair by pair.

    python -m benchmarks.cold_query [--runs 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.generated import generated_run
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync

SCRIPT = """
import sys
import numpy as np
import keras
from qdrant_client import QdrantClient, models
folder, user = sys.argv[1], int(sys.argv[2])
model = keras.models.load_model(folder + "/tower.keras")
history = np.load(folder + f"/history-{user}.npy")
psi = model(history[None])[0].numpy()
client = QdrantClient(path=folder + "/local")
seen = models.Filter(must_not=[models.HasIdCondition(has_id=(history).tolist())])
answer = client.query_points("movies", query=psi, query_filter=seen, limit=10, with_payload=True)
print([point.id for point in answer.points])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    shared_memory = Path("/dev/shm")  # noqa: S108  (local mode commits once per point: 62k take 26 minutes on a disk)
    print("movies  embedstore query (s)  Keras + local mode (s)  ratio, median of pairs")
    for n_movies in (1_700, 62_000):
        with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as temporary:
            folder = Path(temporary)
            run = generated_run(folder / "runs", n_movies=n_movies, n_users=500)
            with open_store(folder / "store", create=True) as store:
                sync(run, store)
            _keras_and_local_mode(run, folder)
            ours = [cli(), "query", "--user", "7", "--json"]
            theirs = [sys.executable, "-c", SCRIPT, str(folder), "7"]
            for command in (ours, theirs):
                seconds(command, folder)
            pairs = [(seconds(ours, folder), seconds(theirs, folder)) for _ in range(runs)]
            first, second = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
            ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
            print(f"{n_movies:>6}  {first:>20.3f}  {second:>22.2f}  {ratio:>5.1f}x")


def cli() -> str:
    """Return the embedstore command of this Python."""
    return str(Path(sys.executable).with_name("embedstore"))


def seconds(command: list[str], folder: Path) -> float:
    """Run a command in folder and return how long it took."""
    started = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return time.perf_counter() - started


def _keras_and_local_mode(run: Run, folder: Path) -> None:
    import keras
    from qdrant_client import QdrantClient, models

    history_vectors = run.history_vectors
    assert history_vectors is not None
    n, dim = history_vectors.shape
    table = np.zeros((n + 1, dim), np.float32)
    table[1:] = history_vectors  # row = movie_id, 0 is padding
    ids = keras.Input((None,), dtype="int64")
    embedded = keras.layers.Embedding(n + 1, dim, weights=[table])(ids)
    keras.Model(ids, keras.layers.GlobalAveragePooling1D()(embedded)).save(folder / "tower.keras")
    np.save(folder / "history-7.npy", run.history(7) + 1, allow_pickle=False)
    client = QdrantClient(path=str(folder / "local"))
    client.create_collection(
        "movies", vectors_config=models.VectorParams(size=dim, distance=models.Distance.DOT)
    )
    for start in range(0, n, 1000):
        rows = range(start, min(start + 1000, n))
        client.upsert(
            "movies",
            models.Batch(
                ids=[row + 1 for row in rows],
                vectors=run.movie_vectors[start : start + 1000].tolist(),
                payloads=[{"title": run.catalog[row].title, "year": run.catalog[row].year} for row in rows],
            ),
        )
    client.close()


if __name__ == "__main__":
    main()
