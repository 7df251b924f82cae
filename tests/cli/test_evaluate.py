"""`evaluate` and `runs compare`: human, JSON and CSV, and what stays beside the run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from embedstore.cli import run
from embedstore.loaders import load
from embedstore.training.config import TrainConfig
from tests.builders import tiny_dataset, tiny_run, written

Capture = pytest.CaptureFixture[str]
OLD, NEW = "20261123t031500-0a0a", "20261124t031500-1a2b"
CONFIG = TrainConfig(test_share=0.4).to_dict()
FAST = ["--baselines", "ease,popularity"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    dataset = load(written(tmp_path / "data" / "small", tiny_dataset(n=120, n_users=60)))
    tiny_run(tmp_path, run_id=OLD, dataset=dataset, config=CONFIG)
    tiny_run(tmp_path, run_id=NEW, dataset=dataset, config=CONFIG, seed=1, additive=False)


def test_the_run_stands_beside_its_baselines_with_the_number_of_users(capsys: Capture) -> None:
    assert run(["evaluate", *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"run {NEW}, data set small; liked: a rating of 4 or more\n\nserving: held-out users"
    )
    assert " of 24 test users are asked" in out
    lines = out.splitlines()
    header = next(line for line in lines if line.startswith("model"))
    assert header.split()[1:4] + header.split()[-1:] == ["ndcg@100", "95%", "interval", "recall@20"]
    models = [line.split("  ")[0] for line in lines if line.startswith(("this run", "EASE", "popularity"))]
    assert models == 3 * ["this run", "EASE", "popularity"]
    assert [line.split(":")[0] for line in lines if ": held-out" in line] == [
        "serving",
        "strong",
        "next-session",
    ]
    assert lines[-1].endswith(f"runs/{NEW}.evaluation.json")
    assert max(map(len, lines[:-1])) <= 110


def test_a_second_evaluation_replaces_its_protocol_and_keeps_the_others(capsys: Capture) -> None:
    assert run(["evaluate", OLD, *FAST, "--protocol", "serving", "--protocol", "strong"]) == 0
    first = json.loads(Path("runs", f"{OLD}.evaluation.json").read_text())["protocols"]
    assert run(["evaluate", OLD, "--no-baselines", "--protocol", "strong", "--metric", "map@7"]) == 0
    second = json.loads(Path("runs", f"{OLD}.evaluation.json").read_text())["protocols"]
    assert second["serving"] == first["serving"]
    assert second["strong"]["ndcg@100"] == first["strong"]["ndcg@100"]
    assert "map@7" in second["strong"]
    assert "ease" not in second["strong"]
    capsys.readouterr()
    assert run(["runs", "show", OLD]) == 0
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert shown["evaluation.strong"].startswith(f"ndcg@100 {second['strong']['ndcg@100']:.4f} (95% 0.")
    assert run(["runs", "show", OLD, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == second
    assert run(["runs", "list", "--json"]) == 0
    assert [record["run_id"] for record in json.loads(capsys.readouterr().out)] == [OLD, NEW]
    assert run(["runs", "rm", OLD]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [NEW]


def test_json_is_what_is_kept_and_csv_has_a_row_per_figure(capsys: Capture) -> None:
    command = ["evaluate", *FAST, "--protocol", "serving"]
    assert run([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert run([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads(Path("runs", f"{NEW}.evaluation.json").read_text())
    assert printed == {"run_id": NEW, "protocols": kept["protocols"], "protocols_left_out": {}}
    entry = kept["protocols"]["serving"]
    assert [(row["model"], row["metric"]) for row in rows] == [
        (model, metric)
        for model in ("this run", "ease", "popularity")
        for metric in ("ndcg@100", "recall@20")
    ]
    assert float(rows[0]["value"]) == entry["ndcg@100"]
    assert [float(rows[2]["lead_low"]), float(rows[2]["lead_high"])] == entry["ease"]["lead"]["intervals"][
        "ndcg@100"
    ]
    assert {int(row["users"]) for row in rows} == {entry["users"]["scored"]}


@pytest.mark.parametrize("width", [80, 110])
def test_many_metrics_are_tables_that_the_terminal_has_room_for(
    width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"{family}@{k}" for family in ("recall", "map", "mean_popularity") for k in (10, 20, 50)]
    options = [part for name in names for part in ("--metric", name)]
    assert run(["evaluate", *FAST, "--protocol", "serving", *options]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "  " in line]
    assert max(map(len, lines)) <= width
    headers = [line.split()[1:] for line in lines if line.startswith("model")]
    assert [name for header in headers for name in header][-9:] == names
    assert len(headers) > 1


def test_through_the_store_says_how_it_differs(capsys: Capture) -> None:
    assert run(["sync"]) == 0
    capsys.readouterr()
    assert run(["evaluate", "@movies", "--through-store", "--no-baselines", "--protocol", "serving"]) == 0
    out = capsys.readouterr().out
    assert f"through the store, movies__{NEW}: ndcg@100 0." in out
    assert "(+0.0000), recall@20" in out
    assert "this run - it" not in out  # there is none
    assert run(["evaluate", "--through-store", "--no-baselines", "--protocol", "serving", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["model"] for row in rows] == ["this run", "this run", "store", "store"]


def test_the_data_set_is_that_of_the_runs_name_among_several(tmp_path: Path, capsys: Capture) -> None:
    written(tmp_path / "data" / "other", tiny_dataset(seed=9))
    assert run(["evaluate", "--no-baselines", "--protocol", "strong"]) == 0


def test_compare_shows_metrics_groups_and_who_changed_most(capsys: Capture) -> None:
    assert run(["runs", "compare", OLD, NEW]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == f"A {OLD}, B {NEW}; liked: a rating of 4 or more"
    assert [line.split() for line in lines if line.startswith("metric")] == [
        ["metric", "users", "A", "B", "B", "-", "A", "95%", "interval"]
    ]
    assert sum(line.startswith("history ") for line in lines) == 3
    assert any(line.startswith("favourite genre") for line in lines)
    assert "users who gained most, ndcg@100" in out
    assert "users who lost most, ndcg@100" in out
    assert "* the interval is wider than the difference" in out
    assert max(map(len, lines)) <= 110


def test_compare_as_json_and_csv_agree(capsys: Capture) -> None:
    command = ["runs", "compare", OLD, NEW, "--protocol", "strong", "--metric", "gini@10"]
    assert run([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert run([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["group"], row["metric"]) for row in rows[:2]] == [("", "ndcg@100"), ("", "gini@10")]
    change = content["metrics"]["ndcg@100"]
    assert [float(rows[0][key]) for key in ("a", "b", "difference", "low", "high")] == [
        change[key] for key in ("a", "b", "difference", "low", "high")
    ]
    assert rows[1]["low"] == ""
    grouped = [(row["label"], int(row["users"])) for row in rows[2:]]
    assert grouped == [(group["label"], group["users"]) for group in content["groups"]]
    assert not Path("runs", f"{OLD}.evaluation.json").exists()
