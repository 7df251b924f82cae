"""Whether ids are in the order of the rows of V, which nothing else shows.

Whatever the model and its treatment of popularity, movies that the same people rated have vectors that point
the same way. So the mean cosine of such pairs is compared with that of the same vectors in random orders, as
a z-score. Near 0, while an embedding made of the ratings of other people stands out, the ids do not match. A
usual mistake, such as a shift by one, is told by a score that is higher than that of the order given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import Ids, Rows, Vocabulary
from embedstore.importing.findings import Finding

__all__ = ["check_order", "rows_of"]

_MOST_USERS = 4_000  # half of them judge, half make the embedding to compare with
_LONGEST = 200  # movies of one user, the newest
_PERMUTATIONS = 64
_REFERENCE_DIM = 16
_POWER_STEPS = 4
_TELLING = 10.0  # z-score of the reference, below which the ratings tell nothing
_SURE = 5.0  # z-score that no random order reaches
_SHARE = 0.15  # of the reference's z-score, where that is more: an order that goes with popularity has some
_BETTER = 1.25  # z-scores between an order that fits and one that only goes with it
_CONSTANT = 1e-5  # of its mean: the spread of a dimension that is rounding alone

Matrix = npt.NDArray[np.float32]


def check_order(
    movies: Vocabulary, vectors: Matrix, ratings: Dataset, *, order: Rows | None = None
) -> Finding:
    """Return whether vectors are those of movies, as far as the ratings tell.

    order: see check. A scrambled order is serious, and named where it is a usual one.
    """
    judges = _Judges.of(movies, ratings)
    if judges is None or judges.reference < _TELLING:
        return Finding(
            "order", "the ratings are too few to tell whether the ids are in the order of the rows of V"
        )
    places = np.arange(len(movies)) if order is None else order
    here = np.argsort(places)  # the row of vectors of every row as it was given
    orders = {text: here[rows] for text, rows in _orders(movies, places, ratings)}
    given, *usual = judges.z_scores(vectors, [np.arange(len(movies)), *orders.values()])
    best, text = max(zip(usual, orders, strict=True), key=lambda pair: pair[0])  # the first of equal ones
    least = max(_SURE, _SHARE * judges.reference)
    if best > max(least, _BETTER * given + _SURE):
        return Finding(
            "scrambled",
            f"the ids do not match the rows of V: {text} (movies that the same users rated have near vectors "
            f"then, z-score {best:.0f}, and {given:.0f} as given)",
            serious=True,
        )
    if given < least:
        return Finding(
            "scrambled",
            "the ids look scrambled against the rows of V, or V was hardly trained: movies that the same "
            f"users rated have vectors no nearer than in a random order (z-score {given:.1f}, expected about "
            f"{judges.reference:.0f}); give the vocabulary of the training, in its order",
            serious=True,
        )
    return Finding(
        "order",
        f"the ids match the rows of V: movies that the same users rated are near (z-score {given:.0f})",
    )


@dataclass(frozen=True)
class _Judges:
    """Some users, and what the vectors of the movies that each rated have in common.

    seen: the rows of the movies that they rated. watched: sparse (n_users, n_seen), 1 / sqrt(size) of the
    user's history. learned: the same of as many other users.
    """

    seen: Rows
    watched: Any
    learned: Any

    @classmethod
    def of(cls, movies: Vocabulary, ratings: Dataset) -> _Judges | None:
        """Return judges among the users of ratings, None where fewer than two rated two of movies."""
        from scipy.sparse import csr_array

        place = rows_of(movies, ratings.movies.values)
        drawn = np.random.default_rng(0).permutation(len(ratings.users))[:_MOST_USERS]
        ends = ratings.offsets[drawn + 1]
        starts = np.maximum(ratings.offsets[drawn], ends - _LONGEST)
        histories = [place[ratings.movie_rows[start:end]] for start, end in zip(starts, ends, strict=True)]
        histories = [kept for rows in histories if (kept := rows[rows >= 0]).size > 1]
        if len(histories) < 2:
            return None
        seen, columns = np.unique(np.concatenate(histories), return_inverse=True)
        sizes = np.array([rows.size for rows in histories])
        weights = np.repeat(1 / np.sqrt(sizes), sizes).astype(np.float32)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        matrix = csr_array((weights, columns, bounds), shape=(len(histories), seen.size))
        half = len(histories) // 2
        return cls(seen, matrix[:half], matrix[half:])

    @cached_property
    def reference(self) -> float:
        """The z-score of an embedding made of the histories of the others alone."""
        found = np.random.default_rng(0).standard_normal((self.seen.size, _REFERENCE_DIM), np.float32)
        for _ in range(_POWER_STEPS):  # towards the largest singular vectors of learned
            found = self.learned.T @ (self.learned @ np.linalg.qr(found)[0])
        directions = _unit(found - found.mean(axis=0))
        return self._in_spreads([self._nearness(directions)], directions)[0]

    def z_scores(self, vectors: Matrix, orders: Sequence[Rows]) -> list[float]:
        """Return, of every order, how near co-rated movies are: standard deviations above random orders.

        order: the row of vectors of every movie, (n_movies,).
        """
        values = [self._nearness(_directions(vectors[rows[self.seen]])) for rows in orders]
        return self._in_spreads(values, _directions(vectors[orders[0][self.seen]]))

    def _in_spreads(self, values: Sequence[float], directions: Matrix) -> list[float]:
        """Return values as distances from those of directions, (n_seen, dim), in random orders."""
        rng = np.random.default_rng(0)
        random = [self._nearness(directions, rng.permutation(self.seen.size)) for _ in range(_PERMUTATIONS)]
        spread = float(np.std(random)) or np.inf
        return [(value - float(np.mean(random))) / spread for value in values]

    def _nearness(self, directions: Matrix, order: Rows | None = None) -> float:
        """Return the mean cosine of two movies of one user, times a constant, above that of any two ratings.

        The last term takes out what popular movies, which are in many pairs, have in common with all.
        order: the row of directions of every movie of seen; None where they are in the order of seen.
        """
        from scipy.sparse import csr_array

        watched, (alone, share) = self.watched, self._weights
        if order is not None:
            columns = order[watched.indices]
            watched = csr_array((watched.data, columns, watched.indptr), shape=watched.shape)
            back = np.argsort(order)
            alone, share = alone[back], share[back]
        pairs = _squares(watched @ directions).sum() - alone @ _squares(directions)
        return float(pairs - watched.indices.size * _squares((share @ directions)[None]).sum())

    @cached_property
    def _weights(self) -> tuple[Matrix, Matrix]:
        """What the pairs of a movie with itself weigh, and its share in all ratings, (n_seen,)."""
        columns, size = self.watched.indices, self.seen.size
        alone = np.bincount(columns, self.watched.data**2, minlength=size)
        share = np.bincount(columns, minlength=size) / columns.size
        return alone.astype(np.float32), share.astype(np.float32)


def _directions(vectors: Matrix) -> Matrix:
    """Return vectors less their mean, every dimension of one spread, scaled to length 1.

    Else the bias of the movies, where it is a dimension of V and a large one, were all that there is.
    """
    middle, spread = vectors.mean(axis=0), vectors.std(axis=0)
    varied = spread > _CONSTANT * np.abs(middle)
    found: Matrix = vectors - middle
    found *= np.where(varied, 1 / np.where(varied, spread, 1), 0).astype(np.float32)
    return _unit(found)


def _unit(vectors: Matrix) -> Matrix:
    """Scale vectors to length 1, but for zeros, and return them."""
    lengths = np.sqrt(_squares(vectors))[:, None]
    vectors /= np.where(lengths > 0, lengths, 1).astype(np.float32)
    return vectors


def _squares(matrix: Matrix) -> npt.NDArray[np.float64]:
    """Return the squared lengths of the rows, without a matrix of squares."""
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    return squares


def _orders(movies: Vocabulary, places: Rows, ratings: Dataset) -> Iterator[tuple[str, Rows]]:
    """Yield the usual mistakes: what to say, and the row of each of movies among V's rows as they were given.

    places: where the ids of movies were given.
    """
    n = len(movies)
    shifted = "its rows look shifted by one, each fits the id"
    padded = "where the first row is padding, save V[1:], not V[:-1]"
    yield f"{shifted} before its own; {padded}", (places + 1) % n
    yield f"{shifted} after its own; where no row is padding, keep the first one", (places - 1) % n
    rows = rows_of(ratings.movies, movies.values)  # the last for an unknown id, whose place says nothing

    def first(values: npt.NDArray[Any]) -> Rows:
        """Return the smallest of values, one per rating, of each of movies."""
        found = np.full(len(ratings.movies), np.iinfo(np.int64).max)
        np.minimum.at(found, ratings.movie_rows, values)
        return found[rows]

    keys = {
        "ascending ids": np.arange(n),
        "descending ids": -np.arange(n),
        "ids sorted as text (1, 10, 100, 2)": movies.values.astype(np.str_),
        "falling popularity": -ratings.popularity[rows],
        "first appearance in the ratings, user by user": first(np.arange(ratings.n_ratings)),
        "first appearance by user, then by id": first(ratings.user_rows),
        "first appearance by time": first(ratings.timestamps),
    }
    for name, key in keys.items():
        rank = np.argsort(np.argsort(key, kind="stable"))
        yield f"its rows are in the order of {name}; give the ids in that order", rank


def rows_of(vocabulary: Vocabulary, ids: Ids) -> Rows:
    """Return the row of every id, -1 where it is unknown or of another kind."""
    if vocabulary.integer != (ids.dtype.kind in "iu"):
        return np.full(ids.size, -1, dtype=np.int64)
    return vocabulary.rows(ids)
