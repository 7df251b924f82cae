"""The ratings as training sees them, and what every preset hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset, Movie
from embedstore.data.features import Bags, Rows
from embedstore.data.splits import HeldOut, UserSplit, hide_ratings, split_users
from embedstore.errors import DataError
from embedstore.runs.tower import AdditiveTower, DenseTower
from embedstore.runs.writer import rated_movies
from embedstore.training.config import TrainConfig

__all__ = [
    "FEWEST_USERS_FOR_METRICS",
    "Fitted",
    "Prepared",
    "TrainProgress",
    "prepare",
    "target_of",
]

FEWEST_USERS_FOR_METRICS = 10
_LATENESS_FLOOR = 0.05  # so that a single late rating weighs 20 early ones at most


@dataclass(frozen=True)
class TrainProgress:
    """Where a training is: step of n_steps (at most, it may stop early).

    ndcg: NDCG@100 of the validation users after the newest whole epoch, None where there is none.
    """

    step: int
    n_steps: int
    epoch: int
    loss: float
    ndcg: float | None
    best_ndcg: float | None


Progress = Callable[[TrainProgress], None]


@dataclass(frozen=True)
class Prepared:
    """Ratings with movies as rows of the run (the rated movies), the split, what is held out.

    catalog_rows: the movies' rows in dataset.catalog. histories: every user's, oldest first. liked:
    one per rating of histories.
    """

    dataset: Dataset
    catalog_rows: Rows
    histories: Bags
    liked: npt.NDArray[np.bool_]
    n_movies: int
    target: float
    split: UserSplit
    validation: HeldOut
    test: HeldOut
    split_seed: int = 0

    @property
    def catalog(self) -> list[Movie]:
        """What is known of the movies, in the order of their rows."""
        return [self.dataset.catalog[row] for row in self.catalog_rows.tolist()]

    @property
    def genres(self) -> tuple[list[str], npt.NDArray[np.bool_]]:
        """The genres, sorted, and which movie has which, shape (n_movies, n_genres)."""
        catalog = self.catalog
        labels = sorted({genre for movie in catalog for genre in movie.genres})
        member = np.array([[label in movie.genres for label in labels] for movie in catalog], dtype=bool)
        return labels, member.reshape(len(catalog), len(labels))

    def bags_of(self, users: Rows, *, liked_only: bool = False) -> Bags:
        """Return the histories of users, or the liked movies in them."""
        positions, offsets = self.positions_of(users)
        watched = Bags(self.histories.rows[positions], offsets)
        return watched.where(self.liked[positions]) if liked_only else watched

    def positions_of(self, users: Rows) -> tuple[Rows, Rows]:
        """Return where the ratings of users stand in histories, and the offsets of each user."""
        starts = self.histories.offsets[users]
        sizes = self.histories.offsets[users + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        shift = np.repeat(starts - offsets[:-1], sizes)
        return np.arange(int(offsets[-1]), dtype=np.int64) + shift, offsets

    def grades_of(
        self, users: Rows, *, watched_weight: float, softness: float = 0
    ) -> npt.NDArray[np.float64]:
        """Return how much each rating of users counts as liked, from watched_weight to 1.

        softness 0 is a step at the target; else a logistic curve that is halfway up half a star (an
        eighth of the target) below it, softness x the standard deviation of these ratings wide.
        """
        positions, _ = self.positions_of(users)
        ratings = self.dataset.ratings[positions].astype(np.float64)
        spread = float(ratings.std())
        if softness and spread:
            from scipy.special import expit

            liking = expit((ratings - 0.875 * self.target) / (softness * spread))
        else:
            liking = self.liked[positions].astype(np.float64)
        return np.asarray(watched_weight + (1 - watched_weight) * liking)

    def lateness_of(self, users: Rows, half_life: float) -> npt.NDArray[np.float64]:
        """Return how much each rating of users weighs as a target, of each user 1 in the mean.

        floor + (1 - floor) / 2^(age / half_life), age = days before the user's newest rating. So users
        of a single day weigh as they are, and of others what they came back for weighs most.
        """
        positions, offsets = self.positions_of(users)
        sizes = np.diff(offsets)
        seconds = self.dataset.timestamps[positions]
        age = (np.repeat(seconds[offsets[1:] - 1], sizes) - seconds) / 86_400
        weights = _LATENESS_FLOOR + (1 - _LATENESS_FLOOR) * 0.5 ** (age / half_life)
        return np.asarray(weights / np.repeat(np.add.reduceat(weights, offsets[:-1]) / sizes, sizes))

    def embedding_dim(self, config: TrainConfig) -> int:
        """Return the width of config; auto is 64 at 100,000 ratings and grows with their root."""
        if config.embedding_dim is not None:
            return config.embedding_dim
        return int(np.clip(16 * round(4 * (self.histories.rows.size / 100_000) ** 0.5), 64, 256))


@dataclass(frozen=True)
class Fitted:
    """A trained model: the Keras model and the same as arrays, (n_movies, embedding_dim) float32.

    log: one record per epoch. best: what a run says of the epoch that was kept. cold: the rows in the
    catalog of movies without ratings that have rows here too, see training.cold.
    """

    model: Any
    movie_vectors: npt.NDArray[np.float32]
    tower: AdditiveTower | DenseTower
    log: list[dict[str, Any]]
    best: Mapping[str, Any] = field(default_factory=dict)
    cold: Rows = field(default_factory=lambda: np.zeros(0, np.int64))


def target_of(ratings: npt.NDArray[np.float32], given: float | None) -> float:
    """Return the smallest rating that counts as liked.

    given, else 0.8 x the largest rating: 4 of 5 stars. Where that is not positive, the largest
    rating. So of ratings that are all equal, as implicit ones are, all are liked.

    Raises DataError where no rating reaches it.
    """
    largest = float(ratings.max())
    target = given if given is not None else (round(0.8 * largest, 6) if largest > 0 else largest)
    if largest < target:
        raise DataError(
            f"no rating reaches the target {target:g}, the largest is {largest:g}; choose a smaller target"
        )
    return target


def prepare(dataset: Dataset, config: TrainConfig) -> Prepared:
    """Return the data that a training of config uses; the same for the same split_seed.

    With fewer than 10 users all of them train and nothing is held out.
    Raises DataError where there are fewer than two users or two rated movies, or no liked rating.
    """
    vocabulary = rated_movies(dataset)
    for name, found in (("user", len(dataset.users)), ("rated movie", vocabulary.size)):
        if found < 2:
            raise DataError(f"data set {dataset.name!r} has {found} {name}; training needs at least 2")
    target = target_of(dataset.ratings, config.target)
    row_of = np.full(len(dataset.movies), -1, dtype=np.int64)
    row_of[vocabulary] = np.arange(vocabulary.size)
    histories = Bags(row_of[dataset.movie_rows], dataset.offsets)
    liked = dataset.ratings >= target
    n_users = len(dataset.users)
    enough = n_users >= FEWEST_USERS_FOR_METRICS
    split = split_users(
        n_users,
        seed=config.split_seed,
        validation_share=config.validation_share if enough else 0,
        test_share=config.test_share if enough else 0,
    )
    return Prepared(
        dataset=dataset,
        catalog_rows=vocabulary,
        histories=histories,
        liked=liked,
        n_movies=int(vocabulary.size),
        target=target,
        split=split,
        validation=hide_ratings(histories, liked, split.validation, seed=config.split_seed),
        test=hide_ratings(histories, liked, split.test, seed=config.split_seed),
        split_seed=config.split_seed,
    )
