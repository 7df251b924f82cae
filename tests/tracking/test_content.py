"""What MLflow is told of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from embedstore.errors import RunError
from embedstore.runs.evaluation import add_evaluation, evaluation_path
from embedstore.tracking.content import content_of, name_of
from tests.mlflow_store import EVALUATION, logged_run


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("ndcg@100",), "ndcg_at_100"),
        (("serving", "ease", "recall@20"), "serving/ease/recall_at_20"),
        (("a/b", "é x%"), "a_b/__x_"),
        (("..", "", "v1.5-x"), "_/_/v1.5-x"),
        (("x" * 300,), "x" * 250),
    ],
)
def test_a_name_is_one_that_mlflow_allows(path: tuple[str, ...], name: str) -> None:
    assert name_of(*path) == name


def test_metrics_are_the_finite_numbers_of_the_run_and_of_every_protocol(tmp_path: Path) -> None:
    run = logged_run(tmp_path)
    add_evaluation(run.path, EVALUATION)
    found = {point.name: (point.value, point.step) for point in content_of(run).metrics}
    assert found == {
        "ndcg_at_100": (0.5, 0),
        "users/test": (12.0, 0),
        "popularity/ndcg_at_100": (0.25, 0),
        "next-session/ndcg_at_100": (0.75, 0),
        "next-session/intervals/ndcg_at_100/low": (0.5, 0),
        "next-session/intervals/ndcg_at_100/high": (0.875, 0),
        "next-session/ease/ndcg_at_100": (0.625, 0),
        "next-session/ease/lead/ndcg_at_100": (0.125, 0),
        "next-session/users/scored": (11.0, 0),
    }


def test_a_measure_has_the_time_at_which_it_was_taken(tmp_path: Path) -> None:
    run = logged_run(tmp_path)
    add_evaluation(run.path, EVALUATION)
    at = {point.name: point.at for point in content_of(run).metrics}
    assert at["next-session/ndcg_at_100"] == 1795557536000  # 2026-11-24T21:58:56Z
    assert at["ndcg_at_100"] == at["users/test"] != at["next-session/ndcg_at_100"]


def test_curves_have_the_epoch_as_their_step(tmp_path: Path) -> None:
    found = [(point.name, point.step, point.value) for point in content_of(logged_run(tmp_path)).curves]
    assert found == [
        ("training/loss", 1, 5.9),
        ("training/validation_ndcg_at_100", 1, 0.1),
        ("training/loss", 2, 5.8),
        ("training/validation_ndcg_at_100", 2, 0.2),
        ("training/loss", 3, 5.7),
        ("training/validation_ndcg_at_100", 3, pytest.approx(0.3)),
    ]


@pytest.mark.parametrize("epochs", [[1, 2, 1], [1, None, 3], [1.5, 2.5, 3.5]])
def test_where_epochs_do_not_ascend_the_line_is_the_step(tmp_path: Path, epochs: list[object]) -> None:
    lines = [{"epoch": epoch, "loss": math.nan if n == 1 else 1.0} for n, epoch in enumerate(epochs)]
    found = [(point.name, point.step) for point in content_of(logged_run(tmp_path, log=lines)).curves]
    assert found == [("training/loss", 1), ("training/loss", 3)]


def test_params_are_the_settings_and_the_size_of_the_run(tmp_path: Path) -> None:
    config = {"preset": "tiny", "embedding_dim": None, "dims": [3, 4], "on": True, "part": {"a b": 0.5}}
    params = content_of(logged_run(tmp_path, config=config)).params
    assert params == {
        "preset": "tiny",
        "embedding_dim": "4",
        "dims": "[3, 4]",
        "on": "true",
        "part.a_b": "0.5",
        "tower": "additive",
        "dataset.n_users": "12",
        "dataset.n_movies": "40",
        "dataset.n_ratings": params["dataset.n_ratings"],
        "dataset.n_duplicates": params["dataset.n_duplicates"],
    }


def test_a_text_that_is_too_long_is_cut_and_named(tmp_path: Path) -> None:
    content = content_of(logged_run(tmp_path, config={"note": "x" * 6001, "fits": "y" * 6000}))
    assert content.params["note"] == "x" * 5999 + "…"
    assert content.params["fits"] == "y" * 6000
    assert content.cut == ("note",)


def test_tags_name_the_run_its_data_and_the_versions(tmp_path: Path) -> None:
    run = logged_run(tmp_path)
    tags = content_of(run).tags
    assert tags["embedstore.run_id"] == run.run_id
    assert tags["embedstore.fingerprint"] == run.fingerprint
    assert tags["embedstore.dataset"] == "tiny"
    assert tags["embedstore.dataset_sha256"] == run.manifest.dataset["sha256"]
    assert tags["embedstore.version.numpy"] == run.manifest.versions["numpy"]
    assert tags.get("mlflow.source.git.commit") == run.manifest.git_commit


def test_a_damaged_log_or_evaluation_is_an_error(tmp_path: Path) -> None:
    run = logged_run(tmp_path)
    evaluation_path(run.path).write_text("{}")
    with pytest.raises(RunError, match="is not the evaluation of run"):
        content_of(run)
    evaluation_path(run.path).unlink()
    (run.path / "training.jsonl").write_text("{")
    with pytest.raises(RunError, match=r"training\.jsonl cannot be read"):
        content_of(run)
