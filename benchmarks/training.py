"""The whole `embedstore train` in fresh processes, beside EASE and iALS, and a catalog of 60,000 movies.

The command reads the files, fits, measures test users beside EASE and popularity (up to 10,000 movies),
and writes the run; `fit` is the training in it. Sets of the shape of MovieLens 1M and of a large catalog
are generated. EASE and implicit's iALS learn from the same users and answer the same test users. lenskit
and rectools cannot be installed next to our pins; benchmarks/evaluation.py asks rectools elsewhere.
Threads of BLAS wait for one another where the processors are busy: OPENBLAS_NUM_THREADS=1 is faster there.

    python -m benchmarks.training [--data DIR] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.generated import generated_dataset
from embedstore.data.dataset import Dataset
from embedstore.evaluation.baselines import BASELINES, Scorer
from embedstore.evaluation.protocols import question
from embedstore.evaluation.report import evaluate_models
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.loaders import load
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower
from embedstore.training import TrainConfig, fit
from embedstore.training.linear import solve
from embedstore.training.prepared import Prepared, prepare

Matrix = npt.NDArray[np.float32]

# The command in a process of its own; its last line tells what it took.
COMMAND = """
import json, re, sys, time
begun = time.perf_counter()
import embedstore.training as training
from embedstore.cli import run
plain, seconds = training.fit, []
def fit(*arguments, **settings):
    begun = time.perf_counter()
    fitted = plain(*arguments, **settings)
    seconds.append(time.perf_counter() - begun)
    return fitted
training.fit = fit
if code := run(sys.argv[1:]):
    sys.exit(code)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
taken = [seconds[0], time.perf_counter() - begun, time.process_time(), peak]
print(json.dumps([*taken, "tensorflow" in sys.modules]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), help="folder of MovieLens 100K")
    parser.add_argument(
        "--runs", type=int, default=3, help="how often linear is trained; medians are printed"
    )
    options = parser.parse_args()
    if not options.data.exists():
        raise SystemExit(f"{options.data} is not there; run `embedstore data fetch ml-100k`, or give --data")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        million = write(generated_dataset(), folder / "like ML-1M")
        print(f"{'embedstore train':<24}{'preset':<9}{'fit, s':>8}{'all, s':>8}{'CPU s':>8}{'peak MB':>9}")
        for data, preset, runs, aim in (
            (options.data, "linear", options.runs, 1),
            (million, "linear", options.runs, 5),
            (million, "softmax", 1, 90),
        ):
            train(data, preset, folder / "runs", runs=runs, note=f"   fit aims at {aim} s")
        for data in (options.data, million):
            print_others(load(data))
        print_folded(load(options.data))
        print_large(folder)


def write(dataset: Dataset, folder: Path) -> Path:
    """Write a data set as ratings.csv and movies.csv and return the folder."""
    import pyarrow as pa
    from pyarrow.csv import write_csv

    folder.mkdir()
    ratings: dict[str, Any] = {
        "userId": dataset.users.values[dataset.user_rows],
        "movieId": dataset.movies.values[dataset.movie_rows],
        "rating": dataset.ratings,
        "timestamp": dataset.timestamps,
    }
    movies: dict[str, Any] = {
        "movieId": dataset.movies.values,
        "title": [f"{movie.title} ({movie.year})" for movie in dataset.catalog],
        "genres": ["|".join(movie.genres) for movie in dataset.catalog],
    }
    write_csv(pa.table(ratings), folder / "ratings.csv")
    write_csv(pa.table(movies), folder / "movies.csv")
    return folder


def train(data: Path, preset: str, runs_dir: Path, *, runs: int = 1, note: str = "") -> dict[str, Any]:
    """Run the command, print the medians of what it took, and return what it printed about the run."""
    arguments = ["train", "--json", "--data", str(data), "--runs", str(runs_dir), "--preset", preset]
    taken = []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments], check=True, stdout=subprocess.PIPE, text=True
        )
        run, _, last = done.stdout.rstrip().rpartition("\n")
        *figures, tensorflow = json.loads(last)
        if tensorflow != (preset == "softmax"):
            raise SystemExit(f"preset {preset}: TensorFlow {'was' if tensorflow else 'was not'} imported")
        taken.append(figures)
    fitted, whole, processor, peak = np.median(taken, axis=0)
    print(
        f"{data.name:<24}{preset:<9}{fitted:>8.2f}{whole:>8.2f}{processor:>8.2f}{peak:>9,.0f}{note}",
        flush=True,
    )
    found: dict[str, Any] = json.loads(run)
    return found


def print_others(dataset: Dataset) -> None:
    """Print fit time and NDCG@100 of linear and of baselines that learn from the same users."""
    config = TrainConfig.of("linear")
    data = prepare(dataset, config)
    asked = question(data, "serving")
    print(f"\n{dataset.name}, {asked.asked}\n{'model':<14}{'fit, s':>8}{'CPU s':>8}{'NDCG@100':>10}")
    for name in ("linear", "ease", "ials", "popularity"):
        examples = asked.examples()
        begun, worked = time.perf_counter(), time.process_time()
        if name == "linear":
            fitted = fit(data, config, learn_validation=True)
            scorer = vector_scorer(fitted.tower.batch, fitted.movie_vectors)
        else:
            scorer = BASELINES[name].fit(examples)
        taken = f"{time.perf_counter() - begun:>8.2f}{time.process_time() - worked:>8.2f}"
        ndcg = evaluate_models({name: scorer}, asked).models[name].overall["ndcg@100"]
        print(f"{name:<14}{taken}{ndcg:>10.4f}", flush=True)


def print_large(folder: Path) -> None:
    """Print what a catalog of 60,000 movies takes, and what folding in those outside of the solve gives."""
    dataset = generated_dataset(n_users=20_000, n_movies=60_000, n_ratings=2_500_000)
    print(
        f"\n{len(dataset.movies):,} movies, {dataset.ratings.size:,} ratings of {len(dataset.users):,} users"
    )
    data_dir = write(dataset, folder / "large catalog")
    found = train(data_dir, "linear", folder / "runs")
    run, config = Run.load(Path(found["path"])), TrainConfig.of("linear")
    data, history = prepare(dataset, config), run.history_vectors
    assert history is not None
    alone = evaluate(solved_alone(data, config, history, run.movie_vectors), data.test).means()
    print(f"{config.largest_solve:,} movies solved{'NDCG@100':>20}{'Recall@20':>11}")
    for name, means in (
        ("the rest folded in", found["metrics"]),
        ("the rest with zero vectors", alone),
        ("popularity", found["metrics"]["popularity"]),
    ):
        print(f"{name:<30}{means['ndcg@100']:>9.4f}{means['recall@20']:>11.4f}")
    print_refusal(data_dir, folder / "runs")


def print_folded(dataset: Dataset) -> None:
    """Print NDCG@100 where a part of the movies is solved: the rest folded in, or with zero vectors."""
    print(f"\n{dataset.name + ', movies solved':<24}{'folded in':>10}{'zero':>8}  NDCG@100, 5 splits")
    for largest in (400, 800, TrainConfig.of("linear").largest_solve):
        found = []
        for split in range(5):
            config = TrainConfig.of("linear", {"largest_solve": largest, "split_seed": split})
            data = prepare(dataset, config)
            users = np.sort(np.concatenate([data.split.train, data.split.validation]))
            history, movies = solve(data, config, users)
            folded = vector_scorer(AdditiveTower(history).batch, movies)
            zero = solved_alone(data, config, history, movies)
            found.append([evaluate(scorer, data.test).means()["ndcg@100"] for scorer in (folded, zero)])
        means = np.mean(found, axis=0)
        print(f"{min(largest, data.n_movies):<24,}{means[0]:>10.4f}{means[1]:>8.4f}", flush=True)


def solved_alone(data: Prepared, config: TrainConfig, history: Matrix, movies: Matrix) -> Scorer:
    """Return the scorer of the model whose movies outside of the solve have zero vectors."""
    users = np.concatenate([data.split.train, data.split.validation])
    counts = np.bincount(data.bags_of(users).rows, minlength=data.n_movies)
    solved = np.zeros((data.n_movies, 1), np.float32)
    solved[np.argsort(-counts, kind="stable")[: config.largest_solve]] = 1
    return vector_scorer(AdditiveTower(history * solved).batch, movies * solved)


def print_refusal(data_dir: Path, runs_dir: Path) -> None:
    """Print what the whole solve says where the memory is short; say so where it is not."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory > 32 * 10**9:
        print("-P largest_solve=60000 would fit into the memory of this machine, and take an hour; not run")
        return
    command = [sys.executable, "-m", "embedstore", "train", "--data", str(data_dir), "--runs", str(runs_dir)]
    command += ["--preset", "linear", "-P", "largest_solve=60000"]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    print(f"-P largest_solve=60000: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
