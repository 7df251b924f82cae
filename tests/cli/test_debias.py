"""`--debias`, `--norms` and `--debias-trade` as a person types them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import tiny_run

Capture = pytest.CaptureFixture[str]
RUN = "20240101t000000-aaaa"
HALF = f"{RUN}_debias0.50"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose collection is live in a store here."""
    monkeypatch.chdir(tmp_path)
    made = tiny_run(tmp_path, run_id=RUN)
    with open_store("store", create=True) as store:
        sync(made, store)
    return made


def told(capsys: Capture, *arguments: str) -> str:
    assert embedstore(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_it_is_served_beside_its_run(run: Run, capsys: Capture) -> None:
    assert f"collection movies__{HALF}: create" in told(capsys, "plan", "--debias", "0.5")
    assert f"alias movies -> movies__{HALF} (before: movies__{RUN})" in told(
        capsys, "sync", "--debias", "0.5"
    )
    assert "unchanged" in told(capsys, "sync", "@movies")
    assert f"movies__{HALF}: 40 points" in told(capsys, "verify")
    assert f"movies__{RUN}: 40 points" in told(capsys, "verify", RUN)
    psi = np.float32(json.loads(told(capsys, "embed", "--user", "3", "--json"))["user_embedding"])
    for reference, power in (("@movies", -0.5), ("@movies~1", 0.0), (HALF, -0.5), ("latest", 0.0)):
        answer = json.loads(told(capsys, "query", "--user", "3", "-k", "1", "--json", "--run", reference))
        best = answer["recommendations"][0]
        vector = run.movie_vectors[run.movies.row(best["movie_id"])]
        assert best["score"] == pytest.approx(vector @ psi * np.linalg.norm(vector) ** power, rel=1e-5)
    dot = json.loads(told(capsys, "similar", "1", "--metric", "dot", "--json"))["similar"][0]
    pair = run.movie_vectors[[0, run.movies.row(dot["movie_id"])]]
    scaled = pair / np.linalg.norm(pair, axis=1, keepdims=True) ** 0.5
    assert dot["score"] == pytest.approx(scaled[0] @ scaled[1], rel=1e-5)
    contract = json.loads(told(capsys, "contract", "--json"))
    assert (contract["collection"], contract["metadata"]["debias"]["value"]) == (f"movies__{HALF}", 0.5)
    assert told(capsys, "promote", RUN) == f"alias movies -> movies__{RUN}\n"
    assert told(capsys, "promote", "latest_debias0.5") == f"alias movies -> movies__{HALF}\n"
    assert told(capsys, "rollback") == f"alias movies -> movies__{RUN}\n"
    assert told(capsys, "copy", HALF, "--to", "other").endswith(f"alias movies -> movies__{HALF}\n")


def test_a_run_that_is_served_debiased_is_kept(run: Run, capsys: Capture) -> None:
    told(capsys, "sync", "--debias", "0.5")
    assert embedstore(["runs", "rm", RUN]) == 2
    assert f"run {RUN} is what alias 'movies' serves" in capsys.readouterr().err


def test_norms_in_three_formats_agree(run: Run, capsys: Capture) -> None:
    record = json.loads(told(capsys, "runs", "show", "--norms", "--json"))
    rows = list(csv.DictReader(io.StringIO(told(capsys, "runs", "show", "--norms", "--csv"))))
    assert [float(row["mean_norm"]) for row in rows] == [part["norm"] for part in record["deciles"]]
    text = told(capsys, "runs", "show", "--norms")
    assert [float(line.split()[3]) for line in text.splitlines()[4:14]] == [
        round(part["norm"], 3) for part in record["deciles"]
    ]
    assert f"{record['shown']['coverage@10']:.1%} of the catalog" in text
    assert f"run {HALF}, 40 movies" in told(capsys, "runs", "show", HALF, "--norms")


@dataclass(frozen=True)
class Case:
    arguments: list[str]
    code: int
    sentence: str


AMOUNT = "expected more than 0 and at most 1, with two decimals"
CASES = {
    "nothing": Case(["sync", "--debias", "0"], 2, f"debias is 0; {AMOUNT}"),
    "negative": Case(["plan", "--debias=-0.5"], 2, f"debias is -0.5; {AMOUNT}"),
    "above 1": Case(["sync", "--debias", "1.5"], 2, f"debias is 1.5; {AMOUNT}"),
    "three decimals": Case(["sync", "--debias", "0.125"], 2, f"debias is 0.125; {AMOUNT}"),
    "not a number": Case(["sync", "--debias", "nan"], 2, f"debias is nan; {AMOUNT}"),
    "a word": Case(["sync", "--debias", "half"], 2, "'half' is not a valid float"),
    "twice": Case(["sync", HALF, "--debias", "0.5"], 2, f"run {HALF} is debiased already"),
    "amount in the name": Case(["sync", f"{RUN}_debias7"], 2, f"debias is 7; {AMOUNT}"),
    "not made": Case(
        ["promote", HALF],
        3,
        f"no collection 'movies__{HALF}' in store store, but 'movies__{RUN}' of the same",
    ),
    "not made, asked": Case(["query", "--user", "3", "--run", HALF], 3, f"no collection 'movies__{HALF}'"),
    "no such run": Case(["promote", "2023_debias0.50"], 3, "no run '2023'"),
    "trade of a debiased run": Case(
        ["evaluate", HALF, "--debias-trade", "--any-data"], 2, f"run {HALF} is debiased already"
    ),
    "trade with a store": Case(
        ["evaluate", "--debias-trade", "--through-store"], 2, "--debias-trade has metrics of its own"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_one_sentence(run: Run, capsys: Capture, case: Case) -> None:
    Path("data").mkdir()
    Path("data/ratings.csv").write_text("userId,movieId,rating\n1,2,5\n2,1,4\n")
    assert embedstore(case.arguments) == case.code
    out, message = capsys.readouterr()
    assert (out, message.count("\n")) == ("", 1)
    assert case.sentence in message
    with open_store("store") as store:
        assert (store.collections(), store.live("movies").reference) == ([f"movies__{RUN}"], RUN)


def test_without_vectors_nothing_is_written(run: Run, capsys: Capture) -> None:
    (run.path / "movie_vectors.npy").unlink()
    for arguments in (
        ["sync", "--debias", "0.5", "--store", "new"],
        ["runs", "show", "--norms"],
        ["plan", HALF],
    ):
        assert embedstore(arguments) == 1
        assert "movie_vectors.npy is missing; restore the folder" in capsys.readouterr().err
    with open_store("new") as store:
        assert store.collections() == []
