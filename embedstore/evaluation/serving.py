"""The serving protocol: rank the whole catalog for held-out users, without what they watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags
from embedstore.data.splits import HeldOut
from embedstore.evaluation.baselines import Batch, Scorer, batches
from embedstore.evaluation.metrics import bag, ndcg, rank, recall

__all__ = ["ServingScores", "evaluate", "vector_scorer"]

NDCG_K = 100
RECALL_K = 20


@dataclass(frozen=True)
class ServingScores:
    """One value per held-out user, shape (n_users,)."""

    ndcg: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]

    def means(self) -> dict[str, float]:
        """Return the means over users, by the names that a run's metrics use."""
        return {
            f"ndcg@{NDCG_K}": float(self.ndcg.mean()),
            f"recall@{RECALL_K}": float(self.recall.mean()),
        }


def evaluate(score: Scorer, held_out: HeldOut) -> ServingScores:
    """Return NDCG@100 and Recall@20 of score for every held-out user.

    All known movies are excluded from the ranking, whatever their rating.
    """
    ndcgs: list[float] = []
    recalls: list[float] = []
    for batch in batches(held_out):
        scores = np.array(score(batch))
        scores[np.repeat(np.arange(len(batch)), batch.known.sizes), batch.known.rows] = -np.inf
        for ranked in rank(scores, NDCG_K):
            targets = bag(held_out.targets, len(ndcgs))
            ndcgs.append(ndcg(ranked, targets, NDCG_K))
            recalls.append(recall(ranked, targets, RECALL_K))
    return ServingScores(np.array(ndcgs), np.array(recalls))


def vector_scorer(
    psi: Callable[[Bags], npt.NDArray[np.float32]], movie_vectors: npt.NDArray[np.float32]
) -> Scorer:
    """Return the scorer psi(X) . V_j, X all that is known; psi maps bags to (n_users, embedding_dim)."""

    def score(batch: Batch) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = psi(batch.known) @ movie_vectors.T
        return scores

    return score
