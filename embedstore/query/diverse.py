"""Lists whose movies differ: maximal marginal relevance over the candidates of a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Rows
from embedstore.stores.base import Hit

__all__ = ["candidates_for", "diversified", "mmr"]


def candidates_for(k: int) -> int:
    """Return how many movies of the highest score a list of k is chosen from."""
    return max(10 * k, 100)


def diversified(hits: Sequence[Hit], k: int, diverse: float) -> list[Hit]:
    """Return k of hits, which are by descending score and have their vectors, in the order of mmr.

    Scores stay as they are, so they need not descend. Qdrant has an MMR of its own, on the server and
    in Edge, and it is not used: both its relevance and its similarity are the distance of the collection,
    here the raw dot product. psi(X) . V_j and V_i . V_j have no common scale, so that the same share means
    another thing for every user and run, and a movie with a long vector counts as like everything. Asked
    for .3 on MovieLens 100K, its lists of ten share 6.2 movies with these (benchmarks/diverse.py).
    """
    if not hits:
        return []
    vectors = np.array([hit.vector for hit in hits], np.float32)
    return [hits[place] for place in mmr(np.array([hit.score for hit in hits]), vectors, k, diverse)]


def mmr(scores: npt.NDArray[np.floating], vectors: npt.NDArray[np.float32], k: int, diverse: float) -> Rows:
    """Return the places of at most k candidates, chosen one after the other, shape (k,).

    scores: shape (n,), n > 0, descending. vectors: shape (n, dim). The next one is that of the highest

        (1 - diverse) * relevance_j - diverse * max over the chosen i of cos(V_i, V_j)

    Carbonell & Goldstein 1998, with lambda = 1 - diverse; relevance is the score scaled so that the best
    candidate has 1 and the last 0. The first is always the best. 0 leaves the ranking as it is, 1 takes
    what is least like anything chosen. Equal values by score. A zero vector has cosine 0 to all.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)
    wide = scores.astype(np.float64)
    relevance = (wide - wide[-1]) / ((wide[0] - wide[-1]) or 1.0)
    chosen = [0]
    nearest = unit @ unit[0]  # (n,) of every candidate, to the nearest that is chosen
    value = np.empty_like(nearest)
    while len(chosen) < min(k, len(scores)):
        value[:] = (1 - diverse) * relevance - diverse * nearest
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        np.maximum(nearest, unit @ unit[chosen[-1]], out=nearest)
    return np.array(chosen, np.int64)
