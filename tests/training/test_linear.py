from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedstore.data.dataset import Dataset
from embedstore.errors import DataError
from embedstore.runs.run import Run
from embedstore.training import train
from embedstore.training.config import TrainConfig
from embedstore.training.linear import _orthonormal, solve
from embedstore.training.prepared import Prepared, prepare
from tests.builders import tiny_dataset

PLAIN = {
    "embedding_dim": 40,
    "genre_weight": 0.0,
    "popularity_power": 0.0,
    "regularisation": 3.0,
    "validation_share": 0.0,
    "test_share": 0.0,
}


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.of("linear", {**PLAIN, **settings})


def prepared(dataset: Dataset | None = None) -> Prepared:
    return prepare(dataset or tiny_dataset(n_users=60), config())


def dense(data: Prepared, settings: TrainConfig) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return Z and Y, (n_users, n_movies)."""
    z, y = np.zeros((2, len(data.histories), data.n_movies))
    users = np.repeat(np.arange(len(data.histories)), data.histories.sizes)
    z[users, data.histories.rows] = 1
    y[users, data.histories.rows] = data.grades_of(
        data.split.train, watched_weight=settings.watched_weight, softness=settings.softness
    )
    return z, y


def regressions(data: Prepared, settings: TrainConfig) -> npt.NDArray[np.float64]:
    """Return B by its definition: every movie regressed on all the others, one after the other."""
    z, y = dense(data, settings)
    weight = z.sum(axis=1) ** -settings.user_power
    gram = (z * weight[:, None]).T @ z
    scale = np.diag(gram) ** -settings.item_power
    scale *= np.sqrt(z.sum(axis=0).mean() / np.mean(scale**2 * np.diag(gram)))
    assert settings.regularisation
    ridge = settings.regularisation + settings.degree_penalty * scale**2 * np.diag(gram)
    b = np.zeros((data.n_movies, data.n_movies))
    for movie in range(data.n_movies):
        others = np.delete(np.arange(data.n_movies), movie)
        scaled = z[:, others] * scale[others]
        left = (scaled * weight[:, None]).T @ scaled + np.diag(ridge[others])
        b[others, movie] = scale[others] * np.linalg.solve(left, scaled.T @ (weight * y[:, movie]))
    return b


@pytest.mark.parametrize("settings", [{}, {"degree_penalty": 0.0, "item_power": 0.3, "user_power": 0.0}])
def test_at_full_width_it_is_the_regression_of_every_movie_on_the_others(settings: dict[str, float]) -> None:
    data = prepared()
    history, movies = solve(data, config(**settings), data.split.train)
    np.testing.assert_allclose(history @ movies.T, regressions(data, config(**settings)), atol=2e-5)


def test_a_smaller_width_is_the_best_approximation_of_the_training_users_scores() -> None:
    data = prepared()
    z, _ = dense(data, config())
    scores = z @ regressions(data, config())
    history, movies = solve(data, config(embedding_dim=6), data.split.train)
    tail = np.linalg.svd(scores, compute_uv=False)[6:]
    assert np.sum((scores - z @ history @ movies.T) ** 2) == pytest.approx(np.sum(tail**2), rel=1e-3)


def test_scores_are_damped_by_popularity_before_they_are_compressed() -> None:
    data = prepared()
    history, movies = solve(data, config(popularity_power=-0.5), data.split.train)
    counts = dense(data, config())[0].sum(axis=0)
    np.testing.assert_allclose(history @ movies.T, regressions(data, config()) * counts**-0.5, atol=2e-5)


def test_movies_of_one_genre_predict_each_other() -> None:
    data = prepared()
    catalog = data.dataset.catalog
    same = np.array([[bool({*a.genres} & {*b.genres}) for b in catalog] for a in catalog])
    np.fill_diagonal(same, False)
    b = [np.dot(e, v.T) for e, v in (solve(data, config(genre_weight=w), data.split.train) for w in (0, 3))]
    gain = b[1] - b[0]
    assert gain[same].mean() > 0.01 > gain[~same & ~np.eye(len(same), dtype=bool)].mean()


def test_the_popularity_prior_is_a_dimension_of_its_own() -> None:
    data = prepared()
    history, movies = solve(data, config(embedding_dim=8, popularity_prior=0.5), data.split.train)
    plain = solve(data, config(embedding_dim=7), data.split.train)
    np.testing.assert_allclose(history[:, :7] @ movies[:, :7].T, plain[0] @ plain[1].T, atol=1e-5)
    np.testing.assert_array_equal(history[:, 7], 1)
    liked = dense(data, config())[1].sum(axis=0)
    np.testing.assert_array_equal(np.argsort(movies[:, 7], kind="stable"), np.argsort(liked, kind="stable"))


def test_movies_outside_of_the_solve_are_folded_in() -> None:
    data = prepared(tiny_dataset(n=60, n_users=200))
    full = solve(data, config(embedding_dim=10), data.split.train)
    history, movies = solve(data, config(embedding_dim=10, largest_solve=50), data.split.train)
    assert history.shape == movies.shape == (60, 10)
    counts = np.bincount(data.histories.rows, minlength=60)
    rest = np.argsort(-counts, kind="stable")[50:]
    assert np.isfinite(history).all()
    # users' scores of the folded movies go with those of the whole solve
    z, _ = dense(data, config())
    whole, folded = (z @ e @ v[rest].T for e, v in (full, (history, movies)))
    assert np.corrcoef(whole.ravel(), folded.ravel())[0, 1] > 0.5


def test_what_watchers_of_folded_movies_like_beyond_the_solve_brings_scores_nearer_to_the_whole_one() -> None:
    data = prepared(tiny_dataset(n=60, n_users=200))
    whole, (history, movies) = (
        solve(data, config(embedding_dim=10, largest_solve=n), data.split.train) for n in (60, 40)
    )
    counts = np.bincount(data.histories.rows, minlength=60)
    rest = np.argsort(-counts, kind="stable")[40:]
    z, _ = dense(data, config())
    without = history.copy()
    without[rest] = 0
    near, far = (
        np.corrcoef((z @ e @ movies.T).ravel(), (z @ whole[0] @ whole[1].T).ravel())[0, 1]
        for e in (history, without)
    )
    assert near > far


@pytest.mark.parametrize("dependent", [False, True])
def test_a_basis_is_orthonormal_also_of_columns_that_depend_on_each_other(dependent: bool) -> None:
    columns = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    columns *= np.logspace(0, -4, 6, dtype=np.float32)
    if dependent:
        columns[:, 5] = 0
    basis = _orthonormal(columns)
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-6)
    np.testing.assert_allclose(basis @ (basis.T @ columns), columns, atol=1e-6)


def test_a_solve_larger_than_the_memory_is_refused_with_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = {"SC_PHYS_PAGES": 3, "SC_PAGE_SIZE": 1000}
    monkeypatch.setattr("embedstore.training.linear.os.sysconf", pages.__getitem__)
    with pytest.raises(DataError, match=r"needs 0\.0 GB of memory, .*lower -P largest_solve"):
        solve(prepared(), config(), np.arange(5))


def test_the_command_trains_without_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from embedstore.training import train\n"
        "from embedstore.training.config import TrainConfig\n"
        "from tests.builders import tiny_dataset\n"
        "from pathlib import Path\n"
        f"train(tiny_dataset(), TrainConfig.of('linear'), runs_dir=Path({str(tmp_path)!r}))\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_half_life_makes_a_tower_of_recency_and_none_an_additive_one(tmp_path: Path) -> None:
    dataset = tiny_dataset(n_users=60)
    plain, recent = (
        Run.load(
            train(dataset, TrainConfig.of("linear", {"half_life": half_life}), runs_dir=tmp_path, run_id=name)
        )
        for half_life, name in ((None, "20260101t000000-0000"), (2, "20260101t000000-0001"))
    )
    assert (plain.manifest.tower, recent.manifest.tower) == ("additive", "dense")
    e = plain.history_vectors
    assert e is not None
    np.testing.assert_allclose(recent.tower([3, 5]), (e[3] * 2**-0.5 + e[5]) / (1 + 2**-0.5), rtol=1e-5)


def test_what_a_user_came_back_for_weighs_more_as_a_target_and_a_user_of_one_day_as_before() -> None:
    dataset = tiny_dataset(n_users=60)
    times = np.zeros(dataset.timestamps.size, np.int64)
    first, last = dataset.offsets[0], dataset.offsets[1] - 1
    times[last] = 30 * 86_400
    data = prepared(dataclasses.replace(dataset, timestamps=times))
    weights = data.lateness_of(np.arange(2), 15.0)
    assert weights[first : last + 1].mean() == pytest.approx(1)
    assert weights[last] / weights[first] == pytest.approx(1 / (0.05 + 0.95 / 4))
    np.testing.assert_allclose(weights[last + 1 :], 1)
    late = solve(data, config(target_half_life=15.0), data.split.train)
    assert not np.allclose(late[1], solve(data, config(), data.split.train)[1])
