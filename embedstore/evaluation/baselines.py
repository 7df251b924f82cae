"""What any recommender must be compared with: popularity and EASE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags

__all__ = ["EASE_LAMBDA", "Scorer", "ease", "indicator", "popularity"]

EASE_LAMBDA = 300.0

Scorer = Callable[[Bags], npt.NDArray[np.float32]]  # bags of n users -> scores (n, n_movies)


def popularity(liked: Bags, n_movies: int) -> Scorer:
    """Return the scorer that gives every user the number of likes of each movie."""
    counts = np.bincount(liked.rows, minlength=n_movies).astype(np.float32)

    def score(bags: Bags) -> npt.NDArray[np.float32]:
        return np.broadcast_to(counts, (len(bags), n_movies)).copy()

    return score


def ease(liked: Bags, n_movies: int, *, lam: float = EASE_LAMBDA) -> Scorer:
    """Return the scorer of EASE (Steck 2019): bags of liked movies times the weights B.

    B = I - P / diag(P), P = (X'X + lam I)^-1, X the users' liked movies. Needs two dense
    matrices of n_movies x n_movies float32 and n_movies^3 time.
    """
    x = indicator(liked, n_movies)
    gram = np.asarray((x.T @ x).todense(), dtype=np.float32)
    gram[np.diag_indices(n_movies)] += lam
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    weights = weights.astype(np.float32)

    def score(bags: Bags) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = indicator(bags, n_movies) @ weights
        return scores

    return score


def indicator(bags: Bags, n_movies: int) -> Any:
    """Return the bags as a sparse matrix of ones, shape (n_users, n_movies), float32."""
    from scipy.sparse import csr_array

    ones = np.ones(bags.rows.size, dtype=np.float32)
    return csr_array((ones, bags.rows, bags.offsets), shape=(len(bags), n_movies))
