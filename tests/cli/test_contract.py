"""The contract command: for a person, for a program, and one snippet for a pipe."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from embedstore.cli import run as embedstore
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import tiny_run


@pytest.fixture(params=[True, False], ids=["additive", "dense"])
def additive(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.chdir(tmp_path)
    run = tiny_run(tmp_path, additive=request.param)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
    return bool(request.param)


def test_text_and_json_tell_the_same(additive: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedstore(["contract"]) == 0
    text = capsys.readouterr().out
    assert embedstore(["contract", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [
        "alias", "run_id", "collection", "metric", "point_id", "vectors", "payload", "indexes", "metadata",
        "recipes", "example",
    ]  # fmt: skip
    assert told["indexes"] == {"genres": "keyword", "year": "integer"}
    for recipe in told["recipes"]:
        assert list(recipe) == ["name", "title", "command", "curl", "python", "javascript", "go"]
        assert all(part in text for part in recipe.values())
    for name in (*told["payload"], *told["metadata"], *filter(None, told["vectors"])):
        assert f"  {name} " in text
    assert ("history" in told["vectors"]) == additive
    assert "embedstore sync --store URL" in text


def test_one_snippet_is_printed_alone(additive: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedstore(["contract", "--json"]) == 0
    recipes = json.loads(capsys.readouterr().out)["recipes"]
    for recipe in recipes:
        assert embedstore(["contract", "--snippet", recipe["name"], "--language", "python"]) == 0
        assert capsys.readouterr().out == recipe["python"]


def test_one_language_leaves_the_others_out(additive: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedstore(["contract", "--language", "go"]) == 0
    text = capsys.readouterr().out
    assert "package main" in text
    assert "curl -sS" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--snippet", "embedding"], 2, "--snippet needs a language; expected --language curl, python"),
        (["--alias", "films"], 3, "alias 'films' is not in the store (aliases: movies)"),
        (["--store", "nowhere"], 3, "nowhere"),
        (["--store", "http://user:secret@host"], 2, "holds a password"),
    ],
)
def test_bad_input_is_one_sentence(
    additive: bool, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, sentence: str
) -> None:
    assert embedstore(["contract", *arguments]) == code
    found = capsys.readouterr()
    assert found.out == ""
    assert sentence in found.err
    assert found.err.count("\n") == 1


def test_qdrant_cannot_compute_psi_of_a_dense_tower(
    additive: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    code = embedstore(["contract", "--snippet", "history", "--language", "curl"])
    assert code == (0 if additive else 3)
    if not additive:
        assert "has a dense tower" in capsys.readouterr().err


def test_choices_of_the_options_are_the_recipes_and_languages() -> None:
    from embedstore.cli.contract import contract
    from embedstore.query.snippets import LANGUAGES, RECIPES

    choices = {option.name: option.type for option in contract.params}
    for name, expected in (("language", LANGUAGES), ("snippet", RECIPES)):
        kind = choices[name]
        assert isinstance(kind, click.Choice)
        assert tuple(kind.choices) == tuple(expected)
