"""examples/two_tower.py, from the first line to the last, and what it says can be typed after it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from embedstore.loaders import load
from embedstore.runs.run import Run
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare
from tests.examples.tastes import EXAMPLES, environment, write_ratings

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the example once; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("two_tower")
    data = prepare(load(write_ratings(folder / "data")), TrainConfig())
    user_id = data.dataset.users.values[data.split.train[0]]
    script = EXAMPLES / "two_tower.py"
    return folder, _run(folder, "python", script, "--data", "data", "--user", str(user_id), "--epochs", "60")


def _run(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder / "bin"), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _ask(folder: Path, *options: str) -> tuple[list[int], list[float]]:
    answer = json.loads(
        _run(
            folder,
            *("embedstore", "query", *options),
            *("--runs", "two_tower/runs", "--store", "two_tower/store", "--json"),
        )
    )
    found = answer["recommendations"]
    return [movie["movie_id"] for movie in found], [movie["score"] for movie in found]


def test_new_users_are_served_better_than_by_popularity(done: tuple[Path, str]) -> None:
    table = {line[:20].strip(): line.split()[-2:] for line in done[1].splitlines() if " 0." in line[20:]}
    known, new = ({name: float(row[column]) for name, row in table.items()} for column in (0, 1))
    assert new["fold in, mean of E_j"] > new["popularity"] + 0.1
    assert new["solve, against V"] > new["popularity"] + 0.1
    assert known["user tower, by id"] > known["popularity"] + 0.1
    assert new["user tower, by id"] < new["popularity"]  # the same vector for everybody


def test_the_answers_are_the_brute_force_over_its_own_files(done: tuple[Path, str]) -> None:
    folder = done[0]
    vectors, rows, psi = (np.load(folder / "two_tower" / f"{name}.npy") for name in ("V", "E", "psi"))
    bare, folded = (Run.load(path) for path in sorted((folder / "two_tower" / "runs").iterdir()))
    ids = folded.movies.values
    assert (bare.manifest.tower, folded.manifest.tower) == ("none", "additive")
    history = np.searchsorted(ids, [3, 9, 21])
    for options, query, watched in (
        (("--vector", "two_tower/psi.npy"), psi, []),
        (("--history", "3,9,21"), rows[history].mean(axis=0), history),
    ):
        scores = vectors @ query
        scores[watched] = -np.inf
        best = np.argsort(-scores)[:10]
        found, theirs = _ask(folder, *options)
        assert found == ids[best].tolist()
        assert theirs == pytest.approx(scores[best].tolist(), abs=1e-4)
