"""What can be told of a model that was made elsewhere before it is sealed: its vectors, ids and ranking."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import Bags, Ids, Rows, Vocabulary
from embedstore.data.splits import SPLIT, HeldOut
from embedstore.errors import DataError
from embedstore.evaluation.baselines import Scorer
from embedstore.evaluation.norms import correlation
from embedstore.evaluation.serving import evaluate
from embedstore.importing.findings import Checked, Finding
from embedstore.importing.order import check_order, rows_of
from embedstore.runs.debias import norms_of
from embedstore.runs.tower import UserTower

__all__ = ["Checked", "Finding", "check", "measure"]

_EQUAL = 1e-3  # spread of norms that are all the same
_CLEAR = 0.2  # correlation that is worth a word
_METRIC = "ndcg@100"
_FEWEST_USERS = 50  # for a word on what psi is made of
_MOST_USERS = 500
_SURE = 4.0  # standard errors above which a difference is one
_PERSONAL = 2.5  # standard errors that a trained model exceeds
_SHOWN = 3  # movies that a finding names

Matrix = npt.NDArray[np.float32]


def check(
    movies: Vocabulary,
    vectors: Matrix,
    tower: UserTower | None = None,
    ratings: Dataset | None = None,
    *,
    order: Rows | None = None,
    bias: bool = False,
) -> Checked:
    """Return what stands out of a model: vectors, (n_movies, dim) finite, a row for each of movies.

    order: where each of movies stood among the ids as they were given, (n_movies,); None for ascending ids.
    bias: the last dimension is one, of which psi is 1, and no part of what the norms tell.
    Without ratings neither the order of the ids nor the model can be judged. What is serious is not measured.
    """
    popularity = None if ratings is None else _popularity(movies, ratings)
    findings = [
        _norms(vectors[:, : -bias or None], popularity),
        *_alike(movies.values, vectors),
        *_constant(vectors),
    ]
    if ratings is None or popularity is None:
        return Checked(findings)
    findings += _coverage(movies, popularity, ratings)
    if popularity.any():
        findings.insert(0, check_order(movies, vectors, ratings, order=order))
    if tower is None or any(finding.serious for finding in findings):
        return Checked(findings)
    measured = measure(movies, vectors, tower, ratings, order=order)
    return replace(measured, findings=[*findings, *measured.findings])


def measure(
    movies: Vocabulary, vectors: Matrix, tower: UserTower, ratings: Dataset, *, order: Rows | None = None
) -> Checked:
    """Return the model's metrics, as a training measures them, and what they say; order: see check.

    The users are the test users of a training with the default settings: the model may have seen them.
    """
    from embedstore.evaluation.scoring import movies_of, scorer_of
    from embedstore.training import TrainConfig, metrics_of
    from embedstore.training.prepared import prepare

    config = TrainConfig()
    try:
        data = prepare(ratings, config)
    except DataError as error:
        return Checked([Finding("metrics", f"the model was not measured: {error}")])

    def scorer(psi: Any) -> Scorer:  # a tower, or one that is moved
        return scorer_of((psi, vectors, movies), movies_of(data))

    metrics = metrics_of(data, scorer(tower))
    for group in ("train", "validation"):  # nobody knows who these were
        del metrics["users"][group]
    split = {name: getattr(config, name) for name in SPLIT} | {"target": data.target}
    findings = [Finding("metrics", _told(metrics))]
    if len(data.test) >= _FEWEST_USERS:
        places = np.arange(len(movies)) if order is None else order
        here = np.argsort(places)
        moved = [scorer(_Moved(tower, here[(places + by) % places.size])) for by in (1, -1)]
        findings += _psi(scorer(tower), moved, _first(data.test, _MOST_USERS))
    return Checked(findings, metrics, split)


@dataclass(frozen=True)
class _Moved:
    """A tower that is asked about another movie in the place of each: rows, (n_movies,)."""

    tower: UserTower
    rows: Rows

    def batch(self, bags: Bags) -> Matrix:
        return self.tower.batch(self._other(bags))

    def knows(self, bags: Bags) -> npt.NDArray[np.bool_]:
        return self.tower.knows(self._other(bags))

    def _other(self, bags: Bags) -> Bags:
        return Bags(self.rows[bags.rows], bags.offsets)


def _psi(own: Scorer, moved: Sequence[Scorer], held_out: HeldOut) -> Iterator[Finding]:
    """Yield a finding where psi is made of other movies than those of the history.

    Either the next or the previous movies make a better psi (moved), or nobody's is worse than one's own.
    """
    ndcg = evaluate(own, held_out).ndcg
    for scorer, side in zip(moved, ("after", "before"), strict=True):
        other = evaluate(scorer, held_out).ndcg
        if _standard_errors(other - ndcg) > _SURE:
            text = (
                f"the vocabulary of the tower looks shifted by one: {_METRIC.upper()} is {other.mean():.3f} "
                f"with the movie {side} each of the history, and {ndcg.mean():.3f} as it is; look at padding "
                "and first in the declaration, or at the first row of the tower's array"
            )
            yield Finding("tower", text, serious=True)
            return
    others = evaluate(lambda batch: np.roll(own(batch), 1, axis=0), held_out).ndcg
    if _standard_errors(ndcg - others) < _PERSONAL:
        text = (
            f"psi of another user finds a user's movies as well as their own does ({_METRIC.upper()} "
            f"{others.mean():.3f} and {ndcg.mean():.3f}): the vocabulary of the tower looks scrambled "
            "against V, or psi hardly depends on the history; give the tower's vocabulary in its order"
        )
        yield Finding("tower", text, serious=True)


def _standard_errors(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of values in standard errors, infinite where all are one number other than 0."""
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(values.size)
    if error > 0:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0


def _first(held_out: HeldOut, n: int) -> HeldOut:
    """Return the questions of the first n users."""
    known, liked, targets = (
        part.part(0, min(n, len(held_out)))
        for part in (held_out.known, held_out.known_liked, held_out.targets)
    )
    return HeldOut(held_out.users[:n], known, liked, targets)


def _told(metrics: Mapping[str, Any]) -> str:
    """Return what metrics say of a model, in one sentence."""
    n_users = metrics["users"]["scored"]
    if not n_users:
        return "the model was not measured: the ratings have fewer than 10 users, or nothing of them to find"
    value, popular = (
        metrics[key] if key == _METRIC else metrics[key][_METRIC] for key in (_METRIC, "popularity")
    )
    beside = f"popularity has {popular:.3f}"
    if metrics["ease"] is not None:
        beside += f" and EASE {metrics['ease'][_METRIC]:.3f}"
    verdict = "beats" if value > popular else "does not beat"
    return (
        f"the model {verdict} popularity: {_METRIC.upper()} is {value:.3f}, {beside}, on {n_users:,} users "
        "whom the model may have seen in its training"
    )


def _popularity(movies: Vocabulary, ratings: Dataset) -> Rows:
    """Return the number of ratings of each of movies, (n_movies,)."""
    rows = rows_of(ratings.movies, movies.values)
    return np.where(rows < 0, 0, ratings.popularity[rows])


def _coverage(movies: Vocabulary, popularity: Rows, ratings: Dataset) -> Iterator[Finding]:
    """Yield how many movies the vectors and the ratings do not share. Serious where they share none."""
    n_rated = int(np.count_nonzero(popularity))
    n_lost = int(np.count_nonzero(ratings.popularity)) - n_rated
    if not n_rated:
        text = (
            f"none of the {len(movies):,} movie ids is among those of data set {ratings.name}; give the ids "
            "that the ratings use"
        )
        yield Finding("coverage", text, serious=True)
    elif n_lost or n_rated < len(movies):
        share = 1 - float(popularity.sum()) / ratings.n_ratings
        text = (
            f"{n_lost:,} rated movies have no vector ({share:.1%} of the ratings, left out), and "
            f"{len(movies) - n_rated:,} of the {len(movies):,} vectors are of movies without ratings"
        )
        yield Finding("coverage", text)


def _norms(vectors: Matrix, popularity: Rows | None) -> Finding:
    """Return whether V is normalised, else how its norms spread and go with popularity."""
    lengths = norms_of(vectors)
    low, middle, high = np.quantile(lengths, [0.05, 0.5, 0.95]).tolist()
    if np.ptp(lengths) <= _EQUAL * middle:
        text = (
            f"V is normalised: every vector has norm {middle:.3g}, so popularity cannot be in it, and DOT "
            "and COSINE rank alike"
        )
        return Finding("norms", text)
    text = f"V is not normalised: norms are {low:.3g} to {high:.3g} (5% to 95% of the movies)"
    along = None if popularity is None else correlation(lengths, popularity)
    if along is None:
        return Finding("norms", f"{text}, so DOT, which is used, ranks otherwise than COSINE would")
    meaning = "which does not favour popular movies"
    if along > _CLEAR:
        meaning = "which shows popular movies more: long vectors win dot products"
    elif along < -_CLEAR:
        meaning = "so rare movies have the long vectors: first where scores are positive, last where negative"
    return Finding(
        "norms", f"{text}, with correlation {along:.2f} to popularity (of the logarithms), {meaning}"
    )


def _alike(ids: Ids, vectors: Matrix) -> Iterator[Finding]:
    """Yield the movies whose vectors are zero, and those that share a vector."""
    zero = norms_of(vectors) == 0
    if zero.any():
        text = (
            f"{int(zero.sum()):,} vectors are zero ({_named(ids[zero])}): these movies score 0 for all; "
            "leave out what was not trained"
        )
        yield Finding("zeros", text)
    mixed = vectors @ np.random.default_rng(0).standard_normal(vectors.shape[1], np.float32)
    order = np.lexsort((np.arange(len(ids)), mixed))
    order = order[~zero[order]]
    near = np.flatnonzero(np.diff(mixed[order]) == 0)  # equal rows have equal products
    same = near[(vectors[order[near]] == vectors[order[near + 1]]).all(axis=1)]
    if same.size:
        twins = order[np.union1d(same, same + 1)]
        text = (
            f"{twins.size:,} movies share their vector with another ({_named(ids[twins])}), so they are "
            "always ranked together; rows that were never trained look so"
        )
        yield Finding("duplicates", text)


def _constant(vectors: Matrix) -> Iterator[Finding]:
    """Yield the dimensions in which all movies are the same."""
    same = np.flatnonzero(vectors.max(axis=0) == vectors.min(axis=0))
    if same.size and len(vectors) > 1:
        named = ", ".join(map(str, same[:_SHOWN].tolist())) + (", …" if same.size > _SHOWN else "")
        text = (
            f"{same.size} of the {vectors.shape[1]} dimensions of V are the same for every movie ({named}, "
            "counted from 0): a bias of the user, or nothing; they do not change a ranking"
        )
        yield Finding("constant", text)


def _named(ids: Ids) -> str:
    return ", ".join(map(str, ids[:_SHOWN].tolist())) + (", …" if ids.size > _SHOWN else "")
