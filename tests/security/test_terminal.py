"""Whoever names a movie does not get to write to the terminal, nor a line of its own."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.cli import run
from embedstore.cli.output import json_text
from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.runs.evaluation import add_evaluation
from embedstore.runs.run import Run
from embedstore.stores.base import Note, open_store
from embedstore.sync import sync
from tests.builders import tiny_run
from tests.cli.test_bad_input_server import EVERY_COMMAND
from tests.scripted import HttpServer, answer

# A title of the window, a bell, the start of the line, text from right to left, an 8-bit CSI, a line.
EVIL = "\x1b]0;owned\x07\r\u202eevil\x9b2J\nforged"
SHOWN = re.compile(r"\\x1b]0;owned\\x07\\r\\u202eevil\\x9b2J\\nforged")
HEADLINE = {EVIL: 0.5, "intervals": {EVIL: [0.4, 0.6]}, "users": {"scored": 3}, "headline": EVIL}


@pytest.fixture
def run_of_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run and a store where every text that others may choose is evil, in the current folder."""
    monkeypatch.chdir(tmp_path)
    users, movies = np.divmod(np.arange(80), 20)
    ids = np.array([f"{number:02d}{EVIL}" for number in range(20)])
    columns = RatingColumns(
        user_ids=np.array([f"{number}{EVIL}" for number in range(4)])[users],
        movie_ids=ids[movies],
        ratings=np.tile(np.array([5, 2, 4], np.float32), 27)[:80],
        timestamps=np.arange(80),
    )
    keep = np.random.default_rng(0).random(80) < 0.6
    keep[:20] = True
    kept = RatingColumns(*(column[keep] for column in vars(columns).values()))
    table = {str(movie): Movie(f"{EVIL} {number}", 1990, (EVIL, "Drama")) for number, movie in enumerate(ids)}
    config = {"preset": EVIL, EVIL: EVIL}
    for second in (0, 1):
        made = tiny_run(
            tmp_path,
            dataset=Dataset.of(EVIL, kept, table),
            config=config,
            run_id=f"20260101t00000{second}-0000",
            seed=second,
        )
        add_evaluation(made.path, {EVIL: HEADLINE})
        with open_store("store", create=True) as store:
            sync(made, store)
            store.pin(f"movies__{made.run_id}", {"at": "", "who": EVIL, "why": EVIL})
    with open_store("store") as store:
        store.promote("movies", "movies__20260101t000000-0000", Note(why=EVIL, who=EVIL, tool_version=EVIL))
    return made


FIRST, LAST = "20260101t000000-0000", "20260101t000001-0000"
USER = f"0{EVIL}"
COMMANDS = [
    ["runs", "list"],
    ["runs", "show", LAST],
    ["runs", "show", LAST, "--norms"],
    ["runs", "compare", FIRST, LAST],
    ["plan", FIRST],
    ["sync", FIRST],
    ["status"],
    ["verify"],
    ["rollback"],
    ["promote", FIRST],
    ["doctor"],
    ["query", "--user", USER],
    ["query", "--user", USER, "--explain"],
    ["query", "--user", USER, "--diverse", "0.3", "--include-seen"],
    ["query", "--user", "no such\x1b[2J"],
    ["query", "--history", "00\x1b[2J,01"],
    ["query", "--user", USER, "--filter", "genre=\x1b[2J"],
    ["embed", "--user", USER],
    ["similar", f"01{EVIL}"],
    ["contract"],
    ["contract", "--snippet", "history", "--language", "curl"],
    ["contract", "--language", "python"],
    ["evaluate"],
    ["export", "--npz", "-o", "out"],
    ["copy", FIRST, "--to", "other"],
    ["runs", "restore", f"movies__{FIRST}", "--runs", "restored"],
    ["data", "describe", "ratings"],
    ["data", "validate", "ratings"],
    ["train", "--data", "ratings", "--preset", "linear", "-P", f"x{EVIL}=1"],
    ["query", "--run", f"@{EVIL}", "--user", "1"],
    ["query", "--alias", EVIL, "--user", "1"],
    ["runs", "rm", EVIL],
    ["status", "--store", f"http://127.0.0.1:9/{EVIL}"],
    ["status", "--store", f"none{EVIL}"],
    [EVIL],
]


def test_no_command_lets_a_text_of_others_write_to_the_terminal(
    run_of_a_stranger: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # where a table is narrow it shows less of a text
    folder = Path("ratings")
    folder.mkdir()
    (folder / "ratings.csv").write_text(f'userId,movieId,rating,timestamp\n1,"{EVIL}",x,1\n', newline="")
    hijacked, escaped = [], 0
    for command in COMMANDS:
        run(command)
        for text in capsys.readouterr():
            forged = any(line.startswith("forged") for line in text.splitlines())
            if forged or not re.sub("[\n\t]", "", text).isprintable():  # programs in Go have tabs
                hijacked.append((command, text))
            escaped += len(SHOWN.findall(text))

    assert not hijacked
    assert escaped > 100


def test_a_traceback_does_not_write_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSTORE_DEBUG", "1")
    assert run(["status", "--store", f"none{EVIL}"]) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.replace("\n", "").isprintable()


def test_json_is_exact_and_harmless_and_csv_is_exact_in_a_file(
    run_of_a_stranger: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that a spreadsheet would take for a formula stays as it is, too: see docs/security.md."""
    query = ["query", "--user", USER, "--include-seen"]
    assert run([*query, "--json"]) == 0
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    movies = json.loads(text)["recommendations"]
    assert [EVIL, "Drama"] in [movie["genres"] for movie in movies]
    assert run([*query, "--csv"]) == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row["title"] for row in rows] == [movie["title"] for movie in movies]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", [["query", "--user", USER, "--include-seen"], ["runs", "list"]])
def test_csv_is_escaped_where_it_goes_to_a_terminal(
    command: list[str], run_of_a_stranger: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run([*command, "--csv"]) == 0
    assert terminal.getvalue().replace("\n", "").isprintable()
    assert "owned" in terminal.getvalue()


@pytest.mark.parametrize(
    "character", ["\x7f", "\x85", "\u2028", "\U000e0001", "\ud800", '"', "\\", "é", "\n"]
)
def test_json_of_any_character_reads_back(character: str) -> None:
    text = json_text({"title": f"a{character}b"}, indent=2)
    assert json.loads(text) == {"title": f"a{character}b"}
    assert text.replace("\n", "").isprintable()


def _evil_server(handler: Any) -> None:
    one = {"collections": [{"name": "movies__x"}, {"name": f"movies__{EVIL}"}, {"name": EVIL}]}
    names = {
        "aliases": [{"alias_name": name, "collection_name": f"movies__{EVIL}"} for name in ("movies", EVIL)]
    }
    peers = {"status": EVIL, "peers": {"1": {"uri": EVIL}}, "raft_info": {}, "consensus_thread_status": {}}
    contents: dict[str, Any] = {
        "/": {"title": "qdrant - vector search engine", "version": f"1.18.3{EVIL}"},
        "/collections": {"result": one},
        "/aliases": {"result": names},
        "/cluster": {"result": peers},
    }
    if handler.path in contents:
        answer(content=contents[handler.path])(handler)
    elif handler.path.count("/") == 2:
        metadata = {"state": "sealed", "run_id": LAST, "dim": 4, "count": 2, "tower": "dense", "schema": 1}
        metadata |= dict.fromkeys(("fingerprint", "created_at", "heartbeat", "tool_version", "origin"), EVIL)
        params = {"vectors": {"": {"size": 4, "distance": "Dot"}}}
        info = {"status": EVIL, "optimizer_status": EVIL, "payload_schema": {}}
        info |= {"config": {"metadata": metadata, "params": params}}
        answer(content={"result": info})(handler)
    else:
        answer(400, {"status": {"error": EVIL}})(handler)


def test_no_answer_of_a_server_writes_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_run(tmp_path, run_id=LAST)
    with HttpServer(_evil_server) as server:
        said = []
        for command in EVERY_COMMAND:
            run([*command, "--store", server.url, "--grpc-port", "0"])
            said += list(capsys.readouterr())
    text = "".join(said)
    assert text.replace("\n", "").isprintable()
    assert "\nforged" not in text
    assert text.count("owned") > 10
