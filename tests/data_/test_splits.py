from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.data.features import Bags, Rows
from embedstore.data.splits import (
    HeldOut,
    hide_after,
    hide_last,
    hide_last_session,
    hide_liked,
    hide_ratings,
    second_of_share,
    split_users,
)

DAY = 86_400
SECONDS = (0, 0, 1, 90, 2 * DAY, 2 * DAY + 1, 3 * DAY + 1, 3 * DAY + 2, 9 * DAY)  # ties, sessions


class Rated(NamedTuple):
    """Ratings of some users: their histories, and one value per rating."""

    histories: Bags
    liked: npt.NDArray[np.bool_]
    timestamps: Rows


@st.composite
def rated(draw: st.DrawFn) -> Rated:
    one = st.tuples(st.integers(0, 30), st.sampled_from(SECONDS), st.booleans())
    users = draw(st.lists(st.lists(one, unique_by=lambda r: r[0], max_size=20), min_size=1, max_size=8))
    users = [sorted(user, key=lambda r: r[1]) for user in users]
    everything = [rating for user in users for rating in user]
    return Rated(
        Bags.of([[movie for movie, _, _ in user] for user in users]),
        np.array([liked for _, _, liked in everything], dtype=bool),
        np.array([second for _, second, _ in everything], dtype=np.int64),
    )


def serving(data: Rated, users: Rows) -> HeldOut:
    return hide_ratings(data.histories, data.liked, users, seed=3)


def strong(data: Rated, users: Rows) -> HeldOut:
    return hide_liked(data.histories, data.liked, users, seed=3)


def next_session(data: Rated, users: Rows) -> HeldOut:
    return hide_last_session(data.histories, data.liked, users, timestamps=data.timestamps)


def last_one(data: Rated, users: Rows) -> HeldOut:
    return hide_last(data.histories, data.liked, users, timestamps=data.timestamps)


def after(data: Rated, users: Rows) -> HeldOut:
    return hide_after(data.histories, data.liked, users, timestamps=data.timestamps, second=2 * DAY)


HIDERS = (serving, strong, next_session, last_one, after)


def one(held: HeldOut, i: int) -> tuple[list[int], list[int], list[int]]:
    """Return known, known_liked and targets of the user at place i."""
    known, liked, targets = (
        bags.part(i, i + 1).rows.tolist() for bags in (held.known, held.known_liked, held.targets)
    )
    return known, liked, targets


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


def test_the_splits_of_older_runs_are_the_same_for_ever() -> None:
    # printed by the first version that trained: a run is measured on users that its training did not see
    split = split_users(20, seed=3, validation_share=0.1, test_share=0.2)
    assert (split.test.tolist(), split.validation.tolist()) == ([8, 12, 16, 18], [3, 13])
    bags = Bags.of([list(range(10)), list(range(20, 32)), [5]])
    held = hide_ratings(bags, bags.rows % 3 > 0, np.arange(3), seed=3)
    assert held.targets.rows.tolist() == [2, 8, 28]


@pytest.mark.parametrize("hide", HIDERS)
@settings(max_examples=50)
@given(data=rated())
def test_known_targets_and_the_rest_are_the_history_and_nothing_is_two_of_them(
    hide: Callable[[Rated, Rows], HeldOut], data: Rated
) -> None:
    everyone = np.arange(len(data.histories))
    held = hide(data, everyone)
    assert held.n_asked == everyone.size
    assert held.known_at is not None
    assert data.histories.rows[held.known_at].tolist() == held.known.rows.tolist()
    for i, user in enumerate(held.users.tolist()):
        known, known_liked, targets = one(held, i)
        history = data.histories.part(user, user + 1).rows.tolist()
        likes = data.liked[data.histories.offsets[user] : data.histories.offsets[user + 1]]
        liked = {row for row, like in zip(history, likes, strict=True) if like}
        assert known
        assert targets
        assert not set(known) & set(targets)
        assert set(targets) | set(known_liked) == liked  # so the rest of the history is low-rated
        assert set(known_liked) == set(known) & liked
        for part in (known, targets):
            assert part == [row for row in history if row in part]  # oldest first, as before


@pytest.mark.parametrize("hide", HIDERS)
@settings(max_examples=20)
@given(data=rated())
def test_a_user_is_asked_the_same_alone_as_among_others(
    hide: Callable[[Rated, Rows], HeldOut], data: Rated
) -> None:
    together = hide(data, np.arange(len(data.histories)))
    for i, user in enumerate(together.users.tolist()):
        assert one(hide(data, np.array([user])), 0) == one(together, i)


@pytest.mark.parametrize("hide", [next_session, last_one, after])
@settings(max_examples=50)
@given(data=rated())
def test_in_time_nothing_known_is_younger_than_a_target_and_gaps_are_the_time_between(
    hide: Callable[[Rated, Rows], HeldOut], data: Rated
) -> None:
    held = hide(data, np.arange(len(data.histories)))
    assert held.gaps is not None
    for i, user in enumerate(held.users.tolist()):
        history = data.histories.part(user, user + 1).rows.tolist()
        second = dict(zip(history, data.timestamps[data.histories.offsets[user] :].tolist(), strict=False))
        known, _, targets = one(held, i)
        gap = min(second[row] for row in targets) - max(second[row] for row in known)
        assert held.gaps[i] == gap
        assert gap >= 0
        if hide is next_session:
            assert gap > DAY
        if hide is after:
            assert max(second[row] for row in known) <= 2 * DAY < min(second[row] for row in targets)


@given(rated())
def test_a_fifth_of_the_history_is_hidden_at_least_one_movie_and_never_all(data: Rated) -> None:
    held = serving(data, np.arange(len(data.histories)))
    sizes = data.histories.sizes[held.users]
    n_hidden = sizes - held.known.sizes
    assert n_hidden.tolist() == [min(max(round(0.2 * n), 1), n - 1) for n in sizes.tolist()]


def test_strong_generalisation_hides_a_fifth_of_the_liked_and_knows_nothing_else() -> None:
    bags = Bags.of([list(range(20))])
    held = hide_liked(bags, bags.rows < 10, np.arange(1), seed=0)
    known, known_liked, targets = one(held, 0)
    assert (len(known), len(targets)) == (8, 2)
    assert known == known_liked
    assert sorted(known + targets) == list(range(10))


def test_a_session_ends_with_a_pause_of_more_than_a_day() -> None:
    # user 0: the pause of exactly a day is none; user 1: one session; user 2: the last is disliked
    bags = Bags.of([[0, 1, 2, 3], [4, 5], [6, 7]])
    timestamps = np.array([0, 2 * DAY, 3 * DAY, 3 * DAY, 0, 9, 0, 5 * DAY])
    liked = np.array([1, 0, 1, 1, 1, 1, 1, 0], dtype=bool)
    held = hide_last_session(bags, liked, np.arange(3), timestamps=timestamps)
    assert held.users.tolist() == [0]
    assert one(held, 0) == ([0], [0], [2, 3])
    assert held.gaps is not None
    assert held.gaps.tolist() == [3 * DAY]  # to the first target, not to the first of the session
    assert held.left_out == (1, 1)  # no known movie, no target


def test_the_second_of_a_share_holds_it_with_all_its_ties() -> None:
    timestamps = np.array([5, 1, 2, 2, 2, 3, 4, 6, 7, 8])
    found = {share: second_of_share(timestamps, share) for share in (0, 0.1, 0.2, 0.4, 0.41, 0.9, 1)}
    assert found == {0: 1, 0.1: 1, 0.2: 2, 0.4: 2, 0.41: 3, 0.9: 7, 1: 8}
    with pytest.raises(ValueError, match="no ratings"):
        second_of_share(timestamps[:0], 0.9)


def test_what_comes_after_the_end_of_the_time_asked_for_is_neither_known_nor_a_target() -> None:
    bags, timestamps = Bags.of([[0, 1, 2, 3]]), np.array([1, 2, 3, 4])
    held = hide_after(bags, np.ones(4, dtype=bool), np.arange(1), timestamps=timestamps, second=2, until=3)
    assert one(held, 0) == ([0, 1], [0, 1], [2])


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
    bags, liked = Bags.of([[1, 2]]), np.ones(3, dtype=bool)
    for hide in (hide_ratings, hide_liked):
        with pytest.raises(ValueError, match="liked must have shape"):
            hide(bags, liked, np.arange(1), seed=0)
