"""Movies without ratings, from `train -P cold=true` to the answers of `query`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run

TRAIN = ["train", "--data", "movies", "--preset", "linear", "-P", "embedding_dim=8", "-P", "cold=true"]
NEW = 500


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two kinds of users and movies; movie 500 is new, and of 501 nothing is known."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    folder = tmp_path / "movies"
    folder.mkdir()
    genres = ("Comedy", "Horror")
    movies = [f"{movie},Film {movie} ({1950 + movie % 50}),{genres[movie % 2]}" for movie in range(1, 101)]
    movies += [f"{NEW},New (2000),Horror", f"{NEW + 1},Unheard,(no genres listed)"]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")
    ratings = [
        f"{user},{movie},{5 if movie % 2 == user % 2 else 2},{rng.integers(10**9)}"
        for user in range(1, 81)
        for movie in rng.choice(np.arange(1, 101), 30, replace=False).tolist()
    ]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]) + "\n")
    return folder


def trained(capsys: pytest.CaptureFixture[str]) -> tuple[Run, str]:
    assert embedstore(TRAIN) == 0
    text = capsys.readouterr().out
    return Run.load(text.split()[4]), text


def test_train_says_what_is_cold_and_how_well_such_movies_are_ranked(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, text = trained(capsys)
    assert "cold: vectors of 1 movie without ratings predicted; 1 has nothing to predict from" in text
    assert "of 10 rated movies held out whole: NDCG@10 " in text
    cold = run.manifest.metrics["cold"]
    assert (cold["n"], cold["n_untold"], cold["measured"]["held_out"]) == (1, 1, 10)
    assert cold["measured"]["ndcg@10"] > cold["measured"]["random"]["ndcg@10"]
    assert run.movies.ids(np.flatnonzero(run.cold)) == [NEW]


def test_the_other_metrics_and_the_known_are_those_without_cold(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = trained(capsys)
    assert embedstore([*TRAIN, "-P", "cold=false"]) == 0
    plain = Run.load(capsys.readouterr().out.split()[4])
    assert {**run.manifest.metrics, "cold": None} == {**plain.manifest.metrics, "cold": None}
    assert "cold" not in plain.manifest.metrics
    assert run.movie_vectors[:100].tobytes() == plain.movie_vectors.tobytes()
    assert run.tower(run.history(3)).tobytes() == plain.tower(plain.history(3)).tobytes()


def test_query_marks_a_cold_movie_in_every_format(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(capsys)
    query = ["query", "--history", f"{NEW},1", "--include-seen", "-k", "200"]
    assert embedstore(["sync"]) == 0
    capsys.readouterr()
    assert embedstore([*query, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recommendations"]
    assert {movie["movie_id"]: movie["cold"] for movie in found if "cold" in movie} == {NEW: True}
    assert embedstore(query) == 0
    assert capsys.readouterr().out.count("(new)") == 1
    assert embedstore([*query, "--csv"]) == 0
    alone = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    (data / "people.jsonl").write_text(json.dumps({"history": [NEW, 1]}) + "\n")
    assert embedstore(["query", "--users-file", "movies/people.jsonl", *query[3:], "--csv"]) == 0
    many = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    for rows in (alone, many):
        assert [row["movie_id"] for row in rows if row["cold"] == "true"] == [str(NEW)]
        assert sum(row["cold"] == "false" for row in rows) == 100
    assert embedstore(["similar", "1", "-k", "200", "--json"]) == 0
    similar = json.loads(capsys.readouterr().out)["similar"]
    assert [movie["movie_id"] for movie in similar if movie.get("cold")] == [NEW]
    assert embedstore(["verify"]) == 0


def test_a_data_set_without_movies_is_refused_in_one_sentence(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "movies.csv").unlink()
    assert embedstore(TRAIN) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "cold movies are predicted from genres, year and title words" in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()
