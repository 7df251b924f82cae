from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedstore.errors import RunError
from embedstore.runs.evaluation import add_evaluation, evaluation_path, read_evaluation
from embedstore.runs.registry import list_runs, remove_run
from tests.builders import tiny_run


def test_a_second_evaluation_replaces_its_protocol_and_keeps_the_others(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    assert read_evaluation(run.path) == {}
    add_evaluation(run.path, {"serving": {"ndcg@100": 0.5}, "strong": {"ndcg@100": 0.25}})
    path = add_evaluation(run.path, {"serving": {"recall@20": 0.125}})
    assert path == run.path.parent / f"{run.run_id}.evaluation.json"
    assert read_evaluation(run.path) == {"serving": {"recall@20": 0.125}, "strong": {"ndcg@100": 0.25}}
    assert sorted(entry.name for entry in path.parent.iterdir()) == [run.run_id, path.name]
    run.verify()


def test_the_list_of_runs_does_not_know_the_evaluation_and_removal_takes_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    add_evaluation(run.path, {"serving": {}})
    assert [summary.run_id for summary in list_runs(tmp_path / "runs")] == [run.run_id]
    remove_run(tmp_path / "runs", run.run_id)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not the evaluation of run"),
        ('{"schema_version": 1, "run_id": "other", "protocols": {}}', "is not the evaluation of run"),
        ('{"schema_version": 1, "run_id": "RUN", "protocols": {"serving": 1}}', "is not the evaluation"),
        ('{"schema_version": 2, "run_id": "RUN", "protocols": {}}', "has schema 2, this embedstore reads 1"),
    ],
)
def test_a_damaged_evaluation_is_said_and_never_overwritten(tmp_path: Path, text: str, sentence: str) -> None:
    run = tiny_run(tmp_path)
    path = evaluation_path(run.path)
    path.write_text(text.replace("RUN", run.run_id))
    before = path.read_bytes()
    for act in (lambda: read_evaluation(run.path), lambda: add_evaluation(run.path, {})):
        with pytest.raises(RunError, match=sentence):
            act()
    assert path.read_bytes() == before


def test_a_flipped_bit_anywhere_in_the_evaluation_is_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    path = add_evaluation(run.path, {"serving": {"ndcg@100": 0.25, "user": "é"}})
    content = path.read_bytes()
    for at, byte in enumerate(content):
        path.write_bytes(content[:at] + bytes([byte ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(RunError, match=path.name):
            read_evaluation(run.path)


def test_a_number_that_json_does_not_know_is_not_written(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        add_evaluation(run.path, {"serving": {"ndcg@100": float("nan")}})
    assert not evaluation_path(run.path).exists()
    assert json.loads((run.path / "manifest.json").read_text())["run_id"] == run.run_id
