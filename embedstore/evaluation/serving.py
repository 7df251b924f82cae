"""The serving protocol: rank the whole catalog for held-out users, without what they watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags
from embedstore.data.splits import HeldOut
from embedstore.evaluation.baselines import Scorer
from embedstore.evaluation.metrics import measure, top_k

__all__ = ["ServingScores", "evaluate", "vector_scorer"]

NDCG_K = 100
RECALL_K = 20
_BATCH = 500  # users whose scores are held at once


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


def evaluate(score: Scorer, held_out: HeldOut, *, liked_only: bool = False) -> ServingScores:
    """Return NDCG@100 and Recall@20 of score for every held-out user.

    score gets the known movies (liked_only: the liked among them; EASE is fed so). All known
    movies are excluded from the ranking, whatever their rating.
    """
    asked = held_out.known_liked if liked_only else held_out.known
    ranked = np.empty((len(held_out), NDCG_K), dtype=np.int64)
    for start in range(0, len(held_out), _BATCH):
        stop = min(start + _BATCH, len(held_out))
        scores = np.array(score(_part(asked, start, stop)))
        known = _part(held_out.known, start, stop)
        scores[np.repeat(np.arange(len(known)), known.sizes), known.rows] = -np.inf
        ranked[start:stop] = top_k(scores, NDCG_K)
    names = f"ndcg@{NDCG_K}", f"recall@{RECALL_K}"
    per_user = measure(ranked, held_out.targets, names).per_user
    return ServingScores(*(per_user[name] for name in names))


def vector_scorer(
    psi: Callable[[Bags], npt.NDArray[np.float32]], movie_vectors: npt.NDArray[np.float32]
) -> Scorer:
    """Return the scorer psi(X) . V_j; psi maps bags to (n_users, embedding_dim)."""

    def score(bags: Bags) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = psi(bags) @ movie_vectors.T
        return scores

    return score


def _part(bags: Bags, start: int, stop: int) -> Bags:
    offsets = bags.offsets[start : stop + 1]
    return Bags(bags.rows[offsets[0] : offsets[-1]], offsets - offsets[0])
