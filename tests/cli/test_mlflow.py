"""`mlflow log`, and `plan` and `sync` of a name in MLflow, as a person types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.evaluation import add_evaluation
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from tests.builders import tiny_run
from tests.cli.test_keys import talk
from tests.keys import KEY
from tests.mlflow_store import EVALUATION, logged_run, new_store

Capture = pytest.CaptureFixture[str]
OLD, NEW = "20260101t000000-000a", "20260102t000000-000b"
CHAMPION = "mlflow:/movies@champion"


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run on the machine that trains, which is the current folder."""
    new_store(tmp_path, monkeypatch)
    made = logged_run(tmp_path, run_id=OLD)
    of_its_data = EVALUATION["next-session"] | {"dataset": {"sha256": made.manifest.dataset["sha256"]}}
    add_evaluation(made.path, {"next-session": of_its_data})
    return made


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a machine that serves; EMBEDSTORE_RUNS and _STORE are in it, and it holds nothing."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setenv("EMBEDSTORE_RUNS", str(folder / "runs"))
    monkeypatch.setenv("EMBEDSTORE_STORE", str(folder / "store"))
    return folder


def told(capsys: Capture, *arguments: str, code: int = 0) -> tuple[str, str]:
    assert embedstore(arguments) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def log(capsys: Capture, run: str, *more: str) -> str:
    """Log a run of this folder, whatever the environment says of another."""
    return told(capsys, "mlflow", "log", run, "--runs", "runs", *more)[0]


def answers(capsys: Capture, *more: str) -> object:
    found: object = json.loads(told(capsys, "query", "--user", "3", "--json", *more)[0])
    assert found
    return found


def test_a_run_that_an_alias_names_answers_elsewhere_to_the_last_bit(
    capsys: Capture, old: Run, elsewhere: Path
) -> None:
    here = ["--runs", "runs", "--store", "store"]
    told(capsys, "sync", *here)
    assert log(capsys, OLD, "--register", "movies", "--set-alias", "champion").splitlines()[2:] == [
        "model movies: version 1, new",
        "mlflow:/movies@champion -> version 1",
    ]
    out, err = told(capsys, "sync", CHAMPION, "--gate", "next-session:ndcg@100>=0.7")
    assert "gate next-session:ndcg@100>=0.7 passed: next-session:ndcg@100 is 0.75" in out
    assert out.endswith(f"alias movies -> movies__{OLD}\n")
    assert err == f"version 1 of model movies in MLflow: run {OLD} downloaded into {elsewhere / 'runs'}\n"
    with open_store(elsewhere / "store") as store:
        assert store.metadata(store.live("movies").collection).fingerprint == old.fingerprint
    assert answers(capsys) == answers(capsys, *here)
    out, err = told(capsys, "sync", CHAMPION)
    assert out.startswith(f"movies__{OLD}: unchanged, 40 points, nothing to write\n")
    assert err == ""


def test_sync_serves_what_the_alias_was_moved_to(capsys: Capture, tmp_path: Path, elsewhere: Path) -> None:
    logged_run(tmp_path, run_id=NEW, seed=3)
    log(capsys, OLD, "--register", "movies", "--set-alias", "champion")
    told(capsys, "sync", CHAMPION)
    out = log(capsys, NEW, "--register", "movies", "--set-alias", "champion")
    assert out.endswith("mlflow:/movies@champion -> version 2 (before: 1)\n")
    out, _ = told(capsys, "sync", CHAMPION)
    assert out.endswith(f"alias movies -> movies__{NEW} (before: movies__{OLD})\n")
    out, _ = told(capsys, "sync", "mlflow:/movies/1", "--debias", "0.5")
    assert out.endswith(f"alias movies -> movies__{OLD}_debias0.50 (before: movies__{NEW})\n")


def test_plan_writes_nothing(capsys: Capture, elsewhere: Path) -> None:
    log(capsys, OLD, "--register", "movies", "--set-alias", "champion")
    out, err = told(capsys, "plan", CHAMPION, "--gate", "next-session:ndcg@100>0.9")
    assert out.splitlines() == [
        f"collection movies__{OLD}: create",
        "points: 40 in all, write 40",
        f"alias movies: new -> movies__{OLD}",
        "gate next-session:ndcg@100>0.9 failed: next-session:ndcg@100 is 0.75, wanted > 0.9",
    ]
    assert err == ""
    assert list(elsewhere.iterdir()) == []


def test_a_log_says_what_it_wrote(capsys: Capture, tmp_path: Path) -> None:
    out = log(capsys, OLD, "--experiment", "nightly")
    first, second = out.splitlines()
    assert first.startswith(f"run {OLD} in sqlite:///{tmp_path}/mlflow.db: created, 7 params, 15 points of ")
    assert second.startswith("experiment nightly, MLflow run ")
    again = json.loads(log(capsys, OLD, "--experiment", "nightly", "--json"))
    assert (again["state"], again["points"], again["files"]) == ("unchanged", 0, 0)
    assert log(capsys, OLD, "--experiment", "nightly").splitlines() == [
        f"run {OLD} in sqlite:///{tmp_path}/mlflow.db: unchanged, nothing to write",
        second,
    ]


def test_what_is_cut_is_said(capsys: Capture, tmp_path: Path) -> None:
    tiny_run(tmp_path, run_id=NEW, config={"note": "x" * 7000})
    _, err = told(capsys, "mlflow", "log")
    assert err == "longer than MLflow takes, and cut: note\n"


def test_the_tracking_store_is_named_by_flag_or_environment(
    capsys: Capture, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of-the-environment")
    out = log(capsys, OLD, "--register", "movies", "--tracking-uri", uri)
    assert "experiment of-the-environment, " in out
    assert told(capsys, "plan", "mlflow:/movies/1", "--tracking-uri", uri)[0].startswith(
        "collection movies__"
    )
    told(capsys, "sync", "mlflow:/movies/1", code=3)
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        (["sync", "mlflow:/films@champion"], 3, "has no registered model 'films'"),
        (
            ["plan", "mlflow:/movies@best"],
            3,
            "model 'movies' in MLflow has no alias 'best'; its aliases: none",
        ),
        (["sync", "mlflow:/movies"], 2, "expected mlflow:/NAME@ALIAS or mlflow:/NAME/VERSION"),
        (["runs", "show", "mlflow:/movies/1"], 2, "only `plan` and `sync` take mlflow:/movies/1, a name in "),
        (["query", "--user", "3", "--run", "mlflow:/movies/1"], 2, "only `plan` and `sync` take mlflow:"),
        (
            ["promote", "mlflow:/movies/1"],
            2,
            "only `plan` and `sync` take mlflow:/movies/1, a name in MLflow",
        ),
        (
            ["evaluate", "mlflow:/movies/1"],
            2,
            "only `plan` and `sync` take mlflow:/movies/1, a name in MLflow",
        ),
        (["mlflow", "log", "--set-alias", "champion"], 2, "name it with --register"),
        (["mlflow", "log", "20250101"], 3, "no run '20250101' in runs"),
        (["mlflow", "log", "--tracking-uri", "x://y"], 2, "MLflow at x://y does not take this"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: Capture, command: list[str], code: int, sentence: str) -> None:
    told(capsys, "sync")
    told(capsys, "mlflow", "log", "--register", "movies")
    out, err = told(capsys, *command, code=code)
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_damaged_artefact_writes_nothing_to_the_store(capsys: Capture, elsewhere: Path) -> None:
    log(capsys, OLD, "--register", "movies")
    (path,) = Path("mlruns").glob("*/*/artifacts/embedstore/*/movie_vectors.npy")
    shutil.copy(path.with_name("history_vectors.npy"), path)
    _, err = told(capsys, "sync", "mlflow:/movies/1", code=4)
    assert "version 1 of model movies in MLflow is not what was sealed: " in err
    assert not (elsewhere / "store").exists()
    assert list((elsewhere / "runs").iterdir()) == []


def test_a_password_is_nowhere_and_nothing_else_is_printed(tmp_path: Path) -> None:
    uri = f"http://anna:{KEY}@127.0.0.1:9"
    commands = [["mlflow", "log"], ["sync", "mlflow:/movies@champion"], ["plan", "mlflow:/movies/1"]]
    codes, said = talk(commands, tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert codes == [5, 5, 5]
    assert said.count("Traceback") == 3
    assert KEY not in said
    assert said.count("\nError: MLflow at http://***@127.0.0.1:9 does not answer") == 3
