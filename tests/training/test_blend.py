from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from embedstore.data.features import Bags
from embedstore.errors import UsageError
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower
from embedstore.training import fit, train, train_model
from embedstore.training.blend import compress, join
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare
from tests.builders import tiny_dataset, tiny_run

Matrix = npt.NDArray[np.float32]
RNG = np.random.default_rng(0)
BAGS = Bags.of([RNG.choice(30, size=8, replace=False) for _ in range(50)])


def pair(width: int) -> tuple[Matrix, Matrix]:
    history, movies = RNG.normal(size=(2, 30, width)).astype(np.float32)
    return history, movies


def scores(history: Matrix, movies: Matrix) -> Matrix:
    found: Matrix = AdditiveTower(history).batch(BAGS) @ movies.T
    return found


def test_a_joined_score_is_the_weighted_sum() -> None:
    one, two = pair(4), pair(3)
    joined = scores(*join([one, two], [0.7, 0.3]))
    np.testing.assert_allclose(joined, 0.7 * scores(*one) + 0.3 * scores(*two), atol=1e-5)


def test_compression_is_the_best_of_its_width() -> None:
    wide = pair(12)
    small = compress(*wide, BAGS, 5)
    assert small[0].shape == small[1].shape == (30, 5)
    tail = np.linalg.svd(scores(*wide), compute_uv=False)[5:]
    assert np.sum((scores(*wide) - scores(*small)) ** 2) == pytest.approx(np.sum(tail**2), rel=1e-4)
    np.testing.assert_allclose(scores(*compress(*wide, BAGS, 15)), scores(*wide))


def test_a_blend_has_the_width_asked_for_and_is_what_was_measured() -> None:
    settings = {"parts": "linear,linear", "embedding_dim": 20, "validation_share": 0.3}
    trained = train_model(tiny_dataset(n_users=60), TrainConfig.of("blend", settings))
    assert trained.fitted.tower.embedding_dim == 20
    found = evaluate(
        vector_scorer(trained.fitted.tower.batch, trained.fitted.movie_vectors), trained.data.test
    )
    assert found.means()["ndcg@100"] == trained.metrics["ndcg@100"]


@pytest.mark.parametrize("learn_validation", [False, True])
@pytest.mark.parametrize("settings", [{}, {"parts": "linear,linear"}])
def test_validation_users_are_learned_from_only_where_that_is_asked_for(
    settings: dict[str, str], learn_validation: bool
) -> None:
    config = TrainConfig.of("blend" if settings else "linear", {**settings, "embedding_dim": 8})
    data = prepare(tiny_dataset(n_users=60), config)
    at, _ = data.positions_of(data.split.validation)
    rows = data.histories.rows.copy()
    rows[at] = data.n_movies - 1 - rows[at]
    other = replace(data, histories=Bags(rows, data.histories.offsets))
    users = data.bags_of(data.split.train)
    one, two = (
        fitted.tower.batch(users) @ fitted.movie_vectors.T
        for fitted in (fit(part, config, learn_validation=learn_validation) for part in (data, other))
    )
    assert np.allclose(one, two, atol=1e-4) != learn_validation


def test_runs_are_blended_by_their_ids(tmp_path: Path) -> None:
    dataset = tiny_dataset(n_users=60)
    runs = [
        Run.load(train(dataset, TrainConfig.of("linear", {"regularisation": r}), runs_dir=tmp_path))
        for r in (2.0, 20.0)
    ]
    parts = ",".join(run.run_id for run in runs)
    blend = Run.load(train(dataset, TrainConfig.of("blend", {"parts": parts}), runs_dir=tmp_path))
    weights = blend.manifest.metrics["best"]["parts"]
    assert set(weights) == {run.run_id for run in runs}
    assert sum(weights.values()) == pytest.approx(1)
    mixed = np.zeros(len(blend.movies))
    for run in runs:
        own = run.tower([1, 2]) @ run.movie_vectors.T
        mixed += weights[run.run_id] * own / np.std(own)
    assert np.corrcoef(mixed, blend.tower([1, 2]) @ blend.movie_vectors.T)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ("linear", "expected two or more presets or runs"),
        ("linear,", "expected two or more presets or runs"),
        ("linear,colab", "part colab is not additive"),
        ("linear,DENSE", "is not additive"),
        ("linear,OTHER", "was trained on other data"),
        ("linear,SPLIT", "was trained with split_seed=1, the blend has 0"),
    ],
)
@pytest.mark.tf
def test_parts_that_cannot_be_blended(parts: str, sentence: str, tmp_path: Path) -> None:
    dataset = tiny_dataset(n_users=60)
    runs = tmp_path / "runs"
    others: dict[str, dict[str, float]] = {"DENSE": {"half_life": 3.0}, "SPLIT": {"split_seed": 1}}
    for name, settings in others.items():
        if name in parts:
            parts = parts.replace(
                name, train(dataset, TrainConfig.of("linear", settings), runs_dir=runs).name
            )
    if "OTHER" in parts:
        parts = parts.replace("OTHER", tiny_run(tmp_path, seed=5).run_id)
    with pytest.raises(UsageError, match=sentence):
        train(dataset, TrainConfig.of("blend", {"parts": parts}), runs_dir=runs)
