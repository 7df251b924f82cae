"""Movies near a movie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from embedstore.data.features import MovieId
from embedstore.errors import NotFoundError, UsageError
from embedstore.query.recommend import Recommendation
from embedstore.runs.run import Run

__all__ = ["Metric", "Neighbours", "similar"]

Metric = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Neighbours:
    """The movies nearest to one movie, by metric."""

    movie_id: MovieId
    title: str | None
    run_id: str
    metric: Metric
    movies: list[Recommendation]

    def to_dict(self) -> dict[str, Any]:
        return {
            "movie_id": self.movie_id,
            "title": self.title,
            "run_id": self.run_id,
            "metric": self.metric,
            "similar": [movie.to_dict() for movie in self.movies],
        }


def similar(run: Run, movie_id: MovieId, *, k: int = 10, metric: Metric = "cosine") -> Neighbours:
    """Return the k movies whose V_j is nearest to that of movie_id, itself left out.

    cosine by default: a raw dot product favours popular movies, whose vectors are long. Exact, from
    the run's own vectors, since a DOT collection cannot be searched by cosine. Ties stand in
    ascending order of movie_id. A movie with a zero vector has cosine 0 to all.

    Raises NotFoundError where the run does not know the movie, UsageError where k < 1.
    """
    if k < 1:
        raise UsageError(f"k is {k}; expected 1 or more movies")
    row = run.movies.row(movie_id)
    if row < 0:
        raise NotFoundError(
            f"movie {movie_id} is not among the {len(run.movies)} movies of run {run.run_id}; "
            "expected an id of the catalog that it was trained on"
        )
    vectors = np.asarray(run.movie_vectors)
    scores = vectors @ vectors[row]  # (n_movies,)
    if metric == "cosine":
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors)) * np.linalg.norm(vectors[row])
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    ranked = np.argsort(-scores, kind="stable")  # rows are in ascending order of movie_id
    nearest = ranked[ranked != row][:k]
    movies = [
        Recommendation(
            rank=rank,
            movie_id=other,
            score=float(scores[index]),
            title=run.catalog[index].title,
            year=run.catalog[index].year,
            genres=run.catalog[index].genres,
            cold=run.catalog[index].cold,
        )
        for rank, (index, other) in enumerate(
            zip(nearest.tolist(), run.movies.ids(nearest), strict=True), start=1
        )
    ]
    return Neighbours(movie_id, run.catalog[row].title, run.run_id, metric, movies)
