"""What `embedstore contract` tells, on the embedded store."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from embedstore.errors import NotFoundError
from embedstore.query.contract import METADATA, PAYLOAD, describe
from embedstore.query.recommend import recommend
from embedstore.query.snippets import LANGUAGES, RECIPES, Values, snippet
from embedstore.stores.base import Filters, open_store
from embedstore.stores.connection import endpoints_of
from embedstore.stores.contract import Metadata, payload
from embedstore.sync import sync
from tests.builders import tiny_run

ENDPOINT = endpoints_of("http://qdrant.example:7000")[0]
DOC = Path(__file__).parent.parent.parent / "docs" / "contract.md"


def test_every_metadata_key_and_payload_field_has_a_meaning() -> None:
    assert set(METADATA) == {part.name for part in fields(Metadata)}
    line = {**dict.fromkeys(("title", "year", "genres", "popularity")), "cold": True}
    assert list(PAYLOAD) == list(payload(line, movie_id=1, run_id="r"))


def test_the_document_names_every_key_field_and_recipe() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert [name for name in (*METADATA, *PAYLOAD, *RECIPES) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("text_ids", [False, True], ids=["integer ids", "text ids"])
def test_expected_answers_are_those_of_query(tmp_path: Path, text_ids: bool) -> None:
    run = tiny_run(tmp_path, n=90, text_ids=text_ids)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        told = describe(store, "movies", run, ENDPOINT).to_dict()
        user_id = int(told["example"]["who"].removeprefix("user "))
        for name, include_seen in (("embedding", True), ("history", False)):
            ours = recommend(run, store, user_id=user_id, include_seen=include_seen).recommendations
            expected = [{"movie_id": movie.movie_id, "score": movie.score} for movie in ours]
            assert told["example"]["expected"][name] == expected
    assert told["example"]["history"] == run.movies.ids(run.history(user_id))
    assert np.array_equal(np.float32(told["example"]["psi"]), run.tower(run.history(user_id)))


@pytest.mark.parametrize("additive", [True, False])
def test_without_the_run_folder_popular_movies_fill_the_snippets(tmp_path: Path, additive: bool) -> None:
    run = tiny_run(tmp_path, additive=additive)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        told = describe(store, "movies", None, ENDPOINT)
    rows = run.movies.rows(told.example.history)
    assert run.popularity[rows].min() >= np.sort(run.popularity)[-len(rows)]
    expected = run.tower(rows) if additive else run.movie_vectors[rows[0]]
    np.testing.assert_allclose(told.example.psi, expected, rtol=1e-6)
    assert ("history" in told.vectors()) == additive
    assert [recipe.name for recipe in told.recipes] == [
        name for name in RECIPES if additive or name != "history"
    ]


def test_snippets_name_the_alias_alone_and_no_key(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        told = describe(store, "movies", run, ENDPOINT)
    for recipe in told.recipes:
        assert set(recipe.snippets) == set(LANGUAGES)
        for language, text in recipe.snippets.items():
            assert told.collection not in text
            assert "QDRANT_API_KEY" in text
            assert re.search(r"@[A-Z_]+@", text) is None
            port = "7001" if language == "go" else "http://qdrant.example:7000"
            assert port in text


def test_strings_of_the_data_set_stay_literals() -> None:
    genre = 'Children\'s "x"\n`$(id)` @URL@'
    values = Values(
        url="http://localhost:6333",
        host="localhost",
        grpc_port=6334,
        alias="movies",
        run_id="r",
        who="user a\nimport os",
        history=[1, "c8d175cb-3e2d-5084-8b99-3ad852f10e9e"],
        psi=[0.5, -1e-9],
        integer_ids=False,
        genre=genre,
    )
    texts = {language: snippet("filters", language, values, ["b\nc"]) for language in LANGUAGES}
    assert [language for language, text in texts.items() if json.dumps(genre) not in text] == []
    compile(texts["python"], "snippet", "exec")
    body = json.loads(texts["curl"].partition("<<'JSON'\n")[2].removesuffix("JSON\n"))
    assert body["filter"]["must"] == [{"key": "genres", "match": {"value": genre}}]
    assert body["query"] == [0.5, -1e-9]


def test_an_alias_that_is_not_there_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", create=True) as store, pytest.raises(NotFoundError, match="films"):
        describe(store, "films", None, ENDPOINT)


def test_the_page_is_the_second_half_of_the_query(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, n=200)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        told = describe(store, "movies", run, ENDPOINT)
        recipe = told.recipes[-1]
        genre = re.search(r'"genres", "match": {"value": "([^"]+)"', recipe.snippets["curl"])
        year = re.search(r'"gte": (\d+)', recipe.snippets["curl"])
        assert genre is not None
        assert year is not None
        ours = recommend(
            run,
            store,
            user_id=int(told.example.who.removeprefix("user ")),
            filters=Filters(genres=(genre[1],), years=((">=", int(year[1])),)),
        )
    page = [movie.movie_id for movie in ours.recommendations[5:]]
    assert [hit.movie_id for hit in recipe.expected] == page
    assert page
