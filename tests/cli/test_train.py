"""`train` and what follows it, as typed, on data sets that do not look like MovieLens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedstore.cli import run as embedstore

Capture = pytest.CaptureFixture[str]
Rating = Callable[[bool], float]  # of a movie that the user likes, or does not
SHAPES: dict[str, tuple[Rating, str, str]] = {  # the ratings, the format of user and movie ids
    "implicit": (lambda likes: 1, "{}", "{}"),
    "1 to 10": (lambda likes: 9 if likes else 4, "{}", "{}"),
    "half stars": (lambda likes: 4.5 if likes else 1.5, "{}", "{}"),
    "text ids": (lambda likes: 5 if likes else 2, "anna-{}", "tt{:04}"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, shape: str) -> None:
    """Write 60 users of two tastes, who know 12 of 40 movies each, as a table without times or titles."""
    rating, user_id, movie_id = SHAPES[shape]
    rng = np.random.default_rng(0)
    lines = ["user,item,stars"]
    for user in range(60):
        taste = np.where(np.arange(40) % 2 == user % 2, 4, 1) / 100
        lines += [
            f"{user_id.format(user)},{movie_id.format(movie)},{rating(movie % 2 == user % 2)}"
            for movie in rng.choice(40, 12, replace=False, p=taste).tolist()
        ]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")


COLUMNS = ["--data", "table.csv", "--columns", "user=user,movie=item,rating=stars"]
LINEAR = ["train", *COLUMNS, "--preset", "linear"]


@pytest.mark.parametrize("shape", SHAPES)
def test_train_evaluate_sync_and_query(folder: Path, shape: str, capsys: Capture) -> None:
    write(folder, shape)
    assert embedstore(LINEAR) == 0
    assert embedstore(["evaluate", *COLUMNS, "--baselines", "ease"]) == 0
    assert "next-session is left out: protocol next-session needs times" in capsys.readouterr().out
    assert embedstore(["sync"]) == 0
    person = ["--user", SHAPES[shape][1].format(7)]
    capsys.readouterr()
    assert embedstore(["query", *person, "-k", "3", "--explain", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["recommendations"][0]
    total = sum(part["contribution"] for part in best["explanation"])
    assert total == pytest.approx(best["score"], abs=1e-5)
    assert embedstore(["query", *person, "-k", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()[3].split()[1]
    assert float(shown) == pytest.approx(best["score"], rel=5e-4)  # four digits, however small
    assert len(shown.split(".")[1]) >= 4


@pytest.mark.parametrize("setting", ["half_life", "target_half_life"])
def test_recency_without_times_is_refused(folder: Path, setting: str, capsys: Capture) -> None:
    write(folder, "half stars")
    assert embedstore([*LINEAR, "-P", f"{setting}=5"]) == 1
    assert capsys.readouterr().err == (
        f"Error: setting {setting} needs times, and all 720 ratings of data set 'table' have the same; "
        "leave it out\n"
    )
    assert not (folder / "runs").exists()
