"""The collection contract is public: what is held here, other apps rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.data.dataset import Movie
from embedstore.errors import StoreError, UsageError
from embedstore.query.recommend import Recommendation, recommendations_of
from embedstore.stores.base import Hit
from embedstore.stores.contract import (
    SCHEMA_VERSION,
    Metadata,
    Spread,
    collection_name,
    payload,
    point_id,
    points,
    valid_alias,
)
from tests.builders import tiny_dataset, tiny_run, with_unrated


def metadata(**changes: object) -> Metadata:
    content = {
        "schema": SCHEMA_VERSION,
        "state": "building",
        "run_id": "20260101t000000-0000",
        "dim": 4,
        "count": 40,
        "tower": "additive",
        "fingerprint": "ab",
    }
    return Metadata.from_dict(content | changes, name="c")


def test_unsigned_integers_are_their_own_point_id() -> None:
    assert point_id(0) == 0
    assert point_id(2**64 - 1) == 2**64 - 1


def test_other_movie_ids_become_uuid5_which_must_never_change() -> None:
    assert point_id("tt0111161") == "c8d175cb-3e2d-5084-8b99-3ad852f10e9e"
    assert point_id(-5) == point_id("-5")
    assert isinstance(point_id(2**64), str)


def test_the_name_of_a_collection_names_its_run() -> None:
    assert collection_name("movies", "20260101t000000-0000") == "movies__20260101t000000-0000"


@pytest.mark.parametrize("alias", ["", ".x", "a/b", "../a", "a b", "é", "a" * 101, "a\n"])
def test_an_alias_that_is_no_file_name_is_refused(alias: str) -> None:
    with pytest.raises(UsageError, match="alias"):
        valid_alias(alias)


def test_metadata_survive_a_round_trip() -> None:
    made = metadata(recall={"k": 10, "value": 1.0})
    assert Metadata.from_dict(made.to_dict(), name="c") == made


def test_metadata_of_a_newer_version_are_refused() -> None:
    with pytest.raises(StoreError, match="upgrade embedstore"):
        metadata(schema=SCHEMA_VERSION + 1)


def test_metadata_without_a_field_are_refused_by_its_name() -> None:
    with pytest.raises(StoreError, match="lack run_id"):
        Metadata.from_dict(
            {"schema": 1, "state": "sealed"} | dict.fromkeys(("dim", "count", "tower", "fingerprint")),
            name="c",
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state", "done"), ("state", ["sealed"]), ("run_id", 5), ("dim", "64"), ("dim", 0), ("dim", True),
        ("dim", 4.0), ("dim", 65_537), ("count", None), ("count", -1), ("tower", {}), ("fingerprint", 7),
        ("schema", "1"), ("debias", "x"), ("pinned", "yes"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_meant_are_refused_by_name_and_value(key: str, value: object) -> None:
    with pytest.raises(StoreError) as raised:
        metadata(**{key: value})
    assert f"have the {key} {value!r}, expected " in str(raised.value)
    assert str(raised.value).endswith("; delete the collection and run `embedstore sync` again")


def test_what_is_told_alone_and_cannot_be_meant_is_as_if_it_was_not_there() -> None:
    told = ("created_at", "heartbeat", "tool_version", "search", "recall", "writer", "origin", "measured_on")
    assert metadata(**{key: [1] for key in told}, metrics={"ndcg@100": "high"}) == metadata()


@pytest.fixture
def stored() -> Any:
    """What schema 1 wrote, as literals that never change."""
    path = Path(__file__).parent.parent / "data" / "contract" / "schema1.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_metadata_of_schema_1_are_read_for_ever(stored: Any) -> None:
    assert Metadata.from_dict(stored["metadata"], name="c") == Metadata(
        state="sealed",
        run_id="20261124t031500-1a2b",
        dim=32,
        count=1682,
        tower="additive",
        fingerprint="96e676a868858bd2a6a3dcd3ea0c3f8b5d1c0f3a7a0e6a1f0e9b0b8a4c6d2e11",
        created_at="2026-11-24T03:16:02+00:00",
        heartbeat="2026-11-24T03:16:04+00:00",
        tool_version="0.1.0",
        search={"exact": False, "m": 32, "ef": 256},
        recall={"k": 100, "value": 0.981, "at_10": 0.999},
        schema=1,
    )


def test_the_least_metadata_of_schema_1_are_enough(stored: Any) -> None:
    read = Metadata.from_dict(stored["least_metadata"], name="c")
    assert (read.state, read.dim, read.spec.additive, read.heartbeat) == ("building", 2, False, "")
    assert (read.search, read.recall) == ({"exact": True, "m": 0, "ef": 0}, None)


def test_a_debiased_collection_of_schema_1_says_so_for_ever(stored: Any) -> None:
    read = Metadata.from_dict(stored["debiased_metadata"], name="c")
    assert (read.debias, read.reference) == (0.5, "20261124t031500-1a2b_debias0.50")
    assert Metadata.from_dict(stored["metadata"], name="c").reference == "20261124t031500-1a2b"


def test_points_of_schema_1_are_written_and_read_for_ever(stored: Any) -> None:
    for point in stored["points"]:
        content = point["payload"]
        line = {key: content[key] for key in ("title", "year", "genres", "popularity")}
        assert payload(line, movie_id=content["movie_id"], run_id=content["run_id"]) == content
        assert point_id(content["movie_id"]) == point["id"]
        assert recommendations_of([Hit(content["movie_id"], 0.5, content)]) == [
            Recommendation(
                1, content["movie_id"], 0.5, content["title"], content["year"], tuple(content["genres"])
            )
        ]


def test_what_other_hands_say_of_a_movie_is_left_out_where_it_cannot_be_meant() -> None:
    odd = {"title": {"a": 1}, "year": "1990", "genres": ["Drama", 3, None]}
    (movie,) = recommendations_of([Hit(1, 0.5, odd)])
    assert (movie.title, movie.year, movie.genres) == (None, None, ("Drama",))
    assert recommendations_of([Hit(1, 0.5, {"genres": 3})])[0].genres == ()


def test_a_cold_movie_says_so_and_the_others_say_nothing(tmp_path: Path) -> None:
    dataset = with_unrated(tiny_dataset(), Movie("New", 2024, ("Drama",)))
    known, new = points(tiny_run(tmp_path, dataset=dataset, cold=True), 39, 41).payloads
    assert "cold" not in known
    assert (new["cold"], new["popularity"]) == (True, 0)
    assert [movie.cold for movie in recommendations_of([Hit(40, 0.5, known), Hit(41, 0.4, new)])] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("spread", "sentence"),
    [
        ({"shards": 0}, "shards is 0; expected 1 or more"),
        ({"replicas": -1}, "replicas is -1; expected 1 or more"),
        ({"replicas": 2, "write_consistency": 3}, "a write cannot be on 3 of 2 replicas"),
    ],
)
def test_a_spread_that_cannot_be_is_refused(spread: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Spread(**spread)


@pytest.mark.parametrize("additive", [True, False])
def test_points_hold_the_vectors_and_the_payload_of_the_contract(tmp_path: Path, additive: bool) -> None:
    run = tiny_run(tmp_path, n=10, additive=additive)
    batch = points(run, 5, 8)
    assert batch.ids == [6, 7, 8]
    assert np.array_equal(batch.movie_vectors, run.movie_vectors[5:8])
    assert (batch.history_vectors is not None) == additive
    assert batch.payloads[1] == {
        "movie_id": 7,
        "title": None,
        "year": None,
        "genres": [],
        "popularity": int(run.popularity[6]),
        "run_id": run.run_id,
    }
    assert batch.payloads[0]["year"] == 1955  # 1950 + 5
    assert batch.payloads[0]["genres"] == ["Comedy", "Drama"]  # 6 = binary 110
