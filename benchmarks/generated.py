"""Runs of any size with made-up vectors: the shape of a catalog without its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower
from embedstore.runs.writer import write_run

GENRES = ("Action", "Comedy", "Drama", "Film-Noir", "Horror", "Musical", "Romance", "Sci-Fi")


def generated_run(
    folder: Path, *, n_movies: int, dim: int = 64, n_users: int = 10_000, history_size: int = 100
) -> Run:
    """Write an additive run of n_movies with normal vectors and random histories; return it."""
    rng = np.random.default_rng(0)
    every_movie = np.arange(n_movies, dtype=np.int64)  # user 0 rated all, so that every movie has a vector
    columns = RatingColumns(
        user_ids=np.concatenate(
            [np.zeros(n_movies, np.int64), np.repeat(np.arange(n_users) + 1, history_size)]
        ),
        movie_ids=np.concatenate([every_movie, rng.integers(0, n_movies, n_users * history_size)]) + 1,
        ratings=np.full(n_movies + n_users * history_size, 4, np.float32),
        timestamps=rng.integers(0, 10**9, n_movies + n_users * history_size),
    )
    movies = {
        movie_id: Movie(
            title=f"The generated movie number {movie_id}",
            year=1920 + movie_id % 105,
            genres=tuple(genre for bit, genre in enumerate(GENRES) if movie_id * 2654435761 >> 7 + bit & 1),
        )
        for movie_id in range(1, n_movies + 1)
    }
    vectors = rng.normal(size=(2, n_movies, dim)).astype(np.float32)
    path = write_run(
        folder,
        dataset=Dataset.of("generated", columns, movies),
        config={"preset": "generated"},
        movie_vectors=vectors[0],
        tower=AdditiveTower(vectors[1]),
        metrics={},
    )
    return Run.load(path)
