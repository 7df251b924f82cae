"""Who ranks what: a run as a scorer of any movies; ranked lists from scores, or from the store."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import Bags, Rows, Vocabulary
from embedstore.data.splits import SPLIT
from embedstore.errors import RunError, UsageError
from embedstore.evaluation.baselines import Batch, Scorer
from embedstore.evaluation.protocols import Question
from embedstore.evaluation.serving import rank_unknown, vector_scorer
from embedstore.query.recommend import Person, recommend_batch
from embedstore.runs.debias import norms_of, scale_of
from embedstore.runs.run import Run
from embedstore.runs.tower import UserTower
from embedstore.stores.base import Store
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Prepared, prepare

__all__ = [
    "Model",
    "data_of",
    "model_of",
    "movies_of",
    "rank_by",
    "rank_in_store",
    "recipe_of",
    "retrained",
    "scorer_of",
    "vectors_over",
]

_BATCH_FLOATS = 1 << 22  # scores of one batch of users, 16 MB in float32

Model = tuple[UserTower, npt.NDArray[np.float32], Vocabulary]  # psi, V_j, and the movies of V's rows


def data_of(run: Run, dataset: Dataset, *, any_data: bool = False) -> Prepared:
    """Return dataset split as the training of run split it, so that its test users are those of run.

    any_data: also where run was trained on other data; then the split is that of the default
    configuration, unless run has one.

    Raises UsageError where dataset is not the one of run, RunError where run has no tower, or does not
    say who was held out.
    """
    run.check_tower()
    trained_on, config = run.manifest.dataset, run.manifest.config
    if "split_seed" not in config and not any_data:
        raise RunError(
            f"run {run.run_id} does not say which users its training held out; train again, or import "
            "it with --ratings"
        )
    if trained_on.get("sha256") != dataset.sha256 and not any_data:
        raise UsageError(
            f"run {run.run_id} was trained on {trained_on.get('name', 'unknown data')} (fingerprint "
            f"{str(trained_on.get('sha256'))[:12]}), data set {dataset.name} has {dataset.sha256[:12]}; "
            "name the run's own with --data, or say --any-data"
        )
    return prepare(dataset, TrainConfig(**{name: config[name] for name in SPLIT if name in config}))


def movies_of(data: Prepared) -> Vocabulary:
    """Return the movies of data's rows: those that anybody rated."""
    return Vocabulary(data.dataset.movies.values[data.catalog_rows])


def model_of(run: Run) -> Model:
    """Return the sealed model. Raises RunError where run has no tower."""
    return run.tower, run.movie_vectors, run.movies


def retrained(run: Run, question: Question) -> Model:
    """Train the recipe of run again on what question lets a model learn; nothing is written.

    No user is held out for a test, since question has its own. Raises RunError where this
    embedstore does not know the recipe, and what a training raises.
    """
    from embedstore.training import fit

    config = replace(recipe_of(run), test_share=0.0, target=question.data.target)
    part = prepare(question.dataset(), config)
    fitted = fit(part, config, learn_validation=True)
    scale = scale_of(norms_of(fitted.movie_vectors), run.manifest.debias)
    return fitted.tower, fitted.movie_vectors * scale[:, None], movies_of(part)


def recipe_of(run: Run) -> TrainConfig:
    """Return the configuration that run was trained with. Raises RunError where this embedstore cannot."""
    recipe: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in run.manifest.config.items()
        if name != "debias"
    }
    try:
        return TrainConfig.of(recipe.pop("preset", ""), recipe)
    except UsageError as error:
        raise RunError(f"run {run.run_id} cannot be trained again: {error}") from error


def scorer_of(model: Model, movies: Vocabulary) -> Scorer:
    """Return the scorer psi(X) . V_j over movies, which may be others than those of model.

    Movies are matched by id. One that model does not know is never ranked, and has no part in
    psi, as one that only its tower does not know; a user of whom that knows no movie is ranked nothing.

    Raises UsageError where they have no movie in common.
    """
    tower, movie_vectors, own = model
    rows = own.rows(movies.values)
    known = rows >= 0
    if not known.any():
        raise UsageError(f"none of the {len(movies):,} movies of the data set is known to the run")
    asked = known.copy()  # what psi can be made of
    asked[known] = tower.knows(Bags(rows[known], np.arange(known.sum() + 1)))
    if asked.all() and np.array_equal(rows, np.arange(len(own))):
        return vector_scorer(tower.batch, movie_vectors)
    vectors = movie_vectors[rows[known]]

    def score(batch: Batch) -> npt.NDArray[np.float32]:
        bags = batch.known
        found = bags.where(asked[bags.rows])
        some = found.sizes > 0
        scores = np.full((len(bags), known.size), -np.inf, dtype=np.float32)
        if some.any():
            found = found.of_users(some)
            psi = tower.batch(Bags(rows[found.rows], found.offsets))
            scores[np.ix_(some, known)] = psi @ vectors.T
        return scores

    return score


def vectors_over(model: Model, movies: Vocabulary) -> npt.NDArray[np.float32]:
    """Return V of model in the rows of movies, (len(movies), embedding_dim); 0 where it has no such movie."""
    _, movie_vectors, own = model
    rows = own.rows(movies.values)
    vectors = np.asarray(movie_vectors[rows])
    vectors[rows < 0] = 0
    return vectors


def rank_by(scorer: Scorer, question: Question, *, k: int) -> Rows:
    """Return the k best movies of every user asked, (n_users, k), -1 where fewer are ranked.

    What is known is never ranked. scorer is called from this thread, a bounded number of users at a
    time, once for each.

    Raises ValueError where it returns another shape than (n_users, n_movies), or NaN.
    """
    n_movies = question.data.n_movies
    ranked: list[Future[Rows]] = []
    with ThreadPoolExecutor(max_workers=1) as thread:  # ranks a batch while the next one is scored
        for batch in question.batches(max(1, _BATCH_FLOATS // n_movies)):
            scores = np.array(scorer(batch), dtype=np.float32)
            if scores.shape != (len(batch), n_movies):
                raise ValueError(
                    f"a scorer must return shape {(len(batch), n_movies)}, received {scores.shape}"
                )
            if ranked:
                ranked[-1].result()  # no third batch of scores is held
            ranked.append(thread.submit(_rank, scores, batch.known, k))
    return np.concatenate([part.result() for part in ranked])


def rank_in_store(run: Run, store: Store, collection: str, question: Question, *, k: int) -> Rows:
    """Return what `query` answers to every user asked, (n_users, k), -1 where fewer are found.

    The query vector is psi of the known movies, which are excluded; a user of whose known movies it cannot
    be made finds nothing. Raises what recommend raises.
    """
    known, movies = question.held_out.known, movies_of(question.data)
    rows = run.movies.rows(movies.values)[known.rows]
    asked = np.flatnonzero(run.tower.knows(Bags(rows, known.offsets).where(rows >= 0)))
    people = (Person(history=movies.ids(known.part(user, user + 1).rows)) for user in asked.tolist())
    ranked = np.full((len(known), k), -1, dtype=np.int64)
    answers = recommend_batch(run, store, people, k=k, collection=collection)
    for row, answer in zip(asked.tolist(), answers, strict=True):
        found = movies.rows([movie.movie_id for movie in answer.recommendations])
        ranked[row, : found.size] = found
    return ranked


def _rank(scores: npt.NDArray[np.float32], known: Bags, k: int) -> Rows:
    if np.isnan(scores).any():
        raise ValueError("a scorer must not return NaN; use -inf for a movie that is not to be ranked")
    return rank_unknown(scores, known, k)
