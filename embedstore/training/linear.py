"""The linear recommender in closed form: no TensorFlow, no epochs, seconds.

One row E_j per watched movie, psi(X) = their mean, fitted by ridge regression from what a user
watched (Z) to how much they liked it (Y), where no movie may predict itself: with G = Z'DZ, D =
1 / sqrt(length of the history), P = (G + ridge)^-1,

    B = P (Z'DY - diag(gamma)),  gamma_j = (P Z'DY)_jj / P_jj,  so that diag(B) = 0

(EASE, Steck 2019, with a target that is not the input). Then the scores S = Z B of the training
users are compressed: V = the top right singular vectors of S, E = B V, so that E V' is the best
approximation of B for these users at that width.

P alone is dense and n_movies^3; B is never formed. Movies beyond the largest_solve most watched are
folded in afterwards by regression on psi.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.errors import DataError
from embedstore.runs.tower import AdditiveTower, DenseTower, TowerInput
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Fitted, Prepared

__all__ = ["fit", "pooled_tower", "solve"]

Matrix = npt.NDArray[np.float32]

_RIDGE = 30.0  # times the root of the mean number of ratings of a movie: 200 on ML-100K
_POWER_STEPS = 6  # of the subspace iteration
_OVERSAMPLING = 16
_FOLDED_RIDGE = 0.03  # of the mean variance of psi
_FOLDED_SHRINKAGE = 600.0  # watchers that a folded movie needs for half of what they say
_BLOCK = 1024  # movies
_BYTES = 9  # of memory per pair of movies: two float32 matrices and what passes through
_SAMPLE = 1000  # users whose scores tell how far scores spread


def fit(data: Prepared, config: TrainConfig, users: Rows) -> Fitted:
    """Return the model that is learned from the histories of users.

    Raises DataError where the solve does not fit into memory or is singular.
    """
    history, movies = solve(data, config, users)
    return Fitted(model=None, movie_vectors=movies, tower=pooled_tower(history, config.half_life), log=[])


def pooled_tower(history: Matrix, half_life: float | None) -> AdditiveTower | DenseTower:
    """Return the tower that is the mean of history vectors, weighted by recency where half_life says so."""
    if half_life is None:
        return AdditiveTower(history)
    return DenseTower([TowerInput("movies", history, half_life=half_life)])


def solve(data: Prepared, config: TrainConfig, users: Rows) -> tuple[Matrix, Matrix]:
    """Return E and V, each (n_movies, embedding_dim) float32; raises what fit raises."""
    watched = data.bags_of(users)
    grades = data.grades_of(users, watched_weight=config.watched_weight, softness=config.softness)
    if config.target_half_life is not None:
        grades *= data.lateness_of(users, config.target_half_life)
    counts = np.bincount(watched.rows, minlength=data.n_movies)
    n_solved = min(config.largest_solve, data.n_movies)
    _check_memory(n_solved)
    solved = np.sort(np.argsort(-counts, kind="stable")[:n_solved])
    z = _sparse(watched, np.ones(watched.rows.size), data.n_movies)
    y = _sparse(watched, grades, data.n_movies)
    dim = data.embedding_dim(config)
    prior = int(config.popularity_prior > 0)
    width = min(dim - prior, n_solved)
    if n_solved == data.n_movies:
        history, movies = _factorise(z, y, _genres(data, solved, config.genre_weight), config, width)
    else:
        parts = _factorise(
            z[:, solved], y[:, solved], _genres(data, solved, config.genre_weight), config, width
        )
        history, movies = _fold_in(z, y, solved, *parts, config)
    if prior:
        history, movies = _with_prior(z, y, history, movies, config.popularity_prior)
    missing = ((0, 0), (0, dim - movies.shape[1]))
    return np.pad(history, missing), np.pad(movies, missing)


def _factorise(z: Any, y: Any, genres: Matrix, config: TrainConfig, width: int) -> tuple[Matrix, Matrix]:
    """Return E and V of the movies in the columns of z (watched) and y (how much liked).

    genres: (n_genres, n_movies), rows that count as users who watched and liked these movies.
    """
    from scipy.linalg.lapack import spotrf, spotri

    gram, cross = _products(z, y, genres, config.user_power)
    counts = np.asarray(z.sum(axis=0))
    diagonal = np.maximum(gram.diagonal(), 1e-9).astype(np.float64)
    scale = diagonal**-config.item_power
    scale *= np.sqrt(counts.mean() / np.mean(scale**2 * diagonal))
    column = scale.astype(np.float32)[:, None]
    gram *= column
    gram *= column.T
    cross *= column
    cross *= column.T
    ridge = config.regularisation or _RIDGE * np.sqrt(counts.mean())
    gram[np.diag_indices_from(gram)] += ridge + config.degree_penalty * gram.diagonal()
    # gram is symmetric: its transpose is the same matrix in LAPACK's own order, so nothing is copied
    inverse, failed = spotrf(gram.T, lower=True, overwrite_a=True)
    if failed:
        raise DataError("the ratings leave the solve singular; raise -P regularisation or -P degree_penalty")
    inverse = spotri(inverse, lower=True, overwrite_c=True)[0]
    _mirror(inverse)
    gamma = np.einsum("ij,ji->i", inverse, cross) / inverse.diagonal()
    cross[np.diag_indices_from(cross)] -= gamma

    shown: Matrix = (np.maximum(counts, 1) ** config.popularity_power).astype(np.float32)[:, None] / column

    def b(vectors: Matrix) -> Matrix:
        product: Matrix = inverse @ (cross @ (vectors * shown))
        return product * column

    def b_transposed(vectors: Matrix) -> Matrix:
        product: Matrix = cross.T @ (inverse @ (vectors * column))
        return product * shown

    z = z.astype(np.float32)
    start = np.random.default_rng(config.seed).normal(
        size=(z.shape[1], min(width + _OVERSAMPLING, z.shape[1]))
    )
    vectors = _orthonormal(start.astype(np.float32))
    for _ in range(_POWER_STEPS):
        vectors = _orthonormal(b_transposed(z.T @ (z @ b(vectors))))
    scores = (z @ b(vectors)).astype(np.float64)
    rotation = np.linalg.eigh(scores.T @ scores)[1][:, ::-1]
    movies = vectors @ rotation[:, :width].astype(np.float32)
    return b(movies), movies


def _orthonormal(vectors: Matrix) -> Matrix:
    """Return an orthonormal basis of the columns, by Cholesky factorisation (CholeskyQR2), shape unchanged.

    Householder's QR takes a step per column, at each of which the threads of BLAS wait for one another:
    on a busy machine a hundred times the work itself. It is kept for columns that depend on each other.
    """
    from scipy.linalg import solve_triangular

    basis = vectors.astype(np.float64)
    try:
        for _ in range(2):  # the second makes up for the squared condition number of the first
            basis = solve_triangular(np.linalg.cholesky(basis.T @ basis), basis.T, lower=True).T
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.qr(vectors)[0])
    return basis.astype(np.float32)


def _products(z: Any, y: Any, genres: Matrix, user_power: float) -> tuple[Matrix, Matrix]:
    """Return Z'DZ and Z'DY with the genres as more users, dense (n_movies, n_movies) float32."""
    from concurrent.futures import ThreadPoolExecutor

    weighted = (_user_weights(z, user_power) @ z).T.tocsr()

    def product(right: Any) -> Matrix:
        dense = np.empty((z.shape[1], z.shape[1]), np.float32)
        for start in range(0, len(dense), _BLOCK):
            rows = slice(start, start + _BLOCK)
            dense[rows] = (weighted[rows] @ right).toarray()
            dense[rows] += genres[:, rows].T @ genres
        return dense

    with ThreadPoolExecutor(max_workers=2) as threads:  # SciPy releases the GIL
        gram, cross = threads.map(product, (z, y))
    return gram, cross


def _mirror(lower: Matrix) -> None:
    """Fill the upper triangle of a square matrix from its lower one, in place."""
    for start in range(0, len(lower), _BLOCK):
        stop = start + _BLOCK
        lower[start:stop, stop:] = lower[stop:, start:stop].T
        square = lower[start:stop, start:stop]
        square[:] = np.tril(square) + np.tril(square, -1).T


def _fold_in(
    z: Any, y: Any, solved: Rows, history: Matrix, movies: Matrix, config: TrainConfig
) -> tuple[Matrix, Matrix]:
    """Return E and V of all movies, given those of the solved ones.

    V_j of another movie: how much it was liked, by ridge regression on the users' sums of E, with the
    popularity_power of the solved ones. E_j: what its watchers liked beyond what these sums say, in the
    coordinates of V, shrunk to 0 where they are few.
    """
    counts = np.asarray(z.sum(axis=0))
    shown = (np.maximum(counts, 1) ** config.popularity_power).astype(np.float32)[:, None]
    rest = np.setdiff1d(np.arange(z.shape[1]), solved)
    sums = z[:, solved] @ history  # (n_users, width)
    weights = _user_weights(z, config.user_power)
    weighted = weights @ sums
    spread = weighted.T @ sums
    ridge = _FOLDED_RIDGE * np.trace(spread) / len(spread)
    targets = np.asarray(y[:, rest].T @ weighted)
    shape = (z.shape[1], history.shape[1])
    all_history, all_movies = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    all_history[solved], all_movies[solved] = history, movies
    all_movies[rest] = np.linalg.solve(spread + ridge * np.eye(len(spread)), targets.T).T * shown[rest]
    untold = y[:, solved] @ (movies * shown[solved]) - sums
    watched = (weights @ z).tocsc()
    few = _FOLDED_SHRINKAGE * watched.data.mean()
    watched = watched[:, rest]
    all_history[rest] = (watched.T @ untold) / (np.asarray(watched.sum(axis=0)) + few)[:, None]
    return all_history, all_movies


def _with_prior(z: Any, y: Any, history: Matrix, movies: Matrix, weight: float) -> tuple[Matrix, Matrix]:
    """Return E and V with one more dimension: 1 and the log popularity, weight x as wide as the scores."""
    part = z[:_SAMPLE]
    scores = (part @ history / np.maximum(part.sum(axis=1), 1)[:, None]) @ movies.T
    popularity = np.log1p(np.asarray(y.sum(axis=0)))
    popularity = (popularity - popularity.mean()) / max(float(popularity.std()), 1e-9)
    prior = (weight * scores.std() * popularity).astype(np.float32)[:, None]
    return np.concatenate([history, np.ones_like(prior)], axis=1), np.concatenate([movies, prior], axis=1)


def _sparse(bags: Bags, values: npt.NDArray[np.float64], n_movies: int) -> Any:
    from scipy.sparse import csr_array

    shape = (len(bags), n_movies)
    return csr_array((values.astype(np.float32), bags.rows.astype(np.int32), bags.offsets), shape=shape)


def _user_weights(z: Any, user_power: float) -> Any:
    """Return D, diagonal: of every user of z the length of their history to -user_power."""
    from scipy.sparse import diags_array

    sizes = np.maximum(np.diff(z.indptr), 1)
    return diags_array((sizes**-user_power).astype(np.float32))


def _genres(data: Prepared, movies: Rows, weight: float) -> Matrix:
    """Return one row per genre, (n_genres, n_movies): weight / root of its size where a movie has it.

    So that movies of one genre predict each other a little, the rarer the genre the more.
    """
    member = np.ascontiguousarray(data.genres[1][movies].T, np.float32)
    sizes = np.maximum(member.sum(axis=1, keepdims=True), 1)
    return np.asarray(member * weight / sizes**0.25)


def _check_memory(n_movies: int) -> None:
    """Raise DataError where the dense matrices of the solve are larger than the machine's memory."""
    needed = _BYTES * n_movies**2
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        fits = int((memory / 2 / _BYTES) ** 0.5) // 1000 * 1000
        raise DataError(
            f"the solve of {n_movies:,} movies needs {needed / 1e9:.1f} GB of memory, this machine has "
            f"{memory / 1e9:.1f}; lower -P largest_solve, to {fits} for example: the rest is folded in"
        )
