"""The numbers of a data set worked by hand, and the three commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedstore.cli import run
from embedstore.loaders import load
from embedstore.loaders.describe import describe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,5,86400\n1,2,3,172800\n2,1,1,86400\n2,1,2,259200\n"
    )
    (tmp_path / "set" / "movies.csv").write_text(
        "movieId,title,genres\n1,One (1990),Drama|Comedy\n2,Two,Drama\n3,Three,(no genres listed)\n"
    )
    return tmp_path / "set"


def test_counts_by_hand(folder: Path) -> None:
    found = describe(load(folder))
    assert (found["n_users"], found["n_movies"], found["n_rated_movies"], found["n_ratings"]) == (2, 3, 2, 3)
    assert found["n_duplicates"] == 1
    assert found["density"] == 3 / (2 * 2)
    assert (found["first_date"], found["last_date"]) == ("1970-01-02", "1970-01-04")
    assert found["ratings"]["50"] == 3  # of 2, 3, 5
    assert found["ratings_per_user"]["100"] == 2
    assert found["top_genres"] == [
        {"genre": "Drama", "n_movies": 2, "n_ratings": 3},
        {"genre": "Comedy", "n_movies": 1, "n_ratings": 2},
    ]
    assert (found["n_movies_without_year"], found["n_movies_without_genres"]) == (2, 1)


def test_describe_prints_json_and_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "describe", "set", "--data", str(folder.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_ratings"] == 3
    assert run(["data", "describe", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "75.0000%" in out
    assert "Drama" in out


def test_validate_exits_1_on_errors_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "validate", str(folder)]) == 0
    assert "ratings.csv, line 5: user 2 rated movie 1 before" in capsys.readouterr().out
    with open(folder / "ratings.csv", "a") as file:
        file.write("3,1,x,5\n3,1,y,5\n")
    assert run(["data", "validate", str(folder), "--json", "--limit", "1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["n_errors"], found["n_warnings"], len(found["problems"])) == (2, 1, 1)


def test_a_data_set_that_is_not_there_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "describe", "ml-1m", "--data", str(tmp_path)]) == 3
    assert "embedstore data fetch ml-1m" in capsys.readouterr().err


def test_fetch_of_an_unknown_name_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "fetch", "nope", "--data", str(tmp_path)]) == 2
    assert "expected one of ml-100k" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
