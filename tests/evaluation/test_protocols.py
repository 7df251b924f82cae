from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.data.dataset import Dataset, RatingColumns
from embedstore.data.splits import HeldOut
from embedstore.errors import DataError, UsageError
from embedstore.evaluation.protocols import GAP_BANDS, PROTOCOLS, Question, gap_bands, question
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Prepared, prepare

DAY = 86_400


def ratings_of(n_users: int, seed: int, *, n_movies: int = 25, seconds: bool = True) -> Dataset:
    """Return users who come two or three times, days apart, and rate several movies in each second."""
    rng = np.random.default_rng(seed)
    n = n_users * 12
    users = np.repeat(np.arange(n_users), 12)
    visits = rng.integers(0, 40, (n_users, 3)) * DAY
    times = visits[users, rng.integers(0, 3, n)] + rng.integers(0, 4, n)
    return Dataset.of(
        "visits",
        RatingColumns(
            user_ids=users + 1,
            movie_ids=rng.integers(1, n_movies, n),
            ratings=rng.integers(1, 6, n).astype(np.float32),
            timestamps=times if seconds else np.zeros(n, np.int64),
        ),
    )


@cache
def visits(seed: int = 0) -> Prepared:
    return prepare(ratings_of(80, seed), TrainConfig(test_share=0.3, validation_share=0.2))


def positions(asked: Question, held: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Return where the known ratings and the targets stand among all ratings."""
    assert held.known_at is not None
    histories = asked.data.histories
    targets = [
        int(histories.offsets[user]) + histories.part(user, user + 1).rows.tolist().index(row)
        for i, user in enumerate(held.users.tolist())
        for row in held.targets.part(i, i + 1).rows.tolist()
    ]
    return held.known_at, np.array(targets, dtype=np.int64)


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if not PROTOCOLS[name].retrain])
@settings(max_examples=10)
@given(seed=st.integers(0, 50))
def test_no_rating_of_a_test_user_is_learned_from_nor_one_of_a_validation_user_in_tuning(
    protocol: str, seed: int
) -> None:
    data = visits(seed)
    rows, test, validation = data.dataset.user_rows, set(data.split.test), set(data.split.validation)
    for tuning, users, unseen in ((False, test, test), (True, validation, test | validation)):
        asked = question(data, protocol, tuning=tuning)
        assert set(rows[~asked.learn]) == unseen
        assert set(asked.held_out.users) <= users
        assert asked.held_out.n_asked == len(users)


@settings(max_examples=20)
@given(st.integers(0, 50))
def test_in_global_time_no_second_is_learned_from_and_asked_for(seed: int) -> None:
    data = visits(seed)
    asked, tuning = (question(data, "global-time", tuning=tuning) for tuning in (False, True))
    times = data.dataset.timestamps
    assert 0.9 <= asked.learn.mean() < 1
    for put, end in ((asked, times.max()), (tuning, times[asked.learn].max())):
        known, targets = positions(put, put.held_out)
        assert put.learn[known].all()
        assert not put.learn[targets].any()
        assert times[put.learn].max() < times[targets].min()
        assert times[targets].max() <= end
        assert put.held_out.n_asked == 80
    assert not (tuning.learn & ~asked.learn).any()


@pytest.mark.parametrize("tuning", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_question_is_the_same_for_the_same_split_seed(protocol: str, tuning: bool) -> None:
    config = TrainConfig(split_seed=4, test_share=0.3, validation_share=0.3)
    first, again = (question(prepare(ratings_of(80, 0), config), protocol, tuning=tuning) for _ in range(2))
    assert first.learn.tolist() == again.learn.tolist()
    a, b = first.held_out, again.held_out
    assert a.users.tolist() == b.users.tolist()
    assert a.known.rows.tolist() == b.known.rows.tolist()
    assert a.targets.rows.tolist() == b.targets.rows.tolist()


def test_the_serving_question_is_the_one_that_the_run_was_measured_by() -> None:
    data = visits()
    asked = question(data, "serving")
    assert asked.held_out.users.tolist() == data.test.users.tolist()
    assert asked.held_out.targets.rows.tolist() == data.test.targets.rows.tolist()
    tuning = question(data, "serving", tuning=True)
    assert tuning.held_out.targets.rows.tolist() == data.validation.targets.rows.tolist()


def test_another_tie_seed_changes_which_rating_of_a_second_is_the_last() -> None:
    n = 40
    columns = RatingColumns(
        np.repeat(np.arange(n), 5),
        np.tile(np.arange(5), n),
        np.full(5 * n, 5, np.float32),
        np.repeat([0] + [7 * DAY] * 4, n).reshape(5, n).T.ravel(),  # four ratings in the last second of each
    )
    last = [
        question(
            prepare(Dataset.of("ties", columns, tie_seed=seed), TrainConfig(test_share=0.4)),
            "leave-last-one-out",
        ).held_out
        for seed in (0, 0, 1)
    ]
    assert last[0].targets.rows.tolist() == last[1].targets.rows.tolist()
    assert last[0].targets.rows.tolist() != last[2].targets.rows.tolist()
    assert set(last[0].targets.rows.tolist()) == {1, 2, 3, 4}  # not the first or the last in the file
    assert last[0].gaps is not None
    assert not last[0].gaps.any()


def test_a_batch_holds_the_ratings_of_what_is_known() -> None:
    data = visits()
    asked = question(data, "serving")
    whole = data.dataset.ratings
    size_of = []
    for batch in asked.batches(5):
        assert batch.ratings is not None
        assert batch.users is not None
        size_of.append(len(batch))
        for i, user in enumerate(batch.users.tolist()):
            rated = dict(
                zip(
                    data.histories.part(user, user + 1).rows.tolist(),
                    whole[data.histories.offsets[user] :].tolist(),
                    strict=False,
                )
            )
            known = batch.known.part(i, i + 1).rows.tolist()
            part = slice(batch.known.offsets[i], batch.known.offsets[i + 1])
            assert batch.ratings[part].tolist() == [rated[row] for row in known]
            assert batch.liked.part(i, i + 1).rows.tolist() == [row for row in known if rated[row] >= 4]
    assert sum(size_of) == len(asked.held_out)
    assert set(size_of[:-1]) == {5}


def test_what_may_be_learned_is_a_data_set_and_examples_of_the_same_ratings() -> None:
    data = visits()
    asked = question(data, "global-time")
    learned, examples = asked.dataset(), asked.examples()
    assert learned.n_ratings == examples.ratings.size == asked.learn.sum()
    frame, whole = learned.to_frame(), data.dataset.to_frame()
    assert frame.to_numpy().tolist() == whole[asked.learn].to_numpy().tolist()
    assert np.bincount(learned.user_rows, minlength=len(learned.users)).all()  # nobody without a rating
    assert examples.liked_histories.rows.size == (asked.learn & data.liked).sum()
    assert len(examples.histories) == len(data.histories)
    assert prepare(learned, TrainConfig()).n_movies <= data.n_movies


def test_gaps_fall_into_bands() -> None:
    gaps = np.array([0, 1, 59, 60, 3599, 3600, DAY - 1, DAY, 10 * DAY])
    assert gap_bands(gaps).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert gap_bands(gaps).max() == len(GAP_BANDS) - 1


def test_who_is_left_out_is_said() -> None:
    asked = question(visits(), "leave-last-one-out")
    n_left = asked.held_out.left_out.no_targets
    assert n_left
    assert asked.asked == (
        f"{24 - n_left} of 24 test users are asked, left out: {n_left} without a liked movie to find"
    )


def one_visit() -> Dataset:
    whole = ratings_of(40, 0)
    frame = whole.to_frame()
    return Dataset.from_frames("one-visit", frame.assign(timestamp=frame.timestamp % 7))


def liked_at_the_end() -> Dataset:
    frame = ratings_of(40, 0).to_frame()
    late = frame.timestamp > frame.timestamp.quantile(0.95)
    return Dataset.from_frames("late", frame.assign(rating=1 + 4.0 * late))


REFUSED = {
    "few users": (
        (ratings_of(9, 0), "serving", {}),
        (
            "protocol serving asks test users, and none of the 9 users of data set 'visits' is one; "
            "bring 10 users at least and a test_share above 0"
        ),
    ),
    "no test share": (
        (ratings_of(40, 0), "strong", {"test_share": 0.0}),
        (
            "protocol strong asks test users, and none of the 40 users of data set 'visits' is one; "
            "bring 10 users at least and a test_share above 0"
        ),
    ),
    "no times": (
        (ratings_of(40, 0, seconds=False), "next-session", {}),
        (
            r"protocol next-session needs times, and all \d+ ratings of data set 'visits' have the same; "
            "choose serving or strong"
        ),
    ),
    "one session": (
        (one_visit(), "next-session", {}),
        (
            "protocol next-session can ask 0 of 6 test users of data set 'one-visit', left out: "
            "6 without a known movie; 2 are needed, so choose another or bring more users"
        ),
    ),
    "nothing liked to learn": (
        (liked_at_the_end(), "global-time", {}),
        (
            r"protocol global-time leaves \d+ ratings of data set 'late' to learn from, none of them liked; "
            "choose a smaller target, or bring more ratings"
        ),
    ),
}


@pytest.mark.parametrize(("asked", "sentence"), REFUSED.values(), ids=REFUSED)
def test_data_that_a_protocol_cannot_be_put_to_are_refused_in_a_sentence(
    asked: tuple[Dataset, str, dict[str, float]], sentence: str
) -> None:
    dataset, protocol, changed = asked
    data = prepare(dataset, TrainConfig.of(settings=changed))
    with pytest.raises(DataError) as refused:
        question(data, protocol)
    assert re.fullmatch(sentence, str(refused.value))


def test_an_unknown_protocol_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match="unknown protocol 'time'; expected one of serving, strong, next-session"
    ):
        question(visits(), "time")
