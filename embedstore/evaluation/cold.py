"""How well movies that no user rated are ranked, against a random order of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags
from embedstore.evaluation.metrics import measure, top_k

__all__ = ["ColdScores", "evaluate_cold", "random_order"]

METRICS = ("ndcg@10", "recall@20")
_LONGEST = 20
_BATCH = 500  # users whose scores are held at once


@dataclass(frozen=True)
class ColdScores:
    """Means over n_users who each ranked n_movies, by the name of the metric."""

    n_users: int
    n_movies: int
    found: dict[str, float]
    random: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"users": self.n_users, "held_out": self.n_movies, **self.found, "random": self.random}


def evaluate_cold(
    psi: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], targets: Bags
) -> ColdScores:
    """Return how well psi (n_users, embedding_dim) ranks movies by their vectors (n_movies, embedding_dim).

    targets: the columns of the movies to find, at least one of each user. Nothing is excluded, and a
    random order knows as much of popularity as the model: nothing.
    """
    ranked = np.concatenate(
        [top_k(psi[start : start + _BATCH] @ vectors.T, _LONGEST) for start in range(0, len(psi), _BATCH)]
    )
    found = measure(ranked, targets, METRICS).overall
    return ColdScores(len(psi), len(vectors), dict(found), random_order(targets, len(vectors)))


def random_order(targets: Bags, n_movies: int) -> dict[str, float]:
    """Return what a random order is expected to get: each place holds a target with chance n / n_movies."""
    discounts = 1 / np.log2(np.arange(2, 12))  # of NDCG@10
    n = targets.sizes
    gain = discounts[:n_movies].sum() * n / n_movies
    ideal = np.cumsum(discounts)[np.minimum(n, 10) - 1]
    found = min(20, n_movies) * n / n_movies
    return {"ndcg@10": float(np.mean(gain / ideal)), "recall@20": float(np.mean(found / np.minimum(n, 20)))}
