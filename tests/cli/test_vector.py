"""query --vector, and what every command says of a run without tower."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import tiny_dataset, tiny_run, without_tower, written

OLD, LIVE, NEXT = "20240101t000000-aaaa", "20250101t000000-bbbb", "20260101t000000-cccc"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    written(folder / "data" / "tiny", tiny_dataset())
    without_tower(tiny_run(folder, run_id=NEXT, seed=2))
    with open_store(folder / "store", create=True) as store:
        sync(tiny_run(folder, run_id=OLD), store)
        sync(without_tower(tiny_run(folder, run_id=LIVE, seed=1)), store)
    np.save(folder / "psi.npy", np.array([1, -2, 0.5, 3]))
    np.save(folder / "rows.npy", np.array([[1, -2, 0.5, 3], [-1, 2, -0.5, -3]], np.float16))
    return folder


@pytest.fixture
def run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A live run without tower, after one with an additive one, and before another without."""
    subprocess.run(["cp", "-r", "--sparse=always", prepared, tmp_path / "work"], check=True)
    monkeypatch.chdir(tmp_path / "work")
    return Run.load(Path("runs") / LIVE)


def best(run: Run, *psi: float) -> list[Any]:
    scores = run.movie_vectors @ np.array(psi, np.float32)
    return [int(run.movies.values[row]) for row in np.argsort(-scores)]


def answered(capsys: Capture, *arguments: str) -> Any:
    assert embedstore(["query", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_vector_is_answered_where_there_is_only_the_store(run: Run, capsys: Capture) -> None:
    expected = best(run, 1, -2, 0.5, 3)[:3]
    shutil.rmtree("runs")
    answer = answered(capsys, "--vector", "psi.npy", "-k", "3", "--json")
    assert (answer["vector"], answer["run_id"]) == (True, LIVE)
    found = [movie["movie_id"] for movie in answer["recommendations"]]
    assert found == expected
    left = answered(capsys, "--vector", "psi.npy", "-k", "2", "--exclude", f"{found[0]},x", "--json")
    assert [movie["movie_id"] for movie in left["recommendations"]] == found[1:]
    assert embedstore(["query", "--vector", "psi.npy", "--filter", "genre=Comedy", "--diverse", ".4"]) == 0
    assert f"A vector; answered by run {LIVE}, diverse 0.4\n" in capsys.readouterr().out
    assert embedstore(["query", "--vector", "psi.npy", "--csv", "-k", "3"]) == 0
    assert [line.split(",")[1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        str(movie_id) for movie_id in found
    ]
    assert not Path("runs").exists()


def test_several_vectors_are_answered_in_their_order(run: Run, capsys: Capture) -> None:
    alone = answered(capsys, "--vector", "psi.npy", "--json")
    assert embedstore(["query", "--vector", "rows.npy"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["vector"], second["vector"]) == (0, 1)
    assert first["recommendations"] == alone["recommendations"]
    assert second["recommendations"][0]["movie_id"] == best(run, -1, 2, -0.5, -3)[0]
    for name in ("answers.jsonl", "answers.csv", "answers.parquet"):
        assert embedstore(["query", "--vector", "rows.npy", "-k", "3", "-o", name]) == 0
    lines = Path("answers.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["vector", *"000111"]
    assert len(Path("answers.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("text", ["1 -2 .5 3", "[1, -2, 0.5, 3]", "1,-2,\n0.5,3\n", "[ 1. -2.\n  0.5 3. ]"])
def test_a_vector_comes_through_a_pipe(
    run: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for content in (text.encode(), Path("psi.npy").read_bytes()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        answer = answered(capsys, "--vector", "-", "-k", "1", "--json")
        assert answer["recommendations"][0]["movie_id"] == best(run, 1, -2, 0.5, 3)[0]


def test_what_embed_prints_is_asked_of_its_own_run(run: Run, capsys: Capture) -> None:
    assert embedstore(["embed", "--run", OLD, "--user", "3", "-o", "psi.jsonl"]) == 0
    expected = answered(capsys, "--run", OLD, "--user", "3", "--include-seen", "--json")
    answer = answered(capsys, "--run", OLD, "--vector", "psi.jsonl", "--json")
    assert answer["recommendations"] == expected["recommendations"]
    assert embedstore(["query", "--vector", "psi.jsonl"]) == 2
    assert f"is psi(X) of run {OLD}, 'movies__{LIVE}' holds run {LIVE}; say --run" in capsys.readouterr().err


NONE = (
    "has no user tower to make psi(X) of a history; `embedstore query --vector` takes one made elsewhere, and"
)
VECTOR = ["query", "--vector", "psi.npy"]
BAD = [
    (["query", "--vector", "none.npy"], 2, "vector file none.npy cannot be read: No such file"),
    (["query", "--vector", "runs"], 2, "vector file runs cannot be read: Is a directory"),
    (["query", "--vector", f"runs/{LIVE}/manifest.json"], 1, "cannot be read as a vector"),
    (["query", "--vector", f"runs/{LIVE}/movie_ids.npy"], 2, f"40 numbers, run {LIVE} has embedding_dim 4"),
    (["query", "--vector", f"runs/{LIVE}/histories/movie_rows.npy"], 2, "numbers, run"),
    ([*VECTOR, "--explain"], 2, "explain needs the movies that were watched, and a vector tells none"),
    ([*VECTOR, "--include-seen"], 2, "include_seen needs the movies"),
    ([*VECTOR, "--user", "3"], 2, "one of --user, --history, --history-file, --users-file, --vector"),
    ([*VECTOR, "-k", "0"], 2, "k is 0"),
    ([*VECTOR, "--run", "2019"], 3, "no run '2019'"),
    ([*VECTOR, "--run", NEXT], 3, f"movies__{NEXT}"),
    ([*VECTOR, "--alias", "films"], 3, "alias 'films' is not in the store"),
    (["query", "--vector", "rows.npy", "-o", "a.txt"], 2, "has the extension '.txt'"),
    # a run without tower
    (["query", "--user", "3"], 1, NONE),
    (["query", "--user", "nobody"], 1, NONE),
    (["query", "--history", "3,4"], 1, NONE),
    (["query", "--users-file", f"runs/{LIVE}/movies.jsonl"], 1, NONE),
    (["embed", "--user", "3"], 1, NONE),
    (["embed", "--run", LIVE, "--history", "3"], 1, NONE),
    (["evaluate", LIVE], 1, NONE),
    (["export", LIVE, "--npz"], 1, NONE),
    (["export", LIVE, "--onnx"], 1, NONE),
    (["compare-live", OLD], 1, NONE),
    (["compare-live", NEXT], 1, NONE),
    (["runs", "compare", OLD, LIVE], 1, "does not say which users its training held out"),
    (
        ["contract", "--snippet", "history", "--language", "curl"],
        3,
        f"run {LIVE} has no user tower, so Qdrant",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "sentence"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_what_cannot_be_answered_is_one_sentence(
    run: Run, capsys: Capture, arguments: list[str], code: int, sentence: str
) -> None:
    assert embedstore(arguments) == code
    found = capsys.readouterr()
    assert sentence in found.err
    assert (found.err.count("\n"), found.out) == (1, "")
    assert sorted(path.name for path in Path().iterdir()) == ["data", "psi.npy", "rows.npy", "runs", "store"]


def test_what_works_without_a_tower(run: Run, capsys: Capture) -> None:
    for arguments in (
        ["similar", "3"], ["verify"], ["status"], ["contract"], ["doctor"], ["history"], ["plan", NEXT],
        ["runs", "show", LIVE, "--norms"], ["sync", NEXT, "--debias", ".3"], ["rollback"], ["sync", NEXT],
    ):  # fmt: skip
        assert embedstore(arguments) == 0, arguments
        out = capsys.readouterr().out
        assert "none tower" not in out
    assert embedstore(["contract"]) == 0
    assert "no user tower; metric" in (out := capsys.readouterr().out)
    assert "`embedstore query --vector` asks by it; `similar` needs none" in out


def test_a_gate_on_what_needs_a_tower_says_so(run: Run, capsys: Capture) -> None:
    for gate in ("overlap@10>=0.1", "ndcg@100>=popularity"):
        assert embedstore(["sync", NEXT, "--gate", gate]) == 4
        found = capsys.readouterr()
        assert f"gate {gate} failed: run " in found.out + found.err
        assert NONE in found.out + found.err


def test_it_is_restored_for_similar(run: Run, capsys: Capture) -> None:
    assert embedstore(["similar", "3", "--json"]) == 0
    expected = capsys.readouterr().out
    shutil.rmtree(Path("runs") / LIVE)
    assert embedstore(["doctor"]) == 0
    assert f"`embedstore runs restore movies__{LIVE}` makes it" in capsys.readouterr().out
    assert embedstore(["runs", "restore"]) == 0
    capsys.readouterr()
    assert embedstore(["similar", "3", "--json"]) == 0
    assert capsys.readouterr().out == expected
    assert embedstore(["query", "--history", "3"]) == 1
    assert NONE in capsys.readouterr().err
