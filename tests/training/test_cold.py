from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.data.features import Bags, MovieId
from embedstore.errors import DataError
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature, TowerInput, TowerLayer
from embedstore.runs.writer import rated_movies
from embedstore.training import fit, train
from embedstore.training.cold import hold_out, measure_cold, with_cold
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Fitted, Prepared, prepare

GENRES = ("Action", "Comedy", "Drama", "Horror")


def told(movie: int) -> Movie:
    """Return a movie of one genre, whose title names a series of five and an article."""
    return Movie(f"Series{movie // 5}, The", 1950 + movie % 60, (GENRES[movie % 4],))


def dataset_of(movies: dict[MovieId, Movie], *, n_rated: int, n_users: int = 60) -> Dataset:
    """Return a data set whose users watch and like the movies of one genre, of the first n_rated."""
    rng = np.random.default_rng(0)
    users, rows = [], []
    for user in range(n_users):
        own = np.arange(user % 4, n_rated, 4)
        for movie in rng.permutation(own)[:30].tolist() if user >= 4 else own.tolist():
            users.append(user)
            rows.append(movie)
    columns = RatingColumns(
        np.array(users), np.array(rows), np.full(len(rows), 5, np.float32), np.arange(len(rows))
    )
    return Dataset.of("genres", columns, movies)


def drawn(data: Prepared, *, additive: bool, dim: int = 6) -> Fitted:
    """Return a model of random numbers, as if fitted on data; its last dimension is a constant."""
    rng = np.random.default_rng(1)
    n = data.n_movies
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    rows = rng.normal(size=(n, dim - 1)).astype(np.float32)
    if additive:
        tower = AdditiveTower(np.concatenate([rows, np.ones((n, 1), np.float32)], axis=1))
        return Fitted(None, vectors, tower, [])
    genres = [data.dataset.catalog[row].genres for row in rated_movies(data.dataset).tolist()]
    bags = Bags.of([[GENRES.index(genre) for genre in movie] for movie in genres])
    inputs = [
        TowerInput("genres", rng.normal(size=(4, 2)).astype(np.float32)),
        TowerInput("movies", rows, "l2"),
    ]
    kernel = rng.normal(size=(dim + 1, dim - 1)).astype(np.float32)
    features = {"genres": MovieFeature("genres", bags.offsets, bags.rows, GENRES)}
    return Fitted(None, vectors, DenseTower(inputs, [TowerLayer(kernel, None, "tanh")], True, features), [])


def catalog(n_rated: int, *others: Movie) -> Dataset:
    """Return a data set of n_rated movies, between which stand others that nobody rated."""
    whole: dict[MovieId, Movie] = {movie: told(movie) for movie in range(n_rated)}
    return dataset_of({**whole, **dict(enumerate(others, start=n_rated))}, n_rated=n_rated)


def shuffled_ids(dataset: Dataset) -> Dataset:
    """Return dataset with its movies in the reverse order, so that the unrated come first."""
    n = len(dataset.movies)
    return replace(
        dataset, catalog=list(dataset.catalog)[::-1], movie_rows=(n - 1 - dataset.movie_rows).astype(np.int32)
    )


@pytest.mark.parametrize("additive", [True, False])
def test_known_rows_and_psi_stay_bit_by_bit(additive: bool) -> None:
    dataset = shuffled_ids(catalog(80, told(80), Movie(), told(82)))
    data = prepare(dataset, TrainConfig())
    before = drawn(data, additive=additive)
    after = with_cold(data, before)
    assert after.cold.tolist() == [0, 2]  # movie 1 has nothing to predict from
    assert after.movie_vectors.dtype == np.float32
    assert after.movie_vectors.shape == (82, 6)
    assert after.movie_vectors[2:].tobytes() == before.movie_vectors.tobytes()
    users = np.arange(len(dataset.users))
    bags = data.bags_of(users)
    psi = after.tower.batch(Bags(bags.rows + 2, bags.offsets))
    assert psi.tobytes() == before.tower.batch(bags).tobytes()


@pytest.mark.parametrize("additive", [True, False])
def test_a_cold_movie_counts_in_a_history(additive: bool) -> None:
    data = prepare(catalog(80, told(80)), TrainConfig())
    tower = with_cold(data, drawn(data, additive=additive)).tower
    psi = tower([80])
    assert np.isfinite(psi).all()
    assert psi[-1] == 1  # the constant that carries the item bias is predicted exactly
    assert not np.array_equal(tower([3, 80]), tower([3]))
    if isinstance(tower, DenseTower):
        feature = tower.features["genres"]
        assert feature.values[feature.offsets[80] : feature.offsets[81]].tolist() == [80 % 4]


def test_what_depends_on_genres_and_year_is_predicted() -> None:
    movies = [told(movie) for movie in range(300)]
    slopes = np.random.default_rng(2).normal(size=(5, 6))

    def true_vectors(rows: range) -> np.ndarray:
        traits = [[*(g in movies[row].genres for g in GENRES), (movies[row].year or 0) / 60] for row in rows]
        return np.array(traits, dtype=np.float64) @ slopes

    data = prepare(dataset_of(dict(enumerate(movies)), n_rated=280), TrainConfig())
    model = replace(drawn(data, additive=True), movie_vectors=true_vectors(range(280)).astype(np.float32))
    found = with_cold(data, model).movie_vectors[280:]
    np.testing.assert_allclose(found, true_vectors(range(280, 300)), atol=0.01)


def test_title_words_tell_what_genres_and_year_do_not() -> None:
    dataset = catalog(200, Movie("The Series7", 1980, ("Drama",)), Movie("Another", 1980, ("Drama",)))
    data = prepare(dataset, TrainConfig())
    vectors = np.zeros((200, 6), np.float32)
    vectors[35:40, 0] = 1  # the five movies of Series7
    known, unknown = with_cold(
        data, replace(drawn(data, additive=True), movie_vectors=vectors)
    ).movie_vectors[-2:]
    assert known[0] > 0.5
    assert abs(unknown[0]) < 0.1


def test_one_stage_is_the_ridge_of_the_plain_formula_at_the_least_cross_validation_error() -> None:
    rng = np.random.default_rng(3)
    movies: dict[MovieId, Movie] = {
        movie: Movie(genres=tuple(g for g in GENRES if rng.random() < 0.5) or ("Other",))
        for movie in range(120)
    }
    data = prepare(dataset_of(movies, n_rated=110), TrainConfig())
    model = drawn(data, additive=True)
    labels = sorted({genre for row in range(110) for genre in movies[row].genres})
    x = np.array([[g in movies[row].genres for g in labels] for row in range(120)], dtype=np.float64)
    y = model.movie_vectors.astype(np.float64)
    x, y, mean = x - x[:110].mean(axis=0), y - y.mean(axis=0), y.mean(axis=0)
    psi = model.tower.batch(data.bags_of(data.split.train)).astype(np.float64)

    def solved(ridge: float) -> np.ndarray:
        return np.linalg.solve(x[:110].T @ x[:110] + ridge * np.eye(len(labels)), x[:110].T)

    def error(ridge: float) -> float:  # Golub, Heath & Wahba 1979, of the scores psi . V_j
        hat = x[:110] @ solved(ridge)
        return float(np.sum(((y - hat @ y) @ psi.T) ** 2) / (110 - np.trace(hat)) ** 2)

    best = min(np.logspace(-2, 5, 29).tolist(), key=error)
    found = with_cold(data, model).movie_vectors[110:]
    np.testing.assert_allclose(found, mean + x[110:] @ solved(best) @ y, atol=1e-5)


def test_labels_that_no_rated_movie_has_are_nothing_to_predict_from() -> None:
    unknown = [Movie("Unheard"), Movie("Unheard", None, ("Western",)), Movie(None, 1980), Movie("Series3")]
    data = prepare(catalog(80, *unknown), TrainConfig())
    assert with_cold(data, drawn(data, additive=True)).cold.tolist() == [82, 83]


def test_a_catalog_that_is_rated_whole_stays_as_it_is() -> None:
    data = prepare(catalog(80), TrainConfig())
    for additive in (True, False):
        before = drawn(data, additive=additive)
        after = with_cold(data, before)
        assert after.cold.size == 0
        assert np.array_equal(after.movie_vectors, before.movie_vectors)


def test_without_genres_year_and_title_one_sentence_says_so() -> None:
    data = prepare(dataset_of({200: Movie("T", 1990)}, n_rated=80), TrainConfig())
    with pytest.raises(
        DataError, match=r"the rated movies of data set 'genres' have none in common; leave out"
    ):
        with_cold(data, drawn(data, additive=True))


@pytest.mark.parametrize("n", [2, 3, 12])
def test_a_handful_of_movies_is_enough(n: int) -> None:
    data = prepare(catalog(n, told(n + 1)), TrainConfig())
    assert np.isfinite(with_cold(data, drawn(data, additive=True)).movie_vectors).all()


def test_held_out_movies_keep_their_place_in_the_catalog_and_no_rating() -> None:
    dataset = catalog(80, told(80))
    rest = hold_out(dataset, seed=0)
    assert rest.catalog == dataset.catalog
    hidden = np.setdiff1d(rated_movies(dataset), rated_movies(rest))
    assert hidden.size == 8
    assert rest.n_ratings == dataset.n_ratings - dataset.popularity[hidden].sum()
    assert not np.array_equal(rated_movies(hold_out(dataset, seed=1)), rated_movies(rest))
    with pytest.raises(DataError, match="no rating of data set 'genres' is kept"):
        dataset.where(np.zeros(dataset.n_ratings, bool))


def test_a_user_of_held_out_movies_alone_is_left_out() -> None:
    dataset = catalog(80)
    first = dataset.user_rows == 0
    rest = dataset.where(~first)
    assert rest.users.values.tolist() == list(range(1, 60))
    assert rest.user_rows.min() == 0
    assert rest.offsets.size == 60


def test_held_out_movies_of_the_users_own_genre_are_found() -> None:
    dataset = catalog(240, told(241))
    config = TrainConfig.parse("linear", ["embedding_dim=8"])
    rest = prepare(hold_out(dataset, seed=0), config)
    measured = measure_cold(prepare(dataset, config), rest, with_cold(rest, fit(rest, config)))
    assert measured is not None
    assert measured.n_movies == 24  # the unrated 241 is not asked about
    assert measured.n_users <= rest.split.test.size
    assert measured.found["ndcg@10"] > 2 * measured.random["ndcg@10"]
    assert measured.found["recall@20"] > measured.random["recall@20"]


def test_without_a_test_user_there_is_no_measure() -> None:
    dataset = dataset_of({movie: told(movie) for movie in range(40)}, n_rated=40, n_users=6)
    config = TrainConfig.parse("linear", ["embedding_dim=4"])
    rest = prepare(hold_out(dataset, seed=0), config)
    assert measure_cold(prepare(dataset, config), rest, with_cold(rest, fit(rest, config))) is None


def test_a_blend_of_runs_with_cold_movies_predicts_its_own(tmp_path: Path) -> None:
    dataset = shuffled_ids(catalog(80, told(80), Movie()))
    parts = [
        train(dataset, TrainConfig.parse("linear", ["cold=true", f"embedding_dim={dim}"]), runs_dir=tmp_path)
        for dim in (4, 6)
    ]
    blend = ["cold=true", "embedding_dim=8", f"parts={','.join(path.name for path in parts)}"]
    run = Run.load(train(dataset, TrainConfig.parse("blend", blend), runs_dir=tmp_path))
    assert run.cold.tolist() == [True] + [False] * 80
    assert run.manifest.metrics["cold"] == {"n": 1, "n_untold": 1, "measured": None}


def test_every_process_predicts_the_same_bits() -> None:
    code = (
        "from tests.training.test_cold import *\n"
        "data = prepare(catalog(80, told(80), told(97)), TrainConfig())\n"
        "print(with_cold(data, drawn(data, additive=True)).movie_vectors.tobytes().hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
