"""Why a movie was recommended: what every watched movie contributes to its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedstore.data.features import MovieId, Rows
from embedstore.runs.run import Run
from embedstore.runs.tower import UserTower
from embedstore.stores.base import Hit

__all__ = ["Contribution", "Explained", "Kind", "contributions", "explain"]

Kind = Literal["exact", "estimate"]


@dataclass(frozen=True)
class Contribution:
    """What one watched movie contributes to a score, in units of the score."""

    movie_id: MovieId
    title: str | None
    contribution: float

    def to_dict(self) -> dict[str, Any]:
        return {"movie_id": self.movie_id, "title": self.title, "contribution": self.contribution}


@dataclass(frozen=True)
class Explained:
    """The contributions of a whole history to some movies, for every movie the largest first."""

    kind: Kind
    movies: Sequence[Sequence[Contribution]]


def explain(run: Run, rows: Rows, hits: Sequence[Hit]) -> Explained:
    """Return what every movie of the history rows contributes to the score of hits, which have vectors."""
    vectors = np.reshape([hit.vector for hit in hits], (len(hits), run.embedding_dim))
    kind, values = contributions(run.tower, rows, vectors)
    lines = run.catalog.lines(rows)
    order = np.argsort(-values, axis=1, kind="stable")
    return Explained(
        kind,
        [
            [Contribution(lines[at]["movie_id"], lines[at]["title"], float(row[at])) for at in best.tolist()]
            for row, best in zip(values, order, strict=True)
        ],
    )


def contributions(
    tower: UserTower, rows: Rows, movie_vectors: npt.NDArray[np.float32]
) -> tuple[Kind, npt.NDArray[np.float64]]:
    """Return the kind, and what every movie of a history contributes to the scores, shape (k, n_history).

    exact: where psi is a sum of one term per movie, a score is a sum of as many dot products, and these are
    the contributions. They say how the score is made up; without one of the movies the others would weigh
    more. What no movie brings along, as the item bias, stands in equal parts in all of them.

    estimate: for other towers, the score less the score without the movie (occlusion). These need not add
    up to the score: of two movies alike, each can be dispensable. The only movie of a history contributes
    the whole score.
    """
    terms = tower.terms(rows)
    return "exact" if terms.exact else "estimate", movie_vectors.astype(np.float64) @ terms.values.T
