from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.data.features import Bags
from embedstore.data.splits import hide_ratings, split_users


@given(st.integers(0, 500), st.integers(0, 5), st.floats(0, 0.45), st.floats(0, 0.45))
def test_every_user_is_in_exactly_one_part(n: int, seed: int, validation: float, test: float) -> None:
    split = split_users(n, seed=seed, validation_share=validation, test_share=test)
    parts = np.concatenate([split.train, split.validation, split.test])
    assert sorted(parts.tolist()) == list(range(n))
    assert split.train.size >= min(n, 1)
    assert abs(split.test.size - test * n) <= 1


def test_the_same_seed_gives_the_same_users_and_another_seed_others() -> None:
    first, again, other = (
        split_users(100, seed=s, validation_share=0.1, test_share=0.2).test.tolist() for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_shares_that_leave_nothing_for_training_are_refused() -> None:
    with pytest.raises(ValueError, match="sum below 1"):
        split_users(10, seed=0, validation_share=0.5, test_share=0.5)


@given(st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), max_size=8), st.integers(0, 3))
def test_hidden_and_known_are_the_history_and_targets_are_the_liked_hidden(
    histories: list[list[int]], seed: int
) -> None:
    bags = Bags.of(histories)
    liked = bags.rows % 3 > 0  # a movie is liked or not, for everybody
    held = hide_ratings(bags, liked, np.arange(len(bags)), seed=seed)
    for i, user in enumerate(held.users.tolist()):
        known = held.known.rows[held.known.offsets[i] : held.known.offsets[i + 1]].tolist()
        targets = held.targets.rows[held.targets.offsets[i] : held.targets.offsets[i + 1]].tolist()
        kept_liked = held.known_liked.rows[
            held.known_liked.offsets[i] : held.known_liked.offsets[i + 1]
        ].tolist()
        hidden = [row for row in histories[user] if row not in known]
        assert len(hidden) == max(round(0.2 * len(histories[user])), 1)
        assert known
        assert targets
        assert targets == [row for row in hidden if row % 3]
        assert kept_liked == [row for row in known if row % 3]
        assert known == [row for row in histories[user] if row in known]  # oldest first, as before


def test_what_is_hidden_of_a_user_does_not_depend_on_the_other_users() -> None:
    bags = Bags.of([list(range(20)), list(range(30)), list(range(40))])
    liked = np.ones(bags.rows.size, dtype=bool)
    alone = hide_ratings(bags, liked, np.array([2]), seed=5)
    together = hide_ratings(bags, liked, np.array([0, 1, 2]), seed=5)
    assert alone.targets.rows.tolist() == together.targets.rows[together.targets.offsets[2] :].tolist()


def test_a_user_with_one_rating_or_nothing_liked_is_left_out() -> None:
    bags = Bags.of([[1], [2, 3, 4], [5, 6]])
    liked = np.array([True, False, False, False, True, True])
    assert hide_ratings(bags, liked, np.arange(3), seed=0).users.tolist() == [2]


def test_liked_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        hide_ratings(Bags.of([[1, 2]]), np.ones(3, dtype=bool), np.arange(1), seed=0)
