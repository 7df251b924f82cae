"""The import of 62,000 x 64 from arrays, and a cold query of an imported plain stack beside our own run's.

    python -m benchmarks.importing [--movies 62000] [--dim 64] [--runs 7]

Seconds and peak growth over a process that imported a tiny model before: of its own (RssAnon, sampled 20
times a second), and with the mapped pages of the files (VmHWM), beside the size of V. The movies come from a
movies.csv. An import of arrays must not load TensorFlow: the process ends with an error where it does.

The plain stack is a Keras model of a multi-hot history and two hidden layers, imported by its file; our own
run is sealed from the same weights as a DenseTower; the served one is an ONNX model that is no plain stack.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cold_query import cli, seconds
from benchmarks.generated import GENRES, write_served_model
from benchmarks.memory import growth

KINDS = {
    "vectors": "V alone",
    "history": "V and a vector of each movie's history",
    "shuffled": "both, ids in no order",
    "ratings": "both, with 1,000,000 ratings: checked and measured",
}
_SELF = [sys.executable, "-m", "benchmarks.importing"]
_HISTORY = "1,50,181,258,1000,1500"


def written(folder: Path, n_movies: int, dim: int) -> None:
    """Write V.npy, E.npy and movies.csv into folder, and the same in another order beside them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(n_movies)
    for name in ("V", "E"):
        array = rng.normal(size=(n_movies, dim)).astype(np.float32)
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
        np.save(folder / f"{name}-shuffled.npy", array[order], allow_pickle=False)
    lines = [
        f"{row + 1},Generated movie {row + 1} ({1920 + row % 105}),{GENRES[row % len(GENRES)]}|Drama\n"
        for row in range(n_movies)
    ]
    for name, rows in (("movies", range(n_movies)), ("movies-shuffled", order.tolist())):
        text = "".join(["movieId,title,genres\n", *(lines[row] for row in rows)])
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")


def imported(folder: Path, runs: Path, kind: str) -> None:
    """Import what written wrote."""
    from embedstore.importing import import_run
    from embedstore.loaders import load, movie_list

    suffix = "-shuffled" if kind == "shuffled" else ""
    ids, movies = movie_list(folder / f"movies{suffix}.csv")
    import_run(
        folder / f"V{suffix}.npy",
        ids,
        runs_dir=runs,
        movies=movies,
        tower=None if kind == "vectors" else folder / f"E{suffix}.npy",
        ratings=load(folder / "ratings.csv") if kind == "ratings" else None,
        anyway=True,  # vectors drawn at random match no ratings
    )


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Return the seconds and peak growth in bytes of an import; RuntimeError where it loads TensorFlow."""
    imported(folder / "tiny", folder / "runs", kind)
    found = growth(lambda: imported(folder / "large", folder / "runs", kind))
    if "tensorflow" in sys.modules:
        raise RuntimeError("the import of arrays loaded TensorFlow")
    return found


def write_ratings(folder: Path, n_movies: int, n_ratings: int) -> None:
    """Write a ratings.csv of users who rated 100 movies each, drawn at random."""
    rng = np.random.default_rng(0)
    rated = np.unique(
        np.column_stack([np.arange(n_ratings) // 100 + 1, rng.integers(1, n_movies + 1, n_ratings)]), axis=0
    )
    with open(folder / "ratings.csv", "w", encoding="utf-8") as file:
        file.write("userId,movieId,rating,timestamp\n")
        file.writelines(f"{user},{movie},5,{row + 1}\n" for row, (user, movie) in enumerate(rated.tolist()))


def cold_queries(folder: Path, n_movies: int, dim: int, runs: int) -> None:
    """Print the seconds of a cold query by history of a served model, an imported stack and our own run."""
    folder.mkdir()
    stacks = [folder / "served", folder / "imported", folder / "own"]
    subprocess.run(
        [*_SELF, "--stack", str(folder), "--movies", str(n_movies), "--dim", str(dim)],
        cwd=Path(__file__).parent.parent,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    query = [cli(), "query", "--history", _HISTORY, "--json"]
    for stack in stacks:
        seconds(query, stack)
    rounds = [[seconds(query, stack) for stack in stacks] for _ in range(runs)]
    served, imported, own = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(taken[1] / taken[2] for taken in rounds)
    print(
        "\ncold query --history  onnxruntime (s)  imported plain stack (s)  our own run (s)  the latter two"
    )
    print(f"{n_movies:,} x {dim:<12} {served:>15.3f}  {imported:>24.3f}  {own:>15.3f}  {ratio:>13.2f}x")


def write_stacks(folder: Path, n_movies: int, dim: int) -> None:
    """Seal and sync a plain stack, imported from Keras and as our own run, and a model that is served."""
    import keras

    from embedstore.data.dataset import Dataset, RatingColumns
    from embedstore.importing import import_run
    from embedstore.runs.run import Run
    from embedstore.runs.tower import DenseTower, TowerInput, TowerLayer
    from embedstore.runs.writer import write_run
    from embedstore.stores.base import open_store
    from embedstore.sync import sync

    keras.utils.set_random_seed(0)
    movies = np.arange(1, n_movies + 1)
    vectors = np.random.default_rng(0).normal(size=(n_movies, dim)).astype(np.float32)
    bag = keras.Input((n_movies,), name="movies")
    hidden = keras.layers.Dense(dim, use_bias=False, name="table")(bag)
    hidden = keras.layers.Dense(2 * dim, activation="relu")(hidden)
    model = keras.Model(bag, keras.layers.Dense(dim)(hidden))
    model.save(folder / "tower.keras")
    done = import_run(vectors, movies, runs_dir=folder / "imported/runs", tower=folder / "tower.keras")
    if done.served_by != "numpy":
        raise RuntimeError(f"the plain stack is served by {done.served_by}, expected numpy")
    table, *weights = (np.asarray(weight) for weight in model.get_weights())
    layers = [TowerLayer(weights[0], weights[1], "relu"), TowerLayer(weights[2], weights[3])]
    n = n_movies
    columns = RatingColumns(np.ones(n, np.int64), movies, np.ones(n, np.float32), np.ones(n, np.int64))
    write_run(
        folder / "own/runs",
        dataset=Dataset.of("own", columns),
        config={"preset": "own"},
        movie_vectors=vectors,
        tower=DenseTower([TowerInput("movies", table, "sum")], layers),
        metrics={},
    )
    write_served_model(folder / "tower.onnx", n_movies, dim)
    done = import_run(vectors, movies, runs_dir=folder / "served/runs", tower=folder / "tower.onnx")
    if done.served_by != "onnxruntime":
        raise RuntimeError(f"the ONNX model is served by {done.served_by}, expected onnxruntime")
    for stack in ("served", "imported", "own"):
        run = Run.load(next((folder / stack / "runs").iterdir()))
        with open_store(folder / stack / "store", create=True) as store:
            sync(run, store)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--movies", type=int, default=62_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--stack", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stack:
        write_stacks(options.stack, options.movies, options.dim)
        return
    if options.kind:
        print(json.dumps(measure(options.kind, options.folder)))
        return
    size = 4 * options.movies * options.dim
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part, n_movies in (("tiny", 100), ("large", options.movies)):
            written(folder / part, n_movies, options.dim)
            write_ratings(folder / part, n_movies, 2_000 if part == "tiny" else 1_000_000)
        print(f"import of {options.movies:,} x {options.dim}, V has {size / 1e6:.1f} MB")
        print("seconds  of its own (MB)  with mapped pages (MB)  times V  what")
        for kind, text in KINDS.items():
            found = _measured(kind, folder)
            print(
                f"{found['seconds']:>7.1f}  {found['own'] / 1e6:>15.0f}  {found['whole'] / 1e6:>22.0f}"
                f"  {found['whole'] / size:>6.1f}x  {text}",
                flush=True,
            )
        cold_queries(folder / "stacks", options.movies, options.dim, options.runs)


def _measured(kind: str, folder: Path) -> dict[str, Any]:
    called = [*_SELF, "--kind", kind, "--folder", str(folder)]
    done = subprocess.run(called, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
