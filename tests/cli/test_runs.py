"""`runs list|show|rm`: human, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from embedstore.cli import run
from tests.builders import edit_json, tiny_run

Capture = pytest.CaptureFixture[str]
OLD, NEW = "20261123t031500-0a0a", "20261124t031500-1a2b"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def two_runs(tmp_path: Path) -> None:
    tiny_run(tmp_path, run_id=OLD)
    tiny_run(tmp_path, run_id=NEW, additive=False)


@pytest.mark.usefixtures("two_runs")
def test_list_is_a_table_oldest_first(capsys: Capture) -> None:
    assert run(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "state", "preset", "data", "movies", "dim", "tower"]
    assert [line.split() for line in lines[2:]] == [
        [OLD, "sealed", "tiny", "tiny", "40", "4", "additive"],
        [NEW, "sealed", "tiny", "tiny", "40", "4", "dense"],
    ]


def test_list_shows_the_headline_metrics_and_csv_all_of_them(tmp_path: Path, capsys: Capture) -> None:
    metrics = {"ndcg@100": 0.5, "recall@20": 0.25, "ease": {"ndcg@100": 0.52}, "protocol": "serving"}
    edit_json(tiny_run(tmp_path, run_id=NEW).path / "manifest.json", metrics=metrics)
    assert run(["runs", "list"]) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["ndcg@100", "recall@20"]
    assert line.split()[-2:] == ["0.5000", "0.2500"]
    assert run(["runs", "list", "--csv"]) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (row["ease.ndcg@100"], row["protocol"]) == ("0.52", "serving")


@pytest.mark.usefixtures("two_runs")
def test_list_shows_unfinished_and_damaged_runs(capsys: Capture) -> None:
    Path("runs", OLD, "manifest.json").unlink()
    Path("runs", NEW, "manifest.json").write_text("{")
    assert run(["runs", "list", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert records[0]["state"] == "unfinished"
    assert "is not JSON" in records[1]["state"]
    assert run(["runs", "list"]) == 0
    assert OLD in capsys.readouterr().out


@pytest.mark.usefixtures("two_runs")
def test_list_as_json_and_csv_agree(capsys: Capture) -> None:
    assert run(["runs", "list", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert run(["runs", "list", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run_id"] for row in rows] == [record["run_id"] for record in records] == [OLD, NEW]
    assert [int(row["n_ratings"]) for row in rows] == [record["n_ratings"] for record in records]
    assert all(record["path"].endswith(record["run_id"]) for record in records)


def test_no_runs_is_an_empty_list(capsys: Capture) -> None:
    assert run(["runs", "list"]) == 0
    assert capsys.readouterr() == (
        "",
        "no run in runs; make one with `embedstore train` or `runs import`\n",
    )
    assert run(["runs", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("reference", "run_id"), [((), NEW), (("latest",), NEW), ((OLD,), OLD), (("20261123",), OLD)]
)
def test_show(capsys: Capture, reference: tuple[str, ...], run_id: str) -> None:
    assert run(["runs", "show", *reference]) == 0
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert shown["run_id"] == run_id
    assert shown["config.preset"] == "tiny"
    assert run(["runs", "show", *reference, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == run_id
    assert run(["runs", "show", *reference, "--csv"]) == 0
    assert ["run_id", run_id] in list(csv.reader(io.StringIO(capsys.readouterr().out)))


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["show", "2026112"], 2, "fits 2 runs"),
        (["show", "2025"], 3, "no run '2025'"),
        (["show", ""], 3, "no run ''"),
        (["show", "../runs"], 3, "no run '../runs'"),
        (["show", "@movies"], 3, ""),
        (["show", "--json", "--csv"], 2, "exclude each other"),
        (["list", "--json", "--csv"], 2, "exclude each other"),
        (["rm", "2026112"], 2, "fits 2 runs"),
        (["rm", "2025"], 3, "no run '2025'"),
        (["rm", ""], 3, "no run ''"),
        (["rm", ".."], 3, "no run '..'"),
        (["rm", "@movies"], 2, "give the id"),
        (["rm", OLD, "2025"], 3, "no run '2025'"),
    ],
)
def test_bad_references_change_nothing(
    capsys: Capture, arguments: list[str], code: int, sentence: str
) -> None:
    assert run(["runs", *arguments]) == code
    out, message = capsys.readouterr()
    assert out == ""
    assert sentence in message
    assert message.count("\n") == 1
    assert sorted(path.name for path in Path("runs").iterdir()) == [OLD, NEW]


@pytest.mark.usefixtures("two_runs")
def test_rm_removes_the_runs_that_it_names(capsys: Capture) -> None:
    Path("runs", NEW, "manifest.json").unlink()  # an unfinished one
    assert run(["runs", "rm", NEW]) == 0
    assert capsys.readouterr().out == f"removed runs/{NEW}\n"
    assert [path.name for path in Path("runs").iterdir()] == [OLD]
    assert run(["runs", "rm", "20261123"]) == 0
    assert list(Path("runs").iterdir()) == []


@pytest.mark.usefixtures("two_runs")
def test_rm_keeps_what_an_alias_serves(capsys: Capture) -> None:
    from embedstore import Run, open_store, sync

    with open_store("store", create=True) as store:
        sync(Run.load(Path("runs", OLD)), store, alias="films")
    assert run(["runs", "rm", NEW, OLD]) == 2
    assert f"run {OLD} is what alias 'films' serves" in capsys.readouterr().err
    assert sorted(path.name for path in Path("runs").iterdir()) == [OLD, NEW]
    assert run(["runs", "show", "@films", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == OLD
    assert run(["runs", "show", "@films~1"]) == 3
    assert run(["runs", "rm", "--force", OLD]) == 0


@pytest.mark.usefixtures("two_runs")
def test_restore_brings_a_run_back_that_serves(tmp_path: Path, capsys: Capture) -> None:
    assert run(["sync", OLD]) == 0
    capsys.readouterr()
    assert run(["query", "--history", "3,9,27", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert run(["runs", "restore"]) == 0
    assert capsys.readouterr().out == f"runs/{OLD}: is there already, with the content of movies__{OLD}\n"
    assert run(["runs", "rm", "--force", OLD, NEW]) == 0
    capsys.readouterr()
    assert run(["runs", "restore", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "collection": f"movies__{OLD}",
        "run_id": OLD,
        "path": f"runs/{OLD}",
        "count": 40,
        "written": True,
    }
    assert run(["query", "--history", "3,9,27", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before
    assert run(["query", "--user", "3"]) == 3
    assert f"run {OLD} was restored from movies__{OLD} and knows no users" in capsys.readouterr().err
    assert run(["runs", "list"]) == 0
    assert run(["runs", "show", OLD]) == 0
    assert f"movies__{OLD}" in capsys.readouterr().out


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["runs", "restore", "films"], 3, "no alias, collection or run 'films'"),
        (["runs", "restore", "--store", "nowhere"], 3, "no store at nowhere"),
        (["runs", "restore", "--runs", "other"], 1, f"copy the folder {NEW} to other"),
        (["copy", "films", "--to", "other"], 3, "no alias, collection or run 'films'"),
        (["copy", "movies", "--to", "store"], 2, "both stores are store"),
        (["copy", "movies"], 2, "--to"),
    ],
)
def test_what_cannot_be_restored_or_copied_is_one_sentence(
    capsys: Capture, arguments: list[str], code: int, sentence: str
) -> None:
    assert run(["sync", NEW]) == 0
    capsys.readouterr()
    assert run(arguments) == code
    out, message = capsys.readouterr()
    assert out == ""
    assert sentence in message
    assert message.count("\n") == 1
    assert not Path("other").exists()


@pytest.mark.usefixtures("two_runs")
def test_copy_fills_another_store_and_flips_there(capsys: Capture) -> None:
    assert run(["sync", OLD]) == 0
    capsys.readouterr()
    assert run(["copy", OLD, "--to", "other", "--no-promote"]) == 0
    assert "alias movies stays on nothing" in capsys.readouterr().out
    assert run(["copy", "@movies", "--to", "other"]) == 0
    assert f"alias movies -> movies__{OLD}" in capsys.readouterr().out
    assert run(["verify", "--store", "other"]) == 0
    capsys.readouterr()
    assert run(["copy", "movies", "--to", "other", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["written"]) == ("unchanged", 0)
