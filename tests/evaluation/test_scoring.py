from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedstore.data.features import Bags, Vocabulary
from embedstore.errors import RunError, UsageError
from embedstore.evaluation import scoring
from embedstore.evaluation.baselines import Batch
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.scoring import (
    data_of,
    model_of,
    movies_of,
    rank_by,
    rank_in_store,
    scorer_of,
    vectors_over,
)
from embedstore.runs.tower import AdditiveTower
from embedstore.stores.base import open_store
from embedstore.sync import sync
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare
from tests.builders import tiny_dataset, tiny_run

CONFIG = TrainConfig(test_share=0.4, split_seed=1).to_dict()


@pytest.fixture(scope="module")
def asked() -> Question:
    return question(prepare(tiny_dataset(n_users=40), TrainConfig(test_share=0.4)), "serving")


def batch_of(*histories: list[int]) -> Batch:
    return Batch(Bags.of(histories), Bags.of(histories))


def test_the_test_users_are_those_that_the_training_held_out(tmp_path: Path) -> None:
    dataset = tiny_dataset(n_users=40)
    run = tiny_run(tmp_path, dataset=dataset, config=CONFIG)
    expected = prepare(dataset, TrainConfig.of("softmax", {"test_share": 0.4, "split_seed": 1}))
    assert data_of(run, dataset).split.test.tolist() == expected.split.test.tolist()


def test_other_data_are_refused_and_allowed_on_request(tmp_path: Path) -> None:
    own, other = tiny_dataset(n_users=40), tiny_dataset(n_users=40, seed=5)
    run = tiny_run(tmp_path, dataset=own, config=CONFIG)
    with pytest.raises(
        UsageError, match=rf"trained on tiny \(fingerprint {own.sha256[:12]}\).* has {other.sha256[:12]};"
    ):
        data_of(run, other)
    assert data_of(run, other, any_data=True).dataset is other


def test_a_run_that_does_not_say_who_was_held_out_is_refused(tmp_path: Path) -> None:
    dataset = tiny_dataset(n_users=40)
    with pytest.raises(RunError, match="does not say which users its training held out"):
        data_of(tiny_run(tmp_path, dataset=dataset), dataset)


def test_movies_of_another_data_set_are_matched_by_id() -> None:
    # the model knows 10, 20, 30 as rows 0, 1, 2; the data set 20, 25, 30; V is the identity
    model = AdditiveTower(np.diag([1, 2, 4]).astype(np.float32)), np.eye(3, dtype=np.float32)
    own, movies = Vocabulary(np.array([10, 20, 30])), Vocabulary(np.array([20, 25, 30]))
    scores = scorer_of((*model, own), movies)(batch_of([0, 2], [1], [0, 1]))
    # psi of {20, 30} = (0, 2, 4) / 2; of nothing it knows: nothing is ranked; of {20}: (0, 2, 0)
    nothing = -np.inf
    assert scores.tolist() == [[1, nothing, 2], [nothing, nothing, nothing], [2, nothing, 0]]
    assert vectors_over((*model, own), movies).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_no_movie_in_common_is_said() -> None:
    model = AdditiveTower(np.ones((1, 2), np.float32)), np.ones((1, 2), np.float32)
    with pytest.raises(UsageError, match="none of the 2 movies of the data set is known"):
        scorer_of((*model, Vocabulary(np.array([9]))), Vocabulary(np.array([1, 2])))


def test_every_user_is_scored_once_and_the_lists_do_not_depend_on_the_batches(
    asked: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.random.default_rng(0).normal(size=(40, 40))
    seen: list[int] = []

    def score(batch: Batch) -> np.ndarray:
        assert batch.users is not None
        seen.extend(batch.users.tolist())
        return np.stack(
            [table[batch.known.part(user, user + 1).rows].sum(axis=0) for user in range(len(batch))]
        )

    whole = rank_by(score, asked, k=10)
    monkeypatch.setattr(scoring, "_BATCH_FLOATS", 3 * 40)
    assert rank_by(score, asked, k=10).tolist() == whole.tolist()
    assert seen == 2 * asked.held_out.users.tolist()
    for user, ranked in enumerate(whole):
        assert not np.isin(asked.held_out.known.part(user, user + 1).rows, ranked).any()


def test_scores_of_another_shape_or_nan_are_a_mistake_of_the_caller(asked: Question) -> None:
    with pytest.raises(ValueError, match=r"must return shape \(\d+, 40\), received \(\d+, 2\)"):
        rank_by(lambda batch: np.zeros((len(batch), 2)), asked, k=3)
    with pytest.raises(ValueError, match="must not return NaN"):
        rank_by(lambda batch: np.full((len(batch), 40), np.nan), asked, k=3)


def test_the_store_answers_what_the_run_ranks(tmp_path: Path) -> None:
    dataset = tiny_dataset(n_users=40)
    run = tiny_run(tmp_path, dataset=dataset, config=CONFIG)
    asked = question(data_of(run, dataset), "serving")
    own = rank_by(scorer_of(model_of(run), movies_of(asked.data)), asked, k=20)
    with open_store(tmp_path / "store", create=True) as store:
        collection = sync(run, store).collection
        assert rank_in_store(run, store, collection, asked, k=20).tolist() == own.tolist()
