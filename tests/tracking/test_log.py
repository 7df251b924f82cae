"""log_run against MLflow's own SQLite store."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedstore.errors import RunError, UsageError, VerificationError
from embedstore.runs.debias import debiased
from embedstore.runs.evaluation import add_evaluation, evaluation_path
from embedstore.runs.manifest import digest_of
from embedstore.runs.run import Run
from embedstore.tracking import LogReport, log_run
from embedstore.tracking.client import open_client
from embedstore.tracking.content import content_of
from tests.mlflow_store import EVALUATION, artefacts_of, logged_run, new_store

RUN = "20260101t000000-000a"


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with an evaluation, and an empty tracking store."""
    new_store(tmp_path, monkeypatch)
    made = logged_run(tmp_path, run_id=RUN)
    add_evaluation(made.path, EVALUATION)
    return made


def files_of(run: Run) -> dict[str, bytes]:
    """Return what the artefacts of a run are to be."""
    evaluation = evaluation_path(run.path)
    files = [path for path in run.path.rglob("*") if path.is_file()] + [evaluation] * evaluation.exists()
    return {path.relative_to(run.path.parent).as_posix(): path.read_bytes() for path in files}


def check(run: Run, report: LogReport) -> None:
    """Everything about run is in MLflow, in one finished MLflow run, and nothing else."""
    content = content_of(run)
    with open_client(None, create=False) as client:
        experiment = client.get_experiment_by_name(report.experiment)
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        curves = {point.name for point in content.curves}
        told = {
            (name, point.step, point.value)
            for name in curves
            for point in client.get_metric_history(found.info.run_id, name)
        }
    assert found.info.run_id == report.mlflow_run_id
    assert (found.info.status, found.info.run_name) == ("FINISHED", run.run_id)
    assert found.data.params == content.params
    assert found.data.tags.items() >= content.tags.items()
    once = {name: value for name, value in found.data.metrics.items() if name not in curves}
    assert once == {point.name: point.value for point in content.metrics}
    assert told == {(point.name, point.step, point.value) for point in content.curves}
    assert artefacts_of(report.mlflow_run_id) == files_of(run)


def test_a_log_writes_all_of_a_run(run: Run) -> None:
    report = log_run(run)
    check(run, report)
    content = content_of(run)
    assert report.state == "created"
    assert report.experiment == "embedstore"
    assert report.params == len(content.params)
    assert report.points == len(content.metrics) + len(content.curves)
    assert report.tags == len(content.tags)
    assert report.bytes == sum(map(len, files_of(run).values()))


def test_a_second_log_writes_nothing(run: Run, tmp_path: Path) -> None:
    first = log_run(run, model="movies", alias="champion")
    before = {path: (digest_of(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*.*")}
    second = log_run(run, model="movies", alias="champion")
    written = (second.params, second.points, second.tags, second.files, second.bytes)
    assert (second.state, written) == ("unchanged", (0, 0, 0, 0, 0))
    assert (second.version, second.version_made, second.previous, second.alias_moved) == (
        "1",
        False,
        "1",
        False,
    )
    assert second.mlflow_run_id == first.mlflow_run_id
    assert before == {path: (digest_of(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*.*")}


def test_what_was_measured_since_then_is_added(run: Run) -> None:
    first = log_run(run)
    measured = EVALUATION["next-session"] | {"at": "2026-11-25T00:00:00+00:00", "ndcg@100": 0.25}
    add_evaluation(run.path, {"next-session": measured})  # a file of the same size
    second = log_run(run)
    assert (second.state, second.points, second.files) == ("repaired", 1, 1)
    check(run, first)


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_damaged_artefact_is_written_again(run: Run, damage: str) -> None:
    first = log_run(run)
    (path,) = Path("mlruns").glob("*/*/artifacts/embedstore/*/histories/movie_rows.npy")
    path.unlink() if damage == "removed" else path.write_bytes(path.read_bytes()[:100])
    second = log_run(run)
    assert (second.state, second.files) == ("repaired", 1)
    check(run, first)


def test_many_params_and_epochs_are_written_in_batches(tmp_path: Path) -> None:
    config = {f"setting{number}": number for number in range(250)}
    log = [{"epoch": number, "loss": number / 3} for number in range(1, 2200)]
    large = logged_run(tmp_path / "large", config=config, log=log)
    check(large, log_run(large, experiment="large"))


def test_another_run_of_the_same_id_is_refused(run: Run, tmp_path: Path) -> None:
    first = log_run(run)
    other = logged_run(tmp_path / "elsewhere", run_id=RUN, seed=5)
    with pytest.raises(VerificationError, match=rf"experiment 'embedstore' has another run {RUN}"):
        log_run(other)
    check(run, first)


def test_a_run_that_was_deleted_in_mlflow_is_written_anew(run: Run) -> None:
    first = log_run(run)
    with open_client(None, create=False) as client:
        client.delete_run(first.mlflow_run_id)
    second = log_run(run)
    assert second.state == "created"
    assert second.mlflow_run_id != first.mlflow_run_id
    check(run, second)


def test_a_deleted_experiment_is_refused(run: Run) -> None:
    log_run(run)
    with open_client(None, create=False) as client:
        experiment = client.get_experiment_by_name("embedstore")
        assert experiment is not None
        client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UsageError, match="experiment 'embedstore' is deleted in MLflow; restore it there"):
        log_run(run)


def test_a_run_is_registered_once_and_the_alias_moves(run: Run, tmp_path: Path) -> None:
    newer = logged_run(tmp_path, seed=4)
    first = log_run(run, model="movies", alias="champion")
    second = log_run(newer, model="movies", alias="champion")
    assert (first.version, first.alias_moved, first.previous) == ("1", True, None)
    assert (second.version, second.alias_moved, second.previous) == ("2", True, "1")
    back = log_run(run, model="movies", alias="champion")
    assert (back.state, back.version, back.version_made, back.previous) == ("unchanged", "1", False, "2")
    with open_client(None, create=False) as client:
        assert {name: str(v) for name, v in client.get_registered_model("movies").aliases.items()} == {
            "champion": "1"
        }
        (known,) = client.search_model_versions(f"run_id='{first.mlflow_run_id}'")
    assert str(known.source).endswith(f"/{first.mlflow_run_id}/artifacts/embedstore")
    assert known.tags == {"embedstore.run_id": RUN, "embedstore.fingerprint": run.fingerprint}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"model": "a/b"}, "'a/b' cannot name a registered model"),
        ({"model": "a@b"}, "'a@b' cannot name a registered model"),
        ({"model": ""}, "'' cannot name a registered model"),
        ({"alias": "champion"}, "name it with --register"),
        ({"model": "m", "alias": "latest"}, "'latest' cannot be an alias"),
        ({"model": "m", "alias": "v12"}, "'v12' cannot be an alias"),
        ({"model": "m", "alias": "a b"}, "'a b' cannot be an alias"),
    ],
)
def test_names_are_refused_before_anything_is_written(run: Run, names: dict[str, str], told: str) -> None:
    before = digest_of(Path("mlflow.db"))
    with pytest.raises(UsageError, match=told):
        log_run(run, **names)
    assert digest_of(Path("mlflow.db")) == before


def test_a_damaged_or_debiased_run_is_refused_before_anything_is_written(run: Run) -> None:
    before = digest_of(Path("mlflow.db"))
    with pytest.raises(UsageError, match="is debiased already"):
        log_run(debiased(run, 0.5))
    with open(run.path / "movie_vectors.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    with pytest.raises(RunError, match=r"movie_vectors\.npy"):
        log_run(run)
    assert digest_of(Path("mlflow.db")) == before


def test_the_process_is_left_as_it_was(run: Run) -> None:
    log_run(run)  # MLflow is imported by now
    environment, level = dict(os.environ), logging.getLogger("mlflow").level
    log_run(run, model="movies")
    assert dict(os.environ) == environment
    assert logging.getLogger("mlflow").level == level


# Ends itself, as kill -9 does, where a method of a library is called for the n-th time.
KILLED = """
import importlib, os, signal, sys
from embedstore.runs.run import Run
from embedstore.tracking import log_run
run, module, kind, name, left = Run.load(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
owner = getattr(importlib.import_module(module), kind)
method = getattr(owner, name)
def counted(*given, **named):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return method(*given, **named)
setattr(owner, name, counted)
log_run(run, model="movies", alias="champion")
"""


@pytest.mark.parametrize(
    ("method", "call", "state"),
    [
        ("alembic.ddl.impl DefaultImpl create_table", 9, "created"),
        ("mlflow MlflowClient log_batch", 2, "resumed"),
        ("mlflow MlflowClient log_artifact", 5, "resumed"),
        ("mlflow MlflowClient set_registered_model_alias", 1, "unchanged"),
    ],
)
def test_a_killed_log_is_finished_by_the_next(run: Run, method: str, call: int, state: str) -> None:
    if state == "created":  # killed while MLflow makes its tables
        Path("mlflow.db").unlink()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(run.path), *method.split(), str(call)],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (killed.returncode, killed.stdout, killed.stderr) == (-signal.SIGKILL, "", "")
    report = log_run(run, model="movies", alias="champion")
    assert (report.state, report.version, report.alias_moved) == (state, "1", True)
    check(run, report)
    assert list(Path().glob(".embedstore-scratch-*")) == []
