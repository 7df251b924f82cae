"""The serving protocol: rank the whole catalog for held-out users, without what they watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.data.splits import HeldOut
from embedstore.evaluation.baselines import Batch, Scorer, batches
from embedstore.evaluation.metrics import measure, top_k

__all__ = ["ServingScores", "evaluate", "rank", "rank_unknown", "vector_scorer"]

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
    names = f"ndcg@{NDCG_K}", f"recall@{RECALL_K}"
    per_user = measure(rank(score, held_out, NDCG_K), held_out.targets, names).per_user
    return ServingScores(*(per_user[name] for name in names))


def rank(score: Scorer, held_out: HeldOut, k: int) -> Rows:
    """Return the k best movies of every held-out user, (n_users, k), without the known ones; see top_k."""
    ranked = (rank_unknown(np.array(score(batch)), batch.known, k) for batch in batches(held_out))
    return np.concatenate([np.empty((0, k), dtype=np.int64), *ranked])


def rank_unknown(scores: npt.NDArray[np.floating], known: Bags, k: int) -> Rows:
    """Return top_k of scores, (n_users, k), without the known movies; scores are changed."""
    scores[np.repeat(np.arange(len(known)), known.sizes), known.rows] = -np.inf
    return top_k(scores, k)


def vector_scorer(
    psi: Callable[[Bags], npt.NDArray[np.float32]], movie_vectors: npt.NDArray[np.float32]
) -> Scorer:
    """Return the scorer psi(X) . V_j, X all that is known; psi maps bags to (n_users, embedding_dim)."""

    def score(batch: Batch) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = psi(batch.known) @ movie_vectors.T
        return scores

    return score
