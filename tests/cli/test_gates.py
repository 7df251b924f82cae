"""`--gate` and `compare-live` as a person on call types them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import tiny_dataset, tiny_run

Capture = pytest.CaptureFixture[str]
OLD, NEW = "20260101t000000-000a", "20260102t000000-000b"
SPLIT = {"preset": "tiny", "target": 4.0, "split_seed": 0, "validation_share": 0.1, "test_share": 0.15}


@pytest.fixture(autouse=True)
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that is not in the store here, where another is live."""
    monkeypatch.chdir(tmp_path)
    old = tiny_run(tmp_path, run_id=OLD, config=SPLIT, metrics={"ndcg@100": 0.5})
    with open_store("store", create=True) as store:
        sync(old, store)
    data = tiny_dataset()
    return tiny_run(tmp_path, run_id=NEW, config=SPLIT, metrics={"ndcg@100": 0.25}, seed=3, dataset=data)


def told(capsys: Capture, *arguments: str, code: int = 0) -> tuple[str, str]:
    assert embedstore(arguments) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def live() -> str:
    with open_store("store") as store:
        return store.live("movies").run_id


def test_a_failed_gate_is_exit_code_4_and_one_sentence(capsys: Capture) -> None:
    gates = ["--gate", "ndcg@100>=0.9*live", "--gate", "overlap@5>=0", "--gate", "ndcg@100>1"]
    out, _ = told(capsys, "plan", *gates)
    lines = [line for line in out.splitlines() if line.startswith("gate ")]
    assert lines[0] == (
        "gate ndcg@100>=0.9*live failed: ndcg@100 is 0.25, wanted >= 0.45 "
        f"(0.9 * 0.5, that of live run {OLD})"
    )
    assert lines[1].startswith("gate overlap@5>=0 passed: overlap@5 is ")
    out, err = told(capsys, "sync", *gates, code=4)
    assert [line for line in out.splitlines() if line.startswith("gate ")] == lines
    assert f"movies__{NEW}: created, 40 written" in out
    assert out.endswith(f"alias movies stays on movies__{OLD}\n")
    assert err == (
        "Error: gates 'ndcg@100>=0.9*live', 'ndcg@100>1' failed, so alias movies stays on "
        f"movies__{OLD}; to serve the run all the same: `embedstore promote {NEW} --alias movies`\n"
    )
    out, err = told(capsys, "sync", "--json", "--gate", "ndcg@100>1", code=4)
    report = json.loads(out)
    assert (report["promoted"], report["state"]) == (False, "unchanged")
    assert [(gate["gate"], gate["passed"], gate["wanted"]) for gate in report["gates"]] == [
        ("ndcg@100>1", False, 1.0)
    ]
    assert live() == OLD


def test_a_passed_gate_and_why_are_in_the_history(capsys: Capture) -> None:
    out, _ = told(capsys, "sync", "--gate", "ndcg@100>=0.5*live", "--why", "nightly")
    assert "gate ndcg@100>=0.5*live passed: ndcg@100 is 0.25" in out
    flip = json.loads(told(capsys, "history", "--json")[0])[0]
    assert (flip["run_id"], flip["why"], flip["gates"][0]["passed"]) == (NEW, "nightly", True)
    assert live() == NEW


def test_promote_asks_gates_too(capsys: Capture) -> None:
    told(capsys, "sync", "--no-promote")
    out, err = told(capsys, "promote", NEW, "--gate", "ndcg@100>=live", code=4)
    assert out.endswith(f"alias movies stays on movies__{OLD}\n")
    assert "gate 'ndcg@100>=live' failed" in err
    report = json.loads(
        told(capsys, "promote", NEW, "--gate", "ndcg@100>=0.5*live", "--why", "as agreed", "--json")[0]
    )
    assert (report["promoted"], report["gates"][0]["passed"]) == (True, True)
    out, _ = told(capsys, "promote", NEW, "--gate", "ndcg@100>1")
    assert out == f"alias movies -> movies__{NEW}, as before\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sync", "--gate", "ndcg"], "gate 'ndcg' cannot be read"),
        (["plan", "--gate", "ndgc@10>1"], "unknown metric 'ndgc@10'"),
        (["plan", "--no-promote", "--gate", "ndcg@10>0"], "so no gate is asked; see `plan --gate`"),
        (["promote", NEW, "--gate", "overlap@10>live"], "overlap is with the live run already"),
        (["sync", "--no-promote", "--gate", "ndcg@10>0"], "so no gate is asked; see `plan --gate`"),
        (["watch", "--once", "--no-promote", "--gate", "ndcg@10>0"], "so no gate is asked"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_said_before_the_work(
    capsys: Capture, arguments: list[str], sentence: str
) -> None:
    assert sentence in told(capsys, *arguments, code=2)[1]
    with open_store("store") as store:
        assert store.collections() == [f"movies__{OLD}"]


def test_compare_live_in_text_and_json_agree(capsys: Capture) -> None:
    found = json.loads(told(capsys, "compare-live", NEW, "-k", "5", "--json")[0])
    text, err = told(capsys, "compare-live", NEW, "-k", "5")
    assert err == ""
    assert f"candidate  {NEW} (its own vectors, not in the store yet)" in text
    assert "asked      11 users for 5 movies each, 1 left out, whom one of the two cannot answer" in text
    assert f"overlap@5  {found['overlap']:.3f} on average" in text
    movie = found["appears"][0]
    assert f"+{movie['candidate'] - movie['live']}  {movie['title']}\n" in text
    share = found["genres"][0]
    assert [share["label"], f"{share['live']:.1%}", f"{share['candidate']:.1%}"] in [
        line.split()[:3] for line in text.splitlines()
    ]
    told(capsys, "sync", "--no-promote")
    assert f"candidate  {NEW} (movies__{NEW})" in told(capsys, "compare-live", NEW)[0]
    assert json.loads(told(capsys, "compare-live", "@movies", "--json")[0])["overlap"] == 1.0


def test_compare_live_asks_the_people_of_a_file(capsys: Capture, tmp_path: Path) -> None:
    people = tmp_path / "people.jsonl"
    people.write_text('{"user_id": 3}\n{"history": [5, 6]}\n{"user_id": 77}\n')
    _, err = told(capsys, "compare-live", NEW, "--users-file", str(people), code=3)
    assert "line 3: user '77' is not among the 12 users" in err
    out, err = told(capsys, "compare-live", NEW, "--users-file", str(people), "--skip-unknown", "--json")
    assert json.loads(out)["n_users"] == 2
    assert err.startswith("skipped: ")


def test_titles_cannot_take_over_the_terminal(capsys: Capture, tmp_path: Path) -> None:
    data = tiny_dataset()
    data = replace(data, catalog=[replace(movie, title="\x1b[2J") for movie in data.catalog])
    tiny_run(tmp_path, run_id="20260103t000000-000c", dataset=data, seed=9)
    out, _ = told(capsys, "compare-live", "20260103t000000-000c")
    assert "\\x1b[2J" in out
    assert "\x1b" not in out


def test_the_sample_of_the_help_is_that_of_the_library() -> None:
    from embedstore.cli.canary import compare_live
    from embedstore.evaluation.canary import SAMPLE

    (option,) = (parameter for parameter in compare_live.params if parameter.name == "sample")
    assert option.default == SAMPLE
