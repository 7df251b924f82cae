from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from embedstore.data.dataset import Movie
from embedstore.errors import NotFoundError, RunError, UsageError
from embedstore.runs.registry import find_run, list_runs, remove_run
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower
from embedstore.runs.writer import new_run_id, write_run
from tests.builders import edit_json, tiny_dataset, tiny_run, with_unrated

V1 = Path(__file__).parent.parent / "data" / "runs" / "20261124t031500-1a2b"


@pytest.mark.parametrize("additive", [True, False])
def test_a_movie_that_nobody_rated_is_in_a_run_where_its_rows_are(tmp_path: Path, additive: bool) -> None:
    dataset = with_unrated(tiny_dataset(), Movie("New", 2024, ("Drama",)))
    without = tiny_run(tmp_path / "without", dataset=dataset, additive=additive)
    assert len(without.movies) == len(without.catalog) == 40
    assert not without.cold.any()
    assert b"cold" not in (without.path / "movies.jsonl").read_bytes()
    run = tiny_run(tmp_path / "with", dataset=dataset, additive=additive, cold=True)
    run.verify()
    assert run.cold.tolist() == [False] * 40 + [True]
    assert run.catalog[40] == Movie("New", 2024, ("Drama",), cold=True)
    assert run.popularity[40] == 0
    assert np.array_equal(run.history(3), without.history(3))
    assert run.tower([40, 3]).shape == (4,)


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("text_ids", [True, False])
def test_a_run_reads_back_what_was_written(tmp_path: Path, additive: bool, text_ids: bool) -> None:
    dataset = tiny_dataset(text_ids=text_ids)
    run = tiny_run(tmp_path, additive=additive, text_ids=text_ids)
    run.verify()
    assert run.additive is additive
    assert run.movies.ids(np.arange(2)) == (["tt00001", "tt00002"] if text_ids else [1, 2])
    assert [movie.title for movie in run.catalog] == [movie.title for movie in dataset.catalog]
    assert run.popularity.tolist() == dataset.popularity.tolist()
    start, stop = dataset.offsets[3:5]
    history = run.history(dataset.users.ids(np.array([3]))[0])
    assert history.tolist() == dataset.movie_rows[start:stop].tolist()
    assert run.tower(history).shape == (run.embedding_dim,)


def test_movies_that_nobody_rated_have_no_vector(tmp_path: Path) -> None:
    dataset = tiny_dataset(n=5)
    fewer = dataset.movie_rows != 2
    from dataclasses import replace

    sparse = replace(
        dataset,
        user_rows=dataset.user_rows[fewer],
        movie_rows=dataset.movie_rows[fewer],
        ratings=dataset.ratings[fewer],
        timestamps=dataset.timestamps[fewer],
    )
    run = tiny_run(tmp_path, dataset=sparse)
    assert run.movies.ids(np.arange(4)) == [1, 2, 4, 5]
    assert run.history(1).max() == 3


def test_a_moved_folder_serves(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    other = tmp_path / "elsewhere" / run.run_id
    other.parent.mkdir()
    shutil.move(run.path, other)
    moved = Run.load(other)
    np.testing.assert_array_equal(moved.tower(moved.history(1)), Run.load(other).tower(moved.history(1)))


def test_the_stored_run_of_schema_1_loads_for_ever() -> None:
    run = Run.load(V1)
    run.verify()
    # worked by hand when it was stored: rows of movies 1, 2, 3 are (1, 0), (0, 1), (2, 2)
    np.testing.assert_array_equal(run.tower(run.movies.rows([1, 2])), [0.5, 0.5])
    assert run.history(7).tolist() == [0, 2]
    assert run.catalog[1].title == "Zwei, und “mehr”"


def test_a_flipped_byte_in_any_file_is_refused_by_its_name(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, additive=False)
    for name in run.manifest.files:
        path = run.path / name
        content = path.read_bytes()
        if not content:
            continue
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(RunError, match=f"damaged: {name} does not have the sha256"):
            Run.load(run.path).verify()
        path.write_bytes(content[:-1])
        with pytest.raises(RunError, match=f"damaged: {name} has {len(content) - 1} bytes"):
            Run.load(run.path).verify()
        path.unlink()
        with pytest.raises(RunError, match=f"damaged: {name} is missing"):
            Run.load(run.path).verify()
        path.write_bytes(content)
    run.verify()


def test_a_damaged_file_is_refused_at_its_first_use(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    path = run.path / "history_vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    opened = Run.load(run.path)
    assert opened.history(1).size  # another file is still good
    with pytest.raises(RunError, match=r"history_vectors\.npy"):
        _ = opened.tower


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 2}, "has schema 2, this embedstore reads up to 1; upgrade"),
        ({"schema_version": None}, "has no schema_version"),
        ({"run_id": "20200101t000000-0000"}, "is the manifest of run 20200101t000000-0000"),
        ({"embedding_dim": -1}, "does not have the fields of schema 1"),
        ({"embedding_dim": "8"}, "does not have the fields of schema 1"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}}}, "outside of the run"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}}, "outside of the run"),
        ({"files": []}, "does not have the fields of schema 1"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    run = tiny_run(tmp_path)
    edit_json(run.path / "manifest.json", **change)
    with pytest.raises(RunError, match=sentence):
        Run.load(run.path)


def test_a_flipped_bit_anywhere_in_the_manifest_is_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, additive=False)
    path = run.path / "manifest.json"
    content = path.read_bytes()
    for at, byte in enumerate(content):
        path.write_bytes(content[:at] + bytes([byte ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(RunError, match=run.run_id):
            Run.load(run.path)


def test_a_manifest_that_was_edited_or_laid_out_anew_is_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    path = run.path / "manifest.json"
    content = json.loads(path.read_text())
    for edited in (content, content | {"metrics": {"ndcg@100": 0.9}}, content | {"note": "mine"}):
        path.write_text(json.dumps(edited))
        with pytest.raises(RunError, match="was changed after it was written"):
            Run.load(run.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b"\xff", b'{"schema_version": 1}'])
def test_a_broken_manifest_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    run = tiny_run(tmp_path)
    (run.path / "manifest.json").write_bytes(content)
    with pytest.raises(RunError):
        Run.load(run.path)


def test_an_unfinished_run_says_so_and_is_never_the_latest(tmp_path: Path) -> None:
    old = tiny_run(tmp_path, run_id="20200101t000000-0000")
    new = tiny_run(tmp_path, run_id="20210101t000000-0000")
    (new.path / "manifest.json").unlink()
    with pytest.raises(RunError, match="did not finish"):
        Run.load(new.path)
    assert find_run(tmp_path / "runs", "latest").run_id == old.run_id
    assert [summary.problem for summary in list_runs(tmp_path / "runs")] == [None, "unfinished"]


def test_references_to_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for run_id in ("20200101t000000-0000", "20210101t000000-0000", "20210202t000000-0000"):
        tiny_run(tmp_path, run_id=run_id)
    assert find_run(runs).run_id == "20210202t000000-0000"
    assert find_run(runs, "2020").run_id == "20200101t000000-0000"
    with pytest.raises(UsageError, match="@movies~1 asks the store"):
        find_run(runs, "@movies~1")
    with pytest.raises(UsageError, match="fits 2 runs"):
        find_run(runs, "2021")
    for reference in ("1999", "", "20990101t000000-0000", "../runs"):
        with pytest.raises(NotFoundError):
            find_run(runs, reference)
    with pytest.raises(NotFoundError, match="copy its folder here"):
        find_run(runs, "20990101t000000-0000")
    with pytest.raises(NotFoundError, match="no finished run"):
        find_run(tmp_path / "nowhere", "latest")
    remove_run(runs, "20200101t000000-0000")
    assert len(list_runs(runs)) == 2
    with pytest.raises(NotFoundError):
        remove_run(runs, "../data")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedstore.runs.writer.replace_file", _no_space)
    with pytest.raises(RunError, match="No space left"):
        tiny_run(tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def _no_space(path: Path, content: bytes) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_never_sealed(tmp_path: Path, bad: float) -> None:
    vectors = np.ones((40, 2), np.float32)
    vectors[3, 1] = bad
    with pytest.raises(RunError, match="movie_vectors holds NaN or infinity"):
        write_run(
            tmp_path,
            dataset=tiny_dataset(),
            config={},
            movie_vectors=vectors,
            tower=AdditiveTower(np.ones((40, 2), np.float32)),
            metrics={},
        )
    assert list(tmp_path.iterdir()) == []


def test_run_ids_sort_by_age_also_where_the_clock_goes_back(tmp_path: Path) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    runs = tmp_path / "runs"
    ids = []
    for moment in (noon, noon, noon - timedelta(days=400), noon + timedelta(hours=1)):
        ids.append(new_run_id(runs, moment))
        (runs / ids[-1]).mkdir(parents=True)
    stamps = [run_id[:-5] for run_id in ids]
    assert stamps == ["20260101t120000", "20260101t120001", "20260101t120002", "20260101t130000"]
    (runs / "99991231t235959-ffff").mkdir()
    assert new_run_id(runs, noon).startswith("20260101t120000-")  # there is no later time


def test_the_catalog_reads_the_lines_that_it_is_asked_for(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, n=2500)
    titles = [json.loads(line)["title"] for line in (run.path / "movies.jsonl").read_text().splitlines()]
    assert len(run.catalog) == 2500
    assert [movie.title for movie in run.catalog] == titles
    assert [movie.title for movie in run.catalog[1990:2010]] == titles[1990:2010]
    assert [movie.title for movie in run.catalog[::-700]] == titles[::-700]
    assert run.catalog[-1].title == titles[-1]
    rows = np.array([2499, 0, 7, 8])
    assert [line["title"] for line in run.catalog.lines(rows)] == [titles[row] for row in rows]
    assert run.catalog.lines(rows[:0]) == []
    assert run.catalog[2500:] == []
    with pytest.raises(IndexError, match="outside of 0 to 2499"):
        _ = run.catalog[2500]


def test_a_released_run_reads_the_same_again(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    before = (run.movie_vectors.copy(), list(run.catalog))
    run.release()
    assert np.array_equal(run.movie_vectors, before[0])
    assert list(run.catalog) == before[1]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"[1, 2]\n", "does not hold one movie per line"),
        (b"7\n", "does not hold one movie per line"),
        (b"\n", "does not hold one movie per line"),
        (b'{"movie_id": 2}\n', "does not hold one movie per line"),
        (b"\xff\n", "does not hold one movie per line"),
        (b"[" * 100_000 + b"\n", "has a line of more than 65,536 bytes"),
        (b"[" * 60_000 + b"\n", "does not hold one movie per line"),
        (b"{}, {}\n", "does not hold one movie per line"),
        (b"", "has 39 lines for 40 vectors"),
        (b"{}\n{}\n", "has 41 lines for 40 vectors"),
    ],
)
def test_lines_that_describe_no_movie_are_refused_by_the_name_of_their_file(
    tmp_path: Path, line: bytes, sentence: str
) -> None:
    run = tiny_run(tmp_path)
    lines = (run.path / "movies.jsonl").read_bytes().splitlines(keepends=True)
    reseal(run, b"".join([lines[0], line, *lines[2:]]))
    with pytest.raises(RunError, match=rf"damaged: movies\.jsonl {sentence}"):
        list(Run.load(run.path).catalog)


@pytest.mark.parametrize(("content", "sentence"), [(b"", "cannot be mapped"), (b"{}", "a whole line")])
def test_a_catalog_without_whole_lines_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    run = tiny_run(tmp_path)
    reseal(run, content)
    with pytest.raises(RunError, match=rf"damaged: movies\.jsonl .*{sentence}"):
        _ = Run.load(run.path).catalog


def reseal(run: Run, movies: bytes) -> None:
    """Replace movies.jsonl and its digest: damage that a digest does not tell."""
    (run.path / "movies.jsonl").write_bytes(movies)
    entry = {"bytes": len(movies), "sha256": hashlib.sha256(movies).hexdigest()}
    edit_json(run.path / "manifest.json", files={**run.manifest.files, "movies.jsonl": entry})
