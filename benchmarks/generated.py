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


def generated_dataset(
    *, n_users: int = 6_040, n_movies: int = 3_706, n_ratings: int = 1_000_209, seed: int = 0
) -> Dataset:
    """Return ratings of the shape of MovieLens 1M, of which 57.5% are liked (4 or 5 stars).

    Long tails of users (20 ratings and more each) and movies, and taste: a user watches and likes what
    is near to them in 16 made-up dimensions. Ratings come in sessions of half an hour.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0, 1.1, n_users)
    sizes = np.minimum(20 + sizes / sizes.mean() * (n_ratings / n_users - 20), n_movies / 2).astype(np.int64)
    place = np.arange(n_movies)
    fame = -0.6 * np.log(place + 30.0) - 3.5 * place / n_movies
    taste = rng.normal(size=(n_users, 16)) / 2
    kind = rng.normal(size=(n_movies, 16)) / 2
    movies, ratings = [], []
    for user in range(n_users):
        near = kind @ taste[user]
        drawn = fame + near + rng.gumbel(size=n_movies)  # the largest are a draw without replacement
        watched = np.argpartition(-drawn, sizes[user])[: sizes[user]].copy()  # not the whole order
        pleased = near[watched] + 0.15 * fame[watched] + rng.normal(size=watched.size)
        movies.append(watched)
        ratings.append(pleased)
    order, pleased = np.concatenate(movies), np.concatenate(ratings)
    bounds = np.quantile(pleased, [0.06, 0.17, 0.425, 0.775])
    n_sessions = rng.integers(1, 4, size=n_users)
    starts = rng.integers(10**9, 10**9 + 86_400 * 1_000, size=(n_users, 3))
    session = np.concatenate([rng.integers(0, n, size) for n, size in zip(n_sessions, sizes, strict=True)])
    users = np.repeat(np.arange(n_users), sizes)
    columns = RatingColumns(
        user_ids=users + 1,
        movie_ids=order + 1,
        ratings=(1 + np.searchsorted(bounds, pleased)).astype(np.float32),
        timestamps=starts[users, session] + rng.integers(0, 1_800, users.size),
    )
    catalog = {
        row + 1: Movie(f"The generated movie number {row + 1}", 1920 + row % 80, (GENRES[int(near)],))
        for row, near in enumerate(kind[:, : len(GENRES)].argmax(axis=1))
    }
    return Dataset.of("generated-1m", columns, catalog)


def write_served_model(path: Path, n_movies: int, dim: int = 64) -> None:
    """Write an ONNX user tower, input ids (0 is padding), that is no tower in NumPy: softsign of a sum."""
    import onnx
    from onnx import TensorProto, helper

    table = np.random.default_rng(0).normal(size=(n_movies + 1, dim)).astype(np.float32)
    table[0] = 0
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "axis"], ["sum"], keepdims=0),
            helper.make_node("Softsign", ["sum"], ["psi"]),
        ],
        "psi",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n_users", "length"])],
        [helper.make_tensor_value_info("psi", TensorProto.FLOAT, ["n_users", dim])],
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
