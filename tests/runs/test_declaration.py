"""The declaration of a model's inputs: what stands in the file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import UsageError
from embedstore.runs.declaration import Declaration, InputRule, parse_declaration, read_declaration

IDS = {"name": "ids", "feature": "movies", "form": "indices"}
GENRES = {"name": "g", "feature": "genres", "form": "indices", "labels": ["Action", "Comedy"]}


def text_of(*inputs: dict[str, Any], **rest: Any) -> bytes:
    return json.dumps({"schema": 1, "inputs": list(inputs), **rest}).encode()


def test_a_declaration_is_the_same_after_a_round_trip_and_says_no_defaults(tmp_path: Path) -> None:
    declared = Declaration(
        (
            InputRule("ids", "movies", "indices", "int32", first=2, length=50, side="left", unknown=1),
            InputRule("mask", "movies", "mask", "float32"),
            InputRule(
                "g", "genres", "multi_hot", "float32", labels=("Film-Noir", "Drama"), size=2, values="mean"
            ),
        ),
        vocabulary="vocabulary.txt",
    )
    path = tmp_path / "input.json"
    path.write_text(declared.to_json(), encoding="utf-8")
    assert read_declaration(path) == declared
    mask = json.loads(declared.to_json())["inputs"][1]
    assert mask == {"name": "mask", "feature": "movies", "form": "mask", "dtype": "float32"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "input.json is not a JSON declaration"),
        (b"[]", 'input.json has no list "inputs"'),
        (text_of(), "inputs is empty"),
        (text_of(IDS, schema=2), "has schema 2; this embedstore reads 1"),
        (text_of(IDS, padding=0), "unknown key 'padding'; expected schema, vocabulary and inputs"),
        (text_of(IDS, vocabulary=[1]), r"vocabulary is \[1\]"),
        (text_of({"feature": "movies"}), "rule 1 has no name"),
        (
            text_of({**IDS, "frist": 1}),
            "input 'ids' has an unknown key 'frist'; expected one of name, feature",
        ),
        (
            text_of({"name": "ids", "form": "indices"}),
            "input 'ids' has no feature; expected one of movies, genres",
        ),
        (text_of({**IDS, "feature": "actors"}), "feature is 'actors'; expected one of movies, genres, years"),
        (text_of({**IDS, "dtype": "complex64"}), "dtype is 'complex64'"),
        (text_of({**IDS, "first": -1}), "first is -1; expected a whole number from 0"),
        (text_of({**IDS, "first": None}), "first is None"),
        (text_of({**IDS, "length": 0}), "length is 0; expected a whole number from 1"),
        (text_of({**IDS, "length": True}), "length is True"),
        (text_of({**IDS, "length": 1 << 16}), "length is 65536; expected a whole number from 1 to 65535"),
        (text_of({**IDS, "padding": ""}), "padding is ''; expected a whole number"),
        (text_of({**IDS, "dtype": "str"}), "takes text; expected the form ids"),
        (text_of({**IDS, "form": "ids", "dtype": "str"}), "padding is 0; expected a text"),
        (text_of({**IDS, "form": "multi_hot"}), "has no size"),
        (text_of({**IDS, "labels": ["a"]}), "has labels, which are of genres and years"),
        (text_of({**GENRES, "labels": []}), "has no labels"),
        (text_of({**GENRES, "labels": ["a", "a"]}), "has a label twice"),
        (text_of({**GENRES, "form": "ids"}), "the form ids is of movies"),
        (text_of(IDS, IDS), "input 'ids' has two rules"),
        (text_of({**IDS, "form": "mask"}), "is the mask of movies, of which 0 inputs have the form indices"),
        (
            text_of(IDS, {**IDS, "name": "recent"}, {"name": "m", "feature": "movies", "form": "mask"}),
            "'m' is the mask of movies, of which 2 inputs have the form indices or ids; expected one",
        ),
        (text_of(GENRES, {**GENRES, "name": "h", "labels": ["b"]}), "'g' and 'h' have different labels"),
    ],
)
def test_a_declaration_that_cannot_be_meant_gets_one_sentence(text: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_declaration(text, name="input.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_declaration(tmp_path / "input.json")
