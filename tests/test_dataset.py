"""embedstore.data: vocabularies, bags and the canonical order of ratings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.data.features import Bags, Vocabulary
from embedstore.errors import DataError

Rating = tuple[int, int, float, int]
ratings = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 8), st.sampled_from([0.5, 3.0, 5.0]), st.integers(0, 3)),
    min_size=1,
    max_size=60,
)


def columns(lines: list[Rating]) -> RatingColumns:
    users, movies, values, times = zip(*lines, strict=True)
    return RatingColumns(
        np.array(users), np.array(movies), np.array(values, np.float32), np.array(times, np.int64)
    )


def test_a_data_set_worked_by_hand() -> None:
    dataset = Dataset.of(
        "hand",
        columns([(9, 30, 4, 50), (2, 10, 1, 7), (9, 10, 5, 40), (9, 30, 2, 60)]),
        {10: Movie("Ten", 1999, ("Drama",)), 20: Movie("Twenty")},
    )
    assert dataset.users.values.tolist() == [2, 9]
    assert dataset.movies.values.tolist() == [10, 20, 30]  # 20 without a rating, 30 without metadata
    assert [movie.title for movie in dataset.catalog] == ["Ten", "Twenty", None]
    assert dataset.user_rows.tolist() == [0, 1, 1]
    assert dataset.movie_rows.tolist() == [0, 0, 2]
    assert dataset.ratings.tolist() == [1, 5, 2]  # the newest rating of 30
    assert dataset.n_duplicates == 1
    assert dataset.popularity.tolist() == [2, 0, 1]
    assert dataset.offsets.tolist() == [0, 1, 3]


@given(lines=ratings, seed=st.integers(0, 3), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(lines: list[Rating], seed: int, shuffle: object) -> None:
    distinct = list({(user, movie): line for line in lines for user, movie in [line[:2]]}.values())
    shuffled = list(distinct)
    shuffle.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (Dataset.of("x", columns(each), tie_seed=seed) for each in (distinct, shuffled))
    assert one.sha256 == other.sha256
    assert one.n_duplicates == 0
    by_user_and_time = list(zip(one.user_rows.tolist(), one.timestamps.tolist(), strict=True))
    assert by_user_and_time == sorted(by_user_and_time)


def test_ties_are_not_in_the_order_of_the_ids() -> None:
    lines = [(1, movie, 4.0, 100) for movie in range(200)]
    first, second = (Dataset.of("x", columns(lines), tie_seed=seed).movie_rows for seed in (0, 1))
    assert sorted(first.tolist()) == list(range(200))
    assert abs(np.corrcoef(first, np.arange(200))[0, 1]) < 0.25
    assert first.tolist() != second.tolist()


@given(lines=ratings)
def test_one_rating_per_user_and_movie_the_newest(lines: list[Rating]) -> None:
    dataset = Dataset.of("x", columns(lines))
    newest: dict[tuple[int, int], int] = {}
    for user, movie, _, time in lines:
        newest[user, movie] = max(time, newest.get((user, movie), 0))
    frame = zip(
        dataset.users.values[dataset.user_rows].tolist(),
        dataset.movies.values[dataset.movie_rows].tolist(),
        dataset.timestamps.tolist(),
        strict=True,
    )
    assert {(user, movie): time for user, movie, time in frame} == newest
    assert dataset.n_duplicates == len(lines) - len(newest)


@pytest.mark.parametrize("largest", [2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_ids_of_any_unsigned_size(largest: int) -> None:
    ids = np.array([5, largest], np.uint64 if largest >= 2**63 else np.int64)
    data = RatingColumns(np.array([1, 1]), ids, np.ones(2, np.float32), np.arange(2))
    dataset = Dataset.of("x", data, {7: Movie("seven")})
    assert dataset.movies.ids(np.arange(3)) == [5, 7, largest]
    assert dataset.movies.rows([largest, 6, -1, 2**70]).tolist() == [2, -1, -1, -1]


def test_ids_above_and_below_2_to_the_63_in_one_catalog() -> None:
    data = RatingColumns(
        np.array([1]), np.array([2**63], np.uint64), np.ones(1, np.float32), np.zeros(1, np.int64)
    )
    for movies in ({5: Movie("five"), 2**63: Movie()}, {np.uint64(5): Movie("five")}):
        assert Dataset.of("x", data, movies).movies.ids(np.arange(2)) == [5, 2**63]


def test_bad_data_is_one_sentence() -> None:
    with pytest.raises(DataError, match="has no rating"):
        Dataset.of("x", RatingColumns(*(np.zeros(0, t) for t in (np.int64, np.int64, np.float32, np.int64))))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="rating 2 of data set 'x' is not a finite number"):
        Dataset.of("x", columns([(1, 1, 1, 1), (1, 2, float("nan"), 1)]))
    with pytest.raises(DataError, match="movie ids are integers in the ratings and strings in the movies"):
        Dataset.of("x", columns([(1, 1, 1, 1)]), {"tt1": Movie()})


def test_frames_in_and_out() -> None:
    import pandas as pd

    ratings = pd.DataFrame({"user_id": ["b", "a"], "movie_id": [2, 1], "rating": [1.0, 2.5]})
    movies = pd.DataFrame(
        {"movie_id": [1, 3], "title": ["One", None], "year": [1990, None], "genres": ["A|B", ""]}
    )
    dataset = Dataset.from_frames("x", ratings, movies)
    assert dataset.catalog[0] == Movie("One", 1990, ("A", "B"))
    assert dataset.catalog[2] == Movie()
    assert dataset.to_frame().to_dict("list") == {
        "user_id": ["a", "b"],
        "movie_id": [1, 2],
        "rating": [2.5, 1.0],
        "timestamp": [0, 0],
    }


def test_vocabularies_are_sorted_and_distinct() -> None:
    assert Vocabulary.of(np.array([3, 1, 3])).values.tolist() == [1, 3]
    for values in (np.array([2, 1]), np.array([1, 1]), np.array([1.0]), np.array([[1]])):
        with pytest.raises(ValueError, match="ids must be"):
            Vocabulary(values)


@pytest.mark.parametrize(
    ("text", "parsed"), [("12", 12), ("x", None), ("-1", None), ("٣", None), ("1.0", None)]
)
def test_ids_as_a_person_types_them(text: str, parsed: int | None) -> None:
    assert Vocabulary(np.array([12])).parse(text) == parsed
    assert Vocabulary(np.array(["a"])).parse(text) == text


def test_an_integer_vocabulary_knows_no_text_and_a_text_one_no_integer_of_another_form() -> None:
    assert Vocabulary(np.array([1, 2])).rows(["1", 2, 1.5]).tolist() == [-1, 1, -1]  # type: ignore[list-item]
    assert Vocabulary(np.array(["1", "02"][::-1])).rows(["2", "02", 1]).tolist() == [-1, 0, 1]


def test_bags_of_histories() -> None:
    bags = Bags.of([[4, 5], [], [6]])
    assert (bags.rows.tolist(), bags.offsets.tolist()) == ([4, 5, 6], [0, 2, 2, 3])
    assert len(bags) == 3
    assert bags.sizes.tolist() == [2, 0, 1]
