"""Evaluation of 6,000 users, all metrics and baselines; fit time and NDCG beside other libraries.

The set is generated in the shape of MovieLens 1M: models learn from 6,040 users, some 570,000 liked
ratings of 3,706 movies, and 6,000 others are asked under the serving protocol. implicit is asked
through its own interface. rectools wants another version of NumPy than ours: with --rectools PYTHON,
the interpreter of an environment that has it, it stands in the table too, in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated import generated_dataset
from embedstore.data.splits import UserSplit
from embedstore.evaluation.baselines import Batch, Scorer, Scores, indicator
from embedstore.evaluation.metrics import METRICS
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.report import RUN, evaluate_models, fit_baselines
from embedstore.evaluation.serving import vector_scorer
from embedstore.training import TrainConfig, fit
from embedstore.training.prepared import prepare

LEARN, ASKED, RATINGS = 6_040, 6_000, 1_000_209
EVERY_METRIC = [f"{family}@20" for family in METRICS]

# Run by another Python: reads liked ratings from a folder, writes weights (n_movies, n_movies) there, prints
# the seconds of the fit. A score is the sum of the weights of the liked movies.
READ = """
import sys, time, warnings
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd
folder, n_movies = sys.argv[1], int(sys.argv[2])
users, movies = np.load(folder + "/users.npy"), np.load(folder + "/movies.npy")
"""
WRITE = """
weights = np.zeros((n_movies, n_movies), np.float32)
weights[np.ix_(ids, ids)] = found
np.save(folder + "/weights.npy", weights, allow_pickle=False)
"""
RECTOOLS = """
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import EASEModel
columns = {Columns.User: users, Columns.Item: movies, Columns.Weight: 1.0, Columns.Datetime: "2020"}
dataset = Dataset.construct(pd.DataFrame(columns))
begun = time.perf_counter()
model = EASEModel(regularization=300.0).fit(dataset)
print(time.perf_counter() - begun)
ids, found = dataset.item_id_map.external_ids, model.weight
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rectools", type=Path, metavar="PYTHON", help="a Python that has rectools")
    options = parser.parse_args()
    asked = generated_question()
    print(f"learned from {LEARN:,} users, {int((asked.learn & asked.data.liked).sum()):,} liked ratings")
    print(f"{asked.asked}; {asked.data.n_movies:,} movies\n")
    print_evaluation(asked)
    print_others(asked, options.rectools)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def generated_question() -> Question:
    """Return the serving protocol for 6,000 users when 6,040 others were learned from."""
    dataset = generated_dataset(n_users=LEARN + ASKED, n_ratings=round(RATINGS * (LEARN + ASKED) / LEARN))
    data = prepare(dataset, TrainConfig())
    users = np.arange(LEARN + ASKED)
    split = UserSplit(train=users[:LEARN], validation=users[:0], test=users[LEARN:])
    return question(replace(data, split=split), "serving")


def print_evaluation(asked: Question) -> None:
    """Print how long the whole evaluation of a run takes, and of which parts it consists."""
    fitted = fit(asked.data, TrainConfig.of("linear"))
    begun, worked = time.perf_counter(), time.process_time()
    baselines, left_out = fit_baselines(asked, movie_vectors=fitted.movie_vectors)
    assert not left_out, left_out
    learned = time.perf_counter()
    run = vector_scorer(fitted.tower.batch, fitted.movie_vectors)
    scores = evaluate_models({RUN: run, **baselines}, asked, metrics=EVERY_METRIC)
    ranked = time.perf_counter()
    assert scores.intervals
    assert scores.leads
    ended, worked = time.perf_counter(), time.process_time() - worked
    print(
        f"{len(scores.models)} models, {len(scores.metrics)} metrics, with intervals and paired differences:"
    )
    print(f"  baselines fitted {learned - begun:6.2f} s")
    print(f"  scored, measured {ranked - learned:6.2f} s")
    print(f"  intervals        {ended - ranked:6.2f} s")
    print(f"  together         {ended - begun:6.2f} s, {worked:.2f} s of a processor\n")


def print_others(asked: Question, rectools: Path | None) -> None:
    """Print the time of the fit and NDCG@100 of ours and of other libraries' models, on the same users."""
    from scipy.sparse import csr_matrix

    liked = csr_matrix(indicator(asked.examples().liked_histories, asked.data.n_movies))
    models: dict[str, Callable[[], Scorer | tuple[Scorer, float]]] = {
        "embedstore linear": partial(linear, asked),
        "embedstore EASE": partial(baseline, asked, "ease"),
        "embedstore ItemKNN": partial(baseline, asked, "itemknn"),
        "embedstore popularity": partial(baseline, asked, "popularity"),
        "implicit ALS, 64 factors": partial(implicit_als, liked),
        "implicit BM25, K 100": partial(implicit_bm25, liked),
    }
    if rectools is not None:
        models["rectools EASE"] = partial(elsewhere, rectools, RECTOOLS, asked)
    print(f"{'model':<26}{'fit, s':>8}{'NDCG@100':>10}")
    for name, make in models.items():
        begun = time.perf_counter()
        made = make()
        scorer, seconds = made if isinstance(made, tuple) else (made, time.perf_counter() - begun)
        ndcg = evaluate_models({name: scorer}, asked).models[name].overall["ndcg@100"]
        print(f"{name:<26}{seconds:>8.2f}{ndcg:>10.4f}", flush=True)
    print()


def baseline(asked: Question, name: str) -> Scorer:
    return fit_baselines(asked, [name])[0][name]


def linear(asked: Question) -> Scorer:
    fitted = fit(asked.data, TrainConfig.of("linear"))
    return vector_scorer(fitted.tower.batch, fitted.movie_vectors)


def implicit_als(liked: Any) -> Scorer:
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    settings = {"factors": 64, "regularization": 10.0, "alpha": 10.0, "iterations": 10}
    with threadpool_limits(1, "blas"):  # implicit has threads of its own, and warns of others
        model = AlternatingLeastSquares(**settings, random_state=0)
        model.fit(liked, show_progress=False)

    def score(batch: Batch) -> Scores:
        with threadpool_limits(1, "blas"):
            users = csr_matrix(indicator(batch.liked, liked.shape[1]))
            scores: Scores = model.recalculate_user(np.arange(len(batch)), users) @ model.item_factors.T
            return scores

    return score


def implicit_bm25(liked: Any) -> Scorer:
    from implicit.nearest_neighbours import BM25Recommender

    model = BM25Recommender(K=100)
    model.fit(liked, show_progress=False)
    return weighted(model.similarity)


def weighted(weights: Any) -> Scorer:
    """Return the scorer that sums the weights, (n_movies, n_movies), of the liked movies."""

    def score(batch: Batch) -> Scores:
        scores = indicator(batch.liked, weights.shape[0]) @ weights
        dense: Scores = scores if isinstance(scores, np.ndarray) else scores.toarray()
        return dense

    return score


def elsewhere(python: Path, program: str, asked: Question) -> tuple[Scorer, float]:
    """Return the model that another Python fits, and the seconds of the fit alone."""
    liked = asked.examples().liked_histories
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/users.npy", np.repeat(np.arange(len(liked)), liked.sizes), allow_pickle=False)
        np.save(f"{folder}/movies.npy", liked.rows, allow_pickle=False)
        command = [str(python), "-c", READ + program + WRITE, folder, str(asked.data.n_movies)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return weighted(np.load(f"{folder}/weights.npy", allow_pickle=False)), float(done.stdout)


if __name__ == "__main__":
    main()
