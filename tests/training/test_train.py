from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.data.features import Bags, MovieId
from embedstore.errors import RunError
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower, DenseTower
from embedstore.training import TrainConfig, Trained, TrainProgress, keras_psi, train, train_model

pytestmark = pytest.mark.tf

N_MOVIES = 600
FORMS: dict[str, tuple[str, list[str]]] = {
    "additive": ("softmax", ["epochs=3", "embedding_dim=16"]),
    "recency": ("softmax", ["epochs=3", "half_life=7"]),
    "recency tanh": ("softmax", ["epochs=3", "hidden_dims=16", "half_life=7"]),
    "l2": ("softmax", ["epochs=2", "embedding_dim=16", "pooling=l2"]),
    "deep": ("softmax", ["epochs=2", "embedding_dim=16", "hidden_dims=24,12", "pooling=l2"]),
    "colab": ("colab", ["steps=40", "embedding_dim=8"]),
    "colab deep": ("colab", ["steps=20", "embedding_dim=8", "hidden_dims=12,8"]),
}


def checkerboard(n_users: int = 120, n_movies: int = N_MOVIES, seed: int = 0) -> Dataset:
    """Return ratings of users who watch mostly movies of their own parity, which alone they like."""
    rng = np.random.default_rng(seed)
    users, movies, ratings = [], [], []
    for user in range(n_users):
        own, other = (rng.permutation(np.arange(parity, n_movies, 2)) for parity in (user % 2, 1 - user % 2))
        watched = np.concatenate([own[:24], other[:6]])
        for movie in watched.tolist() if user else range(n_movies):
            users.append(user)
            movies.append(movie)
            ratings.append(5 if (user + movie) % 2 == 0 else 1)
    columns = RatingColumns(
        np.array(users, np.int64),
        np.array(movies, np.int64),
        np.array(ratings, np.float32),
        rng.integers(1, 10**9, len(users)),
    )
    genres = ("Comedy", "Film-Noir", "Sci-Fi")
    table: dict[MovieId, Movie] = {
        movie: Movie(f"M{movie}", None if movie == 7 else 1950 + movie % 40, genres[: movie % 4])
        for movie in range(n_movies)
    }
    return Dataset.of("checkerboard", columns, table)


def trained(form: str) -> Trained:
    preset, settings = FORMS[form]
    return train_model(checkerboard(), TrainConfig.parse(preset, settings))


@pytest.mark.parametrize("form", list(FORMS))
def test_the_numpy_tower_is_the_keras_model(form: str) -> None:
    result = trained(form)
    rng = np.random.default_rng(1)
    sizes = [1, 2, 500, *rng.integers(1, 501, size=997).tolist()]
    bags = Bags.of([rng.choice(N_MOVIES, size, replace=False) for size in sizes])
    keras, numpy = keras_psi(result.fitted.model, bags), result.fitted.tower.batch(bags)
    assert keras.shape == numpy.shape == (1000, result.fitted.movie_vectors.shape[1])
    error = np.linalg.norm(keras - numpy, axis=1) / np.linalg.norm(numpy, axis=1)
    assert error.max() <= 1e-6
    additive = isinstance(result.fitted.tower, AdditiveTower)
    assert additive == (form == "additive")


def test_the_genres_are_the_true_names_and_a_missing_year_adds_nothing() -> None:
    tower = trained("colab").fitted.tower
    assert isinstance(tower, DenseTower)
    assert list(tower.features["genres"].labels) == ["Comedy", "Film-Noir", "Sci-Fi"]
    years = tower.features["years"]
    assert years.offsets[8] == years.offsets[7]
    assert [part.feature for part in tower.inputs] == ["genres", "movies", "years"]


def test_colab_predicts_with_its_input_table() -> None:
    fitted = trained("colab").fitted
    assert isinstance(fitted.tower, DenseTower)
    np.testing.assert_array_equal(fitted.tower.inputs[1].table, fitted.movie_vectors)


@pytest.mark.parametrize("form", ["additive", "deep", "colab"])
def test_one_seed_gives_one_result(form: str) -> None:
    first, again = trained(form), trained(form)
    np.testing.assert_allclose(first.fitted.movie_vectors, again.fitted.movie_vectors, rtol=0, atol=1e-5)
    bags = Bags.of([[1, 2, 3], [50]])
    np.testing.assert_allclose(
        first.fitted.tower.batch(bags), again.fitted.tower.batch(bags), rtol=0, atol=1e-5
    )


def test_softmax_learns_the_checkerboard_and_popularity_does_not() -> None:
    dataset = checkerboard(n_users=200, n_movies=80)
    result = train_model(dataset, TrainConfig.parse("softmax", ["embedding_dim=8", "batch_size=20"]))
    assert result.metrics["recall@20"] > 1.5 * result.metrics["popularity"]["recall@20"]
    for user in (0, 1):
        seen = [movie for movie in range(20) if (movie + user) % 2 == 0]
        scores = result.fitted.movie_vectors @ result.fitted.tower(seen)
        best = [movie for movie in np.argsort(-scores).tolist() if movie not in seen][:20]
        assert all((movie + user) % 2 == 0 for movie in best)


def test_a_run_holds_config_metrics_and_one_log_line_per_epoch(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    config = TrainConfig.parse("softmax", ["epochs=4", "embedding_dim=8", "seed=3"])
    path = train(checkerboard(), config, runs_dir=tmp_path, progress=seen.append)
    run = Run.load(path)
    run.verify()
    assert run.additive
    assert run.manifest.config["seed"] == 3
    metrics: Any = run.manifest.metrics
    assert metrics["target"] == 4
    assert metrics["users"] == {"train": 90, "validation": 12, "test": 18, "scored": 18}
    assert set(metrics["ease"]) == set(metrics["popularity"]) == {"ndcg@100", "recall@20"}
    log = [json.loads(line) for line in (path / "training.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]
    best = max(log, key=lambda entry: entry["validation_ndcg@100"])
    assert metrics["best"]["validation_ndcg@100"] == pytest.approx(best["validation_ndcg@100"], abs=1e-6)
    assert metrics["best"]["epoch"] == best["epoch"]
    assert seen[-1].step == seen[-1].n_steps
    assert run.history_vectors is not None
    assert not np.any(run.history_vectors[:, -1] - 1)  # the constant dimension, whose V is the item bias


def test_early_stopping_keeps_the_best_epoch() -> None:
    config = TrainConfig.parse("softmax", ["embedding_dim=8", "patience=2", "learning_rate=0.1"])
    result = train_model(checkerboard(n_movies=80), config)
    log = [entry["validation_ndcg@100"] for entry in result.fitted.log]
    assert len(log) < config.epochs
    assert int(np.argmax(log)) + 1 == result.fitted.best["epoch"] == len(log) - 2


def test_a_handful_of_users_trains_without_metrics(tmp_path: Path) -> None:
    columns = RatingColumns(
        np.array([1, 1, 2, 3]), np.array([1, 2, 2, 3]), np.array([5, 3, 4, 4], np.float32), np.arange(4)
    )
    for preset in ("softmax", "colab"):
        config = TrainConfig.of(preset, {"steps": 10} if preset == "colab" else {"epochs": 3})
        run = Run.load(train(Dataset.of("few", columns), config, runs_dir=tmp_path / preset))
        assert run.movie_vectors.shape == (3, config.embedding_dim or 128)
        assert "ndcg@100" not in run.manifest.metrics
        assert run.manifest.metrics["users"]["train"] == 3


def test_an_interrupt_leaves_no_run(tmp_path: Path) -> None:
    def interrupt(state: TrainProgress) -> None:
        if state.epoch == 2:
            raise KeyboardInterrupt

    config = TrainConfig.parse("softmax", ["epochs=5", "embedding_dim=8"])
    with pytest.raises(KeyboardInterrupt):
        train(checkerboard(), config, runs_dir=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverged_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_vectors(model: Any) -> Any:
        return np.full((N_MOVIES, 8), np.nan, np.float32)

    config = TrainConfig.parse("softmax", ["epochs=1", "embedding_dim=8", "validation_share=0"])
    monkeypatch.setattr("embedstore.training.softmax.SoftmaxModel.movie_vectors", nan_vectors)
    with pytest.raises(RunError, match="lower the learning rate"):
        train(checkerboard(), config, runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
