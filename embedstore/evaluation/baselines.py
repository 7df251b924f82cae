"""What any recommender must be compared with, and what a scorer is.

A scorer takes a Batch, what may be known of some users, and gives every movie a score. So
someone's own model is a function, and stands in the same tables as what is defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.data.splits import HeldOut
from embedstore.errors import DataError, NotFoundError

__all__ = [
    "BASELINES",
    "EASE_LAMBDA",
    "LARGEST_EASE",
    "Baseline",
    "Batch",
    "Examples",
    "Scorer",
    "batches",
    "ease",
    "hand_back",
    "ials",
    "indicator",
    "itemknn",
    "popularity",
    "recommend",
    "userknn",
]

EASE_LAMBDA = 300.0
LARGEST_EASE = 10_000  # movies; above, its dense matrix and n^3 solve cost more than a training
_PART_FLOATS = 1 << 22  # values of one thread while it scores, 16 MB in float32
_BLOCK = 500  # movies whose likes beside all others are held at once

Scores = npt.NDArray[np.floating]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """What a recommender may know of n users.

    known: what each watched, oldest first. liked: the liked among it. ratings: float32, one per
    row of known. users: their rows in the data set, shape (n,). The last two are None where they
    are not known.
    """

    known: Bags
    liked: Bags
    ratings: npt.NDArray[np.float32] | None = None
    users: Rows | None = None

    def __len__(self) -> int:
        return len(self.known)

    def part(self, start: int, stop: int) -> Batch:
        """Return the users start .. stop - 1 of the batch."""
        at = slice(self.known.offsets[start], self.known.offsets[stop])
        return Batch(
            known=self.known.part(start, stop),
            liked=self.liked.part(start, stop),
            ratings=None if self.ratings is None else self.ratings[at],
            users=None if self.users is None else self.users[start:stop],
        )


Scorer = Callable[[Batch], Scores]  # what is known of n users -> scores (n, n_movies)


@dataclass(frozen=True)
class Examples:
    """The ratings that a model may learn from, as one history per user of the data set.

    histories: empty for a user of whom nothing may be learned. liked, ratings (float32): one per
    row of histories. movie_vectors: V of the run that is compared, (n_movies, embedding_dim).
    """

    histories: Bags
    liked: npt.NDArray[np.bool_]
    ratings: npt.NDArray[np.float32]
    n_movies: int
    movie_vectors: npt.NDArray[np.float32] | None = None

    @cached_property
    def liked_histories(self) -> Bags:
        """The liked movies of every user."""
        return self.histories.where(self.liked)


def batches(
    held_out: HeldOut, *, ratings: npt.NDArray[np.float32] | None = None, size: int = 500
) -> Iterator[Batch]:
    """Yield what is known of the held-out users, size users at a time. ratings: all of the data set.

    Raises ValueError where ratings are given and held_out does not say where the known ones stand.
    """
    if ratings is not None and held_out.known_at is None:
        raise ValueError("held_out has no known_at, so the ratings of its known movies cannot be found")
    known_ratings = None if ratings is None else ratings[held_out.known_at]
    everyone = Batch(held_out.known, held_out.known_liked, known_ratings, held_out.users)
    for start in range(0, len(everyone), size):
        yield everyone.part(start, min(start + size, len(everyone)))


def popularity(liked: Bags, n_movies: int) -> Scorer:
    """Return the scorer that gives every user the number of likes of each movie."""
    counts = np.bincount(liked.rows, minlength=n_movies).astype(np.float32)

    def score(batch: Batch) -> Scores:
        return np.broadcast_to(counts, (len(batch), n_movies)).copy()

    return score


def itemknn(liked: Bags, n_movies: int, *, neighbours: int = 100, shrink: float = 5.0) -> Scorer:
    """Return the scorer of item-based top-N recommendation (Deshpande & Karypis 2004), on liked movies.

    A movie's score is the sum of its similarities to the liked ones. similarity(i, j) = c_ij /
    (sqrt(c_i c_j) + shrink), c_ij the users who like both (shrinkage as in Ferrari Dacrema et al.
    2019), for the neighbours most similar movies i of each movie j, else 0.
    """
    from scipy.sparse import csr_array, vstack

    norms = np.sqrt(np.bincount(liked.rows, minlength=n_movies)).astype(np.float32)
    k = min(neighbours, n_movies)

    def nearest(start: int, counts: Scores) -> Any:
        at = np.arange(len(counts))
        counts[at, start + at] = 0
        counts /= np.outer(norms[start : start + len(counts)], norms) + np.float32(shrink or 1e-9)
        return csr_array(_largest(counts, k), shape=counts.shape)

    similar = vstack(
        list(_cooccurrences(liked, n_movies, nearest))
    ).T.tocsr()  # column j: the neighbours of j
    similar.eliminate_zeros()

    def score(batch: Batch) -> Scores:
        scores: Scores = (indicator(batch.liked, n_movies) @ similar).toarray()
        return scores

    return _in_parts(score, n_movies)


def ease(liked: Bags, n_movies: int, *, lam: float = EASE_LAMBDA, dtype: type = np.float32) -> Scorer:
    """Return the scorer of EASE (Steck 2019): bags of liked movies times the weights B.

    B = I - P / diag(P), P = (X'X + lam I)^-1, X the users' liked movies, by a Cholesky
    factorisation in dtype (float32 or float64). Needs one dense matrix of n_movies x n_movies
    and n_movies^3 time. Raises ValueError where lam is too small to invert.
    """
    from scipy.linalg import lapack

    weights: npt.NDArray[Any] = np.empty((n_movies, n_movies), dtype=dtype, order="F")

    def put(start: int, counts: Scores) -> None:
        weights[:, start : start + len(counts)] = counts.T

    list(_cooccurrences(liked, n_movies, put))
    weights[np.diag_indices(n_movies)] += lam
    factorise, invert = lapack.get_lapack_funcs(("potrf", "potri"), (weights,))
    weights, failed = factorise(weights, lower=True, overwrite_a=True, clean=False)
    if failed:
        raise ValueError(f"lam must be large enough that X'X + lam I can be inverted, received {lam:g}")
    weights, _ = invert(weights, lower=True, overwrite_c=True)
    for j in range(n_movies):
        weights[j, j + 1 :] = weights[j + 1 :, j]  # P was below the diagonal only
    weights = weights.T  # the same, row by row, as the product wants it
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0)

    def score(batch: Batch) -> Scores:
        scores: Scores = indicator(batch.liked, n_movies, dtype=dtype) @ weights
        return scores

    return _in_parts(score, n_movies)


def ials(
    liked: Bags,
    n_movies: int,
    *,
    factors: int = 64,
    regularization: float = 20.0,
    alpha: float = 5.0,
    iterations: int = 5,
    seed: int = 0,
    n_threads: int = 2,
) -> Scorer:
    """Return the scorer of implicit-feedback ALS (Hu, Koren & Volinsky 2008), by the library implicit.

    Confidence is alpha for a liked movie and 1 for any other. A batch's users are folded in: their
    factors are solved for with those of the movies held, so they need not have been learned from.

    Raises NotFoundError where implicit is not installed.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ModuleNotFoundError:
        raise NotFoundError(
            "baseline ials needs the package implicit, which is not installed; install it with "
            "`pip install '.[evaluate]'`, or leave ials out"
        ) from None
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit has threads of its own, and warns of others
        model = AlternatingLeastSquares(
            factors=factors,
            regularization=regularization,
            alpha=alpha,
            iterations=iterations,
            num_threads=n_threads,
            random_state=seed,
        )
        model.fit(csr_matrix(indicator(liked, n_movies)), show_progress=False)

    def score(batch: Batch) -> Scores:
        likes = csr_matrix(indicator(batch.liked, n_movies))
        users = model.recalculate_user(np.arange(len(batch)), likes)
        scores: Scores = users @ model.item_factors.T
        return scores

    return score


def userknn(
    histories: Bags, ratings: npt.NDArray[np.float32], n_movies: int, *, neighbours: int = 20
) -> Scorer:
    """Return the scorer of Qdrant's tutorial on collaborative filtering: sparse vectors of ratings.

    Source: Qdrant documentation, "Create a collaborative filtering system". A user's vector holds
    (rating - mean) / standard deviation, both over all ratings, at the movies that they rated. A
    movie's score is the sum, over the neighbours users of the largest dot product who rated it
    (however), of those dot products. The tutorial asks with 1 and -1 typed by hand; here the asking
    user's ratings are standardised like the others'. Ratings that are all equal count as 1. histories:
    one per user row, so that nobody is their own neighbour.

    The scorer raises ValueError where a batch has no ratings.
    """
    from scipy.sparse import csr_array

    varied = np.unique(ratings).size > 1
    mean, deviation = (ratings.mean(), ratings.std(ddof=1)) if varied else (0, 1)

    def vectors(bags: Bags, values: npt.NDArray[np.float32]) -> Any:
        standard = (values - mean) / deviation if varied else np.ones_like(values)
        return csr_array((standard, bags.rows, bags.offsets), shape=(len(bags), n_movies))

    by_movie = vectors(histories, ratings).T.tocsr()
    rated = indicator(histories, n_movies)
    k = min(neighbours, len(histories))

    def score(batch: Batch) -> Scores:
        if batch.ratings is None:
            raise ValueError("userknn needs the ratings of the known movies, received a batch without them")
        products = (vectors(batch.known, batch.ratings) @ by_movie).toarray()  # (n, n_users)
        if batch.users is not None:
            products[np.arange(len(batch)), batch.users] = 0
        products[products == 0] = -np.inf  # who shares no movie is not found, nor the asking user
        values, nearest, offsets = _largest(products, k)
        values[values == -np.inf] = 0
        found = csr_array((values, nearest, offsets), shape=products.shape)
        scores: Scores = (found @ rated).toarray()
        return scores

    return _in_parts(score, max(len(histories), n_movies))


def recommend(movie_vectors: npt.NDArray[np.float32]) -> Scorer:
    """Return the scorer of Qdrant's recommend over V, strategy average_vector: mean of V_j . V_j.

    The mean is over the liked movies; a user without one gets 0 for every movie.
    """
    n_movies = len(movie_vectors)

    def score(batch: Batch) -> Scores:
        positives = indicator(batch.liked, n_movies) @ movie_vectors
        positives /= np.maximum(batch.liked.sizes, 1)[:, None].astype(np.float32)
        scores: Scores = positives @ movie_vectors.T
        return scores

    return score


def hand_back(n_movies: int) -> Scorer:
    """Return the scorer that hands back its input: 1 for a known movie, 0 for any other.

    It beats the course's model on the course's own measure, precision@10 with a label that is
    among the inputs. Where known movies are excluded it says nothing.
    """

    def score(batch: Batch) -> Scores:
        scores: Scores = indicator(batch.known, n_movies).toarray()
        return scores

    return score


@dataclass(frozen=True)
class Baseline:
    """One entry of BASELINES: what it is and how it is fitted.

    fit raises an EmbedstoreError, one sentence, where this baseline cannot be had: a package is
    missing, the catalog is too large, there is no run.
    """

    name: str
    text: str
    fit: Callable[[Examples], Scorer]


def _fit_ease(examples: Examples) -> Scorer:
    if examples.n_movies > LARGEST_EASE:
        raise DataError(
            f"baseline ease is left out: it solves {examples.n_movies:,} x {examples.n_movies:,} numbers and "
            f"stops at {LARGEST_EASE:,} movies; compare with itemknn or ials"
        )
    return ease(examples.liked_histories, examples.n_movies)


def _fit_recommend(examples: Examples) -> Scorer:
    if examples.movie_vectors is None:
        raise DataError("baseline recommend needs the movie vectors of a run; give one, or leave it out")
    return recommend(examples.movie_vectors)


BASELINES: Final[Mapping[str, Baseline]] = {
    baseline.name: baseline
    for baseline in (
        Baseline("popularity", "most liked movies", lambda e: popularity(e.liked_histories, e.n_movies)),
        Baseline("itemknn", "similar to what was liked", lambda e: itemknn(e.liked_histories, e.n_movies)),
        Baseline("ease", "closed-form linear model, Steck 2019", _fit_ease),
        Baseline("ials", "matrix factorisation by implicit", lambda e: ials(e.liked_histories, e.n_movies)),
        Baseline(
            "userknn",
            "nearest users on sparse vectors of ratings, Qdrant's tutorial",
            lambda e: userknn(e.histories, e.ratings, e.n_movies),
        ),
        Baseline("recommend", "mean of V_j of the liked movies, Qdrant's recommend", _fit_recommend),
        Baseline(
            "input",
            "the known movies handed back, which says nothing where they are excluded",
            lambda e: hand_back(e.n_movies),
        ),
    )
}


def _cooccurrences(liked: Bags, n_movies: int, use: Callable[[int, Scores], Result]) -> Iterator[Result]:
    """Yield use(start, counts) for blocks of movies, on two threads.

    counts: float32, (width, n_movies), in how many bags movie start + i stands beside every movie.
    """
    x = indicator(liked, n_movies)
    by_movie = x.T.tocsr()

    def block(start: int) -> Result:
        return use(start, (by_movie[start : start + _BLOCK] @ x).toarray())

    with ThreadPoolExecutor(max_workers=2) as threads:  # SciPy and NumPy release the GIL
        yield from threads.map(block, range(0, n_movies, _BLOCK))


def _in_parts(score: Scorer, width: int) -> Scorer:
    """Return score, computed in parts of a bounded number of values, width a user, on two threads."""

    def whole(batch: Batch) -> Scores:
        step = min(max(1, _PART_FLOATS // width), -(-len(batch) // 2))
        if len(batch) < 2:
            return score(batch)
        parts = (batch.part(at, min(at + step, len(batch))) for at in range(0, len(batch), step))
        with ThreadPoolExecutor(max_workers=2) as threads:  # a sparse product uses one, and releases the GIL
            return np.concatenate(list(threads.map(score, parts)))

    return whole


def _largest(values: Scores, k: int) -> tuple[Scores, Rows, Rows]:
    """Return the k largest of every row, in no order, as the (data, indices, indptr) of a CSR matrix."""
    width = values.shape[1]
    at = np.argpartition(values, width - k, axis=1)[:, width - k :]
    return np.take_along_axis(values, at, axis=1).ravel(), at.ravel(), np.arange(len(values) + 1) * k


def indicator(bags: Bags, n_movies: int, *, dtype: type = np.float32) -> Any:
    """Return the bags as a sparse matrix of ones, shape (n_users, n_movies)."""
    from scipy.sparse import csr_array

    ones: npt.NDArray[Any] = np.ones(bags.rows.size, dtype=dtype)
    return csr_array((ones, bags.rows, bags.offsets), shape=(len(bags), n_movies))
