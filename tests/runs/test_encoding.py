"""What a model is fed, worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedstore.data.features import Bags
from embedstore.runs.declaration import InputRule
from embedstore.runs.encoding import encode
from embedstore.runs.tower import MovieFeature

POSITIONS = np.array([2, 0, -1, 1])  # of four movies; the third is not in the model's vocabulary
GENRES = MovieFeature("genres", np.array([0, 2, 2, 3, 4]), np.array([0, 1, 1, -1]))
IDS = np.array([10, 20, 30, 40])
HISTORIES = Bags.of([[0, 1, 2, 3], [3], [2]])


def fed(*rules: InputRule, bags: Bags = HISTORIES) -> dict[str, Any]:
    return encode(rules, bags, positions=POSITIONS, features={"genres": GENRES}, ids=IDS)


def test_indices_are_padded_on_the_right_and_what_is_unknown_is_left_out() -> None:
    found = fed(InputRule("x", "movies", "indices", "int32", first=1))["x"]
    assert found.dtype == np.int32
    assert found.tolist() == [[3, 1, 2], [2, 0, 0], [0, 0, 0]]


def test_unknown_gives_an_index_to_what_the_vocabulary_lacks() -> None:
    rule = InputRule("x", "movies", "indices", first=2, unknown=1)
    assert fed(rule)["x"].tolist() == [[4, 2, 1, 3], [3, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[1, 2], [2, 0], [0, 0]]),
        ({"keep": "oldest"}, [[3, 1], [2, 0], [0, 0]]),
        ({"order": "newest_first"}, [[2, 1], [2, 0], [0, 0]]),
        ({"side": "left"}, [[1, 2], [0, 2], [0, 0]]),
        ({"side": "left", "order": "newest_first", "keep": "oldest"}, [[1, 3], [0, 2], [0, 0]]),
        ({"padding": 9}, [[1, 2], [2, 9], [9, 9]]),
        ({"length": 4, "side": "left"}, [[0, 3, 1, 2], [0, 0, 0, 2], [0, 0, 0, 0]]),
    ],
)
def test_a_fixed_length_keeps_what_the_rule_says(options: dict[str, Any], expected: list[list[int]]) -> None:
    rule = InputRule("x", "movies", "indices", **{"first": 1, "length": 2, **options})
    assert fed(rule)["x"].tolist() == expected


def test_mask_and_length_are_those_of_the_indices() -> None:
    rules = (
        InputRule("mask", "movies", "mask", "float32"),
        InputRule("n", "movies", "length", "int32"),
        InputRule("x", "movies", "indices", length=2, side="left"),
    )
    found = fed(*rules)
    assert found["x"].tolist() == [[0, 1], [0, 1], [0, 0]]
    assert found["mask"].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert found["n"].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("values", "genres"),
    [
        ("one", [1, 1]),  # Action, Comedy, and Comedy again; the fourth movie's genre has no label
        ("count", [1, 2]),
        ("mean", [1 / 3, 2 / 3]),
        ("l2", [1 / 3**0.5, 2 / 3**0.5]),
    ],
)
def test_multi_hot_of_genres_counts_every_movie(values: Any, genres: list[float]) -> None:
    rule = InputRule(
        "g", "genres", "multi_hot", "float64", labels=("Action", "Comedy"), size=2, values=values
    )
    found = fed(rule)["g"]
    assert found[0] == pytest.approx(genres)
    assert found[1].tolist() == [0, 0]


def test_ids_are_handed_over_as_they_are() -> None:
    numbers = fed(InputRule("x", "movies", "ids", "int64", padding=-1))["x"]
    assert numbers.tolist() == [[10, 20, 30, 40], [40, -1, -1, -1], [30, -1, -1, -1]]
    texts = fed(InputRule("x", "movies", "ids", "str", padding=""), bags=Bags.of([[1], [0, 3]]))["x"]
    assert texts.tolist() == [["20", ""], ["10", "40"]]


def test_histories_of_nothing_known_have_one_column_of_padding() -> None:
    assert fed(InputRule("x", "movies", "indices", padding=7), bags=Bags.of([[2]]))["x"].tolist() == [[7]]
