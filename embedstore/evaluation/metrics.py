"""NDCG@k and Recall@k of ranked lists with binary relevance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows

__all__ = ["ndcg", "rank", "recall"]


def rank(scores: npt.NDArray[np.floating], k: int) -> Iterator[Rows]:
    """Yield, for every row of scores (n_users, n_movies), the columns of its k highest scores.

    Highest first, equal scores by column; -inf is never ranked, so a list may be shorter than k.
    """
    k = min(k, scores.shape[1])
    for row in scores:
        threshold = np.partition(row, row.size - k)[row.size - k] if k else np.inf
        candidates = np.flatnonzero((row >= threshold) & (row > -np.inf))
        yield candidates[np.argsort(-row[candidates], kind="stable")][:k]


def ndcg(ranked: Rows, targets: Rows, k: int) -> float:
    """Return NDCG@k of one list (Järvelin & Kekäläinen 2002, log base 2, gain 1 per target).

    The ideal list has min(k, number of targets) hits on top. Raises ValueError where there is no
    target.
    """
    if not targets.size:
        raise ValueError("targets must not be empty: NDCG is not defined for a user without any")
    discounts = 1 / np.log2(np.arange(2, k + 2))
    hits = np.isin(ranked[:k], targets)
    return float(discounts[: hits.size] @ hits / discounts[: min(k, targets.size)].sum())


def recall(ranked: Rows, targets: Rows, k: int) -> float:
    """Return Recall@k of one list, normalised by min(k, number of targets) (Liang et al. 2018).

    Raises ValueError where there is no target.
    """
    if not targets.size:
        raise ValueError("targets must not be empty: recall is not defined for a user without any")
    return float(np.isin(ranked[:k], targets).sum() / min(k, targets.size))


def bag(bags: Bags, index: int) -> Rows:
    """Return bag index as an array of rows."""
    return bags.rows[bags.offsets[index] : bags.offsets[index + 1]]
