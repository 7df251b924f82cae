"""Every command with a run whose psi an ONNX model computes, and which does not know all of the movies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.runs.writer import write_run
from embedstore.training.config import TrainConfig
from tests.builders import tiny_dataset, tiny_run, written
from tests.runs.models import RUN_ID, N, expected, served_tower, write_model

Capture = pytest.CaptureFixture[str]
UNKNOWN = 20  # and all movies after it are unknown to the model, though they can be recommended
DATA = tiny_dataset(n=N, n_users=60)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run in ./runs that was synced to ./store; its data set is in ./data."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "data", DATA)
    positions = np.where(np.arange(N) < UNKNOWN, np.arange(N), -1)
    tower = served_tower(write_model("onnx", tmp_path), positions=positions)
    path = write_run(
        tmp_path / "runs",
        dataset=DATA,
        config={**TrainConfig(test_share=0.4).to_dict(), "preset": "import"},
        movie_vectors=np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32),
        tower=tower,
        metrics={},
        run_id=RUN_ID,
    )
    assert embedstore(["sync"]) == 0
    return Run.load(path)


def said(capsys: Capture, *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert embedstore(list(arguments)) == code
    found = capsys.readouterr()
    return json.loads(found.out) if code == 0 else found.err


def test_scores_are_those_of_brute_force(run: Run, capsys: Capture) -> None:
    told = said(capsys, "query", "--history", "6,8,40", "-k", "5", "--json")
    scores = run.movie_vectors @ expected([5, 7])
    best = [row for row in np.argsort(-scores) if row not in (5, 7, 39)][:5]
    assert [movie["movie_id"] for movie in told["recommendations"]] == [row + 1 for row in best]
    np.testing.assert_allclose([movie["score"] for movie in told["recommendations"]], scores[best], rtol=1e-5)
    assert said(capsys, "embed", "--history", "6,8,40", "--json")["user_embedding"] == expected([5, 7])


def test_an_explanation_is_an_estimate(run: Run, capsys: Capture) -> None:
    told = said(capsys, "query", "--history", "6,8,40", "-k", "2", "--explain", "--json")
    assert told["explanation_kind"] == "estimate"
    for movie in told["recommendations"]:
        vector = run.movie_vectors[movie["movie_id"] - 1]
        by_id = {part["movie_id"]: part["contribution"] for part in movie["explanation"]}
        assert by_id[6] == pytest.approx(vector @ np.subtract(expected([5, 7]), expected([7])), rel=1e-5)
        assert by_id[40] == 0  # the model does not know it


@pytest.mark.usefixtures("run")
def test_a_history_that_the_model_does_not_know_is_one_sentence(capsys: Capture) -> None:
    sentence = "none of the 2 movies of the history is in the vocabulary of the model that computes psi"
    assert sentence in said(capsys, "query", "--history", "30,31", code=2)
    Path("people.jsonl").write_text('{"history": [30, 31]}\n{"history": [6, 8]}\n')
    assert f"people.jsonl, line 1: {sentence}" in said(
        capsys, "query", "--users-file", "people.jsonl", code=2
    )
    told = said(capsys, "query", "--history", "30,31,6", "--json")
    assert told["unknown_movies"] == []


def test_people_are_answered_together_as_one_by_one(run: Run, capsys: Capture) -> None:
    Path("people").write_text("".join(f"{user}\n" for user in run.users.values))
    known = run.tower.knows(DATA.histories)
    first = int(run.users.values[~known][0])
    sentence = (
        f"people, line {np.argmin(known) + 1}: none of the 2 movies of user {first} is in the vocabulary"
    )
    assert sentence in said(capsys, "query", "--users-file", "people", code=2)
    assert embedstore(["query", "--users-file", "people", "--skip-unknown", "--json"]) == 0
    users = [str(user) for user in run.users.values[known]]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["user_id"] for line in lines] == [int(user) for user in users]
    for line, user in list(zip(lines, users, strict=True))[::8]:
        assert line == said(capsys, "query", "--user", user, "--json")


@pytest.mark.usefixtures("run")
def test_it_is_measured_and_the_store_answers_as_the_run(capsys: Capture) -> None:
    arguments = ["evaluate", "--protocol", "serving", "--no-baselines", "--through-store", "--any-data"]
    told = said(capsys, *arguments, "--data", "data", "--json")
    (scores,) = told["protocols"].values()
    assert scores["users"]["scored"] == scores["store"]["same_lists"] > 0
    assert 0 < scores["ndcg@100"] == pytest.approx(scores["store"]["ndcg@100"])
    err = said(capsys, "evaluate", "--protocol", "global-time", "--any-data", "--data", "data", code=1)
    assert f"run {RUN_ID} cannot be trained again" in err


def test_the_rest_of_the_commands_take_it(run: Run, capsys: Capture) -> None:
    assert said(capsys, "runs", "show", "--norms", "--json")["n_users"] > 0
    assert said(capsys, "contract", "--json")["metadata"]["tower"]["value"] == "dense"
    assert said(capsys, "doctor", "--json")
    assert embedstore(["verify"]) == 0
    shutil.rmtree("store")
    tiny_run(Path(), dim=3, run_id="20250101t000000-0000", dataset=DATA)
    assert embedstore(["sync", "20250101t000000-0000"]) == 0
    assert said(capsys, "compare-live", RUN_ID, "--json")["n_users"] > 0
    assert embedstore(["sync"]) == 0
    assert embedstore(["sync", "--debias", "0.5"]) == 0
    assert said(capsys, "query", "--history", "6,8", "--json")["collection"].endswith("_debias0.50")
    assert embedstore(["export", "--onnx"]) == 0
    assert embedstore(["runs", "allow"]) == 0
    assert "computed by no program" in capsys.readouterr().out
    assert embedstore(["gc", "--keep", "0"]) == 0
    run.verify()
