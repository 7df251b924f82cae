"""Vectors of movies without ratings, predicted from what the catalog says of them.

Ridge regression (Hoerl & Kennard 1970) from genres, year and title words to the rows of the rated
movies: to V_j, and to the tower's rows, so that a cold movie counts in a history too. It is solved
in closed form in two stages, genres and year first, then title words on what these leave, since
words need a far stronger ridge: one for all cost a prototype a tenth of its NDCG. Each ridge is chosen by
generalised cross-validation (Golub, Heath & Wahba 1979) of the scores that users would get.

Every rated movie counts the same, which draws a cold one to the mean of them all, most of which
few have watched. So cold movies stay behind the known ones without their norms or item biases
being held down; docs/evaluation.md has the figures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset, Movie, labels_of
from embedstore.data.features import Bags, Rows
from embedstore.errors import DataError
from embedstore.evaluation.baselines import indicator
from embedstore.evaluation.cold import ColdScores, evaluate_cold
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature
from embedstore.runs.writer import rated_movies
from embedstore.training.prepared import Fitted, Prepared

__all__ = ["Traits", "hold_out", "known_traits", "measure_cold", "with_cold"]

Matrix = npt.NDArray[np.float64]

_RIDGES = np.logspace(-2, 5, 29)
_BENDS = 7  # of the line through the years, at as many quantiles
_FEWEST = 2  # movies of a title word
_MOST_WORDS = 1500  # the commonest: their matrix of words x words is solved
_MOST_USERS = 2000  # whose scores choose the ridge
_HELD_OUT = 0.1
_WORD = re.compile(r"[^\W_]+")


def with_cold(data: Prepared, fitted: Fitted) -> Fitted:
    """Return fitted with rows for the movies of the catalog that nobody rated.

    The rows of the rated movies, and so psi of a history of theirs, stay the same bit by bit. A movie
    gets none where nothing is known of it: no genre, year or title word that rated movies have.

    Raises what known_traits raises.
    """
    dataset = data.dataset
    traits = known_traits(dataset)
    rated, known = data.catalog_rows, data.catalog
    unrated = np.flatnonzero(dataset.popularity == 0)
    cold = unrated[[traits.tell(dataset.catalog[row]) for row in unrated.tolist()]].astype(np.int64)
    new = [dataset.catalog[row] for row in cold.tolist()]
    order = np.argsort(np.concatenate([rated, cold]))
    stages = [_Stage(design(known), design(new)) for design in (traits.genres_and_year, traits.title_words)]

    def extended(rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.concatenate([rows, _predict(rows, others, stages)])[order]

    tower: AdditiveTower | DenseTower = fitted.tower
    if isinstance(tower, AdditiveTower):
        rows = extended(tower.history_vectors, fitted.movie_vectors)
        tower = replace(tower, history_vectors=rows)
    else:
        inputs = [
            replace(part, table=extended(part.table, np.eye(part.table.shape[1], dtype=np.float32)))
            if part.feature == "movies"
            else part
            for part in tower.inputs
        ]
        features = {name: _with_new(feature, new, order) for name, feature in tower.features.items()}
        tower = replace(tower, inputs=inputs, features=features)
    psi = fitted.tower.batch(data.bags_of(data.split.train[:_MOST_USERS]))
    return replace(fitted, movie_vectors=extended(fitted.movie_vectors, psi), tower=tower, cold=cold)


def known_traits(dataset: Dataset) -> Traits:
    """Return what the rated movies are told apart by. Raises DataError where they have none of it."""
    traits = Traits.of([dataset.catalog[row] for row in rated_movies(dataset).tolist()])
    if not (traits.genres or traits.bends.size or traits.words):
        raise DataError(
            "cold movies are predicted from genres, year and title words, and the rated movies of data set "
            f"{dataset.name!r} have none in common; leave out cold=true or give a file of movies"
        )
    return traits


def hold_out(dataset: Dataset, *, seed: int) -> Dataset:
    """Return dataset without any rating of a random tenth of its rated movies, which it keeps in the catalog.

    Raises DataError where no rating is left.
    """
    rated = rated_movies(dataset)
    n = max(1, round(_HELD_OUT * rated.size))
    hidden = np.zeros(len(dataset.movies), dtype=bool)
    hidden[np.random.default_rng([seed, 5]).choice(rated, n, replace=False)] = True
    return dataset.where(~hidden[dataset.movie_rows])


def measure_cold(data: Prepared, rest: Prepared, fitted: Fitted) -> ColdScores | None:
    """Return how well fitted ranks the movies that are rated in data, and not in rest.

    fitted: with_cold of a training on rest, so that neither vectors nor users know of these movies. The
    test users of rest rank those that have a vector; what they like of them in data is to be found.
    None where nobody likes any.
    """
    dataset = data.dataset
    own = rest.catalog_rows
    vocabulary = np.union1d(own, fitted.cold)
    held = fitted.cold[dataset.popularity[fitted.cold] > 0]
    column = np.full(len(dataset.movies), -1, dtype=np.int64)
    column[held] = np.arange(held.size)
    test = rest.split.test
    liked = data.bags_of(dataset.users.rows(rest.dataset.users.values[test]), liked_only=True)
    columns = column[data.catalog_rows[liked.rows]]
    targets = liked.where(columns >= 0)
    asked = np.flatnonzero(targets.sizes)
    if not asked.size:
        return None
    known = rest.bags_of(test[asked])
    psi = fitted.tower.batch(Bags(np.searchsorted(vocabulary, own)[known.rows], known.offsets))
    vectors = fitted.movie_vectors[np.searchsorted(vocabulary, held)]
    return evaluate_cold(
        psi, vectors, Bags(columns[columns >= 0], np.concatenate([[0], np.cumsum(targets.sizes[asked])]))
    )


@dataclass(frozen=True)
class Traits:
    """What movies are told apart by: genres and words with their columns, and years where a line bends.

    mean_bends: what a movie without a year has.
    """

    genres: dict[str, int]
    words: dict[str, int]
    bends: Matrix
    mean_bends: Matrix

    @classmethod
    def of(cls, movies: Sequence[Movie]) -> Traits:
        genres = sorted({genre for movie in movies for genre in movie.genres})
        counts = Counter(word for movie in movies for word in _words(movie))
        common = sorted((-count, word) for word, count in counts.items() if count >= _FEWEST)[:_MOST_WORDS]
        years = np.array([movie.year for movie in movies if movie.year is not None], dtype=np.float64)
        bends = np.unique(np.quantile(years, np.arange(_BENDS) / _BENDS)) if years.size else np.zeros(0)
        return cls(
            genres={genre: column for column, genre in enumerate(genres)},
            words={word: column for column, (_, word) in enumerate(common)},
            bends=bends,
            mean_bends=_bent(years, bends).mean(axis=0) if years.size else bends,
        )

    def tell(self, movie: Movie) -> bool:
        """Return whether anything is known of movie."""
        dated = movie.year is not None and self.bends.size > 0
        labels = self.genres.keys() & movie.genres or self.words.keys() & _words(movie)
        return dated or bool(labels)

    def genres_and_year(self, movies: Sequence[Movie]) -> Any:
        """Return the design matrix of the first stage, (n_movies, n_genres + n_bends) sparse."""
        from scipy.sparse import csr_array, hstack

        years = np.array([np.nan if movie.year is None else movie.year for movie in movies], dtype=np.float64)
        bent = np.where(np.isnan(years)[:, None], self.mean_bends, _bent(years, self.bends))
        return hstack(
            [_columns([movie.genres for movie in movies], self.genres), csr_array(bent)], format="csr"
        )

    def title_words(self, movies: Sequence[Movie]) -> Any:
        """Return the design matrix of the second stage, (n_movies, n_words) sparse."""
        return _columns([_words(movie) for movie in movies], self.words)


class _Stage:
    """A ridge regression from known, (n_known, n_columns), to predict for cold, (n_cold, n_columns)."""

    def __init__(self, known: Any, cold: Any) -> None:
        self.known, self.cold = known, cold
        self.mean = np.asarray(known.mean(axis=0))
        gram = (known.T @ known).toarray() - known.shape[0] * np.outer(self.mean, self.mean)
        values, self.vectors = np.linalg.eigh(gram)
        self.values = np.maximum(values, 0)

    def __call__(self, left: Matrix, others: Matrix) -> tuple[Matrix, Matrix]:
        """Return what left, (n_known, width) of mean 0, is predicted to be of the known and of the cold.

        The error of a row is measured by its products with others, whose Gram matrix is (width, width).
        """
        turned = self.vectors.T @ (self.known.T @ left)  # (n_columns, width)
        power = np.sum(turned @ others * turned, axis=1)
        explained = np.divide(power, self.values, out=np.zeros_like(power), where=self.values > 1e-9)
        rest = max(np.sum(left @ others * left) - explained.sum(), 0)
        kept = self.values / (self.values + _RIDGES[:, None])  # (n_ridges, n_columns)
        freedom = kept.sum(axis=1)
        scores = (rest + (1 - kept) ** 2 @ explained) / (len(left) - freedom) ** 2
        scores[2 * freedom > len(left)] = np.inf  # as many unknowns as movies: an error of 0 / 0
        ridge = _RIDGES[np.argmin(scores)] if np.isfinite(scores).any() else _RIDGES[-1]
        weights = self.vectors @ (turned / (self.values + ridge)[:, None])
        shift = self.mean @ weights
        return self.known @ weights - shift, self.cold @ weights - shift


def _predict(
    rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32], stages: Sequence[_Stage]
) -> npt.NDArray[np.float32]:
    """Return the rows of the cold movies; others: what a row is multiplied with."""
    mean = rows.mean(axis=0, dtype=np.float64)
    left = rows - mean
    gram = others.T.astype(np.float64) @ others
    found = np.tile(mean, (stages[0].cold.shape[0], 1))
    for stage in stages:
        known, cold = stage(left, gram)
        left -= known
        found += cold
    return found.astype(np.float32)


def _with_new(feature: MovieFeature, new: Sequence[Movie], order: Rows) -> MovieFeature:
    """Return feature with the known labels of new movies at the end, then all in order."""
    row_of = {label: row for row, label in enumerate(feature.labels)}
    added = Bags.of(
        [row_of[label] for label in labels_of(feature.name, movie) if label in row_of] for movie in new
    )
    offsets = np.concatenate([feature.offsets, feature.offsets[-1] + added.offsets[1:]])
    both = replace(feature, offsets=offsets, values=np.concatenate([feature.values, added.rows]))
    ordered = both.bags(Bags(order, np.arange(order.size + 1)))
    return replace(feature, offsets=ordered.offsets, values=ordered.rows)


def _bent(years: Matrix, bends: Matrix) -> Matrix:
    """Return how many decades years are after each bend, at least 0, shape (n_movies, n_bends)."""
    return np.maximum(years[:, None] - bends, 0) / 10


def _words(movie: Movie) -> set[str]:
    return set(_WORD.findall((movie.title or "").casefold()))


def _columns(labels: Sequence[Collection[str]], columns: dict[str, int]) -> Any:
    """Return which movie has which of columns, sparse."""
    # sorted, since sets have another order, and so sums another rounding, in every process
    bags = Bags.of(sorted(columns[label] for label in part if label in columns) for part in labels)
    return indicator(bags, len(columns)).astype(np.float64)
