"""A data set in numbers."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset

__all__ = ["QUANTILES", "describe"]

QUANTILES = (0, 10, 25, 50, 75, 90, 100)  # per cent


def describe(dataset: Dataset, *, top: int = 10) -> dict[str, Any]:
    """Return counts, density, dates, quantiles and the top genres, as JSON takes them.

    density is the share of all pairs of a user and a rated movie that have a rating. Dates are
    ISO dates, UTC, None where no rating has a timestamp. Quantiles are keyed "0" to "100" (per
    cent). A genre counts once per movie and once per rating of such a movie.
    """
    rated = dataset.popularity[dataset.popularity > 0]
    per_user = np.diff(dataset.offsets)
    stamps = dataset.timestamps[dataset.timestamps > 0]
    genres = _genres(dataset, top)
    return {
        "name": dataset.name,
        "format": dataset.source.get("format"),
        "n_users": len(dataset.users),
        "n_movies": len(dataset.movies),
        "n_rated_movies": int(rated.size),
        "n_ratings": dataset.n_ratings,
        "n_duplicates": dataset.n_duplicates,
        "density": dataset.n_ratings / (len(dataset.users) * int(rated.size)),
        "first_date": _date(stamps.min()) if stamps.size else None,
        "last_date": _date(stamps.max()) if stamps.size else None,
        "n_without_timestamp": dataset.n_ratings - int(stamps.size),
        "n_movies_without_title": sum(movie.title is None for movie in dataset.catalog),
        "n_movies_without_year": sum(movie.year is None for movie in dataset.catalog),
        "n_movies_without_genres": sum(not movie.genres for movie in dataset.catalog),
        "mean_rating": float(dataset.ratings.mean(dtype=np.float64)),
        "ratings": _quantiles(dataset.ratings),
        "ratings_per_user": _quantiles(per_user),
        "ratings_per_movie": _quantiles(rated),
        "top_genres": genres,
    }


def _quantiles(values: npt.NDArray[Any]) -> dict[str, float]:
    found = np.percentile(values, QUANTILES, method="inverted_cdf")
    return {str(at): round(float(value), 6) for at, value in zip(QUANTILES, found, strict=True)}


def _date(seconds: np.int64) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).date().isoformat()


def _genres(dataset: Dataset, top: int) -> list[dict[str, Any]]:
    movies: Counter[str] = Counter()
    ratings: Counter[str] = Counter()
    for movie, popularity in zip(dataset.catalog, dataset.popularity.tolist(), strict=True):
        for genre in movie.genres:
            movies[genre] += 1
            ratings[genre] += popularity
    best = sorted(movies, key=lambda genre: (-ratings[genre], genre))[:top]
    return [{"genre": genre, "n_movies": movies[genre], "n_ratings": ratings[genre]} for genre in best]
