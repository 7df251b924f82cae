"""Bad input, one row a case: one sentence on stderr, the documented exit code, nothing written.

Every case starts from the same folder: two runs, a store in which the first is live, a users file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import tiny_run

LIVE, NEWER = "20240101t000000-aaaa", "20250101t000000-bbbb"
QUERY = ["query", "--user", "3"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    live = tiny_run(folder, run_id=LIVE)
    tiny_run(folder, run_id=NEWER, seed=1)
    with open_store(folder / "store", create=True) as store:
        sync(live, store)
    (folder / "users.txt").write_text("2\n3\n")
    (folder / "file").write_text("not a folder")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "work"
    subprocess.run(["cp", "-r", "--sparse=always", prepared, copy], check=True)
    monkeypatch.chdir(copy)
    return copy


@dataclass(frozen=True)
class Case:
    name: str
    arguments: list[str]
    code: int
    sentence: str
    prepare: Callable[[Path], object] = lambda folder: None


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def remove(name: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def flip(name: str, at: int = -1) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        path = folder / name
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return act


def edit_json(name: str, **change: object) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return act


def ratings(*lines: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        (folder / "data" / "bad").mkdir(parents=True)
        (folder / "data" / "bad" / "ratings.csv").write_text(
            "\n".join(["userId,movieId,rating,timestamp", *lines]) + "\n"
        )

    return act


TRAIN = ["train", "--data", "bad"]
ALIAS_FILE = "store/aliases/movies.json"
CASES = [
    # who is asked about
    Case("nobody", ["query"], 2, "give one of --user, --history"),
    Case("two", ["query", "--user", "1", "--history", "1"], 2, "give one of --user"),
    Case("unknown user", ["query", "--user", "999"], 3, "user '999' is not among the"),
    Case("user is text", ["query", "--user", "ann"], 3, "user 'ann' is not among"),
    Case("user is negative", ["query", "--user=-1"], 3, "user '-1' is not among"),
    Case("user is a fraction", ["query", "--user", "1.5"], 3, "user '1.5' is not among"),
    Case("user beyond 64 bits", ["query", "--user", "9" * 30], 3, "is not among"),
    Case("user is empty", ["query", "--user", ""], 3, "is not among"),
    Case("empty history", ["query", "--history", ""], 2, "the history is empty"),
    Case("history of commas", ["query", "--history", ",,"], 2, "the history is empty"),
    Case(
        "unknown history",
        ["query", "--history", "998,999"],
        2,
        "none of the 2 movies of the history is known",
    ),
    Case("history of words", ["query", "--history", "a,b"], 2, "none of the 2 movies"),
    Case("history file missing", ["query", "--history-file", "none"], 2, "No such file"),
    Case("history file is a folder", ["query", "--history-file", "runs"], 2, "directory"),
    Case("history file empty", ["query", "--history-file", "h"], 2, "h is empty", write("h", "\n\n")),
    Case("history file not text", ["query", "--history-file", "h"], 1, "not UTF-8", write("h", b"\xff\xfe1")),
    Case("users file missing", ["query", "--users-file", "none"], 2, "does not exist"),
    Case("users file is a folder", ["query", "--users-file", "runs"], 2, "is a directory"),
    Case(
        "users file: unknown",
        ["query", "--users-file", "u", "-o", "o.csv"],
        3,
        "u, line 2: user 'x'",
        write("u", "1\nx\n"),
    ),
    Case(
        "users file: not JSON",
        ["query", "--users-file", "u.jsonl", "-o", "o.csv"],
        1,
        "u.jsonl, line 1: not JSON",
        write("u.jsonl", "{"),
    ),
    Case(
        "users file: no person",
        ["query", "--users-file", "u.jsonl", "-o", "o.csv"],
        1,
        '"user_id" or with "history"',
        write("u.jsonl", "{}"),
    ),
    Case(
        "users file: not text",
        ["query", "--users-file", "u", "-o", "o.csv"],
        1,
        "not UTF-8",
        write("u", b"1\n\xff\n"),
    ),
    # what is asked for
    Case("k is zero", [*QUERY, "-k", "0"], 2, "k is 0; expected 1 or more"),
    Case("k is negative", [*QUERY, "-k", "-3"], 2, "k is -3"),
    Case("diverse is above one", [*QUERY, "--diverse", "1.5"], 2, "diverse is 1.5; expected 0 (by score"),
    Case("diverse is negative", [*QUERY, "--diverse", "-0.1"], 2, "diverse is -0.1; expected 0"),
    Case("diverse is not a number", [*QUERY, "--diverse", "nan"], 2, "diverse is nan; expected 0"),
    Case("diverse is a word", [*QUERY, "--diverse", "much"], 2, "'much' is not a valid float"),
    Case("k is a word", [*QUERY, "-k", "ten"], 2, "'ten' is not a valid int"),
    Case(
        "filter on another field",
        [*QUERY, "--filter", "director=Lynch"],
        2,
        "filter 'director=Lynch' is not known",
    ),
    Case("filter without operator", [*QUERY, "--filter", "Comedy"], 2, "is not a condition"),
    Case(
        "filter year not a number",
        [*QUERY, "--filter", "year>=old"],
        2,
        "the year 'old' is not a whole number",
    ),
    Case("filter year empty", [*QUERY, "--filter", "year>="], 2, "is not a condition"),
    Case("genre compared", [*QUERY, "--filter", "genre>Comedy"], 2, "is not known"),
    Case(
        "output of another kind",
        ["query", "--users-file", "users.txt", "-o", "o.xlsx"],
        2,
        "extension '.xlsx'",
    ),
    Case(
        "output nowhere",
        ["query", "--users-file", "users.txt", "-o", "no/o.csv"],
        1,
        "cannot be written: No such file",
    ),
    Case("output is a folder", [*QUERY, "-o", "runs"], 2, "is a directory"),
    Case("similar to nothing", ["similar", "999"], 3, "movie 999 is not among"),
    Case("similar to a word", ["similar", "Toy Story"], 3, "expected a whole number"),
    Case("similar, k zero", ["similar", "1", "-k", "0"], 2, "k is 0"),
    Case("similar, no movie", ["similar"], 2, "Missing argument"),
    Case("similar by another metric", ["similar", "1", "--metric", "l2"], 2, "'l2' is not one of"),
    Case("embed nobody", ["embed"], 2, "give one of --user"),
    Case("embed unknown", ["embed", "--user", "999"], 3, "is not among"),
    Case("unknown flag", ["query", "--usr", "1"], 2, "No such option"),
    # runs
    Case("no such run", [*QUERY, "--run", "1999"], 3, "no run '1999'"),
    Case("two runs fit", [*QUERY, "--run", "202"], 2, f"fits 2 runs ({LIVE}, {NEWER})"),
    Case("a run that is not synced", [*QUERY, "--run", NEWER], 3, f"movies__{NEWER}"),
    Case(
        "an unfinished run",
        ["sync", NEWER],
        1,
        "its training did not finish",
        remove(f"runs/{NEWER}/manifest.json"),
    ),
    Case("no runs at all", ["sync"], 3, "no finished run in runs", remove("runs")),
    Case("runs is a file", ["sync", "--runs", "file"], 3, "no finished run in file"),
    Case(
        "a promotion that never was",
        [*QUERY, "--run", "@movies~7"],
        3,
        "was promoted 1 time, so there is nothing 7",
    ),
    Case("an alias that is not there", [*QUERY, "--run", "@other"], 3, "alias 'other' is not in the store"),
    Case(
        "manifest of a newer schema",
        ["sync", NEWER],
        1,
        "has schema 9",
        edit_json(f"runs/{NEWER}/manifest.json", schema_version=9),
    ),
    Case("live run not on this machine", ["verify"], 3, "or copy the folder", remove(f"runs/{LIVE}")),
    *[
        Case(
            f"a flipped byte in {name}",
            command,
            1,
            f"{name} does not have the sha256",
            flip(f"runs/{LIVE}/{name}"),
        )
        for name, command in [
            ("history_vectors.npy", QUERY),
            ("movie_ids.npy", ["query", "--history", "1"]),
            ("histories/user_ids.npy", QUERY),
            ("histories/offsets.npy", QUERY),
            ("histories/movie_rows.npy", QUERY),
            ("movie_vectors.npy", ["similar", "1"]),
            ("movies.jsonl", ["similar", "1"]),
        ]
    ],
    # the store
    Case("no store", QUERY, 3, "store", remove("store")),
    Case("store is a file", ["query", "--store", "file", "--user", "3"], 1, "file"),
    Case("sync into a file", ["sync", "--store", "file"], 1, "file"),
    Case("dead server", ["query", "--store", "http://127.0.0.1:9", "--user", "3"], 5, "gives no answer"),
    Case(
        "store of a newer version", QUERY, 1, "has schema 99", edit_json("store/embedstore.json", schema=99)
    ),
    Case(
        "missing alias", ["query", "--alias", "films", "--user", "3"], 3, "alias 'films' is not in the store"
    ),
    Case("alias that is no name", ["sync", "--alias", "../x"], 2, "alias"),
    Case("alias file broken", QUERY, 1, "movies.json", write(ALIAS_FILE, "{")),
    Case("verify an unknown alias", ["verify", "--alias", "films"], 3, "films"),
    # ratings
    Case("no such data", ["train", "--data", "bad"], 3, "data fetch"),
    Case("a rating of letters", TRAIN, 1, "line 3", ratings("1,2,4,5", "1,x3,good,7")),
    Case("a truncated line", TRAIN, 1, "line 3", ratings("1,2,4,5", "1,3")),
    Case("a rating that is NaN", TRAIN, 1, "line 2", ratings("1,2,nan,5")),
    Case("a rating without end", TRAIN, 1, "line 2", ratings("1,2,inf,5")),
    Case("a time before 1970", TRAIN, 1, "line 2", ratings("1,2,4,-5")),
    Case("an empty file", TRAIN, 1, "ratings.csv", ratings()),
    Case("a preset that is none", [*TRAIN, "--preset", "deep"], 2, "deep"),
    Case("a field that is none", [*TRAIN, "-P", "depth=3"], 2, "depth"),
    Case("a field of another type", [*TRAIN, "-P", "epochs=many"], 2, "epochs"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_sentence_and_changes_nothing(
    case: Case, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case.prepare(folder)
    before = contents(folder)
    code = embedstore(case.arguments)
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert (code, len(errors)) == (case.code, 1), err
    assert case.sentence in errors[0]
    assert "Traceback" not in err
    assert out == ""
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file but the engine's own: 100 MB, mostly holes, tested with the store."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"segments", "edge_config.json", "lock"} & set(path.parts)
    }


def test_a_history_of_100_000_lines_works(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "long").write_text(
        "\n".join(str(movie_id) for movie_id in range(1, 100_001) if movie_id not in (5, 6))
    )
    assert embedstore(["query", "--history-file", "long", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert {movie["movie_id"] for movie in answer["recommendations"]} == {5, 6}
    assert len(answer["unknown_movies"]) == 99_960


def test_k_above_the_catalog_is_the_catalog(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert embedstore([*QUERY, "-k", "100000", "--json", "--include-seen"]) == 0
    run = Run.load(folder / "runs" / LIVE)
    assert len(json.loads(capfd.readouterr().out)["recommendations"]) == len(run.movies)


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
def test_users_files_in_every_format(folder: Path, extension: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert embedstore(["query", "--users-file", "users.txt", "-k", "2", "-o", f"o.{extension}"]) == 0
    path = folder / f"o.{extension}"
    if extension == "jsonl":
        rows = [json.loads(line)["user_id"] for line in path.read_text().splitlines()]
        assert rows == [2, 3]
    elif extension == "csv":
        lines = path.read_text().splitlines()
        assert lines[0] == "user_id,run_id,rank,movie_id,score,title,year,genres,cold"
        assert len(lines) == 5
    else:
        import pyarrow.parquet as pq

        assert pq.read_table(path).column("user_id").to_pylist() == [2, 2, 3, 3]
    assert not list(folder.glob(".*.tmp"))


def test_unknown_users_can_be_skipped_and_are_said(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "users.txt").write_text("2\nnobody\n3\n")
    assert embedstore(["query", "--users-file", "users.txt", "--skip-unknown"]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert "line 2: user 'nobody'" in err
