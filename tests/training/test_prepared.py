from __future__ import annotations

import numpy as np
import pytest

from embedstore.data.dataset import Dataset, RatingColumns
from embedstore.errors import DataError
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare, target_of
from tests.builders import tiny_dataset


def ratings_of(triples: list[tuple[int, int, float]]) -> Dataset:
    users, movies, ratings = zip(*triples, strict=True)
    columns = RatingColumns(
        np.array(users, np.int64),
        np.array(movies, np.int64),
        np.array(ratings, np.float32),
        np.zeros(len(users), np.int64),
    )
    return Dataset.of("hand", columns)


@pytest.mark.parametrize(
    ("ratings", "given", "target", "n_liked"),
    [
        ([1, 2, 3, 4, 5], None, 4.0, 2),
        ([0.5, 4.0, 4.5, 5], None, 4.0, 3),
        ([1, 7, 8, 10], None, 8.0, 2),
        ([1, 1, 1], None, 0.8, 3),  # implicit: all liked
        ([3, 3], None, 2.4, 2),
        ([0, 0], None, 0.0, 2),
        ([-2, -1], None, -1.0, 1),
        ([1, 2, 3], 2.0, 2.0, 2),
    ],
)
def test_the_target(ratings: list[float], given: float | None, target: float, n_liked: int) -> None:
    values = np.array(ratings, np.float32)
    assert target_of(values, given) == pytest.approx(target)
    assert int((values >= target_of(values, given)).sum()) == n_liked


def test_a_target_that_no_rating_reaches_is_said() -> None:
    with pytest.raises(DataError, match="no rating reaches the target 6, the largest is 5"):
        target_of(np.array([1, 5], np.float32), 6.0)


def test_one_user_or_one_movie_is_too_few() -> None:
    with pytest.raises(DataError, match="has 1 user; training needs at least 2"):
        prepare(ratings_of([(1, 1, 5), (1, 2, 4)]), TrainConfig())
    with pytest.raises(DataError, match="has 1 rated movie; training needs at least 2"):
        prepare(ratings_of([(1, 1, 5), (2, 1, 4)]), TrainConfig())


def test_under_ten_users_all_train() -> None:
    data = prepare(tiny_dataset(n_users=6), TrainConfig())
    assert data.split.train.size == len(data.dataset.users)
    assert len(data.test) == len(data.validation) == 0


def test_held_out_users_do_not_depend_on_the_seed_of_the_weights() -> None:
    dataset = tiny_dataset(n_users=40)
    splits = [
        prepare(dataset, TrainConfig(seed=seed, split_seed=split)).split.test.tolist()
        for seed, split in [(0, 0), (1, 0), (0, 1)]
    ]
    assert splits[0] == splits[1] != splits[2]


def test_bags_of_users_are_their_histories_and_likes() -> None:
    data = prepare(ratings_of([(1, 10, 5), (1, 20, 1), (2, 20, 4), (3, 30, 2), (3, 10, 4)]), TrainConfig())
    both = data.bags_of(np.array([2, 0]))
    assert both.sizes.tolist() == [2, 2]
    assert sorted(both.rows[:2].tolist()) == [0, 2]
    liked = data.bags_of(np.array([2, 0]), liked_only=True)
    assert [liked.rows.tolist(), liked.offsets.tolist()] == [[0, 0], [0, 1, 2]]
