"""What names, shapes and tables tell of a model's inputs, and what they do not."""

from __future__ import annotations

from typing import Any

import pytest

from embedstore.errors import UsageError
from embedstore.importing.infer import UntoldError, infer
from embedstore.runs.declaration import Declaration, InputRule, ModelInput, parse_declaration

LABELS = {"genres": ["Comedy", "Drama", "War"], "years": ["1990", "1995"]}


def told(*inputs: ModelInput, labels: Any = LABELS, **tables: int) -> Declaration:
    return infer(inputs, tables, n_movies=100, labels=lambda feature: labels.get(feature, ()))


@pytest.mark.parametrize(
    ("rows", "first", "unknown"),
    [(100, 0, None), (101, 1, None), (102, 2, 1)],  # all movies; with mask_zero; with StringLookup's [UNK]
)
def test_the_rows_of_a_table_tell_where_the_indices_begin(rows: int, first: int, unknown: int | None) -> None:
    declared = told(ModelInput("x", (None, None), "int32"), x=rows)
    assert declared.inputs == (InputRule("x", "movies", "indices", "int32", first=first, unknown=unknown),)


def test_a_fixed_shape_is_a_fixed_length() -> None:
    (rule,) = told(ModelInput("movie_ids", (None, 50), "int64"), movie_ids=101).inputs
    assert (rule.length, rule.keep, rule.side) == (50, "newest", "right")


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_columns_of_numbers_are_a_multi_hot(dtype: str) -> None:
    (rule,) = told(ModelInput("watched", (None, 100), dtype), watched=100).inputs
    assert rule == InputRule("watched", "movies", "multi_hot", dtype, size=100)


def test_the_inputs_of_the_course_are_told_by_their_names() -> None:
    declared = told(
        ModelInput("movie_id", (None, None), "int32"),
        ModelInput("genre", (None, None), "int32"),
        ModelInput("year", (None, 2), "float32"),
        ModelInput("movie_mask", (None, None), "float32"),
        ModelInput("n_movies_length", (None,), "int32"),
        movie_id=101,
        genre=4,
    )
    assert [(rule.feature, rule.form) for rule in declared.inputs] == [
        ("movies", "indices"),
        ("genres", "indices"),
        ("years", "multi_hot"),
        ("movies", "mask"),
        ("movies", "length"),
    ]
    assert declared.inputs[1].labels == ("Comedy", "Drama", "War")
    assert declared.inputs[2].labels == ("1990", "1995")


def test_text_is_the_ids_themselves() -> None:
    (rule,) = told(ModelInput("title", (None, None), "str")).inputs
    assert rule == InputRule("title", "movies", "ids", "str", padding="")


@pytest.mark.parametrize(
    ("given", "tables", "said"),
    [
        ([ModelInput("x", (None, None), "int32")], {}, "from which on those of 100 movies"),
        ([ModelInput("x", (None, None), "int32")], {"x": 90}, "the vocabulary is longer than the table"),
        ([ModelInput("x", (None, None), "int32")], {"x": 200}, "the vocabulary is shorter than the table"),
        ([ModelInput("x", (None, 90), "float32")], {}, "has 90 columns and there are 100 movies"),
        ([ModelInput("x", (None, None), "float32")], {}, "does not say how many; expected 100"),
        ([ModelInput("x", (None, None, 8), "int32")], {}, r"has shape \(any, any, 8\)"),
        (
            [ModelInput("x", (None, 101), "int64")],
            {"x": 101},
            "indices or a multi_hot of whole numbers cannot",
        ),
        (
            [ModelInput("movies", (None, None), "int32"), ModelInput("movie_id", (None,), "int32")],
            {"movies": 101, "movie_id": 101},
            r"input 'movie_id' has shape \(any\)",
        ),
        (
            [ModelInput("user_id", (None, None), "int32")],
            {"user_id": 944},
            "the model needs 'user_id', which is no",
        ),
        (
            [ModelInput("movies", (None, None), "int32"), ModelInput("age", (None, 1), "float32")],
            {"movies": 100},
            "the model needs 'age', which is no part of a history .*; declare .*, or ask by `query --vector`",
        ),
        (
            [ModelInput("movies", (None, None), "int32"), ModelInput("zeta", (None, 1), "float32")],
            {"movies": 100},
            "the model needs 'zeta', and what that is cannot be told",
        ),
        ([ModelInput("genres", (None, None), "int32")], {"genres": 20}, "20 rows, and there are 3 genres"),
        ([ModelInput("genres", (None, None), "str")], {}, "takes the names of genres"),
        (
            [ModelInput("mask", (None, None), "float32"), ModelInput("movies", (None, 100), "float32")],
            {},
            "'mask' looks like a mask, but no input takes the indices",
        ),
    ],
)
def test_what_cannot_be_told_is_named(given: list[ModelInput], tables: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        told(*given, **tables)


def test_genres_cannot_be_told_without_the_movies() -> None:
    with pytest.raises(UsageError, match="the movies have none; give them with --movies"):
        told(ModelInput("genres", (None, None), "int32"), labels={}, genres=20)


def test_the_draft_has_a_rule_to_correct_for_what_could_not_be_told() -> None:
    inputs = ModelInput("movies", (None, None), "int32"), ModelInput("zeta", (None, 7), "float32")
    with pytest.raises(UntoldError) as raised:
        told(*inputs, movies=101)
    assert raised.value.draft.inputs == (
        InputRule("movies", "movies", "indices", "int32", first=1),
        InputRule("zeta", "movies", "multi_hot", "float32", size=7),
    )
    again = parse_declaration(raised.value.draft.to_json().encode(), name="input.json")
    assert again == raised.value.draft
    with pytest.raises(UntoldError) as raised:
        told(ModelInput("x", (None, 50), "int32"))
    assert raised.value.draft.inputs == (InputRule("x", "movies", "indices", "int32", length=50),)
